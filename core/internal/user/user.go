// Package user keeps people and what proves who they are: accounts,
// passwords (argon2id), second factors, SSH keys, API tokens, delegated API
// clients, console sessions, and roles with their members. It limits login
// attempts. It decides nothing about targets: see access and policy.
//
// Invariants:
//   - A password is stored only as an argon2id hash; tokens, cookies, client
//     secrets and recovery codes only as SHA-256 of 80 random bits or more; a
//     TOTP secret only sealed for its row.
//   - There are two ways in: Login, which checks what is presented, for every
//     front door; and Arrive, for what the room signin has checked (passkeys,
//     single sign-on, client certificates). What it tells a caller
//     and how long it takes do not depend on whether the user exists.
//   - Rights are read from the database at every request: taking one away acts
//     on the next request.
//   - The role administrator keeps at least one person who can log in.
package user

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
	"caponier/core/internal/vault"
)

// Kind tells people from programs.
type Kind string

// The kinds of user.
const (
	Person Kind = "person"
	Client Kind = "client" // a delegated API client: no password, no login but OAuth
)

// User is one person's account, or an API client's.
type User struct {
	ID          string
	Kind        Kind
	Name        string // login name, unique, [a-z0-9._-]{1,64}
	DisplayName string
	Email       string
	// Disabled is the state of someone who left; Locked suspends while
	// something is looked into. Both end everything the user has open.
	Disabled  bool
	Locked    bool
	TOTP      bool // a second factor is enrolled
	Password  bool // a password is set
	Passkeys  int  // WebAuthn credentials enrolled (see signin)
	CreatedAt time.Time
	LastLogin time.Time
	ErasedAt  time.Time
	// PasswordLockedUntil is set by too many failed password logins.
	PasswordLockedUntil time.Time
	Version             int64 // for ETag

	epoch int64 // rises on "sign out everywhere"
}

// Role groups users. Permissions are administrative rights; access to targets
// comes from grants that name the role.
type Role struct {
	ID          string
	Name        string
	Comment     string
	Permissions []api.Permission
	// Group is the access group the role belongs to.
	Group string
	// LimitedTo are the access groups the permissions hold in; none = everywhere.
	LimitedTo []string
	Builtin   bool
	Version   int64
}

// Right is a permission where it holds.
type Right struct {
	Permission api.Permission
	Scope      access.Scope
}

// scope is where the role's permissions hold.
func (r *Role) scope() access.Scope {
	if len(r.LimitedTo) == 0 {
		return access.Everywhere()
	}
	return access.Within(r.LimitedTo...)
}

func (r *Role) rights() []Right {
	out := make([]Right, len(r.Permissions))
	for i, p := range r.Permissions {
		out[i] = Right{p, r.scope()}
	}
	return out
}

func (r *Role) guarded() api.Guarded {
	return api.Guarded{Kind: "role", ID: r.ID, View: api.UsersView, Manage: api.UsersManage}
}

// AdministratorRole is the ID of the built-in role with every permission.
const AdministratorRole = "rol_administrator"

// Sealer keeps small secrets at rest; *vault.Vault is one.
type Sealer interface {
	Seal(p vault.Place, plaintext []byte) ([]byte, error)
	Open(p vault.Place, sealed []byte) ([]byte, error)
}

// MFA reports whether a second factor is enrolled, so that a password alone
// does not log in.
func (u *User) MFA() bool { return u.TOTP || u.Passkeys > 0 }

// CertAuthority checks SSH certificates of people's own clients: signed by the
// authority for people (not the one for logins on targets, whose principals
// are accounts), valid now and from source, naming the user; *sshca.CA is one.
type CertAuthority interface {
	VerifyClient(ctx context.Context, cert *ssh.Certificate, userName, source string) error
}

// Config is what a Service needs. DB, Audit, Sealer and Now are required.
type Config struct {
	DB     *db.DB
	Audit  *audit.Log
	Sealer Sealer
	Now    func() time.Time
	Log    *slog.Logger
	// Settings may be nil: every default.
	Settings *settings.Service
	// Authority may be nil: SSH certificates are refused.
	Authority CertAuthority
	// Issuer names this installation in authenticator apps; empty = "Caponier".
	Issuer string
}

// Service is the room's entry. Safe for concurrent use.
type Service struct {
	db        *db.DB
	audit     *audit.Log
	sealer    Sealer
	now       func() time.Time
	log       *slog.Logger
	settings  *settings.Service
	authority CertAuthority
	issuer    string

	hasher  *hasher
	limiter *limiter
}

// New makes the room on a migrated database.
func New(c Config) (*Service, error) {
	if c.DB == nil || c.Audit == nil || c.Sealer == nil || c.Now == nil {
		return nil, errors.New("user: DB, Audit, Sealer and Now are required")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Issuer == "" {
		c.Issuer = "Caponier"
	}
	return &Service{
		db: c.DB, audit: c.Audit, sealer: c.Sealer, now: c.Now, log: c.Log,
		settings: c.Settings, authority: c.Authority, issuer: c.Issuer,
		hasher:  newHasher(settings.LoginHashes.Get(c.Settings)),
		limiter: newLimiter(c.Now),
	}, nil
}
