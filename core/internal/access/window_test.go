package access

import (
	"testing"
	"time"
)

func TestWindowHolds(t *testing.T) {
	const layout = "2006-01-02 15:04"
	utc := func(s string) time.Time {
		at, err := time.Parse(layout, s)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	office := Window{From: 9 * 60, To: 17 * 60, Days: []time.Weekday{1, 2, 3, 4, 5}, Zone: "Europe/Berlin"}
	night := Window{From: 22 * 60, To: 6 * 60, Days: []time.Weekday{time.Friday}, Zone: "Europe/Berlin"}
	dates := Window{NotBefore: utc("2026-11-04 12:00"), NotAfter: utc("2026-11-06 12:00")}
	both := Window{NotBefore: utc("2026-11-04 12:00"), NotAfter: utc("2026-11-06 12:00"), From: 9 * 60, To: 17 * 60}
	for _, c := range []struct {
		name   string
		w      Window
		at     string // UTC
		want   bool
		change string // UTC, empty = never
	}{
		{"always", Window{}, "2026-11-04 12:00", true, ""},
		{"before the dates", dates, "2026-11-04 11:59", false, "2026-11-04 12:00"},
		{"first moment", dates, "2026-11-04 12:00", true, "2026-11-06 12:00"},
		{"last minute", dates, "2026-11-06 11:59", true, "2026-11-06 12:00"},
		{"after", dates, "2026-11-06 12:00", false, ""},

		{"office, Wednesday in winter", office, "2026-11-04 08:00", true, "2026-11-04 16:00"},
		{"office, just before", office, "2026-11-04 07:59", false, "2026-11-04 08:00"},
		{"office, at its end", office, "2026-11-04 16:00", false, "2026-11-05 08:00"},
		{"office, Friday evening", office, "2026-11-06 16:30", false, "2026-11-09 08:00"},
		{"office, in summer", office, "2026-07-01 07:00", true, "2026-07-01 15:00"},
		{"office, weekend of the clock change", office, "2026-10-23 15:00", false, "2026-10-26 08:00"},

		{"night, Friday", night, "2026-11-06 21:00", true, "2026-11-07 05:00"},
		{"night, Saturday early", night, "2026-11-07 04:59", true, "2026-11-07 05:00"},
		{"night, Saturday late", night, "2026-11-07 21:30", false, "2026-11-13 21:00"},
		{"night, Friday early", night, "2026-11-06 03:00", false, "2026-11-06 21:00"},
		{"night until midnight", Window{From: 22 * 60}, "2026-11-04 23:59", true, "2026-11-05 00:00"},
		{"until 24:00 on one day", Window{From: 22 * 60, To: 24 * 60, Days: []time.Weekday{3}}, "2026-11-04 22:00", true, "2026-11-05 00:00"},

		{"one day", Window{Days: []time.Weekday{time.Sunday}}, "2026-11-08 12:00", true, "2026-11-09 00:00"},
		{"two days join", Window{Days: []time.Weekday{time.Sunday, time.Saturday}}, "2026-11-07 12:00", true, "2026-11-09 00:00"},
		{"a Sunday of 25 hours", Window{Days: []time.Weekday{time.Sunday}, Zone: "Europe/Berlin"}, "2026-10-24 22:00", true, "2026-10-25 23:00"},
		{"a Sunday of 23 hours", Window{Days: []time.Weekday{time.Sunday}, Zone: "Europe/Berlin"}, "2026-03-28 23:00", true, "2026-03-29 22:00"},

		// 02:00 to 03:00 does not exist on 2026-03-29 in Berlin: 01:00 UTC is the change.
		{"begins in the gap", Window{From: 150, To: 300, Zone: "Europe/Berlin"}, "2026-03-29 00:59", false, "2026-03-29 01:00"},
		{"after the gap", Window{From: 150, To: 300, Zone: "Europe/Berlin"}, "2026-03-29 01:00", true, "2026-03-29 03:00"},
		{"ends in the gap", Window{From: 60, To: 150, Zone: "Europe/Berlin"}, "2026-03-29 00:30", true, "2026-03-29 01:00"},
		{"wholly in the gap", Window{From: 130, To: 170, Zone: "Europe/Berlin"}, "2026-03-29 01:00", false, "2026-03-30 00:10"},
		// 02:00 to 03:00 happens twice on 2026-10-25.
		{"over the hour that comes twice", Window{From: 60, To: 240, Zone: "Europe/Berlin"}, "2026-10-24 23:00", true, "2026-10-25 03:00"},
		{"midnight that does not exist", Window{Days: []time.Weekday{time.Sunday}, Zone: "America/Santiago"}, "2026-09-06 04:00", true, "2026-09-07 03:00"},

		{"dates and hours, morning", both, "2026-11-05 08:00", false, "2026-11-05 09:00"},
		{"dates and hours, not yet", both, "2026-11-04 10:00", false, "2026-11-04 12:00"},
		{"dates and hours, first day", both, "2026-11-04 12:00", true, "2026-11-04 17:00"},
		{"dates and hours, last day", both, "2026-11-06 09:00", true, "2026-11-06 12:00"},
		{"dates and hours, last evening", both, "2026-11-05 18:00", false, "2026-11-06 09:00"},
		{"dates end before the hours", Window{NotAfter: utc("2026-11-04 08:00"), From: 9 * 60, To: 17 * 60}, "2026-11-04 07:00", false, ""},

		{"other side of the world", Window{From: 9 * 60, To: 17 * 60, Days: []time.Weekday{time.Thursday}, Zone: "Pacific/Auckland"}, "2026-11-04 20:00", true, "2026-11-05 04:00"},
		{"no such zone", Window{From: 1, Zone: "Mars/Olympus"}, "2026-11-04 12:00", false, ""},
		{"the machine's zone", Window{From: 1, Zone: "Local"}, "2026-11-04 12:00", false, ""},
		{"same minute", Window{From: 60, To: 60}, "2026-11-04 01:00", false, ""},
		{"out of range", Window{From: -1, To: 60}, "2026-11-04 00:30", false, ""},
		{"no such day", Window{Days: []time.Weekday{7}}, "2026-11-04 12:00", false, ""},
		{"backwards", Window{NotBefore: utc("2026-11-06 12:00"), NotAfter: utc("2026-11-04 12:00")}, "2026-11-05 12:00", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, change := c.w.holds(utc(c.at), nil)
			shown := ""
			if !change.IsZero() {
				shown = change.UTC().Format(layout)
			}
			if got != c.want || shown != c.change {
				t.Errorf("at %s: %v until %q, want %v until %q", c.at, got, shown, c.want, c.change)
			}
		})
	}
}

func TestZonesRemember(t *testing.T) {
	var z Zones
	first, err := z.load("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := z.load("Europe/Berlin"); err != nil || again != first {
		t.Errorf("second load: %p, %v; first %p", again, err, first)
	}
	if _, err := z.load("Mars/Olympus"); err == nil || len(z.m) != 1 {
		t.Errorf("an unknown zone: %v, %d remembered", err, len(z.m))
	}
}
