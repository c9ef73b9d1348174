// Command caponier-extender makes a private network reachable for a Caponier
// core: it dials out to core, and connects to hosts of its network when core
// asks and its rules allow it. It runs without root and opens no port but, if
// configured, the host-deployment listener towards its own network.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"time"

	"caponier/extender/internal/hostdeploy"
	"caponier/extender/internal/relay"
	"caponier/shared/edge"
	"caponier/shared/node"
	"caponier/shared/wire"
)

func main() { os.Exit(binary().Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

func binary() *node.Program[Config] {
	return &node.Program[Config]{
		Name: "caponier-extender", Kind: wire.Extender,
		Text: "Caponier's relay into a private network.", Does: "Connect to core and relay",
		Defaults: defaults,
		Node:     func(c *Config) *node.Config { return &c.Config },
		Build:    build,
	}
}

func build(_ context.Context, cfg *Config, p *node.Parts) error {
	// Bytes are moved, not kept: a small heap target costs nothing here.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	rules, err := cfg.Rules.parse()
	if err != nil {
		return err
	}
	r := relay.New(relay.Config{Rules: rules, Resolver: cfg.resolver(), FlowIdle: cfg.UDPIdle.Std(), Log: p.Log})
	ec := cfg.Edge(wire.Extender, p.Log)
	ec.Stream, ec.Control, ec.Status = r.ServeStream, r.Control(), r.Status
	ec.Welcomed = func(w wire.Welcome) error { return r.Narrow(w.Rules) }
	var door func(*edge.Edge)
	if !cfg.Deploy.Listen.Off() {
		if door, ec.Deploy, err = openDoor(cfg, p); err != nil {
			return err
		}
	}
	e, err := p.Edge(ec)
	if err != nil {
		return err
	}
	if door != nil {
		door(e)
	}
	meter(p, r)
	return nil
}

// openDoor prepares the host-deployment listener; the returned function has it served.
func openDoor(cfg *Config, p *node.Parts) (func(*edge.Edge), *wire.DeployListener, error) {
	if err := os.MkdirAll(cfg.State, 0o700); err != nil {
		return nil, nil, fmt.Errorf("state directory: %w", err)
	}
	cert, pin, err := hostdeploy.Certificate(cfg.State, time.Now())
	if err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", string(cfg.Deploy.Listen))
	if err != nil {
		return nil, nil, fmt.Errorf("host deployment listener: %w", err)
	}
	p.Log.Info("host deployment listener", "address", l.Addr().String(), "pin", pin)
	start := func(e *edge.Edge) {
		h := hostdeploy.Handler(hostdeploy.Config{Session: e.Session, Log: p.Log})
		p.Go("host deployment", func(ctx context.Context) error { return hostdeploy.Serve(ctx, l, cert, h, p.Log) })
	}
	return start, &wire.DeployListener{Address: l.Addr().String(), Pin: pin}, nil
}

// meter registers the relay's counts.
func meter(p *node.Parts, r *relay.Relay) {
	status := func(f func(*wire.Status) uint64) func() float64 {
		return func() float64 {
			var s wire.Status
			r.Status(&s)
			return float64(f(&s))
		}
	}
	p.Gauge("relayed_connections", "Connections relayed now.", status(func(s *wire.Status) uint64 { return uint64(s.Streams) }))
	p.Counter("refused", "Destinations refused by rule.", status(func(s *wire.Status) uint64 { return s.Refused }))
	p.Counter("failed", "Destinations that could not be reached.", status(func(s *wire.Status) uint64 { return s.Failed }))
	p.Counter("sent_bytes", "Bytes sent to destinations.", status(func(s *wire.Status) uint64 { return s.BytesOut }))
	p.Counter("received_bytes", "Bytes received from destinations.", status(func(s *wire.Status) uint64 { return s.BytesIn }))
}
