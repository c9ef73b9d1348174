package netaccess

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"caponier/core/internal/fleet"
	"caponier/shared/control"
	"caponier/shared/wire"
)

// Bounds of requests to a router: programs behind exec routers take their time.
const (
	applyTimeout = 90 * time.Second
	leaseTimeout = 10 * time.Second
)

// removalAlert is how long a removal may take before somebody is told.
const removalAlert = 5 * time.Second

// peer is one router as core drives it: what it must hold, what it may still
// hold, and how far both sides agree. One goroutine sends changes, another
// leases and questions for counters.
type peer struct {
	s  *Service
	id string
	// wake and leaseNow hold at most one token.
	wake, leaseNow chan struct{}
	stop           context.CancelFunc

	// mu guards everything below. Nothing is called with it held.
	mu   sync.Mutex
	row  routerRow
	name string
	// want must hold on the router.
	want map[string]wire.RouterSession
	// sent may hold there: it was in a request since the router last
	// confirmed that it is gone.
	sent map[string]bool
	// fresh are additions and gone removals not yet in any request.
	fresh, gone map[string]bool
	// waiting are told how an addition went.
	waiting map[string]chan error
	// ending are removals that are not confirmed.
	ending map[string]*removal
	rev    uint64
	// synced is the tunnel over which the whole state was agreed, 0 = none.
	synced uint64
	// leaseEnds is when rules on the router have certainly stopped to hold
	// unless a lease was granted since; heldUntil until when they do hold.
	leaseEnds, heldUntil time.Time
	// typed is whether the router has said, since the state was last sent,
	// if its rules end by themselves; until then row.Leased is of before.
	typed bool
	// offline is since when there is no tunnel; zero = there is one.
	offline time.Time
	problem string
	deleted bool
}

// removal is one session whose rules are to go.
type removal struct {
	since   time.Time
	retried bool // the router said that it is still trying
	alerted bool
	text    string
}

var (
	errOffline = errors.New("the router is not connected")
	errGone    = errors.New("the session was closed meanwhile")
	errUnsure  = errors.New("the router's state is being agreed")
)

func newPeer(s *Service, row routerRow, name string) *peer {
	now := s.cfg.Now()
	return &peer{
		s: s, id: row.ID, row: row, name: name, wake: make(chan struct{}, 1), leaseNow: make(chan struct{}, 1),
		want: map[string]wire.RouterSession{}, sent: map[string]bool{}, fresh: map[string]bool{}, gone: map[string]bool{},
		waiting: map[string]chan error{}, ending: map[string]*removal{},
		// An earlier run may have granted a lease just now.
		leaseEnds: s.started.Add(maxLease + leaseSlack), typed: true, offline: now,
	}
}

// add has the router hold a session and returns where the outcome is told.
func (p *peer) add(x wire.RouterSession) <-chan error {
	done := make(chan error, 1)
	p.mu.Lock()
	p.want[x.ID] = x
	p.fresh[x.ID] = true
	p.waiting[x.ID] = done
	p.mu.Unlock()
	wake(p.wake)
	return done
}

// hold has the router hold a session that is open already; nobody waits.
func (p *peer) hold(x wire.RouterSession) {
	p.mu.Lock()
	_, known := p.want[x.ID]
	switch {
	case known:
	case p.gone[x.ID]: // its removal was not sent: nothing happened
		p.want[x.ID] = x
		delete(p.gone, x.ID)
		delete(p.ending, x.ID)
		known = true
	default:
		p.want[x.ID] = x
		p.fresh[x.ID] = true
	}
	p.mu.Unlock()
	if !known {
		wake(p.wake)
	}
}

// remove has the router give a session up; released is called when it has.
func (p *peer) remove(id string) {
	p.mu.Lock()
	delete(p.want, id)
	delete(p.fresh, id)
	if done := p.waiting[id]; done != nil {
		delete(p.waiting, id)
		done <- errGone
	}
	held := p.sent[id]
	if held && p.ending[id] == nil {
		p.ending[id] = &removal{since: p.s.cfg.Now()}
		p.gone[id] = true
	}
	p.mu.Unlock()
	if !held {
		p.s.released(id, p.id)
		return
	}
	wake(p.wake)
}

// run keeps the router at what is wanted until ctx ends.
func (p *peer) run(ctx context.Context) {
	t := time.NewTicker(p.s.cfg.Tick)
	defer t.Stop()
	for ctx.Err() == nil {
		changed := p.s.cfg.Fleet.Changed()
		online, up := p.online()
		pause := true
		switch {
		case !up:
			p.away()
		case p.agreed() != online.Tunnel:
			pause = !p.state(ctx, online)
		case p.unsent():
			pause = !p.changes(ctx)
		}
		p.overdue(ctx)
		if !pause {
			continue // more may have come meanwhile
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-changed:
		case <-t.C:
		}
	}
}

func (p *peer) online() (fleet.Online, bool) {
	for _, o := range p.s.cfg.Fleet.Online(wire.Router) {
		if o.ID == p.id {
			return o, true
		}
	}
	return fleet.Online{}, false
}

