package rfb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// paint changes something in f, of a kind chosen by r: plain surfaces, text-like
// two-colour patterns, few colours, many colours.
func paint(r *rand.Rand, f *Framebuffer, area image.Rectangle) {
	kind := r.IntN(4)
	base := r.Uint32() & 0xffffff
	for y := area.Min.Y; y < area.Max.Y; y++ {
		row := make([]uint32, area.Dx())
		for x := range row {
			switch kind {
			case 0:
				row[x] = base
			case 1:
				row[x] = base ^ uint32(r.IntN(2))*0x7f7f7f
			case 2:
				row[x] = (base + uint32(r.IntN(1+r.IntN(300)))*7) & 0xffffff
			default:
				row[x] = r.Uint32() & 0xffffff
			}
		}
		f.SetRow(y, area.Min.X, row)
	}
}

func randomRect(r *rand.Rand, w, h int) image.Rectangle {
	x, y := r.IntN(w), r.IntN(h)
	return image.Rect(x, y, x+1+r.IntN(w-x), y+1+r.IntN(h-y))
}

// Whatever is painted, copied, filled and resized, a reader that takes the
// damage as Tight rectangles has the same picture, however often it looks.
func TestDamageEncodeDecode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		f := NewFramebuffer(1+r.IntN(250), 1+r.IntN(200))
		enc := NewEncoder()
		plan := Keyframes{Every: time.Duration(1+r.IntN(2000)) * time.Millisecond, Bytes: 1 + r.IntN(100000)}
		rec, sum := NewRecorder(enc, plan), [32]byte{}
		var frames [][]byte
		var keys []bool
		var sums [][32]byte
		at := time.Duration(0)
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			w, h := f.Size()
			switch r.IntN(8) {
			case 0:
				f.Resize(1+r.IntN(250), 1+r.IntN(200))
			case 1:
				a := randomRect(r, w, h)
				from := image.Pt(r.IntN(w-a.Dx()+1), r.IntN(h-a.Dy()+1))
				if err := f.Copy(a, from); err != nil {
					t.Fatal(err)
				}
			case 2:
				if err := f.Fill(randomRect(r, w, h), r.Uint32()); err != nil {
					t.Fatal(err)
				}
			case 3: // nothing
			default:
				paint(r, f, randomRect(r, w, h))
			}
			f.Commit()
			at += time.Duration(r.IntN(500)) * time.Millisecond
			if r.IntN(3) == 0 {
				continue // the recorder is not always there
			}
			pointer := image.Pt(r.IntN(w), r.IntN(h))
			frame, key := rec.Frame(f, &pointer, at)
			if frame == nil {
				if f.Sum() != sum {
					t.Fatal("the picture changed and no frame came")
				}
				continue
			}
			sum = f.Sum()
			frames, keys, sums = append(frames, frame), append(keys, key), append(sums, sum)
		}
		// From every keyframe on, each frame gives the picture of its moment.
		for from := range frames {
			if !keys[from] {
				continue
			}
			play := Replay{Picture: NewFramebuffer(7, 5)} // whatever was shown before
			for i := from; i < len(frames); i++ {
				if err := play.Apply(frames[i]); err != nil {
					t.Fatalf("frame %d from keyframe %d: %v", i, from, err)
				}
				if play.Picture.Sum() != sums[i] {
					t.Fatalf("frame %d played from keyframe %d differs", i, from)
				}
			}
		}
		if len(keys) > 0 && !keys[0] {
			t.Fatal("the first frame is no keyframe")
		}
	})
}

// An overlapping copy gives what a copy of the original would.
func TestCopyOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		f := NewFramebuffer(100, 90)
		paint(r, f, f.Bounds())
		before := f.Clone()
		a := randomRect(r, 100, 90)
		from := image.Pt(r.IntN(100-a.Dx()+1), r.IntN(90-a.Dy()+1))
		if err := f.Copy(a, from); err != nil {
			t.Fatal(err)
		}
		for y := range 90 {
			for x := range 100 {
				want := before.Row(y, x, x+1)[0]
				if p := image.Pt(x, y); p.In(a) {
					q := p.Sub(a.Min).Add(from)
					want = before.Row(q.Y, q.X, q.X+1)[0]
				}
				if got := f.Row(y, x, x+1)[0]; got != want {
					t.Fatalf("copy %v from %v: (%d,%d) is %06x, want %06x", a, from, x, y, got, want)
				}
			}
		}
	})
}

