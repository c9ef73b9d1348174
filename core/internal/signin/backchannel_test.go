package signin

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// tell is a provider posting a logout token, as a server does: without cookies
// and without what browsers say of themselves.
func (r *rig) tell(from, provider, token string) got {
	r.t.Helper()
	q := httptest.NewRequestWithContext(r.t.Context(), "POST", "https://core.test"+api.Prefix+"/login/sso/"+provider+"/logout",
		strings.NewReader(url.Values{"logout_token": {token}}.Encode()))
	q.RemoteAddr = from + ":40000"
	q.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, q)
	return got{w.Result(), r.t, w.Body.String()}
}

// about names what a logout token is about; "" leaves a claim out.
func about(sub, sid string) func(obj) {
	return func(c obj) {
		if sub != "" {
			c["sub"] = sub
		}
		if sid != "" {
			c["sid"] = sid
		}
	}
}

func TestProviderEndsSessions(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		p := newIDP(t, r.clock.Now, jose.ES256)
		made := r.provider(p, func(c *ProviderConfig) { c.Create = true })
		come := func(from, sub, sid string) *browser {
			t.Helper()
			claims := jane()
			claims["sub"], claims["preferred_username"] = sub, "user-"+sub
			if sid != "" {
				claims["sid"] = sid
			}
			p.is(claims)
			b := r.browser(from)
			b.sso(p).want(200, "")
			return b
		}
		live := func(when string, want map[*browser]bool) {
			t.Helper()
			for b, in := range want {
				if a := b.call("GET", "/me", nil); (a.StatusCode == 200) != in {
					t.Errorf("%s: browser at %s: %d", when, b.from, a.StatusCode)
				}
			}
		}
		one, two, unnamed, bob := come(netOf(1), "1", "s1"), come(netOf(2), "1", "s2"), come(netOf(3), "1", ""), come(netOf(4), "2", "s3")
		own := r.browser(netOf(5))
		r.person("pat")
		own.signIn("pat")

		r.tell(home, "corp", p.logoutToken(about("", "s1"))).want(200, "")
		live("one session", map[*browser]bool{one: false, two: true, unnamed: true, bob: true, own: true})
		r.tell(home, "corp", p.logoutToken(about("1", "gone before"))).want(200, "")
		live("a session whose name nobody told us ends with any of its person", map[*browser]bool{two: true, unnamed: false, bob: true, own: true})
		one = come(netOf(6), "1", "s4")
		r.tell(home, "corp", p.logoutToken(about("1", ""))).want(200, "")
		live("everything of a person", map[*browser]bool{one: false, two: false, bob: true, own: true})
		r.tell(home, "corp", p.logoutToken(about("nobody here", ""))).want(200, "")
		live("somebody unknown", map[*browser]bool{bob: true, own: true})
		if n := r.count(audit.SSOLogout, "sessions:1"); n != 2 {
			t.Errorf("%d logouts of one session audited", n)
		}
		if n := r.count(audit.SSOLogout, "of:subject", "sessions:2"); n != 1 {
			t.Errorf("%d logouts of two sessions audited", n)
		}

		// Of another provider, the same names are others.
		other := newIDP(t, r.clock.Now, jose.ES256)
		if _, err := r.putProvider(t.Context(), tester, "", nil, "other", true, &other.secret, ProviderConfig{Label: "Other", Issuer: other.srv.URL, ClientID: "caponier", CA: other.ca()}); err != nil {
			t.Fatal(err)
		}
		r.tell(home, "other", other.logoutToken(about("2", "s3"))).want(200, "")
		r.tell(home, "corp", other.logoutToken(about("2", "s3"))).want(400, "sso_logout")
		live("another provider", map[*browser]bool{bob: true})

		if _, err := r.putProvider(t.Context(), tester, made.ID, func(int64) error { return nil }, "corp", false, nil, made.Config); err != nil {
			t.Fatal(err)
		}
		live("the provider was switched off", map[*browser]bool{bob: false, own: true})
		r.tell(home, "corp", p.logoutToken(about("2", ""))).want(404, "sso_unknown")
	})
}

