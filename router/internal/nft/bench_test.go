package nft

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caponier/shared/netrule"
	"caponier/shared/wire"
)

var benchSessions = flag.Int("sessions", 0, "print the router's table of figures with that many sessions installed (10000)")

// roleEnv makes the test binary a router to be killed.
const roleEnv = "CAPONIER_NFT_TEST_ROUTER"

func TestMain(m *testing.M) {
	if n := os.Getenv(roleEnv); n != "" {
		if err := playRouter(n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// playRouter reconciles n sessions, gives a long lease, says so, and waits.
func playRouter(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil {
		return err
	}
	ctx := context.Background()
	tab, err := Open(ctx, Config{})
	if err != nil {
		return err
	}
	if _, err := tab.Replace(ctx, crowd(n)); err != nil {
		return err
	}
	if err := tab.Renew(ctx, longLease); err != nil {
		return err
	}
	fmt.Println("ready")
	return tab.Run(ctx)
}

// crowd is n sessions of n clients to 200 targets of 3 destinations each; the
// first is the rig's client to the rig's target.
func crowd(n int) []wire.RouterSession {
	out := make([]wire.RouterSession, n)
	for i := range out {
		out[i] = member(i, i%200)
	}
	return out
}

func member(i, target int) wire.RouterSession {
	client := netip.AddrFrom4([4]byte{100, byte(64 + i>>16), byte(i >> 8), byte(i)})
	if i == 0 {
		client = netip.MustParseAddr(clientAddr)
	}
	addr := func(last byte) netrule.Range {
		return netrule.Range{First: netip.AddrFrom4([4]byte{10, byte(20 + target>>8), byte(target), last}), Last: netip.AddrFrom4([4]byte{10, byte(20 + target>>8), byte(target), last + 9})}
	}
	return wire.RouterSession{ID: fmt.Sprintf("connection-%08d", i), Target: fmt.Sprint("target ", target), Rules: netrule.Rules{Client: client, Destinations: []netrule.Destination{
		{Selector: netrule.Selector{Addrs: addr(0), Proto: netrule.TCP, Ports: netrule.Ports{First: 502, Last: 502}}},
		{Selector: netrule.Selector{Addrs: addr(0), Proto: netrule.UDP, Ports: netrule.Ports{First: 161, Last: 5161}}},
		{Selector: netrule.Selector{Addrs: addr(100), Proto: netrule.TCP}, DNAT: &netrule.NAT{Addr: netip.MustParseAddr("10.20.0.9"), Port: 443}},
	}}}
}

// killed starts a router process with n sessions and kills it.
func (r *rig) killed(n int) {
	r.t.Helper()
	self, err := os.Executable()
	r.must(err)
	cmd := exec.CommandContext(r.t.Context(), "ip", "netns", "exec", r.NS("router"), self)
	cmd.Env = append(os.Environ(), roleEnv+"="+strconv.Itoa(n))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	r.must(err)
	r.must(cmd.Start())
	buf := make([]byte, 5)
	_, err = out.Read(buf)
	if err != nil || string(buf) != "ready" {
		r.t.Fatalf("the router said %q, %v", buf, err)
	}
	r.must(cmd.Process.Kill())
	_ = cmd.Wait()
}

// SIGKILL cuts nothing, and what comes back finds everything in its place.
func TestKilledRouter(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.echo("target", targetAddr+":502")
	const n = 300
	r.killed(n)
	flow := r.passes(clientAddr, "tcp", targetAddr+":502")
	tab := r.open(Config{})
	if res := r.replace(tab, crowd(n)...); len(res.Ended) > 0 {
		t.Errorf("ended %d sessions", len(res.Ended))
	}
	r.keepsSpeaking(flow, "reconciled")
	if tab.commits.Load() == 0 || tab.model.Len() != n {
		t.Errorf("%d sessions", tab.model.Len())
	}
}

type figures []float64

func (f figures) at(p float64) float64 {
	slices.Sort(f)
	return f[min(len(f)-1, int(p*float64(len(f))))]
}

func row(what string, value float64, unit string, limit float64) {
	verdict := ""
	if limit > 0 {
		verdict = fmt.Sprintf("<= %g: pass", limit)
		if value > limit {
			verdict = fmt.Sprintf("<= %g: short", limit)
		}
	}
	fmt.Printf("%-58s %10.3f %-4s %s\n", what, value, unit, verdict)
}

// TestBench prints the router's part of the table of `make bench`.
func TestBench(t *testing.T) {
	n := *benchSessions
	if n == 0 {
		t.Skip("a benchmark; run with -sessions 10000")
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -19); err != nil {
		t.Logf("other work will disturb: %v", err)
	}
	runtime.GOMAXPROCS(8) // blocking calls must not wait for each other
	r := newRig(t)
	r.echo("target", targetAddr+":502")
	sessions := crowd(n)

	before := kernelMemory(t)
	tab, stop := r.openFor(Config{})
	began := time.Now()
	r.replace(tab, sessions...)
	row(fmt.Sprintf("install %d sessions", n), time.Since(began).Seconds(), "s", 0)
	r.must(tab.Renew(t.Context(), longLease))
	row("kernel memory", max(0, kernelMemory(t)-before), "MiB", 16)

	benchApply(r, tab, n)
	benchRevoke(r, tab)
	benchLease(r, tab)
	stop()

	r.killed(n)
	flow := r.passes(clientAddr, "tcp", targetAddr+":502")
	var cut, beats atomic.Int64
	quit, idle := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(idle)
		for {
			select {
			case <-quit:
				return
			default:
			}
			if pingPong(flow, patience) != nil {
				cut.Add(1)
				return
			}
			beats.Add(1)
			wait(time.Millisecond)
		}
	}()
	began = time.Now()
	tab, stop = r.openFor(Config{})
	r.replace(tab, sessions...)
	row(fmt.Sprintf("reconcile %d sessions after kill -9", n), time.Since(began).Seconds(), "s", 2)
	close(quit)
	<-idle
	row(fmt.Sprintf("flows cut meanwhile (of one with %d round trips)", beats.Load()), float64(cut.Load()), "", 0)
	stop()
	benchPackets(t, n)
}

func benchApply(r *rig, tab *Table, n int) {
	var add, remove, fresh figures
	for i := range 2000 {
		s := member(n+i, i%200)
		began := time.Now()
		r.apply(tab, []wire.RouterSession{s})
		add = append(add, float64(time.Since(began).Microseconds())/1000)
		began = time.Now()
		r.apply(tab, nil, s.ID)
		remove = append(remove, float64(time.Since(began).Microseconds())/1000)
	}
	for i := range 100 {
		s := member(n+i, 200+i)
		began := time.Now()
		r.apply(tab, []wire.RouterSession{s})
		fresh = append(fresh, float64(time.Since(began).Microseconds())/1000)
		r.apply(tab, nil, s.ID)
	}
	row("apply one session, p50", add.at(0.5), "ms", 0.1)
	row("apply one session, p99", add.at(0.99), "ms", 2)
	row("remove one session, p50", remove.at(0.5), "ms", 0)
	row("remove one session, p99", remove.at(0.99), "ms", 0)
	row("apply to a target nobody used, p50", fresh.at(0.5), "ms", 0)
	row("apply to a target nobody used, p99", fresh.at(0.99), "ms", 2)
}

// stampSocket is a UDP socket that tells when the kernel got a datagram.
func stampSocket(r *rig, port int) *net.UDPConn {
	c := r.hear("target", targetAddr+":"+strconv.Itoa(port))
	raw, err := c.SyscallConn()
	r.must(err)
	r.must(raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) }))
	r.must(err)
	return c
}

