// Package display owns the picture of one browser session. It is the only
// client of the session's X server: it decodes what that draws once, shows it
// to any number of viewers, writes it to a recording, and passes on the input
// of those who may control it.
//
// # Invariants
//
//   - A viewer costs nobody else anything: frames are made when it is ready for
//     one, from what changed since its last one; one that does not read holds at
//     most one frame and is dropped after ViewerTimeout.
//   - Viewers and recording share encodings (package rfb); an idle picture costs
//     neither time nor bytes.
//   - What the recording holds is what viewers were shown, banner and watermark
//     included. A recording that cannot be written ends the session.
//   - While the display is locked no key, pointer or clipboard text passes in
//     either direction.
//   - Texts cross the clipboard only from and to viewers that control, within
//     the policy's limits; every crossing and every refusal is an event.
//
// A Display does not survive its connection. To take over a running X server,
// make a new one: its recording begins with a keyframe.
package display

import (
	"context"
	"errors"
	"fmt"
	"image"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"caponier/shared/rfb"
)

// Errors of Run and View.
var (
	// ErrScreen: the X server ended, broke the protocol or did not answer.
	ErrScreen = errors.New("the browser's screen is gone")
	// ErrRecording: the recording could not be written.
	ErrRecording = errors.New("the session cannot be recorded")
	// ErrClosed: the display has ended.
	ErrClosed = errors.New("the session has ended")
	// ErrViewers: there are as many viewers as are allowed.
	ErrViewers = errors.New("too many viewers")
	// ErrViewer: the viewer broke the protocol or does not read.
	ErrViewer = errors.New("viewer dropped")
)

// Bounds and times.
const (
	// MaxViewers is how many viewers one display serves.
	MaxViewers = 32
	// MaxPixels is the largest picture.
	MaxPixels = 3840 * 2160
	// MinWidth and MinHeight are the smallest picture a viewer may ask for.
	MinWidth  = 320
	MinHeight = 240
	// ViewerTimeout is how long a viewer may take nothing of what is sent.
	ViewerTimeout = 60 * time.Second
	// RecordEvery is the shortest time between two recorded frames.
	RecordEvery = time.Second / 15

	handshakeTimeout = 10 * time.Second
	screenTimeout    = 10 * time.Second
	fetchTimeout     = 15 * time.Second
	// startTimeout is how long an X server may take to come up.
	startTimeout = time.Minute
	startPause   = 200 * time.Millisecond
	// settleTime is how long the end waits for an update to be complete.
	settleTime = 250 * time.Millisecond
)

// Config is what a Display needs.
type Config struct {
	// Session names the session in logs and to viewers.
	Session string
	// Screen is where the display begins; nil: it connects by Dial. The display
	// closes it when Run ends.
	Screen *Screen
	// Dial connects to the X server's RFB socket.
	Dial func(ctx context.Context) (net.Conn, error)
	// DialX connects to the X server as its client, for texts that applications
	// put on the clipboard. Nil: only those that Xvnc can take itself come out,
	// which are at most 256 KiB.
	DialX func(ctx context.Context) (net.Conn, error)
	// Policy holds until SetPolicy.
	Policy Policy
	// Record takes the recording's frames (package rfb), in order, one at a time;
	// at counts from Start. Nil: the session is not recorded. An error ends Run.
	Record func(at time.Duration, frame []byte, keyframe bool) error
	// Keyframes may be zero: rfb.DefaultKeyframes.
	Keyframes rfb.Keyframes
	// Event takes what is to be audited. It is called by several goroutines and
	// must not block for long. May be nil.
	Event func(Event)
	// Start is the beginning of the session's timeline; zero means when Run began.
	Start time.Time
	Now   func() time.Time
	Log   *slog.Logger
}

