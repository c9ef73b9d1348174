package target

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

func (r *room) keyStates(t testing.TB, id string) map[string]HostKeyState {
	t.Helper()
	ks, err := r.AllHostKeys(t.Context(), r.db, id)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]HostKeyState{}
	for _, k := range ks {
		m[k.Fingerprint] = k.State
	}
	return m
}

func TestHostKeyOnFirstUse(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		tg := r.target(t, Target{Name: "db", Kind: SSH, Host: "db"})
		first, second := NewHostKey(tg.ID, newKey(t)), NewHostKey(tg.ID, newKey(t))
		if err := r.CheckHostKey(t.Context(), tg, first); err != nil {
			t.Errorf("a check of the first key: %v", err)
		}
		if n := len(r.keyStates(t, tg.ID)); n != 0 {
			t.Errorf("a check filed %d keys", n)
		}
		for range 2 {
			if err := r.SawHostKey(t.Context(), tg.ID, first); err != nil {
				t.Fatalf("the first key: %v", err)
			}
		}
		for range 2 {
			err := r.SawHostKey(t.Context(), tg.ID, second)
			e, ok := errors.AsType[*HostKeyError](err)
			if !errors.Is(err, ErrHostKeyChanged) || !ok || !e.Known || !strings.Contains(e.Public, second.Fingerprint) {
				t.Fatalf("a changed key: %v", err)
			}
		}
		if err := r.SawHostKey(t.Context(), tg.ID, first); err != nil {
			t.Errorf("the old key after a changed one was seen: %v", err)
		}
		if got := r.keyStates(t, tg.ID); got[first.Fingerprint] != KeyAccepted || got[second.Fingerprint] != KeyPending {
			t.Errorf("states: %v", got)
		}

		if _, err := r.AcceptHostKey(r.ctx, tg.ID, "SHA256:none"); err == nil {
			t.Error("an unknown fingerprint was accepted")
		}
		k, err := r.AcceptHostKey(r.ctx, tg.ID, second.Fingerprint)
		if err != nil || k.DecidedBy != "admin" {
			t.Fatalf("accept: %+v, %v", k, err)
		}
		if err := r.SawHostKey(t.Context(), tg.ID, second); err != nil {
			t.Errorf("the accepted key: %v", err)
		}
		if err := r.SawHostKey(t.Context(), tg.ID, first); !errors.Is(err, ErrHostKeyChanged) {
			t.Errorf("the key that was replaced: %v", err)
		}
		if _, err := r.RejectHostKey(r.ctx, tg.ID, first.Fingerprint); err != nil {
			t.Fatal(err)
		}
		if err := r.SawHostKey(t.Context(), tg.ID, first); !errors.Is(err, ErrHostKeyChanged) {
			t.Errorf("a rejected key: %v", err)
		}
		want := "target.created hostkey.accepted hostkey.changed hostkey.removed hostkey.accepted hostkey.changed hostkey.rejected"
		if got := r.events(t, tg.ID); got != want {
			t.Errorf("audit:\n%s, want\n%s", got, want)
		}
		if err := r.ForgetHostKeys(r.ctx, tg.ID, ""); err != nil {
			t.Fatal(err)
		}
		if err := r.SawHostKey(t.Context(), tg.ID, first); err != nil {
			t.Errorf("first use after all keys were forgotten: %v", err)
		}
	})
}

