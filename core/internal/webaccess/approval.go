package webaccess

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/shared/control"
	"caponier/shared/wire"
)

// Requests that need a second person. The webproxy holds the request and asks;
// the row in the database is the truth, so that whoever decides may be at any
// core and a restart changes nothing. What is kept here besides wakes who
// waits, and feeds the viewer and the recording.
const (
	// askPoll is how long an ask is kept without a decision.
	askPoll = wire.WebApprovalPoll * time.Second
	// unasked is after how long without being asked about a request counts as
	// lost, or an approval that was not taken: its webproxy was stopped, or
	// cannot reach core. A page has half of it to take its approved request up.
	unasked = time.Minute
	// shownFor is how long a decision stays in the session for its viewer.
	shownFor = 30 * time.Second
	// markedPreview is how much of a body's preview the timeline keeps, in bytes.
	markedPreview = 4000
)

// held is a request of a session that waits, or that waited a moment ago. An
// approval is worth something when its webproxy has taken it, right before it
// sends the request: one that was not taken becomes lost, for all to see.
type held struct {
	id, hold string // of row

	// The rest is guarded by the session's mu.
	row    approvalRow
	over   chan struct{} // closed when it does not wait any more
	asking int           // asks that wait now
	seen   time.Time     // the last one was there
}

func (s *Service) serveApproval(w http.ResponseWriter, r *http.Request, p fleet.Peer) {
	var ask wire.WebApprovalAsk
	if !control.ReadUpTo(w, r, &ask, wire.MaxWebBody) {
		return
	}
	rc := http.NewResponseController(w)
	until := time.Now().Add(askPoll + 2*askTimeout)
	if err := errors.Join(rc.SetReadDeadline(until), rc.SetWriteDeadline(until)); err != nil {
		s.cfg.Log.Warn("approval: deadlines not set", "node", p.Name, "err", err)
	}
	control.Reply(w, s.approval(r.Context(), p, ask))
}

// approval answers a webproxy that holds a request.
func (s *Service) approval(ctx context.Context, p fleet.Peer, ask wire.WebApprovalAsk) wire.WebApproval {
	x := s.awaited(ctx, ask.Session)
	switch {
	case x == nil && !s.knows():
		return wire.WebApproval{Error: wire.Errorf(wire.CodeDraining, "core is starting")}
	case x == nil:
		return wire.WebApproval{Error: wire.Errorf(wire.CodeRefused, "the session is over")}
	}
	h, why, err := x.hold(ctx, p, ask)
	if err != nil {
		s.cfg.Log.Error("request for approval not kept", "session", x.row.ID, "err", err)
		return wire.WebApproval{Error: wire.Errorf(wire.CodeInternal, "the request could not be noted")}
	}
	if why != nil {
		return wire.WebApproval{Error: why}
	}
	switch {
	case h == nil && ask.Taken: // nobody approved it
		return wire.WebApproval{State: wire.ApprovalLost}
	case h == nil: // withdrawn before core heard of it
		return wire.WebApproval{State: wire.ApprovalWithdrawn}
	}
	defer x.unask(h)
	switch {
	case ask.Gone:
		x.decided(ctx, h, wire.ApprovalWithdrawn, "Its user does not wait any more.", edgeActor(p))
		return x.answer(h)
	case ask.Taken:
		return x.spend(ctx, h, edgeActor(p))
	}
	t := time.NewTimer(askPoll)
	defer t.Stop()
	select {
	case <-h.over:
	case <-t.C:
		x.reread(ctx, h) // should a note have been lost
	case <-ctx.Done():
	case <-s.hard.Done():
		return wire.WebApproval{Error: wire.Errorf(wire.CodeDraining, "core is stopping")}
	}
	if out := x.answer(h); out.State != wire.ApprovalApproved || ask.Confirms {
		return out
	}
	return x.spend(ctx, h, edgeActor(p)) // of an older release
}

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

// hold finds the request that a webproxy asks about, or puts it before
// approvers. The caller is counted as asking.
func (x *session) hold(ctx context.Context, p fleet.Peer, ask wire.WebApprovalAsk) (*held, *wire.Error, error) {
	x.asks.Lock()
	defer x.asks.Unlock()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if _, proxy := x.pair(); p.ID != proxy {
		return nil, wire.Errorf(wire.CodeRefused, "the session is not this webproxy's"), nil
	}
	if h := x.findHeld(ask.Hold); h != nil {
		return h, nil, nil
	}
	a, err := scanApproval(x.s.cfg.DB.QueryRowContext(ctx, heldSQL, x.row.ID, ask.Hold))
	switch {
	case err == nil: // decided while this core did not run, or long ago
		return x.keep(*a), nil, nil
	case !errors.Is(err, db.ErrNotFound):
		return nil, nil, fmt.Errorf("read request for approval: %w", err)
	case ask.Gone, ask.Taken:
		return nil, nil, nil
	}
	if why := mayAsk(x.view(), p.ID, ask, x.waiting()); why != nil {
		x.s.metrics.approvals.WithLabelValues("refused").Inc()
		return nil, why, nil
	}
	now := x.s.cfg.Now()
	if !x.asking.AllowN(now, 1) {
		return nil, wire.Errorf(wire.CodeLimit, "this session asks for approvals too often"), nil
	}
	name := func(s string, n int) string { return clip(strings.ToValidUTF8(s, "?"), n) }
	row := approvalRow{
		ID: "wap_" + strings.ToLower(rand.Text()), Session: x.row.ID, Hold: ask.Hold, UserID: x.row.UserID, UserName: x.row.UserName,
		TargetID: x.row.TargetID, TargetName: x.row.TargetName, Account: x.row.Account, ProxyID: p.ID, ProxyName: p.Name,
		Method: name(ask.Method, 32), URL: name(ask.URL, 2<<10), ContentType: name(ask.ContentType, 200), Length: max(ask.Length, -1), Digest: name(ask.Digest, 64),
		RuleMethod: name(ask.RuleMethod, 32), Rule: name(ask.Rule, 1000), Why: name(ask.Why, 500), State: wire.ApprovalWaiting, AskedAt: now, ExpiresAt: now.Add(x.s.cfg.ApprovalWait()),
	}
	if p := ask.Preview; p != nil {
		row.PreviewKind, row.Preview = p.Kind, clip(printable(p.Text), wire.MaxWebPreview)
	}
	if err := x.s.insertApproval(ctx, &row, edgeActor(p)); err != nil {
		return nil, nil, err
	}
	x.s.metrics.approvals.WithLabelValues(string(wire.ApprovalWaiting)).Inc()
	shown := row
	row.PreviewKind, row.Preview = "", "" // the row has it
	h := x.keep(row)
	x.mark(&shown)
	x.publish()
	if x.live.Context().Err() != nil { // it ended meanwhile, and may have been looked through before
		reason, _ := x.live.Ended()
		x.giveUp(ctx, reason)
	}
	return h, nil, nil
}