// received reads until nothing has come for a while and returns the time of the
// last datagram.
func received(c *net.UDPConn, quiet time.Duration) (last time.Time) {
	buf, oob := make([]byte, 2048), make([]byte, 512)
	for {
		_ = c.SetReadDeadline(time.Now().Add(quiet))
		_, n, _, _, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return last
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil {
			continue
		}
		for _, m := range msgs {
			if len(m.Data) >= 16 {
				last = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
}

// flood sends small datagrams until told to stop.
func flood(c net.Conn) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 64)
		for {
			select {
			case <-quit:
				return
			default:
				_, _ = c.Write(packet)
				wait(20 * time.Microsecond) // leave the processors to the router
			}
		}
	}()
	return func() { close(quit); <-done }
}

func benchRevoke(r *rig, tab *Table) {
	var late figures
	for i := range 200 {
		server := stampSocket(r, 6000+i)
		s := session(r.t, "revoke"+strconv.Itoa(i), otherAddr, "10.20.0.5 udp 6000-6999")
		r.apply(tab, []wire.RouterSession{s})
		c, err := r.dial(otherAddr, "udp", targetAddr+":"+strconv.Itoa(6000+i), patience)
		r.must(err)
		last := make(chan time.Time, 1)
		stop := flood(c)
		_, _ = server.Read(make([]byte, 100))
		go func() { last <- received(server, 20*time.Millisecond) }()
		wait(3 * time.Millisecond)
		began := time.Now()
		r.apply(tab, nil, s.ID)
		at := <-last
		stop()
		c.Close()
		server.Close()
		late = append(late, max(0, float64(at.Sub(began).Microseconds())/1000))
	}
	row("revoke to last forwarded byte, p50", late.at(0.5), "ms", 0)
	row("revoke to last forwarded byte, p99", late.at(0.99), "ms", 1)
}

