package server

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/sshca"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
)

// The bastion's host certificate is renewed long before it ends, and when
// another authority signs; its key stays the same.
func TestHostKeyIsRenewed(t *testing.T) {
	d := dbtest.SQLite(t)
	now := time.Now()
	clock := func() time.Time { return now }
	log, quiet := audit.New(d, clock), slog.New(slog.DiscardHandler)
	v, err := vault.New(t.Context(), vault.Config{DB: d, Audit: log, Log: quiet, KEK: vault.GenerateKEK()})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := sshca.New(t.Context(), sshca.Config{DB: d, Vault: v, Audit: log, Log: quiet, Now: clock, Bastion: "core:2222", Separator: func() string { return "%" }})
	if err != nil {
		t.Fatal(err)
	}
	h, err := newHostKey(t.Context(), ca, []string{"core", bastionAlias}, clock, quiet)
	if err != nil {
		t.Fatal(err)
	}
	plain := ssh.FingerprintSHA256(h.signers()[1].PublicKey())
	cert := func() *ssh.Certificate {
		t.Helper()
		if err := h.check(t.Context()); err != nil {
			t.Fatal(err)
		}
		c := h.signers()[0].PublicKey().(*ssh.Certificate)
		if got := ssh.FingerprintSHA256(c.Key); got != plain || len(c.ValidPrincipals) != 2 {
			t.Errorf("certificate of key %s for %q, want key %s", got, c.ValidPrincipals, plain)
		}
		return c
	}
	first := cert()
	now = now.Add(100 * 24 * time.Hour)
	if c := cert(); c.Serial != first.Serial {
		t.Error("renewed without need")
	}
	now = now.Add(100 * 24 * time.Hour)
	second := cert()
	if second.Serial == first.Serial || second.ValidBefore <= first.ValidBefore {
		t.Errorf("not renewed after half of its time: ends %d, before %d", second.ValidBefore, first.ValidBefore)
	}
	next, err := ca.Renew(t.Context(), sshca.ForHosts, access.DefaultGroup, audit.System)
	if err != nil {
		t.Fatal(err)
	}
	if c := cert(); c.Serial != second.Serial {
		t.Error("renewed for an authority that does not sign yet")
	}
	if _, err := ca.Activate(t.Context(), access.DefaultGroup, next.ID, audit.System); err != nil {
		t.Fatal(err)
	}
	if c := cert(); ssh.FingerprintSHA256(c.SignatureKey) != next.Fingerprint {
		t.Errorf("signed by %s, want the new authority %s", ssh.FingerprintSHA256(c.SignatureKey), next.Fingerprint)
	}
}

func TestLoginGone(t *testing.T) {
	if loginGone(errors.New("database is locked")) || !loginGone(user.ErrEnded) {
		t.Error("only a login that has ended is gone")
	}
}
