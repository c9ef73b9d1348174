package netaccess

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// short is a lease whose end a test waits for; others do not see one run out.
func short(w *world) { w.lease = 6 * time.Second }

// standard is a world with a router for 192.0.2.0/24 and three targets.
func standard(t *testing.T, d *db.DB, change ...func(*world)) (*world, *core, *box) {
	w := newWorld(t, d)
	for _, f := range change {
		f(w)
	}
	b := w.fleet.add("r1")
	w.targets.put(target.Target{Name: "plc"}, "10.20.0.0/24 tcp 502", "10.20.0.0/24 udp 161")
	w.targets.put(target.Target{Name: "plant"}, "10.20.0.0/16")
	w.targets.put(target.Target{Name: "office"}, "10.30.0.0/16", "fd00:30::/64")
	c := w.core()
	c.pool(b, "192.0.2.0/24", "2001:db8::/64")
	return w, c, b
}

// Each check fails alone, in its order, with its own code and text.
func TestChecks(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, c, b := standard(t, d)
		w.law.deny("eve", true)
		c.wantCode("client_not_in_pool", "eve", "198.51.100.7", "nothing") // 1 before 2 and 3
		c.wantCode("no_such_target", "eve", "192.0.2.7", "nothing")        // 2 before 3
		c.wantCode("access_denied", "eve", "192.0.2.7", "plc")
		x := c.mustOpen("anna", "192.0.2.7", "plc")
		if !b.in(x.row.ID) {
			t.Error("the session is open and its packets do not pass")
		}
		c.wantCode("client_in_use", "bert", "192.0.2.7", "office")
		c.wantCode("access_denied", "eve", "192.0.2.7", "plc") // 3 before 4
		c.wantCode("destinations_overlap", "anna", "192.0.2.7", "plant")
		c.mustOpen("anna", "192.0.2.7", "office")
		c.mustOpen("bert", "192.0.2.8", "plant")
		c.wantCode("wrong_family", "bert", "2001:db8::8", "plant")
		c.mustOpen("bert", "2001:db8::8", "office")

		texts := map[string]bool{}
		for _, f := range []struct{ user, from, name string }{
			{"anna", "198.51.100.7", "plc"}, {"anna", "192.0.2.7", "nothing"}, {"eve", "192.0.2.9", "plc"}, {"bert", "192.0.2.7", "office"}, {"anna", "192.0.2.7", "plant"},
		} {
			_, err := c.try(f.user, f.from, f.name)
			if err == nil || texts[err.Error()] {
				t.Errorf("%v: %v is no text of its own", f, err)
				continue
			}
			texts[err.Error()] = true
		}
		found, err := audit.New(d, time.Now).After(t.Context(), d, audit.Filter{}, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		codes := map[string]int{}
		for _, e := range found {
			if e.Type == audit.ConnectionDenied {
				codes[e.Fields["code"]]++
			}
		}
		for _, code := range []string{"client_not_in_pool", "no_such_target", "access_denied", "client_in_use", "destinations_overlap", "wrong_family"} {
			if codes[code] == 0 {
				t.Errorf("refusal %s is not audited", code)
			}
		}
	})
}

// A denied caller does not lend his network to an address that may.
func TestBothAddressesDecide(t *testing.T) {
	w, c, _ := standard(t, dbtest.SQLite(t))
	w.law.deny("203.0.113.5", true)
	p := principal("admin", netip.MustParseAddr("203.0.113.5"))
	_, err := c.Open(context.Background(), p, Request{Target: "plc", Client: netip.MustParseAddr("192.0.2.7")})
	if r, ok := errors.AsType[*Refused](err); !ok || r.Code != "access_denied" {
		t.Errorf("got %v", err)
	}
}

func TestExclusive(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, c, b := standard(t, d)
		w.targets.put(target.Target{Name: "press", Network: &target.NetworkSpec{Exclusive: true}}, "10.20.0.9 tcp 502")
		plant := c.mustOpen("anna", "192.0.2.1", "plant")
		c.wantCode("exclusive_busy", "bert", "192.0.2.2", "press")
		plant.live.End(conn.EndedByUser, "")
		c.ended(plant.row.ID)
		press := c.mustOpen("bert", "192.0.2.2", "press")
		c.wantCode("exclusive_in_use", "anna", "192.0.2.1", "plant")
		c.wantCode("exclusive_in_use", "anna", "192.0.2.1", "press")
		c.mustOpen("anna", "192.0.2.1", "office")
		// As long as its rules may be in force somewhere, it is in use.
		b.set(func(b *box) { b.stuck[press.row.ID] = true })
		press.live.End(conn.EndedByUser, "")
		w.until("ending", func() bool { return c.show(press.row.ID).State == Ending })
		c.wantCode("exclusive_in_use", "anna", "192.0.2.1", "plant")
		b.set(func(b *box) { clear(b.stuck); delete(b.sessions, press.row.ID) })
		c.ended(press.row.ID)
		c.mustOpen("anna", "192.0.2.1", "plant")
	})
}

