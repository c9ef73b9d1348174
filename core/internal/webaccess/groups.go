package webaccess

import (
	"context"
	"errors"
	"fmt"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

const groupSQL = `select group_id from connections where id = $1`

// group is the access group of a session: that of its connection. A session
// that is not there is in none.
func (s *Service) group(ctx context.Context, id string) (string, error) {
	var g string
	err := db.Classify(s.cfg.DB.QueryRowContext(ctx, groupSQL, id).Scan(&g))
	if errors.Is(err, db.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read access group of %s: %w", clip(id, 64), err)
	}
	return g, nil
}

// sees reports whether p holds a permission where the session is.
func (s *Service) sees(ctx context.Context, p *api.Principal, perm api.Permission, id string) (bool, error) {
	g, err := s.group(ctx, id)
	return err == nil && access.Sees(p.Scope(perm), access.Scope{}, g), err
}
