package fleet

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
	"caponier/shared/wire"
)

// authority is the edge CA: one Ed25519 key, whose certificate is issued anew
// before the nodes' certificates would outlive it. Pins survive that, since
// they are on the key.
type authority struct {
	c   Config
	key ed25519.PrivateKey
	pin [sha256.Size]byte

	mu      sync.Mutex
	certs   []*x509.Certificate // guarded by mu; newest first, never empty
	leaf    tls.Certificate     // guarded by mu; this core's own
	crl     []byte              // guarded by mu; DER
	crlAt   time.Time           // guarded by mu; when crl was signed
	changes uint64              // guarded by mu; counts forgetCRL
}

// skewBack is how far back certificates begin, for peers whose clocks lag.
const skewBack = 10 * time.Minute

// coreLeafLife is the life of a core's own certificate; it lives in memory
// and is made anew at half time.
const coreLeafLife = 90 * 24 * time.Hour

// openAuthority reads the CA, or makes it on first use.
func openAuthority(ctx context.Context, c Config) (*authority, error) {
	a := &authority{c: c}
	err := c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, "edge-ca"); err != nil {
			return err
		}
		rows, err := listCA(ctx, tx)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			return a.create(ctx, tx)
		}
		a.key = nil
		a.certs, err = a.load(rows)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open edge ca: %w", err)
	}
	a.pin = sha256.Sum256(a.certs[0].RawSubjectPublicKeyInfo)
	if err := a.renewLeaf(); err != nil {
		return nil, fmt.Errorf("open edge ca: %w", err)
	}
	return a, nil
}

// load parses the stored certificates, newest first, and opens the key if it
// is not open yet.
func (a *authority) load(rows []caRow) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, r := range rows {
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("parse ca certificate %s: %w", r.ID, err)
		}
		if cert.NotAfter.After(a.c.Now()) {
			certs = append(certs, cert)
		}
		if a.key == nil {
			seed, err := a.c.Vault.Open(vault.Place{Table: "edge_ca", Column: "sealed_key", Row: r.ID}, r.SealedKey)
			if err != nil {
				return nil, fmt.Errorf("open ca key %s: %w", r.ID, err)
			}
			if len(seed) != ed25519.SeedSize {
				return nil, fmt.Errorf("ca key %s has a wrong length", r.ID)
			}
			a.key = ed25519.NewKeyFromSeed(seed)
			clear(seed)
		}
	}
	if len(certs) == 0 {
		return nil, errors.New("every ca certificate has ended; the clock may be wrong")
	}
	return certs, nil
}

func (a *authority) create(ctx context.Context, tx *db.Tx) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make ca key: %w", err)
	}
	a.key = key
	cert, err := a.issueCA(ctx, tx, audit.CACreated)
	if err != nil {
		return err
	}
	a.certs = []*x509.Certificate{cert}
	return nil
}

// issueCA signs a CA certificate on the key we have and stores it.
func (a *authority) issueCA(ctx context.Context, tx *db.Tx, event audit.Type) (*x509.Certificate, error) {
	now := a.c.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "Caponier edge CA", Organization: []string{"Caponier"}},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(a.c.CALife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, &x509.Certificate{Subject: pkix.Name{CommonName: "Caponier edge CA", Organization: []string{"Caponier"}}}, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign ca certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse ca certificate: %w", err)
	}
	id := db.NewID("eca_")
	sealed, err := a.c.Vault.Seal(vault.Place{Table: "edge_ca", Column: "sealed_key", Row: id}, a.key.Seed())
	if err != nil {
		return nil, fmt.Errorf("seal ca key: %w", err)
	}
	if err := insertCA(ctx, tx, caRow{ID: id, Certificate: der, SealedKey: sealed, NotAfter: cert.NotAfter, CreatedAt: now}); err != nil {
		return nil, err
	}
	return cert, a.c.Audit.Append(ctx, tx, audit.Event{Type: event, Outcome: audit.OK, Actor: audit.System,
		Object: audit.Object{Kind: "edge_ca", ID: id},
		Fields: map[string]string{"not_after": cert.NotAfter.UTC().Format(time.RFC3339)}})
}

// maintain issues a new CA certificate when the newest would end before a node
// certificate signed now, and renews this core's own at half time. It reports
// whether the roots changed.
func (a *authority) maintain(ctx context.Context) (bool, error) {
	now := a.c.Now()
	due := func(certs []*x509.Certificate) bool {
		return certs[0].NotAfter.Before(now.Add(a.c.NodeLife)) && a.c.NodeLife < a.c.CALife
	}
	changed := false
	if certs := a.certificates(); due(certs) {
		// The mutex is not held here: enrolments hold a transaction when they
		// come for it.
		err := a.c.DB.Tx(ctx, func(tx *db.Tx) error {
			if err := tx.Lock(ctx, "edge-ca"); err != nil {
				return err
			}
			rows, err := listCA(ctx, tx)
			if err != nil {
				return err
			}
			if certs, err = a.load(rows); err != nil || !due(certs) {
				return err // or another core was first
			}
			cert, err := a.issueCA(ctx, tx, audit.CARenewed)
			certs = append([]*x509.Certificate{cert}, certs...)
			return err
		})
		if err != nil {
			return false, fmt.Errorf("renew edge ca: %w", err)
		}
		a.mu.Lock()
		a.certs, changed = certs, true
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if changed || a.leaf.Leaf.NotAfter.Before(now.Add(coreLeafLife/2)) {
		if err := a.renewLeafLocked(); err != nil {
			return changed, err
		}
	}
	return changed, nil
}

func (a *authority) certificates() []*x509.Certificate {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]*x509.Certificate(nil), a.certs...)
}

