package access

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var (
	someRoles    = []string{"ops", "dev", "temp"}
	someTags     = []string{"env=prod", "db"}
	someAccounts = []string{"root", "deploy", "*"}
	someZones    = []string{"", "UTC", "Europe/Berlin", "America/Santiago", "Australia/Lord_Howe", "Asia/Kathmandu", "Mars/Olympus"}
	someNets     = nets("192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32")
)

func drawWindow(t *rapid.T, floating bool) Window {
	var w Window
	base := time.Date(2026, 3, 27, 0, 0, 0, 0, time.UTC)
	if rapid.IntRange(0, 2).Draw(t, "dates") == 0 {
		w.NotBefore = base.Add(time.Duration(rapid.IntRange(0, 96).Draw(t, "nb")) * time.Hour)
	}
	if rapid.IntRange(0, 2).Draw(t, "end") == 0 {
		w.NotAfter = base.Add(time.Duration(rapid.IntRange(0, 240).Draw(t, "na")) * time.Hour)
	}
	if rapid.Bool().Draw(t, "hours") {
		w.From = rapid.IntRange(0, 1440).Draw(t, "from")
		w.To = rapid.IntRange(0, 1440).Draw(t, "to")
		w.Zone = rapid.SampledFrom(someZones).Draw(t, "zone")
	}
	if rapid.IntRange(0, 2).Draw(t, "days") == 0 {
		for range rapid.IntRange(1, 3).Draw(t, "n") {
			w.Days = append(w.Days, time.Weekday(rapid.IntRange(0, 6).Draw(t, "day")))
		}
	}
	if floating && rapid.IntRange(0, 3).Draw(t, "float") == 0 {
		w.Floating = time.Duration(rapid.IntRange(1, 72).Draw(t, "hours")) * time.Hour
	}
	return w
}

func drawGrant(t *rapid.T) Grant {
	g := Grant{
		ID: rapid.StringMatching(`g[0-9]{3}`).Draw(t, "id"), Role: rapid.SampledFrom(someRoles).Draw(t, "role"),
		Accounts:   rapid.SliceOfN(rapid.SampledFrom(someAccounts), 0, 2).Draw(t, "accounts"),
		Features:   Features(rapid.Uint16Range(0, uint16(AllFeatures)).Draw(t, "features")),
		Window:     drawWindow(t, false),
		Sources:    rapid.SliceOfN(rapid.SampledFrom(someNets), 0, 2).Draw(t, "sources"),
		RequireMFA: rapid.IntRange(0, 3).Draw(t, "mfa") == 0, RequireReason: rapid.IntRange(0, 3).Draw(t, "reason") == 0,
		NoRecording: rapid.Bool().Draw(t, "norec"), Disabled: rapid.IntRange(0, 5).Draw(t, "off") == 0,
		MaxDuration: time.Duration(rapid.IntRange(0, 3).Draw(t, "max")) * time.Hour,
	}
	if rapid.Bool().Draw(t, "by tag") {
		g.Tag = rapid.SampledFrom(someTags).Draw(t, "tag")
	} else {
		g.Target = rapid.SampledFrom([]string{"db-1", "db-2"}).Draw(t, "target")
	}
	return g
}

