// Package mitm is the explicit proxy of web sessions. Carriers connect by TLS
// with their node's certificate and name a session with its key; inside, a
// browser speaks to an HTTP proxy. TLS to servers ends here, with certificates
// of our own authority, and each request inside is decided on by itself:
// against the session's rules, and against the host the tunnel was opened for.
//
// Nothing is forwarded unread, and nothing is dialled that was not allowed.
package mitm

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/tlsconn"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
	"caponier/webproxy/internal/session"
)

const (
	handshakeTime = 15 * time.Second
	headerTime    = 60 * time.Second
	idleTime      = 5 * time.Minute
	maxHeader     = 128 << 10
	maxPreamble   = 256
)

// Config is what a Server needs.
type Config struct {
	Sessions  *session.Manager
	Authority *Authority
	// Credentials are the node's own, asked for each handshake.
	Credentials func() (tls.Certificate, *x509.CertPool, error)
	// MaxConns bounds the connections of all sessions together.
	MaxConns int
	Log      *slog.Logger
	Now      func() time.Time // nil: time.Now
	// Left is after how long a held page that is not there any more counts as
	// closed; 0: 15 s.
	Left time.Duration
}

// Server serves the connections of browsers. Safe for concurrent use.
type Server struct {
	c     Config
	outer *http.Server // speaks to the browser as a proxy
	inner *http.Server // speaks inside CONNECT
	in    *handoff     // connections to outer
	inIn  *handoff     // connections to inner

	carriers *tls.Config
	holds    *holds
	conns    atomic.Int64
	work     sync.WaitGroup
	Counts
}

// Counts are counters for metrics.
type Counts struct {
	Requests, Blocked, Injected, Failed, Refused atomic.Uint64
	BytesIn, BytesOut                            atomic.Uint64
	Held                                         atomic.Uint64
}

// New makes a Server; Run must run beside its listeners.
func New(c Config) *Server {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Left == 0 {
		c.Left = 15 * time.Second
	}
	s := &Server{c: c, holds: newHolds(), in: newHandoff(), inIn: newHandoff()}
	s.carriers = s.carrierTLS()
	logger := slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)
	s.outer = &http.Server{Handler: http.HandlerFunc(s.proxy), ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, ErrorLog: logger,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		Protocols:   protocols(false)}
	s.inner = &http.Server{Handler: http.HandlerFunc(s.inside), ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, ErrorLog: logger,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, tunnelOf(c))
		},
		Protocols: protocols(true),
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 128, MaxReceiveBufferPerConnection: 4 << 20, MaxReceiveBufferPerStream: 1 << 20, MaxReadFrameSize: 64 << 10}}
	return s
}

func protocols(h2 bool) *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(h2)
	return &p
}

type connKey struct{}

// Run serves until ctx ends; every connection is closed then.
func (s *Server) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.serve(s.outer, s.in) })
	wg.Go(func() { s.serve(s.inner, s.inIn) })
	<-ctx.Done()
	s.in.Close()
	s.inIn.Close()
	err := errors.Join(s.outer.Close(), s.inner.Close())
	wg.Wait()
	s.work.Wait()
	return err
}

func (s *Server) serve(srv *http.Server, l net.Listener) {
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		s.c.Log.Error("proxy server", telemetry.KeyErr, err)
	}
}

// ListenCarriers accepts carriers on l (18443) until ctx ends.
func (s *Server) ListenCarriers(ctx context.Context, l net.Listener) error {
	return s.listen(ctx, l, s.admitCarrier)
}

// ListenClear accepts API clients on l (18080) until ctx ends. Each request
// names its session: Proxy-Authorization: Basic <session>:<key>.
func (s *Server) ListenClear(ctx context.Context, l net.Listener) error {
	return s.listen(ctx, l, func(_ context.Context, c net.Conn) error {
		if !s.in.push(&proxied{Conn: c, leave: func() {}}) {
			return net.ErrClosed
		}
		return nil
	})
}

// ServeStream serves a connection that core brings for a session of API
// clients, and returns when it is over. As on the cleartext port each request
// gives the session's key; of another session it is refused.
func (s *Server) ServeStream(ctx context.Context, st tunnel.Stream) {
	p := st.Preface()
	ses := s.c.Sessions.Find(p.Connection)
	if p.Dest != wire.SessionProxy || ses == nil || ses.Revision().Carrier != "" {
		s.Refused.Add(1)
		_ = st.Refuse(wire.Errorf(wire.CodeRefused, "there is no such session for API clients here"))
		return
	}
	if s.conns.Add(1) > int64(s.c.MaxConns) {
		s.conns.Add(-1)
		s.Refused.Add(1)
		_ = st.Refuse(wire.Errorf(wire.CodeLimit, "the webproxy has all the connections it takes"))
		return
	}
	over := make(chan struct{})
	closed := sync.OnceFunc(func() { s.conns.Add(-1); close(over) })
	stop := context.AfterFunc(ctx, func() { st.Close() })
	defer stop()
	if st.Confirm() != nil || !s.in.push(&proxied{Conn: &counted{Conn: st, over: closed}, only: ses, leave: func() {}}) {
		closed()
		st.Close()
		return
	}
	select {
	case <-over:
	case <-ctx.Done(): // the tunnel is lost
	}
}

// listen accepts; admit takes over a connection or returns why not.
func (s *Server) listen(ctx context.Context, l net.Listener, admit func(context.Context, net.Conn) error) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || isTemporary(err) {
				if !pauseFor(ctx, 50*time.Millisecond) {
					return nil
				}
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		if s.conns.Add(1) > int64(s.c.MaxConns) {
			s.conns.Add(-1)
			s.Refused.Add(1)
			c.Close()
			continue
		}
		c = &counted{Conn: c, over: sync.OnceFunc(func() { s.conns.Add(-1) })}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			if err := admit(ctx, c); err != nil {
				s.Refused.Add(1)
				s.c.Log.Info("connection refused", telemetry.KeyRemote, c.RemoteAddr().String(), telemetry.KeyErr, err)
				c.Close()
			}
		})
	}
}

