package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"time"

	"caponier/shared/wire"
)

// readLoop dispatches frames until the link ends. It waits for nothing but
// the link: every frame is bounded by credit or by a limit.
func (s *muxSession) readLoop() {
	s.fail(s.readFrames())
}

func (s *muxSession) readFrames() error {
	for {
		b, err := s.br.Peek(wire.FrameHeader)
		if err != nil {
			return err
		}
		h, err := wire.ParseHeader(b)
		if err != nil {
			return s.violation(err)
		}
		_, _ = s.br.Discard(wire.FrameHeader)
		now := s.now()
		s.heard.Store(now)
		if h.Type == wire.FrameData {
			err = s.readData(h, now)
		} else {
			err = s.readControl(h)
		}
		if err != nil {
			return err
		}
	}
}

// violation tells the peer that it broke the protocol.
func (s *muxSession) violation(err error) error {
	s.sayGoodbye(wire.Errorf(wire.CodeBadRequest, "protocol violation: %v", err))
	return err
}

func (s *muxSession) stream(id uint32) *stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams[id]
}

// readData moves a data frame into its stream's queue. Data for a stream that
// is gone is what was under way when it ended.
func (s *muxSession) readData(h wire.Header, now int64) error {
	s.in.Add(uint64(h.Length))
	st := s.stream(h.Stream)
	if st == nil {
		_, err := s.br.Discard(h.Length)
		return unexpected(err)
	}
	s.saw(st.preface.Class, h.Length, now, &st.inTalk)
	if h.Length <= s.br.Size() {
		b, err := s.br.Peek(h.Length)
		if err != nil {
			return unexpected(err)
		}
		woke, err := st.received(b, nil)
		if err != nil {
			return s.violation(err)
		}
		if _, err = s.br.Discard(h.Length); woke && s.unyielded >= yieldAfter {
			// The reader just woken must not wait until bulk lets us rest.
			s.unyielded = 0
			runtime.Gosched()
		}
		return err
	}
	s.unyielded += h.Length
	c := newChunk(h.Length)
	if h.Length > len(c.room()) {
		c.off, c.end = 0, 0 // no header will go before these bytes
	}
	n, err := io.ReadFull(s.br, c.room()[:h.Length])
	if err != nil {
		c.free()
		return unexpected(err)
	}
	c.end += n
	if _, err := st.received(nil, c); err != nil {
		return s.violation(err)
	}
	return nil
}

func (s *muxSession) readControl(h wire.Header) error {
	if h.Type >= 128 { // of a later version, may be skipped
		_, err := s.br.Discard(h.Length)
		return unexpected(err)
	}
	b, err := s.br.Peek(h.Length) // control frames are shorter than the buffer
	if err != nil {
		return unexpected(err)
	}
	defer s.br.Discard(h.Length)
	switch h.Type {
	case wire.FrameOpen:
		return s.opened(h.Stream, b)
	case wire.FramePing:
		return s.answer(b)
	case wire.FramePong:
		s.answered(binary.BigEndian.Uint64(b))
		return nil
	case wire.FrameGoAway:
		why, err := wire.ParseError(b)
		if err != nil {
			return s.violation(err)
		}
		return why
	case wire.FrameSeen:
		return nil
	}
	st := s.stream(h.Stream)
	if st == nil {
		return nil
	}
	switch h.Type {
	case wire.FrameFin:
		st.finished()
	case wire.FrameAccept:
		st.accept()
	case wire.FrameStop:
		st.stopped()
	case wire.FrameReset:
		why, err := wire.ParseError(b)
		if err != nil {
			return s.violation(err)
		}
		st.resetByPeer(why)
	case wire.FrameWindow:
		if err := st.credited(int64(binary.BigEndian.Uint32(b))); err != nil {
			return s.violation(err)
		}
	}
	return nil
}

// opened takes a new stream of the peer into the backlog, or refuses it.
func (s *muxSession) opened(id uint32, preface []byte) error {
	if (id%2 == 1) == s.dialer {
		return s.violation(fmt.Errorf("%w: stream number %d", wire.ErrFrame, id))
	}
	p, err := wire.ParsePreface(preface)
	if err != nil {
		s.refuse(id, wire.Errorf(wire.CodeBadRequest, "%v", err))
		return nil
	}
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return nil
	}
	if s.streams[id] != nil {
		s.mu.Unlock()
		return s.violation(fmt.Errorf("%w: stream %d opened twice", wire.ErrFrame, id))
	}
	if s.theirs >= s.lim.MaxStreams {
		s.mu.Unlock()
		s.refuse(id, wire.Errorf(wire.CodeLimit, "the tunnel carries its %d streams", s.lim.MaxStreams))
		return nil
	}
	st := newStream(s, id, p, false)
	s.streams[id] = st
	s.theirs++
	s.mu.Unlock()

	s.backlogMu.Lock()
	full := len(s.backlog) >= s.lim.Backlog
	if !full {
		s.backlog = append(s.backlog, st)
	}
	s.backlogMu.Unlock()
	if full {
		_ = st.Reset(wire.Errorf(wire.CodeLimit, "too many streams wait to be accepted"))
		return nil
	}
	s.total.Add(1)
	signal(s.arrived)
	return nil
}

func (s *muxSession) refuse(id uint32, why *wire.Error) {
	s.sendControl(wire.FrameReset, id, wire.AppendError(nil, why))
}

// answer sends a pong, unless the peer provokes more than it reads.
func (s *muxSession) answer(token []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.control) > maxControl {
		return fmt.Errorf("%w: answers are not read", wire.ErrFrame)
	}
	s.controlLocked(wire.FramePong, 0, token)
	return nil
}

func (s *muxSession) answered(token uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token == 0 {
		if s.pingSent != 0 {
			s.measured(time.Duration(s.now() - s.pingSent))
			s.pingSent = 0
		}
		return
	}
	if c := s.pings[token]; c != nil {
		delete(s.pings, token)
		close(c)
	}
}
