// Package webaccess opens web sessions: it pairs a carrier, which runs a
// browser for one user alone, with a webproxy, which lets that browser out by
// the target's rules and signs it in with a credential its user never sees
// (DESIGN §6).
//
// It decides, records, chooses both nodes, registers the session with them,
// keeps what they enforce equal to what was decided (rules, limits, locks), and
// brings the picture to the user's browser and to watchers. What nodes ask of
// core is answered here too: certificates for what browsers trust, one use of a
// credential at a time, records for the recording, connections through the
// sites of targets.
//
// Invariants: a session that must be recorded has its recording before its
// browser opens a page, and ends when that cannot be kept. A credential is
// handed out only to the session's own webproxy, for an injection of the
// target's recipe, and each use is audited with it. A restart of core takes
// live sessions over; nodes outlast core by their lease and no longer. What a
// node has and core does not know is ended.
package webaccess

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/group"
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
	"caponier/core/internal/target"
	"caponier/core/internal/vault"
	"caponier/shared/tunnel"
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
	Account(ctx context.Context, q db.Querier, targetID, name string) (*target.Account, error)
}

// Fleet reaches nodes and, through extenders, sites; *fleet.Fleet is the real one.
type Fleet interface {
	Online(kind wire.NodeKind) []fleet.Online
	Nodes(ctx context.Context, q db.Querier, kind wire.NodeKind) ([]fleet.Node, error)
	Changed() <-chan struct{}
	Ask(ctx context.Context, nodeID, method, path string, in, out any) error
	OpenStream(ctx context.Context, nodeID string, p wire.Preface) (tunnel.Stream, error)
	Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error)
}

// Secrets opens stored secrets; *vault.Vault is the real one.
type Secrets interface {
	Seal(p vault.Place, plaintext []byte) ([]byte, error)
	Open(p vault.Place, sealed []byte) ([]byte, error)
	Get(ctx context.Context, q db.Querier, id string) (*vault.Secret, error)
	RevealIn(ctx context.Context, tx *db.Tx, secretID, purpose, connectionID string) ([]byte, error)
}

// Recordings makes recordings; see FromStore.
type Recordings interface {
	Create(ctx context.Context, m recording.Meta) (r Recording, id string, err error)
	// Resume goes on with one that an earlier run of this core left open.
	Resume(ctx context.Context, id string) (Recording, error)
}

// Recording is one being written; *recording.WebWriter is the real one.
type Recording interface {
	Next(source string) uint64
	Append(source string, skew time.Duration, recs []wire.WebRecord) error
	Event(kind string, fields map[string]string) error
	File(ctx context.Context, d recording.Direction, path string) (*recording.FileWriter, error)
	Close() error
	CloseIncomplete(why string) error
}

// FromStore makes recordings in a store.
func FromStore(s *recording.Store) Recordings { return store{s} }

type store struct{ *recording.Store }

// Create implements Recordings.
func (s store) Create(ctx context.Context, m recording.Meta) (Recording, string, error) {
	w, err := s.CreateWeb(ctx, m)
	if err != nil {
		return nil, "", err
	}
	return w, w.ID, nil
}

