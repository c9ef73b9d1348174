package mitm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// upgrade connects a websocket (RFC 6455). What the server sends is searched
// for credentials message by message; the browser's frames pass as they are.
func (x *exchange) upgrade(ctx context.Context, resp *http.Response) error {
	server, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !isUpgrade(x.in) {
		return errors.New("the server switched protocols without being asked")
	}
	client, rw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		return fmt.Errorf("websocket: %w", err)
	}
	defer client.Close()
	stop := context.AfterFunc(ctx, func() {
		client.Close()
		server.Close()
	})
	defer stop()
	x.status = resp.StatusCode
	h := http.Header{}
	x.headers(h, resp.Header)
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", "websocket")
	if err := client.SetDeadline(time.Time{}); err != nil {
		return errors.Join(errCut, err)
	}
	head := &http.Response{StatusCode: resp.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if err := head.Write(rw); err != nil {
		return errors.Join(errCut, err)
	}
	if err := rw.Flush(); err != nil {
		return errors.Join(errCut, err)
	}
	x.kind = "websocket"
	var wg sync.WaitGroup
	wg.Go(func() {
		n, _ := io.Copy(server, rw.Reader) // ends with either side
		x.sent.Add(n)
		server.Close()
	})
	to := &timed{client, x.s.c.Now}
	if x.rev.Armed {
		x.received, err = x.messages(to, bufio.NewReaderSize(server, chunk))
	} else {
		x.received, err = io.Copy(to, server)
	}
	client.Close()
	server.Close()
	wg.Wait()
	if err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		x.s.c.Log.Debug("websocket", "err", err)
	}
	return nil
}

// timed bounds every write.
type timed struct {
	c   net.Conn
	now func() time.Time
}

// Write implements io.Writer.
func (t *timed) Write(b []byte) (int, error) {
	if err := t.c.SetWriteDeadline(t.now().Add(writeTime)); err != nil {
		return 0, err
	}
	return t.c.Write(b)
}

const (
	opContinuation = 0
	opControl      = 8 // and above
	opClose        = 8
	maxControl     = 125 // bytes of a control frame
	finBit         = 0x80
	maskBit        = 0x80
	// wholeFrame is the size up to which a frame stays one frame.
	wholeFrame = 64 << 10
)

// messages copies a server's frames (RFC 6455 §5.2), their payload masked, of
// control frames the reason for closing.
// The search goes over the frames of a message, not over messages.
func (x *exchange) messages(w io.Writer, r *bufio.Reader) (n int64, err error) {
	m := x.ses.Values.Stream()
	buf := make([]byte, wholeFrame)
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return n, err
		}
		fin, op := head[0]&finBit != 0, head[0]&0x0f
		if head[0]&0x70 != 0 || head[1]&maskBit != 0 {
			return n, errors.New("a frame of an extension, or a masked one, from the server")
		}
		size := uint64(head[1])
		switch size {
		case 126:
			var b [2]byte
			if _, err := io.ReadFull(r, b[:]); err != nil {
				return n, err
			}
			size = uint64(binary.BigEndian.Uint16(b[:]))
		case 127:
			var b [8]byte
			if _, err := io.ReadFull(r, b[:]); err != nil {
				return n, err
			}
			size = binary.BigEndian.Uint64(b[:])
		}
		if op >= opControl && (size > maxControl || !fin) || size > 1<<62 {
			return n, errors.New("a frame of a length that is not allowed")
		}
		for first := true; first || size > 0; first = false {
			part := buf[:min(size, wholeFrame)]
			if _, err := io.ReadFull(r, part); err != nil {
				return n, err
			}
			size -= uint64(len(part))
			n += int64(len(part))
			if op >= opControl {
				if op == opClose && len(part) > 2 {
					// Scripts read the reason (RFC 6455 §7.1.6).
					reason, _ := x.ses.Values.Bytes(part[2:])
					part = append(part[:2:2], reason[:min(len(reason), maxControl-2)]...)
				}
				if err := writeFrame(w, finBit|op, part); err != nil {
					return n, err
				}
				continue
			}
			out := m.Push(nil, part)
			last := fin && size == 0
			if last {
				out = m.Flush(out)
			}
			code := op
			if !first {
				code = opContinuation
			}
			if last {
				code |= finBit
			}
			if err := writeFrame(w, code, out); err != nil {
				return n, err
			}
		}
	}
}

// writeFrame writes one frame of a server.
func writeFrame(w io.Writer, code byte, payload []byte) error {
	b := make([]byte, 0, len(payload)+10)
	b = append(b, code)
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 127), uint64(n))
	}
	_, err := w.Write(append(b, payload...))
	return err
}
