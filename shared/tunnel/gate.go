package tunnel

import (
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"time"
)

// maxHelloWait is how long a TLS client's first bytes may wait for their turn.
// Who waits longer would give up before the handshake was through, and its
// share of the work would be lost: better it comes back later.
const maxHelloWait = 3 * time.Second

var errOverloaded = errors.New("too many TLS handshakes wait for their turn")

// helloGate has as many TLS handshakes begin at once as there are processors.
// Beginning is what costs; were all of a returning herd's handshakes run at
// the same time, none would end before its client gives up.
type helloGate struct{ slots chan struct{} }

func newHelloGate() *helloGate {
	return &helloGate{make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))}
}

func (g *helloGate) enter() error {
	select {
	case g.slots <- struct{}{}:
		return nil
	default:
	}
	t := time.NewTimer(maxHelloWait)
	defer t.Stop()
	select {
	case g.slots <- struct{}{}:
		return nil
	case <-t.C:
		return errOverloaded
	}
}

// gatedConn holds a slot of the gate between its first bytes and the next
// read: while the answer to a TLS client's hello is made.
type gatedConn struct {
	*corkedConn
	gate  *helloGate
	began bool        // only the reader uses it
	held  atomic.Bool // we have a slot
}

func (c *gatedConn) leave() {
	if c.held.Swap(false) {
		<-c.gate.slots
	}
}

// Read implements net.Conn.
func (c *gatedConn) Read(p []byte) (int, error) {
	switch {
	case !c.began && c.raw != nil:
		if err := awaitReadable(c.raw); err != nil {
			return 0, err
		}
		if err := c.gate.enter(); err != nil {
			return 0, err
		}
		c.began = true
		c.held.Store(true)
	case len(c.r) == 0:
		c.leave()
	}
	return c.corkedConn.Read(p)
}

// Close implements net.Conn.
func (c *gatedConn) Close() error {
	c.leave()
	return c.corkedConn.Close()
}

type listener struct {
	net.Listener
	gate *helloGate
}

// Listener wraps the TCP listener below a TLS server so that tunnels accepted
// on it write in large batches and read without holding a buffer while idle,
// and so that a herd of clients is served in turn.
func Listener(l net.Listener) net.Listener { return listener{l, newHelloGate()} }

func (l listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gatedConn{corkedConn: newCorkedConn(nc), gate: l.gate}, nil
}
