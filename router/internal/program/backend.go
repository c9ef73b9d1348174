package program

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"caponier/router/internal/enforce"
	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// Config is what a Backend needs. Runner, Type and State are required.
type Config struct {
	Runner Runner
	// Type is exec or sshexec.
	Type string
	// Legacy calls the program with JSON arguments.
	Legacy bool
	// Name is the router's; Parameters go along to the program.
	Name       string
	Parameters json.RawMessage
	// State is the directory of the journal.
	State string
	// Quick bounds a run, Long one of sync; 0: 10 s and 60 s.
	Quick, Long time.Duration
	// Lease is how long the program keeps a session without renewal; 0: 60 s.
	Lease time.Duration
	// CheckEvery is how often the program's list is compared; 0: 60 s.
	CheckEvery time.Duration
	// Parallel is how many runs there may be at one time; 0: 4.
	Parallel int
	Log      *slog.Logger // nil: discard
}

// Backend is an enforce.Backend.
type Backend struct {
	c        Config
	log      *slog.Logger
	journal  *journal
	router   router
	checked  atomic.Bool
	revision atomic.Int64

	mu      sync.Mutex
	lacking map[string]bool // verbs that the program does not know; guarded by mu
}

// New reads the journal of an earlier process.
func New(c Config) (*Backend, error) {
	setDefault(&c.Quick, 10*time.Second)
	setDefault(&c.Long, time.Minute)
	setDefault(&c.Lease, time.Minute)
	setDefault(&c.CheckEvery, time.Minute)
	setDefault(&c.Parallel, 4)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	j, err := openJournal(filepath.Join(c.State, "sessions.journal"))
	if err != nil {
		return nil, err
	}
	b := &Backend{c: c, log: c.Log, journal: j, router: router{c.Name, c.Type, c.Parameters}, lacking: map[string]bool{}}
	b.revision.Store(time.Now().UnixMicro())
	if c.Legacy {
		for _, v := range []string{verbList, verbSync, verbRenew, verbCounters, verbCheck} {
			b.lacking[v] = true
		}
	}
	return b, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Info implements enforce.Backend.
func (b *Backend) Info() enforce.Info {
	return enforce.Info{Type: b.c.Type, Leased: b.knows(verbRenew), RenewEvery: b.c.Lease / 3, CheckEvery: b.c.CheckEvery}
}

// Close implements enforce.Backend.
func (b *Backend) Close() error { return errors.Join(b.journal.close(), b.c.Runner.Close()) }

func (b *Backend) knows(verb string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lacking[verb]
}

func (b *Backend) learn(verb string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.lacking[verb] {
		b.lacking[verb] = true
		b.log.Warn("the program does not know a verb", "verb", verb)
	}
}

// run calls the program once with a document.
func (b *Backend) run(ctx context.Context, d Document, limit time.Duration) (Reply, error) {
	d.V, d.RequestID, d.Router = 1, strings.ToLower(rand.Text()), b.router
	d.Revision = b.revision.Add(1)
	in, err := json.Marshal(d)
	if err != nil {
		return Reply{}, fmt.Errorf("program %s: %w", d.Op, err)
	}
	return b.start(ctx, Call{Verb: d.Op, Stdin: in}, d.RequestID, limit)
}

func (b *Backend) start(ctx context.Context, c Call, request string, limit time.Duration) (Reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not finished after %s", limit))
	defer cancel()
	r, err := b.c.Runner.Run(ctx, c)
	if err != nil || r.Exit != exitDone {
		level := slog.LevelWarn
		if err == nil && r.Exit == exitUnsupported {
			level = slog.LevelDebug
		}
		b.log.Log(ctx, level, "program", "verb", c.Verb, "request", request, "exit", r.Exit, "stderr", clean(string(r.Stderr)), telemetry.KeyErr, err)
	}
	if err == nil && r.Exit == exitUnsupported {
		b.learn(c.Verb)
	}
	return r, err
}

// one calls add or del for one session.
func (b *Backend) one(ctx context.Context, verb string, s wire.RouterSession) (Reply, error) {
	if b.c.Legacy {
		args, err := legacyArgs(b.router, s)
		if err != nil {
			return Reply{}, err
		}
		return b.start(ctx, Call{Verb: verb, Args: args}, s.ID, b.c.Quick)
	}
	e := entryOf(s)
	if verb == verbAdd && b.knows(verbRenew) {
		e.LeaseS = int(b.c.Lease.Seconds())
		e.ExpiresAt = stamp(time.Now().Add(b.c.Lease))
	}
	return b.run(ctx, Document{Op: verb, Session: &e, Rules: rulesOf(s.Rules), Static: s.Static}, b.c.Quick)
}

// Apply implements enforce.Backend.
func (b *Backend) Apply(ctx context.Context, add []wire.RouterSession, remove []string) (enforce.Result, error) {
	var res enforce.Result
	var mu sync.Mutex // guards res
	each := func(n int, f func(i int) error) error {
		var g errgroup.Group
		g.SetLimit(b.c.Parallel)
		for i := range n {
			g.Go(func() error { return f(i) })
		}
		return g.Wait()
	}
	err := each(len(remove), func(i int) error {
		count, why, err := b.remove(ctx, remove[i])
		mu.Lock()
		defer mu.Unlock()
		if why != nil {
			res.Ending = append(res.Ending, wire.RouterFailure{ID: remove[i], Error: why})
		} else if count != nil {
			res.Ended = append(res.Ended, *count)
		}
		return err
	})
	if err != nil {
		return enforce.Result{}, err
	}
	err = each(len(add), func(i int) error {
		failed, ending, err := b.add(ctx, add[i])
		mu.Lock()
		defer mu.Unlock()
		if failed != nil {
			res.Failed = append(res.Failed, wire.RouterFailure{ID: add[i].ID, Error: failed})
		}
		if ending != nil {
			res.Ending = append(res.Ending, wire.RouterFailure{ID: add[i].ID, Error: ending})
		}
		return err
	})
	if err != nil {
		return enforce.Result{}, err
	}
	return res, nil
}

// retryAfter are the waits before an add is repeated that the program asked to
// repeat, or whose end nobody knows.
var retryAfter = [...]time.Duration{200 * time.Millisecond, time.Second}

// add opens one session, or undoes what was begun. failed says why it does not
// hold, ending that it may still.
func (b *Backend) add(ctx context.Context, s wire.RouterSession) (failed, ending *wire.Error, err error) {
	if err := b.journal.note(journalLine{Add: &s}); err != nil {
		return nil, nil, err
	}
	var why *wire.Error
	for try := 0; ; try++ {
		r, rerr := b.one(ctx, verbAdd, s)
		if rerr == nil && r.Exit == exitDone {
			return nil, nil, b.journal.note(journalLine{OK: s.ID})
		}
		why = explain(r, rerr)
		known := rerr == nil && (r.Exit == exitBad || r.Exit == exitUnsupported || r.Exit == exitConflict)
		if !known && !(rerr == nil && r.Exit == exitRetry) {
			// Nobody knows: ask.
			switch held, ok := b.holds(ctx, s.ID); {
			case ok && held == hash(s):
				return nil, nil, b.journal.note(journalLine{OK: s.ID})
			case !ok:
				known = true // and undo
			}
		}
		// A run that took all its time is not repeated while a person waits.
		if known || rerr != nil || try == len(retryAfter) || !sleep(ctx, retryAfter[try]) {
			break
		}
	}
	if _, ending, err = b.remove(ctx, s.ID); err != nil {
		return nil, nil, err
	}
	return why, ending, nil
}

// holds asks for the hash under which a session is held, "" if it is not; ok
// is false when that cannot be known.
func (b *Backend) holds(ctx context.Context, id string) (hash string, ok bool) {
	have, err := b.list(ctx)
	if err != nil || have == nil {
		return "", false
	}
	return have[id], true
}

// remove ends one session; why is set while it may still hold.
func (b *Backend) remove(ctx context.Context, id string) (count *wire.RouterCount, why *wire.Error, err error) {
	s, _, _ := b.journal.get(id)
	r, rerr := b.one(ctx, verbDel, s)
	if rerr != nil || r.Exit != exitDone {
		if held, ok := b.holds(ctx, id); !ok || held != "" {
			return nil, explain(r, rerr), nil
		}
	}
	var c wire.RouterCount
	if rerr == nil && !r.Cut && json.Unmarshal(r.Stdout, &c) == nil && c.PacketsOut+c.PacketsIn > 0 {
		c.ID = id
		count = &c
	}
	return count, nil, b.journal.note(journalLine{Del: id})
}

// Counters implements enforce.Backend.
func (b *Backend) Counters(ctx context.Context, ids []string) ([]wire.RouterCount, error) {
	if !b.knows(verbCounters) {
		return nil, nil
	}
	d := Document{Op: verbCounters}
	for _, id := range ids {
		d.Sessions = append(d.Sessions, entry{ID: id})
	}
	r, err := b.run(ctx, d, b.c.Quick)
	switch {
	case err != nil:
		return nil, err
	case r.Exit == exitUnsupported:
		return nil, nil
	case r.Exit != exitDone:
		return nil, explain(r, nil)
	}
	var out wire.RouterCounters
	if err := decode(r, &out); err != nil {
		return nil, fmt.Errorf("program counters: %w", err)
	}
	known := b.journal.all()
	counts := out.Sessions[:0]
	for _, c := range out.Sessions {
		if _, ok := known[c.ID]; ok {
			counts = append(counts, c)
		}
	}
	return counts, nil
}

// errGarbage is output that is not what the contract says.
var errGarbage = errors.New("the program printed something else than the contract says")

func decode(r Reply, v any) error {
	if r.Cut {
		return fmt.Errorf("%w: more than %d bytes", errGarbage, MaxStdout)
	}
	if err := json.Unmarshal(r.Stdout, v); err != nil {
		return fmt.Errorf("%w: %w", errGarbage, err)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
