package access

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 11, 4, 12, 0, 0, 0, time.UTC) // a Wednesday

// plain is a request that is allowed: ada, member of ops, opens a shell as
// root on db-1 from 192.0.2.7.
func plain() Request {
	return Request{
		Subject: Subject{User: "ada", Memberships: []Membership{{Role: "ops"}}},
		Target:  Target{ID: "db-1", Site: "a", Kind: "ssh", Tags: []string{"env=prod"}},
		Account: "root", Mask: AllFeatures, Want: Shell, Source: netip.MustParseAddr("192.0.2.7"), Now: noon,
		Grants: []Grant{{ID: "g1", Role: "ops", Target: "db-1", Accounts: []string{"root"}, Features: Shell | Exec}},
	}
}

func nets(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range s {
		out = append(out, netip.MustParsePrefix(n))
	}
	return out
}

func TestDecideReasons(t *testing.T) {
	closed := Window{NotAfter: noon}
	for _, c := range []struct {
		name   string
		change func(*Request)
		want   Reason
	}{
		{"plain", func(*Request) {}, Allowed},

		{"zero request", func(r *Request) { *r = Request{} }, Refused},
		{"no user", func(r *Request) { r.Subject.User = "" }, Refused},
		{"no target", func(r *Request) { r.Target.ID = "" }, Refused},
		{"no time", func(r *Request) { r.Now = time.Time{} }, Refused},
		{"wants nothing", func(r *Request) { r.Want = 0 }, Refused},
		{"wants two things", func(r *Request) { r.Want = Shell | Exec }, Refused},
		{"wants the unknown", func(r *Request) { r.Want = 1 << 15 }, Refused},

		{"user disabled", func(r *Request) { r.Subject.Disabled = true }, UserDisabled},
		{"user locked", func(r *Request) { r.Subject.Locked = true }, UserLocked},
		{"disabled before locked", func(r *Request) { r.Subject.Disabled, r.Subject.Locked = true, true }, UserDisabled},
		{"target disabled", func(r *Request) { r.Target.Disabled = true }, TargetDisabled},
		{"target disabled, no role", func(r *Request) { r.Target.Disabled, r.Grants = true, nil }, NoRole},

		{"no grants", func(r *Request) { r.Grants = nil }, NoRole},
		{"no memberships", func(r *Request) { r.Subject.Memberships = nil }, NoRole},
		{"other role", func(r *Request) { r.Grants[0].Role = "dev" }, NoRole},
		{"empty role on both sides", func(r *Request) { r.Grants[0].Role, r.Subject.Memberships[0].Role = "", "" }, NoRole},
		{"other target", func(r *Request) { r.Grants[0].Target = "db-2" }, NoRole},
		{"grant disabled", func(r *Request) { r.Grants[0].Disabled = true }, NoRole},
		{"grant of nothing", func(r *Request) { r.Grants[0].Target = "" }, NoRole},
		{"grant by target and tag", func(r *Request) { r.Grants[0].Tag = "env=prod" }, NoRole},
		{"by tag", func(r *Request) { r.Grants[0].Target, r.Grants[0].Tag = "", "env=prod" }, Allowed},
		{"by tag in another group", func(r *Request) { r.Grants[0].Target, r.Grants[0].Tag, r.Target.Group = "", "env=prod", "grp_b" }, NoRole},
		{"by tag in its group", func(r *Request) {
			r.Grants[0].Target, r.Grants[0].Tag, r.Grants[0].Group, r.Target.Group = "", "env=prod", "grp_b", "grp_b"
		}, Allowed},
		{"by ID in another group", func(r *Request) { r.Target.Group = "grp_b" }, Allowed},
		{"by another tag", func(r *Request) { r.Grants[0].Target, r.Grants[0].Tag = "", "env" }, NoRole},

		{"other account", func(r *Request) { r.Account = "postgres" }, NoAccount},
		{"any account", func(r *Request) { r.Account, r.Grants[0].Accounts = "postgres", []string{"x", "*"} }, Allowed},
		{"no account", func(r *Request) { r.Account = "" }, NoAccount},
		{"no account, none granted", func(r *Request) { r.Account, r.Grants[0].Accounts = "", nil }, Allowed},
		{"no account, any granted", func(r *Request) { r.Account, r.Grants[0].Accounts = "", []string{"*"} }, Allowed},
		{"account, none granted", func(r *Request) { r.Grants[0].Accounts = nil }, NoAccount},
		{"account is no pattern", func(r *Request) { r.Account = "*" }, NoAccount},
		{"account disabled", func(r *Request) { r.AccountDisabled = true }, AccountDisabled},

		{"not this use", func(r *Request) { r.Want = FileTransfer }, NoFeature},
		{"switched off at the account", func(r *Request) { r.Mask = AllFeatures &^ Shell }, NoFeature},
		{"no mask", func(r *Request) { r.Mask = 0 }, NoFeature},

		{"grant's window over", func(r *Request) { r.Grants[0].Window = closed }, OutsideWindow},
		{"membership's window over", func(r *Request) { r.Subject.Memberships[0].Window = closed }, OutsideWindow},
		{"floating grant", func(r *Request) { r.Grants[0].Window.Floating = time.Hour }, OutsideWindow},
		{"floating not started", func(r *Request) { r.Subject.Memberships[0].Window.Floating = time.Hour }, Allowed},
		{"floating running", func(r *Request) {
			r.Subject.Memberships[0].Window.Floating, r.Subject.Memberships[0].FirstUse = time.Hour, noon.Add(-time.Hour+1)
		}, Allowed},
		{"floating over", func(r *Request) {
			r.Subject.Memberships[0].Window.Floating, r.Subject.Memberships[0].FirstUse = time.Hour, noon.Add(-time.Hour)
		}, OutsideWindow},
		{"broken window", func(r *Request) { r.Grants[0].Window.Zone, r.Grants[0].Window.From = "Mars/Olympus", 1 }, OutsideWindow},

		{"grant's source", func(r *Request) { r.Grants[0].Sources = nets("192.0.2.0/24", "::/0") }, Allowed},
		{"grant's other source", func(r *Request) { r.Grants[0].Sources = nets("198.51.100.0/24") }, OutsideSource},
		{"membership's other source", func(r *Request) { r.Subject.Memberships[0].Sources = nets("198.51.100.0/24") }, OutsideSource},
		{"both must fit", func(r *Request) {
			r.Subject.Memberships[0].Sources, r.Grants[0].Sources = nets("192.0.2.0/24"), nets("198.51.100.0/24")
		}, OutsideSource},
		{"mapped source", func(r *Request) {
			r.Source, r.Grants[0].Sources = netip.MustParseAddr("::ffff:192.0.2.7"), nets("192.0.2.0/24")
		}, Allowed},
		{"unknown source", func(r *Request) { r.Source, r.Grants[0].Sources = netip.Addr{}, nets("0.0.0.0/0", "::/0") }, OutsideSource},
		{"unknown source, anywhere", func(r *Request) { r.Source = netip.Addr{} }, Allowed},

		{"needs second factor", func(r *Request) { r.Grants[0].RequireMFA = true }, NeedMFA},
		{"has second factor", func(r *Request) { r.Grants[0].RequireMFA, r.Subject.MFA = true, true }, Allowed},
		{"needs reason", func(r *Request) { r.Grants[0].RequireReason = true }, NeedReason},
		{"has reason", func(r *Request) { r.Grants[0].RequireReason, r.HasReason = true, true }, Allowed},
		{"needs both", func(r *Request) { r.Grants[0].RequireReason, r.Grants[0].RequireMFA = true, true }, NeedMFA},

		{"the closest of two refusals", func(r *Request) {
			r.Grants = append(r.Grants, r.Grants[0])
			r.Grants[0].RequireReason = true
			r.Grants[1].ID, r.Grants[1].Accounts = "g0", []string{"nobody"}
		}, NeedReason},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := plain()
			c.change(&r)
			d := Decide(r)
			if d.Reason != c.want || d.OK() != (c.want == Allowed) {
				t.Errorf("got %s, want %s", d.Reason, c.want)
			}
			if !d.OK() && (d.Features != 0 || d.StartsFloating) {
				t.Errorf("refused with %+v", d)
			}
		})
	}
}

