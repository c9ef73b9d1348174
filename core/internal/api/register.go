package api

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// Op describes an operation. Its input and output types follow huma's struct
// tags (path, query, header, Body); Who is mandatory.
type Op struct {
	Method  string // GET, POST, PUT, PATCH, DELETE
	Path    string // below /api/v1, e.g. "/targets/{id}"
	ID      string // OpenAPI operationId, e.g. "get-target"
	Summary string
	Tag     string // resource, e.g. "targets"
	Who     Who
	Status  int   // success status; 0 = 200, or 204 when the output has no body
	MaxBody int64 // bytes; 0 = 1 MiB
	// Type is the media type of a raw operation's success; empty: it has no
	// body.
	Type string
	// Also are statuses of refusal that carry the output's own body where a
	// standard wants that, instead of a problem document.
	Also []int
	// Sensitive operations answer with a secret: their answers are never kept
	// for a repeated Idempotency-Key. That it was used is.
	Sensitive bool
}

const defaultMaxBody = 1 << 20

// metaOp is the key under which an operation carries its Op.
const metaOp = "caponier"

// Register adds an operation. It panics at start-up when op.Who is the zero
// value or the path is taken. Handlers return *Problem (see Invalid, Missing,
// Conflict, Denied), db.ErrNotFound or db.ErrConflict; anything else becomes
// "internal error" with the request ID and is logged.
//
// A POST may carry an Idempotency-Key: the same caller repeating it within ten
// minutes, at whatever core, receives the first answer again and the handler
// does not run. Of a Sensitive operation the answer is not kept: repeating one
// that was carried out is refused (409 answer_not_kept).
func Register[I, O any](f *Frame, op Op, h func(ctx context.Context, in *I) (*O, error)) {
	op = f.admit(op)
	mustBeVisible(op, reflect.TypeFor[I]())
	mustBeVisible(op, reflect.TypeFor[O]())
	f.naming = op.ID
	d := f.describe(op)
	huma.Register(f.huma, d, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, f.problem(ctx, err)
		}
		return out, nil
	})
	for _, status := range op.Also {
		content := d.Responses[fmt.Sprint(http.StatusOK)].Content
		d.Responses[fmt.Sprint(status)] = &huma.Response{Description: http.StatusText(status), Content: content}
	}
}

// mustBeVisible panics on an embedded struct of an unexported type, in the
// parameters or anywhere in a body: huma would ignore the fields in it, or
// leave them out of the document, without a word.
func mustBeVisible(op Op, t reflect.Type) {
	seen := map[reflect.Type]bool{}
	var look func(t reflect.Type)
	look = func(t reflect.Type) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
			look(t.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[t] {
			return
		}
		seen[t] = true
		for field := range t.Fields() {
			if field.Anonymous && !field.IsExported() {
				panic(fmt.Sprintf("api: %s: %s embeds the unexported type %s, whose fields would be ignored: export it", op.ID, t, field.Type))
			}
			if field.IsExported() {
				look(field.Type)
			}
		}
	}
	look(t)
}

// RegisterRaw adds an operation whose handler speaks HTTP by itself: downloads,
// uploads, upgraded connections, server-sent events. The frame authenticates
// and limits the body (op.MaxBody; a negative value lifts the limit), but sets
// no time-out; use Fail for errors.
func RegisterRaw(f *Frame, op Op, h http.HandlerFunc) {
	op = f.admit(op)
	d := f.describe(op)
	status := op.Status
	if status == 0 {
		status = http.StatusOK
	}
	success := &huma.Response{Description: http.StatusText(status)}
	if op.Type != "" {
		success.Content = map[string]*huma.MediaType{op.Type: {}}
	}
	d.Responses[fmt.Sprint(status)] = success
	for part := range strings.SplitSeq(op.Path, "/") {
		if strings.HasPrefix(part, "{") {
			name := strings.TrimSuffix(strings.Trim(part, "{}"), "...")
			d.Parameters = append(d.Parameters, &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: "string"}})
		}
	}
	f.huma.OpenAPI().AddOperation(&d)
	f.handle(op, true, h)
}

// admit checks an operation and fills its defaults.
func (f *Frame) admit(op Op) Op {
	switch {
	case op.Who == Who{}:
		panic(fmt.Sprintf("api: %s %s does not say who may call it", op.Method, op.Path))
	case op.Method == "" || !strings.HasPrefix(op.Path, "/") || op.ID == "":
		panic(fmt.Sprintf("api: operation %+v has no method, path or id", op))
	case f.ids[op.ID]:
		panic(fmt.Sprintf("api: operation id %q is taken", op.ID))
	}
	f.ids[op.ID] = true
	if op.MaxBody == 0 {
		op.MaxBody = defaultMaxBody
	}
	f.ops = append(f.ops, op)
	return op
}

// Operations lists what is registered, for documentation and tests.
func (f *Frame) Operations() []Op { return append([]Op(nil), f.ops...) }

// describe is the OpenAPI side of an operation.
func (f *Frame) describe(op Op) huma.Operation {
	d := huma.Operation{
		Method: op.Method, Path: op.Path, OperationID: op.ID, Summary: op.Summary, Tags: []string{op.Tag},
		DefaultStatus: op.Status, Metadata: map[string]any{metaOp: op},
		// The frame reads and limits bodies itself.
		MaxBodyBytes: -1, BodyReadTimeout: -1,
		Responses: map[string]*huma.Response{
			"default": {Description: "Problem", Content: map[string]*huma.MediaType{
				problemType: {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}},
			}},
		},
	}
	switch {
	case op.Who.public:
		d.Security = []map[string][]string{}
	case op.Who.self:
		d.Description = "Needs a login."
	case op.Who.somewhere:
		d.Description = "Needs the permission " + string(op.Who.needs) + ", if only in some access groups: what is in others does not exist then."
	default:
		d.Description = "Needs the permission " + string(op.Who.needs) + "."
	}
	return d
}
