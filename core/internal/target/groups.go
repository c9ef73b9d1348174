package target

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Sites and targets are in access groups; accounts and host keys are in that
// of their target, a grant in that of its target, or of its role when it names
// a tag. Everything an administrator does here asks api.Guarded.
//
// A site is a network: whoever may place a target in it reaches that network.
// Placing one therefore needs the site's group too, and core's own network (no
// site) is of the default group.

func (t *Target) guarded() api.Guarded {
	return api.Guarded{Kind: "target", ID: t.ID, View: api.TargetsView, Manage: api.TargetsManage}
}

func (s *Site) guarded() api.Guarded {
	return api.Guarded{Kind: "site", ID: s.Name, View: api.TargetsView, Manage: api.TargetsManage}
}

func (g *Grant) guarded() api.Guarded {
	return api.Guarded{Kind: "grant", ID: g.ID, View: api.TargetsView, Manage: api.TargetsManage}
}

// AccessGroup is the access group a grant is in.
func (g *Grant) AccessGroup() string {
	if g.Target != "" {
		return g.targetGroup
	}
	return g.Group
}

// see finds a target by ID or name that exists for the caller.
func (s *Service) see(ctx context.Context, ref string) (*Target, error) {
	t, err := s.find(ctx, s.c.DB, ref)
	if errors.Is(err, db.ErrNotFound) {
		return nil, api.Missing("target", ref)
	}
	if err != nil {
		return nil, err
	}
	g := t.guarded()
	g.ID = ref
	return t, g.See(ctx, t.Group)
}

// change refuses who may not change a target that stays in its group.
func (t *Target) change(ctx context.Context) error {
	return t.guarded().Administer(ctx, t.Group, t.Group)
}

// seeSite finds a site that exists for the caller.
func (s *Service) seeSite(ctx context.Context, name string) (*Site, error) {
	site, err := s.Site(ctx, s.c.DB, name)
	if errors.Is(err, db.ErrNotFound) {
		return nil, api.Missing("site", name)
	}
	if err != nil {
		return nil, err
	}
	return site, site.guarded().See(ctx, site.Group)
}

// siteGroup is the access group of a site, or of core's own network.
func (s *Service) siteGroup(ctx context.Context, q db.Querier, name string) (string, error) {
	if name == "" {
		return access.DefaultGroup, nil
	}
	site, err := s.Site(ctx, q, name)
	if errors.Is(err, db.ErrNotFound) {
		return "", nil // a problem of its own
	}
	if err != nil {
		return "", err
	}
	return site.Group, nil
}

// siteLink is the link of a target to its site.
func (s *Service) siteLink(ctx context.Context, q db.Querier, name string) (api.Link, error) {
	g, err := s.siteGroup(ctx, q, name)
	text := "there is no site " + name + "; create it first"
	if name == "" {
		text = "name a site of your access groups: core's own network belongs to the default group"
	}
	return api.Link{Field: "site", Message: text, Permission: api.TargetsManage, Group: g}, err
}

// webLinks are the links of a web target besides its own site: the sites that
// its rules lead through, and what webproxies and carriers dial by themselves.
func (s *Service) webLinks(ctx context.Context, q db.Querier, w *WebSpec) ([]api.Link, error) {
	var links []api.Link
	asked := map[string]bool{"": true}
	for i, r := range w.Policy.Allow {
		if asked[r.Site] {
			continue
		}
		asked[r.Site] = true
		l := api.Link{Message: "only administrators of the default group may leave the site", Permission: api.TargetsManage, Group: access.DefaultGroup}
		if r.Site != webDirect {
			var err error
			if l, err = s.siteLink(ctx, q, r.Site); err != nil {
				return nil, err
			}
		}
		l.Field = fmt.Sprintf("web.policy.allow[%d].site", i)
		links = append(links, l)
	}
	if w.ScanURL != "" {
		links = append(links, api.Link{Field: "web.scan_url", Message: "only administrators of the default group may name a scanner",
			Permission: api.TargetsManage, Group: access.DefaultGroup})
	}
	return links, nil
}

// webDirect is the site of a web target's rule whose hosts the webproxy dials
// by itself.
const webDirect = "-"

// mayPlace refuses who may not put a target where it is to be: into its group,
// into its site, with the secrets its accounts name. from is empty for a new
// one; a target that stays where it is asks for its site no more.
func (s *Service) mayPlace(ctx context.Context, q db.Querier, old, t *Target, accounts []Account) error {
	from := ""
	var links []api.Link
	if old != nil {
		from = old.Group
	}
	p := api.PrincipalFrom(ctx)
	limited := p != nil && !p.Can(api.TargetsManage) // else the site's group is one of his
	if limited && (old == nil || old.Site != t.Site || old.FullAddress() != t.FullAddress() || old.networkJSON() != t.networkJSON() || old.webJSON() != t.webJSON()) {
		l, err := s.siteLink(ctx, q, t.Site)
		if err != nil {
			return err
		}
		links = append(links, l)
		if t.Web != nil {
			more, err := s.webLinks(ctx, q, t.Web)
			if err != nil {
				return err
			}
			links = append(links, more...)
		}
	}
	for i := range accounts {
		l, err := s.secretLink(ctx, q, accounts[i].SecretID, "accounts")
		if err != nil {
			return err
		}
		links = append(links, l...)
	}
	return t.guarded().Administer(ctx, from, t.Group, links...)
}

// secretLink is the link of an account to its secret, if it has one.
func (s *Service) secretLink(ctx context.Context, q db.Querier, secretID, field string) ([]api.Link, error) {
	if secretID == "" {
		return nil, nil
	}
	if err := mayPlaceSecret(ctx); err != nil {
		return nil, err
	}
	if api.Sees(ctx, api.SecretsManage).All() {
		return nil, nil // whatever group it is in
	}
	g, err := s.c.Secrets.SecretGroup(ctx, q, secretID)
	if errors.Is(err, db.ErrNotFound) {
		g, err = "", nil
	}
	return []api.Link{{Field: field, Message: "there is no such secret", Permission: api.SecretsManage, Group: g}}, err
}

// mayGrant refuses who may not make a grant what it is to be. Making or
// changing one needs both sides, its target's and its role's group; taking it
// away only the one it is in.
func (s *Service) mayGrant(ctx context.Context, from, g *Grant) error {
	if g == nil {
		return from.guarded().Administer(ctx, from.AccessGroup(), "")
	}
	was := ""
	if from != nil {
		was = from.AccessGroup()
	}
	links := []api.Link{{Field: "role", Message: noRole, Permission: api.TargetsManage, Group: g.Group}}
	if g.Target != "" {
		links = slices.Insert(links, 0, api.Link{Field: "target", Message: noTarget, Permission: api.TargetsManage, Group: g.targetGroup})
	}
	// The group of a grant is that of one of its sides: a side that is not the
	// caller's is answered as one that is not there.
	to := was
	if to == "" {
		to = g.AccessGroup()
		if p := api.PrincipalFrom(ctx); p != nil && !p.Scope(api.TargetsManage).Has(to) {
			return api.Invalid(api.FieldError{Field: links[0].Field, Message: links[0].Message})
		}
	}
	return g.guarded().Administer(ctx, was, to, links...)
}

const (
	noRole   = "there is no such role"
	noTarget = "there is no such target"
)
