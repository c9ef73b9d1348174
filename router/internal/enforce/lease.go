package enforce

import (
	"context"
	"errors"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// renewTimeout bounds one renewal.
const renewTimeout = 10 * time.Second

// Lease renews what holds, if core wants just that.
func (r *Router) Lease(ctx context.Context, l wire.RouterLease) wire.RouterLeased {
	// Bounded first: a large number of milliseconds must not overflow.
	d := time.Duration(min(max(l.ForMS, 0), r.c.MaxLease.Milliseconds())) * time.Millisecond
	r.mu.Lock()
	pass := false
	if d > 0 && r.justifiedLocked(l) {
		r.leaseEnd = time.Now().Add(d)
		r.counts.Renewals++
		pass = r.info.Kernel
	} else {
		r.counts.Ignored++
	}
	r.mu.Unlock()
	if pass {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), renewTimeout)
		err := r.c.Backend.Renew(ctx, d)
		cancel()
		if err != nil {
			r.mu.Lock()
			r.doubtLocked(err)
			r.mu.Unlock()
		}
	}
	r.poke()
	r.mu.Lock()
	defer r.mu.Unlock()
	return wire.RouterLeased{Revision: r.revision, Resync: !r.sure || l.Epoch != r.epoch, Sessions: len(r.sessions),
		Ending: r.endingLocked(), Type: r.info.Type, Leased: r.c.Backend.Info().Leased || r.info.Kernel}
}

// justifiedLocked reports whether what core wants is what holds, or will hold
// once the change under way is done.
func (r *Router) justifiedLocked(l wire.RouterLease) bool {
	if !r.sure || l.Epoch != r.epoch {
		return false
	}
	// One lease for everything must not keep alive what has to go.
	if r.info.Kernel && (len(r.ending) > 0 || r.underway != nil && r.underway.removals) {
		return false
	}
	if r.underway != nil {
		return l.Revision == r.underway.to && r.underway.epoch == l.Epoch
	}
	return l.Revision == r.revision
}

// Run repeats removals, renews and checks the backend, and ends what core no
// longer justifies, until ctx ends.
func (r *Router) Run(ctx context.Context) error {
	var check, renew time.Time
	if r.info.CheckEvery > 0 {
		check = time.Now().Add(r.info.CheckEvery)
	}
	if r.info.RenewEvery > 0 {
		renew = time.Now()
	}
	lapse := backoff{first: time.Second, limit: time.Minute}
	for {
		now := time.Now()
		r.retryDue(ctx, now)
		if !check.IsZero() && !check.After(now) {
			r.checkBackend(ctx)
			check = time.Now().Add(r.info.CheckEvery)
		}
		if !renew.IsZero() && !renew.After(now) {
			r.passOn(ctx)
			renew = time.Now().Add(r.info.RenewEvery)
		}
		lapsing := r.lapseAt()
		if !lapsing.IsZero() && !lapsing.After(now) && !lapse.next.After(now) {
			if r.lapse(ctx) {
				lapse.reset()
			} else {
				lapse.fail(time.Now())
			}
			lapsing = r.lapseAt()
		}
		if !lapsing.IsZero() && lapsing.Before(lapse.next) {
			lapsing = lapse.next
		}
		timer := time.NewTimer(time.Until(earliest(check, renew, lapsing, r.nextRetry())))
		select {
		case <-timer.C:
		case <-r.wake:
		case <-r.c.Changed:
			r.heal(ctx)
		case <-ctx.Done():
			timer.Stop()
			r.leave(context.WithoutCancel(ctx))
			return ctx.Err()
		}
		timer.Stop()
	}
}

// earliest of the times that are set; an hour from now if none is.
func earliest(times ...time.Time) time.Time {
	first := time.Now().Add(time.Hour)
	for _, t := range times {
		if !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	return first
}

// lapseAt is when everything must be removed; zero: by nobody here.
func (r *Router) lapseAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.info.Kernel || r.lapsed {
		return time.Time{}
	}
	return r.leaseEnd
}

