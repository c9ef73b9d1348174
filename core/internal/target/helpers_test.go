package target

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// secretsByID is a vault that has only IDs.
type secretsByID map[string]bool

func (s secretsByID) SecretGroup(ctx context.Context, q db.Querier, id string) (string, error) {
	return access.DefaultGroup, s.SecretExists(ctx, q, id)
}

func (s secretsByID) SecretExists(_ context.Context, _ db.Querier, id string) error {
	if s[id] {
		return nil
	}
	return db.ErrNotFound
}

// rolesInDB reads roles where the user room keeps them.
type rolesInDB struct{}

func (rolesInDB) RoleName(ctx context.Context, q db.Querier, id string) (string, error) {
	var name string
	err := q.QueryRowContext(ctx, `select name from roles where id = $1`, id).Scan(&name)
	return name, db.Classify(err)
}

func (rolesInDB) RoleGroup(ctx context.Context, q db.Querier, id string) (string, error) {
	var group string
	err := q.QueryRowContext(ctx, `select group_id from roles where id = $1`, id).Scan(&group)
	return group, db.Classify(err)
}

// edgesAt says which sites have edges.
type edgesAt map[string][]string

func (e edgesAt) SiteUses(_ context.Context, _ db.Querier, site string) ([]string, error) {
	return e[site], nil
}

// ticking is a clock that moves a second at every reading.
func ticking() func() time.Time {
	var mu sync.Mutex
	at := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		at = at.Add(time.Second)
		return at
	}
}

const testRole = "rol_ops"

type room struct {
	*Service
	db  *db.DB
	log *audit.Log
	ctx context.Context // carries an administrator
}

func newRoom(t testing.TB, d *db.DB) *room {
	t.Helper()
	now := ticking()
	log := audit.New(d, now)
	s, err := New(Config{
		DB: d, Audit: log, Roles: rolesInDB{}, Secrets: secretsByID{"sec_pw": true, "sec_key": true},
		SiteUses: []SiteUser{edgesAt{"edgy": {"extender edge-1"}}}, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.ExecContext(t.Context(), `insert into roles (id, name, comment, permissions, builtin, created_at, version)
 values ($1, 'ops', '', '[]', $2, 0, 1)`, testRole, false)
	if err != nil {
		t.Fatal(err)
	}
	admin := &api.Principal{UserID: "usr_admin", UserName: "admin", Via: "api", Permissions: map[api.Permission]bool{api.TargetsManage: true, api.SecretsManage: true}}
	return &room{Service: s, db: d, log: log, ctx: api.WithPrincipal(t.Context(), admin)}
}

// each runs f on both engines.
func each(t *testing.T, f func(t *testing.T, r *room)) {
	t.Helper()
	dbtest.Each(t, func(t *testing.T, d *db.DB) { f(t, newRoom(t, d)) })
}

func (r *room) site(t testing.TB, name string) {
	t.Helper()
	if _, err := r.CreateSite(r.ctx, Site{Name: name}); err != nil {
		t.Fatal(err)
	}
}

func (r *room) target(t testing.TB, tg Target, accounts ...string) *Target {
	t.Helper()
	var as []Account
	for _, a := range accounts {
		as = append(as, Account{Name: a})
	}
	made, err := r.Create(r.ctx, tg, as)
	if err != nil {
		t.Fatalf("create target %+v: %v", tg, err)
	}
	return made
}

// events returns the types of the audit events about an object, oldest first.
func (r *room) events(t testing.TB, id string) string {
	t.Helper()
	found, err := r.log.After(t.Context(), r.db, audit.Filter{}, 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, e := range found {
		if e.Object.ID == id || e.Fields["target"] == id {
			types = append(types, string(e.Type))
		}
	}
	return strings.Join(types, " ")
}

// wantProblem fails unless err is a problem with the code; it returns its texts.
func wantProblem(t testing.TB, err error, code string) string {
	t.Helper()
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || p.Code != code {
		t.Fatalf("got %v, want a problem with code %s", err, code)
	}
	text := p.Detail
	for _, f := range p.Fields {
		text += "\n" + f.Field + ": " + f.Message
	}
	return text
}

func newKey(t testing.TB) ssh.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (r *room) auditCount(t testing.TB) int {
	t.Helper()
	found, err := r.log.After(t.Context(), r.db, audit.Filter{}, 0, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}
