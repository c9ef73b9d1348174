package nft

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caponier/e2e/harness"
	"caponier/shared/netrule"
	"caponier/shared/wire"
)

const (
	clientAddr = "192.0.2.10"
	otherAddr  = "192.0.2.11" // a second client's
	client6    = "2001:db8:1::10"
	routerSide = "192.0.2.1" // the router's address on the clients' side
	targetSide = "10.20.0.1" // the router's address on the targets' side
	targetAddr = "10.20.0.5"
	target2    = "10.20.0.6"
	target6    = "fd00:20::5"
	longLease  = 5 * time.Minute
	patience   = time.Minute            // what must happen may take that long on a busy machine
	denyWait   = 300 * time.Millisecond // what gets nowhere within that does not pass
)

var (
	rigOnce sync.Once
	rigErr  error
)

// rig is a client, a router and a target, each in a namespace.
type rig struct {
	*harness.Net
	t testing.TB
}

func newRig(t testing.TB) *rig {
	t.Helper()
	if testing.Short() {
		t.Skip("network namespaces; run without -short")
	}
	rigOnce.Do(func() {
		if rigErr = harness.Usable(); rigErr == nil {
			for _, tool := range []string{"conntrack", "iperf3", "tcpdump", "nft", "ping"} {
				if _, err := exec.LookPath(tool); err != nil {
					rigErr = fmt.Errorf("%s is missing: run make setup", tool)
				}
			}
		}
	})
	if rigErr != nil {
		harness.Lacks(t, "no rig: %v", rigErr)
	}
	r := &rig{Net: harness.NewNet(""), t: t}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	r.must(r.Add("client", "router", "target"))
	// Link-local addresses are usable at once, too: a router that has none asks
	// nobody where a target is, and drops what is for it after three seconds.
	for _, ns := range []string{"client", "router", "target"} {
		r.must(r.Sysctl(ns, "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"))
	}
	r.wire("client", "router", "c")
	r.wire("router", "target", "t")
	r.must(r.IP("client", "addr add "+clientAddr+"/24 dev c0", "addr add "+otherAddr+"/24 dev c0", "addr add "+client6+"/64 dev c0 nodad",
		"route add default via "+routerSide, "route add default via inet6 2001:db8:1::1"))
	r.must(r.IP("router", "addr add "+routerSide+"/24 dev c1", "addr add 2001:db8:1::1/64 dev c1 nodad",
		"addr add "+targetSide+"/16 dev t0", "addr add fd00:20::1/64 dev t0 nodad"))
	r.must(r.IP("target", "addr add "+targetAddr+"/16 dev t1", "addr add "+target2+"/16 dev t1", "addr add "+target6+"/64 dev t1 nodad",
		"route add default via "+targetSide, "route add default via inet6 fd00:20::1"))
	r.must(r.Sysctl("router", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// wire joins two namespaces: dev0 in a, dev1 in b.
func (r *rig) wire(a, b, dev string) {
	r.t.Helper()
	out, err := exec.CommandContext(r.t.Context(), "ip", "link", "add", dev+"0", "netns", r.NS(a), "type", "veth", "peer", "name", dev+"1", "netns", r.NS(b)).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	r.must(r.IP(a, "link set "+dev+"0 up"))
	r.must(r.IP(b, "link set "+dev+"1 up"))
}

// run runs a program in a namespace to its end.
func (r *rig) run(ns, prog string, args ...string) string {
	r.t.Helper()
	out, err := r.Command(r.t.Context(), ns, prog, args...).CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s %s: %v: %s", prog, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// open opens the table in the router's namespace and runs it.
func (r *rig) open(cfg Config) *Table {
	r.t.Helper()
	tab, stop := r.openFor(cfg)
	r.t.Cleanup(stop)
	return tab
}

// openFor is open with the end in the caller's hand.
func (r *rig) openFor(cfg Config) (*Table, func()) {
	r.t.Helper()
	var tab *Table
	r.must(r.Within("router", func() (err error) {
		tab, err = Open(r.t.Context(), cfg)
		return err
	}))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tab.Run(ctx) }()
	var once sync.Once
	return tab, func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Error(err)
			}
			if err := tab.Close(); err != nil {
				r.t.Error(err)
			}
		})
	}
}

