package webaccess

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// Session is a web session as the interface shows it.
type Session struct {
	ID          string     `json:"id" doc:"the connection's"`
	State       State      `json:"state" enum:"opening,open,ending,ended"`
	Mode        string     `json:"mode" enum:"browser,api" doc:"api: for API clients, without a browser"`
	Own         bool       `json:"own" doc:"whether it is the asker's own"`
	UserID      string     `json:"user_id"`
	UserName    string     `json:"user_name"`
	TargetID    string     `json:"target_id"`
	TargetName  string     `json:"target_name"`
	Account     string     `json:"account,omitempty"`
	CreatedAt   time.Time  `json:"created_at"`
	EndedAt     *time.Time `json:"ended_at,omitempty"`
	Recorded    bool       `json:"recorded"`
	RecordingID string     `json:"recording_id,omitempty"`
	Policy      Policy     `json:"policy"`
	IdleS       int64      `json:"idle_s" doc:"seconds without input after which it ends; 0: no limit"`
	EndsAt      *time.Time `json:"ends_at,omitempty" doc:"when it ends at the latest"`
	Engine      string     `json:"engine,omitempty" enum:"firefox,chromium" doc:"the browser of a session that is open; none for API clients"`
	NoticeS     int64      `json:"notice_s" doc:"seconds before either that it is told on the screen"`
	Extend      bool       `json:"extend" doc:"whether it may be extended now"`
	Carrier     string     `json:"carrier"`
	WebProxy    string     `json:"webproxy"`
	Warm        bool       `json:"warm" doc:"a browser was waiting for it"`
	Locked      bool       `json:"locked"`
	LockText    string     `json:"lock_text,omitempty"`
	Watchers    []string   `json:"watchers" nullable:"false"`
	Approvals   []Waiting  `json:"approvals" nullable:"false" doc:"requests that wait for a second person, or were decided on a moment ago"`
	Problem     string     `json:"problem,omitempty" doc:"what does not work at present"`
	EndReason   string     `json:"end_reason,omitempty"`
	EndText     string     `json:"end_text,omitempty" doc:"what the user is told about the end"`
}

// Policy is what the person in front of a session may do now.
type Policy struct {
	ClipboardIn  int64    `json:"clipboard_in" doc:"bytes per paste; 0 forbids"`
	ClipboardOut int64    `json:"clipboard_out" doc:"bytes per copy; 0 forbids"`
	UploadMax    int64    `json:"upload_max" doc:"bytes per file; 0 forbids"`
	DownloadMax  int64    `json:"download_max" doc:"bytes per file; 0 forbids"`
	Watermark    []string `json:"watermark" nullable:"false"`
	Mode         string   `json:"mode"`
	Sound        bool     `json:"sound" doc:"pages can be heard"`
}

// Routes registers the room's operations. Users see and use their own
// sessions, others need a permission.
func (s *Service) Routes(f *api.Frame) {
	s.fail = f.Fail
	const tag = "web-sessions"
	api.Register(f, api.Op{Method: "POST", Path: "/web-sessions", ID: "open-web-session", Tag: tag, Who: api.Self(), Status: 201,
		Summary: "Open a web target in a browser of its own"}, s.handleOpen)
	api.Register(f, api.Op{Method: "GET", Path: "/web-sessions", ID: "list-web-sessions", Tag: tag, Who: api.Self(),
		Summary: "List web sessions, newest first"}, s.handleList)
	api.Register(f, api.Op{Method: "GET", Path: "/web-sessions/{id}", ID: "get-web-session", Tag: tag, Who: api.Self(),
		Summary: "Show a web session"}, s.handleGet)
	api.Register(f, api.Op{Method: "DELETE", Path: "/web-sessions/{id}", ID: "close-web-session", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "End a web session"}, s.handleClose)
	api.Register(f, api.Op{Method: "POST", Path: "/web-sessions/{id}/extend", ID: "extend-web-session", Tag: tag, Who: api.Self(),
		Summary: "Add one more maximum to a session of yours"}, s.handleExtend)
	api.RegisterRaw(f, api.Op{Method: "GET", Path: "/web-sessions/{id}/screen", ID: "web-session-screen", Tag: tag, Who: api.Self(), Status: 101,
		Summary: "The picture over a websocket, RFB (RFC 6143) in binary messages; ?watch=1 to look on"}, s.handleScreen)
	api.RegisterRaw(f, api.Op{Method: "GET", Path: "/web-sessions/{id}/sound", ID: "web-session-sound", Tag: tag, Who: api.Self(), Status: 101,
		Summary: "What pages play over a websocket: 20 ms of 48 kHz, 16 bits little endian, two channels in each binary message. One byte back says that it was heard; ?watch=1 for those who watch"}, s.handleSound)
	s.fileRoutes(f)
	s.clientRoutes(f)
	s.approvalRoutes(f)
	api.Register(f, api.Op{Method: "GET", Path: "/targets/{id}/web-proposals", ID: "list-web-proposals", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsView),
		Summary: "What sessions of a learning web target were refused, as rules that would allow it"}, s.handleProposals)
	api.Register(f, api.Op{Method: "DELETE", Path: "/targets/{id}/web-proposals", ID: "clear-web-proposals", Tag: "targets", Who: api.NeedsSomewhere(api.TargetsManage), Status: 204,
		Summary: "Forget the proposals of a web target"}, s.handleClearProposals)
}

