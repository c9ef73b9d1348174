package policy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
)

func TestDecide(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ada, eve := w.user("ada"), w.user("eve")
		ops := w.role("ops", ada)
		w.site("a")
		w.site("b")
		w.target(target.Target{Name: "db-a", Site: "a", Host: "10.0.0.5", Tags: []string{"env=prod"}}, "root", "deploy")
		w.target(target.Target{Name: "db-b", Site: "b", Host: "10.0.0.5"}, "root")
		w.target(target.Target{Name: "pg-a", Kind: target.TCP, Site: "a", Host: "10.0.0.5", Port: 5432, Tags: []string{"env=prod"}})
		g := w.grant(access.Grant{Role: ops, Tag: "env=prod", Accounts: []string{"root"}, Features: access.Shell | access.Forward, MaxDuration: time.Hour})
		tcp := w.grant(access.Grant{Role: ops, Target: "pg-a", Features: access.Forward})

		v := w.ask(ada, "db-a", "root", access.Shell)
		want := access.Decision{Reason: access.Allowed, Grant: g.ID, Role: ops, Features: access.Shell | access.Forward, Record: true, MaxDuration: time.Hour}
		if d := cmp.Diff(want, v.Decision); d != "" {
			t.Errorf("decision (-want +got):\n%s", d)
		}
		if v.Target == nil || v.Target.Name != "db-a" || v.Account == nil || v.Account.Name != "root" || v.Public != "" {
			t.Errorf("verdict: %+v", v)
		}
		for _, c := range []struct {
			name, ref, account string
			who                *api.Principal
			want               access.Feature
			reason             access.Reason
			target, public     string
		}{
			{"by address", "a/10.0.0.5:22", "root", ada, access.Shell, access.Allowed, "db-a", ""},
			{"the only one allowed of two with the address", "10.0.0.5", "root", ada, access.Shell, access.Allowed, "db-a", ""},
			{"by port", "a/10.0.0.5:5432", "", ada, access.Forward, access.Allowed, "pg-a", ""},
			{"accounts do not matter for tcp", "pg-a", "root", ada, access.Forward, access.Allowed, "pg-a", ""},
			{"raw forward through any account", "db-a", "", ada, access.Forward, access.Allowed, "db-a", ""},
			{"shell on tcp", "pg-a", "", ada, access.Shell, access.NoFeature, "pg-a", "You may use pg-a, but not for a shell."},
			{"other site", "db-b", "root", ada, access.Shell, access.NoRole, "", `There is no target "db-b" that you may use.`},
			{"no such target", "db-c", "root", ada, access.Shell, access.NoRole, "", `There is no target "db-c" that you may use.`},
			{"nonsense", "\x1b[2J%%", "root", ada, access.Shell, access.NoRole, "", `There is no target "?[2J%%" that you may use.`},
			{"no role", "db-a", "root", eve, access.Shell, access.NoRole, "", `There is no target "db-a" that you may use.`},
			{"other account", "db-a", "deploy", ada, access.Shell, access.NoAccount, "db-a", `There is no account "deploy" on db-a that you may use.`},
			{"no such account", "db-a", "nobody", ada, access.Shell, access.NoAccount, "db-a", `There is no account "nobody" on db-a that you may use.`},
			{"no account said", "db-a", "", ada, access.Shell, access.NoAccount, "db-a", "Say which account of db-a; you may use root."},
			{"other use", "db-a", "root", ada, access.FileTransfer, access.NoFeature, "db-a", "You may use db-a, but not for file transfer."},
		} {
			v := w.ask(c.who, c.ref, c.account, c.want)
			name := ""
			if v.Target != nil {
				name = v.Target.Name
			}
			if v.Reason != c.reason || v.Public != c.public || c.target != "" && name != c.target {
				t.Errorf("%s: %s on %q: %q; want %s on %q: %q", c.name, v.Reason, name, v.Public, c.reason, c.target, c.public)
			}
		}
		_ = tcp

		// With access to both hosts of the address, it must be said which.
		w.grant(access.Grant{Role: ops, Target: "db-b"})
		if v := w.ask(ada, "10.0.0.5:22", "root", access.Shell); v.OK() || !strings.Contains(v.Public, "db-a (a/10.0.0.5:22), db-b (b/10.0.0.5:22)") {
			t.Errorf("ambiguous: %s %q", v.Reason, v.Public)
		}
		if v := w.ask(ada, "b/10.0.0.5", "root", access.Shell); !v.OK() || v.Target.Name != "db-b" {
			t.Errorf("with its site: %+v", v)
		}
	})
}

