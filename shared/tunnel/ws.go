package tunnel

import (
	"bufio"
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Opcodes of RFC 6455 §5.2.
const (
	opContinuation = 0x0
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa
)

// wsHeader is the longest header of a websocket frame: 2 bytes, 8 of length,
// 4 of mask.
const wsHeader = 14

var errWebsocket = errors.New("websocket protocol violation")

// wsConn carries a byte stream in the binary frames of a websocket. Frame
// borders mean nothing: whatever stands in between may split or join them.
//
// One goroutine reads; writeFrame may be called by several.
type wsConn struct {
	nc     net.Conn
	br     *bufio.Reader
	client bool
	// bare leaves out the masking: its key is then zero. Masking protects what
	// stands in between from what a script makes a browser send; on a TLS
	// connection that ends at our peer nothing stands in between.
	bare bool
	// cork, if not nil, gathers what is written below TLS (see wireConn).
	cork *corkedConn

	// reading
	left       int64 // bytes of payload left in the current frame
	key        [4]byte
	keyAt      int
	masked     bool
	fragmented bool // a message has begun and its last frame is still to come

	wmu    sync.Mutex
	closed bool // a close frame was written; guarded by wmu

	pongMu sync.Mutex
	pong   []byte // payload of the ping still to be answered; guarded by pongMu
}

// newWSConn starts after the handshake. early are bytes already read from nc.
func newWSConn(nc net.Conn, client bool, early []byte) *wsConn {
	var r io.Reader = nc
	if len(early) > 0 {
		r = io.MultiReader(bytes.NewReader(bytes.Clone(early)), nc)
	}
	return &wsConn{nc: nc, br: bufio.NewReaderSize(r, 4<<10), client: client, cork: corkOf(nc)}
}

// Read returns payload of data frames. A close frame is io.EOF.
func (w *wsConn) Read(p []byte) (int, error) {
	for w.left == 0 {
		if err := w.nextFrame(); err != nil {
			return 0, err
		}
	}
	if int64(len(p)) > w.left {
		p = p[:w.left]
	}
	n, err := w.br.Read(p)
	if w.masked && w.key != [4]byte{} {
		w.keyAt = mask(p[:n], p[:n], w.key, w.keyAt)
	}
	w.left -= int64(n)
	if n > 0 {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return 0, err
}

// nextFrame reads headers until one of a data frame, answering control frames.
func (w *wsConn) nextFrame() error {
	var h [wsHeader]byte
	if _, err := io.ReadFull(w.br, h[:2]); err != nil {
		return err
	}
	fin, op := h[0]&0x80 != 0, h[0]&0x0f
	if h[0]&0x70 != 0 {
		return fmt.Errorf("%w: reserved bits", errWebsocket)
	}
	w.masked = h[1]&0x80 != 0
	if w.masked == w.client { // RFC 6455 §5.1
		return fmt.Errorf("%w: masking", errWebsocket)
	}
	n := uint64(h[1] & 0x7f)
	switch n {
	case 126:
		if _, err := io.ReadFull(w.br, h[:2]); err != nil {
			return unexpected(err)
		}
		n = uint64(binary.BigEndian.Uint16(h[:]))
	case 127:
		if _, err := io.ReadFull(w.br, h[:8]); err != nil {
			return unexpected(err)
		}
		if n = binary.BigEndian.Uint64(h[:]); n > 1<<62 {
			return fmt.Errorf("%w: length", errWebsocket)
		}
	}
	if w.masked {
		if _, err := io.ReadFull(w.br, w.key[:]); err != nil {
			return unexpected(err)
		}
		w.keyAt = 0
	}
	switch op {
	case opBinary, opContinuation:
		if (op == opContinuation) != w.fragmented {
			return fmt.Errorf("%w: continuation", errWebsocket)
		}
		w.fragmented = !fin
		w.left = int64(n)
		return nil
	case opClose, opPing, opPong:
		if !fin || n > 125 { // RFC 6455 §5.5
			return fmt.Errorf("%w: control frame", errWebsocket)
		}
		var payload [125]byte
		if _, err := io.ReadFull(w.br, payload[:n]); err != nil {
			return unexpected(err)
		}
		if w.masked {
			mask(payload[:n], payload[:n], w.key, 0)
		}
		switch op {
		case opClose:
			return io.EOF
		case opPing:
			w.answerPing(payload[:n])
		}
		return nil
	}
	return fmt.Errorf("%w: opcode %d", errWebsocket, op)
}

// answerPing sends a pong now, or leaves it to who is writing: the reader must
// not wait behind data.
func (w *wsConn) answerPing(payload []byte) {
	w.pongMu.Lock()
	w.pong = append(make([]byte, 0, len(payload)+1), payload...)
	w.pongMu.Unlock()
	w.settlePing()
}

func (w *wsConn) settlePing() {
	for w.takesPong() && w.wmu.TryLock() {
		w.pongMu.Lock()
		pong := w.pong
		w.pong = nil
		w.pongMu.Unlock()
		if pong != nil && !w.closed {
			_ = w.control(opPong, pong) // a broken connection shows in the reader
		}
		w.wmu.Unlock()
	}
}

func (w *wsConn) takesPong() bool {
	w.pongMu.Lock()
	defer w.pongMu.Unlock()
	return w.pong != nil
}

// control writes one control frame; wmu is held.
func (w *wsConn) control(op byte, payload []byte) error {
	b := make([]byte, wsHeader+len(payload))
	copy(b[wsHeader:], payload)
	_, err := w.nc.Write(w.frame(op, b, wsHeader))
	return err
}

// frame puts a header before b[off:], masks if we are the client, and returns
// the whole frame. off must be at least wsHeader.
func (w *wsConn) frame(op byte, b []byte, off int) []byte {
	n := len(b) - off
	start, maskBit := off, byte(0)
	if w.client {
		maskBit = 0x80
		start -= 4
		var key [4]byte
		if !w.bare {
			binary.LittleEndian.PutUint32(key[:], rand.Uint32())
			mask(b[off:], b[off:], key, 0)
		}
		copy(b[start:], key[:])
	}
	switch {
	case n < 126:
		start -= 2
		b[start+1] = maskBit | byte(n)
	case n <= 0xffff:
		start -= 4
		b[start+1] = maskBit | 126
		binary.BigEndian.PutUint16(b[start+2:], uint16(n))
	default:
		start -= 10
		b[start+1] = maskBit | 127
		binary.BigEndian.PutUint64(b[start+2:], uint64(n))
	}
	b[start] = 0x80 | op
	return b[start:]
}

// piece is bytes to send with room for headers before them: buf[off:end].
// Sending changes the bytes.
type piece struct {
	buf      []byte
	off, end int
}

// writePieces sends each piece as one frame, all in one write if a corked
// connection is below.
func (w *wsConn) writePieces(ps []piece) error {
	w.wmu.Lock()
	if w.closed {
		w.wmu.Unlock()
		return net.ErrClosed
	}
	if w.cork != nil {
		w.cork.cork()
	}
	var err error
	for _, p := range ps {
		if _, err = w.nc.Write(w.frame(opBinary, p.buf[:p.end], p.off)); err != nil {
			break
		}
	}
	if w.cork != nil {
		if ferr := w.cork.uncork(); err == nil {
			err = ferr
		}
	}
	w.wmu.Unlock()
	w.settlePing()
	return err
}

// tryPieces is writePieces without waiting: what the kernel does not take
// stays with the corked connection until flush.
func (w *wsConn) tryPieces(ps []piece) (pending bool, err error) {
	w.wmu.Lock()
	if w.closed {
		w.wmu.Unlock()
		return false, net.ErrClosed
	}
	w.cork.cork()
	for _, p := range ps {
		if _, err = w.nc.Write(w.frame(opBinary, p.buf[:p.end], p.off)); err != nil {
			break
		}
	}
	pending, ferr := w.cork.tryUncork()
	if err == nil {
		err = ferr
	}
	w.wmu.Unlock()
	w.settlePing()
	return pending, err
}

func (w *wsConn) flush() error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	return w.cork.uncork()
}

// canWriteRaw reports whether l can send without waiting.
func canWriteRaw(l link) bool {
	switch l := l.(type) {
	case *wsConn:
		return l.cork != nil && l.cork.raw != nil
	case *innerLink:
		return canWriteRaw(l.gather.wsConn)
	}
	return false
}

// Write sends p as frames.
func (w *wsConn) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c := newChunk(min(len(p)-n, maxChunk))
		m := copy(c.room(), p[n:])
		c.end += m
		err := w.writePieces([]piece{{c.buf, c.off, c.end}})
		c.free()
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

func (w *wsConn) boundQueues(mode queueMode) {
	if w.cork != nil {
		w.cork.boundQueues(mode)
	}
}

// unread reports whether the kernel holds received bytes.
func (w *wsConn) unread() bool {
	return w.cork != nil && w.cork.raw != nil && unreadOf(w.cork.raw)
}

// Close says goodbye within a second and closes the connection.
func (w *wsConn) Close() error {
	_ = w.nc.SetWriteDeadline(time.Now().Add(time.Second))
	w.wmu.Lock()
	if !w.closed {
		w.closed = true
		_ = w.control(opClose, []byte{0x03, 0xe8}) // 1000, normal closure
	}
	w.wmu.Unlock()
	return w.nc.Close()
}

func (w *wsConn) LocalAddr() net.Addr                { return w.nc.LocalAddr() }
func (w *wsConn) RemoteAddr() net.Addr               { return w.nc.RemoteAddr() }
func (w *wsConn) SetDeadline(t time.Time) error      { return w.nc.SetDeadline(t) }
func (w *wsConn) SetReadDeadline(t time.Time) error  { return w.nc.SetReadDeadline(t) }
func (w *wsConn) SetWriteDeadline(t time.Time) error { return w.nc.SetWriteDeadline(t) }

// mask XORs src with key, whose byte at is the first to use, into dst and
// returns the index of the next one (RFC 6455 §5.3).
func mask(dst, src []byte, key [4]byte, at int) int {
	var pad [512]byte
	n := min(len(pad), (len(src)+3)&^3)
	for i := range 4 {
		pad[i] = key[(at+i)&3]
	}
	for i := 4; i < n; i *= 2 {
		copy(pad[i:n], pad[:i])
	}
	next := (at + len(src)) & 3
	for len(src) > 0 {
		m := subtle.XORBytes(dst, src, pad[:n])
		dst, src = dst[m:], src[m:]
	}
	return next
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
