package display

import (
	"bytes"
	"context"
	"errors"
	"image"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"caponier/shared/rfb"
)

// fakeX is an X server's RFB side that lives in a synctest bubble.
type fakeX struct {
	t *testing.T

	mu       sync.Mutex
	conn     net.Conn
	picture  *rfb.Framebuffer
	dirty    []byte // rectangles
	rects    int
	wanted   bool
	messages []rfb.Message
}

func newFakeX(t *testing.T, w, h int) *fakeX {
	return &fakeX{t: t, picture: rfb.NewFramebuffer(w, h)}
}

func (x *fakeX) dial(context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	x.mu.Lock()
	x.conn = b
	w, h := x.picture.Size()
	x.mu.Unlock()
	go func() {
		if err := rfb.ServerHandshake(b, rfb.Init{Width: w, Height: h, Name: "fake"}); err != nil {
			return
		}
		r := rfb.NewClientReader(b, func() int { return rfb.MaxClipboard })
		for {
			m, err := r.Next()
			if err != nil {
				return
			}
			x.handle(m)
		}
	}()
	return a, nil
}

func (x *fakeX) handle(m rfb.Message) {
	x.mu.Lock()
	if m.Kind == rfb.MessageRequest {
		x.wanted = true
		if !m.Incremental {
			x.dirty = rfb.AppendAbility(x.dirty, rfb.QEMUKeys)
			x.dirty = rfb.AppendRaw(x.dirty, x.picture, x.picture.Bounds())
			x.rects += 2
		}
	} else {
		x.messages = append(x.messages, m)
	}
	x.mu.Unlock()
	x.flush()
}

// flush sends what is dirty if it is wanted.
func (x *fakeX) flush() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.wanted || x.rects == 0 {
		return
	}
	b := append(rfb.AppendUpdate(nil, x.rects), x.dirty...)
	x.dirty, x.rects, x.wanted = nil, 0, false
	go func() { _, _ = x.conn.Write(b) }()
}

// draw changes the picture.
func (x *fakeX) draw(r image.Rectangle, colour uint32) {
	x.mu.Lock()
	if err := x.picture.Fill(r, colour); err != nil {
		x.t.Error(err)
	}
	x.dirty = rfb.AppendRaw(x.dirty, x.picture, r)
	x.rects++
	x.mu.Unlock()
	x.flush()
}

// noise makes the picture incompressible.
func (x *fakeX) noise(r *rand.Rand) {
	x.mu.Lock()
	w, h := x.picture.Size()
	row := make([]uint32, w)
	for y := range h {
		for i := range row {
			row[i] = r.Uint32() & 0xffffff
		}
		x.picture.SetRow(y, 0, row)
	}
	x.dirty = rfb.AppendRaw(nil, x.picture, x.picture.Bounds())
	x.rects = 1
	x.mu.Unlock()
	x.flush()
}

// scroll moves the picture up and draws below.
func (x *fakeX) scroll(r *rand.Rand, by int) {
	x.mu.Lock()
	w, h := x.picture.Size()
	if err := x.picture.Copy(image.Rect(0, 0, w, h-by), image.Pt(0, by)); err != nil {
		x.t.Error(err)
	}
	row := make([]uint32, w)
	for y := h - by; y < h; y++ {
		for i := range row {
			row[i] = r.Uint32() & 0xffffff
		}
		x.picture.SetRow(y, 0, row)
	}
	x.dirty, x.rects = rfb.AppendRaw(nil, x.picture, x.picture.Bounds()), 1
	x.mu.Unlock()
	x.flush()
}

func (x *fakeX) add(rect []byte) {
	x.mu.Lock()
	x.dirty = append(x.dirty, rect...)
	x.rects++
	x.mu.Unlock()
	x.flush()
}

func (x *fakeX) sum() [32]byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.picture.Sum()
}

// said are the messages of a kind that the X server got.
func (x *fakeX) said(kind rfb.MessageKind) (out []rfb.Message) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, m := range x.messages {
		if m.Kind == kind {
			out = append(out, m)
		}
	}
	return out
}

// pass lets time go by in the bubble.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (p *peer) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.updates
}

var owner = ViewOptions{Name: "owner", Control: true}

