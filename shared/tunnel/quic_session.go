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

	"github.com/quic-go/quic-go"

	"caponier/shared/wire"
)

// prefaceWithin is how long an opener may take to send its preface.
const prefaceWithin = 10 * time.Second

// quicSession is a Session over a QUIC connection. Streams are QUIC's own: the
// opener's first bytes are the length of the preface (two bytes) and the
// preface, the acceptor's first byte is its verdict. The first stream of the
// dialling end carries pings and the texts of resets, as frames.
type quicSession struct {
	conn    *quic.Conn
	control *quic.Stream
	lim     Limits
	info    Info
	below   func() // closes the socket, nil if it is shared
	workers sync.WaitGroup
	done    chan struct{}

	in, out, total atomic.Uint64
	ours, theirs   atomic.Int64
	rtt            atomic.Int64

	mu     sync.Mutex
	pings  map[uint64]chan struct{} // guarded by mu
	pingID uint64                   // guarded by mu
	err    error                    // guarded by mu

	resets resetReasons

	backlog chan *quicStream
}

func newQUICSession(conn *quic.Conn, control *quic.Stream, dialer bool, lim Limits, below func()) *quicSession {
	s := &quicSession{
		conn: conn, control: control, lim: lim.withDefaults(), below: below,
		info: Info{Transport: QUIC, Binding: BoundTLS, Remote: addrPort(conn.RemoteAddr()), Started: time.Now()},
		done: make(chan struct{}), pings: make(map[uint64]chan struct{}),
	}
	s.backlog = make(chan *quicStream, s.lim.Backlog)
	if certs := conn.ConnectionState().TLS.PeerCertificates; len(certs) > 0 {
		s.info.Peer = certs[0]
	}
	s.workers.Go(s.readControl)
	s.workers.Go(s.acceptStreams)
	s.workers.Go(func() {
		<-conn.Context().Done()
		s.mu.Lock()
		s.err = quicReason(context.Cause(conn.Context()))
		s.mu.Unlock()
		close(s.done)
		if s.below != nil {
			s.below()
		}
	})
	return s
}

func (s *quicSession) Done() <-chan struct{} { return s.done }
func (s *quicSession) Info() Info            { return s.info }

func (s *quicSession) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *quicSession) Stats() Stats {
	rtt := time.Duration(s.rtt.Load())
	if rtt == 0 {
		rtt = s.conn.ConnectionStats().SmoothedRTT
	}
	return Stats{
		BytesIn: s.in.Load(), BytesOut: s.out.Load(),
		Streams: int(s.ours.Load() + s.theirs.Load()), StreamsTotal: s.total.Load(),
		RTT: rtt,
	}
}

func (s *quicSession) Open(ctx context.Context, p wire.Preface) (Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := wire.AppendPreface(make([]byte, 2, 128), p)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	binary.BigEndian.PutUint16(b, uint16(len(b)-2))
	limit := wire.Errorf(wire.CodeLimit, "the tunnel carries its %d streams", s.lim.MaxOwn)
	if s.ours.Add(1) > int64(s.lim.MaxOwn) {
		s.ours.Add(-1)
		return nil, limit
	}
	qs, err := s.conn.OpenStream()
	if err != nil {
		s.ours.Add(-1)
		if _, ok := errors.AsType[*quic.StreamLimitReachedError](err); ok {
			return nil, limit
		}
		return nil, fmt.Errorf("open stream: %w", quicReason(err))
	}
	st := newQUICStream(s, qs, p, true)
	if _, err := qs.Write(b); err != nil { // queued; the first data joins it
		_ = st.Close()
		return nil, fmt.Errorf("open stream: %w", quicReason(err))
	}
	s.total.Add(1)
	go st.awaitVerdict() // ends with the stream, at the latest with the session
	return st, nil
}

