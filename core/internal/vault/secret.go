package vault

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
)

// Kind is what a secret holds.
type Kind string

// The kinds.
const (
	Password Kind = "password" // text
	Key      Kind = "key"      // a private key in PEM, without a passphrase
	JSON     Kind = "json"     // any JSON object
)

// Secret is a stored secret without its value.
type Secret struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// OwnerID is the user whose personal secret it is; empty = shared.
	OwnerID string `json:"owner_id,omitempty"`
	// Group is the access group; a personal secret is in none.
	Group      string    `json:"group,omitempty"`
	Kind       Kind      `json:"kind"`
	Comment    string    `json:"comment,omitempty"`
	ReadRoles  []string  `json:"read_roles"`  // role IDs that may reveal it
	WriteRoles []string  `json:"write_roles"` // role IDs that may set its value
	Current    int64     `json:"current"`     // version of the value
	Version    int64     `json:"version"`     // of this record, for ETag
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
}

// keptValues is how many versions of a value are kept.
const keptValues = 10

// action is what somebody wants with a secret.
type action int

const (
	see    action = iota // know that it is there
	read                 // reveal the value
	write                // set a new value
	manage               // change everything else, delete
)

// allowed is the decision about secrets, without what core itself may do.
// Personal secrets are their owner's alone. Managing shared ones includes
// setting their value, never revealing it: that takes a read role.
func allowed(p *api.Principal, roles []string, s *Secret, a action) bool {
	if p == nil || p.UserID == "" {
		return false
	}
	if s.OwnerID != "" {
		return s.OwnerID == p.UserID
	}
	manager := s.Group != "" && access.Administer(access.Scope{}, p.Scope(api.SecretsManage), access.Change{From: s.Group, To: s.Group}) == access.Granted
	reader, writer := intersects(roles, s.ReadRoles), intersects(roles, s.WriteRoles)
	switch a {
	case see:
		return manager || reader || writer
	case read:
		return reader
	case write:
		return manager || writer
	case manage:
		return manager
	}
	return false
}