// Equal pixels are no damage; two readers at the same generation share.
func TestDamageIsExactAndShared(t *testing.T) {
	f := NewFramebuffer(640, 480)
	f.Commit()
	seen := f.Gen()
	raw := make([]byte, 4*640*480)
	for i := range raw {
		raw[i] = 0xaa * byte(1-i%4/3) // the unused byte is not compared
	}
	if err := f.SetRaw(f.Bounds(), raw); err != nil {
		t.Fatal(err)
	}
	f.Commit()
	if got := f.Damage(seen, nil); len(got) == 0 {
		t.Fatal("a new picture is no damage")
	}
	seen = f.Gen()
	for i := 3; i < len(raw); i += 4 {
		raw[i] = 0x55
	}
	raw[4*(640*100+200)] ^= 1
	if err := f.SetRaw(f.Bounds(), raw); err != nil {
		t.Fatal(err)
	}
	f.Commit()
	got := f.Damage(seen, nil)
	if want := image.Rect(192, 64, 256, 128); len(got) != 1 || got[0] != want {
		t.Fatalf("damage %v, want only %v", got, want)
	}
	enc := NewEncoder()
	a, b := enc.Rect(f, got[0]), enc.Rect(f, got[0])
	if &a[0] != &b[0] || enc.Stats().Made != 1 || enc.Stats().Shared != 1 {
		t.Errorf("one rectangle was encoded twice: %+v", enc.Stats())
	}
	raw[4*(640*100+200)] ^= 2
	if err := f.SetRaw(f.Bounds(), raw); err != nil {
		t.Fatal(err)
	}
	f.Commit()
	if c := enc.Rect(f, got[0]); bytes.Equal(a, c) {
		t.Error("an old encoding was used for a new picture")
	}
}

// What is remembered stays within its bound, whatever is encoded.
func TestEncoderMemoryIsBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	f := NewFramebuffer(1200, 1000)
	enc := NewEncoder()
	for range 3 {
		for y := range 1000 {
			row := f.Row(y, 0, 1200)
			for x := range row {
				row[x] = r.Uint32() & 0xffffff
			}
		}
		f.Touch(f.Bounds())
		f.Commit()
		for _, d := range f.Damage(f.Gen()-1, nil) {
			enc.Rect(f, d)
		}
		held := 0
		for _, list := range enc.cache {
			for _, c := range list {
				held += len(c.data)
			}
		}
		if held != enc.held || held > maxHeld {
			t.Fatalf("%d bytes held, %d counted, at most %d allowed", held, enc.held, maxHeld)
		}
	}
}

// The documented layout, byte by byte.
func TestFrameLayout(t *testing.T) {
	f := NewFramebuffer(3, 2)
	if err := f.Fill(f.Bounds(), 0x102030); err != nil {
		t.Fatal(err)
	}
	f.SetCursor(Cursor{Hot: image.Pt(1, 0), Width: 1, Height: 1, RGBA: []byte{9, 8, 7, 255}})
	f.Commit()
	rec := NewRecorder(NewEncoder(), DefaultKeyframes())
	got, key := rec.Frame(f, &image.Point{X: 2, Y: 1}, 0)
	want := []byte{
		1, 7, 0, 3, 0, 2, 0, 2, 0, 1, 0, 0, 0, 12, // head
		0, 1, 0, 0, 0, 1, 0, 1, 9, 8, 7, 255, // pointer image
		0, 0, 0, 2, // FramebufferUpdate of two rectangles
		0, 0, 0, 0, 0, 3, 0, 2, 0xff, 0xff, 0xff, 0x21, // DesktopSize
		0, 0, 0, 0, 0, 3, 0, 2, 0, 0, 0, 7, 0x80, 0x10, 0x20, 0x30, // Tight, filled
	}
	if !key || !bytes.Equal(got, want) {
		t.Errorf("frame (key %v)\n% x, want\n% x", key, got, want)
	}
	if again, _ := rec.Frame(f, &image.Point{X: 2, Y: 1}, time.Hour); again != nil {
		t.Errorf("nothing changed and a frame came: % x", again)
	}
	moved, key := rec.Frame(f, &image.Point{X: 0, Y: 1}, time.Hour)
	if want := []byte{1, 2, 0, 3, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}; key || !bytes.Equal(moved, want) {
		t.Errorf("moved pointer: % x, want % x", moved, want)
	}
}

// A keyframe comes after enough activity or bytes, not after idle time.
func TestKeyframePlan(t *testing.T) {
	f := NewFramebuffer(200, 200)
	rec := NewRecorder(NewEncoder(), Keyframes{Every: time.Second, Bytes: 3000})
	r := rand.New(rand.NewPCG(4, 4))
	at, colour := time.Duration(0), uint32(0)
	step := func(gap time.Duration, noisy bool) bool {
		colour++
		if noisy {
			for y := range 64 {
				row := make([]uint32, 10)
				for x := range row {
					row[x] = r.Uint32() & 0xffffff
				}
				f.SetRow(y, 0, row)
			}
		} else if err := f.Fill(image.Rect(0, 0, 10, 10), colour); err != nil {
			t.Fatal(err)
		}
		f.Commit()
		at += gap
		_, key := rec.Frame(f, nil, at)
		return key
	}
	if !step(0, false) {
		t.Fatal("the first frame is no keyframe")
	}
	if step(24*time.Hour, false) {
		t.Error("idle time made a keyframe")
	}
	n := 0
	for !step(100*time.Millisecond, false) {
		n++
	}
	if n != 7 { // 0.25 s were counted for the pause before
		t.Errorf("a keyframe after %d frames of 0.1 s, want 7", n)
	}
	n = 0
	for !step(0, true) {
		n++
	}
	if n != 2 {
		t.Errorf("a keyframe after %d frames of about 2 kB each, the plan is 3000 bytes", n)
	}
}

