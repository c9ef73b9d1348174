// Package icap asks an ICAP server (RFC 3507) whether content may pass, before
// it passes. It fails closed: a server that cannot be reached, is late or says
// something unexpected is an error, never a pass.
//
// Content streams through: a preview goes first, the server says that it needs
// no more (204), or wants the rest (100) and answers with what may pass. Memory
// stays constant whatever the size.
package icap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
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

func requestHead(r *http.Request) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.Method, r.URL.RequestURI(), r.URL.Host)
	writeHeader(&b, r.Header)
	if r.ContentLength > 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", r.ContentLength)
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

func responseHead(r *http.Response) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", r.StatusCode, http.StatusText(r.StatusCode))
	writeHeader(&b, r.Header)
	if r.ContentLength >= 0 {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", r.ContentLength)
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// private are headers that are nothing to the scanner, or that are its own to set.
var private = map[string]bool{"Host": true, "Content-Length": true, "Cookie": true, "Set-Cookie": true, "Authorization": true, "Proxy-Authorization": true, "Transfer-Encoding": true,
	"X-Infection-Found": true, "X-Violations-Found": true, "X-Virus-Id": true, "X-Virus-Name": true, "X-Blocked": true}

func writeHeader(b *bytes.Buffer, h http.Header) {
	_ = h.WriteSubset(b, private) // into memory
}

// content is what is asked about: a request with a body, or the answer to it.
type content struct {
	method  string // REQMOD or RESPMOD
	request []byte // head
	answer  []byte // head; nil for REQMOD
	status  int    // the answer's
	body    *rewound
}

// ask sends content and reads what the server says. The returned Body, if
// any, must be closed; it ends the connection.
func (c *Client) ask(ctx context.Context, x content) (v Verdict, err error) {
	first := make([]byte, preview)
	n, rerr := io.ReadFull(x.body, first)
	first = first[:n]
	all := errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF)
	if rerr != nil && !all {
		return v, fmt.Errorf("read content: %w", rerr)
	}
	dctx, cancel := context.WithTimeout(ctx, c.c.Timeout)
	defer cancel()
	conn, err := c.c.Dial(dctx, c.addr)
	if err != nil {
		return v, fmt.Errorf("reach the scanner: %w", err)
	}
	q := &question{c: c, conn: conn, r: bufio.NewReaderSize(conn, 32<<10)}
	q.stop = context.AfterFunc(ctx, func() { conn.Close() })
	keep := false
	defer func() {
		if !keep {
			q.close()
		}
	}()
	if err := q.begin(x, first, all); err != nil {
		return v, fmt.Errorf("ask the scanner: %w", err)
	}
	status, head, err := q.status()
	if err != nil {
		return v, fmt.Errorf("ask the scanner: %w", err)
	}
	if status == http.StatusContinue {
		if all {
			return v, errors.New("the scanner wants more than there is")
		}
		q.started = true
		// What it answers may begin before it has everything.
		q.sending.Go(func() { q.sendErr = q.rest(x.body) })
		if status, head, err = q.status(); err != nil {
			return v, fmt.Errorf("ask the scanner: %w", err)
		}
	}
	switch status {
	case http.StatusNoContent:
		if q.started {
			return v, errors.New("the scanner keeps what it was not allowed to keep")
		}
		x.body.first = first
		return v, nil
	case http.StatusOK:
		if v, err = q.modified(x, head); err == nil && v.Body != nil {
			keep = true
		}
		return v, err
	}
	return v, fmt.Errorf("the scanner answers with status %d", status)
}

// rewound is a body to which bytes can be given back.
type rewound struct {
	io.ReadCloser
	first []byte
}

// Read implements io.Reader.
func (r *rewound) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.ReadCloser.Read(p)
}

// question is one exchange with the server.
type question struct {
	c       *Client
	conn    net.Conn
	r       *bufio.Reader
	stop    func() bool
	sending sync.WaitGroup
	sendErr error // of rest; read after sending.Wait
	started bool  // the rest was asked for
}

