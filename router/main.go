// Command caponier-router lets a person's machine speak to network targets for
// as long as a Caponier core justifies it, and cuts what it no longer does. It
// dials out to core and opens no port.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"caponier/router/internal/enforce"
	"caponier/router/internal/logger"
	"caponier/router/internal/nft"
	"caponier/router/internal/program"
	"caponier/router/internal/sshprogram"
	"caponier/shared/config"
	"caponier/shared/daemon"
	"caponier/shared/edge"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// name is the binary's.
const name = "caponier-router"

type flags struct {
	Config string `help:"Configuration file (TOML)." type:"path" placeholder:"FILE"`
	Core   string `help:"Address of core or its load balancer." placeholder:"URL"`
	State  string `help:"Directory of the node's identity." type:"path" placeholder:"DIR"`
	Type   string `help:"What enforces: nftables, exec, sshexec or logger." placeholder:"TYPE"`
}

type cli struct {
	Run struct {
		flags
		Token     string `help:"Enrolment token. Other users of this machine can read it in the process list: prefer --token-file or CAPONIER_TOKEN." placeholder:"TOKEN"`
		TokenFile string `help:"File with the enrolment token; - is standard input." placeholder:"FILE"`
	} `cmd:"" help:"Connect to core and enforce; enrols first if a token is given and there is no identity yet."`
	Latch struct {
		Config string `help:"Configuration file (TOML)." type:"path" placeholder:"FILE"`
	} `cmd:"" help:"Close this machine for forwarding until the router runs; for early boot."`
	Uninstall struct {
		Config string `help:"Configuration file (TOML)." type:"path" placeholder:"FILE"`
	} `cmd:"" help:"Remove the router's rules and its latch: this machine forwards again as it did before."`
	ConfigCmd struct {
		Check struct{ flags } `cmd:"" help:"Validate the configuration and stop."`
	} `cmd:"" name:"config" help:"Work on the configuration."`
	Version struct{} `cmd:"" help:"Print the version."`
}

// run is the whole program but for the process's exit.
func run(args, environ []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	parser, err := kong.New(&c, kong.Name(name), kong.Description("Caponier's router: access to network targets, as long as core justifies it."),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }), kong.UsageOnError())
	if err != nil {
		return daemon.Report(stderr, name, err)
	}
	k, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		return daemon.Report(stderr, name, &daemon.UsageError{Text: err.Error(), Hint: name + " --help shows the commands"})
	}
	switch k.Command() {
	case "version":
		fmt.Fprintln(stdout, name, daemon.Version)
		return daemon.ExitOK
	case "config check":
		_, err := load(c.ConfigCmd.Check.flags, environ)
		if err == nil {
			fmt.Fprintln(stdout, "the configuration is valid")
		}
		return daemon.Report(stderr, name, err)
	case "latch":
		return daemon.Run(stderr, name, func(ctx context.Context) error {
			return onKernel(ctx, c.Latch.Config, environ, stderr, nft.Latch)
		})
	case "uninstall":
		return daemon.Run(stderr, name, func(ctx context.Context) error {
			return onKernel(ctx, c.Uninstall.Config, environ, stderr, nft.Remove)
		})
	}
	return daemon.Run(stderr, name, func(ctx context.Context) error {
		cfg, err := load(c.Run.flags, environ)
		if err != nil {
			return err
		}
		if cfg.token, err = edge.FindToken(c.Run.Token, c.Run.TokenFile, cfg.TokenFile, environ); err != nil {
			return err
		}
		return serve(ctx, cfg, stderr)
	})
}

// load reads the configuration. Keys named as unneeded may be missing.
func load(f flags, environ []string, unneeded ...string) (*Config, error) {
	cfg := defaults(func(key string) string { return edge.Env(environ, key) })
	// Flags win: they are applied as if they were in the environment.
	for key, v := range map[string]string{"core": f.Core, "state": f.State, "type": f.Type} {
		if v != "" {
			environ = append(environ, config.EnvName(key)+"="+v)
		}
	}
	cfg.unneeded = unneeded
	if err := config.Load(&cfg, f.Config, environ); err != nil {
		return nil, err
	}
	return &cfg, nil
}