// An hour without a change: not a byte to viewers, not one to the recording,
// not one from or to the X server.
func TestIdleCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 640, 480)
		var count atomic.Int64
		r := display(t, func(ctx context.Context) (net.Conn, error) {
			c, err := x.dial(ctx)
			return counted{c, &count}, err
		}, nil).started()
		asking := r.view(peerOptions{ViewOptions: owner})
		pushed := r.view(peerOptions{ViewOptions: ViewOptions{Name: "watcher"}, continuous: true})
		x.draw(image.Rect(10, 10, 50, 50), 0xff0000)
		pass(time.Second)
		if asking.sum() != x.sum() || pushed.sum() != x.sum() || r.replay().Sum() != x.sum() {
			t.Fatal("the pictures differ before the pause")
		}
		before, screen := r.Stats(), count.Load()
		pass(time.Hour)
		if after := r.Stats(); after != before || count.Load() != screen {
			t.Errorf("after an idle hour: %+v, screen %d bytes; before %+v, %d", after, count.Load(), before, screen)
		}
		x.draw(image.Rect(10, 10, 51, 51), 0x00ff00)
		pass(time.Second)
		if asking.sum() != x.sum() || pushed.sum() != x.sum() || r.replay().Sum() != x.sum() {
			t.Error("the pictures differ after the pause")
		}
		if at := r.times[len(r.times)-1]; at < time.Hour || at > time.Hour+3*time.Second {
			t.Errorf("the last frame was recorded at %v", at)
		}
	})
}

type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// A viewer that measures the line by asking for a pixel gets that pixel at
// once, and nothing else.
func TestPixelProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 640, 480)
		r := display(t, x.dial, nil).started()
		for _, continuous := range []bool{false, true} {
			p := r.view(peerOptions{ViewOptions: owner, continuous: continuous})
			x.noise(rand.New(rand.NewPCG(3, 3)))
			pass(time.Minute)
			before, n := r.Stats(), p.count()
			p.send(rfb.AppendRequest(nil, false, image.Rect(0, 0, 1, 1)))
			synctest.Wait()
			if got := r.Stats().ViewerBytes - before.ViewerBytes; p.count() != n+1 || got > 60 {
				t.Errorf("continuous %v: %d answers of %d bytes", continuous, p.count()-n, got)
			}
			p.send(rfb.AppendRequest(nil, false, image.Rect(0, 0, 640, 480)))
			pass(time.Second)
			if got := r.Stats().ViewerBytes - before.ViewerBytes; got < 640*480*3 {
				t.Errorf("continuous %v: asked for everything, got %d bytes", continuous, got)
			}
			p.conn.Close()
			pass(time.Second)
		}
	})
}

// However often the picture changes, at most 15 frames a second are recorded,
// and the last state is there at once.
func TestRecordRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 320, 240)
		r := display(t, x.dial, func(c *Config) { c.Keyframes = rfb.Keyframes{Every: 3 * time.Second, Bytes: 1 << 20} }).started()
		pass(time.Second)
		start := r.Stats().RecordFrames
		for i := range 2000 { // 10 s
			x.draw(image.Rect(i%200, 10, i%200+40, 60), uint32(i)*977)
			pass(5 * time.Millisecond)
		}
		n := r.Stats().RecordFrames - start
		if n < 140 || n > 151 {
			t.Errorf("%d frames in 10 s, want at most 15 a second and nearly as many", n)
		}
		pass(RecordEvery)
		if r.replay().Sum() != x.sum() {
			t.Error("the last state is not recorded")
		}
		keys := 0
		for i, k := range r.keys {
			if k {
				keys++
			}
			if i > 0 && r.times[i]-r.times[i-1] < RecordEvery {
				t.Fatalf("frames at %v and %v", r.times[i-1], r.times[i])
			}
		}
		if keys != 4 { // the first, and one for every 3 s of 10
			t.Errorf("%d keyframes, want 4", keys)
		}
	})
}

