// Package session keeps the web sessions that core has put on this node:
// in memory only, each with its rules, its placeholders, its own connections
// to servers and its records. A new revision replaces the rules as one; what
// is under way and no longer allowed is cut. A session ends when core says so,
// when core has not been heard for the session's lease, or when its records
// cannot be delivered.
package session

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"caponier/shared/icap"
	"caponier/shared/spool"
	"caponier/shared/telemetry"
	"caponier/shared/webrule"
	"caponier/shared/wire"
	"caponier/webproxy/internal/inject"
	"caponier/webproxy/internal/mask"
	"caponier/webproxy/internal/upstream"
)

const (
	// MaxConns bounds the connections of one session.
	MaxConns = 256
	// maxLive bounds the requests of one session that are under way.
	maxLive = 1024
	// flushTime bounds the delivery of an ended session's records, leaveTime
	// that when the process ends.
	flushTime = time.Minute
	leaveTime = 5 * time.Second
)

// Revision is what a session may do now. Immutable.
type Revision struct {
	Number  uint64
	Carrier string
	Site    string
	Policy  *webrule.Compiled
	Up      *upstream.Upstream
	Scan    *icap.Client // nil: bodies are not scanned
	// Armed: answers may hold a credential and are searched for it. Once armed, a
	// session stays so: what was used is known to its server.
	Armed bool
	// Locked: nothing leaves.
	Locked bool
	// NoPopups: pages open no windows.
	NoPopups bool

	key   [sha256.Size]byte // hash of the key
	lease time.Duration
}

// Session is one web session. Safe for concurrent use.
type Session struct {
	ID, User, Target string

	Values mask.Values
	Inject *inject.Injector
	Login  *inject.Login

	m      *Manager
	rev    atomic.Pointer[Revision]
	spool  *spool.Spool
	ctx    context.Context // ends with the session
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // the spool's goroutine

	mu     sync.Mutex
	conns  map[*Conn]struct{} // guarded by mu
	live   map[*Live]struct{} // guarded by mu
	holds  map[string]int     // guarded by mu; see waits
	idle   chan struct{}      // guarded by mu; closed when conns and live are empty and the session ends
	ending bool               // guarded by mu
	left   chan struct{}      // closed when nothing is left
}

// Conn is a connection of the session from its browser.
type Conn struct{ close func() }

// Live is a request under way.
type Live struct {
	s      *Session
	r      webrule.Meant // guarded by s.mu
	held   bool          // it waits for approval, or has it
	cancel context.CancelCauseFunc
}

// may reports whether the request may go on under a policy.
func (l *Live) may(p *webrule.Compiled) bool {
	v := p.DecideMeant(l.r)
	return v.Allowed() || l.held && v.Held()
}

// Also says that an application may take the request to have these methods, or
// any, too. Decide on them by the Revision that holds after it: rules that
// change from here on cut the request by them.
func (l *Live) Also(methods []string, any bool) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.r.As = append(l.r.As, methods...)
	l.r.Any = l.r.Any || any
}

// Done says that the request is over; once more does nothing.
func (l *Live) Done() {
	l.cancel(context.Canceled)
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	delete(l.s.live, l)
	l.s.checkIdleLocked()
}

// ErrEnded is the cause with which requests of a session end.
var ErrEnded = errors.New("the session has ended")

// ErrRevoked is the cause with which a request ends that new rules do not allow.
var ErrRevoked = errors.New("the rules have changed")

// Revision returns what holds now.
func (s *Session) Revision() *Revision { return s.rev.Load() }

// Context ends with the session.
func (s *Session) Context() context.Context { return s.ctx }

// Admits reports whether a connection from this carrier with this key is the
// session's.
func (s *Session) Admits(carrier, key string) bool {
	r := s.rev.Load()
	sum := sha256.Sum256([]byte(key))
	return carrier == r.Carrier && subtle.ConstantTimeCompare(sum[:], r.key[:]) == 1
}

