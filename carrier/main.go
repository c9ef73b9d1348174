// Command caponier-carrier runs browsers for people's web sessions: each in a
// container without a network, whose only way out is the session's webproxy. It
// dials out to core and to webproxies, and opens no port.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/session"
	"caponier/shared/control"
	"caponier/shared/dial"
	"caponier/shared/edge"
	"caponier/shared/node"
	"caponier/shared/spool"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

func main() { os.Exit(binary().Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

func binary() *node.Program[Config] {
	return &node.Program[Config]{
		Name: "caponier-carrier", Kind: wire.Carrier,
		Text: "Caponier's carrier: browsers in containers without a network.", Does: "Connect to core and run browsers",
		Defaults: defaults,
		Node:     func(c *Config) *node.Config { return &c.Config },
		Build:    build,
		Commands: []node.Command[Config]{
			{Name: "reap", Help: "Remove every browser of this carrier, live sessions too; the carrier must not be running.", Run: reap},
		},
	}
}

// work is the sessions of a node that has an identity; nil before.
type work struct {
	m atomic.Pointer[session.Manager]
	// changed has a token when core should hear the status at once.
	changed edge.News
}

// ServeHTTP implements http.Handler.
func (w *work) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	m := w.m.Load()
	if m == nil {
		http.Error(rw, "the carrier is starting", http.StatusServiceUnavailable)
		return
	}
	m.Control().ServeHTTP(rw, r)
}

func (w *work) stream(ctx context.Context, s tunnel.Stream) {
	m := w.m.Load()
	if m == nil {
		s.Refuse(wire.Errorf(wire.CodeLimit, "the carrier is starting"))
		return
	}
	m.ServeStream(ctx, s)
}

func (w *work) status(s *wire.Status) {
	if m := w.m.Load(); m != nil {
		m.Status(s)
		return
	}
	s.Web = &wire.WebCapacity{Problem: "the carrier is starting"}
}

func build(_ context.Context, cfg *Config, p *node.Parts) error {
	w := work{changed: make(edge.News, 1)}
	enrolled := make(chan struct{}, 1)
	ec := cfg.Edge(wire.Carrier, p.Log)
	ec.Control, ec.Stream, ec.Status = &w, w.stream, w.status
	ec.Changed = w.changed
	ec.Welcomed = func(wire.Welcome) error {
		select {
		case enrolled <- struct{}{}:
		default:
		}
		return nil
	}
	e, err := p.Edge(ec)
	if err != nil {
		return err
	}
	if e.Info().NodeID != "" { // sessions of a former process need no core
		enrolled <- struct{}{}
	}
	p.Go("sessions", func(ctx context.Context) error {
		select {
		case <-enrolled:
		case <-ctx.Done():
			return nil
		}
		return serve(ctx, cfg, e, &w, p.Log)
	})
	meter(p, &w)
	return nil
}

func engine(cfg *Config, id string, log *slog.Logger) (*browser.Engine, error) {
	profile, err := cfg.profile()
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	images, _ := cfg.browsers()
	return browser.New(browser.Config{Host: cfg.Docker, Images: images, Node: id, Seccomp: profile, Limits: cfg.limits(), Log: log})
}

// serve runs sessions until ctx ends.
func serve(ctx context.Context, cfg *Config, e *edge.Edge, w *work, log *slog.Logger) error {
	scanners, err := dial.ParsePrefixes("scanners", cfg.Scanners)
	if err != nil {
		return err
	}
	docker, err := engine(cfg, e.Info().NodeID, log)
	if err != nil {
		return err
	}
	_, warm := cfg.browsers()
	m, err := session.New(session.Config{
		Engine: docker, RunDir: cfg.RunDir, StateDir: filepath.Join(cfg.State, "sessions"), Warm: warm, Max: cfg.Max,
		Room: cfg.room(), Spool: int64(cfg.SpoolMB) << 20, Credentials: e.Credentials,
		Connected: func() bool { return e.Session() != nil },
		Changed:   w.changed.Tell,
		Authority: func(ctx context.Context) (a wire.WebAuthority, err error) {
			return a, call(ctx, e, http.MethodGet, wire.PathWebAuthority, nil, &a)
		},
		Ended: func(ctx context.Context, end wire.WebEnded) error {
			return call(ctx, e, http.MethodPost, wire.PathWebEnded, end, nil)
		},
		Post: spool.Post(e.Session), Scan: scanner{dial.New(dial.Config{Rules: dial.Rules{Exempt: scanners}})}.scan, ScanSpace: cfg.ScanMB << 20, Log: log,
	})
	if err != nil {
		return errors.Join(err, docker.Close())
	}
	w.m.Store(m)
	return errors.Join(m.Run(ctx), docker.Close())
}

// call asks core over the tunnel that there is.
func call(ctx context.Context, e *edge.Edge, method, path string, in, out any) error {
	s := e.Session()
	if s == nil {
		return errors.New("no tunnel to core")
	}
	return control.Call(ctx, s, method, path, in, out)
}

// reap removes what this carrier has, for those who take it off a machine.
func reap(ctx context.Context, cfg *Config, log *slog.Logger) error {
	e, err := edge.New(cfg.Edge(wire.Carrier, log)) // locks the state: not beside a running one
	if err != nil {
		return err
	}
	defer e.Close()
	id := e.Info().NodeID
	if id == "" {
		return nil
	}
	docker, err := engine(cfg, id, log)
	if err != nil {
		return err
	}
	defer docker.Close()
	found, err := docker.List(ctx)
	if err != nil {
		return err
	}
	for _, c := range found {
		err = errors.Join(err, docker.Remove(ctx, c.ID))
	}
	log.Info("browsers removed", "count", len(found))
	return errors.Join(err, os.RemoveAll(filepath.Join(cfg.State, "sessions")), os.RemoveAll(cfg.RunDir))
}

func meter(p *node.Parts, w *work) {
	capacity := func(f func(wire.WebCapacity) int) func() float64 {
		return func() float64 {
			if m := w.m.Load(); m != nil {
				return float64(f(m.Capacity()))
			}
			return 0
		}
	}
	count := func(f func(session.Counts) uint64) func() float64 {
		return func() float64 {
			if m := w.m.Load(); m != nil {
				return float64(f(m.Counts()))
			}
			return 0
		}
	}
	p.Gauge("sessions", "Sessions now.", capacity(func(c wire.WebCapacity) int { return c.Live }))
	p.Gauge("parked_browsers", "Browsers that wait for a user.", capacity(func(c wire.WebCapacity) int { return c.Warm }))
	p.Gauge("room_sessions", "Sessions that still fit.", capacity(func(c wire.WebCapacity) int { return c.Room }))
	p.Counter("warm_sessions", "Sessions that began with a parked browser.", count(func(c session.Counts) uint64 { return c.Warm }))
	p.Counter("cold_sessions", "Sessions whose browser had to be started.", count(func(c session.Counts) uint64 { return c.Cold }))
	p.Counter("refused_sessions", "Sessions that were refused.", count(func(c session.Counts) uint64 { return c.Refused }))
	p.Counter("failed_sessions", "Sessions whose browser could not be started.", count(func(c session.Counts) uint64 { return c.Failed }))
	p.Counter("ended_sessions", "Sessions that ended.", count(func(c session.Counts) uint64 { return c.Ended }))
	p.Counter("unscanned_files", "Files that were refused because too much was being scanned.", count(func(c session.Counts) uint64 { return c.Unscanned }))
	p.Gauge("scan_bytes", "Bytes of files that wait while they are scanned.", func() float64 {
		if m := w.m.Load(); m != nil {
			return float64(m.Scanning())
		}
		return 0
	})
	p.Health.Add("browsers", true, func(ctx context.Context) error {
		m := w.m.Load()
		if m == nil {
			return errors.New("the carrier is starting")
		}
		return m.Ready(ctx)
	})
}
