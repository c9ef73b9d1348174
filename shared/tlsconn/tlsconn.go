// Package tlsconn is TLS that carries bulk with few system calls. crypto/tls
// reads and writes each record (16 KiB) by itself, and inside another TLS each
// becomes two, because a record does not fit into a record. Here a Read takes
// all whole records that have arrived, and a Write leaves in one piece,
// however many records it makes.
//
// What is read, written and verified is crypto/tls's affair alone: below it
// bytes are passed as they are.
package tlsconn

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"net"
	"sync"
)

const (
	// How much is read from the network at one time, in bytes: servers of a
	// client send bulk, clients of a server seldom do. Idle connections keep it.
	clientAhead = 48 << 10
	serverAhead = 8 << 10
	// together is how many bytes of records leave at one time.
	together = 128 << 10
	// plain is the most a record holds (RFC 8446 §5.1), and header what is
	// before it.
	plain  = 16 << 10
	header = 5
	// record is the most a record takes (RFC 8446 §5.2, RFC 5246 §6.2.3).
	record = header + plain + 2048
)

// Conn is a TLS connection. It may be used as a *tls.Conn may, but by one reader
// at a time. Code that needs a *tls.Conn takes the embedded one, which works as
// usual.
type Conn struct {
	*tls.Conn
	low *low

	mu sync.Mutex // held while a Write that gathers is under way
}

// Server is TLS over c, as tls.Server.
func Server(c net.Conn, config *tls.Config) *Conn {
	l := &low{Conn: c, r: bufio.NewReaderSize(c, serverAhead)}
	return &Conn{Conn: tls.Server(l, config), low: l}
}

// Client is TLS over c, as tls.Client.
func Client(c net.Conn, config *tls.Config) *Conn {
	l := &low{Conn: c, r: bufio.NewReaderSize(c, clientAhead)}
	return &Conn{Conn: tls.Client(l, config), low: l}
}

// NetConn returns the connection that TLS runs over.
func (c *Conn) NetConn() net.Conn { return c.low.Conn }

// Read implements net.Conn. It waits for the first bytes only.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for err == nil && n > 0 && len(b)-n >= plain && c.low.whole() {
		var m int
		m, err = c.readNow(b[n:])
		n += m
	}
	if errors.Is(err, errNothing) || n > 0 {
		err = nil // an error stays, and comes with the next Read
	}
	return n, err
}

// readNow reads what is there. A record may be one that holds nothing for us.
func (c *Conn) readNow(b []byte) (int, error) {
	c.low.now = true
	defer func() { c.low.now = false }()
	return c.Conn.Read(b)
}

// Write implements net.Conn.
func (c *Conn) Write(b []byte) (int, error) {
	if len(b) <= plain {
		return c.Conn.Write(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.Handshake(); err != nil { // its flights must not be held
		return 0, err
	}
	c.low.hold()
	n, err := c.Conn.Write(b)
	if rerr := c.low.release(); err == nil && rerr != nil {
		n, err = 0, rerr
	}
	return n, err
}

// low is the connection below TLS. It gives no bytes beyond the record that is
// being read, so that it knows what TLS has not seen.
type low struct {
	net.Conn

	// The reading half belongs to whoever reads: crypto/tls lets one in.
	r    *bufio.Reader
	left int  // bytes of the record that is being read
	now  bool // do not wait

	mu   sync.Mutex
	held bool   // guarded by mu
	out  []byte // guarded by mu; less than together and a record
	err  error  // guarded by mu; why a write of what was held failed
}

// NetConn returns the connection below, as (*tls.Conn).NetConn does.
func (l *low) NetConn() net.Conn { return l.Conn }

// nothing is returned instead of waiting. crypto/tls goes on after an error
// that is temporary.
type nothing struct{}

// Error implements error.
func (nothing) Error() string { return "nothing has arrived" }

// Timeout implements net.Error.
func (nothing) Timeout() bool { return true }

// Temporary implements net.Error.
func (nothing) Temporary() bool { return true }

var errNothing net.Error = nothing{}

// Read implements net.Conn.
func (l *low) Read(b []byte) (int, error) {
	if l.now && l.left == 0 && !l.whole() {
		return 0, errNothing
	}
	if l.left == 0 {
		head, err := l.r.Peek(header)
		if err != nil {
			// What is there of a header is for TLS to judge, and the error.
			return l.r.Read(b)
		}
		l.left = header + int(binary.BigEndian.Uint16(head[3:]))
	}
	n, err := l.r.Read(b[:min(len(b), l.left)])
	l.left -= n
	return n, err
}

// whole reports whether a whole record is there that TLS has not seen.
func (l *low) whole() bool {
	if l.left > 0 || l.r.Buffered() < header {
		return false
	}
	head, err := l.r.Peek(header)
	return err == nil && l.r.Buffered() >= header+int(binary.BigEndian.Uint16(head[3:]))
}

// Write implements net.Conn.
func (l *low) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		// TLS counts records that never left: nothing may follow.
		return 0, l.err
	}
	if !l.held {
		return l.Conn.Write(b)
	}
	l.out = append(l.out, b...)
	if len(l.out) < together {
		return len(b), nil
	}
	if err := l.flushLocked(); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (l *low) flushLocked() error {
	out := l.out
	l.out = l.out[:0]
	_, l.err = l.Conn.Write(out)
	return l.err
}

var outs = sync.Pool{New: func() any { b := make([]byte, 0, together+record); return &b }}

// hold keeps what is written from now on until release, or until it is much.
func (l *low) hold() {
	p := outs.Get().(*[]byte)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held, l.out = true, (*p)[:0]
}

// release writes what is held.
func (l *low) release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	if len(l.out) > 0 {
		err = l.flushLocked()
	}
	out := l.out[:0]
	l.held, l.out = false, nil
	outs.Put(&out)
	return err
}