// Fifty at once, through two cores on PostgreSQL: exactly one wins.
func TestRace(t *testing.T) {
	race := func(t *testing.T, w *world, cores ...*core) {
		w.targets.put(target.Target{Name: "press", Network: &target.NetworkSpec{Exclusive: true}}, "10.40.0.0/24")
		var wg sync.WaitGroup
		var mu sync.Mutex
		won, codes := 0, map[string]int{}
		for i := range 50 {
			wg.Go(func() {
				_, err := cores[i%len(cores)].try(fmt.Sprintf("user%d", i), fmt.Sprintf("192.0.2.%d", i+1), "press")
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					won++
					return
				}
				r, _ := errors.AsType[*Refused](err)
				if r == nil {
					t.Errorf("open: %v", err)
					return
				}
				codes[r.Code]++
			})
		}
		wg.Wait()
		if won != 1 || codes["exclusive_in_use"]+codes["exclusive_busy"] != 49 {
			t.Errorf("%d won, refusals %v", won, codes)
		}
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, c, _ := standard(t, d)
		race(t, w, c)
	})
	t.Run("two cores", func(t *testing.T) {
		w, a, _ := standard(t, dbtest.Postgres(t))
		// A fleet of its own: routers talk to one core at a time.
		w2 := *w
		w2.fleet = newBoxes()
		b := w2.fleet.add("r1")
		b.id = "edg_r1"
		race(t, w, a, w2.core())
	})
}

// The reasons a session ends for, each recorded, and survivors untouched.
func TestEndReasons(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, c, b := standard(t, d)
		other := c.mustOpen("zoe", "192.0.2.99", "plc")
		for _, x := range []struct {
			want conn.EndReason
			end  func(*session)
		}{
			{conn.EndedByUser, func(x *session) {
				if r := c.call("anna", "DELETE", "/network-sessions/"+x.row.ID, nil); r.StatusCode != 204 {
					t.Errorf("close: %s", r.text)
				}
			}},
			{conn.EndedByAdmin, func(x *session) {
				if r := c.call("admin", "DELETE", "/network-sessions/"+x.row.ID, nil); r.StatusCode != 204 {
					t.Errorf("close: %s", r.text)
				}
			}},
			{conn.EndedByAccess, func(x *session) {
				w.law.deny("anna", true)
				if err := d.Tx(t.Context(), func(tx *db.Tx) error { return tx.Notify(t.Context(), "user", x.row.UserID) }); err != nil {
					t.Fatal(err)
				}
			}},
			{conn.EndedByPresence, func(x *session) {
				x.mu.Lock()
				x.touched = time.Now().Add(-w.window)
				x.mu.Unlock()
			}},
			{conn.EndedByAccess, func(*session) { // what the target opens is changed
				w.targets.put(target.Target{Name: "office"}, "10.31.0.0/16", "fd00:30::/64")
				if err := d.Tx(t.Context(), func(tx *db.Tx) error { return tx.Notify(t.Context(), "target", "tgt_office") }); err != nil {
					t.Fatal(err)
				}
			}},
		} {
			w.law.deny("anna", false)
			s := c.mustOpen("anna", "192.0.2.7", "office")
			x.end(s)
			r := c.ended(s.row.ID)
			if r.EndReason != x.want || r.State != conn.Disconnected || r.EndDetail == "" {
				t.Errorf("ended by %q (%s, %q), want %q", r.EndReason, r.State, r.EndDetail, x.want)
			}
			if b.holds(s.row.ID) {
				t.Errorf("%s: the router still holds it", x.want)
			}
		}
		if !b.in(other.row.ID) || c.show(other.row.ID).State != Open {
			t.Error("a session nobody ended is not in force any more")
		}
	})
}

