package nft

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caponier/shared/wire"
)

// world is a rig with servers on both targets, both IP versions.
func world(t *testing.T) *rig {
	r := newRig(t)
	for _, a := range []string{targetAddr, target2, "[" + target6 + "]"} {
		r.echo("target", a+":502")
		r.echo("target", a+":503")
		r.udpEcho("target", a+":161")
	}
	return r
}

func TestPassesOnlyWhatIsGranted(t *testing.T) {
	t.Parallel()
	r := world(t)
	tab := r.start()
	r.blocked(clientAddr, "tcp", targetAddr+":502")
	r.apply(tab, []wire.RouterSession{session(t, "s1", clientAddr, "10.20.0.5 tcp 502", "10.20.0.0-10.20.0.5 udp 160-162")})
	r.passes(clientAddr, "tcp", targetAddr+":502")
	r.passes(clientAddr, "udp", targetAddr+":161")
	for _, no := range []struct{ from, network, to string }{
		{clientAddr, "tcp", targetAddr + ":503"}, // another port
		{clientAddr, "tcp", target2 + ":502"},    // another address
		{clientAddr, "udp", target2 + ":161"},    // behind the range
		{otherAddr, "tcp", targetAddr + ":502"},  // another client
		{client6, "tcp", "[" + target6 + "]:502"},
	} {
		r.blocked(no.from, no.network, no.to)
	}
	// A client may not become a target: nothing goes the other way.
	r.echo("client", clientAddr+":502")
	var err error
	r.must(r.Within("target", func() error {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", clientAddr+":502", denyWait); err == nil {
			c.Close()
		}
		return nil
	}))
	if err == nil {
		t.Error("the target reached the client")
	}
	r.apply(tab, nil, "s1")
	r.blocked(clientAddr, "tcp", targetAddr+":502")
	r.blocked(clientAddr, "udp", targetAddr+":161")
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	r := world(t)
	tab := r.start(session(t, "s1", client6, "fd00:20::/64 tcp 502", "fd00:20::5 udp 161", "10.20.0.0/16"))
	r.passes(client6, "tcp", "["+target6+"]:502")
	r.passes(client6, "udp", "["+target6+"]:161")
	r.blocked(client6, "tcp", "["+target6+"]:503")
	r.blocked(clientAddr, "tcp", targetAddr+":502")
	counts, err := tab.Counters(t.Context(), nil)
	r.must(err)
	if len(counts) != 1 || len(counts[0].Destinations) != 3 || counts[0].Destinations[0].PacketsIn == 0 || counts[0].Destinations[2].PacketsOut != 0 {
		t.Errorf("got %+v", counts)
	}
}

// Any protocol means every one, with and without ports.
func TestAnyProtocol(t *testing.T) {
	t.Parallel()
	r := world(t)
	r.start(session(t, "s1", clientAddr, "10.20.0.5"), session(t, "s6", client6, "fd00:20::5"))
	r.passes(clientAddr, "tcp", targetAddr+":503")
	r.passes(clientAddr, "udp", targetAddr+":161")
	r.run("client", "ping", "-c1", "-W2", targetAddr)
	r.run("client", "ping", "-c10", "-i0.3", "-W2", target6) // link-local addresses come up slowly
	r.blocked(clientAddr, "tcp", target2+":503")
}

// The ends of the number ranges are where interval code breaks.
func TestRangeEnds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.must(r.IP("target", "addr add 240.0.0.1/32 dev t1", "addr add fdff:ffff::1/128 dev t1 nodad"))
	r.must(r.IP("router", "route add 240.0.0.0/4 via "+targetAddr, "route add fdff:ffff::/32 via inet6 "+target6))
	r.echo("target", "240.0.0.1:65535")
	r.echo("target", "240.0.0.1:1")
	r.echo("target", "[fdff:ffff::1]:65535")
	tab := r.start(session(t, "all", clientAddr, "0.0.0.0-255.255.255.255 tcp 65535"),
		session(t, "all6", client6, "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff tcp 65535"))
	r.passes(clientAddr, "tcp", "240.0.0.1:65535")
	r.passes(client6, "tcp", "[fdff:ffff::1]:65535")
	r.blocked(clientAddr, "tcp", "240.0.0.1:1")
	r.apply(tab, []wire.RouterSession{session(t, "high", clientAddr, "240.0.0.0-255.255.255.255 tcp 1-65534")})
	r.passes(clientAddr, "tcp", "240.0.0.1:1")
	r.apply(tab, nil, "all", "all6")
	r.blocked(clientAddr, "tcp", "240.0.0.1:65535")
	r.passes(clientAddr, "tcp", "240.0.0.1:1")
}

