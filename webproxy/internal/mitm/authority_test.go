package mitm

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"testing"
	"time"

	"caponier/shared/wire"
)

// certifier plays the part of core that certifies a webproxy.
type certifier struct {
	root *authority

	mu         sync.Mutex
	generation string   // guarded by mu
	names      []string // guarded by mu; what is permitted
	asked      int      // guarded by mu
	silent     bool     // guarded by mu
}

func (c *certifier) Ask(_ context.Context, in wire.WebAuthorityAsk) (wire.WebAuthority, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.silent {
		return wire.WebAuthority{}, errors.New("core is away")
	}
	csr, err := x509.ParseCertificateRequest(in.CSR)
	if err != nil {
		return wire.WebAuthority{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(int64(10 + c.asked)), Subject: pkix.Name{CommonName: "issuing"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign, PermittedDNSDomains: c.names, PermittedDNSDomainsCritical: len(c.names) > 0}
	der, err := x509.CreateCertificate(rand.Reader, t, c.root.cert, csr.PublicKey, c.root.key)
	return wire.WebAuthority{Root: c.root.cert.Raw, Certificate: der, Generation: c.generation}, err
}

func (c *certifier) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func startAuthority(t *testing.T) (*Authority, *certifier) {
	t.Helper()
	c := &certifier{root: newAuthority(t, "Caponier web CA"), generation: "one"}
	certified := make(chan struct{})
	once := sync.OnceFunc(func() { close(certified) })
	var a *Authority
	a, err := NewAuthority(AuthorityConfig{Ask: c.Ask, Log: slog.New(slog.DiscardHandler), Changed: func() {
		if a.Problem() == "" {
			once()
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	select {
	case <-certified: // and it was told
	case <-time.After(time.Minute):
		t.Fatal("no issuing certificate")
	}
	return a, c
}

// One certificate for each host, found again after that: of 1000 connections
// to 10 hosts, 990 find theirs; and no more are kept than may be.
func TestLeavesAreKept(t *testing.T) {
	a, _ := startAuthority(t)
	for i := range 1000 {
		if _, err := a.Leaf(t.Context(), fmt.Sprintf("h%d.test", i%10)); err != nil {
			t.Fatal(err)
		}
	}
	if minted, hits := a.Leaves(); minted != 10 || hits != 990 {
		t.Errorf("%d minted and %d found, want 10 and 990", minted, hits)
	}
	for i := range maxLeaves + 50 {
		if _, err := a.Leaf(t.Context(), fmt.Sprintf("many%d.test", i)); err != nil {
			t.Fatal(err)
		}
	}
	a.mu.Lock()
	n := len(a.leaves)
	a.mu.Unlock()
	if n != maxLeaves {
		t.Errorf("%d are kept, want %d", n, maxLeaves)
	}
}

// When core names another generation, no leaf of the old one is handed out any
// more; of names that are not permitted there is none at all.
func TestConstraints(t *testing.T) {
	a, core := startAuthority(t)
	old, err := a.Leaf(t.Context(), "bank.test")
	if err != nil {
		t.Fatal(err)
	}
	a.Want("one") // it has that
	a.Want("")    // core is older
	core.set(func() { core.generation, core.names = "two", []string{"app.test"} })
	a.Want("two")
	if _, err := a.Leaf(t.Context(), "bank.test"); !errors.Is(err, ErrName) {
		t.Errorf("a name that is not permitted: %v", err)
	}
	got, err := a.Leaf(t.Context(), "www.app.test")
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Certificate[1]) == string(old.Certificate[1]) {
		t.Error("the former issuing certificate is in use")
	}
	between := x509.NewCertPool()
	issuer, err := x509.ParseCertificate(got.Certificate[1])
	if err != nil {
		t.Fatal(err)
	}
	between.AddCert(issuer)
	if _, err := got.Leaf.Verify(x509.VerifyOptions{Roots: core.root.pool(), Intermediates: between, DNSName: "www.app.test"}); err != nil {
		t.Error(err)
	}
	core.set(func() {
		if core.asked != 2 {
			t.Errorf("core was asked %d times, want 2", core.asked)
		}
		core.silent = true
	})
	// Core is away: nothing is issued with what it has withdrawn.
	a.Want("three")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Leaf(ctx, "www.app.test"); err == nil {
		t.Error("a certificate of a former generation is handed out")
	}
}
