package webaccess

import (
	"testing"
	"time"

	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

func TestPause(t *testing.T) {
	var got []time.Duration
	var wait time.Duration
	for range 5 {
		wait = pause(wait, time.Second)
		got = append(got, wait/time.Millisecond)
	}
	for i, want := range []time.Duration{250, 500, 1000, 1000, 1000} {
		if got[i] != want {
			t.Fatalf("pauses of %v ms", got)
		}
	}
	if got := pause(0, 50*time.Millisecond); got != 50*time.Millisecond {
		t.Errorf("a pause of %v with a shorter tick", got)
	}
}

// refuseFirst has a node refuse the next n sessions it is given.
func (b *box) refuseFirst(n int) {
	b.set(func(b *box) { b.refusals = n })
}

// A webproxy that was started again and has no certificate yet refuses; it is
// told again soon after, long before the next tick.
func TestToldAgainSoon(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start(func(_ *core, c *Config) { c.Tick = time.Hour })
	k.node(wire.Carrier, "c1")
	proxy := k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	proxy.down()
	proxy.set(func(b *box) { b.proxy = map[string]wire.WebProxySession{} })
	proxy.refuseFirst(3)
	proxy.up(k.url, "")
	eventually(t, "it has its session", func() bool { p, ok := proxy.forProxy(s.ID); return ok && p.Key != "" })
	if got := k.get("eve", s.ID); got.State != Open {
		t.Errorf("state %s: %s", got.State, got.EndText)
	}
}

// A new session goes to another webproxy when the first cannot serve yet.
func TestAnotherWebProxy(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	young := k.node(wire.WebProxy, "young", func(b *box) {
		b.capacity.Max, b.capacity.Room = 100, 100
		b.refuse = wire.Errorf(wire.CodeLimit, "no certificate yet")
	})
	old := k.node(wire.WebProxy, "old", func(b *box) { b.capacity.Live = 5 })
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	if s.WebProxy != "old" {
		t.Errorf("through %s", s.WebProxy)
	}
	if p, ok := old.forProxy(s.ID); !ok || p.Key == "" {
		t.Error("the other one has not got it")
	}
	if c, _ := carrier.forCarrier(s.ID); c.Proxy.NodeID != old.id || c.Proxy.Address != "old.test:18443" {
		t.Errorf("the carrier is sent to %+v", c.Proxy)
	}
	eventually(t, "the young one forgets", func() bool {
		young.mu.Lock()
		defer young.mu.Unlock()
		_, told := young.ended[s.ID]
		return told
	})
}
