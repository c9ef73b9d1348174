package mitm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/shared/control"
	"caponier/shared/webrule"
	"caponier/shared/wire"
	"caponier/webproxy/internal/session"
)

// serveApproval plays core: it knows nothing of sessions, and answers what the
// test decides.
func (r *rig) serveApproval(w http.ResponseWriter, req *http.Request) {
	var ask wire.WebApprovalAsk
	if !control.Read(w, req, &ask) {
		return
	}
	r.mu.Lock()
	known := false
	for _, a := range r.held {
		known = known || a.Hold == ask.Hold
	}
	if !known && !ask.Gone {
		r.held = append(r.held, ask)
	}
	if ask.Gone {
		r.gone[ask.Hold] = true
	}
	if ask.Taken && !ask.Gone {
		if r.onTaken != nil {
			r.onTaken(ask.Hold)
		}
		r.taken[ask.Hold]++
	}
	if !ask.Confirms && !ask.Gone {
		r.t.Errorf("%+v does not say that it confirms", ask)
	}
	r.tellLocked()
	r.mu.Unlock()
	late := time.After(50 * time.Millisecond)
	for {
		r.mu.Lock()
		a, ok := r.decided[ask.Hold]
		ch := r.changed
		r.mu.Unlock()
		if ok {
			control.Reply(w, a)
			return
		}
		select {
		case <-ch:
			continue
		case <-req.Context().Done():
			return
		case <-late:
		}
		control.Reply(w, wire.WebApproval{State: wire.ApprovalWaiting, LeftS: 100})
		return
	}
}

// asked waits for the n-th request that waits.
func (r *rig) asked(n int) (ask wire.WebApprovalAsk) {
	r.t.Helper()
	r.wait(fmt.Sprintf("request %d waits", n), func() bool {
		if len(r.held) > n {
			ask = r.held[n]
			return true
		}
		return false
	})
	return ask
}

func (r *rig) decide(hold string, state wire.ApprovalState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.decided[hold] = wire.WebApproval{State: state, By: "anna", Text: "because"}
	r.tellLocked()
}

func (r *rig) withdrawn(hold string) {
	r.t.Helper()
	r.wait("core hears that nobody waits", func() bool { return r.gone[hold] })
}

// counter is a target that writes down what reached it.
type counter struct {
	mu   sync.Mutex
	seen []string
}

func (c *counter) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b, _ := io.ReadAll(req.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(b) > 1000 {
		sum := sha256.Sum256(b)
		b = fmt.Appendf(nil, "%d bytes %x", len(b), sum[:4])
	}
	c.seen = append(c.seen, strings.TrimSpace(req.Method+" "+req.URL.RequestURI()+" "+string(b)))
	w.Header().Set("X-Origin", req.Header.Get("Origin")+req.Header.Get("Cookie"))
	fmt.Fprint(w, "done ", req.Method)
}

func (c *counter) list() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.seen...)
}

var adminApproval = []webrule.Approval{{Rule: webrule.Rule{Path: "/admin"}, Why: "Two look at this."}}

// navigating are a browser's headers for a page or a form.
var navigating = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}

// later sends a request and hands its answer over.
func (r *rig) later(c *http.Client, method, to, body string, header ...string) <-chan answer {
	out := make(chan answer, 1)
	go func() { out <- r.do(c, method, to, body, header...) }()
	return out
}

