package webaccess

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/shared/wire"
)

// confirming is an ask of a webproxy that tells when it sends what is approved.
func confirming(session, path string) wire.WebApprovalAsk {
	a := approvalAsk(session, path)
	a.Confirms = true
	return a
}

func taken(session, path string) wire.WebApprovalAsk {
	return wire.WebApprovalAsk{Session: session, Hold: "hold-" + path, Taken: true, Confirms: true}
}

// approve has anna approve what waits under a path, and hears core's word to the
// webproxy.
func (k *core) approve(t *testing.T, proxy *box, session, path string) *Approval {
	t.Helper()
	answer := proxy.ask(confirming(session, path))
	a := k.waits("anna", session, path)
	if code := k.do("anna", "POST", "/web-approvals/"+a.ID+"/approve", map[string]any{}, nil); code != 200 {
		t.Fatalf("approve %s: %d", path, code)
	}
	if got := decision(t, answer); got.State != wire.ApprovalApproved {
		t.Fatalf("%s: %+v", path, got)
	}
	return a
}

func (k *core) approval(id string) (a Approval) {
	k.do("anna", "GET", "/web-approvals/"+id, nil, &a)
	return a
}

// An approval counts as sent when its webproxy has taken it; one that dies
// before leaves it lost, on record and for its user and approvers to see.
func TestApprovedAndNotTaken(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		now := time.Now() // and not later: nothing is lost by time alone
		k := w.start(func(_ *core, c *Config) { c.Now = func() time.Time { return now } })
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		sent, kept := k.approve(t, proxy, s.ID, "/sent"), k.approve(t, proxy, s.ID, "/kept")
		for range 2 { // the answer may have been lost on its way
			if got := decision(t, proxy.ask(taken(s.ID, "/sent"))); got.State != wire.ApprovalApproved || got.By != "anna" {
				t.Fatalf("%+v", got)
			}
		}
		// The moment: core has the approval, its webproxy is away.
		cut := proxy.askOnce(confirming(s.ID, "/lost"))
		lost := k.waits("anna", s.ID, "/lost")
		proxy.down()
		cut()
		if code := k.do("anna", "POST", "/web-approvals/"+lost.ID+"/approve", map[string]any{}, nil); code != 200 {
			t.Fatal(code)
		}
		again := func(holds map[string][]string) {
			proxy.set(func(b *box) { b.holds = holds })
			before, _ := proxy.forProxy(s.ID)
			proxy.up(k.url, "")
			eventually(t, "it is told again", func() bool { now, _ := proxy.forProxy(s.ID); return now.Revision > before.Revision })
		}
		again(map[string][]string{s.ID: {"hold-/kept"}})
		eventually(t, "it is lost", func() bool { return k.approval(lost.ID).State == wire.ApprovalLost })
		if a := k.approval(lost.ID); !strings.Contains(a.Reason, "restarted") || !strings.Contains(a.Reason, "not sent") || a.DecidedBy != "anna" {
			t.Errorf("%+v", a)
		}
		for _, a := range []*Approval{sent, kept} {
			if got := k.approval(a.ID); got.State != wire.ApprovalApproved {
				t.Errorf("%+v", got)
			}
		}
		if seen := k.get("eve", s.ID).Approvals; !slices.ContainsFunc(seen, func(a Waiting) bool { return a.ID == lost.ID && a.State == wire.ApprovalLost }) {
			t.Errorf("its user sees %+v", seen)
		}
		if got := decision(t, proxy.ask(taken(s.ID, "/lost"))); got.State != wire.ApprovalLost {
			t.Errorf("taken when it was lost: %+v", got)
		}
		if got := decision(t, proxy.ask(taken(s.ID, "/kept"))); got.State != wire.ApprovalApproved {
			t.Errorf("%+v", got)
		}
		for typ, want := range map[audit.Type]int{audit.WebApprovalSent: 2, audit.WebApprovalApproved: 3} {
			if n := k.audited(typ, s.ID, audit.OK); n != want {
				t.Errorf("%s: audited %d times", typ, n)
			}
		}
		if n := k.audited(audit.WebApprovalLost, s.ID, audit.Denied); n != 1 {
			t.Errorf("lost: audited %d times", n)
		}
		if mark := w.tapes.of(s.ID).last("approval"); mark["state"] != string(wire.ApprovalLost) || mark["by"] != "anna" {
			t.Errorf("the timeline ends with %q", mark)
		}
	})
}