func TestLogoutTokenRefusals(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	p := newIDP(t, r.clock.Now, jose.ES256)
	r.provider(p, func(c *ProviderConfig) { c.Create = true })
	claims := jane()
	claims["sid"] = "s1"
	p.is(claims)
	b := r.browser(office)
	b.sso(p).want(200, "")
	set := func(name string, v any) func(obj) {
		return func(c obj) { c["sid"], c[name] = "s1", v }
	}
	without := func(name string) func(obj) {
		return func(c obj) { c["sid"] = "s1"; delete(c, name) }
	}
	at := func(d time.Duration) int64 { return r.clock.Now().Add(d).Unix() }
	for i, c := range []struct {
		name   string
		change func(obj)
		why    string
	}{
		{"another issuer", set("iss", "https://evil.example"), "issuer"},
		{"another audience", set("aud", "other"), "audience"},
		{"a nonce", set("nonce", "x"), "nonce"},
		{"an empty nonce", set("nonce", ""), "nonce"},
		{"no events: an ID token", without("events"), "events"},
		{"another event", set("events", obj{"http://schemas.openid.net/event/other": obj{}}), "events"},
		{"an event that is no object", set("events", obj{logoutEvent: "yes"}), "events"},
		{"an event of null", set("events", obj{logoutEvent: nil}), "events"},
		{"no iat", without("iat"), "iat"},
		{"from the future", set("iat", at(5*time.Minute)), "iat"},
		{"old", set("iat", at(-10*time.Minute)), "iat"},
		{"expired", set("exp", at(-2*time.Minute)), "exp"},
		{"no jti", without("jti"), "jti"},
		{"a long jti", set("jti", strings.Repeat("j", 256)), "jti"},
		{"nobody", set("sid", ""), "sub, sid"},
		{"a long sid", set("sid", strings.Repeat("s", 256)), "too long"},
		{"a sid that is no text", set("sid", 7), "claims"},
	} {
		if a := r.tell(netOf(i), "corp", p.logoutToken(c.change)).want(400, "sso_logout"); !strings.Contains(a.body, c.why) {
			t.Errorf("%s: %s", c.name, a.body)
		}
	}
	good := p.logoutToken(about("", "s1"))
	parts := strings.Split(good, ".")
	for i, raw := range []string{
		"", "x", good + "x", parts[0] + "." + parts[1] + ".",
		base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".",
		base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256","typ":"at+jwt","kid":"one"}`)) + "." + parts[1] + "." + parts[2],
	} {
		r.tell(netOf(100+i), "corp", raw).want(400, "sso_logout")
	}
	p.mu.Lock()
	p.forge = true
	p.mu.Unlock()
	r.tell(netOf(110), "corp", p.logoutToken(about("", "s1"))).want(400, "sso_logout")
	p.is(claims)
	b.call("GET", "/me", nil).want(200, "")
	if n := r.count(audit.SSOLogoutRefused); n != 23 {
		t.Errorf("%d refusals audited", n)
	}
	r.tell(netOf(111), "nothere", good).want(404, "sso_unknown")

	// Good once, whatever exp says of a provider that follows the draft.
	once := p.logoutToken(func(c obj) { c["sid"] = "s1"; delete(c, "exp") })
	r.tell(netOf(112), "corp", once).want(200, "")
	b.call("GET", "/me", nil).want(401, "unauthenticated")
	if a := r.tell(netOf(113), "corp", once).want(400, "sso_logout"); !strings.Contains(a.body, "jti") {
		t.Errorf("twice: %s", a.body)
	}

	// Guessing is limited, the provider at its own address is not.
	for range 5 {
		r.tell(netOf(114), "corp", "x").want(400, "sso_logout")
	}
	if a := r.tell(netOf(114), "corp", good); a.StatusCode != http.StatusTooManyRequests {
		t.Errorf("the sixth attempt: %d %s", a.StatusCode, a.body)
	}
	r.tell(netOf(115), "corp", good).want(200, "")
}

// TestLogoutMeetsSignIn: a session that the provider ends while its sign-in is
// being finished here does not outlive it.
func TestLogoutMeetsSignIn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		p := newIDP(t, r.clock.Now, jose.ES256)
		r.provider(p, func(c *ProviderConfig) { c.Create = true })
		for i, l := range []func(obj){about("", "s1"), about("0001", ""), about("0001", "s1")} {
			claims := jane()
			claims["sid"] = "s1"
			p.is(claims)
			var answer got
			p.mu.Lock()
			p.token = func(obj) {
				// The ID token is on its way; the lock of the provider is held.
				p.mu.Unlock()
				answer = r.tell(home, "corp", p.logoutToken(l))
				p.mu.Lock()
			}
			p.mu.Unlock()
			b := r.browser(netOf(i))
			b.sso(p).want(403, "sso_logged_out")
			answer.want(200, "")
			b.call("GET", "/me", nil).want(401, "unauthenticated")
			p.is(claims)
			b.sso(p).want(200, "")
		}
	})
}

func TestProviderSaysWhetherItTellsLogouts(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	p := newIDP(t, r.clock.Now, jose.ES256)
	made := r.provider(p, nil)
	if v := r.showProvider(made); v.LogoutURI != "https://core.test/api/v1/login/sso/corp/logout" {
		t.Errorf("logout URI %s", v.LogoutURI)
	}
	step := func() Step {
		_, steps, err := r.test(t.Context(), made)
		if err != nil {
			t.Fatal(err)
		}
		return steps[len(steps)-1]
	}
	if s := step(); s.Name != "logout" || !s.OK || strings.Contains(s.Text, "/logout") {
		t.Errorf("a provider that tells nothing: %+v", s)
	}
	p.mu.Lock()
	p.document = func(doc obj) { doc["backchannel_logout_supported"] = true }
	p.mu.Unlock()
	if s := step(); !s.OK || !strings.Contains(s.Text, "/api/v1/login/sso/corp/logout") || !strings.Contains(s.Text, "all sessions") {
		t.Errorf("a provider that tells persons: %+v", s)
	}
	p.mu.Lock()
	p.document = func(doc obj) {
		doc["backchannel_logout_supported"], doc["backchannel_logout_session_supported"] = true, true
	}
	p.mu.Unlock()
	if s := step(); strings.Contains(s.Text, "all sessions") {
		t.Errorf("a provider that tells sessions: %+v", s)
	}
}

func FuzzHeaderType(f *testing.F) {
	f.Add("eyJ0eXAiOiJKV1QifQ.x.y")
	f.Add("..")
	f.Fuzz(func(t *testing.T, raw string) {
		typ := headerType(raw)
		if typ == "" {
			return
		}
		head, _, _ := strings.Cut(raw, ".")
		b, err := base64.RawURLEncoding.DecodeString(head)
		if err != nil || !json.Valid(b) || strings.ContainsFunc(typ, func(r rune) bool { return r >= 'A' && r <= 'Z' }) {
			t.Errorf("%q has type %q", raw, typ)
		}
	})
}
