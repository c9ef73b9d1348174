package rfb

import (
	"bytes"
	"encoding/binary"
	"image"
	"slices"

	"github.com/klauspost/compress/flate"
)

// Tight's compression control, filters and bounds (community specification of
// the RFB protocol, "Tight Encoding").
const (
	tightFill     = 0x80
	tightExplicit = 0x40 // a filter byte follows
	tightReset0   = 0x01 // stream 0 starts anew
	filterCopy    = 0
	filterPalette = 1
	// tightMin is the length below which data is not compressed.
	tightMin = 12
	// tightMaxData is the longest compressed rectangle its length field can tell.
	tightMaxData = 1<<22 - 1
	// tightMaxWidth is the widest rectangle clients must accept.
	tightMaxWidth = 2048
	// tightMaxPixels keeps every rectangle far below tightMaxData.
	tightMaxPixels = 1 << 18
)

const rectHeader = 12

// Compression levels: text and surfaces are worth a search, photographs are
// not: it finds little and costs much.
const (
	levelPalette = 6
	levelColour  = 1
)

// Encoder makes Tight rectangles that stand for themselves and remembers those
// that are still current, so that several readers of one framebuffer share
// them. An Encoder belongs to one Framebuffer. Not safe for concurrent use;
// what it returns is never written again.
type Encoder struct {
	cache map[image.Point][]encoded
	held  int // bytes in cache
	size  image.Point

	palette *flate.Writer
	colour  *flate.Writer
	out     bytes.Buffer
	raw     []byte
	colours []uint32
	table   [1 << 11]slot
	epoch   uint32

	stats EncoderStats
}

// EncoderStats counts what an encoder did.
type EncoderStats struct {
	// Made and Shared count rectangles encoded and taken from memory.
	Made, Shared uint64
	// Pixels and Bytes are those of the rectangles made.
	Pixels, Bytes uint64
}

// encoded is one remembered rectangle; it is current as long as none of its
// tiles is newer than gen.
type encoded struct {
	r    image.Rectangle
	gen  uint64
	data []byte
}

// How much is remembered: rectangles with the same top-left corner, and bytes.
const (
	perOrigin = 2
	maxHeld   = 4 << 20
)

type slot struct {
	epoch  uint32
	colour uint32
	index  uint8
}

// NewEncoder makes an encoder.
func NewEncoder() *Encoder {
	palette, err := flate.NewWriter(nil, levelPalette)
	if err != nil {
		panic(err) // the level is a constant
	}
	colour, err := flate.NewWriter(nil, levelColour)
	if err != nil {
		panic(err)
	}
	return &Encoder{cache: map[image.Point][]encoded{}, palette: palette, colour: colour}
}

// Stats is what the encoder did so far.
func (e *Encoder) Stats() EncoderStats { return e.stats }

// Forget drops what is remembered; memory of an idle session shrinks.
func (e *Encoder) Forget() {
	clear(e.cache)
	e.held = 0
}

// Rect is the encoding of a rectangle of f, with its header. r must be inside
// the picture and no larger than what Damage reports.
func (e *Encoder) Rect(f *Framebuffer, r image.Rectangle) []byte {
	if size := image.Pt(f.w, f.h); size != e.size {
		e.Forget()
		e.size = size
	}
	gen := f.latest(r)
	for _, c := range e.cache[r.Min] {
		if c.r == r && c.gen == gen {
			e.stats.Shared++
			return c.data
		}
	}
	data := bytes.Clone(e.AppendRect(nil, f, r))
	e.remember(f, encoded{r: r, gen: gen, data: data})
	return data
}

// remember keeps c and drops what is no longer current beside it.
func (e *Encoder) remember(f *Framebuffer, c encoded) {
	if e.held+len(c.data) > maxHeld {
		for at := range e.cache {
			e.prune(f, at)
		}
		if e.held+len(c.data) > maxHeld {
			e.Forget()
		}
	}
	e.prune(f, c.r.Min)
	kept := e.cache[c.r.Min]
	if len(kept) >= perOrigin {
		e.held -= len(kept[0].data)
		kept = slices.Delete(kept, 0, 1)
	}
	e.cache[c.r.Min] = append(kept, c)
	e.held += len(c.data)
}

func (e *Encoder) prune(f *Framebuffer, at image.Point) {
	kept := slices.DeleteFunc(e.cache[at], func(c encoded) bool {
		old := f.latest(c.r) != c.gen
		if old {
			e.held -= len(c.data)
		}
		return old
	})
	if len(kept) == 0 {
		delete(e.cache, at)
		return
	}
	e.cache[at] = kept
}

// AppendRect appends the encoding of one rectangle, with its header, without
// remembering it. r must be at most 2048 wide and 1<<18 pixels large.
func (e *Encoder) AppendRect(dst []byte, f *Framebuffer, r image.Rectangle) []byte {
	if r.Empty() || !r.In(f.Bounds()) || r.Dx() > tightMaxWidth || r.Dx()*r.Dy() > tightMaxPixels {
		panic("rfb: rectangle out of range")
	}
	start := len(dst)
	dst = appendRectHeader(dst, r, Tight)
	dst = e.appendTight(dst, f, r)
	e.stats.Made++
	e.stats.Pixels += uint64(r.Dx() * r.Dy())
	e.stats.Bytes += uint64(len(dst) - start)
	return dst
}

