package target

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/group"
)

// Filter selects targets; empty fields select all.
type Filter struct {
	Prefix string // of the name
	Search string // anywhere in name or host
	Site   string
	Kind   Kind
	Tag    string
	Group  string
	// In are the access groups to look in.
	In access.Scope
}

// List returns at most limit targets after the name after, ordered by name.
func (s *Service) List(ctx context.Context, q db.Querier, f Filter, after string, limit int) ([]Target, error) {
	ts, err := db.Collect(ctx, q, scanTarget, sqlTargets,
		after, f.Prefix, contains(f.Search), f.Site, string(f.Kind), f.Tag, f.In.Text(), f.Group, limit)
	if err != nil {
		return nil, fmt.Errorf("read targets: %w", err)
	}
	return ts, nil
}

// placeNew gives a new target its access group when none is said: that of its
// site, else as api.PlaceNew.
func (s *Service) placeNew(ctx context.Context, q db.Querier, t *Target) error {
	if t.Group == "" && t.Site != "" {
		g, err := s.siteGroup(ctx, q, t.Site)
		if err != nil {
			return err
		}
		if api.PrincipalFrom(ctx) == nil || api.Sees(ctx, api.TargetsManage).Has(g) {
			t.Group = g
		}
	}
	var err error
	t.Group, err = api.PlaceNew(ctx, api.TargetsManage, t.Group)
	return err
}

// Create adds a target with its accounts.
func (s *Service) Create(ctx context.Context, t Target, accounts []Account) (*Target, error) {
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		var p problems
		t.validate(&p)
		if err := s.validateAccounts(ctx, tx, &t, accounts, &p); err != nil {
			return err
		}
		if err := s.checkStored(ctx, tx, &t, &p); err != nil {
			return err
		}
		if err := p.err(); err != nil {
			return err
		}
		if err := s.placeNew(ctx, tx, &t); err != nil {
			return err
		}
		if err := s.mayPlace(ctx, tx, nil, &t, accounts); err != nil {
			return err
		}
		return s.insert(ctx, tx, &t, accounts, audit.TargetCreated, actor(ctx))
	})
	if errors.Is(err, db.ErrConflict) {
		return nil, nameTaken(t.Name)
	}
	if err != nil {
		return nil, err
	}
	return &t, nil
}

// checkStored checks what a target refers to.
func (s *Service) checkStored(ctx context.Context, q db.Querier, t *Target, p *problems) error {
	if t.SSHAlgorithms != "" && s.c.CheckAlgorithms != nil {
		if err := s.c.CheckAlgorithms(t.SSHAlgorithms); err != nil {
			p.add("ssh_algorithms", "%s", err)
		}
	}
	if t.Web != nil {
		for i, r := range t.Web.Policy.Allow {
			if r.Site == webDirect {
				continue
			}
			if err := s.needSite(ctx, q, fmt.Sprintf("web.policy.allow[%d].site", i), r.Site, p); err != nil {
				return err
			}
		}
	}
	return s.needSite(ctx, q, "site", t.Site, p)
}

func nameTaken(name string) error {
	return api.Conflict("name_taken", "There is a target "+name+" already.")
}

// insert writes a validated target and its accounts.
func (s *Service) insert(ctx context.Context, tx *db.Tx, t *Target, accounts []Account, event audit.Type, by audit.Actor) error {
	if err := group.Check(ctx, tx, t.Group); err != nil {
		return err
	}
	now := s.now()
	t.ID, t.CreatedAt, t.UpdatedAt, t.Version = db.NewID(idPrefix), now, now, 1
	if err := insertRows(ctx, tx, sqlTargetInsert, [][]any{t.row()}); err != nil {
		return fmt.Errorf("create target %s: %w", t.Name, db.Classify(err))
	}
	if err := s.writeTags(ctx, tx, t); err != nil {
		return err
	}
	names := make([]string, len(accounts))
	rows := make([][]any, len(accounts))
	for i := range accounts {
		a := &accounts[i]
		a.ID, a.TargetID, a.Version = db.NewID("acc_"), t.ID, 1
		names[i], rows[i] = a.Name, a.row(now)
	}
	if err := insertRows(ctx, tx, sqlAccountInsert, rows); err != nil {
		return fmt.Errorf("create accounts of %s: %w", t.Name, db.Classify(err))
	}
	e := audit.Event{Type: event, Actor: by, Object: t.object(), Fields: t.facts()}
	e.Fields["accounts"] = strings.Join(names, ",")
	return s.wrote(ctx, tx, e, TopicTarget, t.ID, t.Group)
}

// facts are what the audit log keeps of a target's state.
func (t *Target) facts() map[string]string {
	f := map[string]string{"kind": string(t.Kind), "address": t.FullAddress(), "tags": strings.Join(t.Tags, ",")}
	if t.Disabled {
		f["disabled"] = "true"
	}
	if t.HostKeyPolicy != "" {
		f["host_key_policy"] = string(t.HostKeyPolicy)
	}
	if t.Origin != "" {
		f["origin"] = t.Origin
	}
	if t.Comment != "" {
		f["comment"] = cutText(t.Comment, 500)
	}
	if t.Network != nil {
		t.Network.facts(f)
	}
	if t.Web != nil {
		t.Web.facts(f)
	}
	return f
}

func (s *Service) writeTags(ctx context.Context, tx *db.Tx, t *Target) error {
	rows := make([][]any, len(t.Tags))
	for i, tag := range t.Tags {
		rows[i] = []any{tag, t.ID}
	}
	if err := insertRows(ctx, tx, sqlTagInsert, rows); err != nil {
		return fmt.Errorf("write tags of %s: %w", t.Name, err)
	}
	return nil
}

