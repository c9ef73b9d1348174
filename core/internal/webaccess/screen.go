package webaccess

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
	"caponier/shared/rfb"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Close codes of our own (RFC 6455 §7.4.2), which the viewer knows; the reason
// is a text for its user.
const (
	closeEnded      websocket.StatusCode = 4000
	closeNotAllowed websocket.StatusCode = 4001
	closeAway       websocket.StatusCode = 4002 // try again
	closeNoSession  websocket.StatusCode = 4003
)

const (
	// pieceSize is the longest message to a viewer, in bytes.
	pieceSize = 64 << 10
	// maxInput bounds one message from a viewer: a paste.
	maxInput = 72 << 20
	// writeTime bounds one write either way; a slow viewer holds up nobody else.
	writeTime = 30 * time.Second
	// lastTime is what is left for a message when its socket's time is over.
	lastTime = time.Second
	// keepalive is the time between pings, and what an answer may take twice.
	keepalive = 10 * time.Second
	// recheck is the time between checks that a viewer's login is good.
	recheck = 15 * time.Second
	// maxViewers bounds sockets of one session.
	maxViewers = 16
	maxSockets = 2000 // on this core
)

// over is the cause of a socket's context with its close code.
type over struct {
	code websocket.StatusCode
	text string
}

// Error implements error.
func (e *over) Error() string { return e.text }

// socketWanted refuses what is no whole websocket handshake (RFC 6455 §4.2.1), or
// one of a page of another origin.
func (s *Service) socketWanted(r *http.Request) error {
	upgrade := slices.ContainsFunc(r.Header.Values("Upgrade"), func(v string) bool { return strings.EqualFold(strings.TrimSpace(v), "websocket") })
	switch {
	case !upgrade:
		return &api.Problem{Status: http.StatusUpgradeRequired, Title: "This is a websocket.", Code: "websocket_expected"}
	case !api.OriginAllowed(r, s.cfg.Origins):
		return api.Denied("cross_origin", "A page of another origin may not open this.")
	case r.Header.Get("Sec-WebSocket-Version") != "13" || len(r.Header.Values("Sec-WebSocket-Key")) != 1:
		return &api.Problem{Status: http.StatusBadRequest, Title: "The websocket handshake is not complete.", Code: "websocket_handshake"}
	}
	return nil
}

// handleScreen serves GET /web-sessions/{id}/screen.
func (s *Service) handleScreen(w http.ResponseWriter, r *http.Request) {
	s.socket(w, r, maxInput, s.view)
}

// socket serves a websocket whose messages have at most limit bytes. What is
// wrong is told by the close code where the handshake itself is right: a page
// sees no status.
func (s *Service) socket(w http.ResponseWriter, r *http.Request, limit int64, serve func(r *http.Request, c *websocket.Conn) error) {
	if err := s.socketWanted(r); err != nil {
		s.fail(w, r, err)
		return
	}
	if !s.begin() {
		s.fail(w, r, api.Unavailable("draining", "This core is shutting down."))
		return
	}
	defer s.work.Done()
	// No compression: pictures are compressed, and hold secrets beside text an
	// attacker may choose.
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled, Subprotocols: []string{"binary"}})
	if err != nil {
		return // answered
	}
	defer c.CloseNow()
	c.SetReadLimit(limit)
	err = serve(r, c)
	if e, ok := errors.AsType[*over](err); ok {
		// The reason has at most 123 bytes (RFC 6455 §5.5).
		_ = c.Close(e.code, clip(e.text, 118))
	}
}

// shownTo finds the session that a socket is for, if its caller may see it: as
// its user, or as one who watches.
func (s *Service) shownTo(r *http.Request) (x *session, watch bool, err error) {
	p := api.PrincipalFrom(r.Context())
	id := r.PathValue("id")
	watch = r.URL.Query().Get("watch") != ""
	if x = s.find(id); x == nil {
		return nil, false, s.notHere(r.Context(), p, id)
	}
	if !watch && !x.of(p) {
		if x.row.UserID == p.UserID {
			return nil, false, &over{closeNotAllowed, "The session was opened by another login of yours."}
		}
		return nil, false, &over{closeNoSession, "There is no such session of yours."}
	}
	if watch {
		g, err := s.group(r.Context(), id)
		if err != nil {
			return nil, false, err
		}
		if ok, text := conn.MayOversee(p, x.row.UserID, g, conn.OrderWatch); !ok {
			return nil, false, &over{closeNotAllowed, text}
		}
	}
	if reason, text := x.live.Ended(); reason != "" {
		return nil, false, &over{closeEnded, text}
	}
	if x.forClients() {
		return nil, false, &over{closeNotAllowed, "This session is for programs: it has no picture."}
	}
	return x, watch, nil
}

