package recording

import "github.com/prometheus/client_golang/prometheus"

// metrics of the room.
type metrics struct {
	started, resumed, refused, failed, damaged, expired, lostFiles, videos, lostVideos prometheus.Counter
}

func newMetrics(r prometheus.Registerer, s *Store) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	x := &metrics{
		started:   counter("caponier_core_recordings_started_total", "Recordings started."),
		resumed:   counter("caponier_core_recordings_resumed_total", "Recordings of web sessions that went on after the death of a core."),
		refused:   counter("caponier_core_recordings_refused_total", "Recordings that could not be started; their sessions were refused."),
		failed:    counter("caponier_core_recordings_failed_total", "Recordings that storage did not take; their sessions were ended."),
		damaged:   counter("caponier_core_recordings_damaged_total", "Recordings found damaged."),
		expired:   counter("caponier_core_recordings_expired_total", "Recordings removed by retention."),
		lostFiles: counter("caponier_core_recording_files_lost_total", "Copies of transferred files that could not be stored."),

		videos:     counter("caponier_core_recording_videos_total", "Videos made of web sessions."),
		lostVideos: counter("caponier_core_recording_videos_failed_total", "Videos that could not be made."),
	}
	if r != nil {
		r.MustRegister(x.started, x.resumed, x.refused, x.failed, x.damaged, x.expired, x.lostFiles, x.videos, x.lostVideos,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "caponier_core_recordings_live", Help: "Recordings being written on this core.",
			}, func() float64 {
				s.mu.Lock()
				defer s.mu.Unlock()
				return float64(len(s.writers))
			}))
	}
	return x
}
