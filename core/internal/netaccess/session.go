package netaccess

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/shared/netrule"
	"caponier/shared/wire"
)

const presenceText = "The session was closed because nothing was heard of you any more: keep the console or caponier network open running."

// topicSession: a session was opened, is open or has ended.
const topicSession = "network"

// topicRouter: what an administrator said about a router has changed.
const topicRouter = "router"

// session is one network session as long as it counts.
type session struct {
	s *Service
	// live is nil when the connection was over before this run began.
	live *conn.Live
	// row is as stored, without what changes: see below.
	row row

	// mu guards everything below. No other lock is taken with it held.
	mu      sync.Mutex
	state   State
	over    bool // its rules are being removed
	holders map[string]bool
	failure error // why it never came to be open
	relay   *relay
	counts  map[string]*tally // by router
	own     map[string]bool   // its destinations as counts name them; nil until one came
	told    wire.RouterCount  // what the connection has counted
	moved   bool              // flows differ from the row
	written bool              // the row says ended
	touched time.Time         // presence
	stored  time.Time         // presence as in the row
	shown   time.Time         // when consoles were last told
}

// tally is one router's counters of a session.
type tally struct {
	// base is what was counted before the router began anew.
	base, last wire.RouterCount
}

func newSession(s *Service, r row, l *conn.Live) *session {
	return &session{
		s: s, live: l, row: r, state: r.State, holders: map[string]bool{}, counts: map[string]*tally{},
		touched: r.PresenceAt, stored: r.PresenceAt,
	}
}

// wire is the session as routers are told.
func (x *session) wire() wire.RouterSession {
	return wire.RouterSession{ID: x.row.ID, Target: x.row.TargetName, Rules: x.row.Rules, Provider: x.row.Provider,
		Static: x.row.Static, User: x.row.UserName}
}

func (x *session) isOver() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.over
}

// tell lets open consoles read a session again, its owner's too.
func (s *Service) tell(ctx context.Context, tx *db.Tx, id, owner string) error {
	var group string
	if err := tx.QueryRowContext(ctx, groupSQL, id).Scan(&group); err != nil {
		return fmt.Errorf("read access group of %s: %w", id, db.Classify(err))
	}
	if err := api.Notify(ctx, tx, topicSession, id, group); err != nil {
		return err
	}
	return tx.Notify(ctx, topicSession+api.OwnSuffix, owner)
}

// watch has the end of the connection end the session.
func (s *Service) watch(x *session) {
	if x.live == nil || x.isOver() {
		s.finish(x, nil)
		return
	}
	s.mu.Lock()
	running := s.run != nil
	if running {
		s.work.Add(1)
	}
	ctx := s.run
	s.mu.Unlock()
	if !running {
		return
	}
	go func() {
		defer s.work.Done()
		select {
		case <-x.live.Context().Done():
			s.finish(x, nil)
		case <-ctx.Done():
		}
	}()
}

// finish takes a session's rules away everywhere. It may be called again.
// failure says why it never came to be open.
func (s *Service) finish(x *session, failure error) {
	x.mu.Lock()
	x.over = true
	if x.state != Ended {
		x.state = Ending
	}
	if x.failure == nil {
		x.failure = failure
	}
	holders := slices.Sorted(maps.Keys(x.holders))
	r := x.relay
	x.relay = nil
	x.mu.Unlock()
	if r != nil {
		r.close()
	}
	for _, id := range holders {
		if p := s.peer(id); p != nil {
			p.remove(x.row.ID)
		}
	}
	s.settleEnd(x)
}

// released notes that a router holds a session no more.
func (s *Service) released(id, router string) {
	x := s.find(id)
	if x == nil {
		return
	}
	x.mu.Lock()
	delete(x.holders, router)
	x.mu.Unlock()
	s.settleEnd(x)
}

