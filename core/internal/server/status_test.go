package server

import (
	"net/http/httptest"
	"strings"
	"testing"

	"caponier/shared/telemetry"
)

// The page's commands can be pasted as they are, apart from the name.
func TestStatusPageCommands(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ bastion, want, not string }{
		{"pam.example.org:2022", "ssh -p 2022 you@pam.example.org<", "PORT"},
		{"[2001:db8::1]:2222", "ssh -p 2222 you@2001:db8::1<", "PORT"},
		{"", "caponier login https://pam.example.org --user you<", "ssh -p"},
	} {
		w := httptest.NewRecorder()
		statusPage("c1", "https://pam.example.org", tc.bastion, telemetry.NewHealth()).ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if body := w.Body.String(); !strings.Contains(body, tc.want) || strings.Contains(body, tc.not) {
			t.Errorf("bastion %q: the page lacks %q or holds %q:\n%s", tc.bastion, tc.want, tc.not, body)
		}
	}
}
