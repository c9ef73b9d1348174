package server

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/api"
)

// TestSignOutEndsEvents: an open stream of events ends with the session it was
// opened by, at once, and no other's does.
func TestSignOutEndsEvents(t *testing.T) {
	e := newEstate(t, testConfig(t))
	s := httptest.NewServer(e.s.frame.Handler())
	t.Cleanup(s.Close)
	// Sessions hold for the address they were opened from: all of it goes by it.
	send := func(token, method, path, body string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+api.Prefix+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	login := func(name string) string {
		t.Helper()
		var out struct{ Token string }
		res := send("", "POST", "/login", `{"username":"`+name+`","password":"a long enough password"}`)
		if err := json.NewDecoder(res.Body).Decode(&out); err != nil || out.Token == "" {
			t.Fatalf("login of %s: %d %v", name, res.StatusCode, err)
		}
		return out.Token
	}
	open := func(token string) <-chan struct{} {
		t.Helper()
		res := send(token, "GET", "/events", "")
		lines := bufio.NewScanner(res.Body)
		if !lines.Scan() || !strings.HasPrefix(lines.Text(), "retry:") {
			t.Fatalf("the stream begins with %q", lines.Text())
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for lines.Scan() {
			}
		}()
		return ended
	}
	leaving := login("admin-one")
	mine, kept, others := open(leaving), open(login("admin-one")), open(login("admin-two"))
	if res := send(leaving, "POST", "/logout", ""); res.StatusCode >= 300 {
		t.Fatalf("logout: %d", res.StatusCode)
	}
	select {
	case <-mine:
	case <-time.After(10 * time.Second): // the heartbeat that looks anyway comes after 15
		t.Error("the stream goes on after the sign-out")
	}
	select {
	case <-kept:
		t.Error("the stream of another session of his has ended")
	case <-others:
		t.Error("the stream of another user has ended")
	default:
	}
}
