package policy

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
	"caponier/core/internal/sshca"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
	"caponier/shared/dial"
)

// clock is a settable time.
type clock struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Set(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = at
}

// world is the rooms around policy, all real.
type world struct {
	*Service
	t       testing.TB
	db      *db.DB
	clock   *clock
	users   *user.Service
	targets *target.Service
	vault   *vault.Vault
	fleet   *fleet.Fleet
	ca      *sshca.CA
	ctx     context.Context // carries an administrator
}

var here = netip.MustParseAddr("192.0.2.7")

func newWorld(t testing.TB, d *db.DB) *world {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Certificates are checked against the real time: the clock begins there.
	w := &world{t: t, db: d, clock: &clock{now: time.Now().UTC().Truncate(time.Second)}}
	log := slog.New(slog.DiscardHandler)
	record := audit.New(d, w.clock.Now)
	var err error
	w.vault, err = vault.New(t.Context(), vault.Config{DB: d, Audit: record, Log: log, KEK: vault.GenerateKEK(), Now: w.clock.Now})
	check(err)
	w.users, err = user.New(user.Config{DB: d, Audit: record, Sealer: w.vault, Now: w.clock.Now, Log: log})
	check(err)
	w.fleet, err = fleet.New(t.Context(), fleet.Config{DB: d, Audit: record, Vault: w.vault, CoreID: "core_test", CoreName: "test", Log: log,
		Direct: dial.Rules{Exempt: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}})
	check(err)
	w.targets, err = target.New(target.Config{DB: d, Audit: record, Roles: w.users, Secrets: w.vault, Now: w.clock.Now, Log: log})
	check(err)
	w.ca, err = sshca.New(t.Context(), sshca.Config{DB: d, Vault: w.vault, Audit: record, Log: log, Now: w.clock.Now})
	check(err)
	prober, err := NewSSHProber(SSHProberConfig{DB: d, Dialer: w.fleet, Targets: w.targets, CA: w.ca, Secrets: w.vault})
	check(err)
	w.Service, err = New(Config{DB: d, Users: w.users, Targets: w.targets, Network: w.fleet, Prober: prober, Now: w.clock.Now, Log: log})
	check(err)
	w.ctx = api.WithPrincipal(t.Context(), &api.Principal{UserID: "usr_admin", UserName: "admin", Via: "api", Permissions: map[api.Permission]bool{api.TargetsManage: true, api.SecretsManage: true}})
	return w
}

func each(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	dbtest.Each(t, func(t *testing.T, d *db.DB) { f(t, newWorld(t, d)) })
}

var system = audit.System

// user makes a person and returns him as he logs in.
func (w *world) user(name string) *api.Principal {
	w.t.Helper()
	u, err := w.users.Create(w.t.Context(), system, user.Draft{Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return &api.Principal{UserID: u.ID, UserName: name, Source: here, Via: "bastion"}
}

// role makes a role with members and returns its ID.
func (w *world) role(name string, members ...*api.Principal) string {
	w.t.Helper()
	r, err := w.users.CreateRole(w.t.Context(), system, user.Role{Name: name})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range members {
		w.member(r.ID, p, access.Window{})
	}
	return r.ID
}

func (w *world) member(role string, p *api.Principal, window access.Window, sources ...netip.Prefix) {
	w.t.Helper()
	if _, err := w.users.PutMember(w.t.Context(), system, role, p.UserID, window, sources, anyVersion); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) site(name string) {
	w.t.Helper()
	if _, err := w.targets.CreateSite(w.ctx, target.Site{Name: name}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) target(tg target.Target, accounts ...string) *target.Target {
	w.t.Helper()
	if tg.Kind == "" {
		tg.Kind = target.SSH
	}
	var as []target.Account
	for _, a := range accounts {
		as = append(as, target.Account{Name: a})
	}
	made, err := w.targets.Create(w.ctx, tg, as)
	if err != nil {
		w.t.Fatalf("create target %s: %v", tg.Name, err)
	}
	return made
}

func (w *world) grant(g access.Grant) *target.Grant {
	w.t.Helper()
	if g.Features == 0 {
		g.Features = access.Shell
	}
	if g.Accounts == nil {
		g.Accounts = []string{"*"}
	}
	made, err := w.targets.CreateGrant(w.ctx, target.Grant{Grant: g})
	if err != nil {
		w.t.Fatalf("create grant %+v: %v", g, err)
	}
	return made
}

func (w *world) ask(p *api.Principal, ref, account string, want access.Feature) Verdict {
	w.t.Helper()
	v, err := w.Decide(w.t.Context(), Query{Principal: p, Target: ref, Account: account, Want: want, Source: p.Source})
	if err != nil {
		w.t.Fatalf("decide %s on %s: %v", account, ref, err)
	}
	return v
}

func anyVersion(int64) error { return nil }

// login gives the principal an API token to act by.
func (w *world) login(p *api.Principal) {
	w.t.Helper()
	tok, _, err := w.users.CreateToken(w.t.Context(), p, "laptop", 24*time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	p.Session = tok.ID
}