// A viewer that does not read costs the others nothing and is dropped; a slow
// one gets fewer frames and ends with the same picture.
func TestSlowAndStalledViewers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 120, 90)
		r := display(t, x.dial, nil).started()
		var stall atomic.Bool
		wall := make(chan struct{})
		quick := r.view(peerOptions{ViewOptions: owner, continuous: true})
		slow := r.view(peerOptions{ViewOptions: ViewOptions{Name: "slow"}, slow: func() { <-time.After(50 * time.Millisecond) }})
		stalled := r.view(peerOptions{ViewOptions: ViewOptions{Name: "stalled"}, continuous: true, slow: func() {
			if stall.Load() {
				<-wall
			}
		}})
		pass(time.Second)
		stall.Store(true)
		q, s := quick.count(), slow.count()
		noise := rand.New(rand.NewPCG(1, 1))
		for range 300 { // 30 a second for 10 s
			x.noise(noise)
			pass(time.Second / 30)
		}
		if n := quick.count() - q; n < 280 {
			t.Errorf("the quick viewer got %d of 300 frames", n)
		}
		if n := slow.count() - s; n < 10 || n > 100 {
			t.Errorf("the slow viewer got %d frames", n)
		}
		pass(5 * time.Second)
		if slow.sum() != x.sum() || quick.sum() != x.sum() {
			t.Error("the last pictures differ")
		}
		pass(ViewerTimeout)
		err := <-stalled.result
		stalled.result <- err
		if !errors.Is(err, ErrViewer) {
			t.Errorf("the stalled viewer's end: %v", err)
		}
		if n := r.Stats().Viewers; n != 2 {
			t.Errorf("%d viewers, want 2", n)
		}
		close(wall)
	})
}

// A viewer that answers no fences gets a few frames, not all there are.
func TestUnansweredFences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 100, 100)
		r := display(t, x.dial, nil).started()
		p := r.view(peerOptions{ViewOptions: owner, continuous: true})
		pass(time.Second)
		p.mu.Lock()
		p.keepFence = true
		p.mu.Unlock()
		before := p.count()
		for i := range 100 {
			x.draw(x.picture.Bounds(), uint32(i)*333)
			pass(time.Second / 30)
		}
		if n := p.count() - before; n < 1 || n > maxWindow {
			t.Errorf("%d frames without an answer, want at most %d", n, maxWindow)
		}
		p.send(rfb.AppendFence(nil, 0, nil))
		pass(time.Second)
		if p.sum() != x.sum() {
			t.Error("after an answer the picture is not the last one")
		}
		for range maxWindow + 1 {
			p.send(rfb.AppendFence(nil, 0, nil))
		}
		err := <-p.result
		p.result <- err
		if !errors.Is(err, ErrViewer) {
			t.Errorf("answers to fences that were not sent: %v", err)
		}
	})
}

// Banner and watermark are in what viewers get and in the recording, follow a
// change of size, and leave the picture as it was.
func TestOverlays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 400, 300)
		r := display(t, x.dial, nil).started()
		p := r.view(peerOptions{ViewOptions: owner})
		x.draw(image.Rect(0, 0, 400, 300), 0x808080)
		same := func(when string, plain bool) {
			t.Helper()
			pass(time.Second)
			shown := r.shownSum()
			if p.sum() != shown || r.replay().Sum() != shown {
				t.Errorf("%s: viewer or recording differ from what is shown", when)
			}
			if (shown == x.sum()) != plain {
				t.Errorf("%s: the picture is the X server's: %v, want %v", when, !plain, plain)
			}
		}
		same("at first", true)
		r.Notice("Ends in 2 minutes.")
		same("with a banner", false)
		x.draw(image.Rect(100, 0, 300, 200), 0xffffff) // under it
		same("drawn under it", false)
		if err := r.Lock("Locked."); err != nil {
			t.Fatal(err)
		}
		same("with two lines", false)
		r.Notice("")
		r.Unlock()
		same("without", true)
		x.draw(image.Rect(0, 0, 10, 10), 1) // the two pictures become one again
		same("drawn afterwards", true)
		r.mu.Lock()
		r.Display.mu.Lock()
		if r.shown != r.drawn {
			t.Error("a second picture is kept without need")
		}
		r.Display.mu.Unlock()
		r.mu.Unlock()
		if err := r.SetPolicy(Policy{Watermark: []string{"alice", "ses_test"}}); err != nil {
			t.Fatal(err)
		}
		same("with a watermark", false)
		x.mu.Lock()
		x.picture.Resize(500, 200)
		x.mu.Unlock()
		x.add(rfb.AppendExtendedSize(nil, 500, 200, 0, 0))
		x.draw(image.Rect(0, 0, 500, 200), 0x202020)
		same("with another size", false)
		if err := r.SetPolicy(Policy{}); err != nil {
			t.Fatal(err)
		}
		same("without a watermark", true)
	})
}

