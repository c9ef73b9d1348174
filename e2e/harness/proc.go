package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Proc is a running program whose output goes to a log file.
type Proc struct {
	Name string
	Log  string // path
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; valid after done
}

// Start runs cmd in the background with its output appended to dir/name.log.
// It dies with this process; in the demo (keep) it outlives it.
func Start(name, dir string, cmd *exec.Cmd, keep bool) (*Proc, error) {
	p := &Proc{Name: name, Log: filepath.Join(dir, name+".log"), cmd: cmd, done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: !keep, Setsid: keep}
	if !keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is the process ID.
func (p *Proc) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the program has ended.
func (p *Proc) Exited() <-chan struct{} { return p.done }

// Signal sends a signal to the program.
func (p *Proc) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Output is what the program printed so far.
func (p *Proc) Output() string {
	text, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// WaitExit waits for the end and returns the exit code.
func (p *Proc) WaitExit(limit time.Duration) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-time.After(limit):
		return -1, fmt.Errorf("%s still runs after %v", p.Name, limit)
	}
}

// Kill ends the program and its children at once and waits.
func (p *Proc) Kill() {
	select {
	case <-p.done:
	default:
		syscall.Kill(-p.PID(), syscall.SIGKILL)
		<-p.done
	}
}

// Stop asks with SIGTERM, then kills after limit. It fails when the program
// did not end by itself with exit code 0.
func (p *Proc) Stop(limit time.Duration) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		// Children (sshd sessions) go with it.
		syscall.Kill(-p.PID(), syscall.SIGKILL)
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("%s did not end within %v of SIGTERM", p.Name, limit)
	}
	if e, ok := errors.AsType[*exec.ExitError](p.err); ok && e.ExitCode() > 0 {
		return fmt.Errorf("%s ended with code %d", p.Name, e.ExitCode())
	}
	return nil
}

// WaitOutput waits until the program has printed text.
func (p *Proc) WaitOutput(ctx context.Context, limit time.Duration, text string) error {
	return Until(ctx, limit, fmt.Sprintf("%s prints %q", p.Name, text), func() error {
		out := p.Output()
		if bytes.Contains([]byte(out), []byte(text)) {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%w: %s", ErrGone, tail(out, 2000))
		default:
			return errors.New("not yet")
		}
	})
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
