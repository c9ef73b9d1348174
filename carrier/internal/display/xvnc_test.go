package display

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"image"
	"image/color"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/shared/rfb"
)

// The X server's own picture, the live one, two viewers' and the replayed one
// are equal, pixel by pixel, for viewers of both kinds and whenever they came.
func TestPicturesAreEqual(t *testing.T) {
	t.Run("connects", func(t *testing.T) { testPicturesAreEqual(t, false) })
	t.Run("connected while parked", func(t *testing.T) { testPicturesAreEqual(t, true) })
}

func testPicturesAreEqual(t *testing.T, ahead bool) {
	x := startX(t, "1000x700")
	x.run("xsetroot", "-solid", "#204060")
	r := display(t, x.dial, x.parked(ahead)).started()
	owner := r.view(peerOptions{ViewOptions: ViewOptions{Name: "owner", Control: true}, continuous: true})
	x.spawn("xlogo", "-geometry", "300x200+50+60")
	eventually(t, "the logo is drawn", func() bool { return harness.Share(x.truth().Image(), color.RGBA{0, 0, 0, 255}) > 0 })
	end := x.spawn("ico", "-faces", "-sleep", "0.02", "-geometry", "400x300+500+100")
	eventually(t, "the animation is seen", func() bool { return r.Stats().Updates > 20 })
	late := r.view(peerOptions{ViewOptions: ViewOptions{Name: "watcher"}})
	x.run("xsetroot", "-mod", "5", "7", "-fg", "#ff8800", "-bg", "#003366")
	eventually(t, "the late viewer sees it move", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return late.updates > 10
	})
	// A still picture again: the animation ends, and all agree on what is there.
	x.run("xsetroot", "-solid", "#336699")
	end()
	var want [32]byte
	eventually(t, "the live picture is the X server's", func() bool {
		want = x.truth().Sum()
		return r.shownSum() == want
	})
	eventually(t, "the owner's picture is", func() bool { return owner.sum() == want })
	eventually(t, "the watcher's picture is", func() bool { return late.sum() == want })
	eventually(t, "the replayed picture is", func() bool { return r.replay().Sum() == want })
	r.stop()
	if err := <-r.result; err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, p := range []*peer{owner, late} {
		err := <-p.result
		p.result <- err
		if !errors.Is(err, ErrClosed) {
			t.Errorf("a viewer's end: %v, want %v", err, ErrClosed)
		}
	}
	if got := r.replay().Sum(); got != want {
		t.Error("the recording's last frame differs after the end")
	}
	if n := len(r.eventsOf(ViewerJoined)); n != 2 {
		t.Errorf("%d viewers joined, want 2", n)
	}
	if n := len(r.eventsOf(ViewerLeft)); n != 2 {
		t.Errorf("%d viewers left, want 2", n)
	}
}

// 5 MB of text cross both ways unchanged; each crossing is an event with the
// text's hash.
func TestClipboardBothWays(t *testing.T) {
	t.Run("connects", func(t *testing.T) { testClipboardBothWays(t, false) })
	t.Run("connected while parked", func(t *testing.T) { testClipboardBothWays(t, true) })
}

