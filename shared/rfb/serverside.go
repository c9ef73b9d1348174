package rfb

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"image"
	"io"
)

// Types of messages from server to client.
const (
	msgUpdate       = 0
	msgColours      = 1
	msgBell         = 2
	msgServerCut    = 3
	msgEndOfUpdates = 150
	msgServerFence  = 248
)

// EventKind says what an Event is.
type EventKind uint8

// The kinds. An update is EventUpdate, then its rectangles one by one, then
// EventUpdateEnd.
const (
	EventUpdate EventKind = iota + 1
	// EventPixels: Rect was changed in the framebuffer given to Next.
	EventPixels
	// EventSize: the picture shall be Size.
	EventSize
	// EventCursor: Cursor is the pointer's image.
	EventCursor
	// EventAbility: the server announces Encoding (QEMUKeys, ExtendedMouse).
	EventAbility
	// EventLED: Value is the state of the lock keys: 1 scroll, 2 num, 4 caps.
	EventLED
	EventUpdateEnd
	// EventBell: ring.
	EventBell
	// EventClipboard: Clipboard was said.
	EventClipboard
	// EventFence: Value are flags, Data the payload.
	EventFence
	// EventEndOfUpdates ends continuous updates or announces them.
	EventEndOfUpdates
)

// Event is one thing a server said.
type Event struct {
	Kind EventKind
	Rect image.Rectangle
	// Size and Reason of EventSize: Reason 1 means that it answers this client's
	// wish, and then Status 0 that it was granted.
	Size           image.Point
	Reason, Status int
	Cursor         Cursor
	Encoding       Encoding
	Value          uint32
	// Data is valid until the next call.
	Data      []byte
	Clipboard Clipboard
}

// ServerReader reads what a server says.
type ServerReader struct {
	r     *bufio.Reader
	tight tightReader
	limit ServerLimits
	buf   []byte

	rects int // still to come in this update; -1 outside of an update
	// pending is the rest of a large raw rectangle.
	pending image.Rectangle
}

// ServerLimits bound what a server may say.
type ServerLimits struct {
	// Pixels is the largest picture; 0 means MaxWidth·MaxHeight.
	Pixels int
	// Clipboard is asked for each message with text, for the longest that is
	// read, in bytes; more is skipped. Nil means 0.
	Clipboard func() int
	// Tight says that Tight rectangles are expected.
	Tight bool
}

// maxBand is how much of a raw rectangle is read at once, in bytes.
const maxBand = 256 << 10

// NewServerReader reads from r after the handshake.
func NewServerReader(r io.Reader, limit ServerLimits) *ServerReader {
	if limit.Pixels == 0 {
		limit.Pixels = MaxWidth * MaxHeight
	}
	return &ServerReader{r: bufio.NewReaderSize(r, 64<<10), limit: limit, rects: -1}
}

// reset forgets everything and reads from r.
func (s *ServerReader) reset(r io.Reader) {
	s.r.Reset(r)
	s.rects, s.pending = -1, image.Rectangle{}
	for i := range s.tight.streams {
		s.tight.streams[i].reset()
	}
}

// Next reads one event. Rectangles are decoded into f, guarded by what lock and
// unlock do: they are called around changes only, never around reading. Both
// may be nil.
func (s *ServerReader) Next(f *Framebuffer, lock, unlock func()) (Event, error) {
	guard := func(change func() error) error {
		if lock != nil {
			lock()
			defer unlock()
		}
		return change()
	}
	switch {
	case !s.pending.Empty():
		return s.raw(f, guard)
	case s.rects > 0:
		s.rects--
		return s.rect(f, guard)
	case s.rects == 0:
		s.rects = -1
		return Event{Kind: EventUpdateEnd}, nil
	}
	t, err := s.r.ReadByte()
	if err != nil {
		return Event{}, err
	}
	switch t {
	case msgUpdate:
		var b [3]byte
		if _, err := io.ReadFull(s.r, b[:]); err != nil {
			return Event{}, err
		}
		s.rects = int(binary.BigEndian.Uint16(b[1:]))
		return Event{Kind: EventUpdate}, nil
	case msgBell:
		return Event{Kind: EventBell}, nil
	case msgServerCut:
		limit := 0
		if s.limit.Clipboard != nil {
			limit = s.limit.Clipboard()
		}
		c, err := readClipboard(s.r, limit)
		return Event{Kind: EventClipboard, Clipboard: c}, err
	case msgServerFence:
		flags, payload, err := readFence(s.r)
		return Event{Kind: EventFence, Value: flags, Data: payload}, err
	case msgEndOfUpdates:
		return Event{Kind: EventEndOfUpdates}, nil
	default:
		return Event{}, broken("message type %d from the server", t)
	}
}