// Policy is what a session's user may do with its display.
type Policy struct {
	// ClipboardIn and ClipboardOut cap one text to and from the browser, in bytes
	// of UTF-8; 0 means that none passes. At most rfb.MaxClipboard.
	ClipboardIn, ClipboardOut int
	// RecordClipboard puts texts, not only their size and hash, into events.
	RecordClipboard bool
	// Watermark is drawn over the whole picture, line by line.
	Watermark []string
	// Blocked are key combinations that do not reach the browser.
	Blocked []Combination
}

func (p Policy) check() error {
	if p.ClipboardIn < 0 || p.ClipboardIn > rfb.MaxClipboard || p.ClipboardOut < 0 || p.ClipboardOut > rfb.MaxClipboard {
		return fmt.Errorf("clipboard limits must be between 0 and %d bytes", rfb.MaxClipboard)
	}
	if len(p.Watermark) > 8 {
		return errors.New("a watermark has at most 8 lines")
	}
	return nil
}

// EventKind says what an Event is about.
type EventKind string

// The kinds.
const (
	ClipboardIn  EventKind = "clipboard-in"
	ClipboardOut EventKind = "clipboard-out"
	ViewerJoined EventKind = "viewer-joined"
	ViewerLeft   EventKind = "viewer-left"
	Resized      EventKind = "resized"
	KeyBlocked   EventKind = "key-blocked"
)

// Event is something that belongs in the session's audit trail.
type Event struct {
	Kind EventKind
	// At counts from the start of the session.
	At time.Duration
	// Viewer is the name of the viewer concerned.
	Viewer string
	// Bytes and SHA256 (hex) are those of a clipboard text; Text is set when the
	// policy records it. Refused says why it did not pass, else it is empty;
	// SHA256 and Text are then empty too.
	Bytes   int
	SHA256  string
	Text    string
	Refused string
	// Control says of a viewer that it may do more than look.
	Control bool
	// Width and Height are a new size.
	Width, Height int
	// Keys names a blocked combination.
	Keys string
}

// Stats counts what a display did.
type Stats struct {
	Viewers       int
	Width, Height int
	// Updates of the X server, frames and bytes sent to viewers and recorded.
	Updates                     uint64
	ViewerFrames, ViewerBytes   uint64
	RecordFrames, RecordBytes   uint64
	EncodedRects, SharedRects   uint64
	EncodedPixels, EncodedBytes uint64
}

// Display is the picture of one session.
type Display struct {
	cfg   Config
	ready chan struct{} // closed when the first picture is there
	done  chan struct{} // closed when Run has ended
	// screen is where input goes.
	screen screen
	// fetch wakes the goroutine that gets a text from the X server.
	fetch chan struct{}
	// lastInput is the time of the last key or pointer event, in Unix nanoseconds.
	lastInput atomic.Int64

	frames struct{ updates, viewer, viewerBytes, record, recordBytes atomic.Uint64 }

	mu sync.Mutex // guards all below
	// drawn is the X server's picture. shown is what viewers get: the same, or a
	// copy with banner and watermark on it that is current up to composed.
	drawn, shown *rfb.Framebuffer
	composed     uint64
	overlays     overlays
	enc          *rfb.Encoder
	// settled: the end has come, no further update is begun.
	settled bool
	// updating: the X server is in the middle of an update of drawn.
	updating bool
	// changed is closed and replaced when there is something new to show.
	changed chan struct{}
	pointer *image.Point
	led     uint32
	ledGen  uint64
	viewers map[*viewer]bool
	policy  Policy
	locked  bool
	notice  string // Notice
	lockMsg string // Lock
	clip    clipboard
	keys    keyboard
	running bool
	ended   bool
	start   time.Time
}

// New makes a Display. It does nothing until Run.
func New(cfg Config) (*Display, error) {
	if cfg.Dial == nil || cfg.Now == nil || cfg.Log == nil {
		return nil, errors.New("display: Dial, Now and Log are needed")
	}
	if err := cfg.Policy.check(); err != nil {
		return nil, fmt.Errorf("display: %w", err)
	}
	if cfg.Keyframes == (rfb.Keyframes{}) {
		cfg.Keyframes = rfb.DefaultKeyframes()
	}
	if cfg.Event == nil {
		cfg.Event = func(Event) {}
	}
	d := &Display{
		cfg: cfg, ready: make(chan struct{}), done: make(chan struct{}), fetch: make(chan struct{}, 1), enc: rfb.NewEncoder(),
		changed: make(chan struct{}), viewers: map[*viewer]bool{}, policy: cfg.Policy, start: cfg.Start,
	}
	d.lastInput.Store(cfg.Now().UnixNano())
	return d, nil
}

