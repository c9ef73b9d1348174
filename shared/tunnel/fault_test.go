package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/tunnel/tunneltest"
)

// faulty starts a core and dials it over a connection that f damages.
func faulty(t *testing.T, plain bool, f func(*tunneltest.Faulty)) pair {
	t.Helper()
	_, coreID, edgeID := identities(t)
	c, err := tunneltest.NewCore(tunnel.AcceptConfig{Identity: coreID}, plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	edge, err := tunnel.Dial(t.Context(), tunnel.DialConfig{
		URL: c.URL, Identity: edgeID, Transport: tunnel.WSS,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			fc := &tunneltest.Faulty{Conn: nc}
			f(fc)
			return fc, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := pair{edge, <-c.Sessions}
	t.Cleanup(func() { _ = p.edge.Close(nil); _ = p.core.Close(nil) })
	return p
}

// handshakeBytes is more than any handshake of these tests moves one way.
const handshakeBytes = 16 << 10

// patience is how long what must happen may take on a busy machine.
const patience = time.Minute

func ended(t *testing.T, who string, s tunnel.Session) {
	t.Helper()
	select {
	case <-s.Done():
		if s.Err() == nil {
			t.Errorf("%s: ended without a reason", who)
		}
	case <-time.After(patience):
		t.Errorf("%s: not noticed within %v", who, patience)
	}
}

// TestDeadPeer has a path swallow everything: both ends notice. How soon is
// DeadAfter, kept to the tick by TestStarvedIsNotSilent: a machine that is busy
// is waited for by the session, and so here.
func TestDeadPeer(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(map[bool]string{false: "bound", true: "inner"}[plain], func(t *testing.T) {
			t.Parallel()
			p := faulty(t, plain, func(f *tunneltest.Faulty) { f.StallAfter = handshakeBytes })
			st, err := p.edge.Open(t.Context(), dialTo("a:1"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = st.Write(make([]byte, handshakeBytes))
			ended(t, "edge", p.edge)
			ended(t, "core", p.core)
			if !errors.Is(p.core.Err(), net.ErrClosed) {
				t.Errorf("core: %v", p.core.Err())
			}
			if err := readErr(st); err == io.EOF {
				t.Error("the stream of a dead tunnel ended in order")
			}
		})
	}
	t.Run("quic", func(t *testing.T) {
		t.Parallel()
		p, proxy := connectQUICProxied(t, tunnel.Limits{}, 0)
		proxy.Drop(true)
		ended(t, "edge", p.edge)
		ended(t, "core", p.core)
	})
}

func TestCut(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(map[bool]string{false: "bound", true: "inner"}[plain], func(t *testing.T) {
			p := faulty(t, plain, func(f *tunneltest.Faulty) { f.CutAfter = 1 << 20 })
			core, edge := p.stream(t, dialTo("a:1"))
			go func() { _, _ = core.Write(make([]byte, 4<<20)) }()
			if n, err := io.Copy(io.Discard, edge); err == nil {
				t.Errorf("%d bytes, then an orderly end", n)
			}
			ended(t, "edge", p.edge)
			ended(t, "core", p.core)
			if !errors.Is(p.edge.Err(), tunneltest.ErrCut) {
				t.Errorf("edge: %v", p.edge.Err())
			}
		})
	}
}

// TestCorrupt flips one bit: no wrong byte may be delivered.
func TestCorrupt(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(map[bool]string{false: "bound", true: "inner"}[plain], func(t *testing.T) {
			p := faulty(t, plain, func(f *tunneltest.Faulty) { f.CorruptAfter = 500_000 })
			core, edge := p.stream(t, dialTo("a:1"))
			pattern := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
			go func() { _, _ = core.Write(pattern) }()
			got, err := io.ReadAll(edge)
			if err == nil || len(got) > 500_000 || !bytes.Equal(got, pattern[:len(got)]) {
				t.Errorf("%d bytes delivered, intact %v, then %v", len(got), bytes.HasPrefix(pattern, got), err)
			}
		})
	}
}

// TestSilentReconnects has a thousand edges vanish without a word.
func TestSilentReconnects(t *testing.T) {
	_, coreID, edgeID := identities(t)
	lim := tunnel.Limits{PingEvery: 50 * time.Millisecond, DeadAfter: 300 * time.Millisecond}
	c, err := tunneltest.NewCore(tunnel.AcceptConfig{Identity: coreID, Limits: lim}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	round := func(n, before int) (goroutines int, heap uint64) {
		var wg sync.WaitGroup
		slots := make(chan struct{}, 16)
		for range n {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				dial := func() (tunnel.Session, error) {
					return tunnel.Dial(t.Context(), tunnel.DialConfig{
						URL: c.URL, Identity: edgeID, Transport: tunnel.WSS,
						DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
							nc, err := new(net.Dialer).DialContext(ctx, network, addr)
							return &tunneltest.Faulty{Conn: nc, StallAfter: handshakeBytes}, err
						},
					})
				}
				edge, err := dial()
				for end := time.Now().Add(patience); err != nil && tunnel.Retryable(err) && time.Now().Before(end); {
					edge, err = dial() // core has too many handshakes to make, and edges come back
				}
				if err != nil {
					t.Error(err)
					return
				}
				core := <-c.Sessions
				// A core that has heard nothing for so short a time as here
				// may have ended it already.
				if st, err := edge.Open(t.Context(), dialTo("a:1")); err == nil {
					_, _ = st.Write(make([]byte, handshakeBytes))
				}
				ended(t, "core", core)
				_ = edge.Close(nil)
			})
		}
		wg.Wait()
		if before > 0 {
			until(t, "goroutines are gone", func() bool { return runtime.NumGoroutine() <= before+5 })
		}
		for range 3 {
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	g0, h0 := round(50, 0)
	g1, h1 := round(1000, g0)
	if h1 > h0+4<<20 {
		t.Errorf("heap grew from %d to %d bytes, goroutines %d to %d", h0, h1, g0, g1)
	}
}

func connectQUICProxied(t *testing.T, lim tunnel.Limits, delay time.Duration) (pair, *tunneltest.PacketProxy) {
	t.Helper()
	_, coreID, edgeID := identities(t)
	l, addr := listenQUIC(t, tunnel.AcceptConfig{Identity: coreID, Limits: lim})
	proxy, err := tunneltest.NewPacketProxy(addr, delay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	edge, err := tunnel.Dial(t.Context(), tunnel.DialConfig{QUICAddr: proxy.Addr, Identity: edgeID, Transport: tunnel.QUIC, Limits: lim})
	if err != nil {
		t.Fatal(err)
	}
	core, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = edge.Close(nil); _ = core.Close(nil) })
	return pair{edge, core}, proxy
}

func listenQUIC(t *testing.T, cfg tunnel.AcceptConfig) (*tunnel.QUICListener, string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := tunnel.ListenQUIC(pc, func() tunnel.AcceptConfig { return cfg })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); _ = pc.Close() })
	return l, pc.LocalAddr().String()
}
