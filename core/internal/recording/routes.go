package recording

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Routes registers the room's operations.
func (s *Store) Routes(f *api.Frame) {
	const tag = "recordings"
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings", ID: "list-recordings", Tag: tag, Who: api.Self(),
		Summary: "List recordings, newest first",
	}, s.handleList)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/search", ID: "search-recordings", Tag: tag, Who: api.Self(),
		Summary: "Search the transcripts of recordings, newest first",
	}, s.handleSearchAll)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}", ID: "get-recording", Tag: tag, Who: api.Self(), Summary: "Show a recording",
	}, s.handleGet)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/asciicast", ID: "get-recording-asciicast", Tag: tag, Who: api.Self(), Type: "application/x-asciicast",
		Summary: "Download a recording as asciicast v2; the last line tells its integrity",
	}, func(w http.ResponseWriter, r *http.Request) { s.serveCast(f, w, r) })
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/events", ID: "list-recording-events", Tag: tag, Who: api.Self(),
		Summary: "List the events on a recording's timeline",
	}, s.handleEvents)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/search", ID: "search-recording", Tag: tag, Who: api.Self(),
		Summary: "Search one recording's transcript",
	}, s.handleSearch)
	api.Register(f, api.Op{
		Method: "POST", Path: "/recordings/{id}/verify", ID: "verify-recording", Tag: tag, Who: api.Self(), Status: 200,
		Summary: "Read a recording through and tell whether it is intact",
	}, s.handleVerify)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/roles", ID: "list-recording-roles", Tag: tag, Who: api.Needs(api.RecordingsView),
		Summary: "List the roles that may see a recording",
	}, s.handleRoles)
	api.Register(f, api.Op{
		Method: "PUT", Path: "/recordings/{id}/roles/{role}", ID: "share-recording", Tag: tag, Who: api.Needs(api.RecordingsView),
		Status: 204, Summary: "Let a role's members see a recording",
	}, s.handleShare)
	api.Register(f, api.Op{
		Method: "DELETE", Path: "/recordings/{id}/roles/{role}", ID: "unshare-recording", Tag: tag, Who: api.Needs(api.RecordingsView),
		Status: 204, Summary: "Take a recording back from a role",
	}, s.handleUnshare)
	api.Register(f, api.Op{
		Method: "GET", Path: "/recordings/{id}/files", ID: "list-recording-files", Tag: tag, Who: api.Self(),
		Summary: "List transferred files",
	}, s.handleFiles)
	api.Register(f, api.Op{
		Method: "POST", Path: "/recordings/{id}/files/{file}/ticket", ID: "create-recording-file-ticket", Tag: tag,
		Who: api.Needs(api.RecordingsView), Status: 201, Sensitive: true,
		Summary: "First step of a download: a ticket for one download within a minute",
	}, s.handleTicket)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/recording-files/{ticket}", ID: "get-recording-file", Tag: tag, Who: api.Needs(api.RecordingsView), Type: "application/octet-stream",
		Summary: "Second step: the file",
	}, func(w http.ResponseWriter, r *http.Request) { s.serveFile(f, w, r) })
}

// may reports whether p may see r: by permission, as the user recorded if the
// setting allows it, or by a role it is shared with.
func (s *Store) may(ctx context.Context, p *api.Principal, r *Recording) (bool, error) {
	if p.Can(api.RecordingsView) || r.UserID != "" && r.UserID == p.UserID && s.cfg.Limits().OwnView {
		return true, nil
	}
	if s.cfg.RolesOf == nil {
		return false, nil
	}
	shared, err := s.sharedRoles(ctx, r.ID)
	if err != nil || len(shared) == 0 {
		return false, err
	}
	has, err := s.cfg.RolesOf(ctx, p.UserID)
	if err != nil {
		return false, fmt.Errorf("read roles of %s: %w", p.UserID, err)
	}
	return slices.ContainsFunc(shared, func(x Share) bool { return slices.Contains(has, x.RoleID) }), nil
}