// start opens the table with the given sessions and a lease.
func (r *rig) start(sessions ...wire.RouterSession) *Table {
	r.t.Helper()
	tab := r.open(Config{})
	r.replace(tab, sessions...)
	r.must(tab.Renew(r.t.Context(), longLease))
	return tab
}

func (r *rig) replace(tab *Table, sessions ...wire.RouterSession) Result {
	r.t.Helper()
	res, err := tab.Replace(r.t.Context(), sessions)
	r.must(err)
	if len(res.Failed) > 0 {
		r.t.Fatalf("session %s: %v", res.Failed[0].ID, res.Failed[0].Error)
	}
	return res
}

func (r *rig) apply(tab *Table, add []wire.RouterSession, remove ...string) Result {
	r.t.Helper()
	res, err := tab.Apply(r.t.Context(), add, remove)
	r.must(err)
	if len(res.Failed) > 0 {
		r.t.Fatalf("session %s: %v", res.Failed[0].ID, res.Failed[0].Error)
	}
	return res
}

// session makes a session out of texts.
func session(t testing.TB, id, client string, dests ...string) wire.RouterSession {
	t.Helper()
	s := wire.RouterSession{ID: id, Target: "target of " + id, Rules: netrule.Rules{Client: netip.MustParseAddr(client)}}
	for _, d := range dests {
		parsed, err := netrule.ParseDestination(d)
		if err != nil {
			t.Fatal(err)
		}
		s.Rules.Destinations = append(s.Rules.Destinations, parsed)
	}
	return s
}

// echo answers TCP on an address of a namespace until the test ends.
func (r *rig) echo(ns, addr string) {
	r.t.Helper()
	l, err := r.Listen(ns, "tcp", addr)
	r.must(err)
	var wg sync.WaitGroup
	r.t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.t.Cleanup(func() { c.Close() })
			wg.Go(func() { _, _ = io.Copy(c, c) })
		}
	})
}

// hear is a UDP socket in a namespace.
func (r *rig) hear(ns, addr string) *net.UDPConn {
	r.t.Helper()
	var c *net.UDPConn
	r.must(r.Within(ns, func() (err error) {
		var pc net.PacketConn
		pc, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", addr)
		if err == nil {
			c = pc.(*net.UDPConn)
		}
		return err
	}))
	r.t.Cleanup(func() { c.Close() })
	return c
}

// udpEcho answers UDP until the test ends.
func (r *rig) udpEcho(ns, addr string) {
	c := r.hear(ns, addr)
	var wg sync.WaitGroup
	r.t.Cleanup(func() { c.Close(); wg.Wait() })
	wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from)
		}
	})
}

// dial connects from a client address; wait bounds it.
func (r *rig) dial(from, network, to string, wait time.Duration) (net.Conn, error) {
	var c net.Conn
	err := r.Within("client", func() (err error) {
		d := net.Dialer{Timeout: wait}
		if network == "tcp" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		} else {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
		c, err = d.DialContext(context.Background(), network, to)
		return err
	})
	return c, err
}

// passes says that client and address can speak.
func (r *rig) passes(from, network, to string) net.Conn {
	r.t.Helper()
	c, err := r.dial(from, network, to, patience)
	if err != nil {
		r.t.Fatalf("%s to %s %s: %v", from, network, to, err)
	}
	r.t.Cleanup(func() { c.Close() })
	if err := pingPong(c, patience); err != nil {
		r.t.Fatalf("%s to %s %s: %v", from, network, to, err)
	}
	return c
}

// blocked says that they cannot.
func (r *rig) blocked(from, network, to string) {
	r.t.Helper()
	c, err := r.dial(from, network, to, denyWait)
	if err != nil {
		return
	}
	defer c.Close()
	if err := pingPong(c, denyWait); err == nil {
		r.t.Fatalf("%s to %s %s passes", from, network, to)
	}
}

// pingPong sends a few bytes and wants them back.
func pingPong(c net.Conn, wait time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	out := []byte("0123456789")
	if _, err := c.Write(out); err != nil {
		return err
	}
	in := make([]byte, len(out))
	if _, err := io.ReadFull(c, in); err != nil {
		return err
	}
	if !bytes.Equal(in, out) {
		return fmt.Errorf("got %q back", in)
	}
	return nil
}

// until waits for a condition.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		var ts unix.Timespec
		ts.Nsec = 2e6
		_ = unix.Nanosleep(&ts, nil)
	}
}
