package recording

import (
	"context"
	"errors"
	"fmt"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Share lets the members of a role see one recording (FEATURES R9).
type Share struct {
	RoleID    string    `json:"role_id"`
	GrantedBy string    `json:"granted_by"`
	GrantedAt time.Time `json:"granted_at"`
}

const (
	sharesSQL  = `select role_id, granted_by, granted_at from recording_roles where recording_id = $1 order by role_id`
	shareSQL   = `insert into recording_roles (recording_id, role_id, granted_by, granted_at) values ($1, $2, $3, $4) on conflict do nothing`
	unshareSQL = `delete from recording_roles where recording_id = $1 and role_id = $2`
)

func (s *Store) sharedRoles(ctx context.Context, id string) ([]Share, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, sharesSQL, id)
	if err != nil {
		return nil, fmt.Errorf("list roles of recording %s: %w", id, err)
	}
	defer rows.Close()
	out := []Share{}
	for rows.Next() {
		var x Share
		var at int64
		if err := rows.Scan(&x.RoleID, &x.GrantedBy, &at); err != nil {
			return nil, fmt.Errorf("list roles of recording %s: %w", id, err)
		}
		x.GrantedAt = db.FromMicro(at)
		out = append(out, x)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list roles of recording %s: %w", id, err)
	}
	return out, nil
}

type rolesOut struct {
	Body struct {
		Items []Share `json:"items"`
	}
}

func (s *Store) handleRoles(ctx context.Context, in *api.IDIn) (*rolesOut, error) {
	r, _, err := s.overseen(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &rolesOut{}
	out.Body.Items, err = s.sharedRoles(ctx, r.ID)
	return out, err
}

type shareIn struct {
	api.IDIn
	Role string `path:"role" maxLength:"64" pattern:"^[a-z]+_[a-z0-9]+$" doc:"role id"`
}

func (s *Store) handleShare(ctx context.Context, in *shareIn) (*struct{}, error) {
	return s.changeShare(ctx, in, "added", func(tx *db.Tx, p *api.Principal) error {
		if !p.Can(api.RecordingsView) {
			// Nobody hands recordings out to those he does not look after.
			g, err := "", error(nil)
			if s.cfg.RoleGroup != nil {
				g, err = s.cfg.RoleGroup(ctx, tx, in.Role)
			}
			if err != nil && !errors.Is(err, db.ErrNotFound) {
				return err
			}
			if !access.Sees(p.Scope(api.RecordingsView), access.Scope{}, g) {
				return api.Missing("role", in.Role)
			}
		}
		_, err := tx.ExecContext(ctx, shareSQL, in.ID, in.Role, p.UserName, s.cfg.Now().UnixMicro())
		return err
	})
}

func (s *Store) handleUnshare(ctx context.Context, in *shareIn) (*struct{}, error) {
	return s.changeShare(ctx, in, "removed", func(tx *db.Tx, _ *api.Principal) error {
		res, err := tx.ExecContext(ctx, unshareSQL, in.ID, in.Role)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, db.ErrNotFound)
		}
		return nil
	})
}

func (s *Store) changeShare(ctx context.Context, in *shareIn, change string, f func(*db.Tx, *api.Principal) error) (*struct{}, error) {
	r, p, err := s.overseen(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	err = s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := f(tx, p); err != nil {
			return err
		}
		if err := api.Notify(ctx, tx, TopicRecording, r.ID, r.Group); err != nil {
			return err
		}
		return s.noteIn(ctx, tx, audit.RecordingShared, p, r, map[string]string{"role": in.Role, "change": change})
	})
	if err != nil {
		return nil, fmt.Errorf("share recording %s: %w", r.ID, err)
	}
	return nil, nil
}
