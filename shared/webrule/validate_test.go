package webrule

import (
	"errors"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	good := Policy{
		Allow: []Rule{{Host: "*.cdn.test", Methods: []string{"GET"}, Path: "/x$", Site: "vpc-b"}, {Host: "[::1]:8443"}},
		Deny:  []Rule{{Methods: []string{"DELETE"}}},
		Approve: []Approval{
			{Rule: Rule{Host: "app.test", Methods: []string{"DELETE"}, Path: "/admin"}, Why: "Deletions are looked at by two."},
			{Rule: Rule{Methods: []string{"PUT"}}},
		},
		Recipe: Recipe{
			Injections: []Injection{
				{ID: "user", Kind: Form, Origin: "https://app.test", Path: "/login", Field: "user", Value: Username},
				{ID: "pw", Kind: Form, Origin: "https://app.test:8443", Path: "/login", Field: "pw", Value: Password},
				{ID: "basic", Kind: Basic, Origin: "http://app.test", Insecure: true},
				{ID: "token", Kind: Header, Origin: "https://app.test", Field: "X-Token", Prefix: "Token "},
				{ID: "cert", Kind: ClientCert, Origin: "https://app.test"},
			},
			Fills: []Fill{{Origin: "https://app.test", Path: "/login", Fields: []FillField{{Selector: "user", Value: Username, Injection: "user"}, {Selector: "#pw", Value: Password, Injection: "pw"}}, Submit: "button"}},
			Login: &Login{Steps: []Step{
				{Method: "GET", URL: "/salt?u={{username}}", Extract: map[string]string{"salt": `"salt":"([a-f0-9]+)"`}},
				{Method: "POST", URL: "/login", Body: `{"u":"{{username}}","h":"{{sha256 salt+password}}"}`, Headers: map[string]string{"X-Hash": "{{md5 password}}"}},
			}, Status: 200, Cookie: "sid"},
		},
		TLS:     TLS{Min: "1.0", Max: "1.2", Legacy: true, ServerName: "app.internal"},
		Private: []string{"127.0.0.1", "10.0.0.0/8", "app.internal"},
	}
	if err := good.Validate(); err != nil {
		t.Fatalf("good: %v", err)
	}
	bad := Policy{
		Allow: []Rule{{}, {Host: "a b"}, {Host: "x", Scheme: "ftp", Methods: []string{"GE T"}, Path: "x", Site: "a/b"}, {Host: "x", Path: "/a%2fb"}},
		Deny:  []Rule{{Host: "*."}},
		Approve: []Approval{
			{Rule: Rule{Host: "x", Site: "vpc-b"}, Why: strings.Repeat("y", MaxWhy+1)},
			{Rule: Rule{Host: "x", Path: "admin", Methods: []string{"DEL ETE"}}, Why: "two\nlines"},
		},
		Recipe: Recipe{
			Injections: []Injection{
				{ID: "A", Kind: Form, Origin: "https://app.test"},
				{ID: "login", Kind: "magic", Origin: "app.test"},
				{ID: "x", Kind: JSON, Origin: "http://app.test/", Field: "a", Value: "name"},
				{ID: "x", Kind: Header, Origin: "https://app.test/path", Field: "Host", Prefix: "a\r\n"},
			},
			Fills: []Fill{{Origin: "x", Fields: []FillField{{Injection: "nobody"}}}, {Origin: "https://a.test"}},
			Login: &Login{Steps: []Step{{Method: "", URL: "login?p={{password}}", Body: "{{sha3 password}} {{salt}}", Headers: map[string]string{"Host": "x"}, Extract: map[string]string{"Salt": "(", "s": "x", "t": "("}}}},
		},
		TLS:     TLS{Min: "1.3", Max: "1.2", Only: true, ServerName: "a:1", Anchors: "x"},
		Private: []string{"a b"},
	}
	err := bad.Validate()
	inv, ok := errors.AsType[*Invalid](err)
	if !ok {
		t.Fatalf("bad: %v", err)
	}
	fields := map[string]bool{}
	for _, p := range inv.Problems {
		fields[p.Field] = true
	}
	for _, want := range []string{"allow[0].host", "allow[1].host", "allow[2].scheme", "allow[2].methods", "allow[2].path", "allow[2].site", "allow[3].path", "deny[0].host",
		"approve[0].site", "approve[0].why", "approve[1].path", "approve[1].methods", "approve[1].why",
		"recipe.injections[0].id", "recipe.injections[0].field", "recipe.injections[0].value", "recipe.injections[1].id", "recipe.injections[1].kind", "recipe.injections[1].origin",
		"recipe.injections[2].origin", "recipe.injections[2].value", "recipe.injections[3].id", "recipe.injections[3].origin", "recipe.injections[3].field", "recipe.injections[3].prefix",
		"recipe.fills[0].origin", "recipe.fills[0].fields[0].selector", "recipe.fills[0].fields[0].injection", "recipe.fills[1].fields",
		"recipe.login.steps[0].method", "recipe.login.steps[0].url", "recipe.login.steps[0].body", "recipe.login.steps[0].headers", "recipe.login.steps[0].extract",
		"tls.max", "tls.server_name", "tls.anchors", "private[0]"} {
		if !fields[want] {
			t.Errorf("no problem is reported for %s in:\n%v", want, err)
		}
	}
	if _, err := bad.Compile("https://app.test"); err == nil {
		t.Error("an invalid policy compiles")
	}
	if _, err := (Policy{}).Compile("ftp://app.test"); err == nil {
		t.Error("a policy compiles for a start URL that is none")
	}
	big := Policy{TLS: TLS{ServerName: strings.Repeat("x", MaxPolicy)}}
	if err := big.Validate(); err == nil {
		t.Error("a policy of any size is valid")
	}
}

