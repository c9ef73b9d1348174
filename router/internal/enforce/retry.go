package enforce

import (
	"context"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// A removal that fails is tried again after these waits, then every slowRetry.
var quickRetries = [...]time.Duration{
	200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, 1600 * time.Millisecond, 3200 * time.Millisecond,
	10 * time.Second, 20 * time.Second,
}

const slowRetry = 30 * time.Second

// ending is a session that should be gone and may still hold.
type ending struct {
	since time.Time
	tries int // after the first
	next  time.Time
	err   *wire.Error
}

// endLocked notes that a removal has failed, again or for the first time.
func (r *Router) endLocked(f wire.RouterFailure) {
	e := r.ending[f.ID]
	if e == nil {
		e = &ending{since: time.Now(), tries: -1}
		r.ending[f.ID] = e
	}
	e.tries++
	e.err = f.Error
	wait := slowRetry
	if e.tries < len(quickRetries) {
		wait = quickRetries[e.tries]
	}
	e.next = time.Now().Add(wait)
	r.log.Error("session could not be removed: trying again", telemetry.KeyConnection, f.ID, "tries", e.tries+1,
		"since", e.since.UTC(), "in", wait, telemetry.KeyErr, f.Error)
}

// nextRetry is when the first removal is due; zero: there is none.
func (r *Router) nextRetry() (first time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.ending {
		if first.IsZero() || e.next.Before(first) {
			first = e.next
		}
	}
	return first
}

// retryDue repeats the removals that are due.
func (r *Router) retryDue(ctx context.Context, now time.Time) {
	if next := r.nextRetry(); next.IsZero() || next.After(now) || r.lock(ctx) != nil {
		return
	}
	defer r.unlock()
	r.mu.Lock()
	var due []string
	for _, f := range r.endingLocked() {
		if !r.ending[f.ID].next.After(now) {
			due = append(due, f.ID)
		}
	}
	r.counts.Retried += uint64(len(due))
	r.mu.Unlock()
	if len(due) == 0 {
		return // a new state was faster
	}
	ctx, cancel := context.WithTimeout(ctx, retryTimeout)
	defer cancel()
	res, err := r.c.Backend.Apply(ctx, nil, due)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.doubtLocked(err)
		for _, id := range due {
			r.endLocked(wire.RouterFailure{ID: id, Error: wire.Errorf(wire.CodeInternal, "the router does not know whether the session has ended")})
		}
		return
	}
	still := make(map[string]bool, len(res.Ending))
	for _, f := range res.Ending {
		still[f.ID] = true
		r.endLocked(f)
	}
	for _, id := range due {
		if e := r.ending[id]; e != nil && !still[id] {
			r.log.Info("session removed at last", telemetry.KeyConnection, id, "tries", e.tries+2, "after", time.Since(e.since).Round(time.Millisecond))
			delete(r.ending, id)
		}
	}
	r.ended = append(r.ended, res.Ended...)
	r.ended = r.ended[:min(len(r.ended), maxEnded)]
}

// backoff is a wait that doubles up to limit.
type backoff struct {
	first, limit, wait time.Duration
	next               time.Time
}

func (b *backoff) reset() { b.wait, b.next = 0, time.Time{} }

func (b *backoff) fail(now time.Time) {
	b.wait = min(max(2*b.wait, b.first), b.limit)
	b.next = now.Add(b.wait)
}
