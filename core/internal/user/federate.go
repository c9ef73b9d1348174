package user

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

const (
	sqlAdministratorRows = `select count(*) from memberships where role_id = '` + AdministratorRole + `'`
	sqlUsersByEmail      = `select ` + userColumns + ` from users u where u.kind = 'person' and lower(u.email) = lower($1) limit 8`
)

// ValidName reports whether name may be a login name.
func ValidName(name string) bool { return nameForm.MatchString(name) }

// HasAdministrator reports whether anybody was ever made an administrator.
func (s *Service) HasAdministrator(ctx context.Context, q db.Querier) (bool, error) {
	var n int
	if err := q.QueryRowContext(ctx, sqlAdministratorRows).Scan(&n); err != nil {
		return false, fmt.Errorf("count administrators: %w", err)
	}
	return n > 0, nil
}

// SetUp creates the first administrator. claim runs in the same transaction,
// after nobody else can be doing this: it takes what permits it.
func (s *Service) SetUp(ctx context.Context, by audit.Actor, d Draft, claim func(tx *db.Tx) error) (User, error) {
	if d.Password == "" {
		return User{}, api.Invalid(api.FieldError{Field: "body.password", Message: "must not be empty"})
	}
	if err := s.checkDraft(d); err != nil {
		return User{}, err
	}
	hash, err := s.hasher.hash(ctx, d.Password)
	if err != nil {
		return User{}, err
	}
	var made record
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, lockAdministrators); err != nil {
			return err
		}
		if err := claim(tx); err != nil {
			return err
		}
		if made, err = s.insert(ctx, tx, by, Person, db.NewID("usr_"), d, hash); err != nil {
			return err
		}
		if _, err := s.putMember(ctx, tx, by, AdministratorRole, made.ID, "{}", "[]", func(int64) error { return nil }); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserBootstrapped, Outcome: audit.OK, Actor: by, Object: made.object()})
	})
	if err != nil {
		return User{}, fmt.Errorf("set up: %w", err)
	}
	return made.User, nil
}

// CreateIn adds a person without a password as part of tx: he comes by other ways.
func (s *Service) CreateIn(ctx context.Context, tx *db.Tx, by audit.Actor, d Draft) (User, error) {
	d.Password = ""
	if err := s.checkDraft(d); err != nil {
		return User{}, err
	}
	u, err := s.insert(ctx, tx, by, Person, db.NewID("usr_"), d, "")
	return u.User, err
}

// FindIn returns a user by login name as part of tx.
func (s *Service) FindIn(ctx context.Context, q db.Querier, name string) (User, error) {
	r, err := userByName(ctx, q, name)
	return r.User, err
}

// PeopleByEmail finds who has the mail address, whatever its case: two at most,
// so that a caller can tell one from several.
func (s *Service) PeopleByEmail(ctx context.Context, q db.Querier, email string) ([]User, error) {
	if email == "" {
		return nil, nil
	}
	list, err := query(ctx, q, scanUser, sqlUsersByEmail, email)
	if err != nil {
		return nil, fmt.Errorf("users by mail address: %w", err)
	}
	var users []User
	for i := range list {
		if sameAddress(list[i].Email, email) && len(users) < 2 {
			users = append(users, list[i].User)
		}
	}
	return users, nil
}

// sameAddress compares mail addresses but for the case of A to Z. Databases
// make other letters ASCII ones, too (the Kelvin sign), which would take one
// address for that of somebody else.
func sameAddress(a, b string) bool {
	return len(a) == len(b) && strings.EqualFold(a, b)
}

// SyncRoles makes the memberships of a user that owner gave him exactly those
// in want. Memberships somebody else gave stay as they are, and so does the
// last administrator. Roles in want that are gone are left out.
func (s *Service) SyncRoles(ctx context.Context, tx *db.Tx, by audit.Actor, userID, owner string, want []string) error {
	have, err := query(ctx, tx, scanMember, sqlUserMembers, userID, access.Everywhere().Text())
	if err != nil {
		return fmt.Errorf("list memberships: %w", err)
	}
	for _, m := range have {
		if m.CreatedBy != owner || slices.Contains(want, m.RoleID) {
			continue
		}
		err := s.guardAdministrators(ctx, tx, func() error {
			if err := changeOne(ctx, tx, sqlMemberDelete, m.RoleID, userID); err != nil {
				return err
			}
			return s.memberEvent(ctx, tx, by, audit.RoleMemberRemoved, m, map[string]string{"by": owner})
		})
		if err != nil {
			return err
		}
	}
	for _, role := range want {
		if slices.ContainsFunc(have, func(m Member) bool { return m.RoleID == role }) {
			continue
		}
		if _, err := roleByID(ctx, tx, role); errors.Is(err, db.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		giver := by
		giver.ID = owner // what ref remembers
		if _, err := s.putMember(ctx, tx, giver, role, userID, "{}", "[]", func(int64) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

// FirstRecovery makes recovery codes for a user who has none, as part of tx.
func (s *Service) FirstRecovery(ctx context.Context, tx *db.Tx, userID string) ([]string, error) {
	var n int
	if err := tx.QueryRowContext(ctx, sqlRecoveryCount, userID).Scan(&n); err != nil || n > 0 {
		return nil, err
	}
	return s.renewRecovery(ctx, tx, userID)
}

// CredentialRemoved does what losing a way in brings with it, as part of tx:
// every login of the user ends but the session keep, and recovery codes go with
// the last second factor.
func (s *Service) CredentialRemoved(ctx context.Context, tx *db.Tx, userID, keep string) error {
	u, err := userByID(ctx, tx, userID)
	if err != nil {
		return err
	}
	if !u.MFA() {
		if _, err := tx.ExecContext(ctx, sqlRecoveryClear, userID); err != nil {
			return err
		}
	}
	return s.signOut(ctx, tx, userID, keep)
}

// SessionProvider is the single sign-on provider a session came by, or "".
func (s *Service) SessionProvider(ctx context.Context, sessionID string) (string, error) {
	v, err := scanSession(s.db.QueryRowContext(ctx, sqlSessionByID, sessionID))
	if errors.Is(err, db.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at the session: %w", err)
	}
	return v.Origin.Provider, nil
}

// SelfOrPermitted resolves the {id} of a request to a user the caller may see
// or, with a managing permission, change; "me" is the caller.
func (s *Service) SelfOrPermitted(ctx context.Context, id string, need api.Permission) (userID string, own bool, err error) {
	return s.whose(ctx, id, need)
}
