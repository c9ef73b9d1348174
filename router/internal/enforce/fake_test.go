package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"caponier/shared/netrule"
	"caponier/shared/wire"
)

// fake is a backend whose calls fail at random. It always knows what really
// holds.
type fake struct {
	info Info
	rng  *rand.Rand
	rate float64       // of failures
	slow time.Duration // upper bound of a call

	mu     sync.Mutex
	held   map[string]wire.RouterSession // guarded by mu
	until  time.Time                     // guarded by mu; end of the kernel's lease
	renews int                           // guarded by mu
	calls  int                           // running now; guarded by mu
	worst  int                           // guarded by mu
	closed bool                          // guarded by mu
}

func newFake(kernel bool, seed uint64) *fake {
	f := &fake{info: Info{Type: "fake", Kernel: kernel, Leased: kernel}, rng: rand.New(rand.NewPCG(seed, 1)), held: map[string]wire.RouterSession{}}
	if !kernel {
		f.info.RenewEvery = 2 * time.Second
		f.info.CheckEvery = 5 * time.Second
	}
	return f
}

func (f *fake) fails() bool { return f.rng.Float64() < f.rate }

// enter waits as a real backend would, and counts who is inside.
func (f *fake) enter() func() {
	f.mu.Lock()
	f.calls++
	f.worst = max(f.worst, f.calls)
	var d time.Duration
	if f.slow > 0 {
		d = time.Duration(f.rng.Int64N(int64(f.slow)))
	}
	f.mu.Unlock()
	if d > 0 {
		<-time.After(d) // on a bubble's clock
	}
	f.mu.Lock()
	return func() {
		f.calls--
		f.mu.Unlock()
	}
}

func (f *fake) Sync(_ context.Context, want []wire.RouterSession) (res Result, err error) {
	defer f.enter()()
	wanted := map[string]bool{}
	for _, w := range want {
		wanted[w.ID] = true
	}
	for _, id := range slices.Sorted(maps.Keys(f.held)) {
		if !wanted[id] {
			f.removeLocked(id, &res)
		}
	}
	if f.fails() {
		return Result{}, errors.New("half a state")
	}
	for _, w := range want {
		if _, ok := f.held[w.ID]; !ok {
			f.addLocked(w, &res)
		}
	}
	return res, nil
}

func (f *fake) Apply(_ context.Context, add []wire.RouterSession, remove []string) (res Result, err error) {
	defer f.enter()()
	for _, id := range remove {
		f.removeLocked(id, &res)
	}
	if f.fails() {
		return Result{}, errors.New("half a change")
	}
	for _, s := range add {
		f.addLocked(s, &res)
	}
	return res, nil
}

func (f *fake) addLocked(s wire.RouterSession, res *Result) {
	if !f.fails() {
		f.held[s.ID] = s
		return
	}
	fail := wire.RouterFailure{ID: s.ID, Error: wire.Errorf(wire.CodeRefused, "no")}
	res.Failed = append(res.Failed, fail)
	if f.fails() { // and could not be undone
		f.held[s.ID] = s
		res.Ending = append(res.Ending, fail)
	}
}

func (f *fake) removeLocked(id string, res *Result) {
	if _, ok := f.held[id]; ok && f.fails() {
		res.Ending = append(res.Ending, wire.RouterFailure{ID: id, Error: wire.Errorf(wire.CodeLimit, "busy")})
		return
	}
	if _, ok := f.held[id]; ok {
		res.Ended = append(res.Ended, wire.RouterCount{ID: id, PacketsOut: 1})
	}
	delete(f.held, id)
}

func (f *fake) Renew(_ context.Context, d time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.renews++
	f.until = time.Now().Add(d)
	return nil
}

func (f *fake) Counters(context.Context, []string) ([]wire.RouterCount, error) { return nil, nil }

func (f *fake) Check(context.Context) error { return nil }
func (f *fake) Info() Info                  { return f.info }

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

func (f *fake) ids() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.held))
}

func (f *fake) renewed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.renews
}

// reliable makes everything succeed from now on.
func (f *fake) reliable() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rate = 0
}

func session(n int) wire.RouterSession {
	return wire.RouterSession{ID: fmt.Sprintf("con_%03d", n), Target: "plc", User: "ann", Rules: netrule.Rules{
		Client: netip.AddrFrom4([4]byte{10, 8, byte(n >> 8), byte(n)}),
		Destinations: []netrule.Destination{{Selector: netrule.Selector{
			Addrs: netrule.Range{First: netip.MustParseAddr("10.20.0.0"), Last: netip.MustParseAddr("10.20.0.255")},
			Proto: netrule.TCP, Ports: netrule.Ports{First: 502, Last: 502}}}},
	}}
}

func sessions(ns ...int) (out []wire.RouterSession) {
	for _, n := range ns {
		out = append(out, session(n))
	}
	return out
}

// elapse lets time pass on a bubble's clock, and whatever that sets off finish.
func elapse(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
