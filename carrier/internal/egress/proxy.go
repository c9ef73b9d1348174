package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"caponier/shared/tlsconn"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// ProxyConfig is what a Proxy needs.
type ProxyConfig struct {
	Session string
	Address wire.WebProxyAddress
	// Credentials are this node's own, asked anew for each connection.
	Credentials func() (tls.Certificate, *x509.CertPool, error)
}

// How many connections stand ready, and for how long.
const (
	ready     = 3
	readyFor  = 15 * time.Second
	dialTime  = 10 * time.Second
	dialsLine = 64 // handshakes at one time
)

// Proxy is a session's webproxy. Some connections to it are dialled ahead while
// the browser is busy, so that a request pays for no handshake. Safe for
// concurrent use.
type Proxy struct {
	c     ProxyConfig
	cache tls.ClientSessionCache
	line  chan struct{}

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	spare []spare // guarded by mu; oldest first
	dials int     // guarded by mu; dialled ahead now
	over  bool    // guarded by mu
}

type spare struct {
	conn  Conn
	until time.Time
}

// NewProxy makes a Proxy and begins to dial.
func NewProxy(c ProxyConfig) *Proxy {
	p := &Proxy{c: c, cache: tls.NewLRUClientSessionCache(4), line: make(chan struct{}, dialsLine)}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.refill()
	return p
}

// Close closes the connections that stand ready. Those in use are their
// users'.
func (p *Proxy) Close() {
	p.stop()
	p.mu.Lock()
	p.over = true
	left := p.spare
	p.spare = nil
	p.mu.Unlock()
	for _, s := range left {
		s.conn.Close()
	}
	p.wg.Wait()
}

// Dial implements Upstream.
func (p *Proxy) Dial(ctx context.Context) (Conn, error) {
	defer p.refill()
	if c := p.take(); c != nil {
		return c, nil
	}
	select {
	case p.line <- struct{}{}:
		defer func() { <-p.line }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return p.dial(ctx)
}

// take returns a connection that stands ready, or nil.
func (p *Proxy) take() Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for len(p.spare) > 0 {
		s := p.spare[len(p.spare)-1] // the newest
		p.spare = p.spare[:len(p.spare)-1]
		if now.Before(s.until) {
			return s.conn
		}
		s.conn.Close()
	}
	return nil
}

// refill dials ahead. What is not used in time is closed, and nothing is
// dialled again until somebody asks: an idle session holds no connection.
func (p *Proxy) refill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; !p.over && len(p.spare)+p.dials < ready; p.dials++ {
		p.wg.Go(func() {
			c, err := p.dial(p.ctx)
			p.mu.Lock()
			p.dials--
			if err != nil || p.over {
				p.mu.Unlock()
				if err == nil {
					c.Close()
				}
				return
			}
			s := spare{c, time.Now().Add(readyFor)}
			p.spare = append(p.spare, s)
			p.mu.Unlock()
			t := time.NewTimer(readyFor)
			defer t.Stop()
			select {
			case <-t.C:
				p.drop(s)
			case <-p.ctx.Done():
			}
		})
	}
}

// drop closes a connection that still stands ready.
func (p *Proxy) drop(s spare) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, o := range p.spare {
		if o.conn == s.conn {
			p.spare = append(p.spare[:i], p.spare[i+1:]...)
			s.conn.Close()
			return
		}
	}
}

// dial opens a connection and says whose it is.
func (p *Proxy) dial(ctx context.Context) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	cert, roots, err := p.c.Credentials()
	if err != nil {
		return nil, fmt.Errorf("dial webproxy: %w", err)
	}
	var nd net.Dialer
	raw, err := nd.DialContext(ctx, "tcp", p.c.Address.Address)
	if err != nil {
		return nil, fmt.Errorf("dial webproxy: %w", err)
	}
	c := tlsconn.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientSessionCache: p.cache,
		ServerName: "webproxy.caponier.internal", // names the session to resume; nobody checks it
		// Node certificates carry no host names and are not for servers: who
		// the peer is decides VerifyConnection, on resumed sessions too.
		InsecureSkipVerify:          true,
		VerifyConnection:            func(cs tls.ConnectionState) error { return p.verify(cs, roots) },
		DynamicRecordSizingDisabled: true, // the browser's records are inside
	})
	line := fmt.Sprintf("CAPONIER/1 %s %s\r\n", p.c.Session, p.c.Address.Key)
	err = c.HandshakeContext(ctx)
	if err == nil {
		err = c.SetWriteDeadline(time.Now().Add(writeTime))
	}
	if err == nil {
		_, err = c.Write([]byte(line))
	}
	if err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial webproxy: %w", err)
	}
	return c, nil
}

// verify takes only the node that core named, and only as a webproxy.
func (p *Proxy) verify(cs tls.ConnectionState, roots *x509.CertPool) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the webproxy has no certificate")
	}
	leaf := cs.PeerCertificates[0]
	inter := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		inter.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return err
	}
	kind, id, ok := tunnel.PeerName(leaf)
	if !ok || kind != string(wire.WebProxy) || id != p.c.Address.NodeID {
		return fmt.Errorf("the peer is %s %s, not webproxy %s", kind, id, p.c.Address.NodeID)
	}
	return nil
}
