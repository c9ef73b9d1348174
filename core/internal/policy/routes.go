package policy

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/target"
)

// reachView is a target as its users see it: without tags, origin and trust
// settings.
type reachView struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Site    string `json:"site"`
	Address string `json:"address" doc:"site/host:port"`
	Host    string `json:"host"`
	Port    int    `json:"port"`
	Comment string `json:"comment"`
	Problem string `json:"problem,omitempty" doc:"why it cannot be reached now, as far as that is known without trying"`
	// Network tells what a network target opens, and how to use it.
	Network           *target.NetworkText `json:"network,omitempty"`
	DestinationsTotal int                 `json:"destinations_total,omitempty" doc:"of a network target; the first 20 are shown"`
}

type entryView struct {
	Target     reachView `json:"target"`
	Account    string    `json:"account"`
	Features   []string  `json:"features" nullable:"false"`
	Record     bool      `json:"record" doc:"the session will be recorded"`
	NeedMFA    bool      `json:"need_mfa" doc:"only after a login with a second factor"`
	NeedReason bool      `json:"need_reason" doc:"a reason must be given"`
}

func viewEntry(e *Entry) entryView {
	t := &e.Target
	v := entryView{
		Target: reachView{ID: t.ID, Name: t.Name, Kind: string(t.Kind), Site: t.Site, Address: t.FullAddress(),
			Host: t.Host, Port: t.Port, Comment: t.Comment},
		Account: e.Account, Features: e.Features.Names(), Record: e.Record, NeedMFA: e.NeedMFA, NeedReason: e.NeedReason,
	}
	if t.Network != nil {
		// What goes to routers only is not the users' business.
		n := *t.Network.Brief()
		n.Provider, n.Static = target.NoProvider, nil
		v.Target.Network, v.Target.DestinationsTotal = target.ViewNetwork(&n), len(t.Network.Destinations)
	}
	return v
}

// tellProblems says of what cannot be reached now why, each site asked once.
func (s *Service) tellProblems(ctx context.Context, entries []entryView) {
	if s.c.Network == nil {
		return
	}
	known := map[string]string{}
	for i := range entries {
		t := &entries[i].Target
		if t.Kind == string(target.Web) && s.c.Web != nil {
			if t.Problem = s.c.Web.Problem(); t.Problem != "" {
				continue
			}
		}
		if t.Site == "" {
			continue
		}
		why, ok := known[t.Site]
		if !ok {
			why = s.c.Network.Unreachable(ctx, t.Site)
			known[t.Site] = why
		}
		t.Problem = why
	}
}

type stageView struct {
	Name    string  `json:"name" doc:"user, policy, carrier, webproxy, route, tunnel, edge_policy, dns, tcp, tls, banner, host_key, login"`
	OK      bool    `json:"ok"`
	Skipped bool    `json:"skipped,omitempty"`
	MS      float64 `json:"ms"`
	Text    string  `json:"text"`
	Fix     string  `json:"fix,omitempty" doc:"what to do about it"`
}

type explanationView struct {
	Allowed bool        `json:"allowed" doc:"by policy"`
	Works   bool        `json:"works" doc:"every step is good"`
	Reason  string      `json:"reason"`
	Target  string      `json:"target"`
	Account string      `json:"account"`
	Want    string      `json:"want"`
	Stages  []stageView `json:"stages" nullable:"false"`
}

type position struct {
	After string `json:"a"`
}

