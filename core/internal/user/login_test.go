package user

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/settings"
)

func TestLoginPassword(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		p := r.must(r.login("Jane", goodPassword, "", netip.MustParseAddr("::ffff:192.0.2.10")))
		if p.UserID != u.ID || p.UserName != "jane" || p.MFA || strings.Join(p.Methods, " ") != "password" || p.Source != office || len(p.Permissions) != 0 {
			t.Errorf("principal = %+v", p)
		}
		if err := r.StillValid(t.Context(), p); err != nil {
			t.Errorf("StillValid: %v", err)
		}
		got, err := r.Get(t.Context(), u.ID)
		if err != nil || !got.LastLogin.Equal(r.clock.Now()) {
			t.Errorf("last login %v, %v; want %v", got.LastLogin, err, r.clock.Now())
		}
		if n := r.countEvents(audit.LoginSucceeded); n != 1 {
			t.Errorf("%d login events, want 1", n)
		}
	})
}

// TestRefusalsLookAlike holds every way to be refused against each other: the
// caller learns nothing, the audit log has the reason.
func TestRefusalsLookAlike(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		yes := true
		for _, name := range []string{"jane", "gone", "held", "wrong"} {
			r.person(name)
		}
		if _, err := r.Create(t.Context(), tester, Draft{Name: "keyonly"}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.CreateClient(t.Context(), tester, "robot", ""); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]Change{"gone": {Disabled: &yes}, "held": {Locked: &yes}} {
			u, err := r.ByName(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Update(t.Context(), tester, u.ID, any64, c); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct{ name, password, reason string }{
			{"nobody", goodPassword, "unknown_user"},
			{"", goodPassword, "unknown_user"},
			{"jane' or 1=1 --", goodPassword, "unknown_user"},
			{strings.Repeat("x", 5000), goodPassword, "unknown_user"},
			{"wrong", "not the right password", "bad_password"},
			{"wrong", strings.Repeat("x", maxPassword+1), "bad_password"},
			{"keyonly", "any password at all", "bad_password"},
			{"robot", "any password at all", "not_a_person"},
			{"gone", goodPassword, "disabled"},
			{"held", goodPassword, "locked"},
			{"jane", "cap_aaaaaaaaaaaaaaaaaaaaaaaaaa", "bad_token"},
			{"jane", "cps_aaaaaaaaaaaaaaaaaaaaaaaaaa", "bad_session"},
		} {
			p, err := r.login(c.name, c.password, "", office)
			if err != ErrBadCredentials || p != nil {
				t.Errorf("login %.20q: %v, %v; want ErrBadCredentials itself", c.name, p, err)
			}
			list := r.events()
			last := list[len(list)-1]
			if last.Type != audit.LoginFailed || last.Outcome != audit.Denied || last.Fields["reason"] != c.reason {
				t.Errorf("login %.20q: audited %s %v, want reason %s", c.name, last.Type, last.Fields, c.reason)
			}
			if c.reason == "unknown_user" && (last.Object.Name != "" || last.Actor.Name != "") {
				t.Errorf("login %.20q: the typed name is in the audit log: %+v", c.name, last)
			}
		}
	})
}

// TestUnknownUsersCostTheSameWork compares the number of hashes, which is
// what the time is made of, not the time.
func TestUnknownUsersCostTheSameWork(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	r.person("jane")
	// With every slot taken, a login that hashes waits, one that does not answers.
	for range cap(r.hasher.slots) {
		r.hasher.slots <- struct{}{}
	}
	for name, want := range map[string]error{"jane": nil, "nobody": ErrBadCredentials, "?": ErrBadCredentials} {
		answer := make(chan error, 1)
		go func() {
			_, err := r.Login(t.Context(), Credentials{Name: name, Password: goodPassword, Source: office})
			answer <- err
		}()
		select {
		case err := <-answer:
			t.Errorf("login %q with all hash slots taken: %v, want to have waited", name, err)
			continue
		case <-time.After(100 * time.Millisecond):
		}
		<-r.hasher.slots
		if err := <-answer; err != want {
			t.Errorf("login %q with a hash slot: %v, want %v", name, err, want)
		}
		r.hasher.slots <- struct{}{}
	}
}

