package webaccess

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/vault"
	"caponier/shared/wire"
)

const (
	rootLife   = 10 * 365 * 24 * time.Hour
	issuerLife = 30 * 24 * time.Hour
	// rootRenew is how long before its end a root is succeeded: a browser that
	// trusts only the former has been closed long before.
	rootRenew = 400 * 24 * time.Hour
	// clockSlack is how far back certificates begin, for clocks that lag.
	clockSlack = time.Hour
)

const (
	authoritiesSQL     = `select id, certificate, sealed_key, not_after from web_authorities order by created_at desc, id`
	insertAuthoritySQL = `insert into web_authorities (id, certificate, sealed_key, not_after, created_at) values ($1, $2, $3, $4, $5)`
)

// authority is the root that the browsers of web sessions trust. Webproxies
// have certificates of it that issue leaves for the sites a browser asks for.
// Nothing else trusts it.
type authority struct {
	c Config

	mu   sync.Mutex
	id   string            // guarded by mu
	cert *x509.Certificate // guarded by mu
	key  *ecdsa.PrivateKey // guarded by mu

	listing sync.Mutex
	lists   map[string]revocations // guarded by listing; by the root's ID
}

// openAuthority reads the newest root, or makes it on first use.
func openAuthority(ctx context.Context, c Config) (*authority, error) {
	a := &authority{c: c, lists: map[string]revocations{}}
	if err := a.load(ctx); err != nil {
		return nil, fmt.Errorf("open web authority: %w", err)
	}
	return a, nil
}

// load reads the newest root; one that ends soon is succeeded.
func (a *authority) load(ctx context.Context) error {
	var id string
	var cert *x509.Certificate
	var key *ecdsa.PrivateKey
	err := a.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, "web authority"); err != nil {
			return err
		}
		var der, sealed []byte
		var notAfter int64
		err := db.Classify(tx.QueryRowContext(ctx, authoritiesSQL+" limit 1").Scan(&id, &der, &sealed, &notAfter))
		if errors.Is(err, db.ErrNotFound) || err == nil && time.Unix(notAfter, 0).Before(a.c.Now().Add(rootRenew)) {
			id, cert, key, err = a.create(ctx, tx)
			return err
		}
		if err != nil {
			return err
		}
		cert, key, err = a.open(id, der, sealed)
		return err
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.id, a.cert, a.key = id, cert, key
	a.mu.Unlock()
	return nil
}

// open reads a stored root and its key.
func (a *authority) open(id string, der, sealed []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("root %s: %w", id, err)
	}
	raw, err := a.c.Vault.Open(rootPlace(id), sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("key of root %s: %w", id, err)
	}
	defer clear(raw)
	key, err := x509.ParseECPrivateKey(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("key of root %s: %w", id, err)
	}
	return cert, key, nil
}

func rootPlace(id string) vault.Place {
	return vault.Place{Table: "web_authorities", Column: "sealed_key", Row: id}
}

func (a *authority) create(ctx context.Context, tx *db.Tx) (id string, cert *x509.Certificate, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return "", nil, nil, err
	}
	now := a.c.Now()
	id = "wca_" + strings.ToLower(rand.Text())
	// The name is another for each: a browser that knows two roots of one name
	// takes the wrong one.
	name := pkix.Name{CommonName: "Caponier web sessions " + id[4:10], Organization: []string{"Caponier"}}
	tmpl := &x509.Certificate{
		SerialNumber: newSerial(), Subject: name, NotBefore: now.Add(-clockSlack), NotAfter: now.Add(rootLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return "", nil, nil, fmt.Errorf("sign root: %w", err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return "", nil, nil, err
	}
	defer clear(raw)
	sealed, err := a.c.Vault.Seal(rootPlace(id), raw)
	if err != nil {
		return "", nil, nil, fmt.Errorf("seal root: %w", err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		return "", nil, nil, err
	}
	if _, err := tx.ExecContext(ctx, insertAuthoritySQL, id, der, sealed, cert.NotAfter.Unix(), now.UnixMicro()); err != nil {
		return "", nil, nil, fmt.Errorf("store root: %w", err)
	}
	return id, cert, key, a.c.Audit.Append(ctx, tx, audit.Event{
		Type: audit.WebAuthorityMade, Outcome: audit.OK, Actor: audit.System, Object: audit.Object{Kind: "web authority", ID: id},
		Fields: map[string]string{"serial": cert.SerialNumber.Text(16), "not_after": cert.NotAfter.UTC().Format(time.RFC3339)},
	})
}

func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}

// maintain succeeds a root that ends soon, also one another core has succeeded.
func (a *authority) maintain(ctx context.Context) {
	a.mu.Lock()
	due := a.cert.NotAfter.Before(a.c.Now().Add(rootRenew))
	a.mu.Unlock()
	if !due {
		return
	}
	if err := a.load(ctx); err != nil && ctx.Err() == nil {
		a.c.Log.Error("web authority not renewed; tried again", "err", err)
	}
}

func (a *authority) rootDER() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cert.Raw
}

// requestError is what is wrong with a certificate request; public.
type requestError struct{ text string }

// Error implements error.
func (e *requestError) Error() string { return e.text }

// issue makes a webproxy's issuing certificate for the key of its request.
func (a *authority) issue(ctx context.Context, p fleet.Peer, der []byte) (wire.WebAuthority, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return wire.WebAuthority{}, &requestError{"the certificate request cannot be read"}
	}
	if csr.CheckSignature() != nil {
		return wire.WebAuthority{}, &requestError{"the certificate request is not signed by its key"}
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return wire.WebAuthority{}, &requestError{"the key must be ECDSA P-256"}
	}
	a.mu.Lock()
	id, root, key := a.id, a.cert, a.key
	a.mu.Unlock()
	now, names, generation := a.c.Now(), a.names(), a.generation()
	tmpl := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "Caponier webproxy " + p.Name, Organization: []string{"Caponier"}},
		NotBefore: now.Add(-clockSlack), NotAfter: now.Add(issuerLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	constrain(tmpl, names)
	if a.c.PlainURL != nil {
		if base := a.c.PlainURL(); base != "" {
			tmpl.CRLDistributionPoints = []string{base + PublicPath + id + ".crl"}
			tmpl.IssuingCertificateURL = []string{base + PublicPath + id + ".crt"}
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, root, pub, key)
	if err != nil {
		return wire.WebAuthority{}, fmt.Errorf("sign issuing certificate: %w", err)
	}
	err = a.c.DB.Tx(ctx, func(tx *db.Tx) error { return a.issued(ctx, tx, id, p, tmpl, names) })
	if err != nil {
		return wire.WebAuthority{}, fmt.Errorf("issue for %s: %w", p.Name, err)
	}
	a.forgetLists()
	return wire.WebAuthority{Root: root.Raw, Certificate: cert, Generation: generation}, nil
}
