package sshca

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/vault"
	"caponier/e2e/harness"
)

type fixture struct {
	*CA
	db  *db.DB
	log *audit.Log
	now time.Time
}

func newFixture(t *testing.T, d *db.DB) *fixture {
	t.Helper()
	x := &fixture{db: d, log: audit.New(d, nil), now: time.Now().Truncate(time.Second)}
	quiet := slog.New(slog.DiscardHandler)
	v, err := vault.New(t.Context(), vault.Config{DB: d, Audit: x.log, Log: quiet, KEK: vault.GenerateKEK()})
	if err != nil {
		t.Fatal(err)
	}
	x.CA, err = New(t.Context(), Config{DB: d, Vault: v, Audit: x.log, Log: quiet, Now: func() time.Time { return x.now }, Bastion: "core:2222", Separator: func() string { return "%" }})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func publicKey(t *testing.T) ssh.PublicKey {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

var ada = &api.Principal{UserID: "usr_ada", UserName: "ada"}

func TestTargetCertificate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		signer, cert, err := x.TargetSigner(t.Context(), UserRequest{
			Group: access.DefaultGroup,
			KeyID: "ada@con_1", Principals: []string{"root"}, TTL: time.Minute, Source: "192.0.2.0/24", Connection: "con_1",
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := signer.PublicKey().Type(); got != ssh.CertAlgoED25519v01 {
			t.Errorf("signer presents %s", got)
		}
		lines, err := x.PublicKey(t.Context(), access.DefaultGroup)
		if err != nil {
			t.Fatal(err)
		}
		ca, _, _, _, err := ssh.ParseAuthorizedKey([]byte(lines))
		if err != nil {
			t.Fatal(err)
		}
		if string(ca.Marshal()) != string(cert.SignatureKey.Marshal()) {
			t.Error("the certificate is not signed by the published key")
		}
		check := func(at time.Time, name string) error {
			c := ssh.CertChecker{Clock: func() time.Time { return at }, SupportedCriticalOptions: []string{"source-address"}}
			return c.CheckCert(name, cert)
		}
		for _, c := range []struct {
			name string
			at   time.Time
			who  string
			ok   bool
		}{
			{"now", x.now, "root", true},
			{"a clock two minutes behind", x.now.Add(-119 * time.Second), "root", true},
			{"a clock three minutes behind", x.now.Add(-3 * time.Minute), "root", false},
			{"last second", x.now.Add(59 * time.Second), "root", true},
			{"after the end", x.now.Add(61 * time.Second), "root", false},
			{"another account", x.now, "oracle", false},
		} {
			if err := check(c.at, c.who); (err == nil) != c.ok {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		events, err := x.log.After(t.Context(), d, audit.Filter{Type: "ca.issued"}, 0, 10)
		if err != nil || len(events) != 1 || events[0].Connection != "con_1" || events[0].Object.ID != fmt.Sprint(cert.Serial) {
			t.Errorf("audit: %+v, %v", events, err)
		}
		if err := x.VerifyClient(t.Context(), cert, "root", "192.0.2.1"); !errors.Is(err, ErrCertificate) {
			t.Errorf("a target's certificate logs in at the bastion: %v", err)
		}
		for _, bad := range []UserRequest{
			{Group: access.DefaultGroup, KeyID: "a", Principals: nil}, {Group: access.DefaultGroup, KeyID: "", Principals: []string{"root"}},
			{Group: access.DefaultGroup, KeyID: "a", Principals: []string{"root"}, TTL: MaxTargetTTL + 1}, {Group: access.DefaultGroup, KeyID: "a", Principals: []string{"root"}, TTL: -1},
			{KeyID: "a", Principals: []string{"root"}},
		} {
			if _, _, err := x.TargetSigner(t.Context(), bad); err == nil {
				t.Errorf("signed %+v", bad)
			}
		}
	})
}

func TestClientCertificates(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		sign := func() *ssh.Certificate {
			t.Helper()
			c, err := x.SignClient(t.Context(), ada, publicKey(t), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		cert := sign()
		verify := func(c *ssh.Certificate, name string) error {
			return x.VerifyClient(t.Context(), c, name, "192.0.2.1")
		}
		if err := verify(cert, "ada"); err != nil {
			t.Fatal(err)
		}
		if err := verify(cert, "bob"); !errors.Is(err, ErrCertificate) {
			t.Errorf("stands for another user: %v", err)
		}
		if err := verify(cert, ""); !errors.Is(err, ErrCertificate) {
			t.Errorf("stands for nobody: %v", err)
		}
		x.now = x.now.Add(2 * time.Hour)
		if err := verify(cert, "ada"); !errors.Is(err, ErrCertificate) {
			t.Errorf("good after its end: %v", err)
		}
		x.now = x.now.Add(-2 * time.Hour)

		edited := *cert
		edited.ValidPrincipals = []string{"ada", "bob"}
		if err := verify(&edited, "bob"); !errors.Is(err, ErrCertificate) {
			t.Errorf("an edited certificate is good: %v", err)
		}
		foreign := *cert
		_, other, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		otherCA, err := ssh.NewSignerFromKey(other)
		if err != nil {
			t.Fatal(err)
		}
		if err := foreign.SignCert(rand.Reader, otherCA); err != nil {
			t.Fatal(err)
		}
		if err := verify(&foreign, "ada"); !errors.Is(err, ErrCertificate) {
			t.Errorf("another authority's certificate is good: %v", err)
		}

		// Somebody who has the authority's key but not the database.
		k, err := active(t.Context(), d, ForClients, access.DefaultGroup)
		if err != nil {
			t.Fatal(err)
		}
		stolen, err := x.signer(k)
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(*ssh.Certificate){
			"serial not on file": func(c *ssh.Certificate) { c.Serial++ },
			"no principals":      func(c *ssh.Certificate) { c.ValidPrincipals = nil },
			"host certificate":   func(c *ssh.Certificate) { c.CertType = ssh.HostCert },
			"unknown option":     func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} },
			"other source":       func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "198.51.100.0/24"} },
		} {
			forged := *cert
			change(&forged)
			if err := forged.SignCert(rand.Reader, stolen); err != nil {
				t.Fatal(err)
			}
			if err := verify(&forged, "ada"); !errors.Is(err, ErrCertificate) {
				t.Errorf("%s: %v", name, err)
			}
		}

		if err := x.Revoke(t.Context(), cert.Serial, audit.System); err != nil {
			t.Fatal(err)
		}
		if err := verify(cert, "ada"); !errors.Is(err, ErrCertificate) {
			t.Errorf("a revoked certificate is good: %v", err)
		}
		if err := x.Revoke(t.Context(), 1<<63, audit.System); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("revoking what is not on file: %v", err)
		}
		if _, err := x.SignClient(t.Context(), ada, publicKey(t), MaxClientTTL+time.Second); err == nil {
			t.Error("signed for more than 12 hours")
		}
	})
}

