package e2e

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// Two hosts with one address are two hosts, by name and by site/address.
func TestTwoVPCsWithTheSameSubnet(t *testing.T) {
	w := common(t)
	for who, want := range map[string]string{
		"demo%root%db-a": "db-a", "demo%root%db-b": "db-b",
		"demo%root%vpc-a/10.10.0.5": "db-a", "demo%root%vpc-b/10.10.0.5:22": "db-b",
	} {
		if got := strings.TrimSpace(w.mustSSH(t, who, "hostname; id -un")); got != want+"\nroot" {
			t.Errorf("%s: %q, want %s as root", who, got, want)
		}
	}
}

// Nothing but the tunnel leads there: core has no route, and with one the
// router drops what comes from outside. The extender listens on nothing that
// anybody outside could use.
func TestDirectConnectionFails(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	w.mustSSH(t, "demo%root%db-a", "true")
	dial := func(addr string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		c, err := w.net.Dial(ctx, "core", "tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	}
	target := net.JoinHostPort(harness.HostAddr, "22")
	if dial(target) == nil {
		t.Error("core reached the private host without a route")
	}
	if err := w.net.IP("core", "route add "+harness.LANPrefix+" via 203.0.113.101"); err != nil {
		t.Fatal(err)
	}
	if dial(target) == nil {
		t.Error("core reached the private host through the router")
	}
	for _, port := range []string{"22", "443", "8443"} {
		if dial(net.JoinHostPort("203.0.113.101", port)) == nil {
			t.Errorf("the router lets port %s in", port)
		}
	}
	listening, err := w.net.Listening("ext-a")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range listening {
		if !strings.HasSuffix(l, ":8443") && !strings.HasPrefix(l, "127.0.0.1:") && !strings.HasPrefix(l, "[::1]:") {
			t.Errorf("the extender listens on %s", l)
		}
	}
	w.mustSSH(t, "demo%root%db-a", "true")
}
