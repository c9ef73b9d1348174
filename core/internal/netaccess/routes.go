package netaccess

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
)

// Session is a network session as the interface shows it.
type Session struct {
	ID         string    `json:"id" doc:"the connection's"`
	State      State     `json:"state" enum:"opening,open,ending,ended" doc:"ending: some router has not confirmed that its rules are gone"`
	UserID     string    `json:"user_id"`
	UserName   string    `json:"user_name"`
	TargetID   string    `json:"target_id"`
	TargetName string    `json:"target_name"`
	Client     string    `json:"client_ip"`
	Site       string    `json:"site,omitempty"`
	Exclusive  bool      `json:"exclusive"`
	SNAT       bool      `json:"snat"`
	OpenedAt   time.Time `json:"opened_at"`
	EndedAt    time.Time `json:"ended_at,omitzero"`
	// PresenceAt is when the user was last heard of; without news the session
	// ends at PresenceUntil.
	PresenceAt    time.Time       `json:"presence_at"`
	PresenceUntil time.Time       `json:"presence_until,omitzero" doc:"the session ends then unless presence is told before"`
	BytesOut      int64           `json:"bytes_out" doc:"from the client to the target"`
	BytesIn       int64           `json:"bytes_in"`
	EndReason     string          `json:"end_reason,omitempty"`
	Group         string          `json:"group" doc:"access group the target was in"`
	EndText       string          `json:"end_text,omitempty" doc:"what the user was told"`
	Destinations  []string        `json:"destinations" doc:"what is open, the first 20"`
	Total         int             `json:"destinations_total"`
	Instructions  string          `json:"instructions,omitempty" doc:"of the target, when a session is opened or shown alone"`
	Routers       []SessionRouter `json:"routers"`
}

// SessionRouter is one router that may hold a session's rules.
type SessionRouter struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state" enum:"holds,pending,away,removing" doc:"away: it gets the rules when it returns; removing: it has not confirmed that they are gone"`
}

