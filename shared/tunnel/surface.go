package tunnel

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
)

// Dial opens a tunnel to a core: over the transport named in cfg, or racing
// QUIC against wss and keeping the first that stands.
func Dial(ctx context.Context, cfg DialConfig) (Session, error) { panic("contract") }

// AcceptWSS answers an upgrade request and returns the authenticated session.
// On error the request has been answered. The http.Server's listener should
// be wrapped with Listener, below TLS.
func AcceptWSS(w http.ResponseWriter, r *http.Request, cfg AcceptConfig) (Session, error) {
	panic("contract")
}

// DialPinned opens a byte pipe to a core whose CA is known only by the
// SHA-256 of its SubjectPublicKeyInfo: a websocket at url (wss, https, ws or
// http) with TLS 1.3 inside. The client shows no certificate.
func DialPinned(ctx context.Context, url string, pin [32]byte) (net.Conn, error) { panic("contract") }

// AcceptPinned is the server's end of DialPinned. cert's chain must include the CA.
func AcceptPinned(w http.ResponseWriter, r *http.Request, cert tls.Certificate) (net.Conn, error) {
	panic("contract")
}

// QUICListener accepts tunnels over QUIC.
type QUICListener struct{}

// ListenQUIC accepts tunnels on pc. cfg is asked anew for each handshake, so
// that a renewed identity needs no restart.
func ListenQUIC(pc net.PacketConn, cfg func() AcceptConfig) (*QUICListener, error) {
	panic("contract")
}

// Accept returns the next authenticated session.
func (l *QUICListener) Accept(ctx context.Context) (Session, error) { panic("contract") }

// Close stops accepting and ends the sessions. It does not close the PacketConn.
func (l *QUICListener) Close() error { panic("contract") }

// Listener wraps the TCP listener below a TLS server so that tunnels accepted
// on it write in large batches and read without holding a buffer while idle.
func Listener(l net.Listener) net.Listener { panic("contract") }

// Counters are told the bytes that Relay moved; nil functions are skipped.
type Counters struct {
	AB func(n int) // bytes from a to b
	BA func(n int) // bytes from b to a
}

// Relay copies both ways between a and b until both directions have ended or
// ctx is done, keeping half-close, and closes both. It holds no buffer while
// a direction is idle.
func Relay(ctx context.Context, a, b net.Conn, c Counters) (ab, ba int64, err error) {
	panic("contract")
}

// Pipe returns two connected sessions in memory, for tests of other packages.
// The given infos are what each end's Info returns.
func Pipe(client, server Info) (Session, Session) { panic("contract") }