// Whoever has no role for a target learns nothing: the answers about targets
// that exist in any state, and about one that does not, are the same.
func TestNamesCannotBeProbed(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		eve := w.user("eve")
		ops := w.role("ops")
		w.role("other", eve)
		w.target(target.Target{Name: "open", Host: "h1"}, "root")
		w.target(target.Target{Name: "shut", Host: "h2", Disabled: true}, "root")
		w.target(target.Target{Name: "bare", Host: "h3"})
		w.target(target.Target{Name: "pg", Kind: target.TCP, Host: "h1", Port: 5432})
		w.target(target.Target{Name: "twin", Host: "h1", Port: 2222}, "root")
		w.grant(access.Grant{Role: ops, Target: "open"})
		var want *Verdict
		for _, ref := range []string{"none", "open", "shut", "bare", "pg", "h1", "h1:22", "a/h1", "tgt_x"} {
			for _, account := range []string{"root", "nobody", ""} {
				for _, f := range []access.Feature{access.Shell, access.Forward} {
					v := w.ask(eve, ref, account, f)
					v.Public = strings.Replace(v.Public, `"`+ref+`"`, "it", 1)
					v.Target, v.Account = nil, nil
					if want == nil {
						want = &v
					}
					if d := cmp.Diff(*want, v); d != "" {
						t.Errorf("%s, %q, %s differs:\n%s", ref, account, f, d)
					}
				}
			}
		}
	})
}

func TestDecideState(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ada := w.user("ada")
		ops := w.role("ops", ada)
		tg := w.target(target.Target{Name: "db", Host: "h"}, "root")
		as, err := w.targets.Accounts(t.Context(), w.db, tg.ID)
		if err != nil {
			t.Fatal(err)
		}
		g := w.grant(access.Grant{Role: ops, Target: tg.ID, Features: access.Shell | access.Exec})
		setUser := func(c user.Change) func() {
			return func() {
				if _, err := w.users.Update(t.Context(), system, ada.UserID, anyVersion, c); err != nil {
					t.Fatal(err)
				}
			}
		}
		setTarget := func(disabled bool) func() {
			return func() {
				if _, err := w.targets.Update(w.ctx, tg.ID, nil, func(t *target.Target) { t.Disabled = disabled }); err != nil {
					t.Fatal(err)
				}
			}
		}
		setAccount := func(f func(*target.Account)) func() {
			return func() {
				if _, err := w.targets.UpdateAccount(w.ctx, tg.ID, as[0].ID, nil, f); err != nil {
					t.Fatal(err)
				}
			}
		}
		setGrant := func(f func(*target.Grant)) func() {
			return func() {
				if _, err := w.targets.UpdateGrant(w.ctx, g.ID, nil, f); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, c := range []struct {
			name   string
			change func()
			want   access.Reason
			public string
		}{
			{"at first", func() {}, access.Allowed, ""},
			{"user disabled", setUser(user.Change{Disabled: new(true)}), access.UserDisabled, "Your account is disabled."},
			{"user enabled", setUser(user.Change{Disabled: new(false)}), access.Allowed, ""},
			{"user locked", setUser(user.Change{Locked: new(true)}), access.UserLocked, "Your account is locked."},
			{"user unlocked", setUser(user.Change{Locked: new(false)}), access.Allowed, ""},
			{"target disabled", setTarget(true), access.TargetDisabled, "Target db is disabled at present."},
			{"target enabled", setTarget(false), access.Allowed, ""},
			{"account disabled", setAccount(func(a *target.Account) { a.Disabled = true }), access.AccountDisabled, `Account "root" on db is disabled at present.`},
			{"account without shells", setAccount(func(a *target.Account) { a.Disabled, a.Features = false, access.Exec }), access.NoFeature, "You may use db, but not for a shell."},
			{"account with shells", setAccount(func(a *target.Account) { a.Features = access.AllFeatures & target.SSH.Features() }), access.Allowed, ""},
			{"second factor", setGrant(func(g *target.Grant) { g.RequireMFA = true }), access.NeedMFA, "Target db asks for a login with a second factor."},
			{"reason", setGrant(func(g *target.Grant) { g.RequireMFA, g.RequireReason = false, true }), access.NeedReason, "Target db asks for a reason: give one when you connect."},
			{"source", setGrant(func(g *target.Grant) {
				g.RequireReason, g.Sources = false, []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
			}), access.OutsideSource, "You may use db only from certain networks, and not from 192.0.2.7."},
			{"window", setGrant(func(g *target.Grant) { g.Sources, g.Window.NotAfter = nil, w.clock.Now() }), access.OutsideWindow, "You may use db only at certain times, and not now."},
			{"grant disabled", setGrant(func(g *target.Grant) { g.Window, g.Disabled = access.Window{}, true }), access.NoRole, `There is no target "db" that you may use.`},
			{"grant enabled", setGrant(func(g *target.Grant) { g.Disabled = false }), access.Allowed, ""},
			{"no member any more", func() {
				if err := w.users.RemoveMember(t.Context(), system, ops, ada.UserID, anyVersion); err != nil {
					t.Fatal(err)
				}
			}, access.NoRole, `There is no target "db" that you may use.`},
		} {
			c.change()
			if c.want != access.UserDisabled && c.want != access.UserLocked {
				w.login(ada)
			}
			v := w.ask(ada, "db", "root", access.Shell)
			if v.Reason != c.want || v.Public != c.public {
				t.Errorf("%s: %s %q, want %s %q", c.name, v.Reason, v.Public, c.want, c.public)
			}
			spec := conn.Spec{Principal: ada, TargetID: tg.ID, Account: "root", Want: access.Shell, Source: here}
			d, err := w.Reauthorize(t.Context(), spec)
			if err != nil || d.Reason != c.want {
				t.Errorf("%s: again %s, %v; want %s", c.name, d.Reason, err, c.want)
			}
		}
		gone := &api.Principal{UserID: "usr_none"}
		if v := w.ask(gone, "db", "root", access.Shell); v.Reason != access.UserDisabled {
			t.Errorf("a user who is gone: %s", v.Reason)
		}
		if err := w.targets.Delete(w.ctx, tg.ID, nil); err != nil {
			t.Fatal(err)
		}
		if d, err := w.Reauthorize(t.Context(), conn.Spec{Principal: ada, TargetID: tg.ID, Account: "root", Want: access.Shell}); err != nil || d.OK() {
			t.Errorf("a target that is gone: %+v, %v", d, err)
		}
	})
}

