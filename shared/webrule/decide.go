package webrule

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
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

// Compiled is a policy made ready for decisions. Safe for concurrent use.
type Compiled struct {
	Policy
	// Origin is the target's own, "https://host[:port]".
	Origin string

	start   Endpoint
	allow   index
	deny    index
	approve index
	methods []string // that rules name, and one that none does; nil: none names any
}

// Endpoint is where a request goes: one origin.
type Endpoint struct {
	scheme, host string
	port         uint16
}

func (e Endpoint) String() string {
	host := e.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if e.port != defaultPort(e.scheme) {
		host += ":" + strconv.Itoa(int(e.port))
	}
	return host
}

// Origin is the endpoint as an origin, "https://host[:port]".
func (e Endpoint) Origin() string { return e.scheme + "://" + e.String() }

// Address is host:port, as one dials it.
func (e Endpoint) Address() string { return net.JoinHostPort(e.host, strconv.Itoa(int(e.port))) }

// Host is the name or address alone, lower case.
func (e Endpoint) Host() string { return e.host }

// Scheme is https or http.
func (e Endpoint) Scheme() string { return e.scheme }

// Endpoint returns where r goes.
func (r Request) Endpoint() (Endpoint, error) { return parseEndpoint(r.Scheme, r.Host) }

type rule struct {
	n       int
	scheme  string
	port    uint16 // 0: the scheme's
	ports   bool   // any port: the rule names no host
	methods []string
	path    string
	site    string
}

// index finds rules by host.
type index struct {
	exact, below map[string][]rule // below: "example.com" for *.example.com
	any          []rule
}

// Compile makes p ready for the target whose page is at start.
func (p Policy) Compile(start string) (*Compiled, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	origin, err := ParseOrigin(start)
	if err != nil {
		return nil, fmt.Errorf("start URL: %w", err)
	}
	c := &Compiled{Policy: p, start: origin, Origin: origin.Origin()}
	held := make([]Rule, len(p.Approve))
	for i, a := range p.Approve {
		held[i] = a.Rule
	}
	if c.allow, err = newIndex(p.Allow); err != nil {
		return c, err
	}
	if c.deny, err = newIndex(p.Deny); err != nil {
		return c, err
	}
	for _, r := range slices.Concat(p.Allow, p.Deny, held) {
		for _, m := range r.Methods {
			c.methods = append(c.methods, strings.ToUpper(m))
		}
	}
	if c.methods != nil {
		slices.Sort(c.methods)
		c.methods = append(slices.Compact(c.methods), unnamed)
	}
	c.approve, err = newIndex(held)
	return c, err
}

// unnamed stands for every method that no rule names.
const unnamed = "AN-UNNAMED-ONE"

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

func newIndex(rules []Rule) (index, error) {
	x := index{exact: map[string][]rule{}, below: map[string][]rule{}}
	for i, r := range rules {
		host, below, port, err := hostPattern(r.Host)
		if err != nil {
			return x, err
		}
		path, err := patternPath(r.Path)
		if err != nil {
			return x, err
		}
		one := rule{n: i, scheme: webScheme(r.Scheme), port: port, ports: host == "" && port == 0, path: path, site: r.Site}
		for _, m := range r.Methods {
			one.methods = append(one.methods, strings.ToUpper(m))
		}
		switch {
		case host == "":
			x.any = append(x.any, one)
		case below:
			x.below[host] = append(x.below[host], one)
		default:
			x.exact[host] = append(x.exact[host], one)
		}
	}
	return x, nil
}

// each calls f for the rules that speak of host until f is done.
func (x *index) each(host string, f func(rule) bool) {
	if slices.ContainsFunc(x.exact[host], f) {
		return
	}
	if len(x.below) > 0 {
		for rest := host; ; {
			_, up, ok := strings.Cut(rest, ".")
			if !ok {
				break
			}
			if slices.ContainsFunc(x.below[up], f) {
				return
			}
			rest = up
		}
	}
	if slices.ContainsFunc(x.any, f) {
		return
	}
}

func (r rule) at(e Endpoint) bool {
	return (r.scheme == "" || r.scheme == e.scheme) && (r.ports || r.port == e.port || r.port == 0 && e.port == defaultPort(e.scheme))
}

