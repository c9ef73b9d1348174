package overview

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/fleet"
)

type fakeEdges struct{}

func (fakeEdges) Summary(context.Context, access.Scope, int) (fleet.Summary, error) {
	return fleet.Summary{Total: 3, Online: 2, Troubles: 1, Trouble: []fleet.Trouble{{Name: "ext-1", Level: "error", Why: "it is offline"}}}, nil
}

var at = time.Date(2026, 3, 4, 10, 30, 0, 0, time.UTC)

func newService(t *testing.T, d *db.DB) (*Service, *audit.Log) {
	t.Helper()
	log := audit.New(d, func() time.Time { return at })
	s, err := New(Config{DB: d, Audit: log, Edges: fakeEdges{}, Now: func() time.Time { return at },
		Certificates: func() []Certificate {
			return []Certificate{{Name: "far", NotAfter: at.Add(90 * day)}, {Name: "own", NotAfter: at.Add(3 * day)}, {Name: "ours", NotAfter: at.Add(20 * day), Renews: true}}
		},
		Space: func() (uint64, uint64, error) { return 5, 9, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return s, log
}

func exec(t *testing.T, d *db.DB, query string, args ...any) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		_, err := tx.ExecContext(t.Context(), query, args...)
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func addConnection(t *testing.T, d *db.DB, id, kind, state string, when time.Time) {
	t.Helper()
	exec(t, d, `insert into connections (id, kind, state, user_id, user_name, user_roles, user_agent, auth_methods, mfa, session_id, via,
remote_addr, target_id, target_name, target_address, site, account, reason, role_id, grant_id, features, recorded, core_id, requested_at, last_activity_at)
values ($1, $2, $3, 'usr_a', 'a', '[]', '', '[]', $4, '', '', '', '', '', '', '', '', '', '', '', 0, $4, 'core_x', $5, $5)`, id, kind, state, false, when.UnixMicro())
}

func everything() *api.Principal {
	return &api.Principal{UserID: "usr_a", Permissions: map[api.Permission]bool{
		api.ConnectionsView: true, api.EdgesView: true, api.AuditView: true, api.SettingsView: true, api.UsersView: true}}
}

func TestView(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s, log := newService(t, d)
		for i, state := range []string{"connected", "connecting", "disconnected", "failed", "disconnected"} {
			addConnection(t, d, fmt.Sprint("con_", i), "ssh", state, at.Add(-time.Duration(i)*time.Hour))
		}
		addConnection(t, d, "con_old", "ssh", "failed", at.Add(-25*time.Hour))
		addConnection(t, d, "con_tcp", "tcp", "connected", at)
		for _, e := range []audit.Type{audit.LoginFailed, audit.LoginFailed, audit.LoginSucceeded, audit.ConnectionDenied} {
			if err := log.Write(t.Context(), audit.Event{Type: e, Actor: audit.System}); err != nil {
				t.Fatal(err)
			}
		}
		exec(t, d, `insert into edges (id, kind, name, site, labels, rules, cordoned, revoked_at, token_id, key_hash, serial, cert_not_after, host, build, address, seen_at, last_error, created_at, version)
values ('edg_1', 'extender', 'ext-1', 'a', '{}', '{}', $1, 0, '', $2, '', $3, '', '', '', 0, '', 0, 1)`, false, []byte{1}, at.Add(5*day).UnixMicro())
		exec(t, d, `insert into users (id, kind, name, display_name, email, disabled, locked, password_hash, password_changed_at, password_failures, password_locked_until,
totp_secret, totp_pending, totp_last_step, epoch, created_at, last_login, erased_at, version) values ('usr_a', 'person', 'ann', '', '', $1, $1, '', 0, 0, 0, '', '', 0, 0, 0, 0, 0, 1)`, false)
		exec(t, d, `insert into tokens (id, user_id, kind, name, hash, created_at, expires_at, last_used, last_source, revoked_at) values ('tok_1', 'usr_a', 'api', 'ci', 'h', 0, $1, 0, '', 0)`, at.Add(2*day).UnixMicro())
		exec(t, d, `insert into memberships (role_id, user_id, time_window, sources, first_use, created_at, created_by, version) values ('rol_administrator', 'usr_a', $1, '[]', 0, 0, '', 1)`,
			`{"not_after":"2026-03-05T08:00:00Z"}`)

		v, err := s.View(t.Context(), everything())
		if err != nil {
			t.Fatal(err)
		}
		if v.Sessions.Now != 3 || len(v.Sessions.Kinds) != 2 || v.Sessions.Opened != 5 || v.Sessions.Failed != 1 {
			t.Errorf("sessions %+v", v.Sessions)
		}
		if h := v.Sessions.Hours; len(h) != 24 || h[23].At != at.Truncate(time.Hour) || h[23].Opened != 2 || h[20].Failed != 1 || h[19].Opened != 1 {
			t.Errorf("hours %+v", v.Sessions.Hours)
		}
		if *v.Logins != (Logins{OK: 1, Failed: 2, Denied: 1}) || len(v.Audit) != 4 {
			t.Errorf("logins %+v, %d events", v.Logins, len(v.Audit))
		}
		var names []string
		for _, e := range v.Expiring {
			names = append(names, e.Kind+" "+e.Name)
		}
		if got, want := strings.Join(names, ", "), "membership ann, api_token ci, tls_certificate own, edge_certificate ext-1"; got != want {
			t.Errorf("expiring %q, want %q", got, want)
		}
		if v.Storage.DatabaseBytes == 0 || v.Storage.FreeBytes != 5 || v.Storage.Engine != string(d.Engine()) {
			t.Errorf("storage %+v", v.Storage)
		}
		if v.Edges.Online != 2 {
			t.Errorf("edges %+v", v.Edges)
		}
	})
}

// TestViewIsPermitted: nobody sees the part of a subject he may not see.
func TestViewIsPermitted(t *testing.T) {
	s, _ := newService(t, dbtest.SQLite(t))
	for _, c := range []struct {
		may  api.Permission
		want string
	}{
		{"", ""}, {api.ConnectionsManage, "sessions"}, {api.EdgesView, "edges expiring"}, {api.AuditView, "logins"}, {api.SettingsView, "storage"}, {api.UsersView, ""},
	} {
		v, err := s.View(t.Context(), &api.Principal{UserID: "u", Permissions: map[api.Permission]bool{c.may: true}})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name, there := range map[string]bool{"sessions": v.Sessions != nil, "edges": v.Edges != nil, "logins": v.Logins != nil || v.Audit != nil, "storage": v.Storage != nil} {
			if there {
				got = append(got, name)
			}
		}
		if len(v.Expiring) > 0 {
			got = append(got, "expiring")
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("with %q: %v, want %q", c.may, got, c.want)
		}
	}
}

// TestViewUsesIndexes: no query of the start page reads a table from end to end.
func TestViewUsesIndexes(t *testing.T) {
	d := dbtest.SQLite(t)
	for query, index := range map[string]string{
		liveSQL: "connections_live", hoursSQL: "COVERING INDEX connections_hourly", firstSinceSQL: "COVERING INDEX audit_events_at", countTypeSQL: "COVERING INDEX audit_events_type",
		certificatesSQL: "edges_certificate", tokensSQL: "tokens_expires", membershipsSQL: "memberships_ends",
		statusSQL: "recordings_status", agingSQL: "recordings_expiry",
	} {
		var plan []string
		rows, err := d.QueryContext(t.Context(), "explain query plan "+query, 1, 2, 3)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		rows.Close()
		if text := strings.Join(plan, "\n"); !strings.Contains(text, index) {
			t.Errorf("%s\nis not answered by %s:\n%s", query, index, text)
		}
	}
}

func BenchmarkView(b *testing.B) {
	d := dbtest.SQLite(b)
	// A million sessions over a month.
	err := d.Tx(b.Context(), func(tx *db.Tx) error {
		_, err := tx.ExecContext(b.Context(), `with recursive n(i) as (select 0 union all select i + 1 from n where i < 999999)
insert into connections (id, kind, state, user_id, user_name, user_roles, user_agent, auth_methods, mfa, session_id, via,
remote_addr, target_id, target_name, target_address, site, account, reason, role_id, grant_id, features, recorded, core_id, requested_at, last_activity_at)
select 'con_' || i, 'ssh', case when i % 50 = 0 then 'failed' else 'disconnected' end, 'usr_' || (i % 700), 'a', '[]', '', '[]', 0, '', '', '', '', '', '', '', '', '', '', '', 0, 0, 'core_x', $1 - i * 2592000, $1 from n`, at.UnixMicro())
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{DB: d, Audit: audit.New(d, nil), Edges: fakeEdges{}, Now: func() time.Time { return at },
		Certificates: func() []Certificate { return nil }, Space: func() (uint64, uint64, error) { return 0, 0, nil }})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.View(b.Context(), everything()); err != nil {
			b.Fatal(err)
		}
	}
}
