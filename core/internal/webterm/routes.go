package webterm

import (
	"context"
	"errors"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/policy"
)

// Routes registers the room's operations. Every login has its own sessions
// only; watching needs connections:watch.
func (s *Service) Routes(f *api.Frame) {
	s.fail = f.Fail
	const tag = "terminal-sessions"
	api.Register(f, api.Op{
		Method: "POST", Path: "/terminal-sessions", ID: "open-terminal", Tag: tag, Who: api.Self(), Status: 201,
		Summary: "Open a terminal on a target",
	}, s.handleOpen)
	api.Register(f, api.Op{
		Method: "GET", Path: "/terminal-sessions", ID: "list-terminals", Tag: tag, Who: api.Self(),
		Summary: "List your terminals on this core",
	}, s.handleList)
	api.Register(f, api.Op{
		Method: "GET", Path: "/terminal-sessions/{id}", ID: "get-terminal", Tag: tag, Who: api.Self(), Summary: "Show a terminal of yours",
	}, s.handleGet)
	api.Register(f, api.Op{
		Method: "DELETE", Path: "/terminal-sessions/{id}", ID: "close-terminal", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Close a terminal of yours",
	}, s.handleClose)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/terminal-sessions/{id}/socket", ID: "terminal-socket", Tag: tag, Who: api.Self(), Status: 101,
		Summary: "The terminal's websocket (binary protocol, see docs/connect.md)",
	}, s.handleSocket)
	s.fileRoutes(f)
	api.RegisterRaw(f, api.Op{
		Method: "GET", Path: "/connections/{id}/watch", ID: "watch-connection", Tag: "connections", Who: api.NeedsSomewhere(api.ConnectionsWatch), Status: 101,
		Summary: "Watch a live connection over a websocket (binary protocol, see docs/connect.md)",
	}, s.handleWatch)
}

type openBody struct {
	Target  string `json:"target" minLength:"1" maxLength:"300" doc:"name, ID or address of a target"`
	Account string `json:"account,omitempty" maxLength:"128" doc:"empty: the only one that fits"`
	Reason  string `json:"reason,omitempty" maxLength:"500"`
	Cols    int    `json:"cols,omitempty" minimum:"1" maximum:"1000" default:"80"`
	Rows    int    `json:"rows,omitempty" minimum:"1" maximum:"1000" default:"24"`
}

type openIn struct {
	Agent string `header:"User-Agent"`
	Body  openBody
}

// Terminal is a session as the API shows it.
type Terminal struct {
	ID        string    `json:"id"`
	Target    string    `json:"target"`
	Account   string    `json:"account,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	Attached  bool      `json:"attached" doc:"whether a browser shows it now"`
	State
}

type terminalOut struct{ Body Terminal }

func (x *session) terminal() Terminal {
	x.mu.Lock()
	defer x.mu.Unlock()
	return Terminal{ID: x.id, Target: x.target, Account: x.account, CreatedAt: x.createdAt.UTC(), Attached: x.attached != nil, State: x.state}
}

func (s *Service) handleOpen(ctx context.Context, in *openIn) (*terminalOut, error) {
	p := api.PrincipalFrom(ctx)
	source := api.SourceFrom(ctx)
	if in.Body.Account != "" {
		v, err := s.cfg.Policy.Decide(ctx, policy.Query{
			Principal: p, Target: in.Body.Target, Account: in.Body.Account, Want: access.Shell, Reason: in.Body.Reason, Source: source})
		if err != nil {
			return nil, err
		}
		// Other refusals come from the bastion, which audits them.
		if v.Reason == access.NeedReason && strings.TrimSpace(in.Body.Reason) == "" {
			return nil, api.Denied("reason_needed", v.Public)
		}
	}
	x, err := s.open(p, source, printable(in.Agent), in.Body)
	if err != nil {
		s.metrics.refused.Inc()
		if _, ok := errors.AsType[*api.Problem](err); ok {
			return nil, err
		}
		return nil, api.Unavailable("not_connected", "The terminal could not be started: "+err.Error())
	}
	t := time.NewTimer(s.limits.Connect)
	defer t.Stop()
	select {
	case <-x.opened:
	case <-ctx.Done():
		x.close(ctx)
		return nil, ctx.Err()
	case <-t.C:
	}
	x.mu.Lock()
	refusal := x.refusal
	x.mu.Unlock()
	if refusal != nil {
		s.metrics.refused.Inc()
		x.cancel(errClosed)
		return nil, refusal
	}
	s.metrics.opened.Inc()
	x.told()
	return &terminalOut{Body: x.terminal()}, nil
}

// printable drops control characters and bounds text of a client.
func printable(t string) string {
	t = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(t, ""))
	if len(t) > 200 {
		t = strings.ToValidUTF8(t[:200], "")
	}
	return t
}

type idIn struct {
	ID string `path:"id" maxLength:"64"`
}

type listOut struct {
	Body struct {
		Items []Terminal `json:"items"`
	}
}

func (s *Service) handleList(ctx context.Context, _ *struct{}) (*listOut, error) {
	p := api.PrincipalFrom(ctx)
	s.mu.Lock()
	var own []*session
	for _, x := range s.sessions {
		if x.of(p) {
			own = append(own, x)
		}
	}
	s.mu.Unlock()
	out := &listOut{}
	out.Body.Items = []Terminal{}
	for _, x := range own {
		out.Body.Items = append(out.Body.Items, x.terminal())
	}
	sortTerminals(out.Body.Items)
	return out, nil
}

func (s *Service) handleGet(ctx context.Context, in *idIn) (*terminalOut, error) {
	x, _, err := s.find(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	return &terminalOut{Body: x.terminal()}, nil
}

func (s *Service) handleClose(ctx context.Context, in *idIn) (*struct{}, error) {
	x, _, err := s.find(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	x.close(ctx)
	return nil, nil
}
