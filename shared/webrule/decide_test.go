package webrule

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func compile(t testing.TB, p Policy, start string) *Compiled {
	t.Helper()
	c, err := p.Compile(start)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDecide(t *testing.T) {
	open := Policy{}
	listed := Policy{Own: true,
		Allow: []Rule{
			{Host: "app.example.com", Methods: []string{"GET", "head"}, Path: "/public"},
			{Host: "app.example.com", Path: "/exact$"},
			{Host: "*.cdn.example.com", Scheme: "https", Site: "vpc-b"},
			{Host: "api.example.com:8443", Methods: []string{"POST"}},
			{Host: "[fd00::1]:8080", Scheme: "http"},
			{Host: "direct.example.com", Site: "-"},
		},
		Deny: []Rule{
			{Host: "app.example.com", Path: "/public/secret"},
			{Host: "", Methods: []string{"DELETE"}},
			{Host: "bad.cdn.example.com"},
		}}
	denied := Policy{Deny: []Rule{{Host: "app.example.com", Path: "/admin"}}}
	const start = "https://app.example.com/start"
	for _, c := range []struct {
		name         string
		p            Policy
		method, url  string
		want         Reason
		site         string
		own          bool
		proposedHost string
	}{
		{name: "own origin", p: open, method: "DELETE", url: "https://app.example.com/x", own: true},
		{name: "own origin with port", p: open, method: "GET", url: "https://APP.example.com.:443/x", own: true},
		{name: "own host, other port", p: open, method: "GET", url: "https://app.example.com:444/x", want: NoRule, proposedHost: "app.example.com:444"},
		{name: "own host, other scheme", p: open, method: "GET", url: "http://app.example.com/x", want: NoRule, proposedHost: "app.example.com"},
		{name: "other host", p: open, method: "GET", url: "https://example.com/x", want: NoRule, proposedHost: "example.com"},
		{name: "websocket of own origin", p: open, method: "GET", url: "wss://app.example.com/x", own: true},
		{name: "encoded slash where no rule looks", p: open, method: "GET", url: "https://app.example.com/a%2Fb", own: true},
		{name: "own limited", p: listed, method: "GET", url: "https://app.example.com/other", want: NoRule, own: true, proposedHost: "app.example.com"},
		{name: "prefix", p: listed, method: "GET", url: "https://app.example.com/public/a", own: true},
		{name: "prefix itself", p: listed, method: "HEAD", url: "https://app.example.com/public", own: true},
		{name: "not a whole segment", p: listed, method: "GET", url: "https://app.example.com/publicity", want: NoRule, own: true, proposedHost: "app.example.com"},
		{name: "method", p: listed, method: "POST", url: "https://app.example.com/public", want: NoRule, own: true, proposedHost: "app.example.com"},
		{name: "exact", p: listed, method: "POST", url: "https://app.example.com/exact", own: true},
		{name: "exact is exact", p: listed, method: "POST", url: "https://app.example.com/exact/x", want: NoRule, own: true, proposedHost: "app.example.com"},
		{name: "denied path", p: listed, method: "GET", url: "https://app.example.com/public/secret/x", want: Denied, own: true},
		{name: "denied by encoding", p: listed, method: "GET", url: "https://app.example.com/public/%73ecret", want: Denied, own: true},
		{name: "denied by dots", p: listed, method: "GET", url: "https://app.example.com/public/a/../secret", want: Denied, own: true},
		{name: "denied by empty segments", p: listed, method: "GET", url: "https://app.example.com/public//secret", want: Denied, own: true},
		{name: "out of the prefix", p: listed, method: "GET", url: "https://app.example.com/public/../admin", want: Ambiguous, own: true},
		{name: "encoded dots out of the prefix", p: listed, method: "GET", url: "https://app.example.com/public/%2e%2e/admin", want: Ambiguous, own: true},
		{name: "encoded slash", p: listed, method: "GET", url: "https://app.example.com/public/..%2fadmin", want: Ambiguous, own: true},
		{name: "encoded backslash", p: listed, method: "GET", url: "https://app.example.com/public/..%5cadmin", want: Ambiguous, own: true},
		{name: "encoded twice", p: listed, method: "GET", url: "https://app.example.com/public/%252e%252e/admin", want: Ambiguous, own: true},
		{name: "path parameter on dots", p: listed, method: "GET", url: "https://app.example.com/public/..;/admin", want: Ambiguous, own: true},
		{name: "backslash", p: listed, method: "GET", url: "https://app.example.com/public\\..\\admin", want: Ambiguous, own: true},
		{name: "broken encoding", p: listed, method: "GET", url: "https://app.example.com/public/%zz", want: Ambiguous, own: true},
		{name: "encoded NUL", p: listed, method: "GET", url: "https://app.example.com/public/%00", want: Ambiguous, own: true},
		{name: "dots beside empty", p: listed, method: "GET", url: "https://app.example.com/public//../secret", want: Ambiguous, own: true},
		{name: "deny: encoded slash", p: denied, method: "GET", url: "https://app.example.com/x%2f..%2fadmin", want: Ambiguous, own: true},
		{name: "deny: path parameter", p: denied, method: "GET", url: "https://app.example.com/admin;v=1/x", want: Denied, own: true},
		{name: "deny: empty parameter segment", p: denied, method: "GET", url: "https://app.example.com/;v=1/admin", want: Denied, own: true},
		{name: "parameter elsewhere", p: denied, method: "GET", url: "https://app.example.com/x;v=/admin1", own: true},
		{name: "deny: other case", p: denied, method: "GET", url: "https://app.example.com/Admin/x", want: Denied, own: true},
		{name: "deny: other case, merged", p: denied, method: "GET", url: "https://app.example.com/x/..//ADMIN", want: Ambiguous, own: true},
		{name: "deny: other case, parameter", p: denied, method: "GET", url: "https://app.example.com/adMin;v=1", want: Denied, own: true},
		{name: "deny: other case, encoded", p: denied, method: "GET", url: "https://app.example.com/%41dmin", want: Denied, own: true},
		{name: "deny: other case, not a whole segment", p: denied, method: "GET", url: "https://app.example.com/Administrator", own: true},
		{name: "allow: other case", p: listed, method: "GET", url: "https://app.example.com/Public", want: NoRule, own: true, proposedHost: "app.example.com"},
		{name: "deny: overlong slash", p: denied, method: "GET", url: "https://app.example.com/x%c0%af..%c0%afadmin", want: Ambiguous, own: true},
		{name: "deny: overlong dots", p: denied, method: "GET", url: "https://app.example.com/x/%C0%AE./admin", want: Ambiguous, own: true},
		{name: "deny: UTF-8", p: denied, method: "GET", url: "https://app.example.com/%C3%A4", own: true},
		{name: "deny: dots that lead out", p: denied, method: "GET", url: "https://app.example.com/admin/../x", want: Ambiguous, own: true},
		{name: "dots where no rule looks", p: open, method: "GET", url: "https://app.example.com/a/../b", own: true},
		{name: "deny: merged", p: denied, method: "GET", url: "https://app.example.com//admin", want: Denied, own: true},
		{name: "deny leaves the rest", p: denied, method: "GET", url: "https://app.example.com/administrator", own: true},
		{name: "wildcard", p: listed, method: "GET", url: "https://a.b.cdn.example.com/", site: "vpc-b"},
		{name: "wildcard is not the name itself", p: listed, method: "GET", url: "https://cdn.example.com/", want: NoRule, proposedHost: "cdn.example.com"},
		{name: "wildcard's scheme", p: listed, method: "GET", url: "http://a.cdn.example.com/", want: NoRule, proposedHost: "a.cdn.example.com"},
		{name: "deny wins", p: listed, method: "GET", url: "https://bad.cdn.example.com/", want: Denied},
		{name: "denied method anywhere", p: listed, method: "DELETE", url: "https://a.cdn.example.com/", want: Denied},
		{name: "port", p: listed, method: "POST", url: "https://api.example.com:8443/x"},
		{name: "not the port", p: listed, method: "POST", url: "https://api.example.com/x", want: NoRule, proposedHost: "api.example.com"},
		{name: "v6", p: listed, method: "GET", url: "http://[fd00::1]:8080/x"},
		{name: "v6 written otherwise", p: listed, method: "GET", url: "http://[fd00:0:0::1]:8080/x"},
		{name: "direct", p: listed, method: "GET", url: "https://direct.example.com/x", site: "-"},
		{name: "suffix is no label", p: listed, method: "GET", url: "https://evilcdn.example.com/", want: NoRule, proposedHost: "evilcdn.example.com"},
		{name: "address in disguise", p: open, method: "GET", url: "https://2130706433/", want: Malformed},
		{name: "short address", p: open, method: "GET", url: "https://127.1/", want: Malformed},
		{name: "hexadecimal address", p: open, method: "GET", url: "https://0x7f000001/", want: Malformed},
		{name: "no host", p: open, method: "GET", url: "https:///", want: Malformed},
		{name: "user in host", p: open, method: "GET", url: "https://a@app.example.com/", want: Malformed},
		{name: "scheme", p: open, method: "GET", url: "ftp://app.example.com/", want: Malformed},
		{name: "method with a space", p: open, method: "GET x", url: "https://app.example.com/", want: Malformed},
	} {
		scheme, rest, _ := strings.Cut(c.url, "://")
		host, path := rest, ""
		if i := strings.IndexAny(rest, "/\\"); i >= 0 {
			host, path = rest[:i], rest[i:]
		}
		v := compile(t, c.p, start).Decide(Request{Scheme: scheme, Host: host, Method: c.method, Path: path})
		proposed := ""
		if v.Proposal != nil {
			proposed = v.Proposal.Host
		}
		if v.Reason != c.want || v.Site != c.site || v.Own != c.own || proposed != c.proposedHost {
			t.Errorf("%s: %s %s = %+v (proposal %q), want %q site %q own %v proposal %q", c.name, c.method, c.url, v, proposed, c.want, c.site, c.own, c.proposedHost)
		}
	}
}

// What is proposed would, once accepted, allow the request.
func TestProposalsAllow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Policy{Own: rapid.Bool().Draw(t, "own"), Learn: true}
		r := Request{
			Scheme: rapid.SampledFrom([]string{"https", "http"}).Draw(t, "scheme"),
			Host:   rapid.SampledFrom([]string{"app.test", "cdn.test", "cdn.test:8443", "10.0.0.1", "[fd00::1]:444"}).Draw(t, "host"),
			Method: rapid.SampledFrom([]string{"GET", "POST", "PROPFIND"}).Draw(t, "method"),
			Path:   "/" + rapid.StringMatching(`[a-z/.%20]{0,12}`).Draw(t, "path"),
		}
		c, err := p.Compile("https://app.test")
		if err != nil {
			t.Fatal(err)
		}
		v := c.Decide(r)
		if v.Allowed() || v.Proposal == nil {
			return
		}
		p.Allow = append(p.Allow, *v.Proposal)
		if c, err = p.Compile("https://app.test"); err != nil {
			t.Fatalf("the proposal %+v is not valid: %v", v.Proposal, err)
		}
		if v := c.Decide(r); !v.Allowed() && v.Reason != Ambiguous {
			t.Fatalf("%+v is still refused: %+v", r, v)
		}
	})
}

