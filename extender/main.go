// Command caponier-extender makes a private network reachable for a Caponier
// core: it dials out to core, and connects to hosts of its network when core
// asks and its rules allow it. It runs without root and opens no port but, if
// configured, the host-deployment listener towards its own network.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"caponier/extender/internal/hostdeploy"
	"caponier/extender/internal/relay"
	"caponier/shared/config"
	"caponier/shared/daemon"
	"caponier/shared/edge"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// name is the binary's.
const name = "caponier-extender"

type flags struct {
	Config string `help:"Configuration file (TOML)." type:"path" placeholder:"FILE"`
	Core   string `help:"Address of core or its load balancer." placeholder:"URL"`
	State  string `help:"Directory of the node's identity." type:"path" placeholder:"DIR"`
}

type cli struct {
	Run struct {
		flags
		Token     string `help:"Enrolment token. Other users of this machine can read it in the process list: prefer --token-file or CAPONIER_TOKEN." placeholder:"TOKEN"`
		TokenFile string `help:"File with the enrolment token; - is standard input." placeholder:"FILE"`
	} `cmd:"" help:"Connect to core and relay; enrols first if a token is given and there is no identity yet."`
	ConfigCmd struct {
		Check struct{ flags } `cmd:"" help:"Validate the configuration and stop."`
	} `cmd:"" name:"config" help:"Work on the configuration."`
	Version struct{} `cmd:"" help:"Print the version."`
}

// run is the whole program but for the process's exit.
func run(args, environ []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	parser, err := kong.New(&c, kong.Name(name), kong.Description("Caponier's relay into a private network."),
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

func load(f flags, environ []string) (*Config, error) {
	cfg := defaults(func(key string) string { return edge.Env(environ, key) })
	// Flags win: they are applied as if they were in the environment.
	if f.Core != "" {
		environ = append(environ, config.EnvName("core")+"="+f.Core)
	}
	if f.State != "" {
		environ = append(environ, config.EnvName("state")+"="+f.State)
	}
	if err := config.Load(&cfg, f.Config, environ); err != nil {
		return nil, err
	}
	return &cfg, nil
}

// serve runs the extender until ctx ends.
func serve(ctx context.Context, cfg *Config, stderr io.Writer) error {
	log, err := telemetry.NewLogger(stderr, cfg.Log)
	if err != nil {
		return err
	}
	// Bytes are moved, not kept: a small heap target costs nothing here.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	rules, err := cfg.Rules.parse()
	if err != nil {
		return err
	}
	r := relay.New(relay.Config{Rules: rules, Resolver: cfg.resolver(), FlowIdle: cfg.UDPIdle.Std(), Log: log})
	ec := edge.Config{
		URL: cfg.Core, State: cfg.State, Token: cfg.token, Kind: wire.Extender, Name: cfg.Name, Build: daemon.Version,
		Transport: cfg.transport(), QUICAddr: cfg.QUIC, Grace: cfg.Grace.Std(),
		Stream: r.ServeStream, Control: r.Control(), Status: r.Status, Log: log,
		Welcomed: func(w wire.Welcome) error { return r.Narrow(w.Rules) },
	}
	g, gctx := daemon.NewGroup(ctx)
	var door func(e *edge.Edge)
	if !cfg.Deploy.Listen.Off() {
		if door, ec.Deploy, err = openDoor(g, cfg, log); err != nil {
			return err
		}
	}
	e, err := edge.New(ec)
	if err != nil {
		return edge.Hint(err, wire.Extender)
	}
	defer e.Close()
	if door != nil {
		door(e)
	}
	if !cfg.Debug.Off() {
		l, err := net.Listen("tcp", string(cfg.Debug))
		if err != nil {
			return fmt.Errorf("debug listener: %w", err)
		}
		g.Go("debug", func(ctx context.Context) error { return serveDebug(ctx, l, e, r) })
	}
	log.Info("starting", "version", daemon.Version, "core", cfg.Core)
	if err := daemon.Notify("READY=1"); err != nil {
		log.Warn("service manager", telemetry.KeyErr, err)
	}
	g.Go("edge", func(ctx context.Context) error {
		if err := e.Run(ctx); err != nil {
			return edge.Hint(err, wire.Extender)
		}
		return ctx.Err()
	})
	<-gctx.Done()
	return g.Wait()
}

// openDoor prepares the host-deployment listener; the returned function starts it.
func openDoor(g *daemon.Group, cfg *Config, log *slog.Logger) (func(*edge.Edge), *wire.DeployListener, error) {
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
	log.Info("host deployment listener", "address", l.Addr().String(), "pin", pin)
	start := func(e *edge.Edge) {
		h := hostdeploy.Handler(hostdeploy.Config{Session: e.Session, Log: log})
		g.Go("host deployment", func(ctx context.Context) error { return hostdeploy.Serve(ctx, l, cert, h, log) })
	}
	return start, &wire.DeployListener{Address: l.Addr().String(), Pin: pin}, nil
}

func serveDebug(ctx context.Context, l net.Listener, e *edge.Edge, r *relay.Relay) error {
	reg := telemetry.NewRegistry("extender", daemon.Version)
	status := func(f func(*wire.Status) float64) func() float64 {
		return func() float64 {
			var s wire.Status
			r.Status(&s)
			return f(&s)
		}
	}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caponier_extender_connected", Help: "1 while a tunnel to core is live."}, func() float64 {
			if e.Info().Connected {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caponier_extender_relayed_connections", Help: "Connections relayed now."},
			status(func(s *wire.Status) float64 { return float64(s.Streams) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "caponier_extender_refused_total", Help: "Destinations refused by rule."},
			status(func(s *wire.Status) float64 { return float64(s.Refused) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "caponier_extender_failed_total", Help: "Destinations that could not be reached."},
			status(func(s *wire.Status) float64 { return float64(s.Failed) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "caponier_extender_sent_bytes_total", Help: "Bytes sent to destinations."},
			status(func(s *wire.Status) float64 { return float64(s.BytesOut) })),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "caponier_extender_received_bytes_total", Help: "Bytes received from destinations."},
			status(func(s *wire.Status) float64 { return float64(s.BytesIn) })),
	)
	health := telemetry.NewHealth()
	health.Add("tunnel", true, func(context.Context) error {
		if i := e.Info(); !i.Connected {
			return fmt.Errorf("no tunnel to core: %s", i.LastError)
		}
		return nil
	})
	return telemetry.ServeDebug(ctx, l, reg, health)
}
