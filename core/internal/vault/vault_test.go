package vault

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func open(t *testing.T, d *db.DB, kek KEK, previous ...KEK) *Vault {
	t.Helper()
	v, err := tryOpen(t.Context(), d, kek, previous...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func tryOpen(ctx context.Context, d *db.DB, kek KEK, previous ...KEK) (*Vault, error) {
	return New(ctx, Config{DB: d, Audit: audit.New(d, nil), Log: slog.New(slog.DiscardHandler), KEK: kek, Previous: previous})
}

var somewhere = Place{"things", "secret", "thg_1"}

func TestSealOpensOnlyInItsPlace(t *testing.T) {
	v := open(t, dbtest.SQLite(t), GenerateKEK())
	box, err := v.Seal(somewhere, []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := v.Open(somewhere, box); err != nil || string(got) != "hunter2" {
		t.Fatalf("open in place: %q, %v", got, err)
	}
	for _, p := range []Place{
		{"things", "secret", "thg_2"}, {"things", "other", "thg_1"}, {"other", "secret", "thg_1"},
		{"thingss", "ecret", "thg_1"}, {"things", "secrett", "hg_1"},
	} {
		if got, err := v.Open(p, box); !errors.Is(err, ErrNotOpened) {
			t.Errorf("opened at %v: %q, %v", p, got, err)
		}
	}
	for i := range box {
		bad := bytes.Clone(box)
		bad[i] ^= 1
		if _, err := v.Open(somewhere, bad); err == nil {
			t.Errorf("opened with byte %d flipped", i)
		}
		if _, err := v.Open(somewhere, box[:i]); err == nil {
			t.Errorf("opened when cut to %d bytes", i)
		}
	}
	again, err := v.Seal(somewhere, []byte("hunter2"))
	if err != nil || bytes.Equal(again[9:], box[9:]) {
		t.Errorf("sealing twice gives the same bytes (%v)", err)
	}
}

func TestWrongKEKIsSealed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, b, c := GenerateKEK(), GenerateKEK(), GenerateKEK()
		v := open(t, d, a)
		box, err := v.Seal(somewhere, []byte("value"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = tryOpen(t.Context(), d, b)
		sealed, ok := errors.AsType[*SealedError](err)
		if !ok || sealed.Want != a.ID() || !strings.Contains(err.Error(), "sealed") {
			t.Fatalf("opened with another key: %v", err)
		}
		if _, err := tryOpen(t.Context(), d, b, c); err == nil {
			t.Fatal("opened with two other keys")
		}
		v2 := open(t, d, b, a) // rotates
		if got, err := v2.Open(somewhere, box); err != nil || string(got) != "value" {
			t.Fatalf("after rotation: %q, %v", got, err)
		}
		if _, err := tryOpen(t.Context(), d, a); err == nil {
			t.Fatal("the former key still opens the vault")
		}
		open(t, d, b)
	})
}

func TestRotateOnline(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a, b := GenerateKEK(), GenerateKEK()
		v := open(t, d, a)
		other := open(t, d, a) // another core
		box, err := v.Seal(somewhere, []byte("value"))
		if err != nil {
			t.Fatal(err)
		}
		key, err := v.Key(t.Context(), "recordings")
		if err != nil {
			t.Fatal(err)
		}
		n, err := v.Rotate(t.Context(), b)
		if err != nil || n != 2 {
			t.Fatalf("rotated %d keys, %v; want the root key and one named key", n, err)
		}
		if n, err := v.Rotate(t.Context(), b); err != nil || n != 0 {
			t.Errorf("a second rotation changed %d keys, %v", n, err)
		}
		if got, err := other.Open(somewhere, box); err != nil || string(got) != "value" {
			t.Errorf("the other core cannot open any more: %q, %v", got, err)
		}
		if _, err := other.Key(t.Context(), "new"); err == nil {
			t.Error("the other core made a key under the former key-encryption key")
		}
		if got, err := v.Key(t.Context(), "recordings"); err != nil || !bytes.Equal(got, key) {
			t.Errorf("named key changed by rotation (%v)", err)
		}
		v3 := open(t, d, b)
		if got, err := v3.Open(somewhere, box); err != nil || string(got) != "value" {
			t.Errorf("after restart: %q, %v", got, err)
		}
	})
}

func TestRenewRootRewrapsOnlyDataKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		v := open(t, d, GenerateKEK())
		other := open(t, d, v.kek)
		var ids []string
		for range rewrapBatch + 5 {
			ids = append(ids, create(t, v, NewSecret{Name: db.NewID("n"), Kind: Password, Value: []byte("s3cret")}).ID)
		}
		before := boxes(t, d)
		n, err := v.RenewRoot(t.Context(), nil)
		if err != nil || n != len(ids) {
			t.Fatalf("renewed %d of %d, %v", n, len(ids), err)
		}
		if n, err := v.FinishRenew(t.Context(), nil); err != nil || n != 0 {
			t.Errorf("a second pass changed %d, %v", n, err)
		}
		for id, box := range boxes(t, d) {
			if bytes.Equal(box[:headSize], before[id][:headSize]) || !bytes.Equal(box[headSize:], before[id][headSize:]) {
				t.Fatalf("value %s: data key must be wrapped anew and the value untouched", id)
			}
		}
		// A core that does not know the new root key yet finds it.
		for _, id := range ids[:3] {
			got, err := other.Reveal(t.Context(), id, "test", "")
			if err != nil || string(got) != "s3cret" {
				t.Errorf("reveal after renewal: %q, %v", got, err)
			}
		}
	})
}

