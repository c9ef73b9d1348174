package tunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"caponier/shared/wire"
)

const (
	// sendLimit is how much a stream queues for sending before Write waits,
	// until half of it has gone.
	sendLimit = 256 << 10
	// creditParts is in how many parts the credit of a window is given on a
	// long path.
	creditParts = 8
	// lingerFor is how long a closed stream waits for the peer to take what
	// was written before it is reset.
	lingerFor = 15 * time.Second
)

// stream is a Stream of a muxSession. Its sending half is guarded by the
// session's mu, its receiving half by rmu; they are never held together.
type stream struct {
	s       *muxSession
	id      uint32
	preface wire.Preface
	opener  bool

	// Sending half, guarded by s.mu.
	outq       chunkQueue
	credit     int64
	allowance  int // what may still be sent as a hot stream
	outTalk    talk
	earnedAt   int64 // when allowance was last raised, ns since the session started
	listed     bool
	nextListed *stream
	confirmed  bool
	finQueued  bool
	finSent    bool
	finRead    bool  // the peer's fin or reset arrived
	closed     bool  // Close was called
	werr       error // what Write returns
	linger     *time.Timer
	stopHook   func() // called once nothing written can arrive any more

	wready    chan struct{} // capacity 1: Write may go on
	wdeadline deadline

	rmu      sync.Mutex // guards the receiving half below
	inq      chunkQueue
	allowed  int64 // what the peer may still send
	window   int64
	consumed int64 // read since the last credit
	// sinceGrown is what was read and credited since grownAt (ns since the
	// session started), when the window was last considered.
	sinceGrown, grownAt int64
	eof                 bool
	discard             bool
	rerr                error // what Read returns once inq is empty
	grownBy             atomic.Int64
	rready              chan struct{} // capacity 1: Read may go on
	rdeadline           deadline
	sink                *sink // while a relay waits for data: where the session's reader may put it

	inTalk talk // the session's reader's own

	acceptOnce sync.Once
	accepted   chan struct{} // closed by the acceptor's verdict
}

func newStream(s *muxSession, id uint32, p wire.Preface, opener bool) *stream {
	st := &stream{
		s: s, id: id, preface: p, opener: opener,
		credit: wire.InitialWindow, allowed: wire.InitialWindow, window: wire.InitialWindow,
		grownAt: s.now(), allowance: quantum,
		wready: make(chan struct{}, 1), rready: make(chan struct{}, 1),
	}
	if opener {
		st.accepted = make(chan struct{})
	}
	return st
}

func (st *stream) Preface() wire.Preface { return st.preface }

// ---- sending

func (st *stream) sendableLocked() bool {
	if st.outq.bytes > 0 {
		return st.credit > 0
	}
	return st.finQueued && !st.finSent
}

// Write queues p; it waits while the queue is full.
func (st *stream) Write(p []byte) (int, error) {
	sent := 0
	for {
		b := p[sent:min(len(p), sent+maxChunk)]
		var c *chunk
		if len(b) > copyBelow {
			c = newChunk(len(b)) // copy outside the session's lock
			c.end += copy(c.room(), b)
		}
		if err := st.awaitRoomLocking(); err != nil {
			if c != nil {
				c.free()
			}
			return sent, err
		}
		if c != nil {
			st.outq.push(c)
		} else if len(b) > 0 && !st.outq.appendSmall(b) {
			c = newChunk(len(b))
			c.end += copy(c.room(), b)
			st.outq.push(c)
		}
		st.queuedLocking()
		if sent += len(b); sent == len(p) {
			return sent, nil
		}
	}
}

// writeChunk queues c and takes it over.
func (st *stream) writeChunk(c *chunk) error {
	if err := st.awaitRoomLocking(); err != nil {
		c.free()
		return err
	}
	st.outq.push(c)
	st.queuedLocking()
	return nil
}

// queuedLocking is called with s.mu held and returns without.
func (st *stream) queuedLocking() {
	st.confirmed = true
	st.s.scheduleLocked(st)
	if st.roomLocked() {
		signal(st.wready) // for another writer
	}
	st.s.sendLocking()
}

