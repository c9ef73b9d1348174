// Package icap asks an ICAP server (RFC 3507) whether content may pass, before
// it passes. It fails closed: a server that cannot be reached, is late or says
// something unexpected is an error, never a pass.
//
// Content streams through: a preview goes first, the server says that it needs
// no more (204), or wants the rest (100) and answers with what may pass. Memory
// stays constant whatever the size.
package icap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"caponier/shared/dial"
)

const (
	// preview is how much is sent before the server says whether it needs more.
	preview = 4 << 10
	// defaultTimeout bounds each wait for the server: to connect, to take
	// bytes, to say something.
	defaultTimeout = 60 * time.Second
	defaultPort    = "1344"
	maxLine        = 8 << 10
	maxHeaders     = 64 << 10
)

// ErrBlocked is under every error that says that the server refused content.
var ErrBlocked = errors.New("the content was refused by the scanner")

// Config is what a Client needs.
type Config struct {
	// URL is the service: icap://host[:port]/service.
	URL string
	// Timeout bounds each wait for the server; 0: 60 s.
	Timeout time.Duration
	// Dial connects to the server and decides which addresses it may have; see
	// Through. Required: who names a scanner must not name any service near the
	// asker.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
}

// Client asks one service. Safe for concurrent use; a connection per question.
type Client struct {
	c    Config
	addr string
}

// Through dials by the rules of d.
func Through(d *dial.Dialer) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := d.Dial(ctx, addr)
		if err != nil {
			return nil, err // not a nil connection that is no nil interface
		}
		return c, nil
	}
}

// CheckURL reports what is wrong with the address of a service (RFC 3507
// §4.2); the text continues "the address".
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "icap" || u.Hostname() == "" || u.User != nil || strings.ContainsAny(text, "\r\n \t") {
		return errors.New("must be icap://host[:port]/service")
	}
	if strings.Trim(u.Path, "/") == "" {
		return errors.New("names no service: it must be icap://host[:port]/service, such as icap://scan.example.net:1344/avscan")
	}
	return nil
}

// New checks the address and makes a Client.
func New(c Config) (*Client, error) {
	if c.Dial == nil {
		return nil, errors.New("a client of a scanner needs Dial")
	}
	if err := CheckURL(c.URL); err != nil {
		return nil, fmt.Errorf("the scanner's address %w", err)
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("the scanner's address: %w", err)
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	return &Client{c: c, addr: net.JoinHostPort(u.Hostname(), port)}, nil
}

// Verdict is what the server said about content.
type Verdict struct {
	// Blocked: the content must not pass.
	Blocked bool
	// Found names what was found, if the server says it; at most 200 bytes.
	Found string
	// Body is what may pass instead; nil: the content as it is.
	Body io.ReadCloser
	// ContentLength is Body's, or -1.
	ContentLength int64
	// Head is the header of the request or answer that Body belongs to.
	Head http.Header
	// Status is that of a changed or blocking answer.
	Status int
}

// Request asks about a request's body (REQMOD). Blocked answers come as an
// *http.Response whose body is closed; else r is ready to be sent, with the
// body that the server lets pass.
func (c *Client) Request(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	body := &rewound{ReadCloser: r.Body}
	r.Body = body
	v, err := c.ask(r.Context(), content{method: "REQMOD", request: requestHead(r), body: body})
	if err != nil {
		return nil, err
	}
	if v.Blocked {
		return v.response(r), nil
	}
	if v.Body == nil {
		return nil, nil
	}
	r.Body, r.ContentLength, r.GetBody = v.Body, v.ContentLength, nil
	if v.ContentLength < 0 {
		r.Header.Del("Content-Length")
	}
	return nil, nil
}

// Response asks about an answer's body (RESPMOD), likewise.
func (c *Client) Response(r *http.Request, resp *http.Response) (*http.Response, error) {
	if resp.Body == nil || resp.Body == http.NoBody || r.Method == http.MethodHead || resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
		return nil, nil
	}
	body := &rewound{ReadCloser: resp.Body}
	resp.Body = body
	v, err := c.ask(r.Context(), content{method: "RESPMOD", request: requestHead(r), answer: responseHead(resp), status: resp.StatusCode, body: body})
	if err != nil {
		return nil, err
	}
	if v.Blocked {
		return v.response(r), nil
	}
	if v.Body == nil {
		return nil, nil
	}
	resp.Body, resp.ContentLength = v.Body, v.ContentLength
	resp.Header.Del("Content-Length")
	if v.ContentLength >= 0 {
		resp.Header.Set("Content-Length", strconv.FormatInt(v.ContentLength, 10))
	}
	return nil, nil
}

func (v *Verdict) response(r *http.Request) *http.Response {
	h := v.Head
	if h == nil {
		h = http.Header{}
	}
	if v.Found != "" {
		h.Set("X-Infection-Found", v.Found)
	}
	return &http.Response{StatusCode: http.StatusForbidden, Header: h, Body: http.NoBody, Request: r}
}

// File is a whole file on its way in (Upload) or out of a session.
type File struct {
	Upload bool
	Name   string
	Size   int64 // bytes; -1: unknown
	Body   io.Reader
}

// Scan asks about a file: what may pass is written to w. A refused file gives
// an error under ErrBlocked; w has then received at most a part of it, and the
// caller throws that away.
func (c *Client) Scan(ctx context.Context, f File, w io.Writer) error {
	name := "/" + url.PathEscape(f.Name)
	body := &rewound{ReadCloser: io.NopCloser(f.Body)}
	x := content{method: "RESPMOD", status: http.StatusOK, body: body}
	length := ""
	if f.Size >= 0 {
		length = fmt.Sprintf("Content-Length: %d\r\n", f.Size)
	}
	if f.Upload {
		x.method = "REQMOD"
		x.request = []byte("PUT " + name + " HTTP/1.1\r\nHost: files.caponier.invalid\r\nContent-Type: application/octet-stream\r\n" + length + "\r\n")
	} else {
		x.request = []byte("GET " + name + " HTTP/1.1\r\nHost: files.caponier.invalid\r\n\r\n")
		x.answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n" + length + "\r\n")
	}
	v, err := c.ask(ctx, x)
	if err != nil {
		return err
	}
	if v.Blocked {
		if v.Found != "" {
			return fmt.Errorf("%w: %s", ErrBlocked, v.Found)
		}
		return ErrBlocked
	}
	if v.Body == nil {
		v.Body = body
	}
	_, err = io.Copy(w, v.Body)
	return errors.Join(err, v.Body.Close())
}
