package display

import (
	"encoding/binary"
	"image"

	"caponier/shared/rfb"
)

// overlay is the pointer as it is drawn for a viewer who only looks: his own
// pointer is not the one the session has.
type overlay struct {
	area   image.Rectangle
	at     image.Point
	shaped uint64
}

// drawPointerLocked returns the rectangles that take the pointer from where it
// was drawn for v and draw it where it is. The picture itself does not change.
func (d *Display) drawPointerLocked(v *viewer) (rects [][]byte) {
	was := v.overlay
	var now overlay
	c := d.shown.Cursor()
	if d.pointer != nil && c.Width > 0 && c.Height > 0 {
		corner := d.pointer.Sub(c.Hot)
		now = overlay{
			area: image.Rectangle{Min: corner, Max: corner.Add(image.Pt(c.Width, c.Height))}.Intersect(d.shown.Bounds()),
			at:   *d.pointer, shaped: d.shown.Shaped(),
		}
	}
	touched := false
	for _, r := range v.changes.Rects {
		touched = touched || r.Overlaps(now.area)
	}
	for _, m := range v.changes.Moves {
		touched = touched || m.To.Overlaps(now.area)
	}
	if now == was && !touched {
		return nil
	}
	if !was.area.Empty() && was != now {
		rects = append(rects, d.enc.AppendRect(nil, d.shown, was.area))
	}
	if !now.area.Empty() {
		rects = append(rects, d.pointerRectLocked(c, now.area))
	}
	v.overlay = now
	return rects
}

// pointerRectLocked encodes the picture at area with the pointer over it.
func (d *Display) pointerRectLocked(c rfb.Cursor, area image.Rectangle) []byte {
	small := rfb.NewFramebuffer(area.Dx(), area.Dy())
	line := make([]uint32, area.Dx())
	corner := d.pointer.Sub(c.Hot)
	for y := range area.Dy() {
		copy(line, d.shown.Row(area.Min.Y+y, area.Min.X, area.Max.X))
		for x := range line {
			at := area.Min.Add(image.Pt(x, y)).Sub(corner)
			line[x] = over(c.RGBA[4*(at.Y*c.Width+at.X):][:4], line[x])
		}
		small.SetRow(y, 0, line)
	}
	b := d.enc.AppendRect(nil, small, small.Bounds())
	binary.BigEndian.PutUint16(b[0:], uint16(area.Min.X))
	binary.BigEndian.PutUint16(b[2:], uint16(area.Min.Y))
	return b
}

// over puts a pixel R, G, B, alpha over one of the picture.
func over(p []byte, under uint32) uint32 {
	a := uint32(p[3])
	mix := func(c byte, u uint32) uint32 { return (uint32(c)*a + u*(255-a) + 127) / 255 }
	return mix(p[0], under>>16&0xff)<<16 | mix(p[1], under>>8&0xff)<<8 | mix(p[2], under&0xff)
}
