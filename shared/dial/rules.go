// Package dial connects to destinations on behalf of others: it resolves the
// name on its own side, checks every address by rule, dials only what passed,
// and checks the address once more at the socket, so that a name that changes
// its answer (DNS rebinding) wins nothing. The extender relays with it, and
// core uses it for targets without a site.
//
// Refused by default: loopback, link-local, metadata services, multicast,
// unspecified and reserved addresses, the dialler's own addresses, and the
// same hidden in IPv4-mapped, -compatible, NAT64 or 6to4 form.
package dial

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"caponier/shared/wire"
)

// Rules say which addresses may be dialled. The zero value allows every
// ordinary unicast address and port, and no special one.
type Rules struct {
	// Allow: when not empty, only addresses inside one of these.
	Allow []netip.Prefix
	// Deny wins over Allow and Exempt.
	Deny []netip.Prefix
	// Ports: when not empty, only these.
	Ports []PortRange
	// Exempt lists special addresses (loopback, own, link-local …) that are
	// permitted all the same. A metadata address must be named alone (/32, /128).
	Exempt []netip.Prefix
}

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

// Reason says why an address was refused. Stable, for audit and tests.
type Reason string

// The reasons.
const (
	Allowed       Reason = ""
	Invalid       Reason = "invalid"
	Unspecified   Reason = "unspecified"
	Loopback      Reason = "loopback"
	LinkLocal     Reason = "link_local"
	Metadata      Reason = "metadata"
	Multicast     Reason = "multicast"
	Reserved      Reason = "reserved"
	OwnAddress    Reason = "own_address"
	DeniedSubnet  Reason = "denied_subnet"
	OutsideSubnet Reason = "outside_allowed_subnets"
	DeniedPort    Reason = "port_not_allowed"
)

// Text tells a person about the reason.
func (r Reason) Text() string {
	switch r {
	case Allowed:
		return "allowed"
	case Unspecified:
		return "it is an unspecified address"
	case Loopback:
		return "it is a loopback address"
	case LinkLocal:
		return "it is a link-local address"
	case Metadata:
		return "it is a cloud metadata address"
	case Multicast:
		return "it is a multicast or broadcast address"
	case Reserved:
		return "it is in a reserved range"
	case OwnAddress:
		return "it is an address of the dialling machine itself"
	case DeniedSubnet:
		return "it is in a denied subnet"
	case OutsideSubnet:
		return "it is outside the allowed subnets"
	case DeniedPort:
		return "the port is not allowed"
	default:
		return "it is not a valid address"
	}
}

// metadata are addresses on which clouds answer with credentials.
var metadata = []netip.Addr{
	netip.MustParseAddr("169.254.169.254"),
	netip.MustParseAddr("169.254.170.2"),
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("fd00:ec2::23"), // credentials of pods; its 169.254.170.23 is link-local
	netip.MustParseAddr("fd20:ce::254"),
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("168.63.129.16"),
	netip.MustParseAddr("192.0.0.192"),
}

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8")      // RFC 1122 §3.2.1.3: reaches the own host
	classE      = netip.MustParsePrefix("240.0.0.0/4")    // RFC 1112 §4
	compatible  = netip.MustParsePrefix("::/96")          // RFC 4291 §2.5.5.1
	nat64       = netip.MustParsePrefix("64:ff9b::/96")   // RFC 6052 §2.1
	nat64Local  = netip.MustParsePrefix("64:ff9b:1::/48") // RFC 8215
	sixToFour   = netip.MustParsePrefix("2002::/16")      // RFC 3056 §2
	discardOnly = netip.MustParsePrefix("100::/64")       // RFC 6666
	broadcast   = netip.MustParseAddr("255.255.255.255")
)

