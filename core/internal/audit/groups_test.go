package audit

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func TestEventsOfGroups(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		ctx := t.Context()
		err := d.Tx(ctx, func(tx *db.Tx) error {
			_, err := tx.ExecContext(ctx, `insert into targets (id, name, kind, host, port, comment, tags, disabled, machine_id, origin, host_key_policy, host_key_ca, ssh_algorithms, created_at, updated_at, version, group_id)
values ('tgt_a', 'db', 'ssh', 'h', 22, '', '[]', $1, '', '', '', '', '', 0, 0, 1, 'grp_a')`, false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		write := func(e Event) {
			t.Helper()
			e.Type, e.Actor = TargetChanged, System
			if err := x.Write(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		write(Event{Group: "grp_a", Object: Object{Kind: "role", ID: "said"}})
		write(Event{Object: Object{Kind: "target", ID: "tgt_a"}})
		write(Event{Object: Object{Kind: "target", Name: "db"}, Fields: map[string]string{"k": "v"}})
		write(Event{Group: "grp_b", Object: Object{Kind: "role", ID: "other"}})
		write(Event{Group: access.DefaultGroup, Object: Object{Kind: "role", ID: "rest"}})
		write(Event{Object: Object{Kind: "setting", ID: "none"}})
		write(Event{Object: Object{Kind: "target", ID: "tgt_gone", Name: "db"}})
		for _, c := range []struct {
			in   access.Scope
			want string
		}{
			{access.Everywhere(), "said tgt_a db other rest none tgt_gone"}, {access.Within("grp_a"), "said tgt_a db"},
			{access.Within("grp_a", "grp_b"), "said tgt_a db other"}, {access.Within(access.DefaultGroup), "rest"}, {access.Scope{}, ""},
		} {
			list, err := x.After(ctx, d, Filter{}.Within(c.in), 0, 100)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, e := range list {
				if e.Object.ID == "" {
					e.Object.ID = e.Object.Name
				}
				got = append(got, e.Object.ID)
			}
			if text := strings.Join(got, " "); text != c.want {
				t.Errorf("in %q: %s, want %s", c.in.Text(), text, c.want)
			}
		}
		if r, err := x.Verify(ctx, x.k.Keys, ""); err != nil || !r.OK {
			t.Errorf("verification: %+v, %v", r, err)
		}
		// An event that is moved out of its auditors' sight, or into others', is found.
		for _, q := range []string{`update audit_events set group_id = 'grp_b' where seq = 1`, `update audit_events set group_id = '' where seq = 4`,
			`update audit_events set group_id = 'grp_b' where seq = 5`, `update audit_events set group_id = 'default' where seq = 2`} {
			if _, err := d.ExecContext(ctx, q); err != nil {
				t.Fatal(err)
			}
		}
		r, err := x.Verify(ctx, x.k.Keys, "")
		if err != nil || len(r.Findings) != 4 {
			t.Errorf("after moving four: %+v, %v", r.Findings, err)
		}
	})
}

// Auditors of an access group are told of events of theirs, all the others of
// all.
func TestNewsOfGroups(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		x := newFixture(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			x.tellNews(ctx, slog.New(slog.DiscardHandler))
		}()
		defer func() {
			cancel()
			<-done
		}()
		notes := d.Subscribe(ctx)
		e := Event{Type: TargetChanged, Actor: System, Group: "grp_a", Object: Object{Kind: "role", ID: "r"}}
		if err := x.Write(ctx, e); err != nil {
			t.Fatal(err)
		}
		told := map[string]string{}
		for late := time.After(time.Minute); len(told) < 2; {
			select {
			case n := <-notes:
				if n.Topic == db.TopicResync { // a listener that has just connected
					if err := x.Write(ctx, e); err != nil {
						t.Fatal(err)
					}
				}
				if strings.HasPrefix(n.Topic, TopicAudit) {
					told[n.Topic] = n.ID
				}
			case <-late:
				t.Fatalf("told: %v", told)
			}
		}
		if id, all := told[TopicAudit]; !all || id != "" || told[TopicAudit+api.GroupSuffix] != "grp_a" {
			t.Errorf("told %v", told)
		}
	})
}
