// Package enforce is the router's conscience: it takes what core wants, makes
// a Backend do it, and tells core the truth about it.
//
// Core sends a whole state and then changes to it, each with a revision. An
// answer is sent when the backend has done it, never before. What could not be
// added is reported as failed and holds nowhere. What could not be removed is
// reported as ending and tried again for ever; it is never reported as ended.
//
// Rules hold only on a lease that core renews (DESIGN invariant 12). A lease
// counts only for the revision that core wants: it never keeps alive what core
// has already taken away. Where the backend cannot end rules by itself, Run
// does when the lease is over. When somebody else changes the rules they are put
// right at once. When it is not certain what the backend holds (after a start
// or an error), nothing is renewed until core has sent the whole state again.
package enforce

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// ErrChanged is what Backend.Check returns when somebody else has changed what
// is enforced.
var ErrChanged = errors.New("what is enforced was changed by somebody else")

// Info describes a backend.
type Info struct {
	// Type is nftables, exec, sshexec or logger.
	Type string
	// Leased: rules end by themselves when the router's process dies.
	Leased bool
	// Kernel: there is one lease for everything, held outside of the process
	// and exact. Each lease from core is passed on at once.
	Kernel bool
	// RenewEvery is how often Renew is called while core's lease is valid,
	// where Kernel is false; 0: never.
	RenewEvery time.Duration
	// CheckEvery is how often Check is called; 0: never.
	CheckEvery time.Duration
}

// Result says what a backend could not do. What is not named is done.
type Result struct {
	// Failed are additions that do not hold. One that could not even be undone
	// is in Ending too.
	Failed []wire.RouterFailure
	// Ending are sessions that should be gone and may still hold.
	Ending []wire.RouterFailure
	// Ended are the last counters of what was removed, if there are any.
	Ended []wire.RouterCount
}

// Backend is where rules hold: the kernel, or a program. Sync, Apply and Check
// are called one at a time; Renew and Counters may come at any time. An error
// of Sync or Apply means that it is not known what holds.
type Backend interface {
	// Sync makes exactly want hold, and leaves what is right untouched.
	Sync(ctx context.Context, want []wire.RouterSession) (Result, error)
	// Apply removes, then adds. Removing what is not there succeeds.
	Apply(ctx context.Context, add []wire.RouterSession, remove []string) (Result, error)
	// Renew keeps what holds for d from now.
	Renew(ctx context.Context, d time.Duration) error
	// Counters returns running totals of the given sessions; none: of all.
	Counters(ctx context.Context, ids []string) ([]wire.RouterCount, error)
	// Check returns an error that is ErrChanged when what holds is not what was
	// applied last.
	Check(ctx context.Context) error
	Info() Info
	// Close gives resources back and leaves rules as they are.
	Close() error
}

// Config is what a Router needs. Backend is required.
type Config struct {
	Backend Backend
	// Changed tells that somebody else changed the rules; nil: only Check does.
	Changed <-chan struct{}
	// MaxLease bounds one lease; 0: 30 s.
	MaxLease time.Duration
	Log      *slog.Logger // nil: discard
}

// Limits.
const (
	// applyTimeout bounds one change by the backend, which has shorter limits
	// of its own.
	applyTimeout = 85 * time.Second
	// retryTimeout bounds one repeated removal.
	retryTimeout = 30 * time.Second
	// leaveTimeout bounds the removal of everything at the end.
	leaveTimeout = 20 * time.Second
	// maxEnded bounds counters kept until the next answer.
	maxEnded = 10_000
)

// Router enforces what core wants. Safe for concurrent use.
type Router struct {
	c    Config
	info Info
	log  *slog.Logger
	busy chan struct{} // held around Sync, Apply and Check
	wake chan struct{} // tells Run that there is something new

	mu       sync.Mutex
	epoch    string                        // guarded by mu
	revision uint64                        // applied; guarded by mu
	sure     bool                          // the backend holds exactly sessions and ending; guarded by mu
	sessions map[string]wire.RouterSession // hold; guarded by mu
	ending   map[string]*ending            // should be gone; guarded by mu
	ended    []wire.RouterCount            // not yet told to core; guarded by mu
	underway *underway                     // the change being applied; guarded by mu
	leaseEnd time.Time                     // of core's last lease; guarded by mu
	lapsed   bool                          // everything was removed at leaseEnd; guarded by mu; never if Kernel
	stopping bool                          // Run has ended; guarded by mu
	counts   Counts                        // guarded by mu
}

// underway is a change that the backend is working on.
type underway struct {
	epoch    string
	to       uint64
	removals bool
}

// Counts are totals since the start, for metrics.
type Counts struct {
	Applied  uint64 // states and changes
	Refused  uint64 // of them, answered 409 or with an error
	Failed   uint64 // sessions that could not be added
	Retried  uint64 // removals tried again
	Renewals uint64 // leases that were honoured
	Ignored  uint64 // leases that were not
	Changed  uint64 // times somebody else changed the rules
}

// New makes a Router. Call Run to work and Close when Run has returned.
func New(c Config) *Router {
	if c.MaxLease == 0 {
		c.MaxLease = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Router{c: c, info: c.Backend.Info(), log: c.Log, busy: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		sessions: map[string]wire.RouterSession{}, ending: map[string]*ending{},
		// What an earlier process left gets the time of one lease to be
		// justified again.
		leaseEnd: time.Now().Add(c.MaxLease)}
}

// Close closes the backend.
func (r *Router) Close() error {
	r.busy <- struct{}{} // wait for a change under way
	defer r.unlock()
	return r.c.Backend.Close()
}

// Status is the router's present state.
type Status struct {
	Counts
	Type     string
	Revision uint64
	Sure     bool
	Sessions int
	Ending   int
	Lease    time.Duration // left of core's last lease, 0 when it is over
}

// Status returns the present state.
func (r *Router) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Status{Counts: r.counts, Type: r.info.Type, Revision: r.revision, Sure: r.sure, Sessions: len(r.sessions),
		Ending: len(r.ending), Lease: max(0, time.Until(r.leaseEnd))}
}

// lock waits for the backend to be free.
func (r *Router) lock(ctx context.Context) error {
	select {
	case r.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *Router) unlock() { <-r.busy }

func (r *Router) isStopping() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stopping
}

// poke makes Run look again.
func (r *Router) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// doubtLocked stops renewals until core has sent the whole state.
func (r *Router) doubtLocked(why error) {
	if r.sure {
		r.log.Warn("not certain what is enforced: core must send everything", telemetry.KeyErr, why)
	}
	r.sure = false
}

// endingLocked lists what is being removed, in a stable order.
func (r *Router) endingLocked() []wire.RouterFailure {
	var out []wire.RouterFailure
	for id, e := range r.ending {
		out = append(out, wire.RouterFailure{ID: id, Error: e.err})
	}
	slices.SortFunc(out, func(a, b wire.RouterFailure) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	return out
}
