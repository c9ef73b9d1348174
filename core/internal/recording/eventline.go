package recording

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"time"

	"golang.org/x/image/font"
	"golang.org/x/image/font/gofont/gomono"
	"golang.org/x/image/font/opentype"
	"golang.org/x/image/math/fixed"
)

// lineHeight is the height of the line of text under an exported picture.
const lineHeight = 24

// eventText is the line: when it is, and what happened last.
func eventText(started time.Time, at time.Duration, e *Moment) string {
	text := started.Add(at).UTC().Format("2006-01-02 15:04:05 UTC")
	if e != nil {
		text += "  " + momentText(e)
	}
	return text
}

// momentText renders an event for people: what counts first, then the rest.
func momentText(e *Moment) string {
	text := e.Kind
	for _, k := range []string{"method", "status", "url", "title", "path", "name", "direction", "outcome", "reason", "bytes", "gap_ms"} {
		if v := e.Fields[k]; v != "" {
			text += " " + v
		}
	}
	return cut(text, 400)
}

// lineWriter draws a line of text at the bottom of a picture.
type lineWriter struct{ face font.Face }

func newLineWriter() (*lineWriter, error) {
	f, err := opentype.Parse(gomono.TTF)
	if err != nil {
		return nil, fmt.Errorf("read font: %w", err)
	}
	face, err := opentype.NewFace(f, &opentype.FaceOptions{Size: 14, DPI: 72, Hinting: font.HintingFull})
	if err != nil {
		return nil, fmt.Errorf("read font: %w", err)
	}
	return &lineWriter{face: face}, nil
}

func (l *lineWriter) write(img *image.RGBA, text string) {
	bar := image.Rect(0, img.Rect.Dy()-lineHeight, img.Rect.Dx(), img.Rect.Dy())
	draw.Draw(img, bar, image.NewUniform(color.RGBA{24, 26, 30, 255}), image.Point{}, draw.Src)
	d := font.Drawer{Dst: img, Src: image.White, Face: l.face, Dot: fixed.P(6, bar.Max.Y-7)}
	d.DrawString(text)
}
