package rfb

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"image"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func pipe() (net.Conn, net.Conn) { return net.Pipe() }

func newZlib(t testing.TB, w io.Writer) *zlib.Writer {
	z, err := zlib.NewWriterLevel(w, 6)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// Everything a client can say is read as it was meant.
func TestClientMessages(t *testing.T) {
	for name, tc := range map[string]struct {
		said []byte
		want Message
	}{
		"format":    {AppendSetPixelFormat(nil), Message{Kind: MessageIgnored}},
		"encodings": {AppendSetEncodings(nil, Tight, ExtendedClipboard, VMwareCursor), Message{Kind: MessageEncodings, Encodings: []Encoding{7, ExtendedClipboard, 0x574d5664}}},
		"request":   {AppendRequest(nil, true, image.Rect(1, 2, 4, 6)), Message{Kind: MessageRequest, Incremental: true, Rect: image.Rect(1, 2, 4, 6)}},
		"updates":   {AppendEnableUpdates(nil, true, image.Rect(0, 0, 9, 9)), Message{Kind: MessageUpdates, Down: true, Rect: image.Rect(0, 0, 9, 9)}},
		"key":       {AppendKey(nil, Key{Sym: 0xffe3, Code: 29}, true, false), Message{Kind: MessageKey, Down: true, Key: Key{Sym: 0xffe3}}},
		"scan":      {AppendKey(nil, Key{Sym: 'w', Code: 0x11}, false, true), Message{Kind: MessageKey, Key: Key{Sym: 'w', Code: 0x11}}},
		"pointer":   {AppendPointer(nil, image.Pt(700, 1), 0x41, false), Message{Kind: MessagePointer, At: image.Pt(700, 1), Buttons: 0x41}},
		"buttons":   {AppendPointer(nil, image.Pt(7, 1), 0x181, true), Message{Kind: MessagePointer, At: image.Pt(7, 1), Buttons: 0x181}},
		"fence":     {append(AppendFence(nil, FenceRequest|1, []byte("x")), 0), Message{Kind: MessageFence, Flags: FenceRequest | 1, Payload: []byte("x")}},
		"size":      {AppendSetSize(nil, 1024, 768), Message{Kind: MessageSize, Size: image.Pt(1024, 768)}},
		"xvp":       {[]byte{250, 0, 1, 2}, Message{Kind: MessageIgnored}},
		"text":      {AppendClipboard(nil, Clipboard{Text: "é\r\nb"}, true), Message{Kind: MessageClipboard, Clipboard: Clipboard{HasText: true, Text: "é\nb", Size: 4}}},
	} {
		r := NewClientReader(bytes.NewReader(tc.said), func() int { return 100 })
		got, err := r.Next()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := cmp.Diff(got, tc.want); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		// Cut anywhere it is an error, never a message.
		for n := 1; n < len(tc.said) && name != "fence"; n++ {
			if m, err := NewClientReader(bytes.NewReader(tc.said[:n]), func() int { return 100 }).Next(); err == nil {
				t.Errorf("%s cut after %d bytes was read as %+v", name, n, m)
			}
		}
	}
	for name, said := range map[string][]byte{
		"unknown type":    {77},
		"many encodings":  {2, 0, 1, 1},
		"many screens":    {251, 0, 1, 0, 1, 0, 17, 0},
		"qemu audio":      append([]byte{255, 1}, make([]byte, 20)...),
		"huge clipboard":  {6, 0, 0, 0, 0x7f, 0, 0, 0},
		"short extended":  {6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff},
		"long fence":      {248, 0, 0, 0, 0, 0, 0, 0, 65},
		"8-bit pixels":    append([]byte{0, 0, 0, 0, 8, 8, 0, 1}, make([]byte, 12)...),
		"bad compression": append([]byte{6, 0, 0, 0, 0xff, 0xff, 0xff, 0xf8, 0x10, 0, 0, 1}, "nope"...),
	} {
		if m, err := NewClientReader(bytes.NewReader(said), func() int { return 1 << 20 }).Next(); err == nil {
			t.Errorf("%s was read as %+v", name, m)
		}
	}
}

// Every text crosses unchanged but for line ends, both ways, and one that is
// too long is told apart without being kept.
func TestClipboardRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := strings.TrimRight(rapid.String().Draw(t, "text"), "\x00")
		toServer := rapid.Bool().Draw(t, "to server")
		want := unixLines(text)
		b := AppendClipboard(nil, Clipboard{Action: ClipboardProvide, HasText: true, Text: text}, toServer)
		limit := len(want) + rapid.IntRange(-2, 2).Draw(t, "limit")
		got, err := readClipboard(bufio.NewReader(bytes.NewReader(append(b[1:], "next"...))), max(limit, 0))
		if err != nil {
			t.Fatal(err)
		}
		if len(want) > max(limit, 0) {
			if !got.TooLong || got.Text != "" || got.Size < len(want) {
				t.Fatalf("%d bytes with a limit of %d: %+v", len(want), limit, got)
			}
			return
		}
		if got.Text != want || got.TooLong || got.Size != len(want) {
			t.Fatalf("got %q (%+v), want %q", got.Text, got, want)
		}
	})
}

