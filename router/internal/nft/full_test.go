package nft

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// When the kernel has no room for another flow, what is established goes on and
// what is not granted still gets nowhere.
func TestConntrackFull(t *testing.T) {
	r := newRig(t)
	r.echo("target", targetAddr+":502")
	r.echo("target", targetAddr+":503")
	r.must(r.NFT("target", "add table inet sink; add chain inet sink c { type filter hook prerouting priority -300; }; add rule inet sink c ip daddr 10.50.0.0/16 drop"))
	r.must(r.IP("router", "route add 10.50.0.0/16 via "+targetAddr))
	// On a busy machine filling takes longer than a flow usually stays.
	r.must(r.Sysctl("router", "net.netfilter.nf_conntrack_udp_timeout=600"))
	tab := r.start(session(t, "s", clientAddr, "10.20.0.5 tcp 502"))
	flow := r.passes(clientAddr, "tcp", targetAddr+":502")

	number := func(name string) int {
		var raw []byte
		r.must(r.Within("router", func() (err error) {
			raw, err = os.ReadFile("/proc/sys/net/netfilter/" + name)
			return err
		}))
		n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		r.must(err)
		return n
	}
	most := number("nf_conntrack_max")
	var fd int
	r.must(r.Within("router", func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	refused := 0
	for i := 0; i < most+1000; i++ {
		to := &unix.SockaddrInet4{Port: 1 + i%60000, Addr: [4]byte{10, 50, byte(i / 60000), 1}}
		switch err := unix.Sendto(fd, []byte("x"), 0, to); {
		case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOBUFS):
			refused++ // no room
		case err != nil:
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d flows, %d refused", number("nf_conntrack_count"), most, refused)
	if n := number("nf_conntrack_count"); n < most*9/10 {
		t.Fatalf("only %d of %d flows: the table is not full", n, most)
	}
	r.keepsSpeaking(flow, "with a full table")
	r.blocked(clientAddr, "tcp", targetAddr+":503")
	r.blocked(otherAddr, "tcp", targetAddr+":502")
	r.apply(tab, nil, "s")
	if err := pingPong(flow, denyWait); err == nil {
		t.Error("with a full table the end of a session does not cut its flow")
	}
}
