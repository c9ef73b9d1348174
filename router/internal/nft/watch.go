package nft

import (
	"context"
	"fmt"
	"slices"
	"time"

	"caponier/router/internal/ruleset"
)

const (
	// watchEvery is how soon a change by somebody else is noticed.
	watchEvery = 200 * time.Millisecond
	// keepFlows is how long flows of an ended session are refused so that their
	// ends learn of it; then they are forgotten.
	keepFlows = 3 * time.Second
	// manySpent is how many ended sessions are looked for one by one.
	manySpent = 8
	// idleDestinations stay that long, for the next session to the same target.
	idleDestinations = time.Minute
	collectEvery     = 10 * time.Second
	collectMost      = 500
)

// Run watches over the table until ctx ends: it notices changes by somebody
// else, forgets the flows of ended sessions and removes destinations nobody
// uses.
func (t *Table) Run(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	w := watcher{t: t}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		case <-tick.C:
			if err := w.look(ctx); err != nil && ctx.Err() == nil {
				t.cfg.Log.Error("watching the rules failed", "err", err)
			}
		}
		if err := t.forget(ctx); err != nil && ctx.Err() == nil {
			t.cfg.Log.Error("forgetting flows of ended sessions failed", "err", err)
		}
		if err := t.collect(ctx, &w); err != nil && ctx.Err() == nil {
			t.cfg.Log.Error("removing unused destinations failed", "err", err)
		}
	}
}

type watcher struct {
	t         *Table
	rest      time.Time // not to look closely before
	collected time.Time
}

// look compares the kernel's generation with what we did. Other tables change
// it, too: then our own is read, and nothing happens if it is as it should be.
func (w *watcher) look(ctx context.Context) error {
	t := w.t
	if err := acquire(ctx, t.lock); err != nil {
		return err
	}
	defer func() { <-t.lock }()
	added, err := ensureLatch(t.route, t.cfg.RulePriority, t.cfg.Mark)
	if err != nil {
		return err
	}
	if added {
		t.cfg.Log.Warn("the ip rules that close this router were missing; they are back")
	}
	if !t.agreed {
		return nil
	}
	if err := acquire(ctx, t.leaseLock); err != nil {
		return err
	}
	gen, err := generation(t.sock)
	others := gen - t.commits.Load() // transactions that were not ours
	<-t.leaseLock
	if err != nil || others == 0 || time.Now().Before(w.rest) {
		return err
	}
	began := time.Now()
	intact, err := t.verify()
	if err != nil {
		return err
	}
	w.rest = time.Now().Add(10 * time.Since(began))
	if intact {
		// What came after we counted is counted next time.
		t.commits.Add(others)
		return nil
	}
	t.cfg.Log.Warn("the rules were changed by somebody else", "table", t.cfg.Table)
	t.distrust()
	t.signal()
	return nil
}

// verify reads the table and compares it with the model.
func (t *Table) verify() (intact bool, err error) {
	k, err := readTable(t.sock, t.cfg.Table)
	if err != nil {
		return false, err
	}
	return t.intact(&k) && k.stored == t.stored && k.leaseFits() && t.model.Explains(k.dump()), nil
}

// intact reports whether the constant part is what this program made.
func (t *Table) intact(k *kernel) bool {
	if !k.there || k.strange > 0 || k.stored == "" || k.stored != t.note(k.sum, k.depth) {
		return false
	}
	want := map[ruleset.Ident]bool{}
	for _, e := range t.interfaces() {
		want[e.Ident()] = true
	}
	for i := range k.elems {
		if e := &k.elems[i]; e.Kind == ruleset.Interfaces {
			if !want[e.Ident()] {
				return false
			}
			delete(want, e.Ident())
		}
	}
	return len(want) == 0
}

// leaseFits reports whether the lease is one we may have given.
func (k *kernel) leaseFits() bool {
	for i := range k.elems {
		if e := &k.elems[i]; e.Kind == ruleset.Lease && (e.TimeoutMS == 0 || e.TimeoutMS > uint64(maxLease.Milliseconds())) {
			return false
		}
	}
	return true
}

// due are the blocks whose flows have been refused for long enough; the lock is
// held.
func (t *Table) due() (blocks []ruleset.Block) {
	now := t.cfg.Now()
	for _, s := range t.spent {
		if now.Sub(s.at) >= keepFlows {
			blocks = append(blocks, s.block)
		}
	}
	return blocks
}

// forget deletes flows of ended sessions from the kernel's table. The walks are
// long; changes do not wait for them.
func (t *Table) forget(ctx context.Context) error {
	if err := acquire(ctx, t.lock); err != nil {
		return err
	}
	if t.model == nil {
		<-t.lock
		return nil
	}
	due := t.due()
	sweep := t.sweep.Load() || len(due) > manySpent
	<-t.lock
	if sweep {
		return t.sweepDead(ctx)
	}
	for _, b := range due {
		if err := forgetFlows(t.flows, b); err != nil {
			return err
		}
	}
	if len(due) == 0 {
		return nil
	}
	if err := acquire(ctx, t.lock); err != nil {
		return err
	}
	t.forgotten(due)
	<-t.lock
	return nil
}

// forgotten says that no flow carries these marks; the lock is held.
func (t *Table) forgotten(done []ruleset.Block) {
	t.spent = slices.DeleteFunc(t.spent, func(s spent) bool { return slices.Contains(done, s.block) })
	t.model.Forget(done)
}

// sweepDead deletes every flow of ours without a session, but those of sessions
// that ended just now. What is dead when the flows are listed stays so until its
// block is forgotten.
func (t *Table) sweepDead(ctx context.Context) error {
	t.sweep.Store(false)
	if err := acquire(ctx, t.lock); err != nil {
		return err
	}
	due := t.due()
	<-t.lock
	n, err := forgetDead(t.flows, func() (func(uint32) bool, error) {
		if err := acquire(ctx, t.lock); err != nil {
			return nil, err
		}
		defer func() { <-t.lock }()
		live := t.model.Live()
		var young []ruleset.Block
		for _, s := range t.spent {
			if !slices.Contains(due, s.block) {
				young = append(young, s.block)
			}
		}
		return func(mark uint32) bool {
			return live(mark) || slices.ContainsFunc(young, func(b ruleset.Block) bool { return b.Holds(mark) })
		}, nil
	})
	if err != nil {
		t.sweep.Store(true)
		return fmt.Errorf("sweep: %w", err)
	}
	if err := acquire(ctx, t.lock); err != nil {
		return err
	}
	t.forgotten(due)
	<-t.lock
	if n > 0 {
		t.cfg.Log.Info("flows of ended sessions deleted", "flows", n)
	}
	return nil
}

// collect removes destinations nobody uses.
func (t *Table) collect(ctx context.Context, w *watcher) error {
	now := t.cfg.Now()
	if now.Sub(w.collected) < collectEvery {
		return nil
	}
	w.collected = now
	if err := acquire(ctx, t.lock); err != nil {
		return err
	}
	defer func() { <-t.lock }()
	if !t.agreed {
		return nil
	}
	var c ruleset.Change
	t.model.Collect(now.Add(-idleDestinations), collectMost, &c)
	if err := t.commit(&c, nil); err != nil {
		t.distrust()
		t.signal()
		return err
	}
	return nil
}
