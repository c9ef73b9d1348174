package display

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"caponier/shared/rfb"
)

// ViewOptions says who views and what he may do.
type ViewOptions struct {
	// Name is the viewer's name in events.
	Name string
	// Control: keys, pointer, clipboard and size, within the policy. Without it
	// the viewer only looks, and sees where the pointer is.
	Control bool
}

// maxSay bounds the small messages that wait for one viewer, in bytes.
const maxSay = 64 << 10

// viewer is one connection. All its fields but the first line are guarded by
// Display.mu.
type viewer struct {
	opt ViewOptions

	can struct{ tight, copyRect, extSize, size, cursor, keys, led, mouse, fence, updates, extClipboard bool }
	// told: abilities were announced.
	told bool

	wants      bool // an update was asked for
	continuous bool // updates need not be asked for
	pace       pace
	seen       uint64 // generation of the picture it has
	shaped     uint64
	led        uint64
	// asked for a size; answer with status is due.
	asked, answer bool
	status        int

	bell bool
	// out are small messages, text is the last clipboard text.
	out, text []byte
	full      bool // out was

	offered bool // it was asked for its clipboard text
	at      image.Point
	buttons uint16
	// overlay is the pointer drawn for one who only looks.
	overlay overlay
	changes rfb.Changes
	// repeat are parts of the picture it asked for although it has them.
	repeat []image.Rectangle
}

// maxRepeat bounds the parts that wait to be repeated; their size is bounded so
// that each is one rectangle.
const (
	maxRepeat     = 16
	maxRepeatSide = 256
)

// again takes a request that is not incremental. Small parts are repeated by
// themselves: viewers ask for a pixel to measure the way to here and back.
func (v *viewer) again(r, all image.Rectangle) {
	if r = r.Intersect(all); r.Empty() {
		return
	}
	if r.Dx() > maxRepeatSide || r.Dy() > maxRepeatSide || len(v.repeat) == maxRepeat {
		v.seen, v.shaped, v.repeat = 0, 0, nil
		return
	}
	v.repeat = append(v.repeat, r)
}

// say queues a small message.
func (v *viewer) say(b []byte) {
	if len(v.out)+len(b) > maxSay {
		v.full = true
		return
	}
	v.out = append(v.out, b...)
}

// View serves one viewer on conn until it leaves (nil), ctx ends (nil), the
// display ends (ErrClosed) or it misbehaves (ErrViewer). conn stays open, with
// deadlines in the past.
func (d *Display) View(ctx context.Context, conn net.Conn, opt ViewOptions) error {
	select {
	case <-d.ready:
	case <-d.done:
		return ErrClosed
	case <-ctx.Done():
		return nil
	}
	v := &viewer{opt: opt, pace: newPace()}
	init, err := d.join(v)
	if err != nil {
		return err
	}
	defer d.leave(v)
	return d.serve(ctx, conn, v, init)
}

// join registers a viewer.
func (d *Display) join(v *viewer) (rfb.Init, error) {
	d.mu.Lock()
	if d.ended {
		d.mu.Unlock()
		return rfb.Init{}, ErrClosed
	}
	if len(d.viewers) >= MaxViewers {
		d.mu.Unlock()
		return rfb.Init{}, ErrViewers
	}
	d.viewers[v] = true
	w, h := d.shown.Size()
	at := d.atLocked()
	d.mu.Unlock()
	d.cfg.Event(Event{Kind: ViewerJoined, At: at, Viewer: v.opt.Name, Control: v.opt.Control})
	return rfb.Init{Width: w, Height: h, Name: d.cfg.Session}, nil
}

func (d *Display) leave(v *viewer) {
	d.mu.Lock()
	release := d.releaseLocked(v)
	delete(d.viewers, v)
	delete(d.clip.waiting, v)
	if len(d.viewers) == 0 {
		d.enc.Forget()
	}
	at, ended := d.atLocked(), d.ended
	d.mu.Unlock()
	if !ended {
		_ = d.screen.send(release) // when the X server is gone Run says so
	}
	d.cfg.Event(Event{Kind: ViewerLeft, At: at, Viewer: v.opt.Name, Control: v.opt.Control})
}

