package session

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/e2e/harness"
	"caponier/shared/rfb"
	"caponier/shared/wire"
)

// unlocked is an image of Firefox with the way out and nothing of the lock-down:
// what it shows is what the lock-down keeps away.
const unlocked = `FROM caponier-browser
USER 0
RUN echo '//' >/usr/lib/firefox-esr/caponier.cfg && echo '{"policies": {"Homepage": {"URL": "http://park.caponier.internal/", "StartPage": "homepage"},\
 "OverrideFirstRunPage": "", "OverridePostUpdatePage": "", "DontCheckDefaultBrowser": true, "SkipTermsOfUse": true,\
 "Proxy": {"Mode": "manual", "HTTPProxy": "127.0.0.1:18080", "UseHTTPProxyForAllProtocols": true}}}' >/etc/firefox/policies/policies.json
USER 10001:10001
`

// forbidden are addresses that show nothing when people type them. Unseen ones
// show nothing in a browser without a lock either.
var forbidden = []struct {
	typed  string
	unseen bool
}{
	{typed: "about:config"}, {typed: "about:policies"}, {typed: "about:memory"}, {typed: "about:support"}, {typed: "about:addons"},
	{typed: "file:///etc/passwd"}, {typed: "view-source:http://target.test/source"}, {typed: "resource://gre/"},
	{typed: "chrome://browser/content/browser.xhtml"}, {typed: "jar:file:///usr/lib/firefox-esr/omni.ja!/"},
	{typed: "data:text/html,<h1>data</h1><p>of nobody</p>"}, {typed: "javascript:document.write(document.domain)", unseen: true},
}

// Typed into the address bar, the browser's own pages, files and sources do not
// show in any picture that is recorded. Two controls: the same browser without
// its lock shows them, and with it an address of the target leads there, before
// and after each.
func TestTypedAddresses(t *testing.T) {
	free := typeAll(t, false)
	typeAll(t, true, free...)
}

// typeAll types every address into a browser and returns what it shows then;
// what it must not show is given.
func typeAll(t *testing.T, lock bool, not ...*image.RGBA) (last []*image.RGBA) {
	r := newRig(t)
	if !lock {
		r.unlock()
	}
	r.start()
	r.warm(1)
	tn := r.tunnel()
	s := r.spec("con_bar")
	s.Policy.Mode = "bar"
	l := r.open(s)
	r.shows(l, colour("/con_bar"), patience)
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	var from []int // the first picture of each address
	for i, a := range forbidden {
		r.visit(v, l, i)
		from = append(from, len(r.core.frames(s.ID)))
		r.enter(v, l, a.typed)
		page := colour(allowed(i))
		if !lock && !a.unseen {
			r.until(patience, a.typed+" without a lock", func() error {
				p := l.screen.Snapshot()
				if n := inked(p); n < 200 || paper(p) == page {
					return fmt.Errorf("%d dots on %v", n, paper(p))
				}
				return nil
			})
		}
		last = append(last, r.rest(l))
		if got := paper(last[i]); a.unseen && got != page {
			t.Errorf("%s: the page is of %v, not the target's", a.typed, got)
		}
		keep(t, fmt.Sprintf("address-%t-%d.png", lock, i), last[i])
	}
	r.visit(v, l, len(forbidden))
	from = append(from, len(r.core.frames(s.ID)))
	if lock {
		r.compare(s.ID, from, not)
	}
	r.stop()
	return last
}

// unlock makes the rig's browsers such that show everything.
func (r *rig) unlock() {
	const name = "caponier-test-unlocked"
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "build", "-q", "--network", "none", "-t", name, "-")
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+docker.host, "DOCKER_BUILDKIT=0")
	cmd.Stdin = strings.NewReader(unlocked)
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	e, err := browser.New(browser.Config{Host: docker.host, Images: map[string]string{r.what: name}, Node: r.node, Limits: r.limit, Log: slogger(r.t)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { e.Close() })
	r.conf = func(c *Config) { c.Engine = e }
}

// allowed is the path of the target's page before the i-th address.
func allowed(i int) string { return "/" + strings.Repeat("p", i+1) }

