package signin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// authority issues client certificates and revocation lists.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t testing.TB, name string, parent *authority) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	by, with := tmpl, key
	if parent != nil {
		by, with = parent.cert, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, key.Public(), with)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, cert: cert, key: key, next: 100}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
}

// issue makes a client certificate; change may edit it first.
func (a *authority) issue(cn string, change func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	a.next++
	c := &x509.Certificate{SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// crl revokes the certificates given.
func (a *authority) crl(number int64, until time.Duration, revoked ...tls.Certificate) string {
	a.t.Helper()
	tmpl := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(until)}
	for _, c := range revoked {
		tmpl.RevokedCertificateEntries = append(tmpl.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.Leaf.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, tmpl, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
}

// door is an open door and who knocks at it.
type door struct {
	*rig
	d *Door
}

// openDoor runs the door until the test ends.
func (r *rig) openDoor() *door {
	r.t.Helper()
	server := newAuthority(r.t, "core", nil)
	cert := server.issue("core.test", func(c *x509.Certificate) { c.DNSNames = []string{"core.test"} })
	d := &Door{Service: r.Service, Listen: func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Source:      func(*http.Request) netip.Addr { return addr(office) }, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(r.t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.Run(ctx); err != nil {
			r.t.Errorf("door: %v", err)
		}
	})
	r.t.Cleanup(func() { cancel(); wg.Wait() })
	return &door{r, d}
}

// wait waits until the door is open, or closed.
func (d *door) wait(open bool) net.Addr {
	d.t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if a := d.d.Addr(); (a != nil) == open {
			return a
		}
		select {
		case <-tick.C:
		case <-deadline:
			d.t.Fatalf("the door does not become open=%v", open)
		}
	}
}

// knock asks for the page with a certificate, or none.
func (d *door) knock(cert *tls.Certificate, version uint16) (status int, body, ticket string, state *tls.ConnectionState) {
	d.t.Helper()
	c := &tls.Config{InsecureSkipVerify: true, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(8), ServerName: "core.test"}
	if cert != nil {
		c.Certificates = []tls.Certificate{*cert}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}}
	for range 2 { // the second could resume
		res, err := client.Get("https://" + d.wait(true).String() + "/")
		if err != nil {
			d.t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			d.t.Fatal(err)
		}
		if res.TLS.DidResume {
			d.t.Error("a TLS session was resumed")
		}
		status, body, state = res.StatusCode, string(b), res.TLS
		for _, k := range res.Cookies() {
			if k.Name == TicketCookie && k.SameSite == http.SameSiteStrictMode && k.Secure && k.HttpOnly {
				ticket = k.Value
			}
		}
	}
	return status, body, ticket, state
}

func (r *rig) anchor(a *authority, change func(*AnchorDraft)) Anchor {
	r.t.Helper()
	d := AnchorDraft{Name: "cards", Enabled: true, Bundle: a.pem(), Config: AnchorConfig{Field: "subject_cn"}}
	if change != nil {
		change(&d)
	}
	made, err := r.putAnchor(r.t.Context(), tester, "", nil, d)
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

func TestCertificateSignsIn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, database *db.DB) {
		r := newRig(t, database)
		d := r.openDoor()
		u := r.person("jane")
		ca, foreign := newAuthority(t, "staff", nil), newAuthority(t, "staff", nil) // the same name, another key
		if r.browser(office).options().Certificate != "" {
			t.Error("the sign-in page offers certificates that nobody trusts")
		}
		a := r.anchor(ca, func(d *AnchorDraft) { d.Config.MFA = true })
		if got := r.browser(office).options().Certificate; got != "https://core.test:8443/" {
			t.Errorf("the sign-in page sends people to %q", got)
		}
		good, revoked, expired := ca.issue("Jane", nil), ca.issue("jane", nil), ca.issue("jane", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		if _, err := r.setCRL(t.Context(), tester, a.ID, []byte(ca.crl(1, time.Hour, revoked))); err != nil {
			t.Fatal(err)
		}
		server := ca.issue("jane", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
		stranger, from := ca.issue("nobody", nil), foreign.issue("jane", nil)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, c := range []struct {
				name   string
				cert   *tls.Certificate
				status int
				text   string
			}{
				{"good", &good, 200, "You are jane."}, {"expired", &expired, 403, "expired"}, {"revoked", &revoked, 403, "revoked"},
				{"foreign", &from, 403, "not from an authority"}, {"none", nil, 403, "sent no certificate"},
				{"for servers", &server, 403, "not meant for signing in"}, {"of a stranger", &stranger, 403, "names nobody"},
			} {
				// The limits are not what is tested here.
				if _, err := database.ExecContext(t.Context(), `delete from login_failures`); err != nil {
					t.Fatal(err)
				}
				d.Service.users = freshLimits(t, d.rig)
				status, body, ticket, _ := d.knock(c.cert, version)
				if status != c.status || !strings.Contains(body, c.text) || (ticket != "") != (status == 200) {
					t.Errorf("%s: %d %s (ticket %q)", c.name, status, body, ticket)
				}
			}
		}
		_, _, kept, _ := d.knock(&good, tls.VersionTLS13)
		b := r.browser(office)
		b.cookies[TicketCookie] = kept
		elsewhere := r.browser(home)
		elsewhere.cookies[TicketCookie] = kept
		elsewhere.call("POST", "/login/certificate", nil).want(409, "sign_in_stale")
		b.call("POST", "/login/certificate", nil).want(200, "")
		if m := b.me(); m.User.ID != u.ID || !m.MFA || !slices.Equal(m.Methods, []string{"certificate"}) {
			t.Errorf("signed in as %+v", m)
		}
		b.cookies[TicketCookie] = kept
		b.call("POST", "/login/certificate", nil).want(409, "sign_in_stale")
		r.browser(office).call("POST", "/login/certificate", nil).want(409, "sign_in_stale")
		_, _, kept, _ = d.knock(&good, tls.VersionTLS13)
		r.clock.Add(ticketLife + time.Second)
		b.cookies[TicketCookie] = kept
		b.call("POST", "/login/certificate", nil).want(409, "sign_in_stale")
		if r.count(audit.LoginFailed, "revoked_certificate") == 0 || r.count(audit.LoginSucceeded, "methods:certificate") != 1 {
			t.Error("certificates are not audited as they should be")
		}
		// What came by the authority ends with it; a ticket of it is worth nothing.
		byPassword := r.browser(office).signIn("jane")
		_, _, kept, _ = d.knock(&good, tls.VersionTLS13)
		late := r.browser(office)
		late.cookies[TicketCookie] = kept
		b.call("GET", "/me", nil).want(200, "")
		if err := r.deleteAnchor(t.Context(), tester, a.ID, func(int64) error { return nil }); err != nil {
			t.Fatal(err)
		}
		b.call("GET", "/me", nil).want(401, "unauthenticated")
		late.call("POST", "/login/certificate", nil).want(409, "sign_in_stale")
		byPassword.call("GET", "/me", nil).want(200, "")
		d.wait(false)
	})
}

