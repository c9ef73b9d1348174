package user

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Credentials of one login attempt. Exactly one of Password and Key is set.
type Credentials struct {
	Name     string
	Password string
	Code     string // TOTP or recovery code, when asked for
	Key      ssh.PublicKey
	Source   netip.Addr
	Via      string // front door, for the audit log
}

// ErrBadCredentials is every refusal that would tell an attacker which part
// was wrong: unknown user, wrong password, wrong code, disabled account.
var ErrBadCredentials = errors.New("name or credentials are not right")

// ErrNeedCode asks for the second factor: the rest was right.
var ErrNeedCode = errors.New("a second factor is needed")

// LimitError refuses an attempt because too many have failed before.
type LimitError struct{ RetryAfter time.Duration }

// Error implements error.
func (e *LimitError) Error() string { return "too many failed logins" }

// tokenPrefix starts every API token and OAuth access token.
const tokenPrefix = "cap_"

// Login checks credentials.
func (s *Service) Login(ctx context.Context, c Credentials) (*api.Principal, error) {
	panic("contract")
}

// AcceptsKey reports whether Login would take the key.
func (s *Service) AcceptsKey(ctx context.Context, name string, key ssh.PublicKey, source netip.Addr) (bool, error) {
	panic("contract")
}

// Subject returns the user as the decision sees him, fresh from q. mfa comes
// from the principal. It fails with db.ErrNotFound for an unknown user.
func (s *Service) Subject(ctx context.Context, q db.Querier, userID string, mfa bool) (access.Subject, error) {
	panic("contract")
}

// StillValid reports whether the login behind p is still good: user enabled,
// session or token not revoked, expired or idle.
func (s *Service) StillValid(ctx context.Context, p *api.Principal) error { panic("contract") }

// MarkFirstUse starts a floating membership of the user in the role.
func (s *Service) MarkFirstUse(ctx context.Context, userID, roleID string, at time.Time) error {
	panic("contract")
}
