package webterm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/bastion"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
	"caponier/core/internal/sshca"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
	"caponier/core/internal/vault"
	"caponier/e2e/harness"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world stands for the rooms that are not under test: people, policy, network.
type world struct {
	mu       sync.Mutex
	gone     map[string]bool                    // guarded by mu: people whose login is over
	perms    map[string]map[api.Permission]bool // guarded by mu
	features access.Features                    // guarded by mu
	reason   bool                               // guarded by mu: the grant wants one
	noRecord bool                               // guarded by mu
	slow     time.Duration                      // guarded by mu: what a decision takes
	addr     string                             // of the sshd
	account  string
}

func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (w *world) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	name := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	via := "api"
	if c, err := r.Cookie("session"); name == "" && err == nil {
		name, via = c.Value, "console"
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if name == "" || w.gone[name] {
		return nil, api.Unauthenticated("Log in.")
	}
	// "demo/token" is another login of demo.
	login := name
	name, _, _ = strings.Cut(name, "/")
	return &api.Principal{UserID: "usr_" + name, UserName: name, Session: "ses_" + login, Methods: []string{"password"}, Source: source, Via: via,
		Permissions: w.perms[name]}, nil
}

func (w *world) StillValid(_ context.Context, p *api.Principal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.gone[p.UserName] {
		return user.ErrEnded
	}
	return nil
}

func (w *world) Login(context.Context, user.Credentials) (*api.Principal, error) {
	return nil, user.ErrBadCredentials
}

func (w *world) AcceptsKey(context.Context, string, ssh.PublicKey, netip.Addr) (bool, error) {
	return false, nil
}

func (w *world) Decide(_ context.Context, q policy.Query) (policy.Verdict, error) {
	w.mu.Lock()
	slow := w.slow
	w.mu.Unlock()
	<-time.After(slow)
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &target.Target{ID: "tgt_1", Name: "db-1", Group: access.DefaultGroup, Kind: target.SSH, Host: "10.0.0.5", Port: 22, HostKeyPolicy: target.HostKeyTOFU}
	refuse := func(r access.Reason, text string) (policy.Verdict, error) {
		return policy.Verdict{Decision: access.Decision{Reason: r}, Public: text}, nil
	}
	switch {
	case q.Target != t.Name && q.Target != t.ID || q.Account != w.account || q.Principal.UserName == "stranger":
		return refuse(access.NoRole, "There is no such target, or you may not use it.")
	case w.features&q.Want == 0:
		return refuse(access.NoFeature, "Your role does not allow "+q.Want.String()+" on db-1.")
	case w.reason && q.Reason == "":
		return refuse(access.NeedReason, "db-1 asks for a reason.")
	}
	return policy.Verdict{
		Decision: access.Decision{Reason: access.Allowed, Role: "rol_1", Grant: "gnt_1", Features: w.features, Record: !w.noRecord},
		Target:   t, Account: &target.Account{ID: "acc_1", TargetID: t.ID, Name: w.account, Auth: target.AuthCertificate},
	}, nil
}

func (w *world) List(context.Context, *api.Principal, netip.Addr, string, string, int) ([]policy.Entry, error) {
	return nil, nil
}

func (w *world) Reauthorize(_ context.Context, s conn.Spec) (access.Decision, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := s.Decision
	d.Features = w.features
	return d, nil
}

func (w *world) HostKeys(context.Context, string) ([]target.HostKey, error) { return nil, nil }
func (w *world) SawHostKey(context.Context, string, target.HostKey) error   { return nil }
func (w *world) Reveal(context.Context, string, string, string) ([]byte, error) {
	return nil, db.ErrNotFound
}

func (w *world) Dial(ctx context.Context, _ fleet.DialRequest) (fleet.Conn, fleet.Route, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.addr)
	if err != nil {
		return nil, fleet.Route{}, err
	}
	return c.(*net.TCPConn), fleet.Route{Transport: "direct"}, nil
}

// rig is the room with everything real around it but the world.
type rig struct {
	*world
	t     *testing.T
	svc   *Service
	conns *conn.Manager
	audit *audit.Log
	db    *db.DB
	web   *httptest.Server
	home  string
	stop  func()
}

