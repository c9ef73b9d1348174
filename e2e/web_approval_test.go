package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// webApproval is a request that needs a second person.
type webApproval struct {
	ID        string `json:"id"`
	State     string `json:"state"`
	Method    string `json:"method"`
	URL       string `json:"url"`
	UserName  string `json:"user_name"`
	DecidedBy string `json:"decided_by"`

	AskedAt time.Time `json:"asked_at"`
}

// A request that needs a second person reaches the target once when he approves
// it, and never otherwise: sent by a script, and by a form that becomes a page.
func TestWebApproval(t *testing.T) {
	w := web(t)
	anna, role := w.approver(t, "approver-anna")
	var me struct {
		User struct {
			ID string `json:"id"`
		} `json:"user"`
	}
	if err := w.user.Do(t.Context(), http.MethodGet, "/me", nil, &me); err != nil {
		t.Fatal(err)
	}
	// The user may decide on what others ask for; not on his own.
	if err := w.core.Admin.Do(t.Context(), http.MethodPut, "/roles/"+role+"/members/"+me.User.ID, map[string]any{}, nil); err != nil {
		t.Fatal(err)
	}
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{change: func(_ *harness.WebTarget, p *webrule.Policy) {
		p.Approve = []webrule.Approval{
			{Rule: webrule.Rule{Methods: []string{"DELETE"}, Path: "/collect"}, Why: "Two look at this."},
			{Rule: webrule.Rule{Methods: []string{"POST"}, Path: "/redirect"}},
			{Rule: webrule.Rule{Path: "/echo/socket$"}},
		}
	}})
	u := w.open(t, s)
	u.shows(t, "the page")
	arrived := func(method, mark string) (n int) {
		path := map[string]string{"DELETE": "/collect", "POST": "/redirect"}[method]
		for _, r := range s.Requests() {
			if r.Method == method && r.Path == path && r.Contains(mark) {
				n++
			}
		}
		return n
	}
	script := func(mark string) <-chan string {
		out := make(chan string, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			got, err := s.Run(ctx, u.who(), fmt.Sprintf("const r = await fetch('/collect?m=%s', {method: 'DELETE', body: 'x'}); return r.status + ' ' + await r.text()", mark))
			out <- fmt.Sprint(got, err)
		}()
		return out
	}
	decide := func(api *harness.API, id, to string) error {
		return api.Do(t.Context(), http.MethodPost, "/web-approvals/"+id+"/"+to, map[string]any{"reason": "ticket 7"}, nil)
	}

	// A script waits on its connection.
	got := script("approved-script")
	a := w.waiting(t, anna, u, "approved-script")
	if a.Method != "DELETE" || a.UserName != "demo" || arrived("DELETE", "approved-script") != 0 {
		t.Errorf("%+v, arrived %d times", a, arrived("DELETE", "approved-script"))
	}
	if err := decide(w.user, a.ID, "approve"); err == nil || !strings.Contains(err.Error(), "own") {
		t.Errorf("its user approves it himself: %v", err)
	}
	if err := decide(anna, a.ID, "approve"); err != nil {
		t.Fatal(err)
	}
	if answer := <-got; !strings.HasPrefix(answer, "204") {
		t.Errorf("the script got %s", answer)
	}
	if n := arrived("DELETE", "approved-script"); n != 1 {
		t.Errorf("it arrived %d times", n)
	}
	got = script("denied-script")
	a = w.waiting(t, anna, u, "denied-script")
	if err := decide(anna, a.ID, "deny"); err != nil {
		t.Fatal(err)
	}
	if answer := <-got; !strings.HasPrefix(answer, "403 ") || !strings.Contains(answer, "approver-anna") {
		t.Errorf("the script got %s", answer)
	}

	// A form's page waits, shows so, and becomes the target's answer.
	send := func(mark string) webApproval {
		t.Helper()
		// Its page goes away while it answers, perhaps before.
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan struct{})
		go func() {
			defer close(over)
			_, _ = s.Run(ctx, u.who(), fmt.Sprintf(`const f = document.createElement('form');
f.method = 'post'; f.action = '/redirect?code=303&to=/home'; f.innerHTML = '<input name=m value=%s><input name=u value="%%26 =">';
document.body.append(f); f.submit()`, mark))
		}()
		defer func() {
			cancel()
			<-over
		}()
		return w.waiting(t, anna, u, "/redirect")
	}
	a = send("approved-form")
	if n := arrived("POST", "approved-form"); a.Method != "POST" || n != 0 {
		t.Errorf("%+v, arrived %d times", a, n)
	}
	if err := decide(anna, a.ID, "approve"); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the form arrives", func() error {
		if arrived("POST", "approved-form") == 0 {
			return fmt.Errorf("it did not")
		}
		return nil
	})
	u.shows(t, "the page that the form leads to")
	if n := arrived("POST", "approved-form"); n != 1 {
		t.Errorf("the form arrived %d times", n)
	}
	for _, r := range s.Requests() {
		if strings.Contains(r.Body, "caponier-continue") || strings.HasPrefix(r.Path, "/.caponier") {
			t.Errorf("what is between page and proxy reached the target: %s %s %q", r.Method, r.Path, r.Body)
		}
		if r.Method == "POST" && r.Path == "/redirect" && r.Body != "m=approved-form&u=%2526+%3D" {
			t.Errorf("the form's body is %q", r.Body)
		}
	}
	u.end(t)

	// Denied, and nobody decides.
	u = w.open(t, s)
	u.shows(t, "the page")
	a = send("denied-form")
	if err := decide(anna, a.ID, "deny"); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "it is denied", func() error { return w.approvalIs(t, anna, a.ID, "denied") })
	u.end(t)

	// A websocket waits for longer than Firefox would by itself.
	u = w.open(t, s)
	u.shows(t, "the page")
	opened := make(chan string, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		got, err := s.Run(ctx, u.who(), `return await new Promise((done) => {
  const ws = new WebSocket(location.origin.replace(/^http/, 'ws') + '/echo/socket?say=held');
  ws.onmessage = (e) => done(e.data); ws.onerror = () => done('failed');
})`)
		opened <- fmt.Sprint(got, err)
	}()
	a = w.waiting(t, anna, u, "/echo/socket")
	until(t, patience, "it has waited for 25 s", func() error {
		if since := time.Since(a.AskedAt); since < 25*time.Second {
			return fmt.Errorf("for %v", since)
		}
		return nil
	})
	if err := w.approvalIs(t, anna, a.ID, "waiting"); err != nil {
		t.Error(err)
	}
	if err := decide(anna, a.ID, "approve"); err != nil {
		t.Fatal(err)
	}
	if got := <-opened; got != "before held after<nil>" {
		t.Errorf("the websocket says %s", got)
	}
	u.end(t)

	wait := func(ctx context.Context, value string) error {
		return w.core.Admin.Do(ctx, http.MethodPut, "/settings", map[string]any{"values": map[string]any{"web.approval_wait": value}}, nil, "If-Match", "*")
	}
	if err := wait(t.Context(), "10s"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := wait(context.Background(), "5m"); err != nil {
			t.Error(err)
		}
	})
	u = w.open(t, s)
	u.shows(t, "the page")
	got = script("late-script")
	a = w.waiting(t, anna, u, "late-script")
	if answer := <-got; !strings.HasPrefix(answer, "403 ") {
		t.Errorf("the script got %s", answer)
	}
	until(t, patience, "it has expired", func() error { return w.approvalIs(t, anna, a.ID, "expired") })
	if err := decide(anna, a.ID, "approve"); err == nil {
		t.Error("it was approved after its time")
	}
	u.end(t)
	for _, mark := range []string{"denied-script", "denied-form", "late-script"} {
		if n := arrived("DELETE", mark) + arrived("POST", mark); n != 0 {
			t.Errorf("%s arrived %d times", mark, n)
		}
	}
	events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
	if err != nil {
		t.Fatal(err)
	}
	states := ""
	for _, e := range events {
		if e.Kind == "approval" {
			states += e.Fields["state"] + " "
		}
	}
	if states != "waiting expired " {
		t.Errorf("the timeline has %q", states)
	}
}

