package usercli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// approvalsCmd is for those who decide on requests of others' web sessions.
type approvalsCmd struct {
	List    approvalsList    `cmd:"" default:"withargs" help:"List requests of web sessions that wait for a second person."`
	Show    approvalsShow    `cmd:"" help:"Show a request, and what is in it."`
	Approve approvalsApprove `cmd:"" help:"Let a waiting request of somebody else leave, once."`
	Deny    approvalsDeny    `cmd:"" help:"Refuse a waiting request of somebody else."`
}

type approvalItem struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	UserName string `json:"user_name"`
	Target   string `json:"target_name"`
	Account  string `json:"account"`
	Method   string `json:"method"`
	// RuleMethod is the method that the rule saw, if not Method.
	RuleMethod  string `json:"rule_method"`
	ContentType string `json:"content_type"`
	Length      int64  `json:"length_bytes"`
	Rule        string `json:"rule"`
	Preview     *struct {
		Kind string `json:"kind"`
		Text string `json:"text"`
	} `json:"preview"`
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
			note = a.decided()
		}
		return []string{a.ID, a.State, a.UserName, a.Target, a.method(), a.URL, when(a.AskedAt), note}
	})
}

// decided says who decided, and why. What is lost may have been approved before.
func (a approvalItem) decided() string {
	by := a.DecidedBy
	if a.State == "lost" && by != "" {
		by = "approved by " + by + ":"
	}
	return strings.TrimSpace(by + " " + a.Reason)
}

// method is what stands in the request line, and what the rule saw.
func (a approvalItem) method() string {
	if a.RuleMethod == "" || a.RuleMethod == a.Method {
		return a.Method
	}
	return a.Method + " as " + a.RuleMethod
}

type approvalsShow struct {
	ID string `arg:"" help:"ID of the request, from caponier approvals."`
}

func (s approvalsShow) Run(e *env) error {
	c, _, err := e.session()
	if err != nil {
		return err
	}
	var raw json.RawMessage
	if err := c.do(e.ctx, http.MethodGet, "/web-approvals/"+url.PathEscape(s.ID), nil, &raw); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(raw)
	}
	var a approvalItem
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return e.printf("%s", a.text())
}

// text is all that is known of a request, for who decides on it.
func (a approvalItem) text() string {
	var b strings.Builder
	line := func(name, v string) {
		if v != "" {
			fmt.Fprintf(&b, "%-9s %s\n", name, plain(v))
		}
	}
	line("ID", a.ID)
	line("State", a.State)
	line("User", a.UserName)
	line("Target", a.Target)
	line("Account", a.Account)
	line("Request", a.Method+" "+a.URL)
	if a.method() != a.Method {
		line("Counts as", a.RuleMethod+": the application may take the method from elsewhere than the request line")
	}
	line("Rule", a.Rule)
	line("Why", a.Why)
	line("Decided", a.decided())
	switch {
	case a.Preview != nil:
		line("Body", fmt.Sprintf("%d bytes, %s; secrets are not shown", a.Length, a.Preview.Kind))
		for l := range strings.SplitSeq(a.Preview.Text, "\n") {
			b.WriteString("  " + plain(l) + "\n")
		}
	case a.Length > 0:
		line("Body", strings.TrimSpace(fmt.Sprintf("%d bytes %s", a.Length, a.ContentType)))
	case a.Length < 0:
		line("Body", strings.TrimSpace("of unknown length "+a.ContentType))
	}
	return b.String()
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
	return e.printf("%s: %s %s of %s\n", out.State, plain(out.method()), plain(out.URL), plain(out.UserName))
}

func sendDecision(ctx context.Context, c *client, id, to, reason string) (out approvalItem, err error) {
	err = c.do(ctx, http.MethodPost, "/web-approvals/"+url.PathEscape(id)+"/"+to, map[string]string{"reason": reason}, &out)
	return out, err
}
