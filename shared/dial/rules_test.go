package dial

import (
	"net/netip"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"caponier/shared/wire"
)

func prefixes(t *testing.T, list ...string) []netip.Prefix {
	t.Helper()
	ps, err := ParsePrefixes("test", list)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func TestCheck(t *testing.T) {
	t.Parallel()
	own := []netip.Addr{netip.MustParseAddr("10.1.0.7"), netip.MustParseAddr("fd00:1::7"), netip.MustParseAddr("fe80::7%eth0")}
	narrow := Rules{Allow: prefixes(t, "10.0.0.0/8", "fd00::/16"), Deny: prefixes(t, "10.9.0.0/16"), Ports: []PortRange{{22, 22}, {8000, 8999}}}
	for _, c := range []struct {
		name string
		r    Rules
		to   string
		want Reason
	}{
		{"private", Rules{}, "10.1.0.8:22", Allowed},
		{"public", Rules{}, "203.0.113.9:443", Allowed},
		{"ula", Rules{}, "[fd00:1::8]:22", Allowed},
		{"port 0", Rules{}, "10.1.0.8:0", Invalid},
		{"loopback", Rules{}, "127.0.0.1:22", Loopback},
		{"loopback net", Rules{}, "127.8.9.1:22", Loopback},
		{"loopback 6", Rules{}, "[::1]:22", Loopback},
		{"mapped loopback", Rules{}, "[::ffff:127.0.0.1]:22", Loopback},
		{"compatible loopback", Rules{}, "[::127.0.0.1]:22", Loopback},
		{"nat64 loopback", Rules{}, "[64:ff9b::7f00:1]:22", Loopback},
		{"6to4 loopback", Rules{}, "[2002:7f00:1::1]:22", Loopback},
		{"unspecified", Rules{}, "0.0.0.0:22", Unspecified},
		{"this network", Rules{}, "0.1.2.3:22", Unspecified},
		{"unspecified 6", Rules{}, "[::]:22", Unspecified},
		{"link-local", Rules{}, "169.254.1.1:22", LinkLocal},
		{"link-local 6", Rules{}, "[fe80::1]:22", LinkLocal},
		{"zone", Rules{}, "[fe80::1%eth0]:22", LinkLocal},
		{"metadata", Rules{}, "169.254.169.254:80", Metadata},
		{"metadata 6", Rules{}, "[fd00:ec2::254]:80", Metadata},
		{"mapped metadata", Rules{}, "[::ffff:169.254.169.254]:80", Metadata},
		{"nat64 metadata", Rules{}, "[64:ff9b::a9fe:a9fe]:80", Metadata},
		{"wire server", Rules{}, "168.63.129.16:80", Metadata},
		{"multicast", Rules{}, "224.0.0.1:22", Multicast},
		{"multicast 6", Rules{}, "[ff02::1]:22", Multicast},
		{"broadcast", Rules{}, "255.255.255.255:22", Multicast},
		{"class e", Rules{}, "240.0.0.1:22", Reserved},
		{"own", Rules{}, "10.1.0.7:22", OwnAddress},
		{"own mapped", Rules{}, "[::ffff:10.1.0.7]:22", OwnAddress},
		{"own nat64", Rules{}, "[64:ff9b::a01:7]:22", OwnAddress},
		{"own 6", Rules{}, "[fd00:1::7]:22", OwnAddress},
		{"inside", narrow, "10.1.0.8:22", Allowed},
		{"port range", narrow, "10.1.0.8:8500", Allowed},
		{"port outside", narrow, "10.1.0.8:9000", DeniedPort},
		{"denied", narrow, "10.9.1.1:22", DeniedSubnet},
		{"denied mapped", narrow, "[::ffff:10.9.1.1]:22", DeniedSubnet},
		{"outside", narrow, "192.168.1.1:22", OutsideSubnet},
		{"outside 6", narrow, "[fc00::1]:22", OutsideSubnet},
		{"allowing everything allows nothing special", Rules{Allow: prefixes(t, "0.0.0.0/0", "::/0")}, "127.0.0.1:22", Loopback},
		{"exempt loopback", Rules{Exempt: prefixes(t, "127.0.0.0/8")}, "127.0.0.1:22", Allowed},
		{"exempt own", Rules{Exempt: prefixes(t, "10.1.0.7")}, "10.1.0.7:22", Allowed},
		{"exempt link-local leaves metadata", Rules{Exempt: prefixes(t, "169.254.0.0/16")}, "169.254.169.254:80", Metadata},
		{"exempt link-local", Rules{Exempt: prefixes(t, "169.254.0.0/16")}, "169.254.1.1:80", Allowed},
		{"exempt metadata alone", Rules{Exempt: prefixes(t, "169.254.169.254")}, "169.254.169.254:80", Allowed},
		{"deny wins over exempt", Rules{Exempt: prefixes(t, "127.0.0.0/8"), Deny: prefixes(t, "127.0.0.1")}, "127.0.0.1:22", DeniedSubnet},
	} {
		if got := c.r.Check(netip.MustParseAddrPort(c.to), own); got != c.want {
			t.Errorf("%s: Check(%s) = %q, want %q", c.name, c.to, got, c.want)
		}
	}
	if got := (Rules{}).Check(netip.AddrPort{}, nil); got != Invalid {
		t.Errorf("Check(zero) = %q, want %q", got, Invalid)
	}
}

func anyAddr(t *rapid.T) netip.Addr {
	if rapid.Bool().Draw(t, "v4") {
		b := rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "a4")
		if rapid.Bool().Draw(t, "special") {
			copy(b, rapid.SampledFrom([][]byte{{127, 0, 0, 1}, {169, 254, 169, 254}, {10, 1, 0, 7}, {0, 0, 0, 0}, {224, 0, 0, 1}, {169, 254, 9, 9}}).Draw(t, "which"))
		}
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "a16")))
}

