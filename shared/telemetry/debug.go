package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewRegistry makes a metrics registry with the process and Go collectors and
// caponier_build_info.
func NewRegistry(component, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "caponier_build_info", Help: "1, labelled with the component and its version.",
		ConstLabels: prometheus.Labels{"component": component, "version": version},
	})
	info.Set(1)
	r.MustRegister(info)
	return r
}

// Check is one condition of readiness; nil means fulfilled, the error's text
// is shown to operators.
type Check func(ctx context.Context) error

// Health answers /healthz, /readyz and /readyz/resume. Safe for concurrent use.
type Health struct {
	mu       sync.Mutex
	checks   map[string]Check // guarded by mu
	resume   map[string]bool  // names that also matter for reconnects; guarded by mu
	draining bool             // guarded by mu
}

// NewHealth makes a Health that is ready.
func NewHealth() *Health {
	return &Health{checks: map[string]Check{}, resume: map[string]bool{}}
}

// Add adds a named condition. With resume it also decides whether reconnects
// of existing peers are taken.
func (h *Health) Add(name string, resume bool, c Check) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks[name], h.resume[name] = c, resume
}

// Drain makes readiness fail from now on; liveness stays.
func (h *Health) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
}

// Draining reports whether Drain was called.
func (h *Health) Draining() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.draining
}

// Ready returns the conditions that fail now, by name.
func (h *Health) Ready(ctx context.Context, resumeOnly bool) map[string]string {
	h.mu.Lock()
	checks := map[string]Check{}
	for name, c := range h.checks {
		if !resumeOnly || h.resume[name] {
			checks[name] = c
		}
	}
	draining := h.draining
	h.mu.Unlock()
	bad := map[string]string{}
	if draining {
		bad["drain"] = "shutting down: no new sessions"
	}
	for name, c := range checks {
		if err := c(ctx); err != nil {
			bad[name] = err.Error()
		}
	}
	return bad
}

// Register mounts the health endpoints on mux.
func (h *Health) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"status":"ok"}` + "\n"))
	})
	ready := func(resumeOnly bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
			defer cancel()
			bad := h.Ready(ctx, resumeOnly)
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "no-store")
			status := "ready"
			if len(bad) > 0 {
				status = "not ready"
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			json.NewEncoder(w).Encode(map[string]any{"status": status, "reasons": bad})
		}
	}
	mux.HandleFunc("GET /readyz", ready(false))
	mux.HandleFunc("GET /readyz/resume", ready(true))
}

// ServeDebug serves metrics, health and pprof on l until ctx ends. l should be
// on loopback: there is no authentication.
func ServeDebug(ctx context.Context, l net.Listener, g prometheus.Gatherer, h *Health) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	h.Register(mux)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
