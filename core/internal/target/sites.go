package target

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
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

// Sites returns at most limit sites after the name after, ordered by name.
func (s *Service) Sites(ctx context.Context, q db.Querier, after string, limit int) ([]Site, error) {
	sites, err := collect(ctx, q, scanSite, sqlSites, after, limit)
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
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error { return s.insertSite(ctx, tx, &site) })
	if errors.Is(err, db.ErrConflict) {
		return nil, api.Conflict("name_taken", "There is a site "+site.Name+" already.")
	}
	if err != nil {
		return nil, err
	}
	return &site, nil
}

func (s *Service) insertSite(ctx context.Context, tx *db.Tx, site *Site) error {
	site.ID, site.CreatedAt, site.Version = newID("site_"), s.now(), 1
	if _, err := tx.ExecContext(ctx, sqlSiteInsert, site.ID, site.Name, site.Comment, micros(site.CreatedAt)); err != nil {
		return fmt.Errorf("create site %s: %w", site.Name, db.Classify(err))
	}
	return s.wrote(ctx, tx, audit.Event{Type: audit.SiteCreated, Object: site.object()}, TopicSite, site.Name)
}

// EnsureSite makes a site if there is none of the name, and tells whether it did.
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
	return true, s.insertSite(ctx, tx, &site)
}

func (s *Site) object() audit.Object { return audit.Object{Kind: "site", ID: s.ID, Name: s.Name} }

// UpdateSite changes the comment of a site.
func (s *Service) UpdateSite(ctx context.Context, name, comment string, match Match) (*Site, error) {
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
		if err := match.check(site.Version); err != nil {
			return err
		}
		if err := exactly(tx.ExecContext(ctx, sqlSiteUpdate, comment, name, site.Version)); err != nil {
			return fmt.Errorf("update site %s: %w", name, err)
		}
		site.Comment = comment
		site.Version++
		return s.wrote(ctx, tx, audit.Event{Type: audit.SiteChanged, Object: site.object()}, TopicSite, name)
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
		if err := match.check(site.Version); err != nil {
			return err
		}
		uses, err := s.siteUses(ctx, tx, name)
		if err != nil {
			return err
		}
		if len(uses) > 0 {
			return api.Conflict("site_in_use", "Site "+name+" is in use by "+strings.Join(uses, ", ")+". Move or delete these first.")
		}
		if _, err := tx.ExecContext(ctx, sqlSiteDelete, name); err != nil {
			return fmt.Errorf("delete site %s: %w", name, err)
		}
		return s.wrote(ctx, tx, audit.Event{Type: audit.SiteDeleted, Object: site.object()}, TopicSite, name)
	})
}

func (s *Service) siteUses(ctx context.Context, q db.Querier, name string) ([]string, error) {
	uses, err := collect(ctx, q, func(r rowScanner) (string, error) {
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

// needSite adds a problem when the site does not exist.
func (s *Service) needSite(ctx context.Context, q db.Querier, name string, p *problems) error {
	if name == "" {
		return nil
	}
	_, err := s.Site(ctx, q, name)
	if errors.Is(err, db.ErrNotFound) {
		p.add("site", "there is no site %s; create it first", name)
		return nil
	}
	return err
}
