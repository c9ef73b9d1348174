package portaccess

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
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
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// law is policy and login check: sources and targets it allows.
type law struct {
	mu      sync.Mutex
	denied  map[netip.Addr]bool
	revoked bool
	kind    target.Kind
}

func (l *law) Decide(_ context.Context, q policy.Query) (policy.Verdict, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.Target != "db-1" || q.Want != access.Forward || l.denied[q.Source] || l.revoked {
		return policy.Verdict{Decision: access.Decision{Reason: access.NoRole}, Public: "There is no such target, or you may not use it."}, nil
	}
	return policy.Verdict{
		Decision: access.Decision{Reason: access.Allowed, Role: "rol_1", Grant: "grt_1", Features: access.Forward},
		Target:   &target.Target{ID: "tgt_1", Name: "db-1", Kind: l.kind, Site: "vpc-a", Host: "10.10.0.5", Port: 5432},
	}, nil
}

func (l *law) Reauthorize(_ context.Context, s conn.Spec) (access.Decision, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.revoked {
		return access.Decision{Reason: access.NoRole}, nil
	}
	return s.Decision, nil
}

func (l *law) StillValid(context.Context, *api.Principal) error { return nil }

func (l *law) set(f func(*law)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

// direct dials a listener of the test, whatever the destination is called.
type direct struct {
	addr string
	mu   sync.Mutex
	last fleet.DialRequest
	err  error
}

func (d *direct) Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error) {
	d.mu.Lock()
	d.last = r
	err := d.err
	d.mu.Unlock()
	if err != nil {
		return nil, fleet.Route{}, err
	}
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "tcp", d.addr)
	if err != nil {
		return nil, fleet.Route{}, err
	}
	return c.(*net.TCPConn), fleet.Route{Site: r.Site, NodeID: "edg_1", Node: "ext-1", Transport: "wss"}, nil
}

type callers struct{}

func (callers) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	name, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, nil
	}
	return principal(name, source), nil
}

func principal(name string, source netip.Addr) *api.Principal {
	p := &api.Principal{UserID: "usr_" + name, UserName: name, Source: source, Via: "api", Permissions: map[api.Permission]bool{}}
	if name == "admin" {
		p.Permissions[api.ConnectionsManage] = true
	}
	return p
}

type rig struct {
	*Service
	t    *testing.T
	db   *db.DB
	law  *law
	dial *direct
	srv  *httptest.Server
	stop func()
}

var loopback = netip.MustParseAddr("127.0.0.1")

