package signin

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/user"
)

func jane() obj {
	return obj{"sub": "0001", "preferred_username": "Jane", "name": "Jane Doe", "email": "jane@example.org", "email_verified": true, "groups": []string{"staff", "ops"}}
}

func TestSSOCreatesAndKnowsAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.ES256} {
			r := newRig(t, d)
			p := newIDP(t, r.clock.Now, alg)
			made := r.provider(p, func(c *ProviderConfig) { c.Create = true })
			p.is(jane())
			b := r.browser(office)
			b.sso(p).want(200, "")
			m := b.me()
			if m.User.Name != "jane" || m.User.DisplayName != "Jane Doe" || m.User.Email != "jane@example.org" || m.User.HasPassword || m.MFA || !slices.Equal(m.Methods, []string{"sso"}) {
				t.Errorf("%s: signed in as %+v", alg, m)
			}
			again := r.browser(home)
			claims := jane()
			claims["preferred_username"], claims["amr"] = "jane.married", []string{"pwd", "mfa"}
			p.is(claims)
			again.sso(p).want(200, "")
			if m2 := again.me(); m2.User.ID != m.User.ID || !m2.MFA {
				t.Errorf("the same subject came back as %+v", m2)
			}
			var list struct{ Items []IdentityView }
			b.call("GET", "/users/me/identities", nil).want(200, "").into(&list)
			if len(list.Items) != 1 || list.Items[0].Subject != "0001" || list.Items[0].LastUsed.IsZero() || list.Items[0].Label != "Corp" {
				t.Errorf("identities %+v", list.Items)
			}
			var out struct{ URL string }
			b.call("GET", "/login/logout-url", nil).want(200, "").into(&out)
			if out.URL != "" {
				t.Errorf("logout goes to %s although it is off", out.URL)
			}
			// Clear for the other algorithm.
			if err := r.deleteProvider(t.Context(), tester, made.ID, func(int64) error { return nil }); err != nil {
				t.Fatal(err)
			}
			// What came by it has ended with it.
			b.call("GET", "/me", nil).want(401, "unauthenticated")
			again.call("GET", "/me", nil).want(401, "unauthenticated")
			if _, err := d.ExecContext(t.Context(), `delete from users`); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestSSORefusals(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	p := newIDP(t, r.clock.Now, jose.ES256)
	r.provider(p, func(c *ProviderConfig) { c.Create = true })
	token := func(change func(obj)) func() {
		return func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.token = change
		}
	}
	set := func(name string, v any) func() { return token(func(c obj) { c[name] = v }) }
	at := func(name string, d time.Duration) func() {
		return token(func(c obj) { c[name] = r.clock.Now().Add(d).Unix() })
	}
	for i, c := range []struct {
		name  string
		knob  func()
		state int
		code  string
	}{
		{"a key that is not published", func() { p.forge = true }, 403, "sso_token"},
		{"another issuer", set("iss", "https://evil.example"), 403, "sso_token"},
		{"another audience", set("aud", "other"), 403, "sso_token"},
		{"two audiences, no azp", set("aud", []string{"caponier", "other"}), 403, "sso_token"},
		{"azp of another", set("azp", "other"), 403, "sso_token"},
		{"another nonce", set("nonce", "x"), 403, "sso_token"},
		{"no nonce", token(func(c obj) { delete(c, "nonce") }), 403, "sso_token"},
		{"expired", at("exp", -2*time.Minute), 403, "sso_clock"},
		{"expired within the tolerance", at("exp", -30*time.Second), 200, ""},
		{"from the future", at("iat", 5*time.Minute), 403, "sso_clock"},
		{"wrong at_hash", set("at_hash", "AAAA"), 403, "sso_token"},
		{"no subject", set("sub", ""), 403, "sso_not_admitted"},
	} {
		p.is(jane())
		c.knob()
		if a := r.browser(netOf(i)).sso(p); a.StatusCode != c.state || c.code != "" && !strings.Contains(a.body, `"`+c.code+`"`) {
			t.Errorf("%s: %d %s", c.name, a.StatusCode, a.body)
		}
	}
	if n := r.count(audit.LoginFailed, "sso_token"); n != 8 {
		t.Errorf("%d refusals audited", n)
	}
}

