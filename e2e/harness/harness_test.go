package harness

import (
	"bufio"
	"context"
	"strings"
	"testing"
	"time"
)

// The rig itself: two VPCs with the same addresses, real sshds that differ,
// nothing reachable from outside.
func TestRigIsolatesTwoVPCsWithTheSameAddresses(t *testing.T) {
	if err := Usable(); err != nil {
		Lacks(t, "%v", err)
	}
	ctx := t.Context()
	n := NewNet("")
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := n.Outside(); err != nil {
		t.Fatal(err)
	}
	for i, vpc := range []string{"a", "b"} {
		if err := n.VPC(vpc, 101+i); err != nil {
			t.Fatal(err)
		}
		s, err := StartSSHD(ctx, n, t.TempDir(), SSHDConfig{NS: "host-" + vpc, Name: "db-" + vpc, Address: HostAddr, Logins: []Login{{Name: "root"}}}, false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Proc.Kill)
	}
	for _, vpc := range []string{"a", "b"} {
		c, err := n.Dial(ctx, "ext-"+vpc, "tcp", HostAddr+":22")
		if err != nil {
			t.Fatalf("from inside vpc %s: %v", vpc, err)
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "SSH-2.0-OpenSSH") {
			t.Errorf("from inside vpc %s: got %q, %v", vpc, line, err)
		}
		c.Close()
		out, err := n.Dial(ctx, "host-"+vpc, "udp", CoreAddr+":9")
		if err != nil {
			t.Errorf("vpc %s has no way out: %v", vpc, err)
		} else {
			out.Close()
		}
	}
	// Even with a route to it, core's side gets no answer.
	if err := n.IP("core", "route add 10.10.0.0/24 via 203.0.113.101"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
	defer cancel()
	if c, err := n.Dial(short, "core", "tcp", HostAddr+":22"); err == nil {
		c.Close()
		t.Error("core reached the private host directly")
	}
}
