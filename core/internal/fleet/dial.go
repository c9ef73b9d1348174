package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"caponier/core/internal/audit"
	"caponier/shared/control"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

const (
	// dialTimeout bounds a dial; the edge itself gives up after 10 s.
	dialTimeout = 12 * time.Second
	// dialTries is how many nodes of a site are asked.
	dialTries = 3
)

// Dial connects to a destination through the least loaded live extender of
// the site (or directly) and waits until it is connected or refused. Errors
// are *wire.Error with public text: no extender online, refused by rule, DNS,
// unreachable, timeout. A refusal by the edge's rules is audited.
func (f *Fleet) Dial(ctx context.Context, r DialRequest) (Conn, Route, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	via := "edge"
	dial := f.dialSite
	if r.Site == "" {
		via, dial = "direct", f.dialDirect
	}
	conn, route, err := dial(ctx, r)
	switch we, _ := errors.AsType[*wire.Error](err); {
	case err == nil:
		f.metrics.dials.WithLabelValues(via, "ok").Inc()
		f.metrics.dialSeconds.Observe(time.Since(start).Seconds())
	case we == nil:
		f.log.Error("dial", telemetry.KeyConnection, r.Connection, telemetry.KeyErr, err)
		err = wire.Errorf(wire.CodeInternal, "internal error")
		fallthrough
	default:
		result := "failed"
		if we != nil && we.Code == wire.CodeRefused {
			result = "refused"
			f.noteRefused(r, route, we)
		}
		f.metrics.dials.WithLabelValues(via, result).Inc()
	}
	return conn, route, err
}

// DialUDP is Dial for datagrams: each Read and Write is one, of up to
// tunnel.MaxDatagram bytes. With a site the extender ends a flow that is idle
// (Read then returns io.EOF); without one that is the caller's business.
func (f *Fleet) DialUDP(ctx context.Context, r DialRequest) (net.Conn, Route, error) {
	r.network = "udp"
	c, route, err := f.Dial(ctx, r)
	if err != nil {
		return nil, route, err
	}
	if st, ok := c.(tunnel.Stream); ok {
		return tunnel.NewDatagrams(st), route, nil
	}
	return c, route, nil
}

// udpConn is a direct flow; there is no half of it to close.
type udpConn struct{ *net.UDPConn }

// CloseWrite implements Conn.
func (udpConn) CloseWrite() error { return nil }

func (f *Fleet) dialDirect(ctx context.Context, r DialRequest) (Conn, Route, error) {
	route := Route{Transport: "direct"}
	if r.network == "udp" {
		c, err := f.dialer.DialUDP(ctx, r.Address)
		if err != nil {
			return nil, route, err
		}
		return udpConn{c}, route, nil
	}
	c, err := f.dialer.Dial(ctx, r.Address)
	if err != nil {
		return nil, route, err
	}
	return c, route, nil
}

func (f *Fleet) dialSite(ctx context.Context, r DialRequest) (Conn, Route, error) {
	var tried []*node
	var last error
	var route Route
	for len(tried) < dialTries {
		n := f.pick(r.Site, tried)
		if n == nil {
			break
		}
		tried = append(tried, n)
		route = n.route()
		st, err := f.dialNode(ctx, n, r, route)
		if err == nil {
			return st, route, nil
		}
		last = err
		if !elsewhere(err) || ctx.Err() != nil {
			break
		}
	}
	if last != nil {
		return nil, route, last
	}
	return nil, Route{Site: r.Site}, f.noExtender(ctx, r.Site)
}

func (n *node) route() Route {
	info, e := n.session.Info(), n.row.Load()
	return Route{Site: e.Site, NodeID: n.id, Node: e.Name, Transport: string(info.Transport), Binding: string(info.Binding)}
}

