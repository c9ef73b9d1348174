package mitm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

const (
	formType  = "application/x-www-form-urlencoded"
	partsType = "multipart/form-data; boundary=XX"
)

// part writes a body of multipart/form-data from header, content, header, …
func parts(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		b.WriteString("--XX\r\nContent-Disposition: form-data; " + pairs[i] + "\r\n\r\n" + pairs[i+1] + "\r\n")
	}
	return b.String() + "--XX--\r\n"
}

func scanned(t testing.TB, kind, body string, piece int) (methods []string, unclear bool) {
	t.Helper()
	s, unclear := newMethodScan(http.Header{"Content-Type": {kind}})
	if s == nil {
		return nil, unclear
	}
	for b := []byte(body); len(b) > 0; {
		n := min(piece, len(b))
		s.write(b[:n])
		b = b[n:]
	}
	s.finish()
	return s.methods, unclear || s.unclear
}

func TestMethodScan(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, x := range []struct {
		name, kind, body string
		want             string // methods
		unclear          bool
	}{
		{"form", formType, "a=1&_method=DELETE&b=2", "DELETE", false},
		{"form: last", formType, "a=1&_method=delete", "delete", false},
		{"form: first", formType, "_method=PUT&a=1", "PUT", false},
		{"form: twice", formType, "_method=PUT&_method=DELETE&_method=PUT", "PUT DELETE", false},
		{"form: encoded", formType + "; charset=utf-8", "%5f%6Dethod=%44ELETE", "DELETE", false},
		{"form: in EBCDIC", formType + "; charset=ibm037", "\x6d\x94\x85\xa3\x88\x96\x84\x7e\xc4\xc5\xd3\xc5\xe3\xc5", "", true},
		{"form: in UTF-7", formType + "; charset=UTF-7", "a=1", "", true},
		{"form: semicolons", formType, "a=1;_method=DELETE", "DELETE", false},
		{"form: other spellings", formType, "_METHOD=A1&X-HTTP-Method-Override=B1&+_method=C1&.method=D1", "A1 B1 C1 D1", false},
		{"form: spaces around", formType, "_method=+DELETE%0d%0a", "DELETE", false},
		{"form: none", formType, "method=DELETE&x_method=DELETE&_methods=DELETE&a=_method=DELETE&_method", "", false},
		{"form: empty", formType, "_method=&a", "", false},
		{"form: no method", formType, "_method=DELETE+it", "", true},
		{"form: broken value", formType, "_method=%zz", "", true},
		{"form: long value", formType, "_method=" + long, "", true},
		{"form: long others", formType, long + "=" + long + "&_method=DELETE&" + long, "DELETE", false},
		{"JSON", "application/json", `{"a": {"_method": "PUT"}, "_method": "DELETE"}`, "DELETE", false},
		{"JSON: twice", "application/json", `{"_method":"PUT","_METHOD":"PATCH","a":1,"\u005fmethod":"DELETE"}`, "PUT PATCH DELETE", false},
		{"JSON: twice, one no text", "application/json", `{"_method":"DELETE","_method":null}`, "DELETE", false},
		{"JSON: escaped", "application/vnd.api+json", `{"\u005fmethod":"DEL\u0045TE"}`, "DELETE", false},
		{"JSON: no text", "application/json", `{"_method": ["DELETE"], "b": "PUT", "_method": 7}`, "", false},
		{"JSON: value that is a key", "application/json", `{"a":"_method","b":"DELETE"}`, "", false},
		{"JSON: list", "application/json", `[{"_method":"DELETE"}]`, "", false},
		{"JSON: quotes inside", "application/json", `{"x\"_method":"A","y":"\\","_method":"DELETE","z":"{\"_method\":\"B\"}"}`, "DELETE", false},
		{"JSON: UTF-16", "application/json", "{\x00\"\x00_\x00", "", true},
		{"JSON: long", "application/json", `{"` + long + `":"` + long + `","_method":"DELETE"}`, "DELETE", false},
		{"parts", partsType, parts(`name="a"`, "1", `name="_method"`, "DELETE"), "DELETE", false},
		{"parts: after a file", partsType, parts(`name="f"; filename="alias_method.rb"`, long+"\r\n_method=PUT\r\n\r\n"+long, `name="_method"`, "DELETE"), "DELETE", false},
		{"parts: no quotes", partsType, parts(`name=_method`, "DELETE"), "DELETE", false},
		{"parts: another encoding of the name", partsType, parts(`name*=utf-8''%5Fmethod`, "DELETE"), "DELETE", false},
		{"parts: two names", partsType, parts(`name="x"; name="_method"`, "DELETE"), "", true},
		{"parts: line feeds alone", partsType, strings.ReplaceAll(parts(`name="_method"`, "DELETE"), "\r\n", "\n"), "DELETE", false},
		{"parts: folded", partsType, "--XX\r\nContent-Disposition: form-data;\r\n name=\"_method\"\r\n\r\nDELETE\r\n--XX--", "DELETE", false},
		{"parts: not closed", partsType, "--XX\r\nContent-Disposition: form-data; name=\"_method\"\r\n\r\nDELETE", "DELETE", false},
		{"parts: a long header", partsType, "--XX\r\nX: " + long + "\r\n\r\n1\r\n--XX--", "", true},
		{"parts: none", partsType, parts(`name="method"`, "_method=DELETE", `name="f"; filename="_method"`, "name=\"_method\"\r\n\r\nDELETE"), "", false},
		{"parts: no boundary", "multipart/form-data", parts(`name="a"`, "1"), "", true},
		{"parts: a strange boundary", `multipart/form-data; boundary="XX,Y"`, "", "", true},
		{"text", "text/plain", "_method=DELETE", "", false},
		{"nothing", "", "_method=DELETE", "", false},
	} {
		for _, piece := range []int{1 << 20, 1, 3} {
			methods, unclear := scanned(t, x.kind, x.body, piece)
			if got := strings.Join(methods, " "); got != x.want || unclear != x.unclear {
				t.Errorf("%s in pieces of %d: %q, unclear %v; want %q, %v", x.name, piece, got, unclear, x.want, x.unclear)
			}
		}
	}
	for name, h := range map[string]http.Header{
		"encoded":   {"Content-Type": {formType}, "Content-Encoding": {"gzip"}},
		"two types": {"Content-Type": {"text/plain", formType}},
	} {
		if s, unclear := newMethodScan(h); s == nil || !unclear {
			t.Errorf("%s: clear", name)
		}
	}
}

