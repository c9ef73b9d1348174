package api

import "context"

// Frame is the REST frame rooms register on. Safe for concurrent use once built.
type Frame struct{}

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
}

// Register adds an operation. It panics at start-up when op.Who is the zero
// value or the path is taken. Handlers return *Problem (see Invalid, Missing,
// Conflict, Denied), db.ErrNotFound or db.ErrConflict; anything else becomes
// "internal error" with the request ID and is logged.
func Register[I, O any](f *Frame, op Op, h func(ctx context.Context, in *I) (*O, error)) {
	panic("contract")
}

// Page is one page of a list; Next is the cursor of the following page, empty at the end.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// Problem is an RFC 9457 problem document; its texts are for people.
type Problem struct {
	Status int          `json:"status"`
	Title  string       `json:"title"`
	Detail string       `json:"detail,omitempty"`
	Code   string       `json:"code"` // stable, snake_case
	Fields []FieldError `json:"errors,omitempty"`
}

// FieldError names one bad field of a request.
type FieldError struct {
	Field   string `json:"field"` // JSON path, e.g. "accounts[0].name"
	Message string `json:"message"`
}

// Error implements error.
func (p *Problem) Error() string { return p.Title }

// Invalid is 422 with the fields that are wrong and what to do about each.
func Invalid(fields ...FieldError) *Problem {
	return &Problem{Status: 422, Title: "The request is not valid.", Code: "invalid", Fields: fields}
}

// Missing is 404 for a thing that does not exist or must not be seen.
func Missing(kind, id string) *Problem {
	return &Problem{Status: 404, Title: "There is no such " + kind + ".", Detail: id, Code: "not_found"}
}

// Conflict is 409: the request is fine but the present state forbids it.
func Conflict(code, detail string) *Problem {
	return &Problem{Status: 409, Title: "The present state does not allow this.", Detail: detail, Code: code}
}

// Denied is 403 with a stable code and a text for the user.
func Denied(code, detail string) *Problem {
	return &Problem{Status: 403, Title: "You may not do this.", Detail: detail, Code: code}
}

// ETag renders a row version as an entity tag.
func ETag(version int64) string { panic("contract") }

// CheckMatch compares an If-Match header with the row's version: 428 when the
// header is missing, 412 when it does not match.
func CheckMatch(ifMatch string, version int64) error { panic("contract") }
