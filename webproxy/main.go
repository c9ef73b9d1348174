// Command caponier-webproxy is the way out of audited web sessions: it lets a
// session's browser reach what the target's rules allow, and puts stored
// credentials into requests so that the browser never has them.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"caponier/shared/config"
	"caponier/shared/control"
	"caponier/shared/dial"
	"caponier/shared/edge"
	"caponier/shared/node"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
	"caponier/webproxy/internal/mitm"
	"caponier/webproxy/internal/session"
)

func main() { os.Exit(binary().Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

func binary() *node.Program[Config] {
	return &node.Program[Config]{
		Name: "caponier-webproxy", Kind: wire.WebProxy,
		Text: "Caponier's proxy of audited web sessions.", Does: "Connect to core and serve web sessions",
		Defaults: defaults,
		Node:     func(c *Config) *node.Config { return &c.Config },
		Build:    build,
	}
}

// build makes all parts; nothing runs yet.
func build(_ context.Context, cfg *Config, p *node.Parts) error {
	deny, err := dial.ParsePrefixes("deny", cfg.Deny)
	if err != nil {
		return err
	}
	scanners, err := dial.ParsePrefixes("scanners", cfg.Scanners)
	if err != nil {
		return err
	}
	roots, err := readRoots("roots", cfg.Roots)
	if err != nil {
		return err
	}
	address, err := cfg.address()
	if err != nil {
		return err
	}
	// The node is made last; its tunnel is asked for when it is needed.
	var e *edge.Edge
	live := func() tunnel.Session { return e.Session() }
	changed := make(edge.News, 1)
	authority, err := mitm.NewAuthority(mitm.AuthorityConfig{Changed: changed.Tell, Log: p.Log, Ask: func(ctx context.Context, in wire.WebAuthorityAsk) (out wire.WebAuthority, err error) {
		t, err := awaitTunnel(ctx, live)
		if err != nil {
			return out, err
		}
		err = control.Call(ctx, t, http.MethodPost, wire.PathWebAuthority, in, &out)
		return out, err
	}})
	if err != nil {
		return err
	}
	sessions := session.NewManager(session.Config{Changed: changed.Tell, Tunnel: live, Max: cfg.MaxSessions, Address: address, Problem: authority.Problem, Issuer: authority.Want,
		Resolver: cfg.resolver(), Deny: deny, Scanners: scanners, System: roots, Log: p.Log})
	ec := cfg.Edge(wire.WebProxy, p.Log)
	ec.Control, ec.Status, ec.Drain, ec.Changed = sessions.Control(), sessions.Status, sessions.Drain, changed
	var proxy *mitm.Server
	ec.Stream = func(ctx context.Context, s tunnel.Stream) { proxy.ServeStream(ctx, s) }
	if e, err = p.Edge(ec); err != nil {
		return err
	}
	proxy = mitm.New(mitm.Config{Sessions: sessions, Authority: authority, Credentials: e.Credentials, MaxConns: cfg.MaxConnections, Log: p.Log})
	p.Go("sessions", sessions.Run)
	p.Go("proxy", proxy.Run)
	p.Go("authority", authority.Run)
	meter(p, authority, sessions, proxy)
	clients, err := readRoots("listen.control_clients", cfg.Listen.ControlClients)
	if err != nil {
		return err
	}
	return errors.Join(
		listen(p, "listener for carriers", cfg.Listen.Carriers, proxy.ListenCarriers),
		listen(p, "cleartext listener", cfg.Listen.Clear, proxy.ListenClear),
		listen(p, "control listener", cfg.Listen.Control, func(ctx context.Context, l net.Listener) error {
			return serveControl(ctx, l, p, sessions, e.Credentials, clients)
		}),
	)
}

// listen opens a listener at once, so that a wrong address ends the program.
func listen(p *node.Parts, what string, addr config.Addr, f func(context.Context, net.Listener) error) error {
	if addr.Off() {
		return nil
	}
	l, err := net.Listen("tcp", string(addr))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	p.Go(what, func(ctx context.Context) error { return f(ctx, l) })
	return nil
}

// readRoots reads certificates; no file is no pool.
func readRoots(key, file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s: %s holds no certificates", key, file)
	}
	return pool, nil
}

// resolver asks one server, or is nil for the system's.
func (c *Config) resolver() dial.Resolver {
	if c.Resolver == "" {
		return nil
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, c.Resolver)
	}}
}

// awaitTunnel returns the tunnel to core as soon as there is one: the first
// status after a start is to say that sessions can be taken, the next one
// comes much later.
func awaitTunnel(ctx context.Context, live func() tunnel.Session) (tunnel.Session, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if t := live(); t != nil {
			return t, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.New("no tunnel to core")
		}
	}
}