var errStop = errors.New("stop")

func (d *Display) serve(ctx context.Context, conn net.Conn, v *viewer, init rfb.Init) error {
	group, inner := errgroup.WithContext(ctx)
	stop := context.AfterFunc(inner, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	shook := make(chan struct{})
	group.Go(func() error {
		if err := conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
			return fmt.Errorf("%w: %w", ErrViewer, err)
		}
		if err := rfb.ServerHandshake(conn, init); err != nil {
			return fmt.Errorf("%w: %w", ErrViewer, err)
		}
		if err := conn.SetDeadline(time.Time{}); err != nil {
			return fmt.Errorf("%w: %w", ErrViewer, err)
		}
		if inner.Err() != nil { // the deadline that ends us must not be lost
			return errStop
		}
		close(shook)
		return d.readViewer(rfb.NewClientReader(conn, func() int { return d.textLimit(v) }), v)
	})
	group.Go(func() error {
		select {
		case <-shook:
			return d.writeViewer(inner, conn, v)
		case <-inner.Done():
			return errStop
		}
	})
	group.Go(func() error {
		select {
		case <-d.done:
			return ErrClosed
		case <-inner.Done():
			return errStop
		}
	})
	err := group.Wait()
	if ctx.Err() != nil || errors.Is(err, errStop) {
		return nil
	}
	return err
}

// readViewer reads until the viewer leaves, which is errStop.
func (d *Display) readViewer(r *rfb.ClientReader, v *viewer) error {
	for {
		m, err := r.Next()
		switch {
		case errors.Is(err, rfb.ErrProtocol):
			return fmt.Errorf("%w: %w", ErrViewer, err)
		case err != nil:
			return errStop
		}
		if err := d.handleViewer(v, m); err != nil {
			return err
		}
	}
}

