package tunnel

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"caponier/shared/wire"
)

// link carries the frames of a session; wsConn and innerLink are links.
type link interface {
	io.Reader
	writePieces([]piece) error
	Close() error
}

// eagerLink is a link that can send without waiting. What the kernel does not
// take at once stays in the link until flush.
type eagerLink interface {
	link
	tryPieces([]piece) (pending bool, err error)
	flush() error
}

const (
	// maxControl bounds the control frames waiting to be sent, in bytes. Only
	// a peer that provokes answers without reading them gets there.
	maxControl = 1 << 20
	// maxPings bounds the pings of ours under way.
	maxPings = 64
	// goodbye is how long Close tries to tell the peer why.
	goodbye = 500 * time.Millisecond
)

// lateTick is how late the keep-alive may run before we count ourselves, not
// the peer, as slow.
const lateTick = 100 * time.Millisecond

// errSilent ends a session whose peer said nothing for DeadAfter.
var errSilent = fmt.Errorf("the peer went silent: %w", net.ErrClosed)

// muxSession is a Session over a link: our own multiplexer. One goroutine
// reads, one writes; neither waits for a stream's user. Who has something to
// send and finds nobody writing and the link free sends it itself (see
// sendLocking), which spares waking the writer.
type muxSession struct {
	link    link
	eager   eagerLink // link, if it can send without waiting; else nil
	br      *bufio.Reader
	dialer  bool // we dialled: our streams have odd numbers
	lim     Limits
	info    Info
	workers sync.WaitGroup
	done    chan struct{} // closed by fail
	flushed chan struct{} // closed by the writer when it is gone
	wake    chan struct{} // capacity 1: the writer has something to do

	heard    atomic.Int64 // when the peer was last heard, ns since Started
	rtt      atomic.Int64 // last ping, ns
	minRTT   atomic.Int64 // slowly forgotten minimum, ns
	in, out  atomic.Uint64
	total    atomic.Uint64
	buffered atomic.Int64 // received and not read, over all streams
	smallAt  atomic.Int64 // when a short interactive frame was last seen, ns since Started
	bulkAt   atomic.Int64 // when a long frame was last seen, ns since Started
	queueing atomic.Int32 // what the kernel's queues are set for, a queueMode
	grown    atomic.Int64 // what windows grew beyond the initial one, over all streams

	unyielded int // bytes of long frames read since the reader last yielded; its own

	mu       sync.Mutex // guards everything below and the sending half of all streams
	streams  map[uint32]*stream
	nextID   uint32
	ours     int // streams we opened
	theirs   int
	control  []byte      // encoded control frames to send
	hot      streamQueue // interactive and sparse streams with something to send
	bulk     streamQueue
	pings    map[uint64]chan struct{}
	pingID   uint64
	pingSent int64 // when the keep-alive ping under way left, ns since Started; 0 if none
	timer    *time.Timer
	tickAt   int64 // when tick last ran, ns since Started
	tickDue  int64 // when it should run next
	starved  int64 // how late ticks came since the peer was heard, ns
	writing  bool  // somebody is between taking a batch and having sent it
	pending  bool  // the link holds what the kernel did not take
	broken   error // why sending failed, for the writer to report
	goaway   bool  // the writer ends after what is queued
	err      error

	backlogMu sync.Mutex
	backlog   []*stream
	arrived   chan struct{} // capacity 1: the backlog has something
}

func newMuxSession(l link, dialer bool, info Info, lim Limits) *muxSession {
	if info.Started.IsZero() {
		info.Started = time.Now()
	}
	s := &muxSession{
		link: l, br: bufio.NewReaderSize(l, 4<<10), dialer: dialer,
		lim: lim.withDefaults(), info: info,
		done: make(chan struct{}), flushed: make(chan struct{}),
		wake: make(chan struct{}, 1), arrived: make(chan struct{}, 1),
		streams: make(map[uint32]*stream), nextID: 2,
	}
	if dialer {
		s.nextID = 1
	}
	if e, ok := l.(eagerLink); ok && canWriteRaw(l) {
		s.eager = e
	}
	s.heard.Store(s.now())
	s.workers.Go(s.readLoop)
	s.workers.Go(s.writeLoop)
	s.mu.Lock()
	s.keepAliveLocked()
	s.tickDue = s.now() + int64(s.lim.PingEvery)
	s.timer = time.AfterFunc(s.lim.PingEvery, s.tick)
	s.mu.Unlock()
	return s
}