func (st *stream) roomLocked() bool {
	return st.outq.bytes < sendLimit
}

// awaitRoomLocking waits until something may be queued and returns with s.mu
// held, or returns an error without.
func (st *stream) awaitRoomLocking() error {
	for {
		expired := st.wdeadline.wait()
		select {
		case <-expired:
			return os.ErrDeadlineExceeded
		default:
		}
		st.s.mu.Lock()
		if st.werr != nil {
			defer st.s.mu.Unlock()
			return st.werr
		}
		if st.roomLocked() {
			return nil
		}
		st.s.mu.Unlock()
		select {
		case <-st.wready:
		case <-expired:
		}
	}
}

// credited adds the peer's credit.
func (st *stream) credited(n int64) error {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	if st.credit += n; st.credit > wire.MaxWindow {
		return fmt.Errorf("%w: credit of %d bytes", wire.ErrFrame, st.credit)
	}
	st.s.scheduleLocked(st)
	st.s.wakeLocked()
	return nil
}

// dropOutLocked ends the sending half: nothing queued is sent any more.
func (st *stream) dropOutLocked(why error) {
	st.outq.drop()
	if st.werr == nil {
		st.werr = why
	}
	signal(st.wready)
	if st.stopHook != nil {
		go st.stopHook()
		st.stopHook = nil
	}
}

// stopped handles the peer's word that it reads no more.
func (st *stream) stopped() {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.dropOutLocked(syscall.EPIPE)
	st.finQueued = true
	st.s.scheduleLocked(st)
	st.s.wakeLocked()
}

// onStop has f called (once, on its own goroutine) when nothing written can
// arrive any more; nil takes it back.
func (st *stream) onStop(f func()) {
	st.s.mu.Lock()
	defer st.s.mu.Unlock()
	st.stopHook = f
	if f != nil && st.werr != nil && !st.closed {
		st.stopHook = nil
		go f()
	}
}

// CloseWrite ends our direction after what was written.
func (st *stream) CloseWrite() error {
	st.s.mu.Lock()
	if st.finQueued || st.werr != nil {
		defer st.s.mu.Unlock()
		if st.finQueued {
			return nil
		}
		return st.werr
	}
	st.finQueued = true
	st.werr = net.ErrClosed
	st.confirmed = true
	st.s.scheduleLocked(st)
	signal(st.wready)
	st.s.sendLocking()
	return nil
}

// Close ends both directions: what was written is still delivered, what
// arrives is discarded.
func (st *stream) Close() error {
	st.s.mu.Lock()
	if st.closed {
		st.s.mu.Unlock()
		return nil
	}
	st.closed = true
	if st.s.streams[st.id] == st {
		if !st.finRead {
			st.s.controlLocked(wire.FrameStop, st.id, nil)
		}
		st.finQueued = true
		if st.outq.bytes > 0 {
			st.linger = time.AfterFunc(lingerFor, func() {
				_ = st.Reset(wire.Errorf(wire.CodeTimeout, "the reader took too long"))
			})
		}
	}
	if st.werr == nil {
		st.werr = net.ErrClosed
	}
	st.stopHook = nil
	st.s.scheduleLocked(st)
	signal(st.wready)
	st.s.sendLocking()
	st.ended(net.ErrClosed, true)
	return nil
}

// Reset aborts both directions and tells the peer why.
func (st *stream) Reset(why *wire.Error) error {
	if why == nil {
		why = wire.Errorf(wire.CodeInternal, "%s", wire.CodeInternal.Text())
	}
	st.s.mu.Lock()
	if st.s.streams[st.id] == st {
		st.dropOutLocked(net.ErrClosed)
		st.finSent = true
		st.s.controlLocked(wire.FrameReset, st.id, wire.AppendError(nil, why))
		st.s.forgetLocked(st)
	}
	st.s.mu.Unlock()
	st.ended(net.ErrClosed, true)
	return nil
}

// Refuse tells the opener why not.
func (st *stream) Refuse(why *wire.Error) error { return st.Reset(why) }