// visible returns a recording the caller may see; one he may not see is
// missing to him.
func (s *Store) visible(ctx context.Context, id string) (*Recording, *api.Principal, error) {
	p := api.PrincipalFrom(ctx)
	r, err := s.Get(ctx, s.cfg.DB, id)
	if errors.Is(err, db.ErrNotFound) {
		return nil, nil, api.Missing("recording", id)
	}
	if err != nil {
		return nil, nil, err
	}
	ok, err := s.may(ctx, p, r)
	if err != nil {
		return nil, nil, err
	}
	if !ok {
		return nil, nil, api.Missing("recording", id)
	}
	return r, p, nil
}

// content is visible for what reads the file: the recording must still exist.
func (s *Store) content(ctx context.Context, id string) (*Recording, *api.Principal, error) {
	r, p, err := s.visible(ctx, id)
	if err == nil && r.Status == Expired {
		return nil, nil, &api.Problem{Status: http.StatusGone, Title: "The recording was removed when its retention ended.", Code: "expired"}
	}
	return r, p, err
}

// note writes an audit event of p about r.
func (s *Store) note(ctx context.Context, t audit.Type, p *api.Principal, r *Recording, fields map[string]string) error {
	return s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return s.noteIn(ctx, tx, t, p, r, fields) })
}

func (s *Store) noteIn(ctx context.Context, tx *db.Tx, t audit.Type, p *api.Principal, r *Recording, fields map[string]string) error {
	return s.cfg.Audit.Append(ctx, tx, audit.Event{
		Type: t, Outcome: audit.OK, Connection: r.ConnectionID, Fields: fields,
		Actor:  audit.By(p),
		Object: audit.Object{Kind: "recording", ID: r.ID},
	})
}

type IDIn struct {
	ID string `path:"id" maxLength:"64"`
}

type ListIn struct {
	api.PageIn
	Connection string    `query:"connection" maxLength:"64"`
	User       string    `query:"user" maxLength:"64" doc:"user id or name"`
	Target     string    `query:"target" maxLength:"64" doc:"target id or name"`
	Account    string    `query:"account" maxLength:"128"`
	Kind       string    `query:"kind" maxLength:"16"`
	Status     string    `query:"status" enum:"recording,complete,incomplete,damaged,expired"`
	From       time.Time `query:"from" doc:"started at or after"`
	To         time.Time `query:"to" doc:"started before"`
}

type listOut struct{ Body api.Page[*Recording] }

type searchAllIn struct {
	ListIn
	Query string `query:"q" required:"true" minLength:"1" maxLength:"200" doc:"text to find in transcripts, ignoring case"`
}

// Found is a recording and the places in it where a search matched.
type Found struct {
	Recording *Recording `json:"recording"`
	Hits      []Hit      `json:"hits"`
}

type searchAllOut struct {
	Body struct {
		api.Page[Found]
		// Searched says how many recordings the search has read; when more
		// could match, next goes on from there.
		Searched int `json:"searched,omitempty"`
	}
}

// Bounds of one search over many recordings.
const (
	searchMost  = 500
	searchFor   = 8 * time.Second
	hitsPerItem = 20
)

type position struct {
	At int64  `json:"a"`
	ID string `json:"i"`
}

