package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"caponier/core/internal/db/dbtest"
)

// TestEveryRouteRejectsAnonymous asks every registered operation without a
// login; only public ones may answer.
func TestEveryRouteRejectsAnonymous(t *testing.T) {
	f, _ := testFrame(t, people)
	if len(f.Operations()) < 6 {
		t.Fatalf("only %d operations", len(f.Operations()))
	}
	for _, op := range f.Operations() {
		path := Prefix + strings.NewReplacer("{id}", "x").Replace(op.Path)
		res, body := call1(t, f, op.Method, path, sent{})
		if public := op.Who == Public(); (res.StatusCode == 401) == public {
			t.Errorf("%s %s: %d %s, public %v", op.Method, op.Path, res.StatusCode, body, public)
		}
	}
}

func TestRegistrationRefuses(t *testing.T) {
	type in struct{}
	type hidden struct {
		ID string `path:"id"`
	}
	type embeds struct{ hidden }
	h := func(context.Context, *in) (*struct{}, error) { return nil, nil }
	for name, f := range map[string]func(f *Frame){
		"nobody said who": func(f *Frame) { Register(f, Op{Method: "GET", Path: "/a", ID: "a"}, h) },
		"needs nothing":   func(f *Frame) { Register(f, Op{Method: "GET", Path: "/a", ID: "a", Who: Needs("")}, h) },
		"no path":         func(f *Frame) { Register(f, Op{Method: "GET", ID: "a", Who: Self()}, h) },
		"path taken":      func(f *Frame) { Register(f, Op{Method: "GET", Path: "/me", ID: "a", Who: Self()}, h) },
		"id taken":        func(f *Frame) { Register(f, Op{Method: "GET", Path: "/a", ID: "get-me", Who: Self()}, h) },
		"raw without who": func(f *Frame) { RegisterRaw(f, Op{Method: "GET", Path: "/a", ID: "a"}, nil) },
		"ignored parameter": func(f *Frame) {
			Register(f, Op{Method: "GET", Path: "/a/{id}", ID: "a", Who: Self()}, func(context.Context, *embeds) (*struct{}, error) { return nil, nil })
		},
		"undocumented field": func(f *Frame) {
			Register(f, Op{Method: "GET", Path: "/a", ID: "a", Who: Self()}, func(context.Context, *in) (*struct{ Body []embeds }, error) { return nil, nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			frame, _ := testFrame(t, people)
			defer func() {
				if recover() == nil {
					t.Error("registered")
				}
			}()
			f(frame)
		})
	}
}

func TestPermissions(t *testing.T) {
	f, _ := testFrame(t, people)
	for _, c := range []struct {
		token, method, path string
		want                int
	}{
		{"admin", "GET", "/things", 200},
		{"viewer", "GET", "/things", 200},
		{"nothing", "GET", "/me", 200},
		{"", "GET", "/hello", 200},
		{"stale", "GET", "/hello", 200},
		{"admin", "DELETE", "/things/x", 428},
		{"viewer", "DELETE", "/things/x", 403},
	} {
		res, body := call1(t, f, c.method, Prefix+c.path, sent{token: c.token})
		if res.StatusCode != c.want {
			t.Errorf("%s %s %s: %d %s, want %d", c.token, c.method, c.path, res.StatusCode, body, c.want)
		}
	}
}

func TestCrossOriginWritesAreRefused(t *testing.T) {
	d := dbtest.SQLite(t)
	f, err := New(Config{Auth: people, DB: d, Log: slog.New(slog.DiscardHandler), Origins: []string{"https://console.example"}})
	if err != nil {
		t.Fatal(err)
	}
	Register(f, Op{Method: "POST", Path: "/login", ID: "login", Who: Public()}, func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
	Register(f, Op{Method: "POST", Path: "/write", ID: "write", Who: Self()}, func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
	Register(f, Op{Method: "GET", Path: "/read", ID: "read", Who: Self()}, func(context.Context, *struct{}) (*struct{}, error) { return nil, nil })
	for _, c := range []struct {
		name, method, path string
		s                  sent
		want               int
	}{
		{"same origin", "POST", "/write", sent{cookie: "admin", header: map[string]string{"Sec-Fetch-Site": "same-origin"}}, 204},
		{"cross site", "POST", "/write", sent{cookie: "admin", header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, 403},
		{"same site", "POST", "/write", sent{cookie: "admin", header: map[string]string{"Sec-Fetch-Site": "same-site"}}, 403},
		{"foreign origin, old browser", "POST", "/write", sent{cookie: "admin", header: map[string]string{"Origin": "https://evil.example"}}, 403},
		{"own origin, old browser", "POST", "/write", sent{cookie: "admin", header: map[string]string{"Origin": "https://core.test"}}, 204},
		{"trusted origin", "POST", "/write", sent{cookie: "admin", header: map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://console.example"}}, 204},
		{"login from elsewhere", "POST", "/login", sent{header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, 403},
		{"no browser", "POST", "/write", sent{cookie: "admin"}, 204},
		{"bearer from elsewhere", "POST", "/write", sent{token: "admin", header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, 204},
		{"websocket of our page", "GET", "/read", sent{cookie: "admin", header: map[string]string{"Upgrade": "websocket", "Origin": "https://core.test"}}, 204},
		{"websocket of another origin", "GET", "/read", sent{cookie: "admin", header: map[string]string{"Upgrade": "websocket", "Origin": "https://evil.core.test"}}, 403},
		{"websocket of another port", "GET", "/read", sent{cookie: "admin", header: map[string]string{"Upgrade": "websocket", "Sec-Fetch-Site": "same-site"}}, 403},
		{"reading changes nothing", "GET", "/read", sent{cookie: "admin", header: map[string]string{"Sec-Fetch-Site": "cross-site"}}, 204},
	} {
		res, body := call1(t, f, c.method, Prefix+c.path, c.s)
		if res.StatusCode != c.want {
			t.Errorf("%s: %d %s, want %d", c.name, res.StatusCode, body, c.want)
		}
		for _, h := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} {
			if v := res.Header.Get(h); v != "" {
				t.Errorf("%s: %s: %s", c.name, h, v)
			}
		}
	}
}

// broken fails to authenticate anybody.
type broken struct{}

func (broken) Authenticate(*http.Request, netip.Addr) (*Principal, error) {
	return nil, errors.New("database away: canary-cause")
}

func TestFailsClosedWithoutAuthentication(t *testing.T) {
	f, _ := testFrame(t, broken{})
	res, body := call1(t, f, "GET", "/api/v1/me", sent{token: "admin"})
	if res.StatusCode != 503 || strings.Contains(body, "canary") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// A ticket in a path is as good as the thing it opens.
func TestTicketsStayOutOfTheLog(t *testing.T) {
	var buf bytes.Buffer
	f, err := New(Config{Auth: people, DB: dbtest.SQLite(t), Log: slog.New(slog.NewJSONHandler(&buf, nil))})
	if err != nil {
		t.Fatal(err)
	}
	RegisterRaw(f, Op{Method: "GET", Path: "/files/{ticket}", ID: "get-file", Summary: "A file", Tag: "files", Who: Self(), Type: "application/octet-stream"},
		func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) })
	if res, _ := call1(t, f, "GET", "/api/v1/files/canary-ticket", sent{token: "admin"}); res.StatusCode != http.StatusNoContent {
		t.Fatalf("status %d", res.StatusCode)
	}
	if text := buf.String(); strings.Contains(text, "canary") || !strings.Contains(text, "/files/{ticket}") {
		t.Errorf("log: %s", text)
	}
}

func TestLogAndHeaders(t *testing.T) {
	var buf bytes.Buffer
	f, err := New(Config{Auth: people, DB: dbtest.SQLite(t), Log: slog.New(slog.NewJSONHandler(&buf, nil))})
	if err != nil {
		t.Fatal(err)
	}
	res, _ := call1(t, f, "GET", "/api/v1/openapi.json?token=canary-query", sent{token: "admin", header: map[string]string{"Cookie": "s=canary-cookie"}})
	for name, want := range map[string]string{
		"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
		"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Strict-Transport-Security": "max-age=31536000",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	var line map[string]any
	if err := json.Unmarshal(buf.Bytes(), &line); err != nil {
		t.Fatalf("want one line of log, got %q", buf.String())
	}
	if line["operation"] != "get-openapi" || line["status"] != 200.0 || line["user"] != "admin" || line["remote"] != "192.0.2.7" || line["request"] != res.Header.Get("X-Request-Id") {
		t.Errorf("log: %v", line)
	}
	if strings.Contains(buf.String(), "canary") {
		t.Errorf("the log shows a query or a cookie: %s", buf.String())
	}
}

func TestRequestTimeout(t *testing.T) {
	d := dbtest.SQLite(t)
	f, err := New(Config{Auth: people, DB: d, Log: slog.New(slog.DiscardHandler), Timeout: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	Register(f, Op{Method: "GET", Path: "/slow", ID: "slow", Who: Public()}, func(ctx context.Context, _ *struct{}) (*struct{}, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	res, body := call1(t, f, "GET", "/api/v1/slow", sent{})
	if res.StatusCode != 503 || !strings.Contains(body, `"code":"timeout"`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// endless is a body of n bytes that counts how many were taken.
type endless struct {
	left  int64
	taken *atomic.Int64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), e.left))
	for i := range p[:n] {
		p[i] = ' '
	}
	e.left -= int64(n)
	e.taken.Add(int64(n))
	return n, nil
}

// TestGigabyteBody sends 1 GB to a real server, announced and unannounced; it
// must be refused after little of it.
func TestGigabyteBody(t *testing.T) {
	f, _ := testFrame(t, people)
	s := httptest.NewTLSServer(f.Handler())
	defer s.Close()
	for _, announced := range []bool{true, false} {
		var taken atomic.Int64
		req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/v1/things", &endless{1 << 30, &taken})
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer admin")
		req.Header.Set("Content-Type", "application/json")
		if announced {
			req.ContentLength = 1 << 30
		}
		c := &http.Client{Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return (&tls.Dialer{Config: &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}).DialContext(ctx, network, addr)
			},
		}}
		res, err := c.Do(req)
		if err == nil { // the server may cut the connection before its answer is read
			if res.StatusCode != 413 {
				t.Errorf("announced %v: status %d", announced, res.StatusCode)
			}
			res.Body.Close()
		}
		c.CloseIdleConnections()
		if n := taken.Load(); n > 64<<20 {
			t.Errorf("announced %v: %d bytes were taken", announced, n)
		}
		// The announced one was refused on sight, without reading the body.
		if announced {
			w := httptest.NewRecorder()
			var read atomic.Int64
			r := httptest.NewRequest("POST", "https://core.test/api/v1/things", &endless{1 << 30, &read})
			r.ContentLength = 1 << 30
			r.Header.Set("Authorization", "Bearer admin")
			f.Handler().ServeHTTP(w, r)
			if w.Code != 413 || read.Load() != 0 {
				t.Errorf("refused with %d after %d bytes", w.Code, read.Load())
			}
		}
	}
}

func TestSlowBody(t *testing.T) {
	f, _ := testFrame(t, people)
	s := httptest.NewServer(f.Handler())
	defer s.Close()
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The body never comes to its announced end: the client goes away instead.
	io.WriteString(c, "POST /api/v1/things HTTP/1.1\r\nHost: core.test\r\nAuthorization: Bearer admin\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	c.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(b), `"code":"body_unreadable"`) {
		t.Errorf("%q, %v", b, err)
	}
}

func TestRawOperation(t *testing.T) {
	f, _ := testFrame(t, people)
	RegisterRaw(f, Op{Method: "PUT", Path: "/raw/{name}", ID: "put-raw", Who: Needs(UsersManage), MaxBody: 4}, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			f.Fail(w, r, Conflict("cut", "after "+itoa(len(b))))
			return
		}
		w.Write([]byte(r.PathValue("name") + string(b) + PrincipalFrom(r.Context()).UserName))
	})
	if res, body := call1(t, f, "PUT", "/api/v1/raw/x", sent{token: "admin", body: "1234"}); res.StatusCode != 200 || body != "x1234admin" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, body := call1(t, f, "PUT", "/api/v1/raw/x", sent{token: "admin", body: "12345"}); res.StatusCode != 409 || !strings.Contains(body, "after 4") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, _ := call1(t, f, "PUT", "/api/v1/raw/x", sent{token: "viewer", body: "1"}); res.StatusCode != 403 {
		t.Errorf("without the permission: %d", res.StatusCode)
	}
}
