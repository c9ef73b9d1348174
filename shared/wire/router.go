package wire

import (
	"encoding/json"

	"caponier/shared/netrule"
)

// Paths of the router's control plane: core asks, the router answers (HTTP over
// the tunnel, see shared/control).
//
//	PUT  PathRouterState    RouterState   -> RouterAck   the whole desired state
//	POST PathRouterChanges  RouterChanges -> RouterAck   the difference to it
//	POST PathRouterLease    RouterLease   -> RouterLeased
//	POST PathRouterCounters RouterCountersAsk -> RouterCounters
//
// A router that is not at RouterChanges.From answers 409 and gets the whole
// state. Core sends one request at a time, leases apart. Bodies are at most
// MaxRouterBody, compressed with gzip when that is worth it.
const (
	PathRouterState    = "/router/v1/state"
	PathRouterChanges  = "/router/v1/changes"
	PathRouterLease    = "/router/v1/lease"
	PathRouterCounters = "/router/v1/counters"
)

// MaxRouterBody is the limit of one message of the router's control plane, in
// bytes after decompression: 10,000 sessions with ten destinations each take
// about 20 MB.
const MaxRouterBody = 64 << 20

// RouterSession is one network session as a router must enforce it.
type RouterSession struct {
	// ID is the connection's; Target the network target's unique name.
	ID     string        `json:"id"`
	Target string        `json:"target"`
	Rules  netrule.Rules `json:"rules"`
	// Provider and Static are the target's static configuration, for the types
	// exec and sshexec only.
	Provider string          `json:"provider,omitempty"`
	Static   json.RawMessage `json:"static,omitempty"`
	// User is who opened it, for exec routers and logs.
	User string `json:"user,omitempty"`
}

// RouterState is everything a router must enforce; what it has besides must go.
type RouterState struct {
	// Epoch is random per core process that decides for this router; a
	// revision means something only within its epoch.
	Epoch    string          `json:"epoch"`
	Revision uint64          `json:"revision"`
	Sessions []RouterSession `json:"sessions"`
}

// RouterChanges lead from revision From to To of the same epoch. Removals are
// applied before additions.
type RouterChanges struct {
	Epoch  string          `json:"epoch"`
	From   uint64          `json:"from"`
	To     uint64          `json:"to"`
	Add    []RouterSession `json:"add,omitempty"`
	Remove []string        `json:"remove,omitempty"`
}

// RouterAck says what became of a state or of changes. What is not named in
// Failed or Ending holds in the kernel (or the program) when the ack is sent.
type RouterAck struct {
	Epoch    string `json:"epoch"`
	Revision uint64 `json:"revision"`
	// Failed are additions that do not hold, with text for the user.
	Failed []RouterFailure `json:"failed,omitempty"`
	// Ending are removals that are not done yet and are being retried.
	Ending []RouterFailure `json:"ending,omitempty"`
	// Ended are the last counters of what was removed.
	Ended []RouterCount `json:"ended,omitempty"`
}

// RouterFailure is one session a router could not do as told.
type RouterFailure struct {
	ID    string `json:"id"`
	Error *Error `json:"error"`
}

// RouterLease keeps the rules alive: without a fresh one they stop to hold
// ForMS after the router received the last. Core sends one only while it could
// still justify every session (DESIGN invariant 12). Revision is the one that
// core wants: a router that is neither there nor on its way there renews
// nothing.
type RouterLease struct {
	Epoch    string `json:"epoch"`
	Revision uint64 `json:"revision"`
	ForMS    int64  `json:"for_ms"`
}

// RouterLeased answers a lease. With Resync core must send the whole state:
// the router was restarted, or found its rules changed by somebody else.
type RouterLeased struct {
	Revision uint64 `json:"revision"`
	Resync   bool   `json:"resync,omitempty"`
	Sessions int    `json:"sessions"`
	// Ending lists removals still being retried.
	Ending []RouterFailure `json:"ending,omitempty"`
	// Type is nftables, exec, sshexec or logger; Leased is false where the
	// program behind exec cannot end rules by itself.
	Type   string `json:"type"`
	Leased bool   `json:"leased"`
}

// RouterCountersAsk asks for counters of the given sessions; none means all.
type RouterCountersAsk struct {
	Sessions []string `json:"sessions,omitempty"`
}

// RouterCounters are running totals.
type RouterCounters struct {
	Sessions []RouterCount `json:"sessions"`
}

// RouterCount is one session's traffic since it was added, per destination in
// the order of its rules. Out is client to target.
type RouterCount struct {
	ID           string            `json:"id"`
	BytesOut     uint64            `json:"bytes_out"`
	BytesIn      uint64            `json:"bytes_in"`
	PacketsOut   uint64            `json:"packets_out"`
	PacketsIn    uint64            `json:"packets_in"`
	Destinations []RouterDestCount `json:"destinations,omitempty"`
}

// RouterDestCount is one destination's share.
type RouterDestCount struct {
	Destination string `json:"destination"` // netrule.Destination.String
	BytesOut    uint64 `json:"bytes_out"`
	BytesIn     uint64 `json:"bytes_in"`
	PacketsOut  uint64 `json:"packets_out"`
	PacketsIn   uint64 `json:"packets_in"`
}
