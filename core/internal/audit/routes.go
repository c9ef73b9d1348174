package audit

import (
	"context"
	"net/http"
	"time"

	"caponier/core/internal/api"
)

// FilterIn are the query parameters that make a Filter.
type FilterIn struct {
	Type       string    `query:"type" maxLength:"64" doc:"a type, or a room with a trailing dot: login."`
	Outcome    string    `query:"outcome" enum:"ok,denied,failed"`
	Actor      string    `query:"actor" maxLength:"100"`
	ObjectKind string    `query:"object_kind" maxLength:"64"`
	Object     string    `query:"object" maxLength:"100"`
	Connection string    `query:"connection" maxLength:"100"`
	About      string    `query:"about" maxLength:"100" doc:"a user who acted or was acted on"`
	Since      time.Time `query:"since"`
	Until      time.Time `query:"until"`
}

func (in FilterIn) filter() Filter {
	return Filter{
		Type: in.Type, Outcome: Outcome(in.Outcome), ActorID: in.Actor, ObjectKind: in.ObjectKind, ObjectID: in.Object,
		Connection: in.Connection, About: in.About, Since: in.Since, Until: in.Until,
	}
}

type listIn struct {
	api.PageIn
	FilterIn
}

type listOut struct{ Body api.Page[Entry] }

type verifyOut struct{ Body Report }

type typesOut struct{ Body []TypeNumber }

// TypeNumber is a type of event with its stable number.
type TypeNumber struct {
	Type   Type   `json:"type"`
	Number uint32 `json:"number"`
}

// Routes registers the room's operations. headFile is the Keeper's.
func (l *Log) Routes(f *api.Frame, keys Keys, headFile string) {
	api.Register(f, api.Op{
		Method: "GET", Path: "/audit-events", ID: "list-audit-events", Tag: "audit-events", Who: api.NeedsSomewhere(api.AuditView),
		Summary: "Audit events, newest first",
	}, func(ctx context.Context, in *listIn) (*listOut, error) {
		var before int64
		if err := api.DecodeCursor(in.Cursor, &before); err != nil {
			return nil, err
		}
		rows, err := l.Find(ctx, l.db, in.filter().Within(api.Sees(ctx, api.AuditView)), before, in.Limit+1)
		if err != nil {
			return nil, err
		}
		return &listOut{api.Paged(rows, in.Limit, func(e Entry) any { return e.Seq })}, nil
	})

	api.Register(f, api.Op{
		Method: "GET", Path: "/audit-events/types", ID: "list-audit-types", Tag: "audit-events", Who: api.NeedsSomewhere(api.AuditView),
		Summary: "The types of audit events with their stable numbers",
	}, func(context.Context, *struct{}) (*typesOut, error) { return &typesOut{Types()}, nil })

	api.Register(f, api.Op{
		Method: "GET", Path: "/audit-events/verify", ID: "verify-audit-events", Tag: "audit-events", Who: api.Needs(api.AuditView),
		Summary: "Verify the hash chain and its signed heads",
	}, func(ctx context.Context, _ *struct{}) (*verifyOut, error) {
		report, err := l.Verify(ctx, keys, headFile)
		if err != nil {
			return nil, err
		}
		return &verifyOut{report}, l.noteVerified(ctx, report)
	})

	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/audit-events/verification", ID: "watch-audit-verification", Tag: "audit-events", Who: api.Needs(api.AuditView), Type: "application/jsonl",
		Summary: "Verify as /audit-events/verify does, however long it takes: lines {events, total} on the way, {report} as the last; without it the verification was broken off",
	}, func(w http.ResponseWriter, r *http.Request) { l.serveVerification(f, keys, headFile, w, r) })

	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/audit-events/export", ID: "export-audit-events", Tag: "audit-events", Who: api.NeedsSomewhere(api.AuditView), Type: "application/jsonl",
		Summary: "Events after a seq as JSON lines, or format=csv, oldest first; filters as in the list; go on from the last seq received",
	}, func(w http.ResponseWriter, r *http.Request) { l.export(f, w, r) })
}
