package access

import (
	"net/netip"
	"testing"
	"time"
)

func TestMembershipHolds(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC) // a Monday
	office := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
	for _, c := range []struct {
		name       string
		m          Membership
		source     string
		ok, starts bool
	}{
		{"unlimited", Membership{}, "192.0.2.1", true, false},
		{"inside source", Membership{Sources: office}, "10.1.2.3", true, false},
		{"inside source, mapped", Membership{Sources: office}, "::ffff:10.1.2.3", true, false},
		{"outside source", Membership{Sources: office}, "10.2.0.1", false, false},
		{"inside days", Membership{Window: Window{Days: []time.Weekday{time.Monday}}}, "192.0.2.1", true, false},
		{"outside days", Membership{Window: Window{Days: []time.Weekday{time.Tuesday}}}, "192.0.2.1", false, false},
		{"expired", Membership{Window: Window{NotAfter: now}}, "192.0.2.1", false, false},
		{"floating unused", Membership{Window: Window{Floating: time.Hour}}, "192.0.2.1", true, true},
		{"floating unused, outside source", Membership{Sources: office, Window: Window{Floating: time.Hour}}, "192.0.2.1", false, false},
		{"floating running", Membership{Window: Window{Floating: time.Hour}, FirstUse: now.Add(-59 * time.Minute)}, "192.0.2.1", true, false},
		{"floating over", Membership{Window: Window{Floating: time.Hour}, FirstUse: now.Add(-time.Hour)}, "192.0.2.1", false, false},
	} {
		ok, starts := c.m.Holds(now, netip.MustParseAddr(c.source), nil)
		if ok != c.ok || starts != c.starts {
			t.Errorf("%s: Holds from %s = %v, %v; want %v, %v", c.name, c.source, ok, starts, c.ok, c.starts)
		}
	}
}
