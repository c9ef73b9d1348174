package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// termGrace is how long a program may go on after SIGTERM.
const termGrace = 2 * time.Second

// Local runs a program of this machine.
type Local struct{ path string }

// NewLocal checks that nobody else can change the program.
func NewLocal(path string) (*Local, error) {
	if err := Trusted(path); err != nil {
		return nil, err
	}
	return &Local{path: path}, nil
}

// Close implements Runner.
func (l *Local) Close() error { return nil }

// Trusted checks that path is an executable file that only root or the
// router's own user can change, by itself or through a directory above it.
func Trusted(path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("program %s: the path must be absolute", path)
	}
	at, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("program: %w", err)
	}
	info, err := os.Stat(at)
	if err != nil {
		return fmt.Errorf("program: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("program %s is not an executable file", at)
	}
	for {
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("program %s: its owner cannot be seen", at)
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return fmt.Errorf("program: %s belongs to another user: give it to root", at)
		}
		// Others may make files in a sticky directory, not replace ours.
		sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0
		if info.Mode().Perm()&0o022 != 0 && !sticky {
			return fmt.Errorf("program: %s can be written by others: chmod go-w", at)
		}
		up := filepath.Dir(at)
		if up == at {
			return nil
		}
		at = up
		if info, err = os.Stat(at); err != nil {
			return fmt.Errorf("program: %w", err)
		}
	}
}

// Run implements Runner. The program runs in a process group of its own with
// an empty environment but PATH; when ctx ends the whole group is told to
// terminate, and killed if it does not.
func (l *Local) Run(ctx context.Context, c Call) (Reply, error) {
	if err := Trusted(l.path); err != nil {
		return Reply{}, err
	}
	stdout, stderr := &Bounded{Limit: MaxStdout}, &Bounded{Limit: MaxStderr}
	cmd := exec.Command(l.path, append([]string{c.Verb}, c.Args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.Stdin), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// A child that keeps the pipes open must not keep us.
	cmd.WaitDelay = termGrace
	if err := cmd.Start(); err != nil {
		return Reply{}, fmt.Errorf("start %s: %w", l.path, err)
	}
	group := -cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		// ESRCH means that it has just ended.
		_ = syscall.Kill(group, syscall.SIGTERM)
		kill := time.NewTimer(termGrace)
		select {
		case <-ended:
		case <-kill.C:
			_ = syscall.Kill(group, syscall.SIGKILL)
			<-ended
		}
		kill.Stop()
		// The leader may have gone and left its children.
		_ = syscall.Kill(group, syscall.SIGKILL)
		return Reply{Stderr: stderr.Bytes()}, fmt.Errorf("%s %s: %w", l.path, c.Verb, context.Cause(ctx))
	}
	r := Reply{Exit: cmd.ProcessState.ExitCode(), Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), Cut: stdout.Cut}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited && !errors.Is(err, exec.ErrWaitDelay) && !errors.Is(err, syscall.EPIPE) {
		return r, fmt.Errorf("%s %s: %w", l.path, c.Verb, err)
	}
	if r.Exit < 0 {
		return r, fmt.Errorf("%s %s: %s", l.path, c.Verb, cmd.ProcessState)
	}
	return r, nil
}

// Bounded keeps the first Limit bytes written to it and drops the rest.
type Bounded struct {
	Limit int
	// Cut: something was dropped.
	Cut bool
	b   bytes.Buffer
}

// Write implements io.Writer.
func (b *Bounded) Write(p []byte) (int, error) {
	if keep := b.Limit - b.b.Len(); keep < len(p) {
		b.Cut = true
		b.b.Write(p[:keep])
		return len(p), nil
	}
	return b.b.Write(p)
}

// Bytes returns what was kept.
func (b *Bounded) Bytes() []byte { return b.b.Bytes() }
