package program

import (
	"context"
	"errors"
	"fmt"
	"time"

	"caponier/router/internal/enforce"
	"caponier/shared/wire"
)

// Sync implements enforce.Backend.
func (b *Backend) Sync(ctx context.Context, want []wire.RouterSession) (enforce.Result, error) {
	if !b.checked.Load() {
		if err := b.check(ctx); err != nil {
			return enforce.Result{}, err
		}
		b.checked.Store(true)
	}
	if b.knows(verbSync) {
		res, done, err := b.syncByProgram(ctx, want)
		if done || err != nil {
			return res, err
		}
	}
	have, err := b.have(ctx)
	if err != nil {
		return enforce.Result{}, err
	}
	var add []wire.RouterSession
	var remove []string
	wanted := make(map[string]bool, len(want))
	for _, w := range want {
		wanted[w.ID] = true
		switch held, ok := have[w.ID]; {
		case !ok:
			add = append(add, w)
		case held != hash(w):
			remove = append(remove, w.ID)
			add = append(add, w)
		default:
			// It holds, whether or not we knew.
			if _, sure, _ := b.journal.get(w.ID); !sure {
				if err := b.journal.note(journalLine{Add: &w}, journalLine{OK: w.ID}); err != nil {
					return enforce.Result{}, err
				}
			}
		}
	}
	for id := range have {
		if !wanted[id] {
			remove = append(remove, id)
		}
	}
	res, err := b.Apply(ctx, nil, remove)
	if err != nil {
		return res, err
	}
	// What could not be removed is not added over.
	stuck := make(map[string]bool, len(res.Ending))
	for _, f := range res.Ending {
		stuck[f.ID] = true
	}
	var free []wire.RouterSession
	for _, a := range add {
		if !stuck[a.ID] {
			free = append(free, a)
			continue
		}
		res.Failed = append(res.Failed, wire.RouterFailure{ID: a.ID, Error: wire.Errorf(wire.CodeRefused, "the router could not remove the former rules of this session")})
	}
	more, err := b.Apply(ctx, free, nil)
	if err != nil {
		return more, err
	}
	res.Failed = append(res.Failed, more.Failed...)
	res.Ending = append(res.Ending, more.Ending...)
	return res, nil
}

// check asks the program whether it can work, and which verbs it knows.
func (b *Backend) check(ctx context.Context) error {
	if !b.knows(verbCheck) {
		return nil
	}
	r, err := b.run(ctx, Document{Op: verbCheck}, b.c.Quick)
	if err != nil {
		return err
	}
	if r.Exit == exitUnsupported {
		// Whether rules end by themselves must be known from the beginning.
		return b.renew(ctx, []entry{})
	}
	if r.Exit != exitDone {
		return fmt.Errorf("program check: %w", explain(r, nil))
	}
	var said struct {
		Verbs []string `json:"verbs"`
	}
	if decode(r, &said) != nil || len(said.Verbs) == 0 {
		return nil // it need not say
	}
	knows := map[string]bool{}
	for _, v := range said.Verbs {
		knows[v] = true
	}
	for _, v := range []string{verbList, verbSync, verbRenew, verbCounters} {
		if !knows[v] {
			b.learn(v)
		}
	}
	return nil
}

// syncByProgram leaves the difference to the program; done is false when it
// cannot.
func (b *Backend) syncByProgram(ctx context.Context, want []wire.RouterSession) (res enforce.Result, done bool, err error) {
	before := b.journal.all()
	d := Document{Op: verbSync, Sessions: []entry{}}
	var lines []journalLine
	wanted := make(map[string]bool, len(want))
	for _, w := range want {
		e := entryOf(w)
		e.Rules, e.Static = rulesOf(w.Rules), w.Static
		if b.knows(verbRenew) {
			e.LeaseS = int(b.c.Lease.Seconds())
			e.ExpiresAt = stamp(time.Now().Add(b.c.Lease))
		}
		d.Sessions = append(d.Sessions, e)
		wanted[w.ID] = true
		if was, sure, known := b.journal.get(w.ID); !known || !sure || hash(was) != e.Hash {
			lines = append(lines, journalLine{Add: &w})
		}
	}
	if err := b.journal.note(lines...); err != nil {
		return res, false, err
	}
	r, err := b.run(ctx, d, b.c.Long)
	if err != nil {
		return res, false, err
	}
	if r.Exit == exitUnsupported {
		// Nothing was done: forget what is only intended.
		return res, false, b.forget(wanted, before)
	}
	if r.Exit != exitDone {
		return res, false, fmt.Errorf("program sync: %w", explain(r, nil))
	}
	res, err = syncResult(r, wanted, before)
	if err != nil {
		return res, false, err
	}
	lines = lines[:0]
	open := map[string]bool{}
	for _, f := range res.Failed {
		open[f.ID] = true
		lines = append(lines, journalLine{Del: f.ID})
	}
	for _, f := range res.Ending {
		open[f.ID] = true
	}
	for id := range wanted {
		if !open[id] {
			lines = append(lines, journalLine{OK: id})
		}
	}
	for id := range before {
		if !wanted[id] && !open[id] {
			lines = append(lines, journalLine{Del: id})
		}
	}
	return res, true, b.journal.note(lines...)
}

