// Package webterm brings SSH into the browser: terminals over websockets, the
// files of their targets, and the live pictures that watchers see.
//
// A terminal session is an SSH client of core's own bastion, attached inside
// the process for somebody the console has authenticated (bastion.Attach), so
// that policy, recording, masking, transfers, limits and locks are the very
// same as for an SSH client. What this room adds is that the session outlives
// its socket: output is kept on a bounded tape, input is numbered, and a
// browser that comes back within a bounded time goes on where it was. Both
// directions have windows: a program that prints for ever waits, and so does
// whoever pastes a book.
//
// A watcher sees what is recorded: the recording is followed while it is being
// written, so he gets masked input masked and cannot see what is not kept. He
// starts with the picture as it is (package screen).
//
// Sockets: a browser sends its cookie with a websocket handshake from any page
// (no CORS there), so a handshake that comes with the cookie must name one of
// core's own origins; a handshake with a bearer token needs none. The cookie is
// SameSite=Strict besides. No ticket is needed, so none can leak through URLs.
package webterm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"caponier/core/internal/api"
	"caponier/core/internal/bastion"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
)

// Bastion attaches logins; *bastion.Server is the real one.
type Bastion interface {
	Attach(soft context.Context, a bastion.Attach) (*bastion.Attached, error)
}

// Policy decides; *policy.Service is the real one. It is asked only to tell
// beforehand that a reason is missing; the bastion decides for itself.
type Policy interface {
	Decide(ctx context.Context, q policy.Query) (policy.Verdict, error)
}

// Connections is the connection manager; *conn.Manager is the real one.
type Connections interface {
	Get(ctx context.Context, id string) (*conn.Record, error)
	Watch(ctx context.Context, id string, by *api.Principal) (leave func(context.Context) error, err error)
	Watchers(ctx context.Context, id string) ([]conn.Watcher, error)
}

// Recordings follows recordings; *recording.Store is the real one.
type Recordings interface {
	Recording(ctx context.Context, id string) (*recording.Recording, error)
	FollowLive(ctx context.Context, r *recording.Recording, f recording.Follower) (recording.Integrity, error)
}

// Notes is where changes in the database are heard of; *db.DB is the real one.
type Notes interface {
	Subscribe(ctx context.Context) <-chan db.Note
}

// Config is what a Service needs.
type Config struct {
	Bastion     Bastion
	Policy      Policy
	Connections Connections
	Recordings  Recordings
	// Notes tells what changed in the database; *db.DB is the real one.
	Notes Notes
	// Auth checks again, while a socket is open, that its login is good.
	Auth api.Authenticator
	// Origins are core's own ("https://pam.example.net"); the one a request
	// was sent to always counts.
	Origins []string
	Limits  Limits
	Log     *slog.Logger
	Now     func() time.Time
	// Metrics receives the room's metrics; nil means none.
	Metrics prometheus.Registerer
}

// Limits bound what browsers can use up. Zero fields take the defaults.
type Limits struct {
	Sessions        int           // on this core; default 2,000
	SessionsPerUser int           // default 32
	Tape            int           // bytes of output kept per session; default 1 MiB
	Resume          time.Duration // how long a session lives without a socket; default 2 min
	Connect         time.Duration // until the connection is opened or refused; default 15 s
	Keepalive       time.Duration // between pings of a socket; default 10 s
	Recheck         time.Duration // between checks that the login of a socket is good; default 15 s
	Write           time.Duration // for one write to a socket; default 20 s
	LastWrite       time.Duration // for the one that is under way when its socket ends; default 2 s
	Drain           time.Duration // live sessions get when core stops; default 5 s
	Watchers        int           // sockets of watchers on this core; default 500
	Replays         int           // recordings read at once to draw a watcher's first picture; default 2
	Upload          int64         // bytes of one uploaded file; default 64 GiB
	ListEntries     int           // entries of one directory listing; default 10,000
	ArchiveEntries  int           // entries of one downloaded folder; default 100,000
	Transfers       int           // uploads and downloads at once per session; default 8
	Stalled         time.Duration // a transfer that moves nothing for this long ends; default 1 min
}

