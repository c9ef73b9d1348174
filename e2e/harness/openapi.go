package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Spec is an OpenAPI 3.1 document that responses are held against. It knows
// the part of JSON Schema (2020-12) that core's document uses and refuses any
// other keyword, so that nothing is left unchecked in silence.
type Spec struct {
	OpenAPI    string                          `json:"openapi"`
	Paths      map[string]map[string]Operation `json:"paths"`
	Components struct {
		Schemas map[string]map[string]any `json:"schemas"`
	} `json:"components"`
}

// Operation is one method of one path.
type Operation struct {
	ID         string `json:"operationId"`
	Parameters []struct {
		Name, In string
		Required bool
	} `json:"parameters"`
	Body *struct {
		Content map[string]Media `json:"content"`
	} `json:"requestBody"`
	Responses map[string]struct {
		Content map[string]Media `json:"content"`
	} `json:"responses"`
}

// Media is one representation of a body.
type Media struct {
	Schema map[string]any `json:"schema"`
}

// ParseSpec reads a document.
func ParseSpec(text []byte) (*Spec, error) {
	var s Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("OpenAPI document: %w", err)
	}
	return &s, nil
}

var placeholder = regexp.MustCompile(`\{([^}]+)\}`)

// Lint reports what is wrong with the document itself.
func (s *Spec) Lint() error {
	var all []error
	bad := func(format string, args ...any) { all = append(all, fmt.Errorf(format, args...)) }
	if !strings.HasPrefix(s.OpenAPI, "3.1.") {
		bad("version %q", s.OpenAPI)
	}
	for name, schema := range s.Components.Schemas {
		if err := s.lintSchema(schema); err != nil {
			bad("schema %s: %w", name, err)
		}
	}
	ids := map[string]string{}
	for path, methods := range s.Paths {
		for method, op := range methods {
			at := method + " " + path
			if op.ID == "" || ids[op.ID] != "" {
				bad("%s: operation ID %q (also of %q)", at, op.ID, ids[op.ID])
			}
			ids[op.ID] = at
			var declared, wanted []string
			for _, p := range op.Parameters {
				if p.In == "path" {
					declared = append(declared, p.Name)
					if !p.Required {
						bad("%s: path parameter %s is not required", at, p.Name)
					}
				}
			}
			for _, m := range placeholder.FindAllStringSubmatch(path, -1) {
				wanted = append(wanted, m[1])
			}
			slices.Sort(declared)
			slices.Sort(wanted)
			if !slices.Equal(declared, wanted) {
				bad("%s: path parameters %v, declared %v", at, wanted, declared)
			}
			if _, ok := op.Responses["default"].Content["application/problem+json"]; !ok {
				bad("%s: no problem document", at)
			}
			var media []Media
			if op.Body != nil {
				for _, m := range op.Body.Content {
					media = append(media, m)
				}
			}
			for code, r := range op.Responses {
				if len(r.Content) == 0 && code != "204" && code != "101" {
					bad("%s: response %s has no content", at, code)
				}
				for _, m := range r.Content {
					media = append(media, m)
				}
			}
			for _, m := range media {
				if err := s.lintSchema(m.Schema); err != nil {
					bad("%s: %w", at, err)
				}
			}
		}
	}
	return errors.Join(all...)
}

// keywords are those that check understands; false: it only describes.
var keywords = map[string]bool{
	"$ref": true, "type": true, "properties": true, "required": true, "additionalProperties": true, "items": true, "enum": true,
	"format": true, "pattern": true, "minimum": true, "maximum": true, "minLength": true, "maxLength": true, "minItems": true, "maxItems": true,
	"description": false, "examples": false, "default": false, "readOnly": false, "writeOnly": false, "contentMediaType": false, "title": false,
}

