package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"caponier/shared/wire"
)

// core is what a core would believe, from the router's answers alone.
type core struct {
	t        *testing.T
	r        *Router
	f        *fake
	rng      *rand.Rand
	epoch    string
	revision uint64
	synced   bool
	want     map[string]wire.RouterSession
	next     int
}

func (c *core) believe(ack wire.RouterAck) {
	c.t.Helper()
	if ack.Epoch != c.epoch || ack.Revision != c.revision {
		c.t.Fatalf("ack for %s/%d, want %s/%d", ack.Epoch, ack.Revision, c.epoch, c.revision)
	}
	ending := map[string]bool{}
	for _, e := range ack.Ending {
		ending[e.ID] = true
	}
	for _, f := range ack.Failed {
		if f.Error == nil || f.Error.Public == "" {
			c.t.Fatalf("%s failed without a text", f.ID)
		}
		delete(c.want, f.ID)
	}
	c.honest(ending)
}

// honest checks that what is not said to be ending is gone, and that what is
// not said to have failed holds.
func (c *core) honest(ending map[string]bool) {
	c.t.Helper()
	held := map[string]bool{}
	for _, id := range c.f.ids() {
		held[id] = true
		if _, wanted := c.want[id]; !wanted && !ending[id] {
			c.t.Fatalf("%s still holds and the router says nothing of it", id)
		}
	}
	for id := range c.want {
		if !held[id] {
			c.t.Fatalf("%s does not hold and the router says nothing of it", id)
		}
	}
}

func (c *core) state() {
	c.revision++
	in := wire.RouterState{Epoch: c.epoch, Revision: c.revision}
	for _, id := range slices.Sorted(maps.Keys(c.want)) {
		in.Sessions = append(in.Sessions, c.want[id])
	}
	ack, err := c.r.State(c.t.Context(), in)
	c.synced = err == nil
	if err == nil {
		c.believe(ack)
	}
}

func (c *core) change() {
	in := wire.RouterChanges{Epoch: c.epoch, From: c.revision, To: c.revision + 1 + c.rng.Uint64N(3)}
	for range c.rng.IntN(4) {
		s := session(c.next)
		c.next++
		in.Add = append(in.Add, s)
		c.want[s.ID] = s
	}
	for _, id := range slices.Sorted(maps.Keys(c.want)) {
		if c.rng.IntN(4) == 0 && !slices.ContainsFunc(in.Add, func(s wire.RouterSession) bool { return s.ID == id }) {
			in.Remove = append(in.Remove, id)
			delete(c.want, id)
		}
	}
	c.revision = in.To
	ack, err := c.r.Changes(c.t.Context(), in)
	switch {
	case err == nil:
		c.believe(ack)
	case errors.Is(err, ErrConflict) && c.synced && c.r.Status().Sure:
		c.t.Fatalf("a change that fits was refused: %v", err)
	default:
		c.synced = false
	}
}

func (c *core) lease(revision uint64, epoch string) {
	before := c.f.renewed()
	doubt := !c.r.Status().Sure
	got := c.r.Lease(c.t.Context(), wire.RouterLease{Epoch: epoch, Revision: revision, ForMS: 5000})
	if wrong := revision != c.revision || epoch != c.epoch || doubt; wrong && c.f.info.Kernel && c.f.renewed() != before {
		c.t.Fatalf("a lease for %s/%d was honoured at %s/%d", epoch, revision, c.epoch, c.revision)
	}
	if (doubt || epoch != c.epoch) && !got.Resync {
		c.t.Fatalf("no resync was asked for")
	}
	if len(got.Ending) > 0 && c.f.info.Kernel && c.f.renewed() != before {
		c.t.Fatalf("a lease was honoured while %s is ending", got.Ending[0].ID)
	}
	if got.Resync {
		c.synced = false
	}
}

// TestModel drives a router with an unreliable backend through random states,
// changes, leases and silences, and compares what it says with what is.
func TestModel(t *testing.T) {
	for seed := range uint64(150) {
		kernel := seed%2 == 0
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(kernel, seed)
				f.rate, f.slow = 0.2, 3*time.Second
				r := New(Config{Backend: f})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				c := &core{t: t, r: r, f: f, rng: rand.New(rand.NewPCG(seed, 2)), epoch: "e1", want: map[string]wire.RouterSession{}}
				for range 60 {
					switch n := c.rng.IntN(10); {
					case n < 2 || !c.synced:
						c.state()
					case n < 7:
						c.change()
					case n == 7:
						c.lease(c.revision+1, c.epoch)
					case n == 8:
						c.lease(c.revision, "old")
					default:
						elapse(time.Duration(c.rng.Int64N(int64(3 * time.Second))))
					}
					c.lease(c.revision, c.epoch)
				}
				// Once the backend works again, everything ends as core wants it.
				f.reliable()
				c.state()
				for !c.synced {
					c.state()
				}
				elapse(slowRetry + time.Second)
				if !kernel {
					if got := f.ids(); len(got) != 0 {
						t.Errorf("core was silent for longer than its lease, and %v still holds", got)
					}
				} else {
					c.honest(nil)
					if got := r.Lease(t.Context(), wire.RouterLease{Epoch: c.epoch, Revision: c.revision, ForMS: 1000}); len(got.Ending) > 0 || got.Resync {
						t.Errorf("not settled: %+v", got)
					}
				}
				cancel()
				<-done
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				if f.worst > 1 {
					t.Errorf("%d calls were in the backend at one time", f.worst)
				}
			})
		})
	}
}
