package user

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func (r *room) role(name string, permissions ...api.Permission) Role {
	r.t.Helper()
	role, err := r.CreateRole(r.t.Context(), tester, Role{Name: name, Permissions: permissions})
	if err != nil {
		r.t.Fatal(err)
	}
	return role
}

func (r *room) join(role Role, u User, w access.Window, sources ...netip.Prefix) Member {
	r.t.Helper()
	m, err := r.PutMember(r.t.Context(), tester, role.ID, u.ID, w, sources, any64)
	if err != nil {
		r.t.Fatal(err)
	}
	return m
}

func anyRole(Role) error { return nil }

func TestRoles(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		role := r.role("ops", api.TargetsView, api.AuditView, api.AuditView)
		if diff := cmp.Diff(role.Permissions, []api.Permission{api.AuditView, api.TargetsView}); diff != "" {
			t.Errorf("permissions (-got +want):\n%s", diff)
		}
		if _, err := r.CreateRole(t.Context(), tester, Role{Name: "ops"}); problem(t, err).Code != "name_taken" {
			t.Errorf("same name: %v", err)
		}
		if _, err := r.CreateRole(t.Context(), tester, Role{Name: "x", Permissions: []api.Permission{"root"}}); problem(t, err).Status != 422 {
			t.Errorf("unknown permission: %v", err)
		}
		got, err := r.UpdateRole(t.Context(), tester, role.ID, anyRole, Role{Name: "ops2", Comment: "c"})
		if err != nil || got.Name != "ops2" || len(got.Permissions) != 0 || got.Version != 2 {
			t.Errorf("update = %+v, %v", got, err)
		}
		for what, err := range map[string]error{
			"change": second(r.UpdateRole(t.Context(), tester, AdministratorRole, anyRole, Role{Name: "x"})),
			"delete": r.DeleteRole(t.Context(), tester, AdministratorRole, anyRole),
		} {
			if problem(t, err).Code != "builtin" {
				t.Errorf("%s the built-in role: %v", what, err)
			}
		}
		u := r.person("jane")
		r.join(role, u, access.Window{})
		if err := r.DeleteRole(t.Context(), tester, role.ID, anyRole); err != nil {
			t.Fatal(err)
		}
		if list, err := r.Memberships(t.Context(), u.ID, access.Everywhere()); err != nil || len(list) != 0 {
			t.Errorf("memberships after the role is gone: %+v, %v", list, err)
		}
	})
}

func second[T any](_ T, err error) error { return err }

func TestSubject(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		plain, hours := r.role("plain"), r.role("hours")
		w := access.Window{NotBefore: r.clock.Now(), NotAfter: r.clock.Now().Add(time.Hour), Days: []time.Weekday{1, 2},
			From: 480, To: 1020, Zone: "Europe/Berlin", Floating: 8 * time.Hour}
		r.join(plain, u, access.Window{})
		r.join(hours, u, w, netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32"))
		at := r.clock.Now().Add(time.Minute)
		if err := r.MarkFirstUse(t.Context(), u.ID, hours.ID, at); err != nil {
			t.Fatal(err)
		}
		got, err := r.Subject(t.Context(), d, u.ID, true)
		if err != nil {
			t.Fatal(err)
		}
		want := access.Subject{User: u.ID, MFA: true, Memberships: []access.Membership{
			{Role: hours.ID, Window: w, FirstUse: at, Sources: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32")}},
			{Role: plain.ID},
		}}
		less := func(a, b access.Membership) bool { return len(a.Sources) > len(b.Sources) }
		if len(got.Memberships) == 2 && less(got.Memberships[1], got.Memberships[0]) {
			got.Memberships[0], got.Memberships[1] = got.Memberships[1], got.Memberships[0]
		}
		if diff := cmp.Diff(got, want, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("subject (-got +want):\n%s", diff)
		}
		if _, err := r.Subject(t.Context(), d, "usr_none", false); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("subject of nobody: %v", err)
		}
	})
}