// Update replaces what an administrator may change of a target.
func (s *Service) Update(ctx context.Context, id string, match Match, change func(*Target)) (*Target, error) {
	var t *Target
	err := s.c.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if t, err = s.Get(ctx, tx, id); err != nil {
			return err
		}
		if err := match.check(t.Version); err != nil {
			return err
		}
		old := *t
		if err := old.guarded().See(ctx, old.Group); err != nil {
			return err
		}
		change(t)
		if t.Group == "" {
			t.Group = old.Group
		}
		t.ID, t.MachineID, t.Origin, t.CreatedAt, t.Version = old.ID, old.MachineID, old.Origin, old.CreatedAt, old.Version
		var p problems
		t.validate(&p)
		if t.Kind != old.Kind {
			p.add("kind", "a target keeps its kind; delete it and make another")
		}
		if err := s.checkStored(ctx, tx, t, &p); err != nil {
			return err
		}
		if err := p.err(); err != nil {
			return err
		}
		if err := s.mayPlace(ctx, tx, &old, t, nil); err != nil {
			return err
		}
		if redirects(&old, t) {
			if err := s.mayRedirect(ctx, tx, t.ID); err != nil {
				return err
			}
		}
		return s.update(ctx, tx, &old, t, audit.TargetChanged, actor(ctx))
	})
	if errors.Is(err, db.ErrConflict) && t != nil {
		return nil, nameTaken(t.Name)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// update writes a validated target over its old state.
func (s *Service) update(ctx context.Context, tx *db.Tx, old, t *Target, event audit.Type, by audit.Actor) error {
	if err := group.Check(ctx, tx, t.Group); err != nil {
		return err
	}
	t.UpdatedAt = s.now()
	err := exactly(tx.ExecContext(ctx, sqlTargetUpdate, t.Name, string(t.Kind), nullable(t.Site), t.Host, t.Port, t.Comment,
		tagsJSON(t.Tags), t.Disabled, t.MachineID, string(t.HostKeyPolicy), t.HostKeyCA, t.SSHAlgorithms, t.networkJSON(), t.webJSON(), t.Group,
		micros(t.UpdatedAt), t.ID, old.Version))
	if err != nil {
		return fmt.Errorf("update target %s: %w", t.ID, err)
	}
	t.Version = old.Version + 1
	if tagsJSON(old.Tags) != tagsJSON(t.Tags) {
		if _, err := tx.ExecContext(ctx, sqlTagsDelete, t.ID); err != nil {
			return fmt.Errorf("write tags of %s: %w", t.ID, err)
		}
		if err := s.writeTags(ctx, tx, t); err != nil {
			return err
		}
	}
	e := audit.Event{Type: event, Actor: by, Object: t.object(), Fields: t.facts()}
	for k, v := range old.facts() {
		if e.Fields[k] != v {
			e.Fields["old_"+k] = v
		}
	}
	if t.Network != nil {
		networkDiff(e.Fields, old.Network, t.Network)
	}
	maps.Copy(e.Fields, moved(old.Group, t.Group))
	return s.wrote(ctx, tx, e, TopicTarget, t.ID, t.Group, old.Group)
}

// Delete removes a target with its accounts, host keys and grants.
func (s *Service) Delete(ctx context.Context, id string, match Match) error {
	return s.c.DB.Tx(ctx, func(tx *db.Tx) error {
		t, err := s.Get(ctx, tx, id)
		if err != nil {
			return err
		}
		if err := t.guarded().Administer(ctx, t.Group, ""); err != nil {
			return err
		}
		if err := match.check(t.Version); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, sqlTargetDelete, id); err != nil {
			return fmt.Errorf("delete target %s: %w", id, err)
		}
		return s.wrote(ctx, tx, audit.Event{Type: audit.TargetDeleted, Object: t.object(), Fields: t.facts()}, TopicTarget, id, t.Group)
	})
}

// validateAccounts checks accounts given together with their target.
func (s *Service) validateAccounts(ctx context.Context, q db.Querier, t *Target, accounts []Account, p *problems) error {
	if len(accounts) > 0 && !t.Kind.HasAccounts() {
		p.add("accounts", "targets of kind %s have no accounts", t.Kind)
		return nil
	}
	if len(accounts) > maxAccounts {
		p.add("accounts", "at most %d accounts", maxAccounts)
		return nil
	}
	seen := map[string]bool{}
	for i := range accounts {
		field := fmt.Sprintf("accounts[%d].", i)
		if err := s.validateAccount(ctx, q, t, &accounts[i], field, p); err != nil {
			return err
		}
		if seen[accounts[i].Name] {
			p.add(field+"name", "is there twice")
		}
		seen[accounts[i].Name] = true
	}
	return nil
}

// validateAccount checks one account; it may use what the target's kind knows
// (all of it, when nothing is said) and its secret must exist.
func (s *Service) validateAccount(ctx context.Context, q db.Querier, t *Target, a *Account, field string, p *problems) error {
	if a.Features == 0 {
		a.Features = t.Kind.Features()
	}
	if t.Kind == Web {
		a.webAuth(p, field)
	}
	a.validate(p, field)
	if extra := a.Features &^ t.Kind.Features() & access.AllFeatures; extra != 0 {
		p.add(field+"features", "%s makes no sense for a target of kind %s", extra, t.Kind)
	}
	if a.SecretID == "" {
		return nil
	}
	err := s.c.Secrets.SecretExists(ctx, q, a.SecretID)
	if errors.Is(err, db.ErrNotFound) {
		p.add(field+"secret", "there is no such secret")
		return nil
	}
	return err
}
