package display

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"caponier/carrier/internal/xselect"
	"caponier/shared/rfb"
)

// clipboard is where the texts are. Text moves only when the other side asks
// for it: what a browser copies stays in its container until a viewer wants it.
type clipboard struct {
	// in is the last text from a viewer, which the X server may ask for.
	in    string
	hasIn bool
	// out says that the X server has a text to offer.
	out bool
	// waiting are the viewers to whom the X server's next text goes.
	waiting map[*viewer]bool
}

// abilities are announced to both sides.
const abilities = rfb.ClipboardRequest | rfb.ClipboardPeek | rfb.ClipboardNotify | rfb.ClipboardProvide

// textLimit is the longest text that is read from a viewer, or from the X server
// if v is nil.
func (d *Display) textLimit(v *viewer) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.locked:
		return 0
	case v == nil:
		return d.policy.ClipboardOut
	case v.opt.Control:
		return d.policy.ClipboardIn
	}
	return 0
}

// provide makes the message that hands a text over. A large one takes a while
// to compress: not while others wait.
func provide(text string, toServer bool) []byte {
	return rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardProvide, HasText: true, Text: text}, toServer)
}

// screenClipboard handles what the X server says.
func (d *Display) screenClipboard(c rfb.Clipboard) error {
	if c.Action == rfb.ClipboardProvide || c.Action == rfb.ClipboardText {
		d.deliver(c)
		return nil
	}
	d.mu.Lock()
	var reply []byte
	give := false
	switch c.Action {
	case rfb.ClipboardCaps:
		reply = rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardCaps, HasText: true, Actions: abilities}, true)
	case rfb.ClipboardNotify:
		d.clip.out = c.HasText
		if c.HasText {
			d.clip.hasIn, d.clip.in = false, "" // the browser owns the clipboard now
		}
		reply = d.offerLocked()
	case rfb.ClipboardRequest:
		give = d.clip.hasIn && !d.locked && d.policy.ClipboardIn > 0
	case rfb.ClipboardPeek:
		reply = rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardNotify, HasText: d.clip.hasIn}, true)
	}
	text := d.clip.in
	d.mu.Unlock()
	if give {
		reply = provide(text, true)
	}
	return d.screen.send(reply)
}

// offerLocked tells viewers that the browser has a text. For those that cannot
// ask the text is requested.
func (d *Display) offerLocked() (send []byte) {
	if d.locked || d.policy.ClipboardOut == 0 {
		return nil
	}
	plain := false
	for v := range d.viewers {
		switch {
		case !v.opt.Control:
		case v.can.extClipboard:
			v.say(rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardNotify, HasText: d.clip.out}, false))
		case d.clip.out:
			d.awaitLocked(v)
			plain = true
		}
	}
	d.wakeLocked()
	if plain {
		return d.fetchLocked()
	}
	return nil
}

func (d *Display) awaitLocked(v *viewer) {
	if d.clip.waiting == nil {
		d.clip.waiting = map[*viewer]bool{}
	}
	d.clip.waiting[v] = true
}

// lineEnds makes of an application's text what viewers get and events tell.
var lineEnds = strings.NewReplacer("\r\n", "\n", "\r", "\n")

var requestText = rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardRequest, HasText: true}, true)

// fetchLocked asks for the browser's text: as an X client, or else by what it
// returns to be sent.
func (d *Display) fetchLocked() (send []byte) {
	if d.cfg.DialX == nil {
		return requestText
	}
	select {
	case d.fetch <- struct{}{}:
	default: // it is being fetched and will be again
	}
	return nil
}

// fetchTexts gets texts as an X client, one at a time, until ctx ends.
func (d *Display) fetchTexts(ctx context.Context) error {
	for {
		select {
		case <-d.fetch:
		case <-ctx.Done():
			return nil
		}
		res, err := d.fetchText(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, xselect.ErrNone):
			continue
		case err != nil:
			d.cfg.Log.Warn("read the browser's clipboard", "session", d.cfg.Session, "err", err)
			if err := d.screen.send(requestText); err != nil { // what Xvnc can do is better than nothing
				return err
			}
			continue
		}
		c := rfb.Clipboard{Action: rfb.ClipboardProvide, HasText: true, Text: lineEnds.Replace(res.Text), TooLong: res.TooLong, Size: res.Size}
		if !c.TooLong {
			c.Size = len(c.Text)
		}
		d.deliver(c)
	}
}