// wait passes time while traffic flows; nothing is waited for.
func wait(d time.Duration) {
	ts := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&ts, nil)
}

func benchLease(r *rig, tab *Table) {
	const lease = 300 * time.Millisecond
	var off figures
	r.apply(tab, []wire.RouterSession{session(r.t, "lease", otherAddr, "10.20.0.5 udp 7000")})
	server := stampSocket(r, 7000)
	c, err := r.dial(otherAddr, "udp", targetAddr+":7000", patience)
	r.must(err)
	defer c.Close()
	for range 15 {
		stop := flood(c)
		last := make(chan time.Time, 1)
		began := time.Now()
		r.must(tab.Renew(r.t.Context(), lease))
		go func() { last <- received(server, 150*time.Millisecond) }()
		off = append(off, float64((<-last).Sub(began)-lease)/float64(time.Millisecond))
		stop()
	}
	row("lease of 300 ms: earliest end", off.at(0), "ms", 0)
	row("lease of 300 ms: latest end", off.at(1), "ms", 0)
	if off.at(0) >= -20 && off.at(1) <= 1 {
		fmt.Println("lease accuracy +0/-20 ms: pass")
	} else {
		fmt.Println("lease accuracy +0/-20 ms: short")
	}
	r.must(tab.Renew(r.t.Context(), longLease))
}

// kernelMemory is slabs, vmalloc and per-CPU memory in MiB: of the whole machine,
// so that other work disturbs.
func kernelMemory(t *testing.T) (mib float64) {
	t.Helper()
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		switch f[0] {
		case "SUnreclaim:", "VmallocUsed:", "Percpu:":
			kb, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			mib += kb / 1024
		}
	}
	return mib
}

// benchPackets compares the CPU of one forwarded packet: connection tracking
// alone, and the table with few and with many sessions. Forwarding happens in
// the sender's own system calls here, so its thread's CPU time is all of it.
func benchPackets(t *testing.T, n int) {
	type subject struct {
		name string
		r    *rig
		c    net.Conn
		ns   figures
	}
	var all []*subject
	for _, count := range []int{0, 10, n} {
		s := &subject{name: fmt.Sprintf("%d sessions", count), r: newRig(t)}
		s.r.must(s.r.NFT("target", "add table inet sink; add chain inet sink c { type filter hook prerouting priority -300; policy drop; }"))
		if count == 0 {
			s.name = "conntrack"
			s.r.must(s.r.NFT("router", "add table inet plain; add chain inet plain c { type filter hook forward priority 0; policy drop; }; add rule inet plain c ct state established,related accept; add rule inet plain c ip saddr "+clientAddr+" accept"))
		} else {
			s.r.killed(count)
		}
		c, err := s.r.dial(clientAddr, "udp", targetAddr+":161", patience)
		s.r.must(err)
		s.c = c
		t.Cleanup(func() { c.Close() })
		all = append(all, s)
	}
	for range 60 {
		for _, s := range all {
			s.ns = append(s.ns, packetCost(t, s.c, 5_000))
		}
	}
	// In turn and in short bursts, of which the least disturbed count.
	cost := func(s *subject) float64 { return s.ns.at(0.1) / 1000 }
	for _, s := range all {
		row("CPU per packet, "+s.name, cost(s), "us", 0)
	}
	row(fmt.Sprintf("CPU per packet, %d sessions / conntrack", n), cost(all[2])/cost(all[0]), "x", 1.2)
	row(fmt.Sprintf("CPU per packet, %d sessions / 10 sessions", n), cost(all[2])/cost(all[1]), "x", 1.05)
}

func packetCost(t *testing.T, c net.Conn, packets int) (ns float64) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	packet := make([]byte, 64)
	var before, after unix.Timespec
	err = raw.Control(func(fd uintptr) {
		_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &before)
		for range packets {
			_, _ = unix.Write(int(fd), packet)
		}
		_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &after)
	})
	if err != nil {
		t.Fatal(err)
	}
	return float64(after.Nano()-before.Nano()) / float64(packets)
}
