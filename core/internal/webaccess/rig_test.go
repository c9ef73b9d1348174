package webaccess

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/core/internal/vault"
	"caponier/e2e/harness"
	"caponier/shared/dial"
	"caponier/shared/tunnel"
	"caponier/shared/webrule"
)

// A server lingers half a second after it refused a body.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// patience is how long what must happen may take on a busy machine.
const patience = time.Minute

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	late := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-late:
			t.Fatalf("not in %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

// world is what outlives a run of core.
type world struct {
	t     testing.TB
	db    *db.DB
	vault *vault.Vault
	audit *audit.Log
	tapes *shelf
	addr  string
	law   *law
	mu    sync.Mutex
	// anchors are those of every access group; guarded by mu.
	anchors []*x509.Certificate
}

func (w *world) setAnchors(list []*x509.Certificate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.anchors = list
}

// core is one run of core: the room under test with a real fleet, real
// tunnels, connections, targets and vault around it.
type core struct {
	*world
	svc     *Service
	fleet   *fleet.Fleet
	conns   *conn.Manager
	targets *target.Service
	api     *httptest.Server
	url     string
	limits  conn.Limits
	stop    func()
}

func newWorld(t testing.TB, d *db.DB) *world {
	t.Helper()
	log := audit.New(d, time.Now)
	v, err := vault.New(t.Context(), vault.Config{DB: d, Audit: log, Log: quiet(t), KEK: vault.GenerateKEK()})
	must(t, err)
	// A core that comes back opens the same port again.
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(harness.FreePort(t)))
	return &world{t: t, db: d, vault: v, audit: log, tapes: &shelf{tapes: map[string]*tape{}}, addr: addr,
		law: &law{db: d, features: access.Web | access.FileTransfer, denied: map[string]bool{}, record: true, perms: map[string]map[api.Permission]bool{
			"auditor": {api.ConnectionsWatch: true, api.ConnectionsView: true, api.ConnectionsManage: true},
			"admin":   {api.EdgesManage: true, api.TargetsManage: true, api.TargetsView: true, api.SecretsManage: true, api.ConnectionsView: true},
		}}}
}

// each runs f on both engines.
func each(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	dbtest.Each(t, func(t *testing.T, d *db.DB) { f(t, newWorld(t, d)) })
}

func quiet(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func outerCert(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"core.test"}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// start runs core; tweak may change what it is given.
func (w *world) start(tweak ...func(*core, *Config)) *core {
	w.t.Helper()
	k := &core{world: w, limits: conn.Limits{Live: 1000, PerUser: 100, Reauthorize: time.Minute, Lease: time.Minute}}
	exempt, err := dial.ParsePrefixes("exempt", []string{"127.0.0.0/8"})
	must(w.t, err)
	var late *Service // made after the fleet, before anybody connects
	k.fleet, err = fleet.New(w.t.Context(), fleet.Config{
		DB: w.db, Audit: w.audit, Vault: w.vault, CoreID: "core_t", CoreName: "core", Direct: dial.Rules{Exempt: exempt}, Log: quiet(w.t),
		StatusEvery: 200 * time.Millisecond,
		Streams:     func(ctx context.Context, p fleet.Peer, s tunnel.Stream) { late.Stream(ctx, p, s) },
		Control: map[string]http.Handler{ControlPath: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			late.Control().ServeHTTP(rw, r)
		})},
	})
	must(w.t, err)
	k.targets, err = target.New(target.Config{DB: w.db, Audit: w.audit, Roles: w.law, Secrets: w.vault, Log: quiet(w.t)})
	must(w.t, err)
	w.law.change(func(l *law) { l.targets = k.targets })
	k.conns, err = conn.New(conn.Config{DB: w.db, Audit: w.audit, Authorizer: w.law, Logins: w.law, CoreID: "core_t",
		Limits: func() conn.Limits { return k.limits }, FlushEvery: 20 * time.Millisecond, Now: time.Now, Log: quiet(w.t)})
	must(w.t, err)
	cfg := Config{DB: w.db, Audit: w.audit, Policy: w.law, Conns: k.conns, Targets: k.targets, Fleet: k.fleet, Vault: w.vault,
		Recordings: w.tapes, Auth: w.law, Limits: func() conn.Limits { return k.limits }, ScanURL: func() string { return "" },
		ApprovalWait: func() time.Duration { return time.Minute },
		Person:       func(_ context.Context, id string) (bool, error) { return id != "usr_robot", nil },
		Anchors: func(context.Context, string) ([]*x509.Certificate, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.anchors, nil
		},
		Tick: 50 * time.Millisecond, Log: quiet(w.t), Now: time.Now}
	for _, f := range tweak {
		f(k, &cfg)
	}
	k.svc, err = New(w.t.Context(), cfg)
	must(w.t, err)
	late = k.svc
	must(w.t, k.svc.Restore(w.t.Context()))
	frame, err := api.New(api.Config{Auth: w.law, DB: w.db, Log: quiet(w.t)})
	must(w.t, err)
	k.svc.Routes(frame)
	k.conns.Routes(frame)
	k.api = httptest.NewServer(frame.Handler())

	l, err := net.Listen("tcp", w.addr)
	must(w.t, err)
	w.addr = l.Addr().String()
	k.url = "https://" + w.addr
	srv := &http.Server{Handler: k.fleet.Handler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	back, stopBack := context.WithCancel(context.Background())
	front, stopFront := context.WithCancel(context.Background())
	var behind, doors sync.WaitGroup
	behind.Go(func() {
		srv.Serve(tls.NewListener(tunnel.Listener(l), &tls.Config{Certificates: []tls.Certificate{outerCert(w.t)}, NextProtos: []string{"http/1.1"}}))
	})
	check := func(what string, err error) {
		if err != nil {
			w.t.Errorf("%s: %v", what, err)
		}
	}
	behind.Go(func() { check("fleet", k.fleet.Run(back)) })
	doors.Go(func() { check("connections", k.conns.Run(front, 5*time.Second)) })
	doors.Go(func() { check("web sessions", k.svc.Run(front)) })
	k.stop = sync.OnceFunc(func() {
		k.svc.Leave()
		frame.Close()
		stopFront()
		doors.Wait()
		k.api.CloseClientConnections()
		k.api.Close()
		stopBack()
		srv.Close()
		behind.Wait()
	})
	w.t.Cleanup(k.stop)
	return k
}

