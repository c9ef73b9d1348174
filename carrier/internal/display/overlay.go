package display

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"strings"
	"unicode"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"

	"caponier/shared/rfb"
)

// How texts are drawn over the picture.
const (
	bannerSize     = 17 // pixels per em
	bannerPad      = 10
	bannerMaxLines = 4
	markSize       = 19
	markDepth      = 30 // how much a watermark darkens or lightens, of 255
	maxText        = 400
)

var (
	bannerBack = color.RGBA{0x1f, 0x29, 0x37, 0xff}
	bannerText = color.RGBA{0xff, 0xff, 0xff, 0xff}
)

// overlays is what is drawn over the picture, laid out for one size.
type overlays struct {
	size image.Point
	// banner lies at where; nil if there is none.
	banner *image.RGBA
	where  image.Rectangle
	// mark is repeated over the whole picture; nil if there is none.
	mark *image.Alpha
}

func (o overlays) empty() bool { return o.banner == nil && o.mark == nil }

// layout makes the overlays for a picture of this size.
func layout(size image.Point, banner []string, mark []string) (overlays, error) {
	o := overlays{size: size}
	banner, mark = clean(banner), clean(mark)
	if len(banner) == 0 && len(mark) == 0 {
		return o, nil
	}
	parsed, err := opentype.Parse(goregular.TTF)
	if err != nil {
		return o, fmt.Errorf("parse font: %w", err)
	}
	if len(banner) > 0 {
		if err := o.layBanner(parsed, banner); err != nil {
			return o, err
		}
	}
	if len(mark) > 0 {
		err = o.layMark(parsed, mark)
	}
	return o, err
}

func (o *overlays) layBanner(parsed *opentype.Font, texts []string) error {
	face, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: bannerSize, DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return fmt.Errorf("font face: %w", err)
	}
	defer face.Close()
	var lines []string
	for _, t := range texts {
		lines = append(lines, wrap(face, t, o.size.X*9/10-2*bannerPad)...)
	}
	lines = lines[:min(len(lines), bannerMaxLines)]
	width, step := 0, face.Metrics().Height.Ceil()
	for _, l := range lines {
		width = max(width, font.MeasureString(face, l).Ceil())
	}
	box := image.Pt(min(width+2*bannerPad, o.size.X), min(step*len(lines)+2*bannerPad, o.size.Y))
	o.banner = image.NewRGBA(image.Rectangle{Max: box})
	o.where = o.banner.Rect.Add(image.Pt((o.size.X-box.X)/2, 0))
	draw.Draw(o.banner, o.banner.Rect, image.NewUniform(bannerBack), image.Point{}, draw.Src)
	for i, l := range lines {
		drawText(o.banner, face, image.NewUniform(bannerText), image.Pt((box.X-font.MeasureString(face, l).Ceil())/2, bannerPad+i*step), l)
	}
	return nil
}

// layMark draws the lines twice into a pattern, shifted by half of it.
func (o *overlays) layMark(parsed *opentype.Font, lines []string) error {
	face, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: markSize, DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return fmt.Errorf("font face: %w", err)
	}
	defer face.Close()
	width, step := 0, face.Metrics().Height.Ceil()
	for _, l := range lines {
		width = max(width, font.MeasureString(face, l).Ceil())
	}
	width = min(width, rfb.MaxWidth)
	half := image.Pt(width+60, step*len(lines)+90)
	o.mark = image.NewAlpha(image.Rect(0, 0, 2*half.X, 2*half.Y))
	for i, l := range lines {
		drawText(o.mark, face, image.Opaque, image.Pt(0, i*step), l)
		drawText(o.mark, face, image.Opaque, image.Pt(half.X, half.Y+i*step), l)
	}
	return nil
}

func drawText(dst draw.Image, face font.Face, src image.Image, at image.Point, text string) {
	d := font.Drawer{Dst: dst, Src: src, Face: face, Dot: fixed.P(at.X, at.Y+face.Metrics().Ascent.Ceil())}
	d.DrawString(text)
}

// wrap breaks a text at spaces so that its lines are not wider than width.
func wrap(face font.Face, text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		longer := strings.TrimPrefix(line+" "+word, " ")
		if line != "" && font.MeasureString(face, longer).Ceil() > width {
			lines, longer = append(lines, line), word
		}
		line = longer
	}
	return append(lines, line)
}

