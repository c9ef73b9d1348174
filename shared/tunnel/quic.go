package tunnel

import (
	"context"
	"net"
)

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
