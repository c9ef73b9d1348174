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
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
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
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
	"caponier/core/internal/target"
	"caponier/core/internal/vault"
	"caponier/e2e/harness"
	"caponier/shared/config"
	"caponier/shared/control"
	"caponier/shared/dial"
	"caponier/shared/edge"
	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
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

// law stands for users, roles and logins: everybody may everything but what
// was taken from him.
type law struct {
	mu       sync.Mutex
	targets  *target.Service
	db       *db.DB
	features access.Features                    // guarded by mu
	denied   map[string]bool                    // guarded by mu; by user
	reason   bool                               // guarded by mu: a reason is needed
	record   bool                               // guarded by mu
	idle     time.Duration                      // guarded by mu
	longest  time.Duration                      // guarded by mu
	perms    map[string]map[api.Permission]bool // by user
}

func (l *law) change(f func(*law)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

func (l *law) decision() access.Decision {
	return access.Decision{Reason: access.Allowed, Role: "rol_1", Grant: "gnt_1", Features: l.features, Record: l.record, Idle: l.idle, MaxDuration: l.longest}
}

func (l *law) Decide(ctx context.Context, q policy.Query) (policy.Verdict, error) {
	ts, err := l.targets.Candidates(ctx, l.db, q.Target)
	if err != nil {
		return policy.Verdict{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case len(ts) == 0 || l.denied[q.Principal.UserName]:
		return policy.Verdict{Decision: access.Decision{Reason: access.NoRole}, Public: "There is no target that you may use."}, nil
	case l.reason && q.Reason == "":
		return policy.Verdict{Decision: access.Decision{Reason: access.NeedReason}, Target: &ts[0], Public: "A reason is needed."}, nil
	}
	v := policy.Verdict{Decision: l.decision(), Target: &ts[0]}
	if q.Account != "" {
		v.Account, err = l.targets.Account(ctx, l.db, ts[0].ID, q.Account)
	}
	return v, err
}

func (l *law) Reauthorize(_ context.Context, s conn.Spec) (access.Decision, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.denied[s.Principal.UserName] {
		return access.Decision{Reason: access.NoRole}, nil
	}
	return l.decision(), nil
}

func (l *law) StillValid(context.Context, *api.Principal) error { return nil }

// Authenticate takes "Bearer name" or "Bearer name/login".
func (l *law) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	login := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if login == "" {
		return nil, nil
	}
	name, _, _ := strings.Cut(login, "/")
	return &api.Principal{UserID: "usr_" + name, UserName: name, Session: "ses_" + login, Source: source, Via: "console", Permissions: l.perms[name]}, nil
}

func (l *law) RoleName(context.Context, db.Querier, string) (string, error) { return "role", nil }

func (l *law) RoleGroup(context.Context, db.Querier, string) (string, error) {
	return access.DefaultGroup, nil
}

// tape is a recording in memory that outlives the run that writes it.
type tape struct {
	mu     sync.Mutex
	id     string
	meta   recording.Meta
	next   map[string]uint64
	recs   []string // "source kind payload"
	events []string
	closed bool
	lacks  string // why it was closed as incomplete
	fail   error
}

func (x *tape) Next(source string) uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return max(x.next[source], 1)
}

func (x *tape) Append(source string, _ time.Duration, recs []wire.WebRecord) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.fail != nil {
		return x.fail
	}
	for _, r := range recs {
		switch next := max(x.next[source], 1); {
		case r.Seq < next:
			continue
		case r.Seq > next:
			return &recording.GapError{Source: source, Want: next, Got: r.Seq}
		}
		x.next[source] = r.Seq + 1
		x.recs = append(x.recs, source+" "+string(rune(r.Kind))+" "+string(r.Payload))
	}
	return nil
}

func (x *tape) Event(kind string, fields map[string]string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.events = append(x.events, kind)
	return nil
}

func (x *tape) File(context.Context, recording.Direction, string) (*recording.FileWriter, error) {
	return nil, errors.New("no copies are kept here")
}

func (x *tape) CloseIncomplete(why string) error {
	x.mu.Lock()
	x.lacks = why
	x.mu.Unlock()
	return x.Close()
}

func (x *tape) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	return nil
}

// shelf holds tapes.
type shelf struct {
	mu    sync.Mutex
	tapes map[string]*tape
	fail  error
}

func (s *shelf) Create(_ context.Context, m recording.Meta) (Recording, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, "", s.fail
	}
	x := &tape{id: "rec_" + m.ConnectionID, meta: m, next: map[string]uint64{}}
	s.tapes[x.id] = x
	return x, x.id, nil
}

func (s *shelf) Resume(_ context.Context, id string) (Recording, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.tapes[id]; x != nil && !x.closed {
		return x, nil
	}
	return nil, recording.ErrNotResumable
}

