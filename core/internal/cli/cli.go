// Package cli is the command line of caponier-core.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"

	"caponier/core/internal/server"
	"caponier/shared/daemon"
)

const name = "caponier-core"

const description = `Privileged-access server: users, targets, secrets, recordings, audit, SSH front door, and the tunnels of edge nodes.

Examples:
  caponier-core vault keygen --out /var/lib/caponier/kek
  caponier-core admin bootstrap --name root
  caponier-core serve --config /etc/caponier/core.toml
  caponier-core config check --config /etc/caponier/core.toml

Every key of the configuration file can be set in the environment instead:
listen.https is CAPONIER_LISTEN_HTTPS. Secrets come from files or the
environment, never from flags.

Exit codes: 0 fine, 1 failed while running, 2 wrong command line, 3 wrong configuration.`

// env is what every command gets.
type env struct {
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer
	environ        []string
	file           string
}

func (e *env) config() (server.Config, error) { return server.Load(e.file, e.environ) }

type commands struct {
	Config string `help:"Configuration file (TOML)." placeholder:"FILE"`

	Serve     serveCmd   `cmd:"" help:"Run core until SIGTERM, then drain and stop."`
	Migrate   migrateCmd `cmd:"" help:"Bring the database schema to this version (PostgreSQL; SQLite migrates at start)."`
	ConfigCmd configCmds `cmd:"" name:"config" help:"The configuration."`
	Admin     adminCmds  `cmd:"" help:"The first administrator."`
	CA        caCmds     `cmd:"" name:"ca" help:"The certificate authorities."`
	Vault     vaultCmds  `cmd:"" help:"The key-encryption key."`
	Audit     auditCmds  `cmd:"" help:"The audit log."`
	Version   versionCmd `cmd:"" help:"Print the version."`
}

// Main runs one command and returns the exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer, environ []string) int {
	var c commands
	exit := -1
	k, err := kong.New(&c, kong.Name(name), kong.Description(description),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exit = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}))
	if err != nil {
		return daemon.Report(stderr, name, err)
	}
	kctx, err := k.Parse(args)
	if exit >= 0 {
		return exit // --help was printed
	}
	if err != nil {
		return daemon.Report(stderr, name, &daemon.UsageError{Text: err.Error(), Hint: "try " + strings.TrimSpace(name+" "+command(err)) + " --help"})
	}
	return daemon.Run(stderr, name, func(ctx context.Context) error {
		err := kctx.Run(&env{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, environ: environ, file: c.Config})
		if _, usage := errors.AsType[*kong.ParseError](err); usage {
			return &daemon.UsageError{Text: err.Error(), Hint: "try " + name + " --help"}
		}
		return err
	})
}

// command names the deepest command that was understood before err.
func command(err error) string {
	if e, ok := errors.AsType[*kong.ParseError](err); ok && e.Context != nil {
		return e.Context.Command()
	}
	return ""
}

type versionCmd struct{}

func (versionCmd) Run(e *env) error {
	_, err := fmt.Fprintf(e.stdout, "%s %s\n", name, daemon.Version)
	return err
}

type configCmds struct {
	Check configCheckCmd `cmd:"" help:"Read the configuration and report every problem at once."`
}

type configCheckCmd struct{}

func (configCheckCmd) Run(e *env) error {
	if _, err := e.config(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(e.stdout, "the configuration is valid")
	return err
}
