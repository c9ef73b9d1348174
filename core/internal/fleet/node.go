package fleet

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// node is one tunnel of an edge node. It becomes the node's live tunnel when
// its Hello was accepted.
type node struct {
	id      string
	kind    wire.NodeKind
	session tunnel.Session
	site    string // index key, guarded by Fleet.mu

	// Set before the node is registered, then constant.
	serial    uint64 // another for each tunnel
	hello     wire.Hello
	connected time.Time

	registered atomic.Bool
	// leaving is set when the node said that it drains.
	leaving atomic.Bool
	row     atomic.Pointer[nodeRow]
	status  atomic.Pointer[statusAt]
	// skew is the node's clock minus ours in microseconds, by the last reports.
	skew   atomic.Int64
	clock  clock
	warned atomic.Bool // a clock_skew event was written
	past   history
	// sampled is when the last report counted (regular), in Unix microseconds.
	sampled atomic.Int64
	// ended is why core itself closed the tunnel.
	ended atomic.Pointer[wire.Error]
}

type statusAt struct {
	wire.Status
	at time.Time
}

// close ends the tunnel; the first reason stays.
func (n *node) close(why *wire.Error) error {
	n.ended.CompareAndSwap(nil, why)
	return n.session.Close(why)
}

// Limits for what one edge may do to core: it opens control streams only, but
// for a webproxy, whose browsers reach the sites of their targets through core.
// What waits to be read is bounded by the streams core itself opened: people
// whose clients read slowly must not end the sessions of others (DESIGN
// invariant 6).
var (
	edgeLimits     = tunnel.Limits{MaxStreams: 64, Backlog: 32}
	webProxyLimits = tunnel.Limits{MaxStreams: 8192, Backlog: 1024}
)

// limitsOf are the limits of a node, by the kind its certificate names.
func limitsOf(leaf *x509.Certificate) tunnel.Limits {
	if kind, _, err := peerID(leaf); err == nil && kind == wire.WebProxy {
		return webProxyLimits
	}
	return edgeLimits
}

// helloTimeout is how long a tunnel may live without an accepted Hello.
const helloTimeout = 10 * time.Second

// aliveTimeout is how long a node's first tunnel may take to answer before
// another place may take over. What answers late lives: a busy machine must not
// hand a node's identity to a copy of it. It is less than helloTimeout.
const aliveTimeout = 5 * time.Second

// serve runs one tunnel until it ends.
func (f *Fleet) serve(ctx context.Context, s tunnel.Session) {
	kind, id, err := peerID(s.Info().Peer)
	if err != nil {
		s.Close(wire.Errorf(wire.CodeUnauthorized, "%v", err))
		return
	}
	n := &node{id: id, kind: kind, session: s}
	late := time.AfterFunc(helloTimeout, func() {
		if !n.registered.Load() {
			s.Close(wire.Errorf(wire.CodeTimeout, "no hello was accepted in time"))
		}
	})
	defer late.Stop()
	if !f.track(n) {
		s.Close(wire.Errorf(wire.CodeDraining, "core %s is shutting down", f.c.CoreName))
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		st, err := s.Accept(ctx)
		if err != nil {
			break
		}
		if f.mayOpen(n, st.Preface()) {
			f.serving.Go(func() { f.c.Streams(ctx, n.peer(), st) })
			continue
		}
		if st.Preface().Kind != wire.StreamHTTP {
			st.Refuse(wire.Errorf(wire.CodeRefused, "core accepts no such stream from an edge"))
			continue
		}
		if err := st.Confirm(); err != nil {
			continue
		}
		if !f.streams.Push(controlConn{Stream: st, node: n}) {
			st.Reset(wire.Errorf(wire.CodeDraining, "core %s is shutting down", f.c.CoreName))
		}
	}
	s.Close(nil)
	f.unregister(n)
}

// track remembers a tunnel so that shutdown finds it; false when that has begun.
func (f *Fleet) track(n *node) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false
	}
	f.tunnels[n] = struct{}{}
	return true
}

// verifyPeer looks at a node's certificate during the handshake, no further
// than its form. The decision is made on the Hello: there it can be told to
// the node inside the tunnel, where the node believes it. What a load balancer
// could have made up must not stop a node for good.
func verifyPeer(leaf *x509.Certificate) error {
	if _, _, err := peerID(leaf); err != nil {
		return wire.Errorf(wire.CodeUnauthorized, "%v", err)
	}
	return nil
}

