package target

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Grant returns a grant by ID.
func (s *Service) Grant(ctx context.Context, q db.Querier, id string) (*Grant, error) {
	g, err := scanGrant(q.QueryRowContext(ctx, sqlGrantByID, id))
	if err != nil {
		return nil, fmt.Errorf("read grant %.80s: %w", id, err)
	}
	return &g, nil
}

// GrantFilter selects grants; empty fields select all.
type GrantFilter struct {
	Role, Target, Tag string
	// In are the access groups to look in.
	In access.Scope
}

// ListGrants returns at most limit grants after the ID after, ordered by ID.
func (s *Service) ListGrants(ctx context.Context, q db.Querier, f GrantFilter, after string, limit int) ([]Grant, error) {
	gs, err := db.Collect(ctx, q, scanGrant, sqlGrants, after, f.Role, f.Target, f.Tag, f.In.Text(), limit)
	if err != nil {
		return nil, fmt.Errorf("read grants: %w", err)
	}
	return gs, nil
}

func (g *Grant) event(event audit.Type) audit.Event {
	f := map[string]string{
		"role": g.Role, "accounts": strings.Join(g.Accounts, ","), "features": g.Features.String(),
		"window": toJSON(g.Window), "disabled": fmt.Sprint(g.Disabled), "require_mfa": fmt.Sprint(g.RequireMFA),
		"require_reason": fmt.Sprint(g.RequireReason), "no_recording": fmt.Sprint(g.NoRecording),
		"max_duration": g.MaxDuration.String(), "idle": g.Idle.String(),
	}
	if g.Target != "" {
		f["target"] = g.Target
	} else {
		f["tag"] = g.Tag
	}
	sources := make([]string, len(g.Sources))
	for i, n := range g.Sources {
		sources[i] = n.String()
	}
	f["sources"] = strings.Join(sources, ",")
	return audit.Event{Type: event, Object: audit.Object{Kind: "grant", ID: g.ID}, Fields: f}
}

// check validates a grant; its role and target must exist. A target may be
// given by name.
func (s *Service) checkGrant(ctx context.Context, q db.Querier, g *Grant) error {
	var p problems
	g.validate(&p)
	for i := range g.Sources {
		if g.Sources[i].IsValid() {
			g.Sources[i] = g.Sources[i].Masked()
		}
	}
	if g.Role != "" {
		var err error
		if g.Group, err = s.c.Roles.RoleGroup(ctx, q, g.Role); errors.Is(err, db.ErrNotFound) {
			p.add("role", noRole)
		} else if err != nil {
			return fmt.Errorf("read role of grant: %w", err)
		}
	}
	if g.Target != "" {
		t, err := s.find(ctx, q, g.Target)
		switch {
		case errors.Is(err, db.ErrNotFound):
			p.add("target", noTarget)
		case err != nil:
			return err
		default:
			g.Target, g.targetGroup = t.ID, t.Group
			if extra := g.Features &^ t.Kind.Features(); extra != 0 && g.Features&t.Kind.Features() == 0 {
				p.add("features", "%s makes no sense for a target of kind %s", extra, t.Kind)
			}
		}
	}
	return p.err()
}

// find returns a target by ID or name.
func (s *Service) find(ctx context.Context, q db.Querier, ref string) (*Target, error) {
	query := sqlTargetByName
	if strings.HasPrefix(ref, idPrefix) {
		query = sqlTargetByID
	}
	t, err := scanTarget(q.QueryRowContext(ctx, query, ref))
	if err != nil {
		return nil, fmt.Errorf("read target %.80s: %w", ref, err)
	}
	return &t, nil
}

// CreateGrant opens a target or a tag to a role.
func (s *Service) CreateGrant(ctx context.Context, g Grant) (*Grant, error) {
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := s.checkGrant(ctx, tx, &g); err != nil {
			return err
		}
		if err := s.mayGrant(ctx, nil, &g); err != nil {
			return err
		}
		g.ID, g.CreatedAt, g.Version = db.NewID("gnt_"), s.now(), 1
		args := append([]any{g.ID}, g.values()...)
		if _, err := tx.ExecContext(ctx, sqlGrantInsert, append(args, micros(g.CreatedAt))...); err != nil {
			return fmt.Errorf("create grant: %w", err)
		}
		return s.wrote(ctx, tx, g.event(audit.GrantCreated), TopicGrant, g.ID, g.AccessGroup())
	})
	if err != nil {
		return nil, err
	}
	return &g, nil
}

// UpdateGrant replaces what may be changed of a grant.
func (s *Service) UpdateGrant(ctx context.Context, id string, match Match, change func(*Grant)) (*Grant, error) {
	var g *Grant
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if g, err = s.Grant(ctx, tx, id); err != nil {
			return err
		}
		if err := match.check(g.Version); err != nil {
			return err
		}
		version, created, old := g.Version, g.CreatedAt, *g
		change(g)
		g.ID, g.CreatedAt, g.Version = id, created, version+1
		if err := s.checkGrant(ctx, tx, g); err != nil {
			return err
		}
		if err := s.mayGrant(ctx, &old, g); err != nil {
			return err
		}
		if err := exactly(tx.ExecContext(ctx, sqlGrantUpdate, append(g.values(), id, version)...)); err != nil {
			return fmt.Errorf("update grant %s: %w", id, err)
		}
		return s.wrote(ctx, tx, g.event(audit.GrantChanged), TopicGrant, g.ID, g.AccessGroup(), old.AccessGroup())
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// DeleteGrant takes a grant away.
func (s *Service) DeleteGrant(ctx context.Context, id string, match Match) error {
	return s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		g, err := s.Grant(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := s.mayGrant(ctx, g, nil); err != nil {
			return err
		}
		if err := match.check(g.Version); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlGrantDelete, id); err != nil {
			return fmt.Errorf("delete grant %s: %w", id, err)
		}
		return s.wrote(ctx, tx, g.event(audit.GrantDeleted), TopicGrant, g.ID, g.AccessGroup())
	})
}