func (d *Display) fetchText(ctx context.Context) (xselect.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	conn, err := d.cfg.DialX(ctx)
	if err != nil {
		return xselect.Result{}, fmt.Errorf("connect to the X server: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	return xselect.Text(conn, d.textLimit(nil))
}

// deliver gives a text of the browser to the viewers who asked.
func (d *Display) deliver(c rfb.Clipboard) {
	var message []byte
	if c.HasText && !c.TooLong {
		message = provide(c.Text, false)
	}
	d.mu.Lock()
	events := d.deliverLocked(c, message)
	d.mu.Unlock()
	for _, e := range events {
		d.cfg.Event(e)
	}
}

func (d *Display) deliverLocked(c rfb.Clipboard, message []byte) (events []Event) {
	waiting := d.clip.waiting
	d.clip.waiting = nil
	if !c.HasText || d.locked {
		return nil
	}
	for v := range waiting {
		if !d.viewers[v] || !v.opt.Control {
			continue
		}
		e := d.textEventLocked(ClipboardOut, v, c, d.policy.ClipboardOut)
		events = append(events, e)
		if e.Refused != "" {
			continue
		}
		v.text = message
		if !v.can.extClipboard {
			v.text = rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardText, Text: c.Text}, false)
		}
	}
	d.wakeLocked()
	return events
}

// textEventLocked describes a text that wants to cross.
func (d *Display) textEventLocked(kind EventKind, v *viewer, c rfb.Clipboard, limit int) Event {
	e := Event{Kind: kind, At: d.atLocked(), Viewer: v.opt.Name, Control: v.opt.Control, Bytes: c.Size}
	switch {
	case limit == 0:
		e.Refused = "not allowed"
	case c.TooLong || len(c.Text) > limit:
		e.Refused = fmt.Sprintf("longer than %d bytes", limit)
	default:
		sum := sha256.Sum256([]byte(c.Text))
		e.SHA256 = hex.EncodeToString(sum[:])
		if d.policy.RecordClipboard {
			e.Text = c.Text
		}
	}
	return e
}

// viewerClipboard handles what a viewer says.
func (d *Display) viewerClipboard(v *viewer, c rfb.Clipboard) error {
	d.mu.Lock()
	var reply []byte
	var events []Event
	switch free := v.opt.Control && !d.locked; {
	case c.Action == rfb.ClipboardCaps:
		v.can.extClipboard = true
	case !free:
	case c.Action == rfb.ClipboardNotify && c.HasText:
		// A text that may not come in is never asked for: it stays where it is.
		if d.policy.ClipboardIn > 0 {
			v.say(rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardRequest, HasText: true}, false))
			v.offered = true
			d.wakeLocked()
		}
	case c.Action == rfb.ClipboardPeek:
		v.say(rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardNotify, HasText: d.clip.out && d.policy.ClipboardOut > 0}, false))
		d.wakeLocked()
	case c.Action == rfb.ClipboardRequest && c.HasText:
		if d.clip.out && d.policy.ClipboardOut > 0 {
			d.awaitLocked(v)
			reply = d.fetchLocked()
		}
	case c.Action == rfb.ClipboardText, c.Action == rfb.ClipboardProvide && c.HasText && v.offered:
		v.offered = false
		e := d.textEventLocked(ClipboardIn, v, c, d.policy.ClipboardIn)
		events = append(events, e)
		if e.Refused == "" {
			d.clip.in, d.clip.hasIn, d.clip.out = c.Text, true, false
			reply = rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardNotify, HasText: true}, true)
		}
	}
	d.mu.Unlock()
	for _, e := range events {
		d.cfg.Event(e)
	}
	return d.screen.send(reply)
}