func intersects(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/ -]{0,99}$`)

// NewSecret is what a secret is made of.
type NewSecret struct {
	Name, OwnerID, Comment string
	// Group is the access group; empty = the default one. Personal ones have none.
	Group                 string
	Kind                  Kind
	ReadRoles, WriteRoles []string
	Value                 []byte
}

// check returns what is wrong with the fields, nil when nothing is.
func (n NewSecret) check() []api.FieldError {
	var bad []api.FieldError
	if !namePattern.MatchString(n.Name) {
		bad = append(bad, api.FieldError{Field: "name", Message: "1 to 100 of letters, digits, space, . _ / -, beginning with a letter or digit"})
	}
	if len(n.Comment) > 500 {
		bad = append(bad, api.FieldError{Field: "comment", Message: "at most 500 bytes"})
	}
	if len(n.ReadRoles) > 100 || len(n.WriteRoles) > 100 {
		bad = append(bad, api.FieldError{Field: "read_roles", Message: "at most 100 roles each"})
	}
	if n.OwnerID != "" && len(n.ReadRoles)+len(n.WriteRoles) > 0 {
		bad = append(bad, api.FieldError{Field: "read_roles", Message: "a personal secret has no roles: it is its owner's alone"})
	}
	return bad
}

// checkValue returns what is wrong with a value of a kind; it never quotes it.
func checkValue(kind Kind, value []byte) *api.FieldError {
	bad := func(message string) *api.FieldError { return &api.FieldError{Field: "value", Message: message} }
	if len(value) == 0 || len(value) > 64<<10 {
		return bad("1 byte to 64 KiB")
	}
	switch kind {
	case Password:
		if bytes.ContainsAny(value, "\x00") {
			return bad("must not hold a NUL byte")
		}
	case Key:
		if block, _ := pem.Decode(value); block == nil || !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return bad("must be a private key in PEM")
		} else if block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY" {
			return bad("must not have a passphrase: the vault encrypts it")
		}
	case JSON:
		var object map[string]json.RawMessage
		if json.Unmarshal(value, &object) != nil {
			return bad("must be a JSON object")
		}
	default:
		return &api.FieldError{Field: "kind", Message: "must be password, key or json"}
	}
	return nil
}

// Create stores a secret in tx.
func (v *Vault) Create(ctx context.Context, tx *db.Tx, n NewSecret, by audit.Actor) (*Secret, error) {
	bad := n.check()
	if b := checkValue(n.Kind, n.Value); b != nil {
		bad = append(bad, *b)
	}
	if len(bad) > 0 {
		return nil, api.Invalid(bad...)
	}
	if n.OwnerID != "" {
		n.Group = ""
	} else if n.Group == "" {
		n.Group = access.DefaultGroup
	}
	if n.Group != "" {
		if err := group.Check(ctx, tx, n.Group); err != nil {
			return nil, err
		}
	}
	now := v.now().UTC().Truncate(time.Microsecond)
	s := &Secret{
		ID: db.NewID("sec_"), Name: n.Name, OwnerID: n.OwnerID, Group: n.Group, Kind: n.Kind, Comment: n.Comment,
		ReadRoles: nonNil(n.ReadRoles), WriteRoles: nonNil(n.WriteRoles), Current: 1, Version: 1, CreatedAt: now, UpdatedAt: now,
	}
	if err := insertSecret(ctx, tx, s); err != nil {
		if errors.Is(err, db.ErrConflict) {
			return nil, api.Conflict("name_taken", "There is a secret of this name already.")
		}
		return nil, fmt.Errorf("create secret: %w", err)
	}
	if err := v.addValue(ctx, tx, s, n.Value, by); err != nil {
		return nil, fmt.Errorf("create secret: %w", err)
	}
	return s, v.changed(ctx, tx, audit.SecretCreated, s, by, map[string]string{"kind": string(s.Kind)})
}

// SetValue stores a new version of a secret's value in tx. s must be fresh.
func (v *Vault) SetValue(ctx context.Context, tx *db.Tx, s *Secret, value []byte, by audit.Actor) error {
	if b := checkValue(s.Kind, value); b != nil {
		return api.Invalid(*b)
	}
	s.Current++
	s.UpdatedAt = v.now().UTC().Truncate(time.Microsecond)
	if err := updateSecret(ctx, tx, s); err != nil {
		return fmt.Errorf("set secret %s: %w", s.ID, err)
	}
	if err := v.addValue(ctx, tx, s, value, by); err != nil {
		return fmt.Errorf("set secret %s: %w", s.ID, err)
	}
	if _, err := tx.ExecContext(ctx, dropValuesSQL, s.ID, s.Current-keptValues); err != nil {
		return fmt.Errorf("set secret %s: %w", s.ID, err)
	}
	return v.changed(ctx, tx, audit.SecretWritten, s, by, map[string]string{"value_version": fmt.Sprint(s.Current)})
}

func (v *Vault) addValue(ctx context.Context, tx *db.Tx, s *Secret, value []byte, by audit.Actor) error {
	id := db.NewID("val_")
	box, err := v.Seal(valuePlace(id), value)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, addValueSQL, id, s.ID, s.Current, box, s.UpdatedAt.UnixMicro(), by.ID)
	return db.Classify(err)
}

func valuePlace(id string) Place { return Place{Table: "vault_values", Column: "sealed", Row: id} }

// Delete removes a secret and all its values in tx.
func (v *Vault) Delete(ctx context.Context, tx *db.Tx, s *Secret, by audit.Actor) error {
	if _, err := tx.ExecContext(ctx, deleteSecretSQL, s.ID); err != nil {
		return fmt.Errorf("delete secret %s: %w", s.ID, err)
	}
	return v.changed(ctx, tx, audit.SecretDeleted, s, by, nil)
}

// DeleteOwned removes a user's personal secrets in tx, with the user.
func (v *Vault) DeleteOwned(ctx context.Context, tx *db.Tx, userID string) error {
	if userID == "" {
		return errors.New("delete personal secrets: no user")
	}
	if _, err := tx.ExecContext(ctx, deleteOwnedSQL, userID); err != nil {
		return fmt.Errorf("delete personal secrets of %s: %w", userID, err)
	}
	return nil
}

// changed notifies and audits a change of s, which is, or was, in the groups
// given besides its own.
func (v *Vault) changed(ctx context.Context, tx *db.Tx, t audit.Type, s *Secret, by audit.Actor, fields map[string]string, groups ...string) error {
	if err := api.Notify(ctx, tx, "secret", s.ID, append(groups, s.Group)...); err != nil {
		return err
	}
	return v.audit.Append(ctx, tx, audit.Event{Type: t, Outcome: audit.OK, Actor: by, Group: s.Group, Object: s.object(), Fields: fields})
}

func (s *Secret) object() audit.Object {
	return audit.Object{Kind: "secret", ID: s.ID, Name: s.Name}
}

// Get reads a secret without its value; db.ErrNotFound when there is none.
func (v *Vault) Get(ctx context.Context, q db.Querier, id string) (*Secret, error) {
	return scanSecret(q.QueryRowContext(ctx, getSecretSQL, id))
}

// value opens a version of a secret's value.
func (v *Vault) value(ctx context.Context, q db.Querier, s *Secret, version int64) ([]byte, error) {
	var id string
	var box []byte
	if err := q.QueryRowContext(ctx, getValueSQL, s.ID, version).Scan(&id, &box); err != nil {
		return nil, fmt.Errorf("read secret %s: %w", s.ID, db.Classify(err))
	}
	value, err := v.Open(valuePlace(id), box)
	if err != nil {
		return nil, fmt.Errorf("open secret %s: %w", s.ID, err)
	}
	return value, nil
}

// Reveal opens the current version of a stored secret for one use by core
// itself (never for a user), and audits the use. The caller zeroes the result.
// For kinds password and key it is the bare value, for json the document.
func (v *Vault) Reveal(ctx context.Context, secretID, purpose, connectionID string) ([]byte, error) {
	var out []byte
	err := v.db.Tx(ctx, func(tx *db.Tx) (err error) {
		clear(out)
		out, err = v.RevealIn(ctx, tx, secretID, purpose, connectionID)
		return err
	})
	if err != nil {
		clear(out)
		return nil, err
	}
	return out, nil
}

// RevealIn is Reveal in the caller's transaction: the value may be used only
// when that is committed.
func (v *Vault) RevealIn(ctx context.Context, tx *db.Tx, secretID, purpose, connectionID string) ([]byte, error) {
	s, err := v.Get(ctx, tx, secretID)
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", secretID, err)
	}
	out, err := v.value(ctx, tx, s, s.Current)
	if err != nil {
		return nil, err
	}
	err = v.audit.Append(ctx, tx, audit.Event{
		Type: audit.SecretUsed, Outcome: audit.OK, Actor: audit.System, Object: s.object(), Connection: connectionID, Group: s.Group,
		Fields: map[string]string{"purpose": purpose, "value_version": fmt.Sprint(s.Current)},
	})
	if err != nil {
		clear(out)
		return nil, err
	}
	return out, nil
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
