// Package conn is the connection manager: it knows every live and past
// connection of every kind, keeps the record (FEATURES R1), counts bytes,
// ends connections by decision and re-makes the decision for live ones on
// every change, at window ends and periodically (DESIGN invariant 11).
//
// A connection is written to the database before it may exist. What happens to
// it afterwards is kept in memory and written in batches, never per byte; when
// the database is away the batches wait, bounded, and connections live on for
// the lease, after which they are ended (DESIGN invariant 14).
package conn

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

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

// Topics of notes about connections. The id is the connection's.
const (
	// TopicConnection: a connection began, changed state or ended.
	TopicConnection = "connection"
	// TopicOwn: the same, with the ID of the user whose connection it is, who
	// may see the change without a permission.
	TopicOwn = "connection" + api.OwnSuffix
	// topicTerminate: an order to end a connection is in its row.
	topicTerminate = "connection.terminate"
)

// Spec is what a front door knows when it starts a connection.
type Spec struct {
	Kind                                      string // ssh, sftp, exec, tcp, socks, web, network
	Principal                                 *api.Principal
	TargetID, TargetName, TargetAddress, Site string
	Account                                   string
	Want                                      access.Feature
	Source                                    netip.Addr
	UserAgent                                 string // client version string, cut at 200 bytes
	Reason                                    string
	Decision                                  access.Decision
	// Along writes what the front door keeps about the connection, in the
	// transaction that records it; an error refuses the connection. It may run
	// several times and has no effect outside the transaction. May be nil.
	Along func(ctx context.Context, tx *db.Tx, id string) error
	// Lockable: whoever carries it freezes its input while it is locked.
	Lockable bool
}

// Authorizer re-makes the decision of a live connection; policy is the real one.
type Authorizer interface {
	Reauthorize(ctx context.Context, s Spec) (access.Decision, error)
}

// LoginChecker reports whether the login behind a principal is still good;
// user is the real one. Which of its errors mean "no longer good" and which
// "cannot tell now" is told by Config.LoginGone.
type LoginChecker interface {
	StillValid(ctx context.Context, p *api.Principal) error
}

// Auditor writes audit events; *audit.Log is the real one.
type Auditor interface {
	Append(ctx context.Context, tx *db.Tx, e audit.Event) error
}

// Limits bound what one core and one user may have open. They are asked for at
// each use, so a changed setting holds at once.
type Limits struct {
	// Live is the most live connections on this core.
	Live int
	// PerUser is the most live connections of one user, over all cores.
	PerUser int
	// Reauthorize is how often a decision is made again without any change.
	Reauthorize time.Duration
	// Lease is how long live connections outlast a database that does not answer.
	Lease time.Duration
	// Idle and MaxDuration hold where the grant says nothing; 0 = no limit.
	Idle, MaxDuration time.Duration
	// Retention is how long the row of a past connection is kept; 0 = for ever.
	Retention time.Duration
}

// DefaultLimits are used where Config names none.
func DefaultLimits() Limits {
	return Limits{Live: 5000, PerUser: 200, Reauthorize: 5 * time.Minute, Lease: 5 * time.Minute}
}

// Config is what a Manager needs.
type Config struct {
	DB         *db.DB
	Audit      Auditor
	Authorizer Authorizer
	// Logins re-checks the login behind each connection.
	Logins LoginChecker
	// LoginGone tells the errors of Logins that mean the login has ended from
	// those that mean it could not be checked. Nil:
	// user.ErrEnded and db.ErrNotFound mean ended.
	LoginGone func(error) bool
	// RoleNames names the roles a user holds, for the record. Nil: only the
	// role that decided is kept.
	RoleNames func(ctx context.Context, userID string) ([]string, error)
	// RecordingStatus tells the status of recordings by id, for lists. May be nil.
	RecordingStatus func(ctx context.Context, ids []string) (map[string]string, error)
	// TellWatched says whether users learn who watches them. Nil: they do.
	TellWatched func() bool
	// CoreID is this core's id.
	CoreID string
	// Limits is asked at each use; nil means DefaultLimits.
	Limits func() Limits
	// FlushEvery is how long counters may wait to be written; 0 means 2 s.
	FlushEvery time.Duration
	// MaxPending bounds channel events that wait for the database, over all
	// connections; 0 means 20,000. A connection that would exceed it ends:
	// what cannot be written down may not happen.
	MaxPending int
	Now        func() time.Time
	Log        *slog.Logger
	// Metrics receives the room's metrics; nil means none.
	Metrics prometheus.Registerer
}

// Manager is the room's entry. Safe for concurrent use.
type Manager struct {
	cfg     Config
	metrics *metrics

	// wakeFlush and wakeDecide hold at most one token.
	wakeFlush, wakeDecide chan struct{}
	// watch begins the IDs of this run's watchers: they are not those of an
	// earlier run, which its successor removes.
	watch string
	// overseeing is held (by sending) while locks and watchers are read.
	overseeing chan struct{}

	// mu guards everything below.
	mu       sync.Mutex
	live     map[string]*Live // until the closing record is written
	open     int              // of live: not yet closed
	pending  int              // channel events waiting in all of live
	draining bool
	// contact is when the database last answered.
	contact time.Time
	// idle is closed and replaced whenever open drops to zero.
	idle chan struct{}
}

