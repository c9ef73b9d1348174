package settings

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"caponier/core/internal/db"
)

const (
	sqlVersion    = `select version from settings_version where one = 1`
	sqlSetVersion = `update settings_version set version = $1 where one = 1`
	sqlRows       = `select name, value, changed_at, changed_by from settings`
	sqlPut        = `insert into settings (name, value, changed_at, changed_by) values ($1, $2, $3, $4)
on conflict (name) do update set value = excluded.value, changed_at = excluded.changed_at, changed_by = excluded.changed_by`
	sqlDelete = `delete from settings where name = $1`
)

// row is one stored setting; value is compact JSON, changedAt microseconds.
type row struct {
	value     string
	changedAt int64
	changedBy string
}

func storedVersion(ctx context.Context, q db.Querier) (int64, error) {
	var v int64
	if err := q.QueryRowContext(ctx, sqlVersion).Scan(&v); err != nil {
		return 0, fmt.Errorf("version: %w", db.Classify(err))
	}
	return v, nil
}

func storeVersion(ctx context.Context, tx *db.Tx, v int64) error {
	if _, err := tx.ExecContext(ctx, sqlSetVersion, v); err != nil {
		return fmt.Errorf("store version: %w", err)
	}
	return nil
}

func storedRows(ctx context.Context, q db.Querier) (map[string]row, error) {
	rows, err := q.QueryContext(ctx, sqlRows)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[string]row{}
	for rows.Next() {
		var name string
		var r row
		if err := rows.Scan(&name, &r.value, &r.changedAt, &r.changedBy); err != nil {
			return nil, err
		}
		found[name] = r
	}
	return found, rows.Err()
}

func storeRow(ctx context.Context, tx *db.Tx, name string, r row) error {
	if _, err := tx.ExecContext(ctx, sqlPut, name, r.value, r.changedAt, r.changedBy); err != nil {
		return fmt.Errorf("store setting %s: %w", name, err)
	}
	return nil
}

func deleteRow(ctx context.Context, tx *db.Tx, name string) error {
	if _, err := tx.ExecContext(ctx, sqlDelete, name); err != nil {
		return fmt.Errorf("reset setting %s: %w", name, err)
	}
	return nil
}

func isNull(raw json.RawMessage) bool {
	t := bytes.TrimSpace(raw)
	return len(t) == 0 || bytes.Equal(t, []byte("null"))
}

func compact(raw json.RawMessage) (string, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return "", err
	}
	return b.String(), nil
}