// do sends a request as somebody and decodes the answer.
func (k *core) do(who, method, path string, body any, out any) int {
	k.t.Helper()
	var in io.Reader
	if text, ok := body.(string); ok {
		in = strings.NewReader(text)
	} else if body != nil {
		b, err := json.Marshal(body)
		must(k.t, err)
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(k.t.Context(), method, k.api.URL+api.Prefix+path, in)
	must(k.t, err)
	r.Header.Set("Authorization", "Bearer "+who)
	if _, raw := body.(string); !raw && body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	resp, err := k.api.Client().Do(r)
	must(k.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(k.t, err)
	if out != nil {
		if text, ok := out.(*string); ok {
			*text = string(b)
		} else if err := json.Unmarshal(b, out); err != nil {
			k.t.Fatalf("%s %s: %d %q: %v", method, path, resp.StatusCode, b, err)
		}
	}
	return resp.StatusCode
}

// open opens a session for who.
func (k *core) open(who, target string, more map[string]any) *Session {
	k.t.Helper()
	body := map[string]any{"target_id": target}
	maps.Copy(body, more)
	var raw json.RawMessage
	if code := k.do(who, "POST", "/web-sessions", body, &raw); code != 201 {
		k.t.Fatalf("open %s: %d %s", target, code, raw)
	}
	var s Session
	must(k.t, json.Unmarshal(raw, &s))
	return &s
}

// get reads a session as who.
func (k *core) get(who, id string) *Session {
	k.t.Helper()
	var s Session
	if code := k.do(who, "GET", "/web-sessions/"+id, nil, &s); code != 200 {
		k.t.Fatalf("get %s as %s: %d", id, who, code)
	}
	return &s
}

// wiki makes a web target with one account whose password is known.
func (k *core) wiki(change func(*target.Target)) *target.Target {
	k.t.Helper()
	ctx := api.WithPrincipal(k.t.Context(), &api.Principal{UserID: "usr_admin", UserName: "admin", Permissions: k.law.perms["admin"]})
	must(k.t, k.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := k.targets.EnsureSite(ctx, tx, "plant")
		return err
	}))
	t := target.Target{Name: "wiki", Kind: target.Web, Site: "plant", Web: &target.WebSpec{StartURL: "https://wiki.example/start", Policy: webrule.Policy{
		Allow: []webrule.Rule{{Host: "cdn.example"}},
		Recipe: webrule.Recipe{Injections: []webrule.Injection{
			{ID: "pw", Kind: webrule.Form, Origin: "https://wiki.example", Path: "/login$", Field: "password", Value: webrule.Password},
		}},
	}}}
	if change != nil {
		change(&t)
	}
	secret := k.secret(vault.Password, t.Name, "correct horse")
	made, err := k.targets.Create(ctx, t, []target.Account{{Name: "alice", SecretID: secret}})
	must(k.t, err)
	return made
}

func (k *core) secret(kind vault.Kind, name, value string) string {
	k.t.Helper()
	var id string
	must(k.t, k.db.Tx(k.t.Context(), func(tx *db.Tx) error {
		s, err := k.vault.Create(k.t.Context(), tx, vault.NewSecret{Name: name, Kind: kind, Value: []byte(value)}, audit.System)
		if err == nil {
			id = s.ID
		}
		return err
	}))
	return id
}

// update changes a target as an administrator does.
func (k *core) update(id string, change func(*target.Target)) {
	k.t.Helper()
	ctx := api.WithPrincipal(k.t.Context(), &api.Principal{UserID: "usr_admin", UserName: "admin", Permissions: k.law.perms["admin"]})
	_, err := k.targets.Update(ctx, id, nil, change)
	must(k.t, err)
}

// notify tells rooms that something changed.
func (k *core) notify(topic, id string) {
	k.t.Helper()
	must(k.t, k.db.Tx(k.t.Context(), func(tx *db.Tx) error { return tx.Notify(k.t.Context(), topic, id) }))
}

// audited counts events of a type about a connection.
func (k *core) audited(typ audit.Type, connection string, outcome audit.Outcome) int {
	k.t.Helper()
	found, err := k.audit.After(k.t.Context(), k.db, audit.Filter{}, 0, 10_000)
	must(k.t, err)
	n := 0
	for _, e := range found {
		if e.Type == typ && (connection == "" || e.Connection == connection) && e.Outcome == outcome {
			n++
		}
	}
	return n
}
