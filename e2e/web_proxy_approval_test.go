package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"caponier/e2e/harness"
	"caponier/shared/webrule"
)

// A program's request that somebody approves is sent once, and on record as
// sent. One that is approved when its webproxy has just died is never sent, and
// is told to be lost once the webproxy is back.
func TestProxyApproval(t *testing.T) {
	w := proxies(t)
	anna, _ := w.approver(t, "approver-of-programs")
	var mu sync.Mutex
	arrived := map[string]int{} // guarded by mu
	at, target := w.origin(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		arrived[r.Method+" "+r.URL.Path]++
		fmt.Fprint(rw, "served")
	}), func(x *harness.WebTarget, p *webrule.Policy) {
		forClients(x, p)
		p.Approve = []webrule.Approval{{Rule: webrule.Rule{Methods: []string{"DELETE"}}, Why: "Two look at this."}}
	})
	u := w.serve(t, target)
	if code, body := u.get(t, at+"/"); code != 200 || body != "served" {
		t.Fatalf("%d %s", code, body)
	}
	send := func(path string) <-chan string {
		out := make(chan string, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, at+path, strings.NewReader("_method=DELETE"))
			if err != nil {
				out <- err.Error()
				return
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			resp, err := u.client.Do(req)
			if err != nil {
				out <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			out <- fmt.Sprintf("%d %s", resp.StatusCode, b)
		}()
		return out
	}
	waits := func(path string) string {
		return w.waiting(t, anna, &webUse{WebSession: u.WebSession}, path).ID
	}
	approve := func(id string) {
		t.Helper()
		if err := anna.Do(t.Context(), http.MethodPost, "/web-approvals/"+id+"/approve", map[string]any{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	times := func(path string) int {
		mu.Lock()
		defer mu.Unlock()
		return arrived["POST "+path]
	}
	// audited counts the events of a type about a request.
	audited := func(kind, id string) (n int) {
		t.Helper()
		found, err := w.core.Admin.Audit(t.Context(), "type="+kind)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range found {
			if e.Fields["id"] == id {
				n++
			}
		}
		return n
	}

	got := send("/sent")
	sent := waits("/sent")
	if n := times("/sent"); n != 0 {
		t.Errorf("it arrived %d times before it was approved", n)
	}
	approve(sent)
	if answer := <-got; answer != "200 served" {
		t.Errorf("the program got %s", answer)
	}
	if n := times("/sent"); n != 1 || audited("web.approval_sent", sent) != 1 || audited("web.approval_lost", sent) != 0 {
		t.Errorf("it arrived %d times", n)
	}

	got = send("/lost")
	lost := waits("/lost")
	w.proxy.Proc.Kill()
	<-w.proxy.Proc.Exited()
	t.Cleanup(func() { // others use it
		if _, err := w.core.Admin.WebReady(context.Background(), patience, w.proxy, harness.HasRoom(0)); err != nil {
			t.Error(err)
		}
	})
	approve(lost)
	early := w.approvalIs(t, anna, lost, "approved")
	if err := w.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	if early != nil {
		t.Error(early)
	}
	if answer := <-got; strings.HasPrefix(answer, "2") {
		t.Errorf("the program got %s", answer)
	}
	until(t, 2*patience, "it is lost", func() error { return w.approvalIs(t, anna, lost, "lost") })
	if err := w.approvalIs(t, anna, sent, "approved"); err != nil {
		t.Error(err)
	}
	if n := times("/lost"); n != 0 || audited("web.approval_sent", lost) != 0 || audited("web.approval_lost", lost) != 1 {
		t.Errorf("it arrived %d times", n)
	}
	// The session goes on.
	until(t, patience, "requests are answered", func() error {
		if code, body := u.get(t, at+"/"); code != 200 || body != "served" {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
}