// settleEnd ends a session that is over when no router may hold it.
func (s *Service) settleEnd(x *session) {
	x.mu.Lock()
	done := x.over && len(x.holders) == 0
	x.mu.Unlock()
	if done {
		wake(s.again)
	}
}

// dropped deals with a router that does not hold an open session any more and
// cannot be made to.
func (s *Service) dropped(id string, p *peer, why error) {
	x := s.find(id)
	if x == nil {
		return
	}
	x.mu.Lock()
	delete(x.holders, p.id)
	left := len(x.holders)
	x.mu.Unlock()
	name := p.label()
	s.cfg.Log.Error("router gave up a session", "node", name, "session", id, "err", why)
	s.note(audit.Event{Type: audit.NetworkRouterFailed, Outcome: audit.Failed, Actor: audit.System, Connection: id,
		Object: audit.Object{Kind: "edge", ID: p.id, Name: name}, Fields: map[string]string{"text": conn.PublicText(why)}})
	if left == 0 && x.live != nil {
		x.live.End(conn.EndedByRoute, "The session was closed because router "+name+" cannot hold its rules any more.")
	}
}

// alertRemoval tells that rules may still be in force somewhere.
func (s *Service) alertRemoval(ctx context.Context, id, router, name string, r removal) {
	s.cfg.Log.Error("rules of a closed network session are not confirmed gone", "node", name, "session", id, "since", r.since, "err", r.text)
	s.note(audit.Event{Type: audit.NetworkRemovalDelayed, Outcome: audit.Failed, Actor: audit.System, Connection: id,
		Object: audit.Object{Kind: "edge", ID: router, Name: name}, Fields: map[string]string{"since": r.since.UTC().Format(time.RFC3339), "text": r.text}})
	if x := s.find(id); x != nil {
		x.mu.Lock()
		routers := list(slices.Sorted(maps.Keys(x.holders)))
		x.mu.Unlock()
		if _, err := s.cfg.DB.ExecContext(ctx, stateSQL, id, string(Ending), routers); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("state of a network session not written", "session", id, "err", err)
		}
	}
}

// note writes an audit event that belongs to no other change.
func (s *Service) note(e audit.Event) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return s.cfg.Audit.Append(ctx, tx, e) }); err != nil {
		s.cfg.Log.Error("audit event of network access not written", "type", string(e.Type), "err", err)
	}
}

// counted takes a router's counters of a session.
func (s *Service) counted(router string, c *wire.RouterCount) {
	x := s.find(c.ID)
	if x == nil {
		return
	}
	x.mu.Lock()
	if !x.believesLocked(router) {
		x.mu.Unlock()
		return
	}
	x.ownLocked(c)
	t := x.counts[router]
	if t == nil {
		t = &tally{}
		x.counts[router] = t
	}
	if c.BytesOut < t.last.BytesOut || c.BytesIn < t.last.BytesIn || c.PacketsOut < t.last.PacketsOut || c.PacketsIn < t.last.PacketsIn {
		t.base = sum(t.base, t.last) // the router began anew
	}
	t.last = *c
	all := x.totalLocked()
	in, out := all.BytesOut-x.told.BytesOut, all.BytesIn-x.told.BytesIn
	if all.BytesOut < x.told.BytesOut {
		in = 0 // the connection knew more than was stored before a restart
	}
	if all.BytesIn < x.told.BytesIn {
		out = 0
	}
	if in > 0 || out > 0 {
		x.told.BytesOut, x.told.BytesIn, x.moved = max(all.BytesOut, x.told.BytesOut), max(all.BytesIn, x.told.BytesIn), true
	}
	x.mu.Unlock()
	if x.live == nil {
		return
	}
	if in > 0 {
		x.live.In(int(min(in, math.MaxInt)))
	}
	if out > 0 {
		x.live.Out(int(min(out, math.MaxInt)))
	}
}