// lapse removes everything: core does not justify it any more. It reports
// whether the backend did it, or has it in its list of removals.
func (r *Router) lapse(ctx context.Context) bool {
	if r.lock(ctx) != nil {
		return false
	}
	defer r.unlock()
	r.mu.Lock()
	if time.Now().Before(r.leaseEnd) {
		r.mu.Unlock()
		return true
	}
	n := len(r.sessions)
	r.doubtLocked(errors.New("core's lease is over"))
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyTimeout)
	defer cancel()
	res, err := r.c.Backend.Sync(ctx, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.log.Error("core's lease is over and the rules could not be removed: trying again", telemetry.KeyErr, err)
		return false
	}
	if n > 0 || len(res.Ending) > 0 {
		r.log.Warn("core's lease is over: everything is removed", "sessions", n, "ending", len(res.Ending))
	}
	clear(r.sessions)
	clear(r.ending)
	for _, f := range res.Ending {
		r.endLocked(f)
	}
	r.lapsed = true
	return true
}

// leave removes what nobody would end once this process is gone. The rest
// stays: the lease ends it, or the next start takes it over.
func (r *Router) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	err := r.lock(ctx)
	r.mu.Lock()
	r.stopping, r.sure = true, false
	r.mu.Unlock()
	if err != nil {
		r.log.Error("stopping while the rules are being changed", telemetry.KeyErr, err)
		return
	}
	defer r.unlock()
	if r.info.Kernel || r.c.Backend.Info().Leased {
		return
	}
	res, err := r.c.Backend.Sync(ctx, nil)
	if err == nil && len(res.Ending) > 0 {
		err = res.Ending[0].Error
	}
	if err != nil {
		r.log.Error("stopping: rules could not be removed and hold until the next start", "ending", len(res.Ending), telemetry.KeyErr, err)
	}
}

// passOn renews a backend that is renewed at its own pace.
func (r *Router) passOn(ctx context.Context) {
	r.mu.Lock()
	left := time.Until(r.leaseEnd)
	sure := r.sure && !r.lapsed && len(r.sessions) > 0
	r.mu.Unlock()
	if !sure || left <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	if err := r.c.Backend.Renew(ctx, left); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.doubtLocked(err)
	}
}

// checkBackend looks whether somebody else changed the rules.
func (r *Router) checkBackend(ctx context.Context) {
	if r.lock(ctx) != nil {
		return
	}
	r.mu.Lock()
	sure := r.sure
	r.mu.Unlock()
	if !sure {
		r.unlock()
		return // core is asked for everything as it is
	}
	cctx, cancel := context.WithTimeout(ctx, retryTimeout)
	err := r.c.Backend.Check(cctx)
	cancel()
	r.unlock()
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, ErrChanged):
		r.log.Warn("check", telemetry.KeyErr, err)
		r.heal(ctx)
	default:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.doubtLocked(err)
	}
}

// heal puts right what somebody else changed: what core wanted last, for as
// long as core justified it.
func (r *Router) heal(ctx context.Context) {
	if r.lock(ctx) != nil {
		return
	}
	defer r.unlock()
	r.mu.Lock()
	r.counts.Changed++
	want := make([]wire.RouterSession, 0, len(r.sessions))
	for _, s := range r.sessions {
		want = append(want, s)
	}
	if !r.sure {
		want = nil
	}
	r.mu.Unlock()
	if want == nil {
		return // core is asked for everything as it is
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyTimeout)
	defer cancel()
	start := time.Now()
	res, err := r.c.Backend.Sync(ctx, want)
	if err == nil && len(res.Failed) > 0 {
		err = res.Failed[0].Error
	}
	r.mu.Lock()
	left := time.Until(r.leaseEnd)
	if err == nil {
		clear(r.ending)
		for _, f := range res.Ending {
			r.endLocked(f)
		}
	}
	r.mu.Unlock()
	if err == nil && r.info.Kernel && len(res.Ending) == 0 && left > 0 {
		err = r.c.Backend.Renew(ctx, left)
	}
	if err != nil {
		// Core must hear what does not hold any more.
		r.mu.Lock()
		defer r.mu.Unlock()
		r.doubtLocked(err)
		return
	}
	r.log.Warn("somebody else changed the rules: put right", "sessions", len(want), "took", time.Since(start).Round(time.Millisecond))
}
