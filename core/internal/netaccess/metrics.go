package netaccess

import "github.com/prometheus/client_golang/prometheus"

// metrics of the room.
type metrics struct {
	opened  prometheus.Counter
	refused *prometheus.CounterVec
	open    prometheus.Histogram
}

func newMetrics(r prometheus.Registerer, s *Service) *metrics {
	m := &metrics{
		opened: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caponier_core_network_sessions_opened_total", Help: "Network sessions opened.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "caponier_core_network_sessions_refused_total", Help: "Network sessions refused, by code.",
		}, []string{"code"}),
		open: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caponier_core_network_session_open_seconds", Help: "Time from the request to every router's confirmation.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 12),
		}),
	}
	if r != nil {
		r.MustRegister(m.opened, m.refused, m.open,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "caponier_core_network_sessions", Help: "Network sessions that count, ending ones included.",
			}, func() float64 { return float64(s.Count()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "caponier_core_network_sessions_ending", Help: "Network sessions whose rules some router has not confirmed gone.",
			}, func() float64 {
				n := 0
				for _, x := range s.snapshot() {
					if x.isOver() {
						n++
					}
				}
				return float64(n)
			}))
	}
	return m
}
