// Package user keeps people and what proves who they are: accounts,
// passwords (argon2id), second factors, SSH keys, API tokens, delegated API
// clients, console sessions, and roles with their members. It limits login
// attempts. It decides nothing about targets: see access and policy.
package user

import (
	"context"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// User is one person's account.
type User struct {
	ID          string
	Name        string // login name, unique, [a-z0-9._-]{1,64}
	DisplayName string
	Email       string
	Disabled    bool
	TOTP        bool // a second factor is enrolled
	CreatedAt   time.Time
	LastLogin   time.Time
	Version     int64 // for ETag
}

// Role groups users. Permissions are administrative rights; access to targets
// comes from grants that name the role.
type Role struct {
	ID          string
	Name        string
	Comment     string
	Permissions []api.Permission
	Version     int64
}

// Service is the room's entry. Safe for concurrent use.
type Service struct{}

// Credentials of one login attempt. Exactly one of Password and Key is set.
type Credentials struct {
	Name     string
	Password string
	Code     string // TOTP, when asked for
	Key      ssh.PublicKey
	Source   netip.Addr
	Via      string // front door, for the audit log
}

// Sentinels of Login. Users are shown ErrBadCredentials for everything that
// would tell an attacker which part was wrong.
// ErrNeedCode asks for the second factor; ErrLimited is a *LimitError.
//
// (Declared by the owner of this room in login.go:
//  ErrBadCredentials, ErrNeedCode, type LimitError struct{ RetryAfter time.Duration }.)

// Login checks credentials, applies login limits, and audits the attempt. A
// password may also be an API token of the same user (for command-line tools).
// Key checks that the key belongs to the user (a registered key, or a user
// certificate of our own CA with the user's name as principal); the caller has
// verified possession.
func (s *Service) Login(ctx context.Context, c Credentials) (*api.Principal, error) {
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
