package conn

import (
	"context"
	"fmt"
	"sync"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// tick is how precisely ends that come with time are kept.
const tick = 200 * time.Millisecond

// deciders bounds decisions made again at the same time.
const deciders = 8

// retryDecision is the pause after a decision that could not be made.
const retryDecision = 3 * time.Second

// Run does the periodic and event-driven work until ctx ends; then it ends
// all live connections with EndedByShutdown and waits for them, at most grace.
// It returns when all its goroutines have.
func (m *Manager) Run(ctx context.Context, grace time.Duration) error {
	// The workers outlive ctx: connections that end in the grace period are
	// still written.
	wctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { m.flusher(wctx) })
	wg.Go(func() { m.follow(wctx) })
	wg.Go(func() { m.timer(wctx) })
	wg.Go(func() { m.decider(wctx) })
	<-ctx.Done()

	m.Drain()
	for _, l := range m.snapshot() {
		l.end(EndedByShutdown, "The server is shutting down. Connect again in a moment.", nil)
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	for waiting := true; waiting; {
		m.mu.Lock()
		n, idle := m.open, m.idle
		m.mu.Unlock()
		if n == 0 {
			break
		}
		select {
		case <-idle:
		case <-late.C:
			waiting = false
			for _, l := range m.snapshot() {
				l.Close(EndedByShutdown, nil)
			}
		}
	}
	stop()
	wg.Wait()
	fctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dbTimeout)
	defer cancel()
	if err := m.flush(fctx, true); err != nil {
		m.mu.Lock()
		n := len(m.live)
		m.mu.Unlock()
		return fmt.Errorf("shut down with %d connection records not written: %w", n, err)
	}
	return nil
}

// follow reacts to notes of changes until ctx ends.
func (m *Manager) follow(ctx context.Context) {
	notes := m.cfg.DB.Subscribe(ctx)
	// What changed between the first Open and this subscription is not lost.
	m.markDue(func(*Live) bool { return true })
	for n := range notes {
		switch n.Topic {
		case topicTerminate:
			if m.find(n.ID) == nil {
				continue
			}
			if err := m.readOrders(ctx); err != nil {
				m.cfg.Log.Error("termination order not read; tried again shortly", "session", n.ID, "err", err)
			}
		case topicOversight:
			if m.find(n.ID) == nil {
				continue
			}
			if err := m.readOversight(ctx); err != nil && ctx.Err() == nil {
				m.cfg.Log.Error("locks and watchers not read; tried again shortly", "session", n.ID, "err", err)
			}
		case "user":
			m.markDue(func(l *Live) bool { return l.spec.Principal.UserID == n.ID })
		case "target":
			m.markDue(func(l *Live) bool { return l.spec.TargetID == n.ID })
		case "session":
			m.markDue(func(l *Live) bool { return l.spec.Principal.Session == n.ID })
		case "role", "grant", "site", "token", "setting":
			// A role may have lost a member, a grant its target: all are asked again.
			m.markDue(func(*Live) bool { return true })
		case db.TopicResync:
			m.markDue(func(*Live) bool { return true })
			m.wake(m.wakeFlush)
			if err := m.readOrders(ctx); err != nil && ctx.Err() == nil {
				m.cfg.Log.Error("termination orders not read; tried again shortly", "err", err)
			}
		}
	}
}

// markDue has the decision of the chosen connections made again at once.
func (m *Manager) markDue(which func(*Live) bool) {
	n := 0
	for _, l := range m.snapshot() {
		if !which(l) {
			continue
		}
		l.mu.Lock()
		l.due, l.retryAt = true, time.Time{}
		l.mu.Unlock()
		n++
	}
	if n > 0 {
		m.wake(m.wakeDecide)
	}
}

// timer ends connections whose time is over and marks those to decide again.
func (m *Manager) timer(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		m.checkTimes(m.cfg.Now())
	}
}

func (m *Manager) checkTimes(now time.Time) {
	limits := m.cfg.Limits()
	m.mu.Lock()
	away := now.Sub(m.contact)
	m.mu.Unlock()
	due := false
	for _, l := range m.snapshot() {
		reason, public := l.expired(now, away, limits)
		if reason != "" {
			l.end(reason, public, nil)
			continue
		}
		l.mu.Lock()
		if !l.state.Over() && (now.Sub(l.decidedAt) >= limits.Reauthorize || !l.decision.Until.IsZero() && !now.Before(l.decision.Until)) {
			l.due = true
		}
		due = due || l.due && !now.Before(l.retryAt)
		l.mu.Unlock()
	}
	if due {
		m.wake(m.wakeDecide)
	}
}

// expired reports why l must end now by the clock alone, or "".
func (l *Live) expired(now time.Time, away time.Duration, limits Limits) (EndReason, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	longest, idle := l.decision.MaxDuration, l.decision.Idle
	if longest == 0 {
		longest = limits.MaxDuration
	}
	if idle == 0 {
		idle = limits.Idle
	}
	switch {
	case l.state.Over() || l.state == Disconnecting || l.left:
		return "", ""
	case longest > 0 && now.Sub(l.started) >= longest:
		return EndedByDuration, fmt.Sprintf("The connection has reached its longest permitted time of %s.", longest)
	case idle > 0 && now.Sub(l.idleSince()) >= idle:
		return EndedByIdle, fmt.Sprintf("The connection was closed after %s without activity.", idle)
	case away >= limits.Lease,
		!l.undecidable.IsZero() && now.Sub(l.undecidable) >= limits.Lease:
		return EndedByLease, "The connection was closed because the server could not confirm your access any more."
	}
	return "", ""
}