func (d *Display) handleViewer(v *viewer, m rfb.Message) error {
	switch m.Kind {
	case rfb.MessageKey, rfb.MessagePointer, rfb.MessageSize:
		if !v.opt.Control {
			return nil
		}
		return d.input(v, m)
	case rfb.MessageClipboard:
		return d.viewerClipboard(v, m.Clipboard)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch m.Kind {
	case rfb.MessageEncodings:
		if err := v.understand(m.Encodings); err != nil {
			return err
		}
	case rfb.MessageRequest:
		v.wants = true
		if !m.Incremental {
			v.again(m.Rect, d.shown.Bounds())
		}
	case rfb.MessageUpdates:
		v.continuous = m.Down
		if !m.Down {
			v.say(rfb.AppendEndOfUpdates(nil))
		}
	case rfb.MessageFence:
		if m.Flags&rfb.FenceRequest != 0 {
			v.say(rfb.AppendFence(nil, m.Flags&rfb.FenceBlock, m.Payload))
		} else if !v.pace.answer(d.cfg.Now()) {
			return fmt.Errorf("%w: a fence was answered that was not sent", ErrViewer)
		}
	}
	d.wakeLocked()
	return nil
}

// input passes keys, pointer and wishes for a size on.
func (d *Display) input(v *viewer, m rfb.Message) error {
	d.mu.Lock()
	var send []byte
	var blocked *Combination
	switch m.Kind {
	case rfb.MessageKey:
		send, blocked = d.keyLocked(v, m.Key, m.Down)
	case rfb.MessagePointer:
		send = d.pointerLocked(v, m.At, m.Buttons)
	case rfb.MessageSize:
		send = d.sizeLocked(v, m.Size)
	}
	if !d.locked && m.Kind != rfb.MessageSize { // a page asks for its size by itself
		d.lastInput.Store(d.cfg.Now().UnixNano())
	}
	at := d.atLocked()
	d.mu.Unlock()
	if blocked != nil {
		d.cfg.Event(Event{Kind: KeyBlocked, At: at, Viewer: v.opt.Name, Control: true, Keys: blocked.String()})
	}
	return d.screen.send(send)
}

// sizeLocked asks the X server for the size a viewer wants. The answer comes
// with the X server's.
func (d *Display) sizeLocked(v *viewer, size image.Point) []byte {
	w, h := d.drawn.Size()
	size = image.Pt(max(MinWidth, min(size.X, rfb.MaxWidth)), max(MinHeight, min(size.Y, rfb.MaxHeight)))
	if d.locked || size.X*size.Y > MaxPixels || size == image.Pt(w, h) {
		v.answer, v.status = true, 0
		if size != image.Pt(w, h) {
			v.status = 1
		}
		d.wakeLocked()
		return nil
	}
	v.asked = true
	return rfb.AppendSetSize(nil, size.X, size.Y)
}

// understand takes a viewer's list of encodings.
func (v *viewer) understand(list []rfb.Encoding) error {
	has := func(e rfb.Encoding) bool { return slices.Contains(list, e) }
	if !has(rfb.Tight) {
		return fmt.Errorf("%w: it does not understand Tight encoding", ErrViewer)
	}
	if !has(rfb.ExtendedDesktopSize) && !has(rfb.DesktopSize) {
		return fmt.Errorf("%w: it does not understand a change of size", ErrViewer)
	}
	ext := v.can.extClipboard
	v.can.tight, v.can.copyRect = true, has(rfb.CopyRect)
	v.can.extSize, v.can.size = has(rfb.ExtendedDesktopSize), has(rfb.DesktopSize)
	v.can.cursor, v.can.keys, v.can.led = has(rfb.VMwareCursor), has(rfb.QEMUKeys), has(rfb.LEDState)
	v.can.mouse, v.can.fence, v.can.updates = has(rfb.ExtendedMouse), has(rfb.Fence), has(rfb.ContinuousUpdates)
	if v.told {
		return nil
	}
	if has(rfb.ExtendedClipboard) && v.opt.Control && !ext {
		v.say(rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardCaps, HasText: true, Actions: abilities}, false))
	}
	if v.can.fence && v.can.updates {
		v.say(rfb.AppendEndOfUpdates(nil)) // announces them
	}
	return nil
}

// writeViewer sends what there is whenever the viewer is ready for it.
func (d *Display) writeViewer(ctx context.Context, conn net.Conn, v *viewer) error {
	for {
		bufs, frame, changed, err := d.next(v)
		if err != nil {
			return err
		}
		if len(bufs) == 0 {
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return errStop
			}
		}
		n := 0
		for _, b := range bufs {
			n += len(b)
		}
		if err := writeAll(ctx, conn, bufs); err != nil {
			return err
		}
		d.frames.viewerBytes.Add(uint64(n))
		if frame {
			d.frames.viewer.Add(1)
		}
	}
}

// writeChunk is written with one deadline: a line that takes less in
// ViewerTimeout is as good as dead.
const writeChunk = 256 << 10

func writeAll(ctx context.Context, conn net.Conn, bufs net.Buffers) error {
	for len(bufs) > 0 {
		part, size := bytes.Buffer{}, 0
		for len(bufs) > 0 && (size == 0 || size+len(bufs[0]) <= writeChunk) {
			size += len(bufs[0])
			part.Write(bufs[0])
			bufs = bufs[1:]
		}
		if err := conn.SetWriteDeadline(time.Now().Add(ViewerTimeout)); err != nil {
			return errStop
		}
		if ctx.Err() != nil {
			return errStop
		}
		if _, err := conn.Write(part.Bytes()); err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() && ctx.Err() == nil {
				return fmt.Errorf("%w: it took nothing for %v", ErrViewer, ViewerTimeout)
			}
			return errStop
		}
	}
	return nil
}

