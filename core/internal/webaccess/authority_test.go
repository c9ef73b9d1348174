package webaccess

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"caponier/shared/wire"
)

// request makes a certificate request and its key.
func request(t *testing.T, curve string) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	c := elliptic.P256()
	if curve == "P-384" {
		c = elliptic.P384()
	}
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	must(t, err)
	return der, key
}

func first(b []byte, _ *ecdsa.PrivateKey) []byte { return b }

// believed checks that a leaf issued with a webproxy's certificate is good for
// its name, and that no further authority can be.
func believed(t *testing.T, a wire.WebAuthority, key *ecdsa.PrivateKey) {
	t.Helper()
	root, err := x509.ParseCertificate(a.Root)
	must(t, err)
	issuer, err := x509.ParseCertificate(a.Certificate)
	must(t, err)
	if d := time.Until(issuer.NotAfter); d < 29*24*time.Hour || d > 31*24*time.Hour {
		t.Errorf("the issuing certificate ends in %s", d)
	}
	if d := time.Until(root.NotAfter); d < 9*365*24*time.Hour {
		t.Errorf("the root ends in %s", d)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	between.AddCert(issuer)
	leaf := func(parent *x509.Certificate, by *ecdsa.PrivateKey, ca bool) (*x509.Certificate, *ecdsa.PrivateKey) {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), DNSNames: []string{"wiki.example"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IsCA: ca, BasicConstraintsValid: true}
		if ca {
			tmpl.KeyUsage = x509.KeyUsageCertSign
		}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, k.Public(), by)
		must(t, err)
		c, err := x509.ParseCertificate(der)
		must(t, err)
		return c, k
	}
	good, _ := leaf(issuer, key, false)
	if _, err := good.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "wiki.example"}); err != nil {
		t.Errorf("a leaf is not believed: %v", err)
	}
	sub, subKey := leaf(issuer, key, true)
	between.AddCert(sub)
	deep, _ := leaf(sub, subKey, false)
	if _, err := deep.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: "wiki.example"}); err == nil {
		t.Error("a webproxy can make authorities")
	}
}

// stopAndAge stops core and opens its authority as it would be later: another
// root has taken the first one's place.
func (w *world) stopAndAge(k *core, later time.Duration) {
	w.t.Helper()
	old := k.svc.authority.rootDER()
	c := k.svc.cfg
	k.stop()
	c.Now = func() time.Time { return time.Now().Add(later) }
	a, err := openAuthority(w.t.Context(), c)
	must(w.t, err)
	if string(a.rootDER()) == string(old) {
		w.t.Error("the root was not succeeded")
	}
	again, err := openAuthority(w.t.Context(), c)
	must(w.t, err)
	if string(again.rootDER()) != string(a.rootDER()) {
		w.t.Error("it is succeeded again and again")
	}
}
