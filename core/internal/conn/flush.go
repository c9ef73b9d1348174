package conn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// flushBatch bounds the connections written in one transaction, entryBatch the
// events of one connection in one transaction.
const (
	flushBatch = 100
	entryBatch = 500
)

// dbTimeout bounds each transaction of the background work, so that a database
// that hangs is noticed and does not hold the others up.
const dbTimeout = 10 * time.Second

// flusher writes what changed, at once after news and every FlushEvery for
// counters, until ctx ends. It also notes when the database last answered.
func (m *Manager) flusher(ctx context.Context) {
	t := time.NewTicker(m.cfg.FlushEvery)
	defer t.Stop()
	recovered, failing := false, false
	var pruned time.Time
	for {
		counters := false
		select {
		case <-ctx.Done():
			return
		case <-m.wakeFlush:
		case <-t.C:
			counters = true
		}
		// It answers for when it was asked, however long that took.
		at := m.cfg.Now()
		err := m.flush(ctx, counters)
		asked := counters || failing
		if err == nil && asked {
			if err = m.readOrders(ctx); err == nil {
				err = m.readOversight(ctx)
			}
		}
		if err == nil && !recovered {
			if err = m.recoverCrashed(ctx); err == nil {
				recovered = true
			}
		}
		if now := m.cfg.Now(); err == nil && counters && now.Sub(pruned) >= time.Hour {
			if err = m.prune(ctx); err == nil {
				pruned = now
			}
		}
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if asked {
				m.mu.Lock()
				m.contact = at
				m.mu.Unlock()
			}
			if failing {
				m.cfg.Log.Info("connection records reach the database again")
			}
			failing = false
		case !failing:
			failing = true
			m.cfg.Log.Error("connection records do not reach the database; kept in memory", "err", err)
		}
		if failing {
			// News may have left a wake-up behind: wait for the ticker.
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				m.wake(m.wakeFlush)
			}
		}
	}
}

// flush writes all that waits; with counters also rows of which only the
// counters moved.
func (m *Manager) flush(ctx context.Context, counters bool) error {
	for {
		var batch []*Live
		var rows []row
		more := false
		for _, l := range m.snapshot() {
			r, ok := l.take(counters)
			if !ok {
				continue
			}
			if len(batch) == flushBatch {
				more = true
				break
			}
			batch, rows = append(batch, l), append(rows, r)
		}
		if len(batch) == 0 {
			return nil
		}
		start := time.Now()
		tctx, cancel := context.WithTimeout(ctx, dbTimeout)
		err := m.cfg.DB.Tx(tctx, func(tx *db.Tx) error {
			for i, r := range rows {
				if err := writeRow(tctx, tx, r); err != nil {
					return err
				}
				if r.news {
					if err := errors.Join(api.Notify(tctx, tx, TopicConnection, r.id, batch[i].group), tx.Notify(tctx, TopicOwn, batch[i].spec.Principal.UserID)); err != nil {
						return err
					}
				}
			}
			// The audit log is locked until the commit: it comes last.
			for _, r := range rows {
				for _, e := range r.entries {
					ev := e.event
					if late := m.cfg.Now().Sub(e.at); late > time.Second {
						// The log's own time is when it was written.
						ev.Fields = withField(ev.Fields, "happened_at", e.at.UTC().Format(time.RFC3339Nano))
					}
					if err := m.cfg.Audit.Append(tctx, tx, ev); err != nil {
						return err
					}
				}
			}
			return nil
		})
		cancel()
		if err != nil {
			return fmt.Errorf("write connection records: %w", err)
		}
		m.metrics.flush.Observe(time.Since(start).Seconds())
		for i, l := range batch {
			m.written(l, rows[i])
			more = more || len(rows[i].entries) == entryBatch
		}
		if !more {
			return nil
		}
	}
}

// take returns what is to be written of l, if anything.
func (l *Live) take(counters bool) (row, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	in, out := l.in.Load(), l.out.Load()
	moved := counters && (in != l.writtenIn || out != l.writtenOut)
	if l.abandoned || (l.version == l.flushed && len(l.waiting) == 0 && !moved) {
		return row{}, false
	}
	r := row{
		id: l.ID, state: l.state,
		nodeID: l.route.NodeID, nodeName: l.route.Node, transport: l.route.Transport, binding: l.route.Binding,
		recording:   l.recording,
		connectedAt: db.Micro(l.connectedAt), endedAt: db.Micro(l.endedAt),
		lastActivity: l.lastAny.Load(), in: in, out: out,
		endReason: l.endReason, endDetail: l.endDetail,
		news: l.version != l.flushed, version: l.version,
	}
	n := min(len(l.waiting), entryBatch)
	r.entries = l.waiting[:n:n]
	if n < len(l.waiting) && r.state.Over() {
		// The final state goes with the last events, not before them.
		r.state, r.endedAt, r.endReason, r.endDetail = Disconnecting, 0, l.endReason, ""
	}
	return r, true
}

