package audit

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
)

// exportPage is how many events an export reads at once; exportDeadline is how
// long the reader may take for one of them.
const (
	exportPage     = 500
	exportDeadline = 30 * time.Second
)

func (l *Log) noteVerified(ctx context.Context, report Report) error {
	outcome := OK
	if !report.OK {
		outcome = Failed
	}
	return l.Write(ctx, Event{
		Type: AuditVerified, Outcome: outcome, Actor: By(api.PrincipalFrom(ctx)), Object: Object{Kind: "audit"},
		Fields: map[string]string{"events": strconv.FormatInt(report.Events, 10), "findings": strconv.Itoa(len(report.Findings))},
	})
}

// Progress is a line of a verification that goes on, or its end.
type Progress struct {
	Events int64   `json:"events"`
	Total  int64   `json:"total"`
	Report *Report `json:"report,omitempty"`
}

// progressEvery bounds how often a reader hears of a verification.
const progressEvery = 250 * time.Millisecond

func (l *Log) serveVerification(f *api.Frame, keys Keys, headFile string, w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	var first, last int64
	if err := l.db.QueryRowContext(ctx, spanSQL).Scan(&first, &last); err != nil {
		f.Fail(w, r, fmt.Errorf("read audit log: %w", err))
		return
	}
	total := last - first + 1
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("X-Accel-Buffering", "no")
	rc := http.NewResponseController(w)
	defer rc.SetWriteDeadline(time.Time{})
	enc := json.NewEncoder(w)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tell := func(p Progress) {
		rc.SetWriteDeadline(time.Now().Add(exportDeadline))
		if enc.Encode(p) != nil || rc.Flush() != nil {
			cancel() // nobody reads any more
		}
	}
	tell(Progress{Total: total})
	told := time.Now()
	report, err := l.verify(ctx, keys, headFile, func(events int64) {
		if time.Since(told) >= progressEvery {
			told = time.Now()
			tell(Progress{Events: events, Total: total})
		}
	})
	if err == nil {
		err = l.noteVerified(ctx, report)
	}
	if err != nil {
		panic(http.ErrAbortHandler) // the headers are gone: the reader sees a cut stream
	}
	tell(Progress{Events: report.Events, Total: total, Report: &report})
}

const spanSQL = `select coalesce(min(seq), 1), coalesce(max(seq), 0) from audit_events`

// writer writes events in one of the forms of an export.
type writer interface {
	write(Entry) error
	flush() error
}

type jsonLines struct{ *json.Encoder }

func (j jsonLines) write(e Entry) error { return j.Encode(e) }
func (jsonLines) flush() error          { return nil }

var csvHeader = []string{"seq", "time", "type", "outcome", "actor_kind", "actor_id", "actor_name", "actor_source", "actor_via", "object_kind", "object_id", "object_name", "connection", "fields", "hash"}

type csvLines struct{ *csv.Writer }

func newCSV(w io.Writer) (csvLines, error) {
	c := csvLines{csv.NewWriter(w)}
	return c, c.Write(csvHeader)
}

func (c csvLines) write(e Entry) error {
	fields, err := fieldsText(e.Fields)
	if err != nil {
		return err
	}
	row := []string{strconv.FormatInt(e.Seq, 10), e.Time.UTC().Format(time.RFC3339Nano), string(e.Type), string(e.Outcome),
		e.Actor.Kind, e.Actor.ID, e.Actor.Name, e.Actor.Source, e.Actor.Via, e.Object.Kind, e.Object.ID, e.Object.Name, e.Connection, fields, e.Hash}
	for i, v := range row {
		row[i] = noFormula(v)
	}
	return c.Write(row)
}

func (c csvLines) flush() error {
	c.Flush()
	return c.Error()
}

// noFormula keeps a spreadsheet from running what a peer sent: a text that
// would be read as a formula gets an apostrophe in front.
func noFormula(v string) string {
	if v != "" && strings.ContainsRune("=+-@\t\r", rune(v[0])) {
		return "'" + v
	}
	return v
}

