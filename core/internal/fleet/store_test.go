package fleet

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

// offline makes a fleet without sockets, with a clock that the test moves.
func offline(t *testing.T, d *db.DB, now *time.Time) *Fleet {
	t.Helper()
	f, err := New(t.Context(), Config{DB: d, Audit: audit.New(d, time.Now), Vault: newVault(t, d), CoreID: "cor_a",
		Now: func() time.Time { return *now }})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// csr makes a key and a request for it.
func csr(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func request(t *testing.T, tokenText string) wire.EnrolRequest {
	t.Helper()
	tok, err := wire.ParseToken(tokenText)
	if err != nil {
		t.Fatal(err)
	}
	return wire.EnrolRequest{Version: wire.Version, TokenID: tok.ID, Secret: tok.Secret, Kind: wire.Extender, Name: "ext", CSR: csr(t), Host: "h"}
}

func TestEnrol(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		now := time.Now()
		f := offline(t, d, &now)
		id, text, err := f.CreateToken(t.Context(), audit.System, TokenSpec{Kind: "extender", Site: "vpc-a", MaxUses: 2, TTL: time.Hour,
			Labels: map[string]string{"zone": "1"}, Rules: wire.DialRules{Ports: []string{"22"}}})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprint(mustToken(t, f, id)), strings.Split(text, ".")[2]) {
			t.Error("the token's secret is stored")
		}
		first := request(t, text)
		got, err := f.enrol(t.Context(), first, "192.0.2.1:1")
		if err != nil {
			t.Fatal(err)
		}
		e, err := getEdge(t.Context(), d, got.NodeID)
		if err != nil {
			t.Fatal(err)
		}
		if e.Name != "ext" || e.Site != "vpc-a" || e.Labels["zone"] != "1" || len(e.Rules.Ports) != 1 || e.Kind != wire.Extender || e.CertNotAfter.IsZero() {
			t.Errorf("edge = %+v", e)
		}
		leaf, err := x509.ParseCertificate(got.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		for _, c := range f.Roots() {
			pool.AddCert(c)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("certificate: %v", err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
			t.Error("a node's certificate may act as a core's")
		}
		if kind, id, err := peerID(leaf); kind != wire.Extender || id != got.NodeID || err != nil {
			t.Errorf("peerID = %s, %s, %v", kind, id, err)
		}
		// The answer was lost: the same key asks again and costs no use.
		again, err := f.enrol(t.Context(), first, "192.0.2.1:1")
		if err != nil || again.NodeID != got.NodeID {
			t.Errorf("same key again = %+v, %v", again, err)
		}
		// Another node of the same name gets a name of its own and the second use.
		second, err := f.enrol(t.Context(), request(t, text), "192.0.2.1:1")
		if err != nil || second.Name != "ext-2" || second.NodeID == got.NodeID {
			t.Errorf("second = %+v, %v", second, err)
		}
		refused := func(name string, req wire.EnrolRequest, text string) {
			t.Helper()
			_, err := f.enrol(t.Context(), req, "192.0.2.1:1")
			we, ok := errors.AsType[*wire.Error](err)
			if !ok || we.Code != wire.CodeUnauthorized || !strings.Contains(we.Public, text) {
				t.Errorf("%s: %v, want a refusal with %q", name, err, text)
			}
		}
		refused("used up", request(t, text), "was used 2 of 2 times")
		wrong := request(t, text)
		wrong.Secret = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
		refused("wrong secret", wrong, "is not valid")
		unknown := request(t, text)
		unknown.TokenID = "tok_unknown"
		refused("unknown", unknown, "is not valid")
		kind := request(t, text)
		kind.Kind = wire.Router
		refused("kind", kind, "is for kind extender")
		_, other, err := f.CreateToken(t.Context(), audit.System, TokenSpec{Kind: "extender", Site: "vpc-a", TTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Hour)
		refused("expired", request(t, other), "expired at")
		id, other, err = f.CreateToken(t.Context(), audit.System, TokenSpec{Kind: "extender", Site: "vpc-a"})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.RevokeToken(t.Context(), audit.System, id); err != nil {
			t.Fatal(err)
		}
		refused("revoked", request(t, other), "was revoked")
		if err := f.Revoke(t.Context(), audit.System, got.NodeID, false); err != nil {
			t.Fatal(err)
		}
		refused("revoked key", first, "")
		for _, bad := range []TokenSpec{{Kind: "toaster"}, {Kind: "extender"}, {Kind: "extender", Site: "Bad Site"},
			{Kind: "extender", Site: "a", TTL: 1000 * 24 * time.Hour}, {Kind: "extender", Site: "a", Rules: wire.DialRules{Ports: []string{"x"}}},
			{Kind: "extender", Site: "a", Labels: map[string]string{"": "x"}}} {
			if _, _, err := f.CreateToken(t.Context(), audit.System, bad); err == nil {
				t.Errorf("token %+v was made", bad)
			}
		}
	})
}

func mustToken(t *testing.T, f *Fleet, id string) token {
	t.Helper()
	tok, err := getToken(t.Context(), f.c.DB, id)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestEnrolRepeat(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		now := time.Now()
		f := offline(t, d, &now)
		_, text, err := f.CreateToken(t.Context(), audit.System, TokenSpec{Kind: "extender", Site: "vpc-a", AllowRepeat: true})
		if err != nil {
			t.Fatal(err)
		}
		first, err := f.enrol(t.Context(), request(t, text), "")
		if err != nil {
			t.Fatal(err)
		}
		second, err := f.enrol(t.Context(), request(t, text), "")
		if err != nil {
			t.Fatal(err)
		}
		if second.NodeID != first.NodeID || second.Name != first.Name {
			t.Errorf("repeated = %s %s, want %s %s", second.NodeID, second.Name, first.NodeID, first.Name)
		}
		// The former certificate no longer speaks for the node, and is on the list.
		old, err := x509.ParseCertificate(first.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.checkPeer(t.Context(), old); err == nil {
			t.Error("the former identity is accepted")
		}
		fresh, err := x509.ParseCertificate(second.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.checkPeer(t.Context(), fresh); err != nil {
			t.Errorf("the new identity: %v", err)
		}
		if list := crl(t, f); len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(old.SerialNumber) != 0 {
			t.Errorf("revocation list = %v", list.RevokedCertificateEntries)
		}
	})
}

func crl(t *testing.T, f *Fleet) *x509.RevocationList {
	t.Helper()
	der, err := f.ca.revocationList(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(f.Roots()[0]); err != nil {
		t.Fatalf("revocation list: %v", err)
	}
	return list
}

func TestAuthority(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		now := time.Now()
		clock := func() time.Time { return now }
		v := newVault(t, d)
		open := func() *Fleet {
			f, err := New(t.Context(), Config{DB: d, Audit: audit.New(d, time.Now), Vault: v, CoreID: "cor_a", Now: clock})
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		f := open()
		if again := open(); again.ca.pin != f.ca.pin || !again.Roots()[0].Equal(f.Roots()[0]) {
			t.Error("opening again made another CA")
		}
		day := 24 * time.Hour
		if life := f.Roots()[0].NotAfter.Sub(now).Round(day); life != 1825*day {
			t.Errorf("CA life = %s", life)
		}
		if list := crl(t, f); list.NextUpdate.Sub(now).Round(time.Hour) != day {
			t.Errorf("revocation list is valid for %s", list.NextUpdate.Sub(now))
		}
		// Before node certificates would outlive the CA, its certificate is made
		// anew on the same key: pins hold, and both verify.
		now = now.Add((1825 - 729) * day)
		if changed, err := f.ca.maintain(t.Context()); err != nil || !changed {
			t.Fatalf("maintain = %v, %v", changed, err)
		}
		roots := f.Roots()
		if len(roots) != 2 || sha256.Sum256(roots[0].RawSubjectPublicKeyInfo) != f.ca.pin || !roots[0].NotAfter.After(roots[1].NotAfter) {
			t.Errorf("roots after renewal = %d", len(roots))
		}
		if changed, err := f.ca.maintain(t.Context()); err != nil || changed {
			t.Errorf("second maintain = %v, %v", changed, err)
		}
		leaf, _ := f.ca.identity()
		oldPool := x509.NewCertPool()
		oldPool.AddCert(roots[1])
		if _, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: oldPool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
			t.Errorf("core's certificate under the former root: %v", err)
		}
	})
}

// The CA key opens at its own place only.
func TestAuthorityKeyIsBound(t *testing.T) {
	d := dbtest.SQLite(t)
	v := newVault(t, d)
	c := Config{DB: d, Audit: audit.New(d, time.Now), Vault: v, CoreID: "cor_a"}
	if _, err := New(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ExecContext(t.Context(), `update edge_ca set id = 'eca_moved'`); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), c); err == nil {
		t.Error("a CA key moved to another row was opened")
	}
}

func TestSiteUses(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		now := time.Now()
		f := offline(t, d, &now)
		id, text, err := f.CreateToken(t.Context(), audit.System, TokenSpec{Kind: "extender", Site: "vpc-a", MaxUses: 5})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.enrol(t.Context(), request(t, text), ""); err != nil {
			t.Fatal(err)
		}
		got, err := f.SiteUses(t.Context(), d, "vpc-a")
		if err != nil || len(got) != 2 || got[0] != "edge ext" || got[1] != "enrolment token "+id {
			t.Errorf("SiteUses = %q, %v", got, err)
		}
		if got, err := f.SiteUses(t.Context(), d, "vpc-b"); err != nil || len(got) != 0 {
			t.Errorf("SiteUses of an unused site = %q, %v", got, err)
		}
	})
}
