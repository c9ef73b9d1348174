package user

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/settings"
)

// open logs name in and opens a session.
func (r *room) open(name string, kind SessionKind, from netip.Addr) (Session, string) {
	r.t.Helper()
	v, secret, err := r.OpenSession(r.t.Context(), r.must(r.login(name, goodPassword, "", from)), kind, "test")
	if err != nil {
		r.t.Fatal(err)
	}
	return v, secret
}

// ask authenticates a request with a cookie or bearer secret.
func (r *room) ask(secret string, cookie bool, from netip.Addr, change func(*http.Request)) (*api.Principal, error) {
	q := httptest.NewRequest(http.MethodGet, "https://core.test/api/v1/me", nil).WithContext(r.t.Context())
	if cookie {
		q.AddCookie(&http.Cookie{Name: CookieName, Value: secret})
	} else {
		q.Header.Set("Authorization", "Bearer "+secret)
	}
	if change != nil {
		change(q)
	}
	return r.Authenticate(q, from)
}

func TestAuthenticate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		jane := r.person("jane")
		_, cookie := r.open("jane", CookieSession, office)
		_, bearer := r.open("jane", BearerSession, office)
		tok, token, err := r.CreateToken(t.Context(), &api.Principal{UserID: jane.ID}, "script", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name   string
			secret string
			cookie bool
			from   netip.Addr
			ok     bool
		}{
			{"cookie", cookie, true, office, true},
			{"cookie from elsewhere", cookie, true, home, false},
			{"cookie as bearer", cookie, false, office, false},
			{"bearer session", bearer, false, office, true},
			{"bearer session from elsewhere", bearer, false, home, false},
			{"bearer session as cookie", bearer, true, office, false},
			{"api token", token, false, home, true},
			{"api token as cookie", token, true, office, false},
			{"unknown token", "cap_" + strings.Repeat("a", 26), false, office, false},
			{"unknown cookie", "cps_" + strings.Repeat("a", 26), true, office, false},
			{"hash of a token", hashSecret(token), false, office, false},
			{"garbage", strings.Repeat("\xff", 4000), false, office, false},
		} {
			p, err := r.ask(c.secret, c.cookie, c.from, nil)
			switch {
			case c.ok && (err != nil || p.UserID != jane.ID || p.Source != c.from):
				t.Errorf("%s: %+v, %v", c.name, p, err)
			case !c.ok && (p != nil || problem(t, err).Status != 401):
				t.Errorf("%s: %+v, %v; want 401", c.name, p, err)
			}
		}
		if p, err := r.Authenticate(httptest.NewRequest(http.MethodGet, "/", nil), office); p != nil || err != nil {
			t.Errorf("nothing sent: %+v, %v", p, err)
		}
		if p, err := r.ask("x", false, office, func(q *http.Request) { q.Header.Set("Authorization", "Basic eDp5") }); p != nil || problem(t, err).Status != 401 {
			t.Errorf("basic: %+v, %v", p, err)
		}
		if got, err := r.Token(t.Context(), tok.ID); err != nil || got.LastSource != home.String() || !got.LastUsed.Equal(r.clock.Now()) {
			t.Errorf("use of the token noted as %s %v, %v", got.LastSource, got.LastUsed, err)
		}
	})
}

