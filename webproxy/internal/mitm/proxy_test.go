package mitm

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

func TestForwards(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		w.Header().Set("X-Seen", req.Proto+" "+req.Host+" "+req.URL.RequestURI()+req.Header.Get("X-Forwarded-For")+req.Header.Get("Via")+req.Header.Get("Proxy-Authorization"))
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%s %d", req.Method, len(b))
		w.Header().Set("X-Sum", "42")
	}), nil)
	r.put("con_1", 1, at+"/start", webrule.Policy{}, nil)
	for _, h2 := range []bool{false, true} {
		c := r.browser("con_1", h2)
		got := r.do(c, "POST", at+"/a%2Fb/%C3%BC?x=1&y=%20", strings.Repeat("b", 100_000))
		u, _ := url.Parse(at)
		proto := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2] // on both sides
		if want := proto + " " + u.Host + " /a%2Fb/%C3%BC?x=1&y=%20"; got.status != 200 || got.body != "POST 100000" || got.header.Get("X-Seen") != want {
			t.Errorf("h2 %v: %+v, want seen %q", h2, got, want)
		}
		if got.proto != proto {
			t.Errorf("the browser's side speaks %s, want %s", got.proto, proto)
		}
	}
	e := r.event("request", map[string]string{"method": "POST", "status": "200", "bytes_out": "100000", "bytes_in": "11"})
	if !strings.HasSuffix(e["url"], "/a%2Fb/%C3%BC?x=1&y=%20") || e["ms"] == "" {
		t.Errorf("recorded: %v", e)
	}
}

// A rule about a method holds for every method that an application may take
// the request to have.
func TestOverriddenMethods(t *testing.T) {
	r := newRig(t)
	var hits atomic.Int64
	app := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { hits.Add(1); fmt.Fprint(w, "hello") }), nil)
	r.put("con_1", 1, app+"/", webrule.Policy{Deny: []webrule.Rule{{Methods: []string{"DELETE"}, Path: "/admin"}}}, nil)
	c := r.browser("con_1", false)
	for _, x := range []struct {
		url    string
		header []string
		want   int
	}{
		{"/admin", []string{"X-HTTP-Method-Override", "DELETE"}, 403},
		{"/admin", []string{"x-http-method", "delete"}, 403},
		{"/admin", []string{"X-Method-Override", " DELETE "}, 403},
		{"/admin", []string{"X-HTTP-Method-Override", "PUT"}, 200},
		{"/admin", []string{"X_HTTP_METHOD_OVERRIDE", "DELETE"}, 403}, // the same to CGI and its like
		{"/admin?a=1&_method=DELETE", nil, 403},
		{"/admin?a=1;_method=DELETE", nil, 403},
		{"/admin?a=1&%5Fmethod=%44ELETE", nil, 403},
		{"/admin?_method=%zz", nil, 403},
		{"/admin?_method=put", nil, 200},
		{"/other?_method=DELETE", []string{"X-HTTP-Method-Override", "DELETE"}, 200},
	} {
		before := hits.Load()
		got := r.do(c, "POST", app+x.url, "", x.header...)
		if got.status != x.want || (hits.Load() > before) != (x.want == 200) {
			t.Errorf("POST %s %q: %d, the target was asked %d times", x.url, x.header, got.status, hits.Load()-before)
		}
	}
}

