package user

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/settings"
	"caponier/core/internal/vault"
)

// clock is a settable time.
type clock struct {
	mu  sync.Mutex
	now time.Time // guarded by mu
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// placeSealer binds a value to its place, so that a mixed-up place is noticed.
type placeSealer struct{}

func (placeSealer) Seal(p vault.Place, plain []byte) ([]byte, error) {
	out := []byte(p.Table + "/" + p.Column + "/" + p.Row + "\x00")
	for _, b := range plain {
		out = append(out, b^0x5a)
	}
	return out, nil
}

func (placeSealer) Open(p vault.Place, sealed []byte) ([]byte, error) {
	head := p.Table + "/" + p.Column + "/" + p.Row + "\x00"
	if len(sealed) < len(head) || string(sealed[:len(head)]) != head {
		return nil, errors.New("sealed for another place")
	}
	var out []byte
	for _, b := range sealed[len(head):] {
		out = append(out, b^0x5a)
	}
	return out, nil
}

// room is a user room on a fresh database with a clock of its own.
type room struct {
	*Service
	t        testing.TB
	d        *db.DB
	log      *audit.Log
	clock    *clock
	settings *settings.Service
}

var (
	office = netip.MustParseAddr("192.0.2.10")
	home   = netip.MustParseAddr("198.51.100.7")
	tester = audit.Actor{Kind: "system", Name: "test"}
)

const goodPassword = "correct horse battery"

func newRoom(t testing.TB, d *db.DB) *room {
	t.Helper()
	c := newClock()
	log := audit.New(d, c.Now)
	set, err := settings.New(t.Context(), settings.Config{DB: d, Audit: log, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{DB: d, Audit: log, Sealer: placeSealer{}, Now: c.Now, Settings: set})
	if err != nil {
		t.Fatal(err)
	}
	// Hashes as in production take most of a suite's time; their parameters have
	// a test of their own.
	s.hasher.memory, s.hasher.dummy.memory = 64, 64
	return &room{Service: s, t: t, d: d, log: log, clock: c, settings: set}
}

func (r *room) person(name string) User {
	r.t.Helper()
	u, err := r.Create(r.t.Context(), tester, Draft{Name: name, DisplayName: "The " + name, Email: name + "@example.org", Password: goodPassword})
	if err != nil {
		r.t.Fatalf("create %s: %v", name, err)
	}
	return u
}

func (r *room) login(name, password, code string, from netip.Addr) (*api.Principal, error) {
	return r.Login(r.t.Context(), Credentials{Name: name, Password: password, Code: code, Source: from, Via: "test"})
}

func (r *room) must(p *api.Principal, err error) *api.Principal {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("login: %v", err)
	}
	return p
}

// events lists the types of all audit events so far, oldest first.
func (r *room) events() []audit.Entry {
	r.t.Helper()
	list, err := r.log.After(r.t.Context(), r.d, audit.Filter{}, 0, 10_000)
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

func (r *room) countEvents(want audit.Type) int {
	n := 0
	for _, e := range r.events() {
		if e.Type == want {
			n++
		}
	}
	return n
}

func any64(int64) error { return nil }

func newSSHKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func problem(t testing.TB, err error) *api.Problem {
	t.Helper()
	p, ok := errors.AsType[*api.Problem](err)
	if !ok {
		t.Fatalf("got %v, want a problem", err)
	}
	return p
}

func TestCreateAndFind(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		got, err := r.ByName(t.Context(), "jane")
		if err != nil || got.ID != u.ID || got.Email != "jane@example.org" || !got.Password || got.TOTP || got.Kind != Person {
			t.Errorf("ByName = %+v, %v", got, err)
		}
		if _, err := r.Create(t.Context(), tester, Draft{Name: "jane"}); problem(t, err).Code != "name_taken" {
			t.Errorf("second jane: %v", err)
		}
		if _, err := r.Get(t.Context(), "usr_none"); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("Get of nobody: %v", err)
		}
		for _, name := range []string{"bob", "al", "zoe"} {
			r.person(name)
		}
		page, err := r.List(t.Context(), Person, "", "al", 2)
		if err != nil || len(page) != 2 || page[0].Name != "bob" || page[1].Name != "jane" {
			t.Errorf("page after al = %+v, %v", page, err)
		}
		for search, want := range map[string]int{"ZO": 1, "the ": 4, "%": 0, "_": 0, "example.org": 4} {
			if list, err := r.List(t.Context(), Person, search, "", 10); err != nil || len(list) != want {
				t.Errorf("search %q found %d, %v; want %d", search, len(list), err, want)
			}
		}
	})
}

