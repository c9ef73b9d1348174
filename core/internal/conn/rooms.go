package conn

import (
	"context"
	"errors"
	"math"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// What the rooms above have in common, whose sessions are connections: of web
// targets, of network targets, of ports.

// Refused is an answer against a session. Code is stable, Public for the
// user's eyes, Status the HTTP status that fits: 403, 404, 409 or 503.
type Refused struct {
	Status int
	Code   string
	Public string
}

// Error implements error.
func (e *Refused) Error() string { return e.Public }

// Problem puts what keeps a session from being opened into the caller's words.
// what is what is missing when the status is 404.
func Problem(err error, what string) error {
	if r, ok := errors.AsType[*Refused](err); ok {
		switch r.Status {
		case 404:
			return &api.Problem{Status: 404, Title: "There is no such " + what + ".", Detail: r.Public, Code: r.Code}
		case 409:
			return api.Conflict(r.Code, r.Public)
		case 503:
			return api.Unavailable(r.Code, r.Public)
		}
		return api.Denied(r.Code, r.Public)
	}
	if l, ok := errors.AsType[*LimitError](err); ok {
		return api.Unavailable("connection_limit", l.Public)
	}
	if b, ok := errors.AsType[*BlockedError](err); ok {
		return api.Denied("locked", b.Public)
	}
	if errors.Is(err, ErrDraining) {
		return api.Unavailable("draining", "This core is shutting down.")
	}
	return err
}

// SessionsIn asks for the sessions of a room, newest first.
type SessionsIn struct {
	api.PageIn
	All    bool   `query:"all" doc:"also sessions that have ended"`
	Target string `query:"target" maxLength:"64" doc:"id or name"`
	Mine   bool   `query:"mine" doc:"only your own"`
}

// Position is where a page of a list goes on that is sorted by time, newest
// first.
type Position struct {
	At int64  `json:"a"` // Unix microseconds
	ID string `json:"i"`
}

// ReadPosition reads a cursor; none is the beginning.
func ReadPosition(cursor string) (Position, error) {
	at := Position{At: math.MaxInt64}
	return at, api.DecodeCursor(cursor, &at)
}

// Args are the arguments of a room's statement that lists sessions: $1 the
// caller, $2 1 = ended ones, too, $3 target or empty, $4 and $5 time of opening
// and ID to go on after, $6 how many, $7 whose others he sees.
func (in *SessionsIn) Args(ctx context.Context) ([]any, error) {
	p := api.PrincipalFrom(ctx)
	scope := p.Scope(api.ConnectionsView)
	if in.Mine {
		scope = access.Scope{}
	}
	after, err := ReadPosition(in.Cursor)
	if err != nil {
		return nil, err
	}
	ended := 0
	if in.All {
		ended = 1
	}
	return []any{p.UserID, ended, in.Target, after.At, after.ID, in.Limit + 1, scope.Text()}, nil
}

// NewestPage makes a page of what a statement returned; at tells the time and
// the ID of an item.
func NewestPage[T any](xs []T, limit int, at func(T) (time.Time, string)) api.Page[T] {
	return api.Paged(xs, limit, func(x T) any {
		t, id := at(x)
		return Position{At: t.UnixMicro(), ID: id}
	})
}

// Close ends a session because its owner, or an administrator, asks for it.
func (m *Manager) Close(ctx context.Context, id string, own bool) error {
	text := "You closed the session."
	if !own {
		text = "An administrator closed the session."
	}
	return Over(m.Terminate(ctx, id, api.PrincipalFrom(ctx), text))
}

// Over tells of a session that could not be ended because it has ended.
func Over(err error) error {
	if errors.Is(err, db.ErrConflict) {
		return api.Conflict("ended", "The session has ended already.")
	}
	return err
}
