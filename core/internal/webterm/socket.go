package webterm

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/api"
	"caponier/core/internal/user"
)

// Close codes of our own (RFC 6455 §7.4.2), which the page knows.
const (
	closeSignedOut = 4401 // the login of the socket is over
	closeForbidden = 4403 // the permission was withdrawn
	closeTaken     = 4409 // another tab has taken the session
	closeEnded     = 4410 // everything was sent, the session is over
	closeProtocol  = 4400
)

// accept upgrades the request.
func (s *Service) accept(w http.ResponseWriter, r *http.Request) (*websocket.Conn, error) {
	if !headerHas(r.Header, "Upgrade", "websocket") {
		return nil, &api.Problem{Status: http.StatusUpgradeRequired, Title: "This is a websocket.", Code: "websocket_expected"}
	}
	if !api.OriginAllowed(r, s.cfg.Origins) {
		return nil, api.Denied("cross_origin", "A page of another origin may not open this.")
	}
	if r.Header.Get("Sec-WebSocket-Version") != "13" || len(r.Header.Values("Sec-WebSocket-Key")) != 1 {
		return nil, &api.Problem{Status: http.StatusBadRequest, Title: "The websocket handshake is not complete.", Code: "websocket_handshake"}
	}
	// No compression: output holds secrets beside text an attacker may choose.
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		return nil, nil // answered
	}
	c.SetReadLimit(maxMessage)
	return c, nil
}

func headerHas(h http.Header, name, token string) bool {
	for _, v := range h.Values(name) {
		if strings.EqualFold(strings.TrimSpace(v), token) {
			return true
		}
	}
	return false
}

// socket is one browser's websocket.
type socket struct {
	svc    *Service
	c      *websocket.Conn
	ctx    context.Context
	cancel context.CancelCauseFunc
	may    func(*api.Principal) bool // the login must go on to pass; nil = any does
	due    chan struct{}             // one token: check the login now

	mu     sync.Mutex
	acked  uint64 // guarded by mu: output the browser has shown
	active bool   // guarded by mu: something was typed since the last check
	wake   chan struct{}
}

// ended is the cause of a socket's context with its close code.
type ended struct {
	code websocket.StatusCode
	text string
}

// Error implements error.
func (e *ended) Error() string { return e.text }

// newSocket makes a socket for a login that must keep a permission, if any.
func (s *Service) newSocket(c *websocket.Conn, may func(*api.Principal) bool) *socket {
	k := &socket{svc: s, c: c, may: may, wake: make(chan struct{}, 1), due: make(chan struct{}, 1)}
	k.ctx, k.cancel = context.WithCancelCause(s.hard)
	return k
}

// send writes one message within its bound. Whole messages of several senders
// do not mix. One that is under way when the socket ends has a moment to get
// out: a context that ends in the middle of a write cuts the connection, and
// the browser would not hear why.
func (k *socket) send(p []byte) error {
	if k.ctx.Err() != nil {
		return context.Cause(k.ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), k.svc.limits.Write)
	defer cancel()
	stop := context.AfterFunc(k.ctx, func() { time.AfterFunc(k.svc.limits.LastWrite, cancel) })
	defer stop()
	return k.c.Write(ctx, websocket.MessageBinary, p)
}

func (k *socket) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// serve runs reader, pings and login checks beside write until one ends, then
// closes the websocket, telling why.
func (k *socket) serve(r *http.Request, read func(message) error, write func() error) {
	var wg sync.WaitGroup
	wg.Go(func() { k.cancel(k.reader(read)) })
	wg.Go(func() { k.cancel(k.pinger()) })
	wg.Go(func() { k.cancel(k.checker(r)) })
	stop := context.AfterFunc(k.svc.soft, func() { k.cancel(&ended{websocket.StatusGoingAway, "core is shutting down"}) })
	defer stop()
	k.cancel(write())
	if e, ok := errors.AsType[*ended](context.Cause(k.ctx)); ok {
		_ = k.c.Close(e.code, e.text)
	}
	_ = k.c.CloseNow()
	wg.Wait()
}

func (k *socket) reader(handle func(message) error) error {
	// The context ends with the socket, which close does first with a reason;
	// an expired context would cut the connection without one.
	for {
		kind, p, err := k.c.Read(context.WithoutCancel(k.ctx))
		if err != nil {
			return err
		}
		if kind != websocket.MessageBinary {
			return &ended{closeProtocol, "binary messages only"}
		}
		m, err := decode(p)
		if err != nil {
			return &ended{closeProtocol, err.Error()}
		}
		switch m.kind {
		case msgPing:
			if err := k.send(offsetMessage(msgPong, m.offset, nil)); err != nil {
				return err
			}
			continue
		case msgInput:
			k.mu.Lock()
			k.active = true
			k.mu.Unlock()
		}
		if err := handle(m); err != nil {
			return &ended{closeProtocol, err.Error()}
		}
	}
}

// check has the login looked at now.
func (k *socket) check() {
	select {
	case k.due <- struct{}{}:
	default:
	}
}

func (k *socket) pinger() error {
	t := time.NewTicker(k.svc.limits.Keepalive)
	defer t.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return nil
		case <-t.C:
		}
		// Not k.ctx: see send. The answer is not waited for when the socket is closed.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(k.ctx), 2*k.svc.limits.Keepalive)
		err := k.c.Ping(ctx)
		cancel()
		if err != nil {
			return err
		}
	}
}

