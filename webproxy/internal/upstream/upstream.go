// Package upstream takes a session's requests to their servers: directly by
// the rules of shared/dial, or as streams through core and the extenders of a
// site. Connections are pooled for one session alone: two sessions never share
// one. Servers are believed as the target's TLS policy says; nothing of the
// process's environment (proxies, key logs) plays a part.
package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"caponier/shared/dial"
	"caponier/shared/tlsconn"
	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// Direct is the site of a rule that means: not through any extender.
const Direct = "-"

const (
	handshakeTimeout = 15 * time.Second
	idleTimeout      = 90 * time.Second
	maxHeader        = 512 << 10
	// perHost bounds the connections to one server.
	perHost = 64
)

// Config is what an Upstream needs.
type Config struct {
	// Session is the connection that streams through core belong to.
	Session string
	Policy  *webrule.Compiled
	// Site is the target's; empty: its hosts are dialled from here.
	Site string
	// Tunnel returns the live tunnel to core, or nil.
	Tunnel func() tunnel.Session
	// Resolver is for direct connections; nil: the system's.
	Resolver dial.Resolver
	// Deny are addresses that are never dialled from here.
	Deny []netip.Prefix
	// ClientCertificate fetches the certificate of an injection for one handshake.
	ClientCertificate func(ctx context.Context, in webrule.Injection, url string) (*tls.Certificate, error)
	// System are the roots believed by default; nil: the operating system's.
	System *x509.CertPool
	// Revocations is shared by all sessions; nil: one of its own.
	Revocations *Revocations
}

// Upstream is one session's way out under one revision of its policy. Safe
// for concurrent use.
type Upstream struct {
	c      Config
	roots  *x509.CertPool
	direct *dial.Dialer
	named  *dial.Dialer // for names in Policy.Private
	public *dial.Dialer // for authorities that no rule names
	names  map[string]bool
	resume tls.ClientSessionCache

	revocations *Revocations

	mu         sync.Mutex
	transports map[route]*http.Transport   // guarded by mu; bounded by the rules' sites
	notes      map[webrule.Endpoint]string // guarded by mu; what was not found out about servers
	closed     bool                        // guarded by mu
}

// maxNotes bounds the servers about which something is noted.
const maxNotes = 256

type route struct {
	site string
	h1   bool // HTTP/1.1 only
}

// New makes an Upstream.
func New(c Config) (*Upstream, error) {
	u := &Upstream{c: c, names: map[string]bool{}, transports: map[route]*http.Transport{}, notes: map[webrule.Endpoint]string{},
		resume: tls.NewLRUClientSessionCache(32), public: publicDialer(c), revocations: c.Revocations}
	if u.revocations == nil {
		u.revocations = NewRevocations(nil)
	}
	anchors, err := webrule.ParseAnchors(c.Policy.TLS.Anchors)
	if err != nil {
		return nil, fmt.Errorf("anchors: %w", err)
	}
	switch {
	case c.Policy.TLS.Only:
		u.roots = x509.NewCertPool()
	case c.System != nil:
		u.roots = c.System.Clone()
	default:
		if u.roots, err = x509.SystemCertPool(); err != nil {
			return nil, fmt.Errorf("system's certificates: %w", err)
		}
	}
	for _, a := range anchors {
		u.roots.AddCert(a)
	}
	var exempt []netip.Prefix
	for _, p := range c.Policy.Private {
		prefix, err := dial.ParsePrefix(p)
		if err != nil {
			u.names[strings.ToLower(strings.TrimSuffix(p, "."))] = true // validated: a name
			continue
		}
		exempt = append(exempt, prefix)
	}
	u.direct = dial.New(dial.Config{Rules: dial.Rules{Deny: c.Deny, Exempt: exempt}, Resolver: c.Resolver})
	everything := []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	u.named = dial.New(dial.Config{Rules: dial.Rules{Deny: c.Deny, Exempt: everything}, Resolver: c.Resolver})
	return u, nil
}

// Close closes idle connections; those in use close after their request.
func (u *Upstream) Close() {
	u.mu.Lock()
	u.closed = true
	list := u.transports
	u.transports = map[route]*http.Transport{}
	u.mu.Unlock()
	for _, t := range list {
		t.CloseIdleConnections()
	}
}

// RoundTrip sends a request that was allowed by a verdict with this site.
// Errors of the network side unwrap to *wire.Error, those of the server's
// certificate to *tls.CertificateVerificationError.
func (u *Upstream) RoundTrip(r *http.Request, site string) (*http.Response, error) {
	// A browser that speaks HTTP/1.1 is answered from HTTP/1.1: to change between
	// the versions costs more than both.
	t, err := u.transport(route{site, r.ProtoMajor == 1 || r.Header.Get("Upgrade") != ""})
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(r)
}

// Unchecked reports whether the server's certificate is not verified there.
func (u *Upstream) Unchecked(e webrule.Endpoint) bool {
	return u.c.Policy.TLS.Unchecked && e.Origin() == u.c.Policy.Origin
}

func (u *Upstream) transport(r route) (*http.Transport, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, fmt.Errorf("send request: %w", net.ErrClosed)
	}
	if t := u.transports[r]; t != nil {
		return t, nil
	}
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return u.dial(ctx, r.site, addr) },
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return u.dialTLS(ctx, r, addr)
		},
		ForceAttemptHTTP2:      !r.h1,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    16,
		MaxIdleConns:           128,
		MaxConnsPerHost:        perHost,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		ExpectContinueTimeout:  time.Second,
		ReadBufferSize:         16 << 10, // bulk passes it by
		WriteBufferSize:        16 << 10,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
	if r.h1 {
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	u.transports[r] = t
	return t, nil
}