// Where windows are forbidden pages are told so, from the next one on, and keep
// the policies of their own; everything else is left alone.
func TestNoPopups(t *testing.T) {
	r := newRig(t)
	const own = "default-src 'self'; sandbox allow-scripts allow-popups"
	app := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header()["Content-Type"] = []string{req.URL.Query().Get("kind")}
		w.Header().Set("Content-Security-Policy", own)
		fmt.Fprint(w, "hello")
	}), nil)
	policies := func(c *http.Client, kind string) string {
		return strings.Join(r.do(c, "GET", app+"/?kind="+url.QueryEscape(kind), "").header.Values("Content-Security-Policy"), " | ")
	}
	c := r.browser("con_1", false)
	forbid := func(in *wire.WebProxySession) { in.NoPopups = true }
	r.put("con_1", 1, app+"/", webrule.Policy{}, nil)
	if got := policies(c, "text/html"); got != own {
		t.Errorf("where windows are permitted: %q", got)
	}
	r.put("con_1", 2, app+"/", webrule.Policy{}, forbid)
	for kind, page := range map[string]bool{"text/html; charset=utf-8": true, "application/xhtml+xml": true, "image/svg+xml": true, "text/xml": true, "": true,
		"application/pdf": false, "text/css": false, "application/json": false, "image/png": false} {
		got := policies(c, kind)
		if page && (!strings.HasPrefix(got, own+" | sandbox ") || strings.Contains(strings.TrimPrefix(got, own), "allow-popups") || !strings.Contains(got, " allow-same-origin allow-scripts ")) || !page && got != own {
			t.Errorf("%s: %q", kind, got)
		}
	}
	r.put("con_1", 3, app+"/", webrule.Policy{}, nil)
	if got := policies(c, "text/html"); got != own {
		t.Errorf("permitted again: %q", got)
	}
}

func TestRules(t *testing.T) {
	r := newRig(t)
	var hits atomic.Int64
	h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { hits.Add(1); fmt.Fprint(w, "hello from ", req.Host) })
	app, other := r.origin("app.test", h, nil), r.origin("other.test", h, nil)
	host := func(s string) string { u, _ := url.Parse(s); return u.Host }
	p := webrule.Policy{Learn: true, Deny: []webrule.Rule{{Host: host(app), Path: "/admin"}}}
	r.put("con_1", 1, app+"/", p, nil)
	c := r.browser("con_1", false)
	if got := r.do(c, "GET", app+"/x", ""); got.status != 200 {
		t.Fatalf("own origin: %+v", got)
	}
	for _, to := range []string{app + "/admin", app + "/%61dmin", app + "//admin/x", other + "/x"} {
		if got := r.do(c, "GET", to, "", "Sec-Fetch-Dest", "document"); got.status != 403 || !strings.Contains(got.body, "not part of your session") || !strings.Contains(got.header.Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %+v", to, got)
		}
	}
	if got := r.do(c, "GET", other+"/x.js", "", "Sec-Fetch-Dest", "script"); got.status != 403 || strings.Contains(got.body, "<") {
		t.Errorf("a script gets a page: %+v", got)
	}
	// The tunnel is for app; what is asked for inside is another host.
	if got := r.do(c, "GET", app+"/x", "", "Host", host(other)); got.status != 403 {
		t.Errorf("another inner host: %+v", got)
	}
	if n := hits.Load(); n != 1 {
		t.Errorf("servers were asked %d times, want 1", n)
	}
	e := r.event("blocked", map[string]string{"reason": "no_rule", "url": other + "/x"})
	if want := fmt.Sprintf(`{"host":%q,"scheme":"https"}`, host(other)); e["proposal"] != want || e["learn"] != "true" {
		t.Errorf("proposal %s, want %s", e["proposal"], want)
	}
	r.event("blocked", map[string]string{"reason": "denied", "url": app + "/admin"})
	r.event("blocked", map[string]string{"reason": "other_host"})
	// A change holds for the next request on the same connection.
	p.Allow, p.Deny = []webrule.Rule{{Host: host(other)}}, nil
	r.put("con_1", 2, app+"/", p, nil)
	for _, to := range []string{app + "/admin", other + "/x"} {
		if got := r.do(c, "GET", to, ""); got.status != 200 {
			t.Errorf("after the change, %s: %+v", to, got)
		}
	}
	// An older revision changes nothing.
	if ack := r.sessions.Put(wire.WebProxySession{ID: "con_1", Revision: 1, StartURL: app, Carrier: "nod_c", Key: testKey, Policy: []byte("{}")}); ack.Revision != 2 {
		t.Errorf("an older revision: %+v", ack)
	}
}