func testClipboardBothWays(t *testing.T, ahead bool) {
	x := startX(t, "640x480")
	parked := x.parked(ahead)
	r := display(t, x.dial, func(c *Config) {
		c.DialX = x.dialX
		parked(c)
	}).started()
	owner := r.view(peerOptions{ViewOptions: ViewOptions{Name: "owner", Control: true}})
	watcher := r.view(peerOptions{ViewOptions: ViewOptions{Name: "watcher"}})
	var long strings.Builder
	for i := 0; long.Len() < 5_000_000; i++ {
		long.WriteString("Größe № ")
		long.WriteString(strings.Repeat(string(rune('a'+i%26)), i%50))
		long.WriteByte('\n')
	}
	text := long.String()
	sum := sha256.Sum256([]byte(text))
	hash := hex.EncodeToString(sum[:])

	owner.copied(text)
	eventually(t, "the text is in", func() bool { return len(r.eventsOf(ClipboardIn)) == 1 })
	e := r.eventsOf(ClipboardIn)[0]
	if e.Bytes != len(text) || e.SHA256 != hash || e.Text != text || e.Refused != "" || e.Viewer != "owner" {
		t.Errorf("event: %d bytes, %s, refused %q", e.Bytes, e.SHA256, e.Refused)
	}
	var pasted []byte
	eventually(t, "an application gets it", func() bool {
		out, err := x.client("xclip", "-selection", "clipboard", "-o", "-t", "UTF8_STRING").Output()
		pasted = out
		return err == nil && len(out) > 0
	})
	if string(pasted) != text {
		t.Errorf("pasted %d bytes, want %d; the same: %v", len(pasted), len(text), string(pasted) == text)
	}

	back := strings.ToUpper(text)
	put := x.client("xclip", "-selection", "clipboard", "-i")
	put.Stdin = strings.NewReader(back)
	if err := put.Run(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the viewer gets it", func() bool { return len(owner.texts()) == 1 })
	if owner.texts()[0] != back {
		t.Errorf("the viewer got %d bytes, want %d", len(owner.texts()[0]), len(back))
	}
	sum = sha256.Sum256([]byte(back))
	eventually(t, "it is told", func() bool { return len(r.eventsOf(ClipboardOut)) == 1 })
	if out := r.eventsOf(ClipboardOut); out[0].SHA256 != hex.EncodeToString(sum[:]) || out[0].Bytes != len(back) {
		t.Errorf("event: %d bytes, %s", out[0].Bytes, out[0].SHA256)
	}
	if len(watcher.texts()) != 0 {
		t.Error("one who only looks got the clipboard")
	}
	watcher.copied("not from me")
	watcher.send(rfb.AppendClipboard(nil, rfb.Clipboard{Text: "nor this"}, true))
	owner.copied("last")
	eventually(t, "the owner's text is in", func() bool { return len(r.eventsOf(ClipboardIn)) == 2 })
	if e := r.eventsOf(ClipboardIn)[1]; e.Text != "last" {
		t.Errorf("the text in is %q", e.Text)
	}
}

// Off means that no byte of a text leaves where it is; a limit is told.
func TestClipboardPolicy(t *testing.T) {
	x := startX(t, "640x480")
	r := display(t, x.dial, func(c *Config) { c.Policy = Policy{} }).started()
	owner := r.view(peerOptions{ViewOptions: ViewOptions{Name: "owner", Control: true}})
	plain := r.view(peerOptions{ViewOptions: ViewOptions{Name: "plain", Control: true}, plain: true})
	put := x.client("xclip", "-selection", "clipboard", "-i")
	put.Stdin = strings.NewReader("secret of the browser")
	if err := put.Run(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the browser's text is known", func() bool {
		r.Display.mu.Lock()
		defer r.Display.mu.Unlock()
		return r.clip.out
	})
	owner.copied("secret of the user")
	// It has been handled when more is read of the same viewer.
	owner.send(rfb.AppendRequest(nil, true, image.Rect(0, 0, 640, 480)))
	plain.send(rfb.AppendClipboard(nil, rfb.Clipboard{Text: "pushed"}, true))
	eventually(t, "the refusal is told", func() bool { return len(r.eventsOf(ClipboardIn)) == 1 })
	if e := r.eventsOf(ClipboardIn)[0]; e.Refused == "" || e.Text != "" || e.SHA256 != "" {
		t.Errorf("event %+v", e)
	}
	// Now with limits: the long text is refused, the short one passes.
	if err := r.SetPolicy(Policy{ClipboardIn: 5, ClipboardOut: 5}); err != nil {
		t.Fatal(err)
	}
	owner.copied("too long")
	eventually(t, "the second refusal is told", func() bool { return len(r.eventsOf(ClipboardIn)) == 2 })
	owner.copied("short")
	eventually(t, "the short text is in", func() bool { return len(r.eventsOf(ClipboardIn)) == 3 })
	if e := r.eventsOf(ClipboardIn); e[1].Refused == "" || e[2].Refused != "" || e[2].Text != "" || e[2].SHA256 == "" {
		t.Errorf("events %+v", e[1:])
	}
	if owner.mu.Lock(); owner.asked != 2 {
		t.Errorf("the viewer was asked %d times for its text, want 2: never while the clipboard was off", owner.asked)
	}
	owner.mu.Unlock()
	for _, text := range []string{"longer", "brief"} {
		put := x.client("xclip", "-selection", "clipboard", "-i")
		put.Stdin = strings.NewReader(text)
		if err := put.Run(); err != nil {
			t.Fatal(err)
		}
		n := 2
		if text == "brief" {
			n = 4
		}
		eventually(t, "both viewers' events", func() bool { return len(r.eventsOf(ClipboardOut)) == n })
	}
	eventually(t, "the short text is there", func() bool { return len(owner.texts()) == 1 && len(plain.texts()) == 1 })
	if owner.texts()[0] != "brief" || plain.texts()[0] != "brief" {
		t.Errorf("got %q and %q", owner.texts(), plain.texts())
	}
}

