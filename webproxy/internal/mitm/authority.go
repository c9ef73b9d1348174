package mitm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

const (
	leafLife = 7 * 24 * time.Hour
	// leafSlack is how much life a cached leaf must have left.
	leafSlack = 24 * time.Hour
	skewBack  = time.Hour
	maxLeaves = 4096
	askEvery  = 2 * time.Second // while core does not answer
	checkEach = time.Minute
	// renewTime is how long a browser's connection waits for a new issuing
	// certificate.
	renewTime = 10 * time.Second
)

// AuthorityConfig is what an Authority needs.
type AuthorityConfig struct {
	// Ask gets a certificate for a request from core.
	Ask func(ctx context.Context, in wire.WebAuthorityAsk) (wire.WebAuthority, error)
	// Changed is called when Problem may say something else. It must not block.
	// May be nil.
	Changed func()
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Authority issues the certificates that browsers of sessions see. Its key is
// made at start and lives in memory only; core certifies it. Safe for
// concurrent use; Run must run beside it.
type Authority struct {
	c   AuthorityConfig
	key *ecdsa.PrivateKey // the issuer's

	mu      sync.Mutex
	issuer  *x509.Certificate // guarded by mu; nil until core has answered
	root    *x509.Certificate // guarded by mu
	leafKey *ecdsa.PrivateKey // guarded by mu; of all leaves of this issuer
	leaves  map[string]*leaf  // guarded by mu
	failure string            // guarded by mu
	// generation is that of issuer; wanted another one that core has named,
	// empty when there is none; renewed is closed when there is a new issuer.
	generation, wanted string        // guarded by mu
	renewed            chan struct{} // guarded by mu

	kick chan struct{} // one token: look whether a new issuer is due

	minted, hits atomic.Uint64
}

type leaf struct {
	cert *tls.Certificate
	used time.Time
}

// NewAuthority makes an Authority.
func NewAuthority(c AuthorityConfig) (*Authority, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return &Authority{c: c, key: key, leaves: map[string]*leaf{}, renewed: make(chan struct{}), kick: make(chan struct{}, 1), failure: "core has not certified this webproxy yet"}, nil
}

// Problem says why no certificates can be issued, or nothing.
func (a *Authority) Problem() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.issuer != nil && a.c.Now().Before(a.issuer.NotAfter) {
		return ""
	}
	return a.failure
}

// Run gets the issuing certificate and renews it at two thirds of its life.
func (a *Authority) Run(ctx context.Context) error {
	wait := time.Duration(0)
	for {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-a.kick:
			t.Stop()
		case <-ctx.Done():
			t.Stop()
			return nil
		}
		wait = checkEach
		if !a.due() {
			continue
		}
		if err := a.renew(ctx); err != nil {
			wait = askEvery
			a.mu.Lock()
			first := a.failure != err.Error()
			a.failure = err.Error()
			a.mu.Unlock()
			if first && ctx.Err() == nil {
				a.c.Log.Warn("no issuing certificate yet", telemetry.KeyErr, err)
			}
		}
		if a.c.Changed != nil {
			a.c.Changed()
		}
	}
}

func (a *Authority) due() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.issuer == nil || a.wanted != "" {
		return true
	}
	life := a.issuer.NotAfter.Sub(a.issuer.NotBefore)
	return a.c.Now().After(a.issuer.NotAfter.Add(-life / 3))
}