func (p *peer) agreed() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced
}

func (p *peer) unsent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.fresh)+len(p.gone) > 0
}

// away deals with a router that has no tunnel: additions fail, and what it
// may hold is gone when its lease has run out.
func (p *peer) away() {
	now := p.s.cfg.Now()
	var free []string
	p.mu.Lock()
	if p.offline.IsZero() {
		p.offline = now
	}
	p.synced = 0
	p.failLocked(errOffline)
	if (p.row.Leased && p.typed || p.deleted) && now.After(p.leaseEnds) {
		for id := range p.ending {
			free = append(free, id)
			delete(p.sent, id)
			delete(p.gone, id)
		}
		clear(p.ending)
	}
	p.mu.Unlock()
	for _, id := range free {
		p.s.released(id, p.id)
	}
}

// failLocked tells everybody who waits for an addition that it failed; p.mu is held.
func (p *peer) failLocked(err error) {
	for id, done := range p.waiting {
		done <- err
		delete(p.waiting, id)
	}
}

// state agrees the whole state with a router that has connected.
func (p *peer) state(ctx context.Context, o fleet.Online) bool {
	p.mu.Lock()
	p.rev++
	msg := wire.RouterState{Epoch: p.s.epoch, Revision: p.rev, Sessions: make([]wire.RouterSession, 0, len(p.want))}
	for _, id := range slices.Sorted(maps.Keys(p.want)) {
		msg.Sessions = append(msg.Sessions, p.want[id])
		p.sent[id] = true
	}
	p.offline = time.Time{}
	// It may be another process than the one that had the last lease.
	p.heldUntil, p.typed = time.Time{}, false
	clear(p.fresh)
	clear(p.gone)
	p.mu.Unlock()
	var ack wire.RouterAck
	err := p.ask(ctx, applyTimeout, "PUT", wire.PathRouterState, msg, &ack)
	if err != nil {
		p.unsure(err)
		return false
	}
	added := make([]string, len(msg.Sessions))
	for i := range msg.Sessions {
		added[i] = msg.Sessions[i].ID
	}
	p.mu.Lock()
	p.synced = o.Tunnel
	removed := make([]string, 0, len(p.ending))
	for id := range p.ending {
		if !p.gone[id] { // else it was in the state that was just agreed
			removed = append(removed, id)
		}
	}
	p.mu.Unlock()
	p.s.cfg.Log.Info("router has the whole state", "node", p.label(), "sessions", len(msg.Sessions), "failed", len(ack.Failed))
	return p.settle(ctx, added, removed, &ack)
}

// changes sends what is new.
func (p *peer) changes(ctx context.Context) bool {
	p.mu.Lock()
	msg := wire.RouterChanges{Epoch: p.s.epoch, From: p.rev, To: p.rev + 1}
	p.rev++
	for _, id := range slices.Sorted(maps.Keys(p.fresh)) {
		msg.Add = append(msg.Add, p.want[id])
		p.sent[id] = true
	}
	added := slices.Sorted(maps.Keys(p.fresh))
	msg.Remove = slices.Sorted(maps.Keys(p.gone))
	clear(p.fresh)
	clear(p.gone)
	p.mu.Unlock()
	var ack wire.RouterAck
	if err := p.ask(ctx, applyTimeout, "POST", wire.PathRouterChanges, msg, &ack); err != nil {
		p.unsure(err)
		return false
	}
	return p.settle(ctx, added, msg.Remove, &ack)
}

// ask sends a request over the router's tunnel.
func (p *peer) ask(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return p.s.cfg.Fleet.Ask(ctx, p.id, method, path, in, out)
}

// unsure notes that nobody knows what the router holds: the whole state is
// sent next, and additions that somebody waits for have failed.
func (p *peer) unsure(err error) {
	text := err.Error()
	if se, ok := errors.AsType[*control.StatusError](err); ok && se.Status == 409 {
		text = "it was not where core thought it was"
	}
	p.mu.Lock()
	p.synced = 0
	p.problem = text
	p.failLocked(fmt.Errorf("router %s: %w", p.name, err))
	p.mu.Unlock()
	p.s.cfg.Log.Warn("router did not take the changes; the whole state is sent next", "node", p.label(), "err", err)
}