// Resume implements Recordings.
func (s store) Resume(ctx context.Context, id string) (Recording, error) {
	w, err := s.ResumeWeb(ctx, id)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Config is what a Service needs. All but Publish and Metrics are required.
type Config struct {
	DB         *db.DB
	Audit      conn.Auditor
	Policy     Decider
	Conns      *conn.Manager
	Targets    Targets
	Fleet      Fleet
	Vault      Secrets
	Recordings Recordings
	// Auth checks again, while a socket is open, that its login is good.
	Auth api.Authenticator
	// Origins are core's own ("https://pam.example.net"); the one a request
	// was sent to always counts.
	Origins []string
	// Limits are those of connections; of them Idle and MaxDuration are used
	// where neither target nor grant says anything, Lease is how long sessions
	// outlast core. Asked at each use.
	Limits func() conn.Limits
	// Anchors are the certificates that the targets of an access group are
	// believed by, besides their own and the system's.
	Anchors func(ctx context.Context, group string) ([]*x509.Certificate, error)
	// ScanURL is the ICAP service for targets that name none; empty: none.
	ScanURL func() string
	// ApprovalWait is how long requests wait for a second person. Asked at each use.
	ApprovalWait func() time.Duration
	// Person reports whether a user is one, not an API client.
	Person func(ctx context.Context, userID string) (bool, error)
	// Names are what webproxies may issue certificates for: names with all
	// below, and subnets; none: everything. May be nil.
	Names func() []string
	// PlainURL is where Public is served without TLS; empty: nowhere. May be nil.
	PlainURL func() string
	// Publish tells open consoles what changes no row; may be nil.
	Publish func(api.Event)
	// Tick is how often times are checked; 0 = 1 s.
	Tick    time.Duration
	Log     *slog.Logger
	Now     func() time.Time
	Metrics prometheus.Registerer
}

// Service is the room's entry. Safe for concurrent use.
type Service struct {
	cfg       Config
	metrics   *metrics
	authority *authority
	proposals *proposals
	fail      func(w http.ResponseWriter, r *http.Request, err error)

	// restored is closed when the sessions of an earlier run are known.
	restored chan struct{}
	work     sync.WaitGroup // sessions, sockets, streams and reconciliations
	// hard ends what work there still is when Run returns.
	hard    context.Context
	endHard context.CancelFunc

	// mu guards everything below. A session's lock may be taken with it held,
	// never the other way round.
	mu       sync.Mutex
	sessions map[string]*session
	run      context.Context // of Run, nil before and after
	left     bool
	nodes    map[string]*nodeState // carriers and webproxies, by ID
	sockets  int
}

// New makes a Service and, on first use, the authority browsers trust. Call
// Restore, then Run.
func New(ctx context.Context, c Config) (*Service, error) {
	switch {
	case c.DB == nil, c.Audit == nil, c.Policy == nil, c.Conns == nil, c.Targets == nil, c.Fleet == nil, c.Vault == nil:
		return nil, errors.New("web access: DB, Audit, Policy, Conns, Targets, Fleet and Vault are required")
	case c.Recordings == nil, c.Auth == nil, c.Limits == nil, c.Anchors == nil, c.ScanURL == nil, c.Log == nil, c.Now == nil:
		return nil, errors.New("web access: Recordings, Auth, Limits, Anchors, ScanURL, Log and Now are required")
	case c.ApprovalWait == nil, c.Person == nil:
		return nil, errors.New("web access: ApprovalWait and Person are required")
	}
	if c.Publish == nil {
		c.Publish = func(api.Event) {}
	}
	if c.Tick == 0 {
		c.Tick = time.Second
	}
	s := &Service{cfg: c, sessions: map[string]*session{}, nodes: map[string]*nodeState{}, restored: make(chan struct{})}
	s.hard, s.endHard = context.WithCancel(context.Background())
	s.proposals = newProposals(c)
	var err error
	if s.authority, err = openAuthority(ctx, c); err != nil {
		return nil, fmt.Errorf("web access: %w", err)
	}
	s.metrics = newMetrics(c.Metrics, s)
	return s, nil
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

// knows reports whether the sessions of an earlier run are known.
func (s *Service) knows() bool {
	select {
	case <-s.restored:
		return true
	default:
		return false
	}
}

// restoreTime is how long a node waits whose tunnel is back before the sessions.
const restoreTime = 5 * time.Second

// awaited is find, for what a node asks about a session: after a restart its
// tunnel may be back a moment before the sessions are.
func (s *Service) awaited(ctx context.Context, id string) *session {
	if !s.knows() {
		t := time.NewTimer(restoreTime)
		defer t.Stop()
		select {
		case <-s.restored:
		case <-ctx.Done():
		case <-t.C:
		}
	}
	return s.find(id)
}

// begin counts work in; it reports false before and after Run.
func (s *Service) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || s.left {
		return false
	}
	s.work.Add(1)
	return true
}

// Restore takes over the sessions of this core's earlier run. Call it before
// the connection manager runs, which would take them for lost.
func (s *Service) Restore(ctx context.Context) error {
	rows, err := db.Collect(ctx, s.cfg.DB, scanRow, unendedSQL, s.cfg.Conns.CoreID())
	if err != nil {
		return fmt.Errorf("restore web sessions: %w", err)
	}
	kept := 0
	for _, r := range rows {
		ok, err := s.restore(ctx, r)
		if err != nil {
			return fmt.Errorf("restore web session %s: %w", r.ID, err)
		}
		if ok {
			kept++
		}
	}
	close(s.restored)
	if len(rows) > 0 {
		s.cfg.Log.Info("web sessions taken over from an earlier run", "kept", kept, "ended", len(rows)-kept)
	}
	return nil
}

// restore takes one over, or notes its end.
func (s *Service) restore(ctx context.Context, r *row) (bool, error) {
	live, err := s.cfg.Conns.Adopt(ctx, r.ID)
	if errors.Is(err, db.ErrNotFound) {
		return false, s.writeEnd(ctx, r, conn.EndedByCrash, "The server stopped.")
	}
	if err != nil {
		return false, err
	}
	x := newSession(s, *r, live)
	if x.uses, err = readUses(ctx, s.cfg.DB, r.ID); err != nil {
		return false, err
	}
	fail := func(reason conn.EndReason, text string) {
		live.End(reason, text)
	}
	t, err := s.cfg.Targets.Get(ctx, s.cfg.DB, r.TargetID)
	switch {
	case err == nil:
		if err := x.setTarget(ctx, t); err != nil {
			return false, err
		}
	case errors.Is(err, db.ErrNotFound):
		fail(conn.EndedByAccess, "The target was removed.")
	default:
		return false, err
	}
	if key, err := s.cfg.Vault.Open(keyPlace(r.ID), r.SealedKey); err == nil {
		x.key = string(key)
	} else {
		s.cfg.Log.Error("key of a web session not opened", "session", r.ID, "err", err)
		fail(conn.EndedByCrash, "The server stopped and could not take the session over.")
	}
	if r.RecordingID != "" {
		w, err := s.cfg.Recordings.Resume(ctx, r.RecordingID)
		if err != nil {
			s.cfg.Log.Error("recording of a web session not resumed", "session", r.ID, "err", err)
			fail(conn.EndedByError, "The session was closed because its recording could not go on after the server restarted.")
		} else {
			x.rec = w // nobody else has it yet
		}
	}
	if err := x.restoreHeld(ctx); err != nil {
		return false, err
	}
	if r.State != Open {
		fail(conn.EndedByCrash, "The server stopped while the session was being opened.")
	}
	s.mu.Lock()
	s.sessions[r.ID] = x
	s.mu.Unlock()
	return live.Context().Err() == nil, nil
}

// Leave gives all sessions up without ending them, for the next run of this
// core to take over. Nothing can be opened any more. Call it before the
// connection manager ends what is live.
func (s *Service) Leave() {
	s.mu.Lock()
	s.left = true
	s.mu.Unlock()
	for _, x := range s.snapshot() {
		if x.live.Context().Err() == nil {
			x.live.Leave()
		}
	}
}

// Run drives sessions until ctx ends. They stay in force then as long as the
// nodes' leases last.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	s.run = ctx
	s.mu.Unlock()
	for _, x := range s.snapshot() {
		s.start(ctx, x)
	}
	defer func() {
		s.mu.Lock()
		s.run = nil
		s.left = true
		s.mu.Unlock()
		s.endHard()
		s.work.Wait()
		s.proposals.flush(context.WithoutCancel(ctx))
	}()
	notes := s.cfg.DB.Subscribe(ctx)
	t := time.NewTicker(s.cfg.Tick)
	defer t.Stop()
	checked := s.cfg.Now()
	changed := s.cfg.Fleet.Changed()
	s.look(ctx)
	s.clearStranded(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case n, ok := <-notes:
			if !ok {
				return nil
			}
			s.noted(n)
		case <-changed:
			changed = s.cfg.Fleet.Changed()
			s.look(ctx)
			for _, x := range s.snapshot() {
				x.poke()
			}
		case <-t.C:
			s.look(ctx)
			s.proposals.flush(ctx)
			s.tellTimelines(ctx)
			if now := s.cfg.Now(); now.Sub(checked) >= time.Minute {
				checked = now
				s.again()
				s.authority.maintain(ctx)
				s.clearStranded(ctx)
			}
		}
	}
}