// What usual decoders find in a body is found, or the body is not clear; and
// it does not matter in which pieces it comes.
func FuzzMethodScan(f *testing.F) {
	f.Add("a=1&_method=DELETE", 3)
	f.Add(`{"_method":"DELETE","x":{"_method":"PUT"}}`, 1)
	f.Add(parts(`name="_method"`, "DELETE", `name="f"; filename="x"`, "--X\r\n"), 7)
	f.Fuzz(func(t *testing.T, body string, piece int) {
		piece = max(1, min(piece, 1<<16))
		found := func(kind string, want ...string) {
			methods, unclear := scanned(t, kind, body, piece)
			whole, same := scanned(t, kind, body, 1<<20)
			if !slices.Equal(methods, whole) || unclear != same {
				t.Errorf("%s: %q, %v in pieces, %q, %v whole", kind, methods, unclear, whole, same)
			}
			var pieces [][]byte
			for b := []byte(body); len(b) > 0; {
				n := min(piece, len(b))
				pieces = append(pieces, b[:n])
				b = b[n:]
			}
			sameScan(t, kind, pieces)
			for _, m := range want {
				if m = strings.TrimSpace(m); m != "" && !unclear && !slices.Contains(methods, m) {
					t.Errorf("%s: %q is not among %q", kind, m, methods)
				}
			}
		}
		if v, err := url.ParseQuery(body); err == nil {
			found(formType, v["_method"]...)
		} else {
			found(formType)
		}
		var object map[string]any
		if json.Unmarshal([]byte(body), &object) == nil {
			m, _ := object["_method"].(string)
			found("application/json", m)
		} else {
			found("application/json")
		}
		var named []string
		for r := multipart.NewReader(strings.NewReader(body), "XX"); ; {
			p, err := r.NextRawPart()
			if err != nil {
				break
			}
			v, err := io.ReadAll(p)
			if err == nil && p.FormName() == "_method" {
				named = append(named, string(v))
			}
		}
		found(partsType, named...)
	})
}

