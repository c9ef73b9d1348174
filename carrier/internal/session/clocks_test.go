package session

import (
	"testing"
	"time"

	"caponier/shared/wire"
)

func TestJudge(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	ago := func(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }
	for _, c := range []struct {
		name                     string
		idle, most, notice, leas int64
		started, used, connected int // seconds ago
		end                      reason
		warn                     string
	}{
		{"no limits", 0, 0, 60, 0, 1e6, 1e6, 1e6, "", ""},
		{"fresh", 600, 3600, 60, 300, 1, 1, 0, "", ""},
		{"idle soon", 600, 3600, 60, 300, 1000, 545, 0, "", "This session was not used and ends in 60 seconds. Press a key or move the mouse to stay."},
		{"idle very soon", 600, 3600, 60, 300, 1000, 596, 0, "", "This session was not used and ends in 4 seconds. Press a key or move the mouse to stay."},
		{"idle", 600, 3600, 60, 300, 1000, 600, 0, byIdle, ""},
		{"maximum soon", 600, 3600, 300, 300, 3400, 1, 0, "", "This session reaches its maximum duration and ends in 3 minutes."},
		{"the first of two", 600, 3600, 300, 300, 3590, 400, 0, "", "This session reaches its maximum duration and ends in 10 seconds."},
		{"maximum", 600, 3600, 300, 300, 3600, 1, 0, byDuration, ""},
		{"lease", 600, 3600, 300, 300, 100, 1, 300, byError, ""},
		{"lease goes on", 600, 3600, 60, 300, 100, 1, 299, "", ""},
		{"no overflow", 1 << 62, 1 << 62, 1 << 62, 1 << 62, 10, 10, 10, "", "This session reaches its maximum duration and ends in 8784 hours."},
	} {
		s := wire.CarrierSession{LeaseS: c.leas, Policy: wire.BrowserPolicy{IdleS: c.idle, MaxS: c.most, NoticeS: c.notice}}
		v := judge(s, clocks{now: now, started: ago(c.started), used: ago(c.used), connected: ago(c.connected)})
		if v.end != c.end || v.notice != c.warn && c.end == "" {
			t.Errorf("%s: end %q, notice %q; want %q, %q", c.name, v.end, v.notice, c.end, c.warn)
		}
		if v.end != "" && v.text == "" {
			t.Errorf("%s: ends without words", c.name)
		}
		if v.end == "" && (v.next < fastest || v.next > slowest) {
			t.Errorf("%s: looks again after %v", c.name, v.next)
		}
	}
}
