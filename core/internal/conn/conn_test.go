package conn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
	"caponier/core/internal/user"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// auditTypes returns the types of the events of a connection, in order.
func auditTypes(t *testing.T, d *db.DB, id string) []string {
	t.Helper()
	rows, err := d.QueryContext(context.Background(), `select type from audit_events where connection_id = $1 order by seq`, id)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLifecycle(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		l, err := r.Open(t.Context(), spec("demo", "db-1", "rol_1"))
		if err != nil {
			t.Fatal(err)
		}
		x := r.record(l.ID, Requested)
		if x.UserName != "demo" || x.Source != "192.0.2.7" || !x.MFA || !slices.Equal(x.AuthMethods, []string{"password", "totp"}) ||
			!slices.Equal(x.UserRoles, []string{"operators"}) || x.RoleID != "rol_1" || x.GrantID != "grt_1" || !x.Recorded ||
			x.TargetAddress != "10.10.0.5:22" || x.CoreID != "cor_test" || x.UserAgent != "SSH-2.0-OpenSSH_9.2" || x.Reason != "ticket 17" {
			t.Errorf("record of a new connection: %+v", x)
		}
		l.Connecting()
		r.record(l.ID, Connecting)
		l.Connected(fleet.Route{NodeID: "edg_1", Node: "ext-1", Transport: "quic", Binding: "bound"})
		l.Channel("exec", "ls -l /etc")
		l.Recording("rec_1")
		l.In(100)
		l.Out(2000)
		r.clock.add(3 * time.Second)
		l.In(11)
		l.Close(EndedByTarget, nil)
		l.Close(EndedByError, errors.New("too late"))
		x = r.record(l.ID, Disconnected)
		if x.BytesIn != 111 || x.BytesOut != 2000 || x.EndReason != EndedByTarget || x.NodeName != "ext-1" || x.Transport != "quic" ||
			x.RecordingID != "rec_1" || x.ConnectedAt.IsZero() || x.EndedAt.Sub(x.RequestedAt) != 3*time.Second || x.Seconds != 3 ||
			!x.LastActivityAt.Equal(x.EndedAt) {
			t.Errorf("record of an ended connection: %+v", x)
		}
		want := []string{"connection.requested", "connection.established", "channel.exec", "connection.closed"}
		if got := auditTypes(t, d, l.ID); !slices.Equal(got, want) {
			t.Errorf("audit events %v, want %v", got, want)
		}
		r.until("the connection is forgotten", func() bool { return r.Count() == 0 && !r.Carries(l.ID) })
	})
}

// What a user's program says may hold any bytes. It must not hold up what is
// written of everybody's connections.
func TestAnyBytesAreRecorded(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		s := spec("demo", "db-1", "rol_1")
		s.UserAgent, s.Reason, s.TargetAddress = "SSH-2.0-\x00\xff", "ticket\x0017", "10.10.0.5\x00:22"
		l, err := r.Open(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		l.Channel("exec", "printf 'a\x00b\xff'")
		l.Close(EndedByUser, nil)
		if x := r.record(l.ID, Disconnected); x.Reason != "ticket\uFFFD17" {
			t.Errorf("reason %q", x.Reason)
		}
	})
}

func TestFailedOpen(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		l, err := r.Open(t.Context(), spec("demo", "db-1", "rol_1"))
		if err != nil {
			t.Fatal(err)
		}
		l.Connecting()
		l.Close(EndedByRoute, wire.Errorf(wire.CodeTunnelLost, "No extender of site vpc-a is online."))
		x := r.record(l.ID, Failed)
		if x.EndReason != EndedByRoute || x.EndDetail != "No extender of site vpc-a is online." {
			t.Errorf("end %q %q", x.EndReason, x.EndDetail)
		}
		// What is not written for people does not reach the record.
		l, err = r.Open(t.Context(), spec("demo", "db-1", "rol_1"))
		if err != nil {
			t.Fatal(err)
		}
		l.Close(EndedByError, errors.New("dial 10.0.0.1: secret detail"))
		if x := r.record(l.ID, Failed); strings.Contains(x.EndDetail, "secret") {
			t.Errorf("internal error shown: %q", x.EndDetail)
		}
	})
}

