// Package node is the outside of an edge binary: its command line, the
// configuration keys that all of them have, its log, its debug listener and
// its life from start to drain. What the node does is the binary's own.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"

	"caponier/shared/config"
	"caponier/shared/daemon"
	"caponier/shared/edge"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// Program is an edge binary; C is its configuration, which embeds Config.
type Program[C any] struct {
	Name string // "caponier-extender"
	Kind wire.NodeKind
	Text string // what it is, for --help
	Does string // what the command run does, for --help

	// Defaults are set before anything is read; those of Config are set already.
	Defaults func(c *C)
	// Node returns the Config inside c.
	Node func(c *C) *Config
	// Build makes the node's parts. What fails later, or must be closed, is
	// told to the Parts. An error of Build ends the program.
	Build func(ctx context.Context, c *C, p *Parts) error
	// Commands are further ones that need the configuration but no core.
	Commands []Command[C]
}

// Command is a further command of a binary.
type Command[C any] struct {
	Name, Help string
	Run        func(ctx context.Context, c *C, log *slog.Logger) error
}

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
	} `cmd:"" help:"${does}; enrols first if a token is given and there is no identity yet."`
	ConfigCmd struct {
		Check struct{ flags } `cmd:"" help:"Validate the configuration and stop."`
	} `cmd:"" name:"config" help:"Work on the configuration."`
	Version struct{} `cmd:"" help:"Print the version."`
}

// Main is the whole program but for the process's exit; it returns the exit code.
func (p *Program[C]) Main(args, environ []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	options := []kong.Option{kong.Name(p.Name), kong.Description(p.Text + p.examples()), kong.Vars{"does": p.Does},
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }), kong.UsageOnError()}
	further := make([]flags, len(p.Commands))
	for i, x := range p.Commands {
		options = append(options, kong.DynamicCommand(x.Name, x.Help, "", &further[i]))
	}
	parser, err := kong.New(&c, options...)
	if err != nil {
		return daemon.Report(stderr, p.Name, err)
	}
	k, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}
	if err != nil {
		return daemon.Report(stderr, p.Name, &daemon.UsageError{Text: err.Error(), Hint: p.Name + " --help shows the commands"})
	}
	switch k.Command() {
	case "version":
		fmt.Fprintln(stdout, p.Name, daemon.Version)
		return daemon.ExitOK
	case "config check":
		_, err := p.load(c.ConfigCmd.Check.flags, environ, false)
		if err == nil {
			fmt.Fprintln(stdout, "the configuration is valid")
		}
		return daemon.Report(stderr, p.Name, err)
	}
	for i, x := range p.Commands {
		if k.Command() == x.Name {
			return daemon.Run(stderr, p.Name, func(ctx context.Context) error {
				cfg, err := p.load(further[i], environ, true)
				if err != nil {
					return err
				}
				log, err := telemetry.NewLogger(stderr, p.Node(cfg).Log)
				if err != nil {
					return err
				}
				return x.Run(ctx, cfg, log)
			})
		}
	}
	return daemon.Run(stderr, p.Name, func(ctx context.Context) error {
		cfg, err := p.load(c.Run.flags, environ, false)
		if err != nil {
			return err
		}
		n := p.Node(cfg)
		if n.token, err = edge.FindToken(c.Run.Token, c.Run.TokenFile, n.TokenFile, environ); err != nil {
			return err
		}
		return p.serve(ctx, cfg, stderr)
	})
}

// examples end the help.
func (p *Program[C]) examples() string {
	file := "/etc/caponier/" + strings.TrimPrefix(p.Name, "caponier-") + ".toml"
	b := &strings.Builder{}
	fmt.Fprintf(b, "\n\nExamples:\n  %s run --core https://pam.example.org --token-file token --state /var/lib/%s\n", p.Name, p.Name)
	fmt.Fprintf(b, "  %s run --config %s\n  %s config check --config %s\n", p.Name, file, p.Name, file)
	for _, c := range p.Commands {
		fmt.Fprintf(b, "  %s %s --config %s\n", p.Name, c.Name, file)
	}
	return b.String() + `
Every key of the configuration file can be set in the environment instead:
log.level is CAPONIER_LOG_LEVEL.

Exit codes: 0 fine, 1 failed while running, 2 wrong command line, 3 wrong configuration.`
}

