package rfb

import (
	"crypto/sha256"
	"encoding/binary"
	"image"
	"slices"
)

// Tile is the side of the squares in which damage is remembered, in pixels.
const Tile = 64

// Damage is reported in rectangles that do not cross blocks of this many tiles,
// so that readers which are not at the same generation still share encodings.
const (
	blockCols = 2
	blockRows = 2
)

// Framebuffer is a picture and what changed in it when. Changes belong to the
// generation after Gen until Commit ends it. Not safe for concurrent use.
type Framebuffer struct {
	w, h   int
	cols   int
	rows   int
	pix    []uint32 // 0x00RRGGBB
	gens   []uint64 // per tile: generation of the last change
	gen    uint64
	sized  uint64 // generation of the last change of size
	cursor Cursor
	shaped uint64 // generation of the last change of the cursor

	prev  []uint32 // the picture of gen, for CommitMoves
	steps []step   // the last generations that CommitMoves made
}

// NewFramebuffer makes a black picture. It panics when the size is not within
// the limits; peers' sizes are checked where they are read.
func NewFramebuffer(w, h int) *Framebuffer {
	f := &Framebuffer{}
	f.Resize(w, h)
	return f
}

// Size is the picture's size in pixels.
func (f *Framebuffer) Size() (w, h int) { return f.w, f.h }

// Bounds is the whole picture.
func (f *Framebuffer) Bounds() image.Rectangle { return image.Rect(0, 0, f.w, f.h) }

// Gen is the last committed generation. It starts at 0: a reader which has seen
// 0 has seen nothing.
func (f *Framebuffer) Gen() uint64 { return f.gen }

// Sized is the generation in which the size last changed.
func (f *Framebuffer) Sized() uint64 { return f.sized }

// Shaped is the generation in which the pointer's image last changed, 0 when it
// never did.
func (f *Framebuffer) Shaped() uint64 { return f.shaped }

// Cursor is the pointer's image; its pixels must not be changed.
func (f *Framebuffer) Cursor() Cursor { return f.cursor }

// SetCursor replaces the pointer's image, whose pixels are kept.
func (f *Framebuffer) SetCursor(c Cursor) {
	f.cursor, f.shaped = c, f.gen+1
}

// Commit ends the generation that collects changes.
func (f *Framebuffer) Commit() { f.gen++ }

// Resize changes the size, keeps what is in both sizes and makes the rest
// black. Everything is damaged.
func (f *Framebuffer) Resize(w, h int) {
	if !validSize(w, h) {
		panic("rfb: framebuffer size out of range")
	}
	pix := make([]uint32, w*h)
	for y := range min(h, f.h) {
		copy(pix[y*w:(y+1)*w], f.pix[y*f.w:y*f.w+min(w, f.w)])
	}
	f.pix, f.w, f.h = pix, w, h
	f.cols, f.rows = (w+Tile-1)/Tile, (h+Tile-1)/Tile
	f.gens = make([]uint64, f.cols*f.rows)
	f.sized = f.gen + 1
	f.Touch(f.Bounds())
}

// Clone is a copy with the same generations. It does not know what moved before.
func (f *Framebuffer) Clone() *Framebuffer {
	c := *f
	c.pix, c.gens = slices.Clone(f.pix), slices.Clone(f.gens)
	c.prev, c.steps = nil, nil
	return &c
}

// Touch marks a rectangle as changed.
func (f *Framebuffer) Touch(r image.Rectangle) {
	r = r.Intersect(f.Bounds())
	if r.Empty() {
		return
	}
	for ty := r.Min.Y / Tile; ty <= (r.Max.Y-1)/Tile; ty++ {
		for tx := r.Min.X / Tile; tx <= (r.Max.X-1)/Tile; tx++ {
			f.gens[ty*f.cols+tx] = f.gen + 1
		}
	}
}

// Row is the pixels of row y from x0 to x1, 0x00RRGGBB each. Who changes them
// must Touch them.
func (f *Framebuffer) Row(y, x0, x1 int) []uint32 { return f.pix[y*f.w+x0 : y*f.w+x1] }

// SetRaw stores pixels of four bytes B, G, R, unused (the pixel format that
// AppendSetPixelFormat asks for), row by row. Only tiles that differ afterwards
// are damaged. r must be inside the picture and data have the fitting length.
func (f *Framebuffer) SetRaw(r image.Rectangle, data []byte) error {
	if !r.In(f.Bounds()) || len(data) != r.Dx()*r.Dy()*4 {
		return broken("raw rectangle %v with %d bytes in a picture of %dx%d", r, len(data), f.w, f.h)
	}
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; {
			end := min(x-x%Tile+Tile, r.Max.X)
			dst := f.Row(y, x, end)
			src := data[:4*len(dst)]
			var diff uint32
			for i := range dst {
				v := binary.LittleEndian.Uint32(src[4*i:4*i+4]) & 0xffffff
				diff |= dst[i] ^ v
				dst[i] = v
			}
			if diff != 0 {
				f.gens[y/Tile*f.cols+x/Tile] = f.gen + 1
			}
			data, x = data[4*len(dst):], end
		}
	}
	return nil
}