func (a *Authority) renew(ctx context.Context) error {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, a.key)
	if err != nil {
		return fmt.Errorf("make certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	ans, err := a.c.Ask(ctx, wire.WebAuthorityAsk{CSR: csr})
	if err != nil {
		return fmt.Errorf("ask core for an issuing certificate: %w", err)
	}
	cert, err1 := x509.ParseCertificate(ans.Certificate)
	root, err2 := x509.ParseCertificate(ans.Root)
	switch {
	case err1 != nil || err2 != nil:
		return errors.New("core's issuing certificate cannot be read")
	case !cert.IsCA || !a.key.PublicKey.Equal(cert.PublicKey):
		return errors.New("core's certificate is not an issuing one for this key")
	case cert.CheckSignatureFrom(root) != nil:
		return errors.New("core's issuing certificate is not of its root")
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.issuer, a.root, a.leafKey, a.leaves, a.failure = cert, root, leafKey, map[string]*leaf{}, ""
	// Whatever came: another core may see a setting a moment later, and its
	// sessions name the generation again.
	a.generation, a.wanted = ans.Generation, ""
	close(a.renewed)
	a.renewed = make(chan struct{})
	a.c.Log.Info("issuing certificate", "not_after", cert.NotAfter, "names", len(cert.PermittedDNSDomains)+len(cert.PermittedIPRanges))
	return nil
}

// Want says which generation of issuing certificates core has in force. Until
// it is here no certificate is issued with another.
func (a *Authority) Want(generation string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if generation == "" || a.issuer == nil || generation == a.generation || generation == a.wanted {
		return
	}
	a.wanted = generation
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// current waits a moment for an issuing certificate that core wants used.
func (a *Authority) current(ctx context.Context) error {
	a.mu.Lock()
	waits, renewed := a.wanted != "", a.renewed
	a.mu.Unlock()
	if !waits {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	select {
	case <-renewed:
		return nil
	case <-ctx.Done():
		return errors.New("core has not certified this webproxy anew yet")
	}
}

// ErrName is a host for which this webproxy must issue no certificate.
var ErrName = errors.New("the issuing certificate does not permit this name")

// Leaf returns the certificate for a host: a name or an address.
func (a *Authority) Leaf(ctx context.Context, host string) (*tls.Certificate, error) {
	if err := a.current(ctx); err != nil {
		return nil, err
	}
	now := a.c.Now()
	a.mu.Lock()
	if l := a.leaves[host]; l != nil && l.cert.Leaf.NotAfter.After(now.Add(min(leafSlack, l.cert.Leaf.NotAfter.Sub(l.cert.Leaf.NotBefore)/10))) {
		l.used = now
		a.mu.Unlock()
		a.hits.Add(1)
		return l.cert, nil
	}
	issuer, root, key := a.issuer, a.root, a.leafKey
	problem := a.failure
	a.mu.Unlock()
	if issuer == nil || now.After(issuer.NotAfter) {
		return nil, errors.New(problem)
	}
	cert, err := a.mint(issuer, key, host, now)
	if err != nil {
		return nil, err
	}
	if constrained(issuer) && !believed(cert.Leaf, issuer, root, now) {
		return nil, ErrName
	}
	a.minted.Add(1)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.issuer != issuer {
		return cert, nil
	}
	if len(a.leaves) >= maxLeaves {
		a.dropLocked()
	}
	a.leaves[host] = &leaf{cert, now}
	return cert, nil
}

func constrained(c *x509.Certificate) bool {
	return len(c.PermittedDNSDomains)+len(c.PermittedIPRanges)+len(c.ExcludedDNSDomains)+len(c.ExcludedIPRanges) > 0
}

// believed reports whether a browser would believe a leaf.
func believed(c, issuer, root *x509.Certificate, now time.Time) bool {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	between.AddCert(issuer)
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now})
	return err == nil
}

// dropLocked makes room: everything older than the middle of a few.
func (a *Authority) dropLocked() {
	oldest, at := "", time.Time{}
	n := 0
	for host, l := range a.leaves { // maps are walked in random order
		if oldest == "" || l.used.Before(at) {
			oldest, at = host, l.used
		}
		if n++; n == 32 {
			break
		}
	}
	delete(a.leaves, oldest)
}

func (a *Authority) mint(issuer *x509.Certificate, key *ecdsa.PrivateKey, host string, now time.Time) (*tls.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	end := now.Add(leafLife)
	if end.After(issuer.NotAfter) {
		end = issuer.NotAfter
	}
	t := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{Organization: []string{"Caponier"}},
		NotBefore:    now.Add(-skewBack), NotAfter: end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, issuer, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", host, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue certificate for %s: %w", host, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, issuer.Raw}, PrivateKey: key, Leaf: parsed}, nil
}

// Leaves are how many certificates were made and how often one was found.
func (a *Authority) Leaves() (minted, hits uint64) { return a.minted.Load(), a.hits.Load() }
