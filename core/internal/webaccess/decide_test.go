package webaccess

import (
	"strings"
	"testing"

	"caponier/core/internal/target"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

func testRules(t testing.TB, change func(*target.Target)) *rules {
	t.Helper()
	tg := &target.Target{ID: "tgt_w", Name: "w", Kind: target.Web, Site: "plant", Web: &target.WebSpec{StartURL: "https://wiki.example/start", Policy: webrule.Policy{
		Allow: []webrule.Rule{{Host: "*.cdn.example"}, {Host: "api.example:8443"}, {Host: "far.example", Site: "attic"}, {Host: "near.example", Site: "-"}, {Host: "half.example"}},
		Deny:  []webrule.Rule{{Host: "bad.cdn.example"}, {Host: "half.example", Methods: []string{"POST"}}},
		Recipe: webrule.Recipe{
			Injections: []webrule.Injection{
				{ID: "form", Kind: webrule.Form, Origin: "https://wiki.example", Path: "/login$", Field: "pw", Value: webrule.Password},
				{ID: "thrice", Kind: webrule.Form, Origin: "https://wiki.example", Path: "/relogin", Field: "pw", Value: webrule.Password, Times: 5},
				{ID: "basic", Kind: webrule.Basic, Origin: "https://wiki.example"},
				{ID: "plain", Kind: webrule.Basic, Origin: "http://old.example", Insecure: true},
				{ID: "cert", Kind: webrule.ClientCert, Origin: "https://wiki.example", Path: "/api"},
			},
			Login: &webrule.Login{Steps: []webrule.Step{{Method: "POST", URL: "/session", Body: "p={{password}}"}}},
		},
	}}}
	if change != nil {
		change(tg)
	}
	r, err := compile(tg)
	must(t, err)
	return r
}

// Every way in which a credential must not go out, and those in which it may.
func TestMayUse(t *testing.T) {
	good := func() (view, wire.WebCredentialAsk) {
		return view{Live: true, Proxy: "edg_p", Carrier: "edg_c", Account: "alice", Site: "plant", Rules: testRules(t, nil), Uses: map[string]int{}},
			wire.WebCredentialAsk{Session: "con_1", Injection: "form", URL: "https://wiki.example/login"}
	}
	for _, tc := range []struct {
		name   string
		change func(v *view, asker *string, a *wire.WebCredentialAsk)
		want   string // values, or "!" and part of the refusal
	}{
		{"as the recipe says", nil, "password"},
		{"default port written out", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "https://wiki.example:443/login" }, "password"},
		{"another webproxy", func(_ *view, by *string, _ *wire.WebCredentialAsk) { *by = "edg_other" }, "!not this webproxy's"},
		{"the carrier", func(_ *view, by *string, _ *wire.WebCredentialAsk) { *by = "edg_c" }, "!not this webproxy's"},
		{"nobody of nobody", func(v *view, by *string, _ *wire.WebCredentialAsk) { v.Proxy, *by = "", "" }, "!not this webproxy's"},
		{"over", func(v *view, _ *string, _ *wire.WebCredentialAsk) { v.Live = false }, "!over"},
		{"locked", func(v *view, _ *string, _ *wire.WebCredentialAsk) { v.Locked = true }, "!locked"},
		{"no rules", func(v *view, _ *string, _ *wire.WebCredentialAsk) { v.Rules = nil }, "!rules"},
		{"no account", func(v *view, _ *string, _ *wire.WebCredentialAsk) { v.Account = "" }, "!account"},
		{"zero view", func(v *view, _ *string, _ *wire.WebCredentialAsk) { *v = view{} }, "!"},
		{"unknown injection", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.Injection = "other" }, "!no such injection"},
		{"empty injection", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.Injection = "" }, "!no such injection"},
		{"another path", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "https://wiki.example/login/x" }, "!another origin or path"},
		{"dots in the path", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "https://wiki.example/x/../evil" }, "!another origin or path"},
		{"ambiguous path", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "https://wiki.example/evil%2f..%2flogin" }, "!another origin or path"},
		{"another host", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "https://wiki.example.evil.example/login" }, "!another origin or path"},
		{"another port", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "https://wiki.example:8443/login" }, "!another origin or path"},
		{"plain http", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "http://wiki.example/login" }, "!https only"},
		{"a query", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL += "?next=/" }, "!not an origin and a path"},
		{"a login in the URL", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "https://wiki.example@evil.example/login" }, "!not an origin and a path"},
		{"no URL", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "" }, "!not an origin and a path"},
		{"a file", func(_ *view, _ *string, a *wire.WebCredentialAsk) { a.URL = "file:///login" }, "!not an origin and a path"},
		{"a long URL", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.URL = "https://wiki.example/" + strings.Repeat("x", 5000)
		}, "!not an origin and a path"},
		{"third time", func(v *view, _ *string, _ *wire.WebCredentialAsk) { v.Uses["form"] = 2 }, "password"},
		{"fourth time", func(v *view, _ *string, _ *wire.WebCredentialAsk) { v.Uses["form"] = 3 }, "!as often as it may"},
		{"as often as said", func(v *view, _ *string, a *wire.WebCredentialAsk) {
			v.Uses["thrice"], a.Injection, a.URL = 4, "thrice", "https://wiki.example/relogin/now"
		}, "password"},
		{"oftener than said", func(v *view, _ *string, a *wire.WebCredentialAsk) {
			v.Uses["thrice"], a.Injection, a.URL = 5, "thrice", "https://wiki.example/relogin"
		}, "!as often as it may"},
		{"basic, any path", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.Injection, a.URL = "basic", "https://wiki.example/deep/page"
		}, "username password"},
		{"http where it is meant", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.Injection, a.URL = "plain", "http://old.example/"
		}, "username password"},
		{"a client certificate in the handshake", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.Injection, a.URL = "cert", "https://wiki.example/"
		}, "certificate"},
		{"a client certificate elsewhere", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.Injection, a.URL = "cert", "https://evil.example/"
		}, "!another origin"},
		{"certificate not checked", func(v *view, _ *string, _ *wire.WebCredentialAsk) {
			v.Rules = testRules(t, func(t *target.Target) { t.Web.Policy.TLS.Unchecked = true })
		}, "!certificate is not checked"},
		{"not checked, and meant", func(v *view, _ *string, _ *wire.WebCredentialAsk) {
			v.Rules = testRules(t, func(t *target.Target) {
				t.Web.Policy.TLS.Unchecked = true
				t.Web.Policy.Recipe.Injections[0].Insecure = true
			})
		}, "password"},
		{"login", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.Injection, a.URL = "login", "https://wiki.example/session"
		}, "username password totp"},
		{"login elsewhere", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.Injection, a.URL = "login", "https://evil.example/session"
		}, "!another origin"},
		{"login in the clear", func(_ *view, _ *string, a *wire.WebCredentialAsk) {
			a.Injection, a.URL = "login", "http://wiki.example/session"
		}, "!https only"},
		{"login again and again", func(v *view, _ *string, a *wire.WebCredentialAsk) {
			v.Uses["login"], a.Injection, a.URL = 3, "login", "https://wiki.example/session"
		}, "!as often as it may"},
		{"login without a recipe", func(v *view, _ *string, a *wire.WebCredentialAsk) {
			v.Rules = testRules(t, func(t *target.Target) { t.Web.Policy.Recipe.Login = nil })
			a.Injection, a.URL = "login", "https://wiki.example/session"
		}, "!has no login"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v, ask := good()
			asker := "edg_p"
			if tc.change != nil {
				tc.change(&v, &asker, &ask)
			}
			u, err := mayUse(v, asker, ask)
			if text, refused := strings.CutPrefix(tc.want, "!"); refused {
				if err == nil || err.Code != wire.CodeRefused || !strings.Contains(err.Public, text) || len(u.values) != 0 {
					t.Errorf("%+v, %v; want a refusal: %s", u, err, text)
				}
				return
			}
			var got []string
			for _, v := range u.values {
				got = append(got, string(v))
			}
			if err != nil || strings.Join(got, " ") != tc.want || u.injection != ask.Injection {
				t.Errorf("%v, %v; want %s", got, err, tc.want)
			}
		})
	}
}

