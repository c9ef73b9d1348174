package nft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
	"caponier/shared/wire"
)

// Replace makes the kernel hold exactly the given sessions, whatever it holds
// now. What the kernel has of them already is not touched: their flows go on.
// Unknown elements leave first. The lease is refused until it is done.
func (t *Table) Replace(ctx context.Context, desired []wire.RouterSession) (Result, error) {
	if err := acquire(ctx, t.lock); err != nil {
		return Result{}, err
	}
	defer func() { <-t.lock }()
	t.distrust()
	res, err := t.replace(ctx, desired)
	if err != nil {
		return res, fmt.Errorf("reconcile: %w", err)
	}
	return res, nil
}

// distrust says that the kernel may differ from the model; no lease until it
// is known again.
func (t *Table) distrust() {
	t.agreed = false
	t.renewable.Store(false)
}

func (t *Table) replace(ctx context.Context, desired []wire.RouterSession) (res Result, err error) {
	if _, err := ensureLatch(t.route, t.cfg.RulePriority, t.cfg.Mark); err != nil {
		return res, err
	}
	desired = normal(desired)
	k, err := readTable(t.sock, t.cfg.Table)
	if err != nil {
		return res, err
	}
	intact := t.intact(&k)
	var m *ruleset.Model
	var unknown []ruleset.Elem
	if intact {
		t.stored, t.depth = k.stored, k.depth
		m, unknown = ruleset.Adopt(k.dump(), k.depth, desired)
		res.Ended = t.settle(t.ended(&k, m), desired)
		if err := t.drop(unknown); err != nil {
			return res, err
		}
	} else if m, err = t.rebuild(&k, desired); err != nil {
		return res, err
	}
	if intact && !k.leaseFits() {
		if err := t.dropLease(); err != nil {
			return res, err
		}
	}
	if len(unknown) > 0 || t.model == nil {
		t.sweep.Store(true)
	}
	for _, s := range t.spent {
		m.Spend(s.block)
	}
	t.model = m
	if m.Fresh() {
		// Nobody knows which marks flows still carry; the first ones given out
		// would let them pass.
		if _, err := forgetDead(t.sock, func() (func(uint32) bool, error) { return m.Live(), nil }); err != nil {
			return res, err
		}
	}
	c := &ruleset.Change{}
	for _, rs := range desired {
		if _, ok := m.Session(rs.ID); ok {
			continue
		}
		if err := m.Add(rs, c); err != nil {
			res.Failed = append(res.Failed, wire.RouterFailure{ID: rs.ID, Error: err})
			continue
		}
		if len(c.Add) >= batchElems || c.Layers > 0 {
			if err := ctx.Err(); err != nil {
				return res, err
			}
			if err := t.commit(c, nil); err != nil {
				return res, err
			}
			c = &ruleset.Change{}
		}
	}
	if err := t.commit(c, nil); err != nil {
		return res, err
	}
	if err := t.rebase(); err != nil {
		return res, err
	}
	t.agreed = true
	t.renewable.Store(true)
	t.poke()
	return res, nil
}

// settle splits what the kernel had and the model has not: sessions that have
// to be made again keep their counters, the others have ended.
func (t *Table) settle(gone []wire.RouterCount, desired []wire.RouterSession) (ended []wire.RouterCount) {
	wanted := make(map[string]bool, len(desired))
	for _, rs := range desired {
		wanted[rs.ID] = true
	}
	for _, c := range gone {
		if wanted[c.ID] {
			t.carried[c.ID] = t.atLeast(c)
			continue
		}
		delete(t.carried, c.ID)
		delete(t.last, c.ID)
		ended = append(ended, c)
	}
	return ended
}

func normal(desired []wire.RouterSession) []wire.RouterSession {
	out := make([]wire.RouterSession, len(desired))
	for i, rs := range desired {
		rs.Rules = rs.Rules.Normal()
		out[i] = rs
	}
	return out
}

func (k *kernel) dump() ruleset.Dump {
	d := make(ruleset.Dump, len(k.elems))
	for i := range k.elems {
		d[i] = k.elems[i].Elem
	}
	return d
}

// drop removes unknown elements in transactions of a bounded size, grants and
// live marks first.
func (t *Table) drop(unknown []ruleset.Elem) error {
	c := &ruleset.Change{}
	for _, kinds := range [][2]ruleset.Kind{{ruleset.In, ruleset.Grants6}, {ruleset.Dst4, ruleset.SNAT}} {
		for _, e := range unknown {
			if e.Kind < kinds[0] || e.Kind > kinds[1] {
				continue
			}
			c.Delete = append(c.Delete, e)
			if len(c.Delete) >= batchElems {
				if err := t.commit(c, nil); err != nil {
					return err
				}
				c = &ruleset.Change{}
			}
		}
		if err := t.commit(c, nil); err != nil {
			return err
		}
		c = &ruleset.Change{}
	}
	return nil
}

