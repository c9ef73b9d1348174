package portaccess

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
)

// Routes registers the room's operations.
func (s *Service) Routes(f *api.Frame) {
	const tag = "port-sessions"
	api.Register(f, api.Op{
		Method: "POST", Path: "/port-sessions", ID: "open-port-session", Tag: tag, Who: api.Self(), Status: 201,
		Summary: "Open a port to a target for one client address",
	}, s.handleOpen)
	api.Register(f, api.Op{
		Method: "GET", Path: "/port-sessions", ID: "list-port-sessions", Tag: tag, Who: api.Self(), Summary: "List port sessions, newest first",
	}, s.handleList)
	api.Register(f, api.Op{
		Method: "GET", Path: "/port-sessions/{id}", ID: "get-port-session", Tag: tag, Who: api.Self(), Summary: "Show a port session",
	}, s.handleGet)
	api.Register(f, api.Op{
		Method: "DELETE", Path: "/port-sessions/{id}", ID: "close-port-session", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Close a port session and everything on it",
	}, s.handleClose)
}

type openIn struct {
	UserAgent string `header:"User-Agent"`
	Body      struct {
		Target   string `json:"target" minLength:"1" maxLength:"320" doc:"name, id or address"`
		Account  string `json:"account,omitempty" maxLength:"128"`
		Client   string `json:"client_ip,omitempty" maxLength:"64" doc:"the only address that may connect; your own by default"`
		Duration int    `json:"duration_s,omitempty" minimum:"0" maximum:"86400" doc:"seconds; 3600 by default"`
		Reason   string `json:"reason,omitempty" maxLength:"1000"`
		Class    string `json:"class,omitempty" enum:"bulk,interactive" doc:"interactive goes before bulk in a busy tunnel; bulk by default"`
	}
}

type sessionOut struct{ Body *Session }

func (s *Service) handleOpen(ctx context.Context, in *openIn) (*sessionOut, error) {
	p := api.PrincipalFrom(ctx)
	client := api.SourceFrom(ctx)
	if in.Body.Client != "" {
		var err error
		if client, err = netip.ParseAddr(in.Body.Client); err != nil || client.IsUnspecified() || client.IsMulticast() {
			return nil, api.Invalid(api.FieldError{Field: "client_ip", Message: "give one IP address"})
		}
	}
	if !client.IsValid() {
		return nil, api.Invalid(api.FieldError{Field: "client_ip", Message: "your address is not known here: give it"})
	}
	x, err := s.Open(ctx, p, Request{
		Target: in.Body.Target, Account: in.Body.Account, Client: client, Reason: in.Body.Reason, UserAgent: in.UserAgent,
		Duration: time.Duration(in.Body.Duration) * time.Second, Interactive: in.Body.Class == "interactive",
	})
	if err != nil {
		return nil, s.problem(err)
	}
	return &sessionOut{Body: x}, nil
}

// problem puts a refusal into the caller's words.
func (s *Service) problem(err error) error {
	if r, ok := errors.AsType[*Refused](err); ok {
		return api.Denied("access_denied", r.Public)
	}
	if l, ok := errors.AsType[*conn.LimitError](err); ok {
		return api.Unavailable("connection_limit", l.Public)
	}
	if b, ok := errors.AsType[*conn.BlockedError](err); ok {
		return api.Denied("locked", b.Public)
	}
	switch {
	case errors.Is(err, ErrOff):
		return api.Unavailable("ports_off", "Session ports are switched off on this server (listen.sessions). Use the SSH bastion's forwarding instead.")
	case errors.Is(err, ErrExhausted):
		return api.Unavailable("ports_exhausted", fmt.Sprintf(
			"All %d session ports (%d to %d) are in use. Close a session or try again later.", s.cfg.Last-s.cfg.First+1, s.cfg.First, s.cfg.Last))
	case errors.Is(err, conn.ErrDraining):
		return api.Unavailable("draining", "This core is shutting down.")
	}
	return err
}

type ListIn struct {
	api.PageIn
	All bool `query:"all" doc:"also closed sessions"`
}

type listOut struct{ Body api.Page[*Session] }

func (s *Service) handleList(ctx context.Context, in *ListIn) (*listOut, error) {
	p := api.PrincipalFrom(ctx)
	after, err := conn.ReadPosition(in.Cursor)
	if err != nil {
		return nil, err
	}
	closed := 0
	if in.All {
		closed = 1
	}
	xs, err := db.Collect(ctx, s.cfg.DB, scanSession, listSQL, p.UserID, closed, after.At, after.ID, in.Limit+1, p.Scope(api.ConnectionsView).Text())
	if err != nil {
		return nil, fmt.Errorf("list port sessions: %w", err)
	}
	return &listOut{Body: conn.NewestPage(xs, in.Limit, func(x *Session) (time.Time, string) { return x.OpenedAt, x.ConnectionID })}, nil
}

// visible returns a session of the caller's, or any with the permission.
func (s *Service) visible(ctx context.Context, id string, perm api.Permission) (*Session, error) {
	p := api.PrincipalFrom(ctx)
	x, err := scanSession(s.cfg.DB.QueryRowContext(ctx, getSQL, id))
	if err == nil && x.UserID != p.UserID {
		var group string
		if err = db.Classify(s.cfg.DB.QueryRowContext(ctx, groupSQL, id).Scan(&group)); err == nil && !access.Sees(p.Scope(perm), access.Scope{}, group) {
			err = db.ErrNotFound
		}
	}
	if errors.Is(err, db.ErrNotFound) {
		return nil, api.Missing("port session", id)
	}
	if err != nil {
		return nil, fmt.Errorf("read port session %s: %w", id, err)
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
	return nil, conn.Over(s.cfg.Conns.Terminate(ctx, x.ConnectionID, api.PrincipalFrom(ctx), "The session was closed."))
}