func TestHeldScript(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	n := 0
	for _, h2 := range []bool{false, true} {
		c := r.browser("con_1", h2)
		script := []string{"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"}
		got := r.later(c, "DELETE", at+"/admin/user?token=aGVsbG8tYWJjMTIzNDU2Nzg5", "body", append(script, "Content-Type", "text/x")...)
		ask := r.asked(n)
		sum := sha256.Sum256([]byte("DELETE\n" + at + "/admin/user?token=aGVsbG8tYWJjMTIzNDU2Nzg5\ntext/x\nbody"))
		if ask.Method != "DELETE" || ask.URL != at+"/admin/user?token=***" || ask.Length != 4 || ask.ContentType != "text/x" || ask.Page || ask.Digest != hex.EncodeToString(sum[:]) ||
			ask.Why != "Two look at this." || ask.Rule != "every method every host/admin" {
			t.Errorf("h2 %v: %+v", h2, ask)
		}
		if seen := target.list(); len(seen) != 0 {
			t.Fatalf("sent while it waits: %q", seen)
		}
		r.decide(ask.Hold, wire.ApprovalDenied)
		if a := <-got; a.status != 403 || !strings.Contains(a.body, "not approved") || !strings.Contains(a.body, "anna") {
			t.Errorf("h2 %v: %+v", h2, a)
		}
		got = r.later(c, "DELETE", at+"/admin/user", "body", script...)
		ask = r.asked(n + 1)
		r.decide(ask.Hold, wire.ApprovalApproved)
		if a := <-got; a.status != 200 || a.body != "done DELETE" {
			t.Errorf("h2 %v: %+v", h2, a)
		}
		if seen := target.list(); len(seen) != 1 || seen[0] != "DELETE /admin/user body" {
			t.Errorf("h2 %v: sent %q", h2, seen)
		}
		// The same again is another request.
		got = r.later(c, "DELETE", at+"/admin/user", "body", script...)
		ask = r.asked(n + 2)
		r.decide(ask.Hold, wire.ApprovalExpired)
		if a := <-got; a.status != 403 || !strings.Contains(a.body, "in time") {
			t.Errorf("%+v", a)
		}
		if a := r.do(c, "GET", at+"/free", ""); a.status != 200 {
			t.Errorf("%+v", a)
		}
		target.mu.Lock()
		target.seen = nil
		target.mu.Unlock()
		n += 3
	}
	r.event("request", map[string]string{"method": "DELETE", "approved": "anna", "status": "200"})
	r.event("blocked", map[string]string{"method": "DELETE", "reason": "approval_denied"})
	r.event("blocked", map[string]string{"method": "DELETE", "reason": "approval_expired"})
}

// A large body stays with the browser, and arrives whole when it is approved.
func TestHeldLargeBody(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	body := strings.Repeat("0123456789", 300_000)
	sum := sha256.Sum256([]byte(body))
	for n, header := range [][]string{nil, navigating} { // a form's waits on its connection, too
		got := r.later(r.browser("con_1", false), "POST", at+"/admin", body, header...)
		ask := r.asked(n)
		if ask.Page || ask.Digest != "" || ask.Length != 3_000_000 {
			t.Errorf("%+v", ask)
		}
		r.decide(ask.Hold, wire.ApprovalApproved)
		if a := <-got; a.status != 200 {
			t.Errorf("%+v", a)
		}
	}
	want := fmt.Sprintf("POST /admin 3000000 bytes %x", sum[:4])
	if seen := target.list(); len(seen) != 2 || seen[0] != want || seen[1] != want {
		t.Errorf("%q, want %q", seen, want)
	}
}

var (
	heldAt    = regexp.MustCompile(`data-at="([^"]+)"`)
	heldValue = regexp.MustCompile(`name="caponier-continue" value="([A-Z2-7]{26})"`)
)

// state asks what a held page asks.
func (r *rig) state(c *http.Client, to, last string) (s struct{ State, By, Text string }, status int) {
	r.t.Helper()
	a := r.do(c, "GET", to+"?state="+last, "")
	if a.status == 200 {
		if err := json.Unmarshal([]byte(a.body), &s); err != nil {
			r.t.Fatalf("%s: %v", a.body, err)
		}
	}
	return s, a.status
}