// query builds the list query of what p may see.
func (s *Store) query(ctx context.Context, p *api.Principal, in *ListIn, readable bool, after position, limit int) (string, []any, error) {
	var where []string
	var args []any
	add := func(cond string, vs ...any) {
		for _, v := range vs {
			args = append(args, v)
			cond = strings.Replace(cond, "?", "$"+strconv.Itoa(len(args)), 1)
		}
		where = append(where, cond)
	}
	if !p.Can(api.RecordingsView) {
		var either []string
		var vs []any
		if s.cfg.Limits().OwnView {
			either, vs = append(either, "user_id = ?"), append(vs, p.UserID)
		}
		if s.cfg.RolesOf != nil {
			roles, err := s.cfg.RolesOf(ctx, p.UserID)
			if err != nil {
				return "", nil, fmt.Errorf("read roles of %s: %w", p.UserID, err)
			}
			for _, r := range roles[:min(len(roles), 200)] {
				either = append(either, "exists (select 1 from recording_roles g where g.recording_id = recordings.id and g.role_id = ?)")
				vs = append(vs, r)
			}
		}
		if len(either) == 0 {
			either = []string{"1 = 0"}
		}
		add("("+strings.Join(either, " or ")+")", vs...)
	}
	for _, c := range []struct{ cond, v string }{
		{"connection_id = ?", in.Connection}, {"account = ?", in.Account}, {"kind = ?", in.Kind}, {"status = ?", in.Status},
	} {
		if c.v != "" {
			add(c.cond, c.v)
		}
	}
	if in.User != "" {
		add("(user_id = ? or user_name = ?)", in.User, in.User)
	}
	if in.Target != "" {
		add("(target_id = ? or target_name = ?)", in.Target, in.Target)
	}
	if !in.From.IsZero() {
		add("started_at >= ?", in.From.UnixMicro())
	}
	if !in.To.IsZero() {
		add("started_at < ?", in.To.UnixMicro())
	}
	if readable {
		add("status <> ?", string(Expired))
	}
	if after.ID != "" {
		add("(started_at < ? or started_at = ? and id < ?)", after.At, after.At, after.ID)
	}
	q := `select ` + columns + ` from recordings`
	if len(where) > 0 {
		q += " where " + strings.Join(where, " and ")
	}
	args = append(args, limit)
	return q + " order by started_at desc, id desc limit $" + strconv.Itoa(len(args)), args, nil
}

func (s *Store) handleList(ctx context.Context, in *ListIn) (*listOut, error) {
	p := api.PrincipalFrom(ctx)
	var after position
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	q, args, err := s.query(ctx, p, in, false, after, in.Limit+1)
	if err != nil {
		return nil, err
	}
	rs, err := s.list(ctx, s.cfg.DB, q, args...)
	if err != nil {
		return nil, err
	}
	return &listOut{Body: api.Paged(rs, in.Limit, at)}, nil
}

// at is the sort key of r in lists.
func at(r *Recording) any { return position{At: r.StartedAt.UnixMicro(), ID: r.ID} }

func (s *Store) handleSearchAll(ctx context.Context, in *searchAllIn) (*searchAllOut, error) {
	p := api.PrincipalFrom(ctx)
	var after position
	if err := api.DecodeCursor(in.Cursor, &after); err != nil {
		return nil, err
	}
	out := &searchAllOut{}
	q, args, err := s.query(ctx, p, &in.ListIn, true, after, searchMost+1)
	if err != nil {
		return nil, err
	}
	rs, err := s.list(ctx, s.cfg.DB, q, args...)
	if err != nil {
		return nil, err
	}
	out.Body.Items = []Found{}
	until := time.Now().Add(searchFor)
	for i, r := range rs {
		if i == searchMost || len(out.Body.Items) == in.Limit || i > 0 && time.Now().After(until) {
			out.Body.Next = api.EncodeCursor(at(rs[i-1]))
			break
		}
		out.Body.Searched++
		hits, err := s.Search(ctx, r, in.Query, 0, hitsPerItem)
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			// One unreadable recording does not hide the others.
			s.cfg.Log.Warn("recording not searched", "recording", r.ID, "err", err)
			continue
		}
		if len(hits) > 0 {
			out.Body.Items = append(out.Body.Items, Found{Recording: r, Hits: hits})
		}
	}
	if err := s.note(ctx, audit.RecordingSearched, p, &Recording{}, map[string]string{
		"searched": strconv.Itoa(out.Body.Searched), "found": strconv.Itoa(len(out.Body.Items)),
	}); err != nil {
		return nil, err
	}
	return out, nil
}

type recordingOut struct{ Body *Recording }

