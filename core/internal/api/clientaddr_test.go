package api

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestClientAddr(t *testing.T) {
	lb := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	for _, c := range []struct {
		name    string
		proxies TrustedProxies
		peer    string
		header  []string
		want    string
	}{
		{"no proxy", TrustedProxies{}, "192.0.2.1:99", nil, "192.0.2.1"},
		{"no proxy, spoofed", TrustedProxies{}, "192.0.2.1:99", []string{"198.51.100.9"}, "192.0.2.1"},
		{"peer is no proxy", TrustedProxies{Networks: lb}, "192.0.2.1:99", []string{"198.51.100.9"}, "192.0.2.1"},
		{"through the proxy", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"198.51.100.9"}, "198.51.100.9"},
		{"spoofed through the proxy", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"127.0.0.1, 198.51.100.9"}, "198.51.100.9"},
		{"spoofed as a proxy of ours", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"127.0.0.1, 10.0.0.8"}, "10.0.0.8"},
		{"two hops", TrustedProxies{Networks: lb, Hops: 2}, "10.0.0.7:99", []string{"198.51.100.9, 10.0.0.8"}, "198.51.100.9"},
		{"two hops, spoofed", TrustedProxies{Networks: lb, Hops: 2}, "10.0.0.7:99", []string{"1.1.1.1, 198.51.100.9, 10.0.0.8"}, "198.51.100.9"},
		{"two hops allowed, one used", TrustedProxies{Networks: lb, Hops: 2}, "10.0.0.7:99", []string{"1.1.1.1, 198.51.100.9"}, "198.51.100.9"},
		{"more hops in the header than allowed", TrustedProxies{Networks: lb, Hops: 2}, "10.0.0.7:99", []string{"1.1.1.1, 10.0.0.9, 10.0.0.8"}, "10.0.0.9"},
		{"two headers", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"1.1.1.1", "198.51.100.9"}, "198.51.100.9"},
		{"proxy without a header", TrustedProxies{Networks: lb}, "10.0.0.7:99", nil, "10.0.0.7"},
		{"rubbish", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"unknown"}, "10.0.0.7"},
		{"rubbish behind a good entry", TrustedProxies{Networks: lb, Hops: 2}, "10.0.0.7:99", []string{"unknown, 10.0.0.8"}, "10.0.0.8"},
		{"empty entry", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"198.51.100.9,"}, "10.0.0.7"},
		{"with port", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"198.51.100.9:4711"}, "198.51.100.9"},
		{"IPv6", TrustedProxies{Networks: lb}, "[fd00::7]:99", []string{"2001:db8::1"}, "2001:db8::1"},
		{"IPv6 with port", TrustedProxies{Networks: lb}, "[fd00::7]:99", []string{"[2001:db8::1]:1"}, "2001:db8::1"},
		{"IPv4 in IPv6 peer", TrustedProxies{Networks: lb}, "[::ffff:10.0.0.7]:99", []string{"198.51.100.9"}, "198.51.100.9"},
		{"IPv4 in IPv6 entry", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{"::ffff:198.51.100.9"}, "198.51.100.9"},
		{"long header", TrustedProxies{Networks: lb}, "10.0.0.7:99", []string{strings.Repeat("1.1.1.1,", 5000) + "198.51.100.9"}, "198.51.100.9"},
		{"unix socket", TrustedProxies{Networks: lb}, "@", []string{"198.51.100.9"}, "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{}}
		for _, h := range c.header {
			r.Header.Add("X-Forwarded-For", h)
		}
		if got := ClientAddr(r, c.proxies).String(); got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

func FuzzClientAddr(f *testing.F) {
	f.Add("10.0.0.7:99", "198.51.100.9, 10.0.0.8", 2)
	f.Add("192.0.2.1:1", "x", 0)
	lb := netip.MustParsePrefix("10.0.0.0/8")
	f.Fuzz(func(t *testing.T, peer, header string, hops int) {
		r := &http.Request{RemoteAddr: peer, Header: http.Header{"X-Forwarded-For": {header}}}
		got := ClientAddr(r, TrustedProxies{Networks: []netip.Prefix{lb}, Hops: hops})
		direct, ok := hostAddr(peer)
		if !ok && got.IsValid() {
			t.Fatalf("an address out of nowhere: %s", got)
		}
		if ok && !lb.Contains(direct) && got != direct {
			t.Fatalf("peer %s is no proxy of ours but was replaced by %s", direct, got)
		}
	})
}
