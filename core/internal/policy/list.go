package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/target"
)

// Entry is one (target, account) a user may use now.
type Entry struct {
	Target              target.Target
	Account             string
	Features            access.Features
	Record              bool
	NeedMFA, NeedReason bool
}

// maxList bounds one listing, in targets.
const maxList = 1000

// List returns what the principal may reach now, ordered by target name then
// account: the entries of at most limit targets after the target name after,
// whose name or host contains search. A target is never cut in the middle, so
// that the last entry's target name is the cursor of the next page.
func (s *Service) List(ctx context.Context, p *api.Principal, source netip.Addr, search, after string, limit int) ([]Entry, error) {
	entries, _, err := s.list(ctx, p, source, target.Reach{Search: search}, after, limit)
	return entries, err
}

// list also tells whether there may be more after the last entry.
func (s *Service) list(ctx context.Context, p *api.Principal, source netip.Addr, by target.Reach, after string, limit int) (entries []Entry, more bool, err error) {
	if p == nil {
		return nil, false, errors.New("list targets: nobody asks")
	}
	limit = max(1, min(limit, maxList))
	err = s.c.DB.View(ctx, func(tx *db.Tx) error {
		sub, err := s.c.Users.Subject(ctx, tx, p.UserID, p.MFA)
		if err != nil {
			return err
		}
		entries, more, err = s.reach(ctx, tx, &sub, source, by, after, limit)
		return err
	})
	if errors.Is(err, db.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list targets: %w", err)
	}
	return entries, more, nil
}

// reach lists for a subject in one snapshot.
func (s *Service) reach(ctx context.Context, q db.Querier, sub *access.Subject, source netip.Addr, by target.Reach, after string, limit int) ([]Entry, bool, error) {
	now := s.c.Now()
	names := s.standing(sub, source, now)
	if sub.Disabled || sub.Locked || len(names) == 0 {
		return nil, false, nil
	}
	grants, err := s.c.Targets.GrantsOfRoles(ctx, q, names)
	if err != nil {
		return nil, false, err
	}
	index := indexGrants(grants)
	var entries []Entry
	for targets := 0; ; {
		// What is left out by the decision is made up for by the next rows.
		found, accounts, err := s.c.Targets.Reachable(ctx, q, names, by, after, limit+1)
		if err != nil {
			return nil, false, err
		}
		for i := range found {
			if targets == limit {
				return entries, true, nil
			}
			t := &found[i]
			n := len(entries)
			entries = s.offers(entries, t, accounts[t.ID], access.Request{
				Subject: *sub, Target: shown(t), Mask: t.Kind.Features(), Source: source, Now: now, Grants: index.of(t), Zones: &s.zones})
			if len(entries) > n {
				targets++
			}
			after = t.Name
		}
		if len(found) <= limit {
			return entries, false, nil
		}
	}
}

// standing are the roles whose membership holds now, from there.
func (s *Service) standing(sub *access.Subject, source netip.Addr, now time.Time) []string {
	var names []string
	for i := range sub.Memberships {
		m := &sub.Memberships[i]
		if ok, _ := m.Holds(now, source, &s.zones); ok {
			names = append(names, m.Role)
		}
	}
	return names
}

// offers appends what one target offers.
func (s *Service) offers(entries []Entry, t *target.Target, accounts []target.Account, r access.Request) []Entry {
	if t.Disabled {
		return entries
	}
	if !t.Kind.HasAccounts() || open(t, accounts) {
		return appendOffer(entries, t, "", r)
	}
	for i := range accounts {
		if !accounts[i].Disabled {
			entries = appendOffer(entries, t, accounts[i].Name, limited(r, &accounts[i]))
		}
	}
	return entries
}

func appendOffer(entries []Entry, t *target.Target, account string, r access.Request) []Entry {
	o := access.Survey(r)
	if o.Features == 0 {
		return entries
	}
	return append(entries, Entry{Target: *t, Account: account, Features: o.Features, Record: o.Record,
		NeedMFA: o.NeedMFA, NeedReason: o.NeedReason})
}

// grantIndex finds the grants of a target without reading them again.
type grantIndex struct{ byTarget, byTag map[string][]access.Grant }

func indexGrants(grants []access.Grant) grantIndex {
	x := grantIndex{byTarget: map[string][]access.Grant{}, byTag: map[string][]access.Grant{}}
	for _, g := range grants {
		if g.Tag != "" {
			x.byTag[g.Tag] = append(x.byTag[g.Tag], g)
		} else {
			x.byTarget[g.Target] = append(x.byTarget[g.Target], g)
		}
	}
	return x
}

func (x grantIndex) of(t *target.Target) []access.Grant {
	own := x.byTarget[t.ID]
	for _, tag := range t.Tags {
		if more := x.byTag[tag]; len(more) > 0 {
			own = append(own[:len(own):len(own)], more...)
		}
	}
	return own
}
