package group

import (
	"database/sql"

	"caponier/core/internal/db"
)

// changed fails with db.ErrConflict when a write met another version.
func changed(res sql.Result, err error) error {
	if err != nil {
		return db.Classify(err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 1 {
		return err
	}
	return db.ErrConflict
}
