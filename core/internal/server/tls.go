package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"caponier/core/internal/vault"
)

// Lifetimes of the built-in CA and of the certificate it issues.
const (
	builtinCALife   = 10 * 365 * 24 * time.Hour
	builtinLeafLife = 90 * 24 * time.Hour
	renewBefore     = 30 * 24 * time.Hour
)

// recheck is how often certificate files are looked at for a newer version.
const recheck = 30 * time.Second

// certSource hands out the certificate of the https listener: from files,
// re-read when they change, or issued by the built-in CA and renewed in time.
type certSource struct {
	load func() (*tls.Certificate, error)
	// fresh reports whether the current certificate may go on being used.
	fresh func(*tls.Certificate) bool
	now   func() time.Time

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
	checked time.Time        // guarded by mu
}

// get implements tls.Config.GetCertificate. When a newer certificate cannot be
// loaded the current one is kept.
func (s *certSource) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil && (s.now().Sub(s.checked) < recheck || s.fresh(s.current)) {
		return s.current, nil
	}
	s.checked = s.now()
	c, err := s.load()
	if err != nil {
		if s.current != nil {
			return s.current, nil
		}
		return nil, err
	}
	s.current = c
	return c, nil
}

// fileCerts reads the certificate from files and again whenever they change.
func fileCerts(certFile, keyFile string, now func() time.Time) (*certSource, error) {
	var stamp time.Time
	modified := func() time.Time {
		var newest time.Time
		for _, f := range []string{certFile, keyFile} {
			if st, err := os.Stat(f); err == nil && st.ModTime().After(newest) {
				newest = st.ModTime()
			}
		}
		return newest
	}
	s := &certSource{now: now}
	s.load = func() (*tls.Certificate, error) {
		at := modified()
		c, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("load TLS certificate: %w", err)
		}
		stamp = at
		return &c, nil
	}
	s.fresh = func(*tls.Certificate) bool { return modified().Equal(stamp) }
	_, err := s.get(nil)
	return s, err
}

// builtinCerts issues the certificate from a CA of our own, kept in dir: the
// CA certificate in ca.pem for people to trust, its key sealed by the vault.
func builtinCerts(dir string, hosts []string, v *vault.Vault, now func() time.Time) (*certSource, error) {
	ca, key, err := builtinCA(dir, v, now())
	if err != nil {
		return nil, fmt.Errorf("built-in TLS certificate: %w", err)
	}
	s := &certSource{now: now}
	s.load = func() (*tls.Certificate, error) { return issue(ca, key, hosts, now()) }
	s.fresh = func(c *tls.Certificate) bool { return now().Before(c.Leaf.NotAfter.Add(-renewBefore)) }
	_, err = s.get(nil)
	return s, err
}

// CAFile is where core puts the certificate of its built-in CA.
func CAFile(c Config) string { return filepath.Join(c.StateDir, "tls", "ca.pem") }

func builtinCA(dir string, v *vault.Vault, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	place := vault.Place{Table: "file", Column: "tls/ca.key.sealed", Row: "builtin"}
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key.sealed")
	sealed, err := os.ReadFile(keyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return makeCA(dir, certFile, keyFile, place, v, now)
	case err != nil:
		return nil, nil, err
	}
	der, err := v.Open(place, sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", keyFile, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, nil, fmt.Errorf("parse %s: %w", keyFile, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("parse %s: not an ECDSA key", keyFile)
	}
	text, err := os.ReadFile(certFile)
	if err != nil {
		return nil, nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, nil, fmt.Errorf("parse %s: no PEM block", certFile)
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, fmt.Errorf("parse %s: %w", certFile, err)
	}
	return ca, key, nil
}

func makeCA(dir, certFile, keyFile string, place vault.Place, v *vault.Vault, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Caponier built-in CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(builtinCALife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	sealed, err := v.Seal(place, plain)
	if err != nil {
		return nil, nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	if err := writeFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return nil, nil, err
	}
	if err := writeFile(keyFile, sealed, 0o600); err != nil {
		return nil, nil, err
	}
	ca, err := x509.ParseCertificate(der)
	return ca, key, err
}

func issue(ca *x509.Certificate, caKey *ecdsa.PrivateKey, hosts []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Caponier core"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(builtinLeafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}

// writeFile replaces name atomically.
func writeFile(name string, data []byte, mode fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, werr := tmp.Write(data)
	if err := errors.Join(werr, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), name)
}
