// Package rfb speaks the remote framebuffer protocol (RFC 6143) with the
// extensions of TigerVNC and noVNC, and defines how the picture of a browser
// session is recorded. It holds no socket and starts no goroutine: readers take
// an io.Reader, encoders append to a slice.
//
// # Picture
//
// A Framebuffer holds the picture as 32-bit pixels and remembers, per tile of
// Tile×Tile pixels, the generation in which the tile last changed. Each reader
// keeps the generation it has seen and asks Damage for what changed since, so
// any number of viewers and a recorder share one framebuffer and none of them
// keeps a copy. An Encoder turns damage into Tight rectangles.
//
// # Tight, without state
//
// In Tight the zlib streams usually run on from rectangle to rectangle, so that
// a picture can only be decoded from its beginning. Every rectangle made here
// resets the stream it uses (the reset bit of its compression-control byte) and
// stands for itself: one encoding of a damaged rectangle is right for every
// viewer and for the recording, whenever they began. It is lossless: fill,
// two colours (1 bit), up to 256 colours (8 bits) or full colour.
//
// # Recording frames
//
// A recording is a sequence of frames with times; the times are the container's
// business. A frame is, in network byte order:
//
//	0   1  version, 1
//	1   1  flags: 1 keyframe, 2 the pointer's place is known, 4 a pointer image follows
//	2   2  width
//	4   2  height
//	6   2  pointer x (its hot spot)
//	8   2  pointer y
//	10  4  n, length of the pointer image, 0 without flag 4
//	14  n  pointer image: hot spot x, y, width, height (2 bytes each), then
//	       width·height pixels of 4 bytes R, G, B, alpha (not premultiplied);
//	       width 0 means the application hides the pointer
//	14+n … one whole FramebufferUpdate message (RFC 6143 §7.6.1), from its
//	       message-type byte on
//
// A keyframe holds the whole picture and the pointer image; its update begins
// with a DesktopSize rectangle (-223), also when the size did not change. The
// size changes only at keyframes. Other updates contain Tight rectangles only
// (encoding 7), perhaps preceded by CopyRect (encoding 1), perhaps none. The
// pointer image is repeated only when it changed.
//
// # Playing a recording in noVNC
//
// Give noVNC's RFB a channel object instead of an address, answer its handshake
// as a server would ("RFB 003.008\n"; security types 01 01; security result
// 00000000; ServerInit as made by AppendServerInit), ignore what it sends
// afterwards, and pass each frame from byte 14+n on as one message. To seek,
// pass the last keyframe at or before the wanted time and then every frame up
// to it: they may be passed at once. The picture is then that of the moment,
// whatever was shown before. The pointer is not part of the picture: the player
// draws the image at (x − hot spot x, y − hot spot y) over the canvas.
//
// # Limits
//
// Everything read is untrusted, from the X server of a container as well as
// from viewers: sizes are bounded by MaxWidth and MaxHeight, texts by what the
// caller allows, and every length is checked before memory is taken for it.
package rfb

import (
	"errors"
	"fmt"
	"image"
)

// Limits of what is accepted from a peer.
const (
	// MaxWidth and MaxHeight bound a framebuffer, in pixels.
	MaxWidth  = 7680
	MaxHeight = 4320
	// MaxCursor bounds each side of a pointer image, in pixels.
	MaxCursor = 256
	// MaxName bounds a desktop name, in bytes.
	MaxName = 1024
	// MaxEncodings bounds the list a client may announce.
	MaxEncodings = 256
	// MaxScreens bounds the screens of one desktop.
	MaxScreens = 16
	// MaxFence bounds a fence's payload, in bytes.
	MaxFence = 64
	// DefaultClipboard is the usual cap of one clipboard text, in bytes of UTF-8.
	DefaultClipboard = 16 << 20
	// MaxClipboard is the largest cap that may be set.
	MaxClipboard = 64 << 20
)

// Encoding is what a rectangle of an update is encoded with, or a
// pseudo-encoding announcing an ability (RFC 6143 §7.7, §7.8).
type Encoding int32

// The encodings used here.
const (
	Raw      Encoding = 0
	CopyRect Encoding = 1
	Tight    Encoding = 7

	DesktopSize         Encoding = -223
	LastRect            Encoding = -224
	CursorPseudo        Encoding = -239
	QEMUKeys            Encoding = -258
	LEDState            Encoding = -261
	DesktopName         Encoding = -307
	ExtendedDesktopSize Encoding = -308
	Fence               Encoding = -312
	ContinuousUpdates   Encoding = -313
	ExtendedMouse       Encoding = -316
	VMwareCursor        Encoding = 0x574d5664
	ExtendedClipboard   Encoding = -0x3f5e1a32 // 0xC0A1E5CE
)

// ErrProtocol is the cause of every error about bytes that break the protocol
// or exceed a limit.
var ErrProtocol = errors.New("remote framebuffer protocol broken")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// Cursor is the pointer's image. The zero value is no image: the application
// hides the pointer.
type Cursor struct {
	// Hot is the pixel that points.
	Hot image.Point
	// Width and Height are in pixels, at most MaxCursor.
	Width, Height int
	// RGBA holds four bytes per pixel, not premultiplied.
	RGBA []byte
}

// validSize reports whether a framebuffer may have this size.
func validSize(w, h int) bool { return w > 0 && h > 0 && w <= MaxWidth && h <= MaxHeight }