func (l *Log) export(f *api.Frame, w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	q, problem := readExport(r.URL.Query())
	if problem != nil {
		f.Fail(w, r, problem)
		return
	}
	q.filter = q.filter.Within(api.Sees(ctx, api.AuditView))
	err := l.Write(ctx, Event{
		Type: AuditExported, Outcome: OK, Actor: By(api.PrincipalFrom(ctx)), Object: Object{Kind: "audit"},
		Fields: map[string]string{"after": strconv.FormatInt(q.after, 10), "filter": q.text},
	})
	if err != nil {
		f.Fail(w, r, err)
		return
	}
	page, err := l.After(ctx, l.db, q.filter, q.after, exportPage)
	if err != nil {
		f.Fail(w, r, err)
		return
	}
	kind, suffix := "application/jsonl", "jsonl"
	if q.csv {
		kind, suffix = "text/csv; charset=utf-8; header=present", "csv"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Disposition", `attachment; filename="audit-`+l.now().UTC().Format("20060102-150405")+"."+suffix+`"`)
	rc := http.NewResponseController(w)
	defer rc.SetWriteDeadline(time.Time{})
	rc.SetWriteDeadline(time.Now().Add(exportDeadline))
	var out writer = jsonLines{json.NewEncoder(w)}
	if q.csv {
		if out, err = newCSV(w); err != nil {
			return
		}
	}
	for {
		rc.SetWriteDeadline(time.Now().Add(exportDeadline))
		for i := range page {
			if out.write(page[i]) != nil {
				return
			}
		}
		if out.flush() != nil || len(page) < exportPage {
			return
		}
		if page, err = l.After(ctx, l.db, q.filter, page[len(page)-1].Seq, exportPage); err != nil {
			// Headers are gone: cut the stream, so that the reader sees an
			// incomplete answer and goes on from the last seq it has.
			panic(http.ErrAbortHandler)
		}
	}
}

// exportQuery is what an export is asked for.
type exportQuery struct {
	after  int64
	filter Filter
	csv    bool
	text   string // the filter, for the log
}

func readExport(query url.Values) (q exportQuery, problem *api.Problem) {
	bad := func(name, text string) *api.Problem {
		return api.Invalid(api.FieldError{Field: "query." + name, Message: text})
	}
	var said []string
	for name, values := range query {
		v := values[0]
		if len(v) > 100 {
			return q, bad(name, "is too long")
		}
		var err error
		switch name {
		case "after":
			if q.after, err = strconv.ParseInt(v, 10, 64); err != nil || q.after < 0 {
				return q, bad(name, "must be the seq of an event, or 0")
			}
			continue
		case "format":
			if q.csv = v == "csv"; !q.csv && v != "jsonl" {
				return q, bad(name, "must be jsonl or csv")
			}
			continue
		case "type":
			q.filter.Type = v
		case "outcome":
			if q.filter.Outcome = Outcome(v); !slices.Contains([]Outcome{OK, Denied, Failed}, q.filter.Outcome) {
				return q, bad(name, "must be ok, denied or failed")
			}
		case "actor":
			q.filter.ActorID = v
		case "object_kind":
			q.filter.ObjectKind = v
		case "object":
			q.filter.ObjectID = v
		case "connection":
			q.filter.Connection = v
		case "about":
			q.filter.About = v
		case "since":
			if q.filter.Since, err = time.Parse(time.RFC3339, v); err != nil {
				return q, bad(name, "must be a time such as 2026-01-31T08:00:00Z")
			}
		case "until":
			if q.filter.Until, err = time.Parse(time.RFC3339, v); err != nil {
				return q, bad(name, "must be a time such as 2026-01-31T08:00:00Z")
			}
		default:
			return q, bad(name, "unknown query parameter")
		}
		said = append(said, name+"="+v)
	}
	slices.Sort(said)
	q.text = strings.Join(said, " ")
	return q, nil
}
