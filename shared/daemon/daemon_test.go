package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"caponier/shared/config"
)

func TestReport(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		err  error
		code int
		text string
	}{
		{"nil", nil, 0, ""},
		{"plain", errors.New("boom"), 1, "x: boom"},
		{"hinted", fmt.Errorf("start: %w", &Hinted{errors.New("sealed"), "give the KEK"}), 1, "hint: give the KEK"},
		{"usage", &UsageError{"unknown flag", "see --help"}, 2, "hint: see --help"},
		{"config", &config.Problems{List: []config.Problem{{Key: "a.b", Text: "bad"}}}, 3, "a.b: bad"},
	} {
		var b strings.Builder
		if code := Report(&b, "x", c.err); code != c.code || !strings.Contains(b.String(), c.text) {
			t.Errorf("%s: got %d %q", c.name, code, b.String())
		}
	}
}

func TestRunEndsAtSignal(t *testing.T) {
	var b strings.Builder
	code := Run(&b, "x", func(ctx context.Context) error {
		g, _ := NewGroup(ctx)
		g.Go("part", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
			return err
		}
		return g.Wait()
	})
	if code != 0 || b.String() != "" {
		t.Errorf("got %d %q", code, b.String())
	}
}

func TestGroupStopsTheOthers(t *testing.T) {
	t.Parallel()
	g, _ := NewGroup(t.Context())
	g.Go("waits", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	g.Go("fails", func(context.Context) error { return errors.New("boom") })
	if err := g.Wait(); err == nil || err.Error() != "fails: boom" {
		t.Errorf("got %v", err)
	}
}

func TestNotify(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "n")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", sock)
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := l.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("got %q, %v", b[:n], err)
	}
}
