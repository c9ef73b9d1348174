package netaccess

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/shared/wire"
)

// storeEvery is how often presence and flows of live sessions are stored.
const storeEvery = 5 * time.Second

// check ends what is over by the clock and finishes what could not be
// finished before.
func (s *Service) check(ctx context.Context) {
	now := s.cfg.Now()
	window := s.cfg.Presence()
	for _, x := range s.snapshot() {
		x.mu.Lock()
		over, state, touched := x.over, x.state, x.touched
		holders := slices.Sorted(maps.Keys(x.holders))
		x.mu.Unlock()
		switch {
		case over && s.unknownOnly(holders, now):
			if err := s.conclude(ctx, x); err != nil && ctx.Err() == nil {
				s.cfg.Log.Error("end of a network session not written; tried again", "session", x.row.ID, "err", err)
			}
		case over || state != Open:
		case now.Sub(touched) >= window:
			x.live.End(conn.EndedByPresence, presenceText)
		case s.unroutable(holders, now):
			x.live.End(conn.EndedByRoute, "The session was closed because no router that forwards your traffic is connected any more.")
		}
	}
	s.flushPresence(ctx, false)
	s.mu.Lock()
	s.beat = s.cfg.Now()
	close(s.beaten)
	s.beaten = make(chan struct{})
	s.mu.Unlock()
}

// unknownOnly reports whether nobody holds a session but routers that do not
// exist any more, whose last lease has run out.
func (s *Service) unknownOnly(holders []string, now time.Time) bool {
	for _, id := range holders {
		if s.peer(id) != nil || now.Before(s.started.Add(maxLease+leaseSlack)) {
			return false
		}
	}
	return true
}

// unroutable reports whether no router can hold a session any more: all are
// away for longer than their lease.
func (s *Service) unroutable(holders []string, now time.Time) bool {
	for _, id := range holders {
		if p := s.peer(id); p != nil && !p.expired(now) {
			return false
		}
	}
	return true
}

// flushPresence stores when users were heard of and what was counted.
func (s *Service) flushPresence(ctx context.Context, now bool) {
	type change struct {
		x       *session
		touched time.Time
		flows   string
	}
	var changes []change
	at := s.cfg.Now()
	for _, x := range s.snapshot() {
		x.mu.Lock()
		due := !x.over && (now || at.Sub(x.stored) >= storeEvery)
		if due && (x.touched.After(x.stored) || x.moved) {
			c := change{x: x, touched: x.touched}
			if x.moved {
				c.flows = list(x.countsLocked())
			}
			changes = append(changes, c)
		}
		x.mu.Unlock()
	}
	for batch := range slices.Chunk(changes, 200) {
		tctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := s.cfg.DB.Tx(tctx, func(tx *db.Tx) error {
			for _, c := range batch {
				if _, err := tx.ExecContext(tctx, presenceSQL, c.x.row.ID, c.touched.UnixMicro()); err != nil {
					return err
				}
				if c.flows != "" {
					if _, err := tx.ExecContext(tctx, flowsSQL, c.x.row.ID, c.flows); err != nil {
						return err
					}
				}
			}
			return nil
		})
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				s.cfg.Log.Error("presence of network sessions not written; tried again", "err", err)
			}
			return
		}
		for _, c := range batch {
			c.x.mu.Lock()
			c.x.stored = at
			c.x.moved = false
			c.x.mu.Unlock()
		}
	}
}

// reconcile reads the routers and brings peers and open sessions in line.
func (s *Service) reconcile(ctx context.Context) error {
	nodes, rows, err := s.readRouters(ctx)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, n := range nodes {
		r := rows[n.ID]
		if r == nil {
			r = &routerRow{ID: n.ID}
		}
		known[n.ID] = true
		s.upsertPeer(*r, n.Name)
	}
	for _, p := range s.allPeers() {
		if known[p.id] {
			continue
		}
		// Revoked or deleted: it has no tunnel and gets none.
		p.mu.Lock()
		p.deleted, p.row.Pools = true, nil
		idle := len(p.ending)+len(p.want) == 0
		p.mu.Unlock()
		if idle {
			s.dropPeer(p)
		}
	}
	peers := s.allPeers()
	for _, x := range s.snapshot() {
		if x.isOver() || x.live == nil {
			continue
		}
		s.place(x, peers)
	}
	return nil
}

// upsertPeer starts driving a router, or tells it what has changed.
func (s *Service) upsertPeer(r routerRow, name string) {
	s.mu.Lock()
	p := s.peers[r.ID]
	if p != nil {
		s.mu.Unlock()
		p.mu.Lock()
		p.name, p.deleted = name, false
		p.row.Pools, p.row.Sources, p.row.Version, p.row.ChangedAt = r.Pools, r.Sources, r.Version, r.ChangedAt
		p.mu.Unlock()
		return
	}
	if s.run == nil {
		s.mu.Unlock()
		return
	}
	p = newPeer(s, r, name)
	var ctx context.Context
	ctx, p.stop = context.WithCancel(s.run)
	s.peers[r.ID] = p
	for _, x := range s.sessions {
		x.mu.Lock()
		if x.holders[p.id] { // from an earlier run
			p.sent[x.row.ID] = true
			if !x.over {
				p.want[x.row.ID] = x.wire()
			} else {
				p.ending[x.row.ID] = &removal{since: s.cfg.Now()}
				p.gone[x.row.ID] = true
			}
		}
		x.mu.Unlock()
	}
	s.work.Add(3)
	s.mu.Unlock()
	go func() { defer s.work.Done(); p.run(ctx) }()
	go func() { defer s.work.Done(); p.leases(ctx) }()
	go func() { defer s.work.Done(); p.counters(ctx) }()
}