// Who only looks sees the pointer where the owner has it; the picture of the
// owner and of the recording stay without.
func TestPointerIsDrawnForWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 200, 200)
		r := display(t, x.dial, nil).started()
		o := r.view(peerOptions{ViewOptions: owner})
		w := r.view(peerOptions{ViewOptions: ViewOptions{Name: "watcher"}})
		x.draw(x.picture.Bounds(), 0xffffff)
		shape := make([]byte, 0, 4*4*4)
		for range 16 {
			shape = append(shape, 0xff, 0, 0, 0xff)
		}
		x.add(rfb.AppendCursor(nil, rfb.Cursor{Hot: image.Pt(1, 1), Width: 4, Height: 4, RGBA: shape}))
		for _, at := range []image.Point{{50, 60}, {199, 199}, {0, 0}, {120, 120}} {
			o.send(rfb.AppendPointer(nil, at, 0, false))
			pass(time.Second)
			want := x.picture.Clone()
			if err := want.Fill(image.Rectangle{Min: at.Sub(image.Pt(1, 1)), Max: at.Add(image.Pt(3, 3))}.Intersect(want.Bounds()), 0xff0000); err != nil {
				t.Fatal(err)
			}
			if w.sum() != want.Sum() {
				t.Errorf("the watcher does not see the pointer at %v, or more than it", at)
			}
			if o.sum() != x.sum() || r.replay().Sum() != x.sum() {
				t.Errorf("the pointer is in the picture at %v", at)
			}
		}
		x.draw(image.Rect(100, 100, 150, 150), 0x00ff00) // under it
		pass(time.Second)
		want := x.picture.Clone()
		if err := want.Fill(image.Rect(119, 119, 123, 123), 0xff0000); err != nil {
			t.Fatal(err)
		}
		if w.sum() != want.Sum() {
			t.Error("the pointer is not over what was drawn under it")
		}
		o.mu.Lock()
		if o.cursor.Width != 4 {
			t.Error("the owner has no pointer image")
		}
		o.mu.Unlock()
		frame, err := rfb.ParseFrame(r.frames[len(r.frames)-1])
		if err != nil || frame.Pointer == nil || *frame.Pointer != image.Pt(120, 120) {
			t.Errorf("the recording's pointer: %+v, %v", frame.Pointer, err)
		}
	})
}

// A page that scrolls is copied on the viewers' side and in the recording, also
// under the pointer drawn for one who only looks, and little is sent.
func TestScrolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 300, 400)
		r := display(t, x.dial, nil).started()
		o := r.view(peerOptions{ViewOptions: owner, continuous: true})
		w := r.view(peerOptions{ViewOptions: ViewOptions{Name: "watcher"}})
		plain := r.view(peerOptions{ViewOptions: ViewOptions{Name: "no copies", Control: true}, without: rfb.CopyRect})
		noise := rand.New(rand.NewPCG(2, 2))
		x.noise(noise)
		x.add(rfb.AppendCursor(nil, rfb.Cursor{Width: 8, Height: 8, RGBA: bytes.Repeat([]byte{0, 0, 0xff, 0xff}, 64)}))
		at := image.Pt(150, 200)
		o.send(rfb.AppendPointer(nil, at, 0, false))
		pass(time.Second)
		plain.conn.Close() // it was sent everything; it is not counted below
		pass(time.Second)
		before := r.Stats()
		for range 30 {
			x.scroll(noise, 10)
			pass(time.Second / 30)
		}
		pass(time.Second)
		after := r.Stats()
		want := x.picture.Clone()
		if err := want.Fill(image.Rectangle{Min: at, Max: at.Add(image.Pt(8, 8))}, 0x0000ff); err != nil {
			t.Fatal(err)
		}
		if o.sum() != x.sum() || r.replay().Sum() != x.sum() || w.sum() != want.Sum() {
			t.Errorf("pictures that differ: owner %v, recording %v, watcher %v", o.sum() != x.sum(), r.replay().Sum() != x.sum(), w.sum() != want.Sum())
		}
		// 300 new rows for three readers, and some for the pointer; sent whole it
		// would be 30 pictures for each.
		const picture = 300 * 400 * 3
		if n := after.ViewerBytes + after.RecordBytes - before.ViewerBytes - before.RecordBytes; n > 4*picture {
			t.Errorf("%d bytes for a picture that scrolled once through", n)
		}
	})
}

