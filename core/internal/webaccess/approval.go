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

// hold finds the request that a webproxy asks about, or puts it before
// approvers. The caller is counted as asking.
func (x *session) hold(ctx context.Context, p fleet.Peer, ask wire.WebApprovalAsk) (*held, *wire.Error, error) {
	x.asks.Lock()
	defer x.asks.Unlock()
	// A webproxy that goes away in the moment of the commit leaves no row that
	// nobody here looks after.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
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
