package mitm

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// Applications behind a proxy of their own take a path from a header; none
// arrives that names another than what was decided on.
func TestOverriddenPaths(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		for name, v := range req.Header {
			if strings.Contains(fmt.Sprint(v), "/admin") {
				fmt.Fprint(w, name)
			}
		}
	}), nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Deny: []webrule.Rule{{Path: "/admin"}}}, nil)
	for _, h2 := range []bool{false, true} {
		c := r.browser("con_1", h2)
		for _, name := range []string{"X-Original-URL", "x-rewrite-url", "X_Original_URL", "X-Original-URI"} {
			if got := r.do(c, "GET", at+"/", "", name, "/admin"); got.status != 200 || got.body != "" {
				t.Errorf("h2 %v: %s arrives as %q, %d", h2, name, got.body, got.status)
			}
		}
		if got := r.do(c, "GET", at+"/", "", "Referer", at+"/admin"); got.body != "Referer" {
			t.Errorf("control: %+v", got)
		}
	}
}

// A session of API clients that is locked sends nothing, and goes on when it
// is unlocked.
func TestLockedClients(t *testing.T) {
	r := newRig(t)
	gone := make(chan struct{}, 1)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprint(w, "served ")
		if req.URL.Path == "/stream" {
			http.NewResponseController(w).Flush()
			<-req.Context().Done()
			gone <- struct{}{}
		}
	}), nil)
	lock := func(on bool) func(*wire.WebProxySession) {
		return func(s *wire.WebProxySession) { s.Carrier, s.Locked = "", on }
	}
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, lock(false))
	proxy, _ := url.Parse("http://" + r.clear)
	proxy.User = url.UserPassword("con_1", testKey)
	c := r.browser("con_1", false)
	tr := c.Transport.(*http.Transport)
	tr.Proxy, tr.DialContext = http.ProxyURL(proxy), nil
	if got := r.do(c, "GET", at+"/x", ""); got.status != 200 {
		t.Fatalf("%+v", got)
	}
	stream, err := c.Get(at + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	page := r.do(c, "POST", at+"/admin", "a=1", navigating...)
	ask := r.asked(0)
	r.decide(ask.Hold, wire.ApprovalApproved)
	to := at + heldAt.FindStringSubmatch(page.body)[1]
	until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, ""); return s.State == "approved" })

	r.put("con_1", 2, at+"/", webrule.Policy{Approve: adminApproval}, lock(true))
	<-gone // what is under way is cut
	for _, x := range [][2]string{{"GET", "/x"}, {"GET", "/admin"}} {
		if got := r.do(c, x[0], at+x[1], ""); got.status != http.StatusLocked || !strings.Contains(got.body, "locked") {
			t.Errorf("%v of a locked session: %+v", x, got)
		}
	}
	cont := "caponier-continue=" + heldValue.FindStringSubmatch(page.body)[1] + "\r\n"
	if got := r.do(c, "POST", at+"/admin", cont, append([]string{"Content-Type", "text/plain"}, navigating...)...); got.status/100 != 4 || strings.Contains(got.body, "served") {
		t.Errorf("what was approved leaves all the same: %+v", got)
	}
	r.event("blocked", map[string]string{"reason": "locked", "url": at + "/x"})

	r.put("con_1", 3, at+"/", webrule.Policy{}, lock(false))
	if got := r.do(c, "GET", at+"/x", ""); got.status != 200 {
		t.Errorf("unlocked: %+v", got)
	}
}

// What leaves is what was approved, whatever the request says besides that
// takes it up; a method that stands elsewhere is told to who approves.
func TestApprovedIsWhatLeaves(t *testing.T) {
	r := newRig(t)
	seen := make(chan string, 10)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen <- fmt.Sprint(req.Method, " ", req.Header.Get("X-Http-Method-Override"), " ", req.Header.Get("Soapaction"), " ", req.Header.Get("Content-Type"), " ", req.Header.Get("Cookie"))
	}), nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	c := r.browser("con_1", false)
	form := append([]string{"Content-Type", "text/x", "Cookie", "a=1"}, navigating...)
	with := func(more ...string) []string { return append(more, form...) }
	page := r.do(c, "POST", at+"/admin", "id=7", with("SOAPAction", "read")...)
	ask := r.asked(0)
	r.decide(ask.Hold, wire.ApprovalApproved)
	to := at + heldAt.FindStringSubmatch(page.body)[1]
	until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, ""); return s.State == "approved" })
	for n, other := range [][]string{with("X-HTTP-Method-Override", "DELETE"), append([]string{"Content-Type", "application/json"}, navigating...)} {
		if got := r.do(c, "POST", at+"/admin", "id=7", other...); got.status != 202 {
			t.Errorf("%v is taken for what was approved: %+v", other, got)
		}
		if got := r.asked(n + 1); n == 0 && (got.Method != "POST" || got.RuleMethod != "DELETE") || got.Digest == ask.Digest {
			t.Errorf("approvers are told %+v", got)
		}
	}
	if got := r.do(c, "POST", at+"/admin", "id=7", append([]string{"SOAPAction", "delete", "Content-Type", "text/x", "Cookie", "a=2"}, navigating...)...); got.status != 200 {
		t.Errorf("%+v", got)
	}
	if got := <-seen; got != "POST  read text/x a=2" {
		t.Errorf("sent: %q", got)
	}
	if len(seen) != 0 {
		t.Errorf("sent besides: %q", <-seen)
	}
}

