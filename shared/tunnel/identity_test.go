package tunnel_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/tunnel/tunneltest"
	"caponier/shared/wire"
)

func newCore(t *testing.T, cfg tunnel.AcceptConfig, plain bool) *tunneltest.Core {
	t.Helper()
	c, err := tunneltest.NewCore(cfg, plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// terminator ends TLS in front of addr, as a load balancer does, and shows
// tap what passes inside.
func terminator(t *testing.T, addr string, tap func([]byte)) (url string) {
	t.Helper()
	inside, err := tunneltest.NewProxy(addr, 0, tap)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inside.Close() })
	cert, err := tunneltest.WebCertificate()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer a.Close()
				b, err := net.Dial("tcp", inside.Addr)
				if err != nil {
					return
				}
				defer b.Close()
				_, _, _ = tunnel.Relay(context.Background(), a, b, tunnel.Counters{})
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); inside.Cut(); wg.Wait() })
	return "https://" + l.Addr().String()
}

// TestEndedTLS puts something that ends TLS in between: inner TLS takes over
// and nothing of the streams is readable there.
func TestEndedTLS(t *testing.T) {
	_, coreID, edgeID := identities(t)
	c := newCore(t, tunnel.AcceptConfig{Identity: coreID}, true)
	var mu sync.Mutex
	var seen bytes.Buffer
	at := terminator(t, c.Addr, func(b []byte) {
		mu.Lock()
		seen.Write(b)
		mu.Unlock()
	})
	edge, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: at, Identity: edgeID, Transport: tunnel.WSS})
	if err != nil {
		t.Fatal(err)
	}
	core := <-c.Sessions
	defer core.Close(nil)
	defer edge.Close(nil)
	if edge.Info().Binding != tunnel.InnerTLS || core.Info().Binding != tunnel.InnerTLS {
		t.Errorf("bindings %s and %s", edge.Info().Binding, core.Info().Binding)
	}
	serve(t, edge, echo)
	const secret = "canary-in-the-stream"
	st, err := core.Open(t.Context(), dialTo("canary-in-the-preface:1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte(secret)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(secret))
	if _, err := io.ReadFull(st, got); err != nil || string(got) != secret {
		t.Fatalf("echo %q, %v", got, err)
	}
	_ = st.Close()
	mu.Lock()
	defer mu.Unlock()
	if !bytes.Contains(seen.Bytes(), []byte("Caponier-Version: 1")) {
		t.Error("the capture shows nothing: not a capture")
	}
	if bytes.Contains(seen.Bytes(), []byte("canary")) {
		t.Error("the capture shows plain text")
	}
}

// TestWrongCore dials cores that are none of ours.
func TestWrongCore(t *testing.T) {
	_, _, edgeID := identities(t)
	otherCA, wrongID, _ := identities(t)
	wrongRoots := wrongID
	wrongRoots.Roots = edgeID.Roots // it accepts our edge, all the same
	impostor, err := otherCA.Edge("extender", "edg_x")
	if err != nil {
		t.Fatal(err)
	}
	impostor.Roots = edgeID.Roots
	for name, id := range map[string]tunnel.Identity{"other CA": wrongRoots, "no core": impostor} {
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, inner %v", name, plain), func(t *testing.T) {
				c := newCore(t, tunnel.AcceptConfig{Identity: id}, plain)
				s, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: c.URL, Identity: edgeID, Transport: tunnel.WSS})
				if !errors.Is(err, tunnel.ErrIdentity) {
					t.Errorf("got %v, %v", s, err)
				}
			})
		}
		t.Run(name+", quic", func(t *testing.T) {
			_, addr := listenQUIC(t, tunnel.AcceptConfig{Identity: id})
			s, err := tunnel.Dial(t.Context(), tunnel.DialConfig{QUICAddr: addr, Identity: edgeID, Transport: tunnel.QUIC})
			if err == nil {
				t.Errorf("got %v", s)
			}
		})
	}
	t.Run("an edge of our CA is no core", func(t *testing.T) {
		ca, _, edgeID := identities(t)
		edge, err := ca.Edge("extender", "edg_2")
		if err != nil {
			t.Fatal(err)
		}
		c := newCore(t, tunnel.AcceptConfig{Identity: edge}, true)
		if _, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: c.URL, Identity: edgeID, Transport: tunnel.WSS}); !errors.Is(err, tunnel.ErrIdentity) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another core than asked for", func(t *testing.T) {
		_, coreID, edgeID := identities(t)
		for _, plain := range []bool{false, true} {
			c := newCore(t, tunnel.AcceptConfig{Identity: coreID}, plain)
			if _, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: c.URL, Identity: edgeID, CoreID: "core-b", Transport: tunnel.WSS}); !errors.Is(err, tunnel.ErrIdentity) {
				t.Errorf("got %v", err)
			}
		}
	})
}