// written forgets what the database has; after a failed write nothing is forgotten.
func (m *Manager) written(l *Live, r row) {
	l.mu.Lock()
	n := len(r.entries)
	if n > 0 {
		l.waiting = append(l.waiting[:0:0], l.waiting[n:]...)
	}
	l.writtenIn, l.writtenOut, l.flushed = r.in, r.out, r.version
	done := r.state.Over()
	l.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending -= n
	if done {
		delete(m.live, l.ID)
	}
}

// readOrders carries out termination orders of this core's connections whose
// note may have been missed. As the periodic read it also shows that the
// database answers.
func (m *Manager) readOrders(ctx context.Context) error {
	tctx, cancel := context.WithTimeout(ctx, dbTimeout)
	defer cancel()
	rows, err := m.cfg.DB.QueryContext(tctx, ordersSQL, m.cfg.CoreID)
	if err != nil {
		return fmt.Errorf("read termination orders: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var at int64
		var o order
		if err := rows.Scan(&id, &at, &o.byID, &o.byName, &o.public); err != nil {
			return fmt.Errorf("read termination orders: %w", err)
		}
		o.at = db.FromMicro(at)
		if l := m.find(id); l != nil {
			l.carryOut(&o)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read termination orders: %w", err)
	}
	return nil
}

// recoverCrashed closes the rows that an earlier run of this core left live.
func (m *Manager) recoverCrashed(ctx context.Context) error {
	if _, err := m.cfg.DB.ExecContext(ctx, deleteWatchersSQL, m.cfg.CoreID, m.watch+"%"); err != nil {
		return fmt.Errorf("remove watchers of an earlier run: %w", err)
	}
	n, err := m.CloseLeft(ctx, m.cfg.CoreID)
	if n > 0 {
		m.cfg.Log.Info("closed connections left open by an earlier run", "count", n)
	}
	return err
}

// CloseLeft closes the rows a dead core left live, except those this manager
// carries itself, and returns how many there were.
func (m *Manager) CloseLeft(ctx context.Context, coreID string) (int, error) {
	type left struct{ id, userID, userName, targetID, targetName, group string }
	var found []left
	rows, err := m.cfg.DB.QueryContext(ctx, leftLiveSQL, coreID)
	if err != nil {
		return 0, fmt.Errorf("read connections of core %s: %w", coreID, err)
	}
	defer rows.Close()
	for rows.Next() {
		var x left
		var connectedAt int64
		if err := rows.Scan(&x.id, &x.userID, &x.userName, &x.targetID, &x.targetName, &connectedAt, &x.group); err != nil {
			return 0, fmt.Errorf("read connections of core %s: %w", coreID, err)
		}
		if m.find(x.id) == nil {
			found = append(found, x)
		}
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("read connections of core %s: %w", coreID, err)
	}
	rows.Close()
	n := 0
	for _, x := range found {
		closed := false
		err := m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
			res, err := tx.ExecContext(ctx, closeCrashedSQL, x.id, string(EndedByCrash), "The server carrying the connection stopped.")
			if err != nil {
				return err
			}
			if k, err := res.RowsAffected(); err != nil || k == 0 {
				return err
			}
			closed = true
			if err := api.Notify(ctx, tx, TopicConnection, x.id, x.group); err != nil {
				return err
			}
			return m.cfg.Audit.Append(ctx, tx, audit.Event{
				Type: audit.ConnectionLost, Outcome: audit.Failed, Actor: audit.System, Connection: x.id,
				Object: audit.Object{Kind: "target", ID: x.targetID, Name: x.targetName},
				Fields: map[string]string{"reason": string(EndedByCrash), "user": x.userName, "core": coreID},
			})
		})
		if err != nil {
			return n, fmt.Errorf("close connection %s of core %s: %w", x.id, coreID, err)
		}
		if closed {
			n++
		}
	}
	return n, nil
}

func withField(f map[string]string, k, v string) map[string]string {
	out := make(map[string]string, len(f)+1)
	maps.Copy(out, f)
	out[k] = v
	return out
}