func (e *Encoder) appendTight(dst []byte, f *Framebuffer, r image.Rectangle) []byte {
	pixels := r.Dx() * r.Dy()
	few := e.index(f, r)
	switch n := len(e.colours); {
	case few && n == 1:
		return appendTPixel(append(dst, tightFill), e.colours[0])
	case few && n == 2:
		dst = append(dst, tightExplicit|tightReset0, filterPalette, 1)
		dst = appendTPixel(appendTPixel(dst, e.colours[0]), e.colours[1])
		return e.appendData(dst, e.palette, packBits(e.raw, r.Dx(), r.Dy()))
	case few && 3*n+pixels < 3*pixels:
		dst = append(dst, tightExplicit|tightReset0, filterPalette, byte(n-1))
		for _, c := range e.colours {
			dst = appendTPixel(dst, c)
		}
		return e.appendData(dst, e.palette, e.raw)
	default:
		e.raw = e.raw[:0]
		for y := r.Min.Y; y < r.Max.Y; y++ {
			for _, v := range f.Row(y, r.Min.X, r.Max.X) {
				e.raw = append(e.raw, byte(v>>16), byte(v>>8), byte(v))
			}
		}
		return e.appendData(append(dst, tightReset0), e.colour, e.raw)
	}
}

// index writes each pixel's place in e.colours to e.raw, and reports false when
// there are more than 256 colours.
func (e *Encoder) index(f *Framebuffer, r image.Rectangle) bool {
	if e.epoch++; e.epoch == 0 {
		clear(e.table[:])
		e.epoch = 1
	}
	e.colours = e.colours[:0]
	if need := r.Dx() * r.Dy(); cap(e.raw) < 3*need {
		e.raw = make([]byte, 0, 3*need)
	}
	e.raw = e.raw[:r.Dx()*r.Dy()]
	out := e.raw
	last, at := f.Row(r.Min.Y, r.Min.X, r.Min.X+1)[0], uint8(0)
	e.insert(last)
	for y := r.Min.Y; y < r.Max.Y; y++ {
		row := f.Row(y, r.Min.X, r.Max.X)
		line := out[:len(row)]
		for i, v := range row {
			if v != last {
				j, ok := e.find(v)
				if !ok {
					if len(e.colours) == 256 {
						return false
					}
					j = e.insert(v)
				}
				last, at = v, j
			}
			line[i] = at
		}
		out = out[len(row):]
	}
	return true
}

func slotOf(v uint32) uint32 { return v * 0x9e3779b1 >> (32 - 11) }

func (e *Encoder) find(v uint32) (uint8, bool) {
	for i := slotOf(v); ; i = (i + 1) % uint32(len(e.table)) {
		s := &e.table[i]
		if s.epoch != e.epoch {
			return 0, false
		}
		if s.colour == v {
			return s.index, true
		}
	}
}

func (e *Encoder) insert(v uint32) uint8 {
	i := slotOf(v)
	for e.table[i].epoch == e.epoch {
		i = (i + 1) % uint32(len(e.table))
	}
	n := uint8(len(e.colours))
	e.table[i] = slot{epoch: e.epoch, colour: v, index: n}
	e.colours = append(e.colours, v)
	return n
}

// packBits turns bytes 0 and 1 into bits, in place; rows begin at a byte.
func packBits(b []byte, w, h int) []byte {
	row := (w + 7) / 8
	for y := range h {
		src := b[y*w : (y+1)*w]
		for i := range row {
			var v byte
			for k := range 8 {
				v <<= 1
				if x := 8*i + k; x < w {
					v |= src[x]
				}
			}
			b[y*row+i] = v
		}
	}
	return b[:row*h]
}

// appendData compresses unless it is not worth it. The zlib stream (RFC 1950)
// is flushed but not ended: decoders of Tight know how much to expect, and the
// checksum at the end of a stream is not computed.
func (e *Encoder) appendData(dst []byte, w *flate.Writer, data []byte) []byte {
	if len(data) < tightMin {
		return append(dst, data...)
	}
	e.out.Reset()
	e.out.Write([]byte{0x78, 0x01})
	w.Reset(&e.out)
	_, _ = w.Write(data) // into memory
	_ = w.Flush()
	return append(appendCompact(dst, e.out.Len()), e.out.Bytes()...)
}

func appendCompact(dst []byte, n int) []byte {
	switch {
	case n < 1<<7:
		return append(dst, byte(n))
	case n < 1<<14:
		return append(dst, byte(n)|0x80, byte(n>>7))
	default:
		return append(dst, byte(n)|0x80, byte(n>>7)|0x80, byte(n>>14))
	}
}

func appendTPixel(dst []byte, v uint32) []byte {
	return append(dst, byte(v>>16), byte(v>>8), byte(v))
}

func appendRectHeader(dst []byte, r image.Rectangle, enc Encoding) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.Min.X))
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.Min.Y))
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.Dx()))
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.Dy()))
	return binary.BigEndian.AppendUint32(dst, uint32(enc))
}
