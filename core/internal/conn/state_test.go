package conn

import (
	"testing"

	"pgregory.net/rapid"
)

var states = []State{Requested, Connecting, Connected, Disconnecting, Disconnected, Failed}

func TestNext(t *testing.T) {
	want := map[State]map[step]State{
		Requested:     {stepDial: Connecting, stepConnect: Connected, stepEnd: Disconnecting, stepClose: Disconnected, stepFail: Failed},
		Connecting:    {stepConnect: Connected, stepEnd: Disconnecting, stepClose: Disconnected, stepFail: Failed},
		Connected:     {stepEnd: Disconnecting, stepClose: Disconnected, stepFail: Failed},
		Disconnecting: {stepClose: Disconnected, stepFail: Failed},
		Disconnected:  {},
		Failed:        {},
	}
	for _, s := range states {
		for e := step(0); e <= stepFail+1; e++ {
			got, ok := next(s, e)
			if w, possible := want[s][e]; ok != possible || possible && got != w || !possible && got != s {
				t.Errorf("next(%s, %d) = %s, %t; want %s, %t", s, e, got, ok, w, possible)
			}
		}
	}
}

// Whatever happens in whatever order, states only go forward and a final one stays.
func TestNextProperty(t *testing.T) {
	rank := map[State]int{Requested: 0, Connecting: 1, Connected: 2, Disconnecting: 3, Disconnected: 4, Failed: 4}
	rapid.Check(t, func(t *rapid.T) {
		s := Requested
		for _, e := range rapid.SliceOf(rapid.ByteRange(0, 6)).Draw(t, "steps") {
			n, ok := next(s, step(e))
			if ok && rank[n] <= rank[s] {
				t.Fatalf("%s goes back to %s by %d", s, n, e)
			}
			if !ok && n != s || s.Over() && n != s {
				t.Fatalf("%s became %s by %d", s, n, e)
			}
			s = n
		}
	})
}