// A few kilobytes that inflate to a gigabyte are not inflated.
func TestClipboardBomb(t *testing.T) {
	var zipped bytes.Buffer
	z := newZlib(t, &zipped)
	z.Write(be32(1 << 30))
	for range 4 {
		z.Write(make([]byte, 1<<20))
	}
	z.Close()
	b := append([]byte{0, 0, 0}, be32(uint32(-int32(4+zipped.Len())))...)
	b = append(append(b, be32(uint32(ClipboardProvide)|formatText)...), zipped.Bytes()...)
	r := bufio.NewReader(bytes.NewReader(append(b, "next"...)))
	got, err := readClipboard(r, 1<<20)
	if err != nil || !got.TooLong || got.Size != 1<<30 {
		t.Fatalf("%+v, %v", got, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "next" {
		t.Errorf("the next message begins with %q", rest)
	}
}

// noVNC flushes its zlib stream and does not end it.
func TestClipboardFlushedNotEnded(t *testing.T) {
	var zipped bytes.Buffer
	z := newZlib(t, &zipped)
	z.Write(be32(6))
	z.Write([]byte("a\r\nbc\x00"))
	z.Flush()
	b := append([]byte{0, 0, 0}, be32(uint32(-int32(4+zipped.Len())))...)
	b = append(append(b, be32(uint32(ClipboardProvide)|formatText)...), zipped.Bytes()...)
	got, err := readClipboard(bufio.NewReader(bytes.NewReader(b)), 100)
	if err != nil || got.Text != "a\nbc" {
		t.Errorf("%+v, %v", got, err)
	}
}

// What a server announces and asks reaches the client.
func TestServerMessages(t *testing.T) {
	f := NewFramebuffer(64, 48)
	src := NewFramebuffer(64, 48)
	if err := src.Fill(image.Rect(3, 4, 20, 20), 0x123456); err != nil {
		t.Fatal(err)
	}
	cursor := Cursor{Hot: image.Pt(1, 2), Width: 2, Height: 3, RGBA: bytes.Repeat([]byte{1, 2, 3, 4}, 6)}
	b := AppendBell(AppendEndOfUpdates(AppendFence(nil, FenceRequest, []byte("ab"))))
	b = AppendClipboard(b, Clipboard{Action: ClipboardCaps, HasText: true, Actions: ClipboardNotify}, false)
	b = AppendUpdate(b, 8)
	b = AppendExtendedSize(b, 64, 48, 1, 3)
	b = AppendAbility(b, QEMUKeys)
	b = AppendLED(b, 4)
	b = AppendCursor(b, cursor)
	b = AppendDesktopName(b, "name")
	b = AppendRaw(b, src, src.Bounds())
	b = AppendCopyRect(b, image.Rect(30, 4, 47, 20), image.Pt(3, 4))
	b = appendRectHeader(b, image.Rectangle{}, LastRect)
	if err := src.Copy(image.Rect(30, 4, 47, 20), image.Pt(3, 4)); err != nil {
		t.Fatal(err)
	}
	r := NewServerReader(bytes.NewReader(b), ServerLimits{})
	var kinds []EventKind
	locks := 0
	for {
		e, err := r.Next(f, func() { locks++ }, func() { locks++ })
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Kind)
		switch e.Kind {
		case EventCursor:
			if d := cmp.Diff(e.Cursor, cursor); d != "" {
				t.Error(d)
			}
		case EventSize:
			if e.Size != image.Pt(64, 48) || e.Reason != 1 || e.Status != 3 {
				t.Errorf("size %+v", e)
			}
		case EventFence:
			if e.Value != FenceRequest || string(e.Data) != "ab" {
				t.Errorf("fence %+v", e)
			}
		case EventLED:
			if e.Value != 4 {
				t.Errorf("LED %+v", e)
			}
		}
	}
	want := []EventKind{
		EventFence, EventEndOfUpdates, EventBell, EventClipboard, EventUpdate, EventSize, EventAbility, EventLED,
		EventCursor, EventAbility, EventPixels, EventPixels, EventUpdateEnd,
	}
	if d := cmp.Diff(kinds, want); d != "" {
		t.Error(d)
	}
	if f.Sum() != src.Sum() {
		t.Error("the picture differs")
	}
	if locks != 4 {
		t.Errorf("%d lockings and unlockings for two changes", locks)
	}
}

func TestServerLimits(t *testing.T) {
	for name, b := range map[string][]byte{
		"outside":          append(appendRectHeader(AppendUpdate(nil, 1), image.Rect(60, 0, 65, 1), Raw), make([]byte, 99)...),
		"copy outside":     AppendCopyRect(AppendUpdate(nil, 1), image.Rect(0, 0, 2, 2), image.Pt(63, 0)),
		"tight unasked":    append(appendRectHeader(AppendUpdate(nil, 1), image.Rect(0, 0, 2, 2), Tight), 0x80, 1, 2, 3),
		"unknown encoding": appendRectHeader(AppendUpdate(nil, 1), image.Rect(0, 0, 2, 2), 16),
		"large cursor":     appendRectHeader(AppendUpdate(nil, 1), image.Rect(0, 0, 257, 2), VMwareCursor),
		"too large":        AppendDesktopSize(AppendUpdate(nil, 1), 65, 64),
		"no size":          AppendDesktopSize(AppendUpdate(nil, 1), 0, 64),
		"colour map":       {1, 0, 0, 0, 0, 0},
		"unknown message":  {99},
	} {
		r := NewServerReader(bytes.NewReader(b), ServerLimits{Pixels: 64 * 64})
		f := NewFramebuffer(64, 64)
		var err error
		for range 4 {
			if _, err = r.Next(f, nil, nil); err != nil {
				break
			}
		}
		if err == nil || err == io.EOF {
			t.Errorf("%s was accepted (%v)", name, err)
		}
	}
}

func FuzzServerReader(f *testing.F) {
	src := NewFramebuffer(40, 40)
	b := AppendRaw(AppendUpdate(nil, 3), src, src.Bounds())
	b = NewEncoder().AppendRect(b, src, src.Bounds())
	b = AppendCursor(b, Cursor{Width: 1, Height: 1, RGBA: []byte{1, 2, 3, 4}})
	f.Add(b)
	f.Add(AppendClipboard(AppendFence(nil, 1, []byte("x")), Clipboard{Action: ClipboardProvide, HasText: true, Text: "hello"}, false))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewServerReader(bytes.NewReader(b), ServerLimits{Pixels: 1 << 16, Clipboard: func() int { return 1 << 12 }, Tight: true})
		p := NewFramebuffer(40, 40)
		for {
			e, err := r.Next(p, nil, nil)
			if err != nil {
				return
			}
			if e.Kind == EventSize {
				p.Resize(e.Size.X, e.Size.Y)
			}
			if e.Kind == EventClipboard && len(e.Clipboard.Text) > 1<<12 {
				t.Fatalf("text of %d bytes", len(e.Clipboard.Text))
			}
		}
	})
}

