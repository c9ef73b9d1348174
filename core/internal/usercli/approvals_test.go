package usercli

import (
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
