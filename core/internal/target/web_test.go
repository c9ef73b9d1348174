package target

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// What an administrator says about a web target comes back with what was left
// out filled in, and its start URL decides host and port.
func TestWebRoundTrip(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		r.site(t, "plant")
		c := newClient(t, r)
		made := c.do("POST", "/targets", `{"name":"wiki","kind":"web","site":"plant","host":"elsewhere","web":{
 "start_url":"https://Wiki.Example:8443/start?x=1",
 "policy":{"allow":[{"host":"*.cdn.example","methods":["GET"]}],"recipe":{"injections":[{"id":"pw","kind":"form","origin":"https://wiki.example:8443","path":"/login$","field":"password","value":"password"}]}},
 "browser":{"clipboard_out":0,"idle_s":600,"watermark":"{user} on {target}"}},
 "accounts":[{"name":"alice","secret":"sec_pw"},{"name":"self"}]}`)
		m := made.want(t, 201)
		if m["host"] != "wiki.example" || m["port"] != 8443.0 || m["address"] != "plant/wiki.example:8443" {
			t.Errorf("made %v", m)
		}
		var out struct{ Web WebSpec }
		if err := json.Unmarshal([]byte(c.do("GET", "/targets/wiki", "").body), &out); err != nil {
			t.Fatal(err)
		}
		b := out.Web.Browser
		if *b.ClipboardIn != 16<<20 || *b.ClipboardOut != 0 || *b.UploadMax != 1<<30 || *b.NoticeS != 60 || b.Mode != "kiosk" || b.Engine != wire.Firefox || b.Popups != "tab" || b.DevTools {
			t.Errorf("browser %+v", b)
		}
		if out.Web.StartURL != "https://wiki.example:8443/start?x=1" || len(out.Web.Policy.Allow) != 1 || out.Web.Policy.Recipe.Injections[0].Kind != webrule.Form {
			t.Errorf("web %+v", out.Web)
		}
		p := out.Web.BrowserPolicy("eve", "wiki", "alice", "10.0.0.9", time.Now())
		want := wire.BrowserPolicy{Mode: "kiosk", ClipboardIn: 16 << 20, UploadMax: 1 << 30, DownloadMax: 1 << 30, IdleS: 600, NoticeS: 60, Watermark: []string{"eve on wiki"}}
		if d := cmp.Diff(want, p); d != "" {
			t.Errorf("policy (-want +got):\n%s", d)
		}
		var list struct{ Items []View }
		if err := json.Unmarshal([]byte(c.do("GET", "/targets", "").body), &list); err != nil {
			t.Fatal(err)
		}
		if w := list.Items[0].Web; w == nil || w.StartURL == "" || len(w.Policy.Allow) != 0 {
			t.Errorf("the list shows %+v", w)
		}
		as, err := r.Accounts(t.Context(), r.db, m["id"].(string))
		if err != nil {
			t.Fatal(err)
		}
		if as[0].Auth != AuthPassword || as[1].Auth != AuthAsk || as[0].Features.String() != "file_transfer,web" {
			t.Errorf("accounts %+v", as)
		}
		// The body of an answer is a body for the next change.
		put := strings.Replace(c.do("GET", "/targets/wiki", "").body, `"/login$"`, `"/session$"`, 1)
		var view View
		if err := json.Unmarshal([]byte(put), &view); err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(Settings{Name: view.Name, Kind: view.Kind, Site: view.Site, Host: view.Host, Port: view.Port, Web: view.Web})
		if err != nil {
			t.Fatal(err)
		}
		c.do("PUT", "/targets/wiki", string(body), "If-Match: "+made.etag).want(t, 200)
		found, err := r.log.After(t.Context(), r.db, audit.Filter{}, 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		f := found[len(found)-1].Fields
		if f["injections"] != "pw form https://wiki.example:8443/session$" || f["old_injections"] != "pw form https://wiki.example:8443/login$" {
			t.Errorf("the change is audited as %v", f)
		}
	})
}