// serve runs the router until ctx ends.
func serve(ctx context.Context, cfg *Config, stderr io.Writer) error {
	log, err := telemetry.NewLogger(stderr, cfg.Log)
	if err != nil {
		return err
	}
	// The state directory is locked first: two routers must not share a backend.
	e, late, err := newEdge(cfg, log)
	if err != nil {
		return edge.Hint(err, wire.Router)
	}
	defer e.Close()
	g, gctx := daemon.NewGroup(ctx)
	b, changed, err := open(ctx, cfg, g, log)
	if err != nil {
		return err
	}
	r := enforce.New(enforce.Config{Backend: b, Changed: changed, MaxLease: cfg.MaxLease.Std(), Log: log})
	late.set(r)
	if !cfg.Debug.Off() {
		l, err := net.Listen("tcp", string(cfg.Debug))
		if err != nil {
			return errors.Join(fmt.Errorf("debug listener: %w", err), b.Close())
		}
		g.Go("debug", func(ctx context.Context) error { return serveDebug(ctx, l, e, r) })
	}
	log.Info("starting", "version", daemon.Version, "core", cfg.Core, "type", cfg.Type)
	if err := daemon.Notify("READY=1"); err != nil {
		log.Warn("service manager", telemetry.KeyErr, err)
	}
	g.Go("enforce", r.Run)
	g.Go("edge", func(ctx context.Context) error {
		if err := e.Run(ctx); err != nil {
			return edge.Hint(err, wire.Router)
		}
		return ctx.Err()
	})
	<-gctx.Done()
	return errors.Join(g.Wait(), r.Close())
}

// open makes the backend. A part of it may run in g; changed tells of changes
// by others, if the backend can.
func open(ctx context.Context, cfg *Config, g *daemon.Group, log *slog.Logger) (enforce.Backend, <-chan struct{}, error) {
	var runner program.Runner
	var err error
	switch cfg.Type {
	case typeLogger:
		log.Warn("this router only logs: it opens and closes nothing")
		return logger.New(log), nil, nil
	case typeExec:
		runner, err = program.NewLocal(cfg.Program.Path)
	case typeSSHExec:
		runner, err = sshprogram.New(sshprogram.Config{Address: cfg.SSH.address(), User: cfg.SSH.User, KeyFile: cfg.SSH.KeyFile,
			HostKey: cfg.SSH.HostKey, Command: cfg.Program.Path, Log: log})
	default:
		return openKernel(ctx, cfg, g, log)
	}
	if err != nil {
		return nil, nil, err
	}
	p := cfg.Program
	called := cfg.Name
	if called == "" {
		if called, err = os.Hostname(); err != nil {
			return nil, nil, fmt.Errorf("host name: %w", err)
		}
	}
	b, err := program.New(program.Config{Runner: runner, Type: cfg.Type, Legacy: p.Legacy, Name: called, Parameters: []byte(p.Parameters),
		State: cfg.State, Quick: p.Timeout.Std(), Long: p.SyncTimeout.Std(), Lease: p.Lease.Std(), CheckEvery: p.CheckEvery.Std(), Parallel: p.Parallel, Log: log})
	return b, nil, err
}

func serveDebug(ctx context.Context, l net.Listener, e *edge.Edge, r *enforce.Router) error {
	reg := telemetry.NewRegistry("router", daemon.Version)
	gauge := func(name, help string, f func(enforce.Status) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caponier_router_" + name, Help: help}, func() float64 { return f(r.Status()) }))
	}
	counter := func(name, help string, f func(enforce.Counts) uint64) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "caponier_router_" + name + "_total", Help: help},
			func() float64 { return float64(f(r.Status().Counts)) }))
	}
	gauge("connected", "1 while a tunnel to core is live.", func(enforce.Status) float64 { return yes(e.Info().Connected) })
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
	health := telemetry.NewHealth()
	health.Add("tunnel", true, func(context.Context) error {
		if i := e.Info(); !i.Connected {
			return fmt.Errorf("no tunnel to core: %s", i.LastError)
		}
		return nil
	})
	health.Add("rules", true, func(context.Context) error {
		switch s := r.Status(); {
		case !s.Sure:
			return errors.New("waiting for core to send everything")
		case s.Ending > 0:
			return fmt.Errorf("%d sessions could not be removed yet", s.Ending)
		}
		return nil
	})
	return telemetry.ServeDebug(ctx, l, reg, health)
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
