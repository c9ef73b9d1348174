package bastion

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// refusal is a refusal with its text for the user; it is no malfunction.
type refusal struct {
	public string
	code   string // for the audit log
	reason access.Reason
}

// Error implements error.
func (r *refusal) Error() string { return r.public }

func refused(code, format string, args ...any) *refusal {
	return &refusal{public: fmt.Sprintf(format, args...), code: code}
}

// public returns what the user is told about err. Anything that was not
// written for users is logged and replaced by a reference.
func (s *Server) public(err error) string {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.public
	}
	if t, ok := errors.AsType[*conn.Terminated](err); ok {
		return t.Public
	}
	if w, ok := errors.AsType[*wire.Error](err); ok {
		return w.Public
	}
	if l, ok := errors.AsType[*conn.LimitError](err); ok {
		return l.Public
	}
	if b, ok := errors.AsType[*conn.BlockedError](err); ok {
		return b.Public
	}
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return strings.TrimSpace(p.Title + " " + p.Detail)
	}
	switch {
	case errors.Is(err, errStopped), errors.Is(err, conn.ErrDraining):
		return "The bastion is shutting down."
	case errors.Is(err, context.DeadlineExceeded):
		return "The target did not answer in time."
	}
	ref := strings.ToLower(rand.Text()[:8])
	s.cfg.Log.Error("bastion", "ref", ref, "err", err)
	return "Internal error. Tell your administrator this reference: " + ref
}

// use is one audited connection with the decision behind it.
type use struct {
	id      string
	live    Live
	verdict policy.Verdict
	want    access.Feature
	reason  string
	once    sync.Once
	linked  sync.Once
}

// connected marks the connection established, once.
func (u *use) connected(r fleet.Route) { u.linked.Do(func() { u.live.Connected(r) }) }

// end closes the record once.
func (u *use) end(r conn.EndReason, err error) {
	u.once.Do(func() { u.live.Close(r, err) })
}

// ask is one question to policy with how to record the use when it is allowed.
type ask struct {
	target, account string
	want            access.Feature
	kind            string // conn.Spec.Kind
	reason          string
}

// decide asks policy; a refusal comes back as *refusal and is audited.
func (l *login) decide(ctx context.Context, q ask) (policy.Verdict, error) {
	if err := l.valid(); err != nil {
		return policy.Verdict{}, err
	}
	v, err := l.s.decide(ctx, l.principal, l.source, q)
	if err == nil && !v.OK() {
		l.s.auditRefusal(ctx, l.principal, q, v.Reason.String())
	}
	return v, verdictError(v, err)
}

func (s *Server) decide(ctx context.Context, p *api.Principal, source netip.Addr, q ask) (policy.Verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	v, err := s.cfg.Policy.Decide(ctx, policy.Query{
		Principal: p, Target: q.target, Account: q.account, Want: q.want, Reason: q.reason, Source: source})
	if err != nil {
		return policy.Verdict{}, fmt.Errorf("decide: %w", err)
	}
	if v.OK() && v.Target == nil {
		return policy.Verdict{}, errors.New("decide: allowed without a target")
	}
	return v, nil
}

func verdictError(v policy.Verdict, err error) error {
	if err != nil || v.OK() {
		return err
	}
	text := v.Public
	if text == "" {
		text = "You may not do this."
	}
	return &refusal{public: text, code: "denied", reason: v.Reason}
}

// auditRefusal records a use that was refused. Failing to write it is logged:
// the use is refused either way.
func (s *Server) auditRefusal(ctx context.Context, p *api.Principal, q ask, code string) {
	e := audit.Event{
		Type: audit.ConnectionDenied, Outcome: audit.Denied, Actor: audit.By(p),
		Object: audit.Object{Kind: "target", Name: q.target},
		Fields: map[string]string{"account": q.account, "want": q.want.String(), "kind": q.kind, "reason": code},
	}
	if err := s.cfg.Audit.Write(ctx, e); err != nil {
		s.cfg.Log.Error("audit of a refusal", "err", err)
	}
}

// open decides and opens the audited connection.
func (l *login) open(ctx context.Context, q ask) (*use, error) {
	v, err := l.decide(ctx, q)
	if err != nil {
		return nil, err
	}
	return l.s.open(ctx, l.principal, l.source, l.agent(), q, v)
}