func TestDoorLeavesNothing(t *testing.T) {
	d := dbtest.SQLite(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("open and close", func(t *testing.T) {
		r := newRig(t, d)
		door := r.openDoor()
		ca := newAuthority(t, "staff", nil)
		a := r.anchor(ca, nil)
		door.wait(true)
		door.knock(nil, tls.VersionTLS13)
		if err := r.deleteAnchor(t.Context(), tester, a.ID, func(int64) error { return nil }); err != nil {
			t.Fatal(err)
		}
		door.wait(false)
		r.anchor(ca, nil)
		door.wait(true)
	})
}

func TestRefusedCertificatesAreLimited(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	d := r.openDoor()
	r.anchor(newAuthority(t, "staff", nil), nil)
	foreign := newAuthority(t, "staff", nil).issue("jane", nil)
	var status int
	for range 3 { // each knocks twice
		status, _, _, _ = d.knock(&foreign, tls.VersionTLS13)
	}
	if status != http.StatusTooManyRequests {
		t.Errorf("the sixth refused certificate: %d", status)
	}
}

func TestTrustJudges(t *testing.T) {
	root := newAuthority(t, "root", nil)
	middle := newAuthority(t, "middle", root)
	leaf := middle.issue("jane", nil)
	now := time.Now()
	judge := func(bundle, crl string, config AnchorConfig, sent ...*x509.Certificate) error {
		t.Helper()
		tr, err := newTrust(Anchor{ID: "a", Bundle: bundle, CRL: crl, Config: config})
		if err != nil {
			t.Fatal(err)
		}
		_, err = tr.judge(append([]*x509.Certificate{leaf.Leaf}, sent...), now)
		return err
	}
	both := root.pem() + middle.pem()
	none, need := AnchorConfig{}, AnchorConfig{RequireCRL: true}
	middleRevoked := root.crl(1, time.Hour, tls.Certificate{Leaf: middle.cert})
	for _, c := range []struct {
		name, bundle, crl string
		config            AnchorConfig
		sent              []*x509.Certificate
		want              error
	}{
		{"the client sends the intermediate", root.pem(), "", none, []*x509.Certificate{middle.cert}, nil},
		{"nobody has the intermediate", root.pem(), "", none, nil, errForeign},
		{"the bundle has it", both, "", none, nil, nil},
		{"only the intermediate is trusted", middle.pem(), "", none, nil, nil},
		{"no list, and one is needed", both, "", need, nil, errNoCRL},
		{"a list of one of two authorities", both, middle.crl(1, time.Hour), need, nil, errNoCRL},
		{"lists of both", both, middle.crl(1, time.Hour) + root.crl(1, time.Hour), need, nil, nil},
		{"a stale list", both, middle.crl(1, -2*time.Minute) + root.crl(1, time.Hour), none, nil, errNoCRL},
		{"stale and revoked", both, middle.crl(1, -2*time.Minute, leaf), none, nil, errRevoked},
		{"revoked", both, middle.crl(1, time.Hour, leaf), none, nil, errRevoked},
		{"the intermediate is revoked", both, middleRevoked, none, nil, errRevoked},
		{"a list by somebody else of the same name", both, newAuthority(t, "middle", nil).crl(9, time.Hour, leaf), none, nil, nil},
	} {
		if err := judge(c.bundle, c.crl, c.config, c.sent...); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestNamesOfCertificates(t *testing.T) {
	ca := newAuthority(t, "root", nil)
	upn := func(name string) pkix.Extension {
		text, err := asn1.MarshalWithParams(name, "utf8")
		if err != nil {
			t.Fatal(err)
		}
		oid, err := asn1.Marshal(oidUPN)
		if err != nil {
			t.Fatal(err)
		}
		wrapped, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: text})
		if err != nil {
			t.Fatal(err)
		}
		names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: append(oid, wrapped...)}})
		if err != nil {
			t.Fatal(err)
		}
		return pkix.Extension{Id: oidSubjectAltName, Value: names}
	}
	mail := ca.issue("Jane Doe 0815", func(c *x509.Certificate) {
		c.EmailAddresses, c.Subject.SerialNumber = []string{"Jane@example.org", "jane@home.example"}, "P-0815"
		c.URIs = []*url.URL{{Scheme: "urn", Opaque: "user:jane"}}
	})
	principal := ca.issue("x", func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{upn("Jane@corp.example")} })
	for _, c := range []struct {
		cert           tls.Certificate
		field, pattern string
		want           []string
	}{
		{mail, "subject_cn", "", []string{"jane doe 0815"}},
		{mail, "subject_cn", `.* ([0-9]+)`, []string{"0815"}},
		{mail, "subject_cn", `Jane`, nil}, // the whole value must match
		{mail, "subject_serial", "", []string{"p-0815"}},
		{mail, "san_email", `(.*)@example\.org`, []string{"jane"}},
		{mail, "san_email", "", []string{"jane@example.org", "jane@home.example"}},
		{ca.issue("admİn", func(*x509.Certificate) {}), "subject_cn", "", []string{"admİn"}}, // not admin
		{mail, "san_uri", "urn:user:(.*)", []string{"jane"}},
		{mail, "san_upn", "", nil},
		{principal, "san_upn", `(.*)@corp\.example`, []string{"jane"}},
	} {
		tr, err := newTrust(Anchor{Bundle: ca.pem(), Config: AnchorConfig{Field: c.field, Pattern: c.pattern}})
		if err != nil {
			t.Fatal(err)
		}
		if got := tr.names(c.cert.Leaf); !slices.Equal(got, c.want) {
			t.Errorf("%s %q: %v, want %v", c.field, c.pattern, got, c.want)
		}
	}
}