func TestHeldForm(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	other := r.origin("other.test", target, nil)
	u, _ := url.Parse(other)
	policy := webrule.Policy{Approve: adminApproval, Allow: []webrule.Rule{{Host: u.Host}}}
	r.put("con_1", 1, at+"/", policy, nil)
	r.put("con_2", 1, at+"/", policy, nil)
	c, stranger := r.browser("con_1", true), r.browser("con_2", true)
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	w.WriteField("user", "7")
	w.Close()
	send := append([]string{"Content-Type", w.FormDataContentType(), "Origin", "https://app.test", "Cookie", "sid=1"}, navigating...)
	page := r.do(c, "POST", at+"/admin/delete?x=1", form.String(), send...)
	m, v := heldAt.FindStringSubmatch(page.body), heldValue.FindStringSubmatch(page.body)
	if page.status != 202 || m == nil || v == nil || !strings.Contains(page.body, "Two look at this.") || page.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%+v", page)
	}
	ask := r.asked(0)
	if !ask.Page || ask.Length != int64(form.Len()) || ask.Digest == "" {
		t.Errorf("%+v", ask)
	}
	cont := "caponier-continue=" + v[1] + "\r\n"
	text := append([]string{"Content-Type", "text/plain"}, navigating...)
	// Sent again, or taken up too early, it is the same request.
	if again := r.do(c, "POST", at+"/admin/delete?x=1", form.String(), send...); heldValue.FindStringSubmatch(again.body)[1] != v[1] {
		t.Error("it waits twice")
	}
	if early := r.do(c, "POST", at+"/admin/delete?x=1", cont, text...); early.status != 202 {
		t.Errorf("%+v", early)
	}
	// Others learn and do nothing.
	for _, x := range []struct {
		c  *http.Client
		to string
	}{{stranger, at + m[1]}, {c, other + m[1]}, {c, at + "/.caponier/held/" + strings.Repeat("A", 26)}} {
		if _, status := r.state(x.c, x.to, "waiting"); status != 404 {
			t.Errorf("%s: %d", x.to, status)
		}
	}
	if s, status := r.state(c, at+m[1], ""); status != 200 || s.State != "waiting" {
		t.Errorf("%d %+v", status, s)
	}
	if seen := target.list(); len(seen) != 0 {
		t.Fatalf("sent while it waits: %q", seen)
	}
	news := make(chan struct{ State, By, Text string }, 1)
	go func() {
		s, _ := r.state(c, at+m[1], "waiting")
		news <- s
	}()
	r.decide(ask.Hold, wire.ApprovalApproved)
	if s := <-news; s.State != "approved" || s.By != "anna" || s.Text != "because" {
		t.Errorf("%+v", s)
	}
	for name, x := range map[string]struct {
		c  *http.Client
		to string
	}{"another session": {stranger, at + "/admin/delete?x=1"}, "another URL": {c, at + "/admin/delete?x=2"}, "another host": {c, other + "/admin/delete?x=1"}, "a free URL": {c, at + "/free"}} {
		if a := r.do(x.c, "POST", x.to, cont, text...); a.status != 409 {
			t.Errorf("%s: %+v", name, a)
		}
	}
	got := r.do(c, "POST", at+"/admin/delete?x=1", cont, text...)
	if got.status != 200 || got.body != "done POST" || got.header.Get("X-Origin") != "https://app.testsid=1" {
		t.Errorf("%+v", got)
	}
	if again := r.do(c, "POST", at+"/admin/delete?x=1", cont, text...); again.status != 409 {
		t.Errorf("taken up twice: %+v", again)
	}
	if seen := target.list(); len(seen) != 1 || seen[0] != strings.TrimSpace("POST /admin/delete?x=1 "+form.String()) {
		t.Errorf("sent %q", seen)
	}
	r.event("request", map[string]string{"method": "POST", "approved": "anna", "status": "200"})
}

