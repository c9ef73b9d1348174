package bastion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Server is the bastion. Safe for concurrent use.
type Server struct {
	cfg    Config
	limits Limits

	buffers buffers

	mu       sync.Mutex
	startups map[string]int    // guarded by mu: unauthenticated connections by source address
	waiting  int               // guarded by mu: sum of startups
	logins   map[*login]string // guarded by mu: value is the user's ID
	perUser  map[string]int    // guarded by mu
}

func newServer(cfg Config) *Server {
	return &Server{
		cfg: cfg, limits: cfg.Limits,
		startups: map[string]int{}, logins: map[*login]string{}, perUser: map[string]int{},
	}
}

// serve accepts on ln and runs handle for each connection. The two contexts
// of a connection: soft ends when the server begins to stop, hard after the
// drain time.
func (s *Server) serve(ctx context.Context, ln net.Listener, handle func(soft, hard context.Context, nc net.Conn)) error {
	hard, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	defer func() { _ = ln.Close() }()

	var wg sync.WaitGroup
	var backoff time.Duration
	for {
		nc, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			if errors.Is(err, net.ErrClosed) {
				cancel(errStopped)
				wg.Wait()
				return fmt.Errorf("bastion: accept on %s: %w", ln.Addr(), err)
			}
			// Out of descriptors or the like: wait for some to come back.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			s.cfg.Log.Warn("accept", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(backoff):
			}
			continue
		}
		backoff = 0
		release, ok := s.startup(nc)
		if !ok {
			_ = nc.Close()
			continue
		}
		wg.Go(func() {
			defer func() { _ = nc.Close() }()
			defer release()
			handle(ctx, hard, &startupConn{Conn: nc, release: release})
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	t := time.NewTimer(s.limits.Drain)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		cancel(errStopped)
		<-done
	}
	return nil
}

// errStopped is the cause of contexts ended by the server stopping.
var errStopped = errors.New("the bastion is shutting down")

// startupConn is an accepted connection that still counts as unauthenticated.
type startupConn struct {
	net.Conn
	release func()
}

// CloseWrite half-closes when the connection can.
func (c *startupConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Conn.Close()
}

// startup admits an unauthenticated connection; release is idempotent.
func (s *Server) startup(nc net.Conn) (release func(), ok bool) {
	src := startupSource(nc.RemoteAddr())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting >= s.limits.MaxStartups || s.startups[src] >= max(1, s.limits.MaxStartups/2) {
		return nil, false
	}
	s.waiting++
	s.startups[src]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waiting--
		if s.startups[src]--; s.startups[src] <= 0 {
			delete(s.startups, src)
		}
	}), true
}

// startupSource is what shares an allowance of connections not yet
// authenticated: an IPv4 address, or an IPv6 /64, which one host has all of.
func startupSource(a net.Addr) string {
	ip, err := netip.ParseAddr(hostOf(a))
	if err != nil {
		return hostOf(a)
	}
	if ip = ip.Unmap().WithZone(""); ip.Is4() {
		return ip.String()
	}
	p, err := ip.Prefix(64)
	if err != nil {
		return ip.String()
	}
	return p.String()
}

func hostOf(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

// admit counts an authenticated login; it reports false when a limit is reached.
func (s *Server) admit(l *login) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := l.principal.UserID
	if len(s.logins) >= s.limits.MaxLogins || s.perUser[id] >= s.limits.MaxPerUser {
		return false
	}
	s.logins[l] = id
	s.perUser[id]++
	return true
}

func (s *Server) leave(l *login) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, ok := s.logins[l]
	if !ok {
		return
	}
	delete(s.logins, l)
	if s.perUser[id]--; s.perUser[id] <= 0 {
		delete(s.perUser, id)
	}
}
