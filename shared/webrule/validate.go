package webrule

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Limits of a policy.
const (
	MaxRules      = 1000 // in Allow, in Deny and in Approve
	MaxWhy        = 500  // bytes of Approval.Why
	MaxInjections = 64
	MaxFills      = 32
	MaxFields     = 32 // of a fill
	MaxSteps      = 16 // of a login
	maxText       = 1 << 10
	maxBody       = 64 << 10
)

// LoginInjection is the ID under which the credential of Recipe.Login is asked for.
const LoginInjection = "login"

// Problem is one thing wrong with a policy.
type Problem struct {
	Field string // like "allow[2].host"
	Text  string // for people
}

// Invalid is everything that is wrong with a policy.
type Invalid struct{ Problems []Problem }

// Error implements error: one line per problem.
func (e *Invalid) Error() string {
	var lines []string
	for _, p := range e.Problems {
		lines = append(lines, p.Field+": "+p.Text)
	}
	return strings.Join(lines, "\n")
}

type checker struct{ list []Problem }

func (c *checker) add(field, format string, args ...any) {
	if len(c.list) < 100 {
		c.list = append(c.list, Problem{field, fmt.Sprintf(format, args...)})
	}
}

// Validate reports everything that is wrong, as *Invalid; nil means valid.
func (p Policy) Validate() error {
	var c checker
	if b, err := json.Marshal(p); err != nil || len(b) > MaxPolicy {
		c.add("policy", "must be at most %d bytes as JSON", MaxPolicy)
		return &Invalid{c.list}
	}
	c.rules("allow", p.Allow)
	c.rules("deny", p.Deny)
	c.approvals(p.Approve)
	c.recipe(&p)
	c.tls(p.TLS)
	if len(p.Private) > MaxRules {
		c.add("private", "must have at most %d entries", MaxRules)
	}
	for i, s := range p.Private {
		if err := private(s); err != nil {
			c.add(fmt.Sprintf("private[%d]", i), "%s", err)
		}
	}
	if len(c.list) > 0 {
		return &Invalid{c.list}
	}
	return nil
}

func private(s string) error {
	if _, err := netip.ParsePrefix(s); err == nil {
		return nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return nil
	}
	host, port, err := splitHost(s)
	if err != nil || host == "" || port != 0 {
		return fmt.Errorf("%q is not a subnet (10.0.0.0/8), an address or a name", clip(s))
	}
	return nil
}

func (c *checker) rules(name string, rules []Rule) {
	if len(rules) > MaxRules {
		c.add(name, "must have at most %d rules", MaxRules)
		return
	}
	for i, r := range rules {
		at := fmt.Sprintf("%s[%d]", name, i)
		if name == "allow" && r.Host == "" {
			c.add(at+".host", "is missing")
		}
		if _, _, _, err := hostPattern(r.Host); err != nil {
			c.add(at+".host", "%s", err)
		}
		if r.Scheme != "" && r.Scheme != "https" && r.Scheme != "http" {
			c.add(at+".scheme", "must be https, http or empty")
		}
		if len(r.Methods) > 16 {
			c.add(at+".methods", "must be at most 16")
		}
		for _, m := range r.Methods {
			if !isToken(m) {
				c.add(at+".methods", "%q is not a method", clip(m))
			}
		}
		c.path(at+".path", r.Path)
		if len(r.Site) > 128 || strings.ContainsAny(r.Site, "/ \t\r\n") {
			c.add(at+".site", "is not the name of a site")
		}
	}
}

func (c *checker) approvals(list []Approval) {
	rules := make([]Rule, len(list))
	for i, a := range list {
		rules[i] = a.Rule
		at := fmt.Sprintf("approve[%d]", i)
		if a.Site != "" {
			c.add(at+".site", "belongs to the rule that allows the request")
		}
		if len(a.Why) > MaxWhy || strings.ContainsFunc(a.Why, unicode.IsControl) {
			c.add(at+".why", "must be at most %d bytes on one line", MaxWhy)
		}
	}
	c.rules("approve", rules)
}

func (c *checker) path(at, path string) {
	if _, err := patternPath(path); err != nil {
		c.add(at, "%s", err)
	}
}