func (l Limits) withDefaults() Limits {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	num(&l.Sessions, 2000)
	num(&l.SessionsPerUser, 32)
	num(&l.Tape, 1<<20)
	def(&l.Resume, 2*time.Minute)
	def(&l.Connect, 15*time.Second)
	def(&l.Keepalive, 10*time.Second)
	def(&l.Recheck, 15*time.Second)
	def(&l.Write, 20*time.Second)
	def(&l.LastWrite, 2*time.Second)
	def(&l.Drain, 5*time.Second)
	num(&l.Watchers, 500)
	num(&l.Replays, 2)
	if l.Upload <= 0 {
		l.Upload = 64 << 30
	}
	num(&l.ListEntries, 10_000)
	num(&l.ArchiveEntries, 100_000)
	num(&l.Transfers, 8)
	def(&l.Stalled, time.Minute)
	return l
}

// Service is the room's entry. Safe for concurrent use.
type Service struct {
	cfg     Config
	limits  Limits
	metrics *metrics
	fail    func(w http.ResponseWriter, r *http.Request, err error)
	replays chan struct{}

	// soft ends when core begins to stop, hard when everything must be over.
	soft, hard       context.Context
	endSoft, endHard context.CancelFunc
	wg               sync.WaitGroup // sessions and sockets
	mu               sync.Mutex
	sessions         map[string]*session // guarded by mu
	perUser          map[string]int      // guarded by mu
	watchers         int                 // guarded by mu
	stopping         bool                // guarded by mu
}

// New makes a Service. Call Run to have it end what it started.
func New(c Config) (*Service, error) {
	switch {
	case c.Bastion == nil, c.Policy == nil, c.Connections == nil, c.Recordings == nil, c.Notes == nil, c.Auth == nil, c.Log == nil, c.Now == nil:
		return nil, errors.New("webterm: Bastion, Policy, Connections, Recordings, Notes, Auth, Log and Now are required")
	}
	s := &Service{cfg: c, limits: c.Limits.withDefaults(), sessions: map[string]*session{}, perUser: map[string]int{}}
	s.replays = make(chan struct{}, s.limits.Replays)
	s.soft, s.endSoft = context.WithCancel(context.Background())
	s.hard, s.endHard = context.WithCancel(context.Background())
	s.metrics = newMetrics(c.Metrics, s)
	return s, nil
}

// Run waits for ctx, then tells live sessions, gives them Limits.Drain, ends
// them and returns when all goroutines of the room have.
func (s *Service) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.endSoft()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	t := time.NewTimer(s.limits.Drain)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	s.endHard()
	<-done
	return nil
}

// begin counts work in; it reports false once the room stops.
func (s *Service) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return false
	}
	s.wg.Add(1)
	return true
}

// admit registers a session.
func (s *Service) admit(x *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return api.Unavailable("draining", "This core is shutting down.")
	case len(s.sessions) >= s.limits.Sessions:
		return api.Unavailable("session_limit", "This core has reached its limit of terminals. Try again later.")
	case s.perUser[x.userID] >= s.limits.SessionsPerUser:
		return api.Limited(fmt.Sprintf("You have %d terminals open, which is the limit. Close one first.", s.perUser[x.userID]), 10)
	}
	s.sessions[x.id] = x
	s.perUser[x.userID]++
	s.wg.Add(1)
	return nil
}

// drop forgets a session.
func (s *Service) drop(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[x.id] != x {
		return
	}
	delete(s.sessions, x.id)
	if s.perUser[x.userID]--; s.perUser[x.userID] <= 0 {
		delete(s.perUser, x.userID)
	}
	s.wg.Done()
}

// find returns a session of the login that opened it; to others, of the same
// user too, it does not exist.
func (s *Service) find(ctx context.Context, id string) (*session, *api.Principal, error) {
	p := api.PrincipalFrom(ctx)
	s.mu.Lock()
	x := s.sessions[id]
	s.mu.Unlock()
	if x == nil || p == nil || !x.of(p) {
		return nil, nil, api.Missing("terminal session", id)
	}
	return x, p, nil
}

// of reports whether p is the login that opened the session. A token of the
// same user is not: it may be a single factor, or used from another address,
// where the policy asked for more.
func (x *session) of(p *api.Principal) bool { return x.userID == p.UserID && x.login == p.Session }

// count returns live sessions and watchers' sockets.
func (s *Service) count() (sessions, watchers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions), s.watchers
}