func TestFirstUseCountsOnce(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		floating, plain := r.role("floating"), r.role("plain")
		r.join(floating, u, access.Window{Floating: time.Hour})
		r.join(plain, u, access.Window{})
		start := r.clock.Now()
		for i := range 3 {
			if err := r.MarkFirstUse(t.Context(), u.ID, floating.ID, start.Add(time.Duration(i)*time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.MarkFirstUse(t.Context(), u.ID, plain.ID, start); err != nil {
			t.Fatal(err)
		}
		m, err := r.Member(t.Context(), floating.ID, u.ID)
		if err != nil || !m.FirstUse.Equal(start) {
			t.Errorf("first use %v, %v; want %v", m.FirstUse, err, start)
		}
		if m, err := r.Member(t.Context(), plain.ID, u.ID); err != nil || !m.FirstUse.IsZero() {
			t.Errorf("a plain membership started: %v, %v", m.FirstUse, err)
		}
		if n := r.countEvents(audit.RoleFirstUse); n != 1 {
			t.Errorf("%d start events, want 1", n)
		}
		// The same window keeps its start, another one begins anew.
		if m := r.join(floating, u, access.Window{Floating: time.Hour}); !m.FirstUse.Equal(start) {
			t.Errorf("start after an equal change: %v", m.FirstUse)
		}
		if m := r.join(floating, u, access.Window{Floating: 2 * time.Hour}); !m.FirstUse.IsZero() {
			t.Errorf("start after another window: %v", m.FirstUse)
		}
	})
}

// TestPermissionsFollowTheMembership: time, place and floating windows hold
// for administrative rights, too.
func TestPermissionsFollowTheMembership(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		u := r.person("jane")
		role := r.role("auditors", api.AuditView)
		can := func(from netip.Addr) bool {
			t.Helper()
			return r.must(r.login("jane", goodPassword, "", from)).Can(api.AuditView)
		}
		if can(office) {
			t.Error("right without a role")
		}
		r.join(role, u, access.Window{}, netip.MustParsePrefix("192.0.2.0/24"))
		if !can(office) || can(home) {
			t.Error("the right must hold in the office only")
		}
		r.join(role, u, access.Window{NotAfter: r.clock.Now().Add(time.Hour)})
		if !can(home) {
			t.Error("no right inside the window")
		}
		r.clock.Add(time.Hour)
		if can(home) {
			t.Error("right after the window")
		}
		r.join(role, u, access.Window{Floating: 2 * time.Hour})
		r.clock.Add(100 * time.Hour) // not used yet: it waits
		if !can(home) {
			t.Error("no right at the first use of a floating membership")
		}
		r.clock.Add(2*time.Hour - time.Second)
		if !can(home) {
			t.Error("the floating membership ended early")
		}
		r.clock.Add(time.Second)
		if can(home) {
			t.Error("the floating membership did not end")
		}
		ids, err := r.RoleIDs(t.Context(), u.ID)
		if err != nil || len(ids) != 0 {
			t.Errorf("RoleIDs = %v, %v; want none", ids, err)
		}
	})
}

