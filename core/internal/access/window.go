package access

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
	_ "time/tzdata" // the same zones on every machine
)

const minutesPerDay = 24 * 60

// Validate reports what is wrong with a window. One that does not validate
// never holds.
func (w Window) Validate() error {
	switch {
	case w.From < 0 || w.From > minutesPerDay || w.To < 0 || w.To > minutesPerDay:
		return errors.New("from and to are minutes after midnight, 0 to 1440")
	case w.From == w.To && w.From != 0:
		return errors.New("from and to are the same minute")
	case w.From == minutesPerDay:
		return errors.New("from must be before the end of the day")
	case w.Floating < 0:
		return errors.New("floating must not be negative")
	case !w.NotBefore.IsZero() && !w.NotAfter.IsZero() && !w.NotBefore.Before(w.NotAfter):
		return errors.New("not_after must be later than not_before")
	}
	for _, d := range w.Days {
		if d < time.Sunday || d > time.Saturday {
			return errors.New("days are 0 (Sunday) to 6 (Saturday)")
		}
	}
	if _, err := loadZone(w.Zone); err != nil {
		return err
	}
	return nil
}

// IsZero reports whether the window sets no limit.
func (w *Window) IsZero() bool {
	return w.NotBefore.IsZero() && w.NotAfter.IsZero() && len(w.Days) == 0 &&
		w.From == 0 && w.To == 0 && w.Floating == 0 && w.Zone == ""
}

// loadZone loads an IANA zone. "Local" is refused: it means something else on
// every machine.
func loadZone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	if name == "Local" {
		return nil, errors.New(`zone "Local" is not a place: use a name such as Europe/Berlin`)
	}
	l, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("unknown time zone %.64q: use a name such as Europe/Berlin", name)
	}
	return l, nil
}

// Zones remembers loaded time zones; it holds at most one entry per existing
// zone. The zero value is ready; safe for concurrent use.
type Zones struct {
	mu sync.RWMutex
	m  map[string]*time.Location // guarded by mu
}

func (z *Zones) load(name string) (*time.Location, error) {
	if z == nil || name == "" || name == "UTC" {
		return loadZone(name)
	}
	z.mu.RLock()
	l := z.m[name]
	z.mu.RUnlock()
	if l != nil {
		return l, nil
	}
	l, err := loadZone(name)
	if err != nil {
		return nil, err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.m == nil {
		z.m = map[string]*time.Location{}
	}
	z.m[name] = l
	return l, nil
}

// earlier returns the earlier of two moments, where zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// holds reports whether the window holds at now, and the next moment after
// now at which that changes (zero = never). Floating is not looked at.
func (w *Window) holds(now time.Time, zones *Zones) (ok bool, change time.Time) {
	if w.IsZero() {
		return true, time.Time{}
	}
	if err := w.check(); err != nil {
		return false, time.Time{}
	}
	zone, err := zones.load(w.Zone)
	if err != nil || !w.NotAfter.IsZero() && !now.Before(w.NotAfter) {
		return false, time.Time{}
	}
	from := now
	if w.NotBefore.After(now) {
		from = w.NotBefore
	}
	if len(w.Days) == 0 && w.From == 0 && w.To == 0 {
		if from.After(now) {
			return false, from
		}
		return true, w.NotAfter
	}
	start, end := w.span(from, zone)
	if !start.IsZero() && start.Before(from) && from.After(now) {
		start = from
	}
	if !w.NotAfter.IsZero() {
		if !start.Before(w.NotAfter) {
			return false, time.Time{}
		}
		end = earlier(end, w.NotAfter)
	}
	switch {
	case start.IsZero():
		return false, time.Time{}
	case start.After(now):
		return false, start
	default:
		return true, end
	}
}

// check is Validate without the zone, which holds loads anyway.
func (w *Window) check() error {
	v := *w
	v.Zone = ""
	return v.Validate()
}

// span returns the first span of hours that ends after t, joined with the
// spans that follow it without a gap. A span is defined by its local date, so
// that days with 23 or 25 hours need no rule of their own. No span within the
// next days returns zeros; a span that never ends is cut after nine days.
func (w *Window) span(t time.Time, zone *time.Location) (start, end time.Time) {
	y, m, d := t.In(zone).Date()
	// A span over midnight may have begun yesterday; a single weekday comes
	// again within 7 days, and within 14 if its span falls into a clock change.
	for i := -1; i <= 15; i++ {
		if !w.onDay(time.Date(y, m, d+i, 12, 0, 0, 0, time.UTC).Weekday()) {
			continue
		}
		to, next := w.To, 0
		if to <= w.From {
			next = 1
		}
		s := localTime(y, m, d+i, w.From, zone)
		e := localTime(y, m, d+i+next, to, zone)
		switch {
		case !s.Before(e) || !e.After(t):
			continue
		case start.IsZero():
			start, end = s, e
		case s.After(end):
			return start, end
		default:
			end = e
		}
		if i > 8 {
			return start, end
		}
	}
	return start, end
}

func (w *Window) onDay(day time.Weekday) bool {
	if len(w.Days) == 0 {
		return true
	}
	return slices.Contains(w.Days, day)
}

// localTime is the first moment at which the local clock shows at least
// minute on the date. A minute skipped by a clock change becomes the moment
// of the change; of a minute that comes twice it is one, always the same.
func localTime(y int, m time.Month, d, minute int, zone *time.Location) time.Time {
	t := time.Date(y, m, d, 0, minute, 0, 0, zone)
	want := time.Date(y, m, d, 0, minute, 0, 0, time.UTC)
	if t.Hour() == want.Hour() && t.Minute() == want.Minute() {
		return t
	}
	start, end := t.ZoneBounds()
	wall := time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), 0, time.UTC)
	if wall.After(want) && !start.IsZero() {
		return start
	}
	if wall.Before(want) && !end.IsZero() {
		return end
	}
	return t
}
