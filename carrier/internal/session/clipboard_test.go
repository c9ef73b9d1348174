package session

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"image"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"caponier/carrier/internal/display"
	"caponier/shared/rfb"
)

// copier is a viewer who copies and pastes: it asks for every text it is
// offered and gives its own when asked.
type copier struct {
	conn net.Conn

	mu   sync.Mutex // guards all below, and writing
	mine string
	got  []string
}

// send writes without waiting for whom it sends to: a pipe holds nothing.
func (c *copier) send(b []byte) {
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, _ = c.conn.Write(b)
	}()
}

func (c *copier) say(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.conn.Write(b)
}

func (c *copier) texts() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.got...)
}

// copier connects one to a session's display.
func (r *rig) copier(l *live) *copier {
	r.t.Helper()
	a, b := net.Pipe()
	c := &copier{conn: b}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		defer a.Close()
		_ = l.screen.View(ctx, a, display.ViewOptions{Name: "copier", Control: true})
	})
	init, err := rfb.ClientHandshake(b)
	if err != nil {
		r.t.Fatal(err)
	}
	f := rfb.NewFramebuffer(init.Width, init.Height)
	c.say(rfb.AppendRequest(rfb.AppendSetEncodings(nil, rfb.Tight, rfb.ExtendedDesktopSize, rfb.ExtendedClipboard), false, f.Bounds()))
	wg.Go(func() {
		read := rfb.NewServerReader(b, rfb.ServerLimits{Tight: true, Clipboard: func() int { return rfb.MaxClipboard }})
		for {
			e, err := read.Next(f, nil, nil)
			if err != nil {
				return
			}
			switch e.Kind {
			case rfb.EventUpdateEnd:
				c.send(rfb.AppendRequest(nil, true, f.Bounds()))
			case rfb.EventClipboard:
				c.clipboard(e.Clipboard)
			}
		}
	})
	r.t.Cleanup(func() { cancel(); b.Close(); wg.Wait() })
	return c
}

func (c *copier) clipboard(m rfb.Clipboard) {
	answer := rfb.Clipboard{HasText: true}
	switch m.Action {
	case rfb.ClipboardCaps:
		answer.Action, answer.Actions = rfb.ClipboardCaps, rfb.ClipboardRequest|rfb.ClipboardNotify|rfb.ClipboardProvide
	case rfb.ClipboardNotify:
		answer.Action = rfb.ClipboardRequest
	case rfb.ClipboardRequest:
		c.mu.Lock()
		answer.Action, answer.Text = rfb.ClipboardProvide, c.mine
		c.mu.Unlock()
	case rfb.ClipboardProvide:
		c.mu.Lock()
		c.got = append(c.got, m.Text)
		c.mu.Unlock()
		return
	default:
		return
	}
	c.send(rfb.AppendClipboard(nil, answer, true))
}

// ctrl presses a key with Ctrl.
func (c *copier) ctrl(sym uint32) {
	control := rfb.Key{Sym: 0xffe3}
	b := rfb.AppendKey(nil, control, true, false)
	b = rfb.AppendKey(b, rfb.Key{Sym: sym}, true, false)
	b = rfb.AppendKey(b, rfb.Key{Sym: sym}, false, false)
	c.say(rfb.AppendKey(b, control, false, false))
}

// again returns a function that presses keys with Ctrl, but not again for 15 s:
// a page takes its time with a large text.
func (c *copier) again(keys string) func() {
	var last time.Time
	return func() {
		if time.Since(last) < 15*time.Second {
			return
		}
		last = time.Now()
		for _, k := range keys {
			c.ctrl(uint32(k))
		}
	}
}

// 5 MB go out of a real browser and into it, unchanged. Out is the harder way:
// Firefox's toolkit hands over large texts in pieces.
func TestLargeClipboard(t *testing.T) { each(t, testLargeClipboard) }

func testLargeClipboard(t *testing.T, r *rig) {
	var long strings.Builder
	for i := 0; long.Len() < 5_000_000; i++ {
		fmt.Fprintf(&long, "Größe № %d %s\n", i, strings.Repeat(string(rune('a'+i%26)), i%50))
	}
	text := long.String()
	sum := sha256.Sum256([]byte(text))
	var mu sync.Mutex
	var pasted []byte
	var selected atomic.Bool
	r.web.handler = func(w http.ResponseWriter, q *http.Request) {
		switch {
		case strings.HasSuffix(q.URL.Path, "/text"):
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = io.WriteString(w, text)
		case strings.HasSuffix(q.URL.Path, "/selected"):
			selected.Store(true)
		case strings.HasSuffix(q.URL.Path, "/pasted"):
			b, _ := io.ReadAll(q.Body)
			mu.Lock()
			pasted = b
			mu.Unlock()
		default:
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, `<!doctype html><body style="margin:0"><textarea id=t style="width:100vw;height:100vh;border:0">field</textarea><script>
// The page has the text, the field does not: laid out it would cost Chromium more
// memory than a session has.
fetch("/text").then(r => r.text()).then(s => {
	addEventListener("copy", e => { e.clipboardData.setData("text/plain", s); e.preventDefault(); });
	t.focus(); t.select(); fetch("/selected");
});
addEventListener("paste", e => { fetch("/pasted", {method: "POST", body: e.clipboardData.getData("text/plain")}); e.preventDefault(); });
</script>`)
		}
	}
	r.start()
	spec := r.spec("con_clip")
	spec.Policy.ClipboardIn, spec.Policy.ClipboardOut = 16<<20, 16<<20
	l := r.open(spec)
	c := r.copier(l)
	r.until(patience, "the text in the page", func() error {
		if !selected.Load() {
			return fmt.Errorf("it is not selected")
		}
		return nil
	})
	c.say(rfb.AppendPointer(nil, image.Pt(600, 400), 0, false))
	copies := c.again("ac")
	r.until(patience, "the text outside", func() error {
		if len(c.texts()) == 0 {
			copies()
			return fmt.Errorf("nothing was copied")
		}
		return nil
	})
	if got := c.texts()[0]; got != text {
		t.Errorf("copied %d bytes, want %d", len(got), len(text))
	}
	upper := strings.ToUpper(text)
	c.mu.Lock()
	c.mine = upper
	c.mu.Unlock()
	offer := rfb.AppendClipboard(nil, rfb.Clipboard{Action: rfb.ClipboardNotify, HasText: true}, true)
	c.say(offer)
	pastes := c.again("av")
	r.until(patience, "the text inside", func() error {
		mu.Lock()
		defer mu.Unlock()
		if pasted == nil {
			pastes()
			return fmt.Errorf("nothing was pasted")
		}
		if !strings.HasPrefix(string(pasted), upper[:100]) {
			// The browser's own, as long as ours is not there; a copy that was asked
			// for twice comes after ours.
			err := fmt.Errorf("something else was pasted: %.40q", pasted)
			pasted = nil
			c.say(offer)
			return err
		}
		return nil
	})
	mu.Lock()
	got := pasted
	mu.Unlock()
	if string(got) != upper {
		t.Errorf("pasted %d bytes, want %d", len(got), len(upper))
	}
	t.Logf("%d bytes out (%s) and %d in", len(text), hex.EncodeToString(sum[:4]), len(got))
}