// waiting finds the request of a session that waits.
func (w *webWorld) waiting(t testing.TB, api *harness.API, u *webUse, part string) (found webApproval) {
	t.Helper()
	until(t, patience, part+" waits", func() error {
		var page struct {
			Items []webApproval `json:"items"`
		}
		if err := api.Do(t.Context(), http.MethodGet, "/web-approvals?state=waiting&session="+u.ID, nil, &page); err != nil {
			return err
		}
		for _, a := range page.Items {
			if strings.Contains(a.URL, part) {
				found = a
				return nil
			}
		}
		return fmt.Errorf("%d others do", len(page.Items))
	})
	return found
}

func (w *webWorld) approvalIs(t testing.TB, api *harness.API, id, state string) error {
	var a webApproval
	if err := api.Do(t.Context(), http.MethodGet, "/web-approvals/"+id, nil, &a); err != nil {
		return err
	}
	if a.State != state {
		return fmt.Errorf("it is %s", a.State)
	}
	return nil
}

// approver is a user who may approve requests, and the role that says so.
func (w *webWorld) approver(t testing.TB, name string) (api *harness.API, role string) {
	t.Helper()
	user, err := w.core.Admin.Create(t.Context(), "/users", map[string]any{"name": name, "password": "a-password-of-the-tests"})
	if err != nil {
		t.Fatal(err)
	}
	if role, err = w.core.Admin.Create(t.Context(), "/roles", map[string]any{"name": name, "permissions": []string{"web:approve"}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, path := range []string{"/roles/" + role, "/users/" + user} {
			if err := w.core.Admin.Delete(context.Background(), path); err != nil {
				t.Error(err)
			}
		}
	})
	if err := w.core.Admin.Do(t.Context(), http.MethodPut, "/roles/"+role+"/members/"+user, map[string]any{}, nil); err != nil {
		t.Fatal(err)
	}
	if api, err = w.as(t.Context(), name, "a-password-of-the-tests"); err != nil {
		t.Fatal(err)
	}
	return api, role
}
