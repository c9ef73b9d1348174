package tunnel_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/tunnel"
	"caponier/shared/tunnel/tunneltest"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is two ends of a tunnel: edge dialled, core accepted.
type pair struct{ edge, core tunnel.Session }

// carrier makes pairs of one kind; delay is one way.
type carrier struct {
	name      string
	transport tunnel.Transport
	binding   tunnel.Binding
	connect   func(t *testing.T, lim tunnel.Limits, delay time.Duration) pair
}

func carriers() []carrier {
	return []carrier{
		{"bound", tunnel.WSS, tunnel.BoundTLS, func(t *testing.T, lim tunnel.Limits, delay time.Duration) pair {
			return connectWSS(t, lim, delay, false)
		}},
		{"inner", tunnel.WSS, tunnel.InnerTLS, func(t *testing.T, lim tunnel.Limits, delay time.Duration) pair {
			return connectWSS(t, lim, delay, true)
		}},
		{"quic", tunnel.QUIC, tunnel.BoundTLS, connectQUIC},
	}
}

func onEach(t *testing.T, f func(t *testing.T, c carrier)) {
	for _, c := range carriers() {
		t.Run(c.name, func(t *testing.T) { f(t, c) })
	}
}

// identities of a CA made for the test.
func identities(t *testing.T) (ca *tunneltest.CA, core, edge tunnel.Identity) {
	t.Helper()
	ca, err := tunneltest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	if core, err = ca.Core("core-a"); err != nil {
		t.Fatal(err)
	}
	if edge, err = ca.Edge("extender", "edg_1"); err != nil {
		t.Fatal(err)
	}
	return ca, core, edge
}

func connectWSS(t *testing.T, lim tunnel.Limits, delay time.Duration, plain bool) pair {
	t.Helper()
	_, coreID, edgeID := identities(t)
	c, err := tunneltest.NewCore(tunnel.AcceptConfig{Identity: coreID, Limits: lim}, plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	url := c.URL
	if delay > 0 {
		p, err := tunneltest.NewProxy(c.Addr, delay, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		url = url[:len(url)-len(c.Addr)] + p.Addr
	}
	edge, err := tunnel.Dial(t.Context(), tunnel.DialConfig{URL: url, Identity: edgeID, Transport: tunnel.WSS, Limits: lim})
	if err != nil {
		t.Fatal(err)
	}
	p := pair{edge, <-c.Sessions}
	t.Cleanup(func() { _ = p.edge.Close(nil); _ = p.core.Close(nil) })
	return p
}

func connectQUIC(t *testing.T, lim tunnel.Limits, delay time.Duration) pair {
	t.Helper()
	if delay > 0 {
		p, _ := connectQUICProxied(t, lim, delay)
		return p
	}
	_, coreID, edgeID := identities(t)
	l, addr := listenQUIC(t, tunnel.AcceptConfig{Identity: coreID, Limits: lim})
	edge, err := tunnel.Dial(t.Context(), tunnel.DialConfig{QUICAddr: addr, Identity: edgeID, Transport: tunnel.QUIC, Limits: lim})
	if err != nil {
		t.Fatal(err)
	}
	core, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := pair{edge, core}
	t.Cleanup(func() { _ = p.edge.Close(nil); _ = p.core.Close(nil) })
	return p
}

func dialTo(dest string) wire.Preface {
	return wire.Preface{Kind: wire.StreamDial, Network: "tcp", Dest: dest, Connection: "con_test"}
}

// stream opens a stream from core to edge and accepts it.
func (p pair) stream(t *testing.T, pre wire.Preface) (core, edge tunnel.Stream) {
	t.Helper()
	core, err := p.core.Open(t.Context(), pre)
	if err != nil {
		t.Fatal(err)
	}
	edge, err = p.edge.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = core.Close(); _ = edge.Close() })
	return core, edge
}

// serve answers every stream the session accepts with f.
func serve(t *testing.T, s tunnel.Session, f func(tunnel.Stream)) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			st, err := s.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() { f(st) })
		}
	})
	t.Cleanup(func() { _ = s.Close(nil); wg.Wait() })
}

func echo(st tunnel.Stream) {
	_ = st.Confirm()
	_, _ = io.Copy(st, st)
	_ = st.CloseWrite()
	_ = st.Close()
}