func TestAdmission(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }), nil)
	r.put("con_1", 1, at, webrule.Policy{}, nil)
	closed := func(what string, c net.Conn, err error) {
		t.Helper()
		if err != nil {
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\n\r\n")
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("%s is served", what)
		}
	}
	ctx := t.Context()
	c, err := r.dial(ctx, "nod_other", "con_1", testKey)
	closed("another carrier", c, err)
	e := r.event("blocked", map[string]string{"reason": "foreign_carrier"})
	if e["carrier"] != "nod_other" {
		t.Errorf("event: %v", e)
	}
	c, err = r.dial(ctx, "nod_c", "con_1", strings.Repeat("x", 43))
	closed("another key", c, err)
	c, err = r.dial(ctx, "nod_c", "con_2", testKey)
	closed("another session", c, err)
	for _, kind := range []string{"extender", "router"} {
		id, err := r.fleet.Edge(kind, "nod_c")
		if err != nil {
			t.Fatal(err)
		}
		c, err := tls.Dial("tcp", r.addr, &tls.Config{Certificates: []tls.Certificate{id.Certificate}, InsecureSkipVerify: true})
		if err == nil {
			fmt.Fprintf(c, "CAPONIER/1 con_1 %s\r\n", testKey)
		}
		closed("a node of kind "+kind, c, err)
	}
	foreign := r.web.issue(t, nil, "carrier")
	tc, err := tls.Dial("tcp", r.addr, &tls.Config{Certificates: []tls.Certificate{foreign}, InsecureSkipVerify: true})
	closed("a certificate of another CA", tc, err)
	tc, err = tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true})
	closed("no certificate", tc, err)
	tc, err = tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12})
	closed("TLS 1.2", tc, err)
	if got := r.do(r.browser("con_1", false), "GET", at, ""); got.status != 200 {
		t.Errorf("the right one: %+v", got)
	}
	// The cleartext port serves sessions without a carrier only.
	via := func(user, key string) int {
		tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: r.clear, User: url.UserPassword(user, key)}), TLSClientConfig: &tls.Config{RootCAs: r.root.pool()}}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get(at)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := via("con_1", testKey); got != 0 {
		t.Errorf("a browser's session on the cleartext port: %d", got)
	}
	r.put("con_api", 1, at, webrule.Policy{}, func(s *wire.WebProxySession) { s.Carrier = "" })
	if got := via("con_api", "wrong"); got != 0 {
		t.Errorf("a wrong key on the cleartext port: %d", got)
	}
	if got := via("con_api", testKey); got != 200 {
		t.Errorf("an API client: %d", got)
	}
}

