// Package tunnel carries many streams over one authenticated connection
// between an edge node and a core, over a secure websocket or QUIC.
//
// A Session is the tunnel; both ends open and accept Streams on it. Streams
// are isolated: each has its own flow control, so a reader that stalls delays
// nobody else; interactive streams go before bulk ones; half-close is kept;
// an idle stream holds no buffer.
//
// Opening is optimistic: Open returns at once, bytes may be written at once
// and travel with the preface, and the acceptor's verdict arrives with (or
// instead of) its first bytes: a refused stream's Read and Accepted return the
// acceptor's *wire.Error.
//
// Bytes change hands as seldom as possible. Over a websocket, who writes to a
// stream encrypts and sends itself when nobody else does and the socket has
// room; what arrives for a stream in Relay goes straight from the decrypted
// record into the socket behind it. Whatever would have to wait is queued
// instead and left to a goroutine of the session's or the relay's: neither the
// session's reader nor a caller ever waits for another stream.
//
// Both ends ping; a peer silent for DeadAfter is dead and the session closes.
package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"time"

	"caponier/shared/wire"
)

// DeadAfter is how long a peer may be silent before the session is closed.
const DeadAfter = 4 * time.Second

// Transport names what carries a session.
type Transport string

// The transports.
const (
	WSS  Transport = "wss"
	QUIC Transport = "quic"
)

// Binding says how the two ends proved their identity to each other.
type Binding string

// The bindings (DESIGN invariant 2).
const (
	// BoundTLS: the TLS connection ends at the peer; the proof covers its
	// exporter value (RFC 9266).
	BoundTLS Binding = "bound"
	// InnerTLS: something in between ended TLS; the peers run TLS 1.3 with
	// mutual certificates inside it.
	InnerTLS Binding = "inner"
)

// Identity is one end's key and certificate, and the roots it accepts peers from.
type Identity struct {
	// Certificate holds the Ed25519 key and the chain issued by our CA.
	Certificate tls.Certificate
	// Roots are the CA certificates pinned at enrolment.
	Roots *x509.CertPool
	// VerifyPeer decides on the peer's verified leaf (revocation, node kind);
	// nil accepts any leaf under Roots with the right role.
	VerifyPeer func(leaf *x509.Certificate) error
}

// Info describes a session.
type Info struct {
	Transport Transport
	Binding   Binding
	// Peer is the other end's verified certificate.
	Peer *x509.Certificate
	// Remote is the network address of the other end as seen here (behind a
	// load balancer: the load balancer's).
	Remote  netip.AddrPort
	Started time.Time
}

// Stats are counters of a session since it began.
type Stats struct {
	BytesIn, BytesOut uint64
	Streams           int // open now
	StreamsTotal      uint64
	RTT               time.Duration // last ping; 0 before the first
}

// Session is one live tunnel. Safe for concurrent use.
type Session interface {
	// Open starts a stream without waiting for the peer. It fails only when
	// the session is closed, draining or at its stream limit.
	Open(ctx context.Context, p wire.Preface) (Stream, error)
	// Accept waits for the next stream opened by the peer. Its preface is
	// already read and valid. The caller must Confirm or Refuse it.
	Accept(ctx context.Context) (Stream, error)
	// Ping measures one application round trip.
	Ping(ctx context.Context) (time.Duration, error)
	// Close ends the session and every stream in it; reason (may be nil) is
	// told to the peer. It is idempotent and waits for the session's goroutines.
	Close(reason *wire.Error) error
	// Done is closed when the session has ended; Err then says why: the
	// peer's *wire.Error if it gave one, else an error unwrapping to net.ErrClosed.
	Done() <-chan struct{}
	Err() error
	Info() Info
	Stats() Stats
}

// Stream is one bidirectional byte pipe. Deadlines work as on a net.Conn.
// Close without CloseWrite discards what the peer still sends.
type Stream interface {
	net.Conn
	Preface() wire.Preface
	// CloseWrite ends this direction; the peer reads io.EOF after the last byte.
	CloseWrite() error
	// Reset aborts both directions; the peer's Read returns why.
	Reset(why *wire.Error) error
	// Accepted waits until the acceptor confirmed (nil) or refused (*wire.Error).
	// Only for the opener; reading does the same implicitly.
	Accepted(ctx context.Context) error
	// Confirm tells the opener that its destination is connected. Writing
	// confirms implicitly. Only for the acceptor.
	Confirm() error
	// Refuse tells the opener why not, and closes the stream. Only for the acceptor.
	Refuse(why *wire.Error) error
}
