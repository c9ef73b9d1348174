package harness

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Extender is an extender that runs as a process of its own.
type Extender struct {
	Proc *Proc
	Dir  string
	Site string
	cmd  func() *exec.Cmd
	keep bool
}

// ExtenderConfig describes an extender to run.
type ExtenderConfig struct {
	NS    string
	Name  string // process and log name
	Site  string
	URL   string // of core, as seen from there
	Token string
	Env   []string // further settings, CAPONIER_…
	Keep  bool
	// Nobody runs it as the user nobody without any capability.
	Nobody bool
}

// nobody is the user and group ID of nobody on Debian.
const nobody = 65534

// StartExtender runs an extender that enrols with a token, and keeps its
// state in dir.
func StartExtender(ctx context.Context, n *Net, bin, dir string, cfg ExtenderConfig) (*Extender, error) {
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	run := []string{bin}
	if cfg.Nobody {
		// The program may lie where nobody may not go.
		own := filepath.Join(dir, filepath.Base(bin))
		text, err := os.ReadFile(bin)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(own, text, 0o755); err != nil {
			return nil, err
		}
		run = []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", own}
	}
	x := &Extender{Dir: dir, Site: cfg.Site, keep: cfg.Keep}
	x.cmd = func() *exec.Cmd {
		cmd := n.Command(context.WithoutCancel(ctx), cfg.NS, run[0], append(run[1:], "run", "--core", cfg.URL, "--state", state)...)
		cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir}, cfg.Env...)
		if cfg.Token != "" {
			// A file, for what is in the environment shows in /proc.
			cmd.Args = append(cmd.Args, "--token-file", filepath.Join(dir, "token"))
		}
		return cmd
	}
	if cfg.Token != "" {
		if err := os.WriteFile(filepath.Join(dir, "token"), []byte(cfg.Token+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	if cfg.Nobody {
		for _, path := range []string{dir, state, filepath.Join(dir, "token")} {
			if err := os.Chown(path, nobody, nobody); err != nil {
				return nil, err
			}
		}
	}
	return x, x.Start()
}

// Start runs the extender, for the first time or again.
func (x *Extender) Start() error {
	p, err := Start("extender-"+x.Site, x.Dir, x.cmd(), x.keep)
	x.Proc = p
	return err
}

// Edge is an edge node as core shows it.
type Edge struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Site   string `json:"site"`
	Health string `json:"health"`
	Tunnel *struct {
		Transport   string    `json:"transport"`
		Binding     string    `json:"binding"`
		ConnectedAt time.Time `json:"connected_at"`
		Relayed     int       `json:"relayed"`
		StartedAt   time.Time `json:"started_at"`
		Build       string    `json:"build"`
		Remote      string    `json:"remote"`
		RTTMS       float64   `json:"rtt_ms"`
	} `json:"tunnel"`
}

// Edges lists the edge nodes of a site.
func (a *API) Edges(ctx context.Context, site string) ([]Edge, error) {
	var out struct {
		Items []Edge `json:"items"`
	}
	err := a.Do(ctx, http.MethodGet, "/edges?site="+site, nil, &out)
	return out.Items, err
}

// Online waits until a node of the site is connected and returns it.
func (a *API) Online(ctx context.Context, limit time.Duration, site string, proc *Proc) (Edge, error) {
	var found Edge
	err := Until(ctx, limit, "an extender of "+site+" is online", func() error {
		if proc != nil {
			select {
			case <-proc.Exited():
				return fmt.Errorf("%w: %s", ErrGone, tail(proc.Output(), 3000))
			default:
			}
		}
		list, err := a.Edges(ctx, site)
		if err != nil {
			return err
		}
		for _, e := range list {
			if e.Health == "online" && e.Tunnel != nil {
				found = e
				return nil
			}
		}
		return errors.New("none is")
	})
	return found, err
}