var quiet = slog.New(slog.DiscardHandler)

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func newRig(t *testing.T, tweak ...func(*Config)) *rig {
	t.Helper()
	me, err := osuser.Current()
	must(t, err)
	w := &world{gone: map[string]bool{}, features: access.Shell | access.Exec | access.FileTransfer, account: me.Username,
		perms: map[string]map[api.Permission]bool{"auditor": {api.ConnectionsManage: true, api.ConnectionsWatch: true}}}
	d := dbtest.SQLite(t)
	log := audit.New(d, time.Now)
	v, err := vault.New(t.Context(), vault.Config{DB: d, Audit: log, Log: quiet, KEK: vault.GenerateKEK()})
	must(t, err)
	limits := recording.DefaultLimits()
	limits.MinFree = 0
	store, err := recording.New(recording.Config{DB: d, Audit: log, Keys: v, Dir: t.TempDir(), CoreID: "core_t", Limits: func() recording.Limits { return limits }, Now: time.Now, Log: quiet})
	must(t, err)
	ca, err := sshca.New(t.Context(), sshca.Config{DB: d, Vault: v, Audit: log, Log: quiet, Bastion: "core:2222", Separator: func() string { return "%" }})
	must(t, err)
	conns, err := conn.New(conn.Config{DB: d, Audit: log, Authorizer: w, Logins: w, CoreID: "core_t", FlushEvery: 50 * time.Millisecond, Now: time.Now, Log: quiet})
	must(t, err)
	_, hostKey, err := ca.HostSigner(t.Context(), []string{"core"})
	must(t, err)
	b, err := bastion.New(bastion.Config{
		Users: w, Policy: w, Connections: bastion.FromManager(conns), Recordings: bastion.FromStore(store), Dialer: w, CA: ca, Vault: w, HostKeys: w, Audit: log,
		Signers: func() []ssh.Signer { return []ssh.Signer{hostKey} }, Log: quiet, Now: time.Now,
	})
	must(t, err)
	cfg := Config{Bastion: b, Policy: w, Connections: conns, Recordings: store, Notes: d, Auth: w, Log: quiet, Now: time.Now}
	cfg.Limits.Connect = patience
	for _, f := range tweak {
		f(&cfg)
	}
	svc, err := New(cfg)
	must(t, err)
	f, err := api.New(api.Config{Auth: w, DB: d, Log: quiet})
	must(t, err)
	svc.Routes(f)
	conns.Routes(f)
	r := &rig{world: w, t: t, svc: svc, conns: conns, audit: log, db: d, web: httptest.NewTLSServer(f.Handler()), home: t.TempDir()}
	keys, err := ca.PublicKey(t.Context(), access.DefaultGroup)
	must(t, err)
	r.sshd(keys)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{svc.Run, store.Run, func(ctx context.Context) error { return conns.Run(ctx, 10*time.Second) }} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	r.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(func() {
		r.stop()
		f.Close()
		r.web.CloseClientConnections()
		r.web.Close()
		r.web.Client().CloseIdleConnections()
	})
	return r
}