func TestHostKeyPinned(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		tg := r.target(t, Target{Name: "db", Kind: SSH, Host: "db", HostKeyPolicy: HostKeyPinned})
		key := newKey(t)
		k := NewHostKey(tg.ID, key)
		err := r.SawHostKey(t.Context(), tg.ID, k)
		if e, ok := errors.AsType[*HostKeyError](err); !ok || e.Known {
			t.Fatalf("an unknown key on a pinned target: %v", err)
		}
		if err := r.CheckHostKey(t.Context(), tg, k); !errors.Is(err, ErrHostKeyChanged) {
			t.Errorf("check of a pending key: %v", err)
		}
		line := string(ssh.MarshalAuthorizedKey(key))
		if _, err := r.AddHostKey(r.ctx, tg.ID, strings.TrimSpace(line)+" root@db\n"); err != nil {
			t.Fatal(err)
		}
		if err := r.SawHostKey(t.Context(), tg.ID, k); err != nil {
			t.Errorf("the pinned key: %v", err)
		}
		// A host has one key of each algorithm: another algorithm replaces nothing.
		ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		other, err := ssh.NewPublicKey(&ec.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.AddHostKey(r.ctx, tg.ID, string(ssh.MarshalAuthorizedKey(other))); err != nil {
			t.Fatal(err)
		}
		ks, err := r.HostKeys(t.Context(), tg.ID)
		if err != nil || len(ks) != 2 {
			t.Errorf("accepted keys: %+v, %v", ks, err)
		}
		for _, bad := range []string{"", "ssh-ed25519 AAAA", line + line, "no-pty " + line, strings.Repeat("x", 20<<10)} {
			if _, err := r.AddHostKey(r.ctx, tg.ID, bad); err == nil {
				t.Errorf("accepted %.60q as a host key", bad)
			}
		}
		tcp := r.target(t, Target{Name: "pg", Kind: TCP, Host: "db", Port: 5432})
		_, err = r.AddHostKey(r.ctx, tcp.ID, line)
		wantProblem(t, err, "no_host_keys")
	})
}

func TestHostKeyCertificate(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		signer := func() ssh.Signer {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			s, err := ssh.NewSignerFromKey(key)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		ca, other := signer(), signer()
		tg := r.target(t, Target{Name: "db", Kind: SSH, Host: "db.example.org", HostKeyPolicy: HostKeyCA,
			HostKeyCA: string(ssh.MarshalAuthorizedKey(ca.PublicKey()))})
		now := r.c.Now()
		for _, c := range []struct {
			name   string
			by     ssh.Signer
			change func(*ssh.Certificate)
			good   bool
		}{
			{"good", ca, func(*ssh.Certificate) {}, true},
			{"other CA", other, func(*ssh.Certificate) {}, false},
			{"other host", ca, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"web.example.org"} }, false},
			{"user certificate", ca, func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, false},
			{"expired", ca, func(c *ssh.Certificate) { c.ValidBefore = uint64(now.Add(-time.Minute).Unix()) }, false},
			{"not yet valid", ca, func(c *ssh.Certificate) { c.ValidAfter = uint64(now.Add(time.Hour).Unix()) }, false},
			{"unknown critical option", ca, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"x": ""} }, false},
		} {
			cert := &ssh.Certificate{Key: newKey(t), CertType: ssh.HostCert, ValidPrincipals: []string{"db.example.org"},
				ValidAfter: uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix())}
			c.change(cert)
			if err := cert.SignCert(rand.Reader, c.by); err != nil {
				t.Fatal(err)
			}
			if err := r.SawHostKey(t.Context(), tg.ID, NewHostKey(tg.ID, cert)); (err == nil) != c.good {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if err := r.SawHostKey(t.Context(), tg.ID, NewHostKey(tg.ID, newKey(t))); !errors.Is(err, ErrHostKeyChanged) {
			t.Errorf("a plain key: %v", err)
		}
		if n := len(r.keyStates(t, tg.ID)); n != 0 {
			t.Errorf("%d keys filed for a target with a CA", n)
		}
	})
}

// A host with a new key each time cannot fill the table, and of many sessions
// at once exactly one key becomes the first.
func TestHostKeyBounds(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		tg := r.target(t, Target{Name: "db", Kind: SSH, Host: "db"})
		var wg sync.WaitGroup
		var mu sync.Mutex
		accepted := 0
		for range 40 {
			wg.Go(func() {
				err := r.SawHostKey(t.Context(), tg.ID, NewHostKey(tg.ID, newKey(t)))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					accepted++
				} else if !errors.Is(err, ErrHostKeyChanged) {
					t.Errorf("see host key: %v", err)
				}
			})
		}
		wg.Wait()
		if n := len(r.keyStates(t, tg.ID)); accepted != 1 || n != 1+maxUndecided {
			t.Errorf("%d keys accepted, %d on file", accepted, n)
		}
	})
}

