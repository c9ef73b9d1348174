package mitm

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"caponier/webproxy/internal/inject"
	"caponier/webproxy/internal/mask"
)

const (
	// wholeBody is the size up to which an answer of known length is masked
	// as a whole, so that it keeps a length.
	wholeBody = 1 << 20
	chunk     = 64 << 10
	// writeTime is how long the browser may take for a chunk.
	writeTime = 2 * time.Minute
)

var chunks = sync.Pool{New: func() any { b := make([]byte, chunk); return &b }}

// stage rewrites a body as it streams by.
type stage interface {
	Push(dst, src []byte) []byte
	Flush(dst []byte) []byte
}

// errMasked: a value turned up in an answer whose length was promised.
var errMasked = errors.New("a credential was found in an answer of fixed length")

// errEncoding: the server encoded what must be read.
var errEncoding = errors.New("the server answered in an encoding that was not offered")

// answer sends the server's answer to the browser.
func (x *exchange) answer(ctx context.Context, resp *http.Response) error {
	h := x.w.Header()
	x.kind = mediaType(resp)
	body := resp.Body
	length := resp.ContentLength
	empty := x.in.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified || length == 0
	var script *inject.Script
	var stages []stage
	if x.rev.Armed {
		if isPage(x.kind) && isDocument(x.in) {
			script = x.ses.Inject.Fill(&x.rev.Policy.Recipe, x.what)
		}
		switch enc := strings.ToLower(strings.Join(resp.Header.Values("Content-Encoding"), ",")); {
		case enc == "" || enc == "identity" || empty:
		case enc == "gzip" || enc == "x-gzip":
			z, err := gzip.NewReader(body)
			if err != nil {
				return fmt.Errorf("read answer: %w", err)
			}
			body, length = z, -1
			resp.Header.Del("Content-Encoding")
			resp.Header.Del("Content-Length")
		default:
			return errEncoding
		}
	}
	var masked *mask.Stream
	if x.rev.Armed {
		masked = x.ses.Values.Stream()
		stages = append(stages, masked)
	}
	if script != nil {
		// Our script is not searched: placeholders are no secrets.
		stages = append(stages, script.Page())
		length = -1
		resp.Header.Del("Content-Length")
		script.Permit(resp.Header, x.at.Origin())
		// The page differs from what the server's validators name.
		resp.Header.Del("Etag")
		resp.Header.Del("Last-Modified")
		resp.Header.Set("Cache-Control", "no-store")
	}
	if x.rev.NoPopups && mayBePage(x.kind) {
		resp.Header.Add("Content-Security-Policy", noPopups)
	}
	if x.rev.Policy.Recipe.Login != nil {
		x.ses.Login.HandOver(x.at.Host(), resp.Header)
	}
	x.headers(h, resp.Header)
	announced := len(resp.Trailer)
	for name := range resp.Trailer {
		h.Add("Trailer", name)
	}
	x.status = resp.StatusCode
	if empty {
		x.w.WriteHeader(resp.StatusCode)
		return nil
	}
	fixed := false // the length is promised and must hold
	if length > 0 && masked != nil {
		switch {
		case length <= wholeBody:
			return x.whole(ctx, resp, body, length, stages)
		case isText(x.kind):
			h.Del("Content-Length")
			length = -1
		default:
			fixed = true
		}
	}
	x.w.WriteHeader(resp.StatusCode)
	flush := length < 0 || x.kind == "text/event-stream"
	if flush {
		// The head may be all that comes for a while.
		if err := http.NewResponseController(x.w).Flush(); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	if err := x.stream(ctx, body, stages, masked, fixed, flush); err != nil {
		return err
	}
	x.trailers(h, resp.Trailer, announced)
	return nil
}

// whole reads an answer of moderate length and sends it masked.
func (x *exchange) whole(ctx context.Context, resp *http.Response, body io.Reader, length int64, stages []stage) error {
	buf := make([]byte, 0, length)
	p := chunks.Get().(*[]byte)
	defer chunks.Put(p)
	for {
		n, err := body.Read(*p)
		x.received += int64(n)
		buf = pass(stages, buf, (*p)[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cutOff(ctx, err)
			}
			return fmt.Errorf("read answer: %w", err) // nothing is out yet
		}
	}
	buf = finish(stages, buf)
	x.w.Header().Set("Content-Length", strconv.Itoa(len(buf)))
	x.w.WriteHeader(resp.StatusCode)
	if err := x.write(buf); err != nil {
		return err
	}
	x.trailers(x.w.Header(), resp.Trailer, len(resp.Trailer))
	return nil
}

// errCut ends an answer whose head is out: the connection says that it is not whole.
var errCut = errors.New("the answer was cut off")

func cutOff(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return errors.Join(errCut, cause)
	}
	return errors.Join(errCut, err)
}