// settle acts on an answer: additions are reported once a lease is in force,
// removals that are done are released.
func (p *peer) settle(ctx context.Context, added, removed []string, ack *wire.RouterAck) bool {
	for i := range ack.Ended {
		p.s.counted(p.id, &ack.Ended[i])
	}
	failed := failures(ack.Failed)
	trying := failures(ack.Ending)
	now := p.s.cfg.Now()
	p.mu.Lock()
	p.problem = ""
	covered := now.Add(time.Second).Before(p.heldUntil)
	p.mu.Unlock()
	var err error
	if len(added) > len(failed) && !covered {
		err = p.lease(ctx)
	} else {
		wake(p.leaseNow)
	}
	var free, lost []string
	p.mu.Lock()
	for _, id := range added {
		why, bad := failed[id]
		done := p.waiting[id]
		delete(p.waiting, id)
		switch {
		case bad:
			delete(p.want, id)
			delete(p.sent, id)
			if p.ending[id] != nil {
				delete(p.ending, id)
				delete(p.gone, id)
				free = append(free, id)
			}
			if done != nil {
				done <- why
			} else {
				lost = append(lost, id)
			}
		case done != nil:
			done <- err
		}
	}
	for _, id := range removed {
		if why, still := trying[id]; still {
			if r := p.ending[id]; r != nil {
				r.retried, r.text = true, why.Error()
			}
			continue
		}
		if p.ending[id] == nil || p.gone[id] {
			continue
		}
		delete(p.ending, id)
		if _, again := p.want[id]; !again {
			delete(p.sent, id)
			free = append(free, id)
		}
	}
	p.mu.Unlock()
	for _, id := range free {
		p.s.released(id, p.id)
	}
	for _, id := range lost {
		p.s.dropped(id, p, failed[id])
	}
	return true
}

// failures are the named failures with text for the user.
func failures(fs []wire.RouterFailure) map[string]error {
	out := make(map[string]error, len(fs))
	for _, f := range fs {
		if f.Error == nil {
			f.Error = wire.Errorf(wire.CodeInternal, "the router gave no reason")
		}
		out[f.ID] = f.Error
	}
	return out
}

// lease renews the router's rules if every session on it is justified. It
// sends none while a removal has not been sent: the rules must not be kept
// alive against what was decided.
func (p *peer) lease(ctx context.Context) error {
	o, up := p.online()
	if !up {
		return errOffline
	}
	if !p.s.justify(ctx) {
		return errors.New("core cannot justify the sessions at present")
	}
	life := min(p.s.cfg.Lease(), maxLease)
	p.mu.Lock()
	if p.synced != o.Tunnel {
		p.mu.Unlock()
		return errUnsure
	}
	if len(p.gone) > 0 { // they are sent next, and a lease after them
		p.mu.Unlock()
		return nil
	}
	trying := map[string]bool{}
	for id, r := range p.ending {
		trying[id] = r.retried
	}
	msg := wire.RouterLease{Epoch: p.s.epoch, Revision: p.rev, ForMS: life.Milliseconds()}
	// From here on the router may have it, whatever the answer is.
	p.leaseEnds = p.s.cfg.Now().Add(leaseTimeout + life + leaseSlack)
	p.mu.Unlock()
	sent := p.s.cfg.Now()
	var got wire.RouterLeased
	err := p.ask(ctx, leaseTimeout, "POST", wire.PathRouterLease, msg, &got)
	now := p.s.cfg.Now()
	var free []string
	p.mu.Lock()
	// It cannot come later than this any more.
	if end := now.Add(life + leaseSlack); end.Before(p.leaseEnds) {
		p.leaseEnds = end
	}
	told := false
	if err == nil && p.synced != o.Tunnel {
		err = errUnsure // said by a process that is not there any more
	}
	if err == nil {
		told = got.Type != p.row.Type || got.Leased != p.row.Leased
		p.row.Type, p.row.Leased, p.typed = cut(got.Type, 16), got.Leased, true
		still := failures(got.Ending)
		for id, was := range trying {
			r := p.ending[id]
			if r == nil || p.gone[id] {
				continue
			}
			if why, yes := still[id]; yes {
				r.retried, r.text = true, why.Error()
			} else if was {
				delete(p.ending, id)
				delete(p.sent, id)
				free = append(free, id)
			}
		}
		if got.Resync {
			p.synced = 0
			err = errors.New("the router asks for the whole state")
		} else {
			p.heldUntil = sent.Add(life)
		}
	}
	row := p.row
	p.mu.Unlock()
	if err != nil {
		wake(p.wake)
	}
	if told {
		p.s.keepType(ctx, &row)
	}
	for _, id := range free {
		p.s.released(id, p.id)
	}
	return err
}

// leases renews the lease five times as often as it ends, and at once after
// changes, until ctx ends.
func (p *peer) leases(ctx context.Context) {
	for {
		t := time.NewTimer(min(p.s.cfg.Lease(), maxLease) / 5)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-p.leaseNow:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
		if err := p.lease(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, errOffline) && !errors.Is(err, errUnsure) {
			p.s.cfg.Log.Warn("lease of a router not renewed", "node", p.label(), "err", err)
		}
	}
}

// overdue tells somebody of removals that take too long, once each.
func (p *peer) overdue(ctx context.Context) {
	now := p.s.cfg.Now()
	late := map[string]removal{}
	p.mu.Lock()
	for id, r := range p.ending {
		if !r.alerted && now.Sub(r.since) >= removalAlert {
			r.alerted = true
			late[id] = *r
		}
	}
	name := p.name
	p.mu.Unlock()
	for id, r := range late {
		p.s.alertRemoval(ctx, id, p.id, name, r)
	}
}

// expired reports whether rules on the router have certainly stopped to hold.
func (p *peer) expired(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.offline.IsZero() && (now.After(p.leaseEnds) || now.Sub(p.offline) > maxLease+leaseSlack)
}

func (p *peer) label() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.name
}

func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return s
}