// Routes registers the room's operations.
func (s *Service) Routes(f *api.Frame) {
	const tag = "network-sessions"
	api.Register(f, api.Op{Method: "POST", Path: "/network-sessions", ID: "open-network-session", Tag: tag, Who: api.Self(), Status: 201,
		Summary: "Open a network target for one client address"}, s.handleOpen)
	api.Register(f, api.Op{Method: "GET", Path: "/network-sessions", ID: "list-network-sessions", Tag: tag, Who: api.Self(),
		Summary: "List network sessions, newest first"}, s.handleList)
	api.Register(f, api.Op{Method: "GET", Path: "/network-sessions/{id}", ID: "get-network-session", Tag: tag, Who: api.Self(),
		Summary: "Show a network session"}, s.handleGet)
	api.Register(f, api.Op{Method: "DELETE", Path: "/network-sessions/{id}", ID: "close-network-session", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Close a network session and cut its flows"}, s.handleClose)
	api.Register(f, api.Op{Method: "POST", Path: "/network-sessions/{id}/presence", ID: "keep-network-session", Tag: tag, Who: api.Self(),
		Summary: "Tell that the user is there; without it the session ends"}, s.handlePresence)
	api.Register(f, api.Op{Method: "GET", Path: "/network-sessions/{id}/flows", ID: "list-network-flows", Tag: tag, Who: api.Self(),
		Summary: "The flow log of a network session: bytes and packets per destination and direction"}, s.handleFlows)
	s.routerRoutes(f)
	s.simulateRoutes(f)
}

type openIn struct {
	UserAgent string `header:"User-Agent"`
	Body      struct {
		Target string `json:"target" minLength:"1" maxLength:"64" doc:"unique name"`
		Reason string `json:"reason,omitempty" maxLength:"1000"`
		Client string `json:"client_ip,omitempty" maxLength:"64" doc:"your own address when left out; another one needs connections:manage"`
	}
}

type sessionOut struct{ Body *Session }

func (s *Service) handleOpen(ctx context.Context, in *openIn) (*sessionOut, error) {
	p := api.PrincipalFrom(ctx)
	own := api.SourceFrom(ctx).Unmap().WithZone("")
	client := own
	if in.Body.Client != "" {
		var err error
		if client, err = netip.ParseAddr(in.Body.Client); err != nil || client.Zone() != "" || client.IsUnspecified() || client.IsMulticast() {
			return nil, api.Invalid(api.FieldError{Field: "client_ip", Message: "give one IP address"})
		}
		client = client.Unmap()
	}
	if client != own && !p.Can(api.ConnectionsManage) {
		why := &Refused{Status: 403, Code: "client_not_yours", Public: "Only administrators may open a session for another address than their own."}
		if err := s.denied(ctx, p, Request{Target: in.Body.Target, Client: client}, why); err != nil {
			return nil, err
		}
		return nil, conn.Problem(why, "network target")
	}
	if !client.IsValid() {
		return nil, api.Invalid(api.FieldError{Field: "client_ip", Message: "your address is not known here: give it"})
	}
	x, err := s.Open(ctx, p, Request{Target: in.Body.Target, Client: client, Reason: in.Body.Reason, UserAgent: in.UserAgent})
	if err != nil {
		return nil, conn.Problem(err, "network target")
	}
	out, err := s.show1(ctx, x.row.ID)
	return &sessionOut{Body: out}, err
}

type listOut struct{ Body api.Page[*Session] }

func (s *Service) handleList(ctx context.Context, in *conn.SessionsIn) (*listOut, error) {
	args, err := in.Args(ctx)
	if err != nil {
		return nil, err
	}
	xs, err := db.Collect(ctx, s.cfg.DB, s.scanShown, listSQL, args...)
	if err != nil {
		return nil, fmt.Errorf("list network sessions: %w", err)
	}
	return &listOut{Body: conn.NewestPage(xs, in.Limit, func(x *Session) (time.Time, string) { return x.OpenedAt, x.ID })}, nil
}

// visible returns a session of the caller's, or any with the permission.
func (s *Service) visible(ctx context.Context, id string, perm api.Permission) (*Session, error) {
	p := api.PrincipalFrom(ctx)
	x, err := s.show1(ctx, id)
	if errors.Is(err, db.ErrNotFound) || err == nil && x.UserID != p.UserID && !access.Sees(p.Scope(perm), access.Scope{}, x.Group) {
		return nil, api.Missing("network session", id)
	}
	return x, err
}

// show1 reads one session, with the instructions of its target.
func (s *Service) show1(ctx context.Context, id string) (*Session, error) {
	x, err := s.scanShown(s.cfg.DB.QueryRowContext(ctx, getSQL, id))
	if err != nil {
		return nil, fmt.Errorf("read network session %s: %w", id, err)
	}
	if t, err := s.cfg.Targets.Get(ctx, s.cfg.DB, x.TargetID); err == nil && t.Network != nil {
		x.Instructions = t.Network.Instructions
	}
	return x, nil
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
	return nil, s.cfg.Conns.Close(ctx, x.ID, x.UserID == api.PrincipalFrom(ctx).UserID)
}

// presenceOut is the answer to presence.
type presenceOut struct {
	Body struct {
		State         State     `json:"state"`
		PresenceUntil time.Time `json:"presence_until"`
		EverySeconds  float64   `json:"every_s" doc:"how often to tell it"`
		BytesOut      int64     `json:"bytes_out"`
		BytesIn       int64     `json:"bytes_in"`
	}
}

func (s *Service) handlePresence(ctx context.Context, in *api.ConnectionIDIn) (*presenceOut, error) {
	p := api.PrincipalFrom(ctx)
	x := s.find(in.ID)
	if x == nil || x.row.UserID != p.UserID || x.live == nil || x.isOver() {
		return nil, s.whyOver(ctx, p, in.ID)
	}
	now, window := s.cfg.Now(), s.cfg.Presence()
	x.mu.Lock()
	if now.After(x.touched) {
		x.touched = now
	}
	var out presenceOut
	out.Body.State = x.state
	x.mu.Unlock()
	out.Body.PresenceUntil = now.Add(window).UTC()
	out.Body.EverySeconds = (window / 4).Seconds()
	out.Body.BytesOut, out.Body.BytesIn = x.live.Bytes()
	return &out, nil
}

// whyOver tells the owner of a session that it is over, and why.
func (s *Service) whyOver(ctx context.Context, p *api.Principal, id string) error {
	x, err := s.scanShown(s.cfg.DB.QueryRowContext(ctx, getSQL, id))
	switch {
	case errors.Is(err, db.ErrNotFound), err == nil && x.UserID != p.UserID:
		return api.Missing("network session", id)
	case err != nil:
		return fmt.Errorf("read network session %s: %w", id, err)
	}
	if x.EndText == "" {
		x.EndText = "The session has ended."
	}
	return api.Conflict("ended", x.EndText)
}

type flowsOut struct {
	Body struct {
		Items []Flow `json:"items"`
	}
}

func (s *Service) handleFlows(ctx context.Context, in *api.ConnectionIDIn) (*flowsOut, error) {
	if _, err := s.visible(ctx, in.ID, api.ConnectionsView); err != nil {
		return nil, err
	}
	var out flowsOut
	if x := s.find(in.ID); x != nil {
		x.mu.Lock()
		counts := x.countsLocked()
		x.mu.Unlock()
		out.Body.Items = x.row.flowLog(counts)
		return &out, nil
	}
	var more [5]any
	var text [3]string
	var n [2]int64
	more[0], more[1], more[2], more[3], more[4] = &text[0], &text[1], &n[0], &n[1], &text[2]
	r, err := scanRow(s.cfg.DB.QueryRowContext(ctx, getSQL, in.ID), more[:]...)
	if err != nil {
		return nil, fmt.Errorf("read flows of %s: %w", in.ID, err)
	}
	out.Body.Items = r.flowLog(r.Flows)
	return &out, nil
}

// shownDestinations bounds the destinations shown of a session.
const shownDestinations = 20

// scanShown reads a session for the interface; what this core knows is newer
// than the row.
func (s *Service) scanShown(r db.Scanner) (*Session, error) {
	var v Session
	w, err := scanRow(r, &v.EndReason, &v.EndText, &v.BytesOut, &v.BytesIn, &v.Group)
	if err != nil {
		return nil, err
	}
	v.ID, v.State, v.UserID, v.UserName, v.TargetID, v.TargetName = w.ID, w.State, w.UserID, w.UserName, w.TargetID, w.TargetName
	v.Client, v.Site, v.Exclusive, v.SNAT = w.Client.String(), w.Site, w.Exclusive, w.Rules.SNAT
	v.OpenedAt, v.EndedAt, v.PresenceAt = w.OpenedAt, w.EndedAt, w.PresenceAt
	labels := w.labels()
	v.Total = len(w.Rules.Destinations)
	v.Destinations = make([]string, 0, min(v.Total, shownDestinations))
	for i := range w.Rules.Destinations[:min(v.Total, shownDestinations)] {
		text := w.Rules.Destinations[i].String()
		if l, ok := labels[text]; ok {
			text = l
		}
		v.Destinations = append(v.Destinations, text)
	}
	holders := w.Routers
	if x := s.find(w.ID); x != nil {
		x.mu.Lock()
		v.State, v.PresenceAt = x.state, x.touched.UTC()
		holders = slices.Sorted(maps.Keys(x.holders))
		x.mu.Unlock()
		if x.live != nil {
			v.BytesOut, v.BytesIn = x.live.Bytes()
			if reason, text := x.live.Ended(); reason != "" {
				v.EndReason, v.EndText = string(reason), text
			}
		}
	}
	if v.State == Open {
		v.PresenceUntil = v.PresenceAt.Add(s.cfg.Presence())
	}
	v.Routers = []SessionRouter{}
	for _, id := range holders {
		v.Routers = append(v.Routers, s.showHolder(id, w.ID))
	}
	return &v, nil
}

// showHolder is how a router stands to a session.
func (s *Service) showHolder(router, id string) SessionRouter {
	p := s.peer(router)
	if p == nil {
		return SessionRouter{ID: router, State: "away"}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := SessionRouter{ID: router, Name: p.name, State: "holds"}
	switch {
	case p.ending[id] != nil:
		out.State = "removing"
	case p.synced == 0 && !p.offline.IsZero():
		out.State = "away"
	case p.synced == 0 || p.fresh[id] || p.waiting[id] != nil:
		out.State = "pending"
	}
	return out
}

// Name implements the keeper of personal data (FEATURES C29).
func (s *Service) Name() string { return "network_sessions" }

// Export returns all that is kept about a user's network sessions.
func (s *Service) Export(ctx context.Context, q db.Querier, userID string) (any, error) {
	rows, err := db.Collect(ctx, q, func(r db.Scanner) (*row, error) { return scanRow(r) }, exportSQL, userID)
	if err != nil {
		return nil, fmt.Errorf("export network sessions: %w", err)
	}
	type exported struct {
		ID, Target, Client string
		OpenedAt           time.Time `json:"opened_at"`
		EndedAt            time.Time `json:"ended_at,omitzero"`
		Flows              []Flow    `json:"flows"`
	}
	out := make([]exported, len(rows))
	for i, r := range rows {
		out[i] = exported{r.ID, r.TargetName, r.Client.String(), r.OpenedAt, r.EndedAt, r.flowLog(r.Flows)}
	}
	return out, nil
}

// Erase puts a pseudonym in place of a user's name; what happened stays.
func (s *Service) Erase(ctx context.Context, tx *db.Tx, userID, pseudonym string) error {
	if _, err := tx.ExecContext(ctx, eraseSQL, userID, pseudonym); err != nil {
		return fmt.Errorf("erase user from network sessions: %w", err)
	}
	return nil
}

// actor is who acts by ctx.
func actor(ctx context.Context) audit.Actor {
	if p := api.PrincipalFrom(ctx); p != nil {
		return audit.By(p)
	}
	return audit.System
}
