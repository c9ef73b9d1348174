package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"caponier/shared/wire"
)

// Counters are told the bytes that Relay moved; nil functions are skipped.
// They run on the goroutine that carries the whole tunnel and must not wait.
type Counters struct {
	AB func(n int) // bytes from a to b
	BA func(n int) // bytes from b to a
}

// Relay copies both ways between a and b until both directions have ended or
// ctx is done, keeping half-close, and closes both. It holds no buffer while
// a direction is idle, provided the idle end is a Stream or a TCP or Unix
// connection.
//
// An end that breaks takes the other with it: a reset of a stream becomes a
// reset of the TCP connection, and the other way round. err is nil if both
// directions ended in order.
func Relay(ctx context.Context, a, b net.Conn, c Counters) (ab, ba int64, err error) {
	r := &relay{a: a, b: b}
	stop := context.AfterFunc(ctx, func() { r.abort(context.Cause(ctx)) })
	var wg sync.WaitGroup
	wg.Go(func() { ba = r.oneWay(a, b, c.BA) })
	ab = r.oneWay(b, a, c.AB)
	wg.Wait()
	stop()
	_ = a.Close()
	_ = b.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return ab, ba, r.err
}

type relay struct {
	a, b net.Conn
	mu   sync.Mutex
	err  error // why it was aborted; guarded by mu
}

// abort ends both ends at once, once.
func (r *relay) abort(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.err = why
	abortConn(r.a, why)
	abortConn(r.b, why)
}

func abortConn(nc net.Conn, why error) {
	if st, ok := nc.(Stream); ok {
		_ = st.Reset(wireError(why))
		return
	}
	if t, ok := nc.(*net.TCPConn); ok {
		_ = t.SetLinger(0) // a reset, not an end
	}
	_ = nc.Close()
}

// wireError is what the other side of a stream is told about err.
func wireError(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return wire.Errorf(wire.CodeTerminated, "%s", wire.CodeTerminated.Text())
	}
	return wire.Errorf(wire.CodeTunnelLost, "the connection broke")
}

// oneWay copies src to dst and passes the end on.
func (r *relay) oneWay(dst, src net.Conn, count func(int)) int64 {
	if count == nil {
		count = func(int) {}
	}
	w, _ := dst.(stopper)
	if w != nil {
		// Who reads no more must not leave us waiting for src.
		w.onStop(func() { _ = src.SetReadDeadline(time.Unix(1, 0)) })
	}
	n, rerr, werr := copyOneWay(dst, src, count)
	if w != nil {
		w.onStop(nil)
	}
	switch {
	case werr != nil:
		// dst takes no more. Its other direction may still have something to
		// say; if it is broken, reading from it says so.
		closeRead(src)
	case rerr == nil:
		if h, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		} else {
			_ = dst.Close()
		}
	case w != nil && errors.Is(rerr, os.ErrDeadlineExceeded) && w.dead():
		closeRead(src)
	default:
		r.abort(rerr)
	}
	return n
}

// stopper is a stream that knows when its reader is gone.
type stopper interface {
	onStop(func())
	dead() bool
}

func closeRead(nc net.Conn) {
	if h, ok := nc.(interface{ CloseRead() error }); ok {
		_ = h.CloseRead()
	}
}

// copyOneWay tells read errors from write errors; io.EOF is none.
func copyOneWay(dst, src net.Conn, count func(int)) (n int64, rerr, werr error) {
	if st, ok := src.(*stream); ok {
		var k *sink
		if raw := rawOf(dst); raw != nil {
			k = &sink{raw: raw, count: count}
		}
		for {
			c, err := st.readChunk(k)
			if err != nil {
				return n + k.taken(), noEOF(err), nil
			}
			m, err := dst.Write(c.bytes())
			c.free()
			n += int64(m)
			count(m)
			if err != nil {
				return n + k.taken(), nil, err
			}
		}
	}
	raw := rawOf(src)
	st, toStream := dst.(*stream)
	for {
		if toStream {
			// Not before there is room: what cannot be passed on stays with
			// the sender.
			if err := st.awaitRoomLocking(); err != nil {
				return n, nil, err
			}
			st.s.mu.Unlock()
		}
		c, err := readInto(src, raw)
		if c != nil {
			m := c.len()
			if toStream {
				err2 := st.writeChunk(c.fit())
				werr = err2
			} else {
				m, werr = dst.Write(c.bytes())
				c.free()
			}
			n += int64(m)
			count(m)
			if werr != nil {
				return n, nil, werr
			}
		}
		if err != nil {
			return n, noEOF(err), nil
		}
	}
}

// sink is a socket into which the session's reader writes what a stream
// receives: no other goroutine has to wake up, and the bytes are still in the
// processor's cache. It never waits; what the socket does not take at once is
// queued, and the relay's own goroutine goes on with it.
type sink struct {
	raw   syscall.RawConn
	count func(int)
	n     int64 // guarded by the stream's rmu
}

// take writes what the socket takes of p and returns how much that was. An
// error shows when the relay writes the rest.
func (k *sink) take(p []byte) (n int) {
	_ = k.raw.Write(func(fd uintptr) bool {
		n, _ = writeRaw(fd, p)
		return true
	})
	k.n += int64(n)
	if n > 0 {
		k.count(n)
	}
	return n
}

// taken is how many bytes went this way; the stream's reading must be over.
func (k *sink) taken() int64 {
	if k == nil {
		return 0
	}
	return k.n
}

// readInto reads what src has into a chunk, which it takes only when there is
// something if raw is src's descriptor.
func readInto(src net.Conn, raw syscall.RawConn) (*chunk, error) {
	var c *chunk
	var n int
	var err error
	if raw == nil {
		c = newChunk(mediumChunk - headroom)
		n, err = src.Read(c.room())
	} else {
		cerr := raw.Read(func(fd uintptr) bool {
			if c == nil {
				c = newChunk(maxChunk)
			}
			var again bool
			if n, again, err = readRaw(fd, c.room()); again {
				c.free()
				c = nil
				return false
			}
			return true
		})
		err = readError(n, err, cerr)
	}
	if n > 0 {
		c.end += n
		return c, err
	}
	if c != nil {
		c.free()
	}
	return nil, err
}

func noEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// CloseRead tells the peer to stop sending; what arrives is discarded.
func (st *stream) CloseRead() error {
	st.s.sendStop(st)
	st.ended(net.ErrClosed, true)
	return nil
}

func (st *stream) dead() bool {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	return st.werr != nil
}

func (s *muxSession) sendStop(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[st.id] == st && !st.finRead {
		s.controlLocked(wire.FrameStop, st.id, nil)
	}
}