// now is a monotonic clock: nanoseconds since the session started, never 0.
func (s *muxSession) now() int64 { return int64(time.Since(s.info.Started)) | 1 }

func (s *muxSession) Done() <-chan struct{} { return s.done }
func (s *muxSession) Info() Info            { return s.info }

func (s *muxSession) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *muxSession) Stats() Stats {
	s.mu.Lock()
	n := len(s.streams)
	s.mu.Unlock()
	return Stats{
		BytesIn: s.in.Load(), BytesOut: s.out.Load(),
		Streams: n, StreamsTotal: s.total.Load(),
		RTT: time.Duration(s.rtt.Load()),
	}
}

func (s *muxSession) Open(ctx context.Context, p wire.Preface) (Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	preface, err := wire.AppendPreface(make([]byte, 0, 128), p)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, fmt.Errorf("open stream: %w", s.err)
	}
	if s.ours >= s.lim.MaxOwn {
		return nil, wire.Errorf(wire.CodeLimit, "the tunnel carries its %d streams", s.lim.MaxOwn)
	}
	for s.streams[s.nextID] != nil || s.nextID < 2 && !s.dialer {
		s.nextID += 2 // numbers wrap around after two thousand million streams
	}
	st := newStream(s, s.nextID, p, true)
	s.nextID += 2
	s.streams[st.id] = st
	s.ours++
	s.total.Add(1)
	s.controlLocked(wire.FrameOpen, st.id, preface)
	return st, nil
}

func (s *muxSession) Accept(ctx context.Context) (Stream, error) {
	for {
		s.backlogMu.Lock()
		if len(s.backlog) > 0 {
			st := s.backlog[0]
			s.backlog[0] = nil
			s.backlog = s.backlog[1:]
			if len(s.backlog) == 0 {
				s.backlog = nil
			} else {
				signal(s.arrived)
			}
			s.backlogMu.Unlock()
			return st, nil
		}
		s.backlogMu.Unlock()
		select {
		case <-s.arrived:
		case <-s.done:
			return nil, s.Err()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *muxSession) Ping(ctx context.Context) (time.Duration, error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return 0, s.err
	}
	if len(s.pings) >= maxPings {
		s.mu.Unlock()
		return 0, wire.Errorf(wire.CodeLimit, "too many pings under way")
	}
	if s.pings == nil {
		s.pings = make(map[uint64]chan struct{})
	}
	s.pingID++
	id, answered := s.pingID, make(chan struct{})
	s.pings[id] = answered
	begin := time.Now()
	s.controlLocked(wire.FramePing, 0, binary.BigEndian.AppendUint64(nil, id))
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.pings, id)
		s.mu.Unlock()
	}()
	select {
	case <-answered:
		d := time.Since(begin)
		s.measured(d)
		return d, nil
	case <-s.done:
		return 0, s.Err()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// measured takes a round trip into account.
func (s *muxSession) measured(d time.Duration) {
	s.rtt.Store(int64(d))
	low := s.minRTT.Load()
	if low == 0 || int64(d) < low {
		low = int64(d)
	} else {
		low += (int64(d) - low) / 32
	}
	s.minRTT.Store(low)
	s.tuneQueues(s.now())
}

func (s *muxSession) Close(reason *wire.Error) error {
	s.sayGoodbye(reason)
	s.fail(net.ErrClosed)
	s.workers.Wait()
	return nil
}

// sayGoodbye sends reason as the last frame and waits a moment for it to go.
func (s *muxSession) sayGoodbye(reason *wire.Error) {
	s.mu.Lock()
	if s.err == nil && !s.goaway {
		if reason != nil {
			s.controlLocked(wire.FrameGoAway, 0, wire.AppendError(nil, reason))
		}
		s.goaway = true
		s.wakeLocked()
	}
	s.mu.Unlock()
	t := time.NewTimer(goodbye)
	defer t.Stop()
	select {
	case <-s.flushed:
	case <-t.C:
	}
}

// fail ends the session once; the first reason stays.
func (s *muxSession) fail(why error) {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	if _, told := errors.AsType[*wire.Error](why); !told && !errors.Is(why, net.ErrClosed) {
		why = &lostError{why}
	}
	s.err = why
	if s.timer != nil {
		s.timer.Stop()
	}
	streams := make([]*stream, 0, len(s.streams))
	for _, st := range s.streams {
		st.dropOutLocked(&streamLostError{why})
		streams = append(streams, st)
	}
	clear(s.streams)
	s.hot, s.bulk, s.control = streamQueue{}, streamQueue{}, nil
	close(s.done)
	// Closing may wait a second for a last word: not with a caller that has
	// something else to do. Whoever finds the session ended waits for it (Close):
	// it is counted before anybody can.
	s.workers.Go(func() { _ = s.link.Close() })
	s.mu.Unlock()
	for _, st := range streams {
		st.ended(&streamLostError{why}, false)
	}
}

// tick pings a silent peer and ends the session of a dead one.
func (s *muxSession) tick() {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return
	}
	now, heard := s.now(), s.heard.Load()
	if heard > s.tickAt {
		s.starved = 0
	}
	// A tick that comes late says that we had no time to read either.
	if late := now - s.tickDue; late > int64(lateTick) {
		s.starved += late
	}
	s.tickAt = now
	silent := time.Duration(now - heard - s.starved)
	if silent >= s.lim.DeadAfter && !s.unread() {
		s.mu.Unlock()
		s.fail(errSilent)
		return
	}
	silent = min(silent, s.lim.DeadAfter-lateTick)
	// The dialling end pings always, which also measures; the other only when
	// those pings fail to come.
	if s.dialer || silent >= s.lim.PingEvery*3/2 || s.minRTT.Load() == 0 {
		s.keepAliveLocked()
	}
	next := min(s.lim.PingEvery, s.lim.DeadAfter-silent)
	s.tickDue = now + int64(next)
	s.timer.Reset(next)
	s.mu.Unlock()
}

