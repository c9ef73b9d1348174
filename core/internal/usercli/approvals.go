package usercli

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// approvalsCmd is for those who decide on requests of others' web sessions.
type approvalsCmd struct {
	List    approvalsList    `cmd:"" default:"withargs" help:"List requests of web sessions that wait for a second person."`
	Approve approvalsApprove `cmd:"" help:"Let a waiting request of somebody else leave, once."`
	Deny    approvalsDeny    `cmd:"" help:"Refuse a waiting request of somebody else."`
}

type approvalItem struct {
	ID        string    `json:"id"`
	State     string    `json:"state"`
	UserName  string    `json:"user_name"`
	Target    string    `json:"target_name"`
	Method    string    `json:"method"`
	URL       string    `json:"url"`
	Why       string    `json:"why"`
	AskedAt   time.Time `json:"asked_at"`
	DecidedBy string    `json:"decided_by"`
	Reason    string    `json:"reason"`
}

type approvalsList struct {
	All bool `short:"a" help:"Also those that were decided on."`
}

func (l approvalsList) Run(e *env) error {
	q := url.Values{}
	if !l.All {
		q.Set("state", "waiting")
	}
	return list(e, "/web-approvals", q, maxListed, "ID STATE USER TARGET METHOD URL ASKED NOTE", func(a approvalItem) []string {
		note := a.Why
		if a.DecidedBy != "" || a.Reason != "" {
			note = a.DecidedBy + " " + a.Reason
		}
		return []string{a.ID, a.State, a.UserName, a.Target, a.Method, a.URL, when(a.AskedAt), note}
	})
}

type approvalsApprove struct {
	ID     string `arg:"" help:"ID of the request, from caponier approvals."`
	Reason string `help:"Shown to the user who waits." placeholder:"TEXT"`
}

func (a approvalsApprove) Run(e *env) error { return decideApproval(e, a.ID, "approve", a.Reason) }

type approvalsDeny struct {
	ID     string `arg:"" help:"ID of the request, from caponier approvals."`
	Reason string `help:"Shown to the user who waits." placeholder:"TEXT"`
}

func (a approvalsDeny) Run(e *env) error { return decideApproval(e, a.ID, "deny", a.Reason) }

func decideApproval(e *env, id, to, reason string) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	out, err := sendDecision(e.ctx, c, id, to, reason)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(out)
	}
	return e.printf("%s: %s %s of %s\n", out.State, plain(out.Method), plain(out.URL), plain(out.UserName))
}

func sendDecision(ctx context.Context, c *client, id, to, reason string) (out approvalItem, err error) {
	err = c.do(ctx, http.MethodPost, "/web-approvals/"+url.PathEscape(id)+"/"+to, map[string]string{"reason": reason}, &out)
	return out, err
}
