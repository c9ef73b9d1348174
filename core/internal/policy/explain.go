package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// Network tries a destination step by step; *fleet.Fleet does.
type Network interface {
	Probe(ctx context.Context, r fleet.DialRequest) []fleet.DialStage
	// Unreachable says why nothing of a site can be reached now; empty: it can.
	Unreachable(ctx context.Context, site string) string
}

// Prober tries what comes after the TCP connection: banner, host key, login.
// It leaves nothing open and changes nothing. a is nil when no account is asked for.
type Prober interface {
	ProbeLogin(ctx context.Context, t *target.Target, a *target.Account) []fleet.DialStage
}

// WebProber tries what a web session needs besides the way to the target.
type WebProber interface {
	// ProbeNodes says whether a carrier and a webproxy would take a session.
	ProbeNodes(ctx context.Context, t *target.Target) []fleet.DialStage
	// ProbeTLS makes a TLS handshake with the target, believing what a session
	// would believe.
	ProbeTLS(ctx context.Context, t *target.Target) []fleet.DialStage
	// Problem says why no web session at all could be opened now; empty: some can.
	Problem() string
}

// Stage is one timed step between a user and a target.
type Stage struct {
	// Name is user, policy, route, tunnel, edge_policy, dns, tcp, banner,
	// host_key or login; for web targets carrier, webproxy and tls.
	Name string
	OK   bool
	// Skipped: not tried, because an earlier step failed or it does not apply.
	Skipped bool
	MS      float64
	Text    string
	Fix     string // what to do about it; empty when nothing is wrong
}

// Explanation says whether a use would work, and if not at which step.
type Explanation struct {
	Allowed bool // by policy
	Works   bool // every step is good
	Reason  access.Reason
	Stages  []Stage
}

// Limits of explanations: they make real connections.
const (
	maxExplaining  = 8
	explainTimeout = 30 * time.Second
)

// ErrBusy: too many explanations run at once.
var ErrBusy = errors.New("too many explanations at once")

// Question is what is to be explained.
type Question struct {
	UserID  string
	MFA     bool
	Target  target.Target
	Account string
	Want    access.Feature // 0 = what the kind is mostly used for
	Source  netip.Addr
	// Full shows policy details and network steps even when the policy
	// refuses; only for administrators. Others learn about the network only
	// where they may go.
	Full bool
}

// Explain goes the way of a connection and reports each step. It opens
// nothing for the user and starts no floating membership.
func (s *Service) Explain(ctx context.Context, q Question) (*Explanation, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return nil, ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	if q.Want == 0 {
		q.Want = access.Forward
		switch q.Target.Kind {
		case target.SSH:
			q.Want = access.Shell
		case target.Network:
			q.Want = access.Network
		case target.Web:
			q.Want = access.Web
		}
	}
	e := &Explanation{}
	account, err := s.explainPolicy(ctx, q, e)
	if err != nil {
		return nil, fmt.Errorf("explain: %w", err)
	}
	if e.Allowed || q.Full {
		s.explainNetwork(ctx, q, account, e)
	}
	e.Works = e.Allowed
	for _, st := range e.Stages {
		e.Works = e.Works && (st.OK || st.Skipped)
	}
	return e, nil
}

