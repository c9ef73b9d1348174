package tunnel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"caponier/shared/wire"
)

const (
	// quicStreamWindow bounds the window of one stream, quicWindow that of the
	// session, in bytes. quic-go stops every stream when the session's window is
	// full, so it must hold many streams whose readers stalled with a full
	// window: 64 here, or 512 that never were fast.
	quicStreamWindow = 8 << 20
	quicWindow       = 512 << 20
	// quicBacklog bounds sessions that wait for Accept.
	quicBacklog = 256
	// quicHandshakes bounds handshakes under way that have passed TLS.
	quicHandshakes = 1024
)

func quicConfig(lim Limits) *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout: 5 * time.Second,
		// The idle timer starts again with our first packet into the silence,
		// which is the ping: together they make DeadAfter.
		MaxIdleTimeout:                 max(lim.DeadAfter-lim.PingEvery, lim.DeadAfter/2),
		KeepAlivePeriod:                lim.PingEvery,
		InitialStreamReceiveWindow:     wire.InitialWindow,
		MaxStreamReceiveWindow:         uint64(min(lim.MaxWindow, quicStreamWindow)),
		InitialConnectionReceiveWindow: quicWindow,
		MaxConnectionReceiveWindow:     quicWindow,
		// Twice: closed streams count until the peer has heard of it. Ours is
		// the limit that is enforced.
		MaxIncomingStreams:    int64(2*lim.MaxStreams + 8),
		MaxIncomingUniStreams: -1,
	}
}

// dialQUIC opens a tunnel over QUIC: TLS 1.3 with both certificates, ending at
// core itself.
func dialQUIC(ctx context.Context, cfg DialConfig) (Session, error) {
	addr := cfg.QUICAddr
	if addr == "" {
		u, err := tunnelURL(cfg.URL)
		if err != nil {
			return nil, err
		}
		addr = hostPort(&url.URL{Scheme: "https", Host: u.Host})
	}
	s, err := startQUIC(ctx, addr, cfg)
	if err != nil {
		return nil, fmt.Errorf("dial tunnel %s over QUIC: %w", addr, err)
	}
	return s, nil
}

func startQUIC(ctx context.Context, addr string, cfg DialConfig) (*quicSession, error) {
	remote, err := resolveUDP(ctx, addr)
	if err != nil {
		return nil, err
	}
	network, local := "udp4", &net.UDPAddr{}
	if remote.IP.To4() == nil {
		network = "udp6"
	}
	pc, err := net.ListenUDP(network, local)
	if err != nil {
		return nil, err
	}
	tr := &quic.Transport{Conn: pc}
	closeBelow := func() { _ = tr.Close(); _ = pc.Close() }
	lim := cfg.Limits.withDefaults()
	tlsConfig := cfg.Identity.clientTLS(cfg.CoreID)
	tlsConfig.ServerName, _, _ = net.SplitHostPort(addr)
	conn, err := tr.Dial(ctx, remote, tlsConfig, quicConfig(lim))
	if err != nil {
		closeBelow()
		return nil, quicReason(err)
	}
	control, err := conn.OpenStreamSync(ctx)
	if err == nil {
		control.SetPriority(0, false)
		s := newQUICSession(conn, control, true, cfg.Limits, closeBelow)
		// The server looks at our certificate after we are through with TLS:
		// only an answer says that we are in.
		if _, err = s.Ping(ctx); err == nil {
			return s, nil
		}
		_ = s.Close(nil)
		return nil, err
	}
	_ = conn.CloseWithError(0, "")
	closeBelow()
	return nil, quicReason(err)
}

func resolveUDP(ctx context.Context, addr string) (*net.UDPAddr, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	n, err := net.DefaultResolver.LookupPort(ctx, "udp", port)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return nil, err
	}
	for _, ip := range ips {
		if ip.IP.To4() != nil {
			return &net.UDPAddr{IP: ip.IP, Port: n}, nil
		}
	}
	return &net.UDPAddr{IP: ips[0].IP, Port: n, Zone: ips[0].Zone}, nil
}

// QUICListener accepts tunnels over QUIC.
type QUICListener struct {
	tr       *quic.Transport
	l        *quic.Listener
	cfg      func() AcceptConfig
	accepted chan *quicSession
	slots    chan struct{}
	ctx      context.Context // ends with Close; only for the goroutines below
	cancel   context.CancelFunc
	workers  sync.WaitGroup

	mu       sync.Mutex
	sessions map[*quicSession]struct{} // alive; guarded by mu
	closed   bool                      // guarded by mu
}

