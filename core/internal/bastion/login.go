package bastion

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
)

// login is one authenticated SSH connection of a user.
type login struct {
	s         *Server
	conn      *ssh.ServerConn
	principal *api.Principal
	name      loginName
	source    netip.Addr
	viaSOCKS  bool
	origin    origin
	// soft ends when the server begins to stop; ctx when the login must end.
	soft, ctx context.Context
	cancel    context.CancelCauseFunc
	wg        sync.WaitGroup // channels and helpers

	password []byte // for a target whose account asks; nil when not given

	// lock is held (by sending) while a target is being connected, useLock
	// while a forward's connection is being opened.
	lock, useLock chan struct{}

	mu       sync.Mutex
	up       *upstream               // guarded by mu
	uses     map[access.Feature]*use // guarded by mu: forwards through the target
	listens  map[string]bool         // guarded by mu: ports of -R, by request payload
	notes    []string                // guarded by mu: lines for the next session to show
	channels int                     // guarded by mu
	sessions int                     // guarded by mu
	lent     map[access.Feature]Live // guarded by mu: sessions that may use agent or X11
}

// errUserGone is the cause when the user's side closed.
var errUserGone = errors.New("the user closed the connection")

func (s *Server) serveSSH(soft, hard context.Context, nc net.Conn) {
	s.serveSSHTo(soft, hard, nc, "")
}

// serveSSHTo runs one SSH connection; preset is the destination it came with
// through SOCKS.
func (s *Server) serveSSHTo(soft, hard context.Context, nc net.Conn, preset string) {
	ctx, cancel := context.WithCancelCause(hard)
	defer cancel(nil)
	a := &attempt{s: s, ctx: ctx, source: addrOf(nc.RemoteAddr()), preset: preset}
	s.serveLogin(soft, ctx, nc, a.config(), origin{source: a.source, socks: preset != ""})
}

// serveLogin runs the handshake as cfg has it and then the login.
func (s *Server) serveLogin(soft, hard context.Context, nc net.Conn, cfg *ssh.ServerConfig, from origin) {
	ctx, cancel := context.WithCancelCause(hard)
	defer cancel(nil)
	log := s.cfg.Log.With("remote", from.source.String())

	stop := context.AfterFunc(soft, func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(s.limits.LoginGrace))
	w := watch(nc)
	sc, chans, reqs, err := ssh.NewServerConn(w, cfg)
	if err != nil {
		stop()
		log.Debug("ssh handshake", "err", err)
		return
	}
	if !stop() {
		_ = sc.Close()
		return
	}
	w.established()
	if st, ok := nc.(*startupConn); ok {
		st.release()
	}
	pr := provenFrom(sc.Permissions)
	if pr == nil {
		_ = sc.Close()
		return
	}
	l := &login{
		s: s, conn: sc, principal: pr.principal, name: pr.name, source: from.source, viaSOCKS: from.socks, origin: from,
		soft: soft, ctx: ctx, cancel: cancel, password: pr.password,
		lock: make(chan struct{}, 1), useLock: make(chan struct{}, 1), uses: map[access.Feature]*use{},
		listens: map[string]bool{}, lent: map[access.Feature]Live{},
	}
	if !s.admit(l) {
		log.Info("login refused: too many connections", "user", l.principal.UserName)
		_ = sc.Close()
		return
	}
	defer s.leave(l)
	log.Info("login", "user", l.principal.UserName, "methods", l.principal.Methods)
	l.run(w, chans, reqs)
	log.Info("logout", "user", l.principal.UserName)
}

// run serves the login until either side ends it, then waits for its parts.
func (l *login) run(w *watched, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
	l.wg.Go(func() { keepalive(l.ctx, l.conn, w, l.s.limits) })
	l.wg.Go(func() { l.global(reqs) })
	l.wg.Go(l.recheck)
	l.wg.Go(l.closer)
	for nch := range chans {
		if !l.takeChannel() {
			_ = nch.Reject(ssh.ResourceShortage, "too many open channels")
			continue
		}
		l.wg.Go(func() {
			defer l.giveChannel()
			l.channel(nch)
		})
	}
	l.cancel(errUserGone)
	l.dropUpstream(nil)
	l.wg.Wait()
	l.closeUses()
	clear(l.password)
}

// closer closes the connection when the login must end; sessions first get a
// moment to tell the user why.
func (l *login) closer() {
	<-l.ctx.Done()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for deadline := time.Now().Add(farewell); time.Now().Before(deadline); <-t.C {
		l.mu.Lock()
		n := l.sessions
		l.mu.Unlock()
		if n == 0 {
			break
		}
	}
	_ = l.conn.Close()
}

// farewell is how long a session that must end may take to tell the user.
const farewell = 2 * time.Second

