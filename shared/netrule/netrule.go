// Package netrule is what a network target opens, in terms of packets: traffic
// selectors, address translation, and when two of them overlap. Core decides
// with it, the router checks again with it before anything reaches the kernel.
// It is arithmetic on values: no socket, no clock. Errors of Validate, Parse and
// their kin are *Error: their text is written for whoever configures a target.
package netrule

import "net/netip"

// Proto is a transport protocol; the zero value means any.
type Proto uint8

// The protocols (IANA protocol numbers).
const (
	Any Proto = 0
	TCP Proto = 6
	UDP Proto = 17
)

// Range is an inclusive range of addresses of one family.
type Range struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Ports is an inclusive range of ports. The zero value means every port; it is
// the only one allowed with Any.
type Ports struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Selector matches packets by destination.
type Selector struct {
	Addrs Range `json:"addrs"`
	Proto Proto `json:"proto"`
	Ports Ports `json:"ports,omitzero"`
}

// NAT is one address and optionally one port (0: the port stays as it is).
type NAT struct {
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port,omitempty"`
}

// Destination is a selector and where its packets are sent instead (nil: as
// addressed). A NAT of another family than the selector is invalid; a NAT with
// a port needs a Proto.
type Destination struct {
	Selector
	DNAT *NAT `json:"dnat,omitempty"`
}

// Rules are what one client address may reach, as one session grants it.
type Rules struct {
	Client       netip.Addr    `json:"client"`
	Destinations []Destination `json:"destinations"`
	// SNAT hides the client behind the router's own address.
	SNAT bool `json:"snat,omitempty"`
}

// MaxDestinations is the most destinations of one target.
const MaxDestinations = 5000