// A role is revoked while 200 connections are live: all of its own end by the
// note of it, the others live on. How soon is measured
// end to end, see TestRoleRevokedEndsSession.
func TestRevokeEndsLive(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d, func(_ *Config, r *rig) { r.limits.PerUser = 1000 })
		var gone, stay []*Live
		for i := range 200 {
			role := "rol_keep"
			if i%2 == 0 {
				role = "rol_gone"
			}
			l := r.open(spec(fmt.Sprintf("user%d", i%20), "db-1", role))
			l.Connected(fleet.Route{})
			if i%2 == 0 {
				gone = append(gone, l)
			} else {
				stay = append(stay, l)
			}
		}
		r.until("decisions after open", func() bool { return r.judge.decisions() >= 200 })
		r.judge.set(func(j *judge) { j.reason["rol_gone"] = access.NoRole })
		before := r.judge.decisions()
		start := time.Now()
		r.notify("role", "rol_gone")
		for _, l := range gone {
			why := r.ended(l)
			if why.Reason != EndedByAccess || !strings.Contains(why.Public, "withdrawn") {
				t.Fatalf("ended by %+v", why)
			}
		}
		t.Logf("%d of 200 connections ended in %s", len(gone), time.Since(start))
		r.until("the others decided", func() bool { return r.judge.decisions() >= before+200 })
		for _, l := range stay {
			if l.Context().Err() != nil {
				t.Fatalf("connection of another role ended: %v", context.Cause(l.Context()))
			}
		}
		if x := r.record(gone[0].ID, Disconnected); x.EndReason != EndedByAccess {
			t.Errorf("recorded reason %q", x.EndReason)
		}
		for _, l := range stay {
			l.Close(EndedByUser, nil)
		}
	})
}

// A right lost between the decision and the registration is noticed without
// any further event.
func TestDecidedAgainAfterOpen(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	r.judge.set(func(j *judge) { j.reason["rol_1"] = access.UserDisabled })
	l := r.open(spec("demo", "db-1", "rol_1"))
	if why := r.ended(l); why.Reason != EndedByAccess || !strings.Contains(why.Public, "account") {
		t.Errorf("ended by %+v", why)
	}
}

func TestLoginEnds(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	l := r.open(spec("demo", "db-1", "rol_1"))
	r.until("first decision", func() bool { return r.judge.decisions() > 0 })
	// What only says that it cannot be told now ends nothing.
	r.judge.set(func(j *judge) { j.login = errors.New("database away") })
	r.notify("user", "usr_demo")
	r.notify("token", "tok_1")
	r.until("undecidable", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return !l.undecidable.IsZero() })
	if l.Context().Err() != nil {
		t.Fatalf("ended while the login could not be checked: %v", context.Cause(l.Context()))
	}
	other := r.judge.decisions()
	r.judge.set(func(j *judge) { j.login = fmt.Errorf("%w: session", user.ErrEnded) })
	r.notify("user", "usr_demo")
	if why := r.ended(l); why.Reason != EndedByLogin {
		t.Errorf("ended by %+v", why)
	}
	if r.judge.decisions() != other {
		t.Errorf("decided for a login that is over")
	}
}

func TestLostFeatureEnds(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	l := r.open(spec("demo", "db-1", "rol_1"))
	if l.Use(access.X11) || l.Use(0) || l.Use(access.FileTransfer|access.X11) {
		t.Error("may use what the decision does not allow")
	}
	r.until("first decision", func() bool { return r.judge.decisions() > 0 })
	r.judge.set(func(j *judge) { j.lost = access.FileTransfer })
	r.notify("grant", "grt_1")
	r.until("a use not begun is lost", func() bool { return l.Decision().Features&access.FileTransfer == 0 })
	if l.Context().Err() != nil {
		t.Fatal("ended for a use that was not in use")
	}
	r.judge.set(func(j *judge) { j.lost = 0 })
	r.notify("grant", "grt_1")
	r.until("the use is back", func() bool { return l.Use(access.FileTransfer) })
	r.judge.set(func(j *judge) { j.lost = access.FileTransfer })
	r.notify("grant", "grt_1")
	if why := r.ended(l); why.Reason != EndedByAccess {
		t.Errorf("ended by %+v", why)
	}
}

