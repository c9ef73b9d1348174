package policy

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
)

// The size the figures are asked for: 100,000 users in five roles each, 1,000
// roles with 20 targets and two tags each, 10,000 targets with three tags and
// two accounts.
const (
	manyUsers   = 100_000
	manyTargets = 10_000
	manyRoles   = 1_000
	rolesEach   = 5
	grantsEach  = 20
	manyTags    = 200
)

// loader inserts rows quickly.
type loader struct {
	b  *testing.B
	tx *db.Tx
}

func (l loader) insert(into string, width, n int, row func(i int) []any) {
	const batch = 20
	stmt := func(rows int) string {
		groups := make([]string, rows)
		for g := range groups {
			marks := make([]string, width)
			for c := range marks {
				marks[c] = fmt.Sprintf("$%d", g*width+c+1)
			}
			groups[g] = "(" + strings.Join(marks, ", ") + ")"
		}
		return "insert into " + into + " values " + strings.Join(groups, ", ")
	}
	full, err := l.tx.PrepareContext(l.b.Context(), stmt(batch))
	if err != nil {
		l.b.Fatal(err)
	}
	defer full.Close()
	var args []any
	for i := range n {
		args = append(args, row(i)...)
		if len(args) == batch*width {
			if _, err := full.ExecContext(l.b.Context(), args...); err != nil {
				l.b.Fatal(err)
			}
			args = args[:0]
		}
	}
	if len(args) > 0 {
		if _, err := l.tx.ExecContext(l.b.Context(), stmt(len(args)/width), args...); err != nil {
			l.b.Fatal(err)
		}
	}
}

// load fills the database.
func load(b *testing.B, d *db.DB) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	err := d.Tx(b.Context(), func(tx *db.Tx) error {
		l := loader{b, tx}
		l.insert(`users (id, kind, name, display_name, email, disabled, locked, password_hash, password_changed_at, password_failures,
 password_locked_until, totp_secret, totp_pending, totp_last_step, epoch, created_at, last_login, erased_at, version)`, 19, manyUsers,
			func(i int) []any {
				return []any{fmt.Sprintf("usr_%06d", i), "person", fmt.Sprintf("user-%06d", i), "", "", false, false, "", 0, 0, 0, "", "", 0, 0, 0, 0, 0, 1}
			})
		l.insert(`roles (id, name, comment, permissions, builtin, created_at, version)`, 7, manyRoles+1, func(i int) []any {
			return []any{fmt.Sprintf("rol_%04d", i), fmt.Sprintf("role-%04d", i), "", "[]", false, 0, 1}
		})
		l.insert(`memberships (role_id, user_id, time_window, sources, first_use, created_at, created_by, version)`, 8, manyUsers*rolesEach,
			func(i int) []any {
				u, n := i/rolesEach, i%rolesEach
				window := "{}"
				if n == 0 {
					window = `{"days":[1,2,3,4,5,6,0],"from":0,"to":1440,"zone":"Europe/Berlin"}`
				}
				// Five roles spread over all, another five for each user.
				return []any{fmt.Sprintf("rol_%04d", (u*7+n*manyRoles/rolesEach)%manyRoles), fmt.Sprintf("usr_%06d", u), window, "[]", 0, 0, "", 1}
			})
		// One user who may reach everything.
		l.insert(`memberships (role_id, user_id, time_window, sources, first_use, created_at, created_by, version)`, 8, 1,
			func(int) []any {
				return []any{fmt.Sprintf("rol_%04d", manyRoles), "usr_000001", "{}", "[]", 0, 0, "", 1}
			})
		tags := func(i int) []string {
			return []string{"all", fmt.Sprintf("rack=%d", i%manyTags), fmt.Sprintf("team=%d", i/7%manyTags)}
		}
		l.insert(`targets (id, name, kind, host, port, comment, tags, disabled, machine_id, origin, host_key_policy, host_key_ca,
 ssh_algorithms, created_at, updated_at, version)`, 16, manyTargets, func(i int) []any {
			return []any{fmt.Sprintf("tgt_%05d", i), fmt.Sprintf("host-%05d", i), "ssh", fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), 22, "",
				`["` + strings.Join(tags(i), `","`) + `"]`, false, "", "", "tofu", "", "", 0, 0, 1}
		})
		l.insert(`target_tags (tag, target_id)`, 2, manyTargets*3, func(i int) []any {
			return []any{tags(i / 3)[i%3], fmt.Sprintf("tgt_%05d", i/3)}
		})
		l.insert(`target_accounts (id, target_id, name, auth, secret_id, features, disabled, created_at, version)`, 9, manyTargets*2, func(i int) []any {
			return []any{fmt.Sprintf("acc_%05d", i), fmt.Sprintf("tgt_%05d", i/2), []string{"root", "deploy"}[i%2], "certificate", "", int64(target.SSH.Features()), false, 0, 1}
		})
		grant := `grants (id, role_id, target_id, tag, accounts, features, time_window, sources, require_mfa, require_reason, no_recording,
 max_duration, idle, disabled, comment, created_at, version)`
		l.insert(grant, 17, manyRoles*(grantsEach+2), func(i int) []any {
			role, n := i/(grantsEach+2), i%(grantsEach+2)
			var tgt, tag any = fmt.Sprintf("tgt_%05d", r.IntN(manyTargets)), nil
			if n >= grantsEach {
				tgt, tag = nil, fmt.Sprintf("%s=%d", []string{"rack", "team"}[n-grantsEach], r.IntN(manyTags))
			}
			return []any{fmt.Sprintf("gnt_%06d", i), fmt.Sprintf("rol_%04d", role), tgt, tag, `["root"]`, int64(access.Shell | access.Exec), "{}", "[]", false, false, false, 0, 0, false, "", 0, 1}
		})
		l.insert(grant, 17, 1, func(int) []any {
			return []any{"gnt_all", fmt.Sprintf("rol_%04d", manyRoles), nil, "all", `["*"]`, int64(access.AllFeatures), "{}", "[]", false, false, false, 0, 0, false, "", 0, 1}
		})
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := d.ExecContext(b.Context(), `analyze`); err != nil {
		b.Fatal(err)
	}
}

