package mitm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"caponier/shared/telemetry"
	"caponier/shared/webrule"
	"caponier/webproxy/internal/inject"
	"caponier/webproxy/internal/session"
)

// exchange is one request and its answer.
type exchange struct {
	s     *Server
	ses   *session.Session
	rev   *session.Revision
	w     http.ResponseWriter
	in    *http.Request // from the browser
	what  webrule.Request
	at    webrule.Endpoint
	url   string // for the log
	since time.Time

	live        *session.Live // it, as the session knows it
	bodyMethods []string      // that the body names
	unclear     bool          // it may name others: it cannot be read
	keeping     bool          // it is being read to be held
	late        atomic.Pointer[webrule.Verdict]

	status   int
	kind     string // media type of the answer
	injected string
	approved string       // who let it through, if somebody had to
	sent     atomic.Int64 // bytes of the request's body
	received int64        // bytes of the answer's body
}

// hopByHop are the headers of one connection (RFC 9110 §7.6.1), as net/http
// spells them.
var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings"}

// handle decides on a request of a session and serves it.
func (s *Server) handle(w http.ResponseWriter, r *http.Request, ses *session.Session, scheme, authority string) {
	x := &exchange{s: s, ses: ses, rev: ses.Revision(), w: w, in: r, since: s.c.Now(),
		what: webrule.Request{Scheme: scheme, Host: authority, Method: r.Method, Path: r.URL.EscapedPath()}}
	s.Requests.Add(1)
	var err error
	if x.at, err = x.what.Endpoint(); err != nil {
		http.Error(w, "The host is not valid.", http.StatusBadRequest)
		return
	}
	x.url = x.logURL()
	if strings.HasPrefix(r.URL.Path, inject.Reserved) {
		x.reserved()
		return
	}
	if isContinuation(r) {
		x.continued()
		return
	}
	if r.URL.Opaque != "" {
		// Neither a path nor a URL with one ("x:https://host/path"): the path
		// that is decided on would not be the one that is sent.
		x.blocked(webrule.Verdict{Reason: webrule.Malformed, Rule: -1})
		return
	}
	ctx, live, ok := ses.Track(r.Context(), x.meant())
	if !ok {
		x.tooMany()
		return
	}
	defer live.Done()
	x.live = live
	// Rules that change from here on cut the request.
	x.rev = ses.Revision()
	v := x.decide()
	if (v.Allowed() || v.Held()) && x.rev.Policy.NamesMethods() {
		if err := x.readMethods(); err != nil {
			x.failed(ctx, err)
			x.record()
			return
		}
		live.Also(x.bodyMethods, x.unclear)
		x.rev = ses.Revision()
		v = x.decide()
	}
	if v.Held() {
		live.Done()
		x.hold()
		return
	}
	if !v.Allowed() {
		x.blocked(v)
		return
	}
	x.leave(ctx, v)
}

// methodHeaders are headers from which applications take another method than
// the request line's, pathHeaders those from which they take another path.
// Interfaces like CGI (RFC 3875 §4.1.18) know no difference of - and _.
var (
	methodHeaders = []string{"X-Http-Method-Override", "X-Http-Method", "X-Method-Override"}
	pathHeaders   = []string{"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri"}
)

// alike reports whether a header is one of some names to an application.
func alike(header string, names []string) bool {
	header = strings.ReplaceAll(header, "_", "-")
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, header) })
}

// overrides are the other methods that an application may take the request to
// have, from methodHeaders or from the query; see readMethods for the body.
func overrides(r *http.Request) (methods []string) {
	for pair := range strings.FieldsFuncSeq(r.URL.RawQuery, func(c rune) bool { return c == '&' || c == ';' }) {
		k, v, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(k); err == nil && isMethodField(name) {
			if v, err = url.QueryUnescape(v); err != nil {
				v = "?" // no method: refused by every rule
			}
			methods = append(methods, strings.TrimSpace(v))
		}
	}
	for name, vs := range r.Header {
		if alike(name, methodHeaders) {
			for _, v := range vs {
				methods = append(methods, strings.TrimSpace(v))
			}
		}
	}
	slices.Sort(methods)
	return slices.Compact(methods)
}

// tooMany refuses what the session cannot take.
func (x *exchange) tooMany() {
	x.page(http.StatusServiceUnavailable, page{Title: "Too many requests at once", Text: "This session has too many requests under way, or is ending."})
}

// meant is the request with the methods that an application may take it to have.
func (x *exchange) meant() webrule.Meant {
	return webrule.Meant{Request: x.what, As: x.asWhat(), Any: x.unclear}
}

// decide is the strictest verdict on what the request may mean.
func (x *exchange) decide() webrule.Verdict {
	if x.rev.Locked {
		return webrule.Verdict{Reason: webrule.Locked, Rule: -1}
	}
	return x.rev.Policy.DecideMeant(x.meant())
}

