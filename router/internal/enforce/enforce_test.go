package enforce

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"caponier/shared/wire"
)

// running runs a router in a bubble until the test is over.
func running(t *testing.T, b Backend, changed <-chan struct{}) (r *Router, stop func()) {
	t.Helper()
	r = New(Config{Backend: b, Changed: changed})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run = %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func mustState(t *testing.T, r *Router, revision uint64, ss ...wire.RouterSession) wire.RouterAck {
	t.Helper()
	ack, err := r.State(t.Context(), wire.RouterState{Epoch: "e", Revision: revision, Sessions: ss})
	if err != nil {
		t.Fatal(err)
	}
	return ack
}

func lease(t *testing.T, r *Router, revision uint64) wire.RouterLeased {
	t.Helper()
	return r.Lease(t.Context(), wire.RouterLease{Epoch: "e", Revision: revision, ForMS: 5000})
}

// scripted is a fake whose removals fail until told otherwise.
type scripted struct {
	*fake
	start time.Time

	script  sync.Mutex
	stuck   bool            // guarded by script
	asked   []time.Duration // when removals were tried, since start; guarded by script
	syncErr error           // guarded by script
}

// set changes what happens from now on.
func (s *scripted) set(f func()) {
	s.script.Lock()
	defer s.script.Unlock()
	f()
}

func (s *scripted) Apply(ctx context.Context, add []wire.RouterSession, remove []string) (Result, error) {
	var stuck bool
	s.set(func() {
		if stuck = s.stuck; len(remove) > 0 {
			s.asked = append(s.asked, time.Since(s.start))
		}
	})
	if !stuck {
		return s.fake.Apply(ctx, add, remove)
	}
	var res Result
	for _, id := range remove {
		res.Ending = append(res.Ending, wire.RouterFailure{ID: id, Error: wire.Errorf(wire.CodeLimit, "busy")})
	}
	more, err := s.fake.Apply(ctx, add, nil)
	res.Failed = more.Failed
	return res, err
}

func (s *scripted) Sync(ctx context.Context, want []wire.RouterSession) (Result, error) {
	var err error
	s.set(func() { err = s.syncErr })
	if err != nil {
		return Result{}, err
	}
	return s.fake.Sync(ctx, want)
}

// A removal that fails is repeated for ever, quickly at first, and stays
// reported until it is done.
func TestRemovalIsRetriedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &scripted{fake: newFake(false, 1), stuck: true, start: time.Now()}
		b.info.Leased = true
		r, stop := running(t, b, nil)
		defer stop()
		mustState(t, r, 1, sessions(1, 2)...)
		ack, err := r.Changes(t.Context(), wire.RouterChanges{Epoch: "e", From: 1, To: 2, Remove: []string{"con_001"}})
		if err != nil || len(ack.Ending) != 1 || ack.Ending[0].ID != "con_001" || len(ack.Ended) != 0 {
			t.Fatalf("ack = %+v, %v", ack, err)
		}
		for range 100 { // 200 s, the lease renewed all the time
			elapse(2 * time.Second)
			if got := lease(t, r, 2); len(got.Ending) != 1 || got.Resync || got.Sessions != 1 {
				t.Fatalf("leased = %+v", got)
			}
		}
		var gaps []time.Duration
		b.set(func() {
			for i := range b.asked[1:] {
				gaps = append(gaps, b.asked[i+1]-b.asked[i])
			}
		})
		want := append(slices.Clone(quickRetries[:]), slowRetry, slowRetry, slowRetry, slowRetry, slowRetry)
		if len(gaps) < len(want) || !slices.Equal(gaps[:len(want)], want) {
			t.Errorf("tried again after %v, want %v", gaps, want)
		}
		// While it is ending, the ID is not given again.
		ack, err = r.Changes(t.Context(), wire.RouterChanges{Epoch: "e", From: 2, To: 3, Add: sessions(1)})
		if err != nil || len(ack.Failed) != 1 {
			t.Errorf("added over what is ending: %+v, %v", ack, err)
		}
		b.set(func() { b.stuck = false })
		for range 20 {
			elapse(2 * time.Second)
			lease(t, r, 3)
		}
		if got := lease(t, r, 3); len(got.Ending) != 0 {
			t.Errorf("still ending: %+v", got)
		}
		ack, err = r.Changes(t.Context(), wire.RouterChanges{Epoch: "e", From: 3, To: 4, Add: sessions(3)})
		if err != nil || len(ack.Ended) != 1 || ack.Ended[0].ID != "con_001" {
			t.Errorf("the last counters were lost: %+v, %v", ack, err)
		}
	})
}