// An error is never a yes.
func TestDecideFailsClosed(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ada := w.user("ada")
		w.target(target.Target{Name: "db", Host: "h"}, "root")
		w.grant(access.Grant{Role: w.role("ops", ada), Target: "db"})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if v, err := w.Decide(ctx, Query{Principal: ada, Target: "db", Account: "root", Want: access.Shell}); err == nil || v.OK() {
			t.Errorf("without a database: %+v, %v", v, err)
		}
		if d, err := w.Reauthorize(ctx, conn.Spec{Principal: ada, TargetID: "x", Account: "root", Want: access.Shell}); err == nil || d.OK() {
			t.Errorf("again without a database: %+v, %v", d, err)
		}
		if v, err := w.Decide(t.Context(), Query{Target: "db", Account: "root", Want: access.Shell}); err == nil || v.OK() {
			t.Errorf("nobody: %+v, %v", v, err)
		}
	})
}

func TestFloatingMembership(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ada := w.user("ada")
		temp := w.role("temp")
		w.member(temp, ada, access.Window{Floating: time.Hour})
		tg := w.target(target.Target{Name: "db", Host: "h"}, "root")
		w.grant(access.Grant{Role: temp, Target: "db"})
		start := w.clock.Now()
		subject := func() access.Membership {
			t.Helper()
			s, err := w.users.Subject(t.Context(), w.db, ada.UserID, false)
			if err != nil || len(s.Memberships) != 1 {
				t.Fatalf("subject: %+v, %v", s, err)
			}
			return s.Memberships[0]
		}
		// Looking does not start it.
		if _, err := w.List(t.Context(), ada, here, "", "", 10); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Reauthorize(t.Context(), conn.Spec{Principal: ada, TargetID: tg.ID, Account: "root", Want: access.Shell}); err != nil {
			t.Fatal(err)
		}
		if v := w.ask(ada, "db", "root", access.Exec); v.OK() {
			t.Error("exec is not granted")
		}
		if m := subject(); !m.FirstUse.IsZero() {
			t.Fatalf("started by looking: %+v", m)
		}
		w.clock.Set(start.Add(48 * time.Hour))
		v := w.ask(ada, "db", "root", access.Shell)
		if !v.OK() || !v.StartsFloating || !v.Until.Equal(w.clock.Now().Add(time.Hour)) {
			t.Fatalf("first use: %+v", v.Decision)
		}
		if m := subject(); !m.FirstUse.Equal(w.clock.Now()) {
			t.Errorf("first use is noted as %s, want %s", m.FirstUse, w.clock.Now())
		}
		w.clock.Set(start.Add(48*time.Hour + 59*time.Minute))
		if v := w.ask(ada, "db", "root", access.Shell); !v.OK() || v.StartsFloating {
			t.Errorf("in the hour: %+v", v.Decision)
		}
		w.clock.Set(start.Add(49 * time.Hour))
		if v := w.ask(ada, "db", "root", access.Shell); v.Reason != access.OutsideWindow {
			t.Errorf("after the hour: %+v", v.Decision)
		}
	})
}

