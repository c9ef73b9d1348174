package display

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"caponier/e2e/harness"
	"caponier/shared/rfb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// xserver is a real Xvnc on a unix socket.
type xserver struct {
	t      *testing.T
	socket string
	number string
	cmd    *exec.Cmd
	exited chan struct{}
}

func startX(t *testing.T, geometry string, more ...string) *xserver {
	t.Helper()
	path, err := exec.LookPath("Xvnc")
	if err != nil {
		harness.Lacks(t, "Xvnc is missing (%v): run make setup", err)
	}
	x := &xserver{t: t, socket: filepath.Join(t.TempDir(), "rfb.sock"), exited: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-displayfd", "3", "-geometry", geometry, "-depth", "24", "-rfbport", "-1", "-rfbunixpath", x.socket, "-rfbunixmode", "0600",
		"-SecurityTypes", "None", "-AlwaysShared", "-AcceptSetDesktopSize", "-nolisten", "tcp", "-MaxCutText", "67108864",
		"-FrameRate", "30", "-SendPrimary=0", "-SetPrimary=0",
	}
	x.cmd = exec.Command(path, append(args, more...)...)
	x.cmd.ExtraFiles = []*os.File{w}
	var log strings.Builder
	x.cmd.Stdout, x.cmd.Stderr = &log, &log
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	number, err := io.ReadAll(io.LimitReader(r, 8)) // until Xvnc closes it
	r.Close()
	go func() { _ = x.cmd.Wait(); close(x.exited) }()
	if err != nil || len(number) == 0 {
		t.Fatalf("Xvnc did not start: %v\n%s", err, log.String())
	}
	x.number = ":" + strings.TrimSpace(string(number))
	t.Cleanup(x.kill)
	return x
}

func (x *xserver) kill() {
	_ = x.cmd.Process.Kill()
	<-x.exited
}

func (x *xserver) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", x.socket)
}

// parked changes a display's config to begin with a connection that was made
// ahead; without ahead it changes nothing.
func (x *xserver) parked(ahead bool) func(*Config) {
	x.t.Helper()
	if !ahead {
		return func(*Config) {}
	}
	s, err := Connect(x.t.Context(), x.dial)
	if err != nil {
		x.t.Fatal(err)
	}
	return func(c *Config) { c.Screen, c.Dial = s, nothing }
}

// nothing is a dialler that must not be used.
func nothing(context.Context) (net.Conn, error) { return nil, errors.New("dialled") }

// dialX connects as an X client.
func (x *xserver) dialX(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", "/tmp/.X11-unix/X"+strings.TrimPrefix(x.number, ":"))
}

// client prepares an X client.
func (x *xserver) client(name string, args ...string) *exec.Cmd {
	x.t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		harness.Lacks(x.t, "%s is missing (%v): run make setup", name, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "DISPLAY="+x.number)
	return cmd
}

// run runs an X client to its end.
func (x *xserver) run(name string, args ...string) []byte {
	x.t.Helper()
	out, err := x.client(name, args...).Output()
	if err != nil {
		x.t.Fatalf("%s %s: %v", name, args, err)
	}
	return out
}

// spawn runs an X client until the test ends or what it returns is called.
func (x *xserver) spawn(name string, args ...string) (end func()) {
	x.t.Helper()
	cmd := x.client(name, args...)
	if err := cmd.Start(); err != nil {
		x.t.Fatal(err)
	}
	end = sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	x.t.Cleanup(end)
	return end
}

// truth is the picture as the X server itself has it, by xwd.
func (x *xserver) truth() *rfb.Framebuffer {
	x.t.Helper()
	b := x.run("xwd", "-root", "-silent")
	u32 := func(i int) int { return int(binary.BigEndian.Uint32(b[4*i:])) }
	head, w, h, depth, lsb, bits, stride, colours := u32(0), u32(4), u32(5), u32(3), u32(7), u32(11), u32(12), u32(19)
	if depth != 24 || bits != 32 || lsb != 0 {
		x.t.Fatalf("xwd: depth %d, %d bits, byte order %d", depth, bits, lsb)
	}
	f := rfb.NewFramebuffer(w, h)
	pix := b[head+12*colours:]
	for y := range h {
		if err := f.SetRaw(image.Rect(0, y, w, y+1), pix[y*stride:][:4*w]); err != nil {
			x.t.Fatal(err)
		}
	}
	return f
}