// Keys reach applications, the owner's Ctrl+W too; a blocked one does not, nor
// does anything from one who only looks or while the session is locked.
func TestKeysReachApplications(t *testing.T) {
	x := startX(t, "640x480")
	f12, err := ParseCombination("f12")
	if err != nil {
		t.Fatal(err)
	}
	r := display(t, x.dial, func(c *Config) { c.Policy.Blocked = []Combination{f12} }).started()
	x.run("xset", "r", "off") // a key is down for as long as the machine pauses
	var out lines
	xev := x.client("xev", "-geometry", "400x300+0+0", "-event", "keyboard")
	xev.Stdout = &out
	start(t, xev)
	owner := r.view(peerOptions{ViewOptions: ViewOptions{Name: "owner", Control: true}})
	watcher := r.view(peerOptions{ViewOptions: ViewOptions{Name: "watcher"}})
	eventually(t, "the window is there", func() bool {
		tree, err := x.client("xwininfo", "-root", "-tree").Output()
		return err == nil && bytes.Contains(tree, []byte("Event Tester"))
	})
	owner.send(rfb.AppendPointer(nil, image.Pt(100, 100), 0, false))
	eventually(t, "scan codes are spoken", func() bool { owner.mu.Lock(); defer owner.mu.Unlock(); return owner.scan })
	ctrl, w := rfb.Key{Sym: 0xffe3, Code: 0x1d}, rfb.Key{Sym: 'w', Code: 0x11}
	eventually(t, "the window has the focus", func() bool {
		owner.press(rfb.Key{Sym: 'a', Code: 0x1e})
		return out.count("keysym 0x61, a") > 0
	})
	owner.press(ctrl, w)
	eventually(t, "Ctrl+W arrives", func() bool { return out.count("keysym 0x77, w") == 2 && out.count("Control_L") == 2 })
	owner.press(rfb.Key{Sym: 0xffc9, Code: 0x58})
	eventually(t, "the blocked key is told", func() bool { return len(r.eventsOf(KeyBlocked)) == 1 })
	watcher.press(rfb.Key{Sym: 'q', Code: 0x10})
	if err := r.Lock("Locked by an auditor."); err != nil {
		t.Fatal(err)
	}
	owner.press(rfb.Key{Sym: 'e', Code: 0x12})
	owner.send(rfb.AppendPointer(nil, image.Pt(1, 1), 1, false))
	if e := r.eventsOf(KeyBlocked)[0]; e.Keys != "F12" || e.Viewer != "owner" {
		t.Errorf("event %+v", e)
	}
	// The owner's message after the lock has been handled when this one is.
	before := r.Stats().ViewerFrames
	owner.send(rfb.AppendRequest(nil, false, image.Rect(0, 0, 640, 480)))
	eventually(t, "a frame is sent", func() bool { return r.Stats().ViewerFrames > before })
	r.Unlock()
	owner.press(rfb.Key{Sym: 'z', Code: 0x2c})
	eventually(t, "the key after the unlock arrives", func() bool { return out.count("keysym 0x7a, z") == 2 })
	for _, never := range []string{"F12", "keysym 0x71, q", "keysym 0x65, e"} {
		if n := out.count(never); n != 0 {
			t.Errorf("%s arrived %d times", never, n)
		}
	}
}

