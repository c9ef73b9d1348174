package netrule

import "net/netip"

// Contains reports whether a is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.BitLen() == r.First.BitLen() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps reports whether the ranges have an address in common. Ranges of
// different families never do.
func (r Range) Overlaps(o Range) bool {
	return r.First.BitLen() == o.First.BitLen() && !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// Bounds is the range with "any" written out: 0 to 65535.
func (p Ports) Bounds() (first, last uint16) {
	if p == (Ports{}) {
		return 0, 65535
	}
	return p.First, p.Last
}

// Overlaps reports whether the ranges have a port in common.
func (p Ports) Overlaps(o Ports) bool {
	a, b := p.Bounds()
	c, d := o.Bounds()
	return a <= d && c <= b
}

// Overlaps reports whether a packet exists that both match.
func (s Selector) Overlaps(o Selector) bool {
	if s.Proto != Any && o.Proto != Any && s.Proto != o.Proto {
		return false
	}
	return s.Ports.Overlaps(o.Ports) && s.Addrs.Overlaps(o.Addrs)
}

// Matches reports whether a packet to addr and port is selected. The port of
// protocols without ports is 0.
func (s Selector) Matches(addr netip.Addr, p Proto, port uint16) bool {
	first, last := s.Ports.Bounds()
	return (s.Proto == Any || s.Proto == p) && first <= port && port <= last && s.Addrs.Contains(addr)
}

// Overlap returns the first pair, by position, that overlaps.
func Overlap(a, b []Destination) (i, j int, found bool) {
	for i := range a {
		for j := range b {
			if a[i].Selector.Overlaps(b[j].Selector) {
				return i, j, true
			}
		}
	}
	return 0, 0, false
}

// Overlaps reports whether both rules are of one client and have a packet of
// it in common.
func (r Rules) Overlaps(o Rules) bool {
	if r.Client != o.Client {
		return false
	}
	_, _, found := Overlap(r.Destinations, o.Destinations)
	return found
}