// start drives a session on a goroutine of its own.
func (s *Service) start(ctx context.Context, x *session) {
	s.work.Go(func() { x.drive(ctx) })
}

// noted acts on a change made anywhere.
func (s *Service) noted(n db.Note) {
	switch n.Topic {
	case topicApprovals:
		s.approvalNoted(n.ID)
	case db.TopicResync:
		s.approvalNoted("")
	}
	for _, x := range s.snapshot() {
		switch n.Topic {
		case target.TopicTarget:
			if x.row.TargetID == n.ID {
				x.targetChanged()
			}
		case db.TopicResync, group.Topic:
			x.targetChanged()
		case "setting", "role", "grant", "user":
			x.poke()
		}
	}
	if n.Topic == "edge" {
		s.authority.forgetLists()
	}
}

// tell lets open consoles read a session again, its owner's too.
func tell(ctx context.Context, tx *db.Tx, id, owner string) error {
	var g string
	if err := tx.QueryRowContext(ctx, groupSQL, id).Scan(&g); err != nil {
		return fmt.Errorf("read access group of %s: %w", id, db.Classify(err))
	}
	return errors.Join(api.Notify(ctx, tx, topicSession, id, g), tx.Notify(ctx, topicSession+api.OwnSuffix, owner))
}

// tellTimelines lets open consoles read on in the recordings that have got
// events since the last time: one note each, however many those are.
func (s *Service) tellTimelines(ctx context.Context) {
	var more []*session
	var recordings []string
	for _, x := range s.snapshot() {
		x.mu.Lock()
		if x.happened && x.recordingID != "" {
			more, recordings = append(more, x), append(recordings, x.recordingID)
		}
		x.happened = false
		x.mu.Unlock()
	}
	if len(more) == 0 {
		return
	}
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		for i, x := range more {
			var g string
			if err := tx.QueryRowContext(ctx, groupSQL, x.row.ID).Scan(&g); err != nil {
				return fmt.Errorf("read access group of %s: %w", x.row.ID, db.Classify(err))
			}
			if err := errors.Join(api.Notify(ctx, tx, topicTimeline, recordings[i], g), tx.Notify(ctx, topicTimeline+api.OwnSuffix, x.row.UserID)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("readers of timelines are not told of more", "err", err)
	}
}

// topicTimeline: the recording of a live session, which the ID is of, has got
// more events.
const topicTimeline = "timeline"

// topicSession: a session was opened, changed or has ended.
const topicSession = "web"

// actor is who acts by ctx.
func actor(ctx context.Context) audit.Actor {
	if p := api.PrincipalFrom(ctx); p != nil {
		return audit.By(p)
	}
	return audit.System
}
