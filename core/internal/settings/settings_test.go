package settings

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

var tester = audit.Actor{Kind: "user", ID: "usr_test", Name: "test"}

func newService(t *testing.T, d *db.DB) (*Service, *audit.Log) {
	t.Helper()
	log := audit.New(d, time.Now)
	s, err := New(t.Context(), Config{DB: d, Audit: log, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s, log
}

func values(pairs ...string) map[string]json.RawMessage {
	m := map[string]json.RawMessage{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = json.RawMessage(pairs[i+1])
	}
	return m
}

func TestDefaults(t *testing.T) {
	s, _ := newService(t, dbtest.SQLite(t))
	if got := SessionIdle.Get(s); got != 15*time.Minute {
		t.Errorf("session.idle = %v", got)
	}
	if got := SessionIdle.Get(nil); got != 15*time.Minute {
		t.Errorf("session.idle without a service = %v", got)
	}
	if got := ReauthorizeEvery.Get(s); got != 30*time.Second {
		t.Errorf("connection.reauthorize_every = %v", got)
	}
	if got := RecordingRetention.Get(s); got != 180 {
		t.Errorf("retention.recording_days = %v", got)
	}
}

// TestDefinitions holds every definition against its own rules.
func TestDefinitions(t *testing.T) {
	seen := map[string]bool{}
	restart := 0
	for _, d := range All() {
		if seen[d.Name] || strings.Count(d.Name, ".") != 1 || d.Description == "" {
			t.Errorf("%q: taken, not section.name, or without a description", d.Name)
		}
		seen[d.Name] = true
		text, err := json.Marshal(d.Default)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.parse(text); err != nil {
			t.Errorf("%s refuses its own default %s: %v", d.Name, text, err)
		}
		for _, bound := range []any{d.Minimum, d.Maximum} {
			if text, err := json.Marshal(bound); bound != nil && (err != nil || second(d.parse(text)) != nil) {
				t.Errorf("%s refuses its own bound %s", d.Name, text)
			}
		}
		if d.RestartRequired {
			restart++
		}
	}
	if restart == 0 || restart == len(seen) {
		t.Errorf("%d of %d settings need a restart", restart, len(seen))
	}
}

func second[T any](_ T, err error) error { return err }

// notesOf subscribes and waits until notes really arrive: on PostgreSQL the
// listener needs a moment to connect, and what was sent before is lost. Notes
// of topic "ping" are its own.
func notesOf(t *testing.T, d *db.DB) <-chan db.Note {
	t.Helper()
	notes := d.Subscribe(t.Context())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := d.Tx(t.Context(), func(tx *db.Tx) error { return tx.Notify(t.Context(), "ping", "") }); err != nil {
			t.Fatal(err)
		}
		select {
		case <-notes:
			return notes
		case <-tick.C:
		}
	}
}

func TestChange(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s, log := newService(t, d)
		notes := notesOf(t, d)
		restart, err := s.Change(t.Context(), tester, 0, values(
			"session.idle", `"90s"`, "login.burst", ` 7 `, "login.allow_list", `["10.0.0.0/8"]`, "session.source_binding", `"subnet"`))
		if err != nil || restart {
			t.Fatalf("change: restart %v, %v", restart, err)
		}
		if SessionIdle.Get(s) != 90*time.Second || LoginBurst.Get(s) != 7 || SessionBinding.Get(s) != "subnet" ||
			len(LoginAllow.Get(s)) != 1 || LoginAllow.Get(s)[0] != netip.MustParsePrefix("10.0.0.0/8") {
			t.Errorf("values after the change: %v %v %q %v", SessionIdle.Get(s), LoginBurst.Get(s), SessionBinding.Get(s), LoginAllow.Get(s))
		}
		for heard := 0; heard < 4; {
			switch n := <-notes; n.Topic {
			case Topic:
				heard++
			case "ping":
			default:
				t.Errorf("note %+v", n)
			}
		}
		events, err := log.After(t.Context(), d, audit.Filter{Type: "setting."}, 0, 100)
		if err != nil || len(events) != 4 {
			t.Fatalf("%d events, %v; want 4", len(events), err)
		}
		e := events[2]
		if e.Object.ID != "session.idle" || e.Fields["old"] != `"15m0s"` || e.Fields["new"] != `"90s"` || e.Actor.ID != tester.ID {
			t.Errorf("event %+v", e)
		}
		// Back to the default; the same value again is no event.
		if _, err := s.Change(t.Context(), tester, 0, values("session.idle", `null`, "login.burst", `7`)); err != nil {
			t.Fatal(err)
		}
		if SessionIdle.Get(s) != 15*time.Minute {
			t.Errorf("after the reset: %v", SessionIdle.Get(s))
		}
		if events, err = log.After(t.Context(), d, audit.Filter{Type: "setting."}, 0, 100); err != nil || len(events) != 5 {
			t.Errorf("%d events, %v; want 5", len(events), err)
		}
		if restart, err := s.Change(t.Context(), tester, 0, values("login.hash_concurrency", `8`, "login.burst", `6`)); err != nil || !restart {
			t.Errorf("a setting that needs a restart: %v, %v", restart, err)
		}
		// Another core, started later, reads the same.
		other, _ := newService(t, d)
		if LoginBurst.Get(other) != 6 || LoginHashes.Get(other) != 8 {
			t.Errorf("second service: %d, %d", LoginBurst.Get(other), LoginHashes.Get(other))
		}
	})
}

