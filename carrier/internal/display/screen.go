package display

import (
	"fmt"

	"caponier/shared/rfb"
)

// readScreen reads the X server's messages until it ends; it never returns nil.
// taken: the first picture is there already.
func (d *Display) readScreen(r *rfb.ServerReader, taken bool) error {
	d.mu.Lock()
	f := d.drawn
	d.mu.Unlock()
	var ask []byte
	if taken {
		ask = rfb.AppendRequest(nil, true, f.Bounds())
		close(d.ready)
	} else {
		ask = rfb.AppendRequest(hello(), false, f.Bounds())
	}
	if err := d.screen.send(ask); err != nil {
		return err
	}
	pixels, first := false, !taken
	for {
		e, err := r.Next(f, d.mu.Lock, d.mu.Unlock)
		if err != nil {
			return fmt.Errorf("%w: read from the X server: %w", ErrScreen, err)
		}
		switch e.Kind {
		case rfb.EventUpdate:
			d.mu.Lock()
			d.updating = !d.settled
			late := d.settled
			d.mu.Unlock()
			if late {
				return fmt.Errorf("%w: the display ends", ErrScreen)
			}
		case rfb.EventPixels:
			pixels = true
		case rfb.EventUpdateEnd:
			f = d.commit()
			if pixels && first {
				close(d.ready)
				first = false
			}
			d.frames.updates.Add(1)
			err = d.screen.send(rfb.AppendRequest(nil, true, f.Bounds()))
		default:
			err = d.handleScreen(e)
		}
		if err != nil {
			return err
		}
	}
}

// commit ends an update: what was drawn may be shown. It returns the
// framebuffer to draw in from now on.
func (d *Display) commit() *rfb.Framebuffer {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.updating = false
	if d.shown == d.drawn {
		d.drawn.CommitMoves()
	} else {
		d.drawn.Commit()
		d.composeLocked()
	}
	d.wakeLocked()
	return d.drawn
}

func (d *Display) handleScreen(e rfb.Event) error {
	switch e.Kind {
	case rfb.EventSize:
		d.resized(e)
	case rfb.EventCursor:
		d.mu.Lock()
		d.drawn.SetCursor(e.Cursor)
		d.mu.Unlock()
	case rfb.EventAbility:
		switch e.Encoding {
		case rfb.QEMUKeys:
			d.screen.scan.Store(true)
		case rfb.ExtendedMouse:
			d.screen.more.Store(true)
		}
	case rfb.EventLED:
		d.mu.Lock()
		d.led = e.Value
		d.ledGen++
		d.mu.Unlock()
	case rfb.EventBell:
		d.mu.Lock()
		for v := range d.viewers {
			v.bell = true
		}
		d.wakeLocked()
		d.mu.Unlock()
	case rfb.EventClipboard:
		return d.screenClipboard(e.Clipboard)
	case rfb.EventFence:
		if e.Value&rfb.FenceRequest != 0 {
			return d.screen.send(rfb.AppendFence(nil, e.Value&rfb.FenceBlock, e.Data))
		}
	}
	return nil
}

// resized takes the X server's word on the picture's size.
func (d *Display) resized(e rfb.Event) {
	d.mu.Lock()
	w, h := d.drawn.Size()
	granted := e.Reason != 1 || e.Status == 0
	change := granted && (e.Size.X != w || e.Size.Y != h)
	if change {
		d.drawn.Resize(e.Size.X, e.Size.Y)
	}
	if e.Reason == 1 {
		for v := range d.viewers {
			if v.asked {
				v.asked, v.answer = false, true
				v.status = e.Status
			}
		}
	}
	at := d.atLocked()
	d.mu.Unlock()
	if change {
		d.cfg.Event(Event{Kind: Resized, At: at, Width: e.Size.X, Height: e.Size.Y})
	}
}