func FuzzClientReader(f *testing.F) {
	f.Add(AppendPointer(AppendKey(AppendSetEncodings(AppendSetPixelFormat(nil), Tight, Raw), Key{Sym: 1, Code: 2}, true, true), image.Pt(1, 2), 0x180, true))
	f.Add(AppendClipboard(AppendSetSize(nil, 3, 4), Clipboard{Action: ClipboardProvide, HasText: true, Text: "hello"}, true))
	f.Add(AppendClipboard(AppendFence(nil, 1, nil), Clipboard{Text: "latin"}, true))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewClientReader(bytes.NewReader(b), func() int { return 1 << 12 })
		for {
			m, err := r.Next()
			if err != nil {
				return
			}
			if len(m.Clipboard.Text) > 1<<12 || len(m.Encodings) > MaxEncodings || len(m.Payload) > MaxFence || m.Buttons > 0x1ff {
				t.Fatalf("out of bounds: %+v", m)
			}
		}
	})
}

func FuzzReplay(f *testing.F) {
	p := NewFramebuffer(70, 40)
	if err := p.Fill(image.Rect(0, 0, 30, 30), 0xff00ff); err != nil {
		f.Fatal(err)
	}
	p.SetCursor(Cursor{Width: 1, Height: 1, RGBA: []byte{1, 2, 3, 4}})
	p.Commit()
	b, _ := NewRecorder(NewEncoder(), DefaultKeyframes()).Frame(p, &image.Point{}, 0)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		play := Replay{MaxPixels: 1 << 16}
		if play.Apply(b) == nil {
			if w, h := play.Picture.Size(); w*h > 1<<16 {
				t.Fatalf("picture of %dx%d", w, h)
			}
		}
	})
}