func (s *Store) handleGet(ctx context.Context, in *IDIn) (*recordingOut, error) {
	r, _, err := s.visible(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &recordingOut{Body: r}, nil
}

// The HTTP trailers of an asciicast: how the recording ends.
const (
	trailerStatus = "Caponier-Recording-Status"
	trailerText   = "Caponier-Recording-Text"
)

// castDeadline bounds each write of a download.
const castDeadline = 30 * time.Second

func (s *Store) serveCast(f *api.Frame, w http.ResponseWriter, req *http.Request) {
	ctx := req.Context()
	r, p, err := s.content(ctx, req.PathValue("id"))
	if err == nil {
		// Written first: who cannot be audited sees nothing.
		err = s.note(ctx, audit.RecordingPlayed, p, r, map[string]string{"form": "asciicast"})
	}
	if err != nil {
		f.Fail(w, req, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-asciicast")
	w.Header().Set("Content-Disposition", `attachment; filename="`+r.ID+`.cast"`)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Trailer", trailerStatus+", "+trailerText)
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w)}
	defer out.rc.SetWriteDeadline(time.Time{})
	state, err := s.WriteCast(ctx, out, r)
	if err != nil {
		if !out.wrote {
			if _, damaged := errors.AsType[*DamageError](err); damaged {
				err = api.Conflict("damaged", "The recording is damaged: "+err.Error()+".")
			} else if errors.Is(err, fs.ErrNotExist) {
				err = api.Conflict("damaged", "The recording is damaged: its file is missing.")
			}
			w.Header().Del("Trailer")
			w.Header().Del("Content-Disposition")
			f.Fail(w, req, err)
			return
		}
		s.cfg.Log.Error("recording not sent to its end", "recording", r.ID, "err", err)
		w.Header().Set(trailerStatus, "unsent")
		w.Header().Set(trailerText, "not sent to its end")
		return
	}
	w.Header().Set(trailerStatus, string(state.Status))
	w.Header().Set(trailerText, state.Text)
}

// deadlineWriter gives each write a deadline of its own.
type deadlineWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	wrote bool
}

