// Package egress is the only way out of a browser container: a unix socket on
// which the carrier takes what the browser asks its proxy.
//
// While the browser is parked the carrier answers by itself: the parked page
// is served and waits for its address, everything else is refused, so that the
// browser's calls to its maker die quietly. After the claim every connection
// is passed, unread, to the webproxy of the session inside TLS 1.3 between the
// nodes; which session it is follows from the socket alone.
package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"caponier/shared/telemetry"
)

// Park is the host of the parked page, which exists only here.
const Park = "park.caponier.internal"

// Limits of one container.
const (
	maxConns  = 512               // at one time
	maxHeader = 64 << 10          // of a request that is answered here
	longPoll  = 50 * time.Second  // the parked page asks again after that
	quiet     = 10 * time.Minute  // a connection without a byte either way is closed
	writeTime = 30 * time.Second  // for one write
	firstTime = 120 * time.Second // until a connection says something
)

// Upstream is where the connections of a claimed container go.
type Upstream interface {
	// Dial opens a connection to the webproxy that is ready for HTTP.
	Dial(ctx context.Context) (Conn, error)
}

// Conn is a connection with two halves.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Door serves one container's socket. Safe for concurrent use.
type Door struct {
	ln  *net.UnixListener
	log *slog.Logger

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup
	room chan struct{}

	parked  chan struct{} // closed when the parked page waits
	once    sync.Once
	claimed chan struct{} // closed by Claim

	mu  sync.Mutex
	url string   // guarded by mu; where the browser goes
	up  Upstream // guarded by mu; nil while parked
	ask []string // guarded by mu; see Asked

	In, Out atomic.Uint64 // bytes to and from the browser since the claim
	Failed  atomic.Uint64 // connections that did not reach the webproxy
}

// Open listens on path. The container's user must be able to connect to it,
// nobody else reaches the directory.
func Open(path string, log *slog.Logger) (*Door, error) {
	ln, err := Listen(path)
	if err != nil {
		return nil, fmt.Errorf("egress: %w", err)
	}
	d := &Door{ln: ln, log: log, room: make(chan struct{}, maxConns), parked: make(chan struct{}), claimed: make(chan struct{})}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.wg.Go(d.accept)
	return d, nil
}

// Listen listens on a unix socket that another user may connect to; what was
// left at path by a former process is removed.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// Parked is closed when the browser shows the parked page and waits.
func (d *Door) Parked() <-chan struct{} { return d.parked }

// Claim sends the browser to url; from now on its connections go to up. Later
// calls replace both.
func (d *Door) Claim(url string, up Upstream) {
	d.mu.Lock()
	first := d.up == nil
	d.url, d.up = url, up
	d.mu.Unlock()
	if first {
		close(d.claimed)
	}
}

// maxAsked bounds Asked, and the length of each.
const (
	maxAsked    = 20
	maxAskedLen = 200 // bytes
)

// Asked is what the parked browser asked for by itself and was refused, the
// first of it.
func (d *Door) Asked() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.ask)
}

func (d *Door) refused(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.ask) < maxAsked {
		d.ask = append(d.ask, what[:min(len(what), maxAskedLen)])
	}
}

func (d *Door) state() (string, Upstream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.url, d.up
}

// Close closes the socket and every connection, and waits for them.
func (d *Door) Close() {
	d.stop()
	d.ln.Close()
	d.wg.Wait()
}

func (d *Door) accept() {
	for {
		c, err := d.ln.AcceptUnix()
		if err != nil {
			if d.ctx.Err() == nil {
				d.log.Error("egress", telemetry.KeyErr, err)
			}
			return
		}
		select {
		case d.room <- struct{}{}:
		default: // a container that opens more only hurts itself
			c.Close()
			continue
		}
		d.wg.Go(func() {
			defer func() { <-d.room }()
			defer c.Close()
			defer context.AfterFunc(d.ctx, func() { c.Close() })()
			d.serve(c)
		})
	}
}

// parked reports whether a connection begins with a request for the parked
// page's host: Chromium's updater is sent there too.
func parked(first []byte) bool {
	return bytes.HasPrefix(first, []byte("GET http://"+Park+"/")) || bytes.HasPrefix(first, []byte("POST http://"+Park+"/"))
}