// A path that is allowed under a prefix stays under it, however a server reads it.
func TestPrefixHolds(t *testing.T) {
	c := compile(t, Policy{Own: true, Allow: []Rule{{Host: "app.test", Path: "/in"}}}, "https://app.test")
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.SampledFrom([]string{"in", "out", "..", ".", "", "%2e%2e", "%2E.", "%2f", "..;x", "%5c..", "%252e", ";", "%", "a%20b"}), 1, 6).Draw(t, "parts")
		path := "/" + strings.Join(parts, "/")
		if !c.Decide(Request{Scheme: "https", Host: "app.test", Method: "GET", Path: path}).Allowed() {
			return
		}
		for _, read := range []func(string) string{func(s string) string { return s }, merge} {
			decoded := strings.NewReplacer("%2e", ".", "%2E", ".").Replace(read(path))
			got := removeDots(strings.Split(read(decoded)[1:], "/"))
			if got != "/in" && !strings.HasPrefix(got, "/in/") {
				t.Fatalf("%s was allowed and is %s", path, got)
			}
		}
	})
}

func TestBound(t *testing.T) {
	in := Injection{Kind: Form, Origin: "https://app.test:8443", Path: "/login$"}
	for _, c := range []struct {
		r    Request
		want bool
	}{
		{Request{"https", "app.test:8443", "POST", "/login"}, true},
		{Request{"https", "APP.test:8443", "post", "/login"}, true},
		{Request{"https", "app.test:8443", "GET", "/login"}, false},
		{Request{"https", "app.test", "POST", "/login"}, false},
		{Request{"http", "app.test:8443", "POST", "/login"}, false},
		{Request{"https", "app.test:8443", "POST", "/login/x"}, false},
		{Request{"https", "app.test:8443", "POST", "/x/../login"}, true},
		{Request{"https", "app.test:8443", "POST", "/login%2f"}, false},
		{Request{"https", "evil.test:8443", "POST", "/login"}, false},
	} {
		if got := in.Bound(c.r); got != c.want {
			t.Errorf("Bound(%+v) = %v", c.r, got)
		}
	}
}

