package session

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"caponier/shared/control"
	"caponier/shared/dial"
	"caponier/shared/icap"
	"caponier/shared/spool"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/webrule"
	"caponier/shared/wire"
	"caponier/webproxy/internal/inject"
	"caponier/webproxy/internal/upstream"
)

const (
	askTime = 15 * time.Second
	// spoolBytes is how much is kept of a session while core cannot be told.
	spoolBytes = 4 << 20
	retry      = time.Second
	// leaseTick is how often leases are looked at.
	leaseTick = 250 * time.Millisecond
	// tellFor is how long core is tried to be told of a session's end.
	tellFor = 2 * time.Minute
	// defaultLease is for sessions that name none.
	defaultLease = time.Minute
)

// Config is what a Manager needs.
type Config struct {
	// Tunnel returns the live tunnel to core, or nil.
	Tunnel func() tunnel.Session
	// Max bounds the sessions.
	Max int
	// Address is told to core for carriers.
	Address string
	// Issuer hears which generation of issuing certificates core has in force;
	// may be nil.
	Issuer func(generation string)
	// Problem says why no session can be taken, or nothing.
	Problem func() string
	// Changed is called when there are more or fewer sessions: core chooses
	// webproxies by it. It must not block. May be nil.
	Changed  func()
	Resolver dial.Resolver  // nil: the system's
	Deny     []netip.Prefix // never dialled from here
	// Scanners are addresses of scanners that may be dialled although they are
	// near: loopback, link-local, this machine's own.
	Scanners []netip.Prefix
	System   *x509.CertPool // roots believed by default; nil: the operating system's
	Log      *slog.Logger
	Now      func() time.Time // nil: time.Now
}

// Manager keeps the sessions. Safe for concurrent use; Run must run beside it.
type Manager struct {
	c       Config
	scanner *dial.Dialer // to scanners
	// revocations is what authorities said about servers' certificates.
	revocations *upstream.Revocations

	mu       sync.Mutex
	sessions map[string]*Session // guarded by mu
	closed   bool                // guarded by mu
	work     sync.WaitGroup      // endings under way
	over     chan struct{}       // closed when Run has returned
	ctx      context.Context     // of what outlives a request; ends with Close
	cancel   context.CancelFunc
}

// NewManager makes a Manager.
func NewManager(c Config) *Manager {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Problem == nil {
		c.Problem = func() string { return "" }
	}
	if c.Issuer == nil {
		c.Issuer = func(string) {}
	}
	m := &Manager{c: c, revocations: upstream.NewRevocations(c.Now), sessions: map[string]*Session{}, over: make(chan struct{})}
	m.scanner = dial.New(dial.Config{Rules: dial.Rules{Deny: c.Deny, Exempt: c.Scanners}, Resolver: c.Resolver})
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// Find returns a session, or nil.
func (m *Manager) Find(id string) *Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sessions[id]
}

// Put makes a session or gives it a new revision.
func (m *Manager) Put(in wire.WebProxySession) wire.WebAck {
	if in.ID == "" || len(in.ID) > wire.MaxConnection || len(in.Key) < 32 || in.Revision == 0 {
		return refuse(wire.CodeBadRequest, "the session lacks an ID, a key or a revision")
	}
	var p webrule.Policy
	dec := json.NewDecoder(bytes.NewReader(in.Policy))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return refuse(wire.CodeVersion, "the webproxy does not understand the target's rules: install the release of core")
	}
	c, err := p.Compile(in.StartURL)
	if err != nil {
		return refuse(wire.CodeBadRequest, "the target's rules are not valid: %s", err)
	}
	rev := &Revision{Number: in.Revision, Locked: in.Locked, NoPopups: in.NoPopups, Carrier: in.Carrier, Site: in.Site, Policy: c, key: sha256.Sum256([]byte(in.Key)),
		Armed: len(p.Recipe.Injections) > 0 || p.Recipe.Login != nil, lease: cmp.Or(time.Duration(in.LeaseS)*time.Second, defaultLease)}
	if in.ScanURL != "" {
		if rev.Scan, err = icap.New(icap.Config{URL: in.ScanURL, Dial: icap.Through(m.scanner)}); err != nil {
			return refuse(wire.CodeBadRequest, "the scanner's address is not valid: %s", err)
		}
	}
	// Before the session is there: none of its connections sees another.
	m.c.Issuer(in.Issuer)
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.sessions[in.ID]
	switch {
	case m.closed:
		return refuse(wire.CodeDraining, "the webproxy is shutting down")
	case s == nil && len(m.sessions) >= m.c.Max:
		return refuse(wire.CodeLimit, "the webproxy has its %d sessions", m.c.Max)
	case s == nil && m.c.Problem() != "":
		// Core gives a new session to another webproxy, and tries again soon
		// for one that was here before a restart.
		return refuse(wire.CodeLimit, "%s", m.c.Problem())
	case s == nil:
		s = m.newSession(in)
	case s.rev.Load().Number >= in.Revision:
		return wire.WebAck{Revision: s.rev.Load().Number} // said already
	}
	if old := s.rev.Load(); old != nil {
		rev.Armed = rev.Armed || old.Armed
	}
	if old := s.rev.Load(); old != nil && old.Site == rev.Site && same(old.Policy, c) {
		rev.Up = old.Up
	} else {
		rev.Up, err = upstream.New(upstream.Config{Session: s.ID, Policy: c, Site: in.Site, Tunnel: m.c.Tunnel, Resolver: m.c.Resolver,
			Deny: m.c.Deny, System: m.c.System, Revocations: m.revocations, ClientCertificate: s.clientCertificate})
		if err != nil {
			return refuse(wire.CodeBadRequest, "the target's TLS rules are not valid: %s", err)
		}
	}
	fresh := s.rev.Load() == nil
	s.revise(rev)
	if fresh {
		m.sessions[s.ID] = s
		m.changed()
		s.work.Go(func() {
			switch err := s.spool.Run(s.ctx); {
			case errors.Is(err, spool.ErrGone):
				m.fail(s, "", "")
			case err != nil:
				m.c.Log.Error("records", telemetry.KeySession, s.ID, telemetry.KeyErr, err)
				m.fail(s, "error", "The recording could not be continued.")
			}
		})
		m.c.Log.Info("session", telemetry.KeySession, s.ID, telemetry.KeyUser, s.User, telemetry.KeyTarget, s.Target)
	}
	return wire.WebAck{Revision: in.Revision}
}

