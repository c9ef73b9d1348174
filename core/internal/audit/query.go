package audit

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/db"
)

// Entry is an event as it is read back.
type Entry struct {
	Seq int64  `json:"seq"`
	ID  string `json:"id"`
	// Number is the type's stable number.
	Number uint32 `json:"number"`
	Event
	// Erased says that texts were erased on a person's request.
	Erased bool   `json:"erased,omitempty"`
	Hash   string `json:"hash"` // hex
}

func (r *row) entry() Entry {
	return Entry{
		Seq: r.Seq, ID: r.ID, Number: r.Type.Number(), Event: r.Event,
		Erased: r.actorErased || r.detailErased, Hash: hex.EncodeToString(r.hash[:]),
	}
}

// Filter selects events; empty fields select all.
type Filter struct {
	Type       string // a type, or a room with a trailing dot: "login."
	Outcome    Outcome
	ActorID    string
	ObjectKind string
	ObjectID   string
	Connection string
	Since      time.Time // inclusive
	Until      time.Time // exclusive
	// About selects events where the user acted or was acted on.
	About string
	// within is set by Within; empty = events of all groups and of none.
	within string
}

// Within limits a filter to the events of a scope of access groups.
func (f Filter) Within(s access.Scope) Filter {
	f.within = s.Text()
	if f.within == "" {
		f.within = "," // nowhere
	}
	return f
}

// where renders the conditions; args start at $1.
func (f Filter) where() (string, []any) {
	conds, args := []string{"1 = 1"}, []any{}
	add := func(cond string, arg any) {
		args = append(args, arg)
		conds = append(conds, strings.ReplaceAll(cond, "?", fmt.Sprintf("$%d", len(args))))
	}
	switch {
	case strings.HasSuffix(f.Type, "."):
		// "/" follows "." in ASCII: the range holds exactly the room's types.
		add("type >= ?", f.Type)
		add("type < ?", strings.TrimSuffix(f.Type, ".")+"/")
	case f.Type != "":
		add("type = ?", f.Type)
	}
	if f.Outcome != "" {
		add("outcome = ?", string(f.Outcome))
	}
	if f.ActorID != "" {
		add("actor_id = ?", f.ActorID)
	}
	if f.ObjectKind != "" {
		add("object_kind = ?", f.ObjectKind)
	}
	if f.ObjectID != "" {
		add("object_id = ?", f.ObjectID)
	}
	if f.Connection != "" {
		add("connection_id = ?", f.Connection)
	}
	if f.About != "" {
		add("(actor_id = ? or object_id = ?)", f.About)
	}
	if f.within != "" && f.within != "*" {
		add("group_id <> '' and ? like '%,' || group_id || ',%'", f.within)
	}
	if !f.Since.IsZero() {
		add("at >= ?", f.Since.UnixMicro())
	}
	if !f.Until.IsZero() {
		add("at < ?", f.Until.UnixMicro())
	}
	return strings.Join(conds, " and "), args
}

// Find returns at most limit matching events before a seq, newest first; 0
// means from the end.
func (l *Log) Find(ctx context.Context, q db.Querier, f Filter, before int64, limit int) ([]Entry, error) {
	where, args := f.where()
	if before > 0 {
		args = append(args, before)
		where += fmt.Sprintf(" and seq < $%d", len(args))
	}
	args = append(args, limit)
	return entries(readRows(ctx, q, fmt.Sprintf(`select %s from audit_events where %s order by seq desc limit $%d`, columns, where, len(args)), args...))
}

// After returns at most limit matching events after a seq, oldest first. Read
// from the last seq on, it loses and repeats nothing: events become visible
// in the order of their seq.
func (l *Log) After(ctx context.Context, q db.Querier, f Filter, after int64, limit int) ([]Entry, error) {
	where, args := f.where()
	args = append(args, after, limit)
	return entries(readRows(ctx, q, fmt.Sprintf(`select %s from audit_events where %s and seq > $%d order by seq limit $%d`,
		columns, where, len(args)-1, len(args)), args...))
}

func entries(rows []row, err error) ([]Entry, error) {
	if err != nil {
		return nil, err
	}
	out := make([]Entry, len(rows))
	for i := range rows {
		out[i] = rows[i].entry()
	}
	return out, nil
}