func drawRequest(t *rapid.T) Request {
	r := Request{
		Subject: Subject{User: "ada", MFA: rapid.Bool().Draw(t, "has mfa")},
		Target:  Target{ID: "db-1", Tags: rapid.SliceOfN(rapid.SampledFrom(someTags), 0, 2).Draw(t, "tags")},
		Account: rapid.SampledFrom([]string{"root", "deploy", ""}).Draw(t, "account"),
		Mask:    Features(rapid.Uint16Range(0, uint16(AllFeatures)).Draw(t, "mask")),
		Want:    1 << rapid.IntRange(0, 8).Draw(t, "want"), HasReason: rapid.Bool().Draw(t, "has reason"),
		Source: rapid.SampledFrom([]netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("203.0.113.1"), {}}).Draw(t, "source"),
		Now:    time.Date(2026, 3, 27, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 96*60).Draw(t, "now")) * time.Minute),
		Zones:  new(Zones),
		Grants: rapid.SliceOfN(rapid.Custom(drawGrant), 0, 5).Draw(t, "grants"),
	}
	for _, role := range someRoles {
		if rapid.IntRange(0, 3).Draw(t, "member of "+role) == 0 {
			continue
		}
		m := Membership{Role: role, Window: drawWindow(t, true), Sources: rapid.SliceOfN(rapid.SampledFrom(someNets), 0, 1).Draw(t, "member sources")}
		if rapid.Bool().Draw(t, "used") {
			m.FirstUse = r.Now.Add(-time.Duration(rapid.IntRange(0, 80).Draw(t, "first use")) * time.Hour)
		}
		r.Subject.Memberships = append(r.Subject.Memberships, m)
	}
	return r
}

// same compares answers apart from Until, which may be met again and again.
func same(a, b Decision) bool {
	a.Until, b.Until = time.Time{}, time.Time{}
	return a == b
}

func TestAddingAGrantNeverRemovesAccess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		before := Decide(r)
		r.Grants = append(r.Grants, drawGrant(t))
		after := Decide(r)
		if before.OK() && !after.OK() {
			t.Fatalf("%s became %s", before.Reason, after.Reason)
		}
		if before.OK() && !after.StartsFloating && !before.StartsFloating && before.Features&^after.Features != 0 {
			t.Fatalf("lost %s", before.Features&^after.Features)
		}
		if before.OK() && before.Record && !after.Record && !before.StartsFloating {
			t.Fatal("another grant switched recording off")
		}
		if !before.OK() && after.Reason < before.Reason && !after.OK() {
			t.Fatalf("refusal went from %s to %s", before.Reason, after.Reason)
		}
	})
}

func TestDisabledAnythingRefuses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		switch rapid.IntRange(0, 5).Draw(t, "what") {
		case 0:
			r.Subject.Disabled = true
		case 1:
			r.Subject.Locked = true
		case 2:
			r.Target.Disabled = true
		case 3:
			r.AccountDisabled = true
		case 4:
			for i := range r.Grants {
				r.Grants[i].Disabled = true
			}
		case 5:
			r.Mask = 0
		}
		if d := Decide(r); d.OK() || d.Features != 0 {
			t.Fatalf("allowed: %+v", d)
		}
		if o := Survey(r); o.Features != 0 {
			t.Fatalf("offered: %+v", o)
		}
	})
}

func TestDecisionHoldsUntil(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		d := Decide(r)
		if !d.Until.IsZero() && !d.Until.After(r.Now) {
			t.Fatalf("until %s is not after now %s", d.Until, r.Now)
		}
		end := d.Until
		if end.IsZero() {
			end = r.Now.Add(90 * 24 * time.Hour)
		}
		within := time.Duration(rapid.Int64Range(0, int64(end.Sub(r.Now))-1).Draw(t, "later"))
		later := r
		later.Now = r.Now.Add(within)
		if got := Decide(later); !same(got, d) {
			t.Fatalf("%s after now, before %s:\n%+v became\n%+v", within, end, d, got)
		}
	})
}

// What Decide allows is exactly what some grant says, looked at naively.
func TestDecideAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		allowed := false
		for _, g := range r.Grants {
			for _, m := range r.Subject.Memberships {
				if modelAllows(r, g, m) {
					allowed = true
				}
			}
		}
		if d := Decide(r); d.OK() != allowed {
			t.Fatalf("decided %s, the model says %v", d.Reason, allowed)
		}
		if allowed && Survey(r).Features&r.Want == 0 {
			t.Fatal("allowed, but not offered")
		}
	})
}

