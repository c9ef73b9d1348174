package access

import (
	"net/netip"
	"slices"
	"time"
)

// Decide answers one question. It reads nothing but its argument, and the
// order of grants and memberships does not matter.
func Decide(r Request) Decision {
	if r.Subject.User == "" || r.Target.ID == "" || !r.Want.single() || r.Now.IsZero() {
		return Decision{}
	}
	if r.Subject.Disabled {
		return Decision{Reason: UserDisabled}
	}
	if r.Subject.Locked {
		return Decision{Reason: UserLocked}
	}
	best := Decision{Reason: NoRole}
	var buf [8]pair
	pairs := collect(&r, buf[:0])
	for i := range pairs {
		p := &pairs[i]
		best.Until = earlier(best.Until, p.change)
		if p.reason > best.Reason || p.reason == best.Reason && best.Grant != "" && before(p, &best) {
			best.Reason, best.Grant, best.Role = p.reason, p.grant.ID, p.role
		}
	}
	// Started or plain memberships go first, so that a floating window is not
	// spent where another role already gives the same.
	d, ok := join(pairs, r.Want, func(p *pair) bool { return !p.starts })
	if !ok {
		role := startable(pairs, r.Want)
		if role == "" {
			return best
		}
		d, _ = join(pairs, r.Want, func(p *pair) bool { return !p.starts || p.role == role })
		d.StartsFloating = true
		// Of a grant by another role only the features were taken over.
		for i := range pairs {
			if p := &pairs[i]; p.passes && p.starts && p.role == role {
				best.Until = earlier(best.Until, r.Now.Add(p.floating))
			}
		}
	}
	d.Until = best.Until
	return d
}

// Offer is what a user could do with one account of a target, whatever he wants.
type Offer struct {
	Features Features
	Record   bool
	// NeedMFA and NeedReason: none of it without a second factor or a reason.
	NeedMFA, NeedReason bool
}

// Survey tells what Decide would allow for any Want, given a second factor
// and a reason where they are asked for. An Offer without features is none.
func Survey(r Request) Offer {
	if r.Subject.User == "" || r.Target.ID == "" || r.Now.IsZero() || r.Subject.Disabled || r.Subject.Locked {
		return Offer{}
	}
	var buf [8]pair
	r.Want = 0
	o := Offer{NeedMFA: true, NeedReason: true}
	for _, p := range collect(&r, buf[:0]) {
		f := p.grant.Features & r.Mask
		if f == 0 || p.reason < NeedMFA && !p.passes {
			continue
		}
		o.Features |= f
		o.Record = o.Record || !p.grant.NoRecording && f&Recorded != 0
		o.NeedMFA = o.NeedMFA && p.grant.RequireMFA && !r.Subject.MFA
		o.NeedReason = o.NeedReason && p.grant.RequireReason
	}
	if o.Features == 0 {
		return Offer{}
	}
	return o
}

// pair is one grant through one membership.
type pair struct {
	grant *Grant
	role  string
	// reason is the first thing in the way of Want, or NeedReason+1 for nothing.
	reason Reason
	// passes: nothing is in the way, except perhaps that Want is not among
	// its features.
	passes bool
	// starts: its floating window would begin with this use.
	starts   bool
	floating time.Duration
	features Features
	change   time.Time // the next moment its windows open or end
}

const nothing = NeedReason + 1

// collect evaluates every grant of the target through every membership.
func collect(r *Request, pairs []pair) []pair {
	source := r.Source.Unmap().WithZone("")
	for i := range r.Grants {
		g := &r.Grants[i]
		if g.Disabled || g.Role == "" || !g.covers(&r.Target) {
			continue
		}
		for j := range r.Subject.Memberships {
			if m := &r.Subject.Memberships[j]; m.Role == g.Role {
				pairs = append(pairs, r.evaluate(g, m, source))
			}
		}
	}
	return pairs
}

// covers reports whether the grant names the target, by ID or by a tag within
// the access group of its role.
func (g *Grant) covers(t *Target) bool {
	if (g.Target == "") == (g.Tag == "") {
		return false
	}
	return g.Target == t.ID || g.Tag != "" && g.Group == t.Group && slices.Contains(t.Tags, g.Tag)
}

func (g *Grant) opens(account string) bool {
	if slices.Contains(g.Accounts, "*") {
		return true
	}
	if account == "" {
		return len(g.Accounts) == 0
	}
	return slices.Contains(g.Accounts, account)
}

func (r *Request) evaluate(g *Grant, m *Membership, source netip.Addr) pair {
	p := pair{grant: g, role: g.Role, floating: m.Window.Floating, features: g.Features & r.Mask}
	switch {
	case r.Target.Disabled:
		p.reason = TargetDisabled
		return p
	case !g.opens(r.Account):
		p.reason = NoAccount
		return p
	case r.AccountDisabled:
		p.reason = AccountDisabled
		return p
	}
	inGrant, c1 := g.Window.holds(r.Now, r.Zones)
	inMember, c2 := m.Window.holds(r.Now, r.Zones)
	p.change = earlier(c1, c2)
	open := inGrant && inMember && g.Window.Floating == 0
	if f := m.Window.Floating; f > 0 {
		if m.FirstUse.IsZero() {
			p.starts = true
		} else if end := m.FirstUse.Add(f); r.Now.Before(end) {
			p.change = earlier(p.change, end)
		} else {
			open, p.change = false, time.Time{}
		}
	}
	from := permits(g.Sources, source) && permits(m.Sources, source)
	switch {
	case p.features&r.Want == 0 && r.Want != 0:
		p.reason = NoFeature
	case !open:
		p.reason = OutsideWindow
	case !from:
		p.reason = OutsideSource
	case g.RequireMFA && !r.Subject.MFA:
		p.reason = NeedMFA
	case g.RequireReason && !r.HasReason:
		p.reason = NeedReason
	default:
		p.reason = nothing
	}
	p.passes = open && from && (!g.RequireMFA || r.Subject.MFA) && (!g.RequireReason || r.HasReason)
	return p
}

func permits(list []netip.Prefix, a netip.Addr) bool {
	if len(list) == 0 {
		return true
	}
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// join adds up all pairs that pass and are picked. It fails when none of them
// has the feature wanted.
func join(pairs []pair, want Feature, pick func(*pair) bool) (Decision, bool) {
	d := Decision{Reason: Allowed}
	for i := range pairs {
		p := &pairs[i]
		if !p.passes || p.features == 0 || !pick(p) {
			continue
		}
		d.Features |= p.features
		d.Record = d.Record || !p.grant.NoRecording && p.features&Recorded != 0
		d.MaxDuration = stricter(d.MaxDuration, p.grant.MaxDuration)
		d.Idle = stricter(d.Idle, p.grant.Idle)
		if p.features&want != 0 && (d.Grant == "" || before(p, &d)) {
			d.Grant, d.Role = p.grant.ID, p.role
		}
	}
	return d, d.Features&want != 0
}

// startable returns the role whose floating window is to begin: of those that
// would allow Want the first by name.
func startable(pairs []pair, want Feature) string {
	role := ""
	for i := range pairs {
		p := &pairs[i]
		if p.passes && p.starts && p.features&want != 0 && (role == "" || p.role < role) {
			role = p.role
		}
	}
	return role
}

// before orders pairs by grant, then role, so that the answer does not depend
// on the order of rows.
func before(p *pair, d *Decision) bool {
	return p.grant.ID < d.Grant || p.grant.ID == d.Grant && p.role < d.Role
}

// stricter returns the shorter of two limits, where zero or less is no limit.
func stricter(a, b time.Duration) time.Duration {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}