// checker asks periodically whether the login behind the socket is still good.
// Typing counts as use of the login, looking on does not.
func (k *socket) checker(r *http.Request) error {
	t := time.NewTicker(k.svc.limits.Recheck)
	defer t.Stop()
	source := api.SourceFrom(r.Context())
	for {
		select {
		case <-k.ctx.Done():
			return nil
		case <-t.C:
		case <-k.due:
		}
		ctx, cancel := context.WithTimeout(k.ctx, 10*time.Second)
		k.mu.Lock()
		active := k.active
		k.active = false
		k.mu.Unlock()
		p, err := user.Again(ctx, k.svc.cfg.Auth, r, source, active)
		cancel()
		if errors.Is(err, user.ErrSignedOut) {
			return &ended{closeSignedOut, "signed out"}
		}
		if err == nil && k.may != nil && !k.may(p) {
			return &ended{closeForbidden, "no longer permitted"}
		}
		// What could not be checked now is checked again; the connection itself
		// lives on its lease.
	}
}

// handleSocket serves GET /terminal-sessions/{id}/socket?output=N&input=N.
func (s *Service) handleSocket(w http.ResponseWriter, r *http.Request) {
	x, _, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	q := r.URL.Query()
	from, ferr := offsetParam(q, "output")
	if ferr != nil {
		s.fail(w, r, ferr)
		return
	}
	if !s.begin() {
		s.fail(w, r, api.Unavailable("draining", "This core is shutting down."))
		return
	}
	defer s.wg.Done()
	c, err := s.accept(w, r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	if c == nil {
		return
	}
	k := s.newSocket(c, nil)
	defer k.cancel(nil)
	if x.take(k) {
		s.metrics.resumed.Inc()
	}
	defer x.leave(k)
	k.serve(r, func(m message) error {
		switch m.kind {
		case msgInput:
			return x.input(m.offset, m.data)
		case msgResize:
			x.resize(m.cols, m.rows)
		case msgAck:
			if !x.tape.ack(m.offset) {
				return errMessage
			}
			k.mu.Lock()
			k.acked = max(k.acked, m.offset)
			k.mu.Unlock()
			k.poke()
		}
		return nil
	}, func() error { return k.play(x, from) })
}

// offsetParam reads an offset; none given is -1.
func offsetParam(q url.Values, name string) (int64, error) {
	v := q.Get(name)
	if v == "" {
		return -1, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, api.Invalid(api.FieldError{Field: name, Message: "a number of bytes"})
	}
	return n, nil
}

// take makes k the session's socket; the one before is told.
func (x *session) take(k *socket) (again bool) {
	x.mu.Lock()
	old := x.attached
	again, x.attached, x.met = x.met, k, true
	x.mu.Unlock()
	if old != nil {
		old.cancel(&ended{closeTaken, "another tab has taken the session"})
	}
	return again
}

func (x *session) leave(k *socket) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.attached == k {
		x.attached, x.detached = nil, time.Now()
	}
}

// play sends the session to its socket: what is on the tape from the wanted
// offset, then everything new, within the window the browser has room for.
func (k *socket) play(x *session, from int64) error {
	next, err := k.greet(x, from)
	if err != nil {
		return err
	}
	var told []byte
	var accepted uint64
	for {
		st, acc, news := x.view()
		msg, err := jsonMessage(st)
		if err != nil {
			return err
		}
		over := st.State == "ended"
		if !over && string(msg) != string(told) {
			if err := k.send(msg); err != nil {
				return err
			}
			told = msg
		}
		if acc != accepted {
			if err := k.send(offsetMessage(msgAccepted, acc, nil)); err != nil {
				return err
			}
			accepted = acc
		}
		k.mu.Lock()
		acked := k.acked
		k.mu.Unlock()
		var more <-chan struct{}
		if next < acked+window {
			p, changed, ok := x.tape.read(next, min(outputPiece, int(acked+window-next)))
			if !ok {
				// It fell behind while the session was ending: from the screen on.
				if next, err = k.greet(x, -1); err != nil {
					return err
				}
				continue
			}
			if len(p) > 0 {
				if err := k.send(offsetMessage(msgOutput, next, p)); err != nil {
					return err
				}
				next += uint64(len(p))
				continue
			}
			if over {
				// All output is out: the end may be told.
				if err := k.send(msg); err != nil {
					return err
				}
				return &ended{closeEnded, "the session has ended"}
			}
			more = changed
		}
		select {
		case <-more:
		case <-news:
		case <-k.wake:
		case <-k.ctx.Done():
			return context.Cause(k.ctx)
		}
	}
}

// greet says where output goes on. A browser that has nothing, or from where
// the tape has nothing any more, gets what there is and then the screen.
func (k *socket) greet(x *session, from int64) (next uint64, err error) {
	start, end := x.tape.bounds()
	x.mu.Lock()
	taken := x.taken
	x.mu.Unlock()
	fresh := from < 0 || uint64(from) < start || uint64(from) > end
	next = uint64(max(from, 0))
	if fresh {
		next = start
	}
	x.tape.rewind(next)
	k.mu.Lock()
	k.acked = next
	k.mu.Unlock()
	if err := k.send(helloMessage(next, taken, fresh)); err != nil {
		return 0, err
	}
	if !fresh || start == 0 {
		return next, nil
	}
	// The tape begins somewhere in the middle: its text is history above a
	// screen that is drawn whole.
	for next < end {
		p, _, ok := x.tape.read(next, min(outputPiece, int(end-next)))
		if !ok || len(p) == 0 {
			break
		}
		if err := k.send(offsetMessage(msgOutput, next, p)); err != nil {
			return 0, err
		}
		next += uint64(len(p))
	}
	picture, at := x.tape.draw()
	k.mu.Lock()
	k.acked = at
	k.mu.Unlock()
	x.tape.ack(at)
	return at, k.send(offsetMessage(msgScreen, at, picture))
}
