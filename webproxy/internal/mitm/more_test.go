package mitm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

func TestWebsockets(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		c, err := websocket.Accept(w, req, &websocket.AcceptOptions{Subprotocols: []string{"chat"}, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, b, err := c.Read(req.Context())
			if err != nil {
				return
			}
			if string(b) == "bye" {
				c.Close(websocket.StatusNormalClosure, "bye "+password)
				return
			}
			if string(b) == "say it" {
				// In pieces: the library writes what it is given as frames.
				w, err := c.Writer(req.Context(), websocket.MessageText)
				if err != nil {
					return
				}
				fmt.Fprint(w, "it is "+password[:5])
				fmt.Fprint(w, password[5:]+".")
				w.Close()
				continue
			}
			if c.Write(req.Context(), kind, b) != nil {
				return
			}
		}
	}), nil)
	r.secret("basic", wire.WebCredential{Username: user, Password: password})
	policy := webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "basic", Kind: webrule.Basic, Origin: at}}}}
	r.put("con_1", 1, at, policy, nil)
	r.put("con_2", 1, at, webrule.Policy{}, nil)
	for _, id := range []string{"con_1", "con_2"} {
		c, _, err := websocket.Dial(t.Context(), strings.Replace(at, "https", "wss", 1)+"/ws", &websocket.DialOptions{HTTPClient: r.browser(id, false), Subprotocols: []string{"chat"}, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		if c.Subprotocol() != "chat" {
			t.Errorf("subprotocol %q", c.Subprotocol())
		}
		for _, n := range []int{0, 1, 125, 126, 65535, 65536, 300_000} {
			want := bytes.Repeat([]byte("x"), n)
			if err := c.Write(t.Context(), websocket.MessageBinary, want); err != nil {
				t.Fatal(err)
			}
			if kind, got, err := c.Read(t.Context()); err != nil || kind != websocket.MessageBinary || !bytes.Equal(got, want) {
				t.Fatalf("%s: a message of %d bytes: %d, %v", id, n, len(got), err)
			}
		}
		if err := c.Write(t.Context(), websocket.MessageText, []byte("say it")); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"con_1": "it is " + maskText + ".", "con_2": "it is " + password + "."}[id]
		if _, got, err := c.Read(t.Context()); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", id, got, err, want)
		}
		if id != "con_2" {
			// Scripts read the reason with which a server closes.
			if err := c.Write(t.Context(), websocket.MessageText, []byte("bye")); err != nil {
				t.Fatal(err)
			}
			_, _, err := c.Read(t.Context())
			if e, ok := errors.AsType[websocket.CloseError](err); !ok || e.Reason != "bye "+maskText {
				t.Errorf("closed with %v", err)
			}
			continue
		}
		// One whose rule is gone is cut.
		r.put("con_2", 2, at, webrule.Policy{Own: true}, nil)
		if _, _, err := c.Read(t.Context()); err == nil {
			t.Error("a websocket whose rule is gone goes on")
		}
	}
	r.event("request", map[string]string{"status": "101", "type": "websocket"})
}

