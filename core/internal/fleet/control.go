package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// controlConn is a control stream as the HTTP server sees it.
type controlConn struct {
	tunnel.Stream
	node *node
}

type nodeKey struct{}

// newControlServer serves what edges ask core inside their tunnels. A request
// is known by the tunnel it came in on, never by what it says.
func (f *Fleet) newControlServer() *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.PathHello, f.serveHello)
	mux.HandleFunc("POST "+wire.PathRenew, f.welcomed(f.serveRenew))
	mux.HandleFunc("POST "+wire.PathStatus, f.welcomed(f.serveStatus))
	if f.c.UserCA != nil {
		mux.HandleFunc("GET "+wire.PathDeployCA, f.welcomed(f.extenderOnly(f.serveDeployCA)))
		mux.HandleFunc("GET "+wire.PathDeployScript, f.welcomed(f.extenderOnly(f.serveDeployScript)))
	}
	if f.c.Hosts != nil {
		mux.HandleFunc("POST "+wire.PathDeployRegister, f.welcomed(f.extenderOnly(f.serveDeployRegister)))
	}
	for pattern, h := range f.c.Control {
		mux.HandleFunc(pattern, f.welcomed(func(w http.ResponseWriter, r *http.Request, n *node) {
			h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, n.peer())))
		}))
	}
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       20 * time.Second,
		WriteTimeout:      40 * time.Second,
		IdleTimeout:       5 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if cc, ok := c.(controlConn); ok {
				return context.WithValue(ctx, nodeKey{}, cc.node)
			}
			return ctx
		},
	}
	// One request per stream: an idle tunnel holds no stream.
	srv.SetKeepAlivesEnabled(false)
	return srv
}

func nodeFrom(ctx context.Context) *node {
	n, _ := ctx.Value(nodeKey{}).(*node)
	return n
}

// welcomed admits only tunnels whose Hello was accepted.
func (f *Fleet) welcomed(h func(http.ResponseWriter, *http.Request, *node)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		n := nodeFrom(r.Context())
		if n == nil || !n.registered.Load() {
			http.Error(w, "say hello first", http.StatusForbidden)
			return
		}
		h(w, r, n)
	}
}

func (f *Fleet) extenderOnly(h func(http.ResponseWriter, *http.Request, *node)) func(http.ResponseWriter, *http.Request, *node) {
	return func(w http.ResponseWriter, r *http.Request, n *node) {
		if n.kind != wire.Extender {
			http.NotFound(w, r)
			return
		}
		h(w, r, n)
	}
}

func (f *Fleet) serveHello(w http.ResponseWriter, r *http.Request) {
	n := nodeFrom(r.Context())
	var h wire.Hello
	if n == nil || !control.Read(w, r, &h) {
		return
	}
	if n.registered.Load() {
		http.Error(w, "hello was said before", http.StatusConflict)
		return
	}
	e, why := f.admitNode(r.Context(), n, h)
	if why != nil {
		f.metrics.tunnels.WithLabelValues("refused").Inc()
		var retry time.Duration
		if why.Code == wire.CodeLimit || why.Code == wire.CodeInternal {
			retry = f.admit.later(1)
		}
		control.Reply(w, wire.Welcome{Error: why, RetryAfterMS: retry.Milliseconds(), Version: wire.Version, Core: f.member()})
		// The edge closes when it has read this; make sure of it.
		time.AfterFunc(2*time.Second, func() { n.close(why) })
		return
	}
	f.metrics.tunnels.WithLabelValues("connected").Inc()
	control.Reply(w, wire.Welcome{Version: wire.Version, Core: f.member(), Cores: []wire.Member{f.member()}, Name: e.Name, Site: e.Site,
		Clock: f.now().UnixMicro(), StatusEveryMS: f.statusEvery().Milliseconds(),
		RenewBeforeS: int64(f.c.RenewBefore / time.Second), Rules: e.Rules})
}