// TestReplayedCookie is FEATURES C13: a stolen cookie is of no use elsewhere,
// it is noticed, and the owner's session goes on.
func TestReplayedCookie(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		jane := r.person("jane")
		v, cookie := r.open("jane", CookieSession, office)
		for range 50 {
			if _, err := r.ask(cookie, true, home, nil); problem(t, err).Status != 401 {
				t.Fatal(err)
			}
		}
		var seen []audit.Entry
		for _, e := range r.events() {
			if e.Type == audit.LoginReplayed {
				seen = append(seen, e)
			}
		}
		if len(seen) != 1 || seen[0].Actor.Source != home.String() || seen[0].Fields["session"] != v.ID || seen[0].Object.ID != jane.ID || seen[0].Outcome != audit.Denied {
			t.Errorf("50 replays audited as %+v, want one event", seen)
		}
		if _, err := r.ask(cookie, true, office, nil); err != nil {
			t.Errorf("the owner's session: %v", err)
		}
		neighbour := netip.MustParseAddr("192.0.2.77")
		if _, err := r.ask(cookie, true, neighbour, nil); err == nil {
			t.Error("the neighbour's address was let in")
		}
		set := func(value string) {
			if _, err := r.settings.Change(t.Context(), tester, 0, raw(settings.SessionBinding.Name(), value)); err != nil {
				t.Fatal(err)
			}
		}
		set(`"subnet"`)
		if _, err := r.ask(cookie, true, neighbour, nil); err != nil {
			t.Errorf("bound to the subnet, from the subnet: %v", err)
		}
		if _, err := r.ask(cookie, true, home, nil); err == nil {
			t.Error("bound to the subnet, from elsewhere: let in")
		}
		set(`"off"`)
		if _, err := r.ask(cookie, true, home, nil); err != nil {
			t.Errorf("not bound: %v", err)
		}
	})
}

func TestSessionsAge(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		r.person("jane")
		_, cookie := r.open("jane", CookieSession, office)
		_, idle := r.open("jane", CookieSession, office)
		_, polled := r.open("jane", CookieSession, office)
		_, bearer := r.open("jane", BearerSession, office)
		background := func(q *http.Request) { q.Header.Set(BackgroundHeader, "1") }
		for range 3 {
			r.clock.Add(14 * time.Minute)
			if _, err := r.ask(cookie, true, office, nil); err != nil {
				t.Fatalf("a session in use: %v", err)
			}
			if r.clock.Now().Before(newClock().Now().Add(15 * time.Minute)) {
				if _, err := r.ask(polled, true, office, background); err != nil {
					t.Fatalf("background request in time: %v", err)
				}
			}
		}
		if _, err := r.ask(idle, true, office, nil); err == nil {
			t.Error("an idle session was let in")
		}
		if _, err := r.ask(polled, true, office, nil); err == nil {
			t.Error("background requests kept a session alive")
		}
		if _, err := r.ask(bearer, false, office, nil); err != nil {
			t.Errorf("a command-line session: %v", err)
		}
		for r.clock.Now().Before(newClock().Now().Add(8*time.Hour - 10*time.Minute)) {
			r.clock.Add(5 * time.Minute)
			if _, err := r.ask(cookie, true, office, nil); err != nil {
				t.Fatalf("after %v: %v", r.clock.Now().Sub(newClock().Now()), err)
			}
		}
		r.clock.Add(10 * time.Minute)
		for name, err := range map[string]error{
			"cookie": second(r.ask(cookie, true, office, nil)),
			"bearer": second(r.ask(bearer, false, office, nil)),
		} {
			if err == nil {
				t.Errorf("%s session after 8 hours was let in", name)
			}
		}
	})
}