func (f *Fleet) dialNode(ctx context.Context, n *node, r DialRequest, route Route) (Conn, error) {
	st, err := n.session.Open(ctx, wire.Preface{Kind: wire.StreamDial, Class: r.Class, Connection: r.Connection, Network: cmp.Or(r.network, "tcp"), Dest: r.Address})
	if err != nil {
		if _, ok := errors.AsType[*wire.Error](err); ok {
			return nil, err
		}
		return nil, lost(route)
	}
	if r.Optimistic {
		f.serving.Go(func() { f.watchOptimistic(ctx, st, r, route) })
		return st, nil
	}
	if err := f.accepted(ctx, st, r, route); err != nil {
		return nil, err
	}
	return st, nil
}

// accepted waits for the edge's verdict; on error the stream is gone.
func (f *Fleet) accepted(ctx context.Context, st tunnel.Stream, r DialRequest, route Route) error {
	err := st.Accepted(ctx)
	if err == nil {
		return nil
	}
	we, ok := errors.AsType[*wire.Error](err)
	if ctx.Err() != nil && !ok {
		we = wire.Errorf(wire.CodeTimeout, "%s did not answer in time through extender %s", r.Address, route.Node)
	} else if !ok {
		we = lost(route)
	}
	st.Reset(we)
	return we
}

// watchOptimistic waits for the verdict on a stream already in use, so that a
// refusal is audited like any other. The stream's own reader gets the error.
func (f *Fleet) watchOptimistic(ctx context.Context, st tunnel.Stream, r DialRequest, route Route) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout)
	defer cancel()
	err := st.Accepted(ctx)
	if we, ok := errors.AsType[*wire.Error](err); ok && we.Code == wire.CodeRefused {
		f.noteRefused(r, route, we)
	} else if err != nil && ctx.Err() != nil {
		st.Reset(wire.Errorf(wire.CodeTimeout, "%s did not answer in time through extender %s", r.Address, route.Node))
	}
}

func lost(r Route) *wire.Error {
	return wire.Errorf(wire.CodeTunnelLost, "the tunnel of extender %s was lost", r.Node)
}

// elsewhere reports whether another node of the site may do better.
func elsewhere(err error) bool {
	we, ok := errors.AsType[*wire.Error](err)
	if !ok {
		return false
	}
	switch we.Code {
	case wire.CodeTunnelLost, wire.CodeDraining, wire.CodeLimit, wire.CodeInternal, wire.CodeReplaced, wire.CodeDNS, wire.CodeUnreachable:
		return true
	}
	return false
}

// pick returns the live extender of the site with the fewest open streams
// that is not cordoned, draining or tried before; among equals any.
func (f *Fleet) pick(site string, tried []*node) *node {
	f.mu.Lock()
	candidates := make([]*node, 0, len(f.sites[site]))
	for _, n := range f.sites[site] {
		candidates = append(candidates, n)
	}
	f.mu.Unlock()
	var best *node
	least, equals := 0, 0
next:
	for _, n := range candidates {
		for _, t := range tried {
			if t.id == n.id {
				continue next
			}
		}
		if n.row.Load().Cordoned || n.leaving.Load() || isDone(n.session) {
			continue
		}
		load := n.session.Stats().Streams
		switch {
		case best == nil || load < least:
			best, least, equals = n, load, 1
		case load == least:
			equals++
			if rand.IntN(equals) == 0 {
				best = n
			}
		}
	}
	return best
}

// Unreachable says why no destination of a site can be reached now; empty when
// an extender would be asked.
func (f *Fleet) Unreachable(ctx context.Context, site string) string {
	if site == "" || f.pick(site, nil) != nil {
		return ""
	}
	return f.noExtender(ctx, site).Public
}

