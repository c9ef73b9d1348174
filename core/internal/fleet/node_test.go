package fleet

import (
	"context"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"caponier/core/internal/audit"
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

// dead is a tunnel whose end nobody has noticed; while it is asked, something
// happens.
type dead struct {
	tunnel.Session
	leaf  *x509.Certificate
	asked func()
	ended context.Context
	end   context.CancelFunc
}

func (d *dead) Done() <-chan struct{} { return d.ended.Done() }

func (d *dead) Info() tunnel.Info { return tunnel.Info{Peer: d.leaf} }

func (d *dead) Close(*wire.Error) error { d.end(); return nil }

func (d *dead) Ping(context.Context) (time.Duration, error) {
	d.asked()
	return 0, errors.New("no answer")
}

// A node that is changed while it comes back is known as it is then, and one
// that is revoked meanwhile does not come back.
func TestChangedWhileItReturns(t *testing.T) {
	now := time.Now()
	f := offline(t, dbtest.SQLite(t), &now)
	_, text, err := f.CreateToken(t.Context(), audit.System, TokenSpec{Kind: "carrier", TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	ask := request(t, text)
	ask.Kind = wire.Carrier
	enrolled, err := f.enrol(t.Context(), ask, "192.0.2.1:1")
	if err != nil {
		t.Fatal(err)
	}
	id := enrolled.NodeID
	leaf, err := x509.ParseCertificate(enrolled.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	come := func(place string, asked func()) (*dead, *nodeRow, *wire.Error) {
		s := &dead{leaf: leaf, asked: asked}
		s.ended, s.end = context.WithCancel(t.Context())
		e, why := f.admitNode(t.Context(), &node{id: id, kind: wire.Carrier, session: s}, wire.Hello{Version: wire.Version, Kind: wire.Carrier, Host: place, Clock: now.UnixMicro()})
		return s, e, why
	}
	if _, _, why := come("here", func() {
		_, err := f.change(t.Context(), id, audit.EdgeChanged, func(e *nodeRow, fields map[string]string) error {
			e.Cordoned, fields["cordoned"] = true, "true"
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}); why != nil {
		t.Fatal(why)
	}
	_, e, why := come("there", func() {
		if err := f.Revoke(t.Context(), audit.System, id, false); err != nil {
			t.Error(err)
		}
	})
	if why != nil || !e.Cordoned || !f.get(id).row.Load().Cordoned {
		t.Errorf("drained while it returned: %+v, %v", e, why)
	}
	if s, _, why := come("elsewhere", nil); why == nil || why.Code != wire.CodeUnauthorized || !isDone(s) {
		t.Errorf("revoked while it returned: %v, closed %v", why, isDone(s))
	}
}
