// Command caponier-webproxy is the way out of audited web sessions: it lets a
// session's browser reach what the target's rules allow, and puts stored
// credentials into requests so that the browser never has them.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/alecthomas/kong"

	"caponier/shared/config"
	"caponier/shared/control"
	"caponier/shared/daemon"
	"caponier/shared/dial"
	"caponier/shared/edge"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
	"caponier/webproxy/internal/mitm"
	"caponier/webproxy/internal/session"
)

func main() { os.Exit(run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)) }

// name is the binary's.
const name = "caponier-webproxy"

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
	} `cmd:"" help:"Connect to core and serve web sessions; enrols first if a token is given and there is no identity yet."`
	ConfigCmd struct {
		Check struct{ flags } `cmd:"" help:"Validate the configuration and stop."`
	} `cmd:"" name:"config" help:"Work on the configuration."`
	Version struct{} `cmd:"" help:"Print the version."`
}

// run is the whole program but for the process's exit.
func run(args, environ []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	parser, err := kong.New(&c, kong.Name(name), kong.Description("Caponier's proxy of audited web sessions."),
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
	for key, v := range map[string]string{"core": f.Core, "state": f.State} {
		if v != "" {
			environ = append(environ, config.EnvName(key)+"="+v)
		}
	}
	if err := config.Load(&cfg, f.Config, environ); err != nil {
		return nil, err
	}
	return &cfg, nil
}

// parts are what a running webproxy consists of.
type parts struct {
	edge      *edge.Edge
	authority *mitm.Authority
	sessions  *session.Manager
	proxy     *mitm.Server
}

// serve runs the webproxy until ctx ends.
func serve(ctx context.Context, cfg *Config, stderr io.Writer) error {
	log, err := telemetry.NewLogger(stderr, cfg.Log)
	if err != nil {
		return err
	}
	p, err := assemble(cfg, log)
	if err != nil {
		return edge.Hint(err, wire.WebProxy)
	}
	defer p.edge.Close()
	g, gctx := daemon.NewGroup(ctx)
	if err := p.listen(g, cfg); err != nil {
		return err
	}
	log.Info("starting", "version", daemon.Version, "core", cfg.Core)
	if err := daemon.Notify("READY=1"); err != nil {
		log.Warn("service manager", telemetry.KeyErr, err)
	}
	// Sessions end, and deliver what they recorded, before the tunnel does.
	ectx, stop := context.WithCancel(context.WithoutCancel(gctx))
	defer stop()
	g.Go("sessions", func(ctx context.Context) error {
		defer stop()
		return p.sessions.Run(ctx)
	})
	g.Go("proxy", p.proxy.Run)
	g.Go("authority", p.authority.Run)
	g.Go("edge", func(ctx context.Context) error {
		if err := p.edge.Run(ectx); err != nil {
			return edge.Hint(err, wire.WebProxy)
		}
		return ctx.Err()
	})
	<-gctx.Done()
	return g.Wait()
}

// assemble makes all parts; nothing runs yet.
func assemble(cfg *Config, log *slog.Logger) (*parts, error) {
	deny, err := dial.ParsePrefixes("deny", cfg.Deny)
	if err != nil {
		return nil, err
	}
	roots, err := readRoots(cfg.Roots)
	if err != nil {
		return nil, err
	}
	address, err := cfg.address()
	if err != nil {
		return nil, err
	}
	p := &parts{}
	var resolver dial.Resolver
	if cfg.Resolver != "" {
		resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, cfg.Resolver)
		}}
	}
	// The tunnel is asked for when it is needed: the node is made last.
	live := func() tunnel.Session { return p.edge.Session() }
	p.authority, err = mitm.NewAuthority(mitm.AuthorityConfig{Log: log, Ask: func(ctx context.Context, in wire.WebAuthorityAsk) (out wire.WebAuthority, err error) {
		t := live()
		if t == nil {
			return out, errors.New("no tunnel to core")
		}
		err = control.Call(ctx, t, http.MethodPost, wire.PathWebAuthority, in, &out)
		return out, err
	}})
	if err != nil {
		return nil, err
	}
	p.sessions = session.NewManager(session.Config{Tunnel: live, Max: cfg.MaxSessions, Address: address, Problem: p.authority.Problem,
		Resolver: resolver, Deny: deny, System: roots, Log: log})
	p.edge, err = edge.New(edge.Config{
		URL: cfg.Core, State: cfg.State, Token: cfg.token, Kind: wire.WebProxy, Name: cfg.Name, Build: daemon.Version,
		Transport: cfg.transport(), QUICAddr: cfg.QUIC, Control: p.sessions.Control(), Status: p.sessions.Status, Log: log,
	})
	if err != nil {
		return nil, err
	}
	p.proxy = mitm.New(mitm.Config{Sessions: p.sessions, Authority: p.authority, Credentials: p.edge.Credentials, MaxConns: cfg.MaxConnections, Log: log})
	return p, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("roots: %s holds no certificates", file)
	}
	return pool, nil
}

// listen opens every listener that is configured.
func (p *parts) listen(g *daemon.Group, cfg *Config) error {
	open := func(what string, addr config.Addr, f func(context.Context, net.Listener) error) error {
		if addr.Off() {
			return nil
		}
		l, err := net.Listen("tcp", string(addr))
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		g.Go(what, func(ctx context.Context) error { return f(ctx, l) })
		return nil
	}
	clients, err := readRoots(cfg.Listen.ControlClients)
	if err != nil {
		return fmt.Errorf("listen.control_clients: %w", err)
	}
	return errors.Join(
		open("listener for carriers", cfg.Listen.Carriers, p.proxy.ListenCarriers),
		open("cleartext listener", cfg.Listen.Clear, p.proxy.ListenClear),
		open("control listener", cfg.Listen.Control, func(ctx context.Context, l net.Listener) error { return p.serveControl(ctx, l, clients) }),
		open("debug listener", cfg.Debug, func(ctx context.Context, l net.Listener) error {
			return telemetry.ServeDebug(ctx, l, p.registry(), p.health())
		}),
	)
}