// Several routers of one pool all hold a session; others do not. One that is
// away gets it when it returns, and one that fails fails the open.
func TestPools(t *testing.T) {
	w, c, r1 := standard(t, dbtest.SQLite(t))
	r2, r3 := w.fleet.add("r2"), w.fleet.add("r3")
	c.pool(r2, "192.0.2.0/25")
	c.pool(r3, "198.51.100.0/24")
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	if !r1.in(x.row.ID) || !r2.in(x.row.ID) || r3.holds(x.row.ID) {
		t.Error("not exactly the routers of the pool hold the session")
	}
	if y := c.mustOpen("bert", "198.51.100.7", "plc"); r1.holds(y.row.ID) || !r3.in(y.row.ID) {
		t.Error("a router of another pool holds the session")
	}
	x.live.End(conn.EndedByUser, "")
	c.ended(x.row.ID)

	w.fleet.connect(r2, false)
	y := c.mustOpen("anna", "192.0.2.7", "plc")
	w.fleet.connect(r2, true)
	w.until("the router that was away holds it", func() bool { return r2.in(y.row.ID) })

	r2.set(func(b *box) { b.refuse = "office" })
	_, err := c.try("anna", "192.0.2.7", "office")
	if r, ok := errors.AsType[*Refused](err); !ok || r.Code != "router_failed" || !strings.Contains(r.Public, "no room for office") {
		t.Errorf("got %v", err)
	}
	w.until("nobody holds what failed", func() bool {
		r1.mu.Lock()
		defer r1.mu.Unlock()
		return len(r1.sessions) == 1
	})
	list, err := c.conns.Get(t.Context(), lastSession(t, c))
	if err != nil {
		t.Fatal(err)
	}
	w.until("the failure is on record", func() bool {
		list, err = c.conns.Get(t.Context(), list.ID)
		return err == nil && list.State == conn.Failed && strings.Contains(list.EndDetail, "no room")
	})

	// Out of the pool: access is lost. Out of one of two: only that one gives it up.
	c.pool(r2, "203.0.113.0/24")
	w.until("the router gave it up", func() bool { return !r2.holds(y.row.ID) })
	if c.show(y.row.ID).State != Open || !r1.in(y.row.ID) {
		t.Error("the session did not go on at the other router")
	}
	c.pool(r1, "203.0.113.0/24")
	if r := c.ended(y.row.ID); r.EndReason != conn.EndedByAccess {
		t.Errorf("ended by %s", r.EndReason)
	}
	w.fleet.connect(r1, false)
	w.fleet.connect(r2, false)
	c.wantCode("no_router", "anna", "203.0.113.7", "plc")
}

func lastSession(t *testing.T, c *core) string {
	t.Helper()
	var id string
	if err := c.cfg.DB.QueryRowContext(t.Context(), `select id from connections order by requested_at desc, id desc limit 1`).Scan(&id); err != nil {
		t.Fatal(err)
	}
	return id
}

// A removal that fails is retried by the router, alerted, and not reported as
// ended before it is done.
func TestRemovalStuck(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t))
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	b.set(func(b *box) { b.stuck[x.row.ID] = true })
	x.live.End(conn.EndedByUser, "")
	alerted := func() bool {
		found, err := audit.New(w.db, time.Now).After(t.Context(), w.db, audit.Filter{}, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range found {
			if e.Type == audit.NetworkRemovalDelayed && e.Connection == x.row.ID {
				return true
			}
		}
		return false
	}
	w.until("somebody is told", alerted)
	if s := c.show(x.row.ID); s.State != Ending || s.Routers[0].State != "removing" {
		t.Errorf("shown as %+v", s)
	}
	if r, err := c.conns.Get(t.Context(), x.row.ID); err != nil || r.State.Over() {
		t.Errorf("record %+v, %v: it is not over", r, err)
	}
	b.set(func(b *box) { clear(b.stuck); delete(b.sessions, x.row.ID) })
	c.ended(x.row.ID)
}

// A router that is lost: what it may hold is over when its lease has certainly
// run out, not before; a session it alone held ends.
func TestRouterLost(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t), short)
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	y := c.mustOpen("bert", "192.0.2.8", "plc")
	w.fleet.connect(b, false)
	x.live.End(conn.EndedByUser, "")
	w.until("ending", func() bool { return c.show(x.row.ID).State == Ending })
	var lease time.Time
	b.set(func(b *box) { lease = b.lease })
	c.ended(x.row.ID)
	if now := time.Now(); now.Before(lease) {
		t.Errorf("reported as ended %s before the lease ran out", lease.Sub(now))
	}
	if r := c.ended(y.row.ID); r.EndReason != conn.EndedByRoute {
		t.Errorf("the session of the lost router ended by %q", r.EndReason)
	}
	w.fleet.connect(b, true)
	w.until("the router gave up what is over", func() bool { return !b.holds(x.row.ID) && !b.holds(y.row.ID) })
}

