package nft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caponier/shared/wire"
)

// stopsAfter sends without pause, ends the session in the middle, and says how
// long after that the last bytes came to the receiver's kernel, whenever they
// were read, and what the sender was told.
func stopsAfter(t *testing.T, from, to net.Conn, end func()) (last time.Duration, err error) {
	t.Helper()
	var ended time.Time
	read := make(chan struct{})
	started := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 64<<10)
		for n := 0; ; n++ {
			if _, err := to.Read(buf); err != nil {
				return
			}
			if n == 20 {
				close(started)
			}
		}
	}()
	wrote := make(chan error, 1)
	go func() {
		buf := make([]byte, 16<<10)
		for {
			if _, err := from.Write(buf); err != nil {
				wrote <- err
				return
			}
		}
	}()
	<-started
	end()
	ended = time.Now()
	select {
	case err = <-wrote:
	case <-time.After(patience):
		t.Fatal("the sender never noticed")
	}
	_ = to.SetReadDeadline(time.Now())
	<-read
	return arrived(t, to).Sub(ended), err
}

// arrived is when the last bytes came, as the kernel has it.
func arrived(t *testing.T, c net.Conn) (at time.Time) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the kernel is asked without a pause", func() bool {
		var info *unix.TCPInfo
		before := time.Now()
		if cerr := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		at = before.Add(-time.Duration(info.Last_data_recv) * time.Millisecond)
		return time.Since(before) < 5*time.Millisecond
	})
	return at
}

// serve accepts one connection in a namespace.
func (r *rig) serve(ns, addr string) func() net.Conn {
	r.t.Helper()
	l, err := r.Listen(ns, "tcp", addr)
	r.must(err)
	r.t.Cleanup(func() { l.Close() })
	got := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			got <- c
		}
	}()
	return func() net.Conn {
		select {
		case c := <-got:
			r.t.Cleanup(func() { c.Close() })
			return c
		case <-time.After(patience):
			r.t.Fatal("nobody came")
			return nil
		}
	}
}

// Removal cuts an established flow at once, in both directions, and the side
// that sends is told; other sessions' flows do not notice.
func TestRemovalCutsEstablishedFlows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.echo("target", target2+":502")
	tab := r.start(session(t, "stays", otherAddr, "10.20.0.6 tcp 502"))
	survivor := r.passes(otherAddr, "tcp", target2+":502")
	for port, upload := range map[string]bool{"9000": true, "9001": false} {
		s := session(t, fmt.Sprint("s", upload), clientAddr, "10.20.0.5 tcp "+port, "198.51.100.1 tcp "+port+" -> 10.20.0.5")
		r.apply(tab, []wire.RouterSession{s})
		accept := r.serve("target", targetAddr+":"+port)
		c, err := r.dial(clientAddr, "tcp", "198.51.100.1:"+port, patience)
		r.must(err)
		defer c.Close()
		server := accept()
		from, to := c, server
		if !upload {
			from, to = server, c
		}
		last, err := stopsAfter(t, from, to, func() { r.apply(tab, nil, s.ID) })
		if last > 50*time.Millisecond {
			t.Errorf("upload %v: bytes arrived %v after the end", upload, last)
		}
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("upload %v: the sender got %v, want a reset", upload, err)
		}
		r.must(pingPong(survivor, patience))
		server.Close()
	}
}

func TestRemovalCutsOneWayUDP(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	server := r.hear("target", targetAddr+":514")
	s := session(t, "s", clientAddr, "10.20.0.5 udp 514")
	tab := r.start(s)
	c, err := r.dial(clientAddr, "udp", targetAddr+":514", patience)
	r.must(err)
	defer c.Close()
	arrives := func(text string, wait time.Duration) bool {
		_, _ = c.Write([]byte(text))
		r.must(server.SetReadDeadline(time.Now().Add(wait)))
		buf := make([]byte, 100)
		for {
			n, _, err := server.ReadFromUDPAddrPort(buf)
			if err != nil {
				return false
			}
			if string(buf[:n]) == text {
				return true
			}
		}
	}
	if !arrives("one", patience) || !arrives("two", patience) {
		t.Fatal("nothing arrives")
	}
	r.apply(tab, nil, "s")
	if arrives("three", denyWait) {
		t.Error("a datagram passed after the end")
	}
	// The sender hears that it is prohibited.
	until(t, "the sender is refused", func() bool {
		_, err := c.Write([]byte("four"))
		return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ECONNREFUSED)
	})
}

