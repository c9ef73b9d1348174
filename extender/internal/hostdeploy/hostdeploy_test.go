package hostdeploy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/control"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// A server lingers half a second after it refused a body.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

// TestDoor asks through the listener what core answers in the tunnel.
func TestDoor(t *testing.T) {
	edge, core := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	l := control.NewListener()
	// Core's end answers every path, so that a 404 is the door's own.
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Set-Cookie", "leak=1")
		fmt.Fprintf(w, "%s %s base=%s host=%s auth=%q body=%s", r.Method, r.URL.RequestURI(), r.Header.Get(headerBase), r.Header.Get(headerHost), r.Header.Get("Authorization"), b)
	})}
	srv.SetKeepAlivesEnabled(false)
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	wg.Go(func() {
		for {
			s, err := core.Accept(context.Background())
			if err != nil {
				return
			}
			s.Confirm()
			l.Push(s)
		}
	})
	dir := t.TempDir()
	cert, pin, err := Certificate(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, again, err := Certificate(dir, time.Now()); err != nil || again != pin {
		t.Errorf("pin after a restart = %s, %v, want %s", again, err, pin)
	}
	var mu sync.Mutex
	live := edge
	session := func() tunnel.Session {
		mu.Lock()
		defer mu.Unlock()
		return live
	}
	nl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		if err := Serve(ctx, nl, cert, Handler(Config{Session: session}), slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		edge.Close(nil)
		core.Close(nil)
		l.Close()
		srv.Close()
		wg.Wait()
	})
	var seen string
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // by pin, as curl --pinnedpubkey does
		VerifyConnection: func(cs tls.ConnectionState) error {
			sum := sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if seen = "sha256//" + base64.StdEncoding.EncodeToString(sum[:]); seen != pin {
				return errors.New("wrong pin")
			}
			return nil
		},
	}}}
	base := "https://" + nl.Addr().String()
	ask := func(method, path, body string) (int, string, http.Header) {
		t.Helper()
		req, err := http.NewRequest(method, base+path, bytes.NewReader([]byte(body)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer x")
		req.Header.Set(headerHost, "203.0.113.1")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b), resp.Header
	}
	for _, path := range []string{wire.PathDeployCA, wire.PathDeployScript} {
		code, text, h := ask("GET", path, "")
		want := fmt.Sprintf(`GET %s base=%s host=127.0.0.1 auth="" body=`, path, base)
		if code != 200 || text != want || h.Get("Set-Cookie") != "" {
			t.Errorf("GET %s = %d %q, want %q", path, code, text, want)
		}
	}
	if code, text, _ := ask("POST", wire.PathDeployRegister, `{"a":1}`); code != 200 || !strings.HasSuffix(text, `body={"a":1}`) {
		t.Errorf("POST register = %d %q", code, text)
	}
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 404}, {"GET", "/api/v1/users", 404}, {"POST", wire.PathHello, 404}, {"POST", wire.PathRenew, 404}, {"GET", wire.PathCRL, 404},
		{"GET", "/deploy/v1/ca.pub/../../v1/hello", 404}, {"GET", "/deploy/v1/ca.pub/x", 404}, {"GET", "/deploy/v1/%2e%2e/v1/status", 404},
		{"GET", wire.PathDeployRegister, 405}, {"POST", wire.PathDeployCA, 405}, {"GET", "/deploy/v1/", 404},
	} {
		if code, text, _ := ask(c.method, c.path, ""); code != c.want {
			t.Errorf("%s %s = %d %q, want %d", c.method, c.path, code, text, c.want)
		}
	}
	if code, _, _ := ask("POST", wire.PathDeployRegister, strings.Repeat("x", maxBody+1)); code != http.StatusRequestEntityTooLarge {
		t.Errorf("a long body = %d", code)
	}
	mu.Lock()
	live = nil
	mu.Unlock()
	if code, text, _ := ask("GET", wire.PathDeployCA, ""); code != http.StatusBadGateway || !strings.Contains(text, "no connection to core") {
		t.Errorf("without a tunnel = %d %q", code, text)
	}
}
