package api

import (
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"caponier/core/internal/db/dbtest"
)

var update = flag.Bool("update", false, "write golden files")

// TestOpenAPI compares the document of a small frame with a golden file, and
// checks what holds for every operation.
func TestOpenAPI(t *testing.T) {
	f, _ := testFrame(t, people)
	res, body := call1(t, f, "GET", "/api/v1/openapi.json", sent{})
	if res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/openapi+json" {
		t.Fatalf("%d %v", res.StatusCode, res.Header)
	}
	var doc struct {
		OpenAPI string `json:"openapi"`
		Paths   map[string]map[string]struct {
			OperationID string           `json:"operationId"`
			Security    []map[string]any `json:"security"`
			Responses   map[string]struct {
				Content map[string]any `json:"content"`
			} `json:"responses"`
		} `json:"paths"`
		Components struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("OpenAPI version %s", doc.OpenAPI)
	}
	seen := map[string]bool{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			seen[op.OperationID] = true
			if _, ok := op.Responses["default"].Content[problemType]; !ok {
				t.Errorf("%s %s does not document its problems", method, path)
			}
		}
	}
	for _, op := range f.Operations() {
		if !seen[op.ID] {
			t.Errorf("%s is not in the document", op.ID)
		}
	}
	for _, part := range strings.Split(body, `"$ref":"#/components/schemas/`)[1:] {
		if name, _, _ := strings.Cut(part, `"`); doc.Components.Schemas[name] == nil {
			t.Errorf("reference to %s, which is not there", name)
		}
	}
	var v any
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatal(err)
	}
	pretty, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	pretty = append(pretty, '\n')
	const golden = "testdata/openapi.json"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, pretty, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(pretty)); d != "" {
		t.Errorf("the document changed (run with -update when meant):\n%s", d)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	f, err := New(Config{Auth: people, DB: dbtest.SQLite(t), Log: slog.New(slog.DiscardHandler), Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	call1(t, f, "GET", "/api/v1/openapi.json", sent{})
	call1(t, f, "GET", "/api/v1/events", sent{})
	call1(t, f, "GET", "/api/v1/made-up", sent{})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, mf := range families {
		for _, m := range mf.GetMetric() {
			key := mf.GetName()
			for _, l := range m.GetLabel() {
				key += " " + l.GetValue()
			}
			got[key] = m.GetHistogram().GetSampleCount()
		}
	}
	want := map[string]uint64{
		"caponier_core_api_event_streams":                              0,
		"caponier_core_api_request_duration_seconds 2xx get-openapi":   1,
		"caponier_core_api_request_duration_seconds 4xx stream-events": 1,
		"caponier_core_api_request_duration_seconds 4xx none":          1,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