// seen asks a UDP server who speaks to it and answers him.
func (r *rig) seen(server *net.UDPConn, from, to string) (peer netip.AddrPort, local netip.AddrPort) {
	r.t.Helper()
	c, err := r.dial(from, "udp", to, patience)
	r.must(err)
	defer c.Close()
	if _, err = c.Write([]byte("hello")); err != nil {
		r.t.Fatal(err)
	}
	buf := make([]byte, 100)
	r.must(server.SetDeadline(time.Now().Add(patience)))
	_, peer, err = server.ReadFromUDPAddrPort(buf)
	r.must(err)
	_, err = server.WriteToUDPAddrPort([]byte("answer"), peer)
	r.must(err)
	r.must(c.SetDeadline(time.Now().Add(patience)))
	// The socket is connected: only an answer from the address it wrote to
	// arrives, so that this proves the reverse translation.
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != "answer" {
		r.t.Fatalf("answer from %s: %q, %v", to, buf[:n], err)
	}
	return peer, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestTranslation(t *testing.T) {
	t.Parallel()
	for _, v := range []struct{ name, client, virtual, real, routerAddr string }{
		{"v4", clientAddr, "198.51.100.7", targetAddr, targetSide},
		{"v6", client6, "2001:db8:99::7", target6, "fd00:20::1"},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			at := func(a, port string) string { return net.JoinHostPort(a, port) }
			same := r.hear("target", at(v.real, "5000"))
			other := r.hear("target", at(v.real, "5161"))
			tab := r.start()
			plain := session(t, "plain", v.client, v.virtual+" udp 5000 -> "+v.real)
			port := session(t, "port", v.client, v.virtual+" udp 161-162 -> "+at(v.real, "5161"))
			r.apply(tab, []wire.RouterSession{plain, port})
			if peer, local := r.seen(same, v.client, at(v.virtual, "5000")); peer != local {
				t.Errorf("without SNAT the target sees %s, the client is %s", peer, local)
			}
			r.seen(other, v.client, at(v.virtual, "161"))
			r.seen(other, v.client, at(v.virtual, "162"))
			plain.Rules.SNAT = true
			r.apply(tab, []wire.RouterSession{plain})
			if peer, _ := r.seen(same, v.client, at(v.virtual, "5000")); peer.Addr().String() != v.routerAddr {
				t.Errorf("with SNAT the target sees %s, want the router's %s", peer, v.routerAddr)
			}
			// What is translated to is not thereby granted.
			c, err := r.dial(v.client, "udp", at(v.real, "5000"), patience)
			r.must(err)
			defer c.Close()
			_, _ = c.Write([]byte("direct"))
			r.must(same.SetReadDeadline(time.Now().Add(denyWait)))
			if n, _, err := same.ReadFromUDPAddrPort(make([]byte, 10)); err == nil {
				t.Errorf("%d bytes reached the translated address directly", n)
			}
		})
	}
}

// The first destination that matches decides, also inside one target.
func TestFirstDestinationDecides(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a, b := r.hear("target", targetAddr+":7000"), r.hear("target", target2+":7000")
	tab := r.start(session(t, "s", clientAddr, "198.51.100.7 udp 7000 -> "+targetAddr, "198.51.100.0/24 udp -> "+target2))
	r.seen(a, clientAddr, "198.51.100.7:7000")
	r.seen(b, clientAddr, "198.51.100.8:7000")
	// The same destinations the other way round, for another client.
	r.apply(tab, []wire.RouterSession{session(t, "o", otherAddr, "198.51.100.0/24 udp -> "+target2, "198.51.100.7 udp 7000 -> "+targetAddr)})
	r.seen(b, otherAddr, "198.51.100.7:7000")
	r.seen(a, clientAddr, "198.51.100.7:7000")
}

// Targets that overlap in depth, for different clients, do not disturb each other.
func TestDeepOverlap(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tab := r.start()
	var add []wire.RouterSession
	for i := range 12 {
		client := netip.MustParseAddr("192.0.2.100")
		for range i {
			client = client.Next()
		}
		bits := netip.PrefixFrom(netip.MustParseAddr(targetAddr), 12+i).Masked().String()
		r.must(r.IP("client", "addr add "+client.String()+"/24 dev c0"))
		add = append(add, session(t, "deep"+client.String(), client.String(), bits+" udp 1000-"+string(rune('2'+i%7))+"000"))
	}
	server := r.hear("target", targetAddr+":1500")
	for _, s := range add {
		r.apply(tab, []wire.RouterSession{s})
	}
	for _, s := range add {
		r.seen(server, s.Rules.Client.String(), targetAddr+":1500")
	}
	if len(add) > 4 && tab.depth <= 4 {
		t.Errorf("%d overlapping targets in %d layers", len(add), tab.depth)
	}
	// What was added to the constant part is known after a restart.
	res := r.replace(tab, add...)
	if len(res.Ended) > 0 {
		t.Errorf("reconciling ended %d sessions", len(res.Ended))
	}
	for _, s := range add {
		r.seen(server, s.Rules.Client.String(), targetAddr+":1500")
	}
}

