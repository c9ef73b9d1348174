package harness

import (
	"strings"
	"testing"
)

const smallSpec = `{"openapi":"3.1.0",
"components":{"schemas":{
	"Problem":{"type":"object","properties":{"title":{"type":"string"}},"required":["title"]},
	"Thing":{"type":"object","additionalProperties":false,"required":["id","count"],"properties":{
		"id":{"type":"string","minLength":2,"pattern":"^t"},"count":{"type":"integer","minimum":1},"kind":{"type":"string","enum":["a","b"]},
		"at":{"type":"string","format":"date-time"},"tags":{"type":["array","null"],"items":{"type":"string"}},"more":{"type":"object","additionalProperties":{"type":"number"}}}}}},
"paths":{
	"/things/{id}":{"get":{"operationId":"get-thing","parameters":[{"name":"id","in":"path","required":true}],"responses":{
		"200":{"content":{"application/json":{"schema":{"$ref":"#/components/schemas/Thing"}}}},"default":{"content":{"application/problem+json":{"schema":{"$ref":"#/components/schemas/Problem"}}}}}}},
	"/things/new":{"post":{"operationId":"new-thing","responses":{"204":{},"default":{"content":{"application/problem+json":{"schema":{"$ref":"#/components/schemas/Problem"}}}}}}}}}`

// The checker sees what it is there to see.
func TestSpec(t *testing.T) {
	s, err := ParseSpec([]byte(smallSpec))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Lint(); err != nil {
		t.Fatal(err)
	}
	const problem = "application/problem+json"
	for _, c := range []struct {
		method, path string
		status       int
		kind, body   string
		want         string // in the error; empty: none
	}{
		{"GET", "/things/1?x=y", 200, "application/json", `{"id":"t1","count":1,"kind":"a","at":"2026-01-02T03:04:05Z","tags":null,"more":{"x":1.5}}`, ""},
		{"GET", "/things/1", 404, problem, `{"title":"Not found"}`, ""},
		{"POST", "/things/new", 204, "", "", ""},
		{"POST", "/things/1", 204, "", "", "not in the OpenAPI document"},
		{"GET", "/nothing", 200, "application/json", `{}`, "not in the OpenAPI document"},
		{"GET", "/things/1", 201, "application/json", `{}`, "status 201"},
		{"GET", "/things/1", 200, "text/plain", `x`, "content type text/plain"},
		{"GET", "/things/1", 404, "application/json", `{}`, "content type"},
		{"GET", "/things/1", 404, problem, `{}`, "title is missing"},
		{"POST", "/things/new", 204, "text/plain", "x", "does not tell of"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":1}{}`, "more than one"},
		{"GET", "/things/1", 200, "application/json", `[]`, "not of type object"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1"}`, "count is missing"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":1,"new":1}`, "property new"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":1.5}`, "not of type integer"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":0}`, "below minimum"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t","count":1}`, "below minLength"},
		{"GET", "/things/1", 200, "application/json", `{"id":"x1","count":1}`, "does not match"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":1,"kind":"c"}`, "not one of"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":1,"at":"noon"}`, "body.at"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":1,"tags":["a",1]}`, "body.tags[1]"},
		{"GET", "/things/1", 200, "application/json", `{"id":"t1","count":1,"more":{"x":"y"}}`, "body.more.x"},
	} {
		err := s.Check(c.method, c.path, c.status, c.kind, []byte(c.body))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s %d %s: %v, want %q", c.method, c.path, c.status, c.body, err, c.want)
		}
	}
	for old, bad := range map[string]string{
		`"minLength":2`:                       `"exclusiveMinimum":2`,
		`"operationId":"new-thing"`:           `"operationId":"get-thing"`,
		`"required":["id","count"]`:           `"required":["id","cuont"]`,
		`"parameters":[{"name":"id"`:          `"parameters":[{"name":"x"`,
		`"#/components/schemas/Thing"`:        `"#/components/schemas/Thnig"`,
		`"openapi":"3.1.0"`:                   `"openapi":"3.0.0"`,
		`"pattern":"^t"`:                      `"pattern":"("`,
		`"responses":{"204":{},"default":{"c`: `"responses":{"204":{},"defualt":{"c`,
	} {
		s, err := ParseSpec([]byte(strings.Replace(smallSpec, old, bad, 1)))
		if err != nil {
			t.Fatal(err)
		}
		if s.Lint() == nil {
			t.Errorf("lint does not mind %s", bad)
		}
	}
}
