package tunnel

import (
	"sync"
	"time"

	"caponier/shared/wire"
)

const (
	// resetTextWithin is how long the end of a reset stream is held back for
	// its reason's text, which travels beside it. A peer of the version before
	// sends none.
	resetTextWithin = 200 * time.Millisecond
	// resetTexts bounds the reasons kept for streams not asked about yet.
	resetTexts = 512
)

// resetReasons holds why the peer reset streams. QUIC's own frame carries a
// number only; the text comes as a reset frame on the control stream, numbered
// by the low 32 bits of the QUIC stream's number.
type resetReasons struct {
	mu      sync.Mutex
	byID    map[uint32]*wire.Error // guarded by mu
	order   []uint32               // of byID, oldest first; guarded by mu
	arrived chan struct{}          // closed with the next one; guarded by mu
}

func (r *resetReasons) put(id uint32, why *wire.Error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = make(map[uint32]*wire.Error)
	}
	if r.byID[id] == nil {
		if len(r.order) == resetTexts {
			delete(r.byID, r.order[0])
			r.order = append(r.order[:0], r.order[1:]...)
		}
		r.order = append(r.order, id)
	}
	r.byID[id] = why
	if r.arrived != nil {
		close(r.arrived)
		r.arrived = nil
	}
}

// get waits a moment for id's reason, nil if none comes.
func (r *resetReasons) get(id uint32, done <-chan struct{}) *wire.Error {
	t := time.NewTimer(resetTextWithin)
	defer t.Stop()
	for {
		r.mu.Lock()
		why := r.byID[id]
		if r.arrived == nil {
			r.arrived = make(chan struct{})
		}
		arrived := r.arrived
		r.mu.Unlock()
		if why != nil {
			return why
		}
		select {
		case <-arrived:
		case <-t.C:
			return nil
		case <-done:
			return nil
		}
	}
}
