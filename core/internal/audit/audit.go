// Package audit keeps the record of what happened: typed events, written in
// the transaction they describe, chained by hash and signed at the head, so
// that a missing or edited row is found (see Verify).
package audit

import (
	"context"
	"time"

	"caponier/core/internal/db"
)

// Outcome of what an event describes.
type Outcome string

// The outcomes.
const (
	OK     Outcome = "ok"
	Denied Outcome = "denied"
	Failed Outcome = "failed"
)

// Type names a kind of event, "room.verb": "connection.opened". The types are
// constants declared in types.go with a stable number each (FEATURES R10, R14).
type Type string

// Actor is who did it.
type Actor struct {
	Kind string `json:"kind"` // user, edge, system, anonymous
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
	// Source is the network address it came from.
	Source string `json:"source,omitempty"`
	// Via is the front door: api, bastion, socks, tunnel, cli.
	Via string `json:"via,omitempty"`
}

// System is the actor of what core does by itself.
var System = Actor{Kind: "system"}

// Object is what it was done to.
type Object struct {
	Kind string `json:"kind"` // user, role, target, edge, connection, …
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
}

// Event is one entry. Fields hold short machine-readable facts (reason codes,
// old and new values, sizes), never secrets and never prose; values are cut
// at 1,000 bytes and 32 keys.
type Event struct {
	Type    Type              `json:"type"`
	Outcome Outcome           `json:"outcome"`
	Actor   Actor             `json:"actor"`
	Object  Object            `json:"object"`
	Fields  map[string]string `json:"fields,omitempty"`
	// Connection is the connection it belongs to, if any.
	Connection string `json:"connection,omitempty"`
	// Time is set by Append.
	Time time.Time `json:"time"`
}

// Signer signs chain heads (Ed25519).
type Signer interface {
	Sign(message []byte) (keyID string, signature []byte, err error)
}

// Log writes and reads the audit log.
type Log struct {
	db  *db.DB
	now func() time.Time
}

// New makes the log on a migrated database.
func New(d *db.DB, now func() time.Time) *Log { return &Log{db: d, now: now} }

// Append writes e in tx: it is there if and only if what it describes is.
func (l *Log) Append(ctx context.Context, tx *db.Tx, e Event) error { panic("contract") }

// Write appends e in a transaction of its own, for what changes no row
// (a refused login, an opened file).
func (l *Log) Write(ctx context.Context, e Event) error {
	return l.db.Tx(ctx, func(tx *db.Tx) error { return l.Append(ctx, tx, e) })
}