// TestSSOIsBoundToTheBrowser is about login CSRF, replay and mix-up.
func TestSSOIsBoundToTheBrowser(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	p := newIDP(t, r.clock.Now, jose.ES256)
	r.provider(p, func(c *ProviderConfig) { c.Create = true })
	p.is(jane())
	begin := func(b *browser) string {
		var begun struct{ URL string }
		b.call("POST", "/login/sso/corp", nil).want(200, "").into(&begun)
		return begun.URL
	}
	attacker, victim := r.browser(netOf(1)), r.browser(netOf(2))
	stolen := p.authorize(begin(attacker))
	victim.back(stolen).want(409, "sign_in_stale") // no cookie at all
	begin(victim)
	victim.back(stolen).want(409, "sign_in_stale") // a cookie of another flow
	kept := attacker.cookies[FlowCookie]
	attacker.back(stolen).want(200, "")
	attacker.cookies[FlowCookie] = kept
	attacker.back(stolen).want(409, "sign_in_stale") // twice
	// An answer taken to another provider's address.
	other := newIDP(t, r.clock.Now, jose.ES256)
	if _, err := r.putProvider(t.Context(), tester, "", nil, "other", true, &other.secret, ProviderConfig{Label: "Other", Issuer: other.srv.URL, ClientID: "caponier", CA: other.ca()}); err != nil {
		t.Fatal(err)
	}
	v := p.authorize(begin(victim))
	victim.call("POST", "/login/sso/other/callback", obj{"code": v.Get("code"), "state": v.Get("state")}).want(409, "sign_in_stale")
	v = p.authorize(begin(victim))
	v.Set("iss", other.srv.URL)
	victim.back(v).want(403, "sso_wrong_issuer")
	v = p.authorize(begin(victim))
	r.clock.Add(flowLife + time.Second)
	victim.back(v).want(409, "sign_in_stale")
	v = p.authorize(begin(victim))
	victim.back(map[string][]string{"state": {v.Get("state")}, "error": {"access_denied"}}).want(403, "sso_refused")
	v = p.authorize(begin(victim))
	v.Set("code", "made up")
	victim.back(v).want(403, "sso_code")
	victim.call("POST", "/login/sso/nothere", nil).want(404, "sso_unknown")
}

func TestSSOLinking(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		p := newIDP(t, r.clock.Now, jose.ES256)
		made := r.provider(p, nil)
		u := r.person("jane")
		p.is(jane())
		configure := func(change func(*ProviderConfig)) {
			t.Helper()
			c := made.Config
			change(&c)
			if _, err := r.putProvider(t.Context(), tester, made.ID, func(int64) error { return nil }, "corp", true, nil, c); err != nil {
				t.Fatal(err)
			}
		}
		r.browser(netOf(1)).sso(p).want(403, "sso_no_account")
		configure(func(c *ProviderConfig) { c.Create = true })
		r.browser(netOf(2)).sso(p).want(403, "sso_name_taken")
		// An address the provider does not vouch for links nobody.
		configure(func(c *ProviderConfig) { c.Link = LinkEmail })
		claims := jane()
		claims["email_verified"] = false
		p.is(claims)
		r.browser(netOf(3)).sso(p).want(403, "sso_no_account")
		p.is(jane())
		b := r.browser(netOf(4))
		b.sso(p).want(200, "")
		if m := b.me(); m.User.ID != u.ID {
			t.Errorf("linked to %+v", m.User)
		}
		// The address moves on to somebody else at the provider.
		claims = jane()
		claims["sub"] = "0002"
		p.is(claims)
		r.browser(netOf(5)).sso(p).want(403, "sso_no_account")
		configure(func(c *ProviderConfig) { c.Link = LinkName })
		r.browser(netOf(6)).sso(p).want(403, "sso_no_account")
		// Unlinked, the name links; others' sessions end, this one stays.
		var list struct{ Items []IdentityView }
		b.call("GET", "/users/me/identities", nil).want(200, "").into(&list)
		b.call("DELETE", "/users/me/identities/"+list.Items[0].ID, nil).want(204, "")
		b.me()
		r.browser(netOf(7)).sso(p).want(200, "")
		r.browser(netOf(8)).signIn("jane").call("POST", "/users/"+u.ID+"/identities", obj{"provider": "corp", "subject": "1"}).want(403, "permission_missing")
	})
}

