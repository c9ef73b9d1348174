package user

import (
	"context"
	"fmt"
	"net/mail"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
)

// nameForm is what user and role names look like. None of its characters
// means anything in an SSH login name, a path or a query.
var nameForm = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$`)

func checkName(field, name string) []api.FieldError {
	if nameForm.MatchString(name) {
		return nil
	}
	return []api.FieldError{{Field: field, Message: "must be 1 to 64 of a-z, 0-9, dot, dash, underscore, and start and end with a letter or digit"}}
}

func checkText(field, text string, most int) []api.FieldError {
	if len(text) > most || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return []api.FieldError{{Field: field, Message: fmt.Sprintf("must be printable text of at most %d bytes", most)}}
	}
	return nil
}

func checkEmail(field, text string) []api.FieldError {
	if text == "" {
		return nil
	}
	if a, err := mail.ParseAddress(text); err != nil || a.Address != text || len(text) > 254 {
		return []api.FieldError{{Field: field, Message: "must be a mail address such as jane@example.org"}}
	}
	return nil
}

// Draft describes a user to create.
type Draft struct {
	Name        string
	DisplayName string
	Email       string
	// Password may be empty: the user then logs in by SSH key or not yet.
	Password string
}

func (s *Service) checkDraft(d Draft) error {
	bad := checkName("body.name", d.Name)
	bad = append(bad, checkText("body.display_name", d.DisplayName, 200)...)
	bad = append(bad, checkEmail("body.email", d.Email)...)
	if d.Password != "" {
		if wrong := checkPassword(d.Name, d.Password, settings.PasswordMinLength.Get(s.settings)); wrong != "" {
			bad = append(bad, api.FieldError{Field: "body.password", Message: wrong})
		}
	}
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

// Create adds a person.
func (s *Service) Create(ctx context.Context, by audit.Actor, d Draft) (User, error) {
	if err := s.checkDraft(d); err != nil {
		return User{}, err
	}
	hash := ""
	if d.Password != "" {
		var err error
		if hash, err = s.hasher.hash(ctx, d.Password); err != nil {
			return User{}, err
		}
	}
	var made record
	err := s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		made, err = s.insert(ctx, tx, by, Person, db.NewID("usr_"), d, hash)
		return err
	})
	if err != nil {
		return User{}, fmt.Errorf("create user: %w", err)
	}
	return made.User, nil
}

func (s *Service) insert(ctx context.Context, tx *db.Tx, by audit.Actor, kind Kind, id string, d Draft, hash string) (record, error) {
	now := s.now().UnixMicro()
	changed := int64(0)
	if hash != "" {
		changed = now
	}
	_, err := tx.ExecContext(ctx, sqlUserInsert, id, string(kind), d.Name, d.DisplayName, d.Email, false, false, hash, changed, now)
	if err != nil {
		return record{}, taken("user", d.Name, db.Classify(err))
	}
	u, err := userByID(ctx, tx, id)
	if err != nil {
		return record{}, err
	}
	if err := tx.Notify(ctx, "user", id); err != nil {
		return record{}, err
	}
	return u, s.audit.Append(ctx, tx, audit.Event{Type: audit.UserCreated, Outcome: audit.OK, Actor: by, Object: u.object(),
		Fields: map[string]string{"kind": string(kind), "password": strconv.FormatBool(hash != "")}})
}

// Get returns a user by ID.
func (s *Service) Get(ctx context.Context, id string) (User, error) {
	r, err := userByID(ctx, s.db, id)
	return r.User, err
}

// ByName returns a user by login name.
func (s *Service) ByName(ctx context.Context, name string) (User, error) {
	r, err := userByName(ctx, s.db, name)
	return r.User, err
}

// List returns users of a kind ordered by name, after the name given, whose
// name, display name or mail address contains search.
func (s *Service) List(ctx context.Context, kind Kind, search, after string, limit int) ([]User, error) {
	list, err := query(ctx, s.db, scanUser, sqlUserList, string(kind), after, search, likePattern(search), limit)
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	users := make([]User, len(list))
	for i := range list {
		users[i] = list[i].User
	}
	return users, nil
}

// Change holds the new values of a user's fields; nil leaves one as it is.
type Change struct {
	Name        *string
	DisplayName *string
	Email       *string
	Disabled    *bool
	Locked      *bool
	// Unpause ends the pause after too many failed password logins.
	Unpause bool
}

// Update changes a user. match sees the present version and refuses a stale one.
func (s *Service) Update(ctx context.Context, by audit.Actor, id string, match func(version int64) error, c Change) (User, error) {
	var bad []api.FieldError
	if c.Name != nil {
		bad = append(bad, checkName("body.name", *c.Name)...)
	}
	if c.DisplayName != nil {
		bad = append(bad, checkText("body.display_name", *c.DisplayName, 200)...)
	}
	if c.Email != nil {
		bad = append(bad, checkEmail("body.email", *c.Email)...)
	}
	if len(bad) > 0 {
		return User{}, api.Invalid(bad...)
	}
	var u record
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		return s.guardAdministrators(ctx, tx, func() (err error) {
			u, err = s.update(ctx, tx, by, id, match, c)
			return err
		})
	})
	if err != nil {
		return User{}, fmt.Errorf("change user: %w", err)
	}
	return u.User, nil
}

func (s *Service) update(ctx context.Context, tx *db.Tx, by audit.Actor, id string, match func(int64) error, c Change) (record, error) {
	u, err := userByID(ctx, tx, id)
	if err != nil {
		return record{}, err
	}
	if err := match(u.Version); err != nil {
		return record{}, err
	}
	if !u.ErasedAt.IsZero() {
		return record{}, api.Conflict("erased", "The user was erased.")
	}
	fields := c.apply(&u)
	if len(fields) == 0 {
		return u, nil
	}
	err = changeOne(ctx, tx, sqlUserUpdate, id, u.Name, u.DisplayName, u.Email, u.Disabled, u.Locked,
		db.Micro(u.PasswordLockedUntil), u.failures, u.Version)
	if err != nil {
		return record{}, taken("user", u.Name, err)
	}
	u.Version++
	if err := tx.Notify(ctx, "user", id); err != nil {
		return record{}, err
	}
	for _, t := range changeEvents(fields) {
		err := s.audit.Append(ctx, tx, audit.Event{Type: t, Outcome: audit.OK, Actor: by, Object: u.object(), Fields: fields})
		if err != nil {
			return record{}, err
		}
	}
	return u, nil
}

// changeEvents names what the changed fields amount to.
func changeEvents(fields map[string]string) []audit.Type {
	var types []audit.Type
	flags := 0
	for _, f := range []struct {
		name    string
		on, off audit.Type
	}{{"disabled", audit.UserDisabled, audit.UserEnabled}, {"locked", audit.UserLocked, audit.UserUnlocked}} {
		value, changed := fields[f.name]
		if !changed {
			continue
		}
		flags++
		if value == "true" {
			types = append(types, f.on)
		} else {
			types = append(types, f.off)
		}
	}
	if len(fields) > flags {
		types = append(types, audit.UserChanged)
	}
	return types
}

// apply sets the changed fields and returns old and new values for the audit log.
func (c Change) apply(u *record) map[string]string {
	fields := map[string]string{}
	text := func(name string, field *string, value *string) {
		if value != nil && *value != *field {
			fields["old_"+name], fields["new_"+name] = *field, *value
			*field = *value
		}
	}
	flag := func(name string, field *bool, value *bool) {
		if value != nil && *value != *field {
			fields[name] = strconv.FormatBool(*value)
			*field = *value
		}
	}
	text("name", &u.Name, c.Name)
	text("display_name", &u.DisplayName, c.DisplayName)
	text("email", &u.Email, c.Email)
	flag("disabled", &u.Disabled, c.Disabled)
	flag("locked", &u.Locked, c.Locked)
	if c.Unpause && !u.PasswordLockedUntil.IsZero() {
		fields["unpaused"] = "true"
		u.PasswordLockedUntil, u.failures = time.Time{}, 0
	}
	return fields
}

// SetPassword gives a user a password, without asking for the old one, and
// signs him out everywhere. An empty password takes password logins away.
func (s *Service) SetPassword(ctx context.Context, by audit.Actor, id, password string) error {
	u, err := userByID(ctx, s.db, id)
	if err != nil {
		return err
	}
	if u.Kind != Person || !u.ErasedAt.IsZero() {
		return api.Conflict("no_password", "This account cannot have a password.")
	}
	hash := ""
	if password != "" {
		if wrong := checkPassword(u.Name, password, settings.PasswordMinLength.Get(s.settings)); wrong != "" {
			return api.Invalid(api.FieldError{Field: "body.password", Message: wrong})
		}
		if hash, err = s.hasher.hash(ctx, password); err != nil {
			return err
		}
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error { return s.storePassword(ctx, tx, by, &u.User, hash, "") })
	if err != nil {
		return fmt.Errorf("set password: %w", err)
	}
	return nil
}

// storePassword writes a hash and ends every session but keep.
func (s *Service) storePassword(ctx context.Context, tx *db.Tx, by audit.Actor, u *User, hash, keep string) error {
	if err := changeOne(ctx, tx, sqlUserPassword, u.ID, hash, s.now().UnixMicro()); err != nil {
		return err
	}
	if err := s.signOut(ctx, tx, u.ID, keep); err != nil {
		return err
	}
	return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserPasswordSet, Outcome: audit.OK, Actor: by, Object: u.object(),
		Fields: map[string]string{"removed": strconv.FormatBool(hash == "")}})
}

// taken turns a conflict into a problem that says which name is in use.
func taken(kind, name string, err error) error {
	if isConflict(err) {
		return api.Conflict("name_taken", fmt.Sprintf("There is a %s or client named %s already.", kind, name))
	}
	return err
}