func TestServersCertificates(t *testing.T) {
	r := newRig(t)
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "reached") })
	with := func(cert tls.Certificate) func(*httptest.Server) {
		return func(s *httptest.Server) { s.TLS.Certificates = []tls.Certificate{cert} }
	}
	stranger := newAuthority(t, "Stranger")
	self := newAuthority(t, "app.test")
	selfCert := tls.Certificate{Certificate: [][]byte{self.cert.Raw}, PrivateKey: self.key}
	revoked := r.web.issue(t, nil, "app.test")
	staple, err := ocsp.CreateResponse(r.web.cert, r.web.cert, ocsp.Response{Status: ocsp.Revoked, SerialNumber: revoked.Leaf.SerialNumber, ThisUpdate: time.Now().Add(-time.Minute),
		NextUpdate: time.Now().Add(time.Hour), RevokedAt: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}, r.web.key)
	if err != nil {
		t.Fatal(err)
	}
	revoked.OCSPStaple = staple
	good := r.origin("app.test", h, nil)
	for i, c := range []struct {
		name   string
		change func(*httptest.Server)
		tls    webrule.TLS
		want   string // "": reached
	}{
		{name: "good", change: nil},
		{name: "expired", change: with(r.web.issue(t, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-48*time.Hour), time.Now().Add(-time.Hour)
		}, "app.test")), want: "has expired"},
		{name: "wrong host", change: with(r.web.issue(t, nil, "elsewhere.test")), want: "for another name: elsewhere.test"},
		{name: "stranger", change: with(stranger.issue(t, nil, "app.test")), want: "unknown authority"},
		{name: "stranger, anchored", change: with(stranger.issue(t, nil, "app.test")), tls: webrule.TLS{Anchors: stranger.pem(), Only: true}},
		{name: "self-signed", change: with(selfCert), want: "self-signed"},
		{name: "self-signed, unchecked", change: with(selfCert), tls: webrule.TLS{Unchecked: true}},
		{name: "other name, overridden", change: with(r.web.issue(t, nil, "elsewhere.test")), tls: webrule.TLS{ServerName: "elsewhere.test"}},
		{name: "TLS 1.0 only", change: func(s *httptest.Server) { s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }, want: "protocol version"},
		{name: "TLS 1.0 permitted", change: func(s *httptest.Server) { s.TLS.MinVersion, s.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }, tls: webrule.TLS{Min: "1.0", Legacy: true}},
		{name: "revoked, as it says itself", change: with(revoked), want: "was revoked on 2026-03-04"},
		{name: "revocation not known", change: nil, tls: webrule.TLS{Revocation: "hard"}, want: "could not be found out whether the certificate was revoked"},
		{name: "revocation not known, and not minded", change: nil, tls: webrule.TLS{Revocation: "soft"}},
		{name: "only other anchors", change: nil, tls: webrule.TLS{Anchors: stranger.pem(), Only: true}, want: "unknown authority"},
	} {
		at := good
		if c.change != nil {
			at = r.origin("app.test", h, c.change)
		}
		id := fmt.Sprint("con_", i)
		r.put(id, 1, at, webrule.Policy{TLS: c.tls}, nil)
		got := r.do(r.browser(id, false), "GET", at+"/", "")
		if c.want == "" && (got.status != 200 || got.body != "reached") || c.want != "" && (got.status != 502 || !strings.Contains(got.body, c.want)) {
			t.Errorf("%s: %d %s, want %q", c.name, got.status, got.body, c.want)
		}
	}
}

func TestWhereItDials(t *testing.T) {
	r := newRig(t)
	h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { fmt.Fprint(w, "reached") })
	at := r.origin("app.test", h, nil)
	other := r.origin("b.test", h, nil)
	ub, _ := url.Parse(other)
	// Loopback is refused unless it is meant.
	r.put("con_1", 1, at, webrule.Policy{Private: []string{}}, nil)
	if got := r.do(r.browser("con_1", false), "GET", at, ""); got.status != 403 || !strings.Contains(got.body, "loopback") {
		t.Errorf("loopback: %+v", got)
	}
	for _, host := range []string{"169.254.169.254", "[::1]", "0.0.0.0"} {
		id := "con_" + strings.Trim(host, "[]")
		r.put(id, 1, "https://"+host+"/", webrule.Policy{Private: []string{"10.0.0.0/8"}}, nil)
		if got := r.do(r.browser(id, false), "GET", "https://"+host+"/", ""); got.status != 403 || !strings.Contains(got.body, "may not be reached") {
			t.Errorf("%s: %+v", host, got)
		}
	}
	// A name that is meant, however it is written.
	for i, name := range []string{"app.test", "App.Test."} {
		id := fmt.Sprint("con_name", i)
		r.put(id, 1, at, webrule.Policy{Private: []string{name}}, nil)
		if got := r.do(r.browser(id, false), "GET", at, ""); got.status != 200 {
			t.Errorf("the private name %s: %+v", name, got)
		}
	}
	// Through core: the target's site, and another one by rule.
	r.put("con_site", 1, at, webrule.Policy{Allow: []webrule.Rule{{Host: ub.Host, Site: "vpc-b"}, {Host: "nowhere.test:1", Site: "vpc-x"}}}, func(s *wire.WebProxySession) { s.Site = "vpc-a" })
	c := r.browser("con_site", true)
	if got := r.do(c, "GET", at, ""); got.status != 200 {
		t.Errorf("through the site: %+v", got)
	}
	r.mu.Lock()
	if len(r.dests) == 0 || r.dests[0] != strings.TrimPrefix(at, "https://") {
		t.Errorf("core was asked for %v", r.dests)
	}
	r.mu.Unlock()
	if got := r.do(c, "GET", other, ""); got.status != 200 {
		t.Errorf("through another site: %+v", got)
	}
	if got := r.do(c, "GET", "https://nowhere.test:1/", ""); got.status != 403 || !strings.Contains(got.body, "no site vpc-x") {
		t.Errorf("through no site: %+v", got)
	}
}