func TestDraftsAreValidated(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	for _, c := range []struct {
		draft Draft
		field string
	}{
		{Draft{Name: ""}, "body.name"},
		{Draft{Name: "Jane"}, "body.name"},
		{Draft{Name: "ja%ne"}, "body.name"},
		{Draft{Name: "../x"}, "body.name"},
		{Draft{Name: "-jane"}, "body.name"},
		{Draft{Name: "jane\n"}, "body.name"},
		{Draft{Name: "jane", DisplayName: "a\x1b[2J"}, "body.display_name"},
		{Draft{Name: "jane", Email: "Jane <jane@example.org>"}, "body.email"},
		{Draft{Name: "jane", Password: "short"}, "body.password"},
		{Draft{Name: "jane", Password: "xx-JANE-xx-yyyyyy"}, "body.password"},
		{Draft{Name: "jane", Password: "aaaaaaaaaaaaaaaaaa"}, "body.password"},
		{Draft{Name: "jane", Password: "cap_abcdefghijklmnop"}, "body.password"},
		{Draft{Name: "jane", Password: "cps_abcdefghijklmnop"}, "body.password"},
	} {
		_, err := r.Create(t.Context(), tester, c.draft)
		if p := problem(t, err); len(p.Fields) != 1 || p.Fields[0].Field != c.field {
			t.Errorf("draft %+v: fields %+v, want %s", c.draft, p.Fields, c.field)
		}
	}
}

func TestUpdateNeedsThePresentVersion(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		name := "janet"
		stale := func(v int64) error { return api.CheckMatch(api.ETag(v+1), v) }
		if _, err := r.Update(t.Context(), tester, u.ID, stale, Change{Name: &name}); problem(t, err).Status != 412 {
			t.Errorf("stale update: %v", err)
		}
		got, err := r.Update(t.Context(), tester, u.ID, any64, Change{Name: &name})
		if err != nil || got.Name != name || got.Version != u.Version+1 {
			t.Errorf("update = %+v, %v", got, err)
		}
		r.person("bob")
		bob := "bob"
		if _, err := r.Update(t.Context(), tester, u.ID, any64, Change{Name: &bob}); problem(t, err).Code != "name_taken" {
			t.Errorf("rename to a taken name: %v", err)
		}
		yes := true
		if _, err := r.Update(t.Context(), tester, u.ID, any64, Change{Locked: &yes}); err != nil {
			t.Fatal(err)
		}
		if r.countEvents(audit.UserLocked) != 1 || r.countEvents(audit.UserChanged) != 1 {
			t.Errorf("events: %d locked, %d changed; want 1 and 1", r.countEvents(audit.UserLocked), r.countEvents(audit.UserChanged))
		}
	})
}

func TestBootstrapAdmin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u, password, err := r.BootstrapAdmin(t.Context(), "root", "")
		if err != nil || len(password) < 20 {
			t.Fatalf("bootstrap = %q, %v", password, err)
		}
		p := r.must(r.login("root", password, "", office))
		for _, perm := range AllPermissions {
			if !p.Can(perm) {
				t.Errorf("administrator lacks %s", perm)
			}
		}
		// Locked out: disabled behind the room's back, second factor lost.
		if _, err := d.ExecContext(t.Context(), `update users set disabled = $1, totp_secret = 'x' where id = $2`, true, u.ID); err != nil {
			t.Fatal(err)
		}
		again, _, err := r.BootstrapAdmin(t.Context(), "root", goodPassword)
		if err != nil || again.ID != u.ID || again.Disabled || again.TOTP {
			t.Fatalf("bootstrap again = %+v, %v", again, err)
		}
		r.must(r.login("root", goodPassword, "", office))
		if err := r.StillValid(t.Context(), p); err == nil {
			t.Error("the login from before the recovery is still good")
		}
	})
}

func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
