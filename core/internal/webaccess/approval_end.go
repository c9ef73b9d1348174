package webaccess

import (
	"context"
	"slices"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/shared/wire"
)

// spend gives a webproxy the approval to send its request.
func (x *session) spend(ctx context.Context, h *held, by audit.Actor) wire.WebApproval {
	x.reread(ctx, h)
	if o, _ := x.live.Oversight(); o.Locked {
		x.decided(ctx, h, wire.ApprovalLost, "The session was locked.", audit.System)
	}
	x.mu.Lock()
	a := h.row
	x.mu.Unlock()
	if a.unsent() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		a.TakenAt = x.s.cfg.Now()
		var wrote bool
		err := x.s.cfg.DB.Tx(ctx, func(tx *db.Tx) (err error) {
			wrote, err = x.s.writeTaken(ctx, tx, &a, by)
			return err
		})
		switch {
		case err != nil:
			x.s.cfg.Log.Error("use of an approval not written", "session", x.row.ID, "approval", a.ID, "err", err)
			return wire.WebApproval{Error: wire.Errorf(wire.CodeInternal, "the approval could not be noted as used")}
		case wrote:
			x.settle(h, &a)
		default:
			x.reread(ctx, h) // it was lost just now
		}
	}
	x.mu.Lock()
	open := h.row.open()
	x.mu.Unlock()
	if open {
		return wire.WebApproval{Error: wire.Errorf(wire.CodeInternal, "the request is not approved yet")}
	}
	return x.answer(h)
}

// decided gives a request of the session a final state that nobody decided on.
// What was approved already, and not sent, can only be lost.
func (x *session) decided(ctx context.Context, h *held, state wire.ApprovalState, text string, by audit.Actor) {
	x.mu.Lock()
	open := h.row.open()
	x.mu.Unlock()
	if !open {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	var a *approvalRow
	var wrote bool
	err := x.s.cfg.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		// As it is stored: of an approval made just now the note may be on its way.
		if a, err = scanApproval(tx.QueryRowContext(ctx, approvalSQL, h.id)); err != nil {
			return err
		}
		wrote = false
		if !a.open() {
			return nil
		}
		end, why := state, text
		if a.unsent() {
			end = wire.ApprovalLost
		}
		if end == wire.ApprovalLost {
			why += " The request was not sent."
		}
		a.State, a.Reason, a.DecidedAt = end, why, x.s.cfg.Now()
		wrote, err = x.s.writeFinal(ctx, tx, a, by)
		return err
	})
	switch {
	case err != nil:
		x.s.cfg.Log.Error("end of a request for approval not written", "session", x.row.ID, "approval", h.id, "err", err)
	case wrote:
		x.settle(h, a)
	default:
		x.reread(ctx, h) // somebody was first
	}
}

// reread takes over a decision that was made elsewhere.
func (x *session) reread(ctx context.Context, h *held) {
	x.mu.Lock()
	open := h.row.open()
	x.mu.Unlock()
	if !open {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	a, err := scanApproval(x.s.cfg.DB.QueryRowContext(ctx, approvalSQL, h.id))
	if err != nil {
		x.s.cfg.Log.Error("request for approval not read", "session", x.row.ID, "approval", h.id, "err", err)
		return
	}
	x.settle(h, a)
}

// settle makes a new state known to who waits, the viewer and the recording.
func (x *session) settle(h *held, a *approvalRow) {
	x.mu.Lock()
	before := h.row
	changed := before.open() && a.State != before.State
	if changed || before.unsent() {
		h.row = *a
	}
	x.mu.Unlock()
	if !changed {
		return
	}
	x.s.metrics.approvals.WithLabelValues(string(a.State)).Inc()
	x.mark(a)
	if before.State == wire.ApprovalWaiting {
		close(h.over)
	}
	x.publish()
}

// attend ends the waiting of what waits too long, or what nobody asks about;
// also of what was approved and is not sent.
func (x *session) attend(ctx context.Context) {
	now := x.s.cfg.Now()
	x.mu.Lock()
	before := len(x.held)
	x.held = slices.DeleteFunc(x.held, func(h *held) bool {
		return !h.row.open() && h.asking == 0 && now.Sub(h.row.DecidedAt) >= shownFor
	})
	gone := len(x.held) != before
	x.mu.Unlock()
	if gone {
		x.publish()
	}
	o, _ := x.live.Oversight()
	for _, h := range x.someHeld(true) {
		x.mu.Lock()
		expired, left := h.row.State == wire.ApprovalWaiting && !now.Before(h.row.ExpiresAt), h.asking == 0 && now.Sub(h.seen) >= unasked
		x.mu.Unlock()
		switch {
		case o.Locked:
			x.decided(ctx, h, wire.ApprovalDenied, "The session was locked.", audit.System)
		case expired:
			x.decided(ctx, h, wire.ApprovalExpired, "Nobody decided in time.", audit.System)
		case left:
			x.decided(ctx, h, wire.ApprovalLost, "Its webproxy was not heard of for a minute.", audit.System)
		}
	}
}

// giveUp ends the waiting of everything of a session that ends.
func (x *session) giveUp(ctx context.Context, reason conn.EndReason) {
	state, text := wire.ApprovalWithdrawn, "The session has ended."
	switch reason {
	case conn.EndedByAdmin:
		state, text = wire.ApprovalDenied, "An administrator ended the session."
	case conn.EndedByAccess, conn.EndedByLogin:
		state, text = wire.ApprovalDenied, "The right to the session was lost."
	case conn.EndedByRoute, conn.EndedByError, conn.EndedByCrash:
		state, text = wire.ApprovalLost, "The session broke off."
	}
	for _, h := range x.someHeld(true) {
		x.decided(ctx, h, state, text, audit.System)
	}
}

// clearStranded ends what no session of any core looks after.
func (s *Service) clearStranded(ctx context.Context) {
	now := s.cfg.Now()
	rows, err := db.Collect(ctx, s.cfg.DB, scanApproval, strandedSQL, now.Add(-unasked).UnixMicro())
	if err == nil && len(rows) > 0 {
		err = s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
			for _, a := range rows {
				a.DecidedAt = now
				switch {
				case a.unsent():
					a.State, a.Reason = wire.ApprovalLost, "No core looked after its session any more. The request was not sent."
				case a.Over:
					a.State, a.Reason = wire.ApprovalWithdrawn, "The session has ended."
				default:
					a.State, a.Reason = wire.ApprovalExpired, "Nobody decided in time."
				}
				if _, err := s.writeFinal(ctx, tx, a, audit.System); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Error("requests for approval left behind not ended", "err", err)
	}
}