func TestStreams(t *testing.T) {
	r := newRig(t)
	release := make(chan struct{})
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "data: one\n\n")
			http.NewResponseController(w).Flush()
			select {
			case <-release:
				fmt.Fprint(w, "data: two\n\n")
			case <-req.Context().Done():
			}
		case "/big":
			b := make([]byte, 1<<20)
			for range 64 {
				w.Write(b)
			}
		case "/up":
			n, _ := io.Copy(io.Discard, req.Body)
			fmt.Fprint(w, n)
		}
	}), nil)
	// Armed, so that everything is searched.
	armed := webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "x", Kind: webrule.Header, Origin: "https://none.test", Field: "X-A"}}}}
	for i, p := range []webrule.Policy{{}, armed} {
		id := fmt.Sprint("con_", i)
		r.put(id, 1, at, p, nil)
		c := r.browser(id, i == 1)
		resp, err := c.Get(at + "/events")
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		if err != nil || line != "data: one\n" {
			t.Errorf("first event before the answer ends: %q, %v", line, err)
		}
		resp.Body.Close()
		if resp, err = c.Get(at + "/big"); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != 64<<20 || err != nil {
			t.Errorf("a big answer: %d bytes, %v", n, err)
		}
		resp.Body.Close()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", at+"/up", io.LimitReader(zeros{}, 64<<20))
		if resp, err = c.Do(req); err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != fmt.Sprint(64<<20) {
			t.Errorf("a big request: %s bytes arrived", b)
		}
		resp.Body.Close()
	}
	// A stream whose rule is gone is cut.
	c := r.browser("con_0", false)
	resp, err := c.Get(at + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.put("con_0", 2, at, webrule.Policy{Own: true}, nil)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a stream whose rule is gone ends as if it were complete")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSessionEnds(t *testing.T) {
	r := newRig(t)
	started := make(chan struct{}, 1)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		started <- struct{}{}
		<-req.Context().Done()
	}), nil)
	r.put("con_1", 1, at, webrule.Policy{}, nil)
	c := r.browser("con_1", false)
	done := make(chan error, 1)
	go func() {
		_, err := c.Get(at)
		done <- err
	}()
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if ack := r.sessions.End(ctx, "con_1"); ack.Error != nil {
		t.Fatalf("end: %+v", ack)
	}
	<-done
	if n := len(r.sessions.States().Sessions); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	if _, err := c.Get(at); err == nil {
		t.Error("a session that has ended is served")
	}
	r.mu.Lock()
	delivered := len(r.eventsLocked("request"))
	r.mu.Unlock()
	if delivered != 1 {
		t.Errorf("%d requests were recorded when the end was answered", delivered)
	}
	// Without core a session lasts as long as its lease.
	r.put("con_2", 1, at, webrule.Policy{}, func(s *wire.WebProxySession) { s.LeaseS = 1 })
	r.mu.Lock()
	live := r.tunnel
	r.tunnel = nil
	r.mu.Unlock()
	until(t, "the end of a session without core", func() bool { return r.sessions.Find("con_2") == nil })
	r.mu.Lock()
	r.tunnel = live
	r.mu.Unlock()
	r.wait("core hears of the end", func() bool { return len(r.ended) == 1 && r.ended[0].Session == "con_2" && r.ended[0].Reason == "error" })
}
