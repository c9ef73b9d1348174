package target

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Config is what the room needs. DB, Audit, Roles and Secrets are mandatory.
type Config struct {
	DB    *db.DB
	Audit *audit.Log
	// Roles tells whether a role named by a grant exists.
	Roles Roles
	// Secrets tells whether a secret named by an account exists.
	Secrets Secrets
	// SiteUses are rooms that refer to sites; a site in use is not deleted.
	SiteUses []SiteUser
	// CheckAlgorithms validates Target.SSHAlgorithms; nil accepts any text.
	CheckAlgorithms func(string) error
	Now             func() time.Time // nil = time.Now
	Log             *slog.Logger     // nil = discarded
}

// Roles is what the room needs to know of roles.
type Roles interface {
	// RoleName fails with db.ErrNotFound for an unknown role.
	RoleName(ctx context.Context, q db.Querier, id string) (string, error)
	// RoleGroup is its access group; it fails with db.ErrNotFound too.
	RoleGroup(ctx context.Context, q db.Querier, id string) (string, error)
}

// Secrets is what the room needs to know of the vault: never a value.
type Secrets interface {
	// SecretExists fails with db.ErrNotFound for an unknown secret.
	SecretExists(ctx context.Context, q db.Querier, id string) error
	// SecretGroup is its access group; it fails with db.ErrNotFound too.
	SecretGroup(ctx context.Context, q db.Querier, id string) (string, error)
}

// SiteUser is a room that refers to sites by name.
type SiteUser interface {
	// SiteUses names what uses the site ("extender edge-1"), at most 10.
	SiteUses(ctx context.Context, q db.Querier, site string) ([]string, error)
}

// Service is the room's entry. Safe for concurrent use.
type Service struct{ c Config }

