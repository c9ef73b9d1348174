package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// outcome is what came of a connection, in a word.
func outcome(err error, note string) string {
	_, revoked := errors.AsType[*RevokedError](err)
	_, unknown := errors.AsType[*UnknownStatusError](err)
	switch {
	case revoked:
		return "revoked"
	case unknown:
		return "refused"
	case err != nil:
		return err.Error()
	case note != "":
		return "noted"
	}
	return "good"
}

// What an authority says, how it says it, and what each policy makes of it.
func TestRevocation(t *testing.T) {
	a := newCA(t, "Web CA")
	stranger := newCA(t, "Stranger")
	slow := make(chan struct{})
	t.Cleanup(func() { close(slow) })
	usage := func(u ...x509.ExtKeyUsage) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtKeyUsage = u }
	}
	appointed, other := a.issue(usage(x509.ExtKeyUsageOCSPSigning)), a.issue(usage(x509.ExtKeyUsageServerAuth))
	type answers func(cert *x509.Certificate) []byte
	says := func(status int, change func(*ocsp.Response), by ...tls.Certificate) answers {
		return func(c *x509.Certificate) []byte { return a.answer(c, status, change, by...) }
	}
	lists := func(change func(*x509.RevocationList), revoked bool) answers {
		return func(c *x509.Certificate) []byte {
			if revoked {
				return a.list(change, c)
			}
			return a.list(change)
		}
	}
	idp := func(value string, critical bool) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: oidIDP, Critical: critical, Value: []byte(value)}}
		}
	}
	past := func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}
	for _, c := range []struct {
		name             string
		ocsp, list       answers
		soft, hard       string
		openssl, revoked bool
	}{
		{name: "openssl says good", openssl: true, soft: "good", hard: "good"},
		{name: "openssl says revoked", openssl: true, revoked: true, soft: "revoked", hard: "revoked"},
		{name: "good", ocsp: says(ocsp.Good, nil), soft: "good", hard: "good"},
		{name: "revoked", ocsp: says(ocsp.Revoked, nil), soft: "revoked", hard: "revoked"},
		{name: "unknown", ocsp: says(ocsp.Unknown, nil), soft: "noted", hard: "refused"},
		{name: "unknown, on the list", ocsp: says(ocsp.Unknown, nil), list: lists(nil, true), soft: "revoked", hard: "revoked"},
		{name: "by somebody appointed", ocsp: says(ocsp.Revoked, nil, appointed), soft: "revoked", hard: "revoked"},
		{name: "by another of its certificates", ocsp: says(ocsp.Good, nil, other), soft: "noted", hard: "refused"},
		{name: "by a stranger", ocsp: func(c *x509.Certificate) []byte { return stranger.answer(c, ocsp.Good, nil) }, soft: "noted", hard: "refused"},
		{name: "about another certificate", ocsp: func(*x509.Certificate) []byte { return a.answer(other.Leaf, ocsp.Good, nil) }, soft: "noted", hard: "refused"},
		{name: "out of date", ocsp: says(ocsp.Good, func(r *ocsp.Response) {
			r.ThisUpdate, r.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}), soft: "noted", hard: "refused"},
		{name: "ageless and old", ocsp: says(ocsp.Good, func(r *ocsp.Response) { r.ThisUpdate, r.NextUpdate = time.Now().Add(-25*time.Hour), time.Time{} }), soft: "noted", hard: "refused"},
		{name: "of the future", ocsp: says(ocsp.Good, func(r *ocsp.Response) { r.ThisUpdate = time.Now().Add(time.Hour) }), soft: "noted", hard: "refused"},
		{name: "rubbish", ocsp: func(*x509.Certificate) []byte { return []byte("no") }, soft: "noted", hard: "refused"},
		{name: "too long", ocsp: func(*x509.Certificate) []byte { return make([]byte, maxAnswer+1) }, soft: "noted", hard: "refused"},
		{name: "not on the list", list: lists(nil, false), soft: "good", hard: "good"},
		{name: "on the list", list: lists(nil, true), soft: "revoked", hard: "revoked"},
		{name: "list of a stranger", list: func(*x509.Certificate) []byte { return stranger.list(nil) }, soft: "noted", hard: "refused"},
		{name: "list out of date", list: lists(past, false), soft: "noted", hard: "refused"},
		{name: "list too long", list: func(*x509.Certificate) []byte { return make([]byte, maxList+1) }, soft: "noted", hard: "refused"},
		{name: "list of users' certificates", list: lists(idp("\x30\x03\x81\x01\xff", true), true), soft: "revoked", hard: "revoked"},
		{name: "list of authorities only", list: lists(idp("\x30\x03\x82\x01\xff", true), false), soft: "noted", hard: "refused"},
		{name: "indirect list", list: lists(idp("\x30\x03\x84\x01\xff", true), false), soft: "noted", hard: "refused"},
		{name: "list of some reasons", list: lists(idp("\x30\x04\x83\x02\x00\x80", true), false), soft: "noted", hard: "refused"},
		{name: "changes only", list: lists(func(l *x509.RevocationList) {
			l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
		}, false), soft: "noted", hard: "refused"},
		{name: "nobody is named", soft: "noted", hard: "refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var leaf *x509.Certificate
			var named []string
			cert := a.issue(func(x *x509.Certificate) {
				if c.ocsp != nil {
					at, _ := service(t, bytesOf(func() []byte { return c.ocsp(leaf) }))
					x.OCSPServer, named = []string{at}, append(named, hostOf(t, at))
				}
				if c.list != nil {
					at, _ := service(t, bytesOf(func() []byte { return c.list(leaf) }))
					x.CRLDistributionPoints, named = []string{at + "/list.crl"}, append(named, hostOf(t, at))
				}
				if c.openssl {
					x.SerialNumber.SetInt64(int64(5000 + a.next))
					at := (&ca{t: t, cert: a.cert, key: a.key}).openssl(c.revoked, x)
					x.OCSPServer, named = []string{at}, append(named, hostOf(t, at))
				}
			})
			leaf = cert.Leaf
			at := server(t, cert)
			for mode, want := range map[string]string{"": "good", "off": "good", "soft": c.soft, "hard": c.hard} {
				u := upstreamTo(t, at, webrule.Policy{TLS: webrule.TLS{Anchors: a.pem(), Revocation: mode, Responders: named}}, nil)
				err := get(t, u, at)
				note := u.Note(endpoint(t, at))
				if got := outcome(err, note); got != want {
					t.Errorf("%q: %s, want %s (%v %s)", mode, got, want, err, note)
				}
				if e, ok := errors.AsType[*RevokedError](err); ok && !strings.HasSuffix(e.Error(), "2026-03-04") {
					t.Errorf("it says %q", e)
				}
			}
		})
	}
}