func TestSSOLinksItsOwner(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	p := newIDP(t, r.clock.Now, jose.ES256)
	r.provider(p, nil)
	u, other := r.person("jane"), r.person("bob")
	p.is(jane())
	b := r.browser(office).signIn("jane")
	begin := func(b *browser) string {
		var begun struct{ URL string }
		b.call("POST", "/users/me/identities/begin", obj{"provider": "corp", "password": password}).want(200, "").into(&begun)
		return begun.URL
	}
	b.call("POST", "/users/me/identities/begin", obj{"provider": "corp", "password": "not the password"}).want(403, "bad_credentials")
	// He signs out while at the provider.
	v := p.authorize(begin(b))
	b.call("POST", "/logout", nil).want(204, "")
	b.back(v).want(409, "sign_in_stale")
	b = r.browser(office).signIn("jane")
	var out struct {
		Linked bool
		User   user.UserView
	}
	b.back(p.authorize(begin(b))).want(200, "").into(&out)
	if !out.Linked || out.User.ID != u.ID {
		t.Errorf("linked %+v", out)
	}
	r.browser(home).sso(p).want(200, "")
	// Bob cannot take an identity that is Jane's.
	bob := r.browser(netOf(9)).signIn("bob")
	bob.back(p.authorize(begin(bob))).want(409, "sso_linked_elsewhere")
	r.admin().call("POST", "/users/"+other.ID+"/identities", obj{"provider": "corp", "subject": "0003"}).want(201, "")
	claims := jane()
	claims["sub"] = "0003"
	p.is(claims)
	b = r.browser(netOf(10))
	b.sso(p).want(200, "")
	if m := b.me(); m.User.ID != other.ID {
		t.Errorf("an administrator's link led to %+v", m.User)
	}
	r.manager().call("POST", "/users/"+other.ID+"/identities", obj{"provider": "corp", "subject": "0004"}).want(403, "exceeds_own_rights")
}

func TestSSORolesFollowGroups(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		role := func(name string, p ...api.Permission) string {
			made, err := r.users.CreateRole(t.Context(), tester, user.Role{Name: name, Permissions: p})
			if err != nil {
				t.Fatal(err)
			}
			return made.ID
		}
		ops, audits, mine := role("ops", api.EdgesView), role("auditors", api.AuditView), role("mine", api.TargetsView)
		p := newIDP(t, r.clock.Now, jose.ES256)
		r.provider(p, func(c *ProviderConfig) {
			c.Create, c.GroupsClaim = true, "realm.roles"
			c.Roles = []RoleRule{{"ops", ops}, {"audit", audits}, {"admins", user.AdministratorRole}, {"staff", "rol_gone"}}
		})
		come := func(groups ...string) *browser {
			t.Helper()
			claims := jane()
			claims["realm"] = obj{"roles": append([]string{}, groups...)}
			p.is(claims)
			b := r.browser(office)
			b.sso(p).want(200, "")
			return b
		}
		b := come("staff", "ops")
		if m := b.me(); !slices.Equal(m.Permissions, []string{"edges:view"}) {
			t.Errorf("permissions %v", m.Permissions)
		}
		if _, err := r.users.PutMember(t.Context(), tester, mine, b.me().User.ID, access.Window{}, nil, func(int64) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if m := come("audit").me(); !slices.Equal(m.Permissions, []string{"audit:view", "targets:view"}) {
			t.Errorf("after changing groups: %v", m.Permissions)
		}
		if m := come().me(); !slices.Equal(m.Permissions, []string{"targets:view"}) {
			t.Errorf("after leaving all groups: %v", m.Permissions)
		}
	})
}

func TestSSOUserInfoCompletes(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	p := newIDP(t, r.clock.Now, jose.ES256)
	r.provider(p, func(c *ProviderConfig) { c.Create, c.Domains = true, []string{"example.org"} })
	p.is(obj{"sub": "0001"})
	p.info = jane()
	p.info["amr"] = []string{"mfa"}
	b := r.browser(netOf(1))
	b.sso(p).want(200, "")
	if m := b.me(); m.User.Name != "jane" || m.MFA {
		t.Errorf("signed in as %+v", m)
	}
	p.is(obj{"sub": "0005"})
	p.info = jane() // about somebody else
	r.browser(netOf(2)).sso(p).want(403, "sso_token")
	for i, c := range []struct{ email, name string }{{"eve@evil.example", "eve"}, {"eve@sub.example.org", "eve"}, {"", "eve"}, {"eve@example.org@evil.example", "eve"}} {
		p.is(obj{"sub": "0006", "email": c.email, "email_verified": true, "preferred_username": c.name})
		r.browser(netOf(3+i)).sso(p).want(403, "sso_not_admitted")
	}
}

