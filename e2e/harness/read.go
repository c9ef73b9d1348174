package harness

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"os/exec"
	"strings"

	"golang.org/x/image/draw"
)

// Read reads the text in a part of a picture (tesseract). ink says how much of
// a pixel is written, 0 to 255.
func Read(ctx context.Context, p *image.RGBA, part image.Rectangle, ink func(color.RGBA) byte) (string, error) {
	tool, err := lookPath("tesseract")
	if err != nil {
		return "", fmt.Errorf("%w: run make setup", err)
	}
	const scale, margin = 3, 20
	part = part.Intersect(p.Rect)
	small := image.NewGray(image.Rect(0, 0, part.Dx(), part.Dy()))
	for y := range part.Dy() {
		for x := range part.Dx() {
			small.SetGray(x, y, color.Gray{Y: 0xff - ink(p.RGBAAt(part.Min.X+x, part.Min.Y+y))})
		}
	}
	page := image.NewGray(image.Rect(0, 0, scale*part.Dx()+2*margin, scale*part.Dy()+2*margin))
	for i := range page.Pix {
		page.Pix[i] = 0xff
	}
	draw.CatmullRom.Scale(page, page.Rect.Inset(margin), small, small.Rect, draw.Src, nil)
	var in, said bytes.Buffer
	if err := png.Encode(&in, page); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, tool, "stdin", "stdout", "-l", "eng", "--dpi", "200", "--psm", "11")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "OMP_THREAD_LIMIT=1"}
	cmd.Stdin, cmd.Stderr = &in, &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("tesseract: %w: %s", err, said.String())
	}
	return strings.Join(strings.Fields(string(out)), " "), nil
}

// Near says whether two colours look alike.
func Near(a, b color.RGBA, most int) bool {
	near := func(a, b byte) bool { return int(max(a, b)-min(a, b)) <= most }
	return near(a.R, b.R) && near(a.G, b.G) && near(a.B, b.B)
}

// Where is the smallest rectangle around all pixels of a colour.
func Where(p *image.RGBA, c color.RGBA) image.Rectangle {
	var r image.Rectangle
	for y := p.Rect.Min.Y; y < p.Rect.Max.Y; y++ {
		for x := p.Rect.Min.X; x < p.Rect.Max.X; x++ {
			if Near(p.RGBAAt(x, y), c, 2) {
				r = r.Union(image.Rect(x, y, x+1, y+1))
			}
		}
	}
	return r
}