// visit goes to the target's page before the i-th address. A page that comes up
// takes the focus, and with it the rest of what is being typed: people type it
// again.
func (r *rig) visit(v *viewer, l *live, i int) {
	r.t.Helper()
	r.until(patience, allowed(i), func() error {
		r.enter(v, l, "http://target.test"+allowed(i))
		return harness.Until(r.t.Context(), 10*time.Second, allowed(i), func() error {
			if got := share(l.screen.Snapshot(), colour(allowed(i))); got < 0.5 {
				return fmt.Errorf("share %.2f", got)
			}
			return nil
		})
	})
	r.rest(l)
}

// The address bar of a browser of 1280 pixels, and where its page begins.
var bar = image.Rect(160, 50, 1000, 82)

const top = 100

// enter types an address into the bar and goes there. The bar is clicked, which
// is the browser's own doing: a key for it is asked of the page first, and what
// is typed meanwhile goes astray.
func (r *rig) enter(v *viewer, l *live, address string) {
	r.t.Helper()
	before := l.screen.Snapshot()
	v.click(600, 66)
	v.press(keyCtrl, 'a')
	v.text(address)
	r.until(patience, "the address in the bar", func() error {
		if n := strokes(before, l.screen.Snapshot()); n < 5*len(address) {
			return fmt.Errorf("%d dots of %q", n, address)
		}
		return nil
	})
	r.rest(l)
	v.press(keyReturn)
}

// strokes counts the dots in which two pictures' bars differ.
func strokes(a, b *image.RGBA) (n int) {
	for y := bar.Min.Y; y < bar.Max.Y; y++ {
		for x := bar.Min.X; x < bar.Max.X; x++ {
			if a.RGBAAt(x, y) != b.RGBAAt(x, y) {
				n++
			}
		}
	}
	return n
}

// rest waits until the picture has been the same for a while but for a caret.
func (r *rig) rest(l *live) (p *image.RGBA) {
	r.t.Helper()
	var since time.Time
	r.until(patience, "the picture rests", func() error {
		now := l.screen.Snapshot()
		if n := differ(p, now); n < 0 || n > 60 {
			p, since = now, time.Now()
		}
		if d := time.Since(since); d < 700*time.Millisecond {
			return fmt.Errorf("it changed %v ago", d)
		}
		return nil
	})
	return p
}

// compare replays a recording and finds the pictures like those that must not
// be seen after each address.
func (r *rig) compare(session string, from []int, not []*image.RGBA) {
	r.t.Helper()
	var replay rfb.Replay
	at, shown := -1, false
	for i, f := range r.core.frames(session) {
		if err := replay.Apply(f.Payload); err != nil {
			r.t.Fatalf("frame %d: %v", i, err)
		}
		if at+1 < len(from) && i >= from[at+1] {
			at, shown = at+1, false
		}
		if at < 0 || at >= len(forbidden) || forbidden[at].unseen || shown {
			continue
		}
		p := replay.Picture.Image()
		if got := alike(not[at], p); got > 0.5 {
			r.t.Errorf("%s: picture %d is %.0f %% what the browser without a lock shows", forbidden[at].typed, i, 100*got)
			keep(r.t, fmt.Sprintf("address-seen-%d.png", at), p)
			shown = true // once is enough
		}
	}
	if at < len(forbidden)-1 {
		r.t.Errorf("the recording ends with address %d", at)
	}
}

// paper is the colour of most of a page.
func paper(p *image.RGBA) (most color.RGBA) {
	count := map[color.RGBA]int{}
	for y := top; y < p.Rect.Dy(); y += 8 {
		for x := 0; x < p.Rect.Dx(); x += 8 {
			c := p.RGBAAt(x, y)
			if count[c]++; count[c] > count[most] {
				most = c
			}
		}
	}
	return most
}

// inked counts the dots of a page that are not its paper.
func inked(p *image.RGBA) (n int) {
	c := paper(p)
	for y := top; y < p.Rect.Dy(); y++ {
		for x := 0; x < p.Rect.Dx(); x++ {
			if p.RGBAAt(x, y) != c {
				n++
			}
		}
	}
	return n
}

// alike is how much of what is written on a page another shows as well.
func alike(a, b *image.RGBA) float64 {
	of := paper(a)
	same, all := 0, 0
	for y := top; y < a.Rect.Dy(); y++ {
		for x := 0; x < a.Rect.Dx(); x++ {
			if c := a.RGBAAt(x, y); c != of {
				all++
				if c == b.RGBAAt(x, y) {
					same++
				}
			}
		}
	}
	return float64(same) / float64(max(all, 1))
}
