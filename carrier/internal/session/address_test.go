package session

import (
	"context"
	"fmt"
	"image"
	"image/color"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/e2e/harness"
	"caponier/shared/rfb"
	"caponier/shared/wire"
)

// typed is an address that shows nothing when people type it.
type typed struct {
	address string
	// page: the target's page is there before.
	page bool
	// unseen: a browser without a lock shows nothing either, or an error. Where the
	// target's page was there before, it stays.
	unseen bool
}

// locked is what is known of a browser whose bar is typed into.
type locked struct {
	image string // of the browser with the way out and nothing of the lock-down
	bar   image.Rectangle
	top   int // of the page, on the screen
	typed []typed
}

// browsers are those whose bars are typed into. What the unlocked ones show is
// what the lock-down keeps away.
var browsers = map[string]locked{
	wire.Firefox: {
		image: `FROM caponier-browser
USER 0
RUN echo '//' >/usr/lib/firefox-esr/caponier.cfg && echo '{"policies": {"Homepage": {"URL": "http://park.caponier.internal/", "StartPage": "homepage"},\
 "OverrideFirstRunPage": "", "OverridePostUpdatePage": "", "DontCheckDefaultBrowser": true, "SkipTermsOfUse": true,\
 "Proxy": {"Mode": "manual", "HTTPProxy": "127.0.0.1:18080", "UseHTTPProxyForAllProtocols": true}}}' >/etc/firefox/policies/policies.json
USER 10001:10001
`,
		bar: image.Rect(160, 50, 1000, 82), top: 100,
		typed: []typed{
			{address: "about:config"}, {address: "about:policies"}, {address: "about:memory"}, {address: "about:support"}, {address: "about:addons"},
			{address: "file:///etc/passwd"}, {address: "view-source:http://target.test/source"}, {address: "resource://gre/"},
			{address: "chrome://browser/content/browser.xhtml"}, {address: "jar:file:///usr/lib/firefox-esr/omni.ja!/"},
			{address: "data:text/html,<h1>data</h1><p>of nobody</p>"}, {address: "javascript:document.write(document.domain)", page: true, unseen: true},
		},
	},
	wire.Chromium: {
		image: `FROM caponier-chromium
USER 0
RUN rm /etc/chromium/policies/managed && mkdir /etc/chromium/policies/managed && echo '{"FullscreenAllowed": false,\
 "ProxySettings": {"ProxyMode": "fixed_servers", "ProxyServer": "http://127.0.0.1:18080", "ProxyBypassList": "<-loopback>"}}' >/etc/chromium/policies/managed/caponier.json
USER 10001:10001
`,
		bar: image.Rect(160, 40, 1000, 76), top: 100,
		typed: []typed{
			{address: "chrome://version"}, {address: "chrome://policy"}, {address: "chrome://settings"}, {address: "chrome://extensions"},
			{address: "chrome://inspect"}, {address: "chrome://flags"}, {address: "chrome://net-export"}, {address: "chrome://history"},
			{address: "about:about"}, {address: "devtools://devtools/bundled/inspector.html"},
			{address: "file:///etc/passwd"}, {address: "view-source:http://target.test/source"},
			{address: "data:text/html,<h1>data</h1><p>of nobody</p>"}, {address: "chrome-untrusted://print/", unseen: true},
			{address: "blob:http://target.test/x", unseen: true},
			{address: "javascript:document.write(document.domain)", page: true, unseen: true},
		},
	},
}

// Typed into the address bar, the browser's own pages, files and sources do not
// show in any picture that is recorded. Two controls: the same browser without
// its lock shows them, and with it an address of the target leads there, before
// and after.
func TestTypedAddresses(t *testing.T) {
	for name := range browsers {
		t.Run(name, func(t *testing.T) {
			free := typeAll(t, name, false)
			typeAll(t, name, true, free...)
		})
	}
}

// typeAll types every address into a browser and returns what it shows then;
// what it must not show is given.
func typeAll(t *testing.T, name string, lock bool, not ...*image.RGBA) (last []*image.RGBA) {
	r := newRigOf(t, name)
	b := browsers[name]
	if !lock {
		r.unlock(b.image)
	}
	r.conf = with(r.conf, func(c *Config) { c.Warm[name] = 0 }) // with bars a browser is started
	r.start()
	tn := r.tunnel()
	s := r.spec("con_bar")
	s.Policy.Mode = "bar"
	l := r.open(s)
	r.shows(l, colour("/con_bar"), patience)
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	before := r.visit(v, l, b, "/first")
	from := len(r.core.frames(s.ID))
	for i, a := range b.typed {
		page := colour(fmt.Sprintf("/before-%d", i))
		if a.page {
			before = r.visit(v, l, b, fmt.Sprintf("/before-%d", i))
		}
		r.enter(v, l, b, a.address)
		if !lock && !a.unseen {
			r.until(patience, a.address+" without a lock", func() error {
				p := l.screen.Snapshot()
				dots := ink(p, b.top)
				if same := alike(dots, before.RGBAAt); len(dots) < 200 || same > 0.5 {
					return fmt.Errorf("%d dots, %.0f %% of them as before", len(dots), 100*same)
				}
				return nil
			})
		}
		before = r.rest(l)
		last = append(last, before)
		keep(t, fmt.Sprintf("address-%s-%t-%d.png", name, lock, i), before)
		if got := paper(before, b.top); a.page && a.unseen && (len(got) == 0 || got[0] != page) {
			t.Errorf("%s: the page is of %v, not the target's", a.address, got)
		}
	}
	r.visit(v, l, b, "/last")
	if lock {
		r.compare(s.ID, b, from, not)
	}
	r.stop()
	return last
}