func TestWebProblems(t *testing.T) {
	good := func() Target {
		return Target{Name: "w", Kind: Web, Web: &WebSpec{StartURL: "https://w.example/"}}
	}
	for _, tc := range []struct {
		name   string
		change func(*Target)
		want   string // empty: good
	}{
		{"plain", func(*Target) {}, ""},
		{"http unsaid", func(t *Target) { t.Web.StartURL = "http://w.example/" }, "web.start_url: is not encrypted"},
		{"http meant", func(t *Target) { t.Web.StartURL, t.Web.Insecure = "http://w.example/", true }, ""},
		{"other scheme", func(t *Target) { t.Web.StartURL = "ftp://w.example/" }, "web.start_url: "},
		{"no host", func(t *Target) { t.Web.StartURL = "https:///x" }, "web.start_url: "},
		{"login inside", func(t *Target) { t.Web.StartURL = "https://a:b@w.example/" }, "web.start_url: must hold no login"},
		{"port 0", func(t *Target) { t.Web.StartURL = "https://w.example:0/" }, "web.start_url: the port"},
		{"IPv6", func(t *Target) { t.Web.StartURL = "https://[fd00::5]:444/" }, ""},
		{"mode", func(t *Target) { t.Web.Browser.Mode = "window" }, "web.browser.mode: "},
		{"popups", func(t *Target) { t.Web.Browser.Popups = PopupBlock }, ""},
		{"unknown popups", func(t *Target) { t.Web.Browser.Popups = "maybe" }, "web.browser.popups: "},
		{"engine", func(t *Target) { t.Web.Browser.Engine = "chromium" }, ""},
		{"unknown engine", func(t *Target) { t.Web.Browser.Engine = "lynx" }, "web.browser.engine: "},
		{"negative", func(t *Target) { t.Web.Browser.ClipboardIn = new(int64(-1)) }, "web.browser.clipboard_in: "},
		{"extend nothing", func(t *Target) { t.Web.Browser.Extend = true }, "web.browser.extend: "},
		{"scan", func(t *Target) { t.Web.ScanURL = "http://scan/" }, "web.scan_url: "},
		{"scan over TLS", func(t *Target) { t.Web.ScanURL = "icaps://scan.example/avscan" }, "web.scan_url: "},
		{"scan without service", func(t *Target) { t.Web.ScanURL = "icap://scan.example:1344" }, "web.scan_url: "},
		{"scan well", func(t *Target) { t.Web.ScanURL = "icap://scan.example:1344/avscan" }, ""},
		{"watermark", func(t *Target) { t.Web.Browser.Watermark = strings.Repeat("a\n", 9) }, "web.browser.watermark: "},
		{"ssh keys", func(t *Target) { t.HostKeyPolicy = HostKeyTOFU }, "host_key_policy: "},
		{"on an ssh target", func(t *Target) { t.Kind, t.Host = SSH, "h" }, "web: "},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tg := good()
			tc.change(&tg)
			var p problems
			tg.validate(&p)
			got := ""
			for _, f := range p {
				got += f.Field + ": " + f.Message + "\n"
			}
			if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
				t.Errorf("problems %q, want %q", got, tc.want)
			}
		})
	}
}

func TestWebOrigin(t *testing.T) {
	for in, want := range map[string]string{
		"https://w.example/x":          "https://w.example",
		"https://w.example:443/x":      "https://w.example",
		"http://w.example:80/":         "http://w.example",
		"https://w.example:8443/?a=b":  "https://w.example:8443",
		"https://[fd00::5]:443/":       "https://[fd00::5]",
		"https://[fd00::5]:444/#there": "https://[fd00::5]:444",
	} {
		if got := (&WebSpec{StartURL: in}).Origin(); got != want {
			t.Errorf("origin of %s is %s, want %s", in, got, want)
		}
	}
}

// Whoever may not manage secrets may not say where they go (a new recipe,
// start URL or trust), but may change what else sessions reach.
func TestWebRedirectNeedsSecrets(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		tg, err := r.Create(r.ctx, Target{Name: "w", Kind: Web, Web: &WebSpec{StartURL: "https://w.example/"}}, []Account{{Name: "a", SecretID: "sec_pw"}})
		if err != nil {
			t.Fatal(err)
		}
		ctx := api.WithPrincipal(t.Context(), &api.Principal{UserID: "usr_t", Permissions: map[api.Permission]bool{api.TargetsManage: true}})
		for name, tc := range map[string]struct {
			change func(*WebSpec)
			may    bool
		}{
			"allow":     {func(w *WebSpec) { w.Policy.Allow = []webrule.Rule{{Host: "cdn.example"}} }, true},
			"recipe":    {func(w *WebSpec) { w.Policy.Recipe.Injections = []webrule.Injection{{ID: "x"}} }, false},
			"trust":     {func(w *WebSpec) { w.Policy.TLS.Unchecked = true }, false},
			"start url": {func(w *WebSpec) { w.StartURL = "http://w.example:443/"; w.Insecure = true }, false},
		} {
			_, err := r.Update(ctx, tg.ID, nil, func(t *Target) {
				t.Web = t.Web.clone()
				tc.change(t.Web)
			})
			if (err == nil) != tc.may {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A rule that leads through a site may take a secret to another network's
// server of the same address; one that only permits does not.
func TestRulesRedirect(t *testing.T) {
	with := func(rules ...webrule.Rule) *Target {
		return &Target{Kind: Web, Site: "a", Host: "app.test", Port: 80, Web: &WebSpec{StartURL: "http://app.test/", Insecure: true, Policy: webrule.Policy{Allow: rules}}}
	}
	plain := with(webrule.Rule{Host: "cdn.test"})
	if redirects(plain, with(webrule.Rule{Host: "fonts.test"})) {
		t.Error("a permitted host redirects")
	}
	if !redirects(plain, with(webrule.Rule{Host: "cdn.test"}, webrule.Rule{Host: "app.test", Scheme: "http", Site: "b"})) {
		t.Error("the target's own host through another site does not redirect")
	}
}