func (s *Server) open(ctx context.Context, p *api.Principal, source netip.Addr, agent string, q ask, v policy.Verdict) (*use, error) {
	if len(agent) > 200 {
		agent = agent[:200]
	}
	account := q.account
	if v.Account != nil {
		account = v.Account.Name
	}
	id, live, err := s.cfg.Connections.Open(ctx, conn.Spec{
		Kind: q.kind, Principal: p,
		TargetID: v.Target.ID, TargetName: v.Target.Name, TargetAddress: addressOf(v.Target), Site: v.Target.Site,
		Account: account, Want: q.want, Source: source, UserAgent: agent, Reason: q.reason, Decision: v.Decision, Lockable: true,
	})
	if _, ok := errors.AsType[*conn.BlockedError](err); ok {
		s.auditRefusal(ctx, p, q, "locked")
	}
	if err != nil {
		return nil, fmt.Errorf("open connection: %w", err)
	}
	return &use{id: id, live: live, verdict: v, want: q.want, reason: q.reason}, nil
}

// also asks whether a further feature may be used beside what u was opened
// for, under the same decision.
func (u *use) also(want access.Feature) error {
	if u.live.Use(want) {
		return nil
	}
	u.live.Channel("refused", want.String())
	return refused("denied", "your role does not allow it on %s.", u.verdict.Target.Name)
}

func addressOf(t *target.Target) string { return withPort(t.Host, t.Port) }

// featureText names a feature in a sentence.
func featureText(f access.Feature) string {
	switch f {
	case access.X11:
		return "X11 forwarding"
	case access.AgentForward:
		return "agent forwarding"
	}
	return f.String()
}

// resolve completes what a login name asks for: the account when it names
// none and only one fits, and the target when it is named with its port. What
// is not found stays as it is; policy words the refusal, the same for an
// unknown and a forbidden target.
func (s *Server) resolve(ctx context.Context, p *api.Principal, n loginName, source netip.Addr) (loginName, error) {
	if n.Account != "" && !strings.Contains(n.Target, ":") {
		return n, nil
	}
	found, err := s.find(ctx, p, n.Target, source)
	if err != nil || len(found) == 0 {
		return n, err
	}
	asked := n.Target
	n.Target = found[0].Target.ID
	if n.Account != "" {
		return n, nil
	}
	var hints []string
	for _, e := range found {
		n.Account = e.Account
		hints = append(hints, loginName{User: n.User, Account: e.Account, Target: asked}.format(s.cfg.Separator()))
	}
	if len(found) > 1 {
		return n, refused("which_account", "Several accounts fit. Log in as one of: %s", strings.Join(hints[:min(len(hints), 5)], ", "))
	}
	return n, nil
}

// find lists what the user may use on the target that ref names.
func (s *Server) find(ctx context.Context, p *api.Principal, ref string, source netip.Addr) ([]policy.Entry, error) {
	_, host := splitSite(ref)
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	for _, search := range []string{host, ""} {
		var found []policy.Entry
		err := s.each(ctx, p, source, search, func(e policy.Entry) bool {
			if matches(ref, &e.Target) {
				found = append(found, e)
			}
			return true
		})
		if err != nil || len(found) > 0 {
			return found, err
		}
	}
	return nil, nil
}

// each calls f for what the user may reach, ordered, until f returns false.
func (s *Server) each(ctx context.Context, p *api.Principal, source netip.Addr, search string, f func(policy.Entry) bool) error {
	after := ""
	for range maxPages {
		page, err := s.cfg.Policy.List(ctx, p, source, search, after, pageRows)
		if err != nil {
			return fmt.Errorf("list targets: %w", err)
		}
		rows, next := wholeTargets(page, pageRows)
		for _, e := range rows {
			if !f(e) {
				return nil
			}
		}
		if len(page) < pageRows || next == after {
			return nil
		}
		after = next
	}
	return nil
}

// maxPages × pageRows bounds how much of a listing is read for one login.
const (
	maxPages = 50
	pageRows = 200
)

// wholeTargets drops the rows of a last target that a full page may have cut
// in the middle, and returns the cursor behind what is left.
func wholeTargets(page []policy.Entry, limit int) (rows []policy.Entry, next string) {
	if len(page) == 0 {
		return nil, ""
	}
	last := page[len(page)-1].Target.Name
	if len(page) < limit {
		return page, last
	}
	cut := len(page)
	for cut > 0 && page[cut-1].Target.Name == last {
		cut--
	}
	if cut == 0 {
		return page, last
	}
	return page[:cut], page[cut-1].Target.Name
}

// matches reports whether ref names t by name, ID or address.
func matches(ref string, t *target.Target) bool {
	if ref == t.Name || ref == t.ID || ref == withPort(t.Name, t.Port) {
		return true
	}
	site, host := splitSite(ref)
	if site != t.Site {
		return false
	}
	return host == t.Host || host == "["+t.Host+"]" || host == addressOf(t)
}
