package rfb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"image"
	"io"
	"time"
)

// Flags and sizes of a recording frame; the package comment has the layout.
const (
	frameVersion  = 1
	flagKeyframe  = 1
	flagPointer   = 2
	flagCursor    = 4
	frameHeader   = 14
	cursorHeader  = 8
	maxCursorSize = cursorHeader + 4*MaxCursor*MaxCursor
	// MaxFrame bounds a frame, in bytes: a keyframe of the largest picture that
	// does not compress at all.
	MaxFrame = 5*MaxWidth*MaxHeight + maxCursorSize
)

// Frame is one frame of a recording.
type Frame struct {
	Keyframe      bool
	Width, Height int
	// Pointer is where the pointer's hot spot is, nil if that is not known.
	Pointer *image.Point
	// Cursor is the pointer's image, nil if it did not change.
	Cursor *Cursor
	// Update is a whole FramebufferUpdate message.
	Update []byte
}

// AppendFrame appends a frame.
func AppendFrame(dst []byte, f Frame) []byte {
	flags, at := byte(0), image.Point{}
	if f.Keyframe {
		flags |= flagKeyframe
	}
	if f.Pointer != nil {
		flags, at = flags|flagPointer, *f.Pointer
	}
	shape := 0
	if f.Cursor != nil {
		flags, shape = flags|flagCursor, cursorHeader+len(f.Cursor.RGBA)
	}
	dst = append(dst, frameVersion, flags)
	for _, v := range [...]int{f.Width, f.Height, at.X, at.Y} {
		dst = binary.BigEndian.AppendUint16(dst, uint16(v))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(shape))
	if c := f.Cursor; c != nil {
		for _, v := range [...]int{c.Hot.X, c.Hot.Y, c.Width, c.Height} {
			dst = binary.BigEndian.AppendUint16(dst, uint16(v))
		}
		dst = append(dst, c.RGBA...)
	}
	return append(dst, f.Update...)
}

// ParseFrame takes a frame apart; its parts point into b.
func ParseFrame(b []byte) (Frame, error) {
	if len(b) < frameHeader+4 || len(b) > MaxFrame {
		return Frame{}, broken("recording frame of %d bytes", len(b))
	}
	if b[0] != frameVersion {
		return Frame{}, broken("recording frame of version %d", b[0])
	}
	u16 := func(i int) int { return int(binary.BigEndian.Uint16(b[i:])) }
	f := Frame{Keyframe: b[1]&flagKeyframe != 0, Width: u16(2), Height: u16(4)}
	if !validSize(f.Width, f.Height) {
		return Frame{}, broken("recording frame of %dx%d", f.Width, f.Height)
	}
	if b[1]&flagPointer != 0 {
		f.Pointer = &image.Point{X: u16(6), Y: u16(8)}
	}
	n := binary.BigEndian.Uint32(b[10:])
	if n > maxCursorSize || int(n) > len(b)-frameHeader-4 {
		return Frame{}, broken("pointer image of %d bytes", n)
	}
	shape := b[frameHeader : frameHeader+int(n)]
	f.Update = b[frameHeader+int(n):]
	if b[1]&flagCursor == 0 {
		if n != 0 {
			return Frame{}, broken("pointer image of %d bytes without its flag", n)
		}
		return f, nil
	}
	if n < cursorHeader {
		return Frame{}, broken("pointer image of %d bytes", n)
	}
	c := Cursor{Hot: image.Pt(u16(14), u16(16)), Width: u16(18), Height: u16(20), RGBA: shape[cursorHeader:]}
	if c.Width > MaxCursor || c.Height > MaxCursor || len(c.RGBA) != 4*c.Width*c.Height {
		return Frame{}, broken("pointer image of %dx%d with %d bytes", c.Width, c.Height, len(c.RGBA))
	}
	f.Cursor = &c
	return f, nil
}

// Replay is the picture of a recording at some moment: what a player shows
// after the frames given to it.
type Replay struct {
	// Picture is nil before the first keyframe.
	Picture *Framebuffer
	// Pointer is where the pointer is, nil if that is not known.
	Pointer *image.Point
	// MaxPixels bounds the picture; 0 means MaxWidth·MaxHeight.
	MaxPixels int

	src    bytes.Reader
	reader *ServerReader
}