func (s *ServerReader) rect(f *Framebuffer, guard func(func() error) error) (Event, error) {
	var h [rectHeader]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		return Event{}, err
	}
	x, y := int(binary.BigEndian.Uint16(h[0:])), int(binary.BigEndian.Uint16(h[2:]))
	w, ht := int(binary.BigEndian.Uint16(h[4:])), int(binary.BigEndian.Uint16(h[6:]))
	r := image.Rect(x, y, x+w, y+ht)
	enc := Encoding(binary.BigEndian.Uint32(h[8:]))
	switch enc {
	case Raw, CopyRect, Tight:
		if !r.In(f.Bounds()) {
			return Event{}, broken("rectangle %v in a picture of %dx%d", r, f.w, f.h)
		}
	}
	switch enc {
	case Raw:
		s.pending = r
		if r.Empty() {
			return Event{Kind: EventPixels}, nil
		}
		return s.raw(f, guard)
	case CopyRect:
		var b [4]byte
		if _, err := io.ReadFull(s.r, b[:]); err != nil {
			return Event{}, err
		}
		from := image.Pt(int(binary.BigEndian.Uint16(b[0:])), int(binary.BigEndian.Uint16(b[2:])))
		return Event{Kind: EventPixels, Rect: r}, guard(func() error { return f.Copy(r, from) })
	case Tight:
		if !s.limit.Tight {
			return Event{}, broken("encoding %d was not asked for", enc)
		}
		apply, err := s.tight.read(s.r, f, r)
		if err != nil {
			return Event{}, err
		}
		return Event{Kind: EventPixels, Rect: r}, guard(apply)
	case LastRect:
		s.rects = 0
		return s.Next(f, nil, nil)
	case DesktopSize:
		return s.size(Event{Kind: EventSize, Size: image.Pt(w, ht)})
	case ExtendedDesktopSize:
		return s.extendedSize(x, y, w, ht)
	case VMwareCursor, CursorPseudo:
		return s.cursor(enc, x, y, w, ht)
	case QEMUKeys, ExtendedMouse:
		return Event{Kind: EventAbility, Encoding: enc}, nil
	case LEDState:
		b, err := s.r.ReadByte()
		return Event{Kind: EventLED, Value: uint32(b)}, err
	case DesktopName:
		var b [4]byte
		if _, err := io.ReadFull(s.r, b[:]); err != nil {
			return Event{}, err
		}
		_, err := readText(s.r, binary.BigEndian.Uint32(b[:]), MaxName)
		return Event{Kind: EventAbility, Encoding: enc}, err
	default:
		return Event{}, broken("encoding %d was not asked for", enc)
	}
}

// raw reads the next band of a raw rectangle.
func (s *ServerReader) raw(f *Framebuffer, guard func(func() error) error) (Event, error) {
	r := s.pending
	if rows := max(1, maxBand/(4*r.Dx())); r.Dy() > rows {
		r.Max.Y = r.Min.Y + rows
	}
	n := 4 * r.Dx() * r.Dy()
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	if _, err := io.ReadFull(s.r, s.buf[:n]); err != nil {
		return Event{}, err
	}
	s.pending.Min.Y = r.Max.Y
	return Event{Kind: EventPixels, Rect: r}, guard(func() error { return f.SetRaw(r, s.buf[:n]) })
}