// New makes a Manager. Call Run to start its work.
func New(c Config) (*Manager, error) {
	switch {
	case c.DB == nil, c.Audit == nil, c.Authorizer == nil, c.Logins == nil, c.Now == nil, c.Log == nil:
		return nil, errors.New("connection manager: DB, Audit, Authorizer, Logins, Now and Log are required")
	case c.CoreID == "":
		return nil, errors.New("connection manager: CoreID is empty")
	}
	if c.Limits == nil {
		c.Limits = DefaultLimits
	}
	if c.LoginGone == nil {
		c.LoginGone = func(err error) bool {
			return errors.Is(err, user.ErrEnded) || errors.Is(err, db.ErrNotFound)
		}
	}
	if c.FlushEvery == 0 {
		c.FlushEvery = 2 * time.Second
	}
	if c.MaxPending == 0 {
		c.MaxPending = 20000
	}
	m := &Manager{
		cfg:        c,
		wakeFlush:  make(chan struct{}, 1),
		wakeDecide: make(chan struct{}, 1),
		overseeing: make(chan struct{}, 1),
		watch:      "wat_" + strings.ToLower(rand.Text()[:10]),
		live:       map[string]*Live{},
		contact:    c.Now(),
		idle:       make(chan struct{}),
	}
	m.metrics = newMetrics(c.Metrics, m)
	return m, nil
}

// ErrDraining refuses a new connection while this core shuts down.
var ErrDraining = errors.New("this core takes no new connections")

// LimitError refuses a new connection because a limit is reached; Public is
// for the user's eyes.
type LimitError struct{ Public string }

// Error implements error.
func (e *LimitError) Error() string { return e.Public }

// Open records a new connection in state requested and registers it as live
// (audited). It fails closed when the record cannot be written, when the
// manager drains, or when a limit is reached. The caller must Close what it opened.
func (m *Manager) Open(ctx context.Context, s Spec) (*Live, error) {
	if s.Principal == nil || !s.Decision.OK() {
		return nil, errors.New("open connection: no principal or no permission")
	}
	s.UserAgent = cut(s.UserAgent, 200)
	s.Reason = cut(s.Reason, 1000)
	var roles []string
	if m.cfg.RoleNames != nil {
		var err error
		if roles, err = m.cfg.RoleNames(ctx, s.Principal.UserID); err != nil {
			return nil, fmt.Errorf("open connection: read roles: %w", err)
		}
	}
	l := newLive(m, s)
	// Registered first: a change that arrives while the row is being written
	// is not missed. The decision is made once more right after (due).
	if err := m.register(l); err != nil {
		return nil, err
	}
	limit := m.cfg.Limits().PerUser
	err := m.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, "connections "+s.Principal.UserID); err != nil {
			return err
		}
		if err := blocked(ctx, tx, s); err != nil {
			return err
		}
		n, err := countLive(ctx, tx, s.Principal.UserID)
		if err != nil {
			return err
		}
		if n >= limit {
			return &LimitError{fmt.Sprintf("You have %d connections open, which is the limit. Close one first.", n)}
		}
		if err := insertConnection(ctx, tx, l, roles, m.cfg.CoreID); err != nil {
			return err
		}
		if s.Along != nil {
			if err := s.Along(ctx, tx, l.ID); err != nil {
				return err
			}
		}
		if err := errors.Join(api.Notify(ctx, tx, TopicConnection, l.ID, l.group), tx.Notify(ctx, TopicOwn, s.Principal.UserID)); err != nil {
			return err
		}
		return m.cfg.Audit.Append(ctx, tx, l.event(audit.ConnectionRequested, audit.OK, nil))
	})
	if err != nil {
		m.forget(l)
		m.metrics.refused.Inc()
		return nil, fmt.Errorf("open connection: %w", err)
	}
	m.metrics.opened.WithLabelValues(kindLabel(s.Kind)).Inc()
	m.wake(m.wakeDecide)
	return l, nil
}

func (m *Manager) register(l *Live) error {
	max := m.cfg.Limits().Live
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining {
		return ErrDraining
	}
	if m.open >= max || len(m.live) >= 2*max {
		m.metrics.refused.Inc()
		return &LimitError{"This server has reached its limit of connections. Try again later."}
	}
	m.live[l.ID] = l
	m.open++
	return nil
}

// forget drops a connection that never got its row.
func (m *Manager) forget(l *Live) {
	l.abandon()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, l.ID)
	m.closedLocked()
}

// closedLocked counts one connection out.
func (m *Manager) closedLocked() {
	m.open--
	if m.open == 0 {
		close(m.idle)
		m.idle = make(chan struct{})
	}
}

// Drain refuses new connections from now on; live ones go on.
func (m *Manager) Drain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.draining = true
}

// Count returns how many connections are live on this core.
func (m *Manager) Count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

func (m *Manager) wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// snapshot returns the live connections, closed ones included.
func (m *Manager) snapshot() []*Live {
	m.mu.Lock()
	defer m.mu.Unlock()
	ls := make([]*Live, 0, len(m.live))
	for _, l := range m.live {
		ls = append(ls, l)
	}
	return ls
}

func (m *Manager) find(id string) *Live {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.live[id]
}

// CoreID returns the id of this core.
func (m *Manager) CoreID() string { return m.cfg.CoreID }

// Carries reports whether this core carries connection id now.
func (m *Manager) Carries(id string) bool { return m.find(id) != nil }

// cut shortens s to at most n bytes without splitting a rune.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}