func TestGenerations(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		ctx := t.Context()
		old, err := x.SignClient(ctx, ada, publicKey(t), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		next, err := x.Renew(ctx, ForClients, access.DefaultGroup, audit.System)
		if err != nil || next.Generation != 2 || next.State != Next {
			t.Fatalf("renew: %+v, %v", next, err)
		}
		if _, err := x.Renew(ctx, ForClients, access.DefaultGroup, audit.System); err == nil {
			t.Error("two next keys at once")
		}
		lines, err := x.PublicKeys(ctx, ForClients, access.DefaultGroup)
		if err != nil || strings.Count(lines, "\n") != 2 || !strings.HasSuffix(strings.Split(lines, "\n")[0], "-ca-1") {
			t.Errorf("published: %q, %v", lines, err)
		}
		still, err := x.SignClient(ctx, ada, publicKey(t), time.Hour)
		if err != nil || string(still.SignatureKey.Marshal()) == string(next.public.Marshal()) {
			t.Errorf("a next key signs already (%v)", err)
		}
		if _, err := x.Activate(ctx, access.DefaultGroup, next.ID, audit.System); err != nil {
			t.Fatal(err)
		}
		fresh, err := x.SignClient(ctx, ada, publicKey(t), time.Hour)
		if err != nil || string(fresh.SignatureKey.Marshal()) != string(next.public.Marshal()) {
			t.Errorf("the activated key does not sign (%v)", err)
		}
		for _, c := range []*ssh.Certificate{old, fresh} {
			if err := x.VerifyClient(ctx, c, "ada", "192.0.2.1"); err != nil {
				t.Errorf("after activation: %v", err)
			}
		}
		keys, err := readKeys(ctx, d, ForClients, access.DefaultGroup)
		if err != nil || len(keys) != 2 || keys[1].State != Retired {
			t.Fatalf("keys: %+v, %v", keys, err)
		}
		if _, err := x.RevokeKey(ctx, access.DefaultGroup, next.ID, audit.System); err == nil {
			t.Error("revoked the key that signs")
		}
		if _, err := x.RevokeKey(ctx, access.DefaultGroup, keys[1].ID, audit.System); err != nil {
			t.Fatal(err)
		}
		if err := x.VerifyClient(ctx, old, "ada", "192.0.2.1"); !errors.Is(err, ErrCertificate) {
			t.Errorf("a revoked key's certificate is good: %v", err)
		}
		if err := x.VerifyClient(ctx, fresh, "ada", "192.0.2.1"); err != nil {
			t.Error(err)
		}
		again, err := New(ctx, x.c)
		if err != nil {
			t.Fatal(err)
		}
		if keys, err := again.Keys(ctx, access.DefaultGroup); err != nil || len(keys) != 4 {
			t.Errorf("opening again changes the keys: %d, %v", len(keys), err)
		}
	})
}