// recheck ends the login when it is no longer valid. Live connections are
// ended by the connection manager much sooner; this is for idle ones.
func (l *login) recheck() {
	t := time.NewTicker(l.s.limits.Recheck)
	defer t.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-t.C:
			if err := l.valid(); err != nil {
				l.cancel(err)
				return
			}
		}
	}
}

var errLoginOver = &refusal{public: "Your login is no longer valid.", code: "login_over"}

// valid asks whether the login still holds. When that cannot be told now it is
// taken as valid: new uses then fail at policy, live ones have their lease.
func (l *login) valid() error {
	ctx, cancel := context.WithTimeout(l.ctx, 5*time.Second)
	defer cancel()
	err := l.s.cfg.Users.StillValid(ctx, l.principal)
	if err == nil || l.ctx.Err() != nil || !l.s.cfg.LoginGone(err) {
		return nil
	}
	l.s.cfg.Log.Info("login ended", "user", l.principal.UserName, "err", err)
	return errLoginOver
}

func (l *login) takeChannel() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.channels >= l.s.limits.MaxChannels {
		return false
	}
	l.channels++
	return true
}

func (l *login) giveChannel() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.channels--
}

// channel serves one channel the user's client opens.
func (l *login) channel(nch ssh.NewChannel) {
	switch nch.ChannelType() {
	case "session":
		l.session(nch)
	case "direct-tcpip":
		l.directTCP(nch)
	case "direct-streamlocal@openssh.com":
		l.directUnix(nch)
	default:
		_ = nch.Reject(ssh.UnknownChannelType, "the bastion does not know this kind of channel")
	}
}

// global answers the client's global requests.
func (l *login) global(reqs <-chan *ssh.Request) {
	for r := range reqs {
		switch r.Type {
		case "tcpip-forward", "streamlocal-forward@openssh.com":
			l.listen(r)
		case "cancel-tcpip-forward", "cancel-streamlocal-forward@openssh.com":
			l.unlisten(r)
		default:
			// keepalive@openssh.com is answered like any unknown request.
			_ = r.Reply(false, nil)
		}
	}
}

// watched is a network connection that remembers when it last delivered a
// byte and never lets a write hang.
type watched struct {
	net.Conn
	mu       sync.Mutex
	lastRead time.Time // guarded by mu
	armed    time.Time // guarded by mu: when the write deadline was last set
	open     bool      // guarded by mu: deadlines are ours to set
}

// writeLimit bounds one write to the network; the deadline is set at most
// every few seconds, so a hung write fails after writeLimit or a little less.
const writeLimit = 45 * time.Second

func watch(nc net.Conn) *watched { return &watched{Conn: nc, lastRead: time.Now()} }

func (w *watched) established() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open = true
	_ = w.SetDeadline(time.Time{})
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.mu.Lock()
		w.lastRead = time.Now()
		w.mu.Unlock()
	}
	return n, err
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	if now := time.Now(); w.open && now.Sub(w.armed) > 5*time.Second {
		w.armed = now
		_ = w.SetWriteDeadline(now.Add(writeLimit))
	}
	w.mu.Unlock()
	return w.Conn.Write(p)
}

// CloseWrite half-closes when the connection can.
func (w *watched) CloseWrite() error {
	if h, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return w.Close()
}

func (w *watched) quiet() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.lastRead)
}

// silence judges how long a peer was quiet. Time in which this process itself
// did not run does not count: what peers sent meanwhile has yet to be read.
type silence struct {
	last  time.Time // it was asked
	stood time.Time // it was seen last that nothing ran here
}

// over reports whether a peer that was quiet for so long is gone. It is asked
// every Keepalive.
func (p *silence) over(now time.Time, quiet time.Duration, l Limits) bool {
	if now.Sub(p.last) > 2*l.Keepalive {
		p.stood = now
	}
	p.last = now
	return quiet >= l.Dead && now.Sub(p.stood) >= l.Keepalive
}

// keepalive pings c until ctx ends and closes it when nothing at all has come
// back for limits.Dead: any byte counts, so a slow line full of data is not
// taken for a dead one.
func keepalive(ctx context.Context, c ssh.Conn, w *watched, limits Limits) {
	t := time.NewTicker(limits.Keepalive)
	defer t.Stop()
	wait := silence{last: time.Now()}
	var wg sync.WaitGroup
	defer wg.Wait()
	pong := make(chan struct{}, 1)
	waiting := false
	for {
		select {
		case <-ctx.Done():
			return // the outstanding answer ends with the connection
		case <-pong:
			waiting = false
			continue
		case <-t.C:
		}
		now := time.Now()
		quiet := w.quiet()
		if wait.over(now, quiet, limits) {
			_ = c.Close()
			return
		}
		if waiting || quiet < limits.Keepalive/2 {
			continue
		}
		waiting = true
		wg.Go(func() {
			_, _, _ = c.SendRequest("keepalive@openssh.com", true, nil)
			pong <- struct{}{}
		})
	}
}
