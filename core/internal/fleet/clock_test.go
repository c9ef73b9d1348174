package fleet

import (
	"testing"
	"time"
)

// A report that was long on the way does not move a node's clock; one that was
// set does, at once, and one that drifts after a few reports.
func TestClock(t *testing.T) {
	const ms = time.Millisecond
	var c clock
	for i, x := range []struct{ told, want time.Duration }{
		{-300 * ms, -300 * ms}, {-2 * ms, -2 * ms}, {-900 * ms, -2 * ms}, {-1 * ms, -1 * ms}, {-4 * time.Second, -1 * ms},
		{-time.Hour, -time.Hour}, {-time.Hour - 500*ms, -time.Hour}, {3 * ms, 3 * ms}, {-1 * ms, 3 * ms},
	} {
		if got := c.told(x.told); got != x.want {
			t.Errorf("report %d of %s: %s, want %s", i, x.told, got, x.want)
		}
	}
	for i := range len(c.last) {
		if got, want := c.told(-20*ms), -20*ms; i == len(c.last)-1 && got != want {
			t.Errorf("after %d reports: %s, want %s", i+1, got, want)
		}
	}
}