// Whoever leaves holding keys and buttons, or is locked out, lets go of them.
func TestNothingStaysPressed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 100, 100)
		r := display(t, x.dial, nil).started()
		ctrl, a := rfb.Key{Sym: 0xffe3, Code: 0x1d}, rfb.Key{Sym: 'a', Code: 0x1e}
		held := func() (keys int, buttons uint16) {
			down := map[rfb.Key]bool{}
			for _, m := range x.said(rfb.MessageKey) {
				down[m.Key] = m.Down
			}
			for _, d := range down {
				if d {
					keys++
				}
			}
			if ps := x.said(rfb.MessagePointer); len(ps) > 0 {
				buttons = ps[len(ps)-1].Buttons
			}
			return keys, buttons
		}
		press := func(p *peer) {
			p.send(rfb.AppendKey(nil, ctrl, true, true))
			p.send(rfb.AppendKey(nil, a, true, true))
			p.send(rfb.AppendPointer(nil, image.Pt(5, 5), 1, false))
			pass(time.Second)
			if k, b := held(); k != 2 || b != 1 {
				t.Fatalf("%d keys, buttons %b are pressed", k, b)
			}
		}
		p := r.view(peerOptions{ViewOptions: owner})
		press(p)
		p.conn.Close()
		pass(time.Second)
		if k, b := held(); k != 0 || b != 0 {
			t.Errorf("after leaving %d keys, buttons %b are pressed", k, b)
		}
		p = r.view(peerOptions{ViewOptions: owner})
		press(p)
		if err := r.Lock("Locked."); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		if k, b := held(); k != 0 || b != 0 {
			t.Errorf("while locked %d keys, buttons %b are pressed", k, b)
		}
		idle := r.LastInput()
		p.send(rfb.AppendKey(nil, a, false, true))
		p.send(rfb.AppendKey(nil, a, true, true))
		pass(time.Second)
		if k, _ := held(); k != 0 || !r.LastInput().Equal(idle) {
			t.Error("a key passed the lock, or counted as use")
		}
		r.Unlock()
		p.send(rfb.AppendKey(nil, a, true, true))
		pass(time.Second)
		if k, _ := held(); k != 1 || !r.LastInput().After(idle) {
			t.Error("no key passes after the unlock, or it does not count as use")
		}
	})
}

