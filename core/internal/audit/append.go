package audit

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"caponier/core/internal/access"
	"caponier/core/internal/db"
)

// Bounds of an event: how many fields, and how long any text may be, in bytes.
const (
	maxFields = 32
	maxText   = 1000
)

// chainLock serialises appends on PostgreSQL.
const chainLock = "audit chain"

// Append writes e in tx: it is there if and only if what it describes is. Call
// it late in the transaction: from here to the commit no other transaction
// can append, which keeps the chain without gaps and in commit order.
func (l *Log) Append(ctx context.Context, tx *db.Tx, e Event) error {
	if e.Type.Number() == 0 {
		return fmt.Errorf("append audit event: type %q has no number", e.Type)
	}
	r := row{ID: "aud_" + strings.ToLower(rand.Text()[:20]), Event: bounded(e)}
	if err := r.place(ctx, tx); err != nil {
		return fmt.Errorf("append audit event: %w", err)
	}
	r.Time = l.now().UTC().Truncate(1000)
	rand.Read(r.actorSalt[:])
	rand.Read(r.detailSalt[:])
	if err := tx.Lock(ctx, chainLock); err != nil {
		return fmt.Errorf("append audit event: %w", err)
	}
	seq, prev, err := tail(ctx, tx)
	if err != nil {
		return fmt.Errorf("append audit event: %w", err)
	}
	r.Seq, r.prev = seq+1, prev
	r.seal()
	if err := insert(ctx, tx, &r); err != nil {
		return fmt.Errorf("append audit event: %w", err)
	}
	if r.Group != "" {
		l.mu.Lock()
		l.groups[r.Group] = true
		l.mu.Unlock()
	}
	select {
	case l.news <- struct{}{}:
	default:
	}
	if l.appended.Add(1)%headEvery == 0 {
		select {
		case l.due <- struct{}{}:
		default:
		}
	}
	return nil
}

// fieldGroup keeps the access group of an event among its fields, so that the
// column that filters read cannot be changed unnoticed.
const fieldGroup = "group"

// place fills in the group of an event about a connection or target whose room
// did not say it, and notes it.
func (r *row) place(ctx context.Context, q db.Querier) error {
	lookup := func(query string, args ...any) error {
		err := db.Classify(q.QueryRowContext(ctx, query, args...).Scan(&r.Group))
		if err != nil && !errors.Is(err, db.ErrNotFound) {
			return fmt.Errorf("read access group: %w", err)
		}
		return nil
	}
	if r.Group == "" && r.Connection != "" {
		if err := lookup(connectionGroupSQL, r.Connection); err != nil {
			return err
		}
	}
	if r.Group == "" && r.Object.Kind == "target" {
		if err := lookup(targetGroupSQL, r.Object.ID, r.Object.Name); err != nil {
			return err
		}
	}
	if r.Group == "" || r.Group == access.DefaultGroup {
		return nil
	}
	fields := maps.Clone(r.Fields)
	if fields == nil {
		fields = map[string]string{}
	}
	fields[fieldGroup] = r.Group
	r.Fields = fields
	return nil
}

// placed reports whether the group that filters read is the one that was
// noted when the event was written.
func (r *row) placed() bool {
	if r.detailErased {
		return true
	}
	noted := r.Fields[fieldGroup]
	return r.Group == noted || noted == "" && r.Group == access.DefaultGroup
}

// tail returns the last event's place in the chain; 0 and the zero hash before
// the first.
func tail(ctx context.Context, q db.Querier) (seq int64, hash digest, err error) {
	var b []byte
	err = q.QueryRowContext(ctx, tailSQL).Scan(&seq, &b)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, digest{}, nil
	}
	if err != nil {
		return 0, digest{}, fmt.Errorf("read tail: %w", err)
	}
	if len(b) != len(hash) {
		return 0, digest{}, fmt.Errorf("read tail: hash of event %d has %d bytes", seq, len(b))
	}
	return seq, digest(b), nil
}

// bounded cuts what is too long and drops what is too much, so that no caller
// can make the log grow by what a peer sent.
func bounded(e Event) Event {
	for _, s := range []*string{
		&e.Actor.Kind, &e.Actor.ID, &e.Actor.Name, &e.Actor.Source, &e.Actor.Via,
		&e.Object.Kind, &e.Object.ID, &e.Object.Name, &e.Connection, &e.Group, (*string)(&e.Outcome),
	} {
		*s = cut(*s)
	}
	if e.Outcome == "" {
		e.Outcome = OK
	}
	if len(e.Fields) > 0 {
		fields := map[string]string{}
		for _, k := range slices.Sorted(maps.Keys(e.Fields)) {
			if len(fields) == maxFields {
				break
			}
			fields[cut(k)] = cut(e.Fields[k])
		}
		e.Fields = fields
	}
	return e
}

// cut bounds a text and makes it valid UTF-8 without NUL, as both engines want it.
func cut(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	return strings.ReplaceAll(s, "\x00", "\uFFFD")
}

// fieldsText is the stored form of the fields: JSON with sorted keys.
func fieldsText(fields map[string]string) (string, error) {
	if len(fields) == 0 {
		return "", nil
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return "", fmt.Errorf("encode fields: %w", err)
	}
	return string(b), nil
}
