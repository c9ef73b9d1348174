// Package sshca is the SSH certificate authority: it signs user certificates
// for targets (per connection, minutes valid, key in memory only), user
// certificates for people's own clients, and host certificates for core's
// bastion and for hosts that register (E13). Its keys live in the vault.
package sshca

import (
	"context"
	"time"

	"golang.org/x/crypto/ssh"
)

// CA signs. Safe for concurrent use.
type CA struct{}

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

// PublicKey is the CA's key for TrustedUserCAKeys, in authorized_keys form.
func (c *CA) PublicKey(ctx context.Context) (string, error) { panic("contract") }