// noExtender says why a site cannot be reached.
func (f *Fleet) noExtender(ctx context.Context, site string) *wire.Error {
	known, err := siteEdges(ctx, f.c.DB, site)
	if err != nil {
		f.log.Error("read extenders", "site", site, telemetry.KeyErr, err)
		return wire.Errorf(wire.CodeUnreachable, "no extender of site %s is connected", site)
	}
	if len(known) == 0 {
		return wire.Errorf(wire.CodeUnreachable, "no extender of site %s is connected: none was ever enrolled", site)
	}
	var last siteEdge
	for _, k := range known {
		if n := f.byName(site, k.Name); n != nil {
			if k.Cordoned {
				return wire.Errorf(wire.CodeUnreachable, "no extender of site %s takes new connections: %s is cordoned", site, k.Name)
			}
			if n.leaving.Load() {
				return wire.Errorf(wire.CodeUnreachable, "no extender of site %s takes new connections: %s is draining", site, k.Name)
			}
		}
		if k.SeenAt.After(last.SeenAt) || last.Name == "" {
			last = k
		}
	}
	if last.SeenAt.IsZero() {
		return wire.Errorf(wire.CodeUnreachable, "no extender of site %s is connected (never seen: %s)", site, last.Name)
	}
	return wire.Errorf(wire.CodeUnreachable, "no extender of site %s is connected (last seen %s: %s)", site, ago(f.now().Sub(last.SeenAt)), last.Name)
}

func (f *Fleet) byName(site, name string) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.sites[site] {
		if n.row.Load().Name == name {
			return n
		}
	}
	return nil
}

// ago writes a span for people.
func ago(d time.Duration) string {
	switch {
	case d < 2*time.Second:
		return "just now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

func (f *Fleet) noteRefused(r DialRequest, route Route, why *wire.Error) {
	object := audit.Object{Kind: "destination", Name: r.Address}
	f.events.put(note{event: &audit.Event{Type: audit.EdgeDialRefused, Outcome: audit.Denied,
		Actor: audit.Actor{Kind: "edge", ID: route.NodeID, Name: route.Node, Via: "tunnel"}, Object: object, Connection: r.Connection,
		Fields: map[string]string{"site": r.Site, "reason": why.Public}}})
}

// Probe tries a destination step by step and leaves nothing open.
func (f *Fleet) Probe(ctx context.Context, r DialRequest) []DialStage {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if r.Site == "" {
		return append([]DialStage{{Name: "tunnel", OK: true, Text: "the target has no site: core dials it by itself"}},
			stages(f.dialer.Probe(ctx, r.Address))...)
	}
	start := time.Now()
	n := f.pick(r.Site, nil)
	if n == nil {
		return []DialStage{{Name: "tunnel", MS: ms(start), Text: f.noExtender(ctx, r.Site).Public,
			Fix: "start an extender of the site, or look at its log (journalctl -u caponier-extender)"}}
	}
	rtt, err := n.session.Ping(ctx)
	name := n.row.Load().Name
	if err != nil {
		return []DialStage{{Name: "tunnel", MS: ms(start), Text: "extender " + name + " does not answer",
			Fix: "look at the extender's log and at the network between it and core"}}
	}
	info := n.session.Info()
	out := []DialStage{{Name: "tunnel", OK: true, MS: ms(start), Text: fmt.Sprintf("extender %s answers over %s (%s) in %.1f ms",
		name, info.Transport, info.Binding, float64(rtt.Microseconds())/1000)}}
	var resp wire.ProbeResponse
	if err := control.Call(ctx, n.session, "POST", wire.PathEdgeProbe, wire.ProbeRequest{Dest: r.Address}, &resp); err != nil {
		f.log.Warn("probe", telemetry.KeyNode, name, telemetry.KeyErr, err)
		return append(out, DialStage{Name: "policy", MS: ms(start), Text: "extender " + name + " could not be asked to try",
			Fix: "look at the extender's log; it may be of another release"})
	}
	return append(out, stages(resp.Stages)...)
}

func stages(in []wire.ProbeStage) []DialStage {
	var out []DialStage
	for _, s := range in[:min(len(in), 16)] {
		out = append(out, DialStage{Name: limit(s.Name, 16), OK: s.OK, MS: s.MS, Text: limit(s.Text, 500), Fix: limit(s.Fix, 500)})
	}
	return out
}

func ms(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }
