package fleet

import (
	"math"
	"sync"
	"time"
)

// historyLen is how many reports are remembered: ten minutes of a small fleet.
const historyLen = 40

// history is the recent past of one node in 164 bytes, for a line in the console.
type history struct {
	mu  sync.Mutex
	len uint8 // guarded by mu, as all below
	at  uint8 // the oldest, once the ring is full
	// rtt is in tenths of a millisecond; both stop at their largest value.
	rtt, streams [historyLen]uint16
}

func (h *history) add(rtt time.Duration, streams int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := (h.at + h.len) % historyLen
	if h.len < historyLen {
		h.len++
	} else {
		h.at = (h.at + 1) % historyLen
	}
	h.rtt[i], h.streams[i] = short(rtt.Microseconds()/100), short(int64(streams))
}

func short(n int64) uint16 { return uint16(max(0, min(n, math.MaxUint16))) }

// History is the recent past of a node as the API shows it.
type History struct {
	EverySeconds float64   `json:"every_s"`
	RTTMS        []float64 `json:"rtt_ms" nullable:"false"`
	Streams      []int     `json:"streams" nullable:"false"`
}

func (h *history) view(every time.Duration) *History {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := &History{EverySeconds: every.Seconds(), RTTMS: make([]float64, h.len), Streams: make([]int, h.len)}
	for i := range v.RTTMS {
		at := (int(h.at) + i) % historyLen
		v.RTTMS[i], v.Streams[i] = float64(h.rtt[at])/10, int(h.streams[at])
	}
	return v
}