// A websocket without TLS comes by CONNECT too; plain requests name the whole URL.
func TestPlainTargets(t *testing.T) {
	r := newRig(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { fmt.Fprint(w, "plain ", req.Host, req.URL.Path) }))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	host := "app.test:" + port
	at := "http://" + host
	r.put("con_1", 1, at, webrule.Policy{}, nil)
	if got := r.do(r.browser("con_1", false), "GET", at+"/x", ""); got.status != 200 || got.body != "plain "+host+"/x" {
		t.Errorf("absolute URL: %+v", got)
	}
	c, err := r.dial(t.Context(), "nod_c", "con_1", testKey)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	br := bufio.NewReader(c)
	ask := func(text string) *http.Response {
		t.Helper()
		fmt.Fprint(c, text)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if resp := ask("CONNECT " + host + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n"); resp.StatusCode != 200 {
		t.Fatalf("CONNECT: %d", resp.StatusCode)
	}
	resp := ask("GET /y HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "plain "+host+"/y" {
		t.Errorf("inside CONNECT: %d %s", resp.StatusCode, b)
	}
	resp = ask("GET /y HTTP/1.1\r\nHost: other.test\r\n\r\n")
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != 403 {
		t.Errorf("another host inside CONNECT: %d", resp.StatusCode)
	}
	if got := r.do(r.browser("con_1", false), "GET", "http://other.test/x", ""); got.status != 403 {
		t.Errorf("another plain host: %+v", got)
	}
	// What is no proxy request.
	for text, want := range map[string]int{
		"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n":                                    400,
		"GET https://app.test/ HTTP/1.1\r\nHost: app.test\r\n\r\n":                    400,
		"GET http://app.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n":                   403,
		"CONNECT 2130706433:80 HTTP/1.1\r\nHost: 2130706433:80\r\n\r\n":               400,
		"CONNECT aus5.mozilla.org:443 HTTP/1.1\r\nHost: aus5.mozilla.org:443\r\n\r\n": 403,
	} {
		c, err := r.dial(t.Context(), "nod_c", "con_1", testKey)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, text)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%q: %+v, %v, want %d", text, resp, err, want)
		}
		c.Close()
	}
}

func TestClientCertificates(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprint(w, "hello ", req.TLS.PeerCertificates[0].Subject.CommonName)
	}), func(s *httptest.Server) {
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, r.web.pool()
	})
	cert := r.web.issue(t, nil, "alice")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	r.secret("cert", wire.WebCredential{Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})),
		Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))})
	p := webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "cert", Kind: webrule.ClientCert, Origin: at}}}}
	r.put("con_1", 1, at, p, nil)
	if got := r.do(r.browser("con_1", true), "GET", at, ""); got.body != "hello alice" {
		t.Errorf("%+v", got)
	}
	r.event("injection", map[string]string{"id": "cert", "url": at + "/", "outcome": "used"})
	r.put("con_2", 1, at, webrule.Policy{}, nil)
	if got := r.do(r.browser("con_2", true), "GET", at, ""); got.status != 502 {
		t.Errorf("without a certificate: %+v", got)
	}
	r.secret("cert", wire.WebCredential{Certificate: "x", Key: "y"})
	r.put("con_3", 1, at, p, nil)
	if got := r.do(r.browser("con_3", true), "GET", at, ""); got.status != 502 {
		t.Errorf("with a broken one: %+v", got)
	}
}

// scan is an ICAP server that finds the word virus.
func scan(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			br := bufio.NewReader(c)
			var all strings.Builder
			for !strings.HasSuffix(all.String(), "\r\n0; ieof\r\n\r\n") && !strings.HasSuffix(all.String(), "\r\n0\r\n\r\n") {
				b, err := br.ReadByte()
				if err != nil {
					break
				}
				all.WriteByte(b)
			}
			if strings.Contains(all.String(), "a virus") {
				fmt.Fprint(c, "ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Resolution=2; Threat=Test;\r\nEncapsulated: res-hdr=0, null-body=26\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n")
			} else {
				fmt.Fprint(c, "ICAP/1.0 204 No Content\r\n\r\n")
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "icap://" + l.Addr().String() + "/scan"
}

func TestScans(t *testing.T) {
	r := newRig(t)
	arrived := make(chan string, 10)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body)
		if len(b) > 0 {
			arrived <- string(b)
		}
		if req.URL.Path == "/bad" {
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, req, "", time.Time{}, strings.NewReader("this is a virus"))
			return
		}
		w.Write(bytes.Repeat([]byte("clean "), 10_000))
	}), nil)
	url := scan(t)
	r.put("con_1", 1, at, webrule.Policy{}, func(s *wire.WebProxySession) { s.ScanURL = url })
	c := r.browser("con_1", true)
	if got := r.do(c, "POST", at+"/good", "a clean file"); got.status != 200 || len(got.body) != 60_000 || <-arrived != "a clean file" {
		t.Errorf("clean: %d, %d bytes", got.status, len(got.body))
	}
	if got := r.do(c, "GET", at+"/bad", ""); got.status != 403 || strings.Contains(got.body, "a virus") || !strings.Contains(got.body, "scanner") {
		t.Errorf("a bad answer: %+v", got)
	}
	r.event("blocked", map[string]string{"reason": "scan", "direction": "download", "found": "Test"})
	// In pieces it would be nothing to the scanner.
	for _, piece := range []string{"bytes=0-11", "bytes=12-"} {
		if got := r.do(c, "GET", at+"/bad", "", "Range", piece); got.status != 403 {
			t.Errorf("%s of a bad answer: %+v", piece, got)
		}
	}
	if got := r.do(c, "POST", at+"/good", "I am a virus"); got.status != 403 || len(arrived) != 0 {
		t.Errorf("a bad request: %+v", got)
	}
	r.event("blocked", map[string]string{"reason": "scan", "direction": "upload"})
	r.put("con_2", 1, at, webrule.Policy{}, func(s *wire.WebProxySession) { s.ScanURL = "icap://127.0.0.1:1/scan" })
	if got := r.do(r.browser("con_2", true), "GET", at+"/good", ""); got.status != 502 || strings.Contains(got.body, "clean") {
		t.Errorf("without the scanner: %d", got.status)
	}
}

