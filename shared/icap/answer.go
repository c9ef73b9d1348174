package icap

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"
)

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