func (b *Backend) forget(wanted, before map[string]bool) error {
	var lines []journalLine
	for id := range wanted {
		if _, was := before[id]; !was {
			lines = append(lines, journalLine{Del: id})
		}
	}
	return b.journal.note(lines...)
}

// syncResult reads what sync printed. IDs nobody spoke of make it garbage.
func syncResult(r Reply, wanted, before map[string]bool) (res enforce.Result, err error) {
	type named struct {
		ID      string `json:"id"`
		Message string `json:"message"`
	}
	var said struct {
		Failed []named `json:"failed"`
		Ending []named `json:"ending"`
	}
	if len(r.Stdout) > 0 {
		if err := decode(r, &said); err != nil {
			return res, fmt.Errorf("program sync: %w", err)
		}
	}
	turn := func(in []named, fallback string) (out []wire.RouterFailure, err error) {
		for _, n := range in {
			if _, was := before[n.ID]; !was && !wanted[n.ID] {
				return nil, fmt.Errorf("program sync: %w: session %q", errGarbage, clean(n.ID))
			}
			text := clean(n.Message)
			if text == "" {
				text = fallback
			}
			out = append(out, wire.RouterFailure{ID: n.ID, Error: wire.Errorf(wire.CodeRefused, "the router's program says: %s", text)})
		}
		return out, nil
	}
	if res.Failed, err = turn(said.Failed, "it could not be added"); err != nil {
		return enforce.Result{}, err
	}
	if res.Ending, err = turn(said.Ending, "it could not be removed"); err != nil {
		return enforce.Result{}, err
	}
	return res, nil
}

// have returns what is held, with hashes: by the program's list, or by the
// journal. What the journal is not sure of has no hash.
func (b *Backend) have(ctx context.Context) (map[string]string, error) {
	have, err := b.list(ctx)
	if have != nil || err != nil {
		return have, err
	}
	have = map[string]string{}
	for id, sure := range b.journal.all() {
		have[id] = ""
		if sure {
			s, _, _ := b.journal.get(id)
			have[id] = hash(s)
		}
	}
	return have, nil
}

// list asks the program; nil when it does not know the verb.
func (b *Backend) list(ctx context.Context) (map[string]string, error) {
	if !b.knows(verbList) {
		return nil, nil
	}
	r, err := b.run(ctx, Document{Op: verbList}, b.c.Quick)
	switch {
	case err != nil:
		return nil, err
	case r.Exit == exitUnsupported:
		return nil, nil
	case r.Exit != exitDone:
		return nil, fmt.Errorf("program list: %w", explain(r, nil))
	}
	var said struct {
		Sessions *[]struct {
			ID   string `json:"id"`
			Hash string `json:"hash"`
		} `json:"sessions"`
	}
	if err := decode(r, &said); err != nil {
		return nil, fmt.Errorf("program list: %w", err)
	}
	if said.Sessions == nil {
		return nil, fmt.Errorf("program list: %w: no sessions", errGarbage)
	}
	have := make(map[string]string, len(*said.Sessions))
	for _, s := range *said.Sessions {
		if s.ID == "" || len(s.ID) > wire.MaxConnection {
			return nil, fmt.Errorf("program list: %w: a session without a name", errGarbage)
		}
		have[s.ID] = s.Hash
		if s.Hash == "" {
			have[s.ID] = "?" // held, but not as anything we know
		}
	}
	return have, nil
}

// Renew implements enforce.Backend. The program's lease is its own: it matters
// only when the router is gone.
func (b *Backend) Renew(ctx context.Context, _ time.Duration) error {
	if !b.knows(verbRenew) {
		return nil
	}
	sessions := []entry{}
	held, before := b.journal.allAt()
	for id, sure := range held {
		if sure {
			sessions = append(sessions, entry{ID: id})
		}
	}
	err := b.renew(ctx, sessions)
	if _, now := b.journal.allAt(); errors.Is(err, enforce.ErrChanged) && now != before {
		// One may have been removed meanwhile, by ourselves. The next renewal
		// tells.
		return nil
	}
	return err
}

func (b *Backend) renew(ctx context.Context, sessions []entry) error {
	d := Document{Op: verbRenew, Sessions: sessions, LeaseS: int(b.c.Lease.Seconds()), ExpiresAt: stamp(time.Now().Add(b.c.Lease))}
	r, err := b.run(ctx, d, b.c.Quick)
	switch {
	case err != nil:
		return err
	case r.Exit == exitConflict:
		return fmt.Errorf("program renew: %w: %w", enforce.ErrChanged, explain(r, nil))
	case r.Exit != exitDone && r.Exit != exitUnsupported:
		return fmt.Errorf("program renew: %w", explain(r, nil))
	}
	return nil
}

// Check implements enforce.Backend.
func (b *Backend) Check(ctx context.Context) error {
	have, err := b.list(ctx)
	if err != nil || have == nil {
		return err
	}
	known := b.journal.all()
	for id := range have {
		if _, ok := known[id]; !ok {
			return fmt.Errorf("%w: the program holds %s, which nobody added", enforce.ErrChanged, clean(id))
		}
	}
	for id, sure := range known {
		s, _, _ := b.journal.get(id)
		if sure && have[id] != hash(s) {
			return fmt.Errorf("%w: the program does not hold %s as it was added", enforce.ErrChanged, id)
		}
	}
	return nil
}
