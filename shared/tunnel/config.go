package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"caponier/shared/wire"
)

// Limits bound what one session may cost. Zero fields take the default.
type Limits struct {
	// MaxStreams is how many streams the peer may have open; default 8192.
	MaxStreams int
	// MaxOwn is how many streams this side may have open; default 8192.
	MaxOwn int
	// Backlog is how many of the peer's streams may wait for Accept; default 1024.
	Backlog int
	// MaxBuffered bounds the bytes received but not yet read, over all
	// streams; a stream that exceeds it is reset. Default 256 MiB.
	MaxBuffered int
	// MaxWindow bounds how far one stream's receive window grows; default 32 MiB.
	MaxWindow int
	// PingEvery is how often the dialling end pings; default 1.8 s. One lost
	// answer leaves time for another before DeadAfter.
	PingEvery time.Duration
	// DeadAfter is the silence after which the peer is dead; default DeadAfter.
	DeadAfter time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.MaxStreams <= 0 {
		l.MaxStreams = 8192
	}
	if l.MaxOwn <= 0 {
		l.MaxOwn = 8192
	}
	if l.Backlog <= 0 {
		l.Backlog = 1024
	}
	if l.MaxBuffered <= 0 {
		l.MaxBuffered = 256 << 20
	}
	if l.MaxWindow <= 0 {
		l.MaxWindow = 32 << 20
	}
	if l.PingEvery <= 0 {
		l.PingEvery = 1800 * time.Millisecond
	}
	if l.DeadAfter <= 0 {
		l.DeadAfter = DeadAfter
	}
	return l
}

// DialConfig says how an edge (or a core, to another core) reaches a core.
type DialConfig struct {
	// URL is core's or the load balancer's address, "https://host[:port]"
	// ("http://" only behind something that ends TLS; inner TLS then protects
	// the tunnel). An empty path means wire.PathTunnel.
	URL string
	// Identity proves who we are and says whom we trust.
	Identity Identity
	// CoreID, if set, is the only core accepted as peer.
	CoreID string
	// Header is added to the upgrade request: a load balancer's cookies.
	Header http.Header
	// OnResponse sees status and header of the answer to the upgrade request,
	// also of a refusal: a load balancer's Set-Cookie is learned here.
	OnResponse func(status int, header http.Header)
	// Transport is WSS or QUIC; empty races both (QUIC only if QUICAddr is
	// set or URL is https).
	Transport Transport
	// Prefer is the transport that gets a head start in a race: the one that
	// won the last time. Empty means QUIC.
	Prefer Transport
	// QUICAddr is host:port for QUIC; empty means that of URL.
	QUICAddr string
	// Proxy chooses an HTTP CONNECT proxy for wss; nil means
	// http.ProxyFromEnvironment.
	Proxy func(*http.Request) (*url.URL, error)
	// DialContext opens the TCP connection; nil means a net.Dialer.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Timeout bounds the whole dial; default 10 s.
	Timeout time.Duration
	Limits  Limits
	Logger  *slog.Logger
}

// AcceptConfig says how a core accepts tunnels.
type AcceptConfig struct {
	// Identity proves who we are and says whom we trust. Its Certificate's
	// chain should include the CA, so that a pinned dial can check it.
	Identity Identity
	// Timeout bounds the handshake; default 10 s.
	Timeout time.Duration
	Limits  Limits
	// LimitsOf narrows Limits for a peer whose identity is proven; nil: Limits
	// hold for all.
	LimitsOf func(peer *x509.Certificate) Limits
	Logger   *slog.Logger
}

// RefusedError is core's (or something in between's) answer to an upgrade
// request that is no 101.
type RefusedError struct {
	Status     int
	RetryAfter time.Duration // from Retry-After; 0 if absent
	Text       string        // the body, cut at wire.MaxPublic bytes
	// Wire is set when the answer was core's own.
	Wire *wire.Error
}

// Error implements error.
func (e *RefusedError) Error() string {
	if e.Wire != nil {
		return fmt.Sprintf("core refused the tunnel: %s", e.Wire.Public)
	}
	return fmt.Sprintf("no tunnel at this address: HTTP status %d: %s", e.Status, e.Text)
}

// Unwrap returns the *wire.Error, if core sent one.
func (e *RefusedError) Unwrap() error {
	if e.Wire == nil {
		return nil
	}
	return e.Wire
}

// Retryable reports whether dialling again later may help without anybody
// changing anything: true for everything but an identity or a version that
// core told us it will not accept.
func Retryable(err error) bool {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		switch e.Code {
		case wire.CodeUnauthorized, wire.CodeVersion:
			return false
		}
	}
	return true
}

// limits are those of a session with a proven peer.
func (c *AcceptConfig) limits(peer *x509.Certificate) Limits {
	if c.LimitsOf == nil {
		return c.Limits
	}
	return c.LimitsOf(peer)
}