// Check decides on one address and port. own are the addresses of the
// dialling machine. It is pure.
func (r Rules) Check(to netip.AddrPort, own []netip.Addr) Reason {
	a := to.Addr()
	if !a.IsValid() || to.Port() == 0 {
		return Invalid
	}
	if a.Zone() != "" {
		return LinkLocal
	}
	a = a.Unmap()
	if contains(r.Deny, a) {
		return DeniedSubnet
	}
	if len(r.Ports) > 0 && !slices.ContainsFunc(r.Ports, func(p PortRange) bool { return p.First <= to.Port() && to.Port() <= p.Last }) {
		return DeniedPort
	}
	if why := special(a, own); why != Allowed && !r.exempt(a, why) {
		return why
	}
	// An IPv4 address inside an IPv6 one is judged as itself: a translator on
	// the way would take us there.
	if v4, ok := embedded(a); ok {
		if contains(r.Deny, v4) {
			return DeniedSubnet
		}
		if why := special(v4, own); why != Allowed && !r.exempt(v4, why) {
			return why
		}
	}
	if len(r.Allow) > 0 && !contains(r.Allow, a) && !contains(r.Exempt, a) {
		return OutsideSubnet
	}
	return Allowed
}

// special names what is unusual about an address.
func special(a netip.Addr, own []netip.Addr) Reason {
	switch {
	case slices.Contains(metadata, a):
		return Metadata
	case a.IsUnspecified(), thisNetwork.Contains(a):
		return Unspecified
	case a.IsLoopback():
		return Loopback
	case a.IsLinkLocalUnicast():
		return LinkLocal
	case a.IsMulticast(), a == broadcast:
		return Multicast
	case classE.Contains(a), discardOnly.Contains(a), nat64Local.Contains(a):
		return Reserved
	case slices.ContainsFunc(own, func(o netip.Addr) bool { return o.Unmap().WithZone("") == a }):
		return OwnAddress
	}
	return Allowed
}

// exempt reports whether a special address was permitted by name.
func (r Rules) exempt(a netip.Addr, why Reason) bool {
	return slices.ContainsFunc(r.Exempt, func(p netip.Prefix) bool {
		return p.Contains(a) && (why != Metadata || p.IsSingleIP())
	})
}

// embedded returns the IPv4 address that a translated IPv6 address leads to.
func embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	switch {
	case compatible.Contains(a) && !a.IsLoopback() && !a.IsUnspecified(), nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

// ParsePorts reads "22" or "8000-8999".
func ParsePorts(s string) (PortRange, error) {
	first, last, ranged := strings.Cut(strings.TrimSpace(s), "-")
	if !ranged {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || a == 0 || a > b {
		return PortRange{}, fmt.Errorf("%q is not a port or a range of ports (22, 8000-8999)", cut(s))
	}
	return PortRange{uint16(a), uint16(b)}, nil
}

// ParsePrefix reads a CIDR or a single address. IPv4-mapped prefixes are refused.
func ParsePrefix(s string) (netip.Prefix, error) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" && !a.Is4In6() {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q is not a subnet or address (10.0.0.0/8, fd00::/8)", cut(s))
	}
	return p.Masked(), nil
}

// ParsePrefixes reads a list of subnets; its errors, one per line, begin with
// "name[i]: ".
func ParsePrefixes(name string, in []string) ([]netip.Prefix, error) {
	if len(in) > wire.MaxRules {
		return nil, fmt.Errorf("%s: more than %d entries", name, wire.MaxRules)
	}
	var out []netip.Prefix
	var errs []error
	for i, s := range in {
		p, err := ParsePrefix(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s[%d]: %w", name, i, err))
			continue
		}
		out = append(out, p)
	}
	return out, errors.Join(errs...)
}

// ParseRules reads rules as they travel; it reports every bad entry.
func ParseRules(w wire.DialRules) (Rules, error) {
	var r Rules
	var errs []error
	var err error
	if r.Allow, err = ParsePrefixes("allow", w.Allow); err != nil {
		errs = append(errs, err)
	}
	if r.Deny, err = ParsePrefixes("deny", w.Deny); err != nil {
		errs = append(errs, err)
	}
	if len(w.Ports) > wire.MaxRules {
		errs = append(errs, fmt.Errorf("ports: more than %d entries", wire.MaxRules))
	} else {
		for i, s := range w.Ports {
			p, err := ParsePorts(s)
			if err != nil {
				errs = append(errs, fmt.Errorf("ports[%d]: %w", i, err))
				continue
			}
			r.Ports = append(r.Ports, p)
		}
	}
	return r, errors.Join(errs...)
}

func cut(s string) string {
	if len(s) > wire.MaxRuleText {
		return s[:wire.MaxRuleText] + "…"
	}
	return s
}