func TestAnchorsAreManaged(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	ca := newAuthority(t, "staff", nil)
	root, manager := r.admin(), r.manager()
	draft := obj{"name": "cards", "enabled": true, "bundle_pem": ca.pem(), "config": obj{"field": "subject_cn"}}
	manager.call("POST", "/certificate-anchors", draft).want(403, "exceeds_own_rights")
	var made AnchorView
	root.call("POST", "/certificate-anchors", draft).want(201, "").into(&made)
	path := "/certificate-anchors/" + made.ID
	leaf := ca.issue("jane", nil)
	notCA := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Leaf.Raw}))
	for field, bad := range map[string]obj{
		"body.bundle_pem":     {"name": "b", "enabled": true, "bundle_pem": notCA, "config": obj{"field": "subject_cn"}},
		"body.config.pattern": {"name": "b", "enabled": true, "bundle_pem": ca.pem(), "config": obj{"field": "subject_cn", "pattern": "("}},
		"body.config.crl_url": {"name": "b", "enabled": true, "bundle_pem": ca.pem(), "config": obj{"field": "subject_cn", "crl_url": "file:///etc/passwd"}},
	} {
		if a := root.call("POST", "/certificate-anchors", bad).want(422, "invalid"); !strings.Contains(a.body, field) {
			t.Errorf("%s is not named: %s", field, a.body)
		}
	}
	manager.call("PUT", path+"/crl", obj{"crl_pem": ca.crl(5, time.Hour, leaf)}).want(200, "").into(&made)
	if made.CRLEntries != 1 || made.CRLUntil.IsZero() {
		t.Errorf("with a list: %+v", made)
	}
	root.call("PUT", path+"/crl", obj{"crl_pem": ca.crl(4, time.Hour)}).want(422, "invalid") // an older one
	root.call("PUT", path+"/crl", obj{"crl_pem": newAuthority(t, "staff", nil).crl(6, time.Hour)}).want(422, "invalid")
	root.call("PUT", path+"/crl", obj{"crl_pem": "x"}).want(422, "invalid")
	manager.call("DELETE", path, nil, "If-Match", "*").want(403, "exceeds_own_rights")
	draft["name"] = "smart cards"
	root.call("PUT", path, draft, "If-Match", `"1"`).want(412, "precondition_failed")
	root.call("PUT", path, draft, "If-Match", "*").want(200, "").into(&made)
	if made.Name != "smart cards" || made.CRLEntries != 1 {
		t.Errorf("changed: %+v", made)
	}
	root.call("DELETE", path, nil, "If-Match", "*").want(204, "")
}

func FuzzUPN(f *testing.F) {
	f.Add([]byte{0x30, 0x00})
	f.Fuzz(func(t *testing.T, value []byte) {
		c := &x509.Certificate{Extensions: []pkix.Extension{{Id: oidSubjectAltName, Value: value}}}
		if n := len(upns(c)); n > maxNames {
			t.Errorf("%d names", n)
		}
	})
}

func FuzzParseCRLs(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if list, err := parseCRLs(data); err == nil && len(list) > maxCRLs {
			t.Errorf("%d lists", len(list))
		}
	})
}
