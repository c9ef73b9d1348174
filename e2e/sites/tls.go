package sites

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"time"
)

// Authority issues certificates for sites.
type Authority struct {
	PEM  string // of its certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority.
func NewAuthority(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{PEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), cert: cert, key: key}, nil
}

// Fault is what is wrong with a certificate.
type Fault int

// The faults.
const (
	Sound Fault = iota
	Expired
	WrongHost
	SelfSigned
)

// Certificate issues a server's certificate for names and addresses.
func (a *Authority) Certificate(fault Fault, hosts ...string) (tls.Certificate, error) {
	return a.issue(fault, x509.ExtKeyUsageServerAuth, "", hosts)
}

// Client issues a client's certificate, as PEM.
func (a *Authority) Client(name string) (cert, key string, err error) {
	c, err := a.issue(Sound, x509.ExtKeyUsageClientAuth, name, nil)
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// Pool has the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *Authority) issue(fault Fault, usage x509.ExtKeyUsage, name string, hosts []string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 6, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	switch fault {
	case Expired:
		tmpl.NotBefore, tmpl.NotAfter = time.Now().AddDate(0, -2, 0), time.Now().Add(-24*time.Hour)
	case WrongHost:
		hosts = []string{"somebody-else.example"}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	parent, signer := a.cert, a.key
	if fault == SelfSigned {
		parent, signer = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Listening is a site that is served.
type Listening struct {
	srv  *http.Server
	done chan error
}

// Option changes how a site is served.
type Option func(*tls.Config)

// WantClient makes a site insist on certificates of an authority (TLS client
// authentication).
func WantClient(a *Authority) Option {
	return func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, a.Pool() }
}

// Versions limits what a site speaks, for old servers.
func Versions(from, to uint16) Option {
	return func(c *tls.Config) { c.MinVersion, c.MaxVersion = from, to }
}

// Serve answers on l until Close, over TLS unless cert is nil.
func Serve(l net.Listener, h http.Handler, cert *tls.Certificate, options ...Option) *Listening {
	s := &Listening{done: make(chan error, 1), srv: &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0),
	}}
	go func() {
		if cert == nil {
			s.done <- s.srv.Serve(l)
			return
		}
		cfg := &tls.Config{Certificates: []tls.Certificate{*cert}}
		for _, o := range options {
			o(cfg)
		}
		s.srv.TLSConfig = cfg
		s.done <- s.srv.ServeTLS(l, "", "")
	}()
	return s
}

// Close ends it and every connection.
func (s *Listening) Close(ctx context.Context) error {
	s.srv.Close()
	select {
	case err := <-s.done:
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	case <-ctx.Done():
		return fmt.Errorf("a site still serves: %w", ctx.Err())
	}
}