// with is two changes of a configuration.
func with(f, g func(*Config)) func(*Config) {
	return func(c *Config) { f(c); g(c) }
}

// unlock makes the rig's browsers such that show everything.
func (r *rig) unlock(file string) {
	name := "caponier-test-unlocked-" + r.what
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", "build", "-q", "--network", "none", "-t", name, "-")
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+docker.host, "DOCKER_BUILDKIT=0")
	cmd.Stdin = strings.NewReader(file)
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

// visit goes to a page of the target. A page that comes up takes the focus, and
// with it the rest of what is being typed: people type it again.
func (r *rig) visit(v *viewer, l *live, b locked, path string) *image.RGBA {
	r.t.Helper()
	r.until(patience, path, func() error {
		r.enter(v, l, b, "http://target.test"+path)
		return harness.Until(r.t.Context(), 10*time.Second, path, func() error {
			if got := share(l.screen.Snapshot(), colour(path)); got < 0.5 {
				return fmt.Errorf("share %.2f", got)
			}
			return nil
		})
	})
	return r.rest(l)
}

// enter types an address into the bar and goes there. The bar is clicked, which
// is the browser's own doing: a key for it is asked of the page first, and what
// is typed meanwhile goes astray. So does what is typed while a page comes up,
// and is typed again.
func (r *rig) enter(v *viewer, l *live, b locked, address string) {
	r.t.Helper()
	before := l.screen.Snapshot()
	r.until(patience, "the address in the bar", func() error {
		v.click(600, (b.bar.Min.Y+b.bar.Max.Y)/2)
		v.press(keyCtrl, 'a')
		v.text(address)
		return harness.Until(r.t.Context(), again, "the address", func() error {
			if n := strokes(b.bar, before, l.screen.Snapshot()); n < 5*len(address) {
				return fmt.Errorf("%d dots of %q", n, address)
			}
			return nil
		})
	})
	v.press(keyReturn)
}

// strokes counts the dots in which two pictures' bars differ.
func strokes(bar image.Rectangle, a, b *image.RGBA) (n int) {
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

// compare replays a recording from a frame on and finds the pictures like those
// that must not be seen.
func (r *rig) compare(session string, b locked, from int, not []*image.RGBA) {
	r.t.Helper()
	forbidden := make([][]dot, len(not))
	for i, p := range not {
		if !b.typed[i].unseen {
			forbidden[i] = some(ink(p, b.top))
		}
	}
	var replay rfb.Replay
	for n, f := range r.core.frames(session) {
		if err := replay.Apply(f.Payload); err != nil {
			r.t.Fatalf("frame %d: %v", n, err)
		}
		if n < from {
			continue
		}
		at := func(x, y int) color.RGBA {
			c := replay.Picture.Row(y, x, x+1)[0]
			return colourOf(byte(c>>16), byte(c>>8), byte(c))
		}
		for i, dots := range forbidden {
			if got := alike(dots, at); got > 0.5 {
				r.t.Errorf("%s: picture %d is %.0f %% what the browser without a lock shows", b.typed[i].address, n, 100*got)
				keep(r.t, fmt.Sprintf("address-seen-%s-%d.png", r.what, i), replay.Picture.Image())
				forbidden[i] = nil // once is enough
			}
		}
	}
}

// paper are the colours of the areas of a page, which begins at top, the largest
// first.
func paper(p *image.RGBA, top int) (areas []color.RGBA) {
	count, all := map[color.RGBA]int{}, 0
	for y := top; y < p.Rect.Dy(); y += 8 {
		for x := 0; x < p.Rect.Dx(); x += 8 {
			count[p.RGBAAt(x, y)]++
			all++
		}
	}
	for c, n := range count {
		if n >= all/20 {
			areas = append(areas, c)
		}
	}
	slices.SortFunc(areas, func(a, b color.RGBA) int { return count[b] - count[a] })
	return areas
}

// dot is one of a picture.
type dot struct {
	x, y int
	c    color.RGBA
}

// ink is what is written and drawn on the areas of a page.
func ink(p *image.RGBA, top int) (dots []dot) {
	areas := paper(p, top)
	for y := top; y < p.Rect.Dy(); y++ {
		for x := 0; x < p.Rect.Dx(); x++ {
			if c := p.RGBAAt(x, y); !slices.Contains(areas, c) {
				dots = append(dots, dot{x, y, c})
			}
		}
	}
	return dots
}

// some are a few thousand of dots, all over them.
func some(dots []dot) (few []dot) {
	for i := 0; i < len(dots); i += max(1, len(dots)/3000) {
		few = append(few, dots[i])
	}
	return few
}

// alike is how much of what is written on a page another shows as well.
func alike(dots []dot, at func(x, y int) color.RGBA) float64 {
	same := 0
	for _, d := range dots {
		if at(d.x, d.y) == d.c {
			same++
		}
	}
	return float64(same) / float64(max(len(dots), 1))
}
