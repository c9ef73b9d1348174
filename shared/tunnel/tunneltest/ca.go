// Package tunneltest has what tests of tunnels need: a CA with identities of
// cores and edge nodes, a core's listener, and connections that delay, cut,
// stall and corrupt. It is imported by tests and benchmarks only.
package tunneltest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"caponier/shared/tunnel"
)

// CA issues identities.
type CA struct {
	Cert *x509.Certificate
	key  ed25519.PrivateKey
}

// NewCA makes a CA with a fresh key.
func NewCA() (*CA, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	t := template("test CA")
	t.IsCA, t.BasicConstraintsValid = true, true
	t.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, t, t, pub, key)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}
	return &CA{Cert: cert, key: key}, nil
}

// Pin is the SHA-256 of the CA's SubjectPublicKeyInfo.
func (ca *CA) Pin() [32]byte { return sha256.Sum256(ca.Cert.RawSubjectPublicKeyInfo) }

// Roots is a pool with this CA alone.
func (ca *CA) Roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.Cert)
	return p
}

// Core makes the identity of a core.
func (ca *CA) Core(id string) (tunnel.Identity, error) {
	return ca.identity("core", id, x509.ExtKeyUsageServerAuth)
}

// Edge makes the identity of an edge node.
func (ca *CA) Edge(kind, id string) (tunnel.Identity, error) {
	return ca.identity(kind, id, x509.ExtKeyUsageClientAuth)
}

func (ca *CA) identity(kind, id string, usage x509.ExtKeyUsage) (tunnel.Identity, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tunnel.Identity{}, fmt.Errorf("make key of %s: %w", id, err)
	}
	t := template(id)
	t.URIs = []*url.URL{{Scheme: "caponier", Opaque: kind + ":" + id}}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	der, err := x509.CreateCertificate(rand.Reader, t, ca.Cert, pub, ca.key)
	if err != nil {
		return tunnel.Identity{}, fmt.Errorf("make certificate of %s: %w", id, err)
	}
	return tunnel.Identity{
		Certificate: tls.Certificate{Certificate: [][]byte{der, ca.Cert.Raw}, PrivateKey: key},
		Roots:       ca.Roots(),
	}, nil
}

func template(name string) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // never fails
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}
