package usercli

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// A decision goes to the request that is named, with its reason.
func TestDecideApproval(t *testing.T) {
	var seen []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		seen = append(seen, r.Method+" "+r.URL.EscapedPath()+" "+strings.TrimSpace(string(b)))
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(r.URL.Path, "own") {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"status":403,"title":"This is not permitted.","detail":"You cannot decide on a request of your own.","code":"own_request"}`)
			return
		}
		io.WriteString(w, `{"id":"wap_1","state":"approved","user_name":"eve","method":"DELETE","url":"https://app.test/admin"}`)
	}))
	t.Cleanup(srv.Close)
	c := &client{base: srv.URL, http: srv.Client(), token: "t"}
	out, err := sendDecision(t.Context(), c, "wap_1/x", "approve", "ticket 7")
	if err != nil || out.State != "approved" || out.UserName != "eve" {
		t.Errorf("%+v, %v", out, err)
	}
	if _, err := sendDecision(t.Context(), c, "own", "deny", ""); err == nil || !strings.Contains(err.Error(), "of your own") || hint(err) != "" {
		t.Errorf("%v, hint %q", err, hint(err))
	}
	if len(seen) != 2 || !strings.HasSuffix(seen[0], `/web-approvals/wap_1%2Fx/approve {"reason":"ticket 7"}`) || !strings.Contains(seen[1], "/web-approvals/own/deny ") {
		t.Errorf("%q", seen)
	}
}

// Who lacks a permission is not sent to look for targets.
func TestHintOfPermission(t *testing.T) {
	for code, want := range map[string]string{"permission_missing": "an administrator", "denied": "caponier targets"} {
		if got := hint(&problem{Status: http.StatusForbidden, Code: code}); !strings.Contains(got, want) {
			t.Errorf("%s: %q", code, got)
		}
	}
}

// What is shown of a request is all of it, and nothing can pass for a line of ours.
func TestApprovalText(t *testing.T) {
	var a approvalItem
	if err := json.Unmarshal([]byte(`{"id":"wap_1","state":"waiting","user_name":"eve","target_name":"wiki","method":"POST","rule_method":"DELETE","url":"https://app.test/x",
		"length_bytes":12,"content_type":"application/json","rule":"DELETE every host","preview":{"kind":"json","text":"{\n  \"State\": \"approved\"\n}"}}`), &a); err != nil {
		t.Fatal(err)
	}
	want := `ID        wap_1
State     waiting
User      eve
Target    wiki
Request   POST https://app.test/x
Counts as DELETE: the application may take the method from elsewhere than the request line
Rule      DELETE every host
Body      12 bytes, json; secrets are not shown
  {
    "State": "approved"
  }
`
	if got := a.text(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	a.Preview, a.RuleMethod = nil, ""
	if got := a.text(); !strings.HasSuffix(got, "Body      12 bytes application/json\n") || a.method() != "POST" {
		t.Errorf("%s", got)
	}
}

// What was approved and lost all the same names who approved it as that.
func TestApprovalDecided(t *testing.T) {
	for want, a := range map[string]approvalItem{
		"anna ticket 7": {State: "approved", DecidedBy: "anna", Reason: "ticket 7"},
		"approved by anna: The request was not sent.": {State: "lost", DecidedBy: "anna", Reason: "The request was not sent."},
		"The request was not sent.":                   {State: "lost", Reason: "The request was not sent."},
	} {
		if got := a.decided(); got != want {
			t.Errorf("%+v: %q, want %q", a, got, want)
		}
	}
}
