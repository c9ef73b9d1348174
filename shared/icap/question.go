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
	"strconv"
	"sync"
	"time"
)

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
