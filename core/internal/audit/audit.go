// Package audit keeps the record of what happened: typed events, written in
// the transaction they describe, chained by hash and signed at the head, so
// that a missing or edited row is found (see Verify).
package audit

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"caponier/core/internal/api"
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
	// Group is the access group whose auditors see the event; empty = that of
	// the connection or target, or none: then only auditors of everything do. A group
	// other than the default one is kept among Fields too, where the chain
	// covers it.
	Group string `json:"group,omitempty"`
	// Time is set by Append.
	Time time.Time `json:"time"`
}

// Keys sign chain heads and check signatures of present and past keys; the
// vault's Ed25519 keys are the real ones.
type Keys interface {
	Sign(message []byte) (keyID string, signature []byte, err error)
	Verify(keyID string, message, signature []byte) bool
}

// Log writes and reads the audit log. Safe for concurrent use.
type Log struct {
	db  *db.DB
	now func() time.Time
	// appended counts events since the last signed head; due wakes Run.
	appended atomic.Int64
	due      chan struct{}
	// news tells Run that something was appended.
	news chan struct{}
	// mu guards groups: the access groups of what was appended since the last
	// news. There are as many as an administrator made.
	mu     sync.Mutex
	groups map[string]bool
}

// New makes the log on a migrated database; now nil means time.Now.
func New(d *db.DB, now func() time.Time) *Log {
	if now == nil {
		now = time.Now
	}
	return &Log{db: d, now: now, due: make(chan struct{}, 1), news: make(chan struct{}, 1), groups: map[string]bool{}}
}

// Write appends e in a transaction of its own, for what changes no row
// (a refused login, an opened file).
func (l *Log) Write(ctx context.Context, e Event) error {
	return l.db.Tx(ctx, func(tx *db.Tx) error { return l.Append(ctx, tx, e) })
}

// By makes the actor of an API or front-door caller.
func By(p *api.Principal) Actor {
	if p == nil {
		return Actor{Kind: "anonymous"}
	}
	a := Actor{Kind: "user", ID: p.UserID, Name: p.UserName, Via: p.Via}
	if p.Source.IsValid() {
		a.Source = p.Source.String()
	}
	return a
}
