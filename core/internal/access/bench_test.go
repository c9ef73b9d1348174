package access

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkDecide decides for a user with 20 roles on a target with 40
// grants, half of them with time windows and networks: more than a real one.
func BenchmarkDecide(b *testing.B) {
	r := Request{
		Subject: Subject{User: "ada", MFA: true}, Account: "root", Mask: AllFeatures, Want: Shell,
		Target: Target{ID: "db-1", Tags: []string{"env=prod", "db", "region=eu"}},
		Source: netip.MustParseAddr("192.0.2.7"), Now: noon, Zones: new(Zones),
	}
	for i := range 20 {
		m := Membership{Role: fmt.Sprintf("role-%d", i)}
		if i%2 == 0 {
			m.Window = Window{From: 8 * 60, To: 18 * 60, Days: []time.Weekday{1, 2, 3, 4, 5}, Zone: "Europe/Berlin"}
			m.Sources = nets("192.0.2.0/24")
		}
		r.Subject.Memberships = append(r.Subject.Memberships, m)
	}
	for i := range 40 {
		// Two grants of the user's roles, the rest of others.
		role := fmt.Sprintf("other-%d", i)
		if i >= 38 {
			role = fmt.Sprintf("role-%d", i-30)
		}
		g := Grant{ID: fmt.Sprintf("g%d", i), Role: role, Tag: "env=prod", Accounts: []string{"deploy", "root"}, Features: Shell | Exec}
		if i%2 == 0 {
			g.Window = Window{From: 7 * 60, To: 19 * 60, Zone: "Europe/Berlin"}
		}
		r.Grants = append(r.Grants, g)
	}
	if d := Decide(r); !d.OK() {
		b.Fatalf("refused: %+v", d)
	}
	b.ReportAllocs()
	for b.Loop() {
		Decide(r)
	}
}

// BenchmarkDecideAllWindows is the worst: every grant is the user's and has a
// time window.
func BenchmarkDecideAllWindows(b *testing.B) {
	r := plain()
	r.Zones = new(Zones)
	r.Grants = nil
	for i := range 10 {
		r.Grants = append(r.Grants, Grant{ID: fmt.Sprintf("g%d", i), Role: "ops", Target: "db-1", Accounts: []string{"*"}, Features: Shell,
			Window: Window{From: 7 * 60, To: 19 * 60, Days: []time.Weekday{3}, Zone: "Europe/Berlin"}})
	}
	b.ReportAllocs()
	for b.Loop() {
		Decide(r)
	}
}
