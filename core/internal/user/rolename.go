package user

import (
	"context"
	"fmt"

	"caponier/core/internal/db"
)

const (
	sqlRoleName  = `select name from roles where id = $1`
	sqlRoleGroup = `select group_id from roles where id = $1`
)

// RoleName returns the name of a role; db.ErrNotFound for an unknown one.
func (s *Service) RoleName(ctx context.Context, q db.Querier, id string) (string, error) {
	var name string
	if err := q.QueryRowContext(ctx, sqlRoleName, id).Scan(&name); err != nil {
		return "", fmt.Errorf("name of role %.80s: %w", id, db.Classify(err))
	}
	return name, nil
}

// RoleGroup returns the access group of a role; db.ErrNotFound for an unknown
// one.
func (s *Service) RoleGroup(ctx context.Context, q db.Querier, id string) (string, error) {
	var group string
	if err := q.QueryRowContext(ctx, sqlRoleGroup, id).Scan(&group); err != nil {
		return "", fmt.Errorf("group of role %.80s: %w", id, db.Classify(err))
	}
	return group, nil
}