// load reads the configuration.
func (p *Program[C]) load(f flags, environ []string, withoutCore bool) (*C, error) {
	cfg := new(C)
	n := p.Node(cfg)
	*n = defaultConfig(p.Name, environ)
	n.withoutCore = withoutCore
	if p.Defaults != nil {
		p.Defaults(cfg)
	}
	// Flags win: they are applied as if they were in the environment.
	for key, v := range map[string]string{"core": f.Core, "state": f.State} {
		if v != "" {
			environ = append(environ, config.EnvName(key)+"="+v)
		}
	}
	if err := config.Load(cfg, f.Config, environ); err != nil {
		return nil, err
	}
	return cfg, nil
}

// Parts is what a binary hands over to be run.
type Parts struct {
	Log *slog.Logger
	// Registry takes metrics named caponier_<kind>_…; it is served, with
	// Health and pprof, on the debug address.
	Registry *prometheus.Registry
	Health   *telemetry.Health

	kind  wire.NodeKind
	parts []part
	close []func() error
}

type part struct {
	name string
	run  func(context.Context) error
}

// Edge makes the node's edge and locks the state directory; call it once,
// before what must not run twice on one directory.
func (p *Parts) Edge(c edge.Config) (*edge.Edge, error) {
	e, err := edge.New(c)
	if err != nil {
		return nil, edge.Hint(err, c.Kind)
	}
	p.close = append(p.close, e.Close)
	p.Gauge("connected", "1 while a tunnel to core is live.", func() float64 {
		if e.Info().Connected {
			return 1
		}
		return 0
	})
	p.Health.Add("tunnel", true, func(context.Context) error {
		if i := e.Info(); !i.Connected {
			return fmt.Errorf("no tunnel to core: %s", i.LastError)
		}
		return nil
	})
	p.Go("edge", func(ctx context.Context) error {
		if err := e.Run(ctx); err != nil {
			return edge.Hint(err, c.Kind)
		}
		return ctx.Err()
	})
	return e, nil
}

// Go runs f from when everything is built until the program ends; an error of
// f ends the program.
func (p *Parts) Go(name string, f func(ctx context.Context) error) {
	p.parts = append(p.parts, part{name, f})
}

// Close calls f when all parts have returned, the last one first.
func (p *Parts) Close(f func() error) { p.close = append(p.close, f) }

// Gauge registers the metric caponier_<kind>_<name>.
func (p *Parts) Gauge(name, help string, f func() float64) {
	p.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caponier_" + string(p.kind) + "_" + name, Help: help}, f))
}

// Counter registers the metric caponier_<kind>_<name>_total.
func (p *Parts) Counter(name, help string, f func() float64) {
	p.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "caponier_" + string(p.kind) + "_" + name + "_total", Help: help}, f))
}

// serve builds the node and runs it until ctx ends.
func (p *Program[C]) serve(ctx context.Context, cfg *C, stderr io.Writer) (err error) {
	n := p.Node(cfg)
	log, err := telemetry.NewLogger(stderr, n.Log)
	if err != nil {
		return err
	}
	parts := &Parts{Log: log, kind: p.Kind, Registry: telemetry.NewRegistry(string(p.Kind), daemon.Version), Health: telemetry.NewHealth()}
	defer func() {
		for i := len(parts.close) - 1; i >= 0; i-- {
			err = errors.Join(err, parts.close[i]())
		}
	}()
	if err := p.Build(ctx, cfg, parts); err != nil {
		return err
	}
	g, gctx := daemon.NewGroup(ctx)
	if !n.Debug.Off() {
		l, err := net.Listen("tcp", string(n.Debug))
		if err != nil {
			return fmt.Errorf("debug listener: %w", err)
		}
		g.Go("debug", func(ctx context.Context) error { return telemetry.ServeDebug(ctx, l, parts.Registry, parts.Health) })
	}
	log.Info("starting", "version", daemon.Version, "core", n.Core)
	if err := daemon.Notify("READY=1"); err != nil {
		log.Warn("service manager", telemetry.KeyErr, err)
	}
	for _, x := range parts.parts {
		g.Go(x.name, x.run)
	}
	<-gctx.Done()
	return g.Wait()
}
