package e2e

import (
	"crypto/rand"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/wire"
)

// chromium is the world of web sessions with a further carrier, for as long as
// the test runs, which has Chromium and nothing else: one waits.
func chromium(t *testing.T, w *webWorld) *webWorld {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.docker.Image(t.Context(), root, func(line string) { t.Log(line) }, wire.Chromium); err != nil {
		t.Fatal(err)
	}
	c := &webWorld{world: w.world, docker: w.docker, proxy: w.proxy, ca: w.ca, key: w.key, user: w.user}
	c.carrier, c.runDir = w.carrierWith(t, "chromium-"+strings.ToLower(rand.Text()[:6]), "", 0, "chromium_image = \"caponier-chromium\"\nchromium_warm = 1\n[admission]\npressure = 95.0\n")
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, c.carrier, harness.HasRoom(1)); err != nil {
		t.Fatal(err)
	}
	return c
}

// paper has a document shown in the browser's own viewer.
func (u *webUse) paper(t *testing.T) {
	t.Helper()
	u.drive(t, "/paper.pdf")
	if err := u.Screen.Shows(t.Context(), patience, "the document", sites.PaperColor); err != nil {
		t.Fatal(err)
	}
}

// inChromium is a target's choice of a browser.
var inChromium = siteOptions{browser: map[string]any{"engine": wire.Chromium}}

// The main path in the other browser: refused where no carrier has it; signed
// in with a credential that is nowhere in the container, caged, used, recorded,
// gone.
func TestWebChromium(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Form}, inChromium)
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, w.carrier, harness.HasRoom(1)); err != nil {
		t.Fatal(err)
	}
	_, err := w.user.OpenWeb(t.Context(), s.target)
	if st, ok := errors.AsType[*harness.Status](err); !ok || st.Code != http.StatusServiceUnavailable || !strings.Contains(st.Body, "No carrier can take a session in Chromium (carrier-1: it has no Chromium)") {
		t.Errorf("where no carrier has Chromium: %v", err)
	}
	c := chromium(t, w)
	c.restartCore(t) // it no longer has the request that stored the password
	u := c.openIn(t, w.user, s, "America/St_Johns")
	u.signedIn(t)
	if !u.Warm || !u.Recorded || u.Carrier != c.carrier.Name {
		t.Errorf("session %+v", u.WebSession)
	}
	// The page is there, over TLS that only the session's own authority vouches
	// for; the site was told the password.
	if got := s.Logins(); len(got) != 1 || !got[0].OK || got[0].Password != s.Config.Password {
		t.Errorf("the site received %+v", got)
	}
	if got := u.run(t, "return location.href + ' ' + isSecureContext + ' ' + /Chrome[/]/.test(navigator.userAgent)"); got != s.origin+"/home true true" {
		t.Errorf("the page says %q", got)
	}
	if got := u.run(t, "return Intl.DateTimeFormat().resolvedOptions().timeZone + ' ' + new Date('2026-01-15T12:00:00Z').getHours()"); got != "America/St_Johns 8" {
		t.Errorf("the page's clock is %q", got)
	}
	// A person's hands: a click on a link and keys.
	u.click(t, `a[href="/note"]`)
	u.atNote(t)
	if err := u.Screen.Type("Typed In Chromium"); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "what was typed arrives", func() error {
		if got := u.run(t, "return document.getElementById('note').value"); got != "Typed In Chromium" {
			return errors.New(got)
		}
		return nil
	})
	c.caged(t, u)
	c.nowhere(t, u, map[string]map[string]string{"the password": written(s.Config.Password)})
	container := c.containerOf(t, u)
	u.paper(t)
	u.end(t)
	until(t, patience, "its container is gone", func() error {
		ids, err := c.docker.Containers(t.Context())
		if err == nil && slices.Contains(ids, container) {
			err = errors.New("it is there")
		}
		return err
	})

	until(t, patience, "the recording is complete", func() error {
		var rec recordingItem
		if err := c.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+u.RecordingID, nil, &rec); err != nil {
			return err
		}
		if rec.Status != "complete" {
			return errors.New(rec.Status)
		}
		return nil
	})
	events, err := c.core.Admin.Timeline(t.Context(), u.RecordingID)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	used := map[string]int{}
	for _, e := range events {
		switch e.Kind {
		case "request":
			asked[e.Fields["method"]+" "+strings.TrimPrefix(strings.Split(e.Fields["url"], "?")[0], s.origin)] = true
		case "blocked":
			t.Errorf("the browser asked for %s by itself", e.Fields["url"])
		case "injection":
			if e.Fields["outcome"] == "used" {
				used[e.Fields["id"]]++
			}
		}
		for k, v := range e.Fields {
			if strings.Contains(v, s.Config.Password) {
				t.Errorf("the password is in field %s of %s", k, e.Kind)
			}
		}
	}
	for _, want := range []string{"GET /login", "POST /login", "GET /home", "GET /note"} {
		if !asked[want] {
			t.Errorf("%s is not on record; there are %v", want, asked)
		}
	}
	if len(used) != 2 || used["user"] != 1 || used["pw"] != 1 {
		t.Errorf("uses of the credential on record: %v", used)
	}
	next := slices.IndexFunc(events, func(e harness.TimelineEvent) bool {
		return e.Kind == "request" && strings.HasSuffix(e.Fields["url"], "/note")
	})
	if next < 0 {
		t.Fatal("the note is not on record")
	}
	if got := c.recordedPicture(t, u.RecordingID, events[next].T-0.05); harness.Share(got, s.Color()) < 0.33 {
		t.Error("the recording's picture after signing in is not the page")
	}
}

// Files pass into a session in Chromium and out of it where the target permits
// it, from the first moment on, and where it does not none does.
func TestWebChromiumFiles(t *testing.T) {
	w := web(t)
	c := chromium(t, w)
	s := w.site(t, sites.Config{Kind: sites.Open}, inChromium)
	u := c.open(t, s)
	u.shows(t, "the page")
	u.comesOut(t)
	u.goesIn(t)
	if code, got := u.files(t, http.MethodGet, "/to-the-site.txt", nil); code != http.StatusOK || len(got) != 70000 {
		t.Errorf("what was put in comes back as %d, %d bytes", code, len(got))
	}
	u.end(t)
	none := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"engine": wire.Chromium, "upload_max": 0, "download_max": 0}})
	u = c.open(t, none)
	u.shows(t, "the page of whom no files may pass")
	u.passNoFiles(t)
	u.noDialog(t)
}