// A URL is recorded as text that hides nothing: one that is cut says so.
func TestRecordedURLs(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil)
	r.put("con_1", 1, at+"/", webrule.Policy{}, nil)
	c := r.browser("con_1", false)
	ask := func(query string) string {
		t.Helper()
		u, err := url.Parse(at + "/x")
		if err != nil {
			t.Fatal(err)
		}
		u.RawQuery = query
		resp, err := c.Transport.RoundTrip(&http.Request{Method: "GET", URL: u, Header: http.Header{"X-N": {query[:1]}}})
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		var found string
		r.wait("the request's event", func() bool {
			for _, e := range r.eventsLocked("request") {
				if strings.HasPrefix(e["url"], at+"/x?"+query[:1]) {
					found = e["url"]
				}
			}
			return found != ""
		})
		return strings.TrimPrefix(found, at+"/x?")
	}
	if got := ask("1=\u202e\u009b31m\xff"); got != "1=%E2%80%AE%C2%9B31m%FF" {
		t.Errorf("%q", got)
	}
	for name, query := range map[string]string{"2": "2=" + strings.Repeat("a+", 1500) + "&action=wipe", "3": "3=" + strings.Repeat("a+", 8000) + "&action=wipe"} {
		got := ask(query)
		cut, mark, ok := strings.Cut(got, "[and ")
		var n int
		if _, err := fmt.Sscanf(mark, "%d bytes more]", &n); err != nil || !ok || len(cut)+n != len(query) || len(at+"/x?"+got) > maxURL {
			t.Errorf("%s: %d bytes and %q of %d", name, len(cut), mark, len(query))
		}
	}
}

// What was used stays hidden when the recipe is taken away, and of a password
// too short to be found inside base64 the whole token is.
func TestHidesWhatWasUsed(t *testing.T) {
	r := newRig(t)
	const short = "pw42"
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/echo":
			fmt.Fprint(w, "you said ", req.Header.Get("Authorization"))
		case "/later":
			fmt.Fprint(w, "it was ", short)
		}
	}), nil)
	r.secret("basic", wire.WebCredential{Username: "bob", Password: short})
	r.put("con_1", 1, at+"/", webrule.Policy{Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "basic", Kind: webrule.Basic, Origin: at}}}}, nil)
	r.put("con_2", 1, at+"/", webrule.Policy{}, nil)
	c := r.browser("con_1", false)
	if got := r.do(c, "GET", at+"/echo", ""); got.body != "you said Basic "+maskText {
		t.Errorf("%q has the token %q", got.body, base64.StdEncoding.EncodeToString([]byte("bob:"+short)))
	}
	r.put("con_1", 2, at+"/", webrule.Policy{}, nil)
	if got := r.do(c, "GET", at+"/later", ""); got.body != "it was "+maskText {
		t.Errorf("without the recipe: %q", got.body)
	}
	if got := r.do(r.browser("con_2", false), "GET", at+"/later", ""); got.body != "it was "+short {
		t.Errorf("control: %q", got.body)
	}
}

// A form that says to be in a charset of its own is not shown as what it is not
// to a server that reads it so, and may name any method.
func TestForeignCharset(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: []webrule.Approval{{Rule: webrule.Rule{Methods: []string{"DELETE"}, Path: "/admin"}}, {Rule: webrule.Rule{Methods: []string{"PUT"}}}}}, nil)
	c := r.browser("con_1", false)
	if got := r.do(c, "POST", at+"/admin", "id=7", "Content-Type", "application/x-www-form-urlencoded; charset=UTF-8"); got.status != 200 {
		t.Fatalf("a plain form: %+v", got)
	}
	got := r.later(c, "POST", at+"/admin", "id=7", "Content-Type", "application/x-www-form-urlencoded; charset=ibm037")
	ask := r.asked(0)
	if ask.Preview != nil || ask.RuleMethod != "any method" {
		t.Errorf("%+v, preview %+v", ask, ask.Preview)
	}
	r.decide(ask.Hold, wire.ApprovalDenied)
	if a := <-got; a.status != 403 {
		t.Errorf("%+v", a)
	}
}