// A program without leases holds rules until it says that they are gone.
func TestUnleased(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t), short)
	p := c.peer(b.id)
	w.fleet.connect(b, false)
	b.set(func(b *box) { b.leased = false }) // it comes back with a program
	w.fleet.connect(b, true)
	w.until("its state is agreed", func() bool { o, _ := p.online(); return o.Tunnel != 0 && p.agreed() == o.Tunnel })
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	w.fleet.connect(b, false)
	x.live.End(conn.EndedByUser, "")
	w.until("the lease would have run out", func() bool { return p.expired(time.Now().Add(-500 * time.Millisecond)) })
	if s := c.show(x.row.ID); s.State != Ending {
		t.Errorf("state %s, although the program still holds the rules", s.State)
	}
	w.fleet.connect(b, true)
	c.ended(x.row.ID)
}

// TestOpenNeedsALease: what an earlier process of a router was granted says
// nothing of the one that is connected now; no session is open before its lease.
func TestOpenNeedsALease(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t))
	first := c.mustOpen("anna", "192.0.2.7", "plc")
	first.live.End(conn.EndedByUser, "")
	c.ended(first.row.ID)
	w.fleet.connect(b, false)
	b.set(func(b *box) { b.lease, b.synced, b.noLease = time.Time{}, false, true })
	w.fleet.connect(b, true)
	p := c.peer(b.id)
	w.until("its state is agreed", func() bool { o, _ := p.online(); return o.Tunnel != 0 && p.agreed() == o.Tunnel })
	if x, err := c.try("anna", "192.0.2.7", "plc"); err == nil {
		t.Errorf("open without a lease; its packets pass: %t", b.in(x.row.ID))
	}
	b.set(func(b *box) { b.noLease = false })
	w.until("open with a lease", func() bool {
		x, err := c.try("anna", "192.0.2.7", "plc")
		return err == nil && b.in(x.row.ID)
	})
}

// No lease while a router hangs on a removal; other sessions of other routers go on.
func TestLeaseWaitsForRemovals(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t), short)
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	hang := make(chan struct{})
	b.set(func(b *box) { b.hang = hang })
	x.live.End(conn.EndedByUser, "")
	w.until("its packets stop by the lease", func() bool { return !b.in(x.row.ID) })
	b.set(func(b *box) { b.hang = nil })
	close(hang)
	c.ended(x.row.ID)
}

func count(id string, out, in uint64) wire.RouterCount {
	return wire.RouterCount{ID: id, BytesOut: out, BytesIn: in, PacketsOut: out / 10, PacketsIn: in / 10, Destinations: []wire.RouterDestCount{
		{Destination: "10.20.0.0/24 tcp 502", BytesOut: out, BytesIn: in, PacketsOut: out / 10, PacketsIn: in / 10},
		{Destination: "10.20.0.0/24 udp 161"},
	}}
}

// Counters reach the record and the flow log, also when a router begins anew
// and over a restart of core.
func TestCounters(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, c, b := standard(t, d)
		x := c.mustOpen("anna", "192.0.2.7", "plc")
		id := x.row.ID
		moved := func(out, in int64) func() bool {
			return func() bool { s := c.show(id); return s.BytesOut == out && s.BytesIn == in }
		}
		b.set(func(b *box) { b.counts[id] = count(id, 1000, 200) })
		w.until("counted", moved(1000, 200))
		b.set(func(b *box) { b.counts[id] = count(id, 50, 10) }) // began anew
		w.until("counted on", moved(1050, 210))
		c.stop()
		c = w.core()
		b.set(func(b *box) { b.counts[id] = count(id, 150, 10) })
		w.until("counted on after a restart", func() bool { s := c.show(id); return s.BytesOut == 1150 && s.BytesIn == 210 })
		b.set(func(b *box) { b.counts[id] = count(id, 160, 20) }) // told with the removal
		c.call("anna", "DELETE", "/network-sessions/"+id, nil)
		r := c.ended(id)
		if r.BytesIn != 1160 || r.BytesOut != 220 {
			t.Errorf("record: %d from and %d to the user", r.BytesIn, r.BytesOut)
		}
		var got struct{ Items []Flow }
		if err := json.Unmarshal(c.call("anna", "GET", "/network-sessions/"+id+"/flows", nil).text, &got); err != nil {
			t.Fatal(err)
		}
		want := Flow{Destination: "10.20.0.0/24 tcp 502", BytesOut: 1160, BytesIn: 220, PacketsOut: 116, PacketsIn: 22}
		if len(got.Items) != 1 || got.Items[0] != want {
			t.Errorf("flow log %+v, want %+v", got.Items, want)
		}
	})
}