type openIn struct {
	UserAgent string `header:"User-Agent"`
	Body      struct {
		Target   string `json:"target_id" minLength:"1" maxLength:"320" doc:"ID or name of a web target"`
		Mode     string `json:"mode,omitempty" enum:"browser,api" default:"browser" doc:"api: no browser, for API clients of a target that permits them; see proxy-login"`
		Account  string `json:"account,omitempty" maxLength:"128" doc:"may be left out when only one fits"`
		Reason   string `json:"reason,omitempty" maxLength:"1000"`
		Width    int    `json:"width,omitempty" minimum:"320" maximum:"7680" default:"1280" doc:"pixels, at the start"`
		Height   int    `json:"height,omitempty" minimum:"200" maximum:"4320" default:"800"`
		TimeZone string `json:"time_zone,omitempty" maxLength:"64" doc:"IANA name; the browser's clock shows it"`
	}
}

type sessionOut struct{ Body *Session }

func (s *Service) handleOpen(ctx context.Context, in *openIn) (*sessionOut, error) {
	p := api.PrincipalFrom(ctx)
	if z := in.Body.TimeZone; z != "" {
		if _, err := time.LoadLocation(z); err != nil || z == "Local" {
			return nil, api.Invalid(api.FieldError{Field: "time_zone", Message: "is no time zone such as Europe/Helsinki"})
		}
	}
	x, err := s.Open(ctx, p, Request{
		Target: in.Body.Target, Account: in.Body.Account, Reason: in.Body.Reason, UserAgent: in.UserAgent,
		Width: in.Body.Width, Height: in.Body.Height, TimeZone: in.Body.TimeZone, API: in.Body.Mode == "api",
	})
	if err != nil {
		return nil, conn.Problem(err, "web target")
	}
	return &sessionOut{Body: x.show(p)}, nil
}

// show is the session as p sees it.
func (x *session) show(p *api.Principal) *Session {
	o, _ := x.live.Oversight()
	d := x.live.Decision()
	reason, text := x.live.Ended()
	extend := x.extensible(d)
	w := x.wantedOrNone()
	v := x.row.show(p)
	limits := x.s.cfg.Limits()
	x.mu.Lock()
	spec := x.spec
	v.State, v.Carrier, v.WebProxy, v.RecordingID, v.Warm = x.state, x.carrier.Name, x.proxy.Name, x.recordingID, x.warm
	if v.State == Open && reason != "" {
		v.State = Ending
	}
	for id := range x.away {
		v.Problem = "The webproxy is not connected at present; pages do not load until it is back."
		if id == x.carrier.ID {
			v.Problem = "The carrier is not connected at present; the picture comes back with it."
			break
		}
	}
	extended := x.extended
	x.mu.Unlock()
	v.Locked, v.LockText, v.Watchers, v.Extend = o.Locked, o.Text, shown(o.Watchers), extend
	v.EndReason, v.EndText = string(reason), text
	v.Approvals = x.approvals()
	if spec != nil {
		b := x.policy(w)
		v.Policy = Policy{ClipboardIn: b.ClipboardIn, ClipboardOut: b.ClipboardOut, UploadMax: b.UploadMax, DownloadMax: b.DownloadMax,
			Watermark: shown(b.Watermark), Mode: b.Mode, Sound: b.Sound}
		if v.Mode == "browser" {
			v.Engine = cmp.Or(spec.Web.Browser.Engine, wire.Firefox)
		}
		v.NoticeS = b.NoticeS
		idle, longest := times(&spec.Web.Browser, d, limits, extended)
		v.IdleS = int64(idle / time.Second)
		if longest > 0 {
			v.EndsAt = new(x.row.OpenedAt.Add(longest).UTC())
		}
	}
	return v
}