// What a node hears that was deleted or revoked, whichever way it hears it.
func errUnknownNode() *wire.Error {
	return wire.Errorf(wire.CodeUnauthorized, "core does not know this node (any more); enrol it again")
}

func errRevokedNode() *wire.Error {
	return wire.Errorf(wire.CodeUnauthorized, "this node was revoked")
}

// checkPeer finds the node of a certificate; a *wire.Error says why not.
func (f *Fleet) checkPeer(ctx context.Context, leaf *x509.Certificate) (*nodeRow, error) {
	kind, id, err := peerID(leaf)
	if err != nil {
		return nil, wire.Errorf(wire.CodeUnauthorized, "%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	e, err := getEdge(ctx, f.c.DB, id)
	switch {
	case errors.Is(err, db.ErrNotFound):
		return nil, errUnknownNode()
	case err != nil:
		f.log.Error("check edge", telemetry.KeyNode, id, telemetry.KeyErr, err)
		return nil, wire.Errorf(wire.CodeInternal, "core cannot check the node now")
	case !e.RevokedAt.IsZero():
		return nil, errRevokedNode()
	case e.Kind != kind || !sameKey(leaf, e.KeyHash):
		return nil, wire.Errorf(wire.CodeUnauthorized, "this identity was replaced by a later enrolment")
	case !f.now().Before(leaf.NotAfter) && !f.now().Before(e.CertNotAfter):
		// A live tunnel may have begun with a certificate that was renewed since.
		return nil, wire.Errorf(wire.CodeUnauthorized, "the node's certificate has ended; enrol it again")
	}
	return &e, nil
}

func sameKey(leaf *x509.Certificate, hash []byte) bool {
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return string(sum[:]) == string(hash)
}

// register makes n the live tunnel of its node. The same place replaces its
// own former tunnel at once; another place is refused while the first is alive.
func (f *Fleet) register(ctx context.Context, n *node) *wire.Error {
	for {
		f.mu.Lock()
		old := f.live[n.id]
		if old == nil || old.hello.Host == n.hello.Host || isDone(old.session) {
			if old == nil && len(f.live) >= f.c.MaxNodes {
				f.mu.Unlock()
				return wire.Errorf(wire.CodeLimit, "core %s has all the edge nodes it takes", f.c.CoreName)
			}
			f.serials++
			n.serial = f.serials
			f.live[n.id] = n
			f.indexLocked(old, n)
			f.changedLocked()
			n.registered.Store(true)
			f.mu.Unlock()
			if old != nil && old != n {
				go old.close(wire.Errorf(wire.CodeReplaced, "a newer tunnel of this node took over"))
			}
			return nil
		}
		f.mu.Unlock()
		// Somebody is there already. A dead tunnel must not block a node that
		// moved, so ask it first.
		pctx, cancel := context.WithTimeout(ctx, aliveTimeout)
		_, err := old.session.Ping(pctx)
		cancel()
		if err != nil && ctx.Err() == nil {
			old.close(wire.Errorf(wire.CodeReplaced, "a newer tunnel of this node took over"))
			continue
		}
		e := n.row.Load()
		f.log.Warn("edge identity in use twice", telemetry.KeyNode, e.Name, telemetry.KeyRemote, addrText(n.session.Info().Remote),
			"other", addrText(old.session.Info().Remote))
		f.events.put(note{event: &audit.Event{Type: audit.EdgeCopied, Outcome: audit.Denied,
			Actor:  audit.Actor{Kind: "edge", ID: n.id, Name: e.Name, Source: addrText(n.session.Info().Remote), Via: "tunnel"},
			Object: audit.Object{Kind: "edge", ID: n.id, Name: e.Name},
			Fields: map[string]string{"in_use_from": addrText(old.session.Info().Remote)}}})
		return wire.Errorf(wire.CodeIdentityInUse, "the identity of %s is in use on another machine: a copied state directory is refused; enrol this machine with a token of its own", e.Name)
	}
}

// unregister forgets n, unless a newer tunnel took its place.
func (f *Fleet) unregister(n *node) {
	f.mu.Lock()
	mine := f.live[n.id] == n
	if mine {
		delete(f.live, n.id)
		f.changedLocked()
	}
	f.indexLocked(n, nil)
	delete(f.tunnels, n)
	f.mu.Unlock()
	if !n.registered.Load() {
		return
	}
	e, why := n.row.Load(), endReason(n.session.Err())
	if by := n.ended.Load(); by != nil {
		why = endReason(by)
	}
	f.log.Info("edge disconnected", telemetry.KeyNode, e.Name, "reason", why)
	now := f.now()
	no := note{event: &audit.Event{Type: audit.EdgeDisconnected, Outcome: audit.OK,
		Actor:  audit.Actor{Kind: "edge", ID: n.id, Name: e.Name, Source: addrText(n.session.Info().Remote), Via: "tunnel"},
		Object: audit.Object{Kind: "edge", ID: n.id, Name: e.Name},
		Fields: map[string]string{"reason": why, "connected_s": seconds(now.Sub(n.connected))}}}
	if mine {
		no.query, no.args = qGoneEdge, []any{n.id, micros(now), why}
	}
	f.events.put(no)
}

// indexLocked keeps the nodes of each site; f.mu is held.
func (f *Fleet) indexLocked(old, now *node) {
	if old != nil {
		if site := old.site; site != "" {
			if m := f.sites[site]; m[old.id] == old {
				delete(m, old.id)
				if len(m) == 0 {
					delete(f.sites, site)
				}
			}
		}
	}
	if now == nil {
		return
	}
	now.site = ""
	if e := now.row.Load(); e.Kind == wire.Extender && e.Site != "" {
		now.site = e.Site
		m := f.sites[e.Site]
		if m == nil {
			m = map[string]*node{}
			f.sites[e.Site] = m
		}
		m[now.id] = now
	}
}

func isDone(s tunnel.Session) bool {
	select {
	case <-s.Done():
		return true
	default:
		return false
	}
}

// endReason is a short text for people on why a tunnel ended.
func endReason(err error) string {
	if we, ok := errors.AsType[*wire.Error](err); ok {
		return limit(we.Public, 200)
	}
	if err == nil || errors.Is(err, net.ErrClosed) {
		return "the connection was lost"
	}
	return limit(err.Error(), 200)
}

// get returns the live tunnel of a node, or nil.
func (f *Fleet) get(id string) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.live[id]
}

func (f *Fleet) connected() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.live)
}