// An answer that the server brings along counts whatever the policy, and
// nobody is asked; a certificate that promises one must bring it where it counts.
func TestStapled(t *testing.T) {
	a := newCA(t, "Web CA")
	at, asked := service(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusNotFound) })
	promises := []pkix.Extension{{Id: oidFeature, Value: []byte{0x30, 3, 2, 1, 5}}}
	for _, c := range []struct {
		name                 string
		status               int // -1: none
		promised, shortLived bool
		want                 map[string]string
		asksNobody           bool
	}{
		{name: "good", status: ocsp.Good, want: map[string]string{"off": "good", "soft": "good", "hard": "good"}, asksNobody: true},
		{name: "revoked", status: ocsp.Revoked, want: map[string]string{"off": "revoked", "soft": "revoked", "hard": "revoked"}, asksNobody: true},
		{name: "none", status: -1, want: map[string]string{"off": "good", "soft": "noted", "hard": "refused"}},
		{name: "promised and none", status: -1, promised: true, want: map[string]string{"off": "good", "soft": "noted", "hard": "refused"}, asksNobody: true},
		{name: "promised and good", status: ocsp.Good, promised: true, want: map[string]string{"soft": "good", "hard": "good"}, asksNobody: true},
		{name: "short-lived", status: -1, shortLived: true, want: map[string]string{"soft": "good", "hard": "good"}, asksNobody: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := asked.Load()
			cert := a.issue(func(x *x509.Certificate) {
				x.OCSPServer = []string{at}
				if c.promised {
					x.ExtraExtensions = promises
				}
				if c.shortLived {
					x.ExtraExtensions = []pkix.Extension{{Id: oidNoRevAvail, Value: []byte{5, 0}}}
				}
			})
			if c.status >= 0 {
				cert.OCSPStaple = a.answer(cert.Leaf, c.status, nil)
			}
			to := server(t, cert)
			for mode, want := range c.want {
				u := upstreamTo(t, to, webrule.Policy{TLS: webrule.TLS{Anchors: a.pem(), Revocation: mode, Responders: []string{hostOf(t, at)}}}, nil)
				err := get(t, u, to)
				if got := outcome(err, u.Note(endpoint(t, to))); got != want {
					t.Errorf("%s: %s, want %s (%v)", mode, got, want, err)
				}
			}
			if n := asked.Load() - before; c.asksNobody == (n > 0) {
				t.Errorf("the authority was asked %d times", n)
			}
		})
	}
}

