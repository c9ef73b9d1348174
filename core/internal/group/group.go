// Package group keeps access groups: partitions of sites, targets, roles and
// secrets among administrators. A thing is in exactly one group; whatever was
// never put elsewhere is in the default one. The room owns the groups and
// their trust anchors; the things keep their group themselves, and the group's
// SSH authority is in sshca. What an administrator may do follows from
// access.Administer alone.
package group

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Topic of notifications of this room.
const Topic = "group"

// Group is a partition.
type Group struct {
	ID        string
	Name      string // unique, [a-z0-9._-]{1,64}
	Comment   string
	CreatedAt time.Time
	Version   int64
}

// Builtin reports whether the group is the one that cannot be removed.
func (g *Group) Builtin() bool { return g.ID == access.DefaultGroup }

// Config is what the room needs; DB, Audit and Now are mandatory.
type Config struct {
	DB    *db.DB
	Audit *audit.Log
	Now   func() time.Time
	// Made and Removed run in the transaction that makes or removes a group:
	// they give it its SSH authority and end all trust in it.
	Made    func(ctx context.Context, tx *db.Tx, id string, by audit.Actor) error
	Removed func(ctx context.Context, tx *db.Tx, id string, by audit.Actor) error
}

// Service is the room's entry. Safe for concurrent use.
type Service struct{ c Config }

// New makes the room on a migrated database.
func New(c Config) (*Service, error) {
	if c.DB == nil || c.Audit == nil || c.Now == nil {
		return nil, errors.New("group: DB, Audit and Now are needed")
	}
	return &Service{c}, nil
}

const (
	columns = `id, name, comment, created_at, version`

	getSQL    = `select ` + columns + ` from access_groups where id = $1`
	existsSQL = `select 1 from access_groups where id = $1`
	// The default group comes first.
	listSQL = `select ` + columns + ` from access_groups where name > $1 and ($2 = '*' or $2 like '%,' || id || ',%')
order by name limit $3`
	insertSQL = `insert into access_groups (` + columns + `) values ($1, $2, $3, $4, 1)`
	updateSQL = `update access_groups set name = $2, comment = $3, version = version + 1 where id = $1 and version = $4`
	deleteSQL = `delete from access_groups where id = $1 and version = $2`

	countSQL = `select (select count(*) from sites where group_id = $1), (select count(*) from targets where group_id = $1),
(select count(*) from roles where group_id = $1), (select count(*) from vault_secrets where group_id = $1 and owner_id = ''),
(select count(*) from roles where scope like '%"' || $1 || '"%')`
)

type scanner interface{ Scan(...any) error }

func scan(r scanner) (Group, error) {
	var g Group
	var at int64
	if err := r.Scan(&g.ID, &g.Name, &g.Comment, &at, &g.Version); err != nil {
		return Group{}, db.Classify(err)
	}
	g.CreatedAt = time.UnixMicro(at).UTC()
	return g, nil
}

// Check refuses, in the transaction that puts something into a group, a group
// that does not exist, and keeps it from being removed meanwhile.
func Check(ctx context.Context, tx *db.Tx, id string) error {
	if id == access.DefaultGroup {
		return nil
	}
	if err := tx.Lock(ctx, "access group "+id); err != nil {
		return err
	}
	var one int
	err := db.Classify(tx.QueryRowContext(ctx, existsSQL, id).Scan(&one))
	if errors.Is(err, db.ErrNotFound) {
		return api.Invalid(api.FieldError{Field: "group", Message: "there is no such access group"})
	}
	if err != nil {
		return fmt.Errorf("read access group %.80s: %w", id, err)
	}
	return nil
}

// Get returns a group by ID.
func (s *Service) Get(ctx context.Context, q db.Querier, id string) (Group, error) {
	g, err := scan(q.QueryRowContext(ctx, getSQL, id))
	if err != nil {
		return Group{}, fmt.Errorf("read access group %.80s: %w", id, err)
	}
	return g, nil
}

// List returns the groups of a scope by name, after the name given.
func (s *Service) List(ctx context.Context, in access.Scope, after string, limit int) ([]Group, error) {
	rows, err := s.c.DB.QueryContext(ctx, listSQL, after, in.Text(), limit)
	if err != nil {
		return nil, fmt.Errorf("list access groups: %w", err)
	}
	defer rows.Close()
	var out []Group
	for rows.Next() {
		g, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("list access groups: %w", err)
		}
		out = append(out, g)
	}
	return out, rows.Err()
}

// Counts is how much is in a group.
type Counts struct {
	Sites   int `json:"sites"`
	Targets int `json:"targets"`
	Roles   int `json:"roles"`
	Secrets int `json:"secrets"`
	// Administrators are roles whose permissions are limited to it.
	Administrators int `json:"administrator_roles" doc:"roles whose permissions are limited to the group"`
}

