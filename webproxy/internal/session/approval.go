package session

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"time"

	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

const (
	// unheard is how long a request waits for core's first word about it.
	unheard = 30 * time.Second
	// overdue is how long after its time core's word about a request is awaited.
	overdue = 30 * time.Second
	// goneTime bounds telling core that nobody waits any more.
	goneTime = 10 * time.Second
)

// TrackHeld is Track for a request that is held, or was and is approved: rules
// that hold it do not cut it.
func (s *Session) TrackHeld(ctx context.Context, r webrule.Meant) (context.Context, *Live, bool) {
	return s.track(ctx, &Live{r: r, held: true})
}

// Keep says that a request waits here, or is approved and not sent yet, until
// the returned function is called: core asks which are when this node comes with
// a new tunnel, and ends those that are not there.
func (s *Session) Keep(hold string) (release func()) {
	s.waits(hold, 1)
	return func() { s.waits(hold, -1) }
}

// Take has core note that an approved request is sent now. It may leave only if
// the state is approved; else nobody takes it for sent.
func (s *Session) Take(ctx context.Context, hold string) (wire.WebApproval, error) {
	return s.Await(ctx, wire.WebApprovalAsk{Hold: hold, Taken: true}, func(wire.WebApproval) {})
}

// Drop tells core that nobody waits for a request any more, or that an approved
// one is not sent.
func (s *Session) Drop(hold string) { s.gone(wire.WebApprovalAsk{Hold: hold}) }

// Await asks core for a second person and waits for the decision, through lost
// tunnels and restarts of core. Waiting is told of each word of core's until
// then. The state is final; it is not approved when an error says that core
// cannot be asked, or ctx ends. What is approved is sent after Take, or dropped.
func (s *Session) Await(ctx context.Context, ask wire.WebApprovalAsk, waiting func(wire.WebApproval)) (wire.WebApproval, error) {
	ask.Session, ask.Confirms = s.ID, true
	defer s.Keep(ask.Hold)()
	until := s.m.c.Now().Add(unheard)
	known := false
	for {
		a, err := s.askApproval(ctx, ask)
		switch {
		case ctx.Err() != nil:
			if !errors.Is(context.Cause(ctx), ErrEnded) { // core ends with a session what waits in it
				s.gone(ask)
			}
			return wire.WebApproval{State: wire.ApprovalWithdrawn}, context.Cause(ctx)
		case err == nil && a.Error == nil && a.State != wire.ApprovalWaiting:
			return a, nil
		case err == nil && a.Error == nil:
			known, ask.Preview = true, nil
			until = s.m.c.Now().Add(time.Duration(a.LeftS)*time.Second + overdue)
			waiting(a)
			continue
		case err == nil && a.Error.Code != wire.CodeDraining && a.Error.Code != wire.CodeInternal:
			return wire.WebApproval{State: wire.ApprovalDenied, Text: a.Error.Public}, nil
		case err == nil:
			err = a.Error
		}
		if s.m.c.Now().After(until) {
			s.m.c.Log.Warn("core cannot be asked for an approval", telemetry.KeySession, s.ID, telemetry.KeyErr, err)
			late := wire.WebApproval{State: wire.ApprovalExpired, Text: "Nobody could be asked for approval: core cannot be reached."}
			switch {
			case ask.Taken:
				late = wire.WebApproval{State: wire.ApprovalLost, Text: "It was approved, but core cannot be reached."}
			case known:
				late.Text = "Nobody decided in time, or core cannot be reached."
			}
			s.gone(ask)
			return late, nil
		}
		t := time.NewTimer(retry)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// waits counts who works on a request that waits.
func (s *Session) waits(hold string, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds[hold] += by; s.holds[hold] <= 0 {
		delete(s.holds, hold)
	}
}

// heldNow names the requests that wait, and those of which core is being told
// that they do not.
func (s *Session) heldNow() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.holds))
}

// askApproval asks once.
func (s *Session) askApproval(ctx context.Context, ask wire.WebApprovalAsk) (a wire.WebApproval, err error) {
	t := s.m.c.Tunnel()
	if t == nil {
		return a, errNoTunnel
	}
	ctx, cancel := context.WithTimeout(ctx, wire.WebApprovalPoll*time.Second+askTime)
	defer cancel()
	err = control.Exchange(ctx, t, http.MethodPost, wire.PathWebApproval, ask, &a, wire.MaxWebBody)
	return a, err
}

// gone tells core that nobody waits any more; core also finds out by itself.
func (s *Session) gone(ask wire.WebApprovalAsk) {
	ask.Session, ask.Gone, ask.Preview = s.ID, true, nil
	m := s.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	release := s.Keep(ask.Hold)
	m.work.Go(func() {
		defer release()
		ctx, cancel := context.WithTimeout(m.ctx, goneTime)
		defer cancel()
		if _, err := s.askApproval(ctx, ask); err != nil {
			m.c.Log.Debug("core was not told that a request does not wait any more", telemetry.KeySession, s.ID, telemetry.KeyErr, err)
		}
	})
}
