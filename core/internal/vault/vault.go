// Package vault keeps secrets at rest: every value is sealed with a data key
// of its own (AES-256-GCM, bound to table, column and row), and data keys are
// wrapped by the key-encryption key (KEK), which comes from a file or the
// environment and never touches the database. Rotating the KEK re-wraps data
// keys and rewrites no value.
package vault

import (
	"context"

	"caponier/core/internal/db"
)

// Place binds a sealed value to where it is stored: it opens nowhere else.
type Place struct{ Table, Column, Row string }

// Vault seals and opens values, and keeps named and personal secrets.
type Vault struct{ db *db.DB }

// Seal encrypts plaintext for its place. The result carries its wrapped data key.
func (v *Vault) Seal(p Place, plaintext []byte) ([]byte, error) { panic("contract") }

// Open decrypts what Seal made for the same place. The error says nothing
// about the content.
func (v *Vault) Open(p Place, sealed []byte) ([]byte, error) { panic("contract") }

// Reveal opens the current version of a stored secret for one use by core
// itself (never for a user), and audits the use. The caller zeroes the result.
func (v *Vault) Reveal(ctx context.Context, secretID, purpose, connectionID string) ([]byte, error) {
	panic("contract")
}
