package target

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
)

// Match decides whether the version found may be changed (If-Match); nil
// matches every version.
type Match func(version int64) error

func (m Match) check(version int64) error {
	if m == nil {
		return nil
	}
	return m(version)
}

// Site returns a site by name.
func (s *Service) Site(ctx context.Context, q db.Querier, name string) (*Site, error) {
	site, err := scanSite(q.QueryRowContext(ctx, sqlSiteByName, name))
	if err != nil {
		return nil, fmt.Errorf("read site %.80s: %w", name, err)
	}
	return &site, nil
}

// Sites returns at most limit sites of a scope of access groups after the name
// after, ordered by name; group limits them to one group, unless it is empty.
func (s *Service) Sites(ctx context.Context, q db.Querier, in access.Scope, group, after string, limit int) ([]Site, error) {
	sites, err := db.Collect(ctx, q, scanSite, sqlSites, after, in.Text(), group, limit)
	if err != nil {
		return nil, fmt.Errorf("read sites: %w", err)
	}
	return sites, nil
}

// CreateSite adds a site.
func (s *Service) CreateSite(ctx context.Context, site Site) (*Site, error) {
	var p problems
	site.validate(&p)
	if err := p.err(); err != nil {
		return nil, err
	}
	var err error
	if site.Group, err = api.PlaceNew(ctx, api.TargetsManage, site.Group); err != nil {
		return nil, err
	}
	err = s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := site.guarded().Administer(ctx, "", site.Group); err != nil {
			return err
		}
		return s.insertSite(ctx, tx, &site)
	})
	if errors.Is(err, db.ErrConflict) {
		return nil, api.Conflict("name_taken", "There is a site "+site.Name+" already.")
	}
	if err != nil {
		return nil, err
	}
	return &site, nil
}

func (s *Service) insertSite(ctx context.Context, tx *db.Tx, site *Site) error {
	if err := group.Check(ctx, tx, site.Group); err != nil {
		return err
	}
	site.ID, site.CreatedAt, site.Version = db.NewID("site_"), s.now(), 1
	if _, err := tx.ExecContext(ctx, sqlSiteInsert, site.ID, site.Name, site.Comment, site.Group, micros(site.CreatedAt)); err != nil {
		return fmt.Errorf("create site %s: %w", site.Name, db.Classify(err))
	}
	return s.wrote(ctx, tx, audit.Event{Type: audit.SiteCreated, Object: site.object()}, TopicSite, site.Name, site.Group)
}

// EnsureSite makes a site if there is none of the name, in the only access group
// of the caller or the default one, and tells whether it did. Whether the caller may
// use a site that is there is for the room of edges to ask.
func (s *Service) EnsureSite(ctx context.Context, tx *db.Tx, name string) (made bool, err error) {
	if err := tx.Lock(ctx, "site:"+name); err != nil {
		return false, err
	}
	_, err = s.Site(ctx, tx, name)
	if err == nil || !errors.Is(err, db.ErrNotFound) {
		return false, err
	}
	site := Site{Name: name}
	var p problems
	if site.validate(&p); p.err() != nil {
		return false, p.err()
	}
	if site.Group, err = api.PlaceNew(ctx, api.EdgesManage, ""); err != nil {
		return false, err
	}
	return true, s.insertSite(ctx, tx, &site)
}

// moved notes a move between access groups.
func moved(from, to string) map[string]string {
	if from == to {
		return nil
	}
	return map[string]string{"old_group": from, "new_group": to}
}

func (s *Site) object() audit.Object { return audit.Object{Kind: "site", ID: s.ID, Name: s.Name} }

// UpdateSite changes the comment of a site and, unless it is empty, its access
// group. Its targets stay in theirs.
func (s *Service) UpdateSite(ctx context.Context, name, comment, to string, match Match) (*Site, error) {
	var p problems
	checkComment(&p, comment)
	if err := p.err(); err != nil {
		return nil, err
	}
	var site *Site
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if site, err = s.Site(ctx, tx, name); err != nil {
			return err
		}
		old := site.Group
		if to == "" {
			to = old
		}
		if err := site.guarded().Administer(ctx, old, to); err != nil {
			return err
		}
		if err := match.check(site.Version); err != nil {
			return err
		}
		if err := group.Check(ctx, tx, to); err != nil {
			return err
		}
		if err := exactly(tx.ExecContext(ctx, sqlSiteUpdate, comment, to, name, site.Version)); err != nil {
			return fmt.Errorf("update site %s: %w", name, err)
		}
		site.Comment, site.Group = comment, to
		site.Version++
		return s.wrote(ctx, tx, audit.Event{Type: audit.SiteChanged, Object: site.object(), Fields: moved(old, to)}, TopicSite, name, to, old)
	})
	if err != nil {
		return nil, err
	}
	return site, nil
}

// DeleteSite removes a site nothing refers to; else it says what does.
func (s *Service) DeleteSite(ctx context.Context, name string, match Match) error {
	return s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		site, err := s.Site(ctx, tx, name)
		if err != nil {
			return err
		}
		if err := site.guarded().Administer(ctx, site.Group, ""); err != nil {
			return err
		}
		if err := match.check(site.Version); err != nil {
			return err
		}
		uses, err := s.siteUses(ctx, tx, name)
		if err != nil {
			return err
		}
		if len(uses) > 0 && !api.Sees(ctx, api.TargetsView).All() {
			// What uses it may be in a group that is not the caller's.
			return api.Conflict("site_in_use", "Site "+name+" is in use.")
		}
		if len(uses) > 0 {
			return api.Conflict("site_in_use", "Site "+name+" is in use by "+strings.Join(uses, ", ")+". Move or delete these first.")
		}
		if _, err := tx.ExecContext(ctx, sqlSiteDelete, name); err != nil {
			return fmt.Errorf("delete site %s: %w", name, err)
		}
		return s.wrote(ctx, tx, audit.Event{Type: audit.SiteDeleted, Object: site.object()}, TopicSite, name, site.Group)
	})
}

func (s *Service) siteUses(ctx context.Context, q db.Querier, name string) ([]string, error) {
	uses, err := db.Collect(ctx, q, func(r db.Scanner) (string, error) {
		var n string
		err := r.Scan(&n)
		return "target " + n, err
	}, sqlSiteUses, name)
	if err != nil {
		return nil, fmt.Errorf("read uses of site %s: %w", name, err)
	}
	var count int
	if err := q.QueryRowContext(ctx, sqlSiteCount, name).Scan(&count); err != nil {
		return nil, fmt.Errorf("count targets of site %s: %w", name, err)
	}
	if more := count - len(uses); more > 0 {
		uses = append(uses, fmt.Sprintf("%d more targets", more))
	}
	for _, u := range s.c.SiteUses {
		others, err := u.SiteUses(ctx, q, name)
		if err != nil {
			return nil, fmt.Errorf("read uses of site %s: %w", name, err)
		}
		uses = append(uses, others...)
	}
	return uses, nil
}

// needSite adds a problem when the site that a field names does not exist.
func (s *Service) needSite(ctx context.Context, q db.Querier, field, name string, p *problems) error {
	if name == "" {
		return nil
	}
	_, err := s.Site(ctx, q, name)
	if errors.Is(err, db.ErrNotFound) {
		p.add(field, "there is no site %s; create it first", name)
		return nil
	}
	return err
}
