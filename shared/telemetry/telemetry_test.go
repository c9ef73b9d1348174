package telemetry

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestLogRedactsSecretsAndCutsLongValues(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		var b strings.Builder
		log, err := NewLogger(&b, LogConfig{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		log.With("Token", "canary-1").WithGroup("g").Info("x", "password", "canary-2", "user", strings.Repeat("u", 5000), "err", errors.New(strings.Repeat("e", 5000)))
		if out := b.String(); strings.Contains(out, "canary") || len(out) > 3000 || !strings.Contains(out, "***") {
			t.Errorf("%s: %s", format, out)
		}
	}
	if _, err := NewLogger(&strings.Builder{}, LogConfig{Format: "xml"}); err == nil {
		t.Error("format xml was accepted")
	}
	if _, err := NewLogger(&strings.Builder{}, LogConfig{Level: "loud"}); err == nil {
		t.Error("level loud was accepted")
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	h := NewHealth()
	var state error
	h.Add("database", true, func(context.Context) error { return state })
	h.Add("ca", false, func(context.Context) error { return nil })
	mux := http.NewServeMux()
	h.Register(mux)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	if code, body := get("/readyz"); code != 200 {
		t.Errorf("ready: %d %s", code, body)
	}
	state = errors.New("database does not answer")
	if code, body := get("/readyz/resume"); code != 503 || !strings.Contains(body, "database does not answer") {
		t.Errorf("database down: %d %s", code, body)
	}
	state = nil
	h.Drain()
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "drain") {
		t.Errorf("draining: %d %s", code, body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz while draining: %d", code)
	}
}

func TestRegistryLint(t *testing.T) {
	t.Parallel()
	problems, err := testutil.GatherAndLint(NewRegistry("core", "1.2.3"), "caponier_build_info")
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}
