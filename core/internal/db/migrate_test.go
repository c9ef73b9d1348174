package db_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

func TestMigrationsArePaired(t *testing.T) {
	names := map[string][]string{}
	for _, engine := range []string{"sqlite", "postgres"} {
		files, err := filepath.Glob("migrations/" + engine + "/*.sql")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", engine, files, err)
		}
		for _, f := range files {
			names[engine] = append(names[engine], filepath.Base(f))
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(b), "-- +goose Up\n") || strings.Contains(string(b), "+goose Down") {
				t.Errorf("%s: want one Up section at the top and no Down", f)
			}
			if strings.Contains(strings.ToLower(string(b)), "now()") || strings.Contains(string(b), "CURRENT_TIMESTAMP") {
				t.Errorf("%s: times are set by core, not by the database", f)
			}
		}
	}
	if d := cmp.Diff(names["sqlite"], names["postgres"]); d != "" {
		t.Errorf("migrations differ by engine:\n%s", d)
	}
}

const (
	sqliteColumns = `select m.name, p.name, lower(p.type), p."notnull", p.pk > 0
from sqlite_master m join pragma_table_xinfo(m.name) p where m.type = 'table'`
	postgresColumns = `select c.table_name, c.column_name, c.data_type, case c.is_nullable when 'NO' then 1 else 0 end,
  case when exists (
    select 1 from information_schema.key_column_usage k join information_schema.table_constraints t using (constraint_schema, constraint_name)
    where t.constraint_type = 'PRIMARY KEY' and k.table_name = c.table_name and k.column_name = c.column_name
  ) then 1 else 0 end
from information_schema.columns c where c.table_schema = 'public'`
	sqliteIndexes   = `select name, tbl_name from sqlite_master where type = 'index' and sql is not null`
	postgresIndexes = `select indexname, tablename from pg_indexes where schemaname = 'public' and indexname not in (
  select conname from pg_constraint)`
	sqliteReferences   = `select m.name, lower(f."table"), lower(f.on_delete) from sqlite_master m join pragma_foreign_key_list(m.name) f where m.type = 'table'`
	postgresReferences = `select c.conrelid::regclass::text, c.confrelid::regclass::text,
  case c.confdeltype when 'a' then 'no action' when 'c' then 'cascade' when 'n' then 'set null' when 'r' then 'restrict' else 'set default' end
from pg_constraint c where c.contype = 'f'`
)

// common brings a type of either engine to the one the stores think in.
func common(typ string) string {
	switch typ {
	case "bigint", "integer", "boolean", "smallint":
		return "integer"
	case "bytea", "blob":
		return "blob"
	case "double precision", "real":
		return "real"
	}
	return typ
}

func lines(t *testing.T, d *db.DB, query string) []string {
	t.Helper()
	rows, err := d.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for rows.Next() {
		values, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			if b, ok := v.([]byte); ok {
				values[i] = string(b)
			}
			if s, ok := values[i].(string); ok {
				values[i] = common(s)
			}
		}
		line := fmt.Sprintln(values...)
		if !strings.Contains(line, "goose") && !strings.HasPrefix(line, "sqlite_") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// TestEnginesHaveTheSameSchema compares tables, columns, null-ness, keys,
// indexes and references after all migrations.
func TestEnginesHaveTheSameSchema(t *testing.T) {
	lite, post := dbtest.SQLite(t), dbtest.Postgres(t)
	for _, c := range []struct{ what, lite, post string }{
		{"columns", sqliteColumns, postgresColumns},
		{"indexes", sqliteIndexes, postgresIndexes},
		{"references", sqliteReferences, postgresReferences},
	} {
		a, b := lines(t, lite, c.lite), lines(t, post, c.post)
		if c.what == "columns" {
			a = withoutNullable(a)
			b = withoutNullable(b)
		}
		if len(a) == 0 {
			t.Errorf("found no %s", c.what)
		}
		if d := cmp.Diff(a, b); d != "" {
			t.Errorf("%s differ (- SQLite, + PostgreSQL):\n%s", c.what, d)
		}
	}
	loose := lines(t, lite, `select name from pragma_table_list where type = 'table' and schema = 'main' and strict = 0 and name not like 'sqlite_%'`)
	if len(loose) > 0 {
		t.Errorf("SQLite tables that are not strict: %v", loose)
	}
}

// withoutNullable says "key" instead of whether a primary key's column may be
// null: PostgreSQL implies it, SQLite has it written out.
func withoutNullable(columns []string) []string {
	for i, line := range columns {
		f := strings.Fields(line)
		if f[len(f)-1] == "1" {
			columns[i] = strings.Join(f[:len(f)-2], " ") + " key"
		}
	}
	slices.Sort(columns)
	return columns
}

func TestMigrateTogether(t *testing.T) {
	url := dbtest.PostgresURL(t)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			d, err := db.Open(t.Context(), db.Config{Engine: db.Postgres, URL: url, AllowPlaintext: true})
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			if _, err := d.Migrate(t.Context()); err != nil {
				t.Error(err)
			}
			if have, want, err := d.Migrated(t.Context()); err != nil || have != want || have == 0 {
				t.Errorf("schema %d of %d, %v", have, want, err)
			}
		})
	}
	wg.Wait()
}

func TestMigratedBeforeAndAfter(t *testing.T) {
	d, err := db.Open(t.Context(), db.Config{Engine: db.SQLite, Path: filepath.Join(t.TempDir(), "sub", "core.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	have, want, err := d.Migrated(t.Context())
	if err != nil || have != 0 || want == 0 {
		t.Errorf("fresh: %d of %d, %v", have, want, err)
	}
	for range 2 { // the second does nothing
		if v, err := d.Migrate(t.Context()); err != nil || v != want {
			t.Errorf("migrated to %d of %d, %v", v, want, err)
		}
	}
}

// TestMigrationBetweenAppliedOnes brings a database up that a release before
// left at a higher number than a migration of this one.
func TestMigrationBetweenAppliedOnes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		_, want, err := d.Migrated(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{
			`drop table sso_logouts`, `alter table sessions drop column provider_session`, `drop table login_failures`, `drop table certificate_anchors`, `drop table sso_identities`, `drop table sso_providers`,
			`drop table setup_code`, `drop table spent_proofs`, `drop table passkeys`, `alter table sessions drop column provider`,
			`delete from goose_db_version where version_id in (41, 210)`,
		} {
			if _, err := d.ExecContext(t.Context(), text); err != nil {
				t.Fatal(err)
			}
		}
		if have, _, err := d.Migrated(t.Context()); err != nil || have != 40 {
			t.Errorf("with 41 missing the schema is at %d, %v; want 40", have, err)
		}
		if _, err := d.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if have, _, err := d.Migrated(t.Context()); err != nil || have != want {
			t.Errorf("migrated to %d, %v; want %d", have, err, want)
		}
	})
}
