package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"caponier/e2e/harness"
)

// The interface is what its document says. Every answer that any test of this
// package gets is held against it (harness.API.Do); here, the document itself
// is checked, and every operation that reads is asked about things there are
// and things there are not.
func TestOpenAPI(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	s := w.shell(t, dbA)
	s.say(t, "echo seen; exit")
	s.ended(t, patience)
	admin := w.core.Admin
	spec, err := admin.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.Lint(); err != nil {
		t.Error(err)
	}
	if _, err := admin.Create(t.Context(), "/tokens", map[string]string{"name": "for the document", "expires_in": "1d"}); err != nil {
		t.Error(err)
	}
	if _, err := admin.Create(t.Context(), "/api-clients", map[string]any{"name": "robot", "roles": []string{w.role}}); err != nil {
		t.Error(err)
	}
	// An ID of each collection, to fill in where a path asks for one.
	ids := map[string]string{"users": w.demoID, "roles": w.role, "targets": w.targets["db-a"], "sites": "vpc-a"}
	first := func(collection string) string {
		if ids[collection] == "" {
			var out struct {
				Items []struct{ ID string } `json:"items"`
			}
			if admin.Do(t.Context(), http.MethodGet, "/"+collection, nil, &out) == nil && len(out.Items) > 0 {
				ids[collection] = out.Items[0].ID
			}
		}
		return ids[collection]
	}
	placeholder := regexp.MustCompile(`\{[^}]+\}`)
	good, asked := 0, 0
	for _, path := range slices.Sorted(maps.Keys(spec.Paths)) {
		op, reads := spec.Paths[path]["get"]
		if !reads || path == "/events" { // which does not end
			continue
		}
		collection, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		query := ""
		for _, p := range op.Parameters {
			if p.In == "query" && p.Required {
				query = "?" + p.Name + "=seen"
			}
		}
		for _, id := range []string{first(collection), "nothing"} {
			var body []byte
			asked++
			err := admin.Do(t.Context(), http.MethodGet, placeholder.ReplaceAllString(path, id)+query, nil, &body)
			status, refused := errors.AsType[*harness.Status](err)
			switch {
			case err == nil:
				good++
			case !refused || status.Code >= 500:
				t.Errorf("%s: %v", path, err)
			}
			if !strings.Contains(path, "{") {
				break
			}
		}
		if err := admin.As("").Do(t.Context(), http.MethodGet, placeholder.ReplaceAllString(path, "nothing")+query, nil, nil); err != nil {
			if _, refused := errors.AsType[*harness.Status](err); !refused {
				t.Errorf("%s without a login: %v", path, err)
			}
		}
	}
	t.Logf("%d operations, %d reads asked, %d with success", operations(spec), asked, good)
	if good < 40 {
		t.Errorf("only %d of %d reads succeeded", good, asked)
	}
	// Refused writes are problem documents, too.
	for path, methods := range spec.Paths {
		for method := range methods {
			if method == "get" || path == "/logout" {
				continue
			}
			err := admin.Do(t.Context(), strings.ToUpper(method), placeholder.ReplaceAllString(path, "nothing"), map[string]any{"unheard": 1}, nil, "If-Match", `"1"`)
			if status, refused := errors.AsType[*harness.Status](err); err != nil && (!refused || status.Code >= 500) {
				t.Error(fmt.Errorf("%s %s: %w", method, path, err))
			}
		}
	}
}

func operations(s *harness.Spec) (n int) {
	for _, methods := range s.Paths {
		n += len(methods)
	}
	return n
}
