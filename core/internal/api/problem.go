package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"caponier/core/internal/db"
)

const problemType = "application/problem+json"

// Problem is an RFC 9457 problem document; its texts are for people.
type Problem struct {
	Status int          `json:"status"`
	Title  string       `json:"title"`
	Detail string       `json:"detail,omitempty"`
	Code   string       `json:"code"` // stable, snake_case
	Fields []FieldError `json:"errors,omitempty"`
	// RequestID is set by the frame; the log line has it too.
	RequestID string `json:"request_id,omitempty"`
	// RetryAfter is sent as the Retry-After header, in seconds; 0 = none.
	RetryAfter int `json:"-"`
}

// FieldError names one bad field of a request.
type FieldError struct {
	Field   string `json:"field"` // JSON path, e.g. "accounts[0].name"
	Message string `json:"message"`
}

// Error implements error.
func (p *Problem) Error() string { return p.Title }

// GetStatus makes the problem the response of the operation that returned it.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is that of RFC 9457 whatever the client accepts.
func (p *Problem) ContentType(string) string { return problemType }

// Invalid is 422 with the fields that are wrong and what to do about each.
func Invalid(fields ...FieldError) *Problem {
	return &Problem{Status: 422, Title: "The request is not valid.", Code: "invalid", Fields: fields}
}

// Missing is 404 for a thing that does not exist or must not be seen.
func Missing(kind, id string) *Problem {
	p := &Problem{Status: 404, Title: "There is no such " + kind + ".", Code: "not_found"}
	if id != "" {
		p.Title = "There is no " + kind + " " + cut(id, 100) + "."
	}
	return p
}

// Conflict is 409: the request is fine but the present state forbids it.
func Conflict(code, detail string) *Problem {
	return &Problem{Status: 409, Title: "The present state does not allow this.", Detail: detail, Code: code}
}

// Denied is 403 with a stable code and a text for the user.
func Denied(code, detail string) *Problem {
	return &Problem{Status: 403, Title: "You may not do this.", Detail: detail, Code: code}
}

// Unauthenticated is 401: no login, or one that is not good any more.
func Unauthenticated(detail string) *Problem {
	return &Problem{Status: 401, Title: "Log in first.", Detail: detail, Code: "unauthenticated"}
}

// Limited is 429 with the seconds after which to try again.
func Limited(detail string, retryAfter int) *Problem {
	return &Problem{Status: 429, Title: "Too many requests.", Detail: detail, Code: "rate_limited", RetryAfter: retryAfter}
}

// Unavailable is 503: something core needs does not answer now.
func Unavailable(code, detail string) *Problem {
	return &Problem{Status: 503, Title: "This is not available now.", Detail: detail, Code: code, RetryAfter: 5}
}

// problem turns a handler's error into what the client sees, and logs what
// the client must not see. The result is never shared.
func (f *Frame) problem(ctx context.Context, err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		c := *p
		return &c
	}
	switch {
	case errors.Is(err, db.ErrNotFound):
		return missing(opFrom(ctx), callFrom(ctx).path)
	case errors.Is(err, db.ErrConflict):
		return Conflict("conflict", "It exists already, or somebody else changed it meanwhile.")
	case errors.Is(err, context.DeadlineExceeded):
		f.log.LogAttrs(ctx, slog.LevelWarn, "request timed out", slog.String("request", RequestID(ctx)), slog.String("err", err.Error()))
		return Unavailable("timeout", "It took too long.")
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return Unavailable("cancelled", "The request was given up.")
	}
	f.log.LogAttrs(ctx, slog.LevelError, "request failed", slog.String("request", RequestID(ctx)), slog.String("err", err.Error()))
	return internal()
}

func internal() *Problem {
	return &Problem{Status: 500, Title: "Internal error.", Detail: "The log of core has the cause under this request id.", Code: "internal"}
}

// Fail answers a raw operation with err, as Register does with a handler's error.
func (f *Frame) Fail(w http.ResponseWriter, r *http.Request, err error) {
	writeProblem(w, r, f.problem(r.Context(), err))
}

// writeProblem sends p, which must not be shared.
func writeProblem(w http.ResponseWriter, r *http.Request, p *Problem) {
	finish(r.Context(), p, w.Header().Set)
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte(`{"status":500,"title":"Internal error.","code":"internal"}`)
	}
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	w.Write(append(body, '\n'))
}

// finish fills in what depends on the request.
func finish(ctx context.Context, p *Problem, set func(name, value string)) {
	p.RequestID = RequestID(ctx)
	if p.Status == http.StatusUnauthorized {
		set("WWW-Authenticate", `Bearer realm="caponier"`)
	}
	if p.RetryAfter > 0 {
		set("Retry-After", itoa(p.RetryAfter))
	}
}

// oneShape is the response transformer that gives huma's own errors our shape
// and drops the offending values it would echo: they may be secrets.
func oneShape(ctx huma.Context, _ string, v any) (any, error) {
	switch e := v.(type) {
	case *Problem:
		finish(ctx.Context(), e, ctx.SetHeader)
		return e, nil
	case *huma.ErrorModel:
		p := &Problem{Status: e.Status}
		switch e.Status {
		case http.StatusBadRequest:
			p.Title, p.Code, p.Detail = "The body is not valid JSON.", "malformed", e.Detail
			if e.Detail == "validation failed" {
				p.Detail = ""
			}
		case http.StatusUnsupportedMediaType:
			p.Title, p.Code, p.Detail = "The body has the wrong media type.", "unsupported_media_type", "Send application/json."
		case http.StatusUnprocessableEntity:
			p = Invalid()
		default:
			p.Title, p.Code = http.StatusText(e.Status), "http_"+itoa(e.Status)
		}
		for _, d := range e.Errors {
			if d != nil && p.Status != http.StatusUnsupportedMediaType {
				p.Fields = append(p.Fields, FieldError{Field: strings.TrimPrefix(d.Location, "body."), Message: d.Message})
			}
		}
		finish(ctx.Context(), p, ctx.SetHeader)
		return p, nil
	}
	return v, nil
}