// newRig runs the room before an echo server. Its ports are those of a range
// that is free now.
func newRig(t *testing.T, d *db.DB, ports int) *rig {
	t.Helper()
	r := &rig{t: t, db: d, law: &law{denied: map[netip.Addr]bool{}, kind: target.TCP}, dial: &direct{addr: echo(t)}}
	log := slog.New(slog.DiscardHandler)
	m, err := conn.New(conn.Config{
		DB: d, Audit: audit.New(d, time.Now), Authorizer: r.law, Logins: r.law, CoreID: "cor_test",
		FlushEvery: 50 * time.Millisecond, Now: time.Now, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	first := freeRange(t, ports)
	r.Service, err = New(Config{
		DB: d, Audit: audit.New(d, time.Now), Policy: r.law, Conns: m, Dialer: r.dial,
		Bind: "127.0.0.1", First: first, Last: first + ports - 1, Log: log, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := api.New(api.Config{Auth: callers{}, DB: d, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	r.Routes(f)
	r.srv = httptest.NewServer(f.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	pctx, pcancel := context.WithCancel(context.Background())
	wg.Go(func() {
		defer cancel() // connections end after the ports
		if err := r.Run(pctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	wg.Go(func() {
		if err := m.Run(ctx, 5*time.Second); err != nil {
			t.Errorf("run connections: %v", err)
		}
	})
	r.stop = sync.OnceFunc(func() {
		pcancel()
		wg.Wait()
		f.Close()
		r.srv.Close()
		r.srv.Client().CloseIdleConnections()
	})
	t.Cleanup(r.stop)
	return r
}

// freeRange finds n neighbouring free ports.
func freeRange(t *testing.T, n int) int {
	t.Helper()
	for first := 4100; first < 5900; first += n {
		var ls []net.Listener
		for p := first; p < first+n; p++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
			if err != nil {
				break
			}
			ls = append(ls, l)
		}
		for _, l := range ls {
			l.Close()
		}
		if len(ls) == n {
			return first
		}
	}
	t.Fatal("no free ports")
	return 0
}

// echo is a target that sends everything back and then ends.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func (r *rig) open(q Request) *Session {
	r.t.Helper()
	if !q.Client.IsValid() {
		q.Client = loopback
	}
	q.Target = "db-1"
	x, err := r.Open(r.t.Context(), principal("demo", loopback), q)
	if err != nil {
		r.t.Fatal(err)
	}
	return x
}

// patience is how long what must happen may take on a busy machine.
const patience = time.Minute

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			r.t.Fatalf("not in %s: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// closedPort reports whether nothing listens at the address.
func closedPort(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		c.Close()
	}
	return err != nil
}

func (r *rig) record(id string) *conn.Record {
	r.t.Helper()
	x, err := r.cfg.Conns.Get(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return x
}

func roundTrip(t *testing.T, addr, text string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	if err != nil || string(got) != text {
		t.Fatalf("came back %q, %v; want %q", got, err, text)
	}
}

// resets connects and wants to be reset, be it before the connect returns.
func resets(t *testing.T, addr string) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		// The kernel tells of a reset once: to the write if it came before it.
		if _, err = io.WriteString(c, "hello"); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("not reset: %v", err)
	}
}

func TestSession(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d, 4)
		x := r.open(Request{Reason: "ticket 9"})
		if x.Port < r.cfg.First || x.Port > r.cfg.Last || x.Client != "127.0.0.1" || !x.Open || x.ExpiresAt.Sub(x.OpenedAt) != time.Hour {
			t.Errorf("session %+v", x)
		}
		// The half-close reaches the target and its answer comes back whole.
		roundTrip(t, x.Address, "hello")
		roundTrip(t, x.Address, strings.Repeat("more ", 100000))
		r.dial.mu.Lock()
		last := r.dial.last
		r.dial.mu.Unlock()
		if last.Site != "vpc-a" || last.Address != "10.10.0.5:5432" || last.Connection != x.ConnectionID || last.Class != wire.Bulk || !last.Optimistic {
			t.Errorf("dialled %+v", last)
		}
		r.until("the record", func() bool {
			y := r.record(x.ConnectionID)
			return y.State == conn.Connected && y.BytesIn == 500005 && y.BytesOut == 500005 && y.NodeName == "ext-1" && y.Kind == "tcp" && y.Reason == "ticket 9"
		})
		// A connection that is open when the session ends is cut.
		c, err := net.Dial("tcp", x.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := r.cfg.Conns.Terminate(t.Context(), x.ConnectionID, principal("admin", loopback), "Enough."); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read after the end: %v", err)
		}
		r.until("the port closes", func() bool { return closedPort(x.Address) })
		r.until("the record ends", func() bool {
			y := r.record(x.ConnectionID)
			return y.State == conn.Disconnected && y.EndReason == conn.EndedByAdmin && y.TerminatedBy == "admin"
		})
		r.until("the row ends", func() bool {
			y, err := scanSession(d.QueryRowContext(t.Context(), getSQL, x.ConnectionID))
			if err != nil {
				t.Fatal(err)
			}
			return !y.Open
		})
	})
}

// Only the one client address gets through.
func TestOtherClient(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t), 4)
	x := r.open(Request{Client: netip.MustParseAddr("127.0.0.2")})
	resets(t, x.Address) // comes from 127.0.0.1
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}}
	own, err := d.DialContext(t.Context(), "tcp", x.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if _, err := io.WriteString(own, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(own, make([]byte, 5)); err != nil {
		t.Errorf("the client itself: %v", err)
	}
	own.Close()
	r.until("the refusal is audited", func() bool {
		es, err := audit.New(r.db, time.Now).Find(t.Context(), r.db, audit.Filter{Connection: x.ConnectionID, Type: string(audit.PortDenied)}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(es) == 1 && strings.Contains(es[0].Fields["detail"], "127.0.0.1")
	})
}

func TestEnds(t *testing.T) {
	tests := []struct {
		name string
		req  Request
		end  func(*rig, *Session)
		want conn.EndReason
	}{
		{"time over", Request{Duration: time.Second}, func(*rig, *Session) {}, conn.EndedByDuration},
		{"access lost", Request{}, func(r *rig, _ *Session) {
			r.law.set(func(l *law) { l.revoked = true })
			err := r.db.Tx(context.Background(), func(tx *db.Tx) error { return tx.Notify(context.Background(), "role", "rol_1") })
			if err != nil {
				r.t.Fatal(err)
			}
		}, conn.EndedByAccess},
		{"shutdown", Request{}, func(r *rig, _ *Session) { r.stop() }, conn.EndedByShutdown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, dbtest.SQLite(t), 4)
			x := r.open(tt.req)
			if tt.req.Duration == 0 { // else its time may be over by now
				roundTrip(t, x.Address, "x")
			}
			tt.end(r, x)
			r.until("the port closes", func() bool { return closedPort(x.Address) })
			r.until("the record ends", func() bool {
				y := r.record(x.ConnectionID)
				return (y.State == conn.Disconnected || tt.req.Duration != 0 && y.State == conn.Failed) && y.EndReason == tt.want
			})
			if lasted := r.record(x.ConnectionID).EndedAt.Sub(x.OpenedAt); lasted < tt.req.Duration {
				t.Errorf("ended after %s, want %s", lasted, tt.req.Duration)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t), 2)
	other := netip.MustParseAddr("192.0.2.9")
	r.law.denied[other] = true
	for name, q := range map[string]Request{
		"unknown target":        {Target: "db-2", Client: loopback},
		"client from elsewhere": {Target: "db-1", Client: other},
		"no client":             {Target: "db-1"},
		"any client":            {Target: "db-1", Client: netip.IPv4Unspecified()},
		"longer than a day":     {Target: "db-1", Client: loopback, Duration: 25 * time.Hour},
		"an instant":            {Target: "db-1", Client: loopback, Duration: time.Millisecond},
	} {
		if _, err := r.Open(t.Context(), principal("demo", loopback), q); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	// A client that may not lend its network to the caller.
	if _, err := r.Open(t.Context(), principal("demo", other), Request{Target: "db-1", Client: loopback}); err == nil {
		t.Error("a caller from elsewhere opened")
	}
	r.law.set(func(l *law) { l.kind = target.Web })
	if _, err := r.Open(t.Context(), principal("demo", loopback), Request{Target: "db-1", Client: loopback}); err == nil {
		t.Error("opened for a web target")
	}
	if n := r.cfg.Conns.Count(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

// The range is used up: the next one hears that, and a closed session frees its port.
func TestExhaustion(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t), 2)
	a, b := r.open(Request{}), r.open(Request{})
	if a.Port == b.Port {
		t.Fatal("one port for two sessions")
	}
	body := r.call("demo", "POST", "/port-sessions", `{"target":"db-1"}`, 503)
	if !strings.Contains(body, "ports_exhausted") || !strings.Contains(body, "All 2 session ports") {
		t.Errorf("problem %s", body)
	}
	r.until("the failed one is gone", func() bool { return r.cfg.Conns.Count() == 2 })
	r.call("demo", "DELETE", "/port-sessions/"+a.ConnectionID, "", 204)
	r.until("a port is free", func() bool {
		x, err := r.Open(t.Context(), principal("demo", loopback), Request{Target: "db-1", Client: loopback})
		return err == nil && x.Port == a.Port
	})
}

// Without a range the room stands and says so; nothing is opened.
func TestSwitchedOff(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t), 1)
	r.cfg.First, r.cfg.Last = 0, 0
	if _, err := New(r.cfg); err != nil {
		t.Fatal(err)
	}
	if body := r.call("demo", "POST", "/port-sessions", `{"target":"db-1"}`, 503); !strings.Contains(body, "ports_off") {
		t.Errorf("problem %s", body)
	}
	if n := r.cfg.Conns.Count(); n != 0 {
		t.Errorf("%d connections", n)
	}
}

func (r *rig) call(who, method, path, body string, want int) string {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.srv.URL+"/api/v1"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+who)
	resp, err := r.srv.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	if resp.StatusCode != want {
		r.t.Errorf("%s %s %s: %d, want %d: %s", who, method, path, resp.StatusCode, want, b)
	}
	return string(b)
}

func TestRoutes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d, 8)
		var x Session
		if err := json.Unmarshal([]byte(r.call("demo", "POST", "/port-sessions", `{"target":"db-1","reason":"t","duration_s":60,"class":"interactive"}`, 201)), &x); err != nil {
			t.Fatal(err)
		}
		if x.Client != "127.0.0.1" || x.ExpiresAt.Sub(x.OpenedAt) != time.Minute {
			t.Errorf("session %+v", x)
		}
		roundTrip(t, x.Address, "by the interface")
		if body := r.call("demo", "POST", "/port-sessions", `{"target":"db-2"}`, 403); !strings.Contains(body, "no such target") {
			t.Errorf("refusal %s", body)
		}
		r.call("demo", "POST", "/port-sessions", `{"target":"db-1","client_ip":"10.0.0.0/8"}`, 422)
		r.call("demo", "POST", "/port-sessions", `{"target":"db-1","client_ip":"0.0.0.0"}`, 422)
		r.call("demo", "GET", "/port-sessions/"+x.ConnectionID, "", 200)
		r.call("other", "GET", "/port-sessions/"+x.ConnectionID, "", 404)
		r.call("other", "DELETE", "/port-sessions/"+x.ConnectionID, "", 404)
		for who, want := range map[string]int{"demo": 1, "admin": 1, "other": 0} {
			var p api.Page[Session]
			if err := json.Unmarshal([]byte(r.call(who, "GET", "/port-sessions", "", 200)), &p); err != nil || len(p.Items) != want {
				t.Errorf("%s lists %d, want %d, %v", who, len(p.Items), want, err)
			}
		}
		r.call("admin", "DELETE", "/port-sessions/"+x.ConnectionID, "", 204)
		r.until("the port closes", func() bool { return closedPort(x.Address) })
		r.until("the list is empty", func() bool {
			return !strings.Contains(r.call("demo", "GET", "/port-sessions", "", 200), x.ConnectionID)
		})
		if body := r.call("demo", "GET", "/port-sessions?all=true", "", 200); !strings.Contains(body, x.ConnectionID) {
			t.Errorf("all: %s", body)
		}
		r.until("ended for good", func() bool { return r.record(x.ConnectionID).State.Over() })
		r.call("admin", "DELETE", "/port-sessions/"+x.ConnectionID, "", 409)
	})
}

