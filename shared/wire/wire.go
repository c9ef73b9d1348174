// Package wire is what two Caponier binaries say to each other: the preface
// of a stream, error codes, control messages, limits and the protocol
// version. It turns bytes into structs and back; it opens no socket, starts
// no goroutine and never sleeps.
package wire

import "fmt"

// Version is the protocol version spoken by this build. Peers may differ by
// one in both directions (see Compatible).
//
// History:
//
//	1  first version
const Version = 1

// Compatible reports whether a peer speaking version v can be understood.
func Compatible(v int) bool { return v >= Version-1 && v <= Version+1 && v > 0 }

// NodeKind is the kind of an edge node.
type NodeKind string

// The kinds of edge nodes.
const (
	Extender NodeKind = "extender"
	Carrier  NodeKind = "carrier"
	WebProxy NodeKind = "webproxy"
	Router   NodeKind = "router"
)

// Valid reports whether k is a known kind.
func (k NodeKind) Valid() bool {
	return k == Extender || k == Carrier || k == WebProxy || k == Router
}

// StreamKind says what a stream is for.
type StreamKind uint8

// The kinds of streams. Zero is no kind and refused.
const (
	StreamDial  StreamKind = 1 // the acceptor dials Dest and relays bytes
	StreamHTTP  StreamKind = 2 // HTTP/1.1 of the control plane
	StreamRelay StreamKind = 3 // core to core: Dest is "node-id!site-local destination"
)

// Class orders streams that compete for one tunnel.
type Class uint8

// Interactive streams go before bulk ones in every batch.
const (
	Interactive Class = 0
	Bulk        Class = 1
)

// Limits of a Preface, in bytes.
const (
	MaxConnection = 64
	MaxDest       = 320
)

// Preface opens a stream: it and the first bytes travel in one flight, before
// the acceptor has said anything (DESIGN invariant 7).
type Preface struct {
	Kind  StreamKind
	Class Class
	// Connection is the ID of the audited connection this stream belongs to;
	// empty for control streams.
	Connection string
	// Network is "tcp" or "udp".
	Network string
	// Dest is host:port as the acceptor's side knows it; names are resolved there.
	Dest string
}

// Code is an error's number on the wire. Append only; unknown codes mean Internal.
type Code uint16

// The codes.
const (
	CodeInternal      Code = 1
	CodeRefused       Code = 2  // the destination is not allowed by the edge's rules
	CodeDNS           Code = 3  // the name does not resolve on the edge's side
	CodeUnreachable   Code = 4  // no route, host down
	CodeConnRefused   Code = 5  // the destination answered with a reset
	CodeTimeout       Code = 6  // the destination did not answer in time
	CodeLimit         Code = 7  // a limit is reached; try later
	CodeDraining      Code = 8  // the peer takes no new streams
	CodeUnauthorized  Code = 9  // unknown, revoked or expired identity
	CodeVersion       Code = 10 // protocol versions too far apart
	CodeReplaced      Code = 11 // a newer tunnel of the same node took over
	CodeBadRequest    Code = 12 // malformed preface or message
	CodeTunnelLost    Code = 13 // the tunnel died under the stream
	CodeIdentityInUse Code = 14 // the same identity is in use from another place
	CodeTerminated    Code = 15 // ended by decision (role lost, administrator, limit)
)

// MaxPublic is the length limit of Error.Public in bytes.
const MaxPublic = 512

// Error is a refusal or failure told to the other side. Public is written for
// the person at the end and carries no secret.
type Error struct {
	Code   Code   `json:"code"`
	Public string `json:"message"`
}

// Error implements error.
func (e *Error) Error() string { return e.Public }

// Errorf makes an Error whose text is public.
func Errorf(c Code, format string, args ...any) *Error {
	s := fmt.Sprintf(format, args...)
	if len(s) > MaxPublic {
		s = s[:MaxPublic]
	}
	return &Error{Code: c, Public: s}
}

// PathTunnel is where a core accepts tunnels over websockets; a load balancer
// may be told to route PathTunnel + "/" + core ID to that core.
const PathTunnel = "/edge/v1/tunnel"
