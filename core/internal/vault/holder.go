package vault

import (
	"context"
	"fmt"

	"caponier/core/internal/db"
)

// SecretExists fails with db.ErrNotFound for an unknown secret, and for a
// personal one: what is referred to is used for others than its owner. Rooms
// that refer to secrets ask it before they store the reference.
func (v *Vault) SecretExists(ctx context.Context, q db.Querier, id string) error {
	s, err := v.Get(ctx, q, id)
	if err == nil && s.OwnerID != "" {
		return fmt.Errorf("secret %.40s is personal: %w", id, db.ErrNotFound)
	}
	return err
}

// SecretGroup is the access group of a shared secret; db.ErrNotFound for an
// unknown or personal one.
func (v *Vault) SecretGroup(ctx context.Context, q db.Querier, id string) (string, error) {
	s, err := v.Get(ctx, q, id)
	if err != nil {
		return "", err
	}
	if s.OwnerID != "" {
		return "", fmt.Errorf("secret %.40s is personal: %w", id, db.ErrNotFound)
	}
	return s.Group, nil
}

// Name, Export and Erase make the vault answer for a person's data: personal
// secrets.

// Name is the section of an export.
func (v *Vault) Name() string { return "secrets" }

const ownSecretsSQL = `select ` + secretColumns + ` from vault_secrets where owner_id = $1 order by name`

// Export lists a user's personal secrets without their values, which only
// their owner reveals.
func (v *Vault) Export(ctx context.Context, q db.Querier, userID string) (any, error) {
	rows, err := q.QueryContext(ctx, ownSecretsSQL, userID)
	if err != nil {
		return nil, fmt.Errorf("export personal secrets: %w", err)
	}
	defer rows.Close()
	out := []Secret{}
	for rows.Next() {
		s, err := scanSecret(rows)
		if err != nil {
			return nil, fmt.Errorf("export personal secrets: %w", err)
		}
		out = append(out, *s)
	}
	return out, rows.Err()
}

// Erase removes a user's personal secrets.
func (v *Vault) Erase(ctx context.Context, tx *db.Tx, userID, _ string) error {
	return v.DeleteOwned(ctx, tx, userID)
}