// The end of a body leaves after it was looked at, however it comes.
func TestLateMethods(t *testing.T) {
	body := "a=" + strings.Repeat("x", 100_000) + "&_method=DELETE"
	for name, src := range map[string]io.Reader{"at once": strings.NewReader(body), "with its end": iotest.DataErrReader(strings.NewReader(body)), "byte by byte": iotest.OneByteReader(strings.NewReader(body))} {
		for _, may := range []bool{true, false} {
			s, _ := newMethodScan(http.Header{"Content-Type": {formType}})
			l := &lateMethods{src: src, scan: s, may: func(m string, unclear bool) bool { return may && m == "DELETE" && !unclear }}
			src = strings.NewReader(body)
			got, err := io.ReadAll(l)
			if may && (err != nil || string(got) != body) || !may && (!errors.Is(err, errLateMethod) || !strings.HasPrefix(body, string(got)) || len(got) >= len(body)) {
				t.Errorf("%s, %v: %d bytes of %d, %v", name, may, len(got), len(body), err)
			}
		}
	}
	l := &lateMethods{src: iotest.ErrReader(io.ErrUnexpectedEOF), scan: &methodScan{step: (*methodScan).form, done: (*methodScan).pair}, back: []byte("kept")}
	if got, err := io.ReadAll(l); !errors.Is(err, io.ErrUnexpectedEOF) || len(got) != 0 {
		t.Errorf("cut off: %q, %v", got, err)
	}
}

