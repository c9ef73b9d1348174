package target

import (
	"context"
	"errors"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Whoever decides where a stored secret is sent can have it sent to a host of
// his own. Attaching one to an account, and changing where such an account's
// target is, which host key or certificate it is known by, or where a web
// session puts it, therefore needs secrets:manage besides targets:manage.

// mayPlaceSecret refuses a caller without secrets:manage anywhere.
func mayPlaceSecret(ctx context.Context) error {
	if !api.Sees(ctx, api.SecretsManage).Nowhere() {
		return nil
	}
	return needsSecrets()
}

func needsSecrets() error {
	return api.Denied("needs_secrets_manage", "A stored secret is sent to this target. Deciding where a secret goes needs the permission secrets:manage.")
}

// mayUseSecret refuses to let an account of a target log in with a secret that
// the caller may not manage.
func (s *Service) mayUseSecret(ctx context.Context, q db.Querier, t *Target, secretID string) error {
	links, err := s.secretLink(ctx, q, secretID, "secret")
	if err != nil {
		return err
	}
	return t.guarded().Administer(ctx, t.Group, t.Group, links...)
}

// mayRedirect refuses a caller who may not manage every stored secret that an
// account of the target uses.
func (s *Service) mayRedirect(ctx context.Context, q db.Querier, targetID string) error {
	if api.PrincipalFrom(ctx).Can(api.SecretsManage) {
		return nil
	}
	accounts, err := s.Accounts(ctx, q, targetID)
	if err != nil {
		return err
	}
	for _, a := range accounts {
		if a.SecretID == "" {
			continue
		}
		g, err := s.c.Secrets.SecretGroup(ctx, q, a.SecretID)
		if err != nil && !errors.Is(err, db.ErrNotFound) {
			return err
		}
		if !api.Sees(ctx, api.SecretsManage).Has(g) {
			return needsSecrets()
		}
	}
	return nil
}

// redirects reports whether b may be another host than a, one known by other
// keys, or one that is sent its secrets in another way.
func redirects(a, b *Target) bool {
	return a.FullAddress() != b.FullAddress() || a.HostKeyPolicy != b.HostKeyPolicy || a.HostKeyCA != b.HostKeyCA ||
		a.Web.sends() != b.Web.sends()
}
