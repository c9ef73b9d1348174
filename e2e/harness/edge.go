package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// EdgeConfig describes an edge binary to run: extender, router, carrier or
// webproxy.
type EdgeConfig struct {
	NS    string // empty: this machine's own network
	Name  string // also of the node; empty: it names itself
	URL   string // of core, as seen from there
	Token string // empty: it has enrolled already
	// TOML are further lines of the configuration.
	TOML string
	Env  []string // further settings, CAPONIER_…
	Keep bool
	// Nobody runs it as the user nobody without any capability.
	Nobody bool
	// Mounts has it see this machine's mounts as they are. Without, ip netns
	// exec puts files of /etc/netns and a /sys of the namespace over them.
	Mounts bool
}

// EdgeNode is an edge binary that runs as a process of its own.
type EdgeNode struct {
	Proc *Proc
	Dir  string
	Name string
	cmd  func() *exec.Cmd
	keep bool
}

// nobody is the user and group ID of nobody on Debian.
const nobody = 65534

// StartEdge runs an edge binary that enrols with a token, and keeps its state
// in dir.
func StartEdge(ctx context.Context, n *Net, bin, dir string, cfg EdgeConfig) (*EdgeNode, error) {
	state, file, token := filepath.Join(dir, "state"), filepath.Join(dir, "config.toml"), filepath.Join(dir, "token")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("core = %q\nstate = %q\n", cfg.URL, state)
	if cfg.Name != "" {
		text += fmt.Sprintf("name = %q\n", cfg.Name)
	}
	owned := []string{dir, state, file}
	if cfg.Token != "" {
		// A file, for what is in the environment shows in /proc.
		text += fmt.Sprintf("token_file = %q\n", token)
		owned = append(owned, token)
		if err := os.WriteFile(token, []byte(cfg.Token+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(file, []byte(text+cfg.TOML), 0o600); err != nil {
		return nil, err
	}
	run := []string{bin}
	if cfg.Nobody {
		var err error
		if run, err = asNobody(bin, dir, owned); err != nil {
			return nil, err
		}
	}
	switch {
	case cfg.NS == "":
	case cfg.Mounts:
		run = append([]string{"nsenter", "--net=/run/netns/" + n.NS(cfg.NS)}, run...)
	default:
		run = n.Command(ctx, cfg.NS, run[0], run[1:]...).Args
	}
	e := &EdgeNode{Dir: dir, Name: cfg.Name, keep: cfg.Keep}
	e.cmd = func() *exec.Cmd {
		cmd := exec.CommandContext(context.WithoutCancel(ctx), run[0], append(run[1:], "run", "--config", file)...)
		cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir}, cfg.Env...)
		return cmd
	}
	return e, e.Start()
}

// asNobody gives files to nobody, with a copy of the program for it may lie
// where nobody may not go, and returns how to run that.
func asNobody(bin, dir string, owned []string) ([]string, error) {
	own := filepath.Join(dir, filepath.Base(bin))
	text, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	err = os.WriteFile(own, text, 0o755)
	for _, path := range owned {
		err = errors.Join(err, os.Chown(path, nobody, nobody))
	}
	return []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", own}, err
}

// Start runs it, for the first time or again.
func (e *EdgeNode) Start() error {
	p, err := Start(cmp.Or(e.Name, filepath.Base(e.Dir)), e.Dir, e.cmd(), e.keep)
	e.Proc = p
	return err
}

// gone returns the end of the log of a program that has ended.
func gone(p *Proc) error {
	if p == nil {
		return nil
	}
	select {
	case <-p.Exited():
		return fmt.Errorf("%w: %s", ErrGone, tail(p.Output(), 3000))
	default:
		return nil
	}
}