// Rules that look at methods see the one that a form names, whatever it is sent
// as; of a long one the request breaks off before it is whole.
func TestMethodsInBodies(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	var broken atomic.Int32
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(req.Body)
		if err != nil {
			broken.Add(1)
			return
		}
		req.Body = io.NopCloser(bytes.NewReader(b))
		target.ServeHTTP(w, req)
	}), nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Deny: []webrule.Rule{{Methods: []string{"DELETE"}, Path: "/users"}},
		Approve: []webrule.Approval{{Rule: webrule.Rule{Methods: []string{"PATCH"}}}}}, nil)
	large := strings.Repeat("0123456789", 20_000)
	for _, h2 := range []bool{false, true} {
		c := r.browser("con_1", h2)
		for _, x := range []struct {
			name, kind, body, path string
			status                 int
		}{
			{"form", formType, "id=7&_method=DELETE", "/users", 403},
			{"form, elsewhere", formType, "id=7&_method=DELETE", "/posts", 200},
			{"form, another method", formType, "id=7&_method=PUT", "/users", 200},
			{"JSON", "application/json", `{"_method":"delete"}`, "/users", 403},
			{"parts", partsType, parts(`name="_method"`, "DELETE"), "/users", 403},
			{"no form", "text/plain", "_method=DELETE", "/users", 200},
			{"large form", formType, "_method=DELETE&a=" + large, "/users", 403},
			{"large file", partsType, parts(`name="_method"`, "PUT", `name="f"; filename="f"`, large), "/users", 200},
			{"large file, late", partsType, parts(`name="f"; filename="f"`, large, `name="_method"`, "PUT"), "/users", 200},
		} {
			before := len(target.list())
			got := r.do(c, "POST", at+x.path, x.body, "Content-Type", x.kind)
			seen := target.list()[before:]
			if got.status != x.status || (x.status == 200) != (len(seen) == 1) {
				t.Errorf("h2 %v: %s: %d, sent %.100q", h2, x.name, got.status, seen)
			}
			want := fmt.Sprintf("POST %s %s", x.path, x.body)
			if len(x.body) <= 1000 && len(seen) == 1 && seen[0] != strings.TrimSpace(want) {
				t.Errorf("h2 %v: %s: sent %q", h2, x.name, seen)
			}
		}
		if got := r.do(c, "POST", at+"/users", "\x1f\x8b", "Content-Type", formType, "Content-Encoding", "gzip"); got.status != 403 {
			t.Errorf("h2 %v: encoded: %+v", h2, got)
		}
		// Late in a large one: what could not be, what would have had to wait.
		for _, method := range []string{"DELETE", "PATCH"} {
			before := len(target.list())
			got := r.do(c, "POST", at+"/users", parts(`name="f"; filename="f"`, large, `name="_method"`, method), "Content-Type", partsType)
			if got.status != 403 || len(target.list()) != before {
				t.Errorf("h2 %v: late %s: %+v", h2, method, got)
			}
		}
	}
	r.event("blocked", map[string]string{"method": "POST", "url": at + "/users", "reason": "denied"})
	r.event("blocked", map[string]string{"method": "POST", "url": at + "/users", "reason": "needs_approval"})
	until(t, "control: a request was under way", func() bool { return broken.Load() > 0 })
	// Where no rule looks at methods nothing is looked for.
	r.put("con_2", 1, at+"/", webrule.Policy{Deny: []webrule.Rule{{Path: "/x"}}}, nil)
	if got := r.do(r.browser("con_2", false), "POST", at+"/users", "_method=DELETE", "Content-Type", formType); got.status != 200 {
		t.Errorf("%+v", got)
	}
}

// Rules that change cut what an application may take for what they refuse by
// now, wherever the method stood; the same without that method goes on.
func TestChangedRulesCutMethods(t *testing.T) {
	r := newRig(t)
	release, cut := make(chan struct{}, 1), make(chan struct{}, 20)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			t.Errorf("%s: %v", req.URL, err)
		}
		fmt.Fprint(w, "begin")
		w.(http.Flusher).Flush()
		select {
		case <-req.Context().Done():
			cut <- struct{}{}
		case <-release:
			fmt.Fprint(w, "end")
		}
	}), nil)
	large := strings.Repeat("0123456789", 20_000)
	late := parts(`name="f"; filename="f"`, large, `name="_method"`, "DELETE")
	encoded := []string{"Content-Type", formType, "Content-Encoding", "gzip"}
	for name, x := range map[string]struct {
		path, body string
		header     []string
		cut        bool
	}{
		"form":             {"/x", "a=1&_method=DELETE", []string{"Content-Type", formType}, true},
		"header":           {"/x", "", []string{"X-HTTP-Method-Override", "DELETE"}, true},
		"query":            {"/x?_method=delete", "", nil, true},
		"late in a file":   {"/x", late, []string{"Content-Type", partsType}, true},
		"cannot be read":   {"/x", "\x1f\x8b", encoded, true},
		"another method":   {"/x", "_method=PATCH", []string{"Content-Type", formType}, false},
		"late and another": {"/x", strings.ReplaceAll(late, "DELETE", "PATCH"), []string{"Content-Type", partsType}, false},
	} {
		for _, h2 := range []bool{false, true} {
			id := strings.ReplaceAll(fmt.Sprint("con_", name, h2), " ", "_")
			r.put(id, 1, at+"/", webrule.Policy{Deny: []webrule.Rule{{Methods: []string{"PUT"}, Path: "/elsewhere"}}}, nil)
			req, err := http.NewRequestWithContext(t.Context(), "POST", at+x.path, strings.NewReader(x.body))
			if err != nil {
				t.Fatalf("%s, h2 %v: %v\n%s", name, h2, err, r.log.String())
			}
			for i := 0; i < len(x.header); i += 2 {
				req.Header.Set(x.header[i], x.header[i+1])
			}
			resp, err := r.browser(id, h2).Do(req)
			if err != nil {
				t.Fatalf("%s, h2 %v: %v\n%s", name, h2, err, r.log.String())
			}
			begin := make([]byte, 5)
			if _, err := io.ReadFull(resp.Body, begin); err != nil || resp.StatusCode != 200 {
				t.Fatalf("%s, h2 %v: %s, %q, %v", name, h2, resp.Status, begin, err)
			}
			r.put(id, 2, at+"/", webrule.Policy{Deny: []webrule.Rule{{Methods: []string{"DELETE"}}}}, nil)
			if !x.cut {
				release <- struct{}{}
			}
			rest, err := io.ReadAll(resp.Body)
			if x.cut && (err == nil || len(rest) != 0) || !x.cut && (err != nil || string(rest) != "end") {
				t.Errorf("%s, h2 %v: %q, %v", name, h2, rest, err)
			}
			resp.Body.Close()
			if x.cut {
				<-cut // the server knows: it does not take the next one's release
			}
		}
	}
}

