package tunnel

import (
	"errors"
	"net"
	"testing"
	"time"

	"caponier/shared/wire"
)

// TestStarvedIsNotSilent has the keep-alive run late and then in time: only a
// silence in which we could have heard something ends a session.
func TestStarvedIsNotSilent(t *testing.T) {
	in, out := newMemory(), newMemory()
	s := newMuxSession(&memoryLink{r: in, w: out}, true, Info{Started: time.Now().Add(-time.Hour)}, Limits{PingEvery: time.Hour})
	defer s.Close(nil)
	silentFor := func(d, late time.Duration) {
		s.mu.Lock()
		s.heard.Store(s.now() - int64(d))
		s.tickDue = s.now() - int64(late)
		s.mu.Unlock()
		s.tick()
	}
	silentFor(10*time.Second, 8*time.Second)
	if err := s.Err(); err != nil {
		t.Fatalf("after 10 s, 8 of them starved: %v", err)
	}
	silentFor(11*time.Second, 0)
	if err := s.Err(); err != nil {
		t.Fatalf("after 11 s, 8 of them starved: %v", err)
	}
	silentFor(13*time.Second, 0)
	if err := s.Err(); !errors.Is(err, errSilent) {
		t.Fatalf("after 13 s, 8 of them starved: %v", err)
	}
}

// TestUnreadIsNotSilent asks whether a socket holds something we did not read.
func TestUnreadIsNotSilent(t *testing.T) {
	a, b := tcpPair(t)
	c := newCorkedConn(b)
	if c.raw == nil {
		t.Fatal("a TCP socket that cannot be looked into")
	}
	if unreadOf(c.raw) {
		t.Error("unread bytes before any were sent")
	}
	if _, err := a.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := awaitReadable(c.raw); err != nil {
		t.Fatal(err)
	}
	if !unreadOf(c.raw) {
		t.Error("no unread bytes after one was sent")
	}
}

// TestHelloGate fills the gate with clients whose hello is being answered:
// another waits in vain, and gets in when one of them has gone on.
func TestHelloGate(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gl := Listener(l).(listener)
	defer gl.Close()
	connect := func() net.Conn {
		t.Helper()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		server, err := gl.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		return server
	}
	var inside []net.Conn
	for range cap(gl.gate.slots) {
		c := connect()
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		inside = append(inside, c)
	}
	if _, err := connect().Read(make([]byte, 1)); !errors.Is(err, errOverloaded) {
		t.Errorf("with the gate full: %v", err)
	}
	inside[0].Close()
	if _, err := connect().Read(make([]byte, 1)); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
}

// TestWindowGrows reads a window that limits: once through in a round trip.
func TestWindowGrows(t *testing.T) {
	in, out := newMemory(), newMemory()
	s := newMuxSession(&memoryLink{r: in, w: out}, true, Info{Started: time.Now().Add(-time.Hour)}, Limits{PingEvery: time.Hour})
	defer s.Close(nil)
	rtt := 80 * time.Second // the machine's own pauses are nothing beside it
	s.minRTT.Store(int64(rtt))
	for _, tc := range []struct {
		after time.Duration
		grows bool
	}{{rtt + rtt/4, true}, {3 * rtt, false}} {
		st := newStream(s, 1, wire.Preface{}, true)
		before := st.window
		st.rmu.Lock()
		st.grownAt = s.now() - int64(tc.after)
		grant := st.consumeLocked(9 * wire.MaxFrameData) // over half of it
		st.rmu.Unlock()
		if grown := st.window > before; grown != tc.grows || grant < 9*wire.MaxFrameData {
			t.Errorf("half the window read after %v: window %d, grant %d, want growth %v", tc.after, st.window, grant, tc.grows)
		}
	}
}

func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return a, b
}
