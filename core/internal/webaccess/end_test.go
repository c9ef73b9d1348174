package webaccess

import (
	"context"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

// A recording is complete when both nodes have said that nothing is left: what
// they tell until then is in it.
func TestEndWaitsForRecords(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	const many = 1 << 30
	carrier.set(func(b *box) { b.stuck = many })
	tape := w.tapes.of(s.ID)
	if code := k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil); code != 204 {
		t.Fatalf("answered %d", code)
	}
	eventually(t, "it was asked", func() bool {
		carrier.mu.Lock()
		defer carrier.mu.Unlock()
		return carrier.stuck < many
	})
	tape.mu.Lock()
	closed := tape.closed
	tape.mu.Unlock()
	if closed {
		t.Error("the recording was closed before the carrier was done")
	}
	carrier.set(func(b *box) { b.stuck = 0 })
	eventually(t, "it has ended", func() bool { return k.get("eve", s.ID).State == Ended })
	tape.mu.Lock()
	defer tape.mu.Unlock()
	if !tape.closed || tape.lacks != "" {
		t.Errorf("closed %t, %q", tape.closed, tape.lacks)
	}
}

// The recording of a session whose carrier never said that nothing is left is
// incomplete.
func TestEndOfASilentNode(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	carrier.set(func(b *box) { b.stuck = 1 << 30 })
	t.Cleanup(func() { carrier.set(func(b *box) { b.stuck = 0 }) })
	x := k.svc.find(s.ID)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if x.end(ctx, wire.Carrier, x.carrier.ID) {
		t.Error("a carrier that is still ending has nothing left")
	}
	for _, c := range []struct {
		carrier, proxy bool
		lacks          string
	}{{false, false, ""}, {true, false, "carrier"}, {false, true, "webproxy"}, {true, true, "carrier"}} {
		tape := &tape{}
		must(t, complete(tape, c.carrier, c.proxy))
		if !tape.closed || (tape.lacks == "") != (c.lacks == "") || !strings.Contains(tape.lacks, c.lacks) {
			t.Errorf("%+v: closed %t, %q", c, tape.closed, tape.lacks)
		}
	}
}
