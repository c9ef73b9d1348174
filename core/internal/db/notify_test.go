package db_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// next returns the next note that is not a probe of waitListening.
func next(t *testing.T, ch <-chan db.Note) db.Note {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case n, ok := <-ch:
			if !ok {
				t.Fatal("the subscription ended")
			}
			if n.Topic != "probe" {
				return n
			}
		case <-deadline:
			t.Fatal("no note arrived")
		}
	}
}

func notify(t *testing.T, d *db.DB, notes ...db.Note) {
	t.Helper()
	err := d.Tx(t.Context(), func(tx *db.Tx) error {
		for _, n := range notes {
			if err := tx.Notify(t.Context(), n.Topic, n.ID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// waitListening returns when d's listener hears notes.
func waitListening(t *testing.T, d *db.DB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ch := d.Subscribe(ctx)
	probe := time.NewTicker(20 * time.Millisecond)
	defer probe.Stop()
	deadline := time.After(time.Minute)
	for {
		select {
		case n := <-ch:
			if n.Topic == "probe" {
				return
			}
		case <-probe.C:
			notify(t, d, db.Note{Topic: "probe"})
		case <-deadline:
			t.Fatal("the listener hears nothing")
		}
	}
}

func TestNotesFollowTheCommit(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		waitListening(t, d)
		ch := d.Subscribe(t.Context())
		failed := errors.New("on purpose")
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			if err := tx.Notify(t.Context(), "user", "rolled-back"); err != nil {
				t.Fatal(err)
			}
			return failed
		})
		if !errors.Is(err, failed) {
			t.Fatal(err)
		}
		err = d.Tx(t.Context(), func(tx *db.Tx) error {
			for _, n := range []db.Note{{Topic: "user", ID: "usr_1"}, {Topic: "role", ID: "a'b\"\\ü"}} {
				if err := tx.Notify(t.Context(), n.Topic, n.ID); err != nil {
					return err
				}
			}
			for len(ch) > 0 {
				if n := <-ch; n.Topic != "probe" {
					t.Errorf("heard %+v before the commit", n)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n := next(t, ch); n != (db.Note{Topic: "user", ID: "usr_1"}) {
			t.Errorf("first note %+v", n)
		}
		if n := next(t, ch); n != (db.Note{Topic: "role", ID: "a'b\"\\ü"}) {
			t.Errorf("second note %+v", n)
		}
	})
}

func TestSubscriptionsEnd(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		one, other := d.Subscribe(ctx), d.Subscribe(t.Context())
		cancel()
		for range one { // closed by cancel
		}
		waitListening(t, d)
		notify(t, d, db.Note{Topic: "user", ID: "usr_1"})
		if n := next(t, other); n.ID != "usr_1" {
			t.Errorf("the other subscriber got %+v", n)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		for range other { // closed by Close
		}
		if _, ok := <-d.Subscribe(t.Context()); ok {
			t.Error("subscribed to a closed database")
		}
	})
}

func TestSlowSubscriberIsToldToResync(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		waitListening(t, d)
		slow, quick := d.Subscribe(t.Context()), d.Subscribe(t.Context())
		const total = 400
		notes := make([]db.Note, total)
		for i := range notes {
			notes[i] = db.Note{Topic: "target", ID: fmt.Sprint(i)}
		}
		// In two halves, of which the quick one takes the first in time.
		notify(t, d, notes[:200]...)
		for i := range 200 {
			if n := next(t, quick); n != notes[i] {
				t.Fatalf("quick got %+v, want %+v", n, notes[i])
			}
		}
		notify(t, d, notes[200:]...)
		for i := 200; i < total; i++ {
			if n := next(t, quick); n != notes[i] {
				t.Fatalf("quick got %+v, want %+v", n, notes[i])
			}
		}
		if n := next(t, slow); n.Topic != db.TopicResync {
			t.Errorf("slow got %+v first, want a resync", n)
		}
		last := db.Note{}
		for last != notes[total-1] {
			last = next(t, slow)
		}
	})
}

func TestAnotherCoreHears(t *testing.T) {
	url := dbtest.PostgresURL(t)
	open := func() *db.DB {
		d, err := db.Open(t.Context(), db.Config{Engine: db.Postgres, URL: url, AllowPlaintext: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	a, b := open(), open()
	waitListening(t, a)
	waitListening(t, b)
	ch := b.Subscribe(t.Context())
	notify(t, a, db.Note{Topic: "grant", ID: "gra_1"})
	if n := next(t, ch); n != (db.Note{Topic: "grant", ID: "gra_1"}) {
		t.Errorf("got %+v", n)
	}
}

func TestLostListenerResyncs(t *testing.T) {
	d := dbtest.Postgres(t)
	waitListening(t, d)
	ch := d.Subscribe(t.Context())
	res, err := d.ExecContext(t.Context(), `select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and query = 'listen caponier'`)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		t.Fatalf("ended %d listeners, %v", n, err)
	}
	if n := next(t, ch); n.Topic != db.TopicResync {
		t.Errorf("got %+v, want a resync", n)
	}
	notify(t, d, db.Note{Topic: "user", ID: "usr_after"})
	if n := next(t, ch); n.ID != "usr_after" {
		t.Errorf("after reconnecting: %+v", n)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		config func(t *testing.T) db.Config
	}{
		{"sqlite", func(t *testing.T) db.Config { return db.Config{Engine: db.SQLite, Path: t.TempDir() + "/core.db"} }},
		{"postgres", func(t *testing.T) db.Config {
			return db.Config{Engine: db.Postgres, URL: dbtest.PostgresURL(t), AllowPlaintext: true}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := c.config(t)
			ignore := goleak.IgnoreCurrent()
			for range 3 {
				d, err := db.Open(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := d.Migrate(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := goleak.Find(ignore); err != nil {
				t.Error(err)
			}
		})
	}
}
