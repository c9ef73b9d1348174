// Package dbtest gives each test a fresh, migrated database, and runs every
// store suite on both engines.
package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/core/internal/db"
)

// EnvPostgres names the variable with the URL of a PostgreSQL server on which
// tests may create databases. `make test` starts one and sets it.
const EnvPostgres = "CAPONIER_TEST_PG"

// Each runs f as a subtest on SQLite and on PostgreSQL, each time with a fresh
// migrated database. PostgreSQL is skipped when CAPONIER_TEST_PG is not set.
func Each(t *testing.T, f func(t *testing.T, d *db.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { f(t, SQLite(t)) })
	t.Run("postgres", func(t *testing.T) { f(t, Postgres(t)) })
}

// SQLite returns a fresh migrated SQLite database in a temporary directory.
func SQLite(tb testing.TB) *db.DB {
	tb.Helper()
	d := open(tb, db.Config{Engine: db.SQLite, Path: filepath.Join(tb.TempDir(), "core.db")})
	if _, err := d.Migrate(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return d
}

// Postgres returns a fresh migrated PostgreSQL database, dropped at the end.
func Postgres(tb testing.TB) *db.DB {
	tb.Helper()
	admin, base := server(tb)
	template := migrated(tb, admin, base)
	return open(tb, db.Config{Engine: db.Postgres, URL: create(tb, admin, base, " template "+template), AllowPlaintext: true})
}

// PostgresURL creates an empty PostgreSQL database, dropped at the end of the
// test, and returns its URL.
func PostgresURL(tb testing.TB) string {
	tb.Helper()
	admin, base := server(tb)
	return create(tb, admin, base, "")
}

// server connects to the server for tests, or skips the test.
func server(tb testing.TB) (*sql.DB, *url.URL) {
	tb.Helper()
	text := os.Getenv(EnvPostgres)
	if text == "" {
		tb.Skip(EnvPostgres + " is not set: run `make test`, or point it at a PostgreSQL server for tests")
	}
	base, err := url.Parse(text)
	if err != nil {
		tb.Fatalf("parse %s: %v", EnvPostgres, err)
	}
	admin, err := sql.Open("pgx", text)
	if err != nil {
		tb.Fatalf("connect to %s: %v", EnvPostgres, err)
	}
	tb.Cleanup(func() { admin.Close() })
	return admin, base
}

// create makes a database, dropped at the end of the test, and returns its URL.
func create(tb testing.TB, admin *sql.DB, base *url.URL, options string) string {
	tb.Helper()
	name := "caponier_test_" + strings.ToLower(rand.Text()[:12])
	if _, err := admin.ExecContext(tb.Context(), `create database `+name+options); err != nil {
		tb.Fatalf("create test database: %v", err)
	}
	tb.Cleanup(func() {
		if _, err := admin.Exec(`drop database if exists ` + name + ` with (force)`); err != nil {
			tb.Errorf("drop test database: %v", err)
		}
	})
	return at(base, name)
}

func at(base *url.URL, name string) string {
	u := *base
	u.Path = "/" + name
	return u.String()
}

// migrated returns the name of a database with this build's schema, to copy:
// migrating each test's database would take ten times as long. The first to
// ask makes it; it stays on the server, which is one for tests.
func migrated(tb testing.TB, admin *sql.DB, base *url.URL) string {
	tb.Helper()
	ctx := tb.Context()
	name := "caponier_template_" + db.SchemaID()
	c, err := admin.Conn(ctx)
	if err != nil {
		tb.Fatalf("connect to %s: %v", EnvPostgres, err)
	}
	defer c.Close()
	exists := func() (ok bool) {
		if err := c.QueryRowContext(ctx, `select exists (select 1 from pg_database where datname = $1)`, name).Scan(&ok); err != nil {
			tb.Fatalf("look for template database: %v", err)
		}
		return ok
	}
	if exists() {
		return name
	}
	exec := func(query string) {
		tb.Helper()
		if _, err := c.ExecContext(ctx, query); err != nil {
			tb.Fatalf("make template database: %v", err)
		}
	}
	exec(`select pg_advisory_lock(20461109)`)
	defer c.ExecContext(context.WithoutCancel(ctx), `select pg_advisory_unlock(20461109)`)
	if exists() {
		return name
	}
	draft := "caponier_draft_" + strings.ToLower(rand.Text()[:12])
	exec(`create database ` + draft)
	d, err := db.Open(ctx, db.Config{Engine: db.Postgres, URL: at(base, draft), AllowPlaintext: true})
	if err != nil {
		tb.Fatal(err)
	}
	_, err = d.Migrate(ctx)
	if err := errors.Join(err, d.Close()); err != nil {
		tb.Fatal(err)
	}
	exec(`alter database ` + draft + ` rename to ` + name)
	return name
}

func open(tb testing.TB, c db.Config) *db.DB {
	tb.Helper()
	d, err := db.Open(tb.Context(), c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Errorf("close database: %v", err)
		}
	})
	return d
}
