package harness

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// CoreConfig describes a core to run.
type CoreConfig struct {
	// NS is the namespace it runs in; empty means this machine's own network.
	NS string
	// TOML is the configuration file without state_dir and the vault's key.
	TOML string
	// Password is the first administrator's; empty makes one.
	Password string
	Keep     bool // outlives this process
	// Fresh leaves core without an administrator, for set-up in the console.
	Fresh bool
}

// Core is a core that runs as a process of its own.
type Core struct {
	Proc     *Proc
	Dir      string
	File     string // configuration
	Password string // of the user admin
	Ready    Ready
	Admin    *API

	bin string
	cfg CoreConfig
	net *Net
}

// Ready is what core writes once it listens.
type Ready struct {
	URL     string `json:"url"`
	HTTPS   string `json:"https"`
	Bastion string `json:"bastion"`
	SOCKS   string `json:"socks"`
	Metrics string `json:"metrics"`
	CAFile  string `json:"ca_file"`
	CoreID  string `json:"core_id"`
}

// StartCore sets a core up in dir and waits until it is ready and its
// administrator has logged in.
func StartCore(ctx context.Context, n *Net, bin, dir string, cfg CoreConfig) (*Core, error) {
	c := &Core{Dir: dir, File: filepath.Join(dir, "core.toml"), Password: cfg.Password, bin: bin, cfg: cfg, net: n}
	if c.Password == "" {
		c.Password = rand.Text()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	kek := filepath.Join(dir, "kek")
	text := fmt.Sprintf("state_dir = %q\n%s\n[vault]\nkek_file = %q\n", filepath.Join(dir, "state"), cfg.TOML, kek)
	if err := os.WriteFile(c.File, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if _, err := os.Stat(kek); errors.Is(err, os.ErrNotExist) {
		if out, err := c.Tool(ctx, "", "vault", "keygen", "--out", kek); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
	}
	// PostgreSQL's schema is made by an order of its own.
	if out, err := c.Tool(ctx, "", "--config", c.File, "migrate"); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	if cfg.Fresh {
		return c, c.Start(ctx)
	}
	if out, err := c.Tool(ctx, c.Password+"\n", "--config", c.File, "admin", "bootstrap", "--name", "admin", "--password-stdin"); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	return c, c.LoginAdmin(ctx)
}

// Tool runs a short command of caponier-core to its end, where core runs.
func (c *Core) Tool(ctx context.Context, stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.bin, args...)
	if c.cfg.NS != "" {
		cmd = c.net.Command(ctx, c.cfg.NS, c.bin, args...)
	}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + c.Dir}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("caponier-core %s: %w", strings.Join(args, " "), err)
	}
	return string(out), err
}

// Start runs core, for the first time or again.
func (c *Core) Start(ctx context.Context) error {
	ready := filepath.Join(c.Dir, "ready.json")
	if err := os.Remove(ready); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	args := []string{"--config", c.File, "serve", "--ready-file", ready}
	base := context.WithoutCancel(ctx)
	cmd := exec.CommandContext(base, c.bin, args...)
	if c.cfg.NS != "" {
		cmd = c.net.Command(base, c.cfg.NS, c.bin, args...)
	}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + c.Dir}
	var err error
	if c.Proc, err = Start("core", c.Dir, cmd, c.cfg.Keep); err != nil {
		return err
	}
	return Until(ctx, 60*time.Second, "core is ready", func() error {
		select {
		case <-c.Proc.Exited():
			return fmt.Errorf("%w: %s", ErrGone, tail(c.Proc.Output(), 3000))
		default:
		}
		b, err := os.ReadFile(ready)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &c.Ready)
	})
}

// Dial connects to core from its own network.
func (c *Core) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if c.cfg.NS == "" {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	return c.net.Dial(ctx, c.cfg.NS, network, addr)
}

// LoginAdmin logs the administrator in again, after a restart for instance.
func (c *Core) LoginAdmin(ctx context.Context) error {
	api, err := NewAPI(c.Ready.URL, c.Ready.CAFile, c.Dial)
	if err != nil {
		return err
	}
	if !c.cfg.Keep { // in tests
		if _, err := api.Hold(ctx); err != nil {
			return err
		}
	}
	token, err := api.Login(ctx, "admin", c.Password)
	if err != nil {
		return fmt.Errorf("log the administrator in: %w", err)
	}
	c.Admin = api.As(token)
	return nil
}