// origin checks a binding's origin.
func (c *checker) origin(at, origin string, insecure bool) {
	o, err := ParseOrigin(origin)
	_, rest, _ := strings.Cut(origin, "://")
	switch {
	case err != nil:
		c.add(at, "%s", err)
	case strings.ContainsAny(rest, "/?#"):
		c.add(at, "must be an origin without a path: %s://%s", o.scheme, o)
	case o.scheme == "http" && !insecure:
		c.add(at, "is plain http: anybody on the way could read the credential; permit it with insecure")
	}
}

func (c *checker) recipe(p *Policy) {
	r := &p.Recipe
	if len(r.Injections) > MaxInjections {
		c.add("recipe.injections", "must be at most %d", MaxInjections)
		return
	}
	values := map[string]Value{}
	for i := range r.Injections {
		c.injection(fmt.Sprintf("recipe.injections[%d]", i), &r.Injections[i], values)
	}
	if len(r.Fills) > MaxFills {
		c.add("recipe.fills", "must be at most %d", MaxFills)
		return
	}
	for i, f := range r.Fills {
		at := fmt.Sprintf("recipe.fills[%d]", i)
		if _, err := ParseOrigin(f.Origin); err != nil {
			c.add(at+".origin", "%s", err)
		}
		c.path(at+".path", f.Path)
		if len(f.Fields) == 0 || len(f.Fields) > MaxFields {
			c.add(at+".fields", "must be 1 to %d", MaxFields)
		}
		if len(f.Submit) > maxText {
			c.add(at+".submit", "is too long")
		}
		for j, fd := range f.Fields {
			at := fmt.Sprintf("%s.fields[%d]", at, j)
			if fd.Selector == "" || len(fd.Selector) > maxText {
				c.add(at+".selector", "must be a field's name or a CSS selector")
			}
			v, ok := values[fd.Injection]
			switch {
			case !ok:
				c.add(at+".injection", "there is no injection %q", clip(fd.Injection))
			case fd.Value != "" && fd.Value != v:
				c.add(at+".value", "is %s, its injection's is %s", clip(string(fd.Value)), v)
			}
		}
	}
	if r.Login != nil {
		c.login(r.Login)
	}
}

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

func (c *checker) injection(at string, in *Injection, values map[string]Value) {
	if !idPattern.MatchString(in.ID) || in.ID == LoginInjection {
		c.add(at+".id", "must be 1 to 32 of a-z, 0-9 and -, and not %q", LoginInjection)
	}
	if _, twice := values[in.ID]; twice {
		c.add(at+".id", "is used twice")
	}
	c.origin(at+".origin", in.Origin, in.Insecure)
	if in.Method != "" && !isToken(in.Method) {
		c.add(at+".method", "is not a method")
	}
	c.path(at+".path", in.Path)
	if in.Times < 0 || in.Times > 1_000_000 {
		c.add(at+".times", "must be 0 to 1000000")
	}
	switch in.Kind {
	case Form, Multipart, JSON:
		if in.Field == "" || len(in.Field) > maxText {
			c.add(at+".field", "is missing")
		}
		values[in.ID] = ""
	case Header:
		if !isToken(in.Field) || slices.Contains(framing, strings.ToLower(in.Field)) {
			c.add(at+".field", "must be the name of a header that may be set")
		}
	case Basic, Digest, Bearer, ClientCert:
		if in.Field != "" {
			c.add(at+".field", "has no meaning for %s", in.Kind)
		}
	default:
		c.add(at+".kind", "must be form, multipart, json, basic, digest, bearer, header or client_cert")
	}
	if in.Kind.body() || in.Kind == Header || in.Kind == Bearer {
		if in.Value != Username && in.Value != Password && in.Value != TOTP && (in.Kind.body() || in.Value != "") {
			c.add(at+".value", "must be username, password or totp")
		}
	}
	if _, ok := values[in.ID]; ok {
		values[in.ID] = in.Value
	}
	if len(in.Prefix) > 64 || strings.ContainsAny(in.Prefix, "\r\n\x00") {
		c.add(at+".prefix", "must be at most 64 bytes on one line")
	}
}

// framing are headers that are not a login's.
var framing = []string{"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect",
	"proxy-authorization", "proxy-connection", "keep-alive", "content-type", "content-encoding"}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