// Confirm tells the opener that its destination is connected.
func (st *stream) Confirm() error {
	st.s.mu.Lock()
	if st.confirmed || st.opener || st.werr != nil {
		defer st.s.mu.Unlock()
		if st.confirmed || st.opener {
			return nil
		}
		return st.werr
	}
	st.confirmed = true
	st.s.queueControlLocked(wire.FrameAccept, st.id, nil)
	st.s.sendLocking()
	return nil
}

// Accepted waits for the acceptor's verdict.
func (st *stream) Accepted(ctx context.Context) error {
	if !st.opener {
		return nil
	}
	select {
	case <-st.accepted:
	case <-ctx.Done():
		return ctx.Err()
	}
	st.rmu.Lock()
	defer st.rmu.Unlock()
	if st.rerr != nil && st.inq.bytes == 0 {
		return st.rerr
	}
	return nil
}

// ---- receiving

func (st *stream) accept() {
	if st.opener {
		st.acceptOnce.Do(func() { close(st.accepted) })
	}
}

// received takes in data: b, which is copied, or c, which is taken over. woke
// reports whether somebody else has to run for it to get on.
func (st *stream) received(b []byte, c *chunk) (woke bool, err error) {
	n := len(b)
	if c != nil {
		n = c.len()
	}
	st.rmu.Lock()
	if st.allowed -= int64(n); st.allowed < 0 || st.eof {
		st.rmu.Unlock()
		if c != nil {
			c.free()
		}
		return false, fmt.Errorf("%w: data beyond credit or end", wire.ErrFrame)
	}
	if st.discard {
		st.rmu.Unlock()
		if c != nil {
			c.free()
		}
		return false, nil
	}
	if st.sink != nil {
		data := b
		if c != nil {
			data = c.bytes()
		}
		m := st.sink.take(data)
		grant := st.countLocked(m)
		if m == n {
			st.rmu.Unlock()
			if c != nil {
				c.free()
			}
			st.accept()
			st.grant(grant)
			return false, nil
		}
		defer st.grant(grant)
		// What comes next waits behind the rest, even if the socket has room
		// again before the relay has run.
		st.sink = nil
		if n -= m; c != nil {
			c.off += m
		}
		b = data[m:]
	}
	switch {
	case c != nil:
		st.inq.push(c)
	case !st.inq.appendSmall(b):
		c = newChunk(len(b))
		c.end += copy(c.room(), b)
		st.inq.push(c)
	}
	total := st.s.buffered.Add(int64(n))
	signal(st.rready)
	st.rmu.Unlock()
	st.accept()
	if total > int64(st.s.lim.MaxBuffered) {
		why := wire.Errorf(wire.CodeLimit, "too much data waits to be read")
		_ = st.Reset(why)
		st.rmu.Lock()
		st.rerr = why
		st.rmu.Unlock()
	}
	return true, nil
}

// finished handles the peer's fin.
func (st *stream) finished() {
	st.rmu.Lock()
	st.eof = true
	signal(st.rready)
	st.rmu.Unlock()
	st.accept()
	st.s.mu.Lock()
	st.finRead = true
	if st.finSent {
		st.s.forgetLocked(st)
	}
	st.s.mu.Unlock()
}

func (st *stream) resetByPeer(why *wire.Error) {
	st.s.mu.Lock()
	st.dropOutLocked(why)
	st.finSent, st.finRead = true, true
	st.s.forgetLocked(st)
	st.s.mu.Unlock()
	st.ended(why, true)
}

// ended makes reads fail with why, at once if discard, else after what has arrived.
func (st *stream) ended(why error, discard bool) {
	st.rmu.Lock()
	if discard {
		st.s.buffered.Add(-int64(st.inq.drop()))
		st.discard = true
	}
	if st.rerr == nil && (discard || !st.eof) {
		st.rerr = why
	}
	signal(st.rready)
	st.rmu.Unlock()
	st.s.grown.Add(-st.grownBy.Swap(0))
	st.accept()
}