func TestHostSigner(t *testing.T) {
	x := newFixture(t, dbtest.SQLite(t))
	certified, plain, err := x.HostSigner(t.Context(), []string{"core.example", "192.0.2.9"})
	if err != nil {
		t.Fatal(err)
	}
	_, again, err := x.HostSigner(t.Context(), []string{"core.example"})
	if err != nil || ssh.FingerprintSHA256(again.PublicKey()) != ssh.FingerprintSHA256(plain.PublicKey()) {
		t.Errorf("the host key changes (%v)", err)
	}
	hostCA, err := x.PublicKeys(t.Context(), ForHosts, access.DefaultGroup)
	if err != nil {
		t.Fatal(err)
	}
	ca, _, _, _, err := ssh.ParseAuthorizedKey([]byte(hostCA))
	if err != nil {
		t.Fatal(err)
	}
	checker := ssh.CertChecker{IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return string(k.Marshal()) == string(ca.Marshal()) }}
	if err := checker.CheckHostKey("core.example:2222", nil, certified.PublicKey()); err != nil {
		t.Error(err)
	}
	if err := checker.CheckHostKey("other.example:2222", nil, certified.PublicKey()); err == nil {
		t.Error("the certificate stands for another host")
	}
}

// TestOpenSSHAgrees lets ssh-keygen judge certificate and revocation list.
func TestOpenSSHAgrees(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		harness.Lacks(t, "ssh-keygen is not installed")
	}
	x := newFixture(t, dbtest.SQLite(t))
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	run := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), keygen, args...).CombinedOutput()
		return string(out), err
	}
	var files []string
	var certs []*ssh.Certificate
	for i := range 3 {
		c, err := x.SignClient(t.Context(), ada, publicKey(t), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		certs = append(certs, c)
		files = append(files, write(fmt.Sprintf("c%d-cert.pub", i), ssh.MarshalAuthorizedKey(c)))
	}
	out, err := run("-L", "-f", files[0])
	if err != nil || !strings.Contains(out, "user certificate") || !strings.Contains(out, "ada") || !strings.Contains(out, fmt.Sprint(certs[0].Serial)) {
		t.Errorf("ssh-keygen -L: %v\n%s", err, out)
	}
	krl := func() string {
		t.Helper()
		b, err := x.KRL(t.Context(), access.DefaultGroup)
		if err != nil {
			t.Fatal(err)
		}
		return write("krl", b)
	}
	if out, err := run("-Q", "-f", krl(), files[0], files[1], files[2]); err != nil {
		t.Errorf("an empty list revokes: %v\n%s", err, out)
	}
	for _, i := range []int{0, 2} {
		if err := x.Revoke(t.Context(), certs[i].Serial, audit.System); err != nil {
			t.Fatal(err)
		}
	}
	list := krl()
	for i, f := range files {
		out, err := run("-Q", "-f", list, f)
		if revoked := err != nil; revoked != (i != 1) {
			t.Errorf("certificate %d: %v\n%s", i, err, out)
		}
	}
	// Revoking the key itself revokes all its certificates.
	next, err := x.Renew(t.Context(), ForClients, access.DefaultGroup, audit.System)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Activate(t.Context(), access.DefaultGroup, next.ID, audit.System); err != nil {
		t.Fatal(err)
	}
	keys, err := readKeys(t.Context(), x.db, ForClients, access.DefaultGroup)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.RevokeKey(t.Context(), access.DefaultGroup, keys[1].ID, audit.System); err != nil {
		t.Fatal(err)
	}
	if out, err := run("-Q", "-f", krl(), files[1]); err == nil {
		t.Errorf("a revoked authority's certificate passes:\n%s", out)
	}
}

func TestPrivateKeysAreSealed(t *testing.T) {
	x := newFixture(t, dbtest.SQLite(t))
	keys, err := x.Keys(context.Background(), access.DefaultGroup)
	if err != nil || len(keys) != 3 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	// A key moved to another row does not open there.
	moved := keys[0]
	moved.ID = keys[1].ID
	if _, err := x.signer(&moved); !errors.Is(err, vault.ErrNotOpened) {
		t.Errorf("a moved key opens: %v", err)
	}
	// A public key swapped on file is noticed.
	swapped := keys[0]
	swapped.public = keys[1].public
	if _, err := x.signer(&swapped); err == nil {
		t.Error("a swapped public key is not noticed")
	}
}
