package group

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

var (
	noon   = time.Date(2026, 11, 4, 12, 0, 0, 0, time.UTC)
	tester = audit.Actor{Kind: "user", ID: "usr_t", Name: "tester"}
)

func always(int64) error { return nil }

// newService also tells what was made and removed.
func newService(t *testing.T, d *db.DB) (*Service, *[]string) {
	t.Helper()
	var told []string
	note := func(what string) func(context.Context, *db.Tx, string, audit.Actor) error {
		return func(_ context.Context, _ *db.Tx, id string, _ audit.Actor) error {
			told = append(told, what+" "+id)
			return nil
		}
	}
	s, err := New(Config{DB: d, Audit: audit.New(d, nil), Now: func() time.Time { return noon }, Made: note("made"), Removed: note("removed")})
	if err != nil {
		t.Fatal(err)
	}
	return s, &told
}

func code(err error) string {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func TestGroups(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s, told := newService(t, d)
		g, err := s.Create(ctx, tester, Group{Name: "plant", Comment: "line 3"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Create(ctx, tester, Group{Name: "plant"}); code(err) != "name_taken" {
			t.Errorf("a name twice: %v", err)
		}
		for _, bad := range []Group{{Name: ""}, {Name: "Plant"}, {Name: "a b"}, {Name: strings.Repeat("a", 65)}, {Name: "ok", Comment: strings.Repeat("x", 1001)}} {
			if _, err := s.Create(ctx, tester, bad); code(err) != "invalid" {
				t.Errorf("%.20q: %v", bad.Name, err)
			}
		}
		for _, c := range []struct {
			in   access.Scope
			want string
		}{{access.Everywhere(), "default plant"}, {access.Within(g.ID), "plant"}, {access.Within("default"), "default"}, {access.Scope{}, ""}} {
			list, err := s.List(ctx, c.in, "", 10)
			var names []string
			for _, x := range list {
				names = append(names, x.Name)
			}
			if got := strings.Join(names, " "); err != nil || got != c.want {
				t.Errorf("in %q: %q, %v; want %q", c.in.Text(), got, err, c.want)
			}
		}
		if got, err := s.Update(ctx, tester, g.ID, always, "factory", ""); err != nil || got.Name != "factory" || got.Version != 2 {
			t.Errorf("update: %+v, %v", got, err)
		}
		if _, err := s.Update(ctx, tester, access.DefaultGroup, always, "other", ""); code(err) != "builtin" {
			t.Errorf("the default group was renamed: %v", err)
		}
		if _, err := s.Update(ctx, tester, access.DefaultGroup, always, "default", "the rest"); err != nil {
			t.Errorf("its comment: %v", err)
		}
		conflict := func(int64) error { return api.Conflict("stale", "") }
		if _, err := s.Update(ctx, tester, g.ID, conflict, "x", ""); code(err) != "stale" {
			t.Errorf("another version: %v", err)
		}
		if err := s.Delete(ctx, tester, g.ID, always); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(ctx, d, g.ID); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("after its removal: %v", err)
		}
		if got := strings.Join(*told, ", "); got != "made "+g.ID+", removed "+g.ID {
			t.Errorf("told %q", got)
		}
		log := audit.New(d, nil)
		events, err := log.After(ctx, d, audit.Filter{Type: "group."}.Within(access.Within(g.ID)), 0, 10)
		if err != nil || len(events) != 3 || events[2].Type != audit.GroupDeleted || events[0].Group != g.ID {
			t.Errorf("events: %+v, %v", events, err)
		}
	})
}

