package tunnel

import (
	"sync"
	"time"
)

// deadline is a point in time that waiting operations select on. Its zero
// value is "never" and costs nothing.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer   // guarded by mu
	expired chan struct{} // closed when the deadline passed; guarded by mu
}

// set moves the deadline, for operations under way too. The zero time is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		d.expired = nil // the timer closes, or closed, the old channel
	}
	d.timer = nil
	if d.expired != nil {
		select {
		case <-d.expired:
			d.expired = nil
		default:
		}
	}
	if d.expired == nil && !t.IsZero() {
		d.expired = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	expired := d.expired
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(expired) })
		return
	}
	close(expired)
}

// wait returns a channel that is closed when the deadline passes. A nil
// channel is never. Who moves the deadline must wake waiters, so that they ask
// again: the channel may have been replaced.
func (d *deadline) wait() chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expired
}