// URLs are logged: no form of a secret may stand in one.
func TestLoginURL(t *testing.T) {
	for url, ok := range map[string]bool{
		"/login?u={{username}}": true, "/login?h={{sha256 username}}": true, "/login?{{password": true,
		"/l?p={{password}}": false, "/l?p={{ password }}": false, "/l?p={{sha256 password}}": false, "/l?p={{username password}}": false,
		"https://app.test/l/{{\ttotp}}": false, "/l?p={{base64 username+totp}}": false,
	} {
		p := Policy{Recipe: Recipe{Login: &Login{Steps: []Step{{Method: "GET", URL: url}}}}}
		if err := p.Validate(); (err == nil) != ok {
			t.Errorf("%s: %v, want valid %v", url, err, ok)
		}
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"password": "p&=", "salt": "s", "username": "u"}
	for _, c := range []struct{ text, want string }{
		{"a={{username}}&b={{password}}", "a=<u>&b=<p&=>"},
		{"{{sha256 salt password}}", "<" + functions["sha256"]("sp&=") + ">"},
		{"{{sha256 salt+password}}", "<" + functions["sha256"]("sp&=") + ">"},
		{"{{upper md5 password}}", "<" + strings.ToUpper(functions["md5"]("p&=")) + ">"},
		{"{{ nothing", "{{ nothing"},
	} {
		if got, ok := Expand(c.text, values, func(s string) string { return "<" + s + ">" }); !ok || got != c.want {
			t.Errorf("Expand(%q) = %q, %v, want %q", c.text, got, ok, c.want)
		}
	}
	if _, ok := Expand("{{totp}}", values, strings.ToUpper); ok {
		t.Error("a value that is not there was expanded")
	}
	// RFC 1321 A.5, FIPS 180-4 example.
	if functions["md5"]("abc") != "900150983cd24fb0d6963f7d28e17f72" || functions["sha256"]("abc") != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Error("hashes are not those of the standards")
	}
}

func FuzzExpressions(f *testing.F) {
	for _, s := range []string{"{{password}}", "{{sha256 a+b}}x{{", "{{}}", "{{{{a}}}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at := 0
		for _, e := range Expressions(text) {
			if e.Start < at || e.End > len(text) || text[e.Start:e.Start+2] != "{{" || text[e.End-2:e.End] != "}}" {
				t.Fatalf("%q: %+v", text, e)
			}
			at = e.End
		}
		Expand(text, map[string]string{"password": "x"}, strings.ToUpper)
	})
}