// view shows a session on a socket until either ends.
func (s *Service) view(r *http.Request, c *websocket.Conn) error {
	x, watch, err := s.shownTo(r)
	if err != nil {
		return err
	}
	if !x.enter(&x.viewers, maxViewers) {
		return &over{closeNotAllowed, "Too many windows show this session."}
	}
	defer x.leave(&x.viewers)
	v := &viewer{s: s, x: x, c: c, watch: watch}
	v.ctx, v.cancel = context.WithCancelCause(s.hard)
	defer v.cancel(nil)
	if watch {
		done, err := v.onRecord(api.PrincipalFrom(r.Context()))
		if err != nil {
			return err
		}
		defer done()
	}
	return v.run(r)
}

// notHere says why a session is not shown.
func (s *Service) notHere(ctx context.Context, p *api.Principal, id string) error {
	w, err := scanRow(s.cfg.DB.QueryRowContext(ctx, getSQL, id))
	if err == nil && w.UserID != p.UserID {
		var ok bool
		if ok, err = s.sees(ctx, p, api.ConnectionsWatch, id); err == nil && !ok {
			err = db.ErrNotFound
		}
	}
	if err != nil {
		return &over{closeNoSession, "There is no such session."}
	}
	if !w.EndedAt.IsZero() {
		return &over{closeEnded, w.EndText}
	}
	return &over{closeAway, "The session is being taken over. One moment."}
}

// enter counts a socket of the session in n, which x.mu guards, unless core or
// the session has as many as it may.
func (x *session) enter(n *int, most int) bool {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.s.sockets >= maxSockets || *n >= most {
		return false
	}
	x.s.sockets++
	*n++
	return true
}

// leave undoes enter.
func (x *session) leave(n *int) {
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	*n--
	x.s.sockets--
}

// viewer is one socket of a session: its owner's, or a watcher's. It shows the
// picture (run), or plays the sound (hear).
type viewer struct {
	s      *Service
	x      *session
	c      *websocket.Conn
	watch  bool
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu     sync.Mutex
	active bool // guarded by mu: there was a sign of its user since the last check
	ahead  int  // guarded by mu: blocks of sound that were not heard of
}

// onRecord notes that somebody watches, before he sees anything.
func (v *viewer) onRecord(p *api.Principal) (func(), error) {
	ctx, cancel := context.WithTimeout(v.ctx, askTimeout)
	defer cancel()
	leave, err := v.s.cfg.Conns.Watch(ctx, v.x.row.ID, p)
	if err != nil {
		v.s.cfg.Log.Error("watch a web session", "session", v.x.row.ID, "err", err)
		return nil, &over{closeAway, "Watching could not be put on record."}
	}
	note := func(kind string) {
		if rec := v.x.recording(); rec != nil {
			if err := rec.Event(kind, map[string]string{"user": p.UserName}); err != nil {
				v.s.cfg.Log.Warn("watcher not in the recording", "session", v.x.row.ID, "err", err)
			}
		}
	}
	note("watcher-came")
	return func() {
		note("watcher-left")
		ctx, cancel := context.WithTimeout(context.WithoutCancel(v.ctx), askTimeout)
		defer cancel()
		if err := leave(ctx); err != nil {
			v.s.cfg.Log.Error("end of watching a web session", "session", v.x.row.ID, "err", err)
		}
	}, nil
}

// run carries RFB both ways and says how it ended.
func (v *viewer) run(r *http.Request) error {
	dest := wire.ScreenControl
	if v.watch {
		dest = wire.ScreenWatch
	}
	carrier, _ := v.x.pair()
	st, err := v.s.cfg.Fleet.OpenStream(v.ctx, carrier, wire.Preface{Kind: wire.StreamDial, Class: wire.Interactive, Network: "tcp", Connection: v.x.row.ID, Dest: dest})
	if err != nil {
		return &over{closeAway, "The carrier is not connected at present. One moment."}
	}
	defer v.endWithSession()()
	unblock := context.AfterFunc(v.ctx, func() { st.SetDeadline(time.Unix(1, 0)) })
	defer unblock()
	var wg sync.WaitGroup
	heard, said := io.Pipe()
	wg.Go(func() { signs(heard, v.used) })
	wg.Go(func() {
		defer said.Close()
		v.cancel(v.input(st, said))
	})
	wg.Go(func() { v.cancel(v.ping()) })
	wg.Go(func() { v.cancel(v.check(r)) })
	v.cancel(v.picture(st))
	cause := v.close(st)
	wg.Wait()
	return cause
}

// endWithSession has what ends the session end the socket, with the reason.
func (v *viewer) endWithSession() (stop func() bool) {
	return context.AfterFunc(v.x.live.Context(), func() {
		_, text := v.x.live.Ended()
		v.cancel(&over{closeEnded, text})
	})
}

// close ends socket and stream, tells the one why and returns that.
func (v *viewer) close(st tunnel.Stream) error {
	cause := context.Cause(v.ctx)
	if e, ok := errors.AsType[*over](cause); ok {
		_ = v.c.Close(e.code, clip(e.text, 118))
	}
	_ = v.c.CloseNow() // the reader returns
	_ = st.Close()     // and a write that waits
	return cause
}

