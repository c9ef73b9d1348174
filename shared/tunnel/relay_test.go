package tunnel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// tcpPair is two ends of a TCP connection on loopback.
func tcpPair(t *testing.T) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close(); _ = other.Close() })
	return nc.(*net.TCPConn), other.(*net.TCPConn)
}

// relayed is a user and a target with a whole path between them: TCP, relay,
// tunnel, relay, TCP.
type relayed struct {
	user, target *net.TCPConn
	up, down     atomic.Int64
	cancel       context.CancelFunc
	done         chan struct{}
	nearErr      error
	farErr       error
}

func relay(t *testing.T, c carrier) *relayed {
	t.Helper()
	p := c.connect(t, tunnel.Limits{}, 0)
	near, far := p.stream(t, dialTo("target:1"))
	user, entry := tcpPair(t)
	exit, target := tcpPair(t)
	ctx, cancel := context.WithCancel(context.Background())
	r := &relayed{user: user, target: target, cancel: cancel, done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		var ab, ba int64
		ab, ba, r.nearErr = tunnel.Relay(ctx, entry, near, tunnel.Counters{
			AB: func(n int) { r.up.Add(int64(n)) },
			BA: func(n int) { r.down.Add(int64(n)) },
		})
		if ab != r.up.Load() || ba != r.down.Load() {
			t.Errorf("Relay returned %d and %d, counted %d and %d", ab, ba, r.up.Load(), r.down.Load())
		}
	})
	wg.Go(func() { _, _, r.farErr = tunnel.Relay(context.Background(), far, exit, tunnel.Counters{}) })
	go func() { wg.Wait(); close(r.done) }()
	t.Cleanup(func() { cancel(); <-r.done })
	return r
}

func (r *relayed) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("the relays do not end")
	}
}

func TestRelayHalfClose(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		r := relay(t, c)
		request := bytes.Repeat([]byte("request "), 100_000)
		go func() { _, _ = r.user.Write(request); _ = r.user.CloseWrite() }()
		got, err := io.ReadAll(r.target)
		if err != nil || !bytes.Equal(got, request) {
			t.Fatalf("target got %d of %d bytes, %v", len(got), len(request), err)
		}
		response := bytes.Repeat([]byte("response "), 100_000)
		go func() { _, _ = r.target.Write(response); _ = r.target.Close() }()
		got, err = io.ReadAll(r.user)
		if err != nil || !bytes.Equal(got, response) {
			t.Fatalf("user got %d of %d bytes, %v", len(got), len(response), err)
		}
		r.wait(t)
		if r.nearErr != nil || r.farErr != nil {
			t.Errorf("an orderly end is an error: %v, %v", r.nearErr, r.farErr)
		}
		if r.up.Load() != int64(len(request)) || r.down.Load() != int64(len(response)) {
			t.Errorf("counted %d up, %d down", r.up.Load(), r.down.Load())
		}
	})
}

// TestRelaySlowTarget has sockets take a frame in parts: what the session's
// reader could not write follows in order.
func TestRelaySlowTarget(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		r := relay(t, c)
		if err := r.target.SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		sent := make([]byte, 4<<20)
		rnd := rand.New(rand.NewPCG(1, 2))
		for i := 0; i < len(sent); i += 8 {
			binary.LittleEndian.PutUint64(sent[i:], rnd.Uint64())
		}
		go func() {
			for b := sent; len(b) > 0; {
				n := min(len(b), 1+rnd.IntN(150_000))
				if _, err := r.user.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
			_ = r.user.CloseWrite()
		}()
		got, buf := make([]byte, 0, len(sent)), make([]byte, 300_000)
		for i := 0; ; i++ {
			n, err := r.target.Read(buf[:1+i*7919%len(buf)])
			got = append(got, buf[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, sent) {
			t.Fatalf("the target got other bytes than were sent: %d of %d", len(got), len(sent))
		}
		_ = r.target.Close()
		r.wait(t)
		if r.up.Load() != int64(len(sent)) {
			t.Errorf("counted %d of %d bytes", r.up.Load(), len(sent))
		}
	})
}

// TestRelayReset has the target reset: the user sees a reset, not an end.
func TestRelayReset(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		r := relay(t, c)
		if _, err := r.user.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r.target, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		_ = r.target.SetLinger(0)
		_ = r.target.Close()
		_ = r.user.SetReadDeadline(time.Now().Add(patience))
		if _, err := r.user.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("user: %v", err)
		}
		r.wait(t)
		if r.nearErr == nil || r.farErr == nil {
			t.Errorf("a reset is no error: %v, %v", r.nearErr, r.farErr)
		}
	})
}

func TestRelayCancelled(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		r := relay(t, c)
		if _, err := r.user.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r.target, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		r.cancel()
		r.wait(t)
		if !errors.Is(r.nearErr, context.Canceled) {
			t.Errorf("near: %v", r.nearErr)
		}
		if e, ok := errors.AsType[*wire.Error](r.farErr); !ok || e.Code != wire.CodeTerminated {
			t.Errorf("far: %v", r.farErr)
		}
		for who, nc := range map[string]net.Conn{"user": r.user, "target": r.target} {
			_ = nc.SetReadDeadline(time.Now().Add(patience))
			if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v", who, err)
			}
		}
	})
}

// TestRelayUserGone has the user leave while the target is silent and never
// looks: nothing may stay behind.
func TestRelayUserGone(t *testing.T) {
	onEach(t, func(t *testing.T, c carrier) {
		r := relay(t, c)
		if _, err := r.target.Write([]byte("banner")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r.user, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		_ = r.user.SetLinger(0)
		_ = r.user.Close()
		r.wait(t)
	})
}

func BenchmarkRelay(b *testing.B) {
	client, server := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	defer client.Close(nil)
	defer server.Close(nil)
	st, err := client.Open(b.Context(), dialTo("a:1"))
	if err != nil {
		b.Fatal(err)
	}
	other, err := server.Accept(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, other) }()
	block := make([]byte, 64<<10)
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := st.Write(block); err != nil {
			b.Fatal(err)
		}
	}
}