// A certificate must not have the webproxy ask whatever it names: services at
// internal addresses only where the target's rules name them, nothing of
// another scheme, no redirects.
func TestWhoIsAsked(t *testing.T) {
	a := newCA(t, "Web CA")
	good := func(leaf **x509.Certificate) http.HandlerFunc {
		return bytesOf(func() []byte { return a.answer(*leaf, ocsp.Good, nil) })
	}
	for _, c := range []struct {
		name, want string
		named      bool
		url        func(real string) string
		asked      int32
	}{
		{name: "named", named: true, want: "good", asked: 1},
		{name: "not named", want: "it is a loopback address"},
		{name: "private", url: func(string) string { return "http://10.255.255.1/" }, want: "it is in a denied subnet"},
		{name: "metadata", url: func(string) string { return "http://169.254.169.254/latest" }, want: "may not be asked"},
		{name: "own name", url: func(string) string { return "http://app.test/" }, want: "may not be asked"},
		{name: "https", named: true, url: func(s string) string { return strings.Replace(s, "http:", "https:", 1) }, want: "names no OCSP service"},
		{name: "file", url: func(string) string { return "file:///etc/passwd" }, want: "names no OCSP service"},
		{name: "with a login", named: true, url: func(s string) string { return strings.Replace(s, "//", "//a:b@", 1) }, want: "names no OCSP service"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var leaf *x509.Certificate
			real, n := service(t, good(&leaf))
			cert := a.issue(func(x *x509.Certificate) {
				x.OCSPServer = []string{real}
				if c.url != nil {
					x.OCSPServer = []string{c.url(real)}
				}
			})
			leaf = cert.Leaf
			at := server(t, cert)
			p := webrule.Policy{TLS: webrule.TLS{Anchors: a.pem(), Revocation: "hard"}, Private: []string{"127.0.0.0/8"}}
			if c.named {
				p.TLS.Responders = []string{hostOf(t, real)}
			}
			u := upstreamTo(t, at, p, nil)
			err := get(t, u, at)
			if got := outcome(err, ""); c.want == "good" && got != "good" || c.want != "good" && (got != "refused" || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v, want %s", err, c.want)
			}
			if n.Load() != c.asked {
				t.Errorf("it was asked %d times, want %d", n.Load(), c.asked)
			}
		})
	}
	t.Run("redirected", func(t *testing.T) {
		var leaf *x509.Certificate
		real, n := service(t, good(&leaf))
		to, _ := service(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, real, http.StatusTemporaryRedirect) })
		cert := a.issue(func(x *x509.Certificate) { x.OCSPServer = []string{to} })
		leaf = cert.Leaf
		at := server(t, cert)
		u := upstreamTo(t, at, webrule.Policy{TLS: webrule.TLS{Anchors: a.pem(), Revocation: "hard", Responders: []string{hostOf(t, to), hostOf(t, real)}}}, nil)
		if err := get(t, u, at); outcome(err, "") != "refused" || n.Load() != 0 {
			t.Errorf("%v, and %d questions where it leads", err, n.Load())
		}
	})
}