// dropLease closes everything.
func (t *Table) dropLease() error {
	r := t.sock.requests()
	r.beginBatch()
	r.flushSet(t.cfg.Table, ruleset.Set{Kind: ruleset.Lease})
	r.endBatch()
	if err := t.sock.do(r, nil); err != nil {
		return fmt.Errorf("drop the lease: %w", err)
	}
	t.commits.Add(1)
	return nil
}

// rebuild makes the table anew and fills in what is explained by the desired
// sessions: with the marks they had, so that their flows go on, if we made them
// ourselves or the elements at least are still there.
func (t *Table) rebuild(k *kernel, desired []wire.RouterSession) (*ruleset.Model, error) {
	from, depth := k.dump(), max(k.depth, ruleset.FirstLayers)
	if t.model != nil {
		from, depth = t.model.Elements(), t.model.Depth()
	}
	m, _ := ruleset.Adopt(from, depth, desired)
	t.cfg.Log.Warn("the table is made anew", "table", t.cfg.Table, "there", k.there, "sessions", m.Len())
	if err := t.makeTable(k.there, depth); err != nil {
		return nil, err
	}
	t.sweep.Store(true)
	t.carry(k, m)
	for all := m.Elements(); len(all) > 0; {
		n := min(len(all), batchElems)
		if err := t.commit(&ruleset.Change{Add: all[:n]}, nil); err != nil {
			return nil, err
		}
		all = all[n:]
	}
	return m, nil
}

// rebase takes the kernel's generation as ours.
func (t *Table) rebase() error {
	if err := acquire(context.Background(), t.leaseLock); err != nil {
		return err
	}
	defer func() { <-t.leaseLock }()
	gen, err := generation(t.sock)
	t.commits.Store(gen)
	return err
}

// Apply removes and adds sessions in one transaction. A session that is there
// with the same rules stays as it is; with others it is replaced, and its flows
// are cut. After an error nothing is certain: call Replace.
func (t *Table) Apply(ctx context.Context, add []wire.RouterSession, remove []string) (Result, error) {
	if err := acquire(ctx, t.lock); err != nil {
		return Result{}, err
	}
	defer func() { <-t.lock }()
	if !t.agreed {
		return Result{}, ErrNotReconciled
	}
	var (
		res  Result
		c    ruleset.Change
		gone []*ruleset.Session
		now  = t.cfg.Now()
	)
	take := func(id string) {
		if s, ok := t.model.Remove(id, now, &c); ok {
			gone = append(gone, s)
			t.spent = append(t.spent, spent{s.Block, s.Rules.Client, now})
		}
	}
	for _, id := range remove {
		take(id)
	}
	hurry := false
	for _, rs := range normal(add) {
		if s, ok := t.model.Session(rs.ID); ok {
			if s.Rules.Equal(rs.Rules) {
				continue
			}
			take(rs.ID)
		}
		if err := t.model.Add(rs, &c); err != nil {
			res.Failed = append(res.Failed, wire.RouterFailure{ID: rs.ID, Error: err})
			continue
		}
		hurry = hurry || t.hurry(rs)
	}
	count := newTally(gone)
	if err := t.commit(&c, count.add); err != nil {
		t.distrust()
		t.signal()
		return Result{}, fmt.Errorf("apply: %w", err)
	}
	res.Ended = t.totals(gone, count)
	for _, s := range gone {
		delete(t.carried, s.ID)
		delete(t.last, s.ID)
	}
	if hurry {
		t.poke()
	}
	return res, nil
}

// hurry makes the flows of a client's ended sessions be forgotten at once: the
// client may use the same ports again.
func (t *Table) hurry(rs wire.RouterSession) (found bool) {
	for i := range t.spent {
		if t.spent[i].client == rs.Rules.Client {
			t.spent[i].at, found = time.Time{}, true
		}
	}
	return found
}

func (t *Table) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// Remove takes table and latch away: the machine forwards again whatever its
// other rules let through. For uninstalling only.
func Remove(ctx context.Context, cfg Config) error {
	t, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	r := t.sock.requests()
	r.beginBatch()
	r.table(unix.NFT_MSG_DELTABLE, 0, t.cfg.Table)
	r.endBatch()
	err = t.sock.do(r, nil)
	if err == nil {
		_, err = forgetDead(t.sock, func() (func(uint32) bool, error) { return func(uint32) bool { return false }, nil })
	}
	if err == nil {
		err = removeLatch(t.route, t.cfg.RulePriority, t.cfg.Mark)
	}
	if closing := t.Close(); err == nil {
		err = closing
	}
	return err
}

// Latch closes the router before anything else runs: at boot. It leaves a table
// that is there alone, and is content where a router works already.
func Latch(ctx context.Context, cfg Config) error {
	t, err := Open(ctx, cfg)
	if errors.Is(err, ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	return t.Close()
}