func TestICMPErrorsFollowTheFlow(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	// Beyond the target lies a narrow link.
	r.must(r.Add("far"))
	r.wire("target", "far", "f")
	r.must(r.IP("target", "addr add 10.30.0.1/24 dev f0", "link set f0 mtu 1300"))
	r.must(r.IP("far", "addr add 10.30.0.5/24 dev f1", "link set f1 mtu 1300", "route add default via 10.30.0.1"))
	r.must(r.IP("router", "route add 10.30.0.0/24 via "+targetAddr))
	r.must(r.Sysctl("target", "net.ipv4.ip_forward=1"))
	tab := r.start(session(t, "s", clientAddr, "10.20.0.5 udp 9", "10.30.0.0/24 udp 9"))

	closed, err := r.dial(clientAddr, "udp", targetAddr+":9", patience)
	r.must(err)
	defer closed.Close()
	_, err = closed.Write([]byte("x"))
	r.must(err)
	r.must(closed.SetReadDeadline(time.Now().Add(patience)))
	if _, err := closed.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("closed port: got %v, want connection refused", err)
	}

	big, err := r.dial(clientAddr, "udp", "10.30.0.5:9", patience)
	r.must(err)
	defer big.Close()
	raw, err := big.(*net.UDPConn).SyscallConn()
	r.must(err)
	r.must(raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	}))
	r.must(err)
	packet := make([]byte, 1400)
	until(t, "fragmentation needed reaches the client", func() bool {
		_, err := big.Write(packet)
		return errors.Is(err, syscall.EMSGSIZE)
	})

	for _, to := range []string{targetAddr, "10.30.0.5"} {
		if out, err := r.Command(t.Context(), "client", "ping", "-c1", "-W1", to).CombinedOutput(); err == nil {
			t.Errorf("an unrelated ping passes: %s", out)
		}
	}
	counts, err := tab.Counters(t.Context(), []string{"s"})
	r.must(err)
	if counts[0].PacketsIn == 0 {
		t.Errorf("the errors are not counted: %+v", counts)
	}
}

// The router's own traffic, and what is for the router, is nobody's business.
func TestRouterItselfIsUntouched(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.echo("target", targetAddr+":8443")
	r.echo("router", routerSide+":22")
	r.echo("router", "[2001:db8:1::1]:22")
	tab := r.open(Config{}) // not even a lease
	r.passes(clientAddr, "tcp", routerSide+":22")
	r.passes(client6, "tcp", "[2001:db8:1::1]:22")
	c, err := r.Dial(t.Context(), "router", "tcp", targetAddr+":8443")
	r.must(err)
	defer c.Close()
	r.must(pingPong(c, patience))
	if err := tab.Renew(t.Context(), time.Second); !errors.Is(err, ErrNotReconciled) {
		t.Errorf("renewed before anything was reconciled: %v", err)
	}
	out := r.run("router", "ping", "-c1", "-W2", targetAddr)
	if !strings.Contains(out, "1 received") {
		t.Error(out)
	}
}

func TestCounters(t *testing.T) {
	t.Parallel()
	r := world(t)
	tab := r.start(session(t, "s", clientAddr, "10.20.0.5 udp 161", "10.20.0.6 udp 161"), session(t, "idle", otherAddr, "10.20.0.5 udp 161"))
	c := r.passes(clientAddr, "udp", targetAddr+":161") // 10 bytes each way
	for range 9 {
		r.must(pingPong(c, patience))
	}
	counts, err := tab.Counters(t.Context(), []string{"s", "idle", "unknown"})
	r.must(err)
	want := wire.RouterDestCount{Destination: "10.20.0.5 udp 161", BytesOut: 380, BytesIn: 380, PacketsOut: 10, PacketsIn: 10}
	if len(counts) != 2 || counts[0].Destinations[0] != want || counts[0].BytesOut != 380 || counts[1].BytesOut != 0 || counts[0].Destinations[1].BytesIn != 0 {
		t.Errorf("got %+v, want %+v", counts, want)
	}
	res := r.apply(tab, nil, "s")
	if len(res.Ended) != 1 || res.Ended[0].ID != "s" || res.Ended[0].Destinations[0] != want {
		t.Errorf("last counters: got %+v", res.Ended)
	}
}