// Ready is closed when the first picture is there.
func (d *Display) Ready() <-chan struct{} { return d.ready }

// LastInput is when a key or the pointer was last used, or the display made.
func (d *Display) LastInput() time.Time { return time.Unix(0, d.lastInput.Load()) }

// Viewers are the viewers there are now.
func (d *Display) Viewers() []ViewOptions {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]ViewOptions, 0, len(d.viewers))
	for v := range d.viewers {
		out = append(out, v.opt)
	}
	return out
}

// Stats is what the display did so far.
func (d *Display) Stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.enc.Stats()
	s := Stats{
		Viewers: len(d.viewers), Updates: d.frames.updates.Load(),
		ViewerFrames: d.frames.viewer.Load(), ViewerBytes: d.frames.viewerBytes.Load(),
		RecordFrames: d.frames.record.Load(), RecordBytes: d.frames.recordBytes.Load(),
		EncodedRects: e.Made, SharedRects: e.Shared, EncodedPixels: e.Pixels, EncodedBytes: e.Bytes,
	}
	if d.shown != nil {
		s.Width, s.Height = d.shown.Size()
	}
	return s
}

// Snapshot is a copy of the picture as viewers see it, nil before Ready.
func (d *Display) Snapshot() *image.RGBA {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shown == nil {
		return nil
	}
	return d.shown.Image()
}

// Run connects to the X server and serves until ctx ends (nil), the X server
// does (ErrScreen) or the recording fails (ErrRecording). It runs once; when it
// returns, every View returns too.
func (d *Display) Run(ctx context.Context) error {
	d.mu.Lock()
	if d.running || d.ended {
		d.mu.Unlock()
		return errors.New("display: run twice")
	}
	d.running = true
	if d.start.IsZero() {
		d.start = d.cfg.Now()
	}
	d.mu.Unlock()
	defer d.end()

	from, taken := d.cfg.Screen, true // taken: its picture is there
	if from == nil {
		conn, init, err := connect(ctx, d.cfg.Dial)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		from, taken = screenOf(conn, init), false
	}
	conn := from.conn
	defer conn.Close()
	if err := d.begin(from); err != nil {
		return err
	}

	group, ctx2 := errgroup.WithContext(ctx)
	last := make(chan struct{}) // closed when the picture changes no more
	stop := context.AfterFunc(ctx2, func() {
		d.settle(last)
		conn.Close()
	})
	defer stop()
	group.Go(func() error {
		defer close(last)
		return d.readScreen(from.reader, taken)
	})
	if d.cfg.DialX != nil {
		group.Go(func() error { return d.fetchTexts(ctx2) })
	}
	if d.cfg.Record != nil {
		group.Go(func() error { return d.record(ctx2, last) })
	}
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// connect dials and shakes hands. A container that is just starting may accept
// before its X server does: a handshake that breaks off is tried again until
// startTimeout.
func connect(ctx context.Context, dial func(ctx context.Context) (net.Conn, error)) (net.Conn, rfb.Init, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		conn, err := dial(ctx)
		if err != nil {
			return nil, rfb.Init{}, fmt.Errorf("%w: connect to the X server: %w", ErrScreen, err)
		}
		init, err := shake(ctx, conn)
		if err == nil {
			return conn, init, nil
		}
		conn.Close()
		pause := time.NewTimer(startPause)
		select {
		case <-pause.C:
			if !errors.Is(err, rfb.ErrProtocol) {
				continue
			}
		case <-ctx.Done():
			pause.Stop()
		}
		return nil, rfb.Init{}, fmt.Errorf("%w: handshake with the X server: %w", ErrScreen, err)
	}
}