// TestReplayedProof has a man in the middle claim a bound tunnel with core's
// real chain and signatures from another connection.
func TestReplayedProof(t *testing.T) {
	_, coreID, edgeID := identities(t)
	c := newCore(t, tunnel.AcceptConfig{Identity: coreID}, false)
	mitm := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Ask the real core with the edge's own headers, over a TLS connection
		// of our own, and present its answer as a bound one.
		tc, err := tls.Dial("tcp", c.Addr, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Error(err)
			return
		}
		defer tc.Close()
		if err := r.Write(tc); err != nil {
			t.Error(err)
			return
		}
		answer := make([]byte, 16<<10)
		n, _ := tc.Read(answer)
		head := strings.Replace(string(answer[:n]), "Caponier-Binding: inner", "Caponier-Binding: bound", 1)
		if !strings.Contains(head, "Caponier-Binding: bound") {
			t.Errorf("core answered %.200q", head)
		}
		var chain []string
		for _, der := range coreID.Certificate.Certificate[:1] {
			chain = append(chain, b64(der))
		}
		head = strings.Replace(head, "\r\n\r\n", "\r\nCaponier-Chain: "+strings.Join(chain, ",")+"\r\nCaponier-Signature: "+b64(make([]byte, 64))+"\r\n\r\n", 1)
		nc, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		_, _ = nc.Write([]byte(head))
	}))
	mitm.StartTLS()
	defer mitm.Close()
	_, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: mitm.URL, Identity: edgeID, Transport: tunnel.WSS})
	if !errors.Is(err, tunnel.ErrIdentity) {
		t.Errorf("got %v", err)
	}
}

func TestRefusedEdges(t *testing.T) {
	ca, coreID, edgeID := identities(t)
	_, _, stranger := identities(t)
	stranger.Roots = ca.Roots()
	revoked := coreID
	revoked.VerifyPeer = func(leaf *x509.Certificate) error {
		return wire.Errorf(wire.CodeUnauthorized, "%s is revoked", leaf.Subject.CommonName)
	}
	for name, c := range map[string]struct {
		core, edge tunnel.Identity
		text       string
	}{
		"other CA": {coreID, stranger, wire.CodeUnauthorized.Text()},
		"revoked":  {revoked, edgeID, "edg_1 is revoked"},
	} {
		check := func(t *testing.T, err error) {
			t.Helper()
			e, ok := errors.AsType[*wire.Error](err)
			if !ok || e.Code != wire.CodeUnauthorized || e.Public != c.text {
				t.Errorf("got %v", err)
			}
			if tunnel.Retryable(err) {
				t.Error("worth trying again?")
			}
		}
		for _, plain := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, inner %v", name, plain), func(t *testing.T) {
				srv := newCore(t, tunnel.AcceptConfig{Identity: c.core}, plain)
				_, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: srv.URL, Identity: c.edge, Transport: tunnel.WSS})
				check(t, err)
				if e, ok := errors.AsType[*tunnel.RefusedError](err); !ok || e.Status != http.StatusForbidden {
					t.Errorf("got %v", err)
				}
			})
		}
	}
	t.Run("revoked, quic", func(t *testing.T) {
		_, addr := listenQUIC(t, tunnel.AcceptConfig{Identity: revoked})
		_, err := tunnel.Dial(t.Context(), tunnel.DialConfig{QUICAddr: addr, Identity: edgeID, Transport: tunnel.QUIC})
		if e, ok := errors.AsType[*wire.Error](err); !ok || e.Public != "edg_1 is revoked" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no certificate, inner", func(t *testing.T) {
		srv := newCore(t, tunnel.AcceptConfig{Identity: coreID}, true)
		nobody := tunnel.Identity{Roots: ca.Roots()}
		s, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: srv.URL, Identity: nobody, Transport: tunnel.WSS})
		if err == nil { // TLS 1.3 tells the client with its first read
			ended(t, "edge", s)
			_ = s.Close(nil)
		}
		if err := <-srv.Errors; err == nil {
			t.Error("core accepted nobody")
		}
	})
}

func TestOddRequests(t *testing.T) {
	_, coreID, _ := identities(t)
	srv := newCore(t, tunnel.AcceptConfig{Identity: coreID}, true)
	for name, c := range map[string]struct {
		header map[string]string
		status int
		code   string
	}{
		"browser":     {nil, http.StatusUpgradeRequired, `"code":12`},
		"new version": {map[string]string{"Caponier-Version": "9"}, http.StatusUpgradeRequired, `"code":10`},
		"no upgrade":  {map[string]string{"Caponier-Version": "1"}, http.StatusUpgradeRequired, `"code":12`},
		"bad chain":   {map[string]string{"Caponier-Version": "1", "Caponier-Chain": "!"}, http.StatusForbidden, `"code":9`},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL+wire.PathTunnel, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range c.header {
			req.Header.Set(k, v)
		}
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.status || !strings.Contains(string(body), c.code) {
			t.Errorf("%s: status %d, %s", name, resp.StatusCode, body)
		}
	}
}

