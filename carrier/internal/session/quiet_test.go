package session

import (
	"strings"
	"testing"
	"time"

	"caponier/shared/wire"
)

// quietTime is how long a browser is watched that nobody uses: its maker's
// services were seen asked for 15, 41 and 57 s after a start.
const quietTime = 70 * time.Second

// Parked and in use a browser asks for nothing that nobody asked it for: not
// for updates, modules, lists, nor where it is.
func TestNobodyAsked(t *testing.T) {
	r := newRig(t)
	r.conf = func(c *Config) { c.Warm = map[string]int{wire.Firefox: 1, wire.Chromium: 1} }
	r.start()
	r.warm(2)
	var lives []*live
	for _, what := range []string{wire.Firefox, wire.Chromium} {
		s := r.spec("con_" + what)
		s.Engine = what
		lives = append(lives, r.open(s))
	}
	for _, l := range lives {
		r.shows(l, colour("/"+l.id), patience)
	}
	rest := time.NewTimer(quietTime)
	defer rest.Stop()
	<-rest.C
	for _, l := range lives {
		if asked := l.slot.Door.Asked(); len(asked) > 0 {
			t.Errorf("%s asked for %q while it was parked", l.id, asked)
		}
	}
	r.m.pool.mu.Lock()
	for _, s := range r.m.pool.parked {
		if asked := s.Door.Asked(); len(asked) > 0 {
			t.Errorf("a parked %s asked for %q", s.Browser(), asked)
		}
	}
	r.m.pool.mu.Unlock()
	lines, requests := r.web.seen()
	if len(lines) == 0 || len(requests) < 2 {
		t.Fatalf("%d connections, %d requests: nothing was watched", len(lines), len(requests))
	}
	for _, q := range requests {
		if !strings.Contains(q, " http://target.test/") {
			t.Errorf("%q was asked for", q)
		}
	}
}
