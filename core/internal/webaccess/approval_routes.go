package webaccess

import (
	"context"
	"errors"
	"fmt"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/shared/wire"
)

// Approval is a request of a web session that needs a second person.
type Approval struct {
	ID          string             `json:"id"`
	State       wire.ApprovalState `json:"state" enum:"waiting,approved,denied,expired,withdrawn,lost"`
	SessionID   string             `json:"session_id" doc:"the connection's"`
	Own         bool               `json:"own" doc:"whether the asker's own request waits"`
	UserID      string             `json:"user_id"`
	UserName    string             `json:"user_name"`
	TargetID    string             `json:"target_id"`
	TargetName  string             `json:"target_name"`
	Account     string             `json:"account,omitempty"`
	Method      string             `json:"method"`
	RuleMethod  string             `json:"rule_method,omitempty" doc:"the method that the rule saw, if an application may take another: from a header, the query or the body"`
	URL         string             `json:"url" doc:"secrets in its query are masked"`
	ContentType string             `json:"content_type,omitempty"`
	Length      int64              `json:"length_bytes" doc:"of the body; -1: not known"`
	Digest      string             `json:"digest,omitempty" doc:"SHA-256 of method, URL and body"`
	Rule        string             `json:"rule" doc:"what holds it"`
	Why         string             `json:"why,omitempty" doc:"the rule's reason"`
	AskedAt     time.Time          `json:"asked_at"`
	ExpiresAt   time.Time          `json:"expires_at" doc:"refused then"`
	DecidedAt   *time.Time         `json:"decided_at,omitempty"`
	DecidedByID string             `json:"decided_by_id,omitempty"`
	DecidedBy   string             `json:"decided_by,omitempty" doc:"who approved or denied it"`
	Reason      string             `json:"reason,omitempty" doc:"of the decision"`
	MayDecide   bool               `json:"may_decide" doc:"whether the asker may decide on it now"`
	Preview     *Preview           `json:"preview,omitempty" doc:"the body, in the answer about one waiting request that the asker may decide on"`
}

// Preview is a body made readable for those who decide.
type Preview struct {
	Kind string `json:"kind" enum:"form,json,multipart" doc:"how the body was read"`
	Text string `json:"text" doc:"secrets are masked; of multipart names and sizes; at most 64 KiB"`
}

func (a *approvalRow) show(p *api.Principal, now time.Time) *Approval {
	v := &Approval{
		ID: a.ID, State: a.State, SessionID: a.Session, Own: a.UserID == p.UserID, UserID: a.UserID, UserName: a.UserName,
		TargetID: a.TargetID, TargetName: a.TargetName, Account: a.Account, Method: a.Method, RuleMethod: a.RuleMethod, URL: a.URL, ContentType: a.ContentType,
		Length: a.Length, Digest: a.Digest, Rule: a.Rule, Why: a.Why, AskedAt: a.AskedAt, ExpiresAt: a.ExpiresAt,
		DecidedByID: a.DeciderID, DecidedBy: a.DeciderName, Reason: a.Reason,
		MayDecide: mayDecide(a.petition(p, true, false), now) == nil,
	}
	if !a.DecidedAt.IsZero() {
		v.DecidedAt = &a.DecidedAt
	}
	return v
}

func (a *approvalRow) petition(p *api.Principal, person, approve bool) petition {
	return petition{By: p, Person: person, Owner: a.UserID, Group: a.Group, State: a.State, Expires: a.ExpiresAt, Over: a.Over, Locked: a.Locked, Approve: approve}
}