func (q *question) close() {
	q.stop()
	q.conn.Close()
	q.sending.Wait()
}

func (q *question) write(b []byte) error {
	if err := q.conn.SetWriteDeadline(time.Now().Add(q.c.c.Timeout)); err != nil {
		return err
	}
	_, err := q.conn.Write(b)
	return err
}

// begin sends the heads and the preview (RFC 3507 §4.4, §4.5).
func (q *question) begin(x content, first []byte, all bool) error {
	var b bytes.Buffer
	parts := "req-hdr=0, req-body=" + strconv.Itoa(len(x.request))
	if x.answer != nil {
		parts = fmt.Sprintf("req-hdr=0, res-hdr=%d, res-body=%d", len(x.request), len(x.request)+len(x.answer))
	}
	fmt.Fprintf(&b, "%s %s ICAP/1.0\r\nHost: %s\r\nUser-Agent: Caponier\r\nConnection: close\r\nEncapsulated: %s\r\nPreview: %d\r\n\r\n", x.method, q.c.c.URL, q.c.addr, parts, preview)
	b.Write(x.request)
	b.Write(x.answer)
	if len(first) > 0 {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(first), first)
	}
	if all {
		b.WriteString("0; ieof\r\n\r\n")
	} else {
		b.WriteString("0\r\n\r\n")
	}
	return q.write(b.Bytes())
}

// rest sends what follows the preview.
func (q *question) rest(body io.Reader) error {
	buf := make([]byte, 32<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if werr := q.write(fmt.Appendf(nil, "%x\r\n%s\r\n", n, buf[:n])); werr != nil {
				return fmt.Errorf("send to the scanner: %w", werr)
			}
		}
		if errors.Is(err, io.EOF) {
			return q.write([]byte("0\r\n\r\n"))
		}
		if err != nil {
			q.conn.Close() // it must not take a part for the whole
			return fmt.Errorf("read content: %w", err)
		}
	}
}

// status reads a status line and its header.
func (q *question) status() (int, textproto.MIMEHeader, error) {
	if err := q.conn.SetReadDeadline(time.Now().Add(q.c.c.Timeout)); err != nil {
		return 0, nil, err
	}
	line, err := readLine(q.r)
	if err != nil {
		return 0, nil, err
	}
	words := strings.SplitN(line, " ", 3)
	if len(words) < 2 || !strings.HasPrefix(words[0], "ICAP/1.") {
		return 0, nil, errors.New("it does not speak ICAP")
	}
	code, err := strconv.Atoi(words[1])
	if err != nil {
		return 0, nil, errors.New("it does not speak ICAP")
	}
	h, err := readHeader(q.r)
	return code, h, err
}

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		b, err := r.ReadSlice('\n')
		if line = append(line, b...); len(line) > maxLine {
			return "", errors.New("a line is too long")
		}
		if err == nil {
			return strings.TrimRight(string(line), "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
	}
}

func readHeader(r *bufio.Reader) (textproto.MIMEHeader, error) {
	h := textproto.MIMEHeader{}
	size := 0
	last := "" // the field that a folded line goes on with
	for {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if line == "" {
			return h, nil
		}
		if size += len(line); size > maxHeaders {
			return nil, errors.New("a header is too long")
		}
		if (line[0] == ' ' || line[0] == '\t') && last != "" {
			vs := h[last]
			vs[len(vs)-1] += " " + strings.TrimSpace(line)
			continue
		}
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			return nil, errors.New("a header line is malformed")
		}
		last = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(k))
		h[last] = append(h[last], strings.TrimSpace(v))
	}
}