func TestNotACore(t *testing.T) {
	_, _, edgeID := identities(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.Header().Set("Set-Cookie", "lb=3")
		http.Error(w, "busy", http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	var cookie string
	_, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: srv.URL, Identity: edgeID, Transport: tunnel.WSS, OnResponse: func(_ int, h http.Header) { cookie = h.Get("Set-Cookie") }})
	e, ok := errors.AsType[*tunnel.RefusedError](err)
	if !ok || e.Status != 503 || e.RetryAfter != 7*time.Second || e.Text != "busy" || cookie != "lb=3" || !tunnel.Retryable(err) {
		t.Errorf("got %+v, cookie %q", err, cookie)
	}
}

func TestPinned(t *testing.T) {
	ca, coreID, _ := identities(t)
	for _, plain := range []bool{false, true} {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			nc, err := tunnel.AcceptPinned(w, r, coreID.Certificate)
			if err != nil {
				return
			}
			defer nc.Close()
			_, _ = io.Copy(nc, nc)
		}))
		srv.Config.ErrorLog = nil
		if plain {
			srv.Start()
		} else {
			srv.StartTLS()
		}
		nc, err := tunnel.DialPinned(t.Context(), srv.URL+"/edge/v1/enrol", ca.Pin())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Write([]byte("token")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(nc, b); err != nil || string(b) != "token" {
			t.Errorf("echo %q, %v", b, err)
		}
		_ = nc.Close()
		if _, err := tunnel.DialPinned(t.Context(), srv.URL, [32]byte{1}); !errors.Is(err, tunnel.ErrIdentity) {
			t.Errorf("wrong pin: %v", err)
		}
		srv.Close()
	}
}

// TestThroughConnectProxy dials through an HTTP CONNECT proxy with a password.
func TestThroughConnectProxy(t *testing.T) {
	_, coreID, edgeID := identities(t)
	c := newCore(t, tunnel.AcceptConfig{Identity: coreID}, false)
	var asked string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := (&http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}).BasicAuth()
		asked = r.Method + " " + r.Host + " " + user + ":" + password
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			t.Error(err)
			return
		}
		nc, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = nc.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		_, _, _ = tunnel.Relay(context.Background(), nc, to, tunnel.Counters{})
	}))
	defer proxy.Close()
	s, err := tunnel.Dial(t.Context(), tunnel.DialConfig{
		URL: c.URL, Identity: edgeID, Transport: tunnel.WSS,
		Proxy: func(*http.Request) (*url.URL, error) {
			return url.Parse(strings.Replace(proxy.URL, "http://", "http://u:p@", 1))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	core := <-c.Sessions
	if s.Info().Binding != tunnel.BoundTLS {
		t.Errorf("binding %s: a CONNECT proxy does not end TLS", s.Info().Binding)
	}
	if want := "CONNECT " + c.Addr + " u:p"; asked != want {
		t.Errorf("the proxy was asked %q, want %q", asked, want)
	}
	_ = s.Close(nil)
	_ = core.Close(nil)
}

// TestBlockedUDP has UDP vanish: wss takes over before anybody waits long.
func TestBlockedUDP(t *testing.T) {
	_, coreID, edgeID := identities(t)
	c := newCore(t, tunnel.AcceptConfig{Identity: coreID}, false)
	hole, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	paused := pauses()
	begin := time.Now()
	s, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: c.URL, QUICAddr: hole.LocalAddr().String(), Identity: edgeID})
	took, still := time.Since(begin), paused()
	if err != nil {
		t.Fatal(err)
	}
	if s.Info().Transport != tunnel.WSS || took > 3*time.Second+still {
		t.Errorf("%s after %v; the machine stood still for %v", s.Info().Transport, took, still)
	}
	_ = s.Close(nil)
	_ = (<-c.Sessions).Close(nil)
}

// TestRacePrefersQUIC, or what is preferred: that one is alone for a moment. The
// other would never stand, however long the machine takes.
func TestRacePrefersQUIC(t *testing.T) {
	const headStart = 300 * time.Millisecond
	_, coreID, edgeID := identities(t)
	c := newCore(t, tunnel.AcceptConfig{Identity: coreID}, false)
	_, addr := listenQUIC(t, tunnel.AcceptConfig{Identity: coreID})
	hole, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer hole.Close()
	for _, x := range []struct {
		prefer, want tunnel.Transport
		quic         string
	}{{"", tunnel.QUIC, addr}, {tunnel.WSS, tunnel.WSS, hole.LocalAddr().String()}} {
		other := make(chan time.Duration, 1) // when it was tried
		begin := time.Now()
		cfg := tunnel.DialConfig{URL: c.URL, QUICAddr: x.quic, Identity: edgeID, Prefer: x.prefer}
		if x.want == tunnel.QUIC {
			cfg.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				other <- time.Since(begin)
				<-ctx.Done()
				return nil, ctx.Err()
			}
		} else {
			wg.Go(func() {
				if _, _, err := hole.ReadFrom(make([]byte, 2048)); err == nil {
					other <- time.Since(begin)
				}
			})
		}
		s, err := tunnel.Dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Info().Transport; got != x.want {
			t.Errorf("prefer %q: won: %s", x.prefer, got)
		}
		select {
		case d := <-other:
			if d < headStart {
				t.Errorf("prefer %q: the other was tried after %v, want %v at least", x.prefer, d, headStart)
			}
		default:
		}
		_ = s.Close(nil)
	}
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
