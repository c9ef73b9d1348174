package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"

	"caponier/shared/wire"
)

// quicStream is a Stream of a quicSession.
type quicStream struct {
	s       *quicSession
	qs      *quic.Stream
	preface wire.Preface
	opener  bool

	// Opener: verdict is closed when the acceptor's answer is known; refused
	// is it, nil if accepted.
	verdict   chan struct{}
	refused   error
	rdeadline deadline

	mu        sync.Mutex
	answered  bool        // the acceptor's verdict was written; guarded by mu
	over      bool        // Close or Reset was called; guarded by mu
	wclosed   bool        // CloseWrite was called; guarded by mu
	reset     *wire.Error // why the peer reset the stream; guarded by mu
	rtime     time.Time
	rtimeLate bool // rtime is to be set on qs once the verdict is known
}

func newQUICStream(s *quicSession, qs *quic.Stream, p wire.Preface, opener bool) *quicStream {
	st := &quicStream{s: s, qs: qs, preface: p, opener: opener}
	if opener {
		st.verdict = make(chan struct{})
	}
	urgency := int8(2)
	if p.Class == wire.Bulk {
		urgency = 5
	}
	qs.SetPriority(urgency, true)
	return st
}

func (st *quicStream) Preface() wire.Preface { return st.preface }

// awaitVerdict reads the acceptor's answer, before anybody else reads.
func (st *quicStream) awaitVerdict() {
	err := st.readVerdict()
	st.mu.Lock()
	st.refused = err
	if st.rtimeLate {
		_ = st.qs.SetReadDeadline(st.rtime)
	}
	close(st.verdict)
	st.mu.Unlock()
}

func (st *quicStream) readVerdict() error {
	var b [wire.MaxError]byte
	if _, err := io.ReadFull(st.qs, b[:1]); err != nil {
		return st.reason(unexpected(err))
	}
	switch b[0] {
	case wire.VerdictAccepted:
		return nil
	case wire.VerdictRefused:
		if _, err := io.ReadFull(st.qs, b[:2]); err != nil {
			return st.reason(unexpected(err))
		}
		n := int(binary.BigEndian.Uint16(b[:2]))
		if n > len(b) {
			return wire.ErrError
		}
		if _, err := io.ReadFull(st.qs, b[:n]); err != nil {
			return st.reason(unexpected(err))
		}
		e, err := wire.ParseError(b[:n])
		if err != nil {
			return err
		}
		return e
	}
	return fmt.Errorf("%w: verdict %d", wire.ErrError, b[0])
}

// awaited waits for the verdict, as long as a read may wait.
func (st *quicStream) awaited() error {
	if !st.opener {
		return nil
	}
	for {
		expired := st.rdeadline.wait()
		select {
		case <-expired:
			return os.ErrDeadlineExceeded
		default:
		}
		t := time.NewTimer(time.Second) // to see a deadline that came later
		select {
		case <-st.verdict:
			t.Stop()
			return st.refused
		case <-expired:
		case <-t.C:
		}
		t.Stop()
	}
}