// Nothing is taken that nobody approved.
func TestTakenUnasked(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		k := w.start()
		k.node(wire.Carrier, "c1")
		proxy, stranger := k.node(wire.WebProxy, "p1"), k.node(wire.WebProxy, "p2")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		if p := s.WebProxy; p == "p2" {
			proxy, stranger = stranger, proxy
		}
		if got := decision(t, proxy.ask(taken(s.ID, "/never"))); got.State != wire.ApprovalLost {
			t.Errorf("never asked for: %+v", got)
		}
		a := k.approve(t, proxy, s.ID, "/x")
		if got := decision(t, stranger.ask(taken(s.ID, "/x"))); got.Error == nil || got.Error.Code != wire.CodeRefused {
			t.Errorf("another webproxy took it: %+v", got)
		}
		if got := decision(t, proxy.ask(taken(s.ID, "/x"))); got.State != wire.ApprovalApproved {
			t.Errorf("%s: %+v", a.ID, got)
		}
		answer := proxy.ask(confirming(s.ID, "/denied"))
		b := k.waits("anna", s.ID, "/denied")
		if code := k.do("anna", "POST", "/web-approvals/"+b.ID+"/deny", map[string]any{}, nil); code != 200 {
			t.Fatal(code)
		}
		decision(t, answer)
		if got := decision(t, proxy.ask(taken(s.ID, "/denied"))); got.State != wire.ApprovalDenied {
			t.Errorf("%+v", got)
		}
		// A webproxy of an older release tells nothing: it has what it was told.
		answer = proxy.ask(approvalAsk(s.ID, "/old"))
		old := k.waits("anna", s.ID, "/old")
		if code := k.do("anna", "POST", "/web-approvals/"+old.ID+"/approve", map[string]any{}, nil); code != 200 {
			t.Fatal(code)
		}
		decision(t, answer)
		if n := k.audited(audit.WebApprovalSent, s.ID, audit.OK); n != 2 {
			t.Errorf("%d are on record as sent", n)
		}
	})
}

// What is approved and not sent ends with its session, a lock and its user's
// leaving; a restart of core does not end it.
func TestUnsentApprovalsEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		change := func(_ *core, c *Config) { c.Tick = 20 * time.Millisecond }
		k := w.start(change)
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		lost := func(a *Approval, why string) {
			t.Helper()
			eventually(t, why, func() bool { return k.approval(a.ID).State == wire.ApprovalLost })
			if got := k.approval(a.ID); !strings.Contains(got.Reason, why) || !strings.Contains(got.Reason, "not sent") {
				t.Errorf("%+v", got)
			}
		}
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		bobs, carls := k.open("bob", "wiki", map[string]any{"account": "alice"}), k.open("carl", "wiki", map[string]any{"account": "alice"})
		a := k.approve(t, proxy, s.ID, "/left")
		gone := taken(s.ID, "/left")
		gone.Taken, gone.Gone = false, true
		if got := decision(t, proxy.ask(gone)); got.State != wire.ApprovalLost {
			t.Errorf("%+v", got)
		}
		lost(a, "does not wait any more")

		a = k.approve(t, proxy, s.ID, "/locked")
		if code := k.do("auditor", "POST", "/connections/"+s.ID+"/lock", map[string]any{"reason": "wait"}, nil); code != 200 && code != 204 {
			t.Fatalf("lock: %d", code)
		}
		if got := decision(t, proxy.ask(taken(s.ID, "/locked"))); got.State != wire.ApprovalLost {
			t.Errorf("taken in a locked session: %+v", got)
		}
		lost(a, "locked")

		a = k.approve(t, proxy, bobs.ID, "/ended")
		k.do("bob", "DELETE", "/web-sessions/"+bobs.ID, nil, nil)
		lost(a, "has ended")

		a = k.approve(t, proxy, carls.ID, "/restart")
		b := k.approve(t, proxy, carls.ID, "/stranded")
		k.stop()
		k = w.start(change)
		if got := decision(t, proxy.ask(taken(carls.ID, "/restart"))); got.State != wire.ApprovalApproved {
			t.Errorf("%s after a restart of core: %+v", a.ID, got)
		}
		// No core looks after its session.
		k.stop()
		must(t, w.db.Tx(t.Context(), func(tx *db.Tx) error {
			_, err := tx.ExecContext(t.Context(), `update web_sessions set ended_at = 1, state = 'ended', end_reason = $2 where id = $1`, carls.ID, string(conn.EndedByCrash))
			return err
		}))
		k = w.start(change)
		lost(b, "No core")
	})
}

// What is approved and that its webproxy says nothing of for a minute is lost.
func TestUnsentApprovalsOfASilentProxy(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.law.change(approvers)
		var ahead atomic.Int64
		k := w.start(func(_ *core, c *Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
			c.Tick = 20 * time.Millisecond
		})
		k.node(wire.Carrier, "c1")
		proxy := k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		a := k.approve(t, proxy, s.ID, "/silence")
		ahead.Store(int64(unasked + time.Second))
		eventually(t, "it is lost", func() bool { return k.approval(a.ID).State == wire.ApprovalLost })
		if got := k.approval(a.ID); !strings.Contains(got.Reason, "not heard of") {
			t.Errorf("%+v", got)
		}
	})
}
