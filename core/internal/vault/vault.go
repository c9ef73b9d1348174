// Package vault keeps secrets at rest: every value is sealed with a data key
// of its own (AES-256-GCM, bound to table, column and row), data keys are
// wrapped by a root key, and root keys by the key-encryption key (KEK), which
// comes from a file or the environment and never touches the database.
// Rotating the KEK re-wraps keys and rewrites no value.
package vault

import (
	"context"
	"log/slog"
	"time"

	"caponier/core/internal/api"
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
}

// Routes registers the room's operations.
func (v *Vault) Routes(f *api.Frame, roles Roles) { panic("contract") }

// Vault seals and opens values, and keeps named and personal secrets. Safe
// for concurrent use.
type Vault struct{ db *db.DB }

// New opens the vault, making its first keys on an empty database. It fails
// with a *SealedError when the KEK is not the one the keys are wrapped under.
func New(ctx context.Context, c Config) (*Vault, error) { panic("contract") }

// Seal encrypts plaintext for its place. The result carries its wrapped data key.
func (v *Vault) Seal(p Place, plaintext []byte) ([]byte, error) { panic("contract") }

// Open decrypts what Seal made for the same place. The error says nothing
// about the content.
func (v *Vault) Open(p Place, sealed []byte) ([]byte, error) { panic("contract") }

// DataKey makes a 32-byte key for bulk data and its sealed form to store at p.
func (v *Vault) DataKey(p Place) (key, sealed []byte, err error) { panic("contract") }

// OpenDataKey opens what DataKey sealed.
func (v *Vault) OpenDataKey(p Place, sealed []byte) ([]byte, error) { panic("contract") }

// Key returns the named 32-byte key, making and sealing it on first use.
func (v *Vault) Key(ctx context.Context, name string) ([]byte, error) { panic("contract") }

// Signer returns the named Ed25519 signing key (it satisfies audit.Keys),
// making it on first use.
func (v *Vault) Signer(ctx context.Context, name string) (*Signer, error) { panic("contract") }

// Signer signs with a named key.
type Signer struct{}

// Reveal opens the current version of a stored secret for one use by core
// itself (never for a user), and audits the use. The caller zeroes the result.
// For kinds password and key it is the bare value, for json the document.
func (v *Vault) Reveal(ctx context.Context, secretID, purpose, connectionID string) ([]byte, error) {
	panic("contract")
}
