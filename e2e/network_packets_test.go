package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// whoAsks serves whom it takes for its client, over TCP and UDP.
func (p *plant) whoAsks(t *testing.T, tcp, udp string) {
	t.Helper()
	l, err := p.net.Listen("plc", "tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr())
			c.Close()
		}
	}()
	var pc net.PacketConn
	if err := p.net.Within("plc", func() (err error) { pc, err = net.ListenPacket("udp", udp); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			_, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			pc.WriteTo([]byte(from.String()), from)
		}
	}()
}

// asks speaks to such a service and returns the host it was taken for. The
// sockets are connected, so an answer comes from where the question went.
func (p *plant) asks(t *testing.T, limit time.Duration, from, network, to string) (string, error) {
	t.Helper()
	c, err := p.dialFor(t.Context(), limit, from, network, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if network == "udp" {
		if _, err := c.Write([]byte("who")); err != nil {
			return "", err
		}
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		return "", err
	}
	host, _, err := net.SplitHostPort(string(buf[:n]))
	return host, err
}

// ping wants an echo reply.
func (p *plant) ping(t *testing.T, limit time.Duration, from, to string) error {
	t.Helper()
	var c *net.IPConn
	err := p.net.Within("user", func() (err error) {
		c, err = net.DialIP("ip4:icmp", &net.IPAddr{IP: net.ParseIP(from)}, &net.IPAddr{IP: net.ParseIP(to)})
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, _, err := c.ReadFrom(buf)
	if err == nil && (n < 1 || buf[0] != 0) {
		err = fmt.Errorf("ICMP type %d", buf[0])
	}
	return err
}

// What targets see and what comes back, for each way of translating and both
// IP versions; and every check with its own code and text, over HTTP and on
// the command line.
func TestNetworkPackets(t *testing.T) {
	p := newPlant(t, options{})
	p.whoAsks(t, net.JoinHostPort(plcAddr, "8080"), net.JoinHostPort(plcAddr, "8161"))
	p.whoAsks(t, net.JoinHostPort(plcAddr6, "8080"), net.JoinHostPort(plcAddr6, "8161"))
	// Another address than one's own is for administrators.
	desk, err := p.core.Admin.Create(t.Context(), "/roles", map[string]any{"name": "desk", "permissions": []string{"connections:manage"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.user.OpenNetworkFor(t.Context(), "plc", userAddr6); refused(err) != "client_not_yours" {
		t.Errorf("another address: %v", err)
	}
	if err := p.core.Admin.Do(t.Context(), http.MethodPut, "/roles/"+desk+"/members/"+p.demoID, map[string]any{}, nil); err != nil {
		t.Fatal(err)
	}

	const gwLAN, gwLAN6 = "10.20.0.1", "fd00:20::1"
	dest := func(addrs, proto, ports string, dnat ...any) map[string]any {
		d := map[string]any{"addrs": addrs, "proto": proto, "ports": ports}
		if len(dnat) > 0 {
			d["dnat_addr"] = dnat[0]
		}
		if len(dnat) > 1 {
			d["dnat_port"] = dnat[1]
		}
		return d
	}
	for _, x := range []struct {
		name, client string
		snat         bool
		dests        []map[string]any
		sees         string   // the client, as the target sees it
		to           []string // network and address
		not          string
	}{
		{"dnat-port", harness.UserAddr, false, []map[string]any{dest("10.20.9.5", "tcp", "80", plcAddr, 8080), dest("10.20.9.5", "udp", "161", plcAddr, 8161)},
			harness.UserAddr, []string{"tcp", "10.20.9.5:80", "udp", "10.20.9.5:161"}, plcAddr + ":8080"},
		{"dnat-addr", harness.UserAddr, false, []map[string]any{dest("10.20.9.6", "tcp", "8000-8100", plcAddr), dest("10.20.9.6", "udp", "8161", plcAddr)},
			harness.UserAddr, []string{"tcp", "10.20.9.6:8080", "udp", "10.20.9.6:8161"}, "10.20.9.6:8161"},
		{"dnat-snat", harness.UserAddr, true, []map[string]any{dest("10.20.9.7", "tcp", "80", plcAddr, 8080), dest("10.20.9.7", "udp", "161", plcAddr, 8161)},
			gwLAN, []string{"tcp", "10.20.9.7:80", "udp", "10.20.9.7:161"}, ""},
		{"snat", harness.UserAddr, true, []map[string]any{dest("10.20.0.4-10.20.0.5", "tcp", "8000-9000"), dest(plcAddr, "udp", "8161")},
			gwLAN, []string{"tcp", plcAddr + ":8080", "udp", plcAddr + ":8161"}, ""},
		{"plain6", userAddr6, false, []map[string]any{dest("fd00:20::/64", "tcp", "8080"), dest(plcAddr6, "udp", "8161")},
			userAddr6, []string{"tcp", "[fd00:20::5]:8080", "udp", "[fd00:20::5]:8161"}, "[fd00:20::5]:8081"},
		{"dnat6", userAddr6, false, []map[string]any{dest("fd00:20::99", "tcp", "80", plcAddr6, 8080), dest("fd00:20::99", "udp", "161", plcAddr6, 8161)},
			userAddr6, []string{"tcp", "[fd00:20::99]:80", "udp", "[fd00:20::99]:161"}, "[fd00:20::5]:8080"},
		{"snat6", userAddr6, true, []map[string]any{dest("fd00:20::4-fd00:20::5", "tcp", "8000-9000"), dest(plcAddr6, "udp", "8161")},
			gwLAN6, []string{"tcp", "[fd00:20::5]:8080", "udp", "[fd00:20::5]:8161"}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			p.network(t, x.name, map[string]any{"snat": x.snat, "destinations": x.dests})
			s, err := p.user.OpenNetworkFor(t.Context(), x.name, x.client)
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(x.to); i += 2 {
				if got, err := p.asks(t, patience, x.client, x.to[i], x.to[i+1]); err != nil || got != x.sees {
					t.Errorf("%s %s: the target sees %q (%v), want %s", x.to[i], x.to[i+1], got, err, x.sees)
				}
			}
			if x.not != "" {
				if got, err := p.asks(t, tryTime, x.client, "tcp", x.not); err == nil {
					t.Errorf("%s passes too, as %s", x.not, got)
				}
			}
			if err := p.user.Delete(t.Context(), "/network-sessions/"+s.ID); err != nil {
				t.Fatal(err)
			}
			p.over(t, s.ID)
			if got, err := p.asks(t, tryTime, x.client, "udp", x.to[3]); err == nil {
				t.Errorf("%s passes after the end, as %s", x.to[3], got)
			}
		})
	}

	t.Run("ICMP", func(t *testing.T) {
		s, whole := p.open(t, p.user, "plc"), p.open(t, p.ben, "plant")
		c, err := p.dial(t.Context(), harness.UserAddr, "udp", "10.20.0.6:161")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := talk(c, patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a closed port answers %v, want port unreachable", err)
		}
		if err := p.ping(t, patience, benAddr, plcAddr); err != nil {
			t.Errorf("ping where the session opens everything: %v", err)
		}
		if p.ping(t, tryTime, harness.UserAddr, plcAddr) == nil {
			t.Error("ping passes where only ports are open")
		}
		for a, id := range map[*harness.API]string{p.user: s.ID, p.ben: whole.ID} {
			if err := a.Delete(t.Context(), "/network-sessions/"+id); err != nil {
				t.Error(err)
			}
			p.over(t, id)
		}
	})

	t.Run("checks", func(t *testing.T) { p.checks(t) })
}

func (p *plant) checks(t *testing.T) {
	if _, err := p.core.Admin.Create(t.Context(), "/targets", map[string]any{"name": "nobodys", "kind": "network",
		"network": map[string]any{"destinations": []map[string]any{{"addrs": "10.20.7.0/24"}}}}); err != nil {
		t.Fatal(err)
	}
	p.open(t, p.user, "plc")
	other := p.from(t, harness.UserAddr, "ben")
	demo, ben := p.cli(t, "demo", p.demo), p.cli(t, "ben", p.demo)
	for _, x := range []struct {
		code   string
		status int
		api    *harness.API
		cli    *cli
		target string
		exit   int
		text   string
		before func() error
	}{
		{"no_such_target", 404, p.user, demo, "nothing", 6, "no network target", nil},
		{"access_denied", 403, p.user, demo, "nobodys", 5, "None of your roles opens nobodys", nil},
		{"client_in_use", 409, other, ben, "plc", 5, "Another user has a network session from " + harness.UserAddr, nil},
		{"destinations_overlap", 409, p.user, demo, "plant", 5, "overlap those of plant", nil},
		{"client_not_in_pool", 403, p.user, demo, "plc", 5, "not in the client address pool", func() error {
			return p.core.Admin.Pool(t.Context(), "gw-1", "198.51.100.0/24")
		}},
	} {
		if x.before != nil {
			if err := x.before(); err != nil {
				t.Fatal(err)
			}
		}
		_, err := x.api.OpenNetwork(t.Context(), x.target)
		if s, ok := errors.AsType[*harness.Status](err); !ok || s.Code != x.status || refused(err) != x.code || !strings.Contains(s.Body, x.text) {
			t.Errorf("%s over HTTP: %v", x.code, err)
		}
		if r := x.cli.run(t, "network", "open", x.target); r.code != x.exit || !strings.Contains(r.err, x.text) {
			t.Errorf("%s on the command line, want exit code %d and %q: %v", x.code, x.exit, x.text, r)
		}
	}
}
