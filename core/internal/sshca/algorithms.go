package sshca

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Algorithms are the algorithms offered in an SSH handshake, best first.
type Algorithms struct {
	KeyExchanges []string
	Ciphers      []string
	MACs         []string
	HostKeys     []string
}

// DefaultAlgorithms are what is offered to every target without a rule: what
// the library holds to be safe, hybrid post-quantum key exchange first.
func DefaultAlgorithms() Algorithms {
	a := ssh.SupportedAlgorithms()
	kex := slices.DeleteFunc(slices.Clone(a.KeyExchanges), func(s string) bool { return s == ssh.KeyExchangeMLKEM768X25519 })
	return Algorithms{
		KeyExchanges: append([]string{ssh.KeyExchangeMLKEM768X25519}, kex...),
		Ciphers:      slices.Clone(a.Ciphers),
		MACs:         slices.Clone(a.MACs),
		HostKeys:     slices.Clone(a.HostKeys),
	}
}

// Apply sets them in the configuration of a client.
func (a Algorithms) Apply(c *ssh.ClientConfig) {
	c.KeyExchanges, c.Ciphers, c.MACs = a.KeyExchanges, a.Ciphers, a.MACs
	c.HostKeyAlgorithms = a.HostKeys
}

// kind is one of the four lists and the names it may hold.
type kind struct {
	name string
	list func(*Algorithms) *[]string
	all  func(ssh.Algorithms) []string
}

func kinds() []kind {
	return []kind{
		{"kex", func(a *Algorithms) *[]string { return &a.KeyExchanges }, func(a ssh.Algorithms) []string { return a.KeyExchanges }},
		{"ciphers", func(a *Algorithms) *[]string { return &a.Ciphers }, func(a ssh.Algorithms) []string { return a.Ciphers }},
		{"macs", func(a *Algorithms) *[]string { return &a.MACs }, func(a ssh.Algorithms) []string { return a.MACs }},
		{"hostkeys", func(a *Algorithms) *[]string { return &a.HostKeys }, func(a ssh.Algorithms) []string { return a.HostKeys }},
	}
}

// Change is how a rule changes one list: "+a,b" adds at the end, "-a,b" takes
// away, "^a,b" puts in front, "a,b" replaces.
type Change struct {
	Kind  string   // kex, ciphers, macs, hostkeys
	Mode  byte     // '+', '-', '^' or '='
	Names []string // algorithm names of RFC 4253 and its successors
}

// Rule changes what is offered to the hosts its pattern matches.
type Rule struct {
	// Site is the site's name; empty matches hosts without a site, "*" all.
	Site string
	// Host is a glob over the host's name; empty when Network is set.
	Host string
	// Network matches hosts given as addresses.
	Network netip.Prefix
	Changes []Change
}

// Rules are ordered: the first that matches counts, and no other.
type Rules []Rule

// maxRules bounds the rules of an installation.
const maxRules = 500

// ParseRules reads one rule per line: a pattern, and changes.
//
//	# old switches
//	plant/*.switch.example   kex=+diffie-hellman-group14-sha1 hostkeys=+ssh-rsa
//	*/10.9.0.0/16            ciphers=+aes128-cbc macs=+hmac-sha1
//	legacy.example           kex=diffie-hellman-group1-sha1
//
// A pattern is [site/]glob or [site/]cidr; without a site it matches hosts
// without one, and the site * matches all.
func ParseRules(text string) (Rules, error) {
	var rules Rules
	var errs []error
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		r, err := parseRule(fields)
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", i+1, err))
			continue
		}
		rules = append(rules, r)
	}
	if len(rules) > maxRules {
		errs = append(errs, fmt.Errorf("%d rules: at most %d", len(rules), maxRules))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return rules, nil
}

func parseRule(fields []string) (Rule, error) {
	r, err := parsePattern(fields[0])
	if err != nil {
		return Rule{}, err
	}
	if len(fields) == 1 {
		return Rule{}, fmt.Errorf("pattern %q has no change (want kex=, ciphers=, macs= or hostkeys=)", fields[0])
	}
	r.Changes, err = parseChanges(fields[1:])
	return r, err
}

