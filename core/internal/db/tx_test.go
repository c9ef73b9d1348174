package db_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func counter(t *testing.T, d *db.DB) {
	t.Helper()
	for _, q := range []string{`create table counters (id text primary key, n bigint not null)`, `insert into counters (id, n) values ('a', 0), ('b', 0)`} {
		if d.Engine() == db.SQLite {
			q = strings.ReplaceAll(q, "bigint", "integer")
		}
		if _, err := d.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
}

func count(t *testing.T, d *db.DB, id string) (n int) {
	t.Helper()
	if err := d.QueryRowContext(t.Context(), `select n from counters where id = $1`, id).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// retryableError makes the engine report what asks for another try.
func retryableError(t *testing.T, d *db.DB, path string) func(tx *db.Tx) error {
	t.Helper()
	if d.Engine() == db.Postgres {
		return func(tx *db.Tx) error {
			_, err := tx.ExecContext(t.Context(), `do $$ begin raise exception 'on purpose' using errcode = '40001'; end $$`)
			return err
		}
	}
	other, err := sql.Open("sqlite", "file:"+path+"?_pragma=busy_timeout(0)&_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	return func(*db.Tx) error {
		_, err := other.BeginTx(t.Context(), nil) // while this transaction holds the lock
		if err == nil {
			t.Error("two write transactions at once")
		}
		return err
	}
}

func TestTxIsRunAgainWhenTheEngineAsks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "core.db")
	file, err := db.Open(t.Context(), db.Config{Engine: db.SQLite, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	run := func(t *testing.T, d *db.DB) {
		counter(t, d)
		fail := retryableError(t, d, path)
		tries := 0
		err := d.Tx(t.Context(), func(tx *db.Tx) error {
			tries++
			if _, err := tx.ExecContext(t.Context(), `update counters set n = n + 1 where id = 'a'`); err != nil {
				return err
			}
			if tries < 4 {
				return fail(tx)
			}
			return nil
		})
		if err != nil || tries != 4 || count(t, d, "a") != 1 {
			t.Errorf("after 3 failures: %v, %d tries, counted %d", err, tries, count(t, d, "a"))
		}
		tries = 0
		err = d.Tx(t.Context(), func(tx *db.Tx) error { tries++; return fail(tx) })
		if err == nil || tries != 8 {
			t.Errorf("failing for ever: %v after %d tries, want 8", err, tries)
		}
		tries = 0
		other := errors.New("something else")
		if err := d.Tx(t.Context(), func(*db.Tx) error { tries++; return other }); err != other || tries != 1 {
			t.Errorf("another error: %v after %d tries", err, tries)
		}
		tries = 0
		ctx, cancel := context.WithCancel(t.Context())
		err = d.Tx(ctx, func(tx *db.Tx) error { tries++; defer cancel(); return fail(tx) })
		if err == nil || tries != 1 {
			t.Errorf("cancelled: %v after %d tries", err, tries)
		}
	}
	t.Run("sqlite", func(t *testing.T) { run(t, file) })
	t.Run("postgres", func(t *testing.T) { run(t, dbtest.Postgres(t)) })
}

// TestDeadlockIsResolved lets two transactions lock two rows in opposite order.
func TestDeadlockIsResolved(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		counter(t, d)
		add := func(tx *db.Tx, id string) error {
			_, err := tx.ExecContext(t.Context(), `update counters set n = n + 1 where id = $1`, id)
			return err
		}
		var both sync.WaitGroup // lets the first tries meet
		both.Add(2)
		var wg sync.WaitGroup
		for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
			wg.Go(func() {
				first := true
				err := d.Tx(t.Context(), func(tx *db.Tx) error {
					if err := add(tx, order[0]); err != nil {
						return err
					}
					if first && d.Engine() == db.Postgres { // on SQLite the other waits outside
						first = false
						both.Done()
						both.Wait()
					}
					return add(tx, order[1])
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if a, b := count(t, d, "a"), count(t, d, "b"); a != 2 || b != 2 {
			t.Errorf("counted %d and %d, want 2 and 2", a, b)
		}
	})
}

func TestLockSerialises(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		counter(t, d)
		const writers = 12
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				err := d.Tx(t.Context(), func(tx *db.Tx) error {
					if err := tx.Lock(t.Context(), "count"); err != nil {
						return err
					}
					var n int
					if err := tx.QueryRowContext(t.Context(), `select n from counters where id = 'a'`).Scan(&n); err != nil {
						return err
					}
					_, err := tx.ExecContext(t.Context(), `update counters set n = $1 where id = 'a'`, n+1)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := count(t, d, "a"); n != writers {
			t.Errorf("counted %d, want %d: a read was not under the lock", n, writers)
		}
	})
}

func TestViewIsASnapshotAndReadsOnly(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		counter(t, d)
		err := d.View(t.Context(), func(tx *db.Tx) error {
			read := func() (n int) {
				if err := tx.QueryRowContext(t.Context(), `select n from counters where id = 'a'`).Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := read()
			if _, err := d.ExecContext(t.Context(), `update counters set n = n + 1 where id = 'a'`); err != nil {
				t.Fatal(err)
			}
			if after := read(); after != before {
				t.Errorf("the snapshot moved from %d to %d", before, after)
			}
			_, err := tx.ExecContext(t.Context(), `update counters set n = 99 where id = 'b'`)
			if err == nil {
				t.Error("wrote in a view")
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if count(t, d, "a") != 1 || count(t, d, "b") != 0 {
			t.Errorf("counted %d and %d", count(t, d, "a"), count(t, d, "b"))
		}
	})
}

func TestClassify(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		counter(t, d)
		_, err := d.ExecContext(t.Context(), `insert into counters (id, n) values ('a', 1)`)
		if got := db.Classify(err); !errors.Is(got, db.ErrConflict) || !errors.Is(got, err) {
			t.Errorf("primary key: %v", got)
		}
		if _, err := d.ExecContext(t.Context(), `create unique index counters_n on counters (n) where id <> 'b'`); err != nil {
			t.Fatal(err)
		}
		_, err = d.ExecContext(t.Context(), `insert into counters (id, n) values ('c', 0)`)
		if got := db.Classify(err); !errors.Is(got, db.ErrConflict) {
			t.Errorf("unique index: %v", got)
		}
		_, err = d.ExecContext(t.Context(), `insert into counters (id, n) values ('d', null)`)
		if got := db.Classify(err); err == nil || got != err {
			t.Errorf("not null: %v", got)
		}
		var n int
		err = d.QueryRowContext(t.Context(), `select n from counters where id = 'none'`).Scan(&n)
		if got := db.Classify(err); !errors.Is(got, db.ErrNotFound) {
			t.Errorf("no row: %v", got)
		}
		if db.Classify(nil) != nil {
			t.Error("no error became one")
		}
	})
}