func (s *ServerReader) size(e Event) (Event, error) {
	if !validSize(e.Size.X, e.Size.Y) || e.Size.X*e.Size.Y > s.limit.Pixels {
		return Event{}, broken("picture of %dx%d", e.Size.X, e.Size.Y)
	}
	return e, nil
}

func (s *ServerReader) extendedSize(x, y, w, h int) (Event, error) {
	var b [4]byte
	if _, err := io.ReadFull(s.r, b[:]); err != nil {
		return Event{}, err
	}
	if b[0] > MaxScreens {
		return Event{}, broken("%d screens", b[0])
	}
	if _, err := s.r.Discard(16 * int(b[0])); err != nil {
		return Event{}, err
	}
	e := Event{Kind: EventSize, Size: image.Pt(w, h), Reason: x}
	if x == 1 {
		e.Status = y
	}
	return s.size(e)
}

func (s *ServerReader) cursor(enc Encoding, x, y, w, h int) (Event, error) {
	if w > MaxCursor || h > MaxCursor {
		return Event{}, broken("pointer image of %dx%d", w, h)
	}
	c := Cursor{Hot: image.Pt(x, y), Width: w, Height: h}
	var err error
	if enc == VMwareCursor {
		c.RGBA, err = s.vmwareCursor(w, h)
	} else {
		c.RGBA, err = s.maskedCursor(w, h)
	}
	return Event{Kind: EventCursor, Cursor: c}, err
}

func (s *ServerReader) vmwareCursor(w, h int) ([]byte, error) {
	var kind [2]byte
	if _, err := io.ReadFull(s.r, kind[:]); err != nil {
		return nil, err
	}
	rgba := make([]byte, 4*w*h)
	if _, err := io.ReadFull(s.r, rgba); err != nil {
		return nil, err
	}
	switch kind[0] {
	case 1:
		return rgba, nil
	case 0: // AND mask, then XOR mask, of 32-bit pixels in the client's format
		xor := make([]byte, 4*w*h)
		if _, err := io.ReadFull(s.r, xor); err != nil {
			return nil, err
		}
		for i := 0; i < len(rgba); i += 4 {
			and := binary.LittleEndian.Uint32(rgba[i:]) & 0xffffff
			v := binary.LittleEndian.Uint32(xor[i:]) & 0xffffff
			a := byte(255)
			if and == 0xffffff {
				if v == 0 {
					a = 0
				}
				v = 0 // inverted pixels cannot be shown: black
			}
			rgba[i], rgba[i+1], rgba[i+2], rgba[i+3] = byte(v>>16), byte(v>>8), byte(v), a
		}
		return rgba, nil
	default:
		return nil, broken("pointer image of kind %d", kind[0])
	}
}

// maskedCursor is the plain Cursor pseudo-encoding (RFC 6143 §7.8.1).
func (s *ServerReader) maskedCursor(w, h int) ([]byte, error) {
	rgba, row := make([]byte, 4*w*h), (w+7)/8
	if _, err := io.ReadFull(s.r, rgba); err != nil {
		return nil, err
	}
	mask := make([]byte, row*h)
	if _, err := io.ReadFull(s.r, mask); err != nil {
		return nil, err
	}
	for i := range w * h {
		p := rgba[4*i : 4*i+4]
		p[0], p[2], p[3] = p[2], p[0], 0
		if mask[i/w*row+i%w/8]<<(i%w%8)&0x80 != 0 {
			p[3] = 255
		}
	}
	return rgba, nil
}

func readFence(r *bufio.Reader) (uint32, []byte, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, nil, err
	}
	if b[7] > MaxFence {
		return 0, nil, broken("fence of %d bytes", b[7])
	}
	p := make([]byte, b[7])
	if _, err := io.ReadFull(r, p); err != nil {
		return 0, nil, fmt.Errorf("read fence: %w", err)
	}
	return binary.BigEndian.Uint32(b[3:]), p, nil
}