func TestMembershipsAreValidated(t *testing.T) {
	r := newRoom(t, dbtest.SQLite(t))
	u, role := r.person("jane"), r.role("ops")
	for name, c := range map[string]struct {
		w       access.Window
		sources []netip.Prefix
	}{
		"zone":         {w: access.Window{From: 1, To: 2, Zone: "Mars/Olympus"}},
		"minutes":      {w: access.Window{From: -1, To: 2}},
		"order":        {w: access.Window{NotBefore: r.clock.Now(), NotAfter: r.clock.Now()}},
		"host bits":    {sources: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16")}},
		"zero prefix":  {sources: []netip.Prefix{{}}},
		"many sources": {sources: make([]netip.Prefix, maxSources+1)},
	} {
		if _, err := r.PutMember(t.Context(), tester, role.ID, u.ID, c.w, c.sources, any64); problem(t, err).Status != 422 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.PutMember(t.Context(), tester, "rol_none", u.ID, access.Window{}, nil, any64); !errors.Is(err, db.ErrNotFound) {
		t.Errorf("unknown role: %v", err)
	}
}

// TestLastAdministratorStays tries every way to lose the last administrator.
func TestLastAdministratorStays(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRoom(t, d)
		root, _, err := r.BootstrapAdmin(t.Context(), "root", goodPassword)
		if err != nil {
			t.Fatal(err)
		}
		admins, err := r.Role(t.Context(), AdministratorRole)
		if err != nil {
			t.Fatal(err)
		}
		jane := r.person("jane")
		yes := true
		ways := map[string]func() error{
			"disable": func() error { return second(r.Update(t.Context(), tester, root.ID, any64, Change{Disabled: &yes})) },
			"lock":    func() error { return second(r.Update(t.Context(), tester, root.ID, any64, Change{Locked: &yes})) },
			"remove":  func() error { return r.RemoveMember(t.Context(), tester, admins.ID, root.ID, any64) },
			"window": func() error {
				return second(r.PutMember(t.Context(), tester, admins.ID, root.ID, access.Window{NotAfter: r.clock.Now().Add(time.Hour)}, nil, any64))
			},
			"source": func() error {
				return second(r.PutMember(t.Context(), tester, admins.ID, root.ID, access.Window{}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, any64))
			},
			"erase": func() error { return r.Erase(t.Context(), tester, root.ID, any64, nil) },
		}
		refuseAll := func(when string) {
			t.Helper()
			for name, try := range ways {
				if err := try(); err == nil || problem(t, err).Code != "last_administrator" {
					t.Errorf("%s: %s: %v", when, name, err)
				}
			}
		}
		refuseAll("alone")
		// Neither a client nor somebody with a window is a way back in.
		c, _, err := r.CreateClient(t.Context(), tester, "robot", "")
		if err != nil {
			t.Fatal(err)
		}
		r.join(admins, c.User, access.Window{})
		r.join(admins, jane, access.Window{Floating: time.Hour})
		refuseAll("with half administrators")
		r.join(admins, jane, access.Window{})
		if err := ways["remove"](); err != nil {
			t.Errorf("remove with a second administrator: %v", err)
		}
	})
}

func TestWindowViewRoundTrip(t *testing.T) {
	w := access.Window{NotBefore: time.Unix(1e9, 0).UTC(), Days: []time.Weekday{0, 6}, From: 22 * 60, To: 24 * 60, Zone: "Asia/Tokyo", Floating: 90 * time.Minute}
	text, err := json.Marshal(showWindow(w))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"not_before":"2001-09-09T01:46:40Z","days":["sun","sat"],"from":"22:00","to":"24:00","zone":"Asia/Tokyo","floating":"1h30m0s"}`
	if string(text) != want {
		t.Errorf("window = %s, want %s", text, want)
	}
	var v WindowView
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	got, bad := v.window()
	if diff := cmp.Diff(got, w); diff != "" || bad != nil {
		t.Errorf("read back (-got +want): %v\n%s", bad, diff)
	}
	for _, from := range []string{"8:30", "24:01", "12:60", "-1:00", "12:00x", "1200"} {
		if _, bad := (&WindowView{From: from}).window(); len(bad) != 1 {
			t.Errorf("from %q: %v", from, bad)
		}
	}
	if _, bad := (&WindowView{Days: []string{"monday"}, Floating: "soon"}).window(); len(bad) != 2 {
		t.Errorf("bad day and floating: %v", bad)
	}
}

func BenchmarkSubject(b *testing.B) {
	r := newRoom(b, dbtest.SQLite(b))
	const users, perUser = 100_000, 10
	var roles []string
	for i := range 1000 {
		roles = append(roles, r.role(fmt.Sprintf("role%d", i)).ID)
	}
	err := r.d.Tx(b.Context(), func(tx *db.Tx) error {
		for i := range users {
			id := fmt.Sprintf("usr_%06d", i)
			if _, err := tx.ExecContext(b.Context(), sqlUserInsert, id, "person", fmt.Sprintf("user%d", i), "", "", false, false, "", 0, 1); err != nil {
				return err
			}
			for j := range perUser {
				if _, err := tx.ExecContext(b.Context(), sqlMemberInsert, roles[(i+j*97)%1000], id, "{}", "[]", 1, "system"); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i += 7919
		s, err := r.Subject(b.Context(), r.d, fmt.Sprintf("usr_%06d", i%users), false)
		if err != nil || len(s.Memberships) != perUser {
			b.Fatalf("%d memberships, %v", len(s.Memberships), err)
		}
	}
}