// dial opens a connection to addr, which is host:port.
func (u *Upstream) dial(ctx context.Context, site, addr string) (net.Conn, error) {
	dest := addr
	switch {
	case site == Direct, site == "" && u.c.Site == "":
		return u.dialDirect(ctx, addr)
	case site != "" && site != u.c.Site:
		dest = site + "/" + addr
	}
	t := u.c.Tunnel()
	if t == nil {
		return nil, wire.Errorf(wire.CodeTunnelLost, "the way to %s is interrupted: there is no connection to core", addr)
	}
	// Optimistic: a refusal comes with the first Read.
	s, err := t.Open(ctx, wire.Preface{Kind: wire.StreamDial, Network: "tcp", Dest: dest, Connection: u.c.Session})
	if err != nil {
		return nil, wire.Errorf(wire.CodeTunnelLost, "the way to %s is interrupted: %s", addr, dial.Public(err).Public)
	}
	return s, nil
}

func (u *Upstream) dialDirect(ctx context.Context, addr string) (net.Conn, error) {
	d := u.direct
	if host, _, err := net.SplitHostPort(addr); err == nil && u.names[host] {
		d = u.named
	}
	return u.dialBy(ctx, d, addr)
}

// dialBy dials by rule, and never core.
func (u *Upstream) dialBy(ctx context.Context, d *dial.Dialer, addr string) (net.Conn, error) {
	c, err := d.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	if t := u.c.Tunnel(); t != nil {
		to, ok := c.RemoteAddr().(*net.TCPAddr)
		core := t.Info().Remote
		if ok && core.IsValid() && to.AddrPort().Port() == core.Port() && to.AddrPort().Addr().Unmap() == core.Addr().Unmap() {
			c.Close()
			return nil, wire.Errorf(wire.CodeRefused, "%s may not be dialled: it is core itself", addr)
		}
	}
	return c, nil
}

func (u *Upstream) dialTLS(ctx context.Context, r route, addr string) (net.Conn, error) {
	e, err := (webrule.Request{Scheme: "https", Host: addr}).Endpoint()
	if err != nil {
		return nil, wire.Errorf(wire.CodeBadRequest, "%s", err)
	}
	raw, err := u.dial(ctx, r.site, addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c := tlsconn.Client(raw, u.tlsConfig(ctx, e, r.h1))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		if _, ok := errors.AsType[*wire.Error](err); !ok && ctx.Err() != nil {
			return nil, wire.Errorf(wire.CodeTimeout, "%s did not finish the TLS handshake in time", addr)
		}
		return nil, &HandshakeError{Addr: addr, Err: err}
	}
	cs := c.ConnectionState()
	note, err := u.checkRevocation(ctx, &cs)
	if err != nil {
		raw.Close()
		return nil, &HandshakeError{Addr: addr, Err: err}
	}
	u.note(e, note)
	if cs.NegotiatedProtocol == "h2" {
		return c.Conn, nil // the client knows HTTP/2 by this type
	}
	return c, nil
}

// note keeps what was not found out about a server; empty: everything was.
func (u *Upstream) note(e webrule.Endpoint, text string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if text == "" {
		delete(u.notes, e)
		return
	}
	if _, ok := u.notes[e]; ok || len(u.notes) < maxNotes {
		u.notes[e] = text
	}
}

// Note is what was not found out about a server when it was last connected
// to: whether its certificate was revoked. Empty: nothing.
func (u *Upstream) Note(e webrule.Endpoint) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.notes[e]
}

// HandshakeError is a server with which no TLS connection could be made.
type HandshakeError struct {
	Addr string
	Err  error
}

// Error implements error.
func (e *HandshakeError) Error() string { return "TLS with " + e.Addr + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *HandshakeError) Unwrap() error { return e.Err }

// versions are TLS's by name.
var versions = map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

func (u *Upstream) tlsConfig(ctx context.Context, e webrule.Endpoint, h1 bool) *tls.Config {
	p := u.c.Policy
	c := &tls.Config{RootCAs: u.roots, ServerName: e.Host(), MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, ClientSessionCache: u.resume,
		DynamicRecordSizingDisabled: true}
	if h1 {
		c.NextProtos = []string{"http/1.1"}
	}
	if e.Origin() == p.Origin {
		c.InsecureSkipVerify = p.TLS.Unchecked
		if p.TLS.ServerName != "" {
			c.ServerName = p.TLS.ServerName
		}
		if v := versions[p.TLS.Min]; v != 0 {
			c.MinVersion = v
		}
		c.MaxVersion = versions[p.TLS.Max]
		if c.MinVersion < tls.VersionTLS12 {
			c.NextProtos = []string{"http/1.1"} // HTTP/2 needs TLS 1.2 (RFC 9113 §9.2)
		}
		if p.TLS.Legacy {
			for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
				c.CipherSuites = append(c.CipherSuites, s.ID)
			}
		}
	}
	for _, in := range p.Recipe.Injections {
		if in.Kind != webrule.ClientCert || !webrule.SameOrigin(in.Origin, e.Origin()) || c.InsecureSkipVerify && !in.Insecure {
			continue
		}
		c.ClientSessionCache = nil // each handshake is a use of its own
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return u.c.ClientCertificate(ctx, in, e.Origin()+"/")
		}
		break
	}
	return c
}
