package enforce

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// ErrConflict is returned for changes that do not start from what is applied.
var ErrConflict = errors.New("the router is at another revision")

// errStopping refuses changes after rules were removed for the end.
var errStopping = errors.New("the router is stopping")

// maxSessions bounds the sessions of one router.
const maxSessions = 100_000

// State makes the whole state hold and nothing else.
func (r *Router) State(ctx context.Context, s wire.RouterState) (wire.RouterAck, error) {
	if s.Epoch == "" || len(s.Epoch) > wire.MaxConnection || len(s.Sessions) > maxSessions {
		return wire.RouterAck{}, fmt.Errorf("state: %w", errBad)
	}
	if err := r.lock(ctx); err != nil {
		return wire.RouterAck{}, fmt.Errorf("state: %w", err)
	}
	defer r.unlock()
	if r.isStopping() {
		return wire.RouterAck{}, fmt.Errorf("state: %w", errStopping)
	}
	want, failed := valid(s.Sessions, nil)
	r.begin(&underway{epoch: s.Epoch, to: s.Revision, removals: true})
	defer r.begin(nil)
	// Half a state is worse than the whole of one whose sender is gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyTimeout)
	defer cancel()
	res, err := r.c.Backend.Sync(ctx, want)

	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.poke()
	if err != nil {
		r.counts.Refused++
		r.doubtLocked(err)
		return wire.RouterAck{}, fmt.Errorf("apply state %d with %d sessions: %w", s.Revision, len(want), err)
	}
	clear(r.sessions)
	clear(r.ending)
	for _, w := range want {
		r.sessions[w.ID] = w
	}
	r.epoch, r.revision, r.sure, r.lapsed = s.Epoch, s.Revision, true, false
	ack := r.ackLocked(failed, res)
	r.log.Info("state applied", "revision", s.Revision, "sessions", len(r.sessions), "failed", len(ack.Failed), "ending", len(ack.Ending))
	return ack, nil
}

// Changes leads from one revision to the next. ErrConflict asks for the whole
// state.
func (r *Router) Changes(ctx context.Context, c wire.RouterChanges) (wire.RouterAck, error) {
	if err := r.lock(ctx); err != nil {
		return wire.RouterAck{}, fmt.Errorf("changes: %w", err)
	}
	defer r.unlock()
	add, failed, err := r.startChanges(c)
	if err != nil {
		return wire.RouterAck{}, fmt.Errorf("changes %d to %d: %w", c.From, c.To, err)
	}
	defer r.begin(nil)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyTimeout)
	defer cancel()
	res, err := r.c.Backend.Apply(ctx, add, c.Remove)
	if err != nil {
		r.log.Warn("changes went wrong: applying the whole state", "revision", c.To, telemetry.KeyErr, err)
		res, err = r.c.Backend.Sync(ctx, r.after(add, c.Remove))
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.poke()
	if err != nil {
		r.counts.Refused++
		r.doubtLocked(err)
		return wire.RouterAck{}, fmt.Errorf("apply changes %d to %d: %w", c.From, c.To, err)
	}
	for _, id := range c.Remove {
		delete(r.sessions, id)
		delete(r.ending, id) // back by the result if it is still there
	}
	for _, s := range add {
		r.sessions[s.ID] = s
	}
	r.revision = c.To
	ack := r.ackLocked(failed, res)
	for _, s := range add {
		r.log.Debug("session added", telemetry.KeyConnection, s.ID, telemetry.KeyTarget, s.Target, "client", s.Rules.Client)
	}
	for _, id := range c.Remove {
		r.log.Debug("session removed", telemetry.KeyConnection, id)
	}
	return ack, nil
}

// after is what must hold when changes are applied.
func (r *Router) after(add []wire.RouterSession, remove []string) []wire.RouterSession {
	r.mu.Lock()
	defer r.mu.Unlock()
	hold := maps.Clone(r.sessions)
	for _, id := range remove {
		delete(hold, id)
	}
	for _, s := range add {
		hold[s.ID] = s
	}
	return slices.Collect(maps.Values(hold))
}

// startChanges checks that c fits to what is applied and marks it as under way.
func (r *Router) startChanges(c wire.RouterChanges) (add []wire.RouterSession, failed []wire.RouterFailure, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopping {
		return nil, nil, errStopping
	}
	if !r.sure || c.Epoch != r.epoch || c.From != r.revision || c.To <= c.From || len(r.sessions)+len(c.Add) > maxSessions {
		r.counts.Refused++
		return nil, nil, ErrConflict
	}
	removed := make(map[string]bool, len(c.Remove))
	for _, id := range c.Remove {
		removed[id] = true
	}
	for _, s := range c.Add {
		if _, holds := r.sessions[s.ID]; holds && !removed[s.ID] {
			// Core and we do not mean the same: start again.
			r.counts.Refused++
			return nil, nil, ErrConflict
		}
	}
	add, failed = valid(c.Add, func(id string) *wire.Error {
		if _, still := r.ending[id]; still {
			return wire.Errorf(wire.CodeRefused, "the router is still ending this session")
		}
		return nil
	})
	r.underway = &underway{epoch: c.Epoch, to: c.To, removals: len(c.Remove) > 0}
	return add, failed, nil
}

func (r *Router) begin(u *underway) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.underway = u
}

// valid checks sessions again before anything reaches the backend.
func valid(in []wire.RouterSession, also func(id string) *wire.Error) (good []wire.RouterSession, bad []wire.RouterFailure) {
	seen := make(map[string]bool, len(in))
	for _, s := range in {
		why := check(s)
		if why == nil && seen[s.ID] {
			why = wire.Errorf(wire.CodeBadRequest, "the router was sent this session twice")
		}
		if why == nil && also != nil {
			why = also(s.ID)
		}
		seen[s.ID] = true
		if why != nil {
			bad = append(bad, wire.RouterFailure{ID: s.ID, Error: why})
			continue
		}
		good = append(good, s)
	}
	return good, bad
}

func check(s wire.RouterSession) *wire.Error {
	if s.ID == "" || len(s.ID) > wire.MaxConnection {
		return wire.Errorf(wire.CodeBadRequest, "the router was sent a session without a valid name")
	}
	for _, c := range s.ID {
		if c <= ' ' || c > '~' {
			return wire.Errorf(wire.CodeBadRequest, "the router was sent a session without a valid name")
		}
	}
	if err := s.Rules.Validate(); err != nil {
		return wire.Errorf(wire.CodeBadRequest, "the router does not accept the rules: %v", err)
	}
	return nil
}

// ackLocked enters a result and answers for the present revision.
func (r *Router) ackLocked(failed []wire.RouterFailure, res Result) wire.RouterAck {
	r.counts.Applied++
	for _, f := range res.Failed {
		delete(r.sessions, f.ID)
		r.log.Warn("session could not be added", telemetry.KeyConnection, f.ID, telemetry.KeyErr, f.Error)
	}
	r.counts.Failed += uint64(len(failed) + len(res.Failed))
	for _, f := range res.Ending {
		delete(r.sessions, f.ID)
		r.endLocked(f)
	}
	ended := append(r.ended, res.Ended...)
	r.ended = nil
	return wire.RouterAck{Epoch: r.epoch, Revision: r.revision, Failed: append(failed, res.Failed...), Ending: r.endingLocked(), Ended: ended}
}