// picture carries what the carrier draws to the viewer. A viewer that reads
// slowly holds the carrier's stream up, and only that.
func (v *viewer) picture(st tunnel.Stream) error {
	buf := make([]byte, pieceSize)
	for {
		n, err := st.Read(buf)
		if n > 0 {
			if werr := v.send(buf[:n]); werr != nil {
				return werr
			}
			if !v.watch {
				v.x.live.Moved(0, n)
			}
		}
		if err != nil {
			return v.lost(err)
		}
	}
}

// send sends a message. One under way when the socket's time is over may still
// arrive: a context that ends within a write cuts the connection, and nobody is
// told why.
func (v *viewer) send(p []byte) error {
	if v.ctx.Err() != nil {
		return context.Cause(v.ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.ctx), writeTime)
	defer cancel()
	defer context.AfterFunc(v.ctx, func() { time.AfterFunc(lastTime, cancel) })()
	return v.c.Write(ctx, websocket.MessageBinary, p)
}

// lost says why the carrier's stream ended.
func (v *viewer) lost(err error) error {
	if reason, text := v.x.live.Ended(); reason != "" {
		return &over{closeEnded, text}
	}
	if we, ok := errors.AsType[*wire.Error](err); ok && (we.Code == wire.CodeRefused || we.Code == wire.CodeLimit) {
		return &over{closeAway, sentence(we.Public)}
	}
	return &over{closeAway, "The picture was lost. One moment."}
}

// handshake is how many bytes a client sends before its first message: its
// version, a security type, and whether it shares (RFC 6143 §7.1, §7.3.1).
const handshake = 12 + 1 + 1

// signs reads what a viewer sends and calls used for each sign of its user: a
// key, the pointer, a paste. A page that only shows the picture asks for it all
// the time. What is not understood counts as a sign.
func signs(r io.Reader, used func()) {
	if _, err := io.CopyN(io.Discard, r, handshake); err != nil {
		return
	}
	in := rfb.NewClientReader(r, func() int { return 0 })
	for {
		m, err := in.Next()
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return
		}
		if err != nil {
			used()
			break
		}
		switch m.Kind {
		case rfb.MessageKey, rfb.MessagePointer, rfb.MessageClipboard:
			used()
		}
	}
	buf := make([]byte, 4<<10)
	for {
		if n, err := r.Read(buf); n > 0 {
			used()
		} else if err != nil {
			return
		}
	}
}

// used notes a sign of the viewer's user.
func (v *viewer) used() {
	v.mu.Lock()
	v.active = true
	v.mu.Unlock()
	if !v.watch {
		v.x.live.In(0)
	}
}

// input carries what the viewer sends to the carrier, and to who looks for
// signs of its user.
func (v *viewer) input(st tunnel.Stream, also io.Writer) error {
	for {
		// The context ends with the socket, which run closes first with a
		// reason; an expired context would cut the connection without one.
		kind, in, err := v.c.Reader(context.WithoutCancel(v.ctx))
		if err != nil {
			return err
		}
		if kind != websocket.MessageBinary {
			return &over{websocket.StatusUnsupportedData, "binary messages only"}
		}
		if err := st.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
			return v.lost(err)
		}
		n, err := io.Copy(st, io.TeeReader(in, also))
		if n > 0 && !v.watch {
			v.x.live.Moved(int(n), 0)
		}
		if err != nil {
			return v.lost(err)
		}
	}
}

func (v *viewer) ping() error {
	t := time.NewTicker(keepalive)
	defer t.Stop()
	for {
		select {
		case <-v.ctx.Done():
			return nil
		case <-t.C:
		}
		// Not v.ctx: see send. The socket's end ends it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(v.ctx), 2*keepalive)
		err := v.c.Ping(ctx)
		cancel()
		if err != nil {
			return err
		}
	}
}

// check asks again and again whether the login behind the socket is good. What
// the user does counts as use of his login, looking on does not.
func (v *viewer) check(r *http.Request) error {
	t := time.NewTicker(recheck)
	defer t.Stop()
	source := api.SourceFrom(r.Context())
	for {
		select {
		case <-v.ctx.Done():
			return nil
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(v.ctx, askTimeout)
		v.mu.Lock()
		active := v.active
		v.active = false
		v.mu.Unlock()
		p, err := user.Again(ctx, v.s.cfg.Auth, r, source, active)
		cancel()
		if errors.Is(err, user.ErrSignedOut) {
			return &over{closeNotAllowed, "You were signed out."}
		}
		if err != nil || !v.watch {
			continue
		}
		if ok, err := v.s.sees(v.ctx, p, api.ConnectionsWatch, v.x.row.ID); err == nil && !ok {
			return &over{closeNotAllowed, "You may not watch any more."}
		}
		// What could not be checked now is checked again; the session itself
		// lives on its lease.
	}
}
