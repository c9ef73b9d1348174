// Package vault keeps secrets at rest: every value is sealed with a data key
// of its own (AES-256-GCM, bound to table, column and row), data keys are
// wrapped by a root key, and root keys by the key-encryption key (KEK), which
// comes from a file or the environment and never touches the database.
// Rotating the KEK re-wraps keys and rewrites no value.
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Place binds a sealed value to where it is stored: it opens nowhere else.
type Place struct{ Table, Column, Row string }

// Config is what a Vault needs.
type Config struct {
	DB    *db.DB       // migrated. Required.
	Audit *audit.Log   // Required.
	Log   *slog.Logger // Required.
	// KEK wraps every key. Required: see LoadKEK.
	KEK KEK
	// Previous are KEKs that may still wrap keys; New re-wraps those under KEK.
	Previous []KEK
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Roles tells which roles a user holds now; the user room is the real one.
type Roles interface {
	RoleIDs(ctx context.Context, userID string) ([]string, error)
	// RoleGroup is the access group of a role; db.ErrNotFound for an unknown one.
	RoleGroup(ctx context.Context, q db.Querier, id string) (string, error)
}

// Vault seals and opens values, and keeps named and personal secrets. Safe
// for concurrent use.
type Vault struct {
	db    *db.DB
	audit *audit.Log
	log   *slog.Logger
	now   func() time.Time

	mu   sync.RWMutex
	kek  KEK               // guarded by mu
	keys map[string][]byte // by name, opened; guarded by mu
	// root is the ID of the root key that wraps new data keys. Guarded by mu.
	root rootID
}

// SealedError means that the vault cannot open: its keys are wrapped under a
// KEK core was not given.
type SealedError struct {
	Want string   // ID of the KEK that is needed
	Have []string // IDs of those given
}

// Error says which key is needed, by ID.
func (e *SealedError) Error() string {
	return fmt.Sprintf("the vault is sealed: its keys are wrapped under key-encryption key %s, and core was given %s; "+
		"give it the one it needs (vault.kek_file), and use caponier-core vault rotate to change it", e.Want, strings.Join(e.Have, ", "))
}

// New opens the vault, making its first keys on an empty database. It fails
// with a *SealedError when the KEK is not the one the keys are wrapped under
// and none of the previous ones either; keys under a previous one are wrapped
// anew, so that naming the former KEK as previous rotates to the new one.
func New(ctx context.Context, c Config) (*Vault, error) {
	if c.DB == nil || c.Audit == nil || c.Log == nil || c.KEK.id == "" {
		return nil, errors.New("vault: DB, Audit, Log and KEK are required")
	}
	v := &Vault{db: c.DB, audit: c.Audit, log: c.Log, now: c.Now, kek: c.KEK}
	if v.now == nil {
		v.now = time.Now
	}
	rewrapped := 0
	err := v.db.Tx(ctx, func(tx *db.Tx) error {
		rewrapped = 0
		if err := tx.Lock(ctx, lockName); err != nil {
			return err
		}
		rows, err := readKeys(ctx, tx)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			if err := v.setState(ctx, tx, c.KEK); err != nil {
				return err
			}
			_, _, err := v.addRoot(ctx, tx, c.KEK)
			return err
		}
		rewrapped, err = v.rewrapKeys(ctx, tx, rows, c.KEK, append([]KEK{c.KEK}, c.Previous...))
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := v.load(ctx); err != nil {
		return nil, err
	}
	if rewrapped > 0 {
		v.log.LogAttrs(ctx, slog.LevelInfo, "key-encryption key rotated", slog.String("kek", c.KEK.id), slog.Int("keys", rewrapped))
	}
	return v, nil
}

// KEKID tells which KEK is in use.
func (v *Vault) KEKID() string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.kek.id
}