func TestInfo(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		if i := p.edge.Info(); i.Transport != c.transport || i.Binding != c.binding || i.Peer.Subject.CommonName != "core-a" || !i.Remote.IsValid() {
			t.Errorf("edge: %+v", i)
		}
		if i := p.core.Info(); i.Transport != c.transport || i.Binding != c.binding || i.Peer.Subject.CommonName != "edg_1" || !i.Remote.IsValid() {
			t.Errorf("core: %+v", i)
		}
		if d, err := p.core.Ping(t.Context()); err != nil || d <= 0 {
			t.Errorf("ping from core: %v, %v", d, err)
		}
		if d, err := p.edge.Ping(t.Context()); err != nil || d <= 0 {
			t.Errorf("ping from edge: %v, %v", d, err)
		}
	})
}

// TestEcho sends sizes around every buffer's border, from both ends.
func TestEcho(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		serve(t, p.edge, echo)
		serve(t, p.core, echo)
		for _, from := range []tunnel.Session{p.core, p.edge} {
			for _, n := range []int{0, 1, 125, 126, 2048, 2049, 16384, 65503, 65504, 65505, 65536, 1 << 20, 5<<20 + 7} {
				pre := dialTo(fmt.Sprintf("10.0.0.1:%d", n%65536))
				st, err := from.Open(t.Context(), pre)
				if err != nil {
					t.Fatal(err)
				}
				sent := make([]byte, n)
				src := rand.NewChaCha8([32]byte{byte(n)})
				_, _ = src.Read(sent)
				want := sha256.Sum256(sent)
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := st.Write(sent); err != nil {
						t.Errorf("%d bytes: write: %v", n, err)
					}
					if err := st.CloseWrite(); err != nil {
						t.Errorf("%d bytes: close write: %v", n, err)
					}
				})
				got, err := io.ReadAll(st)
				wg.Wait()
				if err != nil || sha256.Sum256(got) != want {
					t.Fatalf("%d bytes: got %d back, %v", n, len(got), err)
				}
				_ = st.Close()
			}
		}
		if s := p.core.Stats(); s.StreamsTotal != 26 || s.BytesIn == 0 || s.BytesOut == 0 {
			t.Errorf("stats of core: %+v", s)
		}
	})
}

func TestPrefaceArrives(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		want := wire.Preface{Kind: wire.StreamDial, Class: wire.Bulk, Connection: "con_x", Network: "tcp", Dest: "db.internal:5432"}
		_, edge := p.stream(t, want)
		if got := edge.Preface(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	})
}

func TestHalfClose(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		core, edge := p.stream(t, dialTo("a:1"))
		if _, err := core.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		if err := core.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(edge); err != nil || string(got) != "question" {
			t.Fatalf("edge read %q, %v", got, err)
		}
		// The other direction still works, long after.
		for range 3 {
			if _, err := edge.Write([]byte("answer ")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := core.Write([]byte("more")); err == nil {
			t.Error("writing after CloseWrite worked")
		}
		_ = edge.CloseWrite()
		if got, err := io.ReadAll(core); err != nil || string(got) != "answer answer answer " {
			t.Fatalf("core read %q, %v", got, err)
		}
	})
}

func TestVerdicts(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		t.Run("confirmed", func(t *testing.T) {
			core, edge := p.stream(t, dialTo("a:1"))
			if err := edge.Confirm(); err != nil {
				t.Fatal(err)
			}
			if err := core.Accepted(t.Context()); err != nil {
				t.Errorf("accepted: %v", err)
			}
		})
		t.Run("pending", func(t *testing.T) {
			core, _ := p.stream(t, dialTo("a:1"))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := core.Accepted(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("accepted without a verdict: %v", err)
			}
		})
		t.Run("by writing", func(t *testing.T) {
			core, edge := p.stream(t, dialTo("a:1"))
			if _, err := edge.Write([]byte("SSH-2.0")); err != nil {
				t.Fatal(err)
			}
			if err := core.Accepted(t.Context()); err != nil {
				t.Errorf("accepted: %v", err)
			}
			b := make([]byte, 7)
			if _, err := io.ReadFull(core, b); err != nil || string(b) != "SSH-2.0" {
				t.Errorf("read %q, %v", b, err)
			}
		})
		t.Run("refused", func(t *testing.T) {
			core, edge := p.stream(t, dialTo("a:1"))
			if _, err := core.Write([]byte("optimistic")); err != nil {
				t.Fatal(err)
			}
			if err := edge.Refuse(wire.Errorf(wire.CodeRefused, "169.254.169.254 is not allowed")); err != nil {
				t.Fatal(err)
			}
			for name, err := range map[string]error{"accepted": core.Accepted(t.Context()), "read": readErr(core)} {
				e, ok := errors.AsType[*wire.Error](err)
				if !ok || e.Code != wire.CodeRefused || e.Public != "169.254.169.254 is not allowed" {
					t.Errorf("%s: got %v", name, err)
				}
			}
			if _, err := edge.Write([]byte("x")); err == nil {
				t.Error("writing to a refused stream worked")
			}
		})
	})
}