// admitNode decides on a Hello and registers the tunnel.
func (f *Fleet) admitNode(ctx context.Context, n *node, h wire.Hello) (*nodeRow, *wire.Error) {
	if !wire.Compatible(h.Version) {
		return nil, wire.Errorf(wire.CodeVersion, "core speaks protocol version %d, this binary %d: install the same release", wire.Version, h.Version)
	}
	select {
	case <-f.draining:
		return nil, wire.Errorf(wire.CodeDraining, "core %s is shutting down", f.c.CoreName)
	default:
	}
	e, err := f.checkPeer(ctx, n.session.Info().Peer)
	if err != nil {
		we, _ := errors.AsType[*wire.Error](err)
		return nil, we
	}
	if h.Kind != e.Kind {
		return nil, wire.Errorf(wire.CodeUnauthorized, "this identity is of kind %s, not %s", e.Kind, limit(string(h.Kind), 20))
	}
	h.Host, h.Build, h.LastError, h.Finding = limit(h.Host, 128), limit(h.Build, 64), limit(h.LastError, 200), limit(h.Finding, 16)
	if h.Host == "" {
		return nil, wire.Errorf(wire.CodeBadRequest, "the hello names no place")
	}
	if d := h.Deploy; d != nil && (!pinPattern.MatchString(d.Pin) || len(d.Address) > 300) {
		return nil, wire.Errorf(wire.CodeBadRequest, "the hello's deployment listener is not valid")
	}
	n.hello, n.connected = h, f.now()
	n.row.Store(e)
	if why := f.register(ctx, n); why != nil {
		return nil, why
	}
	// Who changed the node since it was read has not found this tunnel.
	_, err = f.reread(ctx, n)
	if why := refusal(err); why != nil {
		n.close(why)
		return nil, why
	}
	e = n.row.Load()
	f.noteConnected(n, e)
	return e, nil
}

func (f *Fleet) noteConnected(n *node, e *nodeRow) {
	info := n.session.Info()
	actor := audit.Actor{Kind: "edge", ID: n.id, Name: e.Name, Source: addrText(info.Remote), Via: "tunnel"}
	object := audit.Object{Kind: "edge", ID: n.id, Name: e.Name}
	if e.Host != "" && e.Host != n.hello.Host {
		f.log.Warn("edge moved to another machine or directory", telemetry.KeyNode, e.Name, telemetry.KeyRemote, addrText(info.Remote))
		f.events.put(note{event: &audit.Event{Type: audit.EdgeMoved, Outcome: audit.OK, Actor: actor, Object: object,
			Fields: map[string]string{"from": e.Host, "to": n.hello.Host}}})
	}
	f.events.put(note{query: qSeenEdge, args: []any{n.id, n.hello.Host, n.hello.Build, addrText(info.Remote), micros(n.connected), n.hello.LastError},
		event: &audit.Event{Type: audit.EdgeConnected, Outcome: audit.OK, Actor: actor, Object: object,
			Fields: map[string]string{"transport": string(info.Transport), "binding": string(info.Binding), "build": n.hello.Build,
				"attempt": strconv.Itoa(n.hello.Attempt), "finding": n.hello.Finding, "kind": string(e.Kind), "site": e.Site}}})
	f.log.Info("edge connected", telemetry.KeyNode, e.Name, "transport", string(info.Transport), "binding", string(info.Binding),
		telemetry.KeyRemote, addrText(info.Remote))
	f.checkClock(n, n.hello.Clock)
}

// clock estimates how far a node's clock is from ours. What a report says is
// too little by its time on the way, which on a busy machine is no constant:
// events of two nodes would change places. The report that was on the way for
// the shortest time is the best.
type clock struct {
	mu   sync.Mutex
	last [8]time.Duration // guarded by mu
	n    int              // guarded by mu; of last, from its beginning
}

// setBack is a difference that no way takes: the clock was set.
const setBack = 5 * time.Second

// told takes what a report says and returns the estimate.
func (c *clock) told(skew time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n > 0 && (slices.Max(c.last[:c.n])-skew).Abs() > setBack {
		c.n = 0
	}
	if c.n == len(c.last) {
		copy(c.last[:], c.last[1:])
		c.n--
	}
	c.last[c.n] = skew
	c.n++
	return slices.Max(c.last[:c.n])
}

// regular reports whether a report counts as one of those that come every so
// often. What a change brings ahead of its time does not: the history is evenly
// spaced, and a burst would push the good reports out of the clock's few.
func (n *node) regular(now time.Time, every time.Duration) bool {
	if last := n.sampled.Load(); last != 0 && now.UnixMicro()-last < (every*3/4).Microseconds() {
		return false
	}
	n.sampled.Store(now.UnixMicro())
	return true
}

