package tunnel

import (
	"crypto/tls"
	"net"
	"sync"
	"syscall"
	"time"
)

// wireBuffer is how much one read from a socket takes at most, and how much
// ciphertext one write gathers.
const wireBuffer = 128 << 10

// directRead is the length from which a read by TLS goes straight into its own
// buffer: copying 16 KiB costs more than another system call.
const directRead = 4 << 10

// What the kernel may queue, in bytes. The kernel doubles a receive queue for
// its own accounting.
const (
	unsentLimit = 128 << 10 // TCP_NOTSENT_LOWAT
	unsentMixed = 16 << 10
	shortQueue  = 256 << 10 // SO_RCVBUF
	mixedQueue  = 64 << 10
)

var wirePool = sync.Pool{New: func() any { b := make([]byte, wireBuffer); return &b }}

// corkedConn stands between TLS and a socket. TLS writes records of 16 KiB,
// each with a system call; between cork and uncork they are gathered into one.
// Short reads take what the socket has, into a buffer that is held only while
// there is something in it.
type corkedConn struct {
	net.Conn
	raw syscall.RawConn // nil if the connection has no descriptor; reads and writes need not wait

	rbuf *[]byte // pooled, nil when empty
	r    []byte  // unread part of rbuf

	mu     sync.Mutex
	corked bool    // guarded by mu
	wbuf   *[]byte // pooled, nil unless corked; guarded by mu
	w      []byte  // gathered part of wbuf; guarded by mu
}

func newCorkedConn(nc net.Conn) *corkedConn {
	c := &corkedConn{Conn: nc, raw: rawOf(nc)}
	tune(nc)
	return c
}

// rawOf returns the descriptor under nc, nil if reading through it would not
// be the same as reading nc.
func rawOf(nc net.Conn) syscall.RawConn {
	switch nc.(type) {
	case *net.TCPConn, *net.UnixConn:
	default:
		return nil
	}
	raw, err := nc.(syscall.Conn).SyscallConn()
	if err != nil || !canReadRaw {
		return nil
	}
	return raw
}

// corkOf finds the corkedConn under nc, nil if there is none.
func corkOf(nc net.Conn) *corkedConn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if g, ok := nc.(*gatedConn); ok {
		return g.corkedConn
	}
	c, _ := nc.(*corkedConn)
	return c
}

func (c *corkedConn) Read(p []byte) (int, error) {
	if len(c.r) == 0 {
		if c.raw == nil || len(p) >= directRead {
			return c.Conn.Read(p)
		}
		var n int
		var err error
		buf := (*[]byte)(nil)
		cerr := c.raw.Read(func(fd uintptr) bool {
			if buf == nil {
				buf = wirePool.Get().(*[]byte)
			}
			var again bool
			if n, again, err = readRaw(fd, *buf); again {
				wirePool.Put(buf) // hold nothing while waiting
				buf = nil
				return false
			}
			return true
		})
		if err = readError(n, err, cerr); err != nil {
			if buf != nil {
				wirePool.Put(buf)
			}
			return 0, err
		}
		c.rbuf, c.r = buf, (*buf)[:n]
	}
	n := copy(p, c.r)
	if c.r = c.r[n:]; len(c.r) == 0 && c.rbuf != nil {
		wirePool.Put(c.rbuf)
		c.rbuf, c.r = nil, nil
	}
	return n, nil
}

func (c *corkedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
		return c.Conn.Write(p)
	}
	if c.wbuf != nil && cap(c.w)-len(c.w) < len(p) {
		if err := c.flushLocked(); err != nil {
			return 0, err
		}
	}
	if len(p) > wireBuffer {
		return c.Conn.Write(p)
	}
	if c.wbuf == nil {
		c.wbuf = wirePool.Get().(*[]byte)
		c.w = (*c.wbuf)[:0]
	}
	c.w = append(c.w, p...)
	return len(p), nil
}

func (c *corkedConn) cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

func (c *corkedConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flushLocked()
}

// tryUncork is uncork without waiting. What the socket does not take stays for
// the next write or uncork.
func (c *corkedConn) tryUncork() (pending bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	if c.wbuf == nil {
		return false, nil
	}
	n, werr := 0, error(nil)
	err = c.raw.Write(func(fd uintptr) bool {
		n, werr = writeRaw(fd, c.w)
		return true
	})
	if err == nil {
		err = werr
	}
	if c.w = c.w[n:]; len(c.w) > 0 && err == nil {
		return true, nil
	}
	wirePool.Put(c.wbuf)
	c.wbuf, c.w = nil, nil
	return false, err
}

func (c *corkedConn) flushLocked() error {
	if c.wbuf == nil {
		return nil
	}
	_, err := c.Conn.Write(c.w)
	wirePool.Put(c.wbuf)
	c.wbuf, c.w = nil, nil
	return err
}

// CloseWrite is for TLS, which half-closes through it.
func (c *corkedConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// boundQueues bounds what the kernel queues. On a short path a few
// milliseconds' worth is enough for bulk, and less while somebody waits for
// short answers; else the kernel sizes it for the path's delay.
func (c *corkedConn) boundQueues(mode queueMode) {
	t, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return
	}
	recv, unsent := 0, unsentLimit
	switch {
	case mode&queueMixed != 0:
		recv, unsent = mixedQueue, unsentMixed
	case mode&queueShort != 0:
		recv = shortQueue
	}
	if raw, err := t.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			limitQueue(fd, recv)
			limitUnsent(fd, unsent)
		})
	}
}

// tune keeps few unsent bytes in the kernel, so that what is urgent need not
// queue behind what is bulky, and switches on TCP keep-alives. Failing costs
// only latency.
func tune(nc net.Conn) {
	t, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3})
	if raw, err := t.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { limitUnsent(fd, unsentLimit) })
	}
}