func TestClockEnds(t *testing.T) {
	tests := []struct {
		name   string
		spec   func(*Spec)
		limits func(*Limits)
		run    func(*rig, *Live)
		want   EndReason
	}{
		{"longest time", func(s *Spec) { s.Decision.MaxDuration = time.Hour }, nil,
			func(r *rig, l *Live) { r.clock.add(time.Hour) }, EndedByDuration},
		{"longest time by setting", nil, func(l *Limits) { l.MaxDuration = time.Hour },
			func(r *rig, l *Live) { r.clock.add(time.Hour) }, EndedByDuration},
		{"idle shell although the target prints", func(s *Spec) { s.Decision.Idle = time.Minute }, nil,
			func(r *rig, l *Live) { r.clock.add(time.Minute); l.Out(10) }, EndedByIdle},
		{"idle tcp", func(s *Spec) {
			s.Decision.Idle, s.Want, s.Decision.Features = time.Minute, access.Forward, access.Forward
		}, nil,
			func(r *rig, l *Live) { r.clock.add(50 * time.Second); l.Out(10); r.clock.add(time.Minute) }, EndedByIdle},
		{"window over", nil, nil, func(r *rig, l *Live) {
			r.judge.set(func(j *judge) { j.until = r.clock.now().Add(time.Minute) })
			r.notify("grant", "g")
			r.until("new until", func() bool { return !l.Decision().Until.IsZero() })
			r.judge.set(func(j *judge) { j.reason["rol_1"] = access.OutsideWindow })
			r.clock.add(time.Minute)
		}, EndedByAccess},
		{"window over while it cannot be decided", nil, nil, func(r *rig, l *Live) {
			r.judge.set(func(j *judge) { j.until = r.clock.now().Add(time.Minute) })
			r.notify("grant", "g")
			r.until("new until", func() bool { return !l.Decision().Until.IsZero() })
			r.judge.set(func(j *judge) { j.err = errors.New("database away") })
			r.clock.add(time.Minute)
		}, EndedByAccess},
		{"periodic decision", nil, func(l *Limits) { l.Lease = time.Hour }, func(r *rig, l *Live) {
			r.judge.set(func(j *judge) { j.reason["rol_1"] = access.NoRole })
			r.clock.add(5 * time.Minute)
		}, EndedByAccess},
		{"lease over", nil, nil, func(r *rig, l *Live) {
			r.judge.set(func(j *judge) { j.err = errors.New("database away") })
			r.notify("role", "r")
			r.until("undecidable", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return !l.undecidable.IsZero() })
			r.clock.add(5 * time.Minute)
		}, EndedByLease},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, dbtest.SQLite(t), func(_ *Config, r *rig) {
				if tt.limits != nil {
					tt.limits(&r.limits)
				}
			})
			s := spec("demo", "db-1", "rol_1")
			if tt.spec != nil {
				tt.spec(&s)
			}
			l := r.open(s)
			r.until("first decision", func() bool { return r.judge.decisions() > 0 })
			if l.Context().Err() != nil {
				t.Fatal("ended at once")
			}
			tt.run(r, l)
			why := r.ended(l)
			if why.Reason != tt.want || why.Public == "" {
				t.Errorf("ended by %+v, want %s", why, tt.want)
			}
			if x := r.record(l.ID, Disconnected); x.EndReason != tt.want || x.EndDetail != why.Public {
				t.Errorf("recorded %q %q", x.EndReason, x.EndDetail)
			}
		})
	}
}