// One question for many connections of many sessions, and again when the
// answer is over; silence is remembered shortly.
func TestAnswersAreKept(t *testing.T) {
	a := newCA(t, "Web CA")
	var leaf *x509.Certificate
	at, n := service(t, bytesOf(func() []byte { return a.answer(leaf, ocsp.Good, nil) }))
	cert := a.issue(func(x *x509.Certificate) { x.OCSPServer = []string{at} })
	leaf = cert.Leaf
	now := time.Now()
	shared := NewRevocations(func() time.Time { return now })
	ask := func() status {
		u := upstreamTo(t, "https://app.test", webrule.Policy{TLS: webrule.TLS{Responders: []string{hostOf(t, at)}}}, func(c *Config) { c.Revocations = shared })
		return u.status(t.Context(), leaf, a.cert, nil, true)
	}
	done := make(chan status)
	for range 20 {
		go func() { done <- ask() }()
	}
	for range 20 {
		if s := <-done; !s.good {
			t.Fatalf("%+v", s)
		}
	}
	if n.Load() != 1 {
		t.Errorf("asked %d times, want once", n.Load())
	}
	now = now.Add(59 * time.Minute)
	ask()
	if now = now.Add(2 * time.Minute); n.Load() != 1 {
		t.Errorf("asked %d times before the answer was over", n.Load())
	}
	if s := ask(); s.good || n.Load() != 2 { // the clock is ahead: what is answered is out of date
		t.Errorf("%+v after %d questions", s, n.Load())
	}
	ask()
	if n.Load() != 2 {
		t.Errorf("asked %d times while it was silent", n.Load())
	}
	now = now.Add(keepSilence)
	if ask(); n.Load() != 3 {
		t.Errorf("asked %d times", n.Load())
	}
	for i := range maxKept + 10 {
		shared.mu.Lock()
		shared.makeRoomLocked()
		shared.kept[[32]byte{byte(i), byte(i >> 8), byte(i >> 16)}] = kept{until: now.Add(time.Hour)}
		shared.mu.Unlock()
	}
	if len(shared.kept) > maxKept {
		t.Errorf("%d answers are kept", len(shared.kept))
	}
}

// A named service of a target with a site is asked through that site.
func TestAskedThroughSite(t *testing.T) {
	a := newCA(t, "Web CA")
	edge, core := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	t.Cleanup(func() { edge.Close(nil); core.Close(nil) })
	cert := a.issue(func(x *x509.Certificate) { x.CRLDistributionPoints = []string{"http://pki.internal/list.crl"} })
	u := upstreamTo(t, "https://app.test", webrule.Policy{TLS: webrule.TLS{Responders: []string{"pki.internal"}}}, func(c *Config) {
		c.Site, c.Tunnel = "plant", func() tunnel.Session { return edge }
	})
	served := make(chan wire.Preface, 1)
	go func() {
		st, err := core.Accept(context.Background())
		if err != nil {
			return
		}
		defer st.Close()
		served <- st.Preface()
		st.Confirm()
		b := make([]byte, 4096)
		if _, err := st.Read(b); err != nil {
			return
		}
		list := a.list(nil, cert.Leaf)
		resp := "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/pkix-crl\r\n\r\n"
		st.Write(append([]byte(resp), list...))
	}()
	s := u.status(t.Context(), cert.Leaf, a.cert, nil, true)
	if s.revoked == nil {
		t.Fatalf("%+v", s)
	}
	if p := <-served; p.Dest != "pki.internal:80" || p.Connection != "con_1" || p.Kind != wire.StreamDial {
		t.Errorf("it was dialled as %+v", p)
	}
}