func readErr(st tunnel.Stream) error {
	_ = st.SetReadDeadline(time.Now().Add(patience))
	for {
		if _, err := st.Read(make([]byte, 1024)); err != nil {
			return err
		}
	}
}

func TestReset(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		core, edge := p.stream(t, dialTo("a:1"))
		_ = edge.Confirm()
		if _, err := core.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := core.Accepted(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := core.Reset(wire.Errorf(wire.CodeTerminated, "your role was withdrawn")); err != nil {
			t.Fatal(err)
		}
		err := readErr(edge)
		e, ok := errors.AsType[*wire.Error](err)
		if !ok || e.Code != wire.CodeTerminated {
			t.Errorf("read got %v", err)
		}
		if ok && e.Public != "your role was withdrawn" {
			t.Errorf("text %q", e.Public)
		}
		if _, err := edge.Write([]byte("x")); err == nil {
			t.Error("writing to a reset stream worked")
		}

		// The other way round, and seen by who writes only.
		core2, edge2 := p.stream(t, dialTo("a:1"))
		_ = edge2.Confirm()
		if err := core2.Accepted(t.Context()); err != nil {
			t.Fatal(err)
		}
		_ = edge2.Refuse(wire.Errorf(wire.CodeConnRefused, "nobody listens at a:1"))
		until(t, "the reset arrives at the writer", func() bool { _, err = core2.Write([]byte("x")); return err != nil })
		if e, ok := errors.AsType[*wire.Error](err); !ok || e.Code != wire.CodeConnRefused || e.Public != "nobody listens at a:1" {
			t.Errorf("write got %v", err)
		}
		_ = core2.Close()
		until(t, "streams are forgotten", func() bool { return p.core.Stats().Streams == 0 && p.edge.Stats().Streams <= 1 })
	})
}

// TestCloseDelivers checks that Close does not lose what was written.
func TestCloseDelivers(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		core, edge := p.stream(t, dialTo("a:1"))
		sent := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := core.Write(sent); err != nil {
				t.Errorf("write: %v", err)
			}
			_ = core.Close()
		})
		got, err := io.ReadAll(edge)
		wg.Wait()
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("got %d of %d bytes, %v", len(got), len(sent), err)
		}
		until(t, "writing fails after the reader closed", func() bool {
			_, err := edge.Write([]byte("x"))
			return err != nil
		})
	})
}

func TestDeadlines(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		core, edge := p.stream(t, dialTo("a:1"))
		_ = core.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := core.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		if e, ok := errors.AsType[net.Error](os.ErrDeadlineExceeded); !ok || !e.Timeout() {
			t.Error("the error is no time-out")
		}
		_ = core.SetReadDeadline(time.Time{})
		if _, err := edge.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if n, err := core.Read(make([]byte, 1)); n != 1 || err != nil {
			t.Errorf("read after the deadline was lifted: %d, %v", n, err)
		}
		// A deadline set while a read waits ends it.
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := core.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("waiting read: %v", err)
			}
		})
		_ = core.SetReadDeadline(time.Now())
		wg.Wait()
		// A writer whose reader stalls.
		_ = core.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if _, err := core.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %v", err)
		}
	})
}

