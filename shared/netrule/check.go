package netrule

import (
	"net/netip"
	"slices"
)

func (r Range) normal() Range {
	return Range{First: r.First.Unmap(), Last: r.Last.Unmap()}
}

func (r Range) validate() error {
	switch {
	case !r.First.IsValid() || !r.Last.IsValid():
		return errorf("An address is missing.")
	case r.First.Zone() != "" || r.Last.Zone() != "":
		return errorf("%s names a network interface: a router forwards by address alone.", r)
	case r.First.BitLen() != r.Last.BitLen():
		return errorf("%s mixes IPv4 and IPv6.", r)
	case r.Last.Less(r.First):
		return errorf("%s runs backwards: put the lower address first.", r)
	case r.First == r.Last && r.First.IsUnspecified():
		return errorf("%s is no address of a host.", r)
	}
	return nil
}

// normal makes a single port a range and the range of all ports "any".
func (p Ports) normal() Ports {
	if p.Last == 0 {
		p.Last = p.First
	}
	if p.First <= 1 && p.Last == 65535 {
		return Ports{}
	}
	return p
}

func (p Ports) validate() error {
	switch {
	case p == Ports{}:
		return nil
	case p.First == 0:
		return errorf("Ports are 1 to 65535.")
	case p.Last < p.First:
		return errorf("Ports %d-%d run backwards: put the lower port first.", p.First, p.Last)
	}
	return nil
}

func (n NAT) validate() error {
	a := n.Addr
	switch {
	case !a.IsValid():
		return errorf("The address to translate to is missing.")
	case a.Zone() != "":
		return errorf("%s names a network interface: give an address alone.", a)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errorf("%s cannot be translated to: it is no address of a host on a network.", a)
	}
	return nil
}

// Normal is the one way to write a selector: IPv4 as IPv4, one port as a range
// of one, all ports as none.
func (s Selector) Normal() Selector {
	s.Addrs, s.Ports = s.Addrs.normal(), s.Ports.normal()
	return s
}

// Validate says what is wrong with a selector in its normal form.
func (s Selector) Validate() error {
	if err := s.Addrs.validate(); err != nil {
		return err
	}
	switch s.Proto {
	case Any:
		if s.Ports != (Ports{}) {
			return errorf("%s: ports need a protocol: say tcp or udp.", s.Addrs)
		}
	case TCP, UDP:
	default:
		return errorf("%s: the protocol must be tcp, udp or any.", s.Addrs)
	}
	return s.Ports.validate()
}

// Normal is the normal form of the selector and the translation.
func (d Destination) Normal() Destination {
	d.Selector = d.Selector.Normal()
	if d.DNAT != nil {
		d.DNAT = &NAT{Addr: d.DNAT.Addr.Unmap(), Port: d.DNAT.Port}
	}
	return d
}

// Validate says what is wrong with a destination in its normal form.
func (d Destination) Validate() error {
	if err := d.Selector.Validate(); err != nil {
		return err
	}
	if d.DNAT == nil {
		return nil
	}
	if err := d.DNAT.validate(); err != nil {
		return err
	}
	switch {
	case d.DNAT.Addr.BitLen() != d.Addrs.First.BitLen():
		return errorf("%s cannot be translated to %s: one is IPv4, the other IPv6.", d.Addrs, d.DNAT.Addr)
	case d.DNAT.Port != 0 && d.Proto == Any:
		return errorf("%s: translating to port %d needs a protocol: say tcp or udp.", d.Addrs, d.DNAT.Port)
	}
	return nil
}

// Equal reports whether two destinations are the same.
func (d Destination) Equal(o Destination) bool {
	return d.Selector == o.Selector && (d.DNAT == nil) == (o.DNAT == nil) && (d.DNAT == nil || *d.DNAT == *o.DNAT)
}

// Normal is the normal form of a target's destinations, in their order.
func Normal(ds []Destination) []Destination {
	out := make([]Destination, len(ds))
	for i, d := range ds {
		out[i] = d.Normal()
	}
	return out
}

// Validate says what is wrong with a target's destinations in their normal
// form. They may overlap: the first that matches a packet decides about its
// translation. The same selector twice is a mistake.
func Validate(ds []Destination) error {
	switch {
	case len(ds) == 0:
		return errorf("A network target needs at least one destination.")
	case len(ds) > MaxDestinations:
		return errorf("A network target has at most %d destinations, this one %d.", MaxDestinations, len(ds))
	}
	seen := make(map[Selector]int, len(ds))
	for i, d := range ds {
		if err := d.Validate(); err != nil {
			return errorf("Destination %d: %s", i+1, err)
		}
		if first, twice := seen[d.Selector]; twice {
			return errorf("Destinations %d and %d are the same: %s.", first+1, i+1, d.Selector)
		}
		seen[d.Selector] = i
	}
	return nil
}

// Normal is the normal form of the rules.
func (r Rules) Normal() Rules {
	r.Client, r.Destinations = r.Client.Unmap(), Normal(r.Destinations)
	return r
}

// Validate says what is wrong with rules in their normal form. A client
// reaches only destinations of its own family; there must be one.
func (r Rules) Validate() error {
	c := r.Client
	switch {
	case !c.IsValid():
		return errorf("The client's address is missing.")
	case c.Zone() != "", c.IsUnspecified(), c.IsMulticast(), c.IsLoopback():
		return errorf("%s cannot be a client: it is no address of a host on a network.", c)
	}
	if err := Validate(r.Destinations); err != nil {
		return err
	}
	if !slices.ContainsFunc(r.Destinations, r.Reaches) {
		return errorf("%s reaches none of the destinations: they are all of the other IP version.", c)
	}
	return nil
}

// Reaches reports whether a destination is of the client's family.
func (r Rules) Reaches(d Destination) bool { return d.Addrs.First.BitLen() == r.Client.BitLen() }

// Equal reports whether two rules are the same, in the same order.
func (r Rules) Equal(o Rules) bool {
	return r.Client == o.Client && r.SNAT == o.SNAT && slices.EqualFunc(r.Destinations, o.Destinations, Destination.Equal)
}