// New makes the room on a migrated database.
func New(c Config) (*Service, error) {
	if c.DB == nil || c.Audit == nil || c.Roles == nil || c.Secrets == nil {
		return nil, errors.New("target: DB, Audit, Roles and Secrets are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{c: c}, nil
}

// now is the time as it is stored.
func (s *Service) now() time.Time { return s.c.Now().UTC().Truncate(time.Microsecond) }

// Get returns a target by ID.
func (s *Service) Get(ctx context.Context, q db.Querier, id string) (*Target, error) {
	t, err := scanTarget(q.QueryRowContext(ctx, sqlTargetByID, id))
	if err != nil {
		return nil, fmt.Errorf("read target %.80s: %w", id, err)
	}
	return &t, nil
}

// Accounts returns the accounts of a target ordered by name.
func (s *Service) Accounts(ctx context.Context, q db.Querier, targetID string) ([]Account, error) {
	as, err := db.Collect(ctx, q, scanAccount, sqlAccounts, targetID)
	if err != nil {
		return nil, fmt.Errorf("read accounts of %s: %w", targetID, err)
	}
	return as, nil
}

// Account returns one account of a target by name.
func (s *Service) Account(ctx context.Context, q db.Querier, targetID, name string) (*Account, error) {
	a, err := scanAccount(q.QueryRowContext(ctx, sqlAccountByName, targetID, name))
	if err != nil {
		return nil, fmt.Errorf("read account of %s: %w", targetID, err)
	}
	return &a, nil
}

// Grants returns all grants that name the target or one of its tags.
func (s *Service) Grants(ctx context.Context, q db.Querier, t *Target) ([]access.Grant, error) {
	gs, err := db.Collect(ctx, q, scanGrant, fmt.Sprintf(sqlGrantsOf, ""), t.ID)
	if err != nil {
		return nil, fmt.Errorf("read grants of %s: %w", t.ID, err)
	}
	return accessGrants(gs), nil
}

// GrantsFor returns the grants of the roles that name the target or one of its tags.
func (s *Service) GrantsFor(ctx context.Context, q db.Querier, t *Target, roles []string) ([]access.Grant, error) {
	if len(roles) == 0 {
		return nil, nil
	}
	only := " and g.role_id in (" + marks(2, len(roles)) + ")"
	gs, err := db.Collect(ctx, q, scanGrant, fmt.Sprintf(sqlGrantsOf, only), append([]any{t.ID}, anys(roles)...)...)
	if err != nil {
		return nil, fmt.Errorf("read grants of %s: %w", t.ID, err)
	}
	return accessGrants(gs), nil
}

// GrantsOfRoles returns all grants of the roles, whatever they open.
func (s *Service) GrantsOfRoles(ctx context.Context, q db.Querier, roles []string) ([]access.Grant, error) {
	if len(roles) == 0 {
		return nil, nil
	}
	gs, err := db.Collect(ctx, q, scanGrant, fmt.Sprintf(sqlGrantsOfRoles, marks(1, len(roles))), anys(roles)...)
	if err != nil {
		return nil, fmt.Errorf("read grants of roles: %w", err)
	}
	return accessGrants(gs), nil
}

// Reach selects among what may be reached; zero fields select everything.
type Reach struct {
	Search string // anywhere in name or host
	Kind   Kind
	Site   string
	IDs    []string // only these targets, at most 200
}

// Reachable returns targets that some grant opens to one of the roles, with
// their accounts, ordered by name: at most limit after the name after.
func (s *Service) Reachable(ctx context.Context, q db.Querier, roles []string, by Reach, after string, limit int) ([]Target, map[string][]Account, error) {
	if len(roles) == 0 {
		return nil, nil, nil
	}
	args := append([]any{after, contains(by.Search), limit, string(by.Kind), by.Site}, anys(roles)...)
	only := ""
	if ids := by.IDs[:min(len(by.IDs), maxRows)]; len(ids) > 0 {
		only = " and t.id in (" + marks(len(args)+1, len(ids)) + ")"
		args = append(args, anys(ids)...)
	}
	ts, err := db.Collect(ctx, q, scanTarget, fmt.Sprintf(sqlReachable, marks(6, len(roles)), only), args...)
	if err != nil {
		return nil, nil, fmt.Errorf("read targets of roles: %w", err)
	}
	accounts := make(map[string][]Account, len(ts))
	for ids := targetIDs(ts); len(ids) > 0; ids = ids[min(len(ids), maxRows):] {
		n := min(len(ids), maxRows)
		as, err := db.Collect(ctx, q, scanAccount, fmt.Sprintf(sqlAccountsOf, marks(1, n)), ids[:n]...)
		if err != nil {
			return nil, nil, fmt.Errorf("read accounts of targets: %w", err)
		}
		for _, a := range as {
			accounts[a.TargetID] = append(accounts[a.TargetID], a)
		}
	}
	return ts, accounts, nil
}

func targetIDs(ts []Target) []any {
	ids := make([]any, len(ts))
	for i := range ts {
		ids[i] = ts[i].ID
	}
	return ids
}

func anys(s []string) []any {
	out := make([]any, len(s))
	for i := range s {
		out[i] = s[i]
	}
	return out
}

// SecretUses names the accounts that log in with a secret ("db-1/root") on
// targets of a scope of access groups, at most 10, and tells whether any does
// at all.
func (s *Service) SecretUses(ctx context.Context, q db.Querier, secretID string, in access.Scope) ([]string, bool, error) {
	var n int
	if err := q.QueryRowContext(ctx, sqlSecretUsed, secretID).Scan(&n); err != nil {
		return nil, false, fmt.Errorf("count uses of secret: %w", err)
	}
	uses, err := db.Collect(ctx, q, func(r db.Scanner) (string, error) {
		var t, a string
		err := r.Scan(&t, &a)
		return t + "/" + a, err
	}, sqlSecretUses, secretID, in.Text())
	if err != nil {
		return nil, false, fmt.Errorf("read uses of secret: %w", err)
	}
	return uses, n > 0, nil
}

// ByName returns a target by its unique name.
func (s *Service) ByName(ctx context.Context, q db.Querier, name string) (*Target, error) {
	t, err := scanTarget(q.QueryRowContext(ctx, sqlTargetByName, name))
	if err != nil {
		return nil, fmt.Errorf("read target %.80s: %w", name, err)
	}
	return &t, nil
}