// wantedOrNone is wanted, or nothing for a session whose target is gone.
func (x *session) wantedOrNone() want {
	x.mu.Lock()
	known := x.spec != nil
	x.mu.Unlock()
	if !known {
		return want{}
	}
	return x.wanted()
}

// show is what the row says.
func (w *row) show(p *api.Principal) *Session {
	v := &Session{
		ID: w.ID, State: w.State, Own: w.UserID == p.UserID, UserID: w.UserID, UserName: w.UserName, TargetID: w.TargetID, TargetName: w.TargetName,
		Account: w.Account, CreatedAt: w.OpenedAt, Recorded: w.Recorded, RecordingID: w.RecordingID, Policy: Policy{Watermark: []string{}},
		Carrier: w.CarrierName, WebProxy: w.ProxyName, Warm: w.Warm, Watchers: []string{}, Approvals: []Waiting{}, EndReason: string(w.EndReason), EndText: w.EndText,
	}
	v.Mode = "browser"
	if w.CarrierID == "" {
		v.Mode = "api"
	}
	if !w.EndedAt.IsZero() {
		v.EndedAt = &w.EndedAt
	}
	return v
}

type listOut struct{ Body api.Page[*Session] }

func (s *Service) handleList(ctx context.Context, in *conn.SessionsIn) (*listOut, error) {
	p := api.PrincipalFrom(ctx)
	args, err := in.Args(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := db.Collect(ctx, s.cfg.DB, scanRow, listSQL, args...)
	if err != nil {
		return nil, fmt.Errorf("list web sessions: %w", err)
	}
	xs := make([]*Session, len(rows))
	for i, w := range rows {
		if x := s.find(w.ID); x != nil {
			xs[i] = x.show(p)
		} else {
			xs[i] = w.show(p)
		}
	}
	return &listOut{Body: conn.NewestPage(xs, in.Limit, func(x *Session) (time.Time, string) { return x.CreatedAt, x.ID })}, nil
}

// visible returns a session of the caller's, or any with the permission.
func (s *Service) visible(ctx context.Context, id string, perm api.Permission) (*Session, error) {
	p := api.PrincipalFrom(ctx)
	sees, err := s.sees(ctx, p, perm, id)
	if err != nil {
		return nil, err
	}
	if x := s.find(id); x != nil && (x.row.UserID == p.UserID || sees) {
		return x.show(p), nil
	}
	w, err := scanRow(s.cfg.DB.QueryRowContext(ctx, getSQL, id))
	if errors.Is(err, db.ErrNotFound) || err == nil && w.UserID != p.UserID && !sees {
		return nil, api.Missing("web session", id)
	}
	if err != nil {
		return nil, fmt.Errorf("read web session %s: %w", clip(id, 64), err)
	}
	return w.show(p), nil
}

func (s *Service) handleGet(ctx context.Context, in *api.ConnectionIDIn) (*sessionOut, error) {
	x, err := s.visible(ctx, in.ID, api.ConnectionsView)
	if err != nil {
		return nil, err
	}
	return &sessionOut{Body: x}, nil
}

func (s *Service) handleClose(ctx context.Context, in *api.ConnectionIDIn) (*struct{}, error) {
	x, err := s.visible(ctx, in.ID, api.ConnectionsManage)
	if err != nil {
		return nil, err
	}
	return nil, s.cfg.Conns.Close(ctx, x.ID, x.Own)
}

// own finds a live session that the caller's login opened. A token of the same
// user is another login: it may lack the factors the policy asked for.
func (s *Service) own(ctx context.Context, id string) (*session, error) {
	p := api.PrincipalFrom(ctx)
	x := s.find(id)
	if x == nil || !x.of(p) {
		return nil, api.Missing("web session", id)
	}
	return x, nil
}

// of reports whether p is the login that opened the session.
func (x *session) of(p *api.Principal) bool {
	by := x.live.Spec().Principal
	return by.UserID == p.UserID && by.Session == p.Session
}

func (s *Service) handleExtend(ctx context.Context, in *api.ConnectionIDIn) (*sessionOut, error) {
	x, err := s.own(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if x.live.Context().Err() != nil {
		return nil, api.Conflict("ended", "The session has ended already.")
	}
	if !x.extensible(x.live.Decision()) {
		return nil, api.Conflict("not_extensible", "This session cannot be extended.")
	}
	x.mu.Lock()
	n := x.extended + 1
	x.mu.Unlock()
	p := api.PrincipalFrom(ctx)
	err = s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, extendSQL, x.row.ID, n); err != nil {
			return err
		}
		if err := tell(ctx, tx, x.row.ID, x.row.UserID); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.WebSessionExtended, Outcome: audit.OK, Actor: audit.By(p), Connection: x.row.ID,
			Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName}, Fields: map[string]string{"times": strconv.Itoa(n)},
		})
	})
	if err != nil {
		return nil, fmt.Errorf("extend web session: %w", err)
	}
	x.mu.Lock()
	x.extended = max(x.extended, n)
	x.mu.Unlock()
	x.poke()
	return &sessionOut{Body: x.show(p)}, nil
}

