package webaccess

import (
	"context"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/api"
	"caponier/core/internal/target"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// A session for API clients (curl, kubectl, scripts) has no browser and no
// carrier: its webproxy serves it directly, by the same rules, and puts the
// stored credential into requests. Clients reach the webproxy over core, a
// websocket for each connection, or on its own machine by its cleartext port.

// maxMessage bounds one websocket message of a client, in bytes.
const maxMessage = 1 << 20

// forClients reports whether the session has no browser.
func (x *session) forClients() bool { return x.row.CarrierID == "" }

// mayClients refuses a session for API clients of a target that has none.
func mayClients(t *target.Target) *Refused {
	if t.Web.API {
		return nil
	}
	return &Refused{Status: 403, Code: "no_api", Public: t.Name + " is for browsers: it does not permit API clients."}
}

// Login is how an API client names its session to the proxy.
type Login struct {
	Username string `json:"username" doc:"of the proxy (Proxy-Authorization: Basic)"`
	Password string `json:"password" doc:"of the proxy; good for this session alone"`
	CA       string `json:"ca_pem" doc:"whom the client must believe: every server's certificate is this authority's"`
}

type loginOut struct {
	CacheControl string `header:"Cache-Control"`
	Body         Login
}

// clientRoutes registers what API clients need besides.
func (s *Service) clientRoutes(f *api.Frame) {
	const tag = "web-sessions"
	api.Register(f, api.Op{Method: "GET", Path: "/web-sessions/{id}/proxy-login", ID: "web-session-proxy-login", Tag: tag, Who: api.Self(),
		Summary: "How an API client of a session of yours signs in to its proxy"}, s.handleLogin)
	api.RegisterRaw(f, api.Op{Method: "GET", Path: "/web-sessions/{id}/proxy", ID: "web-session-proxy", Tag: tag, Who: api.Self(), Status: 101,
		Summary: "One connection to the session's proxy over a websocket, bytes of HTTP in binary messages"}, s.handleProxy)
}

func (s *Service) handleLogin(ctx context.Context, in *api.ConnectionIDIn) (*loginOut, error) {
	x, err := s.own(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if !x.forClients() {
		return nil, api.Conflict("not_api", "This session is a browser's.")
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.authority.rootDER()})
	return &loginOut{CacheControl: "no-store", Body: Login{Username: x.row.ID, Password: x.key, CA: string(root)}}, nil
}

// handleProxy serves GET /web-sessions/{id}/proxy.
func (s *Service) handleProxy(w http.ResponseWriter, r *http.Request) {
	x, err := s.own(r.Context(), r.PathValue("id"))
	switch {
	case err != nil:
		s.fail(w, r, err)
		return
	case !x.forClients():
		s.fail(w, r, api.Conflict("not_api", "This session is a browser's."))
		return
	}
	if err := s.socketWanted(r); err != nil {
		s.fail(w, r, err)
		return
	}
	if reason, text := x.live.Ended(); reason != "" {
		s.fail(w, r, api.Conflict("ended", text))
		return
	}
	if !s.begin() {
		s.fail(w, r, api.Unavailable("draining", "This core is shutting down."))
		return
	}
	defer s.work.Done()
	if !x.enter(&x.clients, maxClients) {
		s.fail(w, r, api.Unavailable("connection_limit", "The session has too many connections."))
		return
	}
	defer x.leave(&x.clients)
	_, proxy := x.pair()
	st, err := s.cfg.Fleet.OpenStream(r.Context(), proxy, wire.Preface{Kind: wire.StreamDial, Network: "tcp", Connection: x.row.ID, Dest: wire.SessionProxy})
	if err != nil {
		s.fail(w, r, api.Unavailable("webproxy_away", "The webproxy is not connected at present. Try again in a moment."))
		return
	}
	defer st.Close()
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled, Subprotocols: []string{"binary"}})
	if err != nil {
		return // answered
	}
	defer c.CloseNow()
	x.relay(r, c, st)
}

// relay carries one connection until it, the session or the login ends.
func (x *session) relay(r *http.Request, c *websocket.Conn, st tunnel.Stream) {
	v := &viewer{s: x.s, x: x, c: c}
	v.ctx, v.cancel = context.WithCancelCause(x.s.hard)
	defer v.cancel(nil)
	stop := context.AfterFunc(x.live.Context(), func() { v.cancel(nil) })
	defer stop()
	c.SetReadLimit(maxMessage)
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		v.cancel(v.check(r))
	}()
	_, _, err := tunnel.Relay(v.ctx, st, websocket.NetConn(v.ctx, c, websocket.MessageBinary), tunnel.Counters{
		AB: func(n int) { x.live.Moved(0, n) },
		BA: func(n int) {
			v.used()
			x.live.Moved(n, 0)
		},
	})
	if err != nil && v.ctx.Err() == nil {
		x.s.cfg.Log.Debug("connection of an API client", "session", x.row.ID, "err", err)
	}
	v.cancel(nil)
	<-checked
}

// maxClients bounds the connections of one session's clients.
const maxClients = 128

// asked notes that a client of the session sent a request, for its idle time.
func (x *session) asked() {
	now := x.s.cfg.Now()
	x.mu.Lock()
	x.lastAsk = now
	x.mu.Unlock()
}

// idleFor is how long an API client has asked for nothing. Core judges it: no
// carrier sees keys.
func (x *session) idleFor(now time.Time) time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.lastAsk.IsZero() {
		x.lastAsk = now // opened, or taken over, just now
	}
	return now.Sub(x.lastAsk)
}