func TestProvidersAreManaged(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	p := newIDP(t, r.clock.Now, jose.ES256)
	root := r.admin()
	draft := obj{"name": "corp", "enabled": true, "secret": p.secret, "config": obj{"label": "Corp", "issuer": p.srv.URL, "client_id": "caponier", "ca_pem": p.ca(), "logout": true, "create": true}}
	manager := r.manager()
	manager.call("POST", "/sso-providers", draft).want(403, "exceeds_own_rights")
	var made ProviderView
	a := root.call("POST", "/sso-providers", draft).want(201, "")
	a.into(&made)
	if strings.Contains(a.body, "s3cret") || !made.HasSecret || made.Callback != "https://core.test/sign-in/sso/corp" {
		t.Errorf("made %s", a.body)
	}
	root.call("POST", "/sso-providers", draft).want(409, "name_taken")
	path := "/sso-providers/" + made.ID
	manager.call("PUT", path, draft, "If-Match", "*").want(403, "exceeds_own_rights")
	manager.call("DELETE", path, nil, "If-Match", "*").want(403, "exceeds_own_rights")
	root.call("PUT", path, draft).want(428, "precondition_required")
	draft["config"].(obj)["issuer"] = "https://elsewhere.example"
	root.call("PUT", path, draft, "If-Match", "*").want(409, "issuer_fixed")
	draft["config"].(obj)["issuer"] = p.srv.URL
	for field, v := range map[string]any{"issuer": "http://plain.example", "ca_pem": "x", "label": "", "scopes": []string{"profile"}, "domains": []string{"a@b"}, "roles": []obj{{"value": "x", "role": "administrator"}}} {
		bad := obj{"name": "other", "enabled": true, "config": obj{"label": "x", "issuer": "https://a.example", "client_id": "x"}}
		bad["config"].(obj)[field] = v
		root.call("POST", "/sso-providers", bad).want(422, "invalid")
	}
	steps := func(ok bool) map[string]Step {
		t.Helper()
		var out struct {
			OK    bool
			Steps []Step
		}
		root.call("POST", path+"/test", nil).want(200, "").into(&out)
		if out.OK != ok {
			t.Errorf("test says %+v", out)
		}
		by := map[string]Step{}
		for _, s := range out.Steps {
			if by[s.Name] = s; !s.OK && s.Fix == "" {
				t.Errorf("%s says no fix: %+v", s.Name, s)
			}
		}
		return by
	}
	steps(true)
	// The session knows where it came from.
	p.is(jane())
	b := r.browser(home)
	b.sso(p).want(200, "")
	var out struct{ URL string }
	b.call("GET", "/login/logout-url", nil).want(200, "").into(&out)
	if !strings.HasPrefix(out.URL, p.srv.URL+"/logout?client_id=caponier&post_logout_redirect_uri=https%3A%2F%2Fcore.test%2Fsign-in") {
		t.Errorf("logout goes to %q", out.URL)
	}
	r.clock.Add(10 * time.Minute)
	if s := steps(false); s["clock"].OK || !s["client"].OK {
		t.Errorf("a clock that is off: %+v", s)
	}
	p.secret = "changed there"
	if s := steps(false); s["client"].OK {
		t.Errorf("a wrong secret: %+v", s)
	}
	root.call("POST", "/login", nil) // keep the session in use
	p.srv.Close()
	if s := steps(false); s["discovery"].OK || len(s) != 1 {
		t.Errorf("a provider that is away: %+v", s)
	}
	root.call("DELETE", path, nil, "If-Match", "*").want(204, "")
	root.call("GET", path, nil).want(404, "not_found")
}

// TestForeignLettersAreNoOthers: letters that Unicode makes ASCII ones when
// small do not turn a name into somebody else's.
func TestForeignLettersAreNoOthers(t *testing.T) {
	c := ProviderConfig{Domains: []string{"kite.example"}}.withDefaults()
	for _, claim := range []string{"admİn", "\u212aim", "\u212aim@kite.example"} {
		if p := readClaims(c, obj{"sub": "1", "preferred_username": claim}); p.Name != "" {
			t.Errorf("%q became %q", claim, p.Name)
		}
	}
	if p := readClaims(c, obj{"sub": "1", "preferred_username": "KIM@Kite.Example"}); p.Name != "kim" {
		t.Errorf("%q, %s", p.Name, p.NameWrong)
	}
	p := readClaims(c, obj{"sub": "1", "email": "x@\u212aite.example", "email_verified": true})
	if c.admits(p) == "" {
		t.Error("a foreign domain was let in")
	}
}

func FuzzReadClaims(f *testing.F) {
	f.Add("preferred_username", "Jane@example.org", "a.b", true)
	f.Fuzz(func(t *testing.T, claim, value, groups string, verified bool) {
		c := ProviderConfig{NameClaim: claim, GroupsClaim: groups, Domains: []string{"example.org"}, EmailClaim: "email"}.withDefaults()
		p := readClaims(c, obj{"sub": "1", claim: value, "email": value, "email_verified": verified, "a": obj{"b": []any{value, 1}}})
		if (p.Name == "") == (p.NameWrong == "") || p.Name != "" && !user.ValidName(p.Name) {
			t.Errorf("name %q, wrong %q", p.Name, p.NameWrong)
		}
		if p.EmailVerified && !verified {
			t.Error("an address became verified")
		}
	})
}
