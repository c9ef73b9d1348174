// Package portaccess opens a TCP port of core for one connection to a target
// and one client address (FEATURES S1): any client program of that address
// reaches the target through it, and nobody else does. The port is open only
// while the connection is live; it closes at the end of its time, when the
// right to it is lost and when anybody ends the connection.
//
// It decides nothing by itself: policy says whether, conn keeps the record and
// says when it is over, fleet dials, and tunnel.Relay moves the bytes.
package portaccess

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
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

// Dialer reaches destinations; *fleet.Fleet is the real one.
type Dialer interface {
	Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error)
}

// Auditor writes audit events; *audit.Log is the real one.
type Auditor = conn.Auditor

// Config is what a Service needs.
type Config struct {
	DB     *db.DB
	Audit  Auditor
	Policy Decider
	Conns  *conn.Manager
	Dialer Dialer
	// Bind is the address the ports are opened on; empty = all.
	Bind string
	// First and Last are the ports that may be opened; both zero: none, every
	// session is refused with ErrOff.
	First, Last int
	// Public is the host clients are told to connect to; empty: Bind, or the
	// host of the request's own address when Bind is empty.
	Public string
	// MaxConns bounds the TCP connections of one session at a time; 0 = 512.
	MaxConns int
	Log      *slog.Logger
	Now      func() time.Time
}

// Bounds of a session's length.
const (
	DefaultDuration = time.Hour
	MaxDuration     = 24 * time.Hour
)

// dialTimeout bounds reaching the target for one TCP connection.
const dialTimeout = 20 * time.Second

// Service opens and closes sessions. Safe for concurrent use.
type Service struct {
	cfg Config

	wg sync.WaitGroup // the sessions

	// mu guards everything below.
	mu       sync.Mutex
	sessions map[string]*session // by connection id
	draining bool
}

// New makes a Service. Call Run to have it clean up.
func New(c Config) (*Service, error) {
	switch {
	case c.DB == nil, c.Audit == nil, c.Policy == nil, c.Conns == nil, c.Dialer == nil, c.Log == nil, c.Now == nil:
		return nil, errors.New("port sessions: DB, Audit, Policy, Conns, Dialer, Log and Now are required")
	case (c.First != 0 || c.Last != 0) && (c.First < 1 || c.Last > 65535 || c.First > c.Last):
		return nil, fmt.Errorf("port sessions: %d to %d is not a range of ports", c.First, c.Last)
	}
	if c.Bind != "" {
		if _, err := netip.ParseAddr(c.Bind); err != nil {
			return nil, fmt.Errorf("port sessions: bind address: %w", err)
		}
	}
	if c.MaxConns == 0 {
		c.MaxConns = 512
	}
	return &Service{cfg: c, sessions: map[string]*session{}}, nil
}

// Request asks for a session.
type Request struct {
	Target   string // name, id or address
	Account  string // for ssh targets, may be empty
	Client   netip.Addr
	Duration time.Duration // 0 = DefaultDuration
	Reason   string
	// Interactive puts the session's bytes before bulk transfers of others.
	Interactive bool
	UserAgent   string
}

// ErrOff: this core is configured without session ports.
var ErrOff = errors.New("session ports are switched off")

// ErrExhausted: no port of the range is free.
var ErrExhausted = errors.New("all session ports are in use")

// Refused is a decision against the session; Public is for the user's eyes.
type Refused struct {
	Reason access.Reason
	Public string
}

// Error implements error.
func (e *Refused) Error() string { return e.Public }

// Open decides, records the connection, opens the port and returns the session.
func (s *Service) Open(ctx context.Context, p *api.Principal, r Request) (*Session, error) {
	if s.cfg.First == 0 {
		return nil, ErrOff
	}
	if r.Duration == 0 {
		r.Duration = DefaultDuration
	}
	if r.Duration < time.Second || r.Duration > MaxDuration {
		return nil, fmt.Errorf("open port session: duration %s is not between 1s and %s", r.Duration, MaxDuration)
	}
	r.Client = r.Client.Unmap().WithZone("")
	if !r.Client.IsValid() || r.Client.IsUnspecified() || r.Client.IsMulticast() {
		return nil, errors.New("open port session: no client address")
	}
	v, err := s.decide(ctx, p, r)
	if err != nil {
		return nil, err
	}
	t := v.Target
	l, err := s.cfg.Conns.Open(ctx, conn.Spec{
		Kind: "tcp", Principal: p, TargetID: t.ID, TargetName: t.Name,
		TargetAddress: net.JoinHostPort(t.Host, strconv.Itoa(t.Port)), Site: t.Site, Account: r.Account,
		Want: access.Forward, Source: r.Client, UserAgent: r.UserAgent, Reason: r.Reason, Decision: v.Decision,
	})
	if err != nil {
		return nil, err
	}
	x, err := s.listen(ctx, l, p, t, r)
	if err != nil {
		l.Close(conn.EndedByError, err)
		return nil, err
	}
	return &x.info, nil
}

