package display

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"

	"caponier/shared/rfb"
)

// Screen is a connection to an X server whose whole picture was taken already,
// and nothing is asked for since. A display that begins with one has its picture
// at once: megabytes of pixels need not pass while the browser wants the
// processor for its first page.
type Screen struct {
	conn   net.Conn
	init   rfb.Init
	reader *rfb.ServerReader
	drawn  *rfb.Framebuffer
	text   atomic.Pointer[func() int] // bounds a clipboard text

	scan, more bool
	led        uint32
	caps       []rfb.Clipboard // what it can do with clipboards, as said last
}

// Connect makes a Screen. It waits until the X server is up, as Run does.
func Connect(ctx context.Context, dial func(ctx context.Context) (net.Conn, error)) (*Screen, error) {
	conn, init, err := connect(ctx, dial)
	if err != nil {
		return nil, err
	}
	s := screenOf(conn, init)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = s.first()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: the first picture: %w", ErrScreen, err)
	}
	return s, nil
}

func screenOf(conn net.Conn, init rfb.Init) *Screen {
	s := &Screen{conn: conn, init: init, drawn: rfb.NewFramebuffer(init.Width, init.Height)}
	none := func() int { return 0 }
	s.text.Store(&none)
	s.reader = rfb.NewServerReader(conn, rfb.ServerLimits{Pixels: MaxPixels, Clipboard: func() int { return (*s.text.Load())() }})
	return s
}

// Size is the picture's, in pixels.
func (s *Screen) Size() (w, h int) { return s.drawn.Size() }

// Close gives up a screen that no display was made with. A nil one has nothing
// to close.
func (s *Screen) Close() {
	if s != nil {
		s.conn.Close()
	}
}

// hello is what the X server is told first.
func hello() []byte {
	return rfb.AppendSetEncodings(rfb.AppendSetPixelFormat(nil), rfb.CopyRect, rfb.Raw, rfb.ExtendedDesktopSize, rfb.DesktopSize, rfb.LastRect,
		rfb.VMwareCursor, rfb.CursorPseudo, rfb.QEMUKeys, rfb.LEDState, rfb.ExtendedMouse, rfb.ExtendedClipboard)
}

// first reads until the whole picture is there.
func (s *Screen) first() error {
	ask := rfb.AppendRequest(hello(), false, s.drawn.Bounds())
	pixels, alone := false, func() {}
	for {
		if len(ask) > 0 {
			if _, err := s.conn.Write(ask); err != nil {
				return err
			}
		}
		e, err := s.reader.Next(s.drawn, alone, alone)
		if err != nil {
			return err
		}
		ask = nil
		switch e.Kind {
		case rfb.EventPixels:
			pixels = true
		case rfb.EventUpdateEnd:
			s.drawn.CommitMoves()
			if pixels {
				return nil
			}
			// What was asked for is still due: this update told the size.
			ask = rfb.AppendRequest(nil, true, s.drawn.Bounds())
		case rfb.EventSize:
			if w, h := s.drawn.Size(); (e.Reason != 1 || e.Status == 0) && (e.Size.X != w || e.Size.Y != h) {
				s.drawn.Resize(e.Size.X, e.Size.Y)
			}
		case rfb.EventCursor:
			s.drawn.SetCursor(e.Cursor)
		case rfb.EventAbility:
			s.scan = s.scan || e.Encoding == rfb.QEMUKeys
			s.more = s.more || e.Encoding == rfb.ExtendedMouse
		case rfb.EventLED:
			s.led = e.Value
		case rfb.EventClipboard:
			if e.Clipboard.Action == rfb.ClipboardCaps {
				s.caps = []rfb.Clipboard{e.Clipboard}
			}
		case rfb.EventFence:
			if e.Value&rfb.FenceRequest != 0 {
				ask = rfb.AppendFence(nil, e.Value&rfb.FenceBlock, e.Data)
			}
		}
	}
}