func TestRegisterHost(t *testing.T) {
	each(t, func(t *testing.T, r *room) {
		line := func() string { return string(ssh.MarshalAuthorizedKey(newKey(t))) }
		h := Host{Site: "vpc-a", Name: "Web-1.Internal", Address: "10.0.0.5", Port: 22, MachineID: "m1", Token: "tok_1",
			HostKeys: []string{line()}, Accounts: []string{"root", "deploy", "root"}}
		do := func(h Host) (id string, changed bool) {
			t.Helper()
			if err := r.db.Tx(t.Context(), func(tx *db.Tx) (err error) { id, changed, err = r.RegisterHost(t.Context(), tx, h); return err }); err != nil {
				t.Fatalf("register: %v", err)
			}
			return id, changed
		}
		id, changed := do(h)
		if !changed {
			t.Error("the first registration changed nothing")
		}
		tg, err := r.Get(t.Context(), r.db, id)
		if err != nil {
			t.Fatal(err)
		}
		if tg.Name != "web-1.internal" || tg.FullAddress() != "vpc-a/10.0.0.5:22" || tg.HostKeyPolicy != HostKeyPinned || tg.Origin != "host tok_1" {
			t.Errorf("target: %+v", tg)
		}
		as, err := r.Accounts(t.Context(), r.db, id)
		if err != nil || len(as) != 2 || as[0].Auth != AuthCertificate {
			t.Errorf("accounts: %+v, %v", as, err)
		}
		before := r.auditCount(t)
		if again, changed := do(h); again != id || changed || r.auditCount(t) != before {
			t.Errorf("the same again: %s, changed %v, %d new events", again, changed, r.auditCount(t)-before)
		}

		// The machine moved, has a new account, and another key: the key waits.
		moved := h
		moved.Address, moved.Accounts, moved.HostKeys = "10.0.0.6", []string{"root", "backup"}, []string{line()}
		if again, changed := do(moved); again != id || !changed {
			t.Errorf("moved: %s, %v", again, changed)
		}
		if tg, _ = r.Get(t.Context(), r.db, id); tg.Host != "10.0.0.6" {
			t.Errorf("after the move: %+v", tg)
		}
		if as, _ = r.Accounts(t.Context(), r.db, id); len(as) != 3 {
			t.Errorf("accounts after the move: %+v", as)
		}
		if ks, _ := r.HostKeys(t.Context(), id); len(ks) != 1 || ks[0].Key != strings.TrimSpace(h.HostKeys[0]) {
			t.Errorf("accepted keys after the move: %+v", ks)
		}

		// Another machine of the same name, in this site and in another.
		twin := h
		twin.MachineID, twin.Address, twin.HostKeys = "m2", "10.0.0.7", []string{line()}
		id2, _ := do(twin)
		twin.Site = "vpc-b"
		id3, _ := do(twin)
		t2, _ := r.Get(t.Context(), r.db, id2)
		t3, _ := r.Get(t.Context(), r.db, id3)
		if id2 == id || id3 == id2 || t2.Name != "web-1.internal.vpc-a" || t3.Name != "web-1.internal.vpc-b" {
			t.Errorf("twins: %v %v", t2, t3)
		}

		// A target made by hand for the address is taken over.
		byHand := r.target(t, Target{Name: "by-hand", Kind: SSH, Site: "vpc-a", Host: "10.0.0.9"}, "root")
		hand := h
		hand.MachineID, hand.Address, hand.HostKeys = "m9", "10.0.0.9", []string{line()}
		if got, _ := do(hand); got != byHand.ID {
			t.Errorf("target by hand was not taken over: %s", got)
		}
		if ks, _ := r.HostKeys(t.Context(), byHand.ID); len(ks) != 1 {
			t.Errorf("keys of the target by hand: %+v", ks)
		}

		for name, change := range map[string]func(*Host){
			"no machine": func(h *Host) { h.MachineID = "" }, "bad address": func(h *Host) { h.Address = "x y" },
			"no keys": func(h *Host) { h.HostKeys = nil }, "bad key": func(h *Host) { h.HostKeys = []string{"x"} },
			"two keys of an algorithm": func(h *Host) { h.HostKeys = []string{line(), line()} },
			"bad account":              func(h *Host) { h.Accounts = []string{"a b"} }, "bad site": func(h *Host) { h.Site = "A B" },
		} {
			bad := h
			bad.MachineID = "m-bad"
			change(&bad)
			err := r.db.Tx(t.Context(), func(tx *db.Tx) error { _, _, err := r.RegisterHost(t.Context(), tx, bad); return err })
			if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != "invalid" {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
