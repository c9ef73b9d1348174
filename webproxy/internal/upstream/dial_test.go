package upstream

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// names resolves by a table; each question for a name takes its next answer.
type names struct {
	mu    sync.Mutex
	table map[string][]string
	asked map[string]int
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := n.table[host]
	if len(list) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	i := min(n.asked[host], len(list)-1)
	n.asked[host]++
	var out []netip.Addr
	for s := range strings.SplitSeq(list[i], ",") {
		out = append(out, netip.MustParseAddr(s))
	}
	return out, nil
}

// Addresses that a target does not name are refused, in whatever form they
// come and whatever name leads to them (FEATURES P13).
func TestForbiddenAddresses(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	hit := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			hit <- struct{}{}
			c.Close()
		}
	}()
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	own := ownAddress(t)
	dns := &names{asked: map[string]int{}, table: map[string][]string{
		"loop.test": {"127.0.0.1"}, "six.test": {"::1"}, "mapped.test": {"::ffff:127.0.0.1"}, "meta.test": {"169.254.169.254"}, "nat.test": {"64:ff9b::7f00:1"},
		"both.test": {"127.0.0.1,::1"}, "own.test": {own}, "denied.test": {"10.66.1.1"},
		// First a good answer, then another.
		"rebind.test": {"203.0.113.7", "127.0.0.1"},
	}}
	refused := func(u *Upstream, host string) error {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+net.JoinHostPort(host, port)+"/", nil)
		must(t, err)
		resp, err := u.RoundTrip(req, "")
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	u := upstreamTo(t, "https://app.test", webrule.Policy{Private: []string{"192.0.2.1"}}, func(c *Config) {
		c.Resolver, c.Deny = dns, []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16")}
	})
	for _, host := range []string{
		"127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "fe80::1", "169.254.1.1", "169.254.169.254", "::ffff:169.254.169.254",
		"64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", own, "::ffff:" + own, "10.66.1.1", "::ffff:10.66.1.1",
		"loop.test", "six.test", "mapped.test", "meta.test", "nat.test", "both.test", "own.test", "denied.test",
	} {
		err := refused(u, host)
		if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused || !strings.Contains(we.Public, "may not be dialled") {
			t.Errorf("%s: %v", host, err)
		}
	}
	// Whoever is asked twice wins nothing: what was checked is what is dialled.
	d := upstreamTo(t, "https://app.test", webrule.Policy{Private: []string{"192.0.2.1"}}, func(c *Config) {
		c.Resolver = &names{asked: map[string]int{}, table: map[string][]string{"rebind.test": {"127.0.0.1", "203.0.113.7"}}}
	})
	if err := refused(d, "rebind.test"); err == nil || !strings.Contains(err.Error(), "may not be dialled") {
		t.Errorf("the first answer counts: %v", err)
	}
	select {
	case <-hit:
		t.Error("somebody was dialled")
	default:
	}
	// What the target names is meant.
	ok := upstreamTo(t, "https://app.test", webrule.Policy{Private: []string{"127.0.0.1", "loop.test"}}, func(c *Config) { c.Resolver = dns })
	for _, host := range []string{"127.0.0.1", "loop.test"} {
		_ = refused(ok, host) // answered by nobody, but dialled
		select {
		case <-hit:
		case <-t.Context().Done():
			t.Errorf("%s was not dialled", host)
		}
	}
	if err := refused(ok, "six.test"); err == nil || !strings.Contains(err.Error(), "may not be dialled") {
		t.Errorf("a name that is not meant: %v", err)
	}
}

// Core is reached by nobody's page, also where its address is an ordinary one.
func TestNeverCore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	addr := netip.MustParseAddrPort(l.Addr().String())
	edge, core := tunnel.Pipe(tunnel.Info{Remote: addr}, tunnel.Info{})
	t.Cleanup(func() { edge.Close(nil); core.Close(nil) })
	u := upstreamTo(t, "https://app.test", webrule.Policy{}, func(c *Config) { c.Tunnel = func() tunnel.Session { return edge } })
	_, err = u.dial(t.Context(), "", addr.String())
	if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused || !strings.Contains(we.Public, "core itself") {
		t.Errorf("%v", err)
	}
}

// Sites: the target's own needs no name, another is named, and "-" is here.
func TestWays(t *testing.T) {
	edge, core := tunnel.Pipe(tunnel.Info{}, tunnel.Info{})
	t.Cleanup(func() { edge.Close(nil); core.Close(nil) })
	u := upstreamTo(t, "https://app.test", webrule.Policy{}, func(c *Config) {
		c.Site, c.Tunnel = "vpc-a", func() tunnel.Session { return edge }
	})
	for site, want := range map[string]string{"": "app.test:443", "vpc-a": "app.test:443", "vpc-b": "vpc-b/app.test:443"} {
		c, err := u.dial(t.Context(), site, "app.test:443")
		must(t, err)
		st, err := core.Accept(t.Context())
		must(t, err)
		if p := st.Preface(); p.Dest != want || p.Connection != "con_1" {
			t.Errorf("site %q: %+v", site, p)
		}
		st.Close()
		c.Close()
	}
	if _, err := u.dial(t.Context(), Direct, "127.0.0.1:1"); err == nil {
		t.Error("it is dialled directly")
	} else if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeConnRefused {
		t.Errorf("directly: %v", err)
	}
	// Without a tunnel there is no way into a site, and none around it.
	lost := upstreamTo(t, "https://app.test", webrule.Policy{}, func(c *Config) { c.Site = "vpc-a" })
	if _, err := lost.dial(t.Context(), "", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("without a tunnel: %v", err)
	}
	lost.Close()
	if err := get(t, lost, "https://app.test/"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
}

// ownAddress is an address of this machine that is not special.
func ownAddress(t *testing.T) string {
	t.Helper()
	list, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			return p.Addr().String()
		}
	}
	return "127.0.0.1" // a machine without a network
}