// explainPolicy does the steps user and policy, and returns the account.
func (s *Service) explainPolicy(ctx context.Context, q Question, e *Explanation) (*target.Account, error) {
	start := time.Now()
	var sub access.Subject
	var v Verdict
	err := s.c.DB.View(ctx, func(tx *db.Tx) (err error) {
		if sub, err = s.c.Users.Subject(ctx, tx, q.UserID, q.MFA); err != nil {
			return err
		}
		if q.Account == "" && q.Want != access.Forward && q.Target.Kind.HasAccounts() {
			// Nobody needs to be asked which account when there is one.
			accounts, err := s.c.Targets.Accounts(ctx, tx, q.Target.ID)
			if err != nil {
				return err
			}
			if len(accounts) == 1 {
				q.Account = accounts[0].Name
			}
		}
		v, err = s.decideTarget(ctx, tx, &sub, &q.Target, Query{Account: q.Account, Want: q.Want, Reason: "explain", Source: q.Source}, s.c.Now())
		return err
	})
	if errors.Is(err, db.ErrNotFound) {
		e.add(Stage{Name: "user", MS: since(start), Text: "there is no such user", Fix: "check the name"})
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	e.Reason = v.Reason
	e.add(userStage(&sub, since(start)))
	if sub.Disabled || sub.Locked {
		return v.Account, nil
	}
	e.Allowed = v.OK()
	start = time.Now()
	st := Stage{Name: "policy", OK: v.OK()}
	if st.OK {
		st.Text, err = s.allowedText(ctx, &v)
	} else {
		v.Public = public(&v, Query{Target: q.Target.Name, Account: q.Account, Want: q.Want, Source: q.Source})
		st.Text, st.Fix, err = s.refusedText(ctx, q, &sub, &v)
	}
	if err != nil {
		return nil, err
	}
	st.MS = since(start)
	e.add(st)
	return v.Account, nil
}

func (e *Explanation) add(s Stage) { e.Stages = append(e.Stages, s) }

func since(t time.Time) float64 { return float64(time.Since(t).Microseconds()) / 1000 }

func userStage(sub *access.Subject, ms float64) Stage {
	st := Stage{Name: "user", OK: true, MS: ms, Text: fmt.Sprintf("the account is active; role memberships: %d", len(sub.Memberships))}
	switch {
	case sub.Disabled:
		st.OK, st.Text, st.Fix = false, "the account is disabled", "enable the user"
	case sub.Locked:
		st.OK, st.Text, st.Fix = false, "the account is locked", "unlock the user"
	}
	return st
}

func (s *Service) roleName(ctx context.Context, id string) (string, error) {
	name, err := s.c.Users.RoleName(ctx, s.c.DB, id)
	if errors.Is(err, db.ErrNotFound) {
		return id, nil
	}
	return name, err
}

func (s *Service) allowedText(ctx context.Context, v *Verdict) (string, error) {
	role, err := s.roleName(ctx, v.Role)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("role %s allows it by grant %s: %s", role, v.Grant, strings.Join(v.Features.Names(), ", "))
	if v.Record {
		text += "; recorded"
	}
	if v.MaxDuration > 0 {
		text += fmt.Sprintf("; at most %s", v.MaxDuration)
	}
	if v.Idle > 0 {
		text += fmt.Sprintf("; ends after %s without input", v.Idle)
	}
	if v.StartsFloating {
		text += "; the first use starts the limited membership"
	}
	if !v.Until.IsZero() {
		text += "; decided anew at " + v.Until.UTC().Format(time.RFC3339)
	}
	return text, nil
}

// refusedText says why, by which grant it came closest, and what would fix it.
func (s *Service) refusedText(ctx context.Context, q Question, sub *access.Subject, v *Verdict) (text, fix string, err error) {
	text = v.Public
	if !q.Full {
		return text, "ask an administrator for access", nil
	}
	near := ""
	if v.Grant != "" {
		role, err := s.roleName(ctx, v.Role)
		if err != nil {
			return "", "", err
		}
		near = fmt.Sprintf("grant %s of role %s", v.Grant, role)
	}
	switch v.Reason {
	case access.NoRole:
		text = fmt.Sprintf("none of the user's %d roles has a grant for %s", len(sub.Memberships), q.Target.Name)
		fix, err = s.missingRole(ctx, q)
	case access.TargetDisabled:
		text, fix = fmt.Sprintf("target %s is disabled", q.Target.Name), "enable the target"
	case access.NoAccount:
		if q.Account == "" {
			return text, "name an account (account=…)", nil
		}
		text = fmt.Sprintf("no grant for account %s on %s, or it has no such account", quoted(q.Account), q.Target.Name)
		fix = "add the account to the target, and to " + or(near, "a grant")
	case access.AccountDisabled:
		text, fix = fmt.Sprintf("account %s is disabled", quoted(q.Account)), "enable the account"
	case access.NoFeature:
		text = fmt.Sprintf("%s is not permitted", q.Want)
		fix = fmt.Sprintf("add %s to %s, and check that the account permits it", q.Want, or(near, "a grant"))
	case access.OutsideWindow:
		text = near + " does not hold at this time"
		if !v.Until.IsZero() {
			text += "; the next change is at " + v.Until.UTC().Format(time.RFC3339)
		}
		fix = "wait, or change the time window of the grant or of the membership"
	case access.OutsideSource:
		text = fmt.Sprintf("%s does not hold for the source address %s", near, q.Source)
		fix = "come from a permitted network, or change the sources of the grant or of the membership"
	case access.NeedMFA:
		text, fix = near+" asks for a second factor", "log in with a second factor"
	}
	return text, fix, err
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// missingRole names the roles that would open the target.
func (s *Service) missingRole(ctx context.Context, q Question) (string, error) {
	grants, err := s.c.Targets.Grants(ctx, s.c.DB, &q.Target)
	if err != nil {
		return "", err
	}
	var names []string
	seen := map[string]bool{}
	for _, g := range grants {
		if g.Disabled || seen[g.Role] || g.Features&q.Want == 0 {
			continue
		}
		seen[g.Role] = true
		name, err := s.roleName(ctx, g.Role)
		if err != nil {
			return "", err
		}
		if names = append(names, name); len(names) == 5 {
			break
		}
	}
	if len(names) == 0 {
		return "create a grant that opens the target to one of the user's roles", nil
	}
	return "make the user a member of " + strings.Join(names, " or ") + ", or create a grant for one of the user's roles", nil
}

// explainNetwork does the steps from the route to the login. After the first
// that fails, the rest is not tried.
func (s *Service) explainNetwork(ctx context.Context, q Question, a *target.Account, e *Explanation) {
	t := &q.Target
	if t.Kind == target.Network {
		e.add(Stage{Name: "route", OK: true, Skipped: true, Text: "a router forwards " + t.Address() + " while a session is open; GET /routers shows pools and health"})
		return
	}
	if t.Kind == target.Web && s.c.Web != nil {
		e.take(s.c.Web.ProbeNodes(ctx, t))
	}
	route := Stage{Name: "route", OK: true, Text: "core dials " + t.Address() + " by itself: the target has no site"}
	if t.Site != "" {
		route.Text = fmt.Sprintf("site %s, address %s", t.Site, t.Address())
	} else if t.Kind == target.Web {
		route.Text = "the webproxy dials " + t.Address() + " by itself: the target has no site. What follows is tried from core"
	}
	e.add(route)
	good := s.c.Network != nil
	if !good {
		e.add(Stage{Name: "tcp", Skipped: true, Text: "not tried"})
	} else {
		good = e.take(s.c.Network.Probe(ctx, fleet.DialRequest{Site: t.Site, Address: t.Address(), Class: wire.Interactive}))
	}
	if t.Kind == target.Web && s.c.Web != nil {
		if !good {
			e.add(Stage{Name: "tls", Skipped: true, Text: "not tried"})
			return
		}
		e.take(s.c.Web.ProbeTLS(ctx, t))
		return
	}
	if t.Kind != target.SSH {
		return
	}
	if !good || s.c.Prober == nil {
		e.add(Stage{Name: "login", Skipped: true, Text: "not tried"})
		return
	}
	e.take(s.c.Prober.ProbeLogin(ctx, t, a))
}

// take adds tried steps and reports whether all are good.
func (e *Explanation) take(stages []fleet.DialStage) bool {
	good := len(stages) > 0
	for _, st := range stages {
		name := st.Name
		if name == "policy" { // of the edge; ours has the name already
			name = "edge_policy"
		}
		e.add(Stage{Name: name, OK: st.OK, MS: st.MS, Text: st.Text, Fix: st.Fix})
		good = good && st.OK
	}
	if len(stages) == 0 {
		e.add(Stage{Name: "tcp", Text: "the way to the target could not be tried", Fix: "see core's log"})
	}
	return good
}

// asker is who may ask what about whom.
func (s *Service) asker(ctx context.Context, p *api.Principal, ref string) (userID string, mfa, full bool, err error) {
	full = !p.Scope(api.TargetsView).Nowhere() // which targets, explained decides
	if ref == "" || ref == p.UserID || ref == p.UserName {
		return p.UserID, p.MFA, full, nil
	}
	if !full || p.Scope(api.UsersView).Nowhere() {
		return "", false, false, api.Denied("not_yours", "Only administrators may ask about other users.")
	}
	u, err := s.c.Users.Get(ctx, ref)
	if errors.Is(err, db.ErrNotFound) {
		u, err = s.c.Users.ByName(ctx, ref)
	}
	if errors.Is(err, db.ErrNotFound) {
		return "", false, false, api.Missing("user", ref)
	}
	return u.ID, true, true, err
}
