package harness

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
)

// maxTight bounds the data of one rectangle, in bytes.
const maxTight = 64 << 20

// tight reads a rectangle in Tight encoding: one colour, or pixels or a palette,
// in a compressed stream that begins with the rectangle.
func (s *Screen) tight(in *bufio.Reader, x, y, w, h int) error {
	control, err := in.ReadByte()
	if err != nil {
		return err
	}
	if control>>4 == 8 { // fill
		var c [3]byte
		if _, err := io.ReadFull(in, c[:]); err != nil {
			return err
		}
		return s.draw(x, y, w, h, func(int) []byte { return c[:] })
	}
	if control&0x80 != 0 {
		return fmt.Errorf("control %#x was not asked for", control)
	}
	filter := byte(0)
	if control&0x40 != 0 {
		if filter, err = in.ReadByte(); err != nil {
			return err
		}
	}
	var palette []byte
	size := 3 * w * h
	switch filter {
	case 0: // pixels
	case 1: // a palette
		n, err := in.ReadByte()
		if err != nil {
			return err
		}
		palette = make([]byte, 3*(int(n)+1))
		if _, err := io.ReadFull(in, palette); err != nil {
			return err
		}
		size = w * h
		if n == 1 {
			size = (w + 7) / 8 * h
		}
	default:
		return fmt.Errorf("filter %d", filter)
	}
	data, err := tightData(in, size, control)
	if err != nil {
		return err
	}
	switch {
	case palette == nil:
		return s.draw(x, y, w, h, func(i int) []byte { return data[3*i:] })
	case len(palette) == 6: // a bit a pixel, rows begin with a byte
		return s.draw(x, y, w, h, func(i int) []byte {
			bit := data[i/w*((w+7)/8)+i%w/8] >> (7 - i%w%8) & 1
			return palette[3*int(bit):]
		})
	}
	for _, p := range data {
		if 3*int(p) >= len(palette) {
			return errors.New("a colour that is not in the palette")
		}
	}
	return s.draw(x, y, w, h, func(i int) []byte { return palette[3*int(data[i]):] })
}

// tightData reads size bytes of pixels, compressed unless they are few.
func tightData(in *bufio.Reader, size int, control byte) ([]byte, error) {
	if size > maxTight {
		return nil, fmt.Errorf("%d bytes of pixels", size)
	}
	data := make([]byte, size)
	if size < 12 {
		_, err := io.ReadFull(in, data)
		return data, err
	}
	length := 0
	for i := range 3 {
		b, err := in.ReadByte()
		if err != nil {
			return nil, err
		}
		if i == 2 {
			length |= int(b) << 14
			break
		}
		length |= int(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			break
		}
	}
	packed := make([]byte, length)
	if _, err := io.ReadFull(in, packed); err != nil {
		return nil, err
	}
	if control&(1<<(control>>4&3)) == 0 {
		return nil, errors.New("a stream that goes on from the rectangle before: this client keeps none")
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	_, err = io.ReadFull(z, data)
	return data, err
}