func TestBadValues(t *testing.T) {
	s, _ := newService(t, dbtest.SQLite(t))
	for _, c := range []struct{ name, value string }{
		{"session.idle", `"59s"`}, // C13: at least 60 s
		{"session.idle", `900`},
		{"session.idle", `"soon"`},
		{"session.idle", `"-5m"`},
		{"login.burst", `0`},
		{"login.burst", `1.5`},
		{"login.burst", `"5"`},
		{"login.burst", `99999999999999999999`},
		{"login.key_needs_code", `"yes"`},
		{"session.source_binding", `"none"`},
		{"bastion.separator", `"a"`},
		{"bastion.separator", `"%%"`},
		{"login.allow_list", `["10.0.0.1/8"]`},
		{"login.allow_list", `["everywhere"]`},
		{"login.allow_list", `"10.0.0.0/8"`},
		{"web.scan_url", `"icap://scan.example.net:1344"`},
		{"web.scan_url", `"icap://scan.example.net/"`},
		{"web.scan_url", `"http://scan.example.net/avscan"`},
		{"web.scan_url", `"icap://ann@scan.example.net/avscan"`},
		{"web.permitted_names", `"example.net"`},
		{"web.permitted_names", `["10.0.0.1/8"]`},
		{"web.permitted_names", `["10.0.0.1"]`},
		{"web.permitted_names", `["*.example.net"]`},
		{"web.permitted_names", `["Example.net"]`},
		{"web.permitted_names", `["-a.example"]`},
		{"web.permitted_names", `[""]`},
		{"no.such", `1`},
		{"session.idle", `{"a":`},
	} {
		_, err := s.Change(t.Context(), tester, 0, values(c.name, c.value, "login.per_minute", `2`))
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Status != 422 || len(p.Fields) != 1 || p.Fields[0].Field != "values."+c.name || p.Fields[0].Message == "" {
			t.Errorf("%s = %s: %v, want a problem naming it", c.name, c.value, err)
		}
	}
	if LoginPerMinute.Get(s) != 1 {
		t.Error("a change with a bad value took effect in part")
	}
	_, err := s.Change(t.Context(), tester, 0, values("login.burst", `0`, "session.idle", `"1s"`, "x.y", `1`))
	if p, ok := errors.AsType[*api.Problem](err); !ok || len(p.Fields) != 3 {
		t.Errorf("three bad values: %v", err)
	}
}

func TestStaleVersion(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		s, _ := newService(t, d)
		seen := s.current.Load().version
		if _, err := s.Change(t.Context(), tester, seen, values("login.burst", `6`)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Change(t.Context(), tester, seen, values("login.burst", `7`)); !errors.Is(err, db.ErrConflict) {
			t.Errorf("change on a stale version: %v", err)
		}
		if LoginBurst.Get(s) != 6 {
			t.Errorf("login.burst = %d", LoginBurst.Get(s))
		}
	})
}

// TestRunFollowsOtherCores: what one core changes, another one reads without
// being asked.
func TestRunFollowsOtherCores(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		leaks := goleak.IgnoreCurrent()
		here, _ := newService(t, d)
		there, _ := newService(t, d)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		before := there.current.Load()
		go func() { done <- there.Run(ctx) }()
		// Run subscribes at its start; changes until it has seen one.
		tick := time.NewTicker(2 * time.Millisecond)
		for i := 0; there.current.Load() == before; i++ {
			if _, err := here.Change(t.Context(), tester, 0, values("login.burst", [...]string{"6", "7"}[i%2])); err != nil {
				t.Fatal(err)
			}
			<-tick.C
		}
		tick.Stop()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if d.Engine() == db.SQLite {
			goleak.VerifyNone(t, leaks)
		}
	})
}

// TestValuesOfAnotherRelease: what this build does not understand counts as
// the default and does not stop it.
func TestValuesOfAnotherRelease(t *testing.T) {
	d := dbtest.SQLite(t)
	for name, value := range map[string]string{"future.thing": `1`, "login.burst": `"many"`} {
		if _, err := d.ExecContext(t.Context(), sqlPut, name, value, 1, "x"); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := newService(t, d)
	if LoginBurst.Get(s) != 5 {
		t.Errorf("login.burst = %d", LoginBurst.Get(s))
	}
	if _, err := s.Change(t.Context(), tester, 0, values("login.burst", `9`)); err != nil || LoginBurst.Get(s) != 9 {
		t.Errorf("change over a bad value: %d, %v", LoginBurst.Get(s), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`"15m"`)
	f.Add(`7`)
	f.Add(`["10.0.0.0/8","::/0"]`)
	f.Add(`null`)
	defs := All()
	f.Fuzz(func(t *testing.T, text string) {
		for _, d := range defs {
			v, err := d.parse(json.RawMessage(text))
			if err == nil && v == nil {
				t.Errorf("%s: %q gave no value and no error", d.Name, text)
			}
		}
	})
}
