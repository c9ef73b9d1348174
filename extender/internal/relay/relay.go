// Package relay is the extender's work: it takes a destination that core
// names, resolves and checks it on its own side, connects, and copies both
// ways, keeping half-close. Flows of datagrams end when they are idle.
//
// A destination must pass the extender's own rules and the ones core sent
// last; core can only narrow. Until core has sent rules nothing is relayed.
package relay

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"caponier/shared/control"
	"caponier/shared/dial"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// Config is what a Relay needs.
type Config struct {
	// Rules are the extender's own.
	Rules dial.Rules
	// Resolver is the site's; nil: the system's.
	Resolver dial.Resolver
	// Timeout bounds one dial; 0: 10 s.
	Timeout time.Duration
	// MaxStreams bounds relayed connections at one time; 0: 8,000.
	MaxStreams int64
	// MaxFlows bounds flows of datagrams among them; 0: 4,000.
	MaxFlows int64
	// FlowIdle is how long a flow may be silent; 0: 2 min. One that never was
	// more than a question and an answer ends after 30 s.
	FlowIdle time.Duration
	Log      *slog.Logger // nil: discard
}

// Relay serves dial streams. Safe for concurrent use.
type Relay struct {
	c      Config
	log    *slog.Logger
	dialer *dial.Dialer
	// narrow holds core's rules; nil until they came.
	narrow atomic.Pointer[dial.Rules]

	buffers sync.Pool // of *[]byte, tunnel.MaxDatagram long

	open, flows                   atomic.Int64
	total, refused, failed        atomic.Uint64
	bytesToTarget, bytesFromThere atomic.Uint64
}

// New makes a Relay.
func New(c Config) *Relay {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.MaxStreams == 0 {
		c.MaxStreams = 8000
	}
	if c.MaxFlows == 0 {
		c.MaxFlows = 4000
	}
	if c.FlowIdle == 0 {
		c.FlowIdle = 2 * time.Minute
	}
	return &Relay{c: c, log: c.Log, dialer: dial.New(dial.Config{Rules: c.Rules, Resolver: c.Resolver, Timeout: c.Timeout})}
}

// Narrow takes core's rules. Bad ones are refused and nothing is relayed until
// good ones come: what core meant to forbid cannot be known.
func (r *Relay) Narrow(w wire.DialRules) error {
	rules, err := dial.ParseRules(w)
	if err != nil {
		r.narrow.Store(nil)
		return err
	}
	r.narrow.Store(&rules)
	return nil
}

// ServeStream relays one stream to its destination and returns when both
// directions have ended.
func (r *Relay) ServeStream(ctx context.Context, s tunnel.Stream) {
	p := s.Preface()
	r.total.Add(1)
	if r.open.Add(1) > r.c.MaxStreams {
		r.open.Add(-1)
		s.Refuse(wire.Errorf(wire.CodeLimit, "the extender relays all the connections it takes (%d)", r.c.MaxStreams))
		return
	}
	defer r.open.Add(-1)
	narrow := r.narrow.Load()
	if narrow == nil {
		s.Refuse(wire.Errorf(wire.CodeRefused, "the extender has no rules from core"))
		return
	}
	switch p.Network {
	case "tcp", "":
	case "udp":
		r.serveFlow(ctx, s, *narrow)
		return
	default:
		s.Refuse(wire.Errorf(wire.CodeBadRequest, "the extender relays tcp and udp only"))
		return
	}
	conn, err := r.dialer.Dial(ctx, p.Dest, *narrow)
	if err != nil {
		r.count(p, err)
		s.Refuse(dial.Public(err))
		return
	}
	if err := s.Confirm(); err != nil {
		conn.Close()
		return
	}
	r.log.Debug("relaying", telemetry.KeyConnection, p.Connection, telemetry.KeyTarget, p.Dest)
	_, _, err = tunnel.Relay(ctx, s, conn, tunnel.Counters{
		AB: func(n int) { r.bytesToTarget.Add(uint64(n)) },
		BA: func(n int) { r.bytesFromThere.Add(uint64(n)) },
	})
	if err != nil {
		r.log.Debug("relay ended", telemetry.KeyConnection, p.Connection, telemetry.KeyErr, err)
	}
}

// count tells a refusal from a failure.
func (r *Relay) count(p wire.Preface, err error) {
	if ref, ok := errors.AsType[*dial.RefusedError](err); ok {
		r.refused.Add(1)
		r.log.Warn("destination refused", telemetry.KeyConnection, p.Connection, telemetry.KeyTarget, p.Dest,
			"address", ref.Addr.String(), "reason", string(ref.Reason))
		return
	}
	r.failed.Add(1)
	r.log.Info("destination not reached", telemetry.KeyConnection, p.Connection, telemetry.KeyTarget, p.Dest, telemetry.KeyErr, err)
}

// Status fills in the relay's counts.
func (r *Relay) Status(s *wire.Status) {
	s.Streams = int(r.open.Load())
	s.StreamsTotal, s.Refused, s.Failed = r.total.Load(), r.refused.Load(), r.failed.Load()
	s.BytesOut, s.BytesIn = r.bytesToTarget.Load(), r.bytesFromThere.Load()
}

// Control serves core's requests: new rules, probes.
func (r *Relay) Control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT "+wire.PathEdgeRules, func(w http.ResponseWriter, req *http.Request) {
		var rules wire.DialRules
		if !control.Read(w, req, &rules) {
			return
		}
		if err := r.Narrow(rules); err != nil {
			r.log.Error("rules from core", telemetry.KeyErr, err)
			http.Error(w, "these rules cannot be read", http.StatusUnprocessableEntity)
			return
		}
		r.log.Info("rules changed by core", "allow", len(rules.Allow), "deny", len(rules.Deny), "ports", len(rules.Ports))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST "+wire.PathEdgeProbe, func(w http.ResponseWriter, req *http.Request) {
		var probe wire.ProbeRequest
		if !control.Read(w, req, &probe) {
			return
		}
		narrow := r.narrow.Load()
		if narrow == nil {
			control.Reply(w, wire.ProbeResponse{Stages: []wire.ProbeStage{{Name: "policy", Text: "the extender has no rules from core", Fix: "restart the extender"}}})
			return
		}
		control.Reply(w, wire.ProbeResponse{Stages: r.dialer.Probe(req.Context(), probe.Dest, *narrow)})
	})
	return mux
}
