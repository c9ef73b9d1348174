package rfb

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"image"
	"io"
)

// tightReader decodes Tight rectangles, also those of servers whose streams run
// on from one to the next. JPEG, PNG and the gradient filter are refused: they
// are never asked for.
type tightReader struct {
	streams [4]inflater
	data    []byte
	pixels  []byte
	palette [256]uint32
}

// inflater is one zlib stream that arrives in pieces.
type inflater struct {
	in  bytes.Buffer
	z   io.ReadCloser
	on  bool
	bad bool
}

func (s *inflater) reset() {
	s.in.Reset()
	s.on, s.bad = false, false
}

// inflate adds a piece and reads exactly len(out) bytes from the stream.
func (s *inflater) inflate(piece, out []byte) error {
	if s.bad {
		return broken("tight: stream goes on after an error")
	}
	s.in.Write(piece)
	err := s.start()
	if err == nil {
		_, err = io.ReadFull(s.z, out)
	}
	// What is left is the mark of a flush, a few bytes.
	if err != nil || s.in.Len() > 64 {
		s.bad = true
		return broken("tight: compressed data does not fit its rectangle")
	}
	return nil
}

func (s *inflater) start() (err error) {
	if s.on {
		return nil
	}
	if s.z == nil {
		s.z, err = zlib.NewReader(&s.in)
	} else {
		err = s.z.(zlib.Resetter).Reset(&s.in, nil)
	}
	s.on = err == nil
	return err
}

// read decodes the body of one rectangle; what it returns puts the pixels into
// f, and must be called before the next read.
func (t *tightReader) read(r *bufio.Reader, f *Framebuffer, rect image.Rectangle) (apply func() error, err error) {
	if !rect.In(f.Bounds()) {
		return nil, broken("tight rectangle %v in a picture of %dx%d", rect, f.w, f.h)
	}
	if rect.Dx() > tightMaxWidth || rect.Empty() {
		return nil, broken("tight rectangle of %dx%d", rect.Dx(), rect.Dy())
	}
	ctl, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	for i := range t.streams {
		if ctl>>i&1 != 0 {
			t.streams[i].reset()
		}
	}
	switch {
	case ctl>>4 == tightFill>>4:
		var c [3]byte
		if _, err := io.ReadFull(r, c[:]); err != nil {
			return nil, err
		}
		return func() error { return f.Fill(rect, tpixel(c[:])) }, nil
	case ctl&0x80 != 0:
		return nil, broken("tight: compression %#x is not supported", ctl>>4)
	}
	filter := byte(filterCopy)
	if ctl&tightExplicit != 0 {
		if filter, err = r.ReadByte(); err != nil {
			return nil, err
		}
	}
	stream := &t.streams[ctl>>4&3]
	switch filter {
	case filterCopy:
		return t.readColour(r, stream, f, rect)
	case filterPalette:
		return t.readPalette(r, stream, f, rect)
	default:
		return nil, broken("tight: filter %d is not supported", filter)
	}
}

func (t *tightReader) readColour(r *bufio.Reader, s *inflater, f *Framebuffer, rect image.Rectangle) (func() error, error) {
	data, err := t.readData(r, s, 3*rect.Dx()*rect.Dy())
	if err != nil {
		return nil, err
	}
	return func() error {
		line := make([]uint32, rect.Dx())
		for y := rect.Min.Y; y < rect.Max.Y; y++ {
			for i := range line {
				line[i] = tpixel(data[3*i : 3*i+3])
			}
			f.SetRow(y, rect.Min.X, line)
			data = data[3*len(line):]
		}
		return nil
	}, nil
}

func (t *tightReader) readPalette(r *bufio.Reader, s *inflater, f *Framebuffer, rect image.Rectangle) (func() error, error) {
	n, err := r.ReadByte()
	if err != nil {
		return nil, err
	}
	colours := int(n) + 1
	var raw [3 * 256]byte
	if _, err := io.ReadFull(r, raw[:3*colours]); err != nil {
		return nil, err
	}
	for i := range colours {
		t.palette[i] = tpixel(raw[3*i : 3*i+3])
	}
	stride := rect.Dx()
	if colours <= 2 {
		stride = (rect.Dx() + 7) / 8
	}
	data, err := t.readData(r, s, stride*rect.Dy())
	if err != nil {
		return nil, err
	}
	return func() error { return t.applyPalette(f, rect, data, colours, stride) }, nil
}

func (t *tightReader) applyPalette(f *Framebuffer, rect image.Rectangle, data []byte, colours, stride int) error {
	line := make([]uint32, rect.Dx())
	for y := rect.Min.Y; y < rect.Max.Y; y++ {
		for i := range line {
			v := 0
			if colours <= 2 {
				v = int(data[i/8] >> (7 - i%8) & 1)
			} else {
				v = int(data[i])
			}
			if v >= colours {
				return broken("tight: colour %d of %d", v, colours)
			}
			line[i] = t.palette[v]
		}
		f.SetRow(y, rect.Min.X, line)
		data = data[stride:]
	}
	return nil
}

// readData reads size bytes as they were before compression. They are valid
// until the next call.
func (t *tightReader) readData(r *bufio.Reader, s *inflater, size int) ([]byte, error) {
	if size > cap(t.pixels) {
		t.pixels = make([]byte, size)
	}
	out := t.pixels[:size]
	if size < tightMin {
		_, err := io.ReadFull(r, out)
		return out, err
	}
	n, err := readCompact(r)
	if err != nil {
		return nil, err
	}
	// Deflate makes incompressible data a little larger, never much.
	if n > size+size/8+256 {
		return nil, broken("tight: %d bytes for a rectangle of %d", n, size)
	}
	if n > cap(t.data) {
		t.data = make([]byte, n)
	}
	piece := t.data[:n]
	if _, err := io.ReadFull(r, piece); err != nil {
		return nil, err
	}
	return out, s.inflate(piece, out)
}

func readCompact(r *bufio.Reader) (int, error) {
	n := 0
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			return 0, err
		}
		if shift == 14 {
			return n | int(b)<<14, nil
		}
		n |= int(b&0x7f) << shift
		if b&0x80 == 0 {
			return n, nil
		}
	}
}

func tpixel(b []byte) uint32 { return uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]) }