// A form that deletes is held like a deletion, as a page or from a script, and
// who decides is told both methods and what is in the form.
func TestHeldMethodInBody(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.secret("pw", wire.WebCredential{Username: "alice", Password: "correct horse battery"})
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: []webrule.Approval{{Rule: webrule.Rule{Methods: []string{"DELETE"}}, Why: "Two look."}},
		Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "pw", Kind: webrule.Form, Origin: at, Field: "confirm", Value: webrule.Password}}}}, nil)
	c := r.browser("con_1", true)
	placeholder := r.sessions.Find("con_1").Inject.Placeholder(webrule.Injection{ID: "pw", Kind: webrule.Form, Value: webrule.Password})
	body := "id=7&_method=DELETE&confirm=" + placeholder + "&otp=123456&note=a%0Ab"
	for n, header := range [][]string{{"Content-Type", formType}, append([]string{"Content-Type", formType}, navigating...)} {
		got := r.later(c, "POST", at+"/users", body, header...)
		ask := r.asked(n)
		if ask.Method != "POST" || ask.RuleMethod != "DELETE" || ask.Preview == nil || ask.Preview.Kind != "form" ||
			ask.Preview.Text != "id = 7\n_method = DELETE\nconfirm = {{password}}\notp = ***\nnote = a\\nb" {
			t.Errorf("%+v %+v", ask, ask.Preview)
		}
		if len(target.list()) != n {
			t.Fatalf("sent while it waits: %q", target.list())
		}
		r.decide(ask.Hold, wire.ApprovalApproved)
		a := <-got
		if n == 1 {
			to := at + heldAt.FindStringSubmatch(a.body)[1]
			until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, ""); return s.State == "approved" })
			a = r.do(c, "POST", at+"/users", "caponier-continue="+heldValue.FindStringSubmatch(a.body)[1]+"\r\n", append([]string{"Content-Type", "text/plain"}, navigating...)...)
		}
		if a.status != 200 || len(target.list()) != n+1 || !strings.Contains(target.list()[n], "correct+horse+battery") && n == 0 {
			t.Errorf("%+v, sent %q", a, target.list())
		}
	}
	// Rules that refuse it by the time it is approved refuse it as what it is.
	got := r.later(c, "POST", at+"/users", "_method=DELETE", "Content-Type", formType)
	ask := r.asked(2)
	r.put("con_1", 2, at+"/", webrule.Policy{Deny: []webrule.Rule{{Methods: []string{"DELETE"}}}}, nil)
	r.decide(ask.Hold, wire.ApprovalApproved)
	if a := <-got; a.status != 403 {
		t.Errorf("%+v", a)
	}
	r.withdrawn(ask.Hold) // core does not take it for sent
}