// Login returns a bearer token.
func (a *API) Login(ctx context.Context, name, password string) (string, error) {
	var out struct {
		Token string `json:"token"`
	}
	err := a.Do(ctx, http.MethodPost, "/login", map[string]string{"username": name, "password": password}, &out)
	return out.Token, err
}

// made is the answer to creating anything.
type made struct {
	ID    string `json:"id"`
	Token string `json:"token"`
}

// Create posts and returns the new thing's ID.
func (a *API) Create(ctx context.Context, path string, in any) (string, error) {
	var m made
	err := a.Do(ctx, http.MethodPost, path, in, &m)
	return m.ID, err
}

// User makes a user with a password in a role of its own, and returns both IDs.
func (a *API) User(ctx context.Context, name, password string) (userID, roleID string, err error) {
	if userID, err = a.Create(ctx, "/users", map[string]any{"name": name, "password": password}); err != nil {
		return "", "", err
	}
	if roleID, err = a.Create(ctx, "/roles", map[string]any{"name": "of-" + name}); err != nil {
		return "", "", err
	}
	return userID, roleID, a.Do(ctx, http.MethodPut, "/roles/"+roleID+"/members/"+userID, map[string]any{}, nil)
}

// Account is an account of a new target.
type Account struct {
	Name   string `json:"name"`
	Auth   string `json:"auth,omitempty"`
	Secret string `json:"secret,omitempty"`
}

// Target is a new target.
type Target struct {
	Name          string    `json:"name"`
	Kind          string    `json:"kind"`
	Site          string    `json:"site,omitempty"`
	Host          string    `json:"host"`
	Port          int       `json:"port,omitempty"`
	Comment       string    `json:"comment,omitempty"`
	Tags          []string  `json:"tags,omitempty"`
	HostKeyPolicy string    `json:"host_key_policy,omitempty"`
	SSHAlgorithms string    `json:"ssh_algorithms,omitempty"`
	Accounts      []Account `json:"accounts,omitempty"`
}

// Grant opens a target to a role.
type Grant struct {
	Role     string   `json:"role"`
	Target   string   `json:"target,omitempty"`
	Tag      string   `json:"tag,omitempty"`
	Accounts []string `json:"accounts,omitempty"`
	Features []string `json:"features"`
	Idle     int      `json:"idle_seconds,omitempty"`
}

// Secret stores a password, key or JSON document in the vault and returns its ID.
func (a *API) Secret(ctx context.Context, name, kind, value string) (string, error) {
	in := map[string]any{"name": name, "kind": kind, "value": value}
	if kind == "json" {
		in["value"] = json.RawMessage(value)
	}
	return a.Create(ctx, "/secrets", in)
}

// Open makes a target and grants the role every use of all its accounts.
func (a *API) Open(ctx context.Context, roleID string, t Target) (string, error) {
	id, err := a.Create(ctx, "/targets", t)
	if err != nil {
		return "", err
	}
	_, err = a.Create(ctx, "/grants", Grant{Role: roleID, Target: id, Accounts: []string{"*"}, Features: []string{"all"}})
	return id, err
}

// Site makes a site; one that exists is fine.
func (a *API) Site(ctx context.Context, name string) error {
	_, err := a.Create(ctx, "/sites", map[string]string{"name": name})
	if s, ok := errors.AsType[*Status](err); ok && s.Code == http.StatusConflict {
		return nil
	}
	return err
}

// EnrolmentToken makes a token for one extender of a site.
func (a *API) EnrolmentToken(ctx context.Context, in map[string]any) (id, token string, err error) {
	body := map[string]any{"kind": "extender"}
	maps.Copy(body, in)
	var m made
	err = a.Do(ctx, http.MethodPost, "/enrolment-tokens", body, &m)
	return m.ID, m.Token, err
}

// Event is an entry of the audit log.
type Event struct {
	Time       time.Time         `json:"time"`
	Type       string            `json:"type"`
	Outcome    string            `json:"outcome"`
	Fields     map[string]string `json:"fields"`
	Connection string            `json:"connection"`
	Actor      struct {
		Kind, ID, Name, Source, Via string
	} `json:"actor"`
	Object struct{ Kind, ID, Name string } `json:"object"`
}

// Audit reads the newest audit events, most recent first.
func (a *API) Audit(ctx context.Context, query string) ([]Event, error) {
	var out struct {
		Items []Event `json:"items"`
	}
	err := a.Do(ctx, http.MethodGet, "/audit-events?"+query, nil, &out)
	return out.Items, err
}