// ListenQUIC accepts tunnels on pc. cfg is asked anew for each handshake, so
// that a renewed identity needs no restart.
func ListenQUIC(pc net.PacketConn, cfg func() AcceptConfig) (*QUICListener, error) {
	lim := cfg().Limits.withDefaults()
	tr := &quic.Transport{Conn: pc}
	l, err := tr.Listen(&tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{alpn},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := cfg().Identity
			id.VerifyPeer = nil // asked after TLS, where the answer can have words
			return id.serverTLS(), nil
		},
	}, quicConfig(lim))
	if err != nil {
		return nil, fmt.Errorf("listen for QUIC on %s: %w", pc.LocalAddr(), err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	q := &QUICListener{
		tr: tr, l: l, cfg: cfg, ctx: ctx, cancel: cancel,
		accepted: make(chan *quicSession, quicBacklog),
		slots:    make(chan struct{}, quicHandshakes),
		sessions: make(map[*quicSession]struct{}),
	}
	q.workers.Go(q.run)
	return q, nil
}

func (q *QUICListener) run() {
	for {
		conn, err := q.l.Accept(q.ctx)
		if err != nil {
			return
		}
		select {
		case q.slots <- struct{}{}:
		default:
			_ = conn.CloseWithError(quic.ApplicationErrorCode(wire.CodeLimit), "too many nodes connect at once")
			continue
		}
		q.workers.Go(func() {
			defer func() { <-q.slots }()
			q.admit(conn)
		})
	}
}

// admit verifies a new connection and queues its session.
func (q *QUICListener) admit(conn *quic.Conn) {
	cfg := q.cfg()
	refuse := func(why *wire.Error) {
		_ = conn.CloseWithError(quic.ApplicationErrorCode(why.Code), why.Public)
	}
	leaf, err := cfg.Identity.verifyClient(conn.ConnectionState().TLS.PeerCertificates)
	if err != nil {
		refuse(public(err))
		if cfg.Logger != nil {
			cfg.Logger.Warn("tunnel refused", "remote", conn.RemoteAddr().String(), "err", err)
		}
		return
	}
	timeout := cfg.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(q.ctx, timeout)
	defer cancel()
	control, err := conn.AcceptStream(ctx) // the dialler's first is the control stream
	if err != nil {
		refuse(wire.Errorf(wire.CodeTimeout, "no control stream"))
		return
	}
	control.SetPriority(0, false)
	s := newQUICSession(conn, control, false, cfg.limits(leaf), nil)
	s.info.Peer = leaf
	if !q.add(s) {
		_ = s.Close(wire.Errorf(wire.CodeDraining, "%s", wire.CodeDraining.Text()))
		return
	}
	select {
	case q.accepted <- s:
	default:
		_ = s.Close(wire.Errorf(wire.CodeLimit, "too many nodes connect at once"))
	}
}

// add remembers s until it ends, so that Close can end it.
func (q *QUICListener) add(s *quicSession) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.sessions[s] = struct{}{}
	context.AfterFunc(s.conn.Context(), func() {
		q.mu.Lock()
		delete(q.sessions, s)
		q.mu.Unlock()
	})
	return true
}

// Accept returns the next authenticated session.
func (q *QUICListener) Accept(ctx context.Context) (Session, error) {
	select {
	case s := <-q.accepted:
		return s, nil
	case <-q.ctx.Done():
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close stops accepting and ends the sessions. It does not close the PacketConn.
func (q *QUICListener) Close() error {
	q.mu.Lock()
	q.closed = true
	sessions := make([]*quicSession, 0, len(q.sessions))
	for s := range q.sessions {
		sessions = append(sessions, s)
	}
	q.mu.Unlock()
	q.cancel()
	err := q.l.Close()
	for _, s := range sessions {
		_ = s.Close(wire.Errorf(wire.CodeDraining, "%s", wire.CodeDraining.Text()))
	}
	q.workers.Wait()
	return errors.Join(err, q.tr.Close())
}

// quicReason turns quic-go's errors into ours.
func quicReason(err error) error {
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		if !e.Remote {
			return net.ErrClosed
		}
		if e.ErrorCode == 0 {
			return &lostError{errors.New("closed by the peer")}
		}
		// Through the codec, which limits code and text.
		we, perr := wire.ParseError(wire.AppendError(nil, &wire.Error{Code: wire.Code(min(e.ErrorCode, 0xffff)), Public: e.ErrorMessage}))
		if perr != nil {
			return &lostError{err}
		}
		return we
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return errSilent
	}
	if e, ok := errors.AsType[*quic.TransportError](err); ok && e.ErrorCode.IsCryptoError() {
		if _, bad := errors.AsType[x509.UnknownAuthorityError](err); bad || errors.Is(err, ErrIdentity) {
			return fmt.Errorf("%w: %w", ErrIdentity, err)
		}
	}
	return &lostError{err}
}
