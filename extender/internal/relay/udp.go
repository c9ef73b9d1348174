package relay

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"caponier/shared/dial"
	"caponier/shared/telemetry"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// briefIdle is how long a flow may be silent that is a question and an answer
// at most, like DNS: those come in numbers.
const briefIdle = 30 * time.Second

// lively is how many datagrams each way make a flow more than brief.
const lively = 2

// serveFlow relays datagrams between one stream and one destination until
// either side ends it, or it is idle.
func (r *Relay) serveFlow(ctx context.Context, s tunnel.Stream, narrow dial.Rules) {
	p := s.Preface()
	if r.flows.Add(1) > r.c.MaxFlows {
		r.flows.Add(-1)
		s.Refuse(wire.Errorf(wire.CodeLimit, "the extender relays all the datagram flows it takes (%d)", r.c.MaxFlows))
		return
	}
	defer r.flows.Add(-1)
	conn, err := r.dialer.DialUDP(ctx, p.Dest, narrow)
	if err != nil {
		r.count(p, err)
		s.Refuse(dial.Public(err))
		return
	}
	defer conn.Close()
	if err := s.Confirm(); err != nil {
		return
	}
	r.log.Debug("relaying datagrams", telemetry.KeyConnection, p.Connection, telemetry.KeyTarget, p.Dest)
	raw, err := conn.SyscallConn()
	if err != nil {
		s.Reset(wire.Errorf(wire.CodeInternal, "internal error"))
		return
	}
	f := &flow{r: r, stream: tunnel.NewDatagrams(s), conn: conn, raw: raw, begun: time.Now()}
	stop := context.AfterFunc(ctx, f.end)
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer f.end()
		f.fromTarget()
	})
	f.toTarget()
	f.end()
	wg.Wait()
}

// flow is one stream and one socket. It holds no buffer while it is silent.
type flow struct {
	r      *Relay
	stream *tunnel.Datagrams
	conn   *net.UDPConn
	raw    syscall.RawConn
	begun  time.Time

	out, in atomic.Int64 // datagrams to and from the target
	last    atomic.Int64 // when the last one came, in nanoseconds since begun
}

func (f *flow) touch() { f.last.Store(int64(time.Since(f.begun))) }

// left is how long the flow may still be silent.
func (f *flow) left() time.Duration {
	idle := f.r.c.FlowIdle
	if f.out.Load() < lively || f.in.Load() < lively {
		idle = min(idle, briefIdle)
	}
	return time.Duration(f.last.Load()) + idle - time.Since(f.begun)
}

// end ends both sides. The peer reads the end of the stream.
func (f *flow) end() {
	// Either may have ended by itself.
	_ = f.conn.Close()
	_ = f.stream.Close()
}

// buffer takes one for a datagram; give it back with r.buffers.Put.
func (r *Relay) buffer() *[]byte {
	if b, ok := r.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, tunnel.MaxDatagram)
	return &b
}

// toTarget sends what comes from core.
func (f *flow) toTarget() {
	for {
		if _, err := f.stream.Next(); err != nil {
			return
		}
		buf := f.r.buffer()
		n, err := f.stream.Read(*buf)
		if err == nil {
			f.touch()
			f.out.Add(1)
			f.r.bytesToTarget.Add(uint64(n))
			// A datagram that cannot be sent is lost, as any may be: nobody
			// listens (told for the one before), it is too long, buffers are full.
			if _, werr := f.conn.Write((*buf)[:n]); errors.Is(werr, net.ErrClosed) {
				err = werr
			}
		}
		f.r.buffers.Put(buf)
		if err != nil {
			return
		}
	}
}

// fromTarget sends what comes back, and sees to the end of an idle flow.
func (f *flow) fromTarget() {
	for {
		left := f.left()
		if left <= 0 {
			p := f.stream.Preface()
			f.r.log.Debug("datagram flow idle", telemetry.KeyConnection, p.Connection, telemetry.KeyTarget, p.Dest)
			return
		}
		if err := f.conn.SetReadDeadline(time.Now().Add(left)); err != nil {
			return
		}
		buf, n, err := f.receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
			continue // silence, or nobody listens just now
		case err != nil:
			return
		}
		f.touch()
		f.in.Add(1)
		f.r.bytesFromThere.Add(uint64(n))
		_, err = f.stream.Write((*buf)[:n])
		f.r.buffers.Put(buf)
		if err != nil {
			return
		}
	}
}

// receive waits for a datagram and takes a buffer only when there is one.
func (f *flow) receive() (buf *[]byte, n int, err error) {
	rerr := f.raw.Read(func(fd uintptr) bool {
		buf = f.r.buffer()
		if n, err = unix.Read(int(fd), *buf); err == nil {
			return true
		}
		f.r.buffers.Put(buf)
		buf = nil
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
	if rerr != nil {
		return nil, 0, rerr
	}
	return buf, n, err
}