// leave serves what may leave.
func (x *exchange) leave(ctx context.Context, v webrule.Verdict) {
	// A session that ends takes its requests along even if they do not listen.
	if err := x.serve(ctx, v); err != nil {
		x.failed(ctx, err)
	}
	x.record()
}

// reserved serves what is ours on every origin: the scripts that fill pages.
func (x *exchange) reserved() {
	if id, ok := strings.CutPrefix(x.in.URL.Path, heldPath); ok {
		x.heldState(id)
		return
	}
	told := x.ses.Inject.Serve(x.w, x.in)
	if told == nil {
		return
	}
	fields := map[string]string{"url": x.at.Origin(), "outcome": told.Outcome, "fields": clip(told.Fields, 512)}
	if u, err := url.Parse(x.in.Referer()); err == nil && webrule.SameOrigin(u.String(), x.at.Origin()) {
		fields["url"] = clip(x.at.Origin()+u.EscapedPath(), 1024)
	}
	if err := x.ses.Event("fill", fields); err != nil {
		x.s.c.Log.Debug("event", telemetry.KeySession, x.ses.ID, telemetry.KeyErr, err)
	}
}

// serve sends the request on and the answer back.
func (x *exchange) serve(ctx context.Context, v webrule.Verdict) error {
	p := x.rev.Policy
	if p.Recipe.Login != nil && v.Own {
		if err := x.ses.Login.Ensure(ctx, p); err != nil {
			return err
		}
	}
	out, err := x.outgoing(ctx)
	if err != nil {
		return err
	}
	if p.Recipe.Login != nil {
		x.ses.Login.Cookies(out)
	}
	if x.rev.Scan != nil {
		resp, err := x.rev.Scan.Request(out)
		if err != nil {
			return &scanError{err}
		}
		if resp != nil {
			x.status = http.StatusForbidden
			x.found(resp, "upload")
			return nil
		}
	}
	use, err := x.ses.Inject.Request(ctx, &p.Recipe, out, x.what, x.rev.Up.Unchecked(x.at))
	if err != nil {
		return err
	}
	resp, err := x.rev.Up.RoundTrip(out, v.Site)
	if err != nil {
		return err
	}
	again, err := use.Retry(ctx, out, resp)
	if err != nil {
		resp.Body.Close()
		return err
	}
	if again {
		drain(resp)
		if resp, err = x.rev.Up.RoundTrip(out, v.Site); err != nil {
			return err
		}
	}
	if x.rev.Armed && inPieces(resp) {
		drain(resp)
		out.Header.Del("Range")
		out.Header.Del("If-Range")
		if resp, err = x.rev.Up.RoundTrip(out, v.Site); err != nil {
			return err
		}
	}
	use.Answered(resp.StatusCode)
	if x.injected = use.Injected(); x.injected != "" {
		x.s.Injected.Add(1)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return x.upgrade(ctx, resp)
	}
	if x.rev.Scan != nil {
		blocked, err := x.rev.Scan.Response(out, resp)
		if err != nil {
			return &scanError{err}
		}
		if blocked != nil {
			x.status = http.StatusForbidden
			x.found(blocked, "download")
			return nil
		}
	}
	return x.answer(ctx, resp)
}

// drain reads a little of a body that nobody wants, so that the connection
// can be used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	resp.Body.Close()
}

// outgoing makes the request that leaves.
func (x *exchange) outgoing(ctx context.Context) (*http.Request, error) {
	r := x.in
	out := r.Clone(ctx)
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host, out.URL.User, out.URL.Fragment = x.at.Scheme(), x.at.String(), nil, ""
	out.Host = x.at.String()
	out.Close = false
	out.Trailer = r.Trailer // filled when the body has been read
	upgrade := ""
	if isUpgrade(r) {
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
			return nil, &inject.Error{Public: "Only websockets may take a connection over."}
		}
		upgrade = "websocket"
	}
	dropNamed(out.Header, r.Header["Connection"])
	trailers := strings.Contains(strings.ToLower(strings.Join(r.Header["Te"], ",")), "trailers")
	for _, name := range hopByHop {
		delete(out.Header, name)
	}
	for name := range out.Header {
		if alike(name, pathHeaders) {
			delete(out.Header, name) // what was decided on is the request line's
		}
	}
	if trailers {
		out.Header.Set("Te", "trailers")
	}
	if upgrade != "" {
		out.Header.Set("Connection", "Upgrade")
		out.Header.Set("Upgrade", upgrade)
		if x.rev.Armed {
			// Compressed messages could not be searched.
			out.Header.Del("Sec-Websocket-Extensions")
		}
	}
	if _, ok := out.Header["User-Agent"]; !ok {
		out.Header.Set("User-Agent", "") // else the client library names itself
	}
	if x.rev.Armed || x.rev.Scan != nil {
		// What must be read has to come readable.
		if x.rev.Scan == nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			out.Header.Set("Accept-Encoding", "gzip")
		} else {
			out.Header.Set("Accept-Encoding", "identity")
		}
	}
	if x.rev.Scan != nil || x.rev.Armed && (r.Method != http.MethodGet || r.ContentLength != 0) {
		// No scanner knows harm by its pieces. Ranges are for GET alone
		// (RFC 9110 §14.2), and of what is searched inPieces asks again.
		out.Header.Del("Range")
		out.Header.Del("If-Range")
	}
	if r.ContentLength == 0 {
		out.Body = http.NoBody
	} else if out.Body != nil {
		out.Body = &counting{ReadCloser: out.Body, n: &x.sent}
	}
	return out, nil
}