// AppendUpdate begins a FramebufferUpdate of n rectangles (RFC 6143 §7.6.1).
func AppendUpdate(dst []byte, n int) []byte {
	return binary.BigEndian.AppendUint16(append(dst, msgUpdate, 0), uint16(n))
}

// AppendDesktopSize appends the rectangle that changes the picture's size.
func AppendDesktopSize(dst []byte, w, h int) []byte {
	return appendRectHeader(dst, image.Rect(0, 0, w, h), DesktopSize)
}

// AppendExtendedSize appends the rectangle that tells the size of the only
// screen, why (0 by itself, 1 this client asked, 2 another did) and how a wish
// fared (0 granted, 1 prohibited, 3 not possible).
func AppendExtendedSize(dst []byte, w, h, reason, status int) []byte {
	dst = appendRectHeader(dst, image.Rect(reason, status, reason+w, status+h), ExtendedDesktopSize)
	dst = append(dst, 1, 0, 0, 0)
	return appendScreen(dst, w, h)
}

func appendScreen(dst []byte, w, h int) []byte {
	dst = append(dst, 0, 0, 0, 0, 0, 0, 0, 0) // id, x, y
	dst = binary.BigEndian.AppendUint16(dst, uint16(w))
	dst = binary.BigEndian.AppendUint16(dst, uint16(h))
	return append(dst, 0, 0, 0, 0)
}

// AppendCursor appends the rectangle with the pointer's image.
func AppendCursor(dst []byte, c Cursor) []byte {
	dst = appendRectHeader(dst, image.Rectangle{Min: c.Hot, Max: c.Hot.Add(image.Pt(c.Width, c.Height))}, VMwareCursor)
	return append(append(dst, 1, 0), c.RGBA...)
}

// AppendAbility appends the empty rectangle by which a server announces an
// extension: QEMUKeys or ExtendedMouse.
func AppendAbility(dst []byte, e Encoding) []byte {
	return appendRectHeader(dst, image.Rectangle{}, e)
}

// AppendLED appends the rectangle with the state of the lock keys.
func AppendLED(dst []byte, state byte) []byte {
	return append(appendRectHeader(dst, image.Rectangle{}, LEDState), state)
}

// AppendDesktopName appends the rectangle that names the desktop.
func AppendDesktopName(dst []byte, name string) []byte {
	dst = appendRectHeader(dst, image.Rectangle{}, DesktopName)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(name)))
	return append(dst, name...)
}

// AppendCopyRect appends the rectangle that moves what is at from to r.
func AppendCopyRect(dst []byte, r image.Rectangle, from image.Point) []byte {
	dst = appendRectHeader(dst, r, CopyRect)
	dst = binary.BigEndian.AppendUint16(dst, uint16(from.X))
	return binary.BigEndian.AppendUint16(dst, uint16(from.Y))
}

// AppendRaw appends a rectangle of uncompressed pixels of f.
func AppendRaw(dst []byte, f *Framebuffer, r image.Rectangle) []byte {
	dst = appendRectHeader(dst, r, Raw)
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for _, v := range f.Row(y, r.Min.X, r.Max.X) {
			dst = binary.LittleEndian.AppendUint32(dst, v)
		}
	}
	return dst
}

// AppendBell appends a bell.
func AppendBell(dst []byte) []byte { return append(dst, msgBell) }

// AppendEndOfUpdates announces continuous updates, or ends them.
func AppendEndOfUpdates(dst []byte) []byte { return append(dst, msgEndOfUpdates) }

// FenceRequest is the flag of a fence that wants an answer; FenceBlock are those
// that are honoured here by answering in order.
const (
	FenceRequest uint32 = 1 << 31
	FenceBlock   uint32 = 3
)

// AppendFence appends a fence, in either direction.
func AppendFence(dst []byte, flags uint32, payload []byte) []byte {
	dst = append(dst, msgServerFence, 0, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, flags)
	return append(append(dst, byte(len(payload))), payload...)
}