func (s *shelf) of(session string) *tape {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tapes["rec_"+session]
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

// box is a carrier or a webproxy as the wire describes it.
type box struct {
	*edge.Edge
	t    testing.TB
	id   string
	name string
	kind wire.NodeKind

	mu       sync.Mutex
	carrier  map[string]wire.CarrierSession
	proxy    map[string]wire.WebProxySession
	ended    map[string]bool
	order    []string // what it was asked, in order
	refuse   *wire.Error
	stuck    int             // how many times it says that a session is still ending
	refusals int             // how many sessions are refused before one is taken
	started  func(id string) // called when a session was started, before that is told
	capacity wire.WebCapacity
	files    map[string]string
	live     context.CancelFunc
	done     chan struct{}
	dir      string
}

func (b *box) set(f func(*box)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

// node starts a carrier or webproxy.
func (k *core) node(kind wire.NodeKind, name string, tweak ...func(*box)) *box {
	k.t.Helper()
	b := &box{t: k.t, name: name, kind: kind, carrier: map[string]wire.CarrierSession{}, proxy: map[string]wire.WebProxySession{},
		ended: map[string]bool{}, files: map[string]string{}, capacity: wire.WebCapacity{Max: 10, Room: 10, Warm: 2}, dir: filepath.Join(k.t.TempDir(), "state")}
	if kind == wire.WebProxy {
		b.capacity.Address = name + ".test:18443"
	}
	for _, f := range tweak {
		f(b)
	}
	must(k.t, os.Mkdir(b.dir, 0o700))
	_, token, err := k.fleet.CreateToken(k.t.Context(), audit.System, fleet.TokenSpec{Kind: string(kind), MaxUses: 1, TTL: time.Hour})
	must(k.t, err)
	b.up(k.url, token)
	eventually(k.t, name+" reports", func() bool {
		for _, o := range k.fleet.Online(kind) {
			if o.Name == name && o.Status.Web != nil {
				b.id = o.ID
				return true
			}
		}
		return false
	})
	return b
}

// up connects the node; down cuts it off, its sessions stay.
func (b *box) up(url, token string) {
	b.t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathCarrierSessions, b.states)
	mux.HandleFunc("GET "+wire.PathWebProxySessions, b.states)
	mux.HandleFunc("PUT "+wire.PathCarrierSessions+"/{id}", b.putCarrier)
	mux.HandleFunc("PUT "+wire.PathWebProxySessions+"/{id}", b.putProxy)
	mux.HandleFunc("DELETE "+wire.PathCarrierSessions+"/{id}", b.end)
	mux.HandleFunc("DELETE "+wire.PathWebProxySessions+"/{id}", b.end)
	e, err := edge.New(edge.Config{URL: url, State: b.dir, Token: config.Secret(token), Kind: b.kind, Name: b.name, Build: "test", Transport: tunnel.WSS,
		Log: quiet(b.t), Grace: time.Second, Control: mux, Stream: b.stream, Status: func(s *wire.Status) {
			b.mu.Lock()
			defer b.mu.Unlock()
			c := b.capacity
			s.Web = &c
		}})
	must(b.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	b.Edge, b.live, b.done = e, cancel, done
	go func() {
		defer close(done)
		e.Run(ctx)
		e.Close()
	}()
	b.t.Cleanup(func() { cancel(); <-done })
}

func (b *box) down() {
	b.live()
	<-b.done
}

func (b *box) states(w http.ResponseWriter, _ *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out wire.WebStates
	for id, s := range b.carrier {
		out.Sessions = append(out.Sessions, wire.WebState{ID: id, Revision: s.Revision})
	}
	for id, s := range b.proxy {
		out.Sessions = append(out.Sessions, wire.WebState{ID: id, Revision: s.Revision})
	}
	control.Reply(w, out)
}

func (b *box) putCarrier(w http.ResponseWriter, r *http.Request) {
	var s wire.CarrierSession
	if !control.ReadUpTo(w, r, &s, wire.MaxWebBody) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = append(b.order, "PUT "+s.ID)
	if b.refuse != nil {
		control.Reply(w, wire.CarrierAck{Error: b.refuse})
		return
	}
	if old, ok := b.carrier[s.ID]; ok && old.Revision >= s.Revision {
		b.t.Errorf("%s: revision %d after %d", b.name, s.Revision, old.Revision)
	}
	b.carrier[s.ID] = s
	if b.started != nil {
		b.mu.Unlock()
		b.started(s.ID)
		b.mu.Lock()
	}
	control.Reply(w, wire.CarrierAck{Revision: s.Revision, Warm: b.capacity.Warm > 0})
}

func (b *box) putProxy(w http.ResponseWriter, r *http.Request) {
	var s wire.WebProxySession
	if !control.ReadUpTo(w, r, &s, wire.MaxWebBody) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.order = append(b.order, "PUT "+s.ID)
	if b.refusals > 0 {
		b.refusals--
		control.Reply(w, wire.WebAck{Error: wire.Errorf(wire.CodeLimit, "not yet")})
		return
	}
	if b.refuse != nil {
		control.Reply(w, wire.WebAck{Error: b.refuse})
		return
	}
	if old, ok := b.proxy[s.ID]; ok && old.Revision >= s.Revision {
		b.t.Errorf("%s: revision %d after %d", b.name, s.Revision, old.Revision)
	}
	b.proxy[s.ID] = s
	control.Reply(w, wire.WebAck{Revision: s.Revision})
}

func (b *box) end(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id := r.PathValue("id")
	if b.stuck > 0 {
		b.stuck--
		control.Reply(w, wire.WebAck{Error: wire.Errorf(wire.CodeTimeout, "the session is still ending")})
		return
	}
	delete(b.carrier, id)
	delete(b.proxy, id)
	b.ended[id] = true
	control.Reply(w, wire.WebAck{})
}

// has returns what the node was told of a session.
func (b *box) forCarrier(id string) (wire.CarrierSession, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.carrier[id]
	return s, ok
}

func (b *box) forProxy(id string) (wire.WebProxySession, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, ok := b.proxy[id]
	return s, ok
}

func (b *box) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.carrier) + len(b.proxy)
}

