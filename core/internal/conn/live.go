package conn

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
)

// EndReason says why a connection ended; stored and shown.
type EndReason string

// The reasons.
const (
	EndedByUser     EndReason = "user"
	EndedByTarget   EndReason = "target"
	EndedByAdmin    EndReason = "terminated"
	EndedByAccess   EndReason = "access_lost"
	EndedByLogin    EndReason = "login_ended" // the user's login was revoked or ran out
	EndedByIdle     EndReason = "idle"
	EndedByDuration EndReason = "max_duration"
	EndedByRoute    EndReason = "route_lost" // tunnel or extender gone
	EndedByLease    EndReason = "lease_over" // the database was away for longer than the lease
	EndedBySpool    EndReason = "audit_full" // events could no longer be kept
	EndedByShutdown EndReason = "shutdown"
	EndedByError    EndReason = "error"
	EndedByCrash    EndReason = "core_lost" // found at start-up
	// EndedByPresence: the user's own end of the connection was not heard of
	// for too long (network sessions, whose traffic passes core by).
	EndedByPresence EndReason = "connectivity_lost"
)

// Terminated is the cause of a Live's context when it was ended by decision;
// Public is for the user's eyes.
type Terminated struct {
	Reason EndReason
	Public string
}

// Error implements error.
func (t *Terminated) Error() string { return t.Public }

// maxChannels bounds the channel events of one connection that are kept one by
// one; later ones are audited all the same.
const maxChannels = 100000

// Live is a running connection. Its context ends when it must end; the
// context's cause is then a *Terminated. Safe for concurrent use.
type Live struct {
	ID string

	m       *Manager
	spec    Spec
	group   string // access group; set before anybody else has it
	ctx     context.Context
	cancel  context.CancelCauseFunc
	started time.Time

	in, out atomic.Int64
	// lastIn and lastAny are when the user last sent, and when anything last
	// flowed, in microseconds since the epoch.
	lastIn, lastAny atomic.Int64

	// mu guards everything below.
	mu          sync.Mutex
	decision    access.Decision
	used        access.Features
	state       State
	connectedAt time.Time
	endedAt     time.Time
	endReason   EndReason
	endDetail   string
	order       *order // to terminate, if one was given
	route       fleet.Route
	recording   string
	channels    int
	waiting     []entry // not yet in the database
	version     int     // counts changes of more than counters
	flushed     int     // the version in the row
	writtenIn   int64   // counters as in the row
	writtenOut  int64
	abandoned   bool
	left        bool // handed over to the next run of this core
	oversight   Oversight
	overseen    chan struct{} // closed and replaced when oversight changes

	due         bool // the decision must be made again now
	decidedAt   time.Time
	retryAt     time.Time // after a decision that could not be made
	undecidable time.Time // since when decisions cannot be made; zero = they can
}

// entry is an audit event, and a row of the channel list when seq is not zero.
type entry struct {
	event        audit.Event
	at           time.Time
	seq          int
	kind, detail string
}

// order is who ended a connection by decision, and what the user is told.
type order struct {
	at           time.Time
	byID, byName string
	public       string
}

func newLive(m *Manager, s Spec) *Live {
	now := m.cfg.Now()
	l := &Live{
		ID: db.NewID("con_"), m: m, spec: s, started: now,
		decision: s.Decision, used: s.Want, state: Requested, due: true, decidedAt: now, overseen: make(chan struct{}),
	}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.lastIn.Store(now.UnixMicro())
	l.lastAny.Store(now.UnixMicro())
	return l
}

// Context ends when the connection must end.
func (l *Live) Context() context.Context { return l.ctx }

// Spec returns what the connection was opened with.
func (l *Live) Spec() Spec { return l.spec }

// Decision returns the decision as last made.
func (l *Live) Decision() access.Decision {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.decision
}

// Use reports whether the decision as it stands allows feature f, and if so
// ties the connection to it: losing f later ends the connection. Ask it before
// each new channel.
func (l *Live) Use(f access.Feature) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f == 0 || l.decision.Features&f != f {
		return false
	}
	l.used |= f
	return true
}

// Connecting marks that the destination is being dialled.
func (l *Live) Connecting() { l.step(stepDial) }

// Connected marks the connection established over a route.
func (l *Live) Connected(r fleet.Route) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := next(l.state, stepConnect)
	if !ok {
		return
	}
	l.state, l.route, l.connectedAt = s, r, l.m.cfg.Now()
	l.version++
	l.appendLocked(entry{event: l.event(audit.ConnectionEstablished, audit.OK, map[string]string{
		"site": r.Site, "node": r.Node, "transport": r.Transport,
	})})
	l.m.wake(l.m.wakeFlush)
}

func (l *Live) step(e step) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := next(l.state, e); ok {
		l.state = s
		l.version++
		l.m.wake(l.m.wakeFlush)
	}
}

// In and Out count bytes from and to the user; both also count as activity.
func (l *Live) In(n int) {
	l.in.Add(int64(n))
	now := l.m.cfg.Now().UnixMicro()
	l.lastIn.Store(now)
	l.lastAny.Store(now)
}

// Out counts bytes to the user, see In.
func (l *Live) Out(n int) {
	l.out.Add(int64(n))
	l.lastAny.Store(l.m.cfg.Now().UnixMicro())
}

