package session

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Control serves core's requests; see wire.PathCarrierSessions.
func (m *Manager) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+wire.PathCarrierSessions+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		var s wire.CarrierSession
		if !control.ReadUpTo(w, r, &s, wire.MaxWebBody) {
			return
		}
		if s.ID != r.PathValue("id") {
			control.Reply(w, wire.CarrierAck{Error: wire.Errorf(wire.CodeBadRequest, "the path names another session")})
			return
		}
		control.Reply(w, m.put(r.Context(), s))
	})
	mux.HandleFunc("DELETE "+wire.PathCarrierSessions+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		if err := m.delete(r.Context(), r.PathValue("id")); err != nil {
			control.Reply(w, wire.WebAck{Error: wire.Errorf(wire.CodeTimeout, "the session is still ending")})
			return
		}
		control.Reply(w, wire.WebAck{})
	})
	mux.HandleFunc("GET "+wire.PathCarrierSessions, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-m.adopted: // before that nobody can say
			control.Reply(w, m.states())
		case <-r.Context().Done():
		}
	})
	return mux
}

// ServeStream serves a viewer or the files of a session.
func (m *Manager) ServeStream(ctx context.Context, s tunnel.Stream) {
	p := s.Preface()
	l := m.find(p.Connection)
	if l == nil {
		s.Refuse(wire.Errorf(wire.CodeRefused, "there is no such session here"))
		return
	}
	switch p.Dest {
	case wire.ScreenControl, wire.ScreenWatch:
		if s.Confirm() == nil {
			l.view(ctx, s, p.Dest == wire.ScreenControl)
		}
	case wire.SessionSound:
		l.listen(ctx, s)
	case wire.SessionFiles:
		if s.Confirm() == nil {
			m.www.serve(ctx, l, s)
		}
	default:
		s.Refuse(wire.Errorf(wire.CodeBadRequest, "a carrier does not know this destination"))
	}
}

// Status fills in the carrier's part of the node's report.
func (m *Manager) Status(s *wire.Status) {
	s.Web = m.capacity()
	s.Refused, s.Failed = m.refused.Load(), m.failed.Load()
	s.StreamsTotal = m.warm.Load() + m.cold.Load()
}

// Ready says why no session can be opened, for the health check.
func (m *Manager) Ready(context.Context) error {
	if c := m.capacity(); c.Room == 0 {
		if c.Problem == "" {
			return errors.New("all sessions are taken")
		}
		return errors.New(c.Problem)
	}
	return nil
}

// Counts are the manager's counters since its start.
type Counts struct{ Warm, Cold, Refused, Failed, Ended, Unscanned uint64 }

// Counts returns the counters.
func (m *Manager) Counts() Counts {
	return Counts{m.warm.Load(), m.cold.Load(), m.refused.Load(), m.failed.Load(), m.ended.Load(), m.scan.Refused()}
}

// Scanning is how many bytes of files wait for the scanner.
func (m *Manager) Scanning() int64 { return m.scan.Used() }

// Capacity is what the node reports.
func (m *Manager) Capacity() wire.WebCapacity { return *m.capacity() }

// fileServer is one HTTP server for the files of all sessions; each stream is
// a connection of it.
type fileServer struct {
	srv  *http.Server
	in   chan *fileConn
	done chan struct{}
	once sync.Once
}

// fileConn is a stream with the session it belongs to.
type fileConn struct {
	net.Conn
	l    *live
	once sync.Once
	gone chan struct{}
}

// Close implements net.Conn.
func (c *fileConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

type liveKey struct{}

func newFileServer(m *Manager) *fileServer {
	f := &fileServer{in: make(chan *fileConn), done: make(chan struct{})}
	f.srv = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			l, _ := r.Context().Value(liveKey{}).(*live)
			l.handler().ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if fc, ok := c.(*fileConn); ok {
				return context.WithValue(ctx, liveKey{}, fc.l)
			}
			return ctx
		},
	}
	return f
}

// Accept implements net.Listener.
func (f *fileServer) Accept() (net.Conn, error) {
	select {
	case c := <-f.in:
		return c, nil
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *fileServer) Close() error {
	f.once.Do(func() { close(f.done) })
	return nil
}

// Addr implements net.Listener.
func (f *fileServer) Addr() net.Addr { return &net.UnixAddr{Name: "files", Net: "unix"} }

func (f *fileServer) run() { _ = f.srv.Serve(f) } // it ends by close

func (f *fileServer) close() {
	f.Close()
	f.srv.Close()
}

// serve serves one stream until it, its tunnel or its session ends.
func (f *fileServer) serve(ctx context.Context, l *live, s tunnel.Stream) {
	c := &fileConn{Conn: s, l: l, gone: make(chan struct{})}
	select {
	case f.in <- c:
	case <-f.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-c.gone:
	case <-ctx.Done():
	case <-l.ctx.Done():
	}
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		l.log.Debug("files", telemetry.KeyErr, err)
	}
}
