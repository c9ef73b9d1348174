package webrule

import (
	"strings"
)

// Request is what is decided on.
type Request struct {
	// Scheme is https or http; wss and ws count as these.
	Scheme string
	// Host is host or host:port as in a URL; without a port it is the scheme's.
	Host   string
	Method string
	// Path is the raw path, percent-encoded, without the query.
	Path string
}

// Reason says why a request was refused. Stable, for events and tests.
type Reason string

// The reasons.
const (
	Allowed   Reason = ""
	NoRule    Reason = "no_rule"
	Denied    Reason = "denied"
	Ambiguous Reason = "ambiguous_path"
	Malformed Reason = "malformed"
	// NeedsApproval: it may leave when a second person has approved it.
	NeedsApproval Reason = "needs_approval"
	// Locked: the session is; no rule says so.
	Locked Reason = "locked"
)

// Text tells a person about the reason.
func (r Reason) Text() string {
	switch r {
	case Allowed:
		return "allowed"
	case NoRule:
		return "no rule of this target allows it"
	case Denied:
		return "a rule of this target denies it"
	case Ambiguous:
		return "its path can be understood in more than one way"
	case NeedsApproval:
		return "it needs the approval of a second person"
	case Locked:
		return "the session is locked"
	}
	return "it is not a valid request"
}

// Verdict is the decision on one request.
type Verdict struct {
	Reason Reason
	// Rule is the number of the rule in Allow or, when denied, in Deny; -1 none.
	Rule int
	// Own: the request is to the target's own origin.
	Own bool
	// Site is the site of the rule: empty means the target's, "-" directly.
	Site string
	// Proposal is the rule that would allow it, when no rule did.
	Proposal *Rule
	// Approval is the rule that holds it, when the reason is NeedsApproval.
	Approval *Approval
}

// Allowed reports whether the request may leave as it is.
func (v Verdict) Allowed() bool { return v.Reason == Allowed }

// Held reports whether the request may leave once it was approved.
func (v Verdict) Held() bool { return v.Reason == NeedsApproval }

// NamesMethods reports whether any rule looks at methods.
func (c *Compiled) NamesMethods() bool { return c.methods != nil }

// Strictest is the verdict on r if its method may be any.
func (c *Compiled) Strictest(r Request) Verdict {
	v := c.Decide(r)
	for _, m := range c.methods {
		r.Method = m
		v = Stricter(v, c.Decide(r))
	}
	return v
}

// Meant is a request with the methods that an application may take it to have
// besides the request line's.
type Meant struct {
	Request
	As  []string
	Any bool // they cannot be told: it may have any
}

// DecideMeant is the strictest verdict on what the request may mean.
func (c *Compiled) DecideMeant(m Meant) Verdict {
	v := c.Decide(m.Request)
	for _, method := range m.As {
		as := m.Request
		as.Method = method
		v = Stricter(v, c.Decide(as))
	}
	if m.Any {
		v = Stricter(v, c.Strictest(m.Request))
	}
	return v
}

// Stricter is the one of two verdicts that permits less; the first of equals.
func Stricter(v, w Verdict) Verdict {
	if v.Allowed() && !w.Allowed() || v.Held() && !w.Allowed() && !w.Held() {
		return w
	}
	return v
}

// Decide is Compile and Decide for a single request.
func (p Policy) Decide(start string, r Request) Verdict {
	c, err := p.Compile(start)
	if err != nil {
		return Verdict{Reason: Malformed, Rule: -1}
	}
	return c.Decide(r)
}