// isTemporary reports whether accepting may go on: too many open files.
func isTemporary(err error) bool {
	return strings.Contains(err.Error(), "too many open files")
}

func pauseFor(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

type counted struct {
	net.Conn
	over func()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	c.over()
	return c.Conn.Close()
}

// carrierTLS is TLS with carriers. Tickets are shared by all connections, and
// the chain is verified anew when one is used.
func (s *Server) carrierTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, roots, err := s.c.Credentials()
		if err != nil {
			return nil, err
		}
		return &tls.Config{
			MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert,
			DynamicRecordSizingDisabled: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				kind, _, err := Peer(cs.PeerCertificates, roots)
				if err == nil && kind != string(wire.Carrier) {
					err = fmt.Errorf("a node of kind %.32s is no carrier", kind)
				}
				return err
			},
		}, nil
	}}
}

// admitCarrier proves who connects and for which session, and hands the
// connection to the proxy.
func (s *Server) admitCarrier(ctx context.Context, raw net.Conn) error {
	c := tlsconn.Server(raw, s.carriers)
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := c.HandshakeContext(hctx); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	_, node, ok := tunnel.PeerName(c.ConnectionState().PeerCertificates[0]) // verified
	if !ok {
		return errors.New("the certificate names no node")
	}
	if err := c.SetReadDeadline(s.c.Now().Add(handshakeTime)); err != nil {
		return fmt.Errorf("preamble: %w", err)
	}
	id, key, err := preamble(c)
	if err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("preamble: %w", err)
	}
	ses := s.c.Sessions.Find(id)
	if ses == nil {
		return errors.New("no such session")
	}
	if !ses.Admits(node, key) {
		fields := map[string]string{"reason": "foreign_carrier", "carrier": node}
		if err := ses.Event("blocked", fields); err != nil {
			s.c.Log.Warn("event", telemetry.KeySession, id, telemetry.KeyErr, err)
		}
		s.Blocked.Add(1)
		return fmt.Errorf("session %s is not that of carrier %s", id, node)
	}
	leave, entered := ses.Enter(func() { raw.Close() })
	if !entered {
		return fmt.Errorf("session %s has its %d connections", id, session.MaxConns)
	}
	if !s.in.push(&proxied{Conn: c, session: ses, leave: leave}) {
		leave()
		return net.ErrClosed
	}
	return nil
}

// Peer verifies a node's chain under the fleet's roots and returns its kind
// and ID.
func Peer(chain []*x509.Certificate, roots *x509.CertPool) (kind, id string, err error) {
	if len(chain) == 0 {
		return "", "", errors.New("no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}); err != nil {
		return "", "", err
	}
	kind, id, ok := tunnel.PeerName(chain[0])
	if !ok {
		return "", "", errors.New("the certificate names no node")
	}
	return kind, id, nil
}

// preamble reads "CAPONIER/1 <session> <key>\r\n", and not a byte more.
func preamble(r io.Reader) (id, key string, err error) {
	var b [maxPreamble]byte
	for n := range b {
		if _, err := io.ReadFull(r, b[n:n+1]); err != nil {
			return "", "", fmt.Errorf("preamble: %w", err)
		}
		if b[n] != '\n' {
			continue
		}
		line, crlf := strings.CutSuffix(string(b[:n]), "\r")
		words := strings.Split(line, " ")
		if !crlf || len(words) != 3 || words[0] != "CAPONIER/1" || words[1] == "" || words[2] == "" {
			return "", "", errors.New("the preamble is malformed")
		}
		return words[1], words[2], nil
	}
	return "", "", errors.New("the preamble is too long")
}

// proxied is a connection of a session's browser. Without a session (the
// cleartext port) each request brings its own.
type proxied struct {
	net.Conn
	session *session.Session
	// only is the session that requests may name; nil: any.
	only  *session.Session
	leave func()
}

// Close implements net.Conn.
func (p *proxied) Close() error {
	p.leave()
	return p.Conn.Close()
}

// inTunnel is a connection inside CONNECT.
type inTunnel struct {
	net.Conn
	r         *bufio.Reader
	session   *session.Session
	scheme    string
	authority string
}

// tunnelOf is the tunnel that a connection to the inner server came through.
func tunnelOf(c net.Conn) net.Conn {
	for {
		below, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return c
		}
		c = below.NetConn()
	}
}

// Read implements net.Conn.
func (t *inTunnel) Read(b []byte) (int, error) { return t.r.Read(b) }

// handoff is a listener of connections that somebody else accepted.
type handoff struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newHandoff() *handoff {
	return &handoff{ch: make(chan net.Conn), done: make(chan struct{})}
}

func (h *handoff) push(c net.Conn) bool {
	select {
	case h.ch <- c:
		return true
	case <-h.done:
		return false
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.ch:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return &net.UnixAddr{Name: "proxy", Net: "unix"} }

// named finds the session of a request on the cleartext port.
func (s *Server) named(r *http.Request) *session.Session {
	text, ok := strings.CutPrefix(r.Header.Get("Proxy-Authorization"), "Basic ")
	if !ok {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	id, key, ok := strings.Cut(string(b), ":")
	ses := s.c.Sessions.Find(id)
	// Admits only sessions that no carrier has: a browser's key is worth nothing here.
	if !ok || ses == nil || !ses.Admits("", key) {
		return nil
	}
	return ses
}
