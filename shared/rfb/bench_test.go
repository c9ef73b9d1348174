package rfb

import (
	"image"
	"image/color"
	"image/draw"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/goregular"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// page draws what a web application looks like: a coloured bar, a side column,
// paragraphs of smooth text, a table and a photograph. It is taller than a
// screen, to be scrolled.
func page(tb testing.TB, w, h int) *image.RGBA {
	tb.Helper()
	parsed, err := opentype.Parse(goregular.TTF)
	if err != nil {
		tb.Fatal(err)
	}
	face, err := opentype.NewFace(parsed, &opentype.FaceOptions{Size: 15, DPI: 72})
	if err != nil {
		tb.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 5))
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	fill := func(x0, y0, x1, y1 int, c color.Color) {
		draw.Draw(img, image.Rect(x0, y0, x1, y1), image.NewUniform(c), image.Point{}, draw.Src)
	}
	fill(0, 0, w, h, color.White)
	fill(0, 0, w, 56, color.RGBA{0x1f, 0x4e, 0x8c, 0xff})
	fill(0, 56, 220, h, color.RGBA{0xf3, 0xf5, 0xf8, 0xff})
	text := func(x, y, chars int, c color.Color) {
		var line strings.Builder
		for line.Len() < chars {
			for range 2 + r.IntN(8) {
				line.WriteByte(byte('a' + r.IntN(26)))
			}
			line.WriteByte(' ')
		}
		d := font.Drawer{Dst: img, Src: image.NewUniform(c), Face: face, Dot: fixed.P(x, y)}
		d.DrawString(line.String())
	}
	text(20, 35, 30, color.White)
	for y := 90; y < h; y += 34 {
		text(20, y, 18, color.RGBA{0x33, 0x3f, 0x4f, 0xff})
	}
	for y := 90; y < h; y += 21 {
		switch {
		case y/21%20 == 10: // a table's line
			fill(250, y, w-30, y+1, color.RGBA{0xd0, 0xd5, 0xdc, 0xff})
		default:
			text(250, y, 90, color.RGBA{0x11, 0x18, 0x27, 0xff})
		}
	}
	for y := 300; y < 500; y++ { // smooth, with a little grain
		for x := w - 380; x < w-60; x++ {
			v := 128 + 90*math.Sin(float64(x)/61)*math.Cos(float64(y)/43)
			g := float64(r.IntN(7))
			img.SetRGBA(x, y, color.RGBA{uint8(v + g), uint8(v*0.8 + 20 + g), uint8(255 - v*0.7 - g), 255})
		}
	}
	return img
}

// show puts the part of img that begins at row top on f.
func show(f *Framebuffer, img *image.RGBA, top int) {
	w, h := f.Size()
	row := make([]uint32, w)
	for y := range h {
		p := img.Pix[(y+top)*img.Stride:]
		for x := range row {
			row[x] = uint32(p[4*x])<<16 | uint32(p[4*x+1])<<8 | uint32(p[4*x+2])
		}
		f.SetRow(y, 0, row)
	}
}

const benchW, benchH = 1280, 800

func reportEncoded(b *testing.B, enc *Encoder, before EncoderStats) {
	after := enc.Stats()
	n := float64(b.N)
	b.ReportMetric(float64(after.Bytes-before.Bytes)/n, "B/frame")
	b.ReportMetric(float64(after.Pixels-before.Pixels)*4/1e6/b.Elapsed().Seconds(), "MB/s")
}

// A whole page, as a keyframe or the first picture of a viewer.
func BenchmarkEncodePage(b *testing.B) {
	f, enc := NewFramebuffer(benchW, benchH), NewEncoder()
	show(f, page(b, benchW, benchH), 0)
	before := enc.Stats()
	for b.Loop() {
		f.Touch(f.Bounds())
		f.Commit()
		for _, r := range f.Damage(f.Gen()-1, nil) {
			enc.Rect(f, r)
		}
	}
	reportEncoded(b, enc, before)
}

// The same page scrolled by 24 pixels per frame.
func BenchmarkEncodeScroll(b *testing.B) {
	f, enc := NewFramebuffer(benchW, benchH), NewEncoder()
	img := page(b, benchW, 3*benchH)
	before, top := enc.Stats(), 0
	var ch Changes
	for b.Loop() {
		b.StopTimer()
		top = (top + 24) % (2 * benchH)
		show(f, img, top)
		b.StartTimer()
		f.CommitMoves()
		ch = f.Changes(f.Gen()-1, ch)
		for _, r := range ch.Rects {
			enc.Rect(f, r)
		}
	}
	reportEncoded(b, enc, before)
}

// An animated canvas of 400×300 with 40 moving shapes.
func BenchmarkEncodeCanvas(b *testing.B) {
	f, enc := NewFramebuffer(benchW, benchH), NewEncoder()
	show(f, page(b, benchW, benchH), 0)
	f.Commit()
	before, n := enc.Stats(), 0
	for b.Loop() {
		b.StopTimer()
		canvas(f, n)
		n++
		b.StartTimer()
		for _, r := range f.Damage(f.Gen()-1, nil) {
			enc.Rect(f, r)
		}
	}
	reportEncoded(b, enc, before)
}

func canvas(f *Framebuffer, n int) {
	area := image.Rect(400, 200, 800, 500)
	if err := f.Fill(area, 0x101830); err != nil {
		panic(err)
	}
	for i := range 40 {
		x := area.Min.X + 20 + (i*53+n*(3+i%5))%360
		y := area.Min.Y + 20 + (i*37+n*(2+i%3))%260
		for dy := -12; dy <= 12; dy++ {
			half := int(math.Sqrt(float64(144 - dy*dy)))
			row := make([]uint32, 2*half+1)
			for k := range row {
				row[k] = uint32(0x400000+i*0x050309+k*0x000102) & 0xffffff
			}
			f.SetRow(y+dy, x-half, row)
		}
	}
	f.Commit()
}

// One frame of the canvas for 10 viewers and a recorder.
func BenchmarkFrameForMany(b *testing.B) {
	f, enc := NewFramebuffer(benchW, benchH), NewEncoder()
	show(f, page(b, benchW, benchH), 0)
	f.Commit()
	rec, n := NewRecorder(enc, Keyframes{Every: time.Hour, Bytes: 1 << 40}), 0
	rec.Frame(f, nil, 0)
	before := enc.Stats()
	for b.Loop() {
		b.StopTimer()
		canvas(f, n)
		n++
		b.StartTimer()
		for range 10 {
			for _, r := range f.Damage(f.Gen()-1, nil) {
				enc.Rect(f, r)
			}
		}
		rec.Frame(f, nil, time.Duration(n))
	}
	reportEncoded(b, enc, before)
}

// Raw pixels of a whole picture, as they come from the X server: changed and
// unchanged.
func BenchmarkSetRaw(b *testing.B) {
	f := NewFramebuffer(benchW, benchH)
	data := make([]byte, 4*benchW*benchH)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		data[0]++
		if err := f.SetRaw(f.Bounds(), data); err != nil {
			b.Fatal(err)
		}
		f.Commit()
	}
}

// Playing a keyframe of the page, as the exporter does.
func BenchmarkReplayKeyframe(b *testing.B) {
	f := NewFramebuffer(benchW, benchH)
	show(f, page(b, benchW, benchH), 0)
	f.Commit()
	frame, _ := NewRecorder(NewEncoder(), DefaultKeyframes()).Frame(f, nil, 0)
	b.SetBytes(4 * benchW * benchH)
	var play Replay
	for b.Loop() {
		if err := play.Apply(frame); err != nil {
			b.Fatal(err)
		}
	}
}