// Moved counts bytes from and to the user that are no sign of him: what a
// program of his does by itself keeps no connection from being idle.
func (l *Live) Moved(in, out int) {
	l.in.Add(int64(in))
	l.out.Add(int64(out))
}

// Bytes returns what was counted so far.
func (l *Live) Bytes() (in, out int64) { return l.in.Load(), l.out.Load() }

// Channel records a channel or request inside the connection (shell, exec
// with its command, sftp operation, forward), audited and listed per
// connection. detail is cut at 4 KiB.
func (l *Live) Channel(kind, detail string) {
	detail = cut(detail, 4096)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Over() {
		return
	}
	e := entry{kind: kind, detail: detail, event: l.event(channelEvent(kind), audit.OK, map[string]string{
		"channel": cut(kind, 100), "detail": cut(detail, 1000),
	})}
	if l.channels < maxChannels {
		l.channels++
		e.seq = l.channels
	}
	l.appendLocked(e)
}

// appendLocked keeps an event until the database has it. When too many wait, a
// further one from inside the connection ends it; those of its life are kept.
func (l *Live) appendLocked(e entry) {
	e.at = l.m.cfg.Now()
	l.m.mu.Lock()
	full := l.m.pending >= l.m.cfg.MaxPending
	inside := e.kind != ""
	if !full || !inside {
		l.m.pending++
	}
	l.m.mu.Unlock()
	if full && inside {
		l.endLocked(EndedBySpool, "The connection was closed because its events could not be recorded.", nil)
		return
	}
	l.waiting = append(l.waiting, e)
}

// Recording links the recording.
func (l *Live) Recording(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.Over() || l.recording == id {
		return
	}
	l.recording = id
	l.version++
	l.m.wake(l.m.wakeFlush)
}

// End has the connection end for a reason its front door found; public is for
// the user's eyes. The front door sees the context end and calls Close.
func (l *Live) End(r EndReason, public string) { l.end(r, public, nil) }

// end orders the connection to end. Whoever carries it sees its context end
// and calls Close.
func (l *Live) end(r EndReason, public string, o *order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.endLocked(r, public, o)
}

func (l *Live) endLocked(r EndReason, public string, o *order) {
	s, ok := next(l.state, stepEnd)
	if !ok || l.left {
		return
	}
	l.state, l.endReason, l.order = s, r, o
	l.version++
	l.cancel(&Terminated{Reason: r, Public: public})
	l.m.metrics.ended(r)
	l.m.wake(l.m.wakeFlush)
}

// Close ends the record: disconnected, or failed when err is not nil and it
// never got to connected. Idempotent; also called with the context's cause.
// When the connection was ended by decision, that reason is kept and it counts
// as disconnected.
func (l *Live) Close(r EndReason, err error) {
	if !l.close(r, err) {
		return
	}
	l.m.mu.Lock()
	l.m.closedLocked()
	l.m.mu.Unlock()
	l.m.wake(l.m.wakeFlush)
}

func (l *Live) close(r EndReason, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	byDecision := l.state == Disconnecting
	e := stepClose
	if err != nil && l.connectedAt.IsZero() && !byDecision {
		e = stepFail
	}
	s, ok := next(l.state, e)
	if !ok || l.abandoned || l.left {
		return false
	}
	l.state, l.endedAt = s, l.m.cfg.Now()
	l.version++
	if !byDecision {
		l.endReason = r
		l.m.metrics.ended(r)
		if err != nil {
			l.endDetail = PublicText(err)
		}
	} else if t, ok := errors.AsType[*Terminated](context.Cause(l.ctx)); ok {
		l.endDetail = t.Public
	}
	what, outcome := audit.ConnectionClosed, audit.OK
	if s == Failed {
		what, outcome = audit.ConnectionFailed, audit.Failed
	}
	fields := map[string]string{
		"reason":    string(l.endReason),
		"bytes_in":  strconv.FormatInt(l.in.Load(), 10),
		"bytes_out": strconv.FormatInt(l.out.Load(), 10),
		"seconds":   strconv.FormatFloat(l.endedAt.Sub(l.started).Seconds(), 'f', 3, 64),
	}
	if l.order != nil {
		fields["by"] = l.order.byName
	}
	l.appendLocked(entry{event: l.event(what, outcome, fields)})
	l.cancel(&Terminated{Reason: l.endReason, Public: "The connection is closed."})
	return true
}

// abandon makes a connection that has no row harmless.
func (l *Live) abandon() {
	l.mu.Lock()
	l.abandoned = true
	l.state = Failed
	waiting := len(l.waiting)
	l.waiting = nil
	l.mu.Unlock()
	l.cancel(ErrDraining)
	l.m.mu.Lock()
	l.m.pending -= waiting
	l.m.mu.Unlock()
}

// idleSince is when activity that keeps the connection from being idle last
// happened: for a shell only what the user types counts, since programs can
// print for ever; for everything else bytes in either direction.
func (l *Live) idleSince() time.Time {
	if l.spec.Want == access.Shell {
		return time.UnixMicro(l.lastIn.Load())
	}
	return time.UnixMicro(l.lastAny.Load())
}
