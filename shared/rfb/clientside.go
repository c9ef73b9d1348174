package rfb

import (
	"bufio"
	"encoding/binary"
	"image"
	"io"
)

// Types of messages from client to server.
const (
	msgSetFormat     = 0
	msgSetEncodings  = 2
	msgRequest       = 3
	msgKey           = 4
	msgPointer       = 5
	msgClientCut     = 6
	msgEnableUpdates = 150
	msgClientFence   = 248
	msgXVP           = 250
	msgSetSize       = 251
	msgQEMU          = 255
)

// MessageKind says what a Message is.
type MessageKind uint8

// The kinds.
const (
	// MessageEncodings: the client understands Encodings.
	MessageEncodings MessageKind = iota + 1
	// MessageRequest: the client wants Rect, only what changed if Incremental.
	MessageRequest
	// MessageUpdates: continuous updates of Rect are wanted if Down.
	MessageUpdates
	// MessageKey: Key was pressed if Down, else released.
	MessageKey
	// MessagePointer: the pointer is at At, Buttons are pressed.
	MessagePointer
	// MessageClipboard: Clipboard was said.
	MessageClipboard
	// MessageFence: Flags and Payload.
	MessageFence
	// MessageSize: the client wants the picture to be Size.
	MessageSize
	// MessageIgnored is one that means nothing here.
	MessageIgnored
)

// Key is one key of a keyboard.
type Key struct {
	// Sym is the X keysym, 0 if unknown.
	Sym uint32
	// Code is the XT scan code (0xe0 prefix as bit 7), 0 if unknown.
	Code uint32
}

// Message is one thing a client said.
type Message struct {
	Kind        MessageKind
	Encodings   []Encoding
	Rect        image.Rectangle
	Incremental bool
	Down        bool
	Key         Key
	At          image.Point
	// Buttons has bit n set while button n+1 is pressed; at most 9 bits.
	Buttons   uint16
	Clipboard Clipboard
	Flags     uint32
	Payload   []byte
	Size      image.Point
}

// ClientReader reads what a client says.
type ClientReader struct {
	r         *bufio.Reader
	clipboard func() int
}

// NewClientReader reads from r after the handshake. clipboard is asked for each
// message with text, for the longest that is read, in bytes; more is skipped.
func NewClientReader(r io.Reader, clipboard func() int) *ClientReader {
	return &ClientReader{r: bufio.NewReaderSize(r, 4<<10), clipboard: clipboard}
}

// Next reads one message.
func (c *ClientReader) Next() (Message, error) {
	t, err := c.r.ReadByte()
	if err != nil {
		return Message{}, err
	}
	switch t {
	case msgSetFormat:
		b, err := c.bytes(19)
		if err != nil {
			return Message{}, err
		}
		return Message{Kind: MessageIgnored}, checkFormat(b[3:])
	case msgSetEncodings:
		return c.encodings()
	case msgRequest:
		b, err := c.bytes(9)
		if err != nil {
			return Message{}, err
		}
		return Message{Kind: MessageRequest, Incremental: b[0] != 0, Rect: rectOf(b[1:])}, nil
	case msgKey:
		b, err := c.bytes(7)
		if err != nil {
			return Message{}, err
		}
		return Message{Kind: MessageKey, Down: b[0] != 0, Key: Key{Sym: binary.BigEndian.Uint32(b[3:])}}, nil
	case msgPointer:
		return c.pointer()
	case msgClientCut:
		clip, err := readClipboard(c.r, c.clipboard())
		return Message{Kind: MessageClipboard, Clipboard: clip}, err
	case msgEnableUpdates:
		b, err := c.bytes(9)
		if err != nil {
			return Message{}, err
		}
		return Message{Kind: MessageUpdates, Down: b[0] != 0, Rect: rectOf(b[1:])}, nil
	case msgClientFence:
		flags, payload, err := readFence(c.r)
		return Message{Kind: MessageFence, Flags: flags, Payload: payload}, err
	case msgXVP:
		_, err := c.bytes(3)
		return Message{Kind: MessageIgnored}, err
	case msgSetSize:
		return c.setSize()
	case msgQEMU:
		b, err := c.bytes(11)
		if err != nil {
			return Message{}, err
		}
		if b[0] != 0 { // audio
			return Message{}, broken("QEMU message %d", b[0])
		}
		k := Key{Sym: binary.BigEndian.Uint32(b[3:]), Code: binary.BigEndian.Uint32(b[7:])}
		return Message{Kind: MessageKey, Down: binary.BigEndian.Uint16(b[1:]) != 0, Key: k}, nil
	default:
		return Message{}, broken("message type %d from the client", t)
	}
}