func (a *authority) rootsDER() [][]byte {
	var out [][]byte
	for _, c := range a.certificates() {
		out = append(out, c.Raw)
	}
	return out
}

// identity is this core's side of a tunnel.
func (a *authority) identity() (tls.Certificate, *x509.CertPool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pool := x509.NewCertPool()
	for _, c := range a.certs {
		pool.AddCert(c)
	}
	return a.leaf, pool
}

func (a *authority) renewLeaf() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.renewLeafLocked()
}

func (a *authority) renewLeafLocked() error {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make core key: %w", err)
	}
	leaf, err := a.signLocked(pub, a.c.CoreName, "caponier:core:"+a.c.CoreID,
		[]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, coreLeafLife)
	if err != nil {
		return fmt.Errorf("sign core certificate: %w", err)
	}
	a.leaf = tls.Certificate{Certificate: [][]byte{leaf.Raw, a.certs[0].Raw}, PrivateKey: key, Leaf: leaf}
	return nil
}

// issueNode signs a node's certificate on its key.
func (a *authority) issueNode(pub crypto.PublicKey, kind wire.NodeKind, id, name string) (*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.signLocked(pub, name, "caponier:"+string(kind)+":"+id, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, a.c.NodeLife)
}

func (a *authority) signLocked(pub crypto.PublicKey, name, uri string, usage []x509.ExtKeyUsage, life time.Duration) (*x509.Certificate, error) {
	now := a.c.Now()
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	ca := a.certs[0]
	end := now.Add(life)
	if end.After(ca.NotAfter) {
		end = ca.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: name, Organization: []string{"Caponier"}},
		NotBefore:    now.Add(-skewBack),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  usage,
		URIs:         []*url.URL{u},
	}, ca, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// peerID reads kind and ID out of a node's verified certificate.
func peerID(leaf *x509.Certificate) (wire.NodeKind, string, error) {
	for _, u := range leaf.URIs {
		parts := strings.Split(u.String(), ":")
		if len(parts) == 3 && parts[0] == "caponier" && wire.NodeKind(parts[1]).Valid() && parts[2] != "" {
			return wire.NodeKind(parts[1]), parts[2], nil
		}
	}
	return "", "", errors.New("the certificate names no edge node")
}

// csrKey checks a PKCS#10 request and returns its Ed25519 key with its hash.
func csrKey(der []byte) (ed25519.PublicKey, []byte, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, nil, errors.New("the certificate request cannot be read")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, nil, errors.New("the certificate request is not signed by its key")
	}
	pub, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, nil, errors.New("the certificate request's key is not Ed25519")
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return pub, sum[:], nil
}

// revocationList returns the current list (RFC 5280 §5), signed at most half
// its life ago.
func (a *authority) revocationList(ctx context.Context) ([]byte, error) {
	now := a.c.Now()
	a.mu.Lock()
	der, at, made := a.crl, a.crlAt, a.changes
	a.mu.Unlock()
	if der != nil && now.Sub(at) < a.c.CRLLife/2 && now.After(at.Add(-time.Second)) {
		return der, nil
	}
	revoked, err := listRevoked(ctx, a.c.DB, now)
	if err != nil {
		return nil, err
	}
	list := make([]x509.RevocationListEntry, 0, len(revoked))
	for _, r := range revoked {
		n, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("revoked serial %q is not hexadecimal", r.Serial)
		}
		list = append(list, x509.RevocationListEntry{SerialNumber: n, RevocationTime: r.RevokedAt})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	der, err = x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		RevokedCertificateEntries: list,
		Number:                    big.NewInt(now.UnixMicro()),
		ThisUpdate:                now.Add(-skewBack),
		NextUpdate:                now.Add(a.c.CRLLife),
	}, a.certs[0], a.key)
	if err != nil {
		return nil, fmt.Errorf("sign revocation list: %w", err)
	}
	if a.changes == made { // else something was revoked since it was read
		a.crl, a.crlAt = der, now
	}
	return der, nil
}

// forgetCRL makes the next revocation list a fresh one.
func (a *authority) forgetCRL() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.crl = nil
	a.changes++
}

func (a *authority) pem() []byte {
	var out []byte
	for _, c := range a.certificates() {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// serial makes a positive random serial number of 127 bits (RFC 5280 §4.1.2.2).
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] &= 0x7f
	b[0] |= 0x40
	return new(big.Int).SetBytes(b[:])
}

func serialText(c *x509.Certificate) string { return fmt.Sprintf("%032x", c.SerialNumber) }
