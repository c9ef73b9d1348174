package conn

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the room. Labels come from closed sets.
type metrics struct {
	opened  *prometheus.CounterVec
	refused prometheus.Counter
	ends    *prometheus.CounterVec
	flush   prometheus.Histogram
	decide  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, m *Manager) *metrics {
	x := &metrics{
		opened: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "caponier_core_connections_opened_total", Help: "Connections opened, by kind.",
		}, []string{"kind"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caponier_core_connections_refused_total", Help: "Connections refused by a limit or because no record could be written.",
		}),
		ends: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "caponier_core_connections_ended_total", Help: "Connections ended, by reason.",
		}, []string{"reason"}),
		flush: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caponier_core_connection_flush_seconds", Help: "Time to write a batch of connection records.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 7),
		}),
		decide: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caponier_core_connection_redecide_seconds", Help: "Time to make the decision of a live connection again.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 7),
		}),
	}
	if r != nil {
		r.MustRegister(x.opened, x.refused, x.ends, x.flush, x.decide,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "caponier_core_connections_live", Help: "Live connections on this core.",
			}, func() float64 { return float64(m.Count()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "caponier_core_connection_events_waiting", Help: "Connection events waiting to be written to the database.",
			}, func() float64 {
				m.mu.Lock()
				defer m.mu.Unlock()
				return float64(m.pending)
			}))
	}
	return x
}

func (x *metrics) ended(r EndReason) { x.ends.WithLabelValues(string(r)).Inc() }

func kindLabel(k string) string {
	switch k {
	case "ssh", "sftp", "exec", "tcp", "socks", "web", "network":
		return k
	}
	return "other"
}
