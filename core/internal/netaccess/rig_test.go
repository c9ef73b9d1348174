package netaccess

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
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
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/target"
	"caponier/shared/control"
	"caponier/shared/netrule"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// law is policy and login check: everybody may everything but what is denied.
type law struct {
	mu      sync.Mutex
	targets *shelf
	denied  map[string]bool // user, or address
}

func (l *law) Decide(_ context.Context, q policy.Query) (policy.Verdict, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.targets.get(q.Target)
	if t == nil || q.Want != access.Network || l.denied[q.Principal.UserName] || l.denied[q.Source.String()] {
		return policy.Verdict{Decision: access.Decision{Reason: access.NoRole}, Public: "hidden", Target: t}, nil
	}
	return policy.Verdict{Decision: access.Decision{Reason: access.Allowed, Role: "rol_1", Grant: "gnt_1", Features: access.Network}, Target: t}, nil
}

func (l *law) Reauthorize(_ context.Context, s conn.Spec) (access.Decision, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.denied[s.Principal.UserName] {
		return access.Decision{Reason: access.NoRole}, nil
	}
	return access.Decision{Reason: access.Allowed, Features: access.Network}, nil
}

func (l *law) StillValid(context.Context, *api.Principal) error { return nil }

func (l *law) deny(who string, yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.denied[who] = yes
}

// shelf holds the targets.
type shelf struct {
	mu sync.Mutex
	by map[string]*target.Target
}

func (s *shelf) get(ref string) *target.Target {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.by {
		if t.ID == ref || t.Name == ref {
			c := *t
			return &c
		}
	}
	return nil
}

func (s *shelf) put(t target.Target, lines ...string) {
	n := target.NetworkSpec{}
	if t.Network != nil {
		n = *t.Network
	}
	for _, l := range lines {
		d, err := netrule.ParseDestination(l)
		if err != nil {
			panic(err)
		}
		n.Destinations = append(n.Destinations, d)
	}
	t.Kind, t.ID, t.Network = target.Network, "tgt_"+t.Name, &n
	s.mu.Lock()
	defer s.mu.Unlock()
	s.by[t.ID] = &t
}

func (s *shelf) Get(_ context.Context, _ db.Querier, id string) (*target.Target, error) {
	if t := s.get(id); t != nil {
		return t, nil
	}
	return nil, db.ErrNotFound
}

func (s *shelf) ByName(ctx context.Context, q db.Querier, name string) (*target.Target, error) {
	return s.Get(ctx, q, name)
}

func (s *shelf) List(_ context.Context, _ db.Querier, _ target.Filter, after string, limit int) ([]target.Target, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []target.Target
	for _, t := range s.by {
		if t.Name > after {
			out = append(out, *t)
		}
	}
	slices.SortFunc(out, func(a, b target.Target) int { return strings.Compare(a.Name, b.Name) })
	return out[:min(len(out), limit)], nil
}

// box is a router as the wire describes it: it holds sessions, and they are
// in force as long as its lease.
type box struct {
	id, name string
	leased   bool

	mu       sync.Mutex
	up       bool
	tunnel   uint64
	epoch    string
	rev      uint64
	synced   bool
	sessions map[string]wire.RouterSession
	lease    time.Time
	stuck    map[string]bool // removals that fail
	refuse   string          // targets it does not take
	noLease  bool            // leases fail
	hang     chan struct{}   // requests wait for it
	counts   map[string]wire.RouterCount
	states   int
	changes  int
}

// in reports whether packets of a session pass now.
func (b *box) in(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.sessions[id]
	return ok && (!b.leased || time.Now().Before(b.lease))
}

func (b *box) holds(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.sessions[id]
	return ok
}

func (b *box) set(f func(*box)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b)
}

