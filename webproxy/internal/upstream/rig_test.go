package upstream

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ocsp"

	"caponier/shared/tunnel"
	"caponier/shared/webrule"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ca is an authority of web servers.
type ca struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newCA(t testing.TB, name string) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(name)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &ca{t: t, cert: cert, key: key, next: 100}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// issue makes a server's certificate for app.test.
func (c *ca) issue(change func(*x509.Certificate)) tls.Certificate {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(c.t, err)
	c.next++
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(c.next), Subject: pkix.Name{CommonName: "app.test"}, DNSNames: []string{"app.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, key.Public(), c.key)
	must(c.t, err)
	leaf, err := x509.ParseCertificate(der)
	must(c.t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (c *ca) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw}))
}

// answer is an OCSP answer about a certificate.
func (c *ca) answer(cert *x509.Certificate, status int, change func(*ocsp.Response), by ...tls.Certificate) []byte {
	c.t.Helper()
	tmpl := ocsp.Response{Status: status, SerialNumber: cert.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour), RevokedAt: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
	signer, key := c.cert, crypto.Signer(c.key)
	if len(by) > 0 {
		signer, key = by[0].Leaf, by[0].PrivateKey.(crypto.Signer)
		tmpl.Certificate = signer
	}
	if change != nil {
		change(&tmpl)
	}
	der, err := ocsp.CreateResponse(c.cert, signer, tmpl, key)
	must(c.t, err)
	return der
}

// list is a revocation list.
func (c *ca) list(change func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	c.t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Minute), NextUpdate: time.Now().Add(time.Hour)}
	for _, r := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: r.SerialNumber, RevocationTime: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)})
	}
	if change != nil {
		change(tmpl)
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, c.cert, c.key)
	must(c.t, err)
	return der
}

// server is an origin for https://app.test with a certificate.
func server(t testing.TB, cert tls.Certificate) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "hello") }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return "https://app.test" + srv.Listener.Addr().String()[strings.LastIndex(srv.Listener.Addr().String(), ":"):]
}

// service is an authority's OCSP service or the host of its list; it counts.
func service(t testing.TB, h http.HandlerFunc) (string, *atomic.Int32) {
	t.Helper()
	var n atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		h(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(srv.Close)
	return srv.URL, &n
}

func bytesOf(b func() []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.Header.Get("Content-Type") != "application/ocsp-request" {
			http.Error(w, "not a question", http.StatusBadRequest)
			return
		}
		_, _ = w.Write(b())
	}
}

// openssl runs `openssl ocsp` as the authority's service: revoked are those,
// the others that are named are good.
func (c *ca) openssl(revoked bool, certs ...*x509.Certificate) string {
	t := c.t
	t.Helper()
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return p
	}
	key, err := x509.MarshalECPrivateKey(c.key)
	must(t, err)
	index := ""
	for _, x := range certs {
		state, at := "V", ""
		if revoked {
			state, at = "R", "260304050607Z"
		}
		index += fmt.Sprintf("%s\t%s\t%s\t%X\tunknown\t/CN=app.test\n", state, x.NotAfter.UTC().Format("060102150405Z"), at, x.SerialNumber)
	}
	must(t, os.WriteFile(filepath.Join(dir, "index.txt"), []byte(index), 0o600))
	root := file("ca.pem", "CERTIFICATE", c.cert.Raw)
	cmd := exec.Command("openssl", "ocsp", "-port", "0", "-index", filepath.Join(dir, "index.txt"), "-CA", root, "-rsigner", root, "-rkey", file("ca.key", "EC PRIVATE KEY", key), "-nmin", "10")
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = cmd.Stdout
	must(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if at, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
			at, _, _ = strings.Cut(at, " ")
			go io.Copy(io.Discard, out)
			return "http://127.0.0.1" + at[strings.LastIndex(at, ":"):]
		}
	}
	t.Fatal("openssl ocsp does not listen")
	return ""
}

// local resolves every name to this machine.
type local struct{}

func (local) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// upstreamTo is a session's way to a server, which is at 127.0.0.1.
func upstreamTo(t testing.TB, at string, p webrule.Policy, change func(*Config)) *Upstream {
	t.Helper()
	if p.Private == nil {
		p.Private = []string{"127.0.0.0/8"}
	}
	c, err := p.Compile(at)
	must(t, err)
	cfg := Config{Session: "con_1", Policy: c, Tunnel: func() tunnel.Session { return nil }, Resolver: local{}, System: x509.NewCertPool()}
	if change != nil {
		change(&cfg)
	}
	u, err := New(cfg)
	must(t, err)
	t.Cleanup(u.Close)
	return u
}

// get asks for a page and returns what came of it.
func get(t testing.TB, u *Upstream, at string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", at, nil)
	must(t, err)
	resp, err := u.RoundTrip(req, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func hostOf(t testing.TB, at string) string {
	t.Helper()
	u, err := url.Parse(at)
	must(t, err)
	return u.Host
}

// endpoint is a server as notes name it.
func endpoint(t testing.TB, at string) webrule.Endpoint {
	t.Helper()
	e, err := (webrule.Request{Scheme: "https", Host: hostOf(t, at)}).Endpoint()
	must(t, err)
	return e
}
