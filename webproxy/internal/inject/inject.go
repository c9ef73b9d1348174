// Package inject puts a stored credential into a session's requests, where
// its recipe says and nowhere else. The browser only ever holds placeholders:
// random per session and injection, meaningless to every server. A placeholder
// is replaced for one (session, origin, method, path, field) and so many
// times; anywhere else it goes out as it is. Headers are set by the proxy.
//
// Values are asked from core for a use, and known from then on to the
// session's masks, so that a server cannot hand them to the browser.
package inject

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net/http"
	"strings"
	"sync"
	"time"

	"caponier/shared/webrule"
	"caponier/shared/wire"
	"caponier/webproxy/internal/mask"
)

const (
	// maxBody is the largest body in which placeholders are looked for.
	maxBody = 1 << 20
	// holdFor is how long the value of a header is used before core is asked
	// again: a page of a hundred files is one use.
	holdFor = time.Minute
	// tries is how often a body's injection may happen without Times, the
	// second and third only after an answer that says it failed.
	tries = 3
)

// Config is what an Injector needs; all fields are required.
type Config struct {
	// Ask gets one use of the credential from core. url is origin and path.
	Ask func(ctx context.Context, injection, url string) (wire.WebCredential, error)
	// Values learns what was used.
	Values *mask.Values
	// Event records {id, url, outcome}: used, spent, refused, insecure, failed.
	Event func(id, url, outcome string) error
	Now   func() time.Time
}

// Injector is one session's; it outlives changes of the recipe. Safe for
// concurrent use.
type Injector struct {
	c Config

	mu      sync.Mutex
	marks   map[string]*mark  // guarded by mu; by injection ID, bounded by MaxInjections per revision
	scripts map[string]string // guarded by mu; by path
	paths   map[string]string // guarded by mu; path by what the script does
	told    int               // guarded by mu; how often a script said something
}

// mark is what is known of one injection.
type mark struct {
	placeholder string
	uses        int
	failed      bool // the last answer said so
	held        wire.WebCredential
	heldUntil   time.Time
	digest      *digest
}

// maxMarks bounds the injections of a session over all its revisions.
const maxMarks = 1024

// New makes an Injector.
func New(c Config) *Injector {
	return &Injector{c: c, marks: map[string]*mark{}, scripts: map[string]string{}, paths: map[string]string{}}
}

// Forget wipes everything; the session is over.
func (j *Injector) Forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.marks, j.scripts, j.paths = map[string]*mark{}, map[string]string{}, map[string]string{}
	j.c.Values.Forget()
}

// Error is a request that must not go out because its credential cannot be
// put in. Public is for the user.
type Error struct{ Public string }

// Error implements error.
func (e *Error) Error() string { return e.Public }

// Use is what was put into one request.
type Use struct {
	IDs []string
	j   *Injector
	// body: the answer decides whether it may happen again.
	body   []*mark
	digest *webrule.Injection
	replay []byte // the request's body, for a second attempt
	url    string
}

// Injected names the injections, for the request log.
func (u *Use) Injected() string { return strings.Join(u.IDs, ",") }

// Request puts what the recipe wants into out, which is about to be sent as r.
// unchecked says that the server's certificate is not verified.
func (j *Injector) Request(ctx context.Context, recipe *webrule.Recipe, out *http.Request, r webrule.Request, unchecked bool) (*Use, error) {
	u := &Use{j: j, url: place(r)}
	var bodies []webrule.Injection
	for _, in := range recipe.Injections {
		if in.Kind == webrule.ClientCert || !in.Bound(r) {
			continue
		}
		if (unchecked || r.Scheme != "https" && r.Scheme != "wss") && !in.Insecure {
			if err := j.insecure(in, u.url, out); err != nil {
				return nil, err
			}
			continue
		}
		switch in.Kind {
		case webrule.Form, webrule.JSON, webrule.Multipart:
			bodies = append(bodies, in)
		default:
			if err := j.header(ctx, u, in, out); err != nil {
				return nil, err
			}
		}
	}
	if len(bodies) > 0 || u.digest != nil {
		if err := j.body(ctx, u, bodies, out); err != nil {
			return nil, err
		}
	}
	u.ahead(out)
	return u, nil
}

// insecure records that an injection did not happen. Headers without it would
// be noise: each request lacks them.
func (j *Injector) insecure(in webrule.Injection, url string, out *http.Request) error {
	if out.Method == http.MethodGet || out.Method == http.MethodHead {
		return nil
	}
	return j.event(in.ID, url, "insecure")
}

