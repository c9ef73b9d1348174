package webaccess

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/shared/control"
	"caponier/shared/wire"
)

// certify has a webproxy certified.
func certify(t *testing.T, proxy *box) (*x509.Certificate, *ecdsa.PrivateKey, wire.WebAuthority) {
	t.Helper()
	csr, key := request(t, "P-256")
	var issued wire.WebAuthority
	must(t, control.Call(t.Context(), proxy.Session(), "POST", wire.PathWebAuthority, wire.WebAuthorityAsk{CSR: csr}, &issued))
	cert, err := x509.ParseCertificate(issued.Certificate)
	must(t, err)
	return cert, key, issued
}

// public reads what core publishes.
func public(t *testing.T, s *Service, path string) (int, []byte) {
	t.Helper()
	w := httptest.NewRecorder()
	s.Public().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", path, nil))
	return w.Code, w.Body.Bytes()
}

// verify runs openssl verify on an issuing certificate with its root's list.
func verify(t *testing.T, root, list []byte, cert *x509.Certificate) string {
	t.Helper()
	dir := t.TempDir()
	file := func(name, kind string, der []byte) string {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return p
	}
	out, err := exec.CommandContext(t.Context(), "openssl", "verify", "-crl_check", "-CAfile", file("root.pem", "CERTIFICATE", root),
		"-CRLfile", file("list.pem", "X509 CRL", list), file("cert.pem", "CERTIFICATE", cert.Raw)).CombinedOutput()
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	return string(out)
}

// The root and its revocation list are public; a certificate of a webproxy that
// was revoked, or that has a newer one, is on the list, which openssl believes.
func TestPublished(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start(func(_ *core, c *Config) { c.PlainURL = func() string { return "http://core.test" } })
		a, b := k.node(wire.WebProxy, "p1"), k.node(wire.WebProxy, "p2")
		first, _, issued := certify(t, a)
		second, _, _ := certify(t, a)
		other, _, _ := certify(t, b)
		if len(second.CRLDistributionPoints) != 1 || len(second.IssuingCertificateURL) != 1 {
			t.Fatalf("it names %v and %v", second.CRLDistributionPoints, second.IssuingCertificateURL)
		}
		at := strings.TrimPrefix(second.CRLDistributionPoints[0], "http://core.test")
		if code, b := public(t, k.svc, strings.TrimPrefix(second.IssuingCertificateURL[0], "http://core.test")); code != 200 || string(b) != string(issued.Root) {
			t.Errorf("the root: %d", code)
		}
		code, text := public(t, k.svc, "/pki/web/ca.pem")
		if block, _ := pem.Decode(text); code != 200 || block == nil || string(block.Bytes) != string(issued.Root) {
			t.Errorf("the root as PEM: %d", code)
		}
		for _, path := range []string{"/pki/web/none.crl", "/pki/web/none.crt", "/pki/web/" + strings.TrimSuffix(filepath.Base(at), ".crl"), "/pki/web/x.key"} {
			if code, _ := public(t, k.svc, path); code != http.StatusNotFound {
				t.Errorf("%s: %d", path, code)
			}
		}
		list := func() ([]byte, *x509.RevocationList) {
			code, der := public(t, k.svc, at)
			if code != 200 {
				t.Fatalf("the list: %d", code)
			}
			l, err := x509.ParseRevocationList(der)
			must(t, err)
			if d := time.Until(l.NextUpdate); d < 23*time.Hour || d > 25*time.Hour {
				t.Errorf("the list is valid for %s", d)
			}
			return der, l
		}
		der, l := list()
		if len(l.RevokedCertificateEntries) != 1 || l.RevokedCertificateEntries[0].SerialNumber.Cmp(first.SerialNumber) != 0 || l.RevokedCertificateEntries[0].ReasonCode != reasonSuperseded {
			t.Errorf("revoked %+v", l.RevokedCertificateEntries)
		}
		for what, c := range map[string]*x509.Certificate{"newest": second, "other": other} {
			if out := verify(t, issued.Root, der, c); !strings.Contains(out, "OK") {
				t.Errorf("%s: %s", what, out)
			}
		}
		if out := verify(t, issued.Root, der, first); !strings.Contains(out, "certificate revoked") {
			t.Errorf("superseded: %s", out)
		}
		number := l.Number
		for name, forget := range map[string]bool{"p1": false, "p2": true} {
			id, cert := a.id, second
			if name == "p2" {
				id, cert = b.id, other
			}
			must(t, k.fleet.Revoke(admin(t, k), audit.System, id, forget))
			eventually(t, name+" is on the list", func() bool {
				der, l = list()
				for _, e := range l.RevokedCertificateEntries {
					if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
						return e.ReasonCode == reasonWithdrawn
					}
				}
				return false
			})
			if out := verify(t, issued.Root, der, cert); !strings.Contains(out, "certificate revoked") {
				t.Errorf("%s was revoked: %s", name, out)
			}
		}
		if l.Number.Cmp(number) <= 0 {
			t.Error("the list's number does not grow")
		}
	})
}