// TestCountersOfOthers: a router tells nothing of sessions it has no part in,
// and of no destinations but theirs.
func TestCountersOfOthers(t *testing.T) {
	w, c, _ := standard(t, dbtest.SQLite(t))
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	_ = w
	c.counted("edg_stranger", &wire.RouterCount{ID: x.row.ID, BytesOut: 1 << 40})
	if s := c.show(x.row.ID); s.BytesOut != 0 {
		t.Errorf("a stranger's count was taken: %d", s.BytesOut)
	}
	mine := slices.Sorted(maps.Keys(x.holders))[0]
	for i := range 100 {
		c.counted(mine, &wire.RouterCount{ID: x.row.ID, Destinations: []wire.RouterDestCount{
			{Destination: fmt.Sprint("10.99.0.0/24 tcp ", i), PacketsOut: 1}, {Destination: "10.20.0.0/24 tcp 502", PacketsOut: 1}}})
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.countsLocked() {
		if f.Destination != "" && f.Destination != "10.20.0.0/24 tcp 502" {
			t.Errorf("kept %q", f.Destination)
		}
	}
}

// TestRelayWaitsForTheRecord: nothing enters a port before its session is on record.
func TestRelayWaitsForTheRecord(t *testing.T) {
	r := (&Service{cfg: Config{Relay: Relay{}, Log: slog.New(slog.DiscardHandler)}}).newRelay("site", func(netip.Addr) bool { return true })
	from := netip.MustParseAddrPort("192.0.2.7:1024")
	if r.enter(from, relayPort{}) {
		t.Error("a packet entered before the session was on record")
	}
	r.begin("con_1")
	if !r.enter(from, relayPort{}) {
		t.Error("a packet of a session on record was turned away")
	}
}

// A restart, orderly or not, cuts no valid flow; what was being opened or
// closed is cleared up, what nobody is behind any more is ended.
func TestRestart(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w, c, b := standard(t, d)
		keep := c.mustOpen("anna", "192.0.2.7", "plc").row.ID
		stale := c.mustOpen("bert", "192.0.2.8", "plc").row.ID
		revoked := c.mustOpen("carl", "192.0.2.9", "plc").row.ID
		c.stop()
		var states int
		b.set(func(b *box) { states = b.states })
		if _, err := d.ExecContext(t.Context(), `update network_sessions set presence_at = 1 where id = $1`, stale); err != nil {
			t.Fatal(err)
		}
		w.law.deny("carl", true)
		b.set(func(b *box) {
			if len(b.sessions) != 3 || !time.Now().Before(b.lease) {
				t.Errorf("%d sessions in force after core stopped", len(b.sessions))
			}
		})
		c = w.core()
		if r := c.ended(stale); r.EndReason != conn.EndedByPresence {
			t.Errorf("the stale one ended by %q", r.EndReason)
		}
		if r := c.ended(revoked); r.EndReason != conn.EndedByAccess {
			t.Errorf("the revoked one ended by %q", r.EndReason)
		}
		if s := c.show(keep); s.State != Open || !b.in(keep) {
			t.Errorf("the valid one is %+v", s)
		}
		if r := c.call("anna", "POST", "/network-sessions/"+keep+"/presence", nil); r.StatusCode != 200 {
			t.Errorf("presence after a restart: %s", r.text)
		}
		b.set(func(b *box) {
			if b.states == states {
				t.Error("the router was not told the whole state")
			}
		})
		c.wantCode("destinations_overlap", "anna", "192.0.2.7", "plant")
		c.call("anna", "DELETE", "/network-sessions/"+keep, nil)
		if r := c.ended(keep); r.EndReason != conn.EndedByUser {
			t.Errorf("ended by %q", r.EndReason)
		}
	})
}