// rig is a running display with all it told.
type rig struct {
	*Display
	t      *testing.T
	stop   context.CancelFunc
	result chan error

	mu     sync.Mutex
	frames [][]byte
	keys   []bool
	times  []time.Duration
	events []Event
}

// display runs a display for the test's time. change may alter its config.
func display(t *testing.T, dial func(context.Context) (net.Conn, error), change func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, result: make(chan error, 1)}
	cfg := Config{
		Session: "ses_test", Dial: dial, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Policy: Policy{ClipboardIn: rfb.DefaultClipboard, ClipboardOut: rfb.DefaultClipboard, RecordClipboard: true},
		Record: func(at time.Duration, frame []byte, key bool) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.frames, r.keys, r.times = append(r.frames, frame), append(r.keys, key), append(r.times, at)
			return nil
		},
		Event: func(e Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events = append(r.events, e)
		},
	}
	if change != nil {
		change(&cfg)
	}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Display = d
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	go func() { r.result <- d.Run(ctx) }()
	t.Cleanup(func() { stop(); <-d.done })
	return r
}

// started waits for the first picture.
func (r *rig) started() *rig {
	r.t.Helper()
	select {
	case <-r.Ready():
	case err := <-r.result:
		r.t.Fatalf("the display ended: %v", err)
	case <-time.After(time.Minute):
		r.t.Fatal("no picture")
	}
	return r
}