func TestDecideAddsUp(t *testing.T) {
	r := plain()
	r.Subject.Memberships = append(r.Subject.Memberships, Membership{Role: "dev"}, Membership{Role: "temp", Window: Window{Floating: time.Hour}})
	r.Grants[0].NoRecording, r.Grants[0].MaxDuration, r.Grants[0].Idle = true, 8*time.Hour, 0
	r.Grants = append(r.Grants,
		Grant{ID: "g2", Role: "dev", Tag: "env=prod", Accounts: []string{"*"}, Features: FileTransfer, MaxDuration: time.Hour, Idle: time.Minute},
		Grant{ID: "g3", Role: "dev", Target: "db-1", Accounts: []string{"*"}, Features: X11, RequireMFA: true},
		Grant{ID: "g4", Role: "temp", Target: "db-1", Accounts: []string{"*"}, Features: Shell | Forward},
	)
	want := Decision{Reason: Allowed, Grant: "g1", Role: "ops", Features: Shell | Exec | FileTransfer,
		Record: true, MaxDuration: time.Hour, Idle: time.Minute}
	if diff := cmp.Diff(want, Decide(r)); diff != "" {
		t.Errorf("a shell does not need the floating role (-want +got):\n%s", diff)
	}
	r.Want = Forward
	want = Decision{Reason: Allowed, Grant: "g4", Role: "temp", Features: Shell | Exec | FileTransfer | Forward,
		Record: true, MaxDuration: time.Hour, Idle: time.Minute, StartsFloating: true, Until: noon.Add(time.Hour)}
	if diff := cmp.Diff(want, Decide(r)); diff != "" {
		t.Errorf("forwarding does (-want +got):\n%s", diff)
	}
}

