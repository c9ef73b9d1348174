package user

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"caponier/core/internal/access"
	"caponier/core/internal/db"
)

// userColumns are read by scanUser in this order.
const userColumns = `u.id, u.kind, u.name, u.display_name, u.email, u.disabled, u.locked,
u.password_hash, u.password_failures, u.password_locked_until, u.totp_secret, u.totp_pending, u.totp_last_step,
u.epoch, u.created_at, u.last_login, u.erased_at, u.version,
(select count(*) from passkeys p where p.user_id = u.id)`

const (
	sqlUserByID   = `select ` + userColumns + ` from users u where u.id = $1`
	sqlUserByName = `select ` + userColumns + ` from users u where u.name = $1`
	sqlUserList   = `select ` + userColumns + ` from users u
where u.kind = $1 and u.name > $2 and ($3 = '' or u.name like $4 escape '!' or lower(u.display_name) like $4 escape '!' or lower(u.email) like $4 escape '!')
order by u.name limit $5`
	sqlUserInsert = `insert into users (id, kind, name, display_name, email, disabled, locked, password_hash,
password_changed_at, password_failures, password_locked_until, totp_secret, totp_pending, totp_last_step,
epoch, created_at, last_login, erased_at, version)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, 0, '', '', 0, 1, $10, 0, 0, 1)`
	sqlUserUpdate = `update users set name = $2, display_name = $3, email = $4, disabled = $5, locked = $6,
password_locked_until = $7, password_failures = $8, version = version + 1 where id = $1 and version = $9`
	sqlUserPassword = `update users set password_hash = $2, password_changed_at = $3, password_failures = 0,
password_locked_until = 0, version = version + 1 where id = $1`
	sqlUserRehash   = `update users set password_hash = $2 where id = $1 and password_hash = $3`
	sqlUserLoggedIn = `update users set last_login = $2, password_failures = $3 where id = $1`
	sqlUserFailed   = `update users set password_failures = password_failures + 1 where id = $1 returning password_failures`
	sqlUserPause    = `update users set password_locked_until = $2, password_failures = 0 where id = $1`
	sqlUserEpoch    = `update users set epoch = epoch + 1, version = version + 1 where id = $1`
	sqlUserErase    = `update users set name = $2, display_name = '', email = '', disabled = $3, password_hash = '',
totp_secret = '', totp_pending = '', epoch = epoch + 1, last_login = 0, erased_at = $4, version = version + 1 where id = $1`

	sqlTOTPPending = `update users set totp_pending = $2 where id = $1`
	sqlTOTPSet     = `update users set totp_secret = $2, totp_pending = '', totp_last_step = $3, version = version + 1 where id = $1`
	sqlTOTPStep    = `update users set totp_last_step = $2 where id = $1 and totp_last_step < $2`

	sqlRecoveryInsert = `insert into recovery_codes (user_id, hash) values ($1, $2)`
	sqlRecoveryUse    = `delete from recovery_codes where user_id = $1 and hash = $2`
	sqlRecoveryClear  = `delete from recovery_codes where user_id = $1`
	sqlRecoveryCount  = `select count(*) from recovery_codes where user_id = $1`
)

// record is a user with what proves who he is.
type record struct {
	User
	passwordHash string
	failures     int64
	totpSecret   string
	totpPending  string
	totpStep     int64
}

type scanner interface{ Scan(dst ...any) error }

func scanUser(row scanner) (record, error) {
	var r record
	var lockedUntil, created, last, erased int64
	err := row.Scan(&r.ID, &r.Kind, &r.Name, &r.DisplayName, &r.Email, &r.Disabled, &r.Locked,
		&r.passwordHash, &r.failures, &lockedUntil, &r.totpSecret, &r.totpPending, &r.totpStep,
		&r.epoch, &created, &last, &erased, &r.Version, &r.Passkeys)
	if err != nil {
		return record{}, db.Classify(err)
	}
	r.TOTP, r.Password = r.totpSecret != "", r.passwordHash != ""
	r.PasswordLockedUntil, r.CreatedAt = db.FromMicro(lockedUntil), db.FromMicro(created)
	r.LastLogin, r.ErasedAt = db.FromMicro(last), db.FromMicro(erased)
	return r, nil
}

// usable returns why the account may not be used, or "".
func (u *User) usable() string {
	switch {
	case !u.ErasedAt.IsZero() || u.Disabled:
		return "disabled"
	case u.Locked:
		return "locked"
	}
	return ""
}

func userByID(ctx context.Context, q db.Querier, id string) (record, error) {
	r, err := scanUser(q.QueryRowContext(ctx, sqlUserByID, id))
	if err != nil {
		return record{}, fmt.Errorf("user %.40s: %w", id, err)
	}
	return r, nil
}

func userByName(ctx context.Context, q db.Querier, name string) (record, error) {
	r, err := scanUser(q.QueryRowContext(ctx, sqlUserByName, name))
	if err != nil {
		return record{}, fmt.Errorf("user by name: %w", err)
	}
	return r, nil
}

// query runs a query and scans every row.
func query[T any](ctx context.Context, q db.Querier, scan func(scanner) (T, error), text string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// changeOne runs a statement that must change exactly one row.
func changeOne(ctx context.Context, q db.Querier, text string, args ...any) error {
	n, err := affected(q.ExecContext(ctx, text, args...))
	if err == nil && n == 0 {
		err = db.ErrNotFound
	}
	return err
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, db.Classify(err)
	}
	return res.RowsAffected()
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

// likePattern makes a search text a pattern that contains it literally.
func likePattern(s string) string {
	return "%" + strings.NewReplacer("!", "!!", "%", "!%", "_", "!_").Replace(strings.ToLower(s)) + "%"
}

func encodeWindow(w access.Window) (string, error) {
	b, err := json.Marshal(w)
	return string(b), err
}

func decodeWindow(s string) (w access.Window, err error) {
	if s != "{}" {
		err = json.Unmarshal([]byte(s), &w)
	}
	return w, err
}

func encodeSources(p []netip.Prefix) (string, error) {
	if len(p) == 0 {
		return "[]", nil
	}
	b, err := json.Marshal(p)
	return string(b), err
}

func decodeSources(s string) (p []netip.Prefix, err error) {
	if s != "[]" {
		err = json.Unmarshal([]byte(s), &p)
	}
	return p, err
}