// Whatever form an IPv4 address hides in, the verdict on it is no milder.
func TestCheckHiddenForms(t *testing.T) {
	t.Parallel()
	own := []netip.Addr{netip.MustParseAddr("10.1.0.7")}
	rapid.Check(t, func(t *rapid.T) {
		a := anyAddr(t)
		if !a.Is4() {
			return
		}
		plain := Rules{}.Check(netip.AddrPortFrom(a, 22), own)
		b := a.As4()
		forms := map[string]netip.Addr{"mapped": netip.AddrFrom16(a.As16())}
		nat := [16]byte{0, 0x64, 0xff, 0x9b}
		copy(nat[12:], b[:])
		forms["nat64"] = netip.AddrFrom16(nat)
		six := [16]byte{0x20, 0x02}
		copy(six[2:], b[:])
		six[15] = 1
		forms["6to4"] = netip.AddrFrom16(six)
		for name, f := range forms {
			got := Rules{}.Check(netip.AddrPortFrom(f, 22), own)
			if plain != Allowed && got == Allowed {
				t.Fatalf("%s is refused (%s) but allowed as %s %s", a, plain, name, f)
			}
		}
	})
}

// More rules never allow more, unless they exempt.
func TestCheckNarrowing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		to := netip.AddrPortFrom(anyAddr(t), rapid.Uint16().Draw(t, "port"))
		bits := rapid.IntRange(0, to.Addr().BitLen()).Draw(t, "bits")
		p, err := to.Addr().Prefix(bits)
		if err != nil {
			t.Skip()
		}
		other := netip.MustParsePrefix("192.0.2.0/24")
		base := Rules{}.Check(to, nil)
		for _, r := range []Rules{{Deny: []netip.Prefix{p}}, {Allow: []netip.Prefix{p}}, {Allow: []netip.Prefix{other}}, {Ports: []PortRange{{1, 1024}}}} {
			if got := r.Check(to, nil); base != Allowed && got == Allowed {
				t.Fatalf("%v allows %s, which without it is %s", r, to, base)
			}
		}
		if got := (Rules{Deny: []netip.Prefix{p}}).Check(to, nil); got == Allowed {
			t.Fatalf("%s is in the denied %s and allowed", to, p)
		}
	})
}

func TestParseRules(t *testing.T) {
	t.Parallel()
	r, err := ParseRules(wire.DialRules{Allow: []string{"10.0.0.0/8", "fd00::1"}, Deny: []string{"10.9.1.2/16"}, Ports: []string{"22", "8000-8999"}})
	if err != nil || len(r.Allow) != 2 || r.Deny[0].String() != "10.9.0.0/16" || r.Ports[1] != (PortRange{8000, 8999}) {
		t.Errorf("ParseRules = %+v, %v", r, err)
	}
	_, err = ParseRules(wire.DialRules{Allow: []string{"10.0.0.0/33", "::ffff:10.0.0.0/104"}, Deny: []string{"host"}, Ports: []string{"0", "9-8", "70000", "x"}})
	if err == nil {
		t.Fatal("bad rules were accepted")
	}
	for _, want := range []string{"allow[0]", "allow[1]", "deny[0]", "ports[0]", "ports[1]", "ports[2]", "ports[3]"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is missing in %q", want, err)
		}
	}
	if _, err := ParseRules(wire.DialRules{Ports: make([]string, wire.MaxRules+1)}); err == nil {
		t.Error("too many ports were accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"10.0.0.0/8", "::/0", "22", "8000-8999", "fe80::1%eth0", "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := ParsePrefix(s); err == nil && (!p.IsValid() || p != p.Masked() || p.Addr().Zone() != "") {
			t.Errorf("ParsePrefix(%q) = %v", s, p)
		}
		if p, err := ParsePorts(s); err == nil && (p.First == 0 || p.First > p.Last) {
			t.Errorf("ParsePorts(%q) = %v", s, p)
		}
		if host, port, err := split(s); err == nil && (host == "" || port == 0 || strings.ContainsAny(host, " /\\\x00")) {
			t.Errorf("split(%q) = %q, %d", s, host, port)
		}
	})
}
