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

// Reports that a change brings ahead of their time are no samples.
func TestRegularReports(t *testing.T) {
	var n node
	begin := time.Unix(1_790_000_000, 0)
	counted := 0
	for half := range 240 { // twice a second for two minutes
		if n.regular(begin.Add(time.Duration(half)*500*time.Millisecond), 15*time.Second) {
			counted++
		}
	}
	if counted < 8 || counted > 11 {
		t.Errorf("%d of 240 hasty reports counted, want about one in 15 s", counted)
	}
	at := begin.Add(time.Hour)
	for i := range 8 { // on time, and as early as nodes spread theirs
		if at = at.Add(15 * time.Second * 7 / 8); !n.regular(at, 15*time.Second) {
			t.Errorf("report %d, which was due, did not count", i)
		}
	}
}