// Read implements net.Conn.
func (st *stream) Read(p []byte) (int, error) {
	if err := st.awaitDataLocking(nil); err != nil {
		return 0, err
	}
	n := st.inq.read(p)
	if st.inq.bytes > 0 || st.eof {
		signal(st.rready) // for another reader
	}
	grant := st.consumeLocked(n)
	st.rmu.Unlock()
	st.grant(grant)
	return n, nil
}

// readChunk returns the next received bytes without copying them. While it
// waits, what arrives goes to k, if that is not nil and takes it.
func (st *stream) readChunk(k *sink) (*chunk, error) {
	if err := st.awaitDataLocking(k); err != nil {
		return nil, err
	}
	c := st.inq.pop()
	if st.inq.bytes > 0 || st.eof {
		signal(st.rready)
	}
	grant := st.consumeLocked(c.len())
	st.rmu.Unlock()
	st.grant(grant)
	return c, nil
}

// awaitDataLocking waits for data and returns with rmu held, or returns the
// end's error without. What k takes meanwhile is not waited for.
func (st *stream) awaitDataLocking(k *sink) error {
	for {
		expired := st.rdeadline.wait()
		st.rmu.Lock()
		st.sink = nil
		select {
		case <-expired:
			st.rmu.Unlock()
			return os.ErrDeadlineExceeded
		default:
		}
		if st.inq.bytes > 0 {
			return nil
		}
		var err error
		switch {
		case st.rerr != nil:
			err = st.rerr
		case st.eof:
			err = io.EOF
		default:
			st.sink = k
		}
		st.rmu.Unlock()
		if err != nil {
			signal(st.rready)
			return err
		}
		select {
		case <-st.rready:
		case <-expired:
		}
	}
}

// consumeLocked accounts for n bytes read and returns the credit to give.
// On a long path credit comes in small parts of the window, so that the sender
// can have nearly all of it under way; on a short one that is not worth the
// frames. The window doubles when half of it is read in
// less than two round trips: a window that limits is read through once in one.
func (st *stream) consumeLocked(n int) int64 {
	st.s.buffered.Add(-int64(n))
	return st.countLocked(n)
}

// countLocked is consumeLocked for bytes that were never buffered.
func (st *stream) countLocked(n int) int64 {
	st.consumed += int64(n)
	part := st.window / 2
	if st.s.minRTT.Load() > int64(shortPath) {
		part = st.window / creditParts
	}
	if st.eof || st.discard || st.consumed < part {
		return 0
	}
	grant := st.consumed
	st.consumed = 0
	st.allowed += grant
	if st.sinceGrown += grant; st.sinceGrown < st.window/2 {
		return grant
	}
	st.sinceGrown = 0
	now := st.s.now()
	if now-st.grownAt < 2*st.s.minRTT.Load() && 2*st.window <= int64(st.s.lim.MaxWindow) {
		if st.s.grown.Add(st.window) <= int64(st.s.lim.MaxBuffered)*3/4 {
			grant += st.window
			st.allowed += st.window
			st.grownBy.Add(st.window)
			st.window *= 2
		} else {
			st.s.grown.Add(-st.window)
		}
	}
	st.grownAt = now
	return grant
}

func (st *stream) grant(n int64) {
	if n > 0 {
		st.s.sendControl(wire.FrameWindow, st.id, []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
	}
}

// ---- the rest of net.Conn

func (st *stream) SetReadDeadline(t time.Time) error {
	st.rdeadline.set(t)
	signal(st.rready)
	return nil
}

func (st *stream) SetWriteDeadline(t time.Time) error {
	st.wdeadline.set(t)
	signal(st.wready)
	return nil
}

func (st *stream) SetDeadline(t time.Time) error {
	_ = st.SetReadDeadline(t)
	return st.SetWriteDeadline(t)
}

func (st *stream) LocalAddr() net.Addr  { return streamAddr("local") }
func (st *stream) RemoteAddr() net.Addr { return streamAddr(st.s.info.Remote.String()) }

// streamAddr is the address of a stream's end: that of the tunnel.
type streamAddr string

func (a streamAddr) Network() string { return "caponier" }
func (a streamAddr) String() string  { return string(a) }