// A page that was asked for is asked for again; once, and only it.
func TestHeldPage(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	c := r.browser("con_1", false)
	page := r.do(c, "GET", at+"/admin/wipe?a=1", "", navigating...)
	if page.status != 202 || heldValue.MatchString(page.body) {
		t.Fatalf("%+v", page)
	}
	ask := r.asked(0)
	r.decide(ask.Hold, wire.ApprovalApproved)
	to := at + heldAt.FindStringSubmatch(page.body)[1]
	until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, ""); return s.State == "approved" })
	if a := r.do(c, "GET", at+"/admin/wipe?a=2", "", navigating...); a.status != 202 {
		t.Errorf("another URL: %+v", a)
	}
	if a := r.do(c, "GET", at+"/admin/wipe?a=1", "", navigating...); a.status != 200 || a.body != "done GET" {
		t.Errorf("%+v", a)
	}
	if a := r.do(c, "GET", at+"/admin/wipe?a=1", "", navigating...); a.status != 202 {
		t.Errorf("a second time: %+v", a)
	}
	if seen := target.list(); len(seen) != 1 {
		t.Errorf("sent %q", seen)
	}
	// Plain http has no Sec-Fetch headers; a browser asks for a page there.
	if a := r.do(c, "GET", at+"/admin/plain", "", "Upgrade-Insecure-Requests", "1", "Accept", "text/html,*/*"); a.status != 202 {
		t.Errorf("%+v", a)
	}
}

func TestHeldPageRefused(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	c := r.browser("con_1", false)
	open := func(n int, path string) (hold, to, cont string) {
		page := r.do(c, "POST", at+path, "x=1", navigating...)
		return r.asked(n).Hold, at + heldAt.FindStringSubmatch(page.body)[1], "caponier-continue=" + heldValue.FindStringSubmatch(page.body)[1] + "\r\n"
	}
	hold, to, cont := open(0, "/admin/1")
	r.decide(hold, wire.ApprovalDenied)
	until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, "waiting"); return s.State == "denied" && s.By == "anna" })
	if a := r.do(c, "POST", at+"/admin/1", cont, append([]string{"Content-Type", "text/plain"}, navigating...)...); a.status != 403 || !strings.Contains(a.body, "anna") {
		t.Errorf("%+v", a)
	}
	// Taken back by its user.
	hold, to, _ = open(1, "/admin/2")
	if a := r.do(c, "POST", to, ""); a.status != 204 {
		t.Errorf("%+v", a)
	}
	r.withdrawn(hold)
	until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, "waiting"); return s.State == "withdrawn" })
	if seen := target.list(); len(seen) != 0 {
		t.Errorf("sent %q", seen)
	}
}

// A page that is closed takes its request back; an approved one that nobody
// takes up is forgotten.
func TestHeldPageClosed(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Left = time.Second })
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	c := r.browser("con_1", false)
	page := r.do(c, "POST", at+"/admin/3", "x=1", navigating...)
	r.withdrawn(r.asked(0).Hold)
	to := at + heldAt.FindStringSubmatch(page.body)[1]
	until(t, "it is forgotten", func() bool { _, status := r.state(c, to, ""); return status == 404 })
	page = r.do(c, "POST", at+"/admin/4", "x=1", navigating...)
	cont := "caponier-continue=" + heldValue.FindStringSubmatch(page.body)[1] + "\r\n"
	r.decide(r.asked(1).Hold, wire.ApprovalApproved)
	r.withdrawn(r.asked(1).Hold) // core does not take it for sent
	until(t, "it is forgotten", func() bool {
		r.proxy.holds.mu.Lock()
		defer r.proxy.holds.mu.Unlock()
		return len(r.proxy.holds.all) == 0
	})
	if a := r.do(c, "POST", at+"/admin/4", cont, append([]string{"Content-Type", "text/plain"}, navigating...)...); a.status != 409 {
		t.Errorf("%+v", a)
	}
	if seen := target.list(); len(seen) != 0 {
		t.Errorf("sent %q", seen)
	}
}