// A core that died while a session was opening or ending.
func TestRestartHalfway(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t))
	opening := c.mustOpen("anna", "192.0.2.7", "plc").row.ID
	ending := c.mustOpen("bert", "192.0.2.8", "plc").row.ID
	c.stop()
	for id, s := range map[string]State{opening: Opening, ending: Ending} {
		if _, err := w.db.ExecContext(t.Context(), `update network_sessions set state = $2 where id = $1`, id, string(s)); err != nil {
			t.Fatal(err)
		}
	}
	c = w.core()
	c.ended(opening)
	c.ended(ending)
	if b.holds(opening) || b.holds(ending) {
		t.Error("the router still holds them")
	}
	c.mustOpen("anna", "192.0.2.7", "plc")
}

// A core that stood still must not renew leases before it has looked at the time.
func TestNoLeaseWhenStale(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t), short)
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	c.Service.mu.Lock()
	c.beat = time.Now().Add(-time.Hour)
	c.Service.mu.Unlock()
	if now := time.Now(); c.current(now.Add(-time.Hour), now) || !c.current(now.Add(-time.Second), now) {
		t.Error("leases are renewed although times were not checked for an hour")
	}
	// Who opens a session just then does not fail for it.
	c.Service.mu.Lock()
	c.beat = time.Now().Add(-time.Hour)
	c.Service.mu.Unlock()
	c.mustOpen("bert", "192.0.2.8", "plc")
	w.until("times are checked again", c.justified)
	w.until("in force", func() bool { return b.in(x.row.ID) })
}

