package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// allowHosts allows everything at origins.
func allowHosts(origins ...string) func(*harness.WebTarget, *webrule.Policy) {
	return func(_ *harness.WebTarget, p *webrule.Policy) {
		for _, o := range origins {
			scheme, host, _ := strings.Cut(o, "://")
			p.Allow = append(p.Allow, webrule.Rule{Host: host, Scheme: scheme})
		}
	}
}

// fetch is a script that asks for an address and says the status, or error.
func fetch(url string) string {
	return fmt.Sprintf("try { const r = await fetch(%q, {mode: 'cors'}); return r.status } catch (e) { return 'refused' }", url)
}

// A changed rule holds for open sessions within two seconds, both ways, and
// what is refused never reaches anybody.
func TestWebRulesChange(t *testing.T) {
	w := web(t)
	other := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{noTarget: true})
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	part := other.origin + "/part/picture.svg"
	if got := u.run(t, fetch(part)); got == "200" {
		t.Fatal("what no rule allows is answered")
	}
	if got := other.Requests(); len(got) != 0 {
		t.Fatalf("what no rule allows arrived: %+v", got)
	}
	change := func(what, want string, f func(*webrule.Policy)) {
		t.Helper()
		w.update(t, s, f)
		changed := time.Now()
		for {
			asked := time.Since(changed)
			got := u.run(t, fetch(part))
			if (got == "200") == (want == "200") {
				t.Logf("%s %v after the change", what, asked.Round(time.Millisecond))
				return
			}
			if asked > 2*time.Second {
				t.Fatalf("%s: asked %v after the change, the answer is %s", what, asked, got)
			}
		}
	}
	change("allowed", "200", func(p *webrule.Policy) { allowHosts(other.origin)(nil, p) })
	n := len(other.Requests())
	change("denied", "refused", func(p *webrule.Policy) { p.Deny = p.Allow })
	before := len(other.Requests())
	if got := u.run(t, fetch(part)); got == "200" || len(other.Requests()) != before {
		t.Errorf("denied, but %q and %d requests more", got, len(other.Requests())-before)
	}
	if before < n {
		t.Error("requests were lost")
	}
	change("one path", "200", func(p *webrule.Policy) {
		p.Deny = nil
		p.Allow[0].Path, p.Allow[0].Methods = "/part/picture.svg$", []string{"GET"}
	})
	for _, url := range []string{"/part/script.js", "/part/picture.svg/x", "/part/../plain", "/part/%2e%2e/plain"} {
		if got := u.run(t, fetch(other.origin+url)); got == "200" {
			t.Errorf("%s is answered", url)
		}
	}
}

// Learning: a page with parts of four other hosts; what was blocked is
// proposed, all of it and nothing else, and once accepted the page is whole.
func TestWebLearns(t *testing.T) {
	w := web(t)
	var hosts []string
	for range 4 {
		hosts = append(hosts, w.site(t, sites.Config{Kind: sites.Open}, siteOptions{noTarget: true}).origin)
	}
	s := w.site(t, sites.Config{Kind: sites.Open, Hosts: hosts}, siteOptions{change: func(_ *harness.WebTarget, p *webrule.Policy) { p.Learn = true }})
	u := w.open(t, s)
	u.shows(t, "the page")
	u.drive(t, "/many")
	var got struct {
		Proposals []struct {
			Rule  webrule.Rule `json:"rule"`
			Count int          `json:"count"`
		} `json:"proposals"`
	}
	until(t, patience, "every host is proposed", func() error {
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/targets/"+s.target+"/web-proposals", nil, &got); err != nil {
			return err
		}
		if len(got.Proposals) < len(hosts) {
			return fmt.Errorf("%+v", got.Proposals)
		}
		return nil
	})
	for _, p := range got.Proposals {
		if !slices.Contains(hosts, p.Rule.Scheme+"://"+p.Rule.Host) && !slices.Contains(hosts, "https://"+p.Rule.Host) {
			t.Errorf("%+v is proposed, the page has parts of %v", p, hosts)
		}
	}
	w.update(t, s, func(p *webrule.Policy) {
		for _, x := range got.Proposals {
			p.Allow = append(p.Allow, x.Rule)
		}
	})
	until(t, patience, "the page is whole", func() error {
		u.drive(t, "/many")
		if got := u.run(t, "return document.getElementById('many').dataset.script + ' ' + [...document.images].every(i => i.naturalWidth > 0)"); got != "ran true" {
			return errors.New(got)
		}
		return nil
	})
}

// A target whose certificate is bad is not shown and gets nothing.
func TestWebBadCertificates(t *testing.T) {
	w := web(t)
	for name, fault := range map[string]sites.Fault{"expired": sites.Expired, "wrong host": sites.WrongHost, "self-signed": sites.SelfSigned} {
		t.Run(name, func(t *testing.T) {
			s := w.site(t, sites.Config{Kind: sites.Form}, siteOptions{fault: fault})
			u := w.open(t, s)
			until(t, patience, "the failure is on record", func() error {
				events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
				if err != nil {
					return err
				}
				for _, e := range events {
					b, err := json.Marshal(e)
					if err != nil {
						return err
					}
					if e.Kind == "request" && strings.Contains(string(b), "502") {
						return nil
					}
				}
				return fmt.Errorf("not among %d events", len(events))
			})
			if got := s.Requests(); len(got) != 0 {
				t.Errorf("the site received %+v", got)
			}
			p := u.Screen.Picture()
			if harness.Share(p, s.Color()) > 0.01 || harness.Share(p, sites.Asking) > 0.3 {
				t.Error("its page is on the screen")
			}
		})
	}
}

// What leaves for anywhere but the target's own origin and what it was given:
// the proxy asks nobody else, and never core, loopback or a neighbour.
func TestWebReachesOnlyTheTarget(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	neighbour := w.site(t, sites.Config{Kind: sites.Open, Color: sites.Refused}, siteOptions{noTarget: true})
	u := w.open(t, s)
	u.shows(t, "the page")
	for _, url := range []string{
		neighbour.origin + "/plain", w.core.Ready.URL + "/api/v1/openapi.json", "https://127.0.0.1:18443/", "http://127.0.0.1:9464/metrics",
		"https://" + webproxyAddr + ":18443/", "http://169.254.169.254/latest/meta-data/", "https://localhost/", "http://[::1]/", "http://park.caponier.internal/",
		"ftp://" + harness.HostAddr + "/",
	} {
		if got := u.run(t, fmt.Sprintf("try { const r = await fetch(%q, {mode: 'no-cors'}); return r.type } catch (e) { return 'refused' }", url)); got != "refused" && got != "opaque" {
			t.Errorf("%s: %s", url, got)
		}
		// Pages, too: the screen shows a refusal, not theirs.
		u.run(t, fmt.Sprintf("const f = document.createElement('iframe'); f.src = %q; document.body.append(f); return 1", url))
	}
	u.drive(t, neighbour.origin+"/plain")
	if err := u.Screen.Wait(t.Context(), patience, "the page is left", func(p *image.RGBA) error {
		if harness.Share(p, s.Color()) > 0.01 {
			return errors.New("it is not")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := neighbour.Requests(); len(got) != 0 {
		t.Errorf("the neighbour received %+v", got)
	}
	if share := harness.Share(u.Screen.Picture(), neighbour.Color()); share > 0.3 {
		t.Error("the neighbour's page is on the screen")
	}
}
