package session

import (
	"fmt"
	"time"

	"caponier/shared/wire"
)

// clocks are the times a session is judged by.
type clocks struct {
	now       time.Time
	started   time.Time
	used      time.Time // the last input
	connected time.Time // core was reachable
}

// verdict is what to do now.
type verdict struct {
	end    reason // empty: go on
	text   string // why, for the user
	notice string // shown over the picture; empty: nothing
	next   time.Duration
}

// The longest and shortest time between two judgements.
const (
	slowest = 2 * time.Second
	fastest = 50 * time.Millisecond
)

// judge decides whether a session goes on.
func judge(s wire.CarrierSession, c clocks) verdict {
	v := verdict{next: slowest}
	notice := seconds(s.Policy.NoticeS)
	// until looks at one limit: what ends the session first is told.
	var first time.Duration = -1
	until := func(limit, gone time.Duration, why reason, ended string, soon string) {
		left := limit - gone
		if left <= 0 {
			if v.end == "" {
				v.end, v.text = why, ended
			}
			return
		}
		v.next = min(v.next, max(fastest, left))
		if left > notice {
			v.next = min(v.next, max(fastest, left-notice))
			return
		}
		if first < 0 || left < first {
			first = left
			v.notice = fmt.Sprintf(soon, count(left))
		}
		v.next = min(v.next, max(fastest, step(left)))
	}
	if d := seconds(s.LeaseS); d > 0 && c.now.Sub(c.connected) >= d {
		return verdict{end: byError, text: "The session lost its connection to Caponier for too long and was ended."}
	}
	if d := seconds(s.Policy.MaxS); d > 0 {
		until(d, c.now.Sub(c.started), byDuration, "The session reached its maximum duration of "+count(d)+".",
			"This session reaches its maximum duration and ends in %s.")
	}
	if d := seconds(s.Policy.IdleS); d > 0 {
		until(d, c.now.Sub(c.used), byIdle, "The session was not used for "+count(d)+".",
			"This session was not used and ends in %s. Press a key or move the mouse to stay.")
	}
	return v
}

func seconds(n int64) time.Duration {
	// More than a year is as good as for ever, and does not overflow.
	return time.Duration(min(max(n, 0), 366*24*3600)) * time.Second
}

// count writes a time left, rounded to what people count in.
func count(d time.Duration) string {
	plural := func(n int64, unit string) string {
		if n == 1 {
			return "1 " + unit
		}
		return fmt.Sprintf("%d %ss", n, unit)
	}
	s := int64((d + time.Second - 1) / time.Second)
	switch {
	case s >= 2*3600:
		return plural((s+1800)/3600, "hour")
	case s >= 120:
		return plural((s+30)/60, "minute")
	case s > 10:
		return plural((s+9)/10*10, "second")
	}
	return plural(s, "second")
}

// step is how long a notice stays right.
func step(left time.Duration) time.Duration {
	unit := time.Second
	switch {
	case left > 2*time.Minute:
		unit = time.Minute
	case left > 10*time.Second:
		unit = 10 * time.Second
	}
	if r := left % unit; r > 0 {
		return r
	}
	return unit
}
