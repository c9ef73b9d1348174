// Package usercli is the people's command line, caponier. It is a client: it
// talks to core by the REST interface and by SSH like anybody else, and
// imports nothing of core's rooms.
//
// What it keeps lies in ~/.config/caponier (CAPONIER_CONFIG_DIR), readable by
// its owner only: the profile, the API token, an SSH key made for this login
// with its short-lived certificate, and the known hosts. Logout removes the
// secrets. Secrets never come by flag and are never printed, save one: a new
// enrolment token, which is shown once because it has to be carried elsewhere.
package usercli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"caponier/shared/config"
	"caponier/shared/daemon"
)

// Exit codes. Scripts may rely on them; `caponier ssh` passes on what ssh
// returned instead.
const (
	ExitOK          = 0
	ExitFailed      = 1 // something else went wrong
	ExitUsage       = 2 // wrong command line
	ExitConfig      = 3 // the profile is broken or missing
	ExitLogin       = 4 // not logged in, or the login was refused
	ExitRefused     = 5 // core says no
	ExitNotFound    = 6 // no such thing
	ExitUnreachable = 7 // core cannot be reached, or its certificate is not trusted
)

const description = `Reach what you may reach: SSH hosts and services in private networks, by name.

Examples:
  caponier login https://pam.example.org --user alice
  caponier targets
  caponier ssh db-1
  caponier ssh root@db-1 -- uptime
  caponier forward db-1:5432 15432
  caponier network open plc-line-3
  caponier recordings play rec_…

Exit codes: 0 fine, 1 failed, 2 wrong command line, 3 broken profile,
4 not logged in, 5 refused, 6 not found, 7 core not reachable. ssh, scp and
sftp return what the SSH client returned.`

// IO is the outside world of one run.
type IO struct {
	In       *os.File
	Out, Err io.Writer
	Environ  []string
}

type commands struct {
	Output string `help:"Output format: ${enum}." enum:"text,json" default:"text" short:"o"`

	Login       loginCmd       `cmd:"" help:"Log in with password (and code), keep a token and a short-lived SSH certificate."`
	Logout      logoutCmd      `cmd:"" help:"End the login and remove token, key and certificate."`
	Whoami      whoamiCmd      `cmd:"" help:"Show who is logged in, where, and for how long."`
	Targets     targetsCmd     `cmd:"" help:"List what you may reach now."`
	SSH         sshCmd         `cmd:"" name:"ssh" help:"Open a shell on a target, or run a command there."`
	SCP         scpCmd         `cmd:"" name:"scp" help:"Copy files; write remote paths as target:path."`
	SFTP        sftpCmd        `cmd:"" name:"sftp" help:"Open an SFTP session on a target."`
	SSHConfig   sshConfigCmd   `cmd:"" name:"ssh-config" help:"Print Host blocks for ~/.ssh/config, so that plain ssh, rsync and git work."`
	Forward     forwardCmd     `cmd:"" help:"Listen locally and forward to a port of a target."`
	Web         webCmd         `cmd:"" help:"Open a web target in the console's viewer."`
	Network     networkCmd     `cmd:"" help:"Open network targets, close and list network sessions."`
	Connections connectionsCmd `cmd:"" help:"Live and past connections."`
	Recordings  recordingsCmd  `cmd:"" help:"Recorded sessions."`
	Approvals   approvalsCmd   `cmd:"" help:"Requests of web sessions that wait for a second person."`
	Groups      groupsCmd      `cmd:"" help:"Access groups: divide sites, targets, roles and secrets between teams."`
	Edges       edgesCmd       `cmd:"" help:"Edge nodes."`
	Tokens      tokensCmd      `cmd:"" help:"Enrolment tokens for edge nodes."`
	Explain     explainCmd     `cmd:"" help:"Say step by step why a target can or cannot be reached."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

// env is what every command gets.
type env struct {
	IO
	ctx  context.Context
	json bool
	dir  string // where the profile lies
	now  func() time.Time
}

// getenv reads a variable of the run.
func (e *env) getenv(name string) string {
	for _, kv := range e.Environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

func (e *env) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(e.Out, format, args...)
	return err
}

// Main runs one command and returns the exit code.
func Main(args []string, w IO) int {
	var c commands
	exit := -1
	k, err := kong.New(&c, kong.Name("caponier"), kong.Description(description),
		kong.Writers(w.Out, w.Err), kong.Exit(func(code int) { exit = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}))
	if err != nil {
		return report(w.Err, err)
	}
	kctx, err := k.Parse(args)
	if exit >= 0 {
		return exit // help was printed
	}
	if err != nil {
		return report(w.Err, &daemon.UsageError{Text: err.Error(), Hint: usageHint(err)})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e := &env{IO: w, ctx: ctx, json: c.Output == "json", now: time.Now}
	if e.dir, err = configDir(e); err == nil {
		e.dir, err = filepath.Abs(e.dir) // it goes into printed configuration
	}
	if err != nil {
		return report(w.Err, err)
	}
	return report(w.Err, kctx.Run(e))
}

func usageHint(err error) string {
	words := "caponier"
	if p, ok := errors.AsType[*kong.ParseError](err); ok && p.Context != nil {
		for part := range strings.FieldsSeq(p.Context.Command()) {
			if !strings.HasPrefix(part, "<") && !strings.HasPrefix(part, "[") {
				words += " " + part
			}
		}
	}
	return "try " + words + " --help"
}

// exitError carries the exit code of a child, which has told its own story.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// report tells err with its hint and returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return ExitOK
	}
	if code, ok := errors.AsType[exitError](err); ok {
		return int(code)
	}
	if _, ok := errors.AsType[*config.Problems](err); ok {
		return daemon.Report(w, "caponier", err)
	}
	if _, ok := errors.AsType[*daemon.UsageError](err); ok {
		return daemon.Report(w, "caponier", err)
	}
	fmt.Fprintf(w, "caponier: %v\n", err)
	if h := hint(err); h != "" {
		fmt.Fprintf(w, "hint: %s\n", h)
	}
	return exitCode(err)
}

type versionCmd struct{}

func (versionCmd) Run(e *env) error {
	if e.json {
		return e.printJSON(map[string]string{"version": daemon.Version})
	}
	return e.printf("caponier %s\n", daemon.Version)
}