func (f *Fleet) all() []*node {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]*node, 0, len(f.live))
	for _, n := range f.live {
		out = append(out, n)
	}
	return out
}

// disconnect ends a node's live tunnel, if there is one.
func (f *Fleet) disconnect(id string, why *wire.Error) {
	if n := f.get(id); n != nil {
		n.close(why)
	}
}

// renew makes e the node's row and returns the former one. Two may read the row
// at once, and who read it earlier may come here later: what is older than what
// is known changes nothing, and nil is returned.
func (n *node) renew(e *nodeRow) *nodeRow {
	for {
		former := n.row.Load()
		if former.Version > e.Version {
			return nil
		}
		if n.row.CompareAndSwap(former, e) {
			return former
		}
	}
}

// reread reads a node's row again; former is nil when that brought nothing new.
func (f *Fleet) reread(ctx context.Context, n *node) (former *nodeRow, err error) {
	e, err := f.checkPeer(ctx, n.session.Info().Peer)
	if err != nil {
		return nil, err
	}
	if former = n.renew(e); former == nil {
		return nil, nil
	}
	f.mu.Lock()
	if f.live[n.id] == n {
		f.indexLocked(n, n)
	}
	f.mu.Unlock()
	return former, nil
}

// refusal is the error as core's decision against the node, or nil: what fails
// otherwise ends no tunnel.
func refusal(err error) *wire.Error {
	if we, ok := errors.AsType[*wire.Error](err); ok && we.Code == wire.CodeUnauthorized {
		return we
	}
	return nil
}

// recheck reads a node again after it was changed, ends its tunnel when it is
// revoked or gone, and tells it new rules.
func (f *Fleet) recheck(ctx context.Context, id string) error {
	n := f.get(id)
	if n == nil {
		return nil
	}
	former, err := f.reread(ctx, n)
	if why := refusal(err); why != nil {
		return n.close(why)
	}
	if err != nil || former == nil {
		return err
	}
	if former.Version != n.row.Load().Version && n.kind == wire.Extender {
		if err := f.sendRules(ctx, n); err != nil {
			// It must not go on with the old ones: it gets the new with its next Welcome.
			n.close(wire.Errorf(wire.CodeReplaced, "the node's rules changed"))
			return err
		}
	}
	return nil
}

// statusEvery stretches the reporting interval so that all nodes together
// report at most 200 times per second.
func (f *Fleet) statusEvery() time.Duration {
	return max(f.c.StatusEvery, time.Duration(f.connected())*time.Second/200)
}