func (s *Spec) lintSchema(schema map[string]any) error {
	for k, v := range schema {
		if _, known := keywords[k]; !known {
			return fmt.Errorf("keyword %s is not known here", k)
		}
		switch k {
		case "$ref":
			if _, err := s.resolve(schema); err != nil {
				return err
			}
		case "properties":
			for name, p := range v.(map[string]any) {
				if err := s.lintSchema(p.(map[string]any)); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		case "required":
			for _, name := range v.([]any) {
				if props, _ := schema["properties"].(map[string]any); props[name.(string)] == nil {
					return fmt.Errorf("required property %s is not described", name)
				}
			}
		case "items", "additionalProperties":
			if sub, ok := v.(map[string]any); ok {
				if err := s.lintSchema(sub); err != nil {
					return fmt.Errorf("%s: %w", k, err)
				}
			}
		case "pattern":
			if _, err := regexp.Compile(v.(string)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Spec) resolve(schema map[string]any) (map[string]any, error) {
	ref, ok := schema["$ref"].(string)
	if !ok {
		return schema, nil
	}
	found := s.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")]
	if found == nil {
		return nil, fmt.Errorf("reference to %s, which is not there", ref)
	}
	return found, nil
}

// Find is the operation a request asks for; literal parts of a path go before
// parameters.
func (s *Spec) Find(method, path string) (Operation, bool) {
	path, _, _ = strings.Cut(path, "?")
	parts := strings.Split(path, "/")
	var best Operation
	literal := -1
	for template, methods := range s.Paths {
		op, ok := methods[strings.ToLower(method)]
		want := strings.Split(template, "/")
		if !ok || len(want) != len(parts) {
			continue
		}
		same := 0
		for i, p := range want {
			if p == parts[i] {
				same++
			} else if !strings.HasPrefix(p, "{") {
				same = -1
				break
			}
		}
		if same > literal {
			best, literal = op, same
		}
	}
	return best, literal >= 0
}

// Check holds a response against the document. path is below /api/v1.
func (s *Spec) Check(method, path string, status int, contentType string, body []byte) error {
	op, found := s.Find(method, path)
	if !found {
		return fmt.Errorf("%s %s is not in the OpenAPI document", method, path)
	}
	r, described := op.Responses[fmt.Sprint(status)]
	if !described {
		if status < 300 {
			return fmt.Errorf("%s: status %d is not in the OpenAPI document", op.ID, status)
		}
		r = op.Responses["default"]
	}
	if len(r.Content) == 0 {
		if len(body) > 0 {
			return fmt.Errorf("%s: %d with a body the OpenAPI document does not tell of", op.ID, status)
		}
		return nil
	}
	kind, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return fmt.Errorf("%s: content type %q: %w", op.ID, contentType, err)
	}
	m, ok := r.Content[kind]
	if !ok {
		return fmt.Errorf("%s: %d with content type %s, which is not in the OpenAPI document", op.ID, status, kind)
	}
	if !strings.HasSuffix(kind, "json") {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return fmt.Errorf("%s: %w", op.ID, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: more than one JSON value", op.ID)
	}
	if err := s.check(m.Schema, v, "body"); err != nil {
		return fmt.Errorf("%s: %d differs from the OpenAPI document: %w", op.ID, status, err)
	}
	return nil
}

// check holds a value against a schema; at names it in errors.
func (s *Spec) check(schema map[string]any, v any, at string) error {
	schema, err := s.resolve(schema)
	if err != nil {
		return err
	}
	if !isType(schema["type"], v) {
		return fmt.Errorf("%s: %.100v is not of type %v", at, v, schema["type"])
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.ContainsFunc(enum, func(e any) bool { return fmt.Sprint(e) == fmt.Sprint(v) }) {
		return fmt.Errorf("%s: %v is not one of %v", at, v, enum)
	}
	limit := func(low, high string, n float64) error {
		if l, ok := schema[low].(float64); ok && n < l {
			return fmt.Errorf("%s: %v is below %s %v", at, n, low, l)
		}
		if l, ok := schema[high].(float64); ok && n > l {
			return fmt.Errorf("%s: %v is above %s %v", at, n, high, l)
		}
		return nil
	}
	switch v := v.(type) {
	case json.Number:
		n, err := v.Float64()
		return errors.Join(err, limit("minimum", "maximum", n))
	case string:
		if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(v) {
			return fmt.Errorf("%s: %q does not match %s", at, v, p)
		}
		if schema["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339, v); err != nil {
				return fmt.Errorf("%s: %w", at, err)
			}
		}
		return limit("minLength", "maxLength", float64(utf8.RuneCountInString(v)))
	case []any:
		items, _ := schema["items"].(map[string]any)
		for i, e := range v {
			if err := s.check(items, e, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
		return limit("minItems", "maxItems", float64(len(v)))
	case map[string]any:
		props, _ := schema["properties"].(map[string]any)
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := v[name.(string)]; !ok {
				return fmt.Errorf("%s: %s is missing", at, name)
			}
		}
		for name, e := range v {
			sub, known := props[name].(map[string]any)
			if !known {
				switch more := schema["additionalProperties"].(type) {
				case bool:
					if !more {
						return fmt.Errorf("%s: property %s is not described", at, name)
					}
				case map[string]any:
					sub = more
				}
			}
			if err := s.check(sub, e, at+"."+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// isType says whether a value has a JSON Schema type, or one of several. No
// type admits every value.
func isType(want, v any) bool {
	switch want := want.(type) {
	case nil:
		return true
	case []any:
		return slices.ContainsFunc(want, func(w any) bool { return isType(w, v) })
	}
	switch v := v.(type) {
	case nil:
		return want == "null"
	case bool:
		return want == "boolean"
	case string:
		return want == "string"
	case json.Number:
		_, err := v.Int64()
		return want == "number" || want == "integer" && (err == nil || !strings.ContainsAny(v.String(), ".eE"))
	case []any:
		return want == "array"
	default:
		return want == "object"
	}
}