func TestMayDial(t *testing.T) {
	v := view{Live: true, Proxy: "edg_p", Site: "plant", Rules: testRules(t, nil)}
	direct := v
	direct.Site = ""
	ended := v
	ended.Live = false
	only := v
	only.Rules = testRules(t, func(t *target.Target) { t.Web.Policy.Own = true })
	for _, tc := range []struct {
		name, asker, dest string
		v                 view
		want              string // site|address; empty: refused
	}{
		{"its own origin", "edg_p", "wiki.example:443", v, "plant|wiki.example:443"},
		{"its own host, upper case", "edg_p", "WIKI.example:443", v, "plant|WIKI.example:443"},
		{"its own host, another port", "edg_p", "wiki.example:22", v, ""},
		{"an allowed host", "edg_p", "a.cdn.example:443", v, "plant|a.cdn.example:443"},
		{"an allowed host without TLS", "edg_p", "a.cdn.example:80", v, "plant|a.cdn.example:80"},
		{"an allowed host, another port", "edg_p", "a.cdn.example:5432", v, ""},
		{"an allowed port", "edg_p", "api.example:8443", v, "plant|api.example:8443"},
		{"not the default port then", "edg_p", "api.example:443", v, ""},
		{"a denied host", "edg_p", "bad.cdn.example:443", v, ""},
		{"a host denied in part", "edg_p", "half.example:443", v, "plant|half.example:443"},
		{"an unknown host", "edg_p", "evil.example:443", v, ""},
		{"an address", "edg_p", "169.254.169.254:80", v, ""},
		{"another site by rule", "edg_p", "attic/far.example:443", v, "attic|far.example:443"},
		{"that host in the target's site", "edg_p", "far.example:443", v, ""},
		{"another host in that site", "edg_p", "attic/wiki.example:443", v, ""},
		{"a site no rule names", "edg_p", "cellar/far.example:443", v, ""},
		{"directly by rule", "edg_p", "-/near.example:443", v, ""},
		{"no site", "edg_p", "wiki.example:443", direct, ""},
		{"a rule's site, target without", "edg_p", "attic/far.example:443", direct, "attic|far.example:443"},
		{"another webproxy", "edg_q", "wiki.example:443", v, ""},
		{"nobody", "", "wiki.example:443", view{Live: true, Site: "plant", Rules: v.Rules}, ""},
		{"over", "edg_p", "wiki.example:443", ended, ""},
		{"no rules", "edg_p", "wiki.example:443", view{Live: true, Proxy: "edg_p", Site: "plant"}, ""},
		{"own limited to rules", "edg_p", "wiki.example:443", only, ""},
		{"empty", "edg_p", "", v, ""},
		{"no port", "edg_p", "wiki.example", v, "plant|wiki.example"},
		{"rubbish", "edg_p", "//:x", v, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			site, address, err := mayDial(tc.v, tc.asker, tc.dest)
			got := ""
			if err == nil {
				got = site + "|" + address
			}
			if got != tc.want {
				t.Errorf("%q (%v), want %q", got, err, tc.want)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	node := func(id string, live, max, warm int, labels ...string) candidate {
		c := candidate{ID: id, Name: id, Labels: map[string]string{}, Web: &wire.WebCapacity{Live: live, Max: max, Room: max - live, Warm: warm, Address: id + ":18443"}}
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			c.Labels[k] = v
		}
		return c
	}
	with := func(c candidate, f func(*candidate)) candidate { f(&c); return c }
	both := func(c candidate, warmChromium int, problem string) candidate {
		c.Web.Engines = []wire.WebEngine{{Name: wire.Firefox, Warm: c.Web.Warm - warmChromium}, {Name: wire.Chromium, Warm: warmChromium, Problem: problem}}
		return c
	}
	chromium, firefox := demand{Kind: wire.Carrier, Engine: wire.Chromium}, demand{Kind: wire.Carrier, Engine: wire.Firefox}
	plain := demand{Kind: wire.Carrier, Site: "plant"}
	for _, tc := range []struct {
		name string
		all  []candidate
		d    demand
		want string // order, or "!code text"
	}{
		{"nobody", nil, plain, "!no_carrier No carrier is online."},
		{"least loaded", []candidate{node("a", 5, 10, 1), node("b", 1, 10, 1), node("c", 20, 100, 1)}, plain, "b c a"},
		{"of the site first", []candidate{node("a", 0, 10, 1), node("b", 9, 10, 1, "site=plant")}, plain, "b a"},
		{"of another site never", []candidate{node("a", 0, 10, 1, "site=attic"), node("b", 9, 10, 1)}, plain, "b"},
		{"of a site, target without", []candidate{node("a", 0, 10, 1, "site=attic")}, demand{Kind: wire.Carrier}, "!no_carrier No carrier that is online serves this target."},
		{"warm before idle", []candidate{node("a", 0, 10, 0), node("b", 5, 10, 2)}, plain, "b a"},
		{"warm ones given away", []candidate{node("a", 0, 10, 0), with(node("b", 5, 10, 2), func(c *candidate) { c.Since = 2 })}, plain, "a b"},
		{"labels", []candidate{node("a", 0, 10, 1), node("b", 5, 10, 1, "zone=eu", "site=plant")}, demand{Kind: wire.Carrier, Site: "plant", Labels: map[string]string{"zone": "eu"}}, "b"},
		{"labels nobody has", []candidate{node("a", 0, 10, 1, "zone=us")}, demand{Kind: wire.Carrier, Site: "plant", Labels: map[string]string{"zone": "eu"}},
			"!no_carrier No carrier that is online serves this target (site plant, label zone=eu)."},
		{"full", []candidate{node("a", 10, 10, 0), node("b", 8, 8, 0)}, plain, "!no_room All carriers are full (a has 10 of 10; b has 8 of 8)."},
		{"full of what came since", []candidate{with(node("a", 8, 10, 1), func(c *candidate) { c.Since = 2 })}, plain, "!no_room All carriers are full (a has 10 of 10)."},
		{"no memory left", []candidate{with(node("a", 2, 10, 1), func(c *candidate) { c.Web.Room = 0 }), node("b", 9, 10, 0)}, plain, "b"},
		{"cordoned", []candidate{with(node("a", 0, 10, 1), func(c *candidate) { c.Cordoned = true })}, plain, "!no_carrier No carrier takes new sessions"},
		{"silent", []candidate{with(node("a", 0, 10, 1), func(c *candidate) { c.Web = nil })}, plain, "!no_carrier The carrier has only just connected."},
		{"troubled", []candidate{with(node("a", 0, 10, 1), func(c *candidate) { c.Web.Problem = "image caponier-browser is missing: run make images" }), node("b", 4, 4, 0)}, plain,
			"!no_carrier No carrier can take a session (a: image caponier-browser is missing: run make images)."},
		{"equal", []candidate{node("b", 1, 10, 1), node("a", 1, 10, 1)}, plain, "a b"},
		{"a webproxy has no warmth", []candidate{node("a", 5, 10, 9), node("b", 1, 10, 0)}, demand{Kind: wire.WebProxy}, "b a"},
		{"a webproxy nobody can reach", []candidate{with(node("a", 0, 10, 0), func(c *candidate) { c.Web.Address = "" })}, demand{Kind: wire.WebProxy}, "!no_webproxy No webproxy can take a session (a: it says no address"},
		{"only one has the browser", []candidate{node("a", 0, 10, 3), both(node("b", 9, 10, 0), 0, "")}, chromium, "b"},
		{"who says nothing of engines has Firefox", []candidate{node("a", 0, 10, 3), both(node("b", 9, 10, 0), 0, "")}, firefox, "a b"},
		{"warm is of the browser", []candidate{both(node("a", 0, 10, 3), 0, ""), both(node("b", 5, 10, 1), 1, "")}, chromium, "b a"},
		{"nobody has the browser", []candidate{node("a", 0, 10, 1)}, chromium, "!no_carrier No carrier can take a session in Chromium (a: it has no Chromium)."},
		{"the browser's image is missing", []candidate{both(node("a", 0, 10, 1), 0, "image caponier-chromium is missing")}, chromium,
			"!no_carrier No carrier can take a session in Chromium (a: image caponier-chromium is missing)."},
		{"another browser's image is missing", []candidate{both(node("a", 0, 10, 1), 0, "image caponier-chromium is missing")}, firefox, "a"},
		{"webproxies full", []candidate{node("a", 1, 1, 0)}, demand{Kind: wire.WebProxy}, "!no_room All webproxies are full"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			good, why := choose(tc.all, tc.d)
			var ids []string
			for _, c := range good {
				ids = append(ids, c.ID)
			}
			got := strings.Join(ids, " ")
			if text, refused := strings.CutPrefix(tc.want, "!"); refused {
				if why == nil || len(good) > 0 || why.Status != 503 || !strings.HasPrefix(why.Code+" "+why.Public, text) {
					t.Errorf("%q, %+v; want %q", got, why, text)
				}
				return
			}
			if why != nil || got != tc.want {
				t.Errorf("%q, %v; want %q", got, why, tc.want)
			}
		})
	}
}

func TestDemand(t *testing.T) {
	d := demandOf(wire.Carrier, &target.Target{Site: "plant", Tags: []string{"carrier/zone=eu", "carrier/gpu", "webproxy/zone=us", "area=3"}})
	if d.text() != " (site plant, label gpu=, label zone=eu)" {
		t.Errorf("demands %s", d.text())
	}
	web := &target.Target{Web: &target.WebSpec{Browser: target.WebBrowser{Engine: wire.Chromium}}}
	if got := demandOf(wire.Carrier, web).Engine + " " + demandOf(wire.WebProxy, web).Engine; got != "chromium " {
		t.Errorf("demands %q", got)
	}
	if got := demandOf(wire.Carrier, &target.Target{Web: &target.WebSpec{}}).Engine; got != wire.Firefox {
		t.Errorf("demands %q where nothing is said", got)
	}
}