func (st *quicStream) Accepted(ctx context.Context) error {
	if !st.opener {
		return nil
	}
	select {
	case <-st.verdict:
		return st.refused
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (st *quicStream) Read(p []byte) (int, error) {
	select {
	case <-st.verdict: // nil for the acceptor
	default:
		if err := st.awaited(); err != nil {
			return 0, err
		}
	}
	if st.refused != nil {
		return 0, st.refused
	}
	n, err := st.qs.Read(p)
	st.s.in.Add(uint64(n))
	if err != nil && n > 0 && err != io.EOF {
		return n, nil // it comes again
	}
	return n, st.reason(err)
}

func (st *quicStream) Write(p []byte) (int, error) {
	if err := st.answer(); err != nil {
		return 0, err
	}
	n, err := st.qs.Write(p)
	st.s.out.Add(uint64(n))
	return n, st.writeReason(err)
}

// answer writes the acceptor's "accepted" once.
func (st *quicStream) answer() error {
	if st.opener {
		return nil
	}
	st.mu.Lock()
	if st.answered {
		st.mu.Unlock()
		return nil
	}
	st.answered = true
	_, err := st.qs.Write(wire.AppendVerdict(nil, nil))
	st.mu.Unlock()
	return st.writeReason(err)
}

// Confirm tells the opener that its destination is connected.
func (st *quicStream) Confirm() error { return st.answer() }

// Refuse tells the opener why not, and closes the stream.
func (st *quicStream) Refuse(why *wire.Error) error {
	st.mu.Lock()
	if st.opener || st.answered || st.over {
		st.mu.Unlock()
		return st.Reset(why)
	}
	st.answered = true
	_, err := st.qs.Write(wire.AppendVerdict(nil, why))
	st.mu.Unlock()
	_ = st.Close()
	return st.writeReason(err)
}

// CloseWrite ends our direction after what was written.
func (st *quicStream) CloseWrite() error {
	if err := st.answer(); err != nil {
		return err
	}
	st.mu.Lock()
	st.wclosed = true
	st.mu.Unlock()
	return st.qs.Close()
}

// CloseRead tells the peer to stop sending.
func (st *quicStream) CloseRead() error {
	st.qs.CancelRead(0)
	return nil
}

// Close ends both directions; what was written is still delivered.
func (st *quicStream) Close() error {
	if !st.end() {
		return nil
	}
	_ = st.answer()
	_ = st.qs.Close()
	st.qs.CancelRead(0)
	return nil
}

// Reset aborts both directions. The number travels in QUIC's own frames, the
// text on the control stream, before them.
func (st *quicStream) Reset(why *wire.Error) error {
	if !st.end() {
		return nil
	}
	if why == nil {
		why = wire.Errorf(wire.CodeInternal, "%s", wire.CodeInternal.Text())
	}
	code := quic.StreamErrorCode(why.Code)
	_ = st.s.writeControl(wire.FrameReset, st.number(), wire.AppendError(nil, why)) // without it the code's text is shown
	st.qs.CancelWrite(code)
	st.qs.CancelRead(code)
	return nil
}

// number is what the control stream calls st.
func (st *quicStream) number() uint32 { return uint32(st.qs.StreamID()) }

// end reports whether this call is the first to end the stream.
func (st *quicStream) end() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over {
		return false
	}
	st.over = true
	if st.opener {
		st.s.ours.Add(-1)
	} else {
		st.s.theirs.Add(-1)
	}
	return true
}

// reason maps quic-go's errors to those of a Stream.
func (st *quicStream) reason(err error) error {
	if err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if e, ok := errors.AsType[*quic.StreamError](err); ok {
		switch {
		case !e.Remote:
			return net.ErrClosed
		case e.ErrorCode == 0:
			return io.ErrUnexpectedEOF
		}
		return st.resetReason(wire.Code(min(e.ErrorCode, 0xffff)))
	}
	select {
	case <-st.s.conn.Context().Done():
		return &streamLostError{quicReason(context.Cause(st.s.conn.Context()))}
	default:
	}
	return err
}

// resetReason is why the peer reset the stream with code.
func (st *quicStream) resetReason(code wire.Code) error {
	st.mu.Lock()
	why := st.reset
	st.mu.Unlock()
	if why != nil {
		return why
	}
	if why = st.s.resets.get(st.number(), st.s.done); why == nil || why.Code != code {
		if !code.Known() {
			code = wire.CodeInternal
		}
		why = wire.Errorf(code, "%s", code.Text())
	}
	st.mu.Lock()
	st.reset = why
	st.mu.Unlock()
	return why
}

func (st *quicStream) writeReason(err error) error {
	if err == nil {
		return nil
	}
	if err = st.reason(err); err == io.ErrUnexpectedEOF {
		return syscall.EPIPE // the peer reads no more
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.over || st.wclosed {
		return net.ErrClosed
	}
	return err
}

func (st *quicStream) SetReadDeadline(t time.Time) error {
	st.rdeadline.set(t)
	if !st.opener {
		return st.qs.SetReadDeadline(t)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	select {
	case <-st.verdict:
		return st.qs.SetReadDeadline(t)
	default:
		st.rtime, st.rtimeLate = t, true
		return nil
	}
}

func (st *quicStream) SetWriteDeadline(t time.Time) error { return st.qs.SetWriteDeadline(t) }

func (st *quicStream) SetDeadline(t time.Time) error {
	if err := st.SetReadDeadline(t); err != nil {
		return err
	}
	return st.SetWriteDeadline(t)
}

func (st *quicStream) LocalAddr() net.Addr  { return streamAddr("local") }
func (st *quicStream) RemoteAddr() net.Addr { return streamAddr(st.s.info.Remote.String()) }