func TestLoginLimit(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		r.person("jane")
		r.person("bob")
		for i := range 5 {
			if _, err := r.login("jane", "wrong password", "", office); err != ErrBadCredentials {
				t.Fatalf("attempt %d: %v", i+1, err)
			}
		}
		for range 20 {
			_, err := r.login("jane", goodPassword, "", office)
			limit, ok := errors.AsType[*LimitError](err)
			if !ok || limit.RetryAfter != time.Minute {
				t.Fatalf("6th attempt: %v, want a limit of 1m", err)
			}
		}
		if n := r.countEvents(audit.LoginLimited); n != 1 {
			t.Errorf("20 refusals made %d events, want 1", n)
		}
		r.must(r.login("bob", goodPassword, "", office))
		r.must(r.login("jane", goodPassword, "", home))
		r.clock.Add(59 * time.Second)
		if _, err := r.login("jane", goodPassword, "", office); err == nil {
			t.Error("let in a second early")
		}
		r.clock.Add(time.Second)
		r.must(r.login("jane", goodPassword, "", office))
		// The success used nothing up, one failure is what is left.
		r.must(r.login("jane", goodPassword, "", office))
		if _, err := r.login("jane", "wrong password", "", office); err != ErrBadCredentials {
			t.Errorf("7th attempt: %v", err)
		}
		if _, err := r.login("jane", goodPassword, "", office); err == ErrBadCredentials || err == nil {
			t.Errorf("8th attempt: %v, want a limit", err)
		}
	})
}

func TestLoginPausesAfterManyFailuresFromAnywhere(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		before := r.must(r.login("jane", goodPassword, "", home))
		_, err := r.settings.Change(t.Context(), tester, 0, raw(settings.LoginLockAfter.Name(), `3`))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			from := netip.AddrFrom4([4]byte{10, 0, byte(i), 1})
			if _, err := r.login("jane", "wrong password", "", from); err != ErrBadCredentials {
				t.Fatal(err)
			}
		}
		if _, err := r.login("jane", goodPassword, "", office); err != ErrBadCredentials {
			t.Errorf("login while paused: %v", err)
		}
		if err := r.StillValid(t.Context(), before); err != nil {
			t.Errorf("the pause ended what was open: %v", err)
		}
		if n := r.countEvents(audit.LoginPaused); n != 1 {
			t.Errorf("%d pause events, want 1", n)
		}
		if _, err := r.Update(t.Context(), tester, u.ID, any64, Change{Unpause: true}); err != nil {
			t.Fatal(err)
		}
		r.must(r.login("jane", goodPassword, "", office))
		for i := range 3 {
			r.login("jane", "wrong password", "", netip.AddrFrom4([4]byte{10, 0, byte(i), 2}))
		}
		r.clock.Add(15 * time.Minute)
		r.must(r.login("jane", goodPassword, "", office))
	})
}

