package wire

// Member is one core of the fleet as an edge may reach it.
type Member struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Addresses are URLs of this core itself, past any load balancer
	// ("https://core-a.example:443"); may be empty.
	Addresses []string `json:"addresses,omitempty"`
}

// Hello is an edge's first request on a tunnel; the tunnel counts as
// connected when core has answered it with a Welcome.
type Hello struct {
	Version int      `json:"version"`
	Kind    NodeKind `json:"kind"`
	// Build is the binary's version.
	Build string `json:"build"`
	// Host is a fingerprint of the place the identity lives in (machine and
	// state directory). The same identity under another fingerprint while the
	// first is connected is a copy and refused with CodeIdentityInUse.
	Host string `json:"host"`
	// Process is random per process start.
	Process string `json:"process"`
	// StartedAt and Clock are the edge's times, microseconds since the Unix
	// epoch: start of the process and now.
	StartedAt int64 `json:"started_at"`
	Clock     int64 `json:"clock"`
	// Attempt counts dials since the last working tunnel; LastError is why
	// the last one failed or ended (cut at 200 bytes).
	Attempt   int    `json:"attempt,omitempty"`
	LastError string `json:"last_error,omitempty"`
	// Finding says how this core was found: url, direct, hint, cookie, redial.
	Finding string `json:"finding,omitempty"`
	// Deploy describes the extender's host-deployment listener, if it runs.
	Deploy *DeployListener `json:"deploy,omitempty"`
}

// DeployListener is where hosts of the site reach the extender.
type DeployListener struct {
	// Address is host:port as configured, the host possibly empty.
	Address string `json:"address"`
	// Pin is "sha256//<base64>" of the listener's SubjectPublicKeyInfo, as
	// curl --pinnedpubkey takes it.
	Pin string `json:"pin"`
}

// Welcome answers a Hello. With Error set the tunnel is refused and closed;
// RetryAfterMS then says when to come back (0: the edge's own schedule).
type Welcome struct {
	Error        *Error `json:"error,omitempty"`
	RetryAfterMS int64  `json:"retry_after_ms,omitempty"`

	Version int `json:"version"`
	// Core is who answered; Cores are all members, itself included.
	Core  Member   `json:"core"`
	Cores []Member `json:"cores,omitempty"`
	// Name and Site are the node's own, as core has them now.
	Name string `json:"name"`
	Site string `json:"site,omitempty"`
	// Clock is core's time in microseconds since the Unix epoch.
	Clock int64 `json:"clock"`
	// StatusEveryMS is how often to report.
	StatusEveryMS int64 `json:"status_every_ms"`
	// RenewBeforeS is how long before its end a certificate is renewed, in seconds.
	RenewBeforeS int64 `json:"renew_before_s"`
	// Rules narrow what the edge's own configuration allows.
	Rules DialRules `json:"rules"`
}

// DialRules say which destinations may be dialled. Empty lists say nothing.
// Prefixes are CIDR, ports "22" or "8000-8999".
type DialRules struct {
	Allow []string `json:"allow,omitempty"`
	Deny  []string `json:"deny,omitempty"`
	Ports []string `json:"ports,omitempty"`
}

// Limits of DialRules.
const (
	MaxRules    = 256 // entries per list
	MaxRuleText = 64  // bytes per entry
)

// Status is what an edge reports from time to time.
type Status struct {
	Clock int64 `json:"clock"` // microseconds since the Unix epoch
	// Mode is active, draining.
	Mode string `json:"mode"`
	// Streams are relayed connections open now; StreamsTotal since start.
	Streams      int    `json:"streams"`
	StreamsTotal uint64 `json:"streams_total"`
	Refused      uint64 `json:"refused"` // by rule, since start
	Failed       uint64 `json:"failed"`  // DNS, unreachable, time-out, since start
	BytesIn      uint64 `json:"bytes_in"`
	BytesOut     uint64 `json:"bytes_out"`
	MemoryBytes  uint64 `json:"memory_bytes"`
	LastError    string `json:"last_error,omitempty"`
	CertNotAfter int64  `json:"cert_not_after"` // seconds since the Unix epoch
	// Web is set by carriers and webproxies.
	Web *WebCapacity `json:"web,omitempty"`
}

// StatusReply may change how often the edge reports.
type StatusReply struct {
	StatusEveryMS int64 `json:"status_every_ms"`
	// Renew asks for a renewal now (the CA changed).
	Renew bool `json:"renew,omitempty"`
}

// The modes of an edge.
const (
	ModeActive   = "active"
	ModeDraining = "draining"
)

// ProbeRequest asks an edge to try a destination and leave nothing open.
type ProbeRequest struct {
	Dest string `json:"dest"`
}

// ProbeResponse lists the steps tried, in order; the last one failed or all are OK.
type ProbeResponse struct {
	Stages []ProbeStage `json:"stages"`
}

// ProbeStage is one timed step of a dial.
type ProbeStage struct {
	Name string  `json:"name"` // policy, dns, tcp
	OK   bool    `json:"ok"`
	MS   float64 `json:"ms"`
	Text string  `json:"text"`
	Fix  string  `json:"fix,omitempty"`
}