// stream sends a body of any length with constant memory.
func (x *exchange) stream(ctx context.Context, body io.Reader, stages []stage, masked *mask.Stream, fixed, flush bool) error {
	p := chunks.Get().(*[]byte)
	defer chunks.Put(p)
	rc := http.NewResponseController(x.w)
	alone := len(stages) == 1 && masked != nil // there is only the search for credentials
	var out []byte
	var deadline time.Time
	for {
		n, err := body.Read(*p)
		x.received += int64(n)
		src := (*p)[:n]
		if len(stages) > 0 && !(alone && masked.Idle()) {
			out = pass(stages, out[:0], src)
			if err == io.EOF {
				out = finish(stages, out)
			}
			src = out
			if fixed && masked.Hits > 0 {
				return errors.Join(errCut, errMasked)
			}
		}
		if len(src) > 0 {
			if now := x.s.c.Now(); now.Sub(deadline) > time.Second {
				deadline = now
				if err := rc.SetWriteDeadline(now.Add(writeTime)); err != nil {
					return errors.Join(errCut, err)
				}
			}
			if _, err := x.w.Write(src); err != nil {
				return errors.Join(errCut, err)
			}
			if flush && err == nil {
				if err := rc.Flush(); err != nil {
					return errors.Join(errCut, err)
				}
			}
		}
		switch {
		case err == io.EOF && ctx.Err() == nil:
			return x.relax(rc)
		case err != nil:
			// Of a request that was cut, an end too: the server ends its
			// answer when it is told, as if that were all.
			return cutOff(ctx, err)
		}
	}
}

// relax takes the write deadline off: the connection serves more requests.
func (x *exchange) relax(rc *http.ResponseController) error {
	if err := rc.SetWriteDeadline(time.Time{}); err != nil {
		return errors.Join(errCut, err)
	}
	return nil
}

func (x *exchange) write(b []byte) error {
	rc := http.NewResponseController(x.w)
	if err := rc.SetWriteDeadline(x.s.c.Now().Add(writeTime)); err != nil {
		return errors.Join(errCut, err)
	}
	if _, err := x.w.Write(b); err != nil {
		return errors.Join(errCut, err)
	}
	return x.relax(rc)
}

// pass sends src through the stages and appends the result to dst.
func pass(stages []stage, dst, src []byte) []byte {
	switch len(stages) {
	case 0:
		return append(dst, src...)
	case 1:
		return stages[0].Push(dst, src)
	}
	return pass(stages[1:], dst, stages[0].Push(nil, src))
}

func finish(stages []stage, dst []byte) []byte {
	for i, s := range stages {
		dst = pass(stages[i+1:], dst, s.Flush(nil))
	}
	return dst
}

// noPopups takes one thing from a page: opening windows, by script or link. It
// names everything else that a sandbox can permit (Content Security Policy Level
// 3 §6.3.2). Other policies of the page stay; it may do what all permit.
const noPopups = "sandbox allow-downloads allow-forms allow-modals allow-orientation-lock allow-pointer-lock allow-presentation allow-same-origin" +
	" allow-scripts allow-storage-access-by-user-activation allow-top-navigation allow-top-navigation-by-user-activation allow-top-navigation-to-custom-protocols"

// dropped are headers of an answer that must not reach the browser: they
// speak of other ways to the server.
var dropped = slices.Concat(hopByHop, []string{"Alt-Svc", "Alternate-Protocol", "Public-Key-Pins"})

// headers copies the answer's headers, masked.
func (x *exchange) headers(to, from http.Header) {
	dropNamed(from, from["Connection"])
	for _, name := range dropped {
		delete(from, name)
	}
	for name, vs := range from {
		if x.rev.Armed {
			for i, v := range vs {
				vs[i], _ = x.ses.Values.String(v)
			}
		}
		to[name] = vs
	}
}

// dropNamed deletes the headers that a Connection header names.
func dropNamed(h http.Header, connection []string) {
	for _, list := range connection {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
}

func (x *exchange) trailers(h, trailer http.Header, announced int) {
	for name, vs := range trailer {
		for _, v := range vs {
			if x.rev.Armed {
				v, _ = x.ses.Values.String(v)
			}
			if len(trailer) != announced {
				name = http.TrailerPrefix + name
			}
			h.Add(name, v)
		}
	}
}

// mediaType is what an answer says it is, without parameters.
func mediaType(resp *http.Response) string {
	kind, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return strings.ToLower(strings.TrimSpace(kind))
}

func isPage(kind string) bool { return kind == "text/html" || kind == "application/xhtml+xml" }

// mayBePage: a browser may show it as a page that has links or scripts. A PDF is
// none: no browser shows one in a sandbox.
func mayBePage(kind string) bool { return kind == "" || isPage(kind) || strings.HasSuffix(kind, "xml") }

// isDocument: the answer becomes a page or a frame, not the result of a script.
func isDocument(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Dest") {
	case "document", "iframe", "frame", "":
		return r.Method == http.MethodGet || r.Method == http.MethodPost
	}
	return false
}

// inPieces: the answer is a piece of a text. A value that is said back could be
// fetched in pieces of which none shows it; so texts are fetched whole. Pieces
// of large files pass: what resumes a download or seeks in a video.
func inPieces(resp *http.Response) bool {
	if resp.StatusCode != http.StatusPartialContent {
		return false
	}
	kind := mediaType(resp)
	switch kind {
	case "", "multipart/byteranges", "application/x-www-form-urlencoded":
		return true
	}
	return isText(kind)
}

func isText(kind string) bool {
	return strings.HasPrefix(kind, "text/") || strings.HasSuffix(kind, "json") || strings.HasSuffix(kind, "xml") || strings.HasSuffix(kind, "javascript")
}
