// Command caponier-router lets a person's machine speak to network targets for
// as long as a Caponier core justifies it, and cuts what it no longer does. It
// dials out to core and opens no port.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"caponier/router/internal/enforce"
	"caponier/router/internal/logger"
	"caponier/router/internal/nft"
	"caponier/router/internal/program"
	"caponier/router/internal/sshprogram"
	"caponier/shared/node"
	"caponier/shared/wire"
)

func main() { os.Exit(binary().Main(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

func binary() *node.Program[Config] {
	onKernel := func(f func(context.Context, nft.Config) error) func(context.Context, *Config, *slog.Logger) error {
		return func(ctx context.Context, cfg *Config, log *slog.Logger) error {
			return kernelHint(f(ctx, cfg.NFTables.table(log)))
		}
	}
	return &node.Program[Config]{
		Name: "caponier-router", Kind: wire.Router,
		Text: "Caponier's router: access to network targets, as long as core justifies it.", Does: "Connect to core and enforce",
		Defaults: defaults,
		Node:     func(c *Config) *node.Config { return &c.Config },
		Build:    build,
		Commands: []node.Command[Config]{
			{Name: "latch", Help: "Close this machine for forwarding until the router runs; for early boot.", Run: onKernel(nft.Latch)},
			{Name: "uninstall", Help: "Remove the router's rules and its latch: this machine forwards again as it did before.", Run: onKernel(nft.Remove)},
		},
	}
}

func build(ctx context.Context, cfg *Config, p *node.Parts) error {
	// The state directory is locked first: two routers must not share a backend.
	var control late
	ec := cfg.Edge(wire.Router, p.Log)
	ec.Control = &control
	if _, err := p.Edge(ec); err != nil {
		return err
	}
	b, changed, err := open(ctx, cfg, p)
	if err != nil {
		return err
	}
	r := enforce.New(enforce.Config{Backend: b, Changed: changed, MaxLease: cfg.MaxLease.Std(), Log: p.Log})
	control.set(r)
	p.Close(r.Close)
	p.Go("enforce", r.Run)
	meter(p, r)
	p.Log.Info("enforcing", "type", cfg.Type)
	return nil
}

// open makes the backend, which may be a part of the program; changed tells of
// changes by others, if the backend can.
func open(ctx context.Context, cfg *Config, p *node.Parts) (enforce.Backend, <-chan struct{}, error) {
	var runner program.Runner
	var err error
	switch cfg.Type {
	case typeLogger:
		p.Log.Warn("this router only logs: it opens and closes nothing")
		return logger.New(p.Log), nil, nil
	case typeExec:
		runner, err = program.NewLocal(cfg.Program.Path)
	case typeSSHExec:
		runner, err = sshprogram.New(sshprogram.Config{Address: cfg.SSH.address(), User: cfg.SSH.User, KeyFile: cfg.SSH.KeyFile,
			HostKey: cfg.SSH.HostKey, Command: cfg.Program.Path, Log: p.Log})
	default:
		return openKernel(ctx, cfg, p)
	}
	if err != nil {
		return nil, nil, err
	}
	x := cfg.Program
	called := cfg.Name
	if called == "" {
		if called, err = os.Hostname(); err != nil {
			return nil, nil, fmt.Errorf("host name: %w", err)
		}
	}
	b, err := program.New(program.Config{Runner: runner, Type: cfg.Type, Legacy: x.Legacy, Name: called, Parameters: []byte(x.Parameters),
		State: cfg.State, Quick: x.Timeout.Std(), Long: x.SyncTimeout.Std(), Lease: x.Lease.Std(), CheckEvery: x.CheckEvery.Std(), Parallel: x.Parallel, Log: p.Log})
	return b, nil, err
}

// meter registers what is known of the rules, for metrics and readiness.
func meter(p *node.Parts, r *enforce.Router) {
	gauge := func(name, help string, f func(enforce.Status) float64) {
		p.Gauge(name, help, func() float64 { return f(r.Status()) })
	}
	counter := func(name, help string, f func(enforce.Counts) uint64) {
		p.Counter(name, help, func() float64 { return float64(f(r.Status().Counts)) })
	}
	gauge("certain", "1 while it is certain what is enforced.", func(s enforce.Status) float64 { return yes(s.Sure) })
	gauge("sessions", "Sessions enforced now.", func(s enforce.Status) float64 { return float64(s.Sessions) })
	gauge("ending_sessions", "Sessions whose removal has failed and is tried again.", func(s enforce.Status) float64 { return float64(s.Ending) })
	gauge("lease_seconds", "Time left of core's last lease.", func(s enforce.Status) float64 { return s.Lease.Seconds() })
	counter("changes", "States and changes applied.", func(c enforce.Counts) uint64 { return c.Applied })
	counter("refused_changes", "States and changes that were not applied.", func(c enforce.Counts) uint64 { return c.Refused })
	counter("failed_sessions", "Sessions that could not be added.", func(c enforce.Counts) uint64 { return c.Failed })
	counter("retried_removals", "Removals tried again.", func(c enforce.Counts) uint64 { return c.Retried })
	counter("leases", "Leases from core that were honoured.", func(c enforce.Counts) uint64 { return c.Renewals })
	counter("ignored_leases", "Leases from core for another state than the one enforced.", func(c enforce.Counts) uint64 { return c.Ignored })
	counter("foreign_changes", "Times that somebody else changed the rules.", func(c enforce.Counts) uint64 { return c.Changed })
	p.Health.Add("rules", true, func(context.Context) error {
		switch s := r.Status(); {
		case !s.Sure:
			return errors.New("waiting for core to send everything")
		case s.Ending > 0:
			return fmt.Errorf("%d sessions could not be removed yet", s.Ending)
		}
		return nil
	})
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