func (s *quicSession) Accept(ctx context.Context) (Stream, error) {
	select {
	case st := <-s.backlog:
		return st, nil
	case <-s.done:
		return nil, s.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// acceptStreams reads the preface of each stream and queues it.
func (s *quicSession) acceptStreams() {
	for {
		qs, err := s.conn.AcceptStream(context.Background()) // ends with the connection
		if err != nil {
			return
		}
		if s.theirs.Add(1) > int64(s.lim.MaxStreams) {
			s.refuse(qs, wire.Errorf(wire.CodeLimit, "the tunnel carries its %d streams", s.lim.MaxStreams))
			continue
		}
		s.workers.Go(func() { s.admit(qs) })
	}
}

func (s *quicSession) admit(qs *quic.Stream) {
	p, err := readPreface(qs)
	if err != nil {
		s.refuse(qs, wire.Errorf(wire.CodeBadRequest, "%v", err))
		return
	}
	st := newQUICStream(s, qs, p, false)
	select {
	case s.backlog <- st:
		s.total.Add(1)
	default:
		_ = st.Refuse(wire.Errorf(wire.CodeLimit, "too many streams wait to be accepted"))
	}
}

func (s *quicSession) refuse(qs *quic.Stream, why *wire.Error) {
	_, _ = qs.Write(wire.AppendVerdict(nil, why)) // the connection may be gone
	_ = qs.Close()
	qs.CancelRead(0)
	s.theirs.Add(-1)
}

func readPreface(qs *quic.Stream) (wire.Preface, error) {
	_ = qs.SetReadDeadline(time.Now().Add(prefaceWithin))
	var b [wire.MaxPreface]byte
	if _, err := io.ReadFull(qs, b[:2]); err != nil {
		return wire.Preface{}, fmt.Errorf("%w: no preface", wire.ErrPreface)
	}
	n := int(binary.BigEndian.Uint16(b[:2]))
	if n > len(b) {
		return wire.Preface{}, fmt.Errorf("%w: %d bytes", wire.ErrPreface, n)
	}
	if _, err := io.ReadFull(qs, b[:n]); err != nil {
		return wire.Preface{}, fmt.Errorf("%w: cut", wire.ErrPreface)
	}
	_ = qs.SetReadDeadline(time.Time{})
	return wire.ParsePreface(b[:n])
}

// Ping goes over the control stream.
func (s *quicSession) Ping(ctx context.Context) (time.Duration, error) {
	s.mu.Lock()
	if len(s.pings) >= maxPings {
		s.mu.Unlock()
		return 0, wire.Errorf(wire.CodeLimit, "too many pings under way")
	}
	s.pingID++
	id, answered := s.pingID, make(chan struct{})
	s.pings[id] = answered
	begin := time.Now()
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.pings, id)
		s.mu.Unlock()
	}()
	if err := s.writeControl(wire.FramePing, 0, binary.BigEndian.AppendUint64(nil, id)); err != nil {
		return 0, quicReason(err)
	}
	select {
	case <-answered:
		d := time.Since(begin)
		s.rtt.Store(int64(d))
		return d, nil
	case <-s.done:
		return 0, s.Err()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (s *quicSession) writeControl(t wire.FrameType, stream uint32, payload []byte) error {
	_ = s.control.SetWriteDeadline(time.Now().Add(s.lim.DeadAfter))
	_, err := s.control.Write(wire.AppendFrame(nil, t, stream, payload))
	return err
}

// readControl answers pings. Frames of later versions are skipped.
func (s *quicSession) readControl() {
	why := s.serveControl()
	_ = s.conn.CloseWithError(quic.ApplicationErrorCode(wire.CodeBadRequest), why.Error())
}

func (s *quicSession) serveControl() error {
	br := bufio.NewReaderSize(s.control, 512)
	for {
		var b [wire.FrameHeader + wire.MaxError]byte
		if _, err := io.ReadFull(br, b[:wire.FrameHeader]); err != nil {
			return errors.New("the control stream ended")
		}
		h, err := wire.ParseHeader(b[:])
		if err != nil {
			return err
		}
		if h.Type == wire.FrameReset {
			text := b[wire.FrameHeader:][:h.Length]
			if _, err := io.ReadFull(br, text); err != nil {
				return errors.New("the control stream ended")
			}
			why, err := wire.ParseError(text)
			if err != nil {
				return err
			}
			s.resets.put(h.Stream, why)
			continue
		}
		if h.Type != wire.FramePing && h.Type != wire.FramePong {
			if _, err := br.Discard(h.Length); err != nil {
				return errors.New("the control stream ended")
			}
			continue
		}
		token := b[wire.FrameHeader:][:8]
		if _, err := io.ReadFull(br, token); err != nil {
			return errors.New("the control stream ended")
		}
		if h.Type == wire.FramePing {
			if err := s.writeControl(wire.FramePong, 0, token); err != nil {
				return errors.New("answers are not read")
			}
			continue
		}
		s.mu.Lock()
		if c := s.pings[binary.BigEndian.Uint64(token)]; c != nil {
			delete(s.pings, binary.BigEndian.Uint64(token))
			close(c)
		}
		s.mu.Unlock()
	}
}

// Close ends the session; reason travels in QUIC's own close frame.
func (s *quicSession) Close(reason *wire.Error) error {
	code, text := quic.ApplicationErrorCode(0), ""
	if reason != nil {
		code, text = quic.ApplicationErrorCode(reason.Code), reason.Public
	}
	_ = s.conn.CloseWithError(code, text)
	<-s.done
	s.workers.Wait()
	return nil
}

var _ net.Conn = (*quicStream)(nil)
