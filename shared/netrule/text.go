package netrule

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// MaxText is the longest text a parser looks at.
const MaxText = 256

// Error says what is wrong with a rule. Its text may be shown to users.
type Error struct{ Public string }

// Error implements error.
func (e *Error) Error() string { return e.Public }

func errorf(format string, args ...any) error {
	return &Error{Public: fmt.Sprintf(format, args...)}
}

// String is "any", "tcp", "udp", or the number of what is none of them.
func (p Proto) String() string {
	switch p {
	case Any:
		return "any"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return strconv.Itoa(int(p))
}

// ParseProto reads what String writes; the empty text means any.
func ParseProto(s string) (Proto, error) {
	switch strings.ToLower(s) {
	case "", "any":
		return Any, nil
	case "tcp":
		return TCP, nil
	case "udp":
		return UDP, nil
	}
	return Any, errorf("%s is not a protocol: say tcp, udp or any.", quote(s))
}

// MarshalText implements encoding.TextMarshaler: JSON has "tcp", not 6.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Proto) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProto(string(b))
	return err
}

// String is the shortest of a single address, a prefix, or "first-last".
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	if p, ok := r.prefix(); ok {
		return p.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// prefix returns the range as a prefix if it is exactly one.
func (r Range) prefix() (netip.Prefix, bool) {
	if !r.First.IsValid() || !r.Last.IsValid() || r.First.BitLen() != r.Last.BitLen() {
		return netip.Prefix{}, false
	}
	a, b := r.First.AsSlice(), r.Last.AsSlice()
	bits := r.First.BitLen()
	for i := range a {
		if x := a[i] ^ b[i]; x != 0 {
			bits = 8 * i
			for m := byte(0x80); x&m == 0; m >>= 1 {
				bits++
			}
			break
		}
	}
	p := netip.PrefixFrom(r.First, bits)
	return p, PrefixRange(p) == r
}

// PrefixRange is the range of a valid prefix.
func PrefixRange(p netip.Prefix) Range {
	p = p.Masked()
	last := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(last); i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	l, _ := netip.AddrFromSlice(last)
	return Range{First: p.Addr(), Last: l}
}

// ParseRange reads an address, a prefix ("10.20.0.0/24") or two addresses
// ("10.20.0.5-10.20.0.9"). A prefix may not have bits set below its length.
func ParseRange(s string) (Range, error) {
	if len(s) > MaxText {
		return Range{}, errorf("An address range is not that long.")
	}
	var r Range
	switch {
	case strings.Contains(s, "/"):
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return Range{}, errorf("%s is not a network: write it like 10.20.0.0/24 or fd00:20::/64.", quote(s))
		}
		if p.Addr().Is4In6() {
			return Range{}, errorf("%s is an IPv4 network written as IPv6: write it as IPv4.", quote(s))
		}
		if p != p.Masked() {
			return Range{}, errorf("%s has host bits set: did you mean %s or %s?", s, p.Masked(), p.Addr())
		}
		r = PrefixRange(p)
	case strings.Contains(s, "-"):
		first, last, _ := strings.Cut(s, "-")
		var err error
		if r.First, err = parseAddr(first); err != nil {
			return Range{}, err
		}
		if r.Last, err = parseAddr(last); err != nil {
			return Range{}, err
		}
	default:
		a, err := parseAddr(s)
		if err != nil {
			return Range{}, err
		}
		r = Range{First: a, Last: a}
	}
	r = r.normal()
	return r, r.validate()
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return netip.Addr{}, errorf("%s is not an IP address.", quote(s))
	}
	return a.Unmap(), nil
}

// String is "502", "502-510", or "any".
func (p Ports) String() string {
	switch {
	case p == Ports{}:
		return "any"
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// ParsePorts reads what String writes; the empty text means any.
func ParsePorts(s string) (Ports, error) {
	if s == "" || strings.EqualFold(s, "any") {
		return Ports{}, nil
	}
	first, last, two := strings.Cut(s, "-")
	if !two {
		last = first
	}
	a, err := parsePort(first)
	if err != nil {
		return Ports{}, err
	}
	b, err := parsePort(last)
	if err != nil {
		return Ports{}, err
	}
	p := Ports{First: a, Last: b}.normal()
	return p, p.validate()
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, errorf("%s is not a port: ports are 1 to 65535.", quote(s))
	}
	return uint16(n), nil
}

// String is "10.20.0.0/24 tcp 502"; what is any is left out from the right.
func (s Selector) String() string {
	switch {
	case s.Proto == Any:
		return s.Addrs.String()
	case s.Ports == Ports{}:
		return s.Addrs.String() + " " + s.Proto.String()
	}
	return s.Addrs.String() + " " + s.Proto.String() + " " + s.Ports.String()
}

// ParseSelector reads what String writes: a range, then a protocol, then ports.
func ParseSelector(text string) (Selector, error) {
	if len(text) > MaxText {
		return Selector{}, errorf("A destination is not that long.")
	}
	f := strings.Fields(text)
	if len(f) < 1 || len(f) > 3 {
		return Selector{}, errorf("%s is not a destination: write it like 10.20.0.0/24 tcp 502.", quote(text))
	}
	f = append(f, "", "")
	var (
		s   Selector
		err error
	)
	if s.Addrs, err = ParseRange(f[0]); err != nil {
		return Selector{}, err
	}
	if s.Proto, err = ParseProto(f[1]); err != nil {
		return Selector{}, err
	}
	if s.Ports, err = ParsePorts(f[2]); err != nil {
		return Selector{}, err
	}
	return s, s.Validate()
}

// String is "192.168.1.5", "192.168.1.5:502" or "[fd00::5]:502".
func (n NAT) String() string {
	if n.Port == 0 {
		return n.Addr.String()
	}
	return netip.AddrPortFrom(n.Addr, n.Port).String()
}

// ParseNAT reads what String writes.
func ParseNAT(s string) (NAT, error) {
	s = strings.TrimSpace(s)
	if len(s) > MaxText {
		return NAT{}, errorf("An address is not that long.")
	}
	if a, err := netip.ParseAddr(s); err == nil {
		n := NAT{Addr: a.Unmap()}
		return n, n.validate()
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return NAT{}, errorf("%s is not an address to translate to: write it like 192.168.1.5, 192.168.1.5:502 or [fd00::5]:502.", quote(s))
	}
	n := NAT{Addr: ap.Addr().Unmap(), Port: ap.Port()}
	return n, n.validate()
}

// String is the selector, and " -> " with the translation where there is one.
func (d Destination) String() string {
	if d.DNAT == nil {
		return d.Selector.String()
	}
	return d.Selector.String() + " -> " + d.DNAT.String()
}

// ParseDestination reads what String writes.
func ParseDestination(text string) (Destination, error) {
	sel, to, has := strings.Cut(text, "->")
	s, err := ParseSelector(sel)
	if err != nil {
		return Destination{}, err
	}
	d := Destination{Selector: s}
	if has {
		n, err := ParseNAT(to)
		if err != nil {
			return Destination{}, err
		}
		d.DNAT = &n
	}
	return d, d.Validate()
}

// quote shows what somebody wrote, shortened.
func quote(s string) string {
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return strconv.Quote(s)
}