// What waits ends with the browser's leaving, with the session, and with rules
// that refuse it; rules that hold it differently or not at all do not cut it.
func TestHeldEnds(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	for n, h2 := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "DELETE", at+"/admin/left", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		over := make(chan error, 1)
		go func() {
			resp, err := r.browser("con_1", h2).Do(req)
			if err == nil {
				resp.Body.Close()
			}
			over <- err
		}()
		ask := r.asked(n)
		cancel()
		if err := <-over; err == nil {
			t.Error("it was answered")
		}
		r.withdrawn(ask.Hold)
	}
	c := r.browser("con_1", false)
	got := r.later(c, "DELETE", at+"/admin/denied by now", "")
	ask := r.asked(2)
	r.put("con_1", 2, at+"/", webrule.Policy{Approve: adminApproval, Deny: []webrule.Rule{{Path: "/admin"}}}, nil)
	if a := <-got; a.status != 403 {
		t.Errorf("%+v", a)
	}
	r.withdrawn(ask.Hold)

	r.put("con_1", 3, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	got = r.later(c, "DELETE", at+"/admin/x", "")
	ask = r.asked(3)
	r.put("con_1", 4, at+"/", webrule.Policy{Approve: []webrule.Approval{{Rule: webrule.Rule{Methods: []string{"DELETE"}}}}}, nil)
	r.put("con_1", 5, at+"/", webrule.Policy{}, nil)
	r.decide(ask.Hold, wire.ApprovalApproved)
	if a := <-got; a.status != 200 {
		t.Errorf("%+v", a)
	}
	if seen := target.list(); len(seen) != 1 || seen[0] != "DELETE /admin/x" {
		t.Errorf("sent %q", seen)
	}

	// A session ends with what waits in it, page or not.
	r.put("con_2", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	c2 := r.browser("con_2", true)
	if a := r.do(c2, "POST", at+"/admin/form", "x", navigating...); a.status != 202 {
		t.Errorf("%+v", a)
	}
	req, err := http.NewRequestWithContext(t.Context(), "DELETE", at+"/admin/y", nil)
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		if resp, err := c2.Do(req); err == nil { // cut off, or refused
			if resp.StatusCode != 403 {
				t.Errorf("status %d", resp.StatusCode)
			}
			resp.Body.Close()
		}
	}()
	r.asked(5)
	r.sessions.End(t.Context(), "con_2")
	<-over
	until(t, "nothing is held", func() bool {
		r.proxy.holds.mu.Lock()
		defer r.proxy.holds.mu.Unlock()
		return len(r.proxy.holds.all) == 0
	})
	if seen := target.list(); len(seen) != 1 {
		t.Errorf("sent %q", seen)
	}
}

// An approved request leaves when core has noted that it does, and not if core
// has given it up meanwhile. Until then core is told that it is here.
func TestApprovedIsTaken(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	holds := func() []string { return r.sessions.States().Sessions[0].Holds }
	c := r.browser("con_1", true)
	text := append([]string{"Content-Type", "text/plain"}, navigating...)
	n := 0
	for _, form := range []bool{false, true} {
		for _, lost := range []bool{false, true} {
			var header []string
			if form {
				header = navigating
			}
			got := r.later(c, "POST", at+"/admin/x", fmt.Sprint("n=", n), header...)
			ask := r.asked(n)
			n++
			before := len(target.list())
			r.mu.Lock()
			r.onTaken = func(hold string) {
				if hold != ask.Hold || len(target.list()) != before || !slices.Contains(holds(), hold) {
					t.Errorf("form %v: %s is taken when %q were sent and %q are kept", form, hold, target.list()[before:], holds())
				}
				if lost {
					r.decided[hold] = wire.WebApproval{State: wire.ApprovalLost, Text: "too late"}
				}
			}
			r.mu.Unlock()
			r.decide(ask.Hold, wire.ApprovalApproved)
			a := <-got
			if form {
				to := at + heldAt.FindStringSubmatch(a.body)[1]
				until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, ""); return s.State == "approved" })
				r.mu.Lock()
				early := r.taken[ask.Hold]
				r.mu.Unlock()
				if early != 0 || !slices.Contains(holds(), ask.Hold) {
					t.Errorf("taken %d times before its page comes for it, kept are %q", early, holds())
				}
				a = r.do(c, "POST", at+"/admin/x", "caponier-continue="+heldValue.FindStringSubmatch(a.body)[1]+"\r\n", text...)
			}
			sent := len(target.list()) - before
			if lost && (a.status != 403 || sent != 0 || !strings.Contains(a.body, "does not wait any more") || !strings.Contains(a.body, "too late")) || !lost && (a.status != 200 || sent != 1) {
				t.Errorf("form %v, lost %v: %+v, %d sent", form, lost, a, sent)
			}
			r.mu.Lock()
			if r.taken[ask.Hold] != 1 || r.gone[ask.Hold] {
				t.Errorf("form %v, lost %v: taken %d times, gone %v", form, lost, r.taken[ask.Hold], r.gone[ask.Hold])
			}
			r.mu.Unlock()
		}
	}
	r.event("blocked", map[string]string{"method": "POST", "reason": "approval_lost"})
}