// modified reads an encapsulated message (RFC 3507 §4.4.1).
func (q *question) modified(x content, head textproto.MIMEHeader) (v Verdict, err error) {
	parts := map[string]bool{}
	for p := range strings.SplitSeq(head.Get("Encapsulated"), ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(p), "=")
		parts[strings.ToLower(name)] = true
	}
	v.ContentLength = -1
	v.Found = found(head)
	var line string
	var inner textproto.MIMEHeader
	for _, name := range []string{"req-hdr", "res-hdr"} {
		if !parts[name] {
			continue
		}
		if line, err = readLine(q.r); err != nil {
			return v, fmt.Errorf("read the scanner's answer: %w", err)
		}
		if inner, err = readHeader(q.r); err != nil {
			return v, fmt.Errorf("read the scanner's answer: %w", err)
		}
	}
	v.Head = http.Header(inner)
	if v.Found == "" {
		v.Found = found(inner)
	}
	if parts["res-hdr"] {
		_, rest, _ := strings.Cut(line, " ")
		code, _, _ := strings.Cut(rest, " ")
		if v.Status, err = strconv.Atoi(code); err != nil {
			return v, errors.New("the scanner's answer has no status")
		}
	}
	// An answer to a request, an answer of its own that refuses or leads
	// elsewhere, or something found: the content does not pass. One with the
	// status that was asked about is the content as it may pass, also that of a
	// page that was not found. Some servers put their page under 200: what they
	// found, and headers that only they set, tell it.
	if parts["res-hdr"] && (x.method == "REQMOD" || v.Status >= 300 && v.Status != x.status) || v.Found != "" {
		v.Blocked = true
		return v, nil
	}
	if parts["null-body"] {
		return v, errors.New("the scanner took the content away without a word")
	}
	if !parts["req-body"] && !parts["res-body"] {
		return v, errors.New("the scanner's answer has no content")
	}
	if n, err := strconv.ParseInt(v.Head.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		v.ContentLength = n
	}
	v.Body = &answerBody{q: q, left: v.ContentLength, known: v.ContentLength >= 0}
	return v, nil
}

// found reads what common servers say about what they found.
func found(h textproto.MIMEHeader) string {
	for _, name := range []string{"X-Infection-Found", "X-Violations-Found", "X-Virus-Id", "X-Virus-Name", "X-Blocked"} {
		if v := h.Get(name); v != "" {
			if i := strings.Index(v, "Threat="); i >= 0 {
				v = strings.TrimRight(v[i+len("Threat="):], "; ")
			}
			if len(v) > 200 {
				v = v[:200]
			}
			return strings.ToValidUTF8(strings.TrimSpace(v), "?")
		}
	}
	return ""
}

// answerBody reads the chunks that the server sends back. It ends in io.EOF
// only if they, and the content that was sent, were complete.
type answerBody struct {
	q     *question
	chunk int64 // left of the present one
	left  int64 // of the promised length
	known bool
	err   error
	once  sync.Once
}

// Read implements io.Reader.
func (b *answerBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.read(p)
	if err != nil {
		b.err = err
	}
	return n, err
}

func (b *answerBody) read(p []byte) (int, error) {
	if err := b.q.conn.SetReadDeadline(time.Now().Add(b.q.c.c.Timeout)); err != nil {
		return 0, err
	}
	if b.chunk == 0 {
		line, err := readLine(b.q.r)
		if err != nil {
			return 0, unexpected(err)
		}
		size, _, _ := strings.Cut(line, ";")
		if b.chunk, err = strconv.ParseInt(strings.TrimSpace(size), 16, 63); err != nil || b.chunk < 0 {
			return 0, errors.New("the scanner's answer is malformed")
		}
		if b.chunk == 0 {
			if b.known && b.left != 0 {
				return 0, io.ErrUnexpectedEOF
			}
			b.q.sending.Wait()
			if b.q.sendErr != nil {
				return 0, b.q.sendErr
			}
			return 0, io.EOF
		}
	}
	n, err := b.q.r.Read(p[:min(int64(len(p)), b.chunk)])
	b.chunk -= int64(n)
	b.left -= int64(n)
	if err == nil && b.chunk == 0 {
		if line, lerr := readLine(b.q.r); lerr != nil || line != "" {
			return n, errors.Join(errors.New("the scanner's answer is malformed"), lerr)
		}
	}
	return n, unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close implements io.Closer.
func (b *answerBody) Close() error {
	b.once.Do(b.q.close)
	return nil
}