// decide asks for the client's address and, where it is another one, for the
// caller's too: a session opened for a machine must not lend it the caller's network.
func (s *Service) decide(ctx context.Context, p *api.Principal, r Request) (policy.Verdict, error) {
	sources := []netip.Addr{r.Client}
	if from := p.Source.Unmap(); from.IsValid() && from != r.Client {
		sources = append(sources, from)
	}
	var first policy.Verdict
	for i, from := range sources {
		v, err := s.cfg.Policy.Decide(ctx, policy.Query{
			Principal: p, Target: r.Target, Account: r.Account, Want: access.Forward, Reason: r.Reason, Source: from,
		})
		if err != nil {
			return v, fmt.Errorf("open port session: %w", err)
		}
		if !v.OK() {
			return v, s.refuse(ctx, p, r, from, v)
		}
		if v.Target == nil || v.Target.Kind != target.TCP && v.Target.Kind != target.SSH {
			return v, &Refused{Public: "Ports can be opened for tcp and ssh targets."}
		}
		if i == 0 {
			first = v
		}
	}
	return first, nil
}

// refuse audits a decision against the session.
func (s *Service) refuse(ctx context.Context, p *api.Principal, r Request, from netip.Addr, v policy.Verdict) error {
	e := audit.Event{
		Type: audit.ConnectionDenied, Outcome: audit.Denied, Actor: audit.By(p),
		Object: audit.Object{Kind: "target", Name: r.Target},
		Fields: map[string]string{"kind": "tcp", "client": from.String(), "code": strconv.Itoa(int(v.Reason))},
	}
	if err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return s.cfg.Audit.Append(ctx, tx, e) }); err != nil {
		return fmt.Errorf("open port session: %w", err)
	}
	return &Refused{Reason: v.Reason, Public: v.Public}
}

// listen opens a port, writes the row and starts serving.
func (s *Service) listen(ctx context.Context, l *conn.Live, p *api.Principal, t *target.Target, r Request) (*session, error) {
	ln, port, err := s.freePort(ctx)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	host := s.cfg.Public
	if host == "" {
		host = s.cfg.Bind
	}
	x := &session{
		s: s, live: l, ln: ln, req: r,
		dial: fleet.DialRequest{
			Site: t.Site, Address: net.JoinHostPort(t.Host, strconv.Itoa(t.Port)), Class: wire.Bulk,
			Connection: l.ID, Optimistic: true,
		},
		info: Session{
			ConnectionID: l.ID, CoreID: s.cfg.Conns.CoreID(), UserID: p.UserID, UserName: p.UserName,
			TargetID: t.ID, TargetName: t.Name, Account: r.Account,
			Host: host, Port: port, Address: net.JoinHostPort(host, strconv.Itoa(port)), Client: r.Client.String(),
			OpenedAt: now, ExpiresAt: now.Add(r.Duration), Open: true,
		},
		slots: make(chan struct{}, s.cfg.MaxConns),
	}
	if r.Interactive {
		x.dial.Class = wire.Interactive
	}
	if err := s.insert(ctx, &x.info); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return nil, errors.Join(conn.ErrDraining, ln.Close())
	}
	s.sessions[l.ID] = x
	s.wg.Add(1)
	s.mu.Unlock()
	l.Connecting()
	l.Channel("port-opened", fmt.Sprintf("%s for %s until %s", x.info.Address, x.info.Client, x.info.ExpiresAt.UTC().Format(time.RFC3339)))
	go func() {
		defer s.wg.Done()
		x.serve()
	}()
	return x, nil
}

// freePort opens a free port of the range, beginning anywhere in it.
func (s *Service) freePort(ctx context.Context) (*net.TCPListener, int, error) {
	n := s.cfg.Last - s.cfg.First + 1
	start := rand.IntN(n)
	var lc net.ListenConfig
	for i := range n {
		port := s.cfg.First + (start+i)%n
		ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(s.cfg.Bind, strconv.Itoa(port)))
		if err == nil {
			return ln.(*net.TCPListener), port, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, 0, fmt.Errorf("open session port %d: %w", port, err)
		}
	}
	return nil, 0, ErrExhausted
}

// Run closes what earlier runs left in the table, until ctx ends; then it ends
// all sessions and returns when they are closed.
func (s *Service) Run(ctx context.Context) error {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		if err := s.reconcile(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Error("rows of closed session ports not written; tried again", "err", err)
		}
		select {
		case <-t.C:
			continue
		case <-ctx.Done():
		}
		break
	}
	s.mu.Lock()
	s.draining = true
	for _, x := range s.sessions {
		x.stop(conn.EndedByShutdown)
	}
	s.mu.Unlock()
	s.wg.Wait()
	rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return s.reconcile(rctx)
}