// lines collects what a program prints.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// A display that begins with a screen has its picture before the X server says
// anything, and what changed meanwhile comes with the first update.
func TestParked(t *testing.T) {
	x := startX(t, "640x480")
	x.run("xsetroot", "-solid", "#ff0000")
	s, err := Connect(t.Context(), x.dial)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.drawn.Sum(), x.truth().Sum(); got != want {
		t.Error("the picture taken ahead is not the X server's")
	}
	x.run("xsetroot", "-solid", "#00ff00")
	r := display(t, nothing, func(c *Config) { c.Screen = s }).started()
	owner := r.view(peerOptions{ViewOptions: ViewOptions{Name: "owner", Control: true}})
	want := x.truth().Sum()
	eventually(t, "what changed is seen", func() bool { return r.shownSum() == want && owner.sum() == want })
	if err := r.Resize(800, 600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the size changes", func() bool { return r.Stats().Width == 800 })
	want = x.truth().Sum()
	eventually(t, "the larger picture is seen", func() bool { return owner.sum() == want })
	if !r.screen.scan.Load() {
		t.Error("what the X server can do with keys was forgotten")
	}
}

// Nobody waits for an X server that does not come, nor for one that is gone.
func TestParkedEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	mute := func(context.Context) (net.Conn, error) {
		a, b := net.Pipe()
		t.Cleanup(func() { b.Close() })
		cancel() // while the handshake is waited for
		return a, nil
	}
	if s, err := Connect(ctx, mute); err == nil || s != nil {
		t.Errorf("connected to nothing: %v, %v", s, err)
	}
	x := startX(t, "320x240")
	s, err := Connect(t.Context(), x.dial)
	if err != nil {
		t.Fatal(err)
	}
	x.kill()
	r := display(t, x.dial, func(c *Config) { c.Screen = s })
	select {
	case err := <-r.result:
		if !errors.Is(err, ErrScreen) {
			t.Errorf("Run: %v, want %v", err, ErrScreen)
		}
	case <-time.After(time.Minute):
		t.Error("Run does not end")
	}
	var none *Screen
	none.Close()
}

// A viewer's wish for a size reaches the X server, everybody's picture and the
// recording; one who only looks cannot wish.
func TestResize(t *testing.T) {
	x := startX(t, "640x480")
	x.run("xsetroot", "-mod", "3", "3")
	r := display(t, x.dial, nil).started()
	owner := r.view(peerOptions{ViewOptions: ViewOptions{Name: "owner", Control: true}, continuous: true})
	watcher := r.view(peerOptions{ViewOptions: ViewOptions{Name: "watcher"}})
	eventually(t, "both have a picture", func() bool { return owner.sum() == r.shownSum() && watcher.sum() == r.shownSum() })
	watcher.send(rfb.AppendSetSize(nil, 500, 500))
	for _, size := range []image.Point{{1111, 733}, {800, 600}} {
		owner.send(rfb.AppendSetSize(nil, size.X, size.Y))
		eventually(t, "the size is new", func() bool { s := r.Stats(); return s.Width == size.X && s.Height == size.Y })
		x.run("xsetroot", "-mod", "7", "3")
		for _, p := range []*peer{owner, watcher} {
			eventually(t, "a viewer follows", func() bool { return p.sum() == r.shownSum() && p.sum() == x.truth().Sum() })
		}
		eventually(t, "the recording follows", func() bool { return r.replay().Sum() == r.shownSum() })
	}
	// A locked user changes nothing, this neither, and is told so.
	if err := r.Lock("An administrator locked the session."); err != nil {
		t.Fatal(err)
	}
	owner.send(rfb.AppendSetSize(nil, 900, 500))
	eventually(t, "a locked user's wish is refused", func() bool {
		owner.mu.Lock()
		defer owner.mu.Unlock()
		return slices.ContainsFunc(owner.sizes, func(e rfb.Event) bool { return e.Reason == 1 && e.Status == 1 })
	})
	if s := r.Stats(); s.Width != 800 || s.Height != 600 {
		t.Errorf("a locked user made it %dx%d", s.Width, s.Height)
	}
	r.Unlock()
	if err := r.Resize(1024, 768); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the carrier's wish is granted", func() bool { return r.Stats().Width == 1024 })
	if err := r.Resize(100, 100); err == nil {
		t.Error("a picture of 100x100 was allowed")
	}
	owner.mu.Lock()
	answered := 0
	for _, e := range owner.sizes {
		if e.Reason == 1 && e.Status == 0 {
			answered++
		}
	}
	owner.mu.Unlock()
	if answered != 2 {
		t.Errorf("%d wishes were answered, want 2", answered)
	}
	eventually(t, "three changes of size are told", func() bool { return len(r.eventsOf(Resized)) == 3 })
}