// unread reports whether the kernel holds something of the peer that we have
// not come to read yet.
func (s *muxSession) unread() bool {
	l, ok := s.link.(interface{ unread() bool })
	return ok && l.unread()
}

// keepAliveLocked sends a ping with token 0.
func (s *muxSession) keepAliveLocked() {
	if s.pingSent == 0 {
		s.pingSent = s.now()
		s.controlLocked(wire.FramePing, 0, make([]byte, 8))
	}
}

// queueControlLocked queues a control frame.
func (s *muxSession) queueControlLocked(t wire.FrameType, id uint32, payload []byte) {
	if s.err == nil && !s.goaway {
		s.control = wire.AppendFrame(s.control, t, id, payload)
	}
}

// controlLocked queues a control frame for the writer.
func (s *muxSession) controlLocked(t wire.FrameType, id uint32, payload []byte) {
	s.queueControlLocked(t, id, payload)
	s.wakeLocked()
}

// wakeLocked has the writer look for work, unless somebody is at it who will.
func (s *muxSession) wakeLocked() {
	if !s.writing {
		signal(s.wake)
	}
}

func (s *muxSession) sendControl(t wire.FrameType, id uint32, payload []byte) {
	s.mu.Lock()
	s.controlLocked(t, id, payload)
	s.mu.Unlock()
}

// forgetLocked removes a stream that both ends are through with.
func (s *muxSession) forgetLocked(st *stream) {
	if s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	if st.opener {
		s.ours--
	} else {
		s.theirs--
	}
	if st.linger != nil {
		st.linger.Stop()
	}
}

// lostError is why a session ended when nobody said so: the connection broke.
type lostError struct{ cause error }

func (e *lostError) Error() string   { return "tunnel lost: " + e.cause.Error() }
func (e *lostError) Unwrap() []error { return []error{net.ErrClosed, e.cause} }

// streamLostError is what the streams of an ended session return.
type streamLostError struct{ cause error }

func (e *streamLostError) Error() string { return e.cause.Error() }
func (e *streamLostError) Unwrap() []error {
	if _, ok := errors.AsType[*wire.Error](e.cause); ok {
		return []error{e.cause, net.ErrClosed}
	}
	return []error{wire.Errorf(wire.CodeTunnelLost, "%s", wire.CodeTunnelLost.Text()), e.cause}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