func parsePattern(s string) (Rule, error) {
	site, rest := "", s
	// A CIDR has a slash of its own: "10.0.0.0/8", "site/10.0.0.0/8".
	if p, err := netip.ParsePrefix(s); err == nil {
		return Rule{Network: p.Masked()}, nil
	}
	if before, after, ok := strings.Cut(s, "/"); ok {
		site, rest = before, after
		if site == "" {
			return Rule{}, fmt.Errorf("pattern %q has an empty site", s)
		}
		if p, err := netip.ParsePrefix(rest); err == nil {
			return Rule{Site: site, Network: p.Masked()}, nil
		}
	}
	if rest == "" || strings.Contains(rest, "/") {
		return Rule{}, fmt.Errorf("pattern %q is neither [site/]name nor [site/]network", s)
	}
	if a, err := netip.ParseAddr(rest); err == nil {
		return Rule{Site: site, Network: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	if _, err := path.Match(rest, ""); err != nil {
		return Rule{}, fmt.Errorf("pattern %q: bad wildcard", s)
	}
	return Rule{Site: site, Host: strings.ToLower(rest)}, nil
}

func parseChanges(fields []string) ([]Change, error) {
	var out []Change
	for _, f := range fields {
		name, list, ok := strings.Cut(f, "=")
		i := slices.IndexFunc(kinds(), func(k kind) bool { return k.name == name })
		if !ok || i < 0 {
			return nil, fmt.Errorf("%q: want kex=, ciphers=, macs= or hostkeys=", f)
		}
		c := Change{Kind: name, Mode: '='}
		if list != "" && strings.IndexByte("+-^", list[0]) >= 0 {
			c.Mode, list = list[0], list[1:]
		}
		k := kinds()[i]
		known := append(k.all(ssh.SupportedAlgorithms()), k.all(ssh.InsecureAlgorithms())...)
		for n := range strings.SplitSeq(list, ",") {
			if !slices.Contains(known, n) {
				return nil, fmt.Errorf("%s: unknown algorithm %q", name, n)
			}
			c.Names = append(c.Names, n)
		}
		out = append(out, c)
	}
	return out, nil
}

// ParseTargetRule reads the changes of one target: a rule without a pattern.
func ParseTargetRule(text string) ([]Change, error) { return parseChanges(strings.Fields(text)) }

// For returns what to offer host of site.
func (rs Rules) For(site, host string) (Algorithms, error) {
	a := DefaultAlgorithms()
	for _, r := range rs {
		if r.matches(site, host) {
			return a.With(r.Changes)
		}
	}
	return a, nil
}

func (r Rule) matches(site, host string) bool {
	if r.Site != "*" && r.Site != site {
		return false
	}
	if r.Network.IsValid() {
		a, err := netip.ParseAddr(host)
		return err == nil && r.Network.Contains(a.Unmap())
	}
	ok, err := path.Match(r.Host, strings.ToLower(strings.TrimSuffix(host, ".")))
	return err == nil && ok
}

// With applies changes in order. A list must not become empty.
func (a Algorithms) With(changes []Change) (Algorithms, error) {
	for _, k := range kinds() {
		l := k.list(&a)
		*l = slices.Clone(*l)
		for _, c := range changes {
			if c.Kind != k.name {
				continue
			}
			without := slices.DeleteFunc(slices.Clone(*l), func(s string) bool { return slices.Contains(c.Names, s) })
			switch c.Mode {
			case '+':
				for _, n := range c.Names {
					if !slices.Contains(*l, n) {
						*l = append(*l, n)
					}
				}
			case '-':
				*l = without
			case '^':
				*l = append(slices.Clone(c.Names), without...)
			default:
				*l = slices.Clone(c.Names)
			}
		}
		if len(*l) == 0 {
			return Algorithms{}, fmt.Errorf("no %s are left", k.name)
		}
	}
	return a, nil
}