func (s *Service) approvalRoutes(f *api.Frame) {
	const tag = "web-approvals"
	api.Register(f, api.Op{Method: "GET", Path: "/web-approvals", ID: "list-web-approvals", Tag: tag, Who: api.Self(),
		Summary: "List requests of web sessions that need a second person: your own, and those you may decide on"}, s.handleApprovals)
	api.Register(f, api.Op{Method: "GET", Path: "/web-approvals/{id}", ID: "get-web-approval", Tag: tag, Who: api.Self(),
		Summary: "Show a request that needs a second person"}, s.handleApproval)
	api.Register(f, api.Op{Method: "POST", Path: "/web-approvals/{id}/approve", ID: "approve-web-request", Tag: tag, Who: api.NeedsSomewhere(api.WebApprove),
		Summary: "Let a waiting request of somebody else leave, once"}, s.handleApprove)
	api.Register(f, api.Op{Method: "POST", Path: "/web-approvals/{id}/deny", ID: "deny-web-request", Tag: tag, Who: api.NeedsSomewhere(api.WebApprove),
		Summary: "Refuse a waiting request of somebody else"}, s.handleDeny)
	api.Register(f, api.Op{Method: "POST", Path: "/web-approvals/{id}/withdraw", ID: "withdraw-web-request", Tag: tag, Who: api.Self(),
		Summary: "Take back a waiting request of your own"}, s.handleWithdraw)
}

type approvalsIn struct {
	api.PageIn
	State   string `query:"state" enum:"waiting,decided,approved,denied,expired,withdrawn,lost" doc:"decided: all but waiting; all when left out"`
	Session string `query:"session" maxLength:"64" doc:"of one session"`
	Mine    bool   `query:"mine" doc:"only your own"`
}

type approvalsOut struct{ Body api.Page[*Approval] }

type approvalOut struct{ Body *Approval }

// ApprovalIn names a request for approval.
type ApprovalIn struct {
	ID string `path:"id" maxLength:"64"`
}

type decisionIn struct {
	ApprovalIn
	Body struct {
		Reason string `json:"reason,omitempty" maxLength:"500" doc:"shown to the user who waits"`
	}
}

func (s *Service) handleApprovals(ctx context.Context, in *approvalsIn) (*approvalsOut, error) {
	p := api.PrincipalFrom(ctx)
	scope := p.Scope(api.WebApprove)
	if in.Mine {
		scope = access.Scope{}
	}
	after, err := conn.ReadPosition(in.Cursor)
	if err != nil {
		return nil, err
	}
	rows, err := db.Collect(ctx, s.cfg.DB, scanApproval, approvalsSQL, p.UserID, scope.Text(), in.State, in.Session, after.At, after.ID, in.Limit+1)
	if err != nil {
		return nil, fmt.Errorf("list requests for approval: %w", err)
	}
	now := s.cfg.Now()
	list := make([]*Approval, len(rows))
	for i, a := range rows {
		list[i] = a.show(p, now)
	}
	return &approvalsOut{Body: conn.NewestPage(list, in.Limit, func(a *Approval) (time.Time, string) { return a.AskedAt, a.ID })}, nil
}

// readApproval finds one that p sees.
func readApproval(ctx context.Context, q db.Querier, p *api.Principal, id string) (*approvalRow, error) {
	a, err := scanApproval(q.QueryRowContext(ctx, approvalSQL, id))
	if errors.Is(err, db.ErrNotFound) || err == nil && a.UserID != p.UserID && !p.Scope(api.WebApprove).Has(a.Group) {
		return nil, api.Missing("request for approval", id)
	}
	if err != nil {
		return nil, fmt.Errorf("read request for approval: %w", err)
	}
	return a, nil
}

func (s *Service) handleApproval(ctx context.Context, in *ApprovalIn) (*approvalOut, error) {
	p := api.PrincipalFrom(ctx)
	a, err := readApproval(ctx, s.cfg.DB, p, in.ID)
	if err != nil {
		return nil, err
	}
	out := a.show(p, s.cfg.Now())
	if out.MayDecide { // nobody else needs what is in it
		var v Preview
		if err := s.cfg.DB.QueryRowContext(ctx, previewSQL, a.ID).Scan(&v.Kind, &v.Text); err != nil {
			return nil, fmt.Errorf("read preview: %w", db.Classify(err))
		}
		if v.Kind != "" {
			out.Preview = &v
		}
	}
	return &approvalOut{out}, nil
}