func (r *rig) eventsOf(kind EventKind) (out []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// replay plays the recording to its end.
func (r *rig) replay() *rfb.Framebuffer {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var play rfb.Replay
	for i, b := range r.frames {
		if err := play.Apply(b); err != nil {
			r.t.Fatalf("frame %d: %v", i, err)
		}
	}
	if play.Picture == nil {
		return rfb.NewFramebuffer(1, 1)
	}
	return play.Picture
}

func (r *rig) shownSum() [32]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Display.mu.Lock()
	defer r.Display.mu.Unlock()
	return r.shown.Sum()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// peer is a viewer written for the test: what noVNC does, in Go.
type peer struct {
	t      *testing.T
	conn   net.Conn
	result chan error // of View
	// gone is closed when the peer's reader has ended, err says why.
	gone chan struct{}
	err  error

	wmu sync.Mutex // held while writing

	mu        sync.Mutex
	picture   *rfb.Framebuffer
	updates   int
	scan      bool
	text      string // what its user has copied
	got       []string
	asked     int // how often it was asked for its text
	sizes     []rfb.Event
	cursor    rfb.Cursor
	bells     int
	led       uint32
	fences    int
	slow      func() // called before each message is read
	keepFence bool   // fences are not answered
}

type peerOptions struct {
	ViewOptions
	continuous bool
	plain      bool // no extended clipboard
	slow       func()
	without    rfb.Encoding
}

// view connects a peer.
func (r *rig) view(o peerOptions) *peer {
	r.t.Helper()
	a, b := net.Pipe()
	p := &peer{t: r.t, conn: b, result: make(chan error, 1), gone: make(chan struct{}), slow: o.slow}
	go func() {
		err := r.View(r.t.Context(), a, o.ViewOptions)
		a.Close()
		p.result <- err
	}()
	init, err := rfb.ClientHandshake(b)
	if err != nil {
		r.t.Fatalf("viewer's handshake: %v", err)
	}
	p.picture = rfb.NewFramebuffer(init.Width, init.Height)
	list := []rfb.Encoding{rfb.CopyRect, rfb.Tight, rfb.DesktopSize, rfb.ExtendedDesktopSize, rfb.QEMUKeys, rfb.LEDState, rfb.VMwareCursor, rfb.ExtendedMouse}
	if o.continuous {
		list = append(list, rfb.Fence, rfb.ContinuousUpdates)
	}
	if !o.plain {
		list = append(list, rfb.ExtendedClipboard)
	}
	var known []rfb.Encoding
	for _, e := range list {
		if e != o.without {
			known = append(known, e)
		}
	}
	hello := rfb.AppendSetEncodings(rfb.AppendSetPixelFormat(nil), known...)
	p.send(rfb.AppendRequest(hello, false, p.picture.Bounds()))
	go func() {
		defer close(p.gone)
		p.err = p.read(o)
	}()
	r.t.Cleanup(func() { p.conn.Close(); <-p.gone; p.result <- <-p.result })
	return p
}

func (p *peer) send(b []byte) {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	_, _ = p.conn.Write(b)
}

func (p *peer) read(o peerOptions) error {
	r := rfb.NewServerReader(p.conn, rfb.ServerLimits{Tight: true, Clipboard: func() int { return rfb.MaxClipboard }})
	for {
		if p.slow != nil {
			p.slow()
		}
		e, err := r.Next(p.picture, p.mu.Lock, p.mu.Unlock)
		if err != nil {
			return err
		}
		if reply := p.handle(o, e); len(reply) > 0 {
			go p.send(reply) // a pipe holds nothing: reading must go on
		}
	}
}

func (p *peer) handle(o peerOptions, e rfb.Event) (reply []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e.Kind {
	case rfb.EventUpdateEnd:
		p.updates++
		if !o.continuous {
			return rfb.AppendRequest(nil, true, p.picture.Bounds())
		}
	case rfb.EventSize:
		p.sizes = append(p.sizes, e)
		if w, h := p.picture.Size(); e.Size != image.Pt(w, h) && e.Status == 0 {
			p.picture.Resize(e.Size.X, e.Size.Y)
		}
	case rfb.EventCursor:
		p.cursor = e.Cursor
	case rfb.EventAbility:
		p.scan = p.scan || e.Encoding == rfb.QEMUKeys
	case rfb.EventLED:
		p.led = e.Value
	case rfb.EventBell:
		p.bells++
	case rfb.EventEndOfUpdates:
		return rfb.AppendEnableUpdates(nil, true, p.picture.Bounds())
	case rfb.EventFence:
		p.fences++
		if !p.keepFence {
			return rfb.AppendFence(nil, e.Value&rfb.FenceBlock, e.Data)
		}
	case rfb.EventClipboard:
		return p.clipboard(e.Clipboard)
	}
	return nil
}

func (p *peer) clipboard(c rfb.Clipboard) []byte {
	switch c.Action {
	case rfb.ClipboardCaps:
		return rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardCaps, HasText: true, Actions: abilities}, true)
	case rfb.ClipboardNotify:
		if c.HasText {
			return rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardRequest, HasText: true}, true)
		}
	case rfb.ClipboardRequest:
		p.asked++
		return rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardProvide, HasText: true, Text: p.text}, true)
	case rfb.ClipboardProvide, rfb.ClipboardText:
		p.got = append(p.got, c.Text)
	}
	return nil
}

// copied says that the peer's user copied a text.
func (p *peer) copied(text string) {
	p.mu.Lock()
	p.text = text
	p.mu.Unlock()
	p.send(rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardNotify, HasText: true}, true))
}

func (p *peer) sum() [32]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.picture.Sum()
}

// texts are what it got from the clipboard.
func (p *peer) texts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.got...)
}

// press presses and releases a key with its modifiers.
func (p *peer) press(keys ...rfb.Key) {
	var b []byte
	for _, k := range keys {
		b = rfb.AppendKey(b, k, true, true)
	}
	for i := range keys {
		b = rfb.AppendKey(b, keys[len(keys)-1-i], false, true)
	}
	p.send(b)
}

func (p *peer) String() string { return fmt.Sprintf("%d updates", p.updates) }