// Apply shows the next frame. Frames before the first keyframe are refused.
func (p *Replay) Apply(b []byte) error {
	f, err := ParseFrame(b)
	if err != nil {
		return err
	}
	limit := p.MaxPixels
	if limit == 0 {
		limit = MaxWidth * MaxHeight
	}
	switch {
	case f.Width*f.Height > limit:
		return broken("recording frame of %dx%d", f.Width, f.Height)
	case f.Keyframe && p.Picture == nil:
		p.Picture = NewFramebuffer(f.Width, f.Height)
	case p.Picture == nil:
		return broken("the recording does not begin with a keyframe")
	}
	p.src.Reset(f.Update)
	if p.reader == nil {
		p.reader = NewServerReader(&p.src, ServerLimits{Pixels: limit, Tight: true})
	}
	r := p.reader
	r.reset(&p.src)
	work := 0
	for {
		e, err := r.Next(p.Picture, nil, nil)
		if err != nil {
			return broken("recording frame: %v", err)
		}
		switch e.Kind {
		case EventUpdate:
		case EventPixels:
			if work += e.Rect.Dx() * e.Rect.Dy(); work > maxWork*f.Width*f.Height {
				return broken("recording frame: rectangles overlap")
			}
		case EventSize:
			if !f.Keyframe {
				return broken("the size changes in a frame that is no keyframe")
			}
			if w, h := p.Picture.Size(); e.Size != image.Pt(w, h) {
				p.Picture.Resize(e.Size.X, e.Size.Y)
			}
		case EventUpdateEnd:
			return p.end(f, r.r)
		default:
			return broken("recording frame: event %d", e.Kind)
		}
	}
}

func (p *Replay) end(f Frame, rest *bufio.Reader) error {
	if _, err := rest.ReadByte(); err != io.EOF {
		return broken("recording frame: more than one update")
	}
	if w, h := p.Picture.Size(); w != f.Width || h != f.Height {
		return broken("recording frame of %dx%d for a picture of %dx%d", f.Width, f.Height, w, h)
	}
	if f.Pointer != nil {
		at := *f.Pointer
		p.Pointer = &at
	}
	if f.Cursor != nil {
		c := *f.Cursor
		c.RGBA = bytes.Clone(c.RGBA)
		p.Picture.SetCursor(c)
	}
	p.Picture.Commit()
	return nil
}

// maxWork bounds the pixels one frame may change, in pictures: more than the
// copies of a few generations and the rectangles is an attack.
const maxWork = history + 4

// Keyframes says when a recording needs a keyframe. A reader that seeks never
// has to read more than about Bytes, nor decode more than Every of activity.
type Keyframes struct {
	// Every is the time with changes between keyframes.
	Every time.Duration
	// Bytes is the length of frames after which the next is a keyframe.
	Bytes int
}

// DefaultKeyframes is 10 s of activity or 4 MiB.
func DefaultKeyframes() Keyframes { return Keyframes{Every: 10 * time.Second, Bytes: 4 << 20} }

// Recorder makes the frames of a recording from a framebuffer. Not safe for
// concurrent use.
type Recorder struct {
	enc  *Encoder
	plan Keyframes

	seen    uint64
	shaped  uint64
	pointer *image.Point
	last    time.Duration
	active  time.Duration
	bytes   int
	started bool

	changes Changes
}

// activityGap is the most that one pause between frames counts as activity.
const activityGap = 250 * time.Millisecond

// NewRecorder makes a Recorder that shares enc with the viewers of the same
// framebuffer.
func NewRecorder(enc *Encoder, plan Keyframes) *Recorder {
	return &Recorder{enc: enc, plan: plan}
}

// Frame returns what changed in f since the last call as a frame, nil if
// nothing did. at is the time of the recording; pointer may be nil.
func (r *Recorder) Frame(f *Framebuffer, pointer *image.Point, at time.Duration) (frame []byte, keyframe bool) {
	moved := pointer != nil && (r.pointer == nil || *pointer != *r.pointer)
	if r.started && f.Gen() == r.seen && !moved {
		return nil, false
	}
	if r.started {
		r.active += min(at-r.last, activityGap)
	}
	key := !r.started || f.Sized() > r.seen || r.active >= r.plan.Every || r.bytes >= r.plan.Bytes
	if key {
		r.changes.Moves, r.changes.Rects = nil, f.Damage(0, r.changes.Rects[:0])
	} else {
		r.changes = f.Changes(r.seen, r.changes)
	}
	shape := f.Shaped() > r.shaped || key && f.Shaped() > 0
	if !key && len(r.changes.Moves)+len(r.changes.Rects) == 0 && !shape && !moved {
		r.seen = f.Gen()
		return nil, false
	}
	head := Frame{Keyframe: key, Width: f.w, Height: f.h, Pointer: pointer}
	if shape {
		c := f.Cursor()
		head.Cursor = &c
	}
	n := len(r.changes.Moves) + len(r.changes.Rects)
	if key {
		n++
	}
	frame = AppendUpdate(AppendFrame(nil, head), n)
	if key {
		frame = AppendDesktopSize(frame, f.w, f.h)
	}
	for _, m := range r.changes.Moves {
		frame = AppendCopyRect(frame, m.To, m.From)
	}
	for _, rect := range r.changes.Rects {
		frame = append(frame, r.enc.Rect(f, rect)...)
	}
	r.note(f, pointer, at, key, len(frame))
	return frame, key
}

func (r *Recorder) note(f *Framebuffer, pointer *image.Point, at time.Duration, key bool, size int) {
	r.seen, r.shaped, r.last, r.started = f.Gen(), f.Shaped(), at, true
	if pointer != nil {
		p := *pointer
		r.pointer = &p
	}
	if key {
		r.active, r.bytes = 0, 0
		return
	}
	r.bytes += size
}