// bytes reads n bytes, valid until the next read.
func (c *ClientReader) bytes(n int) ([]byte, error) {
	b, err := c.r.Peek(n)
	if err != nil {
		return nil, unexpected(err)
	}
	_, err = c.r.Discard(n)
	return b, err
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func rectOf(b []byte) image.Rectangle {
	x, y := int(binary.BigEndian.Uint16(b[0:])), int(binary.BigEndian.Uint16(b[2:]))
	return image.Rect(x, y, x+int(binary.BigEndian.Uint16(b[4:])), y+int(binary.BigEndian.Uint16(b[6:])))
}

func (c *ClientReader) encodings() (Message, error) {
	b, err := c.bytes(3)
	if err != nil {
		return Message{}, err
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if n > MaxEncodings {
		return Message{}, broken("%d encodings", n)
	}
	m := Message{Kind: MessageEncodings, Encodings: make([]Encoding, n)}
	for i := range n {
		b, err := c.bytes(4)
		if err != nil {
			return Message{}, err
		}
		m.Encodings[i] = Encoding(binary.BigEndian.Uint32(b))
	}
	return m, nil
}

// pointer reads a PointerEvent, which carries two more buttons when the highest
// bit is set (ExtendedMouse); a server that did not announce that takes the bit
// for button 8, but this one always announces it to whom it may concern.
func (c *ClientReader) pointer() (Message, error) {
	b, err := c.bytes(5)
	if err != nil {
		return Message{}, err
	}
	m := Message{Kind: MessagePointer, Buttons: uint16(b[0] & 0x7f)}
	m.At = image.Pt(int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:])))
	if b[0]&0x80 != 0 {
		high, err := c.r.ReadByte()
		if err != nil {
			return Message{}, unexpected(err)
		}
		m.Buttons |= uint16(high&3) << 7
	}
	return m, nil
}

func (c *ClientReader) setSize() (Message, error) {
	b, err := c.bytes(7)
	if err != nil {
		return Message{}, err
	}
	size := image.Pt(int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:])))
	if b[5] > MaxScreens {
		return Message{}, broken("%d screens", b[5])
	}
	_, err = c.r.Discard(16 * int(b[5]))
	return Message{Kind: MessageSize, Size: size}, err
}

// AppendSetPixelFormat asks for the pixels that Framebuffer.SetRaw takes.
func AppendSetPixelFormat(dst []byte) []byte {
	return append(append(dst, msgSetFormat, 0, 0, 0), pixelFormat...)
}

// AppendSetEncodings tells what the client understands, best first.
func AppendSetEncodings(dst []byte, e ...Encoding) []byte {
	dst = binary.BigEndian.AppendUint16(append(dst, msgSetEncodings, 0), uint16(len(e)))
	for _, v := range e {
		dst = binary.BigEndian.AppendUint32(dst, uint32(v))
	}
	return dst
}

// AppendRequest asks for r, or for what changes in it.
func AppendRequest(dst []byte, incremental bool, r image.Rectangle) []byte {
	return appendRect(append(dst, msgRequest, flag(incremental)), r)
}

// AppendEnableUpdates switches continuous updates of r.
func AppendEnableUpdates(dst []byte, on bool, r image.Rectangle) []byte {
	return appendRect(append(dst, msgEnableUpdates, flag(on)), r)
}

func appendRect(dst []byte, r image.Rectangle) []byte {
	for _, v := range [...]int{r.Min.X, r.Min.Y, r.Dx(), r.Dy()} {
		dst = binary.BigEndian.AppendUint16(dst, uint16(v))
	}
	return dst
}

func flag(on bool) byte {
	if on {
		return 1
	}
	return 0
}

// AppendKey presses or releases a key. scan says that the server announced
// QEMUKeys; the key's code is then sent, which does not depend on layouts.
func AppendKey(dst []byte, k Key, down, scan bool) []byte {
	if scan && k.Code != 0 {
		dst = append(dst, msgQEMU, 0, 0, flag(down))
		dst = binary.BigEndian.AppendUint32(dst, k.Sym)
		return binary.BigEndian.AppendUint32(dst, k.Code)
	}
	return binary.BigEndian.AppendUint32(append(dst, msgKey, flag(down), 0, 0), k.Sym)
}

// AppendPointer moves the pointer. more says that the server announced
// ExtendedMouse; without it the ninth button is lost.
func AppendPointer(dst []byte, at image.Point, buttons uint16, more bool) []byte {
	low := byte(buttons)
	if more {
		low &= 0x7f
		if buttons>>7 != 0 {
			low |= 0x80
		}
	}
	dst = append(dst, msgPointer, low)
	dst = binary.BigEndian.AppendUint16(dst, uint16(at.X))
	dst = binary.BigEndian.AppendUint16(dst, uint16(at.Y))
	if more && low&0x80 != 0 {
		dst = append(dst, byte(buttons>>7))
	}
	return dst
}

// AppendSetSize asks for a picture of this size.
func AppendSetSize(dst []byte, w, h int) []byte {
	dst = append(dst, msgSetSize, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(w))
	dst = binary.BigEndian.AppendUint16(dst, uint16(h))
	return appendScreen(append(dst, 1, 0), w, h)
}
