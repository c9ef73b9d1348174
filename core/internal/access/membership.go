package access

import (
	"net/netip"
	"time"
)

// Holds reports whether the membership is in force at now for a caller at
// source, and whether that use starts its floating window.
func (m *Membership) Holds(now time.Time, source netip.Addr, zones *Zones) (ok, starts bool) {
	inside, _ := m.Window.holds(now, zones)
	if !inside || !permits(m.Sources, source.Unmap().WithZone("")) {
		return false, false
	}
	if m.Window.Floating > 0 {
		if m.FirstUse.IsZero() {
			return true, true
		}
		return now.Before(m.FirstUse.Add(m.Window.Floating)), false
	}
	return true, false
}
