package webaccess

import (
	"context"
	"errors"
	"net"

	"caponier/core/internal/audit"
	"caponier/core/internal/fleet"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Stream serves a stream that a webproxy opened: one connection of a session's
// browser into a site. It returns when that is over.
func (s *Service) Stream(ctx context.Context, p fleet.Peer, st tunnel.Stream) {
	if err := s.dial(ctx, p, st); err != nil {
		// The webproxy tells its own side; a refusal that does not arrive is a
		// stream that is gone.
		_ = st.Refuse(err)
	}
}

func (s *Service) dial(ctx context.Context, p fleet.Peer, st tunnel.Stream) *wire.Error {
	ask := st.Preface()
	x := s.awaited(ctx, ask.Connection)
	if x == nil || p.Kind != wire.WebProxy || ask.Network != "tcp" {
		s.metrics.dials.WithLabelValues("refused").Inc()
		return wire.Errorf(wire.CodeRefused, "there is no such session here")
	}
	site, address, why := mayDial(x.view(), p.ID, ask.Dest)
	if why != nil {
		s.metrics.dials.WithLabelValues("refused").Inc()
		if x.first("dial " + ask.Dest) {
			s.append(ctx, audit.Event{
				Type: audit.WebDialRefused, Outcome: audit.Denied, Actor: edgeActor(p), Connection: x.row.ID,
				Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName},
				Fields: map[string]string{"user": x.row.UserName, "destination": clip(ask.Dest, 300), "reason": why.Public},
			})
		}
		return why
	}
	// Gone with the session, whatever still flows.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(x.live.Context(), cancel)
	defer stop()
	c, route, err := s.cfg.Fleet.Dial(ctx, fleet.DialRequest{Site: site, Address: address, Class: ask.Class, Connection: x.row.ID})
	if err != nil {
		s.metrics.dials.WithLabelValues("failed").Inc()
		if we, ok := errors.AsType[*wire.Error](err); ok {
			return we
		}
		return wire.Errorf(wire.CodeInternal, "internal error")
	}
	s.metrics.dials.WithLabelValues("ok").Inc()
	if x.first("route " + site + " " + route.NodeID) {
		x.live.Channel("web-route", site+"/"+address+" through "+route.Node)
	}
	if err := st.Confirm(); err != nil {
		c.Close()
		return wire.Errorf(wire.CodeTunnelLost, "the tunnel was lost")
	}
	// The target's bytes count, but are no activity of the user: what a page
	// loads by itself keeps nothing open.
	_, _, err = tunnel.Relay(ctx, st, c, tunnel.Counters{
		AB: func(n int) {
			s.metrics.out.Add(float64(n))
			x.live.Moved(n, 0)
		},
		BA: func(n int) {
			s.metrics.in.Add(float64(n))
			x.live.Moved(0, n)
		},
	})
	if err != nil && !errors.Is(err, net.ErrClosed) && ctx.Err() == nil {
		s.cfg.Log.Debug("connection of a web session", "session", x.row.ID, "destination", ask.Dest, "err", err)
	}
	return nil
}