func isUpgrade(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.Header.Get("Upgrade") != "" && strings.Contains(strings.ToLower(strings.Join(r.Header["Connection"], ",")), "upgrade")
}

type counting struct {
	io.ReadCloser
	n *atomic.Int64
}

// Read implements io.Reader.
func (c *counting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// blocked answers a request that no rule allows; nothing has been dialled.
func (x *exchange) blocked(v webrule.Verdict) {
	x.s.Blocked.Add(1)
	fields := map[string]string{"method": clip(x.in.Method, 32), "url": x.url, "reason": string(v.Reason), "type": clip(x.in.Header.Get("Sec-Fetch-Dest"), 32)}
	p := page{Title: "This page is not part of your session", Host: x.at.String(),
		Text: "The request was refused: " + v.Reason.Text() + ".", Hint: "If you need it, ask your administrator."}
	status := http.StatusForbidden
	if v.Reason == webrule.Locked {
		p.Title, p.Hint, status = "Your session is locked", "It goes on when an administrator unlocks it.", http.StatusLocked
	}
	if x.rev.Policy.Learn && v.Proposal != nil {
		fields["learn"] = "true"
		b, err := json.Marshal(v.Proposal)
		if err == nil {
			fields["proposal"] = string(b)
		}
		p.Hint = "It was noted: your administrator can allow it for this target."
	}
	if err := x.ses.Event("blocked", fields); err != nil {
		x.s.c.Log.Debug("event", telemetry.KeySession, x.ses.ID, telemetry.KeyErr, err)
	}
	x.page(status, p)
}

// found answers for a body in which the scanner found something. what is
// upload or download.
func (x *exchange) found(blocked *http.Response, what string) {
	name := clip(blocked.Header.Get("X-Infection-Found"), 200)
	blocked.Body.Close()
	x.s.Blocked.Add(1)
	fields := map[string]string{"method": clip(x.in.Method, 32), "url": x.url, "reason": "scan", "direction": what, "found": name}
	if err := x.ses.Event("blocked", fields); err != nil {
		x.s.c.Log.Debug("event", telemetry.KeySession, x.ses.ID, telemetry.KeyErr, err)
	}
	x.page(http.StatusForbidden, page{Title: "The scanner refused this " + what, Host: x.at.String(), Text: "The content was judged harmful and was not passed on.", Hint: "If you think it is harmless, ask your administrator."})
}

// record writes the request into the session's log.
func (x *exchange) record() {
	x.s.BytesIn.Add(uint64(x.received))
	x.s.BytesOut.Add(uint64(x.sent.Load()))
	fields := map[string]string{
		"method": clip(x.in.Method, 32), "url": x.url, "status": strconv.Itoa(x.status),
		"bytes_in": strconv.FormatInt(x.received, 10), "bytes_out": strconv.FormatInt(x.sent.Load(), 10),
		"ms": strconv.FormatInt(x.s.c.Now().Sub(x.since).Milliseconds(), 10), "type": clip(x.kind, 100), "injected": x.injected,
	}
	if note := x.rev.Up.Note(x.at); note != "" {
		fields["revocation"] = note
	}
	if x.approved != "" {
		fields["approved"] = x.approved
	}
	err := x.ses.Event("request", fields)
	if err == nil && x.in.Header.Get("Sec-Fetch-Mode") == "navigate" && x.in.Header.Get("Sec-Fetch-Dest") == "document" {
		err = x.ses.Event("navigation", map[string]string{"url": x.url, "status": strconv.Itoa(x.status)})
	}
	if err != nil && !errors.Is(context.Cause(x.ses.Context()), session.ErrEnded) {
		x.s.c.Log.Debug("event", telemetry.KeySession, x.ses.ID, telemetry.KeyErr, err)
	}
}
