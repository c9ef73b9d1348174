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

// Router is a router that runs as a process of its own.
type Router struct {
	Proc *Proc
	Dir  string
	Name string
	cmd  func() *exec.Cmd
	keep bool
}

// RouterConfig describes a router to run.
type RouterConfig struct {
	NS    string
	Name  string // also of the node
	URL   string // of core, as seen from there
	Token string
	// TOML are further lines of router.toml.
	TOML string
	Keep bool
}

// StartRouter runs a router that enrols with a token, and keeps its state in dir.
func StartRouter(ctx context.Context, n *Net, bin, dir string, cfg RouterConfig) (*Router, error) {
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "router.toml")
	text := fmt.Sprintf("core = %q\nstate = %q\ntoken_file = %q\nname = %q\n%s", cfg.URL, state, filepath.Join(dir, "token"), cfg.Name, cfg.TOML)
	if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.WriteFile(filepath.Join(dir, "token"), []byte(cfg.Token+"\n"), 0o600)); err != nil {
		return nil, err
	}
	r := &Router{Dir: dir, Name: cfg.Name, keep: cfg.Keep}
	r.cmd = func() *exec.Cmd {
		cmd := n.Command(context.WithoutCancel(ctx), cfg.NS, bin, "run", "--config", file)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir}
		return cmd
	}
	return r, r.Start()
}

// Start runs the router, for the first time or again.
func (r *Router) Start() error {
	p, err := Start("router-"+r.Name, r.Dir, r.cmd(), r.keep)
	r.Proc = p
	return err
}

// RouterState is a router as core shows it.
type RouterState struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Health   string   `json:"health"`
	Pools    []string `json:"pools"`
	Type     string   `json:"type"`
	Leased   bool     `json:"leased"`
	Synced   bool     `json:"synced"`
	Sessions int      `json:"sessions"`
	Ending   int      `json:"ending"`
	Problem  string   `json:"problem"`
}

// Router reads a router by name.
func (a *API) Router(ctx context.Context, name string) (RouterState, error) {
	var out RouterState
	return out, a.Do(ctx, http.MethodGet, "/routers/"+name, nil, &out)
}

// RouterReady waits until core and a router agree.
func (a *API) RouterReady(ctx context.Context, limit time.Duration, name string, proc *Proc) (RouterState, error) {
	var found RouterState
	err := Until(ctx, limit, "router "+name+" is ready", func() error {
		if proc != nil {
			select {
			case <-proc.Exited():
				return fmt.Errorf("%w: %s", ErrGone, tail(proc.Output(), 3000))
			default:
			}
		}
		var err error
		if found, err = a.Router(ctx, name); err != nil {
			return err
		}
		if found.Health != "online" || !found.Synced || found.Type == "" {
			return fmt.Errorf("it is %+v", found)
		}
		return nil
	})
	return found, err
}

// Pool sets the client addresses whose traffic a router forwards.
func (a *API) Pool(ctx context.Context, name string, pools ...string) error {
	return a.Do(ctx, http.MethodPatch, "/routers/"+name, map[string]any{"pools": pools}, nil, "If-Match", "*")
}

// NetworkSession is a network session as core shows it.
type NetworkSession struct {
	ID        string `json:"id"`
	State     string `json:"state"`
	Target    string `json:"target_name"`
	Client    string `json:"client_ip"`
	BytesOut  int64  `json:"bytes_out"`
	BytesIn   int64  `json:"bytes_in"`
	EndReason string `json:"end_reason"`
	EndText   string `json:"end_text"`
	Routers   []struct {
		Name  string `json:"name"`
		State string `json:"state"`
	} `json:"routers"`
}

// OpenNetwork opens a network target; the session's client is where the
// request comes from.
func (a *API) OpenNetwork(ctx context.Context, target string) (NetworkSession, error) {
	var s NetworkSession
	return s, a.Do(ctx, http.MethodPost, "/network-sessions", map[string]string{"target": target}, &s)
}

// OpenNetworkFor opens a network target for another address.
func (a *API) OpenNetworkFor(ctx context.Context, target, client string) (NetworkSession, error) {
	var s NetworkSession
	return s, a.Do(ctx, http.MethodPost, "/network-sessions", map[string]string{"target": target, "client_ip": client}, &s)
}

// NetworkSession reads a session.
func (a *API) NetworkSession(ctx context.Context, id string) (NetworkSession, error) {
	var s NetworkSession
	return s, a.Do(ctx, http.MethodGet, "/network-sessions/"+id, nil, &s)
}