func TestReplayRefuses(t *testing.T) {
	f := NewFramebuffer(64, 64)
	f.Commit()
	rec := NewRecorder(NewEncoder(), DefaultKeyframes())
	key, _ := rec.Frame(f, nil, 0)
	if err := f.Fill(f.Bounds(), 5); err != nil {
		t.Fatal(err)
	}
	f.Commit()
	delta, _ := rec.Frame(f, nil, 1)
	change := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	sized := AppendDesktopSize(AppendUpdate(AppendFrame(nil, Frame{Width: 32, Height: 32}), 1), 32, 32)
	overlap := AppendUpdate(AppendFrame(nil, Frame{Width: 64, Height: 64}), maxWork+1)
	for range maxWork + 1 {
		overlap = NewEncoder().AppendRect(overlap, f, f.Bounds())
	}
	for name, frames := range map[string][][]byte{
		"no keyframe first":   {delta},
		"empty":               {key, nil},
		"version":             {change(key, 0, 2)},
		"zero width":          {change(key, 3, 0)},
		"other width":         {change(key, 3, 63)},
		"cut":                 {key[:len(key)-1]},
		"more behind":         {append(bytes.Clone(key), 0)},
		"size without key":    {key, sized},
		"cursor too long":     {change(key, 10, 0xff)},
		"cursor without flag": {change(key, 13, 1)},
		"overlapping":         {key, overlap},
		"two updates":         {append(bytes.Clone(key), 0, 0, 0, 0)},
	} {
		var play Replay
		var err error
		for _, b := range frames {
			if err = play.Apply(b); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var play Replay
	for _, b := range [][]byte{key, delta} {
		if err := play.Apply(b); err != nil {
			t.Errorf("the control is refused: %v", err)
		}
	}
}

// Streams that run on from rectangle to rectangle, as other servers send them.
func TestTightStreamsRunOn(t *testing.T) {
	var zipped bytes.Buffer
	z := newZlib(t, &zipped)
	f := NewFramebuffer(16, 32)
	msg := AppendUpdate(nil, 2)
	want := NewFramebuffer(16, 32)
	for i := range 2 {
		r := image.Rect(0, 16*i, 16, 16*i+16)
		zipped.Reset()
		for y := r.Min.Y; y < r.Max.Y; y++ {
			for x := range 16 {
				c := uint32(x*y*77+i) & 0xffffff
				want.Row(y, 0, 16)[x] = c
				z.Write([]byte{byte(c >> 16), byte(c >> 8), byte(c)})
			}
		}
		z.Flush()
		msg = append(appendRectHeader(msg, r, Tight), 0x20) // stream 2, no reset
		msg = append(appendCompact(msg, zipped.Len()), zipped.Bytes()...)
	}
	r := NewServerReader(bytes.NewReader(msg), ServerLimits{Tight: true})
	for {
		e, err := r.Next(f, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == EventUpdateEnd {
			break
		}
	}
	if f.Sum() != want.Sum() {
		t.Error("the picture differs")
	}
}

func TestCompactLength(t *testing.T) {
	for _, n := range []int{0, 1, 127, 128, 16383, 16384, tightMaxData} {
		b := appendCompact(nil, n)
		got, err := readCompact(bufio.NewReader(bytes.NewReader(b)))
		if err != nil || got != n {
			t.Errorf("%d → % x → %d, %v", n, b, got, err)
		}
	}
}

// Both halves of the handshake understand each other; refusals are told.
func TestHandshake(t *testing.T) {
	a, b := pipe()
	done := make(chan error, 1)
	go func() { done <- ServerHandshake(a, Init{Width: 1280, Height: 800, Name: "séance"}) }()
	got, err := ClientHandshake(b)
	if err != nil || got != (Init{Width: 1280, Height: 800, Name: "séance"}) {
		t.Errorf("%+v, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	for name, said := range map[string]string{
		"version":        "RFB 004.000\n",
		"no types":       "RFB 003.008\n\x00\x00\x00\x00\x04full",
		"authentication": "RFB 003.008\n\x01\x02",
		"refused":        "RFB 003.008\n\x01\x01\x00\x00\x00\x01\x00\x00\x00\x04full",
		"long reason":    "RFB 003.008\n\x00\x7f\x00\x00\x00",
		"no size":        "RFB 003.008\n\x01\x01\x00\x00\x00\x00" + string(make([]byte, 24)),
		"huge":           "RFB 003.008\n\x01\x01\x00\x00\x00\x00\xff\xff\xff\xff" + string(make([]byte, 20)),
	} {
		_, err := ClientHandshake(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader([]byte(said)), io.Discard})
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkFormat(pixelFormat); err != nil {
		t.Error(err)
	}
	if err := checkFormat([]byte{16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0}); !errors.Is(err, ErrProtocol) {
		t.Errorf("16-bit pixels: %v", err)
	}
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