func (d *Door) serve(c *net.UnixConn) {
	if c.SetReadDeadline(time.Now().Add(firstTime)) != nil {
		return
	}
	first := make([]byte, 4<<10)
	n, err := c.Read(first)
	if err != nil {
		return
	}
	first = first[:n]
	_, up := d.state()
	if up == nil || parked(first) {
		d.answer(c, io.MultiReader(bytes.NewReader(first), c))
		return
	}
	to, err := up.Dial(d.ctx)
	if err != nil {
		d.Failed.Add(1)
		if d.ctx.Err() == nil {
			d.log.Warn("webproxy", telemetry.KeyErr, err)
		}
		d.write(c, http.StatusBadGateway, "text/plain", "The web proxy of this session cannot be reached. Try again in a moment.\n")
		return
	}
	defer to.Close()
	defer context.AfterFunc(d.ctx, func() { to.Close() })()
	d.splice(c, to, first)
}

// splice passes bytes both ways, each direction until its end.
func (d *Door) splice(c *net.UnixConn, to Conn, first []byte) {
	last := &atomic.Int64{}
	last.Store(time.Now().UnixNano())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := to.Write(first); err == nil {
			d.Out.Add(uint64(len(first)))
			pass(to, c, &d.Out, last)
		}
	})
	pass(c, to, &d.In, last)
	wg.Wait()
}

// buffers are what pass copies through.
var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// pass copies from src to dst until the end, an error, or silence in both
// directions, and hands the end on.
func pass(dst, src Conn, count *atomic.Uint64, last *atomic.Int64) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	for {
		if src.SetReadDeadline(time.Now().Add(quiet)) != nil {
			break
		}
		n, err := src.Read(*b)
		if n > 0 {
			last.Store(time.Now().UnixNano())
			if dst.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
				break
			}
			if _, werr := dst.Write((*b)[:n]); werr != nil {
				// The other direction must not wait for somebody who left.
				src.Close()
				return
			}
			count.Add(uint64(n))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Since(time.Unix(0, last.Load())) < quiet {
			continue // the other direction is alive
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				dst.Close()
			}
			break
		}
	}
	_ = dst.CloseWrite()
}

// answer serves one request here and closes the connection: it must not be
// used again for what belongs to the webproxy.
func (d *Door) answer(c *net.UnixConn, from io.Reader) {
	req, err := http.ReadRequest(bufio.NewReader(io.LimitReader(from, maxHeader)))
	if err != nil {
		return
	}
	if req.Method != http.MethodGet || req.URL.Host != Park {
		if req.URL.Host != Park { // see the updater in carrier/image/init
			d.refused(req.Method + " " + req.URL.String())
		}
		d.write(c, http.StatusForbidden, "text/plain", "There is no way out.\n")
		return
	}
	switch req.URL.Path {
	case "/":
		if url, up := d.state(); up != nil { // claimed before the page was there
			d.redirect(c, url)
			return
		}
		d.write(c, http.StatusOK, "text/html; charset=utf-8", parkPage)
	case "/next":
		d.once.Do(func() { close(d.parked) })
		gone := make(chan struct{})
		d.wg.Go(func() { // the browser says nothing more: reading tells when it leaves
			_ = c.SetReadDeadline(time.Now().Add(longPoll + writeTime))
			_, _ = c.Read(make([]byte, 1))
			close(gone)
		})
		t := time.NewTimer(longPoll)
		defer t.Stop()
		select {
		case <-d.claimed:
		case <-t.C:
		case <-gone:
		case <-d.ctx.Done():
		}
		url, _ := d.state()
		d.write(c, http.StatusOK, "text/plain; charset=utf-8", url)
	default:
		d.write(c, http.StatusNotFound, "text/plain", "")
	}
}

// parkPage waits for the address and goes there; the parked page leaves no
// trace in the browser's history.
const parkPage = `<!doctype html><meta charset="utf-8"><title>Caponier</title>
<style>html{background:#fff;color-scheme:light}</style>
<script>
async function next() {
  for (;;) {
    try {
      const url = await (await fetch("/next", {cache: "no-store"})).text();
      if (url) { location.replace(url); return; }
    } catch { await new Promise(done => setTimeout(done, 200)); }
  }
}
next();
</script>
`

func (d *Door) write(c *net.UnixConn, status int, kind, body string) {
	d.raw(c, fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n%s",
		status, http.StatusText(status), kind, len(body), body))
}

func (d *Door) redirect(c *net.UnixConn, url string) {
	// A line end in the address would be a header of its own.
	url = strings.NewReplacer("\r", "", "\n", "").Replace(url)
	d.raw(c, "HTTP/1.1 302 Found\r\nLocation: "+url+"\r\nContent-Length: 0\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n")
}

func (d *Door) raw(c *net.UnixConn, text string) {
	if c.SetWriteDeadline(time.Now().Add(writeTime)) != nil {
		return
	}
	_, _ = io.WriteString(c, text)
	_ = c.CloseWrite()
}
