// Package netaccess opens network sessions: for as long as one lasts, one
// client address reaches the destinations of one network target through the
// routers that forward that client's traffic (FEATURES N1–N22).
//
// It makes the four checks in their order (pool, name, right, overlap), the
// last one together with the record in one serialised transaction; tells the
// routers what to enforce; renews their lease while every session on them is
// justified; and ends sessions: by the user, by an administrator, when the
// right to them is lost, when the user or the routers are not heard of.
//
// Invariants: a session is reported open only when every router that is to
// enforce it has confirmed so. It is reported ended only when every router
// that may hold its rules has confirmed that they are gone, or when the lease
// they depend on has run out for certain. What is desired stands in the
// database: a restart of core takes sessions over without cutting their flows.
package netaccess

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// Decider makes the decision; *policy.Service is the real one.
type Decider interface {
	Decide(ctx context.Context, q policy.Query) (policy.Verdict, error)
}

// Targets finds targets; *target.Service is the real one. Both fail with
// db.ErrNotFound.
type Targets interface {
	Get(ctx context.Context, q db.Querier, id string) (*target.Target, error)
	ByName(ctx context.Context, q db.Querier, name string) (*target.Target, error)
	List(ctx context.Context, q db.Querier, f target.Filter, after string, limit int) ([]target.Target, error)
}

// Fleet reaches routers; *fleet.Fleet is the real one.
type Fleet interface {
	Nodes(ctx context.Context, q db.Querier, kind wire.NodeKind) ([]fleet.Node, error)
	Online(kind wire.NodeKind) []fleet.Online
	Changed() <-chan struct{}
	Ask(ctx context.Context, nodeID, method, path string, in, out any) error
}

// Auditor writes audit events; *audit.Log is the real one.
type Auditor = conn.Auditor

// Config is what a Service needs. All but Relay, Publish and Metrics are required.
type Config struct {
	DB      *db.DB
	Audit   Auditor
	Policy  Decider
	Conns   *conn.Manager
	Targets Targets
	Fleet   Fleet
	// Lease is how long rules hold without news from core, Presence how long a
	// session without news from its user; asked at each use.
	Lease, Presence func() time.Duration
	// Away is how long sessions outlast a database that does not answer.
	Away  func() time.Duration
	Relay Relay
	// Publish tells open consoles what changes no row; may be nil.
	Publish func(api.Event)
	// Tick is how often times are checked; 0 = 1 s.
	Tick    time.Duration
	Log     *slog.Logger
	Now     func() time.Time
	Metrics prometheus.Registerer
}

// maxLease bounds the lease that an earlier run may have granted.
const maxLease = time.Minute

// leaseSlack is added to a lease before it counts as run out: the router's
// clock may be slow, and its answer late.
const leaseSlack = time.Second

// Service is the room's entry. Safe for concurrent use.
type Service struct {
	cfg     Config
	epoch   string
	metrics *metrics
	started time.Time
	// again wakes the periodic work; it holds at most one token.
	again chan struct{}

	work sync.WaitGroup // peers and ends in progress

	// mu guards everything below. A session's lock may be taken with it held,
	// never the other way round; a peer's lock is taken with none held.
	mu       sync.Mutex
	sessions map[string]*session
	peers    map[string]*peer
	run      context.Context // of Run, nil before and after
	beat     time.Time       // when times were last checked
	beaten   chan struct{}   // closed and replaced then
	left     bool

	// cacheMu guards cache.
	cacheMu sync.Mutex
	cache   map[string]*selectors
}

// New makes a Service. Call Restore, then Run.
func New(c Config) (*Service, error) {
	switch {
	case c.DB == nil, c.Audit == nil, c.Policy == nil, c.Conns == nil, c.Targets == nil, c.Fleet == nil:
		return nil, errors.New("network access: DB, Audit, Policy, Conns, Targets and Fleet are required")
	case c.Lease == nil, c.Presence == nil, c.Away == nil, c.Log == nil, c.Now == nil:
		return nil, errors.New("network access: Lease, Presence, Away, Log and Now are required")
	}
	if err := c.Relay.validate(); err != nil {
		return nil, err
	}
	if c.Publish == nil {
		c.Publish = func(api.Event) {}
	}
	if c.Tick == 0 {
		c.Tick = time.Second
	}
	s := &Service{
		cfg: c, epoch: "epo_" + strings.ToLower(rand.Text()), started: c.Now(), again: make(chan struct{}, 1),
		sessions: map[string]*session{}, peers: map[string]*peer{}, cache: map[string]*selectors{}, beaten: make(chan struct{}),
	}
	s.metrics = newMetrics(c.Metrics, s)
	return s, nil
}

// Request asks for a session.
type Request struct {
	Target string
	Client netip.Addr
	Reason string
	// UserAgent is the client program's name, for the record.
	UserAgent string
}

// Refused is an answer against a session.
type Refused = conn.Refused

// Count returns how many sessions are kept here, ending ones included.
func (s *Service) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

func (s *Service) find(id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

func (s *Service) snapshot() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*session, 0, len(s.sessions))
	for _, x := range s.sessions {
		out = append(out, x)
	}
	return out
}

func (s *Service) peer(id string) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers[id]
}

func (s *Service) allPeers() []*peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*peer, 0, len(s.peers))
	for _, p := range s.peers {
		out = append(out, p)
	}
	return out
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// justified reports whether leases may be renewed: times are being checked,
// and access can be, or could be until recently. A core that was stopped and
// goes on must look at the times first.
func (s *Service) justified() bool {
	now := s.cfg.Now()
	s.mu.Lock()
	beat := s.beat
	s.mu.Unlock()
	return s.current(beat, now) && now.Sub(s.cfg.Conns.Contact()) < s.cfg.Away()
}

