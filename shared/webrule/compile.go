package webrule

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

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
