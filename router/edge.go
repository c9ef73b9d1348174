package main

import (
	"log/slog"
	"net/http"
	"sync/atomic"

	"caponier/router/internal/enforce"
	"caponier/shared/daemon"
	"caponier/shared/edge"
	"caponier/shared/wire"
)

// late is the control plane of a node that is made before what it serves.
type late struct{ h atomic.Pointer[http.Handler] }

func (l *late) set(r *enforce.Router) {
	h := r.Control()
	l.h.Store(&h)
}

// ServeHTTP implements http.Handler.
func (l *late) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := l.h.Load()
	if h == nil {
		http.Error(w, "the router is starting", http.StatusServiceUnavailable)
		return
	}
	(*h).ServeHTTP(w, r)
}

func newEdge(cfg *Config, log *slog.Logger) (*edge.Edge, *late, error) {
	var l late
	e, err := edge.New(edge.Config{
		URL: cfg.Core, State: cfg.State, Token: cfg.token, Kind: wire.Router, Name: cfg.Name, Build: daemon.Version,
		Transport: cfg.transport(), QUICAddr: cfg.QUIC, Control: &l, Log: log,
	})
	return e, &l, err
}