func TestDecideRecordsByDefault(t *testing.T) {
	r := plain()
	if !Decide(r).Record {
		t.Error("a plain grant does not ask for recording")
	}
	r.Grants[0].NoRecording = true
	if Decide(r).Record {
		t.Error("a grant without recording asks for it")
	}
	r.Grants[0].NoRecording, r.Grants[0].Features, r.Want = false, Forward, Forward
	if Decide(r).Record || Survey(r).Record {
		t.Error("raw forwarding alone asks for a recording")
	}
}

func TestDecideUntil(t *testing.T) {
	at := func(h, m int) time.Time { return time.Date(2026, 11, 4, h, m, 0, 0, time.UTC) }
	r := plain()
	r.Grants[0].Window = Window{From: 9 * 60, To: 17 * 60}
	r.Subject.Memberships[0].Window = Window{NotAfter: at(15, 0)}
	if d := Decide(r); !d.OK() || !d.Until.Equal(at(15, 0)) {
		t.Errorf("%+v, want until 15:00", d)
	}
	// Another grant that opens sooner could change the answer.
	r.Grants = append(r.Grants, Grant{ID: "g2", Role: "ops", Target: "db-1", Accounts: []string{"*"}, Features: X11, Window: Window{NotBefore: at(13, 30)}})
	if d := Decide(r); !d.OK() || !d.Until.Equal(at(13, 30)) {
		t.Errorf("%+v, want until 13:30", d)
	}
	r.Now = at(8, 0)
	if d := Decide(r); d.Reason != OutsideWindow || !d.Until.Equal(at(9, 0)) {
		t.Errorf("%+v, want refused until 9:00", d)
	}
	// A floating membership that is running.
	r = plain()
	r.Subject.Memberships[0].Window.Floating, r.Subject.Memberships[0].FirstUse = time.Hour, at(11, 30)
	if d := Decide(r); !d.OK() || d.StartsFloating || !d.Until.Equal(at(12, 30)) {
		t.Errorf("%+v, want until 12:30", d)
	}
}

func TestSurvey(t *testing.T) {
	r := plain()
	r.Want = 0
	r.Grants[0].RequireMFA = true
	r.Grants = append(r.Grants, Grant{ID: "g2", Role: "ops", Tag: "env=prod", Accounts: []string{"root"}, Features: FileTransfer, RequireMFA: true, RequireReason: true})
	if got, want := Survey(r), (Offer{Features: Shell | Exec | FileTransfer, Record: true, NeedMFA: true}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	r.Subject.MFA = true
	if got := Survey(r); got.NeedMFA {
		t.Errorf("with a second factor: %+v", got)
	}
	r.Grants = r.Grants[1:]
	if got := Survey(r); !got.NeedReason || got.Features != FileTransfer {
		t.Errorf("only with a reason: %+v", got)
	}
	r.Source = netip.MustParseAddr("203.0.113.1")
	r.Grants[0].Sources = nets("192.0.2.0/24")
	if got := Survey(r); got != (Offer{}) {
		t.Errorf("from elsewhere: %+v", got)
	}
}

func TestNames(t *testing.T) {
	all := AllFeatures.Names()
	f, err := ParseFeatures(all)
	if err != nil || f != AllFeatures || len(all) != 9 {
		t.Errorf("parse %v = %v, %v", all, f, err)
	}
	if f, err := ParseFeatures([]string{"all"}); err != nil || f != AllFeatures {
		t.Errorf("all = %v, %v", f, err)
	}
	if _, err := ParseFeatures([]string{"Shell"}); err == nil {
		t.Error("Shell with a capital was read")
	}
	if got := (Shell | FileTransfer).String(); got != "shell,file_transfer" {
		t.Errorf("string: %s", got)
	}
	seen := map[string]bool{}
	for r := Refused; r <= NeedReason; r++ {
		if r.String() == "" || seen[r.String()] {
			t.Errorf("reason %d has no name of its own: %q", r, r)
		}
		seen[r.String()] = true
	}
	if Reason(200).String() != "refused" || Decision.OK(Decision{}) {
		t.Error("unknown and zero must refuse")
	}
}