// The lease of the kernel is passed on exactly; a wrong revision, epoch or a
// doubt passes nothing on.
func TestLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(true, 1)
		r, stop := running(t, f, nil)
		defer stop()
		if got := lease(t, r, 0); !got.Resync || f.renews != 0 {
			t.Fatalf("before any state: %+v, %d renewals", got, f.renews)
		}
		mustState(t, r, 5, sessions(1)...)
		for _, c := range []struct {
			name string
			in   wire.RouterLease
			want time.Duration
		}{
			{"right", wire.RouterLease{Epoch: "e", Revision: 5, ForMS: 5000}, 5 * time.Second},
			{"too long", wire.RouterLease{Epoch: "e", Revision: 5, ForMS: 1 << 60}, 30 * time.Second},
			{"none", wire.RouterLease{Epoch: "e", Revision: 5}, 0},
			{"negative", wire.RouterLease{Epoch: "e", Revision: 5, ForMS: -1}, 0},
			{"older", wire.RouterLease{Epoch: "e", Revision: 4, ForMS: 5000}, 0},
			{"newer", wire.RouterLease{Epoch: "e", Revision: 6, ForMS: 5000}, 0},
			{"other core", wire.RouterLease{Epoch: "f", Revision: 5, ForMS: 5000}, 0},
		} {
			f.mu.Lock()
			f.until = time.Time{}
			f.mu.Unlock()
			got := r.Lease(t.Context(), c.in)
			switch {
			case c.want == 0 && !f.until.IsZero():
				t.Errorf("%s: renewed", c.name)
			case c.want > 0 && time.Until(f.until) != c.want:
				t.Errorf("%s: renewed for %s, want %s", c.name, time.Until(f.until), c.want)
			}
			if got.Resync != (c.in.Epoch != "e") || got.Revision != 5 || got.Sessions != 1 || got.Type != "fake" || !got.Leased {
				t.Errorf("%s: %+v", c.name, got)
			}
		}
	})
}

// While a change with removals is being applied nothing is renewed in the
// kernel, and a change that only adds does not stop renewals.
func TestLeaseDuringChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(true, 1)
		r, stop := running(t, f, nil)
		defer stop()
		mustState(t, r, 1, sessions(1)...)
		f.slow = 0
		hold := make(chan struct{})
		b := &held{fake: f, hold: hold}
		r.c.Backend = b
		for _, c := range []struct {
			name  string
			in    wire.RouterChanges
			renew bool
		}{
			{"add", wire.RouterChanges{Epoch: "e", From: 1, To: 2, Add: sessions(2)}, true},
			{"remove", wire.RouterChanges{Epoch: "e", From: 2, To: 3, Remove: []string{"con_002"}}, false},
		} {
			done := make(chan error, 1)
			go func() {
				_, err := r.Changes(t.Context(), c.in)
				done <- err
			}()
			synctest.Wait()
			before := f.renewed()
			lease(t, r, c.in.From)
			if f.renewed() != before {
				t.Errorf("%s: a lease for what was wanted before was honoured", c.name)
			}
			lease(t, r, c.in.To)
			if got := f.renewed() > before; got != c.renew {
				t.Errorf("%s: renewed = %v, want %v", c.name, got, c.renew)
			}
			hold <- struct{}{}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// held waits in Apply.
type held struct {
	*fake
	hold chan struct{}
}

func (h *held) Apply(ctx context.Context, add []wire.RouterSession, remove []string) (Result, error) {
	<-h.hold
	return h.fake.Apply(ctx, add, remove)
}

// Without a lease in the kernel the router itself ends everything on time, at
// the start too, and keeps trying when the backend does not answer.
func TestLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &scripted{fake: newFake(false, 1), start: time.Now()}
		b.held["con_900"] = session(900) // of an earlier process
		r, stop := running(t, b, nil)
		defer stop()
		elapse(29 * time.Second)
		if len(b.ids()) != 1 {
			t.Fatal("what an earlier process left was removed before its time")
		}
		elapse(2 * time.Second)
		if got := b.ids(); len(got) != 0 {
			t.Fatalf("nobody justifies %v any more", got)
		}
		mustState(t, r, 1, sessions(1, 2)...)
		lease(t, r, 1)
		b.set(func() { b.syncErr = errors.New("the program is away") })
		elapse(4900 * time.Millisecond)
		if len(b.ids()) != 2 {
			t.Fatal("removed before the lease was over")
		}
		elapse(20 * time.Second)
		b.set(func() { b.syncErr = nil })
		elapse(20 * time.Second)
		if got := b.ids(); len(got) != 0 {
			t.Fatalf("%v holds without a lease", got)
		}
		if got := lease(t, r, 1); !got.Resync {
			t.Errorf("after the lapse core was not asked for the state: %+v", got)
		}
	})
}