// TestRemovalWaitsForWhatIsInIt: each kind of thing keeps its group.
func TestRemovalWaitsForWhatIsInIt(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s, _ := newService(t, d)
		g, err := s.Create(ctx, tester, Group{Name: "plant"})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ what, put, take string }{
			{"a site", `insert into sites (id, name, comment, created_at, version, group_id) values ('site_1', 'a', '', 0, 1, $1)`, `delete from sites where group_id = $1`},
			{"a role", `insert into roles (id, name, comment, permissions, builtin, created_at, version, group_id) values ('rol_1', 'a', '', '[]', ` + no(d) + `, 0, 1, $1)`, `delete from roles where group_id = $1`},
			{"a role limited to it", `insert into roles (id, name, comment, permissions, builtin, created_at, version, scope) values ('rol_2', 'b', '', '[]', ` + no(d) + `, 0, 1, '["grp_other","' || $1 || '"]')`, `delete from roles where scope like '%' || $1 || '%'`},
			{"a secret", `insert into vault_secrets (id, name, owner_id, kind, comment, read_roles, write_roles, current, version, created_at, updated_at, group_id) values ('sec_1', 'a', '', 'password', '', '[]', '[]', 1, 1, 0, 0, $1)`, `delete from vault_secrets where group_id = $1`},
		} {
			exec(t, d, c.put, g.ID)
			if err := s.Delete(ctx, tester, g.ID, always); code(err) != "group_in_use" {
				t.Errorf("with %s in it: %v", c.what, err)
			}
			exec(t, d, c.take, g.ID)
		}
		if err := s.Delete(ctx, tester, g.ID, always); err != nil {
			t.Errorf("empty: %v", err)
		}
		err = d.Tx(ctx, func(tx *db.Tx) error { return Check(ctx, tx, g.ID) })
		if code(err) != "invalid" {
			t.Errorf("something may be put into a removed group: %v", err)
		}
		if err := d.Tx(ctx, func(tx *db.Tx) error { return Check(ctx, tx, access.DefaultGroup) }); err != nil {
			t.Error(err)
		}
	})
}

func no(d *db.DB) string {
	if d.Engine() == db.Postgres {
		return "false"
	}
	return "0"
}

func exec(t *testing.T, d *db.DB, query string, args ...any) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.ExecContext(t.Context(), query, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// certificate makes one in PEM; an authority signs itself.
func certificate(t *testing.T, name string, ca bool, issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey) (string, *x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: noon, NotAfter: noon.Add(time.Hour),
		IsCA: ca, BasicConstraintsValid: true}
	if issuer == nil {
		issuer, issuerKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), made, key
}

func TestAnchors(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		s, _ := newService(t, d)
		g, err := s.Create(ctx, tester, Group{Name: "plant"})
		if err != nil {
			t.Fatal(err)
		}
		one, ca, key := certificate(t, "one", true, nil, nil)
		two, _, _ := certificate(t, "two", true, nil, nil)
		leaf, _, _ := certificate(t, "leaf", false, ca, key)
		self, _, _ := certificate(t, "self", false, nil, nil)
		der, _ := x509.MarshalPKCS8PrivateKey(key)
		private := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
		for name, text := range map[string]string{
			"nothing": "", "no PEM": "hello", "a key": private, "a certificate and a key": one + private, "a leaf": leaf,
			"rubbish in PEM": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "something behind": one + "tail",
		} {
			if _, err := s.AddAnchors(ctx, tester, g.ID, text); code(err) != "invalid" {
				t.Errorf("%s: %v", name, err)
			}
		}
		if list, err := s.Anchors(ctx, g.ID); err != nil || len(list) != 0 {
			t.Errorf("refused texts left %d anchors, %v", len(list), err)
		}
		if all, err := s.AddAnchors(ctx, tester, g.ID, "\n"+one+"\n\n"+two+self+one); err != nil || len(all) != 3 {
			t.Fatalf("add: %+v, %v", all, err)
		}
		all, err := s.AddAnchors(ctx, tester, g.ID, one)
		if err != nil || len(all) != 3 || all[0].CreatedBy != "usr_t" || !all[0].NotAfter.Equal(noon.Add(time.Hour)) {
			t.Fatalf("again: %+v, %v", all, err)
		}
		certs, err := s.Anchors(ctx, g.ID)
		if err != nil || len(certs) != 3 {
			t.Fatalf("anchors: %d, %v", len(certs), err)
		}
		if list, err := s.Anchors(ctx, access.DefaultGroup); err != nil || len(list) != 0 {
			t.Errorf("another group has them too: %d, %v", len(list), err)
		}
		if err := s.RemoveAnchor(ctx, tester, access.DefaultGroup, all[0].ID); code(err) != "not_found" {
			t.Errorf("removed by way of another group: %v", err)
		}
		if err := s.RemoveAnchor(ctx, tester, g.ID, all[0].ID); err != nil {
			t.Fatal(err)
		}
		if certs, err := s.Anchors(ctx, g.ID); err != nil || len(certs) != 2 {
			t.Errorf("after the removal: %d, %v", len(certs), err)
		}
		if _, err := s.AddAnchors(ctx, tester, "grp_none", one); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("for a group that is not there: %v", err)
		}
	})
}

// FuzzParseAnchors: whatever is pasted, only certificates come out.
func FuzzParseAnchors(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	f.Add("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		certs, err := parseAnchors(text)
		if (err == nil) != (len(certs) > 0) || len(certs) > maxAnchors {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
	})
}