func TestReauthorizeLoginEnded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ada := w.user("ada")
		tg := w.target(target.Target{Name: "db", Host: "h"}, "root")
		w.grant(access.Grant{Role: w.role("ops", ada), Target: "db"})
		w.login(ada)
		spec := conn.Spec{Principal: ada, TargetID: tg.ID, Account: "root", Want: access.Shell, Source: here}
		if d, err := w.Reauthorize(t.Context(), spec); err != nil || !d.OK() {
			t.Fatalf("with its token: %+v, %v", d, err)
		}
		if err := w.users.RevokeToken(t.Context(), system, ada.Session); err != nil {
			t.Fatal(err)
		}
		if d, err := w.Reauthorize(t.Context(), spec); err != nil || d.Reason != access.LoginEnded {
			t.Errorf("with a revoked token: %+v, %v", d, err)
		}
	})
}

// What is listed is what Decide allows, and nothing else.
func TestListIsWhatDecideAllows(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ada := w.user("ada")
		ops, dev, temp := w.role("ops", ada), w.role("dev"), w.role("temp")
		w.member(dev, ada, access.Window{}, netip.MustParsePrefix("203.0.113.0/24"))
		w.member(temp, ada, access.Window{Floating: time.Hour})
		w.site("a")
		for i := range 12 {
			tg := target.Target{Name: fmt.Sprintf("t-%02d", i), Site: "a", Host: fmt.Sprintf("10.0.0.%d", i+1), Disabled: i == 5}
			if i%2 == 0 {
				tg.Tags = []string{"even"}
			}
			if i%4 == 3 {
				tg.Kind, tg.Port = target.TCP, 80
				w.target(tg)
			} else {
				w.target(tg, "deploy", "root")
			}
		}
		w.grant(access.Grant{Role: ops, Tag: "even", Accounts: []string{"root"}, Features: access.Shell | access.Exec})
		w.grant(access.Grant{Role: ops, Target: "t-03", Features: access.Forward})
		w.grant(access.Grant{Role: ops, Target: "t-05"})
		w.grant(access.Grant{Role: dev, Target: "t-01"})
		w.grant(access.Grant{Role: temp, Target: "t-07", Features: access.Forward})
		w.grant(access.Grant{Role: temp, Target: "t-04", Features: access.FileTransfer, RequireMFA: true})
		w.grant(access.Grant{Role: ops, Target: "t-09", RequireReason: true, RequireMFA: true, NoRecording: true})
		for _, from := range []netip.Addr{here, netip.MustParseAddr("203.0.113.9")} {
			listed := map[string]access.Features{}
			after := ""
			for {
				es, more, err := w.list(t.Context(), ada, from, target.Reach{}, after, 3)
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range es {
					key := e.Target.Name + "/" + e.Account
					if _, twice := listed[key]; twice {
						t.Errorf("%s listed twice", key)
					}
					listed[key] = e.Features
					if e.Target.Name == "t-09" && (!e.NeedMFA || !e.NeedReason || e.Record) {
						t.Errorf("t-09: %+v", e)
					}
					after = e.Target.Name
				}
				if !more {
					break
				}
			}
			for i := range 12 {
				for _, account := range []string{"deploy", "root", ""} {
					name := fmt.Sprintf("t-%02d", i)
					if (i%4 == 3) != (account == "") {
						continue
					}
					var allowed access.Features
					for f := access.Shell; f <= access.Network; f <<= 1 {
						mfa := *ada
						mfa.MFA = true
						v, err := w.Decide(t.Context(), Query{Principal: &mfa, Target: name, Account: account, Want: f, Reason: "test", Source: from})
						if err != nil {
							t.Fatal(err)
						}
						if v.OK() {
							allowed |= f
						}
					}
					if got := listed[name+"/"+account]; got != allowed {
						t.Errorf("from %s, %s/%s: listed %q, decided %q", from, name, account, got, allowed)
					}
				}
			}
		}
		es, err := w.List(t.Context(), ada, here, "T-0", "t-03", 2)
		if err != nil || len(es) != 3 || es[0].Target.Name != "t-04" || es[1].Target.Name != "t-04" || es[2].Target.Name != "t-06" {
			t.Errorf("two targets after t-03: %+v, %v", es, err)
		}
	})
}
