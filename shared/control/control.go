// Package control is the control plane inside a tunnel: plain HTTP/1.1, one
// request per stream, each end serving its own routes. An idle tunnel holds no
// control stream and no buffer.
package control

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// StatusError is an answer other than 2xx.
type StatusError struct {
	Path   string
	Status int
	Text   string // first 200 bytes of the body
}

// Error implements error.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s: status %d: %s", e.Path, e.Status, e.Text)
}

// Call sends in as JSON and decodes the answer into out (nil: ignored). The
// answer is at most wire.MaxControlBody.
func Call(ctx context.Context, s tunnel.Session, method, path string, in, out any) error {
	return Exchange(ctx, s, method, path, in, out, wire.MaxControlBody)
}

// squeezeFrom is the size from which a body is compressed.
const squeezeFrom = 64 << 10

// Exchange is Call for messages of up to limit bytes each way; large ones are
// compressed. The peer must read with ReadUpTo.
func Exchange(ctx context.Context, s tunnel.Session, method, path string, in, out any, limit int64) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if int64(len(body)) > limit {
		return fmt.Errorf("%s: a message of %d bytes, the limit is %d", path, len(body), limit)
	}
	squeezed := limit > wire.MaxControlBody && len(body) >= squeezeFrom
	if squeezed {
		body = squeeze(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://tunnel"+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if squeezed {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := RoundTrip(ctx, s, req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return &StatusError{Path: path, Status: resp.StatusCode, Text: string(bytes.TrimSpace(text))}
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, limit)).Decode(out); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func squeeze(body []byte) []byte {
	var b bytes.Buffer
	// Neither the level nor writing to memory can be wrong.
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	_, _ = z.Write(body)
	_ = z.Close()
	return b.Bytes()
}

// RoundTrip sends req on a stream of its own. Closing the answer's body ends
// the stream; ctx bounds everything until then.
func RoundTrip(ctx context.Context, s tunnel.Session, req *http.Request) (*http.Response, error) {
	st, err := s.Open(ctx, wire.Preface{Kind: wire.StreamHTTP, Class: wire.Interactive})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.URL.Path, err)
	}
	stop := context.AfterFunc(ctx, func() { st.SetDeadline(time.Unix(1, 0)) })
	req.Close = true
	if err := req.Write(st); err != nil {
		stop()
		st.Close()
		return nil, fmt.Errorf("%s: %w", req.URL.Path, cause(ctx, err))
	}
	resp, err := http.ReadResponse(bufio.NewReader(st), req)
	if err != nil {
		stop()
		st.Close()
		return nil, fmt.Errorf("%s: %w", req.URL.Path, cause(ctx, err))
	}
	resp.Body = &body{ReadCloser: resp.Body, done: func() { stop(); st.Close() }}
	return resp, nil
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

type body struct {
	io.ReadCloser
	done func()
	once sync.Once
}

func (b *body) Close() error {
	b.once.Do(b.done)
	return nil
}

// Listener hands control streams of any number of tunnels to one http.Server.
type Listener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

// NewListener makes a Listener.
func NewListener() *Listener {
	return &Listener{ch: make(chan net.Conn), done: make(chan struct{})}
}

// Push waits until the server takes c; false when the listener is closed.
func (l *Listener) Push(c net.Conn) bool {
	select {
	case l.ch <- c:
		return true
	case <-l.done:
		return false
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: "tunnel", Net: "tunnel"} }

// Read decodes a control message; unknown fields are a later release's. On
// error it has answered.
func Read(w http.ResponseWriter, r *http.Request, v any) bool {
	return ReadUpTo(w, r, v, wire.MaxControlBody)
}

// ReadUpTo is Read for messages of up to limit bytes, compressed or not.
func ReadUpTo(w http.ResponseWriter, r *http.Request, v any, limit int64) bool {
	bad := func() bool {
		http.Error(w, "the message cannot be read", http.StatusBadRequest)
		return false
	}
	var body io.Reader = http.MaxBytesReader(w, r.Body, limit)
	switch r.Header.Get("Content-Encoding") {
	case "":
	case "gzip":
		z, err := gzip.NewReader(body)
		if err != nil {
			return bad()
		}
		body = &bounded{r: z, left: limit}
	default:
		http.Error(w, "the message's encoding is unknown", http.StatusUnsupportedMediaType)
		return false
	}
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return bad()
	}
	return true
}

// bounded ends with an error, not with io.EOF, where more than left bytes come.
type bounded struct {
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("the message is too long")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// Reply answers with v as JSON.
func Reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// A failed write means that the peer is gone; its own call says so.
	_ = json.NewEncoder(w).Encode(v)
}
