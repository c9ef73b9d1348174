package target

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Config is what the room needs. DB, Audit, Roles and Secrets are mandatory.
type Config struct {
	DB    *db.DB
	Audit *audit.Log
	// Roles tells whether a role named by a grant exists.
	Roles Roles
	// Secrets tells whether a secret named by an account exists.
	Secrets Secrets
	// SiteUses are rooms that refer to sites; a site in use is not deleted.
	SiteUses []SiteUser
	Now      func() time.Time // nil = time.Now
	Log      *slog.Logger     // nil = discarded
}

// Roles is what the room needs to know of roles.
type Roles interface {
	// RoleName fails with db.ErrNotFound for an unknown role.
	RoleName(ctx context.Context, q db.Querier, id string) (string, error)
}

// Secrets is what the room needs to know of the vault: never a value.
type Secrets interface {
	// SecretExists fails with db.ErrNotFound for an unknown secret.
	SecretExists(ctx context.Context, q db.Querier, id string) error
}

// SiteUser is a room that refers to sites by name.
type SiteUser interface {
	// SiteUses names what uses the site ("extender edge-1"), at most 10.
	SiteUses(ctx context.Context, q db.Querier, site string) ([]string, error)
}

// Service is the room's entry. Safe for concurrent use.
type Service struct{ c Config }

// ErrHostKeyChanged: the target presented another key than the accepted ones
// and must not be used until an administrator accepts it.
var ErrHostKeyChanged = errors.New("host key of the target changed")

// New makes the room on a migrated database.
func New(c Config) (*Service, error) { panic("contract") }

// Routes registers /sites, /targets and /grants.
func (s *Service) Routes(f *api.Frame) { panic("contract") }

// Resolve finds a target by name, by ID, or by address ("site/host[:port]" or
// "host[:port]"). db.ErrNotFound when there is none.
func (s *Service) Resolve(ctx context.Context, q db.Querier, ref string) (*Target, error) {
	panic("contract")
}

// Get returns a target by ID.
func (s *Service) Get(ctx context.Context, q db.Querier, id string) (*Target, error) {
	panic("contract")
}

// Accounts returns the accounts of a target ordered by name.
func (s *Service) Accounts(ctx context.Context, q db.Querier, targetID string) ([]Account, error) {
	panic("contract")
}

// Grants returns all grants that name the target or one of its tags.
func (s *Service) Grants(ctx context.Context, q db.Querier, t *Target) ([]access.Grant, error) {
	panic("contract")
}

// HostKeys returns the accepted host keys of a target.
func (s *Service) HostKeys(ctx context.Context, targetID string) ([]HostKey, error) {
	panic("contract")
}

// SawHostKey records a key presented by a target. With policy TOFU and no key
// on file it is accepted; a different key than the accepted ones is filed as
// pending and ErrHostKeyChanged returned.
func (s *Service) SawHostKey(ctx context.Context, targetID string, k HostKey) error {
	panic("contract")
}

// Host is what a host says of itself when it registers through its site's
// extender (FEATURES E13).
type Host struct {
	Site      string
	Name      string
	Address   string
	Port      int
	MachineID string
	HostKeys  []string // authorized_keys form
	Accounts  []string // logins that accept our certificates
	Token     string   // ID of the deployment token
}

// RegisterHost creates or updates the SSH target of a host, found again by
// site and machine ID: accounts with certificate login, host keys accepted
// and pinned. The same data twice changes nothing.
func (s *Service) RegisterHost(ctx context.Context, tx *db.Tx, h Host) (targetID string, changed bool, err error) {
	panic("contract")
}