// The same five numbers used again at once belong to the new session: the old
// grant is not inherited, and the new one is not refused for long.
func TestTupleReuse(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	server := r.hear("target", targetAddr+":161")
	first := session(t, "first", clientAddr, "10.20.0.5 udp 161")
	tab := r.start(first)
	c, err := r.dial(clientAddr, "udp", targetAddr+":161", patience)
	r.must(err)
	defer c.Close()
	buf := make([]byte, 100)
	send := func(text string) { _, _ = c.Write([]byte(text)) }
	send("first")
	r.must(server.SetReadDeadline(time.Now().Add(patience)))
	_, peer, err := server.ReadFromUDPAddrPort(buf)
	r.must(err)

	r.apply(tab, []wire.RouterSession{session(t, "second", clientAddr, "10.20.0.6 udp 161")}, "first")
	// The old flow, same tuple, is not granted any more, from neither side, also
	// after the kernel has forgotten it.
	for range 20 {
		send("old")
		_, _ = server.WriteToUDPAddrPort([]byte("old"), peer)
	}
	r.must(server.SetReadDeadline(time.Now().Add(denyWait)))
	if n, _, err := server.ReadFromUDPAddrPort(buf); err == nil {
		t.Fatalf("%q passed on the old grant", buf[:n])
	}
	r.apply(tab, []wire.RouterSession{session(t, "third", clientAddr, "10.20.0.5 udp 161")}, "second")
	until(t, "the same tuple passes under the new session", func() bool {
		send("third")
		_ = server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, _, err := server.ReadFromUDPAddrPort(buf)
		return err == nil && string(buf[:n]) == "third"
	})
	counts, err := tab.Counters(t.Context(), []string{"third"})
	r.must(err)
	if counts[0].PacketsOut == 0 {
		t.Error("the flow does not count for the new session")
	}
}

// A session whose rules change is cut: what it had is not what it may.
func TestChangedRulesCutTheFlow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.echo("target", targetAddr+":502")
	tab := r.start(session(t, "s", clientAddr, "10.20.0.5 tcp 502"))
	c := r.passes(clientAddr, "tcp", targetAddr+":502")
	r.apply(tab, []wire.RouterSession{session(t, "s", clientAddr, "10.20.0.5 tcp 502")})
	r.must(pingPong(c, patience)) // nothing changed
	r.apply(tab, []wire.RouterSession{session(t, "s", clientAddr, "10.20.0.5 tcp 503")})
	if err := pingPong(c, denyWait); err == nil {
		t.Error("the flow goes on under rules that do not grant it")
	}
}

// Overlap on the router itself is refused, whatever core thought.
func TestOverlapIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tab := r.start(session(t, "a", clientAddr, "10.20.0.0/24 tcp 502"))
	res, err := tab.Apply(t.Context(), []wire.RouterSession{
		session(t, "b", clientAddr, "10.30.0.0/24", "10.20.0.5"),
		session(t, "c", otherAddr, "10.20.0.5"),
	}, nil)
	r.must(err)
	if len(res.Failed) != 1 || res.Failed[0].ID != "b" || !strings.Contains(res.Failed[0].Error.Public, "overlaps") {
		t.Errorf("got %+v, want b refused", res.Failed)
	}
}

// A translation to the router's own address (a listener there leads on) is cut
// as well, also when the answer comes from the router's own socket.
func TestListenerOnTheRouter(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	accept := r.serve("router", routerSide+":11000")
	s := session(t, "s", clientAddr, "10.99.0.1 tcp 502 -> "+routerSide+":11000")
	tab := r.start(s)
	c, err := r.dial(clientAddr, "tcp", "10.99.0.1:502", patience)
	r.must(err)
	defer c.Close()
	server := accept()
	last, _ := stopsAfter(t, server, c, func() {
		r.apply(tab, nil, "s")
		go func() { // the client would notice with its next packet
			_, _ = io.WriteString(c, "x")
		}()
	})
	if last > 50*time.Millisecond {
		t.Errorf("bytes arrived %v after the end", last)
	}
}

// Flows of ended sessions leave the kernel's table, others stay.
func TestFlowsAreForgotten(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.udpEcho("target", targetAddr+":161")
	var ahead atomic.Int64 // of the table's clock, which else stands
	began := time.Now()
	tab := r.open(Config{Now: func() time.Time { return began.Add(time.Duration(ahead.Load())) }})
	r.replace(tab, session(t, "s", clientAddr, "10.20.0.5 udp 161"), session(t, "o", otherAddr, "10.20.0.5 udp 161"))
	r.must(tab.Renew(t.Context(), longLease))
	r.passes(clientAddr, "udp", targetAddr+":161")
	r.passes(otherAddr, "udp", targetAddr+":161")
	r.apply(tab, nil, "s")
	flows := func() string {
		out, _ := r.Command(context.Background(), "router", "conntrack", "-L", "-p", "udp").CombinedOutput()
		return string(out)
	}
	if !strings.Contains(flows(), "src="+clientAddr+" ") {
		t.Error("the flow is gone before its ends could be told")
	}
	ahead.Store(int64(keepFlows))
	until(t, "the flow is forgotten", func() bool { return !strings.Contains(flows(), "src="+clientAddr+" ") })
	if !strings.Contains(flows(), "src="+otherAddr+" ") {
		t.Error("the other session's flow is gone, too")
	}
}
