package webrule

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestApproval(t *testing.T) {
	p := Policy{
		Allow: []Rule{{Host: "api.test", Site: "vpc-b"}, {Host: "files.test", Path: "/pub"}},
		Deny:  []Rule{{Host: "app.test", Path: "/admin/keys"}},
		Approve: []Approval{
			{Rule: Rule{Host: "app.test", Methods: []string{"DELETE", "post"}, Path: "/admin"}, Why: "first"},
			{Rule: Rule{Host: "app.test", Methods: []string{"DELETE"}}, Why: "second"},
			{Rule: Rule{Host: "*.test", Methods: []string{"PUT"}, Path: "/pub/x$"}, Why: "third"},
			{Rule: Rule{Host: "api.test", Scheme: "https"}, Why: "fourth"},
			{Rule: Rule{Host: "evil.test"}, Why: "fifth"},
		},
	}
	c := compile(t, p, "https://app.test")
	for _, x := range []struct {
		name, method, host, path string
		want                     Reason
		why                      string
	}{
		{"first of two rules", "DELETE", "app.test", "/admin/user/7", NeedsApproval, "first"},
		{"lower-case method of a rule", "POST", "app.test", "/admin", NeedsApproval, "first"},
		{"lower-case method of a request", "delete", "app.test", "/admin", NeedsApproval, "first"},
		{"any path", "DELETE", "app.test", "/x", NeedsApproval, "second"},
		{"other method", "GET", "app.test", "/admin", Allowed, ""},
		{"not a whole segment", "POST", "app.test", "/administrator", Allowed, ""},
		{"encoded", "POST", "app.test", "/%61dmin/x", NeedsApproval, "first"},
		{"dots where a rule denies", "POST", "app.test", "/x/../admin/x", Ambiguous, ""},
		{"empty segments", "POST", "app.test", "//admin", NeedsApproval, "first"},
		{"other case", "POST", "app.test", "/Admin/x", NeedsApproval, "first"},
		{"other case of an exact path", "PUT", "files.test", "/pub/X", NeedsApproval, "third"},
		{"path parameter", "POST", "app.test", "/admin;v=1/x", NeedsApproval, "first"},
		{"denied stays denied", "DELETE", "app.test", "/admin/keys/1", Denied, ""},
		{"denied by another reading", "DELETE", "app.test", "/admin//keys", Denied, ""},
		{"not allowed stays so", "DELETE", "evil.test", "/admin", NoRule, ""},
		{"not allowed by path", "PUT", "files.test", "/other/x", NoRule, ""},
		{"allowed by another host's rule", "PUT", "files.test", "/pub/x", NeedsApproval, "third"},
		{"exact", "PUT", "files.test", "/pub/x/y", Allowed, ""},
		{"everything of a host", "GET", "api.test", "/", NeedsApproval, "fourth"},
	} {
		v := c.Decide(Request{Scheme: "https", Host: x.host, Method: x.method, Path: x.path})
		why := ""
		if v.Approval != nil {
			why = v.Approval.Why
		}
		if v.Reason != x.want || why != x.why || v.Allowed() != (x.want == Allowed) || v.Held() != (x.want == NeedsApproval) {
			t.Errorf("%s: %s %s%s = %q by %q, want %q by %q", x.name, x.method, x.host, x.path, v.Reason, why, x.want, x.why)
		}
	}
	if v := c.Decide(Request{Scheme: "https", Host: "api.test", Method: "GET", Path: "/"}); v.Site != "vpc-b" {
		t.Errorf("a held request leads to site %q", v.Site)
	}
}

// What servers may read in more than one way is held by a rule that looks at
// paths, and only where that rule speaks of the method and the host.
func TestApprovalOfUnclearPaths(t *testing.T) {
	c := compile(t, Policy{Approve: []Approval{{Rule: Rule{Host: "app.test", Methods: []string{"POST"}, Path: "/admin"}}}}, "https://app.test")
	for _, path := range []string{"/x%2f..%2fadmin", "/%252e%252e/admin", "/..;/admin", "/x\\..\\admin", "/%zz", "/a%2Fb", "/x/../admin", "/admin/../x", "/admin/%2e%2e/x"} {
		if v := c.Decide(Request{"https", "app.test", "POST", path}); !v.Held() {
			t.Errorf("POST %s: %q", path, v.Reason)
		}
		if v := c.Decide(Request{"https", "app.test", "GET", path}); !v.Allowed() {
			t.Errorf("GET %s: %q", path, v.Reason)
		}
	}
}

// A rule that names no host speaks of every port, too.
func TestRulesWithoutHost(t *testing.T) {
	for _, start := range []string{"https://app.test", "https://app.test:8443", "http://app.test:8080"} {
		scheme, host, _ := strings.Cut(start, "://")
		r := Request{scheme, host, "DELETE", "/admin"}
		if v := (Policy{Deny: []Rule{{Methods: []string{"DELETE"}}}}).Decide(start, r); v.Reason != Denied {
			t.Errorf("%s: %q", start, v.Reason)
		}
		if v := (Policy{Approve: []Approval{{Rule: Rule{Path: "/admin"}}}}).Decide(start, r); !v.Held() {
			t.Errorf("%s: %q", start, v.Reason)
		}
	}
}