func (m *Manager) newSession(in wire.WebProxySession) *Session {
	s := &Session{ID: in.ID, User: in.User, Target: in.Target, m: m, conns: map[*Conn]struct{}{}, live: map[*Live]struct{}{}, holds: map[string]int{},
		idle: make(chan struct{}), left: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancelCause(m.ctx)
	// A session may be known from before a restart: core says what it has.
	s.spool = spool.New(spool.Config{Session: s.ID, Post: spool.Post(m.c.Tunnel), Adopted: true, Compress: true, Limit: spoolBytes, Log: m.c.Log, Now: m.c.Now})
	s.Inject = inject.New(inject.Config{Ask: s.ask, Values: &s.Values, Now: m.c.Now,
		Event: func(id, url, outcome string) error {
			return s.Event("injection", map[string]string{"id": id, "url": url, "outcome": outcome})
		}})
	s.Login = s.Inject.NewLogin(s.Send)
	return s
}

// errNoTunnel is what asking core gives while there is no connection to it.
var errNoTunnel = errors.New("no tunnel to core")

// ask gets one use of the session's credential.
func (s *Session) ask(ctx context.Context, injection, url string) (wire.WebCredential, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var c wire.WebCredential
	t := s.m.c.Tunnel()
	if t == nil {
		return c, errNoTunnel
	}
	a := wire.WebCredentialAsk{Session: s.ID, Injection: injection, URL: url}
	key, err := wire.NewWebCredentialKey(&a)
	if err != nil {
		return c, err
	}
	var sealed wire.WebCredentialSealed
	if err := control.Call(ctx, t, http.MethodPost, wire.PathWebCredential, a, &sealed); err != nil {
		return c, fmt.Errorf("ask for the credential: %w", err)
	}
	if sealed.Error != nil {
		return wire.WebCredential{Error: sealed.Error}, nil
	}
	return key.Open(a, sealed.Sealed)
}

func (s *Session) clientCertificate(ctx context.Context, in webrule.Injection, url string) (*tls.Certificate, error) {
	c, err := s.ask(ctx, in.ID, url)
	outcome := "used"
	if err == nil && c.Error != nil {
		err = c.Error
	}
	var cert tls.Certificate
	if err == nil {
		if cert, err = tls.X509KeyPair([]byte(c.Certificate), []byte(c.Key)); err != nil {
			err = wire.Errorf(wire.CodeUnauthorized, "the stored client certificate cannot be used")
		}
	}
	if err != nil {
		outcome = "refused"
	}
	if eerr := s.Event("injection", map[string]string{"id": in.ID, "url": url, "outcome": outcome}); eerr != nil {
		return nil, eerr
	}
	return &cert, err
}

// End ends a session; it returns when nothing of it is left, its records
// included. When ctx ends before, the session goes on ending.
func (m *Manager) End(ctx context.Context, id string) wire.WebAck {
	s := m.Find(id)
	if s == nil {
		return wire.WebAck{}
	}
	m.mu.Lock()
	if !m.closed { // else it is being ended
		m.work.Go(func() {
			s.end(m.ctx)
			m.forget(s)
		})
	}
	m.mu.Unlock()
	select {
	case <-s.left:
	case <-ctx.Done():
		return refuse(wire.CodeTimeout, "the session is still ending")
	}
	m.forget(s)
	return wire.WebAck{Revision: s.rev.Load().Number}
}

func (m *Manager) changed() {
	if m.c.Changed != nil {
		m.c.Changed()
	}
}

func (m *Manager) forget(s *Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sessions[s.ID] == s {
		delete(m.sessions, s.ID)
		m.changed()
		m.c.Log.Info("session over", telemetry.KeySession, s.ID)
	}
}

// fail ends a session by itself and tells core. An empty reason tells nobody.
func (m *Manager) fail(s *Session, reason, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.work.Go(func() {
		if !s.first() {
			return
		}
		m.c.Log.Warn("session ends by itself", telemetry.KeySession, s.ID, "reason", reason, "text", text)
		s.end(m.ctx)
		m.forget(s)
		if reason != "" {
			m.tell(wire.WebEnded{Session: s.ID, Reason: reason, Text: text})
		}
	})
}

// first reports whether nobody ends the session yet.
func (s *Session) first() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ending
}