// What was allowed and needs approval by now is cut.
func TestHoldingRuleCuts(t *testing.T) {
	r := newRig(t)
	started := make(chan struct{})
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.(http.Flusher).Flush()
		close(started)
		<-req.Context().Done()
	}), nil)
	r.put("con_1", 1, at+"/", webrule.Policy{}, nil)
	req, err := http.NewRequestWithContext(t.Context(), "GET", at+"/admin/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.browser("con_1", false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-started
	r.put("con_1", 2, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("the answer looks complete: %s, %q", resp.Status, b)
	}
}

// A held websocket opens once it was approved.
func TestHeldUpgrade(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x02hi")
		rw.Flush()
	}), func(s *httptest.Server) { s.EnableHTTP2 = false })
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	for n, state := range []wire.ApprovalState{wire.ApprovalDenied, wire.ApprovalApproved} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", at+"/admin/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "websocket")
		req.Header.Set("Sec-Fetch-Mode", "websocket")
		out := make(chan *http.Response, 1)
		go func() {
			resp, err := r.browser("con_1", false).Do(req)
			if err != nil {
				t.Error(err)
			}
			out <- resp
		}()
		r.decide(r.asked(n).Hold, state)
		resp := <-out
		if resp == nil {
			continue
		}
		if want := map[wire.ApprovalState]int{wire.ApprovalDenied: 403, wire.ApprovalApproved: 101}[state]; resp.StatusCode != want {
			t.Errorf("%s: %d", state, resp.StatusCode)
		} else if want == 101 {
			b := make([]byte, 4)
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b[2:]) != "hi" {
				t.Errorf("%q, %v", b, err)
			}
		}
		resp.Body.Close()
	}
}

// The tunnel to core may break while a request waits.
func TestHeldThroughLostTunnel(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	got := r.later(r.browser("con_1", false), "DELETE", at+"/admin", "")
	ask := r.asked(0)
	r.mu.Lock()
	live := r.tunnel
	r.tunnel = nil
	r.mu.Unlock()
	r.decide(ask.Hold, wire.ApprovalApproved)
	r.mu.Lock()
	r.tunnel = live
	r.mu.Unlock()
	if a := <-got; a.status != 200 {
		t.Errorf("%+v", a)
	}
	if len(target.list()) != 1 {
		t.Errorf("sent %q", target.list())
	}
}