type proposalsOut struct {
	Body struct {
		Proposals []Proposal `json:"proposals" nullable:"false"`
	}
}

type targetIn struct {
	ID string `path:"id" maxLength:"80" doc:"ID or name"`
}

// webTarget finds a web target by ID or name.
func (s *Service) webTarget(ctx context.Context, ref string) (*target.Target, error) {
	find := s.cfg.Targets.ByName
	if strings.HasPrefix(ref, "tgt_") {
		find = s.cfg.Targets.Get
	}
	t, err := find(ctx, s.cfg.DB, ref)
	if errors.Is(err, db.ErrNotFound) || err == nil && t.Web == nil {
		return nil, api.Missing("web target", ref)
	}
	if err != nil {
		return nil, err
	}
	return t, webGuard(ref).See(ctx, t.Group)
}

func webGuard(ref string) api.Guarded {
	return api.Guarded{Kind: "web target", ID: ref, View: api.TargetsView, Manage: api.TargetsManage}
}

func (s *Service) handleProposals(ctx context.Context, in *targetIn) (*proposalsOut, error) {
	t, err := s.webTarget(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	s.proposals.flush(ctx)
	var out proposalsOut
	if out.Body.Proposals, err = s.proposals.list(ctx, t.ID); out.Body.Proposals == nil {
		out.Body.Proposals = []Proposal{}
	}
	return &out, err
}

func (s *Service) handleClearProposals(ctx context.Context, in *targetIn) (*struct{}, error) {
	t, err := s.webTarget(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := webGuard(in.ID).Administer(ctx, t.Group, t.Group); err != nil {
		return nil, err
	}
	return nil, s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if err := s.proposals.drop(ctx, tx, t.ID); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{Type: audit.WebProposalsGone, Outcome: audit.OK, Actor: actor(ctx),
			Object: audit.Object{Kind: "target", ID: t.ID, Name: t.Name}})
	})
}

// Name implements the keeper of personal data (FEATURES C29).
func (s *Service) Name() string { return "web_sessions" }

// Export returns all that is kept about a user's web sessions.
func (s *Service) Export(ctx context.Context, q db.Querier, userID string) (any, error) {
	rows, err := db.Collect(ctx, q, scanRow, exportSQL, userID)
	if err != nil {
		return nil, fmt.Errorf("export web sessions: %w", err)
	}
	p := &api.Principal{UserID: userID}
	out := make([]*Session, len(rows))
	for i, w := range rows {
		out[i] = w.show(p)
	}
	asked, err := db.Collect(ctx, q, scanApproval, exportApprovalsSQL, userID)
	if err != nil {
		return nil, fmt.Errorf("export requests for approval: %w", err)
	}
	now := s.cfg.Now()
	approvals := make([]*Approval, len(asked))
	for i, a := range asked {
		approvals[i] = a.show(p, now)
	}
	return map[string]any{"sessions": out, "approvals": approvals}, nil
}

// Erase puts a pseudonym in place of a user's name; what happened stays.
func (s *Service) Erase(ctx context.Context, tx *db.Tx, userID, pseudonym string) error {
	if _, err := tx.ExecContext(ctx, eraseSQL, userID, pseudonym); err != nil {
		return fmt.Errorf("erase user from web sessions: %w", err)
	}
	for _, query := range []string{eraseAskerSQL, eraseDeciderSQL} {
		if _, err := tx.ExecContext(ctx, query, userID, pseudonym); err != nil {
			return fmt.Errorf("erase user from requests for approval: %w", err)
		}
	}
	return nil
}