// tell tells core that a session has ended; core also finds out by itself.
func (m *Manager) tell(e wire.WebEnded) {
	ctx, cancel := context.WithTimeout(m.ctx, tellFor)
	defer cancel()
	for {
		err := errNoTunnel
		if t := m.c.Tunnel(); t != nil {
			cctx, cancel := context.WithTimeout(ctx, askTime)
			err = control.Call(cctx, t, http.MethodPost, wire.PathWebEnded, e, nil)
			cancel()
		}
		if err == nil {
			return
		}
		select {
		case <-time.After(2 * retry):
		case <-ctx.Done():
			m.c.Log.Warn("core was not told of a session's end", telemetry.KeySession, e.Session, telemetry.KeyErr, err)
			return
		}
	}
}

// States lists the sessions.
func (m *Manager) States() wire.WebStates {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := wire.WebStates{Sessions: []wire.WebState{}, Holds: true}
	for _, s := range m.sessions {
		out.Sessions = append(out.Sessions, wire.WebState{ID: s.ID, Revision: s.rev.Load().Number, Ending: !s.first(), Holds: s.heldNow()})
	}
	slices.SortFunc(out.Sessions, func(a, b wire.WebState) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Status fills the node's report.
func (m *Manager) Status(st *wire.Status) {
	m.mu.Lock()
	live := len(m.sessions)
	m.mu.Unlock()
	w := &wire.WebCapacity{Live: live, Max: m.c.Max, Room: max(m.c.Max-live, 0), Problem: m.c.Problem(), Address: m.c.Address}
	if w.Problem != "" {
		w.Room = 0
	}
	st.Web = w
}

// Drain waits until Run has returned: sessions have ended, their records are
// delivered.
func (m *Manager) Drain(ctx context.Context) {
	select {
	case <-m.over:
	case <-ctx.Done():
	}
}

// Run watches leases until ctx ends, then ends every session.
func (m *Manager) Run(ctx context.Context) error {
	defer close(m.over)
	tick := time.NewTicker(leaseTick)
	defer tick.Stop()
	heard := m.c.Now()
	for {
		select {
		case <-ctx.Done():
			m.close()
			return nil
		case <-tick.C:
		}
		now := m.c.Now()
		if m.c.Tunnel() != nil {
			heard = now
			continue
		}
		for _, s := range m.list() {
			if now.Sub(heard) > s.rev.Load().lease {
				m.fail(s, "error", "The session was ended because the connection to core was lost.")
			}
		}
	}
}

func (m *Manager) list() []*Session {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*Session
	for _, s := range m.sessions {
		out = append(out, s)
	}
	return out
}

// close ends all sessions and waits.
func (m *Manager) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	late := time.AfterFunc(leaveTime, m.cancel)
	defer late.Stop()
	var wg sync.WaitGroup
	for _, s := range m.list() {
		wg.Go(func() {
			s.end(m.ctx)
			m.forget(s)
		})
	}
	wg.Wait()
	m.cancel()
	m.work.Wait()
}

// Control serves core's requests.
func (m *Manager) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+wire.PathWebProxySessions+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		var in wire.WebProxySession
		if !control.ReadUpTo(w, r, &in, wire.MaxWebBody) {
			return
		}
		if in.ID != r.PathValue("id") {
			http.Error(w, "the session's ID is not that of the path", http.StatusBadRequest)
			return
		}
		control.Reply(w, m.Put(in))
	})
	mux.HandleFunc("DELETE "+wire.PathWebProxySessions+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		control.Reply(w, m.End(r.Context(), r.PathValue("id")))
	})
	mux.HandleFunc("GET "+wire.PathWebProxySessions, func(w http.ResponseWriter, _ *http.Request) {
		control.Reply(w, m.States())
	})
	return mux
}
