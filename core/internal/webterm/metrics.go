package webterm

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	opened, refused, resumed prometheus.Counter
	files                    *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Service) *metrics {
	m := &metrics{
		opened:  prometheus.NewCounter(prometheus.CounterOpts{Name: "caponier_core_terminal_sessions_total", Help: "Terminal sessions opened from browsers."}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{Name: "caponier_core_terminal_refused_total", Help: "Terminal sessions that were refused or failed to connect."}),
		resumed: prometheus.NewCounter(prometheus.CounterOpts{Name: "caponier_core_terminal_resumed_total", Help: "Sockets that took a running terminal session up again."}),
		files: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "caponier_core_terminal_file_bytes_total", Help: "Bytes of files moved through the file panel."},
			[]string{"direction"}),
	}
	if reg == nil {
		return m
	}
	live := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caponier_core_terminal_sessions", Help: "Terminal sessions of browsers now."},
		func() float64 { n, _ := s.count(); return float64(n) })
	watchers := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "caponier_core_watchers", Help: "Sockets of people watching live connections."},
		func() float64 { _, n := s.count(); return float64(n) })
	reg.MustRegister(m.opened, m.refused, m.resumed, m.files, live, watchers)
	return m
}