// believesLocked reports whether a router may tell of x: no other one decides
// what its record says. x.mu is held.
func (x *session) believesLocked(router string) bool {
	return x.holders[router] || x.counts[router] != nil || slices.Contains(x.row.Routers, router)
}

// ownLocked leaves of a count the destinations that x has, each at most once,
// so that a router cannot fill memory and the database with others; x.mu is
// held.
func (x *session) ownLocked(c *wire.RouterCount) {
	if x.own == nil && len(c.Destinations) > 0 {
		x.own = make(map[string]bool, len(x.row.Rules.Destinations))
		for i := range x.row.Rules.Destinations {
			x.own[x.row.Rules.Destinations[i].String()] = true
		}
	}
	c.Destinations = c.Destinations[:min(len(c.Destinations), len(x.own))]
	c.Destinations = slices.DeleteFunc(c.Destinations, func(d wire.RouterDestCount) bool { return !x.own[d.Destination] })
}

// resume takes up what an earlier run stored.
func (x *session) resume() {
	for _, id := range x.row.Routers {
		x.holders[id] = true
	}
	for _, f := range x.row.Flows {
		t := x.counts[f.Router]
		if t == nil {
			t = &tally{}
			x.counts[f.Router] = t
		}
		c := &t.last
		if f.Base {
			c = &t.base
		}
		if f.Destination == "" {
			c.BytesOut, c.BytesIn, c.PacketsOut, c.PacketsIn = f.BytesOut, f.BytesIn, f.PacketsOut, f.PacketsIn
			continue
		}
		c.Destinations = append(c.Destinations, wire.RouterDestCount{Destination: f.Destination,
			BytesOut: f.BytesOut, BytesIn: f.BytesIn, PacketsOut: f.PacketsOut, PacketsIn: f.PacketsIn})
	}
	if x.live != nil {
		in, out := x.live.Bytes()
		x.told.BytesOut, x.told.BytesIn = uint64(in), uint64(out)
	}
}

// totalLocked adds up all routers; x.mu is held.
func (x *session) totalLocked() wire.RouterCount {
	var all wire.RouterCount
	for _, t := range x.counts {
		all = sum(sum(all, t.base), t.last)
	}
	return all
}

// sum adds two counts, destinations by name.
func sum(a, b wire.RouterCount) wire.RouterCount {
	out := wire.RouterCount{ID: b.ID, BytesOut: a.BytesOut + b.BytesOut, BytesIn: a.BytesIn + b.BytesIn,
		PacketsOut: a.PacketsOut + b.PacketsOut, PacketsIn: a.PacketsIn + b.PacketsIn}
	if len(a.Destinations) == 0 {
		out.Destinations = b.Destinations
		return out
	}
	at := make(map[string]int, len(a.Destinations))
	out.Destinations = slices.Clone(a.Destinations)
	for i, d := range out.Destinations {
		at[d.Destination] = i
	}
	for _, d := range b.Destinations {
		i, ok := at[d.Destination]
		if !ok {
			at[d.Destination] = len(out.Destinations)
			out.Destinations = append(out.Destinations, d)
			continue
		}
		o := &out.Destinations[i]
		o.BytesOut += d.BytesOut
		o.BytesIn += d.BytesIn
		o.PacketsOut += d.PacketsOut
		o.PacketsIn += d.PacketsIn
	}
	return out
}

// countsLocked is what every router counted, for the row; x.mu is held.
func (x *session) countsLocked() []routerFlow {
	var out []routerFlow
	put := func(router string, base bool, c *wire.RouterCount) {
		if c.PacketsOut == 0 && c.PacketsIn == 0 && c.BytesOut == 0 && c.BytesIn == 0 {
			return
		}
		out = append(out, routerFlow{router, base, Flow{BytesOut: c.BytesOut, BytesIn: c.BytesIn, PacketsOut: c.PacketsOut, PacketsIn: c.PacketsIn}})
		for _, d := range c.Destinations {
			if d.PacketsOut != 0 || d.PacketsIn != 0 || d.BytesOut != 0 || d.BytesIn != 0 {
				out = append(out, routerFlow{router, base, Flow(d)})
			}
		}
	}
	for _, router := range slices.Sorted(maps.Keys(x.counts)) {
		put(router, true, &x.counts[router].base)
		put(router, false, &x.counts[router].last)
	}
	return out
}

