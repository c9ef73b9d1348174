package audit

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"caponier/core/internal/api"
)

// exportPage is how many events an export reads at once; exportDeadline is how
// long the reader may take for one of them.
const (
	exportPage     = 500
	exportDeadline = 30 * time.Second
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
		Method: "GET", Path: "/audit-events", ID: "list-audit-events", Tag: "audit-events", Who: api.Needs(api.AuditView),
		Summary: "Audit events, newest first",
	}, func(ctx context.Context, in *listIn) (*listOut, error) {
		var before int64
		if err := api.DecodeCursor(in.Cursor, &before); err != nil {
			return nil, err
		}
		rows, err := l.Find(ctx, l.db, in.filter(), before, in.Limit+1)
		if err != nil {
			return nil, err
		}
		return &listOut{api.Paged(rows, in.Limit, func(e Entry) any { return e.Seq })}, nil
	})

	api.Register(f, api.Op{
		Method: "GET", Path: "/audit-events/types", ID: "list-audit-types", Tag: "audit-events", Who: api.Needs(api.AuditView),
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
		outcome := OK
		if !report.OK {
			outcome = Failed
		}
		err = l.Write(ctx, Event{
			Type: AuditVerified, Outcome: outcome, Actor: By(api.PrincipalFrom(ctx)), Object: Object{Kind: "audit"},
			Fields: map[string]string{"events": strconv.FormatInt(report.Events, 10), "findings": strconv.Itoa(len(report.Findings))},
		})
		return &verifyOut{report}, err
	})

	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/audit-events/export", ID: "export-audit-events", Tag: "audit-events", Who: api.Needs(api.AuditView), Type: "application/jsonl",
		Summary: "Events after a seq as JSON lines, oldest first; go on from the last seq received",
	}, func(w http.ResponseWriter, r *http.Request) { l.export(f, w, r) })
}

func (l *Log) export(f *api.Frame, w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	after, filter, problem := exportQuery(r)
	if problem != nil {
		f.Fail(w, r, problem)
		return
	}
	err := l.Write(ctx, Event{
		Type: AuditExported, Outcome: OK, Actor: By(api.PrincipalFrom(ctx)), Object: Object{Kind: "audit"},
		Fields: map[string]string{"after": strconv.FormatInt(after, 10)},
	})
	if err != nil {
		f.Fail(w, r, err)
		return
	}
	page, err := l.After(ctx, l.db, filter, after, exportPage)
	if err != nil {
		f.Fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	rc := http.NewResponseController(w)
	defer rc.SetWriteDeadline(time.Time{})
	enc := json.NewEncoder(w)
	for {
		rc.SetWriteDeadline(time.Now().Add(exportDeadline))
		for i := range page {
			if enc.Encode(page[i]) != nil {
				return
			}
		}
		if len(page) < exportPage {
			return
		}
		after = page[len(page)-1].Seq
		if page, err = l.After(ctx, l.db, filter, after, exportPage); err != nil {
			// Headers are gone: cut the stream, so that the reader sees an
			// incomplete answer and goes on from the last seq it has.
			panic(http.ErrAbortHandler)
		}
	}
}

// exportQuery reads the query of an export. Only what can be checked against
// the chain is offered: a start and a type.
func exportQuery(r *http.Request) (after int64, filter Filter, problem *api.Problem) {
	for name, values := range r.URL.Query() {
		v := values[0]
		switch name {
		case "after":
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil || n < 0 {
				return 0, Filter{}, api.Invalid(api.FieldError{Field: "query.after", Message: "must be the seq of an event, or 0"})
			}
			after = n
		case "type":
			filter.Type = v
		case "about":
			filter.About = v
		default:
			return 0, Filter{}, api.Invalid(api.FieldError{Field: "query." + name, Message: "unknown query parameter"})
		}
	}
	return after, filter, nil
}