// At the end rules stay where they end by themselves, and go where they do not.
func TestLeave(t *testing.T) {
	for name, info := range map[string]Info{"kernel": {Kernel: true}, "leased": {Leased: true}, "unleased": {}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(false, 1)
			f.info = info
			r, stop := running(t, f, nil)
			mustState(t, r, 1, sessions(1)...)
			stop()
			if got, want := len(f.ids()), 1; name != "unleased" && got != want || name == "unleased" && got != 0 {
				t.Errorf("%s: %d sessions hold after the end", name, got)
			}
			if !f.closed {
				t.Errorf("%s: not closed", name)
			}
		})
	}
}

// Rules changed by hand are put right at once, under the lease that is left,
// and core is asked when that does not work.
func TestHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changed := make(chan struct{})
		b := &scripted{fake: newFake(true, 1), start: time.Now()}
		r, stop := running(t, b, changed)
		defer stop()
		mustState(t, r, 1, sessions(1, 2)...)
		lease(t, r, 1)
		elapse(2 * time.Second)
		b.mu.Lock()
		clear(b.held)
		b.held["planted"] = session(700)
		b.until = time.Time{}
		b.mu.Unlock()
		changed <- struct{}{}
		synctest.Wait()
		if got, want := b.ids(), []string{"con_001", "con_002"}; !slices.Equal(got, want) {
			t.Errorf("held %v, want %v", got, want)
		}
		if left := time.Until(b.until); left != 3*time.Second {
			t.Errorf("the lease is %s, 3s were left", left)
		}
		b.set(func() { b.syncErr = errors.New("no") })
		changed <- struct{}{}
		synctest.Wait()
		if got := lease(t, r, 1); !got.Resync {
			t.Errorf("core was not asked: %+v", got)
		}
		if st := r.Status(); st.Changed != 2 || st.Sure {
			t.Errorf("status = %+v", st)
		}
	})
}

func TestRefusedSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(true, 1)
		r, stop := running(t, f, nil)
		defer stop()
		noDest, badID, v6 := session(1), session(2), session(3)
		noDest.Rules.Destinations = nil
		badID.ID = "con 2"
		v6.Rules.Client = v6.Rules.Client.Next().Next()
		v6.Rules.Destinations[0].Ports.First = 600 // after the last
		ack := mustState(t, r, 1, noDest, badID, v6, session(4), session(4))
		if len(ack.Failed) != 4 {
			t.Errorf("failed = %+v", ack.Failed)
		}
		if got := f.ids(); !slices.Equal(got, []string{"con_004"}) {
			t.Errorf("held %v", got)
		}
	})
}

func TestConflicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(true, 1)
		r, stop := running(t, f, nil)
		defer stop()
		change := func(epoch string, from, to uint64, add ...wire.RouterSession) error {
			_, err := r.Changes(t.Context(), wire.RouterChanges{Epoch: epoch, From: from, To: to, Add: add})
			return err
		}
		if err := change("e", 0, 1); !errors.Is(err, ErrConflict) {
			t.Errorf("before any state: %v", err)
		}
		mustState(t, r, 3, sessions(1)...)
		for name, err := range map[string]error{
			"other epoch": change("f", 3, 4), "from before": change("e", 2, 4), "from after": change("e", 4, 5),
			"not forward": change("e", 3, 3), "there already": change("e", 3, 4, session(1)),
		} {
			if !errors.Is(err, ErrConflict) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := change("e", 3, 7, session(2)); err != nil {
			t.Error(err)
		}
	})
}

// A caller that gives up does not stop what the backend has begun, and the
// next one waits for it.
func TestCallerGoesAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(true, 1)
		f.slow = 2 * time.Second
		r, stop := running(t, f, nil)
		defer stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := r.State(ctx, wire.RouterState{Epoch: "e", Revision: 1, Sessions: sessions(1)}); err != nil {
			t.Errorf("the state was given up half-way: %v", err)
		}
		done, cancelled := context.WithCancel(t.Context())
		cancelled()
		if err := r.lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.State(done, wire.RouterState{Epoch: "e", Revision: 2}); err == nil {
			t.Error("a caller that is gone did not stop waiting")
		}
		r.unlock()
	})
}

func TestLargeStateFits(t *testing.T) {
	var in wire.RouterState
	in.Epoch, in.Revision = "e", 1
	for n := range 10_000 {
		s := session(n)
		for i := range 9 {
			d := s.Rules.Destinations[0]
			d.Ports.First, d.Ports.Last = uint16(i+1), uint16(i+1)
			s.Rules.Destinations = append(s.Rules.Destinations, d)
		}
		s.ID = fmt.Sprintf("con_%026d", n)
		in.Sessions = append(in.Sessions, s)
	}
	f := newFake(true, 1)
	r := New(Config{Backend: f})
	ack := exchange(t, r, in)
	if len(ack.Failed) != 0 || len(f.ids()) != 10_000 {
		t.Errorf("%d failed, %d held", len(ack.Failed), len(f.ids()))
	}
}