func (j *Injector) event(id, url, outcome string) error {
	if err := j.c.Event(id, url, outcome); err != nil {
		return fmt.Errorf("record injection: %w", err)
	}
	return nil
}

// place is origin and path, never a query.
func place(r webrule.Request) string {
	e, err := r.Endpoint()
	if err != nil {
		return ""
	}
	path := r.Path
	if path == "" {
		path = "/"
	}
	if len(path) > 1024 {
		path = path[:1024]
	}
	return e.Origin() + path
}

func (j *Injector) markLocked(id string) *mark {
	m := j.marks[id]
	if m == nil {
		if len(j.marks) >= maxMarks {
			return &mark{placeholder: rand.Text(), uses: 1 << 30}
		}
		m = &mark{}
		j.marks[id] = m
	}
	return m
}

// Placeholder is what stands for the injection's value in the browser.
func (j *Injector) Placeholder(in webrule.Injection) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.placeholderLocked(in)
}

func (j *Injector) placeholderLocked(in webrule.Injection) string {
	m := j.markLocked(in.ID)
	if m.placeholder == "" {
		m.placeholder = "cp" + strings.ToLower(rand.Text())
		if in.Value == webrule.TOTP {
			// Pages check that a code has six digits. It need not be unguessable:
			// it is bound to the session's own request.
			n, _ := rand.Int(rand.Reader, big.NewInt(1_000_000)) // never fails
			m.placeholder = fmt.Sprintf("%06d", n)
		}
	}
	return m.placeholder
}

// spent reports whether the injection may not happen any more.
func (m *mark) spent(in webrule.Injection) bool {
	switch {
	case in.Times > 0:
		return m.uses >= in.Times
	case in.Kind != webrule.Form && in.Kind != webrule.JSON && in.Kind != webrule.Multipart:
		return false
	}
	return m.uses > 0 && (!m.failed || m.uses >= tries)
}

// reserve counts a use before it happens.
func (j *Injector) reserve(in webrule.Injection) (*mark, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	m := j.markLocked(in.ID)
	if m.spent(in) {
		return m, false
	}
	m.uses++
	return m, true
}

// credential asks core; the answer is made known to the masks before anybody
// gets it.
func (j *Injector) credential(ctx context.Context, id, url string) (wire.WebCredential, error) {
	c, err := j.c.Ask(ctx, id, url)
	if err == nil && c.Error != nil {
		err = &Error{Public: "The credential was not given out: " + c.Error.Public + "."}
	}
	if err == nil {
		if merr := j.c.Values.Add(c.Password); merr != nil {
			err = &Error{Public: "The credential cannot be protected from being shown: " + merr.Error() + "."}
		}
	}
	if err != nil {
		if eerr := j.event(id, url, "refused"); eerr != nil {
			return wire.WebCredential{}, eerr
		}
		if _, ok := errors.AsType[*Error](err); !ok {
			err = &Error{Public: "The credential could not be fetched from core. Try again in a moment."}
		}
		return wire.WebCredential{}, err
	}
	return c, nil
}

func value(c wire.WebCredential, v webrule.Value) string {
	switch v {
	case webrule.Username:
		return c.Username
	case webrule.TOTP:
		return c.TOTP
	}
	return c.Password
}

// header sets what a request's header needs. Digest waits for its challenge.
func (j *Injector) header(ctx context.Context, u *Use, in webrule.Injection, out *http.Request) error {
	if in.Kind == webrule.Digest {
		u.digest = new(in)
		return nil
	}
	c, ok, err := j.hold(ctx, in, u.url)
	if err != nil || !ok {
		return err
	}
	v := value(c, in.Value)
	name := "Authorization"
	switch in.Kind {
	case webrule.Basic:
		// Of a short password inside it nothing else is left to find.
		token := base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password))
		if err := j.c.Values.Add(token); err != nil {
			return &Error{Public: "The credential cannot be protected from being shown: " + err.Error() + "."}
		}
		v = "Basic " + token
	case webrule.Bearer:
		v = "Bearer " + v
	case webrule.Header:
		name = in.Field
	}
	if in.Kind != webrule.Basic && in.Prefix != "" {
		v = in.Prefix + value(c, in.Value)
	}
	if strings.ContainsAny(v, "\r\n\x00") {
		return &Error{Public: "The stored credential has a character that cannot stand in a header."}
	}
	out.Header.Set(name, v)
	u.IDs = append(u.IDs, in.ID)
	return nil
}

