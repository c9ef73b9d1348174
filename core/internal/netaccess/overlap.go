package netaccess

import (
	"net/netip"
	"slices"

	"caponier/shared/netrule"
)

// selectors are what a session matches, arranged for comparison: sorted by
// first address, with the highest last address up to each. Constant.
type selectors struct {
	list []netrule.Selector
	last []netip.Addr
}

func arrange(ds []netrule.Destination) *selectors {
	s := &selectors{list: make([]netrule.Selector, len(ds)), last: make([]netip.Addr, len(ds))}
	for i := range ds {
		s.list[i] = ds[i].Selector
	}
	// Families sort apart: every IPv4 address is before every IPv6 address.
	slices.SortFunc(s.list, func(a, b netrule.Selector) int { return a.Addrs.First.Compare(b.Addrs.First) })
	for i, x := range s.list {
		s.last[i] = x.Addrs.Last
		if i > 0 && x.Addrs.Last.Less(s.last[i-1]) {
			s.last[i] = s.last[i-1]
		}
	}
	return s
}

// overlaps reports whether a packet exists that both match.
func (s *selectors) overlaps(o *selectors) bool {
	if len(o.list) < len(s.list) {
		s, o = o, s
	}
	for _, x := range s.list {
		// What begins after x ends cannot overlap it.
		n, _ := slices.BinarySearchFunc(o.list, x.Addrs.Last, func(y netrule.Selector, end netip.Addr) int {
			if y.Addrs.First.Compare(end) <= 0 {
				return -1
			}
			return 1
		})
		for i := n - 1; i >= 0 && !o.last[i].Less(x.Addrs.First); i-- {
			if o.list[i].Overlaps(x) {
				return true
			}
		}
	}
	return false
}

// held is a session that counts: it is opening, open, or its rules may still
// be in force somewhere.
type held struct {
	id, user  string
	client    netip.Addr
	exclusive bool
	matches   *selectors
}

// clash says which rule forbids a session. The zero value forbids none.
type clash uint8

// The rules, in the order they are checked.
const (
	noClash clash = iota
	// clientInUse: another user has a session from the same address.
	clientInUse
	// ownOverlap: a session from the same address matches some of the same packets.
	ownOverlap
	// exclusiveHeld: another user has exclusive use of something that overlaps.
	exclusiveHeld
	// exclusiveBusy: exclusive use is wanted of something in use.
	exclusiveBusy
)

// judge decides whether a session may be opened beside those that are held,
// and if not, names the one in the way. It reads nothing but its arguments.
func judge(want held, all []held) (clash, *held) {
	best, at := noClash, -1
	for i := range all {
		h := &all[i]
		if h.id == want.id {
			continue
		}
		c := noClash
		sameClient := h.client == want.client
		switch {
		case sameClient && h.user != want.user:
			c = clientInUse
		case !sameClient && !(h.exclusive && h.user != want.user) && !want.exclusive:
			continue
		case !h.matches.overlaps(want.matches):
			continue
		case sameClient:
			c = ownOverlap
		case h.exclusive && h.user != want.user:
			c = exclusiveHeld
		default:
			c = exclusiveBusy
		}
		if best == noClash || c < best {
			best, at = c, i
		}
	}
	if at < 0 {
		return noClash, nil
	}
	return best, &all[at]
}