func TestStreamLimit(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{MaxStreams: 4, MaxOwn: 4}, 0)
		var open []tunnel.Stream
		var refused error
		for range 5 {
			st, err := p.core.Open(t.Context(), dialTo("a:1"))
			if err != nil {
				refused = err
				break
			}
			open = append(open, st)
		}
		if e, ok := errors.AsType[*wire.Error](refused); !ok || e.Code != wire.CodeLimit || len(open) != 4 {
			t.Fatalf("%d streams, then %v", len(open), refused)
		}
		for _, st := range open {
			a, err := p.edge.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_ = st.Close()
			_ = a.Close()
		}
		until(t, "a stream can be opened again", func() bool {
			st, err := p.core.Open(t.Context(), dialTo("a:1"))
			if err == nil {
				_ = st.Close()
			}
			return err == nil
		})
	})
}

// TestStalledReaders has four readers stop and expects others to pass.
func TestStalledReaders(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		var wg sync.WaitGroup
		defer wg.Wait()
		for range 4 {
			core, _ := p.stream(t, dialTo("stalled:1"))
			defer core.Reset(nil)
			wg.Go(func() {
				for {
					if _, err := core.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			})
		}
		core, edge := p.stream(t, dialTo("b:1"))
		wg.Go(func() {
			_, _ = core.Write(make([]byte, 64<<20))
			_ = core.CloseWrite()
		})
		_ = edge.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.Copy(io.Discard, edge); n != 64<<20 || err != nil {
			t.Errorf("the fifth stream passed %d bytes, %v", n, err)
		}
	})
}

// TestOneRoundTrip opens alone and 32 at once through a slow path: the first
// answer byte must come after one round trip.
func TestOneRoundTrip(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		const delay = 400 * time.Millisecond
		p := c.connect(t, tunnel.Limits{}, delay)
		serve(t, p.edge, echo)
		for _, n := range []int{1, 32} {
			paused := pauses()
			begin := time.Now()
			var wg sync.WaitGroup
			for range n {
				wg.Go(func() {
					st, err := p.core.Open(t.Context(), dialTo("a:1"))
					if err != nil {
						t.Error(err)
						return
					}
					defer st.Close()
					if _, err := st.Write([]byte("x")); err != nil {
						t.Error(err)
					}
					if _, err := st.Read(make([]byte, 1)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			// What is left of a second round trip is slack for a busy machine, and
			// one that stood still counts no time.
			if d, still := time.Since(begin), paused(); d < 2*delay || d >= 4*delay+still {
				t.Errorf("%d at once: %v, want one round trip of %v; the machine stood still for %v", n, d, 2*delay, still)
			}
		}
	})
}

// pauses tells how long in all the machine gave this process nothing, from now
// until it is called.
func pauses() (paused func() time.Duration) {
	const tick, short = time.Millisecond, 50 * time.Millisecond
	over := make(chan struct{})
	sum := make(chan time.Duration)
	go func() {
		var all time.Duration
		last := time.Now()
		for t := time.NewTicker(tick); ; {
			select {
			case <-t.C:
			case <-over:
				t.Stop()
				sum <- all
				return
			}
			if d := time.Since(last); d > short {
				all += d
			}
			last = time.Now()
		}
	}()
	return func() time.Duration {
		close(over)
		return <-sum
	}
}

func TestCloseTellsWhy(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		p := c.connect(t, tunnel.Limits{}, 0)
		_, edge := p.stream(t, dialTo("a:1"))
		if err := p.core.Close(wire.Errorf(wire.CodeReplaced, "a newer tunnel took over")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.edge.Done():
		case <-time.After(patience):
			t.Fatal("the edge does not notice")
		}
		if e, ok := errors.AsType[*wire.Error](p.edge.Err()); !ok || e.Code != wire.CodeReplaced {
			t.Errorf("edge's reason: %v", p.edge.Err())
		}
		if !errors.Is(p.core.Err(), net.ErrClosed) {
			t.Errorf("core's reason: %v", p.core.Err())
		}
		if err := readErr(edge); err == io.EOF {
			t.Error("a lost stream looks like one that ended in order")
		}
		if _, err := p.edge.Open(t.Context(), dialTo("a:1")); err == nil {
			t.Error("opening in a closed session worked")
		}
		if _, err := p.edge.Accept(t.Context()); err == nil {
			t.Error("accepting in a closed session worked")
		}
		if err := p.core.Close(nil); err != nil {
			t.Errorf("second close: %v", err)
		}
	})
}

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