// TestManyRightLoginsAtOnce is what a batch job does: the limit on failures
// must not refuse any of them.
func TestManyRightLoginsAtOnce(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	u := r.person("jane")
	_, secret, err := r.CreateToken(t.Context(), r.must(r.login("jane", goodPassword, "", office)), "batch", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make(chan error, 200)
	for range 200 {
		wg.Go(func() {
			p, err := r.login("jane", secret, "", office)
			if err == nil && p.UserID != u.ID {
				err = errors.New("somebody else")
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Fatalf("one of 200 logins at once: %v", err)
		}
	}
}

func TestAllowList(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	r.person("jane")
	if _, err := r.settings.Change(t.Context(), tester, 0, raw(settings.LoginAllow.Name(), `["192.0.2.0/24"]`)); err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if _, err := r.login("jane", "wrong password", "", office); err != ErrBadCredentials {
			t.Fatalf("from the allow list: %v", err)
		}
	}
}

func TestKeyLogin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		jane, bob := r.person("jane"), r.person("bob")
		key := newSSHKey(t).PublicKey()
		k, err := r.AddKey(t.Context(), tester, jane.ID, string(ssh.MarshalAuthorizedKey(key)), "laptop")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.AddKey(t.Context(), tester, jane.ID, k.PublicKey, ""); problem(t, err).Code != "key_exists" {
			t.Errorf("same key twice: %v", err)
		}
		try := func(name string, key ssh.PublicKey) error {
			_, err := r.Login(t.Context(), Credentials{Name: name, Key: key, Source: office, Via: "bastion"})
			return err
		}
		if err := try("bob", key); err != ErrBadCredentials {
			t.Errorf("jane's key for bob: %v", err)
		}
		if err := try("jane", newSSHKey(t).PublicKey()); err != ErrBadCredentials {
			t.Errorf("another key: %v", err)
		}
		if err := try("nobody", key); err != ErrBadCredentials {
			t.Errorf("key of nobody: %v", err)
		}
		for name, want := range map[string]bool{"jane": true, "bob": false, "nobody": false} {
			if got, err := r.AcceptsKey(t.Context(), name, key, office); got != want || err != nil {
				t.Errorf("AcceptsKey(%s) = %v, %v", name, got, err)
			}
		}
		p := r.must(r.Login(t.Context(), Credentials{Name: "jane", Key: key, Source: office, Via: "bastion"}))
		if err := r.StillValid(t.Context(), p); err != nil {
			t.Error(err)
		}
		if err := r.RemoveKey(t.Context(), tester, bob.ID, k.ID); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("bob removes jane's key: %v", err)
		}
		if err := r.RemoveKey(t.Context(), tester, jane.ID, k.ID); err != nil {
			t.Fatal(err)
		}
		if err := r.StillValid(t.Context(), p); err == nil {
			t.Error("a login by a removed key is still good")
		}
	})
}

func TestWeakAndOddKeysAreRefused(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	u := r.person("jane")
	good := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(newSSHKey(t).PublicKey())))
	for name, text := range map[string]string{
		"empty":        "",
		"not a key":    "hello",
		"options":      `command="id" ` + good,
		"two keys":     good + "\n" + good,
		"private key":  "-----BEGIN OPENSSH PRIVATE KEY-----\n",
		"dsa":          "ssh-dss AAAAB3NzaC1kc3MAAACBAP0=",
		"1024 bit rsa": rsa1024,
		"too long":     good + strings.Repeat(" ", maxKeyText),
	} {
		if _, err := r.AddKey(t.Context(), tester, u.ID, text, ""); problem(t, err).Status != 422 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// authority is a certificate authority for people.
type authority struct {
	signer ssh.Signer
	now    func() time.Time
}

func (a authority) VerifyClient(_ context.Context, c *ssh.Certificate, user, _ string) error {
	if string(c.SignatureKey.Marshal()) != string(a.signer.PublicKey().Marshal()) {
		return errors.New("foreign authority")
	}
	checker := ssh.CertChecker{Clock: a.now}
	return checker.CheckCert(user, c)
}

func TestCertificateLogin(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		r.person("jane")
		r.person("bob")
		ours, foreign := newSSHKey(t), newSSHKey(t)
		certificate := func(by ssh.Signer, principals ...string) *ssh.Certificate {
			c := &ssh.Certificate{Key: newSSHKey(t).PublicKey(), CertType: ssh.UserCert, ValidPrincipals: principals,
				ValidAfter: uint64(r.clock.Now().Add(-time.Minute).Unix()), ValidBefore: uint64(r.clock.Now().Add(time.Hour).Unix())}
			if err := c.SignCert(strictRand{}, by); err != nil {
				t.Fatal(err)
			}
			return c
		}
		try := func(c *ssh.Certificate) error {
			_, err := r.Login(t.Context(), Credentials{Name: "jane", Key: c, Source: office, Via: "bastion"})
			return err
		}
		if err := try(certificate(ours, "jane")); err != ErrBadCredentials {
			t.Errorf("certificate without an authority: %v", err)
		}
		r.Service.authority = authority{ours, r.clock.Now}
		if err := try(certificate(ours, "jane")); err != nil {
			t.Errorf("certificate of ours: %v", err)
		}
		if err := try(certificate(ours, "bob")); err != ErrBadCredentials {
			t.Errorf("certificate for bob: %v", err)
		}
		if err := try(certificate(foreign, "jane")); err != ErrBadCredentials {
			t.Errorf("foreign certificate: %v", err)
		}
		old := certificate(ours, "jane")
		r.clock.Add(2 * time.Hour)
		if err := try(old); err != ErrBadCredentials {
			t.Errorf("expired certificate: %v", err)
		}
	})
}

