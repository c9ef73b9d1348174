package netrule

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestTextForms(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"10.20.0.0/24 tcp 502", "10.20.0.0/24 tcp 502"},
		{"10.20.0.0-10.20.0.255 TCP 502-502", "10.20.0.0/24 tcp 502"},
		{"10.20.0.7", "10.20.0.7"},
		{"10.20.0.7/32 any", "10.20.0.7"},
		{"10.20.0.7-10.20.0.9 udp", "10.20.0.7-10.20.0.9 udp"},
		{"0.0.0.0/0", "0.0.0.0/0"},
		{"0.0.0.0-255.255.255.255 tcp 1-65535", "0.0.0.0/0 tcp"},
		{"255.255.255.0-255.255.255.255 udp 65535", "255.255.255.0/24 udp 65535"},
		{"fd00:20::/64 tcp 443-445", "fd00:20::/64 tcp 443-445"},
		{"::/0", "::/0"},
		{"fd00::1 - fd00::9", ""},
		{"fd00::1-fd00::9", "fd00::1-fd00::9"},
		{"::ffff:10.0.0.1", "10.0.0.1"},
		{"10.20.0.0/24 tcp 502 -> 192.168.1.5:5020", "10.20.0.0/24 tcp 502 -> 192.168.1.5:5020"},
		{"10.20.0.5->192.168.1.5", "10.20.0.5 -> 192.168.1.5"},
		{"fd00::5 udp 161 -> [fd01::9]:1161", "fd00::5 udp 161 -> [fd01::9]:1161"},
	} {
		got, err := ParseDestination(c.in)
		if c.want == "" {
			if err == nil {
				t.Errorf("%q: got %s, want an error", c.in, got)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%q: got %q, %v, want %q", c.in, got, err, c.want)
		}
	}
}

func TestRefusalsSayWhat(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"10.20.0.5/24", "did you mean 10.20.0.0/24"},
		{"10.20.0.9-10.20.0.5", "runs backwards"},
		{"10.20.0.5-fd00::1", "mixes IPv4 and IPv6"},
		{"10.20.0.256", "not an IP address"},
		{"fe80::1%eth0", "names a network interface"},
		{"0.0.0.0", "no address of a host"},
		{"10.20.0.5 sctp 9", "say tcp, udp or any"},
		{"10.20.0.5 any 9", "ports need a protocol"},
		{"10.20.0.5 tcp 0", "ports are 1 to 65535"},
		{"10.20.0.5 tcp 70000", "ports are 1 to 65535"},
		{"10.20.0.5 tcp 90-80", "run backwards"},
		{"10.20.0.5 tcp 80 81", "not a destination"},
		{"", "not a destination"},
		{"10.20.0.5 -> fd00::1", "one is IPv4, the other IPv6"},
		{"10.20.0.5 -> 10.0.0.1:80", "needs a protocol"},
		{"10.20.0.5 tcp -> 127.0.0.1:80", "cannot be translated to"},
		{"10.20.0.5 tcp -> 224.0.0.1", "cannot be translated to"},
		{"10.20.0.5 tcp -> 10.0.0.1:0", "not an address to translate to"},
		{"::ffff:10.0.0.0/104", "write it as IPv4"},
		{strings.Repeat("1", 1000), "not that long"},
	} {
		_, err := ParseDestination(c.in)
		if _, public := errors.AsType[*Error](err); !public || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want it to say %q", c.in, err, c.want)
		}
	}
}