// With web.permitted_names issuing certificates are constrained: leaves of
// other names are believed by nobody, and such targets are not opened.
func TestConstrained(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	var names []string
	k := w.start(func(_ *core, c *Config) {
		c.Names = func() []string {
			w.mu.Lock()
			defer w.mu.Unlock()
			return names
		}
	})
	set := func(list ...string) {
		w.mu.Lock()
		names = list
		w.mu.Unlock()
		k.notify("setting", "web.permitted_names")
	}
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(func(t *target.Target) { t.Web.API = true })
	open := map[string]any{"account": "alice", "mode": "api"}
	s := k.open("eve", "wiki", open)
	before, _ := proxy.forProxy(s.ID)
	_, _, free := certify(t, proxy)
	if before.Issuer == "" || before.Issuer != free.Generation {
		t.Errorf("the session says %q, the certificate %q", before.Issuer, free.Generation)
	}
	set("wiki.example", "10.1.0.0/16")
	eventually(t, "the webproxy is told", func() bool { now, _ := proxy.forProxy(s.ID); return now.Issuer != before.Issuer })
	issuer, key, issued := certify(t, proxy)
	if now, _ := proxy.forProxy(s.ID); now.Issuer != issued.Generation {
		t.Errorf("the session says %q, the certificate %q", now.Issuer, issued.Generation)
	}
	if !issuer.PermittedDNSDomainsCritical {
		t.Error("the constraints are not critical")
	}
	check := func(what string, issuer *x509.Certificate, key *ecdsa.PrivateKey, want map[string]bool) {
		t.Helper()
		for host, good := range want {
			if got := leafBelieved(t, issued.Root, issuer, key, host); got != good {
				t.Errorf("%s: a leaf for %s is believed: %v", what, host, got)
			}
			if got := permitted(k.svc.authority.names(), host); got != good {
				t.Errorf("%s: permitted says %v of %s", what, got, host)
			}
		}
	}
	check("names and networks", issuer, key, map[string]bool{"wiki.example": true, "a.wiki.example": true, "otherwiki.example": false, "bank.example": false, "10.1.2.3": true, "10.2.0.1": false, "fd00::1": false})
	set("wiki.example")
	issuer, key, _ = certify(t, proxy)
	check("names alone", issuer, key, map[string]bool{"wiki.example": true, "10.1.2.3": false, "fd00::1": false})
	set("10.1.0.0/16", "fd00::/8")
	issuer, key, _ = certify(t, proxy)
	check("networks alone", issuer, key, map[string]bool{"wiki.example": false, "10.1.2.3": true, "fd00::1": true, "2001:db8::1": false})
	var problem struct{ Code, Detail string }
	if code := k.do("eve", "POST", "/web-sessions", map[string]any{"target_id": "wiki", "account": "alice", "mode": "api"}, &problem); code != 503 || problem.Code != "name_not_permitted" {
		t.Errorf("opened with %d %+v", code, problem)
	}
	set("wiki.example")
	k.open("eve", "wiki", open)
}

// leafBelieved makes a leaf and verifies it as a browser does.
func leafBelieved(t *testing.T, root []byte, issuer *x509.Certificate, key *ecdsa.PrivateKey, host string) bool {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if ip := net.ParseIP(host); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, issuer, k.Public(), key)
	must(t, err)
	leaf, err := x509.ParseCertificate(der)
	must(t, err)
	r, err := x509.ParseCertificate(root)
	must(t, err)
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(r)
	between.AddCert(issuer)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between})
	// openssl must say the same: browsers are not written in Go.
	dir := t.TempDir()
	file := func(name string, der []byte) string {
		p := filepath.Join(dir, name)
		must(t, os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
		return p
	}
	out, oerr := exec.CommandContext(t.Context(), "openssl", "verify", "-CAfile", file("root.pem", root), "-untrusted", file("issuer.pem", issuer.Raw), file("leaf.pem", der)).CombinedOutput()
	if (err == nil) != (oerr == nil) {
		t.Errorf("%s: Go says %v, openssl %s", host, err, out)
	}
	return err == nil
}

// admin is the context of an administrator.
func admin(t *testing.T, k *core) context.Context {
	return api.WithPrincipal(t.Context(), &api.Principal{UserID: "usr_admin", UserName: "admin", Permissions: k.law.perms["admin"]})
}
