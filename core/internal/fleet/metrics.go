package fleet

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	enrols      *prometheus.CounterVec
	tunnels     *prometheus.CounterVec
	dials       *prometheus.CounterVec
	dialSeconds prometheus.Histogram
}

// newMetrics makes the room's metrics; r may be nil.
func newMetrics(r prometheus.Registerer, f *Fleet) *metrics {
	m := &metrics{
		enrols: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caponier_core_edge_enrolments_total",
			Help: "Enrolments by result (ok, refused)."}, []string{"result"}),
		tunnels: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caponier_core_edge_tunnels_total",
			Help: "Tunnels asked for, by result (connected, refused, deferred, failed)."}, []string{"result"}),
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caponier_core_dials_total",
			Help: "Dials by route (direct, edge) and result (ok, refused, failed)."}, []string{"route", "result"}),
		dialSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "caponier_core_dial_seconds",
			Help: "Time until a destination was connected, successful dials only.", Buckets: prometheus.ExponentialBuckets(0.001, 3, 9)}),
	}
	if r != nil {
		r.MustRegister(m.enrols, m.tunnels, m.dials, m.dialSeconds,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caponier_core_edges_connected_nodes",
				Help: "Edge nodes with a live tunnel to this core."}, func() float64 { return float64(f.connected()) }))
	}
	return m
}