func TestReaches(t *testing.T) {
	c := compile(t, Policy{Allow: []Rule{{Host: "*.cdn.test"}}}, "https://app.test:8443/x")
	for host, want := range map[string]bool{"app.test:8443": true, "app.test:443": false, "a.cdn.test:443": true, "a.cdn.test:444": false, "cdn.test": false} {
		if got := c.Reaches("https", host); got != want {
			t.Errorf("Reaches(%s) = %v", host, got)
		}
	}
}

func FuzzDecide(f *testing.F) {
	for _, s := range []string{"/a", "/a/../b", "/%2e%2e/x", "/a;b/..;/c", "//x//", "/%", "\\", ""} {
		f.Add("https", "app.test", "GET", s)
	}
	c := compile(f, Policy{Own: true, Allow: []Rule{{Host: "app.test", Path: "/in"}, {Host: "*.test", Scheme: "http"}}, Deny: []Rule{{Host: "*.test", Path: "/in/no"}}}, "https://app.test")
	f.Fuzz(func(t *testing.T, scheme, host, method, path string) {
		v := c.Decide(Request{scheme, host, method, path})
		p := normalPath(path)
		if again := normalPath(p.plain); strings.HasPrefix(path, "/") && p.clear && again.clear && again.plain != p.plain {
			t.Errorf("%q normalises to %q, that to %q", path, p.plain, again.plain)
		}
		if v.Allowed() && v.Rule == 0 && !strings.HasPrefix(p.plain, "/in") {
			t.Errorf("%q was allowed as under /in", path)
		}
		if v.Allowed() && strings.HasPrefix(p.merged, "/in/no/") {
			t.Errorf("%q was allowed though denied", path)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	p := Policy{Deny: []Rule{{Host: "app.example.com", Path: "/admin"}}}
	for i := range 200 {
		p.Allow = append(p.Allow, Rule{Host: "h" + strings.Repeat("x", i%40) + string(rune('a'+i%26)) + ".example.com"})
	}
	p.Allow = append(p.Allow, Rule{Host: "*.cdn.example.com", Methods: []string{"GET"}, Path: "/assets"})
	c := compile(b, p, "https://app.example.com")
	for _, r := range []Request{
		{"https", "app.example.com", "GET", "/static/app.js"},
		{"https", "a.b.cdn.example.com", "GET", "/assets/app.js"},
	} {
		b.Run(r.Host, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !c.Decide(r).Allowed() {
					b.Fatal("refused")
				}
			}
		})
	}
}

// An international name is refused with what to write instead, not with a
// piece of a letter.
func TestInternationalHost(t *testing.T) {
	err := Policy{Allow: []Rule{{Host: "bücher.example"}}}.Validate()
	if err == nil || !strings.Contains(err.Error(), "xn--") {
		t.Errorf("%v", err)
	}
	if err := (Policy{Allow: []Rule{{Host: "xn--bcher-kva.example"}}}).Validate(); err != nil {
		t.Error(err)
	}
}