// Terminate reaches a connection another core carries.
func TestTerminateAcrossCores(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		a := newRig(t, d)
		b := newRig(t, d, func(c *Config, _ *rig) { c.CoreID = "cor_other" })
		admin := spec("admin", "", "").Principal
		admin.Permissions = map[api.Permission]bool{api.ConnectionsManage: true}
		l := a.open(spec("demo", "db-1", "rol_1"))
		start := time.Now()
		if err := b.Terminate(t.Context(), l.ID, admin, "Maintenance begins."); err != nil {
			t.Fatal(err)
		}
		why := a.ended(l)
		t.Logf("ended on the other core after %s", time.Since(start))
		if why.Reason != EndedByAdmin || why.Public != "Maintenance begins." {
			t.Errorf("ended by %+v", why)
		}
		x := b.record(l.ID, Disconnected)
		if x.TerminatedBy != "admin" || x.TerminatedByID != "usr_admin" || x.TerminationText != "Maintenance begins." || x.EndReason != EndedByAdmin {
			t.Errorf("record: %+v", x)
		}
		if got := auditTypes(t, d, l.ID); !slices.Contains(got, "connection.terminated") {
			t.Errorf("audit events %v", got)
		}
		if err := b.Terminate(t.Context(), l.ID, admin, ""); !errors.Is(err, db.ErrConflict) {
			t.Errorf("second order: %v, want conflict", err)
		}
		if err := b.Terminate(t.Context(), "con_unknown", admin, ""); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("unknown connection: %v, want not found", err)
		}
		var ls []*Live
		for range 5 {
			ls = append(ls, a.open(spec("demo", "db-2", "rol_1")))
		}
		other := a.open(spec("demo", "db-3", "rol_1"))
		n, err := b.TerminateAll(t.Context(), "usr_demo", "tgt_db-2", admin, "")
		if err != nil || n != 5 {
			t.Errorf("terminated %d, %v; want 5", n, err)
		}
		for _, l := range ls {
			a.ended(l)
		}
		if other.Context().Err() != nil {
			t.Error("a connection to another target ended")
		}
		// A user who ends his own connection did not lose it.
		if err := b.Terminate(t.Context(), other.ID, other.Spec().Principal, ""); err != nil {
			t.Fatal(err)
		}
		if why := a.ended(other); why.Reason != EndedByUser {
			t.Errorf("ended by %+v", why)
		}
	})
}

func TestLimits(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d, func(_ *Config, r *rig) { r.limits.PerUser, r.limits.Live = 3, 5 })
		// Many at once: exactly the limit gets in.
		var wg sync.WaitGroup
		var mu sync.Mutex
		var got []*Live
		for range 12 {
			wg.Go(func() {
				l, err := r.Open(context.Background(), spec("demo", "db-1", "rol_1"))
				if err != nil {
					if _, ok := errors.AsType[*LimitError](err); !ok {
						t.Errorf("refused with %v", err)
					}
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got = append(got, l)
			})
		}
		wg.Wait()
		if len(got) > 3 || len(got) == 0 {
			t.Fatalf("%d connections of one user, limit 3", len(got))
		}
		for len(got) < 3 {
			l, err := r.Open(t.Context(), spec("demo", "db-1", "rol_1"))
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, l)
		}
		got = append(got, r.open(spec("b", "db-1", "rol_1")), r.open(spec("c", "db-1", "rol_1")))
		if _, err := r.Open(t.Context(), spec("d", "db-1", "rol_1")); err == nil {
			t.Error("more than the core's limit")
		}
		for _, l := range got {
			l.Close(EndedByUser, nil)
		}
		r.record(got[0].ID, Disconnected)
		r.until("a place is free again", func() bool {
			l, err := r.Open(t.Context(), spec("demo", "db-1", "rol_1"))
			if err == nil {
				l.Close(EndedByUser, nil)
			}
			return err == nil
		})
	})
}

func TestRefusedSpec(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	s := spec("demo", "db-1", "rol_1")
	s.Decision = access.Decision{}
	if _, err := r.Open(t.Context(), s); err == nil {
		t.Error("opened without permission")
	}
	s = spec("demo", "db-1", "rol_1")
	s.Principal = nil
	if _, err := r.Open(t.Context(), s); err == nil {
		t.Error("opened without principal")
	}
}

// An open whose record cannot be written opens nothing.
func TestOpenFailsClosed(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t), func(c *Config, _ *rig) { c.Audit = refusing{c.Audit} })
	if l, err := r.Open(t.Context(), spec("demo", "db-1", "rol_1")); err == nil {
		t.Errorf("opened %s without audit", l.ID)
	}
	if r.Count() != 0 {
		t.Errorf("%d live after a refused open", r.Count())
	}
}

type refusing struct{ Auditor }

func (refusing) Append(context.Context, *db.Tx, audit.Event) error {
	return errors.New("audit is full")
}