// checkClock warns, once per tunnel, about a node whose clock is off.
func (f *Fleet) checkClock(n *node, clock int64) {
	skew := n.clock.told(time.UnixMicro(clock).Sub(f.now()))
	n.skew.Store(skew.Microseconds())
	if skew.Abs() <= f.c.MaxSkew || n.warned.Swap(true) {
		return
	}
	e := n.row.Load()
	f.log.Warn("edge clock differs", telemetry.KeyNode, e.Name, "skew", skew.Round(time.Second))
	f.events.put(note{event: &audit.Event{Type: audit.EdgeClockSkew, Outcome: audit.OK,
		Actor:  audit.Actor{Kind: "edge", ID: n.id, Name: e.Name, Via: "tunnel"},
		Object: audit.Object{Kind: "edge", ID: n.id, Name: e.Name},
		Fields: map[string]string{"skew_s": seconds(skew)}}})
}

func (f *Fleet) serveStatus(w http.ResponseWriter, r *http.Request, n *node) {
	var s wire.Status
	if !control.Read(w, r, &s) {
		return
	}
	s.LastError = limit(s.LastError, 200)
	now := f.now()
	n.status.Store(&statusAt{s, now})
	f.reported.Store(true)
	n.leaving.Store(s.Mode == wire.ModeDraining)
	if n.regular(now, f.statusEvery()) {
		stats := n.session.Stats()
		n.past.add(stats.RTT, stats.Streams)
		f.checkClock(n, s.Clock)
	}
	leaf := n.row.Load()
	control.Reply(w, wire.StatusReply{StatusEveryMS: f.statusEvery().Milliseconds(),
		Renew: s.CertNotAfter > 0 && time.Unix(s.CertNotAfter, 0).Before(f.now().Add(f.c.RenewBefore)) || leaf.CertNotAfter.IsZero()})
}

func (f *Fleet) serveRenew(w http.ResponseWriter, r *http.Request, n *node) {
	var req wire.RenewRequest
	if !control.Read(w, r, &req) {
		return
	}
	pub, hash, err := csrKey(req.CSR)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	e := n.row.Load()
	if string(hash) != string(e.KeyHash) {
		http.Error(w, "a renewal keeps the node's key", http.StatusForbidden)
		return
	}
	cert, err := f.ca.issueNode(pub, e.Kind, e.ID, e.Name)
	if err == nil {
		err = f.c.DB.Tx(r.Context(), func(tx *db.Tx) error {
			if err := storeCert(r.Context(), tx, e.ID, cert); err != nil {
				return err
			}
			return f.c.Audit.Append(r.Context(), tx, audit.Event{Type: audit.EdgeRenewed, Outcome: audit.OK,
				Actor:  audit.Actor{Kind: "edge", ID: e.ID, Name: e.Name, Source: addrText(n.session.Info().Remote), Via: "tunnel"},
				Object: audit.Object{Kind: "edge", ID: e.ID, Name: e.Name},
				Fields: map[string]string{"serial": serialText(cert), "not_after": cert.NotAfter.UTC().Format(time.RFC3339)}})
		})
	}
	if err != nil {
		f.log.Error("renew certificate", telemetry.KeyNode, e.Name, telemetry.KeyErr, err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	renewed := *e
	renewed.Serial, renewed.CertNotAfter = serialText(cert), cert.NotAfter
	n.row.CompareAndSwap(e, &renewed)
	f.log.Info("edge certificate renewed", telemetry.KeyNode, e.Name, "not_after", cert.NotAfter)
	control.Reply(w, wire.RenewResponse{Certificate: cert.Raw, Roots: f.ca.rootsDER()})
}

// sendRules tells an extender what core narrows now.
func (f *Fleet) sendRules(ctx context.Context, n *node) error {
	if err := control.Call(ctx, n.session, "PUT", wire.PathEdgeRules, n.row.Load().Rules, nil); err != nil {
		return fmt.Errorf("send rules to %s: %w", n.row.Load().Name, err)
	}
	return nil
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 0, 64) }
