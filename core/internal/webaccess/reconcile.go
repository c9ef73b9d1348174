package webaccess

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/shared/wire"
)

// nodeState is what core knows of a carrier or webproxy between its tunnels.
type nodeState struct {
	tunnel uint64 // the one it was compared over last
	busy   bool   // it is being compared
	agreed uint64 // as tunnel, also while it is to be compared again
}

// compared reports whether what a node has is known over its tunnel.
func (s *Service) compared(id string, tunnel uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[id]
	return n != nil && n.agreed == tunnel
}

func (s *Service) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		n.tunnel = 0
	}
}

// look has every node that came with a new tunnel compared.
func (s *Service) look(ctx context.Context) {
	for _, kind := range []wire.NodeKind{wire.Carrier, wire.WebProxy} {
		for _, o := range s.cfg.Fleet.Online(kind) {
			s.mu.Lock()
			n := s.nodes[o.ID]
			if n == nil {
				n = &nodeState{}
				s.nodes[o.ID] = n
			}
			due := !n.busy && n.tunnel != o.Tunnel
			n.busy = n.busy || due
			s.mu.Unlock()
			if !due {
				continue
			}
			s.work.Go(func() {
				err := s.reconcile(ctx, kind, o.ID)
				s.mu.Lock()
				if n.busy = false; err == nil {
					n.tunnel, n.agreed = o.Tunnel, o.Tunnel
				}
				s.mu.Unlock()
				if err != nil {
					if ctx.Err() == nil {
						s.cfg.Log.Warn("sessions of a node not read; tried again", "node", o.Name, "err", err)
					}
					return
				}
				for _, x := range s.snapshot() {
					x.poke() // what it was not to be told before
				}
			})
		}
	}
}

// reconcile compares what a node has with what core wants of it: unknown
// sessions are ended there, those it has lost end here, the others are told
// again what holds.
func (s *Service) reconcile(ctx context.Context, kind wire.NodeKind, id string) error {
	path := wire.PathCarrierSessions
	if kind == wire.WebProxy {
		path = wire.PathWebProxySessions
	}
	// Known before the node is asked: what is opened meanwhile is not lost.
	known := map[string]*session{}
	waiting := map[*session][]*held{}
	for _, x := range s.snapshot() {
		carrier, proxy := x.pair()
		x.mu.Lock()
		open := x.state == Open
		x.mu.Unlock()
		if open && (kind == wire.Carrier && carrier == id || kind == wire.WebProxy && proxy == id) {
			known[x.row.ID] = x
			waiting[x] = x.someHeld(true)
		}
	}
	actx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var states wire.WebStates
	if err := s.cfg.Fleet.Ask(actx, id, "GET", path, nil, &states); err != nil {
		return fmt.Errorf("ask for sessions: %w", err)
	}
	has := map[string]wire.WebState{}
	var errs []error
	for _, st := range states.Sessions {
		has[st.ID] = st
		if st.Ending || s.find(st.ID) != nil {
			continue
		}
		mine, err := s.unknown(actx, st.ID)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !mine {
			continue
		}
		s.cfg.Log.Warn("a node has a session that core does not know; it is ended", "node", id, "session", st.ID)
		var ack wire.WebAck
		if err := s.cfg.Fleet.Ask(actx, id, "DELETE", path+"/"+st.ID, nil, &ack); err != nil {
			errs = append(errs, err)
		}
	}
	if kind == wire.WebProxy && states.Holds {
		dropLost(ctx, states, waiting)
	}
	var g sync.WaitGroup
	for _, x := range known {
		st, ok := has[x.row.ID]
		switch {
		case kind == wire.Carrier && st.Ending: // it is about to tell why
		case kind == wire.Carrier && !ok:
			x.live.End(conn.EndedByRoute, "The session was closed because its carrier has lost it.")
		default:
			// A webproxy that was started again knows nothing, and may not be
			// ready to: then the session tries again by itself.
			g.Go(func() {
				if !x.sync(ctx, kind) {
					x.poke()
				}
			})
		}
	}
	g.Wait()
	return errors.Join(errs...)
}

// dropLost ends requests that were known before a webproxy was asked, waited or
// were approved and not sent, and that it does not hold: it was restarted, and
// they died with it.
func dropLost(ctx context.Context, states wire.WebStates, waiting map[*session][]*held) {
	holds := map[string]map[string]bool{}
	for _, st := range states.Sessions {
		holds[st.ID] = map[string]bool{}
		for _, h := range st.Holds {
			holds[st.ID][h] = true
		}
	}
	for x, list := range waiting {
		for _, h := range list {
			if !holds[x.row.ID][h.hold] {
				x.decided(ctx, h, wire.ApprovalLost, "The proxy was restarted.", audit.System)
			}
		}
	}
}

// unknown reports whether a session that is not kept here is nobody's: ended,
// never there, or of an earlier run of this core.
func (s *Service) unknown(ctx context.Context, id string) (bool, error) {
	if !s.knows() {
		return false, nil
	}
	core, ended, err := s.owner(ctx, id)
	if errors.Is(err, db.ErrNotFound) {
		return true, nil
	}
	return ended || core == s.cfg.Conns.CoreID(), err
}

// owner tells which core has a session, and whether it has ended.
func (s *Service) owner(ctx context.Context, id string) (core string, ended bool, err error) {
	var at int64
	err = db.Classify(s.cfg.DB.QueryRowContext(ctx, ownerSQL, id).Scan(&core, &at))
	if err != nil {
		return "", false, fmt.Errorf("read web session %s: %w", clip(id, 64), err)
	}
	return core, at != 0, nil
}