// The X server's death is a clear error for everybody, and what was on the
// screen last is in the recording.
func TestXServerKilled(t *testing.T) {
	x := startX(t, "640x480")
	x.run("xsetroot", "-solid", "#654321")
	r := display(t, x.dial, nil).started()
	owner := r.view(peerOptions{ViewOptions: ViewOptions{Name: "owner", Control: true}})
	want := x.truth().Sum()
	eventually(t, "the picture is there", func() bool { return owner.sum() == want })
	x.kill()
	if err := <-r.result; !errors.Is(err, ErrScreen) {
		t.Errorf("Run: %v, want %v", err, ErrScreen)
	}
	err := <-owner.result
	owner.result <- err
	if !errors.Is(err, ErrClosed) {
		t.Errorf("View: %v, want %v", err, ErrClosed)
	}
	if r.replay().Sum() != want {
		t.Error("the last picture is not in the recording")
	}
	if err := r.View(t.Context(), nil, ViewOptions{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a viewer afterwards: %v", err)
	}
	again := display(t, x.dial, nil)
	if err := <-again.result; !errors.Is(err, ErrScreen) {
		t.Errorf("Run without an X server: %v", err)
	}
}

// A second display on the same X server, as after a restart of the carrier,
// begins with a keyframe of what is there.
func TestTakeOver(t *testing.T) {
	x := startX(t, "640x480")
	x.run("xsetroot", "-solid", "#112233")
	first := display(t, x.dial, nil).started()
	first.stop()
	if err := <-first.result; err != nil {
		t.Fatal(err)
	}
	second := display(t, x.dial, nil).started()
	want := x.truth().Sum()
	eventually(t, "the recording has the picture", func() bool { return second.replay().Sum() == want })
	second.mu.Lock()
	defer second.mu.Unlock()
	if !second.keys[0] {
		t.Error("the recording does not begin with a keyframe")
	}
}

// The decoder understands what the X server itself encodes, with streams that
// run on from rectangle to rectangle; what is encoded here is not much larger.
func TestXServersOwnTight(t *testing.T) {
	x := startX(t, "800x600")
	x.run("xsetroot", "-mod", "5", "7", "-fg", "#ff8800", "-bg", "#003366")
	x.spawn("xlogo", "-geometry", "300x200+50+60")
	r := display(t, x.dial, nil).started()
	eventually(t, "the picture is complete", func() bool { return harness.Share(x.truth().Image(), color.RGBA{0, 0, 0, 255}) > 0 })
	conn, err := x.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	init, err := rfb.ClientHandshake(conn)
	if err != nil {
		t.Fatal(err)
	}
	f := rfb.NewFramebuffer(init.Width, init.Height)
	var theirs atomic.Int64
	reader := rfb.NewServerReader(counted{conn, &theirs}, rfb.ServerLimits{Tight: true})
	b := rfb.AppendSetEncodings(rfb.AppendSetPixelFormat(nil), rfb.Tight, rfb.CopyRect, rfb.LastRect)
	if _, err := conn.Write(rfb.AppendRequest(b, false, f.Bounds())); err != nil {
		t.Fatal(err)
	}
	update := func() {
		for {
			e, err := reader.Next(f, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == rfb.EventUpdateEnd {
				return
			}
		}
	}
	update()
	whole := theirs.Load()
	for i := 0; f.Sum() != x.truth().Sum(); i++ {
		if i == 20 {
			t.Fatal("the picture differs")
		}
		if _, err := conn.Write(rfb.AppendRequest(nil, false, f.Bounds())); err != nil {
			t.Fatal(err)
		}
		update()
	}
	eventually(t, "the display has it", func() bool { return r.shownSum() == f.Sum() })
	rec, _ := rfb.NewRecorder(rfb.NewEncoder(), rfb.DefaultKeyframes()).Frame(f, nil, 0)
	t.Logf("a whole picture: %d bytes by the X server, %d as a keyframe", whole, len(rec))
	if int64(len(rec)) > 3*whole {
		t.Errorf("a keyframe of %d bytes, the X server needs %d", len(rec), whole)
	}
}
