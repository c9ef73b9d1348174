package server

import (
	"encoding/json"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"caponier/core/internal/api"
)

// publicOperations need no login. A new one is a decision: write it down here.
var publicOperations = []string{
	"get-openapi", "get-ssh-ca", "get-ssh-ca-krl", "get-ssh-ca-public-keys", "login", "oauth-token",
	"get-login-options", "set-up", "begin-passkey-login", "login-passkey", "begin-sso", "finish-sso", "sso-backchannel-logout", "login-certificate",
}

var parameter = regexp.MustCompile(`\{[^}]+\}`)

// TestEveryRoute asks every operation of the whole interface anonymously and
// with rubbish as an administrator: the first is turned away unless the
// operation is on the list above, and nothing answers "internal error" or
// anything but a problem document when it refuses.
func TestEveryRoute(t *testing.T) {
	s, err := New(t.Context(), testConfig(t), Deps{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.frame.Close()
		s.listen.close()
		s.db.Close()
	})
	_, password, err := s.users.BootstrapAdmin(t.Context(), "admin", "")
	if err != nil {
		t.Fatal(err)
	}
	send := func(token, method, path, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), method, "https://core.test"+api.Prefix+path, strings.NewReader(body))
		if body != "" {
			r.Header.Set("Content-Type", "application/json")
		}
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		r.Header.Set("If-Match", `"1"`)
		w := httptest.NewRecorder()
		s.frame.Handler().ServeHTTP(w, r)
		return w
	}
	var login struct{ Token string }
	w := send("", "POST", "/login", `{"username":"admin","password":"`+password+`"}`)
	if err := json.Unmarshal(w.Body.Bytes(), &login); err != nil || login.Token == "" {
		t.Fatalf("login: %d %s", w.Code, w.Body)
	}

	public := map[string]bool{}
	for _, op := range s.frame.Operations() {
		path := parameter.ReplaceAllString(op.Path, "x")
		w := send("", op.Method, path, "")
		if op.Who == api.Public() {
			public[op.ID] = true
		} else if w.Code != http.StatusUnauthorized {
			t.Errorf("%s %s (%s) answers an anonymous caller with %d: %s", op.Method, op.Path, op.ID, w.Code, w.Body)
		}
		mustBeProblem(t, op, w)
		if endless[op.ID] {
			continue
		}
		for _, body := range []string{"", "{}", "[]", `{"name":1,"unknown":true}`} {
			if op.Method == "GET" && body != "" {
				continue
			}
			w := send(login.Token, op.Method, path, body)
			mustBeProblem(t, op, w)
			if w.Code >= 500 {
				t.Errorf("%s %s (%s) with %q: %d %s", op.Method, op.Path, op.ID, body, w.Code, w.Body)
			}
		}
	}
	if d := cmp.Diff(slices.Sorted(slices.Values(publicOperations)), slices.Sorted(maps.Keys(public))); d != "" {
		t.Errorf("public operations (- listed, + found):\n%s", d)
	}
}

// endless operations stream until the caller goes away, or end his login.
var endless = map[string]bool{"stream-events": true, "logout": true}

func mustBeProblem(t *testing.T, op api.Op, w *httptest.ResponseRecorder) {
	t.Helper()
	if w.Code < 400 || op.ID == "oauth-token" { // RFC 6749 §5.2 has a shape of its own
		return
	}
	var p api.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Code == "" || p.Status != w.Code || w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s %s (%s): %d is no problem document: %s", op.Method, op.Path, op.ID, w.Code, w.Body)
	}
}