// stream serves core's streams: the screen greets with its name and echoes,
// files are a small HTTP server.
func (b *box) stream(_ context.Context, s tunnel.Stream) {
	p := s.Preface()
	if _, ok := b.forProxy(p.Connection); ok && p.Dest == wire.SessionProxy {
		s.Write([]byte("proxy "))
		io.Copy(s, s)
		return
	}
	if _, ok := b.forCarrier(p.Connection); !ok {
		s.Refuse(wire.Errorf(wire.CodeRefused, "no such session"))
		return
	}
	switch p.Dest {
	case wire.ScreenControl, wire.ScreenWatch:
		s.Write([]byte("RFB " + p.Dest))
		io.Copy(s, s)
	case wire.SessionFiles:
		b.serveFiles(s)
	default:
		s.Refuse(wire.Errorf(wire.CodeBadRequest, "unknown destination"))
	}
}

// onceListener hands one connection to an HTTP server.
type onceListener struct {
	c    net.Conn
	used sync.Once
	done chan struct{}
}

func (l *onceListener) Accept() (net.Conn, error) {
	var c net.Conn
	l.used.Do(func() { c = closing{l.c, sync.OnceFunc(func() { close(l.done) })} })
	if c != nil {
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}
func (l *onceListener) Close() error   { return nil }
func (l *onceListener) Addr() net.Addr { return &net.UnixAddr{Name: "files", Net: "unix"} }

type closing struct {
	net.Conn
	closed func()
}

func (c closing) Close() error {
	err := c.Conn.Close()
	c.closed()
	return err
}

func (b *box) serveFiles(s tunnel.Stream) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /files", func(w http.ResponseWriter, _ *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		var list wire.WebFiles
		for name, text := range b.files {
			list.Files = append(list.Files, wire.WebFile{Path: name, Size: int64(len(text)), Modified: 1})
		}
		slices.SortFunc(list.Files, func(a, b wire.WebFile) int { return strings.Compare(a.Path, b.Path) })
		control.Reply(w, list)
	})
	mux.HandleFunc("GET /files/{path...}", func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		text, ok := b.files[r.PathValue("path")]
		b.mu.Unlock()
		if !ok {
			http.Error(w, "no such file", http.StatusNotFound)
			return
		}
		if strings.HasSuffix(r.PathValue("path"), "folder") {
			w.Header().Set("Content-Type", "application/x-tar")
		}
		io.WriteString(w, text)
	})
	mux.HandleFunc("PUT /files/{path...}", func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("path")
		if strings.HasSuffix(name, "eicar") {
			http.Error(w, "the scanner found EICAR", http.StatusUnprocessableEntity)
			return
		}
		text, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if r.URL.Query().Has("tar") {
			name = "tar"
		}
		b.set(func(b *box) { b.files[name] = string(text) })
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("DELETE /files/{path...}", func(w http.ResponseWriter, r *http.Request) {
		b.set(func(b *box) { delete(b.files, r.PathValue("path")) })
		w.WriteHeader(http.StatusNoContent)
	})
	l := &onceListener{c: s, done: make(chan struct{})}
	srv := &http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	srv.Serve(l)
	srv.Close()
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
	for key, v := range more {
		body[key] = v
	}
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

// credential asks for the credential as a webproxy does.
func (b *box) credential(ask wire.WebCredentialAsk) wire.WebCredential {
	b.t.Helper()
	key, err := wire.NewWebCredentialKey(&ask)
	must(b.t, err)
	var sealed wire.WebCredentialSealed
	must(b.t, control.Call(b.t.Context(), b.Session(), "POST", wire.PathWebCredential, ask, &sealed))
	if sealed.Error != nil {
		return wire.WebCredential{Error: sealed.Error}
	}
	c, err := key.Open(ask, sealed.Sealed)
	must(b.t, err)
	return c
}
