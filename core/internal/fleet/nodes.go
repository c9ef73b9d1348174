package fleet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/db"
	"caponier/shared/control"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Node is what other rooms may know of an edge node.
type Node struct {
	ID, Name string
	Kind     wire.NodeKind
	Site     string
	// Health is what the console shows: online, draining, cordoned, offline,
	// revoked or never_connected.
	Health    string
	Cordoned  bool
	SeenAt    time.Time // zero: never
	LastError string
}

// Nodes lists the nodes of a kind that are not revoked, ordered by ID.
func (f *Fleet) Nodes(ctx context.Context, q db.Querier, kind wire.NodeKind) ([]Node, error) {
	var out []Node
	for after := ""; ; {
		rows, err := listEdges(ctx, q, after, "", string(kind), access.Everywhere(), 500)
		if err != nil {
			return nil, err
		}
		for i := range rows {
			e := &rows[i]
			after = e.ID
			if !e.RevokedAt.IsZero() {
				continue
			}
			out = append(out, Node{ID: e.ID, Name: e.Name, Kind: e.Kind, Site: e.Site, Health: f.show(e).Health,
				Cordoned: e.Cordoned, SeenAt: e.SeenAt, LastError: e.LastError})
		}
		if len(rows) < 500 {
			return out, nil
		}
	}
}

// Online is a node with a live tunnel to this core.
type Online struct {
	ID, Name string
	// Tunnel is another number for each tunnel of the node: what was agreed
	// over one does not hold over the next.
	Tunnel uint64
	// Remote is the node's address as seen here (behind a load balancer: the
	// load balancer's).
	Remote   netip.AddrPort
	Cordoned bool
	Labels   map[string]string // not to be changed
	// Status is what the node reported last, at At; zero before its first report.
	Status wire.Status
	At     time.Time
}

// Online lists the nodes of a kind that are connected to this core now.
func (f *Fleet) Online(kind wire.NodeKind) []Online {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Online
	for _, n := range f.live {
		if n.kind != kind || isDone(n.session) {
			continue
		}
		e := n.row.Load()
		o := Online{ID: n.id, Name: e.Name, Tunnel: n.serial, Remote: n.session.Info().Remote,
			Cordoned: e.Cordoned || n.leaving.Load(), Labels: e.Labels}
		if s := n.status.Load(); s != nil {
			o.Status, o.At = s.Status, s.at
			o.Status.Web = webCapacity(s.Web)
		}
		out = append(out, o)
	}
	return out
}

// Changed is closed at the next time a node connects or disconnects.
func (f *Fleet) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// changedLocked wakes those who wait on Changed; f.mu is held.
func (f *Fleet) changedLocked() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// ErrOffline: the node has no tunnel to this core.
var ErrOffline = errors.New("the node is not connected")

// Ask sends a control request to a node over its live tunnel and decodes the
// answer. Both may be as large as wire.MaxRouterBody.
func (f *Fleet) Ask(ctx context.Context, nodeID, method, path string, in, out any) error {
	n := f.get(nodeID)
	if n == nil {
		return ErrOffline
	}
	return control.Exchange(ctx, n.session, method, path, in, out, wire.MaxRouterBody)
}

// OpenStream opens a stream to a node over its live tunnel, without waiting for
// its answer. A *wire.Error says why it could not be.
func (f *Fleet) OpenStream(ctx context.Context, nodeID string, p wire.Preface) (tunnel.Stream, error) {
	n := f.get(nodeID)
	if n == nil {
		return nil, ErrOffline
	}
	st, err := n.session.Open(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("open stream to %s: %w", n.row.Load().Name, err)
	}
	return st, nil
}

// Peer is the node at the other end of a tunnel, proven by its certificate.
type Peer struct {
	ID, Name string
	Kind     wire.NodeKind
	// Skew is the node's clock minus core's, by its last reports.
	Skew time.Duration
}

func (n *node) peer() Peer {
	return Peer{ID: n.id, Name: n.row.Load().Name, Kind: n.kind, Skew: time.Duration(n.skew.Load()) * time.Microsecond}
}

type peerKey struct{}

// PeerFrom returns the node whose request a handler of Config.Control serves.
func PeerFrom(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerKey{}).(Peer)
	return p, ok
}

// mayOpen reports whether a stream a node opens goes to Config.Streams.
func (f *Fleet) mayOpen(n *node, p wire.Preface) bool {
	return f.c.Streams != nil && n.kind == wire.WebProxy && n.registered.Load() && p.Kind == wire.StreamDial
}

// webCapacity is what a carrier or webproxy said of itself, its texts bounded.
func webCapacity(w *wire.WebCapacity) *wire.WebCapacity {
	if w == nil {
		return nil
	}
	c := *w
	c.Problem, c.Address = limit(c.Problem, 300), limit(c.Address, 300)
	c.Engines = slices.Clone(w.Engines[:min(len(w.Engines), wire.MaxWebEngines)])
	for i := range c.Engines {
		c.Engines[i].Name, c.Engines[i].Problem = limit(c.Engines[i].Name, 30), limit(c.Engines[i].Problem, 300)
	}
	return &c
}