// A blocked combination is blocked in whatever way it is pressed: by two
// windows together, or by other keysyms of the same keys.
func TestBlockedKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 100, 100)
		var blocked []Combination
		for _, k := range []string{"Ctrl+N", "Ctrl+Shift+Delete", "Alt+F4", "F1"} {
			c, err := ParseCombination(k)
			if err != nil {
				t.Fatal(err)
			}
			blocked = append(blocked, c)
		}
		r := display(t, x.dial, func(c *Config) { c.Policy.Blocked = blocked }).started()
		one, two := r.view(peerOptions{ViewOptions: owner}), r.view(peerOptions{ViewOptions: owner})
		const ctrl, shift, alt, meta, super = 0xffe3, 0xffe1, 0xffe9, 0xffe7, 0xffeb
		for _, c := range []struct {
			name    string
			mods    []uint32
			sym     uint32
			by      *peer // of the key
			arrives bool
		}{
			{"Ctrl+N", []uint32{ctrl}, 'n', one, false},
			{"Ctrl in one window, N in the other", []uint32{ctrl}, 'n', two, false},
			{"Ctrl and the keysym U+006E", []uint32{ctrl}, 0x100006e, one, false},
			{"Ctrl and the keysym U+004E", []uint32{ctrl}, 0x100004e, one, false},
			{"the keypad's Delete", []uint32{ctrl, shift}, 0xff9f, one, false},
			{"Alt+F4", []uint32{alt}, 0xffc1, one, false},
			{"Meta, which shares Alt's bit", []uint32{meta}, 0xffc1, one, false},
			{"the keypad's F1", nil, 0xff91, one, false},
			{"N alone", nil, 'n', one, true},
			{"Super+N", []uint32{super}, 'n', one, true},
			{"Ctrl+M", []uint32{ctrl}, 'm', two, true},
		} {
			told := len(r.eventsOf(KeyBlocked))
			for _, m := range c.mods {
				one.send(rfb.AppendKey(nil, rfb.Key{Sym: m}, true, false))
			}
			pass(time.Second)
			before := len(x.said(rfb.MessageKey))
			c.by.send(rfb.AppendKey(nil, rfb.Key{Sym: c.sym}, true, false))
			pass(time.Second)
			if n := len(x.said(rfb.MessageKey)) - before; (n > 0) != c.arrives || (len(r.eventsOf(KeyBlocked)) > told) == c.arrives {
				t.Errorf("%s: %d keys arrive", c.name, n)
			}
			c.by.send(rfb.AppendKey(nil, rfb.Key{Sym: c.sym}, false, false))
			for _, m := range c.mods {
				one.send(rfb.AppendKey(nil, rfb.Key{Sym: m}, false, false))
			}
			pass(time.Second)
		}
	})
}

// The end comes in the middle of an update: the recording's last picture is the
// last one there was, and a whole one.
func TestEndsWithTheLastPicture(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 320, 240)
		r := display(t, x.dial, nil).started()
		p := r.view(peerOptions{ViewOptions: owner})
		pass(time.Second)
		x.mu.Lock()
		if err := x.picture.Fill(image.Rect(0, 0, 320, 240), 0x336699); err != nil {
			t.Fatal(err)
		}
		update := rfb.AppendRaw(rfb.AppendUpdate(nil, 1), x.picture, x.picture.Bounds())
		conn := x.conn
		x.mu.Unlock()
		if _, err := conn.Write(update[:len(update)/2]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.stop()
		synctest.Wait()
		if _, err := conn.Write(update[len(update)/2:]); err != nil {
			t.Errorf("the rest of the update was not read: %v", err)
		}
		if err := <-r.result; err != nil {
			t.Errorf("Run: %v", err)
		}
		if want := x.sum(); r.shownSum() != want {
			t.Error("the picture at the end is not the X server's")
		} else if got := r.replay().Sum(); got != want {
			t.Error("the recording's last picture is another one")
		}
		<-p.gone
	})
}

// An X server that stops in the middle of an update does not hold up the end,
// and half a picture is not recorded.
func TestEndsWithoutTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 320, 240)
		r := display(t, x.dial, nil).started()
		pass(time.Second)
		whole := x.sum()
		x.mu.Lock()
		conn := x.conn
		x.mu.Unlock()
		half := rfb.NewFramebuffer(320, 240)
		if err := half.Fill(half.Bounds(), 0xffffff); err != nil {
			t.Fatal(err)
		}
		update := rfb.AppendRaw(rfb.AppendUpdate(nil, 1), half, half.Bounds())
		if _, err := conn.Write(update[:len(update)/2]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		began := time.Now()
		r.stop()
		if err := <-r.result; err != nil {
			t.Errorf("Run: %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("the end took %v", took)
		}
		if r.replay().Sum() != whole {
			t.Error("half a picture was recorded")
		}
	})
}

// A recording that cannot be written ends the session, saying so.
func TestRecordingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 100, 100)
		full := errors.New("disk full")
		r := display(t, x.dial, func(c *Config) {
			n := 0
			c.Record = func(time.Duration, []byte, bool) error {
				if n++; n > 1 {
					return full
				}
				return nil
			}
		}).started()
		p := r.view(peerOptions{ViewOptions: owner})
		pass(time.Second) // the first frame is written
		x.draw(image.Rect(0, 0, 5, 5), 7)
		if err := <-r.result; !errors.Is(err, ErrRecording) || !errors.Is(err, full) {
			t.Errorf("Run: %v", err)
		}
		err := <-p.result
		p.result <- err
		if !errors.Is(err, ErrClosed) {
			t.Errorf("View: %v", err)
		}
	})
}