// Routes registers /me/targets and /targets/{id}/explain.
func (s *Service) Routes(f *api.Frame) {
	api.Register(f, api.Op{Method: "GET", Path: "/me/targets", ID: "list-my-targets", Tag: "targets", Who: api.Self(),
		Summary: "What the caller may reach now, by target name; limit counts targets"},
		func(ctx context.Context, in *struct {
			api.PageIn
			Search string   `query:"search" maxLength:"200" doc:"anywhere in name or host"`
			Kind   string   `query:"kind" maxLength:"20"`
			Site   string   `query:"site" maxLength:"64"`
			Only   []string `query:"only" maxItems:"200" doc:"IDs of targets, separated by commas"`
		}) (*struct{ Body api.Page[entryView] }, error) {
			var at position
			if err := api.DecodeCursor(in.Cursor, &at); err != nil {
				return nil, err
			}
			p := api.PrincipalFrom(ctx)
			entries, more, err := s.list(ctx, p, p.Source, target.Reach{Search: in.Search, Kind: target.Kind(in.Kind), Site: in.Site, IDs: in.Only}, at.After, in.Limit)
			if err != nil {
				return nil, err
			}
			page := api.Page[entryView]{Items: make([]entryView, len(entries))}
			for i := range entries {
				page.Items[i] = viewEntry(&entries[i])
			}
			s.tellProblems(ctx, page.Items)
			if more {
				page.Next = api.EncodeCursor(position{entries[len(entries)-1].Target.Name})
			}
			return &struct{ Body api.Page[entryView] }{page}, nil
		})
	type question struct {
		ID      string `path:"id" maxLength:"400" doc:"ID or name"`
		User    string `query:"user" maxLength:"100" doc:"name or ID; the caller when left out. Others need users:view and targets:view"`
		Account string `query:"account" maxLength:"64"`
		Want    string `query:"want" maxLength:"20" doc:"one of shell, exec, file_transfer, forward, …; shell for SSH when left out"`
		Source  string `query:"source" maxLength:"60" doc:"address the user would come from; the caller's when left out"`
	}
	api.Register(f, api.Op{Method: "GET", Path: "/targets/{id}/explain", ID: "explain-target", Tag: "targets", Who: api.Self(),
		Summary: "Why can (or can not) this user reach this target: every step with its time and the fix"},
		func(ctx context.Context, in *question) (*struct{ Body explanationView }, error) {
			return s.explainRoute(ctx, in.ID, in.User, in.Account, in.Want, in.Source)
		})
}

func (s *Service) explainRoute(ctx context.Context, ref, who, account, want, source string) (*struct{ Body explanationView }, error) {
	p := api.PrincipalFrom(ctx)
	userID, mfa, full, err := s.asker(ctx, p, who)
	if err != nil {
		return nil, err
	}
	q := Question{UserID: userID, MFA: mfa, Account: account, Source: p.Source, Full: full}
	if want != "" {
		if q.Want, err = access.ParseFeatures([]string{want}); err != nil || want == "all" {
			return nil, api.Invalid(api.FieldError{Field: "query.want", Message: "must be one feature, such as shell"})
		}
	}
	if source != "" {
		if q.Source, err = netip.ParseAddr(source); err != nil || !full {
			return nil, api.Invalid(api.FieldError{Field: "query.source", Message: "must be an address, and only administrators may set it"})
		}
	}
	t, full, err := s.explained(ctx, p, q, ref)
	if err != nil {
		return nil, err
	}
	if source != "" && !full {
		return nil, api.Invalid(api.FieldError{Field: "query.source", Message: "must be an address, and only administrators may set it"})
	}
	q.Target, q.Full = *t, full
	e, err := s.Explain(ctx, q)
	if errors.Is(err, ErrBusy) {
		return nil, api.Limited("Others are asking at the moment. Try again shortly.", 1)
	}
	if err != nil {
		return nil, err
	}
	view := explanationView{Allowed: e.Allowed, Works: e.Works, Reason: e.Reason.String(), Target: t.Name, Account: account, Want: want, Stages: []stageView{}}
	for _, st := range e.Stages {
		view.Stages = append(view.Stages, stageView(st))
	}
	return &struct{ Body explanationView }{view}, nil
}

// explained finds the target and tells whether the caller looks after it. Of
// others he finds only those some role opens to him: the rest do not exist for
// him.
func (s *Service) explained(ctx context.Context, p *api.Principal, q Question, ref string) (*target.Target, bool, error) {
	found, err := s.c.Targets.Candidates(ctx, s.c.DB, ref)
	if err != nil {
		return nil, false, err
	}
	scope := p.Scope(api.TargetsView)
	if mine := slices.DeleteFunc(slices.Clone(found), func(t target.Target) bool {
		return !access.Sees(scope, access.Scope{}, t.Group)
	}); len(mine) == 1 {
		return &mine[0], true, nil
	} else if len(mine) > 1 {
		e := target.AmbiguousError{Ref: ref, Candidates: mine}
		return nil, false, api.Conflict("ambiguous", sentence(e.Error()))
	}
	// Not a target of the caller's groups: he asks as a user.
	if len(found) != 1 || q.UserID != p.UserID {
		return nil, false, api.Missing("target", ref)
	}
	t := &found[0]
	sub, err := s.c.Users.Subject(ctx, s.c.DB, p.UserID, p.MFA)
	if err != nil {
		return nil, false, err
	}
	grants, err := s.c.Targets.GrantsFor(ctx, s.c.DB, t, roles(&sub))
	if err != nil {
		return nil, false, err
	}
	for _, g := range grants {
		if !g.Disabled {
			return t, false, nil
		}
	}
	return nil, false, api.Missing("target", ref)
}