// clean removes what cannot be drawn and empty lines.
func clean(texts []string) []string {
	var out []string
	for _, t := range texts {
		t = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, t)
		if runes := []rune(t); len(runes) > maxText {
			t = string(runes[:maxText])
		}
		if strings.TrimSpace(t) != "" {
			out = append(out, t)
		}
	}
	return out
}

// blend draws the overlays over a row of pixels that begins at (x, y).
func (o overlays) blend(row []uint32, x, y int) {
	if o.mark != nil {
		pattern := o.mark.Pix[y%o.mark.Rect.Dy()*o.mark.Stride:][:o.mark.Rect.Dx()]
		for i := range row {
			if a := pattern[(x+i)%len(pattern)]; a != 0 {
				row[i] = shade(row[i], int(a)*markDepth/255)
			}
		}
	}
	if o.banner == nil || y < o.where.Min.Y || y >= o.where.Max.Y {
		return
	}
	for bx := max(x, o.where.Min.X); bx < min(x+len(row), o.where.Max.X); bx++ {
		p := o.banner.Pix[(y-o.where.Min.Y)*o.banner.Stride+4*(bx-o.where.Min.X):][:3]
		row[bx-x] = uint32(p[0])<<16 | uint32(p[1])<<8 | uint32(p[2])
	}
}

// shade makes light pixels darker and dark ones lighter, so that the mark is
// seen on both.
func shade(v uint32, by int) uint32 {
	r, g, b := int(v>>16&0xff), int(v>>8&0xff), int(v&0xff)
	if 2*r+5*g+b >= 8*128 {
		by = -by
	}
	part := func(c int) uint32 { return uint32(min(255, max(0, c+by))) }
	return part(r)<<16 | part(g)<<8 | part(b)
}

// area is what the overlays may change.
func (o overlays) area() image.Rectangle {
	if o.mark != nil {
		return image.Rectangle{Max: o.size}
	}
	return o.where
}

// applyOverlaysLocked brings the overlays up to date with policy, notice, lock
// and size, and redraws where they were and are.
func (d *Display) applyOverlaysLocked() {
	if d.drawn == nil {
		return // begin calls again
	}
	old := d.overlays.area()
	w, h := d.drawn.Size()
	d.layoutLocked(image.Pt(w, h))
	if d.shown == d.drawn {
		if d.overlays.empty() {
			return
		}
		d.shown, d.composed = d.drawn.Clone(), d.drawn.Gen()
	}
	if sw, sh := d.shown.Size(); sw == w && sh == h {
		d.redrawLocked(old)
		d.redrawLocked(d.overlays.area())
		d.shown.CommitMoves()
	}
	d.wakeLocked()
}

func (d *Display) layoutLocked(size image.Point) {
	next, err := layout(size, []string{d.lockMsg, d.notice}, d.policy.Watermark)
	if err != nil {
		// The font is part of the program: a session goes on without the text.
		d.cfg.Log.Error("draw text over the picture", "session", d.cfg.Session, "err", err)
		next = overlays{size: size}
	}
	d.overlays = next
}

// composeLocked brings shown up to date with drawn. Without overlays the two
// become one again; only the reader of the X server may then go on drawing.
func (d *Display) composeLocked() {
	w, h := d.drawn.Size()
	if sw, sh := d.shown.Size(); sw != w || sh != h {
		d.shown.Resize(w, h)
		d.composed = 0
		d.overlays.size = image.Point{}
	}
	if d.overlays.size != image.Pt(w, h) {
		d.layoutLocked(image.Pt(w, h))
	}
	for _, r := range d.drawn.Damage(d.composed, nil) {
		d.redrawLocked(r)
	}
	if d.drawn.Shaped() > d.composed {
		d.shown.SetCursor(d.drawn.Cursor())
	}
	d.shown.CommitMoves()
	d.composed = d.drawn.Gen()
	if d.overlays.empty() {
		d.drawn = d.shown
	}
}

// redrawLocked copies a rectangle from drawn to shown with the overlays on it.
func (d *Display) redrawLocked(r image.Rectangle) {
	r = r.Intersect(d.drawn.Bounds()).Intersect(d.shown.Bounds())
	line := make([]uint32, r.Dx())
	for y := r.Min.Y; y < r.Max.Y; y++ {
		copy(line, d.drawn.Row(y, r.Min.X, r.Max.X))
		d.overlays.blend(line, r.Min.X, y)
		d.shown.SetRow(y, r.Min.X, line)
	}
}
