// Package sshca is the SSH certificate authority: it signs user certificates
// for targets (per connection, minutes valid, key in memory only), user
// certificates for people's own clients, and host certificates for core's
// bastion and for hosts that register (E13). Its keys live in the vault.
//
// Each purpose has an authority of its own, so that a certificate made for a
// target can never log in to the bastion, and none of them stands for a host.
// That for targets exists once in every access group: what it signs for the
// targets of one group logs in nowhere else.
package sshca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"caponier/core/internal/access"
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

func (p Purpose) known() bool { return p == ForTargets || p == ForClients || p == ForHosts }

// Config is what a CA needs.
type Config struct {
	DB    *db.DB       // migrated. Required.
	Vault *vault.Vault // Required.
	Audit *audit.Log   // Required.
	Log   *slog.Logger // Required.
	Now   func() time.Time
	// Bastion (host:port) and Separator are shown to people's tools.
	Bastion   string
	Separator func() string // nil: none is shown
}

// CA signs. Safe for concurrent use. It holds no key in memory between calls.
type CA struct{ c Config }

// New opens the authorities, making their first keys on an empty database.
func New(ctx context.Context, c Config) (*CA, error) {
	if c.DB == nil || c.Vault == nil || c.Audit == nil || c.Log == nil {
		return nil, errors.New("sshca: DB, Vault, Audit and Log are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	ca := &CA{c}
	err := c.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := tx.Lock(ctx, lockName); err != nil {
			return err
		}
		for _, p := range []Purpose{ForTargets, ForClients, ForHosts} {
			keys, err := readKeys(ctx, tx, p, access.DefaultGroup)
			if err != nil {
				return err
			}
			if len(keys) == 0 {
				if _, err := ca.addKey(ctx, tx, p, access.DefaultGroup, 1, Active, audit.System); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open ssh authority: %w", err)
	}
	return ca, nil
}