func TestCrashRecovery(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		// A manager that never runs is a core that died.
		c := newClock()
		dead, err := New(Config{
			DB: d, Audit: audit.New(d, c.now), Authorizer: &judge{}, Logins: &judge{}, CoreID: "cor_test",
			Now: c.now, Log: newRig(t, d).cfg.Log,
		})
		if err != nil {
			t.Fatal(err)
		}
		l, err := dead.Open(t.Context(), spec("demo", "db-1", "rol_1"))
		if err != nil {
			t.Fatal(err)
		}
		r := newRig(t, d)
		x := r.record(l.ID, Disconnected)
		if x.EndReason != EndedByCrash || x.EndedAt.IsZero() {
			t.Errorf("ended %q at %s", x.EndReason, x.EndedAt)
		}
		if got := auditTypes(t, d, l.ID); !slices.Equal(got, []string{"connection.requested", "connection.lost"}) {
			t.Errorf("audit events %v", got)
		}
		// The dead core's late writes do not revive it.
		l.Connected(fleet.Route{})
		if err := dead.flush(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		if x, err := r.Get(t.Context(), l.ID); err != nil || x.State != Disconnected {
			t.Errorf("state %v, %v", x.State, err)
		}
		l.Close(EndedByError, nil)
	})
}

func TestShutdown(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		l := r.open(spec("demo", "db-1", "rol_1"))
		stuck, err := r.Open(t.Context(), spec("demo", "db-1", "rol_1"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-stuck.Context().Done()
			stuck.Close(EndedByUser, nil)
		}()
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		if why := r.ended(l); why.Reason != EndedByShutdown {
			t.Errorf("ended by %+v", why)
		}
		for _, id := range []string{l.ID, stuck.ID} {
			if x := r.record(id, Disconnected); x.EndReason != EndedByShutdown {
				t.Errorf("recorded %q", x.EndReason)
			}
		}
		if _, err := r.Open(t.Context(), spec("demo", "db-1", "rol_1")); !errors.Is(err, ErrDraining) {
			t.Errorf("open after shutdown: %v", err)
		}
	})
}

func TestEventsBounded(t *testing.T) {
	for _, before := range []int{0, maxChannels} { // also when they are not listed any more
		r := newRig(t, dbtest.SQLite(t), func(c *Config, _ *rig) { c.MaxPending, c.FlushEvery = 10, time.Hour })
		l := r.open(spec("demo", "db-1", "rol_1"))
		l.mu.Lock()
		l.channels = before
		l.mu.Unlock()
		for i := 0; l.Context().Err() == nil && i < 100000; i++ {
			l.Channel("exec", fmt.Sprint(i))
		}
		if why := r.ended(l); why.Reason != EndedBySpool {
			t.Errorf("after %d events: ended by %+v", before, why)
		}
	}
}

func TestErase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		l := r.open(spec("demo", "db-1", "rol_1"))
		l.Close(EndedByUser, nil)
		r.record(l.ID, Disconnected)
		got, err := r.Export(t.Context(), d, "usr_demo")
		if err != nil || len(got.([]*Record)) != 1 {
			t.Fatalf("export %v, %v", got, err)
		}
		if err := d.Tx(t.Context(), func(tx *db.Tx) error { return r.Erase(t.Context(), tx, "usr_demo", "erased-1") }); err != nil {
			t.Fatal(err)
		}
		if x, err := r.Get(t.Context(), l.ID); err != nil || x.UserName != "erased-1" || x.Source != "" || x.Reason != "" || x.TargetName != "db-1" {
			t.Errorf("after erasing: %+v, %v", x, err)
		}
	})
}

func TestPrune(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d, func(_ *Config, r *rig) { r.limits.Retention, r.limits.Lease = 24*time.Hour, 1000*time.Hour })
		old := r.open(spec("demo", "db-1", "rol_1"))
		old.Channel("exec", "true")
		live := r.open(spec("demo", "db-1", "rol_1"))
		old.Close(EndedByUser, nil)
		r.record(old.ID, Disconnected)
		r.clock.add(48 * time.Hour)
		fresh := r.open(spec("demo", "db-1", "rol_1"))
		fresh.Close(EndedByUser, nil)
		r.record(fresh.ID, Disconnected)
		if err := r.prune(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Get(t.Context(), old.ID); !errors.Is(err, db.ErrNotFound) {
			t.Errorf("old row: %v", err)
		}
		for _, id := range []string{live.ID, fresh.ID} {
			if _, err := r.Get(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	})
}