// Viewers beyond the limit, of no use or without manners are turned away.
func TestViewersRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newFakeX(t, 100, 100)
		r := display(t, x.dial, nil).started()
		for name, o := range map[string]peerOptions{
			"no Tight": {ViewOptions: owner, without: rfb.Tight},
		} {
			p := r.view(o)
			err := <-p.result
			p.result <- err
			if !errors.Is(err, ErrViewer) {
				t.Errorf("%s: %v", name, err)
			}
		}
		mute, _ := net.Pipe() // says nothing: the handshake ends
		if err := r.View(t.Context(), mute, owner); !errors.Is(err, ErrViewer) {
			t.Errorf("a mute viewer: %v", err)
		}
		for range MaxViewers {
			r.view(peerOptions{ViewOptions: owner})
		}
		if err := r.View(t.Context(), mute, owner); !errors.Is(err, ErrViewers) {
			t.Errorf("one viewer too many: %v", err)
		}
		if n := len(r.Viewers()); n != MaxViewers {
			t.Errorf("%d viewers are listed, want %d", n, MaxViewers)
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if err := r.View(ctx, mute, owner); err != nil && !errors.Is(err, ErrViewers) {
			t.Errorf("a viewer whose time is over: %v", err)
		}
	})
}

// An X server that stops answering in the handshake, or breaks the protocol, is
// a clear error.
func TestScreenBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mute := display(t, func(context.Context) (net.Conn, error) { a, _ := net.Pipe(); return a, nil }, nil)
		if err := <-mute.result; !errors.Is(err, ErrScreen) {
			t.Errorf("a mute X server: %v", err)
		}
		// One that is not there yet when the container connects is waited for.
		x := newFakeX(t, 100, 100)
		early := 20
		r := display(t, func(ctx context.Context) (net.Conn, error) {
			if early--; early > 0 {
				a, b := net.Pipe()
				b.Close()
				return a, nil
			}
			return x.dial(ctx)
		}, nil).started()
		x.add(rfb.AppendDesktopSize(nil, 7680, 4320))
		if err := <-r.result; !errors.Is(err, ErrScreen) || !errors.Is(err, rfb.ErrProtocol) {
			t.Errorf("a picture that is too large: %v", err)
		}
	})
}

func TestCombinations(t *testing.T) {
	for in, want := range map[string]Combination{
		"Ctrl+W": {Ctrl, 'w'}, "ctrl+shift+i": {Ctrl | Shift, 'i'}, "F12": {0, 0xffc9}, "Ctrl+Plus": {Ctrl, '+'},
		"Alt+F4": {Alt, 0xffc1}, "Meta+Space": {Meta, ' '}, "Ctrl+Alt+Delete": {Ctrl | Alt, 0xffff}, "/": {0, '/'},
	} {
		got, err := ParseCombination(in)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
		}
		if again, err := ParseCombination(got.String()); err != nil || again != got {
			t.Errorf("%q is written as %q: %+v, %v", in, got, again, err)
		}
	}
	for _, in := range []string{"", "Ctrl+", "Ctrl", "Hyper+A", "AB", "+", "Ctrl+é"} {
		if got, err := ParseCombination(in); err == nil {
			t.Errorf("%q was read as %+v", in, got)
		}
	}
}

// On a line that slows down the window closes, and opens again.
func TestPace(t *testing.T) {
	p, now := newPace(), time.Unix(0, 0)
	frame := func(took time.Duration) {
		p.send(now)
		now = now.Add(took)
		if !p.answer(now) {
			t.Fatal("an answer was not expected")
		}
	}
	for range 10 {
		frame(20 * time.Millisecond)
	}
	if p.window != maxWindow {
		t.Errorf("window %d on a steady line, want %d", p.window, maxWindow)
	}
	for range 4 {
		frame(time.Second)
	}
	if p.window != 1 {
		t.Errorf("window %d on a slow line, want 1", p.window)
	}
	p.send(now)
	if p.ready() {
		t.Error("a second frame is allowed on a slow line")
	}
	p.answer(now)
	if p.answer(now) {
		t.Error("an answer to nothing was taken")
	}
}