func (s *Service) handleApprove(ctx context.Context, in *decisionIn) (*approvalOut, error) {
	return s.decideOn(ctx, in, wire.ApprovalApproved)
}

func (s *Service) handleDeny(ctx context.Context, in *decisionIn) (*approvalOut, error) {
	return s.decideOn(ctx, in, wire.ApprovalDenied)
}

// decideOn approves or denies a request.
func (s *Service) decideOn(ctx context.Context, in *decisionIn, state wire.ApprovalState) (*approvalOut, error) {
	p := api.PrincipalFrom(ctx)
	person, err := s.cfg.Person(ctx, p.UserID)
	if err != nil {
		return nil, err
	}
	var a *approvalRow
	var why *Refused
	err = s.cfg.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if a, err = readApproval(ctx, tx, p, in.ID); err != nil {
			return err
		}
		now := s.cfg.Now()
		if why = mayDecide(a.petition(p, person, state == wire.ApprovalApproved), now); why != nil {
			if why.Status != 403 {
				return nil
			}
			f := a.fields()
			f["code"], f["wanted"] = why.Code, string(state)
			return s.cfg.Audit.Append(ctx, tx, audit.Event{Type: audit.WebApprovalRefused, Outcome: audit.Denied, Actor: audit.By(p),
				Connection: a.Session, Object: a.object(), Fields: f})
		}
		a.State, a.DecidedAt, a.DeciderID, a.DeciderName, a.Reason = state, now, p.UserID, p.UserName, in.Body.Reason
		wrote, err := s.writeFinal(ctx, tx, a, audit.By(p))
		if err == nil && !wrote {
			why = &Refused{Status: 409, Code: "decided", Public: "Somebody else decided on this request just now."}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if why != nil {
		if why.Code == hidden {
			return nil, api.Missing("request for approval", in.ID)
		}
		return nil, conn.Problem(why, "web target")
	}
	return &approvalOut{a.show(p, s.cfg.Now())}, nil
}

func (s *Service) handleWithdraw(ctx context.Context, in *ApprovalIn) (*approvalOut, error) {
	p := api.PrincipalFrom(ctx)
	var a *approvalRow
	var done bool
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		if a, err = readApproval(ctx, tx, p, in.ID); err != nil {
			return err
		}
		if a.UserID != p.UserID {
			return api.Denied("not_yours", "Only the user who waits can take a request back. Deny it instead.")
		}
		if a.State == wire.ApprovalWaiting {
			a.State, a.DecidedAt, a.Reason = wire.ApprovalWithdrawn, s.cfg.Now(), "Its user took it back."
			done, err = s.writeFinal(ctx, tx, a, audit.By(p))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !done {
		return nil, api.Conflict("decided", "This request does not wait any more: it is "+string(a.State)+".")
	}
	return &approvalOut{a.show(p, s.cfg.Now())}, nil
}

// Waiting is a request for approval as the session's viewer shows it.
type Waiting struct {
	ID        string             `json:"id"`
	State     wire.ApprovalState `json:"state" enum:"waiting,approved,denied,expired,withdrawn,lost"`
	Method    string             `json:"method"`
	URL       string             `json:"url"`
	Why       string             `json:"why,omitempty"`
	AskedAt   time.Time          `json:"asked_at"`
	ExpiresAt time.Time          `json:"expires_at"`
	DecidedBy string             `json:"decided_by,omitempty"`
	Reason    string             `json:"reason,omitempty"`
}

// approvals are what waits in the session, and what was decided a moment ago.
func (x *session) approvals() []Waiting {
	out := []Waiting{}
	for _, h := range x.someHeld(false) {
		x.mu.Lock()
		a := h.row
		x.mu.Unlock()
		out = append(out, Waiting{ID: a.ID, State: a.State, Method: a.Method, URL: a.URL, Why: a.Why, AskedAt: a.AskedAt, ExpiresAt: a.ExpiresAt,
			DecidedBy: a.DeciderName, Reason: a.Reason})
	}
	return out
}