// SetRow stores pixels, 0x00RRGGBB each, at (x, y) and to the right of it; only
// tiles that differ are damaged. They must be inside the picture.
func (f *Framebuffer) SetRow(y, x int, src []uint32) {
	for len(src) > 0 {
		n := min(Tile-x%Tile, len(src))
		dst := f.Row(y, x, x+n)
		var diff uint32
		for i, v := range src[:n] {
			diff |= dst[i] ^ v
			dst[i] = v
		}
		if diff != 0 {
			f.gens[y/Tile*f.cols+x/Tile] = f.gen + 1
		}
		src, x = src[n:], x+n
	}
}

// Fill gives a rectangle one colour, 0x00RRGGBB.
func (f *Framebuffer) Fill(r image.Rectangle, colour uint32) error {
	if !r.In(f.Bounds()) {
		return broken("filled rectangle %v in a picture of %dx%d", r, f.w, f.h)
	}
	line := make([]uint32, r.Dx())
	for i := range line {
		line[i] = colour & 0xffffff
	}
	for y := r.Min.Y; y < r.Max.Y; y++ {
		f.SetRow(y, r.Min.X, line)
	}
	return nil
}

// Copy moves what is at from to r, which may overlap it.
func (f *Framebuffer) Copy(r image.Rectangle, from image.Point) error {
	src := r.Sub(r.Min).Add(from)
	if !r.In(f.Bounds()) || !src.In(f.Bounds()) {
		return broken("copy of %v to %v in a picture of %dx%d", src, r, f.w, f.h)
	}
	line := make([]uint32, r.Dx())
	for i := range r.Dy() {
		if from.Y < r.Min.Y { // from the bottom up: rows not yet copied stay as they were
			i = r.Dy() - 1 - i
		}
		copy(line, f.Row(from.Y+i, src.Min.X, src.Max.X))
		f.SetRow(r.Min.Y+i, r.Min.X, line)
	}
	return nil
}

// Damage appends the rectangles that changed after generation since. They do
// not overlap, and each is at most 128×128 pixels: a photograph on a page is then
// mostly by itself, and the rest has few colours.
func (f *Framebuffer) Damage(since uint64, dst []image.Rectangle) []image.Rectangle {
	for by := 0; by < f.rows; by += blockRows {
		for bx := 0; bx < f.cols; bx += blockCols {
			dst = f.blockDamage(bx, by, since, dst)
		}
	}
	return dst
}

// blockDamage merges a block's damaged tiles into few rectangles: runs of tiles
// in a row, and equal runs below each other.
func (f *Framebuffer) blockDamage(bx, by int, since uint64, dst []image.Rectangle) []image.Rectangle {
	first := len(dst)
	for ty := by; ty < min(by+blockRows, f.rows); ty++ {
		for tx := bx; tx < min(bx+blockCols, f.cols); {
			if f.gens[ty*f.cols+tx] <= since {
				tx++
				continue
			}
			end := tx + 1
			for end < min(bx+blockCols, f.cols) && f.gens[ty*f.cols+end] > since {
				end++
			}
			r := image.Rect(tx*Tile, ty*Tile, min(end*Tile, f.w), min(ty*Tile+Tile, f.h))
			tx = end
			merged := false
			for i := first; i < len(dst); i++ {
				if a := dst[i]; a.Min.X == r.Min.X && a.Max.X == r.Max.X && a.Max.Y == r.Min.Y {
					dst[i].Max.Y, merged = r.Max.Y, true
					break
				}
			}
			if !merged {
				dst = append(dst, r)
			}
		}
	}
	return dst
}

// latest is the newest generation of the tiles of r.
func (f *Framebuffer) latest(r image.Rectangle) uint64 {
	var g uint64
	for ty := r.Min.Y / Tile; ty <= (r.Max.Y-1)/Tile; ty++ {
		for tx := r.Min.X / Tile; tx <= (r.Max.X-1)/Tile; tx++ {
			g = max(g, f.gens[ty*f.cols+tx])
		}
	}
	return g
}

// Sum is a hash of size and pixels: equal pictures have equal sums.
func (f *Framebuffer) Sum() [sha256.Size]byte {
	h := sha256.New()
	line := binary.BigEndian.AppendUint32(nil, uint32(f.w))
	line = binary.BigEndian.AppendUint32(line, uint32(f.h))
	h.Write(line)
	for y := range f.h {
		line = line[:0]
		for _, v := range f.Row(y, 0, f.w) {
			line = binary.BigEndian.AppendUint32(line, v)
		}
		h.Write(line)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Image is a copy of the picture.
func (f *Framebuffer) Image() *image.RGBA {
	img := image.NewRGBA(f.Bounds())
	for i, v := range f.pix {
		img.Pix[4*i], img.Pix[4*i+1], img.Pix[4*i+2], img.Pix[4*i+3] = byte(v>>16), byte(v>>8), byte(v), 255
	}
	return img
}