func TestEndOfLogins(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		yes := true
		for name, end := range map[string]struct {
			do     func(r *room, u User, tok Token) error
			tokens bool // does it end tokens, too
		}{
			"sign out everywhere": {func(r *room, u User, _ Token) error { return r.SignOut(t.Context(), tester, u.ID) }, false},
			"password set": {func(r *room, u User, _ Token) error {
				return r.SetPassword(t.Context(), tester, u.ID, "another good one")
			}, false},
			"disabled": {func(r *room, u User, _ Token) error {
				return second(r.Update(t.Context(), tester, u.ID, any64, Change{Disabled: &yes}))
			}, true},
			"locked": {func(r *room, u User, _ Token) error {
				return second(r.Update(t.Context(), tester, u.ID, any64, Change{Locked: &yes}))
			}, true},
			"erased": {func(r *room, u User, _ Token) error { return r.Erase(t.Context(), tester, u.ID, any64, nil) }, true},
		} {
			t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
				r := newRoom(t, d)
				u := r.person(strings.ReplaceAll(name, " ", "-"))
				ssh := r.must(r.login(u.Name, goodPassword, "", office))
				v, cookie := r.open(u.Name, CookieSession, office)
				tok, token, err := r.CreateToken(t.Context(), &api.Principal{UserID: u.ID}, "script", time.Hour)
				if err != nil {
					t.Fatal(err)
				}
				byToken := *ssh
				byToken.Session = tok.ID
				bySession := *ssh
				bySession.Session = v.ID
				for _, p := range []*api.Principal{ssh, &byToken, &bySession} {
					if err := r.StillValid(t.Context(), p); err != nil {
						t.Fatalf("before: %s: %v", p.Session[:4], err)
					}
				}
				notes := notesOf(t, d)
				if err := end.do(r, u, tok); err != nil {
					t.Fatal(err)
				}
				for n := range notes {
					if n.Topic == "user" && n.ID == u.ID {
						break
					}
				}
				if err := r.StillValid(t.Context(), ssh); err == nil {
					t.Error("the SSH login is still good")
				}
				if err := r.StillValid(t.Context(), &bySession); err == nil {
					t.Error("the session is still good")
				}
				if _, err := r.ask(cookie, true, office, nil); err == nil {
					t.Error("the cookie still works")
				}
				if err := r.StillValid(t.Context(), &byToken); (err != nil) != end.tokens {
					t.Errorf("the token: %v, want ended %v", err, end.tokens)
				}
				if _, err := r.ask(token, false, office, nil); (err != nil) != end.tokens {
					t.Errorf("a call with the token: %v, want ended %v", err, end.tokens)
				}
			})
		}
	})
}

func TestStillValidRefusesForeignAndUnknown(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	jane, bob := r.person("jane"), r.person("bob")
	v, _ := r.open("jane", CookieSession, office)
	for name, p := range map[string]api.Principal{
		"session of another": {UserID: bob.ID, Session: v.ID},
		"unknown session":    {UserID: jane.ID, Session: "ses_none"},
		"no session":         {UserID: jane.ID},
		"made up":            {UserID: jane.ID, Session: "lgn_zz_0_x"},
		"unknown user":       {UserID: "usr_none", Session: v.ID},
	} {
		if err := r.StillValid(t.Context(), &p); err == nil {
			t.Errorf("%s is good", name)
		}
	}
}