func dest(t *testing.T, s string) Destination {
	t.Helper()
	d, err := ParseDestination(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRulesValidate(t *testing.T) {
	t.Parallel()
	v4, v6 := dest(t, "10.20.0.0/24 tcp 502"), dest(t, "fd00::/64")
	many := make([]Destination, MaxDestinations+1)
	for i := range many {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		many[i] = Destination{Selector: Selector{Addrs: Range{a, a}}}
	}
	for _, c := range []struct {
		client string
		ds     []Destination
		want   string
	}{
		{"192.0.2.1", []Destination{v4}, ""},
		{"192.0.2.1", []Destination{v6, v4}, ""},
		{"192.0.2.1", []Destination{v6}, "reaches none"},
		{"2001:db8::1", []Destination{v4}, "reaches none"},
		{"192.0.2.1", nil, "at least one"},
		{"192.0.2.1", []Destination{v4, v6, v4}, "Destinations 1 and 3 are the same"},
		{"192.0.2.1", many[1:], ""},
		{"192.0.2.1", many, "at most 5000"},
		{"127.0.0.1", []Destination{v4}, "cannot be a client"},
		{"0.0.0.0", []Destination{v4}, "cannot be a client"},
		{"192.0.2.1", []Destination{{Selector: Selector{Addrs: v4.Addrs, Proto: 1}}}, "Destination 1: 10.20.0.0/24: the protocol"},
	} {
		err := Rules{Client: netip.MustParseAddr(c.client), Destinations: c.ds}.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s to %d destinations: got %v, want %q", c.client, len(c.ds), err, c.want)
		}
	}
	if err := (Rules{Destinations: []Destination{v4}}).Validate(); err == nil {
		t.Error("no client was accepted")
	}
}

// Few distinct values, so that edges meet often; both families.
func drawSelector(t *rapid.T) Selector {
	edge := rapid.SampledFrom([]byte{0, 1, 2, 5, 127, 128, 254, 255})
	addr := func(v6 bool, label string) netip.Addr {
		a, b := edge.Draw(t, label), edge.Draw(t, label)
		if v6 {
			return netip.AddrFrom16([16]byte{0: a, 15: b})
		}
		return netip.AddrFrom4([4]byte{a, 0, 0, b})
	}
	v6 := rapid.Bool().Draw(t, "v6")
	x, y := addr(v6, "a"), addr(v6, "b")
	if y.Less(x) {
		x, y = y, x
	}
	s := Selector{Addrs: Range{x, y}, Proto: rapid.SampledFrom([]Proto{Any, TCP, UDP}).Draw(t, "proto")}
	if s.Proto != Any && rapid.Bool().Draw(t, "ports") {
		p := rapid.SampledFrom([]uint16{1, 2, 502, 503, 65534, 65535})
		a, b := p.Draw(t, "p"), p.Draw(t, "q")
		s.Ports = Ports{min(a, b), max(a, b)}
	}
	return s.Normal()
}

// Overlap is exactly: some corner of one lies in the other, in every dimension.
func TestOverlapIsACommonPacket(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawSelector(t), drawSelector(t)
		common := false
		for _, addr := range []netip.Addr{a.Addrs.First, b.Addrs.First} {
			for _, p := range []Proto{TCP, UDP, 1} {
				for _, s := range []Selector{a, b} {
					port, _ := s.Ports.Bounds()
					common = common || a.Matches(addr, p, port) && b.Matches(addr, p, port)
				}
			}
		}
		if got := a.Overlaps(b); got != common || b.Overlaps(a) != got {
			t.Fatalf("%s and %s: overlap %v, back %v, common packet %v", a, b, got, b.Overlaps(a), common)
		}
		if !a.Overlaps(a) {
			t.Fatalf("%s does not overlap itself", a)
		}
	})
}

func TestTextRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.Custom(func(t *rapid.T) Destination { return Destination{Selector: drawSelector(t)} }).
			Filter(func(d Destination) bool { return d.Validate() == nil }).Draw(t, "destination")
		if rapid.Bool().Draw(t, "nat") {
			n := NAT{Addr: netip.MustParseAddr("10.0.0.9")}
			if d.Addrs.First.Is6() {
				n.Addr = netip.MustParseAddr("fd00::9")
			}
			if d.Proto != Any {
				n.Port = rapid.SampledFrom([]uint16{0, 1, 65535}).Draw(t, "port")
			}
			d.DNAT = &n
		}
		back, err := ParseDestination(d.String())
		if err != nil || !back.Equal(d) {
			t.Fatalf("%s came back as %s, %v", d, back, err)
		}
		raw, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var fromJSON Destination
		if err := json.Unmarshal(raw, &fromJSON); err != nil || !fromJSON.Equal(d) {
			t.Fatalf("%s came back from JSON as %s, %v", raw, fromJSON, err)
		}
	})
}

func TestRulesOverlapOnlyOfOneClient(t *testing.T) {
	t.Parallel()
	a := Rules{Client: netip.MustParseAddr("192.0.2.1"), Destinations: []Destination{dest(t, "10.0.0.0/8 tcp")}}
	b := Rules{Client: netip.MustParseAddr("192.0.2.1"), Destinations: []Destination{dest(t, "10.1.0.0/16 udp"), dest(t, "10.2.0.1")}}
	c := b
	c.Client = netip.MustParseAddr("192.0.2.2")
	if !a.Overlaps(b) || a.Overlaps(c) {
		t.Errorf("got %v and %v, want true and false", a.Overlaps(b), a.Overlaps(c))
	}
	if i, j, found := Overlap(a.Destinations, b.Destinations); i != 0 || j != 1 || !found {
		t.Errorf("got pair %d, %d, %v", i, j, found)
	}
	if !a.Equal(a.Normal()) || a.Equal(b) {
		t.Error("Equal is wrong")
	}
}

func FuzzParseDestination(f *testing.F) {
	for _, s := range []string{"10.20.0.0/24 tcp 502 -> 192.168.1.5:5020", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff udp 1-65535", "255.255.255.255", "fd00::/8->[fd00::1]:1", "1.2.3.4-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDestination(s)
		if err != nil {
			if _, public := errors.AsType[*Error](err); !public {
				t.Fatalf("%q: %v is not for users", s, err)
			}
			return
		}
		if err := d.Validate(); err != nil {
			t.Fatalf("%q parsed to what is not valid: %v", s, err)
		}
		back, err := ParseDestination(d.String())
		if err != nil || !back.Equal(d) {
			t.Fatalf("%q became %s, which became %s, %v", s, d, back, err)
		}
	})
}