// Enter counts a connection; close is called when the session ends. The
// returned function must be called when the connection is over.
func (s *Session) Enter(close func()) (leave func(), ok bool) {
	c := &Conn{close}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || len(s.conns) >= MaxConns {
		return nil, false
	}
	s.conns[c] = struct{}{}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
		s.checkIdleLocked()
	}), true
}

// Track registers a request, so that rules that do not allow it any more cut it.
// Its Done must be called.
func (s *Session) Track(ctx context.Context, r webrule.Meant) (context.Context, *Live, bool) {
	return s.track(ctx, &Live{r: r})
}

func (s *Session) track(ctx context.Context, l *Live) (context.Context, *Live, bool) {
	ctx, cancel := context.WithCancelCause(ctx)
	l.s, l.cancel = s, cancel
	l.r.As = slices.Clone(l.r.As)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending || len(s.live) >= maxLive {
		cancel(ErrEnded)
		return nil, nil, false
	}
	s.live[l] = struct{}{}
	return ctx, l, true
}

func (s *Session) checkIdleLocked() {
	if s.ending && len(s.conns) == 0 && len(s.live) == 0 {
		select {
		case <-s.idle:
		default:
			close(s.idle)
		}
	}
}

// Event records one event. When it cannot be kept the session ends, and the
// error says that what was to be recorded must not happen.
func (s *Session) Event(kind string, fields map[string]string) error {
	err := s.spool.Event(kind, fields)
	if err != nil && !errors.Is(err, spool.ErrGone) {
		s.m.fail(s, "error", "The session was ended because it could not be recorded any more.")
	}
	return err
}

// Send sends a request of the recipe's own, which no rule decides on.
func (s *Session) Send(r *http.Request) (*http.Response, error) {
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0 // as browsers speak: on their connections
	return s.rev.Load().Up.RoundTrip(r, "")
}

// revise makes rev current and cuts what it does not allow.
func (s *Session) revise(rev *Revision) {
	old := s.rev.Swap(rev)
	if old != nil && old.Up != rev.Up {
		old.Up.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.live {
		if rev.Locked || !l.may(rev.Policy) {
			l.cancel(ErrRevoked)
		}
	}
	if old != nil && (old.Carrier != rev.Carrier || old.key != rev.key) {
		for c := range s.conns {
			c.close()
		}
	}
}

// end stops everything of the session and returns when nothing is left.
func (s *Session) end(ctx context.Context) {
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		<-s.left
		return
	}
	s.ending = true
	conns := make([]*Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.checkIdleLocked()
	s.mu.Unlock()
	for l := range s.liveNow() {
		l.cancel(ErrEnded)
	}
	for _, c := range conns {
		c.close()
	}
	<-s.idle
	fctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	if err := s.spool.Flush(fctx); err != nil && !errors.Is(err, spool.ErrGone) {
		s.m.c.Log.Warn("records of a session are lost", telemetry.KeySession, s.ID, "records", s.spool.Stats().Kept, telemetry.KeyErr, err)
	}
	s.cancel(ErrEnded)
	s.work.Wait()
	s.rev.Load().Up.Close()
	s.Inject.Forget()
	close(s.left)
}

func (s *Session) liveNow() map[*Live]struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[*Live]struct{}, len(s.live))
	for l := range s.live {
		out[l] = struct{}{}
	}
	return out
}

// same reports whether two policies need the same connections.
func same(a, b *webrule.Compiled) bool {
	certs := func(p *webrule.Compiled) (out []webrule.Injection) {
		for _, in := range p.Recipe.Injections {
			if in.Kind == webrule.ClientCert {
				out = append(out, in)
			}
		}
		return out
	}
	return a.Origin == b.Origin && reflect.DeepEqual(a.TLS, b.TLS) && reflect.DeepEqual(a.Private, b.Private) && reflect.DeepEqual(certs(a), certs(b))
}

// refuse makes an acknowledgement that says no.
func refuse(code wire.Code, format string, args ...any) wire.WebAck {
	return wire.WebAck{Error: wire.Errorf(code, "%s", fmt.Sprintf(format, args...))}
}