func shake(ctx context.Context, conn net.Conn) (rfb.Init, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	init, err := rfb.ClientHandshake(conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && init.Width*init.Height > MaxPixels {
		err = fmt.Errorf("%w: picture of %dx%d", rfb.ErrProtocol, init.Width, init.Height)
	}
	return init, err
}

func (d *Display) begin(s *Screen) error {
	text := func() int { return d.textLimit(nil) }
	s.text.Store(&text)
	d.screen.open(s.conn)
	d.screen.scan.Store(s.scan)
	d.screen.more.Store(s.more)
	d.mu.Lock()
	d.drawn, d.led = s.drawn, s.led
	if s.led != 0 {
		d.ledGen = 1
	}
	d.shown = d.drawn
	d.applyOverlaysLocked()
	d.mu.Unlock()
	for _, c := range s.caps {
		if err := d.screenClipboard(c); err != nil {
			return err
		}
	}
	return nil
}

// settle waits, for a moment, until the update that is being drawn is complete:
// the last picture is a whole one.
func (d *Display) settle(last <-chan struct{}) {
	t := time.NewTimer(settleTime)
	defer t.Stop()
	for {
		d.mu.Lock()
		changed := d.changed
		d.settled = true
		whole := !d.updating
		d.mu.Unlock()
		if whole {
			return
		}
		select {
		case <-changed:
		case <-last:
			return
		case <-t.C:
			return
		}
	}
}

// end lets nobody wait for what will not come.
func (d *Display) end() {
	d.mu.Lock()
	d.ended = true
	d.enc.Forget()
	d.mu.Unlock()
	close(d.done)
}

// atLocked is the time since the session's start.
func (d *Display) atLocked() time.Duration { return max(0, d.cfg.Now().Sub(d.start)) }

// wakeLocked tells viewers and recorder that there is something new.
func (d *Display) wakeLocked() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// SetPolicy changes what the user may do, at once.
func (d *Display) SetPolicy(p Policy) error {
	if err := p.check(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.policy = p
	d.applyOverlaysLocked()
	return nil
}

// Notice shows a text on a banner over the picture; "" removes it.
func (d *Display) Notice(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.notice = text
	d.applyOverlaysLocked()
}

// Lock stops all input and the clipboard until Unlock, releases what is pressed
// and shows a text.
func (d *Display) Lock(text string) error {
	d.mu.Lock()
	d.locked, d.lockMsg = true, text
	release := d.releaseAllLocked()
	d.applyOverlaysLocked()
	d.mu.Unlock()
	return d.screen.send(release)
}

// Unlock ends Lock.
func (d *Display) Unlock() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.locked, d.lockMsg = false, ""
	d.applyOverlaysLocked()
}

// Resize asks the X server for another size; it may refuse.
func (d *Display) Resize(w, h int) error {
	if w < MinWidth || h < MinHeight || w > rfb.MaxWidth || h > rfb.MaxHeight || w*h > MaxPixels {
		return fmt.Errorf("a picture of %dx%d is not possible", w, h)
	}
	return d.screen.send(rfb.AppendSetSize(nil, w, h))
}

// screen is the writing half of the connection to the X server.
type screen struct {
	mu   sync.Mutex // held while writing
	conn net.Conn
	// scan and more say that the X server takes scan codes and nine buttons.
	scan, more atomic.Bool
}

func (s *screen) open(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = conn
}

// send writes within screenTimeout; nothing is sent before the connection is up.
func (s *screen) send(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		return fmt.Errorf("%w: not connected", ErrScreen)
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(screenTimeout)); err != nil {
		return fmt.Errorf("%w: %w", ErrScreen, err)
	}
	if _, err := s.conn.Write(b); err != nil {
		s.conn.Close() // the reader notices and ends Run
		return fmt.Errorf("%w: write to the X server: %w", ErrScreen, err)
	}
	return nil
}