func (c Counts) empty() bool { return c == Counts{} }

// Count tells how much is in a group.
func (s *Service) Count(ctx context.Context, q db.Querier, id string) (c Counts, err error) {
	err = q.QueryRowContext(ctx, countSQL, id).Scan(&c.Sites, &c.Targets, &c.Roles, &c.Secrets, &c.Administrators)
	if err != nil {
		return Counts{}, fmt.Errorf("count what is in access group %s: %w", id, err)
	}
	return c, nil
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (g *Group) check() error {
	var bad []api.FieldError
	if !namePattern.MatchString(g.Name) {
		bad = append(bad, api.FieldError{Field: "name", Message: "must be 1 to 64 of a-z 0-9 . _ - and begin with a letter or digit"})
	}
	if !utf8.ValidString(g.Comment) || len(g.Comment) > 1000 {
		bad = append(bad, api.FieldError{Field: "comment", Message: "must have at most 1000 bytes"})
	}
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

// Create makes an empty group with an SSH authority of its own.
func (s *Service) Create(ctx context.Context, by audit.Actor, g Group) (Group, error) {
	if err := g.check(); err != nil {
		return Group{}, err
	}
	g.ID, g.Version = "grp_"+strings.ToLower(rand.Text()), 1
	g.CreatedAt = s.c.Now().UTC().Truncate(time.Microsecond)
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, insertSQL, g.ID, g.Name, g.Comment, g.CreatedAt.UnixMicro()); err != nil {
			return taken(g.Name, db.Classify(err))
		}
		if s.c.Made != nil {
			if err := s.c.Made(ctx, tx, g.ID, by); err != nil {
				return err
			}
		}
		return s.wrote(ctx, tx, by, audit.GroupCreated, g, map[string]string{"comment": g.Comment})
	})
	if err != nil {
		return Group{}, fmt.Errorf("create access group: %w", err)
	}
	return g, nil
}

func taken(name string, err error) error {
	if errors.Is(err, db.ErrConflict) {
		return api.Conflict("name_taken", "There is an access group named "+name+" already.")
	}
	return err
}

func (s *Service) wrote(ctx context.Context, tx *db.Tx, by audit.Actor, t audit.Type, g Group, fields map[string]string) error {
	if err := api.Notify(ctx, tx, Topic, g.ID, g.ID); err != nil {
		return err
	}
	return s.c.Audit.Append(ctx, tx, audit.Event{Type: t, Outcome: audit.OK, Actor: by, Group: g.ID,
		Object: audit.Object{Kind: "group", ID: g.ID, Name: g.Name}, Fields: fields})
}

// Update replaces name and comment.
func (s *Service) Update(ctx context.Context, by audit.Actor, id string, match func(version int64) error, name, comment string) (Group, error) {
	var g Group
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if g, err = s.Get(ctx, tx, id); err != nil {
			return err
		}
		if err := match(g.Version); err != nil {
			return err
		}
		old := g
		g.Name, g.Comment = name, comment
		if g.Builtin() && g.Name != old.Name {
			return api.Conflict("builtin", "The default group keeps its name.")
		}
		if err := g.check(); err != nil {
			return err
		}
		if err := changed(tx.ExecContext(ctx, updateSQL, id, g.Name, g.Comment, g.Version)); err != nil {
			return taken(g.Name, err)
		}
		g.Version++
		return s.wrote(ctx, tx, by, audit.GroupChanged, g, map[string]string{"old_name": old.Name, "comment": g.Comment})
	})
	if err != nil {
		return Group{}, fmt.Errorf("change access group: %w", err)
	}
	return g, nil
}

// Delete removes a group that nothing is in. All trust in its SSH authority
// ends with it.
func (s *Service) Delete(ctx context.Context, by audit.Actor, id string, match func(version int64) error) error {
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, "access group "+id); err != nil {
			return err
		}
		g, err := s.Get(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := match(g.Version); err != nil {
			return err
		}
		if g.Builtin() {
			return api.Conflict("builtin", "The default group cannot be removed.")
		}
		n, err := s.Count(ctx, tx, id)
		if err != nil {
			return err
		}
		if !n.empty() {
			return api.Conflict("group_in_use", fmt.Sprintf("It holds %d sites, %d targets, %d roles and %d secrets, and %d roles are limited to it. Move or delete them first.",
				n.Sites, n.Targets, n.Roles, n.Secrets, n.Administrators))
		}
		if s.c.Removed != nil {
			if err := s.c.Removed(ctx, tx, id, by); err != nil {
				return err
			}
		}
		if err := changed(tx.ExecContext(ctx, deleteSQL, id, g.Version)); err != nil {
			return err
		}
		return s.wrote(ctx, tx, by, audit.GroupDeleted, g, nil)
	})
	if err != nil {
		return fmt.Errorf("delete access group: %w", err)
	}
	return nil
}
