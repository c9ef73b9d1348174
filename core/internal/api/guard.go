package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

// loggedPath is the request's path for the log. A ticket in it is a key for a
// minute and stays out: the operation's own pattern is written then.
func loggedPath(r *http.Request, pattern string) string {
	if strings.Contains(pattern, "{ticket}") {
		_, path, _ := strings.Cut(pattern, " ")
		return path
	}
	return cut(r.URL.Path, 200)
}

// bodyDeadline bounds how long a client may take to send a request's body.
const bodyDeadline = 20 * time.Second

// Handler serves everything registered. Unknown paths get a problem document.
func (f *Frame) Handler() http.Handler { return http.HandlerFunc(f.serve) }

// serve is the outside of every request: identity, headers, log, panics.
func (f *Frame) serve(w http.ResponseWriter, r *http.Request) {
	start := f.now()
	c := call{id: "req_" + strings.ToLower(rand.Text()[:16]), source: ClientAddr(r, f.proxies), path: strings.TrimPrefix(r.URL.Path, Prefix)}
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	rec := &recorder{ResponseWriter: w}
	_, pattern := f.mux.Handler(r)
	h := rec.Header()
	h.Set("X-Request-Id", c.id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	if r.TLS != nil {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	defer func() {
		if v := recover(); v != nil {
			if v == http.ErrAbortHandler {
				panic(v)
			}
			f.log.LogAttrs(r.Context(), slog.LevelError, "request panicked", slog.String("request", c.id),
				slog.String("err", cut(fmt.Sprint(v), 500)), slog.String("stack", string(debug.Stack())))
			if rec.status == 0 {
				writeProblem(rec, r, internal())
			}
		}
		took := f.now().Sub(start)
		f.metrics.observe(rec.op, rec.status, took)
		f.log.LogAttrs(r.Context(), slog.LevelInfo, "request",
			slog.String("request", c.id), slog.String("method", cut(r.Method, 16)), slog.String("path", loggedPath(r, pattern)),
			slog.String("operation", rec.op), slog.Int("status", rec.status), slog.Int64("bytes", rec.bytes),
			slog.Duration("took", took), slog.String("remote", c.source.String()), slog.String("user", rec.user))
	}()
	if pattern == "" {
		f.noRoute(rec, r)
		return
	}
	f.mux.ServeHTTP(rec, r)
}

// noRoute answers what the mux has no operation for, in our own shape.
func (f *Frame) noRoute(w http.ResponseWriter, r *http.Request) {
	h, _ := f.mux.Handler(r)
	muted := &muted{header: http.Header{}}
	h.ServeHTTP(muted, r)
	if allow := muted.header.Get("Allow"); muted.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allow)
		writeProblem(w, r, &Problem{Status: 405, Title: "This method is not for this path.", Detail: "Allowed: " + allow, Code: "method_not_allowed"})
		return
	}
	writeProblem(w, r, &Problem{Status: 404, Title: "There is no such path.", Code: "no_such_path"})
}

// muted takes the mux's own answer, of which only status and headers matter.
type muted struct {
	header http.Header
	status int
}

func (m *muted) Header() http.Header         { return m.header }
func (m *muted) WriteHeader(status int)      { m.status = status }
func (m *muted) Write(p []byte) (int, error) { return len(p), nil }

// handle puts h behind the guard: origin, login, permission, body, time-out.
func (f *Frame) handle(op Op, raw bool, h http.HandlerFunc) {
	f.mux.HandleFunc(op.Method+" "+Prefix+op.Path, func(w http.ResponseWriter, r *http.Request) {
		rec := w.(*recorder)
		rec.op = op.ID
		r = r.WithContext(withOp(r.Context(), op))
		p, problem := f.authenticate(r, op.Who)
		if problem != nil {
			writeProblem(w, r, problem)
			return
		}
		if p != nil {
			rec.user = p.UserName
			r = r.WithContext(WithPrincipal(r.Context(), p))
		}
		if raw {
			if op.MaxBody > 0 {
				r.Body = http.MaxBytesReader(w, r.Body, op.MaxBody)
			}
			h(w, r)
			return
		}
		body, problem := readBody(w, r, op.MaxBody)
		if problem != nil {
			writeProblem(w, r, problem)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		ctx, cancel := context.WithTimeout(r.Context(), f.timeout)
		defer cancel()
		f.replay.serve(w, r.WithContext(ctx), op, p, body, h)
	})
}

// authenticate decides whether the caller may run the operation. For a public
// operation a login that is not good counts as none.
func (f *Frame) authenticate(r *http.Request, who Who) (*Principal, *Problem) {
	if r.Header.Get("Authorization") != "" {
		r.Header.Del("Cookie")
	} else if err := f.origin.Check(asWrite(r)); err != nil {
		return nil, Denied("cross_origin", "A page of another origin may not do this with your session.")
	}
	p, err := f.auth.Authenticate(r, SourceFrom(r.Context()))
	if err != nil {
		problem, ok := errors.AsType[*Problem](err)
		if !ok {
			f.log.LogAttrs(r.Context(), slog.LevelError, "cannot authenticate", slog.String("request", RequestID(r.Context())), slog.String("err", err.Error()))
			if who.public {
				return nil, nil
			}
			return nil, Unavailable("authentication_unavailable", "Logins cannot be checked now.")
		}
		if who.public {
			return nil, nil
		}
		c := *problem
		return nil, &c
	}
	switch {
	case who.public:
		return p, nil
	case p == nil:
		return nil, Unauthenticated("Send a bearer token or log in.")
	case who.self:
		return p, nil
	case who.needs != "" && p.Can(who.needs):
		return p, nil
	case who.needs != "" && who.somewhere && !p.Scope(who.needs).Nowhere():
		return p, nil
	}
	return nil, Denied("permission_missing", "This needs the permission "+string(who.needs)+".")
}

// asWrite is r as the check of origins is to see it. Opening a websocket is a
// GET, which that check lets pass, but carries what the page sends: it counts
// as a write (RFC 6455 §10.2).
func asWrite(r *http.Request) *http.Request {
	if r.Method != http.MethodGet || r.Header.Get("Upgrade") == "" {
		return r
	}
	w := *r
	w.Method = http.MethodPost
	return &w
}

// readBody reads a request's body, refusing one that says it is too large
// before reading any of it.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, *Problem) {
	if limit > 0 && r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, tooLarge(limit)
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	rc := http.NewResponseController(w)
	if err := rc.SetReadDeadline(time.Now().Add(bodyDeadline)); err == nil {
		defer rc.SetReadDeadline(time.Time{})
	}
	src := r.Body
	if limit > 0 {
		src = http.MaxBytesReader(w, r.Body, limit)
	}
	body, err := io.ReadAll(src)
	if err == nil {
		return body, nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge(limit)
	}
	if ne, ok := errors.AsType[net.Error](err); errors.Is(err, os.ErrDeadlineExceeded) || ok && ne.Timeout() {
		return nil, &Problem{Status: 408, Title: "The body did not arrive in time.", Code: "body_timeout"}
	}
	return nil, &Problem{Status: 400, Title: "The body could not be read.", Code: "body_unreadable"}
}

func tooLarge(limit int64) *Problem {
	return &Problem{Status: 413, Title: "The body is too large.", Detail: fmt.Sprintf("At most %d bytes.", limit), Code: "body_too_large"}
}

// cut bounds text of the peer before it is logged.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// recorder remembers what was answered, for log and metrics.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	op     string
	user   string
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && status >= 200 || status == http.StatusSwitchingProtocols {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(p)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