func TestRoutes(t *testing.T) {
	w, c, b := standard(t, dbtest.SQLite(t))
	w.targets.put(target.Target{Name: "local", Network: &target.NetworkSpec{Instructions: "Ring first."}}, "10.50.0.0/24")
	c.pool(b, "127.0.0.0/8", "192.0.2.0/24")
	r := c.call("anna", "POST", "/network-sessions", map[string]any{"target": "local", "client_ip": "192.0.2.5"})
	if r.StatusCode != 403 || r.code() != "client_not_yours" {
		t.Errorf("another's address: %d %s", r.StatusCode, r.text)
	}
	if r := c.call("anna", "POST", "/network-sessions", map[string]any{"target": "local", "client_ip": "nonsense"}); r.StatusCode != 422 {
		t.Errorf("nonsense: %s", r.text)
	}
	if r := c.call("admin", "POST", "/network-sessions", map[string]any{"target": "plc", "client_ip": "192.0.2.5"}); r.StatusCode != 201 {
		t.Errorf("an administrator for another address: %s", r.text)
	}
	if r := c.call("anna", "POST", "/network-sessions", map[string]any{"target": "nothing"}); r.StatusCode != 404 || r.code() != "no_such_target" {
		t.Errorf("unknown: %s", r.text)
	}
	r = c.call("anna", "POST", "/network-sessions", map[string]any{"target": "local"})
	var s Session
	if err := json.Unmarshal(r.text, &s); err != nil || r.StatusCode != 201 {
		t.Fatalf("open: %d %s", r.StatusCode, r.text)
	}
	if s.State != Open || s.Client != "127.0.0.1" || s.Instructions != "Ring first." || len(s.Routers) != 1 || s.Routers[0].State != "holds" ||
		s.Destinations[0] != "10.50.0.0/24" || !s.PresenceUntil.After(time.Now()) {
		t.Errorf("opened %+v", s)
	}
	if r := c.call("bert", "GET", "/network-sessions/"+s.ID, nil); r.StatusCode != 404 {
		t.Errorf("another user sees it: %s", r.text)
	}
	if r := c.call("bert", "DELETE", "/network-sessions/"+s.ID, nil); r.StatusCode != 404 {
		t.Errorf("another user closes it: %s", r.text)
	}
	if r := c.call("admin", "POST", "/network-sessions/"+s.ID+"/presence", nil); r.StatusCode != 404 {
		t.Errorf("an administrator keeps another's session: %s", r.text)
	}
	var page struct{ Items []Session }
	for who, n := range map[string]int{"anna": 1, "bert": 0, "admin": 2} {
		if err := json.Unmarshal(c.call(who, "GET", "/network-sessions", nil).text, &page); err != nil || len(page.Items) != n {
			t.Errorf("%s sees %d sessions, want %d", who, len(page.Items), n)
		}
	}
	if r := c.call("anna", "DELETE", "/network-sessions/"+s.ID, nil); r.StatusCode != 204 {
		t.Errorf("close: %s", r.text)
	}
	c.ended(s.ID)
	if r := c.call("anna", "POST", "/network-sessions/"+s.ID+"/presence", nil); r.StatusCode != 409 || r.code() != "ended" || !strings.Contains(string(r.text), "You closed the session") {
		t.Errorf("presence after the end: %s", r.text)
	}
	if r := c.call("anna", "GET", "/routers", nil); r.StatusCode != 403 {
		t.Errorf("a user lists routers: %s", r.text)
	}
	var routers struct{ Items []Router }
	if err := json.Unmarshal(c.call("admin", "GET", "/routers", nil).text, &routers); err != nil || len(routers.Items) != 1 ||
		routers.Items[0].Type != "nftables" || !routers.Items[0].Leased || routers.Items[0].Sessions != 1 || routers.Items[0].Pools[1] != "192.0.2.0/24" {
		t.Errorf("routers %+v, %v", routers, err)
	}
	if r := c.call("admin", "PATCH", "/routers/"+b.id, map[string]any{"pools": []string{"10.0.0.5/8"}}, "If-Match", "*"); r.StatusCode != 422 {
		t.Errorf("bits after the prefix: %s", r.text)
	}
	if r := c.call("admin", "PATCH", "/routers/"+b.id, map[string]any{"pools": []string{"10.0.0.0/8"}}, "If-Match", `"1"`); r.StatusCode != 412 {
		t.Errorf("an old version: %s", r.text)
	}
	found, err := audit.New(w.db, time.Now).After(t.Context(), w.db, audit.Filter{}, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	ok := false
	for _, e := range found {
		ok = ok || e.Type == audit.NetworkRouterChanged && e.Fields["old_pools"] == "192.0.2.0/24, 2001:db8::/64" && e.Fields["pools"] == "127.0.0.0/8, 192.0.2.0/24"
	}
	if !ok {
		t.Error("the change of pools is not audited with what was and is")
	}
}

func TestSimulate(t *testing.T) {
	w, c, _ := standard(t, dbtest.SQLite(t))
	w.targets.put(target.Target{Name: "press", Network: &target.NetworkSpec{Exclusive: true}}, "10.20.0.9 tcp 502", "10.60.0.0/24")
	x := c.mustOpen("anna", "192.0.2.7", "plc")
	c.mustOpen("bert", "192.0.2.8", "office")
	ask := func(id, addrs string, exclusive bool) (out Simulated) {
		t.Helper()
		r := c.call("admin", "POST", "/network-targets/simulate", map[string]any{"id": id, "network": map[string]any{
			"destinations": []map[string]string{{"addrs": addrs}}, "exclusive": exclusive}})
		if err := json.Unmarshal(r.text, &out); err != nil || r.StatusCode != 200 {
			t.Fatalf("simulate: %d %s", r.StatusCode, r.text)
		}
		return out
	}
	got := ask("", "10.20.0.0/24", false)
	names := map[string]string{}
	for _, o := range got.Targets {
		names[o.Name] = o.Effect
	}
	if len(names) != 3 || names["plc"] != "not_both" || names["plant"] != "not_both" || names["press"] != "one_at_a_time" {
		t.Errorf("overlapping targets %v", names)
	}
	if len(got.Sessions) != 1 || got.Sessions[0].ID != x.row.ID || got.Sessions[0].Effect != "kept" {
		t.Errorf("sessions %+v", got.Sessions)
	}
	if got := ask("", "10.20.0.0/24", true); got.Sessions[0].Effect != "blocks" {
		t.Errorf("exclusive: %+v", got.Sessions)
	}
	if got := ask("tgt_plc", "10.20.0.0/24", false); len(got.Sessions) != 1 || got.Sessions[0].Effect != "closed" {
		t.Errorf("edited: %+v", got.Sessions)
	}
	if got := ask("", "172.16.0.0/12", true); len(got.Sessions)+len(got.Targets) != 0 {
		t.Errorf("nothing overlaps: %+v", got)
	}
	if r := c.call("anna", "POST", "/network-targets/simulate", map[string]any{"network": map[string]any{"destinations": []map[string]string{{"addrs": "10.0.0.1"}}}}); r.StatusCode != 403 {
		t.Errorf("a user simulates: %s", r.text)
	}
}