// decider makes due decisions again until ctx ends.
func (m *Manager) decider(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.wakeDecide:
		}
		var due []*Live
		now := m.cfg.Now()
		for _, l := range m.snapshot() {
			if l.takeDue(now) {
				due = append(due, l)
			}
		}
		var wg sync.WaitGroup
		next := make(chan *Live)
		for range min(deciders, len(due)) {
			wg.Go(func() {
				for l := range next {
					m.redecide(ctx, l)
				}
			})
		}
		for _, l := range due {
			next <- l
		}
		close(next)
		wg.Wait()
	}
}

// takeDue claims a due decision of l.
func (l *Live) takeDue(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.due || l.left || l.state.Over() || l.state == Disconnecting || now.Before(l.retryAt) {
		return false
	}
	l.due = false
	return true
}

// redecide makes the decision of l again and carries it out.
func (m *Manager) redecide(ctx context.Context, l *Live) {
	if ctx.Err() != nil {
		return
	}
	start := time.Now()
	dctx, cancel := context.WithTimeout(ctx, dbTimeout)
	defer cancel()
	if err := m.cfg.Logins.StillValid(dctx, l.spec.Principal); err != nil {
		if dctx.Err() == nil && m.cfg.LoginGone(err) {
			l.end(EndedByLogin, "The connection was closed because your login has ended.", nil)
			return
		}
		m.undecided(l, err)
		return
	}
	d, err := m.cfg.Authorizer.Reauthorize(dctx, l.spec)
	if err != nil {
		m.undecided(l, err)
		return
	}
	m.metrics.decide.Observe(time.Since(start).Seconds())
	if !d.OK() {
		l.end(EndedByAccess, lostText(d.Reason, l.spec.TargetName), nil)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.decision, l.decidedAt, l.retryAt, l.undecidable = d, m.cfg.Now(), time.Time{}, time.Time{}
	if lost := l.used &^ d.Features; lost != 0 {
		l.endLocked(EndedByAccess, "The connection was closed because a use of it is no longer permitted.", nil)
	}
}

// undecided keeps l on its lease: the decision is tried again, and when that
// fails for the length of the lease, the timer ends l. A decision that was only
// good until a moment that has passed is not extended.
func (m *Manager) undecided(l *Live, err error) {
	now := m.cfg.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Over() {
		return
	}
	if u := l.decision.Until; !u.IsZero() && !now.Before(u) {
		l.endLocked(EndedByAccess, "The connection was closed because the time it was permitted for is over.", nil)
		return
	}
	if l.undecidable.IsZero() {
		l.undecidable = now
		m.cfg.Log.Error("access of a live connection could not be checked; it lives on its lease", "session", l.ID, "err", err)
	}
	l.due, l.retryAt = true, now.Add(retryDecision)
}

// lostText tells the user why the connection was closed.
func lostText(r access.Reason, target string) string {
	switch r {
	case access.UserDisabled, access.UserLocked:
		return "The connection was closed because your account is locked or disabled."
	case access.TargetDisabled:
		return "The connection was closed because " + target + " was taken out of service."
	case access.OutsideWindow:
		return "The connection was closed because the time it was permitted for is over."
	}
	return "The connection was closed because your access to " + target + " was withdrawn."
}

// Terminate ends a live connection, on whatever core it runs, and returns when
// the order is given. by is who, public is shown to the user (cut at 512
// bytes). db.ErrNotFound: there is no such connection; db.ErrConflict: it has
// ended already.
func (m *Manager) Terminate(ctx context.Context, id string, by *api.Principal, public string) error {
	public = cut(public, 512)
	if public == "" {
		public = "An administrator closed the connection."
	}
	o := &order{at: m.cfg.Now(), public: public}
	actor := audit.System
	if by != nil {
		o.byID, o.byName = by.UserID, by.UserName
		actor = audit.By(by)
	}
	err := m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		res, err := tx.ExecContext(ctx, orderSQL, id, o.at.UnixMicro(), o.byID, o.byName, o.public)
		if err != nil {
			return fmt.Errorf("order end of connection %s: %w", id, err)
		}
		if n, err := res.RowsAffected(); err != nil {
			return fmt.Errorf("order end of connection %s: %w", id, err)
		} else if n == 0 {
			return m.whyNot(ctx, tx, id)
		}
		if err := tx.Notify(ctx, topicTerminate, id); err != nil {
			return err
		}
		return m.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.ConnectionTerminated, Outcome: audit.OK, Actor: actor, Connection: id,
			Object: audit.Object{Kind: "connection", ID: id},
			Fields: map[string]string{"public": o.public},
		})
	})
	l := m.find(id)
	if l == nil {
		return err
	}
	// Carried here: it ends even when the order could not be written down; the
	// closing record then tells who gave it.
	l.carryOut(o)
	if err != nil && l.wasOrdered(o) {
		m.cfg.Log.Error("connection ended by order, order not yet in the database", "session", id, "err", err)
		return nil
	}
	return err
}

// carryOut ends l by order; a user who ends his own connection is no administrator.
func (l *Live) carryOut(o *order) {
	r := EndedByAdmin
	if o.byID == l.spec.Principal.UserID {
		r = EndedByUser
	}
	l.end(r, o.public, o)
}

func (l *Live) wasOrdered(o *order) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.order == o
}

// whyNot tells a missing connection from one that has ended. An order given
// before is as good as a new one.
func (m *Manager) whyNot(ctx context.Context, tx *db.Tx, id string) error {
	var s string
	if err := tx.QueryRowContext(ctx, stateSQL, id).Scan(&s); err != nil {
		return fmt.Errorf("order end of connection %s: %w", id, db.Classify(err))
	}
	if State(s).Over() {
		return fmt.Errorf("order end of connection %s: %w", id, db.ErrConflict)
	}
	return nil
}