// Decide says whether a request may leave. It is pure and allocates only for
// unusual paths and proposals.
func (c *Compiled) Decide(r Request) Verdict {
	e, err := parseEndpoint(r.Scheme, r.Host)
	if err != nil || !isToken(r.Method) {
		return Verdict{Reason: Malformed, Rule: -1}
	}
	v := Verdict{Rule: -1, Own: e == c.start}
	method := r.Method
	if !upper(method) {
		method = strings.ToUpper(method)
	}
	path := normalPath(r.Path)
	// A path that is not clear matters only to rules that look at it.
	unclear := false
	c.deny.each(e.host, func(d rule) bool {
		if !d.at(e) || !d.method(method) {
			return false
		}
		if d.path != "" && !path.clear {
			unclear = true
			return false
		}
		if path.under(d.path) {
			v.Rule = d.n
			return true
		}
		unclear = unclear || path.dots && d.path != ""
		return false
	})
	if v.Rule >= 0 {
		v.Reason = Denied
		return v
	}
	if unclear {
		v.Reason = Ambiguous
		return v
	}
	c.allow.each(e.host, func(a rule) bool {
		if !a.at(e) || !a.method(method) {
			return false
		}
		if a.path != "" && !path.clear {
			unclear = true
			return false
		}
		if under(path.plain, a.path) && under(path.merged, a.path) {
			v.Rule, v.Site = a.n, a.site
			return true
		}
		return false
	})
	switch {
	case v.Rule >= 0, v.Own && !c.Own:
		if v.Approval = c.holds(e, method, path); v.Approval != nil {
			v.Reason = NeedsApproval
		}
	case unclear:
		v.Reason = Ambiguous
	default:
		v.Reason = NoRule
		v.Proposal = c.propose(e, v.Own, method, path)
	}
	return v
}

// holds returns the rule that an allowed request waits for approval by. A path
// that is not clear, or has dot segments, is held by every rule that looks at
// paths: somebody looks at it.
func (c *Compiled) holds(e Endpoint, method string, path paths) (held *Approval) {
	c.approve.each(e.host, func(a rule) bool {
		if !a.at(e) || !a.method(method) {
			return false
		}
		if a.path == "" || !path.clear || path.dots || path.under(a.path) {
			held = &c.Approve[a.n]
		}
		return held != nil
	})
	return held
}

// Reaches reports whether any request to this endpoint could be allowed, and
// whether the endpoint is named by rule or is the target's own.
func (c *Compiled) Reaches(scheme, host string) bool {
	e, err := parseEndpoint(scheme, host)
	if err != nil {
		return false
	}
	found := e == c.start && !c.Own
	c.allow.each(e.host, func(a rule) bool {
		found = found || a.at(e)
		return found
	})
	return found
}

// propose makes the narrowest rule that a person would write.
func (c *Compiled) propose(e Endpoint, own bool, method string, path paths) *Rule {
	p := &Rule{Host: e.String(), Scheme: e.scheme}
	if own && path.clear {
		p.Methods = []string{method}
		first, _, _ := strings.Cut(strings.TrimPrefix(path.plain, "/"), "/")
		p.Path = "/" + first
	}
	return p
}

// Bound reports whether r is where an injection, a fill or a step is bound to:
// origin, method (empty: any) and path, the latter only if it is clear.
func Bound(r Request, origin, method, path string) bool {
	want, err := ParseOrigin(origin)
	if err != nil {
		return false
	}
	got, err := parseEndpoint(r.Scheme, r.Host)
	if err != nil || got != want || method != "" && !strings.EqualFold(method, r.Method) {
		return false
	}
	if path == "" {
		return true
	}
	pattern, err := patternPath(path)
	if err != nil {
		return false
	}
	p := normalPath(r.Path)
	return p.clear && under(p.plain, pattern) && under(p.merged, pattern)
}

// Bound reports whether the injection may happen in r.
func (in *Injection) Bound(r Request) bool {
	method := in.Method
	if method == "" && in.Kind.body() {
		method = "POST"
	}
	return Bound(r, in.Origin, method, in.Path)
}

// Bound reports whether the page of r is the one that is filled.
func (f *Fill) Bound(r Request) bool { return Bound(r, f.Origin, "", f.Path) }

// body: the value goes into a request's body.
func (k Kind) body() bool { return k == Form || k == JSON || k == Multipart }

// isToken is RFC 9110 §5.6.2.
func isToken(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; !unreserved(c) && !strings.ContainsRune("!#$%&'*+^`|", rune(c)) {
			return false
		}
	}
	return true
}

func upper(s string) bool {
	for i := 0; i < len(s); i++ {
		if 'a' <= s[i] && s[i] <= 'z' {
			return false
		}
	}
	return true
}
