package webaccess

import "github.com/prometheus/client_golang/prometheus"

// metrics of the room.
type metrics struct {
	opened      *prometheus.CounterVec
	refused     *prometheus.CounterVec
	ended       *prometheus.CounterVec
	open        prometheus.Histogram
	credentials *prometheus.CounterVec
	dials       *prometheus.CounterVec
	approvals   *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	in, out     prometheus.Counter // of bytes
	records     prometheus.Counter
	blocked     prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Service) *metrics {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caponier_core_web_" + name, Help: help}, []string{label})
	}
	m := &metrics{
		opened:      vec("sessions_opened_total", "Web sessions opened, by whether a browser was waiting.", "start"),
		refused:     vec("sessions_refused_total", "Web sessions refused, by code.", "code"),
		ended:       vec("sessions_ended_total", "Web sessions ended, by reason.", "reason"),
		credentials: vec("credentials_total", "Uses of stored credentials that webproxies asked for, by outcome.", "outcome"),
		dials:       vec("dials_total", "Connections of browsers into sites, by outcome.", "outcome"),
		approvals:   vec("approvals_total", "Requests that needed a second person, by what became of them; waiting counts all.", "state"),
		bytes:       vec("site_bytes_total", "Bytes between browsers and sites.", "direction"),
		open: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caponier_core_web_session_open_seconds", Help: "Time from the request to a browser that has its page.",
			Buckets: prometheus.ExponentialBuckets(0.005, 2, 13),
		}),
		records: prometheus.NewCounter(prometheus.CounterOpts{Name: "caponier_core_web_records_total", Help: "Records taken from nodes."}),
		blocked: prometheus.NewCounter(prometheus.CounterOpts{Name: "caponier_core_web_requests_blocked_total", Help: "Requests of browsers that webproxies refused."}),
	}
	m.in, m.out = m.bytes.WithLabelValues("in"), m.bytes.WithLabelValues("out")
	if r != nil {
		r.MustRegister(m.opened, m.refused, m.ended, m.open, m.credentials, m.dials, m.approvals, m.bytes, m.records, m.blocked,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "caponier_core_web_sessions", Help: "Web sessions on this core, ending ones included.",
			}, func() float64 { return float64(s.Count()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "caponier_core_web_viewers", Help: "Browsers that show a web session of this core now.",
			}, func() float64 {
				s.mu.Lock()
				defer s.mu.Unlock()
				return float64(s.sockets)
			}))
	}
	return m
}
