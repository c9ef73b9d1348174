// Package daemon is the frame around every binary: signals, exit codes, the
// run group and readiness for the service manager.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sync/errgroup"

	"caponier/shared/config"
)

// Exit codes of every binary.
const (
	ExitOK     = 0
	ExitFailed = 1 // failed while running
	ExitUsage  = 2 // wrong command line
	ExitConfig = 3 // wrong configuration
)

// Version is set by the linker: -X caponier/shared/daemon.Version=1.2.3.
var Version = "dev"

// UsageError is a wrong command line; Hint tells the next step.
type UsageError struct{ Text, Hint string }

// Error implements error.
func (e *UsageError) Error() string { return e.Text }

// Hinted is an error that knows what the operator should do next.
type Hinted struct {
	Err  error
	Hint string
}

// Error implements error.
func (e *Hinted) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *Hinted) Unwrap() error { return e.Err }

// Run calls f with a context that ends at SIGINT or SIGTERM (a second signal
// kills the process at once) and turns its error into an exit code, telling
// the error and its hint on stderr.
func Run(stderr io.Writer, name string, f func(ctx context.Context) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// After the first signal the default action is restored.
	context.AfterFunc(ctx, stop)
	return Report(stderr, name, f(ctx))
}

// Report prints err for people and returns its exit code.
func Report(stderr io.Writer, name string, err error) int {
	if err == nil {
		return ExitOK
	}
	fmt.Fprintf(stderr, "%s: %v\n", name, err)
	if h, ok := errors.AsType[*Hinted](err); ok && h.Hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", h.Hint)
	}
	if u, ok := errors.AsType[*UsageError](err); ok {
		if u.Hint != "" {
			fmt.Fprintf(stderr, "hint: %s\n", u.Hint)
		}
		return ExitUsage
	}
	if _, ok := errors.AsType[*config.Problems](err); ok {
		return ExitConfig
	}
	return ExitFailed
}

// Group runs parts until one fails or the context ends, then waits for all.
type Group struct {
	g   *errgroup.Group
	ctx context.Context
}

// NewGroup makes a group; its context ends when ctx does or a part fails.
func NewGroup(ctx context.Context) (*Group, context.Context) {
	g, gctx := errgroup.WithContext(ctx)
	return &Group{g: g, ctx: gctx}, gctx
}

// Go starts a part. A part that returns because the context ended is no failure.
func (g *Group) Go(name string, f func(ctx context.Context) error) {
	g.g.Go(func() error {
		err := f(g.ctx)
		if err == nil || (g.ctx.Err() != nil && errors.Is(err, context.Canceled)) {
			return nil
		}
		return fmt.Errorf("%s: %w", name, err)
	})
}

// Wait returns the first failure after all parts have returned.
func (g *Group) Wait() error { return g.g.Wait() }

// Notify tells the service manager a state such as "READY=1" or "STOPPING=1"
// (sd_notify(3)); without NOTIFY_SOCKET it does nothing.
func Notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}