// flowLog is what a session moved per destination, over all routers, with
// destinations as the administrator wrote them.
func (r *row) flowLog(counts []routerFlow) []Flow {
	names := r.labels()
	at := map[string]int{}
	out := []Flow{}
	for _, f := range counts {
		if f.Destination == "" {
			continue
		}
		name := f.Destination
		if n, ok := names[name]; ok {
			name = n
		}
		i, ok := at[name]
		if !ok {
			i = len(out)
			at[name] = i
			out = append(out, Flow{Destination: name})
		}
		out[i].BytesOut += f.BytesOut
		out[i].BytesIn += f.BytesIn
		out[i].PacketsOut += f.PacketsOut
		out[i].PacketsIn += f.PacketsIn
	}
	return out
}

// labels translates destinations that core rewrote to lead to itself into
// what the administrator wrote.
func (r *row) labels() map[string]string {
	if len(r.Relays) == 0 {
		return nil
	}
	out := map[string]string{}
	for i := range r.Rules.Destinations {
		d := &r.Rules.Destinations[i]
		for _, p := range r.Relays {
			if d.DNAT != nil && d.DNAT.Port == p.Port && d.Proto == p.proto() {
				text := d.Selector.String()
				if d.Addrs.First.String() != p.host() || d.Ports != (netrule.Ports{First: p.port(), Last: p.port()}) {
					text += " -> " + p.Dest
				}
				out[d.String()] = text
			}
		}
	}
	return out
}

// conclude writes down that a session has ended and forgets it. It is called
// until it succeeds.
func (s *Service) conclude(ctx context.Context, x *session) error {
	x.mu.Lock()
	ready := x.over && !x.written
	counts := x.countsLocked()
	failure := x.failure
	x.mu.Unlock()
	if !ready {
		return nil
	}
	reason, text := conn.EndReason(""), ""
	if x.live != nil {
		if reason, text = x.live.Ended(); reason == "" {
			reason, text = conn.EndedByError, conn.PublicText(failure)
		}
	}
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, endSQL, x.row.ID, s.cfg.Now().UnixMicro(), list(counts), string(reason), text); err != nil {
			return err
		}
		return s.tell(ctx, tx, x.row.ID, x.row.UserID)
	})
	if err != nil {
		return fmt.Errorf("end network session %s: %w", x.row.ID, err)
	}
	x.mu.Lock()
	x.written, x.state = true, Ended
	x.mu.Unlock()
	s.mu.Lock()
	delete(s.sessions, x.row.ID)
	s.mu.Unlock()
	if x.live != nil {
		flows := x.row.flowLog(counts)
		for _, f := range flows[:min(len(flows), maxFlowEvents)] {
			x.live.Channel("network-flow", fmt.Sprintf("%s: %d bytes (%d packets) out, %d bytes (%d packets) in",
				f.Destination, f.BytesOut, f.PacketsOut, f.BytesIn, f.PacketsIn))
		}
		x.live.Close(conn.EndedByError, failure)
	}
	return nil
}

// maxFlowEvents bounds the destinations of one session that are noted in its
// connection one by one; the flow log has all of them.
const maxFlowEvents = 200

// brief is what a session matches in one line.
func brief(ds []netrule.Destination) string {
	lines := make([]string, min(len(ds), 5))
	for i := range lines {
		lines[i] = ds[i].String()
	}
	s := strings.Join(lines, "; ")
	if more := len(ds) - len(lines); more > 0 {
		s += fmt.Sprintf("; and %d more", more)
	}
	return s
}
