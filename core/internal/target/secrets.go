package target

import (
	"context"
	"slices"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Whoever decides where a stored secret is sent can have it sent to a host of
// his own. Attaching one to an account, and changing where such an account's
// target is, which host key or certificate it is known by, or where a web
// session puts it, therefore needs secrets:manage besides targets:manage.

// mayPlaceSecret refuses a caller without secrets:manage.
func mayPlaceSecret(ctx context.Context) error {
	if api.PrincipalFrom(ctx).Can(api.SecretsManage) {
		return nil
	}
	return api.Denied("needs_secrets_manage", "A stored secret is sent to this target. Deciding where a secret goes needs the permission secrets:manage.")
}

// mayRedirect refuses a caller without secrets:manage when an account of the
// target uses a stored secret.
func (s *Service) mayRedirect(ctx context.Context, q db.Querier, targetID string) error {
	if api.PrincipalFrom(ctx).Can(api.SecretsManage) {
		return nil
	}
	accounts, err := s.Accounts(ctx, q, targetID)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(accounts, func(a Account) bool { return a.SecretID != "" }) {
		return mayPlaceSecret(ctx)
	}
	return nil
}

// redirects reports whether b may be another host than a, one known by other
// keys, or one that is sent its secrets in another way.
func redirects(a, b *Target) bool {
	return a.FullAddress() != b.FullAddress() || a.HostKeyPolicy != b.HostKeyPolicy || a.HostKeyCA != b.HostKeyCA ||
		a.Web.sends() != b.Web.sends()
}