func boxes(t *testing.T, d *db.DB) map[string][]byte {
	t.Helper()
	rows, err := d.QueryContext(t.Context(), `select id, sealed from vault_values`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	out := map[string][]byte{}
	for rows.Next() {
		var id string
		var b []byte
		if err := rows.Scan(&id, &b); err != nil {
			t.Fatal(err)
		}
		out[id] = b
	}
	return out
}

func create(t *testing.T, v *Vault, n NewSecret) *Secret {
	t.Helper()
	var s *Secret
	err := v.db.Tx(t.Context(), func(tx *db.Tx) (err error) {
		s, err = v.Create(t.Context(), tx, n, audit.System)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKeysAndSigners(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		kek := GenerateKEK()
		a, b := open(t, d, kek), open(t, d, kek)
		ka, err := a.Key(t.Context(), "tokens")
		if err != nil {
			t.Fatal(err)
		}
		kb, err := b.Key(t.Context(), "tokens")
		if err != nil || !bytes.Equal(ka, kb) {
			t.Errorf("two cores have different keys of one name (%v)", err)
		}
		kc, err := a.Key(t.Context(), "other")
		if err != nil || bytes.Equal(ka, kc) {
			t.Errorf("two names have one key (%v)", err)
		}
		clear(ka)
		if again, err := a.Key(t.Context(), "tokens"); err != nil || !bytes.Equal(again, kb) {
			t.Errorf("a caller that clears its key clears the vault's (%v)", err)
		}
		sa, err := a.Signer(t.Context(), "audit")
		if err != nil {
			t.Fatal(err)
		}
		sb, err := b.Signer(t.Context(), "audit")
		if err != nil {
			t.Fatal(err)
		}
		id, sig, err := sa.Sign([]byte("head"))
		if err != nil || !sb.Verify(id, []byte("head"), sig) {
			t.Errorf("another core does not verify the signature (%v)", err)
		}
		if sb.Verify(id, []byte("heat"), sig) || sb.Verify("audit:0000", []byte("head"), sig) {
			t.Error("a wrong message or key ID verifies")
		}
		key, box, err := a.DataKey(somewhere)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := b.OpenDataKey(somewhere, box); err != nil || !bytes.Equal(got, key) {
			t.Errorf("data key: %v", err)
		}
	})
}

func TestNoPlaintextInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	d, err := db.Open(t.Context(), db.Config{Engine: db.SQLite, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	kek := GenerateKEK()
	v := open(t, d, kek)
	const canary = "canary-password-7f3a"
	s := create(t, v, NewSecret{Name: "root of db-1", Kind: Password, Value: []byte(canary)})
	if got, err := v.Reveal(t.Context(), s.ID, "ssh", "con_1"); err != nil || string(got) != canary {
		t.Fatalf("reveal: %q, %v", got, err)
	}
	named, err := v.Key(t.Context(), "tokens")
	if err != nil {
		t.Fatal(err)
	}
	_, root := v.currentRoot()
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) < 2 {
		t.Fatalf("want the database and its log, got %v (%v)", files, err)
	}
	check := func() {
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			for what, secret := range map[string][]byte{"value": []byte(canary), "kek": kek.key[:], "named key": named, "root key": root} {
				if bytes.Contains(b, secret) {
					t.Errorf("%s holds the %s in the clear", filepath.Base(f), what)
				}
			}
			if f == path && len(b) == 0 {
				t.Error("the database is empty: nothing was checked")
			}
		}
	}
	check()
	if err := d.Close(); err != nil { // checkpoints the log into the file
		t.Fatal(err)
	}
	check()
}

// memory makes a vault without a database, enough to seal and open.
func memory() *Vault {
	id := rootID{1, 2, 3}
	return &Vault{root: id, keys: map[string][]byte{rootName(id): bytes.Repeat([]byte{7}, keySize)}}
}

func FuzzParseSealed(f *testing.F) {
	v := memory()
	good, err := v.Seal(somewhere, []byte("value"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:headSize])
	f.Add([]byte{sealedVersion})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSealed(b)
		if err != nil {
			return
		}
		if len(s.wrap) != wrapSize || len(s.value) < nonceSize+tagSize {
			t.Fatalf("parsed parts of %d and %d bytes", len(s.wrap), len(s.value))
		}
		back := append(append([]byte{sealedVersion}, s.root[:]...), s.wrap...)
		if !bytes.Equal(append(back, s.value...), b) {
			t.Fatal("the parts do not make up the whole")
		}
		if s.root != v.root {
			return // would ask the database for the root key
		}
		// Each fuzzing process seals a seed of its own, always of this value.
		if got, err := v.Open(somewhere, b); err == nil && string(got) != "value" {
			t.Fatalf("opened something we did not seal: %q", got)
		}
	})
}
