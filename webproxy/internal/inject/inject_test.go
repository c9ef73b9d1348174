package inject

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"caponier/shared/webrule"
)

// swap replaces the text "PH" and nothing else.
func swap(to string) func(string) (string, bool) {
	return func(s string) (string, bool) { return to, s == "PH" }
}

func TestReplaceForm(t *testing.T) {
	const v = "p&=+/ü"
	for _, c := range []struct{ in, want string }{
		{"a=1&pw=PH&b=%20", "a=1&pw=" + url.QueryEscape(v) + "&b=%20"},
		{"p%77=P%48", "p%77=" + url.QueryEscape(v)},
		{"pw=xPH", ""}, {"PW=PH", ""}, {"pw[]=PH", ""}, {"other=PH", ""}, {"pw", ""}, {"", ""}, {"pw=%zz", ""}, {"&&=&", ""},
	} {
		got, found := replaceForm([]byte(c.in), "pw", swap(v))
		if c.want == "" {
			c.want = c.in
		}
		if string(got) != c.want || found != (c.want != c.in) {
			t.Errorf("%q: %q, %v", c.in, got, found)
		}
	}
}

func TestReplaceJSON(t *testing.T) {
	const v = `p"\<ü`
	for _, c := range []struct{ path, in, want string }{
		{"pw", `{"pw":"PH"}`, `{"pw":"p\"\\<ü"}`},
		{"pw", ` { "a" : [1,{"pw":"PH"}] , "pw" : "PH" , "b":null}`, ` { "a" : [1,{"pw":"PH"}] , "pw" : "p\"\\<ü" , "b":null}`},
		{"user.pw", `{"pw":"PH","user":{"x":{},"pw":"PH"}}`, `{"pw":"PH","user":{"x":{},"pw":"p\"\\<ü"}}`},
		{"items.1.pw", `{"items":[{"pw":"PH"},{"pw":"\u0050H"}]}`, `{"items":[{"pw":"PH"},{"pw":"p\"\\<ü"}]}`},
		{"0", `["PH","PH"]`, `["p\"\\<ü","PH"]`},
		{"user.pw", `{"user.pw":"PH","user":{"pw":"PH"}}`, `{"user.pw":"PH","user":{"pw":"p\"\\<ü"}}`},
		{`user\.pw`, `{"user.pw":"PH","user":{"pw":"PH"}}`, `{"user.pw":"p\"\\<ü","user":{"pw":"PH"}}`},
		{`a\\.pw`, `{"a\\":{"pw":"PH"},"a\\.pw":"PH"}`, `{"a\\":{"pw":"p\"\\<ü"},"a\\.pw":"PH"}`},
		{"user.pw", `{"user.pw":"PH"}`, ""},
		{"pw", `{"pw":1}`, ""}, {"pw", `{"pw":["PH"]}`, ""}, {"pw", `{"PH":"pw"}`, ""}, {"pw", `{"pw":"PH"`, ""}, {"pw", `not json`, ""}, {"pw", ``, ""},
	} {
		got, found := replaceJSON([]byte(c.in), c.path, swap(v))
		if c.want == "" {
			c.want = c.in
		}
		if string(got) != c.want || found != (c.want != c.in) {
			t.Errorf("%s in %q: %q, %v", c.path, c.in, got, found)
		}
	}
}

// Whatever surrounds it, the value arrives whole and the rest is untouched.
func TestReplaceJSONProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.String().Draw(t, "value")
		extra := rapid.MapOf(rapid.StringMatching(`[a-z]{1,4}`), rapid.String()).Draw(t, "extra")
		delete(extra, "pw")
		in := map[string]any{"user": map[string]any{"pw": "PH", "more": extra}, "list": []any{1, "PH", nil}}
		b, err := json.MarshalIndent(in, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		got, found := replaceJSON(b, "user.pw", swap(v))
		if !found {
			t.Fatalf("not found in %s", b)
		}
		in["user"].(map[string]any)["pw"] = strings.ToValidUTF8(v, "\ufffd")
		want, _ := json.Marshal(in)
		var x any
		if err := json.Unmarshal(got, &x); err != nil {
			t.Fatalf("%s: %v", got, err)
		}
		if again, _ := json.Marshal(x); !bytes.Equal(again, want) {
			t.Fatalf("%s, want %s", again, want)
		}
	})
}