// measured reports the processor time of each operation at the end, which a
// busy machine does not change, and facts about the data.
func measured(b *testing.B, facts map[string]int) {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := used()
	b.Cleanup(func() {
		b.ReportMetric(float64((used()-start).Microseconds())/float64(b.N), "cpu-µs/op")
		for name, n := range facts {
			b.ReportMetric(float64(n), name)
		}
	})
}

// BenchmarkPolicy measures with 100,000 users, 10,000 targets and 1,000 roles:
// a decision (≤ 20 µs without the database), a decision with everything read
// fresh, and the list of all targets of a user (≤ 50 ms).
func BenchmarkPolicy(b *testing.B) {
	w := newWorld(b, dbtest.SQLite(b))
	load(b, w.db)
	one := &api.Principal{UserID: "usr_000777"}
	all := &api.Principal{UserID: "usr_000001"}
	mine, err := w.List(b.Context(), one, here, "", "", maxList)
	if err != nil || len(mine) == 0 {
		b.Fatalf("targets of a user: %d, %v", len(mine), err)
	}
	b.Run("decide", func(b *testing.B) {
		sub, err := w.users.Subject(b.Context(), w.db, one.UserID, false)
		if err != nil {
			b.Fatal(err)
		}
		t, err := w.targets.Resolve(b.Context(), w.db, mine[0].Target.ID)
		if err != nil {
			b.Fatal(err)
		}
		grants, err := w.targets.Grants(b.Context(), w.db, t)
		if err != nil {
			b.Fatal(err)
		}
		r := access.Request{Subject: sub, Target: shown(t), Account: "root", Mask: t.Kind.Features(), Want: access.Shell, Source: here,
			Now: w.clock.Now(), Grants: grants, Zones: &w.zones}
		measured(b, map[string]int{"grants": len(grants)})
		for b.Loop() {
			if d := access.Decide(r); !d.OK() {
				b.Fatalf("refused: %s", d.Reason)
			}
		}
	})
	b.Run("decide-fresh", func(b *testing.B) {
		measured(b, nil)
		for b.Loop() {
			v, err := w.Decide(b.Context(), Query{Principal: one, Target: mine[0].Target.Name, Account: "root", Want: access.Shell, Source: here})
			if err != nil || !v.OK() {
				b.Fatalf("%+v, %v", v, err)
			}
		}
	})
	b.Run("list-all-of-a-user", func(b *testing.B) {
		measured(b, map[string]int{"targets": len(mine)})
		for b.Loop() {
			if es, err := w.List(b.Context(), one, here, "", "", maxList); err != nil || len(es) != len(mine) {
				b.Fatalf("%d, %v", len(es), err)
			}
		}
	})
	b.Run("list-100-of-10000", func(b *testing.B) {
		measured(b, nil)
		for b.Loop() {
			if es, err := w.List(b.Context(), all, here, "", "host-05000", 100); err != nil || len(es) != 200 {
				b.Fatalf("%d, %v", len(es), err)
			}
		}
	})
	b.Run("search-in-10000", func(b *testing.B) {
		measured(b, nil)
		for b.Loop() {
			if es, err := w.List(b.Context(), all, here, "host-0777", "", 100); err != nil || len(es) != 20 {
				b.Fatalf("%d, %v", len(es), err)
			}
		}
	})
}
