package user

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"caponier/core/internal/api"
)

// ErrSignedOut: the login behind a request that is still under way is over.
var ErrSignedOut = errors.New("signed out")

// Again asks whether the login behind a request that is still under way, such as
// a websocket's, is good: ErrSignedOut when it is not, another error when that
// cannot be said now. What its user did since he was last asked about (active)
// counts as use of the login; looking on does not.
func Again(ctx context.Context, auth api.Authenticator, r *http.Request, source netip.Addr, active bool) (*api.Principal, error) {
	again := r.Clone(ctx)
	again.Header.Del(BackgroundHeader)
	if !active {
		again.Header.Set(BackgroundHeader, "true")
	}
	p, err := auth.Authenticate(again, source)
	first := api.PrincipalFrom(r.Context())
	if _, refused := errors.AsType[*api.Problem](err); refused || err == nil && (p == nil || p.UserID != first.UserID) {
		return nil, ErrSignedOut
	}
	return p, err
}
