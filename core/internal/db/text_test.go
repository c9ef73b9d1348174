package db_test

import (
	"testing"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

type kind string

// Whatever bytes a peer puts into a text: it is stored, and found again.
func TestAnyText(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		if _, err := d.ExecContext(ctx, `create table texts (id text, body text)`); err != nil {
			t.Fatal(err)
		}
		args := []any{"a\x00b", kind("c\xff\xfed")}
		err := d.Tx(ctx, func(tx *db.Tx) error {
			if _, err := tx.ExecContext(ctx, `insert into texts (id, body) values ($1, $2)`, args...); err != nil {
				return err
			}
			st, err := tx.PrepareContext(ctx, `insert into texts (id, body) values ($1, $2)`)
			if err != nil {
				return err
			}
			defer st.Close()
			if _, err := st.ExecContext(ctx, "prepared\x00", "x"); err != nil {
				return err
			}
			var n int
			return tx.QueryRowContext(ctx, `select count(*) from texts where id = $1`, args[0]).Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
		if args[0] != "a\x00b" || args[1] != kind("c\xff\xfed") {
			t.Errorf("the caller's arguments were changed: %q", args)
		}
		var id, body string
		if err := d.QueryRowContext(ctx, `select id, body from texts where id = $1`, "a\x00b").Scan(&id, &body); err != nil || id != "a\uFFFDb" || body != "c\uFFFDd" {
			t.Errorf("got %q, %q, %v", id, body, err)
		}
		rows, err := d.QueryContext(ctx, `select id from texts where body = $1 or id = 'a'`, "\x00")
		if err != nil {
			t.Fatal(err)
		}
		if rows.Next() {
			t.Error("something else was found")
		}
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
	})
}
