package conn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
)

// wireCutter stands between a manager and its PostgreSQL server.
type wireCutter struct {
	ln   net.Listener
	far  string
	wg   sync.WaitGroup
	mu   sync.Mutex
	cut  bool
	open map[net.Conn]bool
}

func newWireCutter(t *testing.T, far string) *wireCutter {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wireCutter{ln: ln, far: far, open: map[net.Conn]bool{}}
	w.wg.Go(w.serve)
	t.Cleanup(func() {
		ln.Close()
		w.set(true)
		w.wg.Wait()
	})
	return w
}

func (w *wireCutter) serve() {
	for {
		c, err := w.ln.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", w.far)
		w.mu.Lock()
		if err != nil || w.cut {
			w.mu.Unlock()
			c.Close()
			if far != nil {
				far.Close()
			}
			continue
		}
		w.open[c], w.open[far] = true, true
		w.mu.Unlock()
		for _, p := range [][2]net.Conn{{c, far}, {far, c}} {
			w.wg.Go(func() {
				io.Copy(p[0], p[1])
				p[0].Close()
				p[1].Close()
				w.mu.Lock()
				delete(w.open, p[0])
				w.mu.Unlock()
			})
		}
	}
}

// set cuts the wire, or repairs it.
func (w *wireCutter) set(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	if cut {
		for c := range w.open {
			c.Close()
		}
	}
}

// stored decides by asking the database, as the real policy does.
type stored struct {
	*judge
	db *db.DB
}

func (s stored) Reauthorize(ctx context.Context, sp Spec) (d2 access.Decision, err error) {
	if err := s.db.Ping(ctx); err != nil {
		return d2, fmt.Errorf("read policy: %w", err)
	}
	return s.judge.Reauthorize(ctx, sp)
}

func cutDB(t *testing.T) (*db.DB, *wireCutter) {
	t.Helper()
	u, err := url.Parse(dbtest.PostgresURL(t))
	if err != nil {
		t.Fatal(err)
	}
	w := newWireCutter(t, u.Host)
	u.Host = w.ln.Addr().String()
	d, err := db.Open(t.Context(), db.Config{Engine: db.Postgres, URL: u.String(), AllowPlaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if _, err := d.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d, w
}

// The database goes away: live connections go on and lose nothing of their
// record; new ones are refused; when it is back, everything is written, and
// what was revoked meanwhile ends.
func TestOutageWithinLease(t *testing.T) {
	d, wire := cutDB(t)
	r := newRig(t, d, func(c *Config, r *rig) {
		c.Authorizer = stored{r.judge, d}
		r.limits.Reauthorize = time.Minute
	})
	stays, closes, revoked := r.open(spec("demo", "db-1", "rol_1")), r.open(spec("demo", "db-2", "rol_1")), r.open(spec("demo", "db-3", "rol_2"))
	for _, l := range []*Live{stays, closes, revoked} {
		l.Connected(fleet.Route{})
		r.record(l.ID, Connected)
	}
	wire.set(true)
	octx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := r.Open(octx, spec("demo", "db-1", "rol_1")); err == nil {
		t.Fatal("opened without a record")
	}
	for i := range 300 {
		stays.Channel("exec", fmt.Sprintf("during-%d", i))
	}
	stays.In(1000)
	closes.Channel("exec", "last words")
	closes.Close(EndedByUser, nil)
	r.judge.set(func(j *judge) { j.reason["rol_2"] = 5 })
	r.clock.add(4 * time.Minute)
	r.until("decisions fail", func() bool {
		stays.mu.Lock()
		defer stays.mu.Unlock()
		return !stays.undecidable.IsZero()
	})
	for _, l := range []*Live{stays, revoked} {
		if l.Context().Err() != nil {
			t.Fatalf("ended within the lease: %v", context.Cause(l.Context()))
		}
	}
	wire.set(false)
	if why := r.ended(revoked); why.Reason != EndedByAccess {
		t.Errorf("revoked during the outage: %+v", why)
	}
	if x := r.record(closes.ID, Disconnected); x.EndReason != EndedByUser {
		t.Errorf("ended during the outage: %+v", x)
	}
	r.until("all events", func() bool {
		return strings.Count(strings.Join(auditTypes(t, d, stays.ID), " "), "channel.exec") == 300
	})
	if stays.Context().Err() != nil {
		t.Errorf("ended after the outage: %v", context.Cause(stays.Context()))
	}
	if got := auditTypes(t, d, closes.ID); !slices.Equal(got, []string{"connection.requested", "connection.established", "channel.exec", "connection.closed"}) {
		t.Errorf("events of an end during the outage: %v", got)
	}
	es, err := audit.New(d, r.clock.now).Find(t.Context(), d, audit.Filter{Connection: closes.ID, Type: "channel.exec"}, 0, 10)
	if err != nil || len(es) != 1 || es[0].Fields["happened_at"] == "" {
		t.Errorf("a late event does not say when it happened: %+v, %v", es, err)
	}
}

// It stays away: everything is closed when the lease is over.
func TestOutageBeyondLease(t *testing.T) {
	d, wire := cutDB(t)
	r := newRig(t, d, func(c *Config, r *rig) { c.Authorizer = stored{r.judge, d} })
	var ls []*Live
	for range 20 {
		ls = append(ls, r.open(spec("demo", "db-1", "rol_1")))
	}
	for _, l := range ls {
		r.record(l.ID, Requested)
	}
	wire.set(true)
	r.clock.add(5*time.Minute - time.Second)
	select {
	case <-ls[0].Context().Done():
		t.Fatalf("ended within the lease: %v", context.Cause(ls[0].Context()))
	case <-time.After(3 * tick):
	}
	r.clock.add(2 * time.Second)
	for _, l := range ls {
		if why := r.ended(l); why.Reason != EndedByLease {
			t.Fatalf("ended by %+v", why)
		}
	}
	wire.set(false)
	for _, l := range ls {
		if x := r.record(l.ID, Disconnected); x.EndReason != EndedByLease {
			t.Errorf("recorded %q", x.EndReason)
		}
	}
	if errors.Is(r.stop(), context.Canceled) {
		t.Error("run ended by an error")
	}
}