func (b *box) ask(ctx context.Context, path string, in, out any) error {
	b.mu.Lock()
	hang, up := b.hang, b.up
	b.mu.Unlock()
	if !up {
		return fleet.ErrOffline
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch m := in.(type) {
	case wire.RouterState:
		b.states++
		want := map[string]bool{}
		ack := wire.RouterAck{Epoch: m.Epoch, Revision: m.Revision}
		for _, s := range m.Sessions {
			want[s.ID] = true
			b.addLocked(s, &ack)
		}
		for id := range b.sessions {
			if !want[id] {
				b.removeLocked(id, &ack)
			}
		}
		b.epoch, b.rev, b.synced = m.Epoch, m.Revision, true
		*out.(*wire.RouterAck) = ack
	case wire.RouterChanges:
		b.changes++
		if !b.synced || m.Epoch != b.epoch || m.From != b.rev {
			return &control.StatusError{Path: path, Status: 409, Text: "resync"}
		}
		ack := wire.RouterAck{Epoch: m.Epoch, Revision: m.To}
		for _, id := range m.Remove {
			b.removeLocked(id, &ack)
		}
		for _, s := range m.Add {
			b.addLocked(s, &ack)
		}
		b.rev = m.To
		*out.(*wire.RouterAck) = ack
	case wire.RouterLease:
		if b.noLease {
			return &control.StatusError{Path: path, Status: 503, Text: "not now"}
		}
		r := out.(*wire.RouterLeased)
		*r = wire.RouterLeased{Revision: b.rev, Type: "nftables", Leased: b.leased, Resync: !b.synced, Sessions: len(b.sessions)}
		if !b.leased {
			r.Type = "exec"
		}
		for id := range b.stuck {
			if _, there := b.sessions[id]; there {
				r.Ending = append(r.Ending, wire.RouterFailure{ID: id, Error: wire.Errorf(wire.CodeTimeout, "the program hangs")})
			}
		}
		if b.synced && m.Epoch == b.epoch && m.Revision == b.rev {
			b.lease = time.Now().Add(time.Duration(m.ForMS) * time.Millisecond)
		}
	case wire.RouterCountersAsk:
		r := out.(*wire.RouterCounters)
		for _, id := range m.Sessions {
			if c, ok := b.counts[id]; ok {
				r.Sessions = append(r.Sessions, c)
			}
		}
	}
	return nil
}

func (b *box) addLocked(s wire.RouterSession, ack *wire.RouterAck) {
	if b.refuse != "" && s.Target == b.refuse {
		ack.Failed = append(ack.Failed, wire.RouterFailure{ID: s.ID, Error: wire.Errorf(wire.CodeLimit, "no room for %s", s.Target)})
		return
	}
	b.sessions[s.ID] = s
}

func (b *box) removeLocked(id string, ack *wire.RouterAck) {
	if b.stuck[id] {
		ack.Ending = append(ack.Ending, wire.RouterFailure{ID: id, Error: wire.Errorf(wire.CodeTimeout, "the program hangs")})
		return
	}
	delete(b.sessions, id)
	if c, ok := b.counts[id]; ok {
		ack.Ended = append(ack.Ended, c)
	}
}

// boxes is the fleet.
type boxes struct {
	mu      sync.Mutex
	all     map[string]*box
	changed chan struct{}
	serial  uint64
}

func newBoxes() *boxes { return &boxes{all: map[string]*box{}, changed: make(chan struct{})} }

func (f *boxes) add(name string) *box {
	b := &box{id: "edg_" + name, name: name, leased: true, sessions: map[string]wire.RouterSession{}, stuck: map[string]bool{}, counts: map[string]wire.RouterCount{}}
	f.mu.Lock()
	f.all[b.id] = b
	f.mu.Unlock()
	f.connect(b, true)
	return b
}

// connect brings a router up or down; memory tells whether it still knows
// what it was told.
func (f *boxes) connect(b *box, up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serial++
	b.set(func(b *box) { b.up, b.tunnel, b.synced = up, f.serial, false })
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *boxes) Nodes(context.Context, db.Querier, wire.NodeKind) ([]fleet.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []fleet.Node
	for _, b := range f.all {
		out = append(out, fleet.Node{ID: b.id, Name: b.name, Kind: wire.Router, Health: "online"})
	}
	return out, nil
}

func (f *boxes) Online(wire.NodeKind) []fleet.Online {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []fleet.Online
	for _, b := range f.all {
		b.mu.Lock()
		if b.up {
			out = append(out, fleet.Online{ID: b.id, Name: b.name, Tunnel: b.tunnel, Remote: netip.MustParseAddrPort("127.0.0.9:1")})
		}
		b.mu.Unlock()
	}
	return out
}

func (f *boxes) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *boxes) Ask(ctx context.Context, id, _, path string, in, out any) error {
	f.mu.Lock()
	b := f.all[id]
	f.mu.Unlock()
	if b == nil {
		return fleet.ErrOffline
	}
	return b.ask(ctx, path, in, out)
}

type callers struct{}

func (callers) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	name, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, nil
	}
	if from := r.Header.Get("X-From"); from != "" {
		source = netip.MustParseAddr(from)
	}
	return principal(name, source), nil
}

func principal(name string, source netip.Addr) *api.Principal {
	p := &api.Principal{UserID: "usr_" + name, UserName: name, Session: "ses_" + name, Source: source, Via: "api", Permissions: map[api.Permission]bool{}}
	if name == "admin" {
		for _, x := range []api.Permission{api.ConnectionsManage, api.TargetsManage, api.EdgesManage} {
			p.Permissions[x] = true
		}
	}
	return p
}

// world is what outlives one core: database, routers, targets, rights.
type world struct {
	t       *testing.T
	db      *db.DB
	fleet   *boxes
	targets *shelf
	law     *law
	lease   time.Duration
	window  time.Duration
	relay   Relay
}

func newWorld(t *testing.T, d *db.DB) *world {
	w := &world{t: t, db: d, fleet: newBoxes(), targets: &shelf{by: map[string]*target.Target{}}, lease: maxLease, window: time.Hour}
	w.law = &law{targets: w.targets, denied: map[string]bool{}}
	return w
}