// sshd starts a real OpenSSH server that trusts keys.
func (r *rig) sshd(keys string) {
	t := r.t
	dir := t.TempDir()
	host := filepath.Join(dir, "host")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	must(t, os.WriteFile(filepath.Join(dir, "ca"), []byte(keys), 0o600))
	port := harness.FreePort(t)
	r.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	conf := filepath.Join(dir, "conf")
	must(t, os.WriteFile(conf, []byte(strings.Join([]string{
		"ListenAddress 127.0.0.1", "Port " + strconv.Itoa(port), "HostKey " + host, "PidFile none", "StrictModes no", "UsePAM no", "PermitRootLogin yes",
		"PasswordAuthentication no", "TrustedUserCAKeys " + filepath.Join(dir, "ca"), "AuthorizedKeysFile none", "Subsystem sftp internal-sftp",
		"PrintMotd no", "PrintLastLog no", "MaxSessions 100", "SetEnv PS1=$ PROMPT_COMMAND=", ""}, "\n")), 0o600))
	if os.Getuid() == 0 {
		must(t, os.MkdirAll("/run/sshd", 0o755))
	}
	c := exec.Command("/usr/sbin/sshd", "-D", "-f", conf, "-E", filepath.Join(dir, "log"))
	must(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("sshd: %s", text)
		}
	})
	r.until("sshd listens", func() bool {
		c, err := net.Dial("tcp", r.addr)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

// patience is how long what must happen may take on a busy machine.
const patience = 2 * time.Minute

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			r.t.Fatalf("not in %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

// do sends a request as somebody.
func (r *rig) do(who, method, path string, body io.Reader) (int, []byte) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.web.URL+"/api/v1"+path, body)
	must(r.t, err)
	req.Header.Set("Authorization", "Bearer "+who)
	if method == "POST" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := r.web.Client().Do(req)
	must(r.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(r.t, err)
	return resp.StatusCode, b
}

// call expects a status and decodes the answer.
func (r *rig) call(who, method, path string, in any, status int, out any) {
	r.t.Helper()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		must(r.t, err)
		body = bytes.NewReader(b)
	}
	code, b := r.do(who, method, path, body)
	if code != status {
		r.t.Fatalf("%s %s as %s: %d %s, want %d", method, path, who, code, b, status)
	}
	if out != nil {
		must(r.t, json.Unmarshal(b, out))
	}
}

// open opens a terminal as demo.
func (r *rig) open() Terminal {
	r.t.Helper()
	var t Terminal
	r.call("demo", "POST", "/terminal-sessions", map[string]any{"target": "db-1", "account": r.account, "cols": 80, "rows": 24}, 201, &t)
	return t
}

// tty is a browser's side of a socket.
type tty struct {
	r      *rig
	c      *websocket.Conn
	ack    bool // acknowledge output
	mu     sync.Mutex
	out    []byte // guarded by mu
	next   uint64 // guarded by mu: offset behind out
	taken  uint64 // guarded by mu: hello's input offset
	fresh  bool   // guarded by mu
	states []byte // guarded by mu: the last state
	size   string // guarded by mu
	end    error  // guarded by mu
	done   chan struct{}
	typed  uint64
}

func (r *rig) dial(who, path string) *tty {
	r.t.Helper()
	c, _, err := r.handshake(who, path)
	must(r.t, err)
	return r.tty(c, true)
}

func (r *rig) handshake(who, path string) (*websocket.Conn, *http.Response, error) {
	return websocket.Dial(r.t.Context(), "wss"+strings.TrimPrefix(r.web.URL, "https")+"/api/v1"+path, &websocket.DialOptions{
		HTTPClient: r.web.Client(), HTTPHeader: http.Header{"Authorization": {"Bearer " + who}}})
}

func (r *rig) tty(c *websocket.Conn, ack bool) *tty {
	c.SetReadLimit(8 << 20)
	y := &tty{r: r, c: c, ack: ack, done: make(chan struct{})}
	go y.read()
	r.t.Cleanup(func() { _ = c.CloseNow(); <-y.done })
	return y
}

func (y *tty) read() {
	defer close(y.done)
	for {
		_, p, err := y.c.Read(context.Background())
		if err != nil {
			y.mu.Lock()
			y.end = err
			y.mu.Unlock()
			return
		}
		y.mu.Lock()
		switch p[0] {
		case msgHello:
			y.next, y.taken, y.fresh = u64(p[1:]), u64(p[9:]), p[17] == 1
		case msgOutput:
			if at := u64(p[1:]); at != y.next {
				y.out = append(y.out, fmt.Sprintf("<gap: %d after %d>", at, y.next)...)
			}
			y.out = append(y.out, p[9:]...)
			y.next += uint64(len(p) - 9)
		case msgScreen:
			y.next = u64(p[1:])
			y.out = append(y.out, p[9:]...)
		case msgState:
			y.states = p[1:]
		case msgSize:
			y.size = fmt.Sprintf("%dx%d", int(p[1])<<8|int(p[2]), int(p[3])<<8|int(p[4]))
		}
		next, ack := y.next, y.ack && (p[0] == msgOutput || p[0] == msgScreen)
		y.mu.Unlock()
		if ack {
			_ = y.c.Write(context.Background(), websocket.MessageBinary, offsetMessage(msgAck, next, nil))
		}
	}
}

func u64(p []byte) (n uint64) {
	for _, c := range p[:8] {
		n = n<<8 | uint64(c)
	}
	return n
}

// write sends a message as it is.
func (y *tty) write(p []byte) {
	y.r.t.Helper()
	must(y.r.t, y.c.Write(y.r.t.Context(), websocket.MessageBinary, p))
}

// enter types a text.
func (y *tty) enter(s string) {
	y.r.t.Helper()
	y.write(offsetMessage(msgInput, y.typed, []byte(s)))
	y.typed += uint64(len(s))
}

func (y *tty) output() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	return string(y.out)
}

func (y *tty) offset() uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.next
}

// sees waits for output.
func (y *tty) sees(text string) {
	y.r.t.Helper()
	y.r.until("output "+text, func() bool {
		if strings.Contains(y.output(), text) {
			return true
		}
		y.mu.Lock()
		defer y.mu.Unlock()
		if y.end != nil {
			y.r.t.Fatalf("socket ended (%v) before %q; output %q", y.end, text, y.out)
		}
		return false
	})
}

// told waits for a state.
func (y *tty) told(what string, ok func(State) bool) State {
	y.r.t.Helper()
	var st State
	y.r.until(what, func() bool {
		y.mu.Lock()
		defer y.mu.Unlock()
		st = State{}
		return len(y.states) > 0 && json.Unmarshal(y.states, &st) == nil && ok(st)
	})
	return st
}

// closed waits for the socket's end and returns its code.
func (y *tty) closed() websocket.StatusCode {
	y.r.t.Helper()
	select {
	case <-y.done:
	case <-time.After(patience):
		y.r.t.Fatal("the socket did not end")
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	return websocket.CloseStatus(y.end)
}

func request(t *testing.T, origin, auth string) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), "GET", "https://core.test/api/v1/x", nil)
	if origin != "" {
		r.Header.Set("Origin", origin)
	}
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	return r
}

// types counts audit events of a type about a connection.
func (r *rig) audited(typ audit.Type, connection string) int {
	r.t.Helper()
	var n int
	must(r.t, r.db.QueryRowContext(r.t.Context(), `select count(*) from audit_events where type = $1 and connection_id = $2`, string(typ), connection).Scan(&n))
	return n
}

func (r *rig) notify(topic, id string) {
	r.t.Helper()
	ctx := context.Background()
	must(r.t, r.db.Tx(ctx, func(tx *db.Tx) error { return tx.Notify(ctx, topic, id) }))
}
