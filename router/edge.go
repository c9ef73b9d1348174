package main

import (
	"net/http"
	"sync/atomic"

	"caponier/router/internal/enforce"
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
