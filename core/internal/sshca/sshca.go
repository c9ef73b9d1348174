// Package sshca is the SSH certificate authority: it signs user certificates
// for targets (per connection, minutes valid, key in memory only), user
// certificates for people's own clients, and host certificates for core's
// bastion and for hosts that register (E13). Its keys live in the vault.
//
// Each purpose has an authority of its own, so that a certificate made for a
// target can never log in to the bastion, and none of them stands for a host.
package sshca

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
)

// Purpose is what an authority signs for.
type Purpose string

// The purposes.
const (
	ForTargets Purpose = "target" // core's logins on targets: TrustedUserCAKeys
	ForClients Purpose = "client" // people's logins at the bastion
	ForHosts   Purpose = "host"   // host keys: @cert-authority in known_hosts
)

// Config is what a CA needs. All are required but Now.
type Config struct {
	DB    *db.DB
	Vault *vault.Vault
	Audit *audit.Log
	Log   *slog.Logger
	Now   func() time.Time // nil means time.Now
}

// CA signs. Safe for concurrent use.
type CA struct{}

// New opens the authorities, making their first keys on an empty database.
func New(ctx context.Context, c Config) (*CA, error) { panic("contract") }

// Routes registers the room's operations.
func (c *CA) Routes(f *api.Frame) { panic("contract") }

// UserRequest describes a certificate for one login on a target.
type UserRequest struct {
	KeyID      string // "user@connection", shows in the target's log
	Principals []string
	TTL        time.Duration // at most 10 minutes; starts 2 minutes back for clock skew
	// Source pins source-address when not empty (comma separated CIDRs).
	Source string
}

// TargetSigner makes a fresh Ed25519 key, signs it and returns the signer;
// nothing is written anywhere. The serial is in the certificate.
func (c *CA) TargetSigner(ctx context.Context, r UserRequest) (ssh.Signer, *ssh.Certificate, error) {
	panic("contract")
}

// PublicKey is the target authority's keys for TrustedUserCAKeys, one
// authorized_keys line each.
func (c *CA) PublicKey(ctx context.Context) (string, error) { panic("contract") }

// SignClient signs a person's public key for logins at the bastion, at most 12
// hours, and audits it. The principal is the user's name.
func (c *CA) SignClient(ctx context.Context, p *api.Principal, key ssh.PublicKey, ttl time.Duration) (*ssh.Certificate, error) {
	panic("contract")
}

// VerifyClient checks a certificate presented at the bastion: signed by a live
// client authority, in its time, for this user name, from this source address
// (critical option), not revoked.
func (c *CA) VerifyClient(ctx context.Context, cert *ssh.Certificate, userName, source string) error {
	panic("contract")
}

// SignHost signs a host's public key for its names, at most 365 days, and audits it.
func (c *CA) SignHost(ctx context.Context, key ssh.PublicKey, names []string, ttl time.Duration, by audit.Actor) (*ssh.Certificate, error) {
	panic("contract")
}

// HostSigner returns the bastion's own host key, made and sealed on first use,
// with a host certificate for names: the certified signer and the plain one.
func (c *CA) HostSigner(ctx context.Context, names []string) (certified, plain ssh.Signer, err error) {
	panic("contract")
}

// Algorithms returns what to offer a target: the defaults, changed by the
// first matching rule of the installation and then by the target's own text.
func (c *CA) Algorithms(ctx context.Context, site, host, targetRule string) (Algorithms, error) {
	panic("contract")
}