func (c *checker) login(l *Login) {
	if len(l.Steps) == 0 || len(l.Steps) > MaxSteps {
		c.add("recipe.login.steps", "must be 1 to %d", MaxSteps)
		return
	}
	if l.Status != 0 && (l.Status < 200 || l.Status > 599) {
		c.add("recipe.login.status", "must be 200 to 599, or 0")
	}
	if len(l.Cookie) > 256 {
		c.add("recipe.login.cookie", "is too long")
	}
	known := map[string]bool{}
	for i, s := range l.Steps {
		at := fmt.Sprintf("recipe.login.steps[%d]", i)
		if !isToken(s.Method) {
			c.add(at+".method", "is not a method")
		}
		if _, err := ParseOrigin(s.URL); err != nil && !strings.HasPrefix(s.URL, "/") || len(s.URL) > 4<<10 {
			c.add(at+".url", "must be a path of the target, or https://host/path")
		}
		if slices.ContainsFunc(Expressions(s.URL), Expression.secret) {
			c.add(at+".url", "must not hold the credential: URLs are logged")
		}
		if len(s.Body) > maxBody {
			c.add(at+".body", "must be at most %d bytes", maxBody)
		}
		if len(s.Headers) > 32 {
			c.add(at+".headers", "must be at most 32")
		}
		for k, v := range s.Headers {
			if !isToken(k) || len(v) > 4<<10 || strings.ContainsAny(v, "\r\n\x00") || slices.Contains(framing[:9], strings.ToLower(k)) {
				c.add(at+".headers", "%q may not be set", clip(k))
			}
		}
		for where, text := range s.texts() {
			for _, e := range Expressions(text) {
				if !e.known(known) {
					c.add(at+"."+where, "there is no value {{%s}} here", clip(e.Text))
				}
			}
		}
		if len(s.Extract) > 16 {
			c.add(at+".extract", "must be at most 16")
		}
		for name, re := range s.Extract {
			x, err := regexp.Compile(re)
			switch {
			case !namePattern.MatchString(name) || Value(name) == Username || Value(name) == Password || Value(name) == TOTP:
				c.add(at+".extract", "%q must be lower-case letters, digits and _, and not a value's name", clip(name))
			case err != nil || len(re) > maxText:
				c.add(at+".extract", "%s is not a regular expression", name)
			case x.NumSubexp() != 1:
				c.add(at+".extract", "%s must have one group", name)
			}
			known[name] = true
		}
	}
}

// texts are the parts of a step in which values stand.
func (s Step) texts() map[string]string {
	m := map[string]string{"url": s.URL, "body": s.Body}
	for k, v := range s.Headers {
		m["headers."+k] = v
	}
	return m
}

func (c *checker) tls(t TLS) {
	versions := []string{"", "1.0", "1.1", "1.2", "1.3"}
	low, high := slices.Index(versions, t.Min), slices.Index(versions, t.Max)
	if low < 0 {
		c.add("tls.min", "must be 1.0, 1.1, 1.2 or 1.3")
	}
	if high < 0 {
		c.add("tls.max", "must be 1.0, 1.1, 1.2 or 1.3")
	}
	if low == 0 {
		low = 3
	}
	if high > 0 && low > high {
		c.add("tls.max", "is lower than tls.min (1.2 if none is set)")
	}
	if t.ServerName != "" {
		if h, p, err := splitHost(t.ServerName); err != nil || h == "" || p != 0 {
			c.add("tls.server_name", "must be a host name")
		}
	}
	if t.Only && t.Anchors == "" {
		c.add("tls.anchors", "are missing: nothing would be believed")
	}
	if _, err := ParseAnchors(t.Anchors); err != nil {
		c.add("tls.anchors", "%s", err)
	}
	if !slices.Contains([]string{"", RevocationOff, RevocationSoft, RevocationHard}, t.Revocation) {
		c.add("tls.revocation", "must be off, soft or hard")
	}
	if len(t.Responders) > 16 {
		c.add("tls.responders", "must be at most 16")
		return
	}
	for i, r := range t.Responders {
		if _, err := parseEndpoint("http", r); err != nil {
			c.add(fmt.Sprintf("tls.responders[%d]", i), "must be host or host:port of an OCSP service or revocation list")
		}
	}
}

// ParseAnchors reads certificates in PEM.
func ParseAnchors(text string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	rest := []byte(text)
	for len(strings.TrimSpace(string(rest))) > 0 {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return nil, fmt.Errorf("must be certificates in PEM (-----BEGIN CERTIFICATE-----)")
		}
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s; only certificates belong here", clip(strings.ToLower(b.Type)))
		}
		crt, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read", len(out)+1)
		}
		out = append(out, crt)
	}
	return out, nil
}

func clip(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}