func (r rule) method(m string) bool { return len(r.methods) == 0 || slices.Contains(r.methods, m) }

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

// ParseOrigin reads "https://host[:port]"; a path after it is ignored.
func ParseOrigin(s string) (Endpoint, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return Endpoint{}, errors.New("must look like https://host or https://host:port")
	}
	return parseEndpoint(u.Scheme, u.Host)
}

// SameOrigin reports whether two URLs have the same origin.
func SameOrigin(a, b string) bool {
	x, err1 := ParseOrigin(a)
	y, err2 := ParseOrigin(b)
	return err1 == nil && err2 == nil && x == y
}

func parseEndpoint(scheme, hostport string) (Endpoint, error) {
	e := Endpoint{scheme: webScheme(scheme)}
	if e.scheme == "" {
		return e, errors.New("the scheme must be https or http")
	}
	host, port, err := splitHost(hostport)
	if err != nil {
		return e, err
	}
	if host == "" {
		return e, errors.New("the host is missing")
	}
	if e.host, e.port = host, port; port == 0 {
		e.port = defaultPort(e.scheme)
	}
	return e, nil
}

// splitHost takes "host", "host:port", "[v6]" or "[v6]:port" apart; port 0
// means none. Names become lower case and lose a final dot.
func splitHost(s string) (host string, port uint16, err error) {
	if len(s) > 262 {
		return "", 0, errors.New("the host is too long")
	}
	host, ps := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", 0, errors.New("the address lacks its closing bracket")
		}
		host, ps = s[1:end], s[end+1:]
		a, err := netip.ParseAddr(host)
		if err != nil || !a.Is6() || a.Zone() != "" {
			return "", 0, errors.New("the address in brackets is not IPv6")
		}
		host = a.String()
	} else {
		if i := strings.IndexByte(s, ':'); i >= 0 {
			host, ps = s[:i], s[i:]
		}
		if host, err = normalName(host); err != nil {
			return "", 0, err
		}
	}
	if ps != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(ps, ":"), 10, 16)
		if ps[0] != ':' || err != nil || n == 0 || len(ps) > 6 {
			return "", 0, errors.New("the port must be 1 to 65535")
		}
		port = uint16(n)
	}
	return host, port, nil
}

// normalName checks a DNS name or IPv4 address.
func normalName(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	lower := true
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '.':
			if i == 0 || s[i-1] == '.' {
				return "", errors.New("the host has an empty label")
			}
		case 'A' <= c && c <= 'Z':
			lower = false
		case c >= 0x80:
			return "", errors.New("the host must be written in ASCII: an international name as xn--…")
		default:
			return "", fmt.Errorf("the host has a character that is not allowed: %q", c)
		}
	}
	if !lower {
		s = strings.ToLower(s)
	}
	// A last label of digits makes it an address; the forms that only some
	// take for one (RFC 3986 §7.4) are refused.
	last := s[strings.LastIndexByte(s, '.')+1:]
	if last != "" && (strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")) {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return "", errors.New("the host looks like an address but is none")
		}
	}
	return s, nil
}

// hostPattern reads a rule's host; "" is any.
func hostPattern(s string) (host string, below bool, port uint16, err error) {
	if s == "" {
		return "", false, 0, nil
	}
	rest, below := strings.CutPrefix(s, "*.")
	if host, port, err = splitHost(rest); err == nil && host == "" {
		err = errors.New("the host is missing")
	}
	return host, below, port, err
}

// patternPath normalises a rule's path; "" is any.
func patternPath(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	plain, exact := strings.CutSuffix(s, "$")
	if !strings.HasPrefix(plain, "/") {
		return "", errors.New("the path must begin with /")
	}
	p := normalPath(plain)
	if !p.clear || p.plain != p.merged {
		return "", errors.New("the path can be understood in more than one way")
	}
	if exact {
		return p.plain + "$", nil
	}
	return p.plain, nil
}

func webScheme(s string) string {
	switch s {
	case "https", "http":
		return s
	}
	switch strings.ToLower(s) {
	case "https", "wss":
		return "https"
	case "http", "ws":
		return "http"
	}
	return ""
}

func defaultPort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}

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