func TestReplaceMultipart(t *testing.T) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	w.WriteField("a", "PH")
	f, _ := w.CreateFormFile("pw", "PH")
	f.Write([]byte("PH"))
	w.WriteField("pw", "PH")
	w.Close()
	got, found := replaceMultipart(b.Bytes(), w.Boundary(), "pw", swap("secret\r\n--"))
	if !found {
		t.Fatal("not found")
	}
	form, err := multipart.NewReader(bytes.NewReader(got), w.Boundary()).ReadForm(1 << 20)
	if err != nil || form.Value["a"][0] != "PH" || form.Value["pw"][0] != "secret\r\n--" || form.File["pw"][0].Filename != "PH" {
		t.Errorf("%+v, %v", form, err)
	}
	for _, bad := range []string{"", "--x", "--x\r\n\r\nPH",
		"--x\r\nContent-Disposition: form-data; name=\"pw\"\r\nContent-Disposition: form-data; name=\"note\"\r\n\r\nPH\r\n--x--\r\n"} {
		if got, found := replaceMultipart([]byte(bad), "x", "pw", swap("s")); found || string(got) != bad {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

// A field that stands twice is noticed, wherever on the way to it.
func TestTwice(t *testing.T) {
	for in, want := range map[string]bool{
		"a=1&pw=PH&b=2": false, "pw=PH&PW=x&pw2=x&pw[]=x&a=pw": false, "a=1&a=2&pw=PH": false,
		"pw=PH&pw=x": true, "pw=PH&p%77=PH": true, "pw&pw=PH": true, "pw=PH;pw=x": true, "pw=&x=1&pw=PH": true,
	} {
		if got := twiceForm([]byte(in), "pw"); got != want {
			t.Errorf("form %q: %v", in, got)
		}
	}
	for _, c := range []struct {
		path, in string
		want     bool
	}{
		{"pw", `{"pw":"PH","a":1,"a":2}`, false},
		{"pw", `{"pw":"PH","Pw":"x"}`, false},
		{"pw", `{"pw":"PH","u":{"pw":"x"},"v":[{"pw":"x"},{"pw":"y"}]}`, false},
		{"pw", `{"pw":"PH","pw":"x"}`, true},
		{"pw", `{"pw":["x"],"\u0070w":"PH"}`, true},
		{"pw", `{"pw":"PH"}{"pw":"x"}`, true},
		{"user.pw", `{"user":{"pw":"PH","x":1,"x":2}}`, false},
		{"user.pw", `{"user":{"pw":"PH","pw":null}}`, true},
		{"user.pw", `{"user":{"pw":"PH"},"user":{}}`, true},
		{"user.pw", `{"user":7,"user":{"pw":"PH"}}`, true},
		{"items.1.pw", `{"items":[{"pw":"x"},{"pw":"PH"}]}`, false},
		{"items.1.pw", `{"items":[{"pw":"x","pw":"y"},{"pw":"PH"}]}`, false},
		{"items.1.pw", `{"items":[{},{"pw":"PH","pw":"PH"}]}`, true},
		{`user\.pw`, `{"user.pw":"PH","user":{"pw":"x"},"user":{}}`, false},
		{`user\.pw`, `{"user.pw":"PH","user.pw":"x"}`, true},
		{`a\\.pw`, `{"a\\":{"pw":"PH"},"a\\":1}`, true},
		{"0", `["PH","x"]`, false},
		{"pw", `not JSON`, false},
	} {
		if got := twiceJSON([]byte(c.in), c.path); got != c.want {
			t.Errorf("%s in %s: %v", c.path, c.in, got)
		}
	}
	part := func(disposition string) string {
		return "--x\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\nPH\r\n"
	}
	for in, want := range map[string]bool{
		part(`name="pw"`) + part(`name="a"`) + part(`name="a"`):          false,
		part(`name="pw"`) + part(`name="pw"; filename="f"`):              false,
		part(`name="pw"`) + part(`name=pw`):                              true,
		part(`name="a"`) + part(`name="pw"`) + part(`name*=utf-8''%70w`): true,
	} {
		if got := twiceMultipart([]byte(in+"--x--\r\n"), "x", "pw"); got != want {
			t.Errorf("parts %q: %v", in, got)
		}
	}
}

func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"pw":"PH","a":[{}]}`), "pw")
	f.Add([]byte("pw=PH&a=b"), "pw")
	f.Add([]byte("--b\r\nContent-Disposition: form-data; name=\"pw\"\r\n\r\nPH\r\n--b--\r\n"), "pw")
	f.Fuzz(func(t *testing.T, body []byte, field string) {
		nothing := func(s string) (string, bool) { return "x", false }
		for name, replace := range map[string]func(put func(string) (string, bool)) ([]byte, bool){
			"form":      func(put func(string) (string, bool)) ([]byte, bool) { return replaceForm(body, field, put) },
			"json":      func(put func(string) (string, bool)) ([]byte, bool) { return replaceJSON(body, field, put) },
			"multipart": func(put func(string) (string, bool)) ([]byte, bool) { return replaceMultipart(body, "b", field, put) },
		} {
			if got, found := replace(nothing); found || !bytes.Equal(got, body) {
				t.Errorf("%s: nothing was to be replaced, and %q became %q", name, body, got)
			}
			replace(swap("secret"))
		}
		twiceForm(body, field)
		twiceMultipart(body, "b", field)
		// What a key of an object has twice is noticed.
		if key, err := json.Marshal(field); err == nil && utf8.ValidString(field) && json.Valid(body) {
			in := fmt.Appendf(nil, `{%s:%s,"a":[],%s:"PH"}`, key, body, key)
			if _, found := replaceJSON(in, jsonKey.Replace(field), swap("x")); found && !twiceJSON(in, jsonKey.Replace(field)) {
				t.Errorf("%q stands once in %s", field, in)
			}
		}
	})
}

// The examples of RFC 7616 §3.9.1.
func TestDigestVectors(t *testing.T) {
	for algorithm, want := range map[string]string{
		"MD5":     "8ca523f5e9506fed4657c9700eebdbec",
		"SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
	} {
		d := digest{realm: "http-auth@example.org", nonce: "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque: "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS", algorithm: algorithm, qop: true, count: 1}
		got := d.header("Mufasa", "Circle of Life", "GET", "/dir/index.html", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ")
		if !strings.Contains(got, `response="`+want+`"`) || !strings.Contains(got, "nc=00000001") || !strings.Contains(got, "algorithm="+algorithm) {
			t.Errorf("%s: %s", algorithm, got)
		}
	}
}

func TestChallenge(t *testing.T) {
	for _, c := range []struct {
		headers []string
		want    string
	}{
		{[]string{`Digest realm="a, b", nonce="n\"x", algorithm=MD5, qop="auth,auth-int"`}, `a, b|n"x|MD5|true`},
		{[]string{`Basic realm="x", Digest realm="r", nonce="n"`}, "r|n|MD5|false"},
		{[]string{`Digest realm="r", nonce="1", algorithm=MD5`, `Digest realm="r", nonce="2", algorithm=SHA-256, qop=auth`}, "r|2|SHA-256|true"},
		{[]string{`Digest realm="r", nonce="1", algorithm=TOKEN`}, ""},
		{[]string{`Digest realm="r"`}, ""}, {[]string{"Negotiate", "Basic"}, ""}, {[]string{`Digest nonce="`, ",,,=", ""}, ""}, {nil, ""},
	} {
		got := ""
		if d := challenge(c.headers); d != nil {
			got = fmt.Sprintf("%s|%s|%s|%v", d.realm, d.nonce, d.algorithm, d.qop)
		}
		if got != c.want {
			t.Errorf("%q: %q, want %q", c.headers, got, c.want)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Digest realm="a", nonce="b", qop="auth", algorithm=SHA-256`)
	f.Fuzz(func(t *testing.T, h string) {
		if d := challenge([]string{h}); d != nil && !strings.Contains(d.header("u", "p", "GET", "/", "c"), "response=") {
			t.Error("no response")
		}
	})
}

func TestPage(t *testing.T) {
	s := Script{Path: "/.caponier/f.js", Nonce: "N"}
	tag := s.Tag()
	for _, c := range []struct{ in, want string }{
		{"<!doctype html><html><head><title>x", "<!doctype html><html><head>@<title>x"},
		{"<HTML lang=\"a>b\"><HEAD data-x='>'>rest", "<HTML lang=\"a>b\"><HEAD data-x='>'>@rest"},
		{"<!-- <head> --><html><head>x", "<!-- <head> --><html><head>@x"},
		{"<html><meta http-equiv=csp><body>", "<html>@<meta http-equiv=csp><body>"},
		{"\ufeff \n<title>t</title>", "\ufeff \n@<title>t</title>"},
		{"<header>x</header>", "@<header>x</header>"},
		{"no elements", "@no elements"}, {"a < b <p>", "a < b @<p>"}, {"", ""},
		{"<!-- never closed", "@<!-- never closed"},
		{strings.Repeat("x", maxHead+10), "@" + strings.Repeat("x", maxHead+10)},
	} {
		want := strings.ReplaceAll(c.want, "@", tag)
		for _, size := range []int{1, 3, 1 << 20} {
			p := s.Page()
			var got []byte
			for in := c.in; len(in) > 0; {
				n := min(size, len(in))
				got = p.Push(got, []byte(in[:n]))
				in = in[n:]
			}
			if got = p.Flush(got); string(got) != want {
				t.Errorf("%.60q in %d: %.120q, want %.120q", c.in, size, got, want)
			}
			if len(c.in) > 1000 {
				break
			}
		}
	}
}

func FuzzPage(f *testing.F) {
	f.Add("<html><head><title>", 3)
	f.Fuzz(func(t *testing.T, in string, size int) {
		s := Script{Path: "/.caponier/f.js", Nonce: "N"}
		p := s.Page()
		var got []byte
		size = min(max(size, 1), 50)
		for rest := in; len(rest) > 0; {
			n := min(size, len(rest))
			got = p.Push(got, []byte(rest[:n]))
			rest = rest[n:]
		}
		if got = p.Flush(got); in != "" && strings.Replace(string(got), s.Tag(), "", 1) != in {
			t.Errorf("%q became %q", in, got)
		}
	})
}

func TestPermit(t *testing.T) {
	s := Script{Path: "/.caponier/f.js", Nonce: "N"}
	const url = "https://a.test/.caponier/f.js"
	for _, c := range []struct{ in, want string }{
		{"script-src 'self' 'unsafe-inline'; img-src *", "script-src 'self' 'unsafe-inline' " + url + "; img-src *"},
		{"default-src 'none'; script-src 'none'", "default-src 'none'; script-src " + url},
		{"default-src 'self'", "default-src 'self'; script-src 'self' " + url},
		{"script-src 'nonce-abc' 'strict-dynamic' https:", "script-src 'nonce-abc' 'strict-dynamic' https: 'nonce-N'"},
		{"script-src 'self'; script-src-elem 'none'", "script-src 'self'; script-src-elem " + url},
		{"img-src 'none'", "img-src 'none'"},
		{"default-src 'self', script-src 'none'", "default-src 'self'; script-src 'self' " + url + ",script-src " + url},
	} {
		h := http.Header{"Content-Security-Policy": {c.in}}
		s.Permit(h, "https://a.test")
		if got := h.Get("Content-Security-Policy"); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestPlaceholders(t *testing.T) {
	one, two := New(Config{}), New(Config{})
	in := webrule.Injection{ID: "pw", Value: webrule.Password}
	if a := one.Placeholder(in); a != one.Placeholder(in) || a == two.Placeholder(in) || len(a) < 20 || url.QueryEscape(a) != a {
		t.Errorf("placeholders: %s", a)
	}
	if code := one.Placeholder(webrule.Injection{ID: "otp", Value: webrule.TOTP}); len(code) != 6 || strings.Trim(code, "0123456789") != "" {
		t.Errorf("a code's placeholder: %s", code)
	}
}
