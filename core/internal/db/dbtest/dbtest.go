// Package dbtest gives each test a fresh, migrated database, and runs every
// store suite on both engines.
package dbtest

import (
	"crypto/rand"
	"database/sql"
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
	return open(tb, db.Config{Engine: db.SQLite, Path: filepath.Join(tb.TempDir(), "core.db")})
}

// Postgres returns a fresh migrated PostgreSQL database, dropped at the end.
func Postgres(tb testing.TB) *db.DB {
	tb.Helper()
	return open(tb, db.Config{Engine: db.Postgres, URL: PostgresURL(tb), AllowPlaintext: true})
}

// PostgresURL creates an empty PostgreSQL database, dropped at the end of the
// test, and returns its URL.
func PostgresURL(tb testing.TB) string {
	tb.Helper()
	base := os.Getenv(EnvPostgres)
	if base == "" {
		tb.Skip(EnvPostgres + " is not set: run `make test`, or point it at a PostgreSQL server for tests")
	}
	name := "caponier_test_" + strings.ToLower(rand.Text()[:12])
	admin, err := sql.Open("pgx", base)
	if err != nil {
		tb.Fatalf("connect to %s: %v", EnvPostgres, err)
	}
	if _, err := admin.ExecContext(tb.Context(), `create database `+name); err != nil {
		tb.Fatalf("create test database: %v", err)
	}
	tb.Cleanup(func() {
		if _, err := admin.Exec(`drop database if exists ` + name + ` with (force)`); err != nil {
			tb.Errorf("drop test database: %v", err)
		}
		admin.Close()
	})
	u, err := url.Parse(base)
	if err != nil {
		tb.Fatalf("parse %s: %v", EnvPostgres, err)
	}
	u.Path = "/" + name
	return u.String()
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
	if _, err := d.Migrate(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return d
}