// A target that cannot be reached resets the client and leaves the session open.
func TestDialFails(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t), 2)
	x := r.open(Request{})
	r.dial.mu.Lock()
	r.dial.err = wire.Errorf(wire.CodeUnreachable, "No extender of site vpc-a is online.")
	r.dial.mu.Unlock()
	resets(t, x.Address)
	r.until("why is noted", func() bool {
		es, err := audit.New(r.db, time.Now).Find(t.Context(), r.db, audit.Filter{Connection: x.ConnectionID}, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if strings.Contains(e.Fields["detail"], "No extender") {
				return true
			}
		}
		return false
	})
	r.dial.mu.Lock()
	r.dial.err = nil
	r.dial.mu.Unlock()
	roundTrip(t, x.Address, "again")
}

// A core that died left rows of open ports: the next run closes them.
func TestReconcile(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d, 2)
		x := r.open(Request{})
		y := *x
		l, err := r.cfg.Conns.Open(t.Context(), conn.Spec{Kind: "tcp", Principal: principal("demo", loopback), Decision: access.Decision{Reason: access.Allowed}})
		if err != nil {
			t.Fatal(err)
		}
		y.ConnectionID = l.ID
		if err := r.insert(t.Context(), &y); err != nil {
			t.Fatal(err)
		}
		l.Close(conn.EndedByUser, nil)
		r.until("the connection is gone", func() bool { return !r.cfg.Conns.Carries(l.ID) })
		if err := r.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		for id, open := range map[string]bool{x.ConnectionID: true, l.ID: false} {
			if s, err := scanSession(d.QueryRowContext(t.Context(), getSQL, id)); err != nil || s.Open != open {
				t.Errorf("%s: %+v, %v; want open %t", id, s, err, open)
			}
		}
	})
}