// hold returns the credential for a header, asking core at most every holdFor.
func (j *Injector) hold(ctx context.Context, in webrule.Injection, url string) (c wire.WebCredential, ok bool, err error) {
	j.mu.Lock()
	m := j.markLocked(in.ID)
	if j.c.Now().Before(m.heldUntil) && in.Value != webrule.TOTP && in.Times == 0 {
		c = m.held
		j.mu.Unlock()
		return c, true, nil
	}
	j.mu.Unlock()
	if m, ok = j.reserve(in); !ok {
		return c, false, nil
	}
	if c, err = j.credential(ctx, in.ID, url); err != nil {
		return c, false, err
	}
	j.mu.Lock()
	m.held, m.heldUntil = c, j.c.Now().Add(holdFor)
	j.mu.Unlock()
	return c, true, j.event(in.ID, url, "used")
}

// body replaces placeholders in a body of at most maxBody.
func (j *Injector) body(ctx context.Context, u *Use, ins []webrule.Injection, out *http.Request) error {
	if out.Body == nil || out.Body == http.NoBody || out.ContentLength > maxBody {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(out.Body, maxBody+1))
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if len(body) > maxBody {
		out.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(strings.NewReader(string(body)), out.Body), out.Body}
		return nil
	}
	kind, params, err := mime.ParseMediaType(out.Header.Get("Content-Type"))
	if err == nil && out.Header.Get("Content-Encoding") == "" {
		for _, in := range ins {
			if body, err = j.one(ctx, u, in, body, kind, params["boundary"]); err != nil {
				return err
			}
		}
	}
	u.replay = body
	setBody(out, body)
	return nil
}

func setBody(out *http.Request, body []byte) {
	out.ContentLength = int64(len(body))
	out.TransferEncoding = nil
	out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(body))), nil }
	out.Body, _ = out.GetBody() // from memory
	if out.Header.Get("Content-Length") != "" {
		out.Header.Del("Content-Length")
	}
}

// one replaces the placeholder of one injection, if it is where it belongs.
func (j *Injector) one(ctx context.Context, u *Use, in webrule.Injection, body []byte, kind, boundary string) ([]byte, error) {
	var replace func(body []byte, put func(found string) (string, bool)) ([]byte, bool)
	var twice func() bool
	switch {
	case in.Kind == webrule.Form && kind == "application/x-www-form-urlencoded":
		replace = func(b []byte, put func(string) (string, bool)) ([]byte, bool) { return replaceForm(b, in.Field, put) }
		twice = func() bool { return twiceForm(body, in.Field) }
	case in.Kind == webrule.JSON && (kind == "application/json" || strings.HasSuffix(kind, "+json")):
		replace = func(b []byte, put func(string) (string, bool)) ([]byte, bool) { return replaceJSON(b, in.Field, put) }
		twice = func() bool { return twiceJSON(body, in.Field) }
	case in.Kind == webrule.Multipart && kind == "multipart/form-data":
		replace = func(b []byte, put func(string) (string, bool)) ([]byte, bool) {
			return replaceMultipart(b, boundary, in.Field, put)
		}
		twice = func() bool { return twiceMultipart(body, boundary, in.Field) }
	default:
		return body, nil
	}
	placeholder := j.Placeholder(in)
	is := func(found string) bool { return found == placeholder || found == placeholder+mailSuffix }
	// Nothing is asked for a body without the placeholder in its place.
	if _, found := replace(body, func(s string) (string, bool) { return s, is(s) }); !found {
		return body, nil
	}
	if twice() {
		if err := j.event(in.ID, u.url, "refused"); err != nil {
			return nil, err
		}
		return nil, &Error{Public: "The field of the stored credential stands twice in this request, so nobody can tell which one counts."}
	}
	m, ok := j.reserve(in)
	if !ok {
		return body, j.event(in.ID, u.url, "spent")
	}
	c, err := j.credential(ctx, in.ID, u.url)
	if err != nil {
		j.mu.Lock()
		m.uses--
		j.mu.Unlock()
		return nil, err
	}
	v := value(c, in.Value)
	out, _ := replace(body, func(s string) (string, bool) { return v, is(s) })
	u.IDs = append(u.IDs, in.ID)
	u.body = append(u.body, m)
	return out, j.event(in.ID, u.url, "used")
}

// Answered tells what the server said, so that a failed login may be tried again.
func (u *Use) Answered(status int) {
	if len(u.body) == 0 {
		return
	}
	u.j.mu.Lock()
	defer u.j.mu.Unlock()
	for _, m := range u.body {
		m.failed = status >= 400
	}
}