func (s *Service) dropPeer(p *peer) {
	s.mu.Lock()
	delete(s.peers, p.id)
	s.mu.Unlock()
	p.stop()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := s.cfg.DB.ExecContext(ctx, dropSettings, p.id); err != nil {
		s.cfg.Log.Error("settings of a deleted router not removed", "node", p.label(), "err", err)
	}
}

// place has exactly the routers hold an open session that forward its
// client's traffic; without any it ends.
func (s *Service) place(x *session, peers []*peer) {
	x.mu.Lock()
	open := x.state == Open
	x.mu.Unlock()
	if !open {
		return
	}
	n := 0
	x.mu.Lock()
	before := len(x.holders)
	x.mu.Unlock()
	for _, p := range peers {
		p.mu.Lock()
		serves := p.row.serves(x.row.Client) && !p.deleted
		p.mu.Unlock()
		x.mu.Lock()
		holds := x.holders[p.id]
		if serves && !x.over {
			x.holders[p.id] = true
		}
		x.mu.Unlock()
		switch {
		case serves:
			n++
			p.hold(x.wire())
		case holds:
			p.remove(x.row.ID)
		}
	}
	x.mu.Lock()
	more := len(x.holders) > before
	routers := list(slices.Sorted(maps.Keys(x.holders)))
	x.mu.Unlock()
	if more {
		// A later run must know who may hold it.
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := s.cfg.DB.ExecContext(ctx, stateSQL, x.row.ID, string(Open), routers); err != nil {
			s.cfg.Log.Error("routers of a network session not written", "session", x.row.ID, "err", err)
		}
	}
	if n == 0 {
		x.live.End(conn.EndedByAccess, fmt.Sprintf("The session was closed because no router forwards traffic of %s any more.", x.row.Client))
	}
}

// keepType stores what a router says it is.
func (s *Service) keepType(ctx context.Context, r *routerRow) {
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := ensureSettings(ctx, tx, r.ID, s.cfg.Now()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, setTypeSQL, r.ID, r.Type, r.Leased); err != nil {
			return err
		}
		return tx.Notify(ctx, topicRouter, r.ID)
	})
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Error("type of a router not written", "node", r.ID, "err", err)
	}
}

// ensureSettings gives a router that nobody said anything about an empty row.
func ensureSettings(ctx context.Context, tx *db.Tx, id string, now time.Time) error {
	_, err := tx.ExecContext(ctx, newSettings+` on conflict (edge_id) do nothing`, id, "[]", "[]", false, now.UnixMicro(), int64(1))
	if err != nil {
		return fmt.Errorf("write settings of router %s: %w", id, err)
	}
	return nil
}

// countersEvery is how often routers are asked for counters, countersMost how
// many sessions in one question.
const (
	countersEvery = 2 * time.Second
	countersMost  = 500
)

// counters asks for what sessions have moved, until ctx ends.
func (p *peer) counters(ctx context.Context) {
	t := time.NewTicker(countersEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		p.mu.Lock()
		var ids []string
		if p.synced != 0 {
			ids = slices.Sorted(maps.Keys(p.want))
		}
		p.mu.Unlock()
		for part := range slices.Chunk(ids, countersMost) {
			var got wire.RouterCounters
			if err := p.ask(ctx, leaseTimeout, "POST", wire.PathRouterCounters, wire.RouterCountersAsk{Sessions: part}, &got); err != nil {
				if ctx.Err() == nil {
					p.s.cfg.Log.Debug("counters of a router not read", "node", p.label(), "err", err)
				}
				break
			}
			for i := range got.Sessions {
				p.s.counted(p.id, &got.Sessions[i])
			}
		}
		for _, id := range ids {
			p.s.show(id)
		}
	}
}

// showAtLeast is how often consoles hear of a session on which nothing moves.
const showAtLeast = 10 * time.Second

// show tells open consoles a session's counters, if they changed or nothing
// was told for a while.
func (s *Service) show(id string) {
	x := s.find(id)
	if x == nil || x.live == nil {
		return
	}
	now := s.cfg.Now()
	x.mu.Lock()
	all := x.totalLocked()
	quiet := now.Sub(x.shown) < showAtLeast && !x.moved
	if !quiet {
		x.shown = now
	}
	presence := x.touched
	x.mu.Unlock()
	if quiet {
		return
	}
	in, out := x.live.Bytes()
	data, err := json.Marshal(map[string]any{
		"bytes_out": in, "bytes_in": out, "packets_out": all.PacketsOut, "packets_in": all.PacketsIn, "presence_at": presence,
	})
	if err != nil {
		return // numbers and a time
	}
	s.cfg.Publish(api.Event{Topic: topicSession, ID: id, Data: data, UserID: x.row.UserID})
}

// prefixText writes networks with commas.
func prefixText(ps []netip.Prefix) string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = p.String()
	}
	return strings.Join(out, ", ")
}

// changedRouter is the audit event of a change of a router's settings.
func changedRouter(by audit.Actor, id, name string, old, now *routerRow) audit.Event {
	f := map[string]string{"pools": prefixText(now.Pools), "sources": prefixText(now.Sources)}
	if was := prefixText(old.Pools); was != f["pools"] {
		f["old_pools"] = was
	}
	if was := prefixText(old.Sources); was != f["sources"] {
		f["old_sources"] = was
	}
	return audit.Event{Type: audit.NetworkRouterChanged, Outcome: audit.OK, Actor: by, Object: audit.Object{Kind: "edge", ID: id, Name: name}, Fields: f}
}