// modelHolds walks over days instead of computing spans.
func modelHolds(w Window, now time.Time) bool {
	if !w.NotBefore.IsZero() && now.Before(w.NotBefore) || !w.NotAfter.IsZero() && !now.Before(w.NotAfter) {
		return false
	}
	if w.Validate() != nil {
		return false
	}
	if w.From == 0 && w.To == 0 && len(w.Days) == 0 {
		return true
	}
	zone := time.UTC
	if w.Zone != "" {
		l, err := time.LoadLocation(w.Zone)
		if err != nil {
			return false
		}
		zone = l
	}
	local := now.In(zone)
	minute := local.Hour()*60 + local.Minute()
	on := func(d time.Weekday) bool { return len(w.Days) == 0 || slices.Contains(w.Days, d) }
	today, yesterday := local.Weekday(), (local.Weekday()+6)%7
	if w.From == 0 && w.To == 0 {
		return on(today)
	}
	if w.From < w.To {
		return on(today) && minute >= w.From && minute < w.To
	}
	return on(today) && minute >= w.From || on(yesterday) && minute < w.To
}

func modelAllows(r Request, g Grant, m Membership) bool {
	in := func(list []netip.Prefix) bool {
		return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(r.Source) })
	}
	covers := g.Target == r.Target.ID || g.Tag != "" && slices.Contains(r.Target.Tags, g.Tag)
	account := slices.Contains(g.Accounts, "*") || slices.Contains(g.Accounts, r.Account) || r.Account == "" && len(g.Accounts) == 0
	floats := m.Window.Floating == 0 || m.FirstUse.IsZero() || r.Now.Before(m.FirstUse.Add(m.Window.Floating))
	return !g.Disabled && g.Role == m.Role && covers && account && g.Features&r.Mask&r.Want != 0 && floats &&
		modelHolds(g.Window, r.Now) && modelHolds(m.Window, r.Now) && in(g.Sources) && in(m.Sources) &&
		(!g.RequireMFA || r.Subject.MFA) && (!g.RequireReason || r.HasReason)
}

func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRequest(t)
		d := Decide(r)
		other := r
		other.Grants = rapid.Permutation(r.Grants).Draw(t, "order of grants")
		other.Subject.Memberships = rapid.Permutation(r.Subject.Memberships).Draw(t, "order of memberships")
		if got := Decide(other); got != d {
			t.Fatalf("%+v became\n%+v", d, got)
		}
	})
}

func FuzzDecide(f *testing.F) { f.Fuzz(rapid.MakeFuzz(decideSurvives)) }

// decideSurvives feeds what validation would refuse; nothing may panic, hang
// or allow without a grant.
func decideSurvives(t *rapid.T) {
	r := drawRequest(t)
	w := Window{
		From: rapid.Int().Draw(t, "from"), To: rapid.Int().Draw(t, "to"), Zone: rapid.String().Draw(t, "zone"),
		Floating:  time.Duration(rapid.Int64().Draw(t, "floating")),
		NotBefore: time.Unix(rapid.Int64().Draw(t, "nb"), 0), NotAfter: time.Unix(rapid.Int64().Draw(t, "na"), 0),
		Days: []time.Weekday{time.Weekday(rapid.Int().Draw(t, "day"))},
	}
	r.Grants = append(r.Grants, Grant{ID: "x", Role: "ops", Target: "db-1", Accounts: []string{"*"}, Features: Features(rapid.Uint16().Draw(t, "f")), Window: w})
	r.Subject.Memberships = append(r.Subject.Memberships, Membership{Role: "ops", Window: w, FirstUse: w.NotBefore})
	if d := Decide(r); d.OK() && (d.Grant == "" || d.Features&^AllFeatures != 0 || d.Features&r.Want == 0) {
		t.Fatalf("allowed without a reason: %+v", d)
	}
}

func TestDecideSurvives(t *testing.T) { rapid.Check(t, decideSurvives) }
