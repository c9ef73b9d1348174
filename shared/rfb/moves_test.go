package rfb

import (
	"bytes"
	"image"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// reader takes changes as a viewer does.
type reader struct {
	picture *Framebuffer
	seen    uint64
	changes Changes
	// spot is a place it has drawn over by itself.
	spot image.Rectangle
	sent int
}

func (v *reader) look(t interface{ Fatal(...any) }, f *Framebuffer, enc *Encoder) {
	if w, h := f.Size(); f.Sized() > v.seen {
		v.picture.Resize(w, h)
		v.seen, v.spot = 0, image.Rectangle{}
	}
	var dirty []image.Rectangle
	if !v.spot.Empty() {
		dirty = append(dirty, v.spot)
	}
	v.changes = f.Changes(v.seen, v.changes, dirty...)
	b := AppendUpdate(nil, len(v.changes.Moves)+len(v.changes.Rects)+len(dirty))
	for _, m := range v.changes.Moves {
		b = AppendCopyRect(b, m.To, m.From)
	}
	for _, r := range append(v.changes.Rects, dirty...) {
		b = append(b, enc.Rect(f, r)...)
	}
	v.seen, v.spot, v.sent = f.Gen(), image.Rectangle{}, len(b)
	r := NewServerReader(bytes.NewReader(b), ServerLimits{Tight: true})
	for {
		e, err := r.Next(v.picture, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == EventUpdateEnd {
			return
		}
	}
}

// Whatever scrolls, is drawn and changes size, readers that look at every
// generation, at some, or draw over their own picture all end with the picture.
func TestMovesAreExact(t *testing.T) {
	moved := 0
	for seed := range uint64(100) {
		moved += scrolls(t, seed, 8)
	}
	if moved < 100 {
		t.Errorf("only %d moves were found: nothing was tested", moved)
	}
	rapid.Check(t, func(t *rapid.T) {
		scrolls(t, rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 8).Draw(t, "steps"))
	})
}

// scrolls changes a picture at random, compares what the readers have after
// each step and returns how many moves they were told of.
func scrolls(t rapid.TB, seed uint64, steps int) (moved int) {
	r := rand.New(rand.NewPCG(seed, 1))
	f, enc := NewFramebuffer(70+r.IntN(100), 120+r.IntN(120)), NewEncoder()
	paint(r, f, f.Bounds())
	f.CommitMoves()
	readers := make([]reader, 3)
	for i := range readers {
		readers[i].picture = NewFramebuffer(1, 1)
	}
	for n := range steps {
		w, h := f.Size()
		switch r.IntN(12) {
		case 0:
			f.Resize(70+r.IntN(100), 120+r.IntN(120))
		case 1:
			paint(r, f, randomRect(r, w, h))
		case 2: // nothing
		default:
			a := image.Rect(r.IntN(w/2), r.IntN(h/4), w-r.IntN(w/4), h-r.IntN(h/4))
			dy := r.IntN(61) - 30
			src := a.Add(image.Pt(0, -dy)).Intersect(a)
			if err := f.Copy(src.Add(image.Pt(0, dy)), src.Min); err != nil {
				t.Fatal(err)
			}
			if dy > 0 {
				paint(r, f, image.Rect(a.Min.X, a.Min.Y, a.Max.X, a.Min.Y+dy))
			} else if dy < 0 {
				paint(r, f, image.Rect(a.Min.X, a.Max.Y+dy, a.Max.X, a.Max.Y))
			}
			if r.IntN(3) == 0 {
				small := image.Rect(a.Min.X, a.Min.Y, a.Min.X+1+r.IntN(a.Dx()), a.Min.Y+1+r.IntN(20))
				paint(r, f, small)
			}
		}
		f.CommitMoves()
		for i := range readers {
			v := &readers[i]
			if i > 0 && r.IntN(2*i+1) > 0 {
				continue
			}
			v.look(t, f, enc)
			moved += len(v.changes.Moves)
			if !slices.Equal(v.picture.pix, f.pix) {
				t.Fatalf("reader %d differs after step %d of seed %d: %d moves", i, n, seed, len(v.changes.Moves))
			}
			if i == 2 {
				w, h := f.Size()
				v.spot = randomRect(r, w, h)
				if err := v.picture.Fill(v.spot, 0xfe01fe); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return moved
}

// A page that scrolls is not sent again.
func TestScrollIsCheap(t *testing.T) {
	const w, h = 500, 400
	img := page(t, w, 3*h)
	f, enc := NewFramebuffer(w, h), NewEncoder()
	show(f, img, 0)
	f.CommitMoves()
	every, third := reader{picture: NewFramebuffer(w, h)}, reader{picture: NewFramebuffer(w, h)}
	every.look(t, f, enc)
	third.look(t, f, enc)
	whole := every.sent
	for n := 1; n <= 12; n++ {
		show(f, img, 24*n)
		f.CommitMoves()
		every.look(t, f, enc)
		if every.sent > whole/5 {
			t.Errorf("step %d took %d bytes, the whole picture %d", n, every.sent, whole)
		}
		if n%3 == 0 {
			third.look(t, f, enc)
			if third.sent > whole/2 {
				t.Errorf("three steps took %d bytes, the whole picture %d", third.sent, whole)
			}
		}
	}
	if every.picture.Sum() != f.Sum() || third.picture.Sum() != f.Sum() {
		t.Error("the picture differs")
	}
}