// No session fills the webproxy with what waits.
func TestHeldAreBounded(t *testing.T) {
	r := newRig(t)
	target := &counter{}
	at := r.origin("app.test", target, nil)
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval}, nil)
	c := r.browser("con_1", true)
	var all []<-chan answer
	for n := range maxHeldSession {
		all = append(all, r.later(c, "DELETE", fmt.Sprint(at, "/admin/", n), ""))
	}
	r.asked(maxHeldSession - 1)
	for _, header := range [][]string{nil, navigating} {
		if a := r.do(c, "POST", at+"/admin/more", "x", header...); a.status != 429 || !strings.Contains(a.body, "16 requests of this session wait already") {
			t.Errorf("%+v", a)
		}
	}
	r.mu.Lock()
	asks := append([]wire.WebApprovalAsk(nil), r.held...)
	r.mu.Unlock()
	for _, a := range asks {
		r.decide(a.Hold, wire.ApprovalDenied)
	}
	for _, ch := range all {
		if a := <-ch; a.status != 403 {
			t.Errorf("%+v", a)
		}
	}
	if len(target.list()) != 0 {
		t.Errorf("sent %q", target.list())
	}
}

// No user takes the places of others, in however many sessions; what ends gives
// its place back.
func TestHeldPlaces(t *testing.T) {
	const sessions = 8
	h := newHolds()
	of := func(user string) *session.Session { return &session.Session{User: user} }
	var mine []*held
	fill := func(user string, want int) {
		t.Helper()
		n := 0
		for range sessions {
			s := of(user)
			for i := range maxHeldSession + 1 {
				x := &held{name: fmt.Sprint(user, len(h.all)), ses: s}
				err := h.add(x)
				if err == nil {
					n++
					mine = append(mine, x)
					continue
				}
				if !errors.Is(err, errUserHolds) && (i < maxHeldSession || !errors.Is(err, errSessionHolds)) && !errors.Is(err, errProxyHolds) {
					t.Errorf("%s: %d of a session: %v", user, i, err)
				}
			}
		}
		if n != want {
			t.Errorf("%s has %d places, want %d", user, n, want)
		}
	}
	for _, user := range []string{"anna", "ben", "carl", "dora"} {
		fill(user, maxHeld/4)
	}
	fill("eve", 0)
	if err := h.add(&held{name: "x", ses: of("eve")}); !errors.Is(err, errProxyHolds) {
		t.Error(err)
	}
	for _, x := range mine[:maxHeld/4] { // anna's
		h.remove(x)
		h.remove(x) // counts once
	}
	fill("ben", 0)
	fill("eve", maxHeld/4)
	for _, x := range mine {
		h.remove(x)
	}
	if len(h.all)+len(h.counts)+len(h.users)+len(h.keys) != 0 {
		t.Errorf("left: %d, %d, %d, %d", len(h.all), len(h.counts), len(h.users), len(h.keys))
	}
}

// A credential is put in as into every request, when it leaves.
func TestHeldInjection(t *testing.T) {
	r := newRig(t)
	at := r.origin("app.test", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, _, _ := req.BasicAuth()
		fmt.Fprint(w, "user ", user)
	}), nil)
	r.secret("basic", wire.WebCredential{Username: "alice", Password: "correct horse battery"})
	r.put("con_1", 1, at+"/", webrule.Policy{Approve: adminApproval, Recipe: webrule.Recipe{Injections: []webrule.Injection{{ID: "basic", Kind: webrule.Basic, Origin: at}}}},
		func(s *wire.WebProxySession) { s.Account = "alice" })
	c := r.browser("con_1", false)
	page := r.do(c, "POST", at+"/admin", "x=1", navigating...)
	ask := r.asked(0)
	r.mu.Lock()
	early := len(r.asks)
	r.mu.Unlock()
	if early != 0 {
		t.Error("the credential was asked for while the request waits")
	}
	r.decide(ask.Hold, wire.ApprovalApproved)
	to := at + heldAt.FindStringSubmatch(page.body)[1]
	until(t, "the page hears of it", func() bool { s, _ := r.state(c, to, "waiting"); return s.State == "approved" })
	cont := "caponier-continue=" + heldValue.FindStringSubmatch(page.body)[1] + "\r\n"
	if a := r.do(c, "POST", at+"/admin", cont, append([]string{"Content-Type", "text/plain"}, navigating...)...); a.body != "user alice" {
		t.Errorf("%+v", a)
	}
}