func (d *deadlineWriter) Write(p []byte) (int, error) {
	if err := d.rc.SetWriteDeadline(time.Now().Add(castDeadline)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	d.wrote = true
	return d.w.Write(p)
}

type eventsIn struct {
	IDIn
	Limit int     `query:"limit" minimum:"1" maximum:"5000" default:"1000"`
	After float64 `query:"after" minimum:"0" doc:"seconds; only events later than this"`
}

// TimelineEvent is an event on the timeline.
type TimelineEvent struct {
	Seconds float64           `json:"seconds"`
	Kind    string            `json:"kind"`
	Fields  map[string]string `json:"fields,omitempty"`
}

type eventsOut struct {
	Body struct {
		Items     []TimelineEvent `json:"items"`
		More      bool            `json:"more" doc:"ask again with after = seconds of the last"`
		Integrity *Integrity      `json:"integrity,omitempty" doc:"when read to the end"`
	}
}

func (s *Store) handleEvents(ctx context.Context, in *eventsIn) (*eventsOut, error) {
	r, p, err := s.content(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.note(ctx, audit.RecordingPlayed, p, r, map[string]string{"form": "events"}); err != nil {
		return nil, err
	}
	x, f, err := s.reader(r)
	if err != nil {
		return nil, damagedProblem(err)
	}
	defer f.Close()
	out := &eventsOut{}
	out.Body.Items = []TimelineEvent{}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		it, err := x.Next()
		if err != nil {
			if state := x.Integrity(); state.Status != "" {
				out.Body.Integrity = &state
				return out, nil
			}
			return nil, err
		}
		if it.Kind != ItemEvent || it.At.Seconds() <= in.After && in.After > 0 {
			continue
		}
		if len(out.Body.Items) == in.Limit {
			out.Body.More = true
			return out, nil
		}
		out.Body.Items = append(out.Body.Items, TimelineEvent{Seconds: it.At.Seconds(), Kind: it.Event, Fields: it.Fields})
	}
}

func damagedProblem(err error) error {
	if d, ok := errors.AsType[*DamageError](err); ok {
		return api.Conflict("damaged", "The recording is damaged: "+d.Error()+".")
	}
	return err
}

type SearchIn struct {
	IDIn
	Query string  `query:"q" required:"true" minLength:"1" maxLength:"200"`
	From  float64 `query:"from" minimum:"0" maximum:"100000000" doc:"seconds; only places at or after"`
	Limit int     `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

type searchOut struct {
	Body struct {
		Hits []Hit `json:"hits"`
	}
}

func (s *Store) handleSearch(ctx context.Context, in *SearchIn) (*searchOut, error) {
	r, p, err := s.content(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.note(ctx, audit.RecordingSearched, p, r, nil); err != nil {
		return nil, err
	}
	hits, err := s.Search(ctx, r, in.Query, time.Duration(in.From*float64(time.Second)), in.Limit)
	if err != nil {
		return nil, damagedProblem(err)
	}
	out := &searchOut{}
	out.Body.Hits = hits
	return out, nil
}

type integrityOut struct{ Body Integrity }

func (s *Store) handleVerify(ctx context.Context, in *IDIn) (*integrityOut, error) {
	r, _, err := s.visible(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	state, err := s.Verify(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &integrityOut{Body: state}, nil
}

type filesOut struct {
	Body struct {
		Items []File `json:"items"`
	}
}

func (s *Store) handleFiles(ctx context.Context, in *IDIn) (*filesOut, error) {
	r, _, err := s.visible(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &filesOut{}
	out.Body.Items, err = s.files(ctx, s.cfg.DB, r.ID)
	return out, err
}

type ticketIn struct {
	IDIn
	File string `path:"file" maxLength:"64"`
}

type ticketOut struct {
	Body struct {
		Ticket    string    `json:"ticket"`
		Path      string    `json:"path" doc:"where to get the file, below /api/v1"`
		ExpiresAt time.Time `json:"expires_at"`
	}
}

func (s *Store) handleTicket(ctx context.Context, in *ticketIn) (*ticketOut, error) {
	r, p, err := s.content(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	f, err := scanFile(s.cfg.DB.QueryRowContext(ctx, getFileSQL, in.File))
	if errors.Is(err, db.ErrNotFound) || err == nil && f.RecordingID != r.ID {
		return nil, api.Missing("file", in.File)
	}
	if err != nil {
		return nil, err
	}
	if f.Status != "stored" {
		return nil, api.Conflict("not_stored", "No copy of this file is kept: "+strings.ReplaceAll(f.Status, "_", " ")+".")
	}
	out := &ticketOut{}
	out.Body.Ticket, out.Body.ExpiresAt, err = s.ticket(ctx, f.ID, p.UserID)
	out.Body.Path = "/recording-files/" + out.Body.Ticket
	return out, err
}

func (s *Store) serveFile(fr *api.Frame, w http.ResponseWriter, req *http.Request) {
	ctx := req.Context()
	p := api.PrincipalFrom(ctx)
	var f File
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		var id string
		if err := tx.QueryRowContext(ctx, takeTicketSQL, ticketHash(req.PathValue("ticket")), p.UserID, s.cfg.Now().UnixMicro()).Scan(&id); err != nil {
			return db.Classify(err)
		}
		var err error
		if f, err = scanFile(tx.QueryRowContext(ctx, getFileSQL, id)); err != nil {
			return err
		}
		if f.Status != "stored" {
			return db.ErrNotFound
		}
		r, err := s.Get(ctx, tx, f.RecordingID)
		if err != nil {
			return err
		}
		return s.noteIn(ctx, tx, audit.RecordingFileSent, p, r, map[string]string{"file": f.ID, "sha256": f.SHA256})
	})
	if errors.Is(err, db.ErrNotFound) {
		err = api.Missing("ticket", "Tickets hold for one download within a minute.")
	}
	if err != nil {
		fr.Fail(w, req, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="`+f.ID+`.bin"`)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.FormatInt(f.Size, 10))
	out := &deadlineWriter{w: w, rc: http.NewResponseController(w)}
	defer out.rc.SetWriteDeadline(time.Time{})
	if err := s.copyFile(ctx, out, f); err != nil {
		if !out.wrote {
			w.Header().Del("Content-Length")
			fr.Fail(w, req, err)
			return
		}
		// The length was announced: the client notices that it got less.
		s.cfg.Log.Error("stored file not sent to its end", "recording", f.RecordingID, "file", f.ID, "err", err)
	}
}
