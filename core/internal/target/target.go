// Package target keeps what can be reached: sites, targets, their accounts
// and the grants that open them to roles. Data and validation only; the
// decision is in access, put together in policy.
package target

import (
	"context"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/db"
)

// Kind of a target.
type Kind string

// The kinds. Network is reserved for the router, Web for the carrier.
const (
	SSH     Kind = "ssh"
	TCP     Kind = "tcp"
	Web     Kind = "web"
	Network Kind = "network"
)

// Site is an address space reached through a group of extenders. Its name
// prefixes addresses: site/host:port.
type Site struct {
	ID      string
	Name    string // [a-z0-9-]{1,63}
	Comment string
	Version int64
}

// HostKeyPolicy says how a target's SSH host key is trusted.
type HostKeyPolicy string

// The policies. The default is TOFU.
const (
	HostKeyTOFU   HostKeyPolicy = "tofu"   // first key seen is pinned
	HostKeyPinned HostKeyPolicy = "pinned" // only keys an administrator accepted
	HostKeyCA     HostKeyPolicy = "ca"     // host certificates of a given CA key
)

// Target is something a user may reach.
type Target struct {
	ID       string
	Name     string // unique, [a-z0-9._-]{1,64}
	Kind     Kind
	Site     string // site name; empty = dialled by core itself
	Host     string // name or address as the site knows it
	Port     int
	Comment  string
	Tags     []string
	Disabled bool

	HostKeyPolicy HostKeyPolicy
	// HostKeyCA is an authorized_keys line; only with policy ca.
	HostKeyCA string
	// SSHAlgorithms overrides the offered algorithms for old hosts; see sshca.Algorithms.
	SSHAlgorithms string

	CreatedAt time.Time
	Version   int64
}

// Auth is how an account logs in to its target.
type Auth string

// The ways.
const (
	AuthCertificate Auth = "certificate" // just-in-time certificate of our CA
	AuthPassword    Auth = "password"    // stored secret
	AuthKey         Auth = "key"         // stored private key
	AuthAsk         Auth = "ask"         // the user is asked for the password
)

// Account is a login on a target.
type Account struct {
	ID       string
	TargetID string
	Name     string // login on the target, e.g. root
	Auth     Auth
	SecretID string // for password and key: a secret in the vault
	Disabled bool
	Version  int64
}

// HostKey is a host key seen on, or accepted for, a target.
type HostKey struct {
	TargetID    string
	Algorithm   string
	Key         string // authorized_keys form
	Fingerprint string // SHA256:…
	State       string // accepted, pending (changed key waiting for an administrator), rejected
	SeenAt      time.Time
}

// Service is the room's entry. Safe for concurrent use.
type Service struct{}

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
// pending and ErrHostKeyChanged returned (declared by the owner of this room).
func (s *Service) SawHostKey(ctx context.Context, targetID string, k HostKey) error {
	panic("contract")
}