// core is one run of core in a world.
type core struct {
	*Service
	w      *world
	conns  *conn.Manager
	srv    *httptest.Server
	frame  *api.Frame
	stop   func()
	events chan api.Event
}

func (w *world) core() *core {
	w.t.Helper()
	log := slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	trail := audit.New(w.db, time.Now)
	c := &core{w: w, events: make(chan api.Event, 1000)}
	var err error
	c.conns, err = conn.New(conn.Config{
		DB: w.db, Audit: trail, Authorizer: w.law, Logins: w.law, CoreID: "cor_test", FlushEvery: 50 * time.Millisecond, Now: time.Now, Log: log,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	c.Service, err = New(Config{
		DB: w.db, Audit: trail, Policy: w.law, Conns: c.conns, Targets: w.targets, Fleet: w.fleet,
		Lease: func() time.Duration { return w.lease }, Presence: func() time.Duration { return w.window },
		Away: func() time.Duration { return time.Minute }, Relay: w.relay, Tick: 250 * time.Millisecond, Log: log, Now: time.Now,
		Publish: func(e api.Event) {
			select {
			case c.events <- e:
			default:
			}
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Restore(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if c.frame, err = api.New(api.Config{Auth: callers{}, DB: w.db, Log: log}); err != nil {
		w.t.Fatal(err)
	}
	c.Routes(c.frame)
	c.srv = httptest.NewServer(c.frame.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	wg.Go(func() {
		if err := c.conns.Run(ctx, 5*time.Second); err != nil {
			w.t.Errorf("run connections: %v", err)
		}
	})
	end := sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		c.frame.Close()
		c.srv.Close()
		c.srv.Client().CloseIdleConnections()
	})
	c.stop = func() { c.Leave(); end() }
	w.t.Cleanup(c.stop)
	w.until("the core runs", func() bool {
		c.Service.mu.Lock()
		defer c.Service.mu.Unlock()
		return c.run != nil && len(c.peers) == len(w.fleet.all)
	})
	return c
}

// pool gives a router its clients.
func (c *core) pool(b *box, pools ...string) {
	c.w.t.Helper()
	at := c.call("admin", "GET", "/routers/"+b.id, nil)
	r := c.call("admin", "PATCH", "/routers/"+b.id, map[string]any{"pools": pools}, "If-Match", at.Header.Get("ETag"))
	if r.StatusCode != 200 {
		c.w.t.Fatalf("patch router: %s", r.text)
	}
}

type reply struct {
	*http.Response
	text []byte
}

func (r reply) code() string {
	var p api.Problem
	if json.Unmarshal(r.text, &p) != nil {
		return ""
	}
	return p.Code
}

func (c *core) call(who, method, path string, body any, headers ...string) reply {
	c.w.t.Helper()
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			c.w.t.Fatal(err)
		}
		in = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, c.srv.URL+api.Prefix+path, in)
	if err != nil {
		c.w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+who)
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.srv.Client().Do(req)
	if err != nil {
		c.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return reply{resp, text}
}

// try opens through the room, as a user from an address.
func (c *core) try(user, from, name string) (*session, error) {
	a := netip.MustParseAddr(from)
	return c.Service.Open(context.Background(), principal(user, a), Request{Target: name, Client: a})
}

func (c *core) mustOpen(user, from, name string) *session {
	c.w.t.Helper()
	x, err := c.try(user, from, name)
	if err != nil {
		c.w.t.Fatalf("open %s: %v", name, err)
	}
	return x
}

func (c *core) wantCode(code, user, from, name string) {
	c.w.t.Helper()
	_, err := c.try(user, from, name)
	r, ok := errors.AsType[*Refused](err)
	if !ok || r.Code != code {
		c.w.t.Errorf("open %s as %s from %s: %v, want %s", name, user, from, err, code)
	}
}

func (c *core) show(id string) *Session {
	c.w.t.Helper()
	v, err := c.show1(context.Background(), id)
	if err != nil {
		c.w.t.Fatal(err)
	}
	return v
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within a minute: %s", what)
		}
		select {
		case <-w.t.Context().Done():
			w.t.Fatal(what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ended waits until a session has ended for everybody, and returns its record.
func (c *core) ended(id string) *conn.Record {
	c.w.t.Helper()
	var r *conn.Record
	var first *Session
	c.w.until("session "+id+" has ended", func() bool {
		v := c.show(id)
		if v.State == Ended && first == nil {
			first = v
		}
		var err error
		if r, err = c.conns.Get(context.Background(), id); err != nil {
			c.w.t.Fatal(err)
		}
		return v.State == Ended && r.State.Over()
	})
	// The end is shown whole from the first moment on.
	if first.EndReason != string(r.EndReason) || first.EndText != r.EndDetail {
		c.w.t.Errorf("session %s was first shown to have ended by %q (%q), then by %q (%q)", id, first.EndReason, first.EndText, r.EndReason, r.EndDetail)
	}
	return r
}