func TestTokens(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		jane := r.person("jane")
		login := r.must(r.login("jane", goodPassword, "", office))
		tok, secret, err := r.CreateToken(t.Context(), login, "script", time.Hour)
		if err != nil || !strings.HasPrefix(secret, tokenPrefix) {
			t.Fatal(secret, err)
		}
		var stored string
		if err := d.QueryRowContext(t.Context(), `select hash from tokens where id = $1`, tok.ID).Scan(&stored); err != nil || strings.Contains(stored, secret[4:]) {
			t.Errorf("stored %q, %v", stored, err)
		}
		// As a password over SSH: one factor, bound to its owner.
		p := r.must(r.login("jane", secret, "", home))
		if p.Session != tok.ID || p.MFA {
			t.Errorf("principal = %+v", p)
		}
		r.person("bob")
		if _, err := r.login("bob", secret, "", home); err != ErrBadCredentials {
			t.Errorf("jane's token for bob: %v", err)
		}
		// A token cannot give itself a longer life.
		child, _, err := r.CreateToken(t.Context(), p, "child", 100*time.Hour)
		if err != nil || !child.ExpiresAt.Equal(tok.ExpiresAt) {
			t.Errorf("child token until %v, %v; want %v", child.ExpiresAt, err, tok.ExpiresAt)
		}
		for _, life := range []time.Duration{0, time.Second, 366 * 24 * time.Hour} {
			if _, _, err := r.CreateToken(t.Context(), login, "x", life); problem(t, err).Status != 422 {
				t.Errorf("life %v: %v", life, err)
			}
		}
		if err := r.RevokeToken(t.Context(), tester, child.ID); err != nil {
			t.Fatal(err)
		}
		if err := r.RevokeToken(t.Context(), tester, child.ID); err != nil {
			t.Errorf("revoke twice: %v", err)
		}
		if n := r.countEvents(audit.TokenRevoked); n != 1 {
			t.Errorf("%d revoke events, want 1", n)
		}
		r.clock.Add(time.Hour)
		if _, err := r.ask(secret, false, office, nil); err == nil {
			t.Error("an expired token was let in")
		}
		if err := r.StillValid(t.Context(), p); err == nil {
			t.Error("a login by an expired token is still good")
		}
		if list, err := r.Tokens(t.Context(), jane.ID); err != nil || len(list) != 2 {
			t.Errorf("tokens = %+v, %v", list, err)
		}
		r.clock.Add(keepTokens + time.Hour)
		if n, err := r.tidy(t.Context()); n != 2 || err != nil {
			t.Errorf("tidied %d, %v; want 2", n, err)
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	r.person("jane")
	p := r.must(r.login("jane", goodPassword, "", office))
	for range maxSessions {
		if _, _, err := r.OpenSession(t.Context(), p, BearerSession, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := r.OpenSession(t.Context(), p, BearerSession, ""); problem(t, err).Code != "too_many_sessions" {
		t.Errorf("one more: %v", err)
	}
	r.clock.Add(9 * time.Hour)
	if _, _, err := r.OpenSession(t.Context(), p, BearerSession, ""); err != nil {
		t.Errorf("after the others ended: %v", err)
	}
	r.clock.Add(keepSessions)
	if n, err := r.tidy(t.Context()); n != maxSessions || err != nil {
		t.Errorf("tidied %d, %v; want %d", n, err, maxSessions)
	}
}

func TestAPIClients(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		c, secret, err := r.CreateClient(t.Context(), tester, "deployer", "")
		if err != nil {
			t.Fatal(err)
		}
		role := r.role("auditors", api.AuditView)
		r.join(role, c.User, access.Window{})
		for name, try := range map[string][2]string{
			"wrong secret":   {c.ID, clientSecretPrefix + "x"},
			"unknown client": {"cli_none", secret},
			"name for id":    {"deployer", secret},
			"stored hash":    {c.ID, hashSecret(secret)},
		} {
			if _, _, err := r.ClientToken(t.Context(), try[0], try[1], office); err != errBadClient {
				t.Errorf("%s: %v", name, err)
			}
		}
		token, life, err := r.ClientToken(t.Context(), c.ID, secret, home)
		if err != nil || life != 30*time.Minute {
			t.Fatal(life, err)
		}
		p, err := r.ask(token, false, home, nil)
		if err != nil || !p.Can(api.AuditView) || p.UserID != c.ID {
			t.Fatalf("call with the token: %+v, %v", p, err)
		}
		if _, err := r.login("deployer", token, "", home); err != ErrBadCredentials {
			t.Errorf("a client's token as a password: %v", err)
		}
		if _, _, err := r.CreateToken(t.Context(), p, "long", time.Hour); problem(t, err).Code != "not_a_person" {
			t.Errorf("a client makes itself an API token: %v", err)
		}
		// Taking the role away stops the next call.
		if err := r.RemoveMember(t.Context(), tester, role.ID, c.ID, any64); err != nil {
			t.Fatal(err)
		}
		if p, err := r.ask(token, false, home, nil); err != nil || p.Can(api.AuditView) {
			t.Errorf("after the role is gone: %+v, %v", p, err)
		}
		fresh, err := r.RenewClientSecret(t.Context(), tester, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.ask(token, false, home, nil); err == nil {
			t.Error("a token from before the new secret still works")
		}
		if _, _, err := r.ClientToken(t.Context(), c.ID, secret, home); err != errBadClient {
			t.Errorf("old secret: %v", err)
		}
		token, _, err = r.ClientToken(t.Context(), c.ID, fresh, home)
		if err != nil {
			t.Fatal(err)
		}
		r.clock.Add(30 * time.Minute)
		if _, err := r.ask(token, false, home, nil); err == nil {
			t.Error("a token of 30 minutes ago still works")
		}
		if err := r.Erase(t.Context(), tester, c.ID, any64, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.ClientToken(t.Context(), c.ID, fresh, home); err != errBadClient {
			t.Errorf("deleted client: %v", err)
		}
	})
}
