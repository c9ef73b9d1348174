package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"caponier/core/internal/db"
)

const (
	secretColumns = `id, name, owner_id, kind, comment, read_roles, write_roles, current, version, created_at, updated_at, group_id`

	getSecretSQL = `select ` + secretColumns + ` from vault_secrets where id = $1`
	addSecretSQL = `insert into vault_secrets (` + secretColumns + `) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`
	// listSecretsSQL pages through what is shared and what is a user's own.
	listSecretsSQL = `select ` + secretColumns + ` from vault_secrets
where (owner_id = '' or owner_id = $1) and (name > $2 or (name = $2 and id > $3))
and ($5 = '' or group_id = $5) order by name, id limit $4`
	setSecretSQL = `update vault_secrets set name = $1, comment = $2, read_roles = $3, write_roles = $4, current = $5, version = $6, updated_at = $7, group_id = $8
where id = $9 and version = $10`
	deleteSecretSQL = `delete from vault_secrets where id = $1`
	deleteOwnedSQL  = `delete from vault_secrets where owner_id = $1`

	addValueSQL   = `insert into vault_values (id, secret_id, version, sealed, created_at, created_by) values ($1, $2, $3, $4, $5, $6)`
	getValueSQL   = `select id, sealed from vault_values where secret_id = $1 and version = $2`
	listValuesSQL = `select version, created_at, created_by from vault_values where secret_id = $1 order by version desc`
	dropValuesSQL = `delete from vault_values where secret_id = $1 and version <= $2`
)

func rolesText(roles []string) string {
	if len(roles) == 0 {
		return "[]"
	}
	b, _ := json.Marshal(roles) // strings always encode
	return string(b)
}

type scanner interface{ Scan(...any) error }

func scanSecret(s scanner) (*Secret, error) {
	var x Secret
	var created, updated int64
	var read, write string
	err := s.Scan(&x.ID, &x.Name, &x.OwnerID, &x.Kind, &x.Comment, &read, &write, &x.Current, &x.Version, &created, &updated, &x.Group)
	if err != nil {
		return nil, db.Classify(err)
	}
	if x.OwnerID != "" {
		x.Group = "" // what is somebody's own is in no group
	}
	if err := json.Unmarshal([]byte(read), &x.ReadRoles); err != nil {
		return nil, fmt.Errorf("read roles of secret %s: %w", x.ID, err)
	}
	if err := json.Unmarshal([]byte(write), &x.WriteRoles); err != nil {
		return nil, fmt.Errorf("read roles of secret %s: %w", x.ID, err)
	}
	x.CreatedAt, x.UpdatedAt = time.UnixMicro(created).UTC(), time.UnixMicro(updated).UTC()
	return &x, nil
}

func insertSecret(ctx context.Context, tx *db.Tx, s *Secret) error {
	_, err := tx.ExecContext(ctx, addSecretSQL, s.ID, s.Name, s.OwnerID, string(s.Kind), s.Comment,
		rolesText(s.ReadRoles), rolesText(s.WriteRoles), s.Current, s.Version, s.CreatedAt.UnixMicro(), s.UpdatedAt.UnixMicro(), s.Group)
	return db.Classify(err)
}

// updateSecret writes s over the version it was read with.
func updateSecret(ctx context.Context, tx *db.Tx, s *Secret) error {
	res, err := tx.ExecContext(ctx, setSecretSQL, s.Name, s.Comment, rolesText(s.ReadRoles), rolesText(s.WriteRoles),
		s.Current, s.Version+1, s.UpdatedAt.UnixMicro(), s.Group, s.ID, s.Version)
	if err != nil {
		return db.Classify(err)
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return db.ErrConflict
	}
	s.Version++
	return nil
}