// A page with a script of its own keeps working: see also the unit tests of
// what is inserted.
func TestFillScriptTells(t *testing.T) {
	r := newLoginRig(t)
	r.put("con_1", 1, r.at+"/login", webrule.Policy{Recipe: r.formRecipe()}, nil)
	c := r.browser("con_1", true)
	page := r.do(c, "GET", r.at+"/login", "", "Sec-Fetch-Dest", "document")
	_, path, _ := strings.Cut(page.body, `src="`)
	path, _, _ = strings.Cut(path, `"`)
	if got := r.do(c, "GET", r.at+path+"?outcome=missing&fields=user,%20pw", "", "Referer", r.at+"/login?x=1"); got.status != 200 || got.body != "" {
		t.Errorf("telling: %+v", got)
	}
	r.event("fill", map[string]string{"url": r.at + "/login", "outcome": "missing", "fields": "user, pw"})
	if got := r.do(c, "GET", r.at+"/.caponier/x?outcome=missing", ""); got.status != 404 {
		t.Errorf("something else: %+v", got)
	}
}

// Sessions do not share connections to a server.
func TestConnectionsAreNotShared(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { fmt.Fprint(w, req.RemoteAddr) }), nil)
	r.put("con_1", 1, at, webrule.Policy{}, nil)
	r.put("con_2", 1, at, webrule.Policy{}, nil)
	one, two := r.browser("con_1", true), r.browser("con_2", true)
	a, b, c := r.do(one, "GET", at, "").body, r.do(two, "GET", at, "").body, r.do(one, "GET", at, "").body
	if a == b {
		t.Error("two sessions share a connection")
	}
	if a != c {
		t.Error("a session does not reuse its own")
	}
}

// A session whose records are not taken ends before it does what is not recorded.
func TestUnrecordedSessionEnds(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { fmt.Fprint(w, "ok") }), nil)
	r.put("con_1", 1, at, webrule.Policy{}, nil)
	r.mu.Lock()
	r.cut = true
	r.mu.Unlock()
	ses := r.sessions.Find("con_1")
	long := strings.Repeat("x", 8<<10)
	for i := 0; ses.Event("request", map[string]string{"url": long}) == nil; i++ {
		if i > 1_000_000 {
			t.Fatal("records are held without bound")
		}
	}
	// Its end waits a while for the records it has.
	r.mu.Lock()
	r.cut = false
	r.mu.Unlock()
	until(t, "the session's end", func() bool { return r.sessions.Find("con_1") == nil })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if c, err := r.dial(ctx, "nod_c", "con_1", testKey); err == nil {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if n, _ := c.Read(make([]byte, 1)); n != 0 {
			t.Error("a session that has ended is served")
		}
		c.Close()
	}
	r.wait("core hears of it", func() bool { return len(r.ended) == 1 && r.ended[0].Reason == "error" })
}
