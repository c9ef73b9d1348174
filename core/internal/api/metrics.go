package api

import (
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	duration *prometheus.HistogramVec
	streams  prometheus.Gauge
}

// newMetrics makes the frame's metrics and registers them on r, if any.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "caponier_core_api_request_duration_seconds", Help: "Time to answer a request, by operation and status class.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10, 60},
		}, []string{"operation", "class"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caponier_core_api_event_streams", Help: "Open event streams.",
		}),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.duration, m.streams} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("api: register metrics: %w", err)
		}
	}
	return m, nil
}

// observe counts a request; op is empty when no operation was found.
func (m *metrics) observe(op string, status int, took time.Duration) {
	if op == "" {
		op = "none"
	}
	m.duration.WithLabelValues(op, class(status)).Observe(took.Seconds())
}

func class(status int) string {
	switch {
	case status == http.StatusSwitchingProtocols:
		return "1xx"
	case status < 200 || status > 599:
		return "other"
	default:
		return itoa(status/100) + "xx"
	}
}
