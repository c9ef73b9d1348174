package webaccess

import (
	"context"
	"errors"
	"sync"
	"time"

	"caponier/core/internal/conn"
	"caponier/core/internal/fleet"
	"caponier/shared/wire"
)

// finish ends the session on both nodes, completes its recording and closes
// the record.
func (x *session) finish(ctx context.Context) {
	reason, text := x.live.Ended()
	x.mu.Lock()
	x.state, x.endText = Ending, text
	x.mu.Unlock()
	x.giveUp(ctx, reason)
	x.s.cfg.Log.Info("web session ends", "session", x.row.ID, "reason", string(reason))
	// A stopping core has the time its group gives; nodes end by themselves.
	ectx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	select {
	case x.order <- struct{}{}: // for good
	case <-ectx.Done():
	}
	carrier, proxy := x.pair()
	var g sync.WaitGroup
	var missing [2]bool
	g.Go(func() { missing[0] = !x.end(ectx, wire.Carrier, carrier) })
	g.Go(func() { missing[1] = !x.end(ectx, wire.WebProxy, proxy) })
	g.Wait()
	if rec := x.recording(); rec != nil {
		if err := rec.Event("session-ended", map[string]string{"reason": string(reason), "text": text}); err != nil {
			x.s.cfg.Log.Error("end of a web session not in its recording", "session", x.row.ID, "err", err)
		}
		if err := complete(rec, missing[0], missing[1]); err != nil {
			x.s.cfg.Log.Error("recording of a web session not closed", "session", x.row.ID, "err", err)
		}
	}
	x.countUnlisted(ectx, x.s.cfg.Now(), 0)
	x.close(ctx, reason, text)
}

// close writes the end down and forgets the session. A row that cannot be
// written is found by the next run of core.
func (x *session) close(ctx context.Context, reason conn.EndReason, text string) {
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	if err := x.s.writeEnd(wctx, &x.row, reason, text); err != nil {
		x.s.cfg.Log.Error("end of a web session not written", "session", x.row.ID, "err", err)
	}
	x.live.Close(reason, nil)
	// From here on its row tells of it. It is not shown to have ended before:
	// who sees that finds nothing of it any more.
	x.s.mu.Lock()
	delete(x.s.sessions, x.row.ID)
	x.s.mu.Unlock()
	x.publish() // who read it between the row and this
	x.s.metrics.ended.WithLabelValues(endLabel(reason)).Inc()
	close(x.ended)
}

// complete closes a recording as what it is: a node that did not say that
// nothing is left may have had more to tell.
func complete(rec Recording, carrier, proxy bool) error {
	switch {
	case carrier:
		return rec.CloseIncomplete("the carrier did not deliver the end of the session")
	case proxy:
		return rec.CloseIncomplete("the webproxy did not deliver the end of the session")
	}
	return rec.Close()
}

// end has a node clear the session away and deliver what it has to tell of it.
// A node that is away is waited for; it ends the session by itself when its
// lease is over. It reports whether nothing is left there.
func (x *session) end(ctx context.Context, kind wire.NodeKind, id string) bool {
	if id == "" {
		return true
	}
	path := wire.PathCarrierSessions
	if kind == wire.WebProxy {
		path = wire.PathWebProxySessions
	}
	for {
		changed := x.s.cfg.Fleet.Changed()
		var ack wire.WebAck
		err := x.s.cfg.Fleet.Ask(ctx, id, "DELETE", path+"/"+x.row.ID, nil, &ack)
		if err == nil && ack.Error != nil {
			err = ack.Error
		}
		if err == nil || ctx.Err() != nil {
			if err != nil {
				x.s.cfg.Log.Warn("web session not ended on a node; it ends with its lease", "session", x.row.ID, "node", id, "err", err)
			}
			return err == nil
		}
		if !errors.Is(err, fleet.ErrOffline) {
			x.s.cfg.Log.Warn("web session not ended on a node; tried again", "session", x.row.ID, "node", id, "err", err)
		}
		wait := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// endLabel is a reason as a metric's label.
func endLabel(r conn.EndReason) string {
	switch r {
	case conn.EndedByUser, conn.EndedByAdmin, conn.EndedByAccess, conn.EndedByIdle, conn.EndedByDuration, conn.EndedByRoute, conn.EndedByError, conn.EndedByLogin:
		return string(r)
	}
	return "other"
}

// sentence ends a text with a full stop.
func sentence(t string) string {
	for len(t) > 0 && (t[len(t)-1] == '.' || t[len(t)-1] == ' ') {
		t = t[:len(t)-1]
	}
	return t + "."
}