// Rules about approval change nothing but this: of what was allowed, some is held.
func TestApprovalOnlyHolds(t *testing.T) {
	rule := rapid.Custom(func(t *rapid.T) Rule {
		return Rule{
			Host:    rapid.SampledFrom([]string{"", "app.test", "cdn.test", "*.test", "x.cdn.test", "app.test:8443"}).Draw(t, "host"),
			Scheme:  rapid.SampledFrom([]string{"", "https", "http"}).Draw(t, "scheme"),
			Methods: rapid.SampledFrom([][]string{nil, {"DELETE"}, {"POST", "PUT"}}).Draw(t, "methods"),
			Path:    rapid.SampledFrom([]string{"", "/", "/admin", "/admin/x$", "/a"}).Draw(t, "path"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		named := rule.Filter(func(r Rule) bool { return r.Host != "" })
		p := Policy{Own: rapid.Bool().Draw(t, "own"), Allow: rapid.SliceOfN(named, 0, 4).Draw(t, "allow"), Deny: rapid.SliceOfN(rule, 0, 3).Draw(t, "deny")}
		r := Request{
			Scheme: rapid.SampledFrom([]string{"https", "http"}).Draw(t, "to scheme"),
			Host:   rapid.SampledFrom([]string{"app.test", "cdn.test", "x.cdn.test", "app.test:8443", "other"}).Draw(t, "to"),
			Method: rapid.SampledFrom([]string{"GET", "DELETE", "POST", "PUT"}).Draw(t, "method"),
			Path:   "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"admin", "x", "..", "", "%2e%2e", "a%2fb", ";v", "%61dmin"}), 0, 4).Draw(t, "path"), "/"),
		}
		without, err := p.Compile("https://app.test")
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range rapid.SliceOfN(rule, 0, 4).Draw(t, "approve") {
			p.Approve = append(p.Approve, Approval{Rule: a})
		}
		with, err := p.Compile("https://app.test")
		if err != nil {
			t.Fatal(err)
		}
		before, after := without.Decide(r), with.Decide(r)
		switch {
		case after.Held():
			if !before.Allowed() || after.Approval == nil {
				t.Fatalf("%+v was %q and is held by %+v", r, before.Reason, after.Approval)
			}
		case before.Reason != after.Reason || after.Approval != nil:
			t.Fatalf("%+v was %q and is %q", r, before.Reason, after.Reason)
		case after.Allowed():
			// What a deny rule of the same words would have refused is held.
			for _, a := range p.Approve {
				denied := p
				denied.Deny = append(denied.Deny[:len(denied.Deny):len(denied.Deny)], a.Rule)
				c, err := denied.Compile("https://app.test")
				if err != nil {
					t.Fatal(err)
				}
				if v := c.Decide(r); !v.Allowed() && !v.Held() {
					t.Fatalf("%+v leaves though %+v as a deny rule gives %q", r, a.Rule, v.Reason)
				}
			}
		}
		if before.Rule != after.Rule || before.Site != after.Site || before.Own != after.Own {
			t.Fatalf("%+v: %+v became %+v", r, before, after)
		}
	})
}

// The rule is one flat object on the wire and in targets.
func TestApprovalJSON(t *testing.T) {
	b, err := json.Marshal(Approval{Rule: Rule{Host: "app.test", Path: "/admin"}, Why: "two"})
	if err != nil || string(b) != `{"host":"app.test","path":"/admin","why":"two"}` {
		t.Errorf("%s, %v", b, err)
	}
}

// What any method may do is what the strictest of them may.
func TestStrictest(t *testing.T) {
	for name, x := range map[string]struct {
		p     Policy
		names bool
		want  Reason // of POST /x, whatever it may be taken for
	}{
		"no rules":           {Policy{}, false, Allowed},
		"no methods":         {Policy{Approve: []Approval{{Rule: Rule{Path: "/y"}}}}, false, Allowed},
		"one is denied":      {Policy{Deny: []Rule{{Methods: []string{"delete"}}}, Approve: []Approval{{}}}, true, Denied},
		"one is held":        {Policy{Approve: []Approval{{Rule: Rule{Methods: []string{"DELETE"}}}}}, true, NeedsApproval},
		"denied elsewhere":   {Policy{Deny: []Rule{{Methods: []string{"DELETE"}, Path: "/y"}}}, true, Allowed},
		"others not allowed": {Policy{Own: true, Allow: []Rule{{Host: "app.test", Methods: []string{"GET", "POST"}}}}, true, NoRule},
	} {
		c := compile(t, x.p, "https://app.test")
		if v := c.Strictest(Request{Scheme: "https", Host: "app.test", Method: "POST", Path: "/x"}); v.Reason != x.want || c.NamesMethods() != x.names {
			t.Errorf("%s: %q, names methods %v", name, v.Reason, c.NamesMethods())
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		methods := rapid.SliceOfN(rapid.SampledFrom([]string{"GET", "put", "DELETE"}), 0, 2)
		rule := func(label string) []Rule {
			return []Rule{{Host: "app.test", Methods: methods.Draw(t, label), Path: rapid.SampledFrom([]string{"", "/x"}).Draw(t, label+" path")}}
		}
		p := Policy{Own: rapid.Bool().Draw(t, "own"), Allow: rule("allow"), Approve: []Approval{{Rule: rule("approve")[0]}}}
		if rapid.Bool().Draw(t, "denies") {
			p.Deny = rule("deny")
		}
		c, err := p.Compile("https://app.test")
		if err != nil {
			t.Fatal(err)
		}
		r := Request{Scheme: "https", Host: "app.test", Method: "POST", Path: "/x"}
		v := c.Strictest(r)
		for _, m := range []string{"POST", "GET", "PUT", "DELETE", "PATCH", "TRACE"} {
			r.Method = m
			if w := c.Decide(r); Stricter(v, w).Reason != v.Reason {
				t.Fatalf("%+v: %s is %q, the strictest is %q", p, m, w.Reason, v.Reason)
			}
		}
	})
}