func (x *session) findHeld(hold string) *held {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, h := range x.held {
		if h.hold == hold {
			h.asking++
			return h
		}
	}
	return nil
}

// keep remembers a request, counted as being asked about.
func (x *session) keep(a approvalRow) *held {
	h := &held{id: a.ID, hold: a.Hold, row: a, over: make(chan struct{}), asking: 1, seen: x.s.cfg.Now()}
	if a.State != wire.ApprovalWaiting {
		close(h.over)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.held = append(x.held, h)
	return h
}

// unask counts an ask out.
func (x *session) unask(h *held) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h.asking--
	h.seen = x.s.cfg.Now()
}

// waiting counts what waits.
func (x *session) waiting() (n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, h := range x.held {
		if h.row.State == wire.ApprovalWaiting {
			n++
		}
	}
	return n
}

func (x *session) answer(h *held) wire.WebApproval {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := wire.WebApproval{State: h.row.State, By: h.row.DeciderName, Text: h.row.Reason}
	if out.State == wire.ApprovalWaiting {
		out.LeftS = max(1, int64(h.row.ExpiresAt.Sub(x.s.cfg.Now())/time.Second))
	}
	return out
}

// decided gives a request of the session a final state that nobody decided on.
// What was approved already, and not sent, can only be lost.
func (x *session) decided(ctx context.Context, h *held, state wire.ApprovalState, text string, by audit.Actor) {
	x.mu.Lock()
	a := h.row
	x.mu.Unlock()
	if !a.open() {
		return
	}
	if a.unsent() {
		state = wire.ApprovalLost
	}
	if state == wire.ApprovalLost {
		text += " The request was not sent."
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	a.State, a.Reason, a.DecidedAt = state, text, x.s.cfg.Now()
	var wrote bool
	err := x.s.cfg.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		wrote, err = x.s.writeFinal(ctx, tx, &a, by)
		return err
	})
	switch {
	case err != nil:
		x.s.cfg.Log.Error("end of a request for approval not written", "session", x.row.ID, "approval", a.ID, "err", err)
	case wrote:
		x.settle(h, &a)
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
	if changed && before.State == wire.ApprovalWaiting {
		close(h.over)
	}
	x.mu.Unlock()
	if !changed {
		return
	}
	x.s.metrics.approvals.WithLabelValues(string(a.State)).Inc()
	x.mark(a)
	x.publish()
}

// mark puts how far a request is onto the timeline.
func (x *session) mark(a *approvalRow) {
	rec := x.recording()
	if rec == nil {
		return
	}
	fields := a.fields()
	if a.Preview != "" {
		fields["body"] = clip(a.Preview, markedPreview)
	}
	if err := rec.Event("approval", fields); err != nil {
		x.s.cfg.Log.Error("approval not in the recording", "session", x.row.ID, "approval", a.ID, "err", err)
	}
}

// publish has consoles read the session again.
func (x *session) publish() {
	x.s.cfg.Publish(api.Event{Topic: topicSession, ID: x.row.ID, UserID: x.row.UserID})
}

// someHeld are the requests of which something can become yet, or all.
func (x *session) someHeld(open bool) []*held {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(x.held), func(h *held) bool { return open && !h.row.open() })
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

// restoreHeld reads what waits, or is not sent yet, in a session that is taken over.
func (x *session) restoreHeld(ctx context.Context) error {
	rows, err := db.Collect(ctx, x.s.cfg.DB, scanApproval, openApprovalsSQL, x.row.ID)
	if err != nil {
		return fmt.Errorf("read requests for approval: %w", err)
	}
	for _, a := range rows {
		x.unask(x.keep(*a))
	}
	return nil
}

// approvalNoted takes over a decision, about which a note came.
func (s *Service) approvalNoted(id string) {
	for _, x := range s.snapshot() {
		for _, h := range x.someHeld(true) {
			if (id == "" || h.id == id) && s.begin() {
				go func() {
					defer s.work.Done()
					x.reread(s.hard, h)
				}()
			}
		}
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

// printable keeps line feeds and what has a shape on the screen: a webproxy
// that lies does not turn a text around or hide a part of it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && unicode.In(r, unicode.C, unicode.Zl, unicode.Zp) {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) }