func TestHashConcurrencyIsBounded(t *testing.T) {
	h := newHasher(2)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := h.hash(t.Context(), goodPassword); err != nil {
				t.Error(err)
			}
			if len(h.slots) > 2 {
				t.Errorf("%d hashes at once", len(h.slots))
			}
		})
	}
	wg.Wait()
	if len(h.slots) != 0 {
		t.Errorf("%d slots not given back", len(h.slots))
	}
	h.slots <- struct{}{}
	h.slots <- struct{}{}
	if _, err := h.hash(cancelled(t), goodPassword); !errors.Is(err, context.Canceled) {
		t.Errorf("hash without a slot: %v", err)
	}
}

func TestOldHashParametersAreRenewed(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	u := r.person("jane")
	old := oldHash(goodPassword)
	if _, err := r.d.ExecContext(t.Context(), `update users set password_hash = $1 where id = $2`, old, u.ID); err != nil {
		t.Fatal(err)
	}
	r.must(r.login("jane", goodPassword, "", office))
	rec, err := userByID(t.Context(), r.d, u.ID)
	if err != nil {
		t.Fatal(err)
	}
	if h, err := parseHash(rec.passwordHash); err != nil || !h.current(r.hasher.memory) {
		t.Errorf("hash after login: %s, %v", rec.passwordHash, err)
	}
	r.must(r.login("jane", goodPassword, "", office))
}

func FuzzParseHash(f *testing.F) {
	f.Add(oldHash("x"))
	f.Add("$argon2id$v=19$m=47104,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")
	f.Add("$argon2id$v=19$m=4294967295,t=1,p=1$AAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHash(s)
		if err != nil {
			return
		}
		if h.memory > 1<<20 || h.time > 16 || h.threads == 0 {
			t.Errorf("%q parsed to costs out of bounds: %+v", s, h)
		}
		if again, err := parseHash(h.String()); err != nil || again.String() != h.String() {
			t.Errorf("%q does not round trip: %v", s, err)
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(rsa1024)
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ jane@laptop")
	f.Fuzz(func(t *testing.T, s string) {
		if key, _, err := parseKey(s); err == nil && checkKeyStrength(key) != nil {
			t.Errorf("%q: weak key accepted", s)
		}
	})
}

func FuzzParseLoginID(f *testing.F) {
	f.Add(loginID{epoch: 3, key: "key_abc"}.String())
	f.Add("lgn_1_0_x")
	f.Add("lgn_0__0")
	f.Fuzz(func(t *testing.T, s string) {
		l, ok := parseLoginID(s)
		if !ok {
			return
		}
		if again, ok := parseLoginID(l.String()); !ok || again != l {
			t.Errorf("%q = %+v does not round trip: %+v", s, l, again)
		}
	})
}

// TestHashParameters holds a fresh hash against what the decision record says.
func TestHashParameters(t *testing.T) {
	h := newHasher(1)
	text, err := h.hash(t.Context(), goodPassword)
	if err != nil || !strings.HasPrefix(text, "$argon2id$v=19$m=47104,t=1,p=1$") {
		t.Fatalf("hash %q, %v", text, err)
	}
	if again, err := h.hash(t.Context(), goodPassword); err != nil || again == text {
		t.Errorf("the same password twice gives the same hash: %v", err)
	}
	for password, want := range map[string]bool{goodPassword: true, goodPassword + " ": false, "": false} {
		if ok, renew, err := h.verify(t.Context(), text, password); ok != want || renew || err != nil {
			t.Errorf("verify %q = %v, %v, %v; want %v", password, ok, renew, err, want)
		}
	}
	for _, stored := range []string{"", "x", "$argon2id$v=19$m=47104,t=1,p=1$AAAA$AAAA"} {
		if ok, _, err := h.verify(t.Context(), stored, ""); ok || err != nil {
			t.Errorf("verify against %q = %v, %v", stored, ok, err)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	h := newHasher(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.hash(b.Context(), goodPassword); err != nil {
			b.Fatal(err)
		}
	}
}