// beatWait bounds the wait for times to be checked.
const beatWait = 3 * time.Second

// justify is justified, for who comes when this core has just gone on: times
// are checked then before anything else is said.
func (s *Service) justify(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, beatWait)
	defer cancel()
	for {
		s.mu.Lock()
		beat, beaten := s.beat, s.beaten
		s.mu.Unlock()
		if s.current(beat, s.cfg.Now()) {
			return s.justified()
		}
		wake(s.again)
		select {
		case <-beaten:
		case <-ctx.Done():
			return false
		}
	}
}

// current reports whether times were checked recently enough.
func (s *Service) current(beat, now time.Time) bool { return now.Sub(beat) < 3*s.cfg.Tick+time.Second }

// Restore takes over the sessions of this core's earlier run. Call it before
// the connection manager runs, which would take them for lost.
func (s *Service) Restore(ctx context.Context) error {
	rows, err := db.Collect(ctx, s.cfg.DB, func(r db.Scanner) (*row, error) { return scanRow(r) }, unendedSQL, s.cfg.Conns.CoreID())
	if err != nil {
		return fmt.Errorf("restore network sessions: %w", err)
	}
	kept := 0
	for _, r := range rows {
		live, err := s.cfg.Conns.Adopt(ctx, r.ID)
		if err != nil && !errors.Is(err, db.ErrNotFound) {
			return fmt.Errorf("restore network sessions: %w", err)
		}
		x := newSession(s, *r, live)
		x.resume()
		s.mu.Lock()
		s.sessions[r.ID] = x
		s.mu.Unlock()
		switch {
		case live == nil || r.State != Open:
			x.over = true
			if live != nil {
				live.End(conn.EndedByCrash, "The server stopped while the session was being opened or closed.")
			}
		case s.cfg.Now().Sub(r.PresenceAt) >= s.cfg.Presence():
			x.over = true
			live.End(conn.EndedByPresence, presenceText)
		default:
			if err := x.relayAgain(ctx); err != nil {
				x.over = true
				live.End(conn.EndedByError, "The server could not open its ports for the session again.")
				s.cfg.Log.Error("ports of a network session not opened again", "session", r.ID, "err", err)
				continue
			}
			kept++
		}
	}
	if len(rows) > 0 {
		s.cfg.Log.Info("network sessions taken over from an earlier run", "kept", kept, "ended", len(rows)-kept)
	}
	return nil
}

// Leave gives all sessions up without ending them, for the next run of this
// core to take over: a restart cuts nobody's flows. Nothing can be opened any
// more. Call it before the connection manager ends what is live.
func (s *Service) Leave() {
	s.mu.Lock()
	s.left = true
	s.mu.Unlock()
	for _, x := range s.snapshot() {
		if x.live != nil {
			x.live.Leave()
		}
	}
}

// Run drives the routers and ends what is over, until ctx ends. Sessions stay
// in force then as long as the routers' leases last.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	s.run = ctx
	s.beat = s.cfg.Now()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.run = nil
		s.left = true
		s.mu.Unlock()
		s.work.Wait()
		s.closeRelays()
	}()
	// However it ends: the notes end with ctx, too, and may be first.
	defer func() { s.flushPresence(context.WithoutCancel(ctx), true) }()
	notes := s.cfg.DB.Subscribe(ctx)
	if err := s.reconcile(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Log.Error("routers not read; tried again", "err", err)
	}
	for _, x := range s.snapshot() {
		s.watch(x)
	}
	t := time.NewTicker(s.cfg.Tick)
	defer t.Stop()
	due := s.cfg.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n, ok := <-notes:
			if !ok {
				return nil
			}
			s.noted(ctx, n)
		case <-s.again:
			s.check(ctx)
		case <-t.C:
			s.check(ctx)
			if now := s.cfg.Now(); now.Sub(due) >= 30*time.Second {
				due = now
				s.noted(ctx, db.Note{Topic: db.TopicResync})
			}
		}
	}
}

// noted acts on a change made anywhere.
func (s *Service) noted(ctx context.Context, n db.Note) {
	var err error
	switch n.Topic {
	case "edge", topicRouter:
		err = s.reconcile(ctx)
	case target.TopicTarget:
		err = s.recheck(ctx, func(x *session) bool { return x.row.TargetID == n.ID })
	case db.TopicResync:
		if err = s.reconcile(ctx); err == nil {
			err = s.recheck(ctx, func(*session) bool { return true })
		}
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Error("change not acted on; tried again shortly", "topic", n.Topic, "id", n.ID, "err", err)
	}
}

// recheck ends sessions whose target says something else now: what they have
// in force is not what an administrator decided.
func (s *Service) recheck(ctx context.Context, which func(*session) bool) error {
	defs := map[string]string{}
	for _, x := range s.snapshot() {
		if !which(x) || x.isOver() {
			continue
		}
		def, known := defs[x.row.TargetID]
		if !known {
			t, err := s.cfg.Targets.Get(ctx, s.cfg.DB, x.row.TargetID)
			switch {
			case errors.Is(err, db.ErrNotFound):
				continue // access is lost with it, which conn finds
			case err != nil:
				return err
			}
			def = definition(t)
			defs[t.ID] = def
		}
		if def != x.row.Definition {
			x.live.End(conn.EndedByAccess, fmt.Sprintf("The session was closed because what %s opens was changed. Open it again.", x.row.TargetName))
		}
	}
	return nil
}

// definition is a digest of all of a target that a session has in force.
func definition(t *target.Target) string {
	n := t.Network
	if n == nil {
		return ""
	}
	return digest([]any{t.Site, n.Destinations, n.SNAT, n.Exclusive, n.Provider, n.Static})
}