// next collects what may be sent to a viewer now. changed is closed when asking
// again may have another answer.
func (d *Display) next(v *viewer) (bufs net.Buffers, frame bool, changed <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = d.changed
	if v.full {
		return nil, false, changed, fmt.Errorf("%w: it does not read", ErrViewer)
	}
	if len(v.out) > 0 {
		bufs, v.out = append(bufs, v.out), nil
	}
	if len(v.text) > 0 {
		bufs, v.text = append(bufs, v.text), nil
	}
	if v.bell {
		bufs, v.bell = append(bufs, rfb.AppendBell(nil)), false
	}
	if !v.can.tight || d.tornLocked() || !(v.wants || v.continuous && v.pace.ready()) {
		return bufs, false, changed, nil
	}
	update := d.updateLocked(v)
	if len(update) == 0 {
		return bufs, false, changed, nil
	}
	bufs = append(bufs, update...)
	v.wants = false
	if v.continuous {
		v.pace.send(d.cfg.Now())
		bufs = append(bufs, rfb.AppendFence(nil, rfb.FenceRequest|rfb.FenceBlock, nil))
	}
	return bufs, true, changed, nil
}

// updateLocked makes the update that brings a viewer up to date; nil if it is.
func (d *Display) updateLocked(v *viewer) net.Buffers {
	var head []byte // pseudo-rectangles, which come first
	n := 0
	add := func(b []byte) { head, n = b, n+1 }
	w, h := d.shown.Size()
	if d.shown.Sized() > v.seen || v.answer {
		switch {
		case v.can.extSize && v.answer:
			add(rfb.AppendExtendedSize(head, w, h, 1, v.status))
		case v.can.extSize:
			add(rfb.AppendExtendedSize(head, w, h, 0, 0))
		default:
			add(rfb.AppendDesktopSize(head, w, h))
		}
		v.answer, v.overlay = false, overlay{}
	}
	if !v.told {
		v.told = true
		if v.can.keys {
			add(rfb.AppendAbility(head, rfb.QEMUKeys))
		}
		if v.can.mouse {
			add(rfb.AppendAbility(head, rfb.ExtendedMouse))
		}
	}
	if v.can.led && d.ledGen > v.led {
		v.led = d.ledGen
		add(rfb.AppendLED(head, byte(d.led)))
	}
	if v.can.cursor && v.opt.Control && d.shown.Shaped() > v.shaped {
		v.shaped = d.shown.Shaped()
		add(rfb.AppendCursor(head, d.shown.Cursor()))
	}
	bufs := net.Buffers{nil}
	d.changesLocked(v)
	for _, m := range v.changes.Moves {
		bufs, n = append(bufs, rfb.AppendCopyRect(nil, m.To, m.From)), n+1
	}
	for _, r := range v.changes.Rects {
		bufs, n = append(bufs, d.enc.Rect(d.shown, r)), n+1
	}
	for _, r := range v.repeat {
		if r.In(d.shown.Bounds()) { // else the size changed since
			bufs, n = append(bufs, d.enc.AppendRect(nil, d.shown, r)), n+1
			v.changes.Rects = append(v.changes.Rects, r)
		}
	}
	v.repeat = nil
	if !v.opt.Control {
		for _, b := range d.drawPointerLocked(v) {
			bufs, n = append(bufs, b), n+1
		}
	}
	v.seen = d.shown.Gen()
	if n == 0 {
		return nil
	}
	bufs[0] = append(rfb.AppendUpdate(nil, n), head...)
	return bufs
}

// changesLocked finds out what v lacks. Where the pointer is drawn for it, it
// has not what the picture has.
func (d *Display) changesLocked(v *viewer) {
	switch {
	case !v.can.copyRect || v.seen == 0:
		v.changes.Moves, v.changes.Rects = nil, d.shown.Damage(v.seen, v.changes.Rects[:0])
	case v.overlay.area.Empty():
		v.changes = d.shown.Changes(v.seen, v.changes)
	default:
		v.changes = d.shown.Changes(v.seen, v.changes, v.overlay.area)
	}
}
