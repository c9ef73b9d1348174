package tunnel

import (
	"crypto/tls"
	"net"
	"sync"
)

// innerLink is TLS inside a websocket: its records are gathered and sent in
// few large frames.
type innerLink struct {
	*tls.Conn
	gather *gatherConn
}

func (l *innerLink) writePieces(ps []piece) error {
	l.gather.cork()
	var err error
	for _, p := range ps {
		if _, err = l.Conn.Write(p.buf[p.off:p.end]); err != nil {
			break
		}
	}
	if ferr := l.gather.uncork(); err == nil {
		err = ferr
	}
	return err
}

func (l *innerLink) tryPieces(ps []piece) (pending bool, err error) {
	l.gather.cork()
	for _, p := range ps {
		if _, err = l.Conn.Write(p.buf[p.off:p.end]); err != nil {
			break
		}
	}
	pending, ferr := l.gather.tryUncork()
	if err == nil {
		err = ferr
	}
	return pending, err
}

func (l *innerLink) flush() error { return l.gather.flush() }

func (l *innerLink) boundQueues(mode queueMode) { l.gather.boundQueues(mode) }
func (l *innerLink) unread() bool               { return l.gather.unread() }

// gatherConn stands between inner TLS and the websocket.
type gatherConn struct {
	*wsConn

	mu     sync.Mutex
	corked bool       // guarded by mu
	q      chunkQueue // gathered records; guarded by mu
}

func (g *gatherConn) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.corked {
		return g.wsConn.Write(p)
	}
	if !g.q.appendSmall(p) {
		c := newChunk(maxChunk)
		c.end += copy(c.room(), p) // a record is shorter than a chunk
		g.q.push(c)
	}
	return len(p), nil
}

func (g *gatherConn) cork() {
	g.mu.Lock()
	g.corked = true
	g.mu.Unlock()
}

func (g *gatherConn) uncork() error {
	return g.release(g.writePieces)
}

func (g *gatherConn) tryUncork() (pending bool, err error) {
	err = g.release(func(ps []piece) (err error) {
		pending, err = g.tryPieces(ps)
		return err
	})
	return pending, err
}

// release sends what was gathered.
func (g *gatherConn) release(send func([]piece) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.corked = false
	if g.q.head == nil {
		return nil
	}
	var pieces [8]piece
	ps := pieces[:0]
	for c := g.q.head; c != nil; c = c.next {
		ps = append(ps, piece{c.buf, c.off, c.end})
	}
	err := send(ps)
	g.q.drop()
	return err
}

var (
	_ net.Conn = (*wsConn)(nil)
	_ link     = (*wsConn)(nil)
	_ link     = (*innerLink)(nil)
)
