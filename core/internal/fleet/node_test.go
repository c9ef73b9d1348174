package fleet

import (
	"context"
	"testing"
	"time"

	"caponier/core/internal/db/dbtest"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// slow is the tunnel of a node on a busy machine: it answers late.
type slow struct {
	tunnel.Session
	after time.Duration
}

func (s slow) Done() <-chan struct{} { return nil }

func (s slow) Info() tunnel.Info { return tunnel.Info{} }

func (s slow) Ping(ctx context.Context) (time.Duration, error) {
	if by, ok := ctx.Deadline(); ok && time.Until(by) < s.after {
		return 0, context.DeadlineExceeded
	}
	return s.after, nil
}

// A node that takes some seconds to answer is alive: another place does not
// become it.
func TestSlowNodeKeepsItsIdentity(t *testing.T) {
	now := time.Now()
	f := offline(t, dbtest.SQLite(t), &now)
	at := func(place string) *node {
		n := &node{id: "edg_x", kind: wire.Carrier, session: slow{after: 3 * time.Second}, hello: wire.Hello{Host: place}}
		n.row.Store(&nodeRow{ID: "edg_x", Name: "x", Kind: wire.Carrier})
		return n
	}
	first := at("here")
	if why := f.register(t.Context(), first); why != nil {
		t.Fatal(why)
	}
	if why := f.register(t.Context(), at("elsewhere")); why == nil || why.Code != wire.CodeIdentityInUse {
		t.Errorf("the copy: %v", why)
	}
	if f.get("edg_x") != first {
		t.Error("the copy took over")
	}
}

// Whoever read a node's row before a change and comes after it does not take
// the change back.
func TestOlderRowChangesNothing(t *testing.T) {
	n := &node{}
	first, cordoned, freed := &nodeRow{Version: 1}, &nodeRow{Version: 2, Cordoned: true}, &nodeRow{Version: 3}
	n.row.Store(first)
	if former := n.renew(freed); former != first {
		t.Errorf("renewed %+v", former)
	}
	if former := n.renew(cordoned); former != nil || n.row.Load() != freed {
		t.Errorf("an older row replaced a newer one: %+v is %+v now", former, n.row.Load())
	}
	if former := n.renew(freed); former != freed {
		t.Errorf("the same row again: %+v", former)
	}
}
