package e2e

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// barOf is how many pixels of bars the browser shows above the page.
func barOf(p *image.RGBA, page color.RGBA) int {
	x := p.Rect.Dx() - 100 // beside the page's text
	for y := range p.Rect.Dy() {
		if harness.Near(p.RGBAAt(x, y), page, 12) {
			return y
		}
	}
	return p.Rect.Dy()
}

// The browser shows the page alone, or with its bars, as the target says, while
// it runs too; an address typed in leads where rules allow.
func TestWebModes(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"mode": "kiosk"}})
	u := w.open(t, s)
	u.shows(t, "the page")
	bars := func(what string, ok func(int) bool) {
		t.Helper()
		if err := u.Screen.Wait(t.Context(), patience, what, func(p *image.RGBA) error {
			if n := barOf(p, s.Color()); !ok(n) {
				return fmt.Errorf("bars of %d pixels", n)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	none := func(n int) bool { return n == 0 }
	some := func(n int) bool { return n > 30 && n < 200 }
	bars("kiosk: nothing but the page", none)
	// No address can be typed: what is typed is the page's.
	typed := func(what, ask, want string) {
		t.Helper()
		if err := u.Screen.Press(harness.KeyControl, 'l'); err != nil {
			t.Fatal(err)
		}
		until(t, patience, what, func() error { // the page's keys, or the address's, from then on
			if got := u.run(t, ask); got != want {
				return errors.New(got)
			}
			return nil
		})
		to := strings.TrimPrefix(s.origin, "https://") + "/note"
		if err := errors.Join(u.Screen.Type("https:"), u.Screen.Press('/'), u.Screen.Press('/'), u.Screen.Type(to), u.Screen.Press(harness.KeyReturn)); err != nil {
			t.Fatal(err)
		}
	}
	// A slash that the page does not take opens Firefox's quick search, which gets
	// keys that come after it.
	u.run(t, "window.heard = ''; addEventListener('keydown', e => { heard += e.key; if (e.key === '/') e.preventDefault() }, true); return 1")
	typed("the page hears the key of the address", "return heard", "Controll")
	until(t, patience, "the page hears what is typed in kiosk mode", func() error {
		if got := u.run(t, "return heard"); !strings.Contains(got, "/noteEnter") {
			return errors.New(got)
		}
		return nil
	})
	if got := u.run(t, "return location.pathname"); got != "/home" {
		t.Errorf("in kiosk mode an address was typed: %s", got)
	}
	bars("kiosk: still nothing but the page", none)

	// The same session with bars, then without again.
	s.spec.Web.Browser["mode"] = "bar"
	w.update(t, s, func(*webrule.Policy) {})
	bars("bar: the address is above the page", some)
	if got := u.run(t, "return window.heard !== undefined"); got != "true" {
		t.Error("the page was loaded again")
	}
	typed("the address has the focus", "return document.hasFocus()", "false")
	until(t, patience, "the address typed leads there", func() error {
		if got := u.run(t, "return location.pathname"); got != "/note" {
			return errors.New(got)
		}
		return nil
	})
	// By itself the bar hides; it comes when the pointer is at the upper edge, and
	// goes when that has left.
	s.spec.Web.Browser["mode"] = "auto"
	w.update(t, s, func(*webrule.Policy) {})
	move := func(x, y int) {
		t.Helper()
		if err := u.Screen.Move(x, y); err != nil {
			t.Fatal(err)
		}
	}
	move(700, 500)
	bars("auto: nothing but the page", none)
	move(700, 300)
	move(700, 0)
	bars("auto: the bar, with the pointer at the upper edge", some)
	move(700, 40)
	move(700, 500)
	bars("auto: without the bar, when the pointer has left", none)
	s.spec.Web.Browser["mode"] = "kiosk"
	w.update(t, s, func(*webrule.Policy) {})
	move(700, 0)
	if got := u.run(t, "await new Promise(go => setTimeout(go, 1500)); return location.pathname"); got != "/note" {
		t.Errorf("the page is %q", got)
	}
	bars("kiosk again: nothing but the page", none)
}

// A page opens no window by itself; one that its user's click opens takes the
// place of the page, and Ctrl+W leads back.
func TestWebPopups(t *testing.T) {
	w := web(t)
	popup := w.site(t, sites.Config{Kind: sites.Open, Title: "popup", Color: color.RGBA{0x40, 0x90, 0x20, 0xff}}, siteOptions{noTarget: true, still: true})
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{change: allowHosts(popup.origin)})
	u := w.open(t, s)
	u.shows(t, "the page")
	open := fmt.Sprintf("window.open(%q, 'popup', 'width=300,height=200')", popup.origin+"/plain")
	if got := u.run(t, "return "+open); got != "null" {
		t.Errorf("a page that nobody touched opens a window: %s", got)
	}
	u.run(t, "const b = document.createElement('button'); b.id = 'pop'; b.textContent = 'open'; b.onclick = () => "+open+"; document.querySelector('main').append(b); return 1")
	u.click(t, "#pop")
	all := func(what string, c color.RGBA) {
		t.Helper()
		if err := u.Screen.Wait(t.Context(), patience, what, func(p *image.RGBA) error {
			if got := harness.Share(p, c); got < 0.5 || barOf(p, c) != 0 {
				return fmt.Errorf("%.0f%% of the picture, bars of %d pixels", 100*got, barOf(p, c))
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	all("the popup fills the screen", popup.Color())
	if err := u.Screen.Press(harness.KeyControl, 'w'); err != nil {
		t.Fatal(err)
	}
	all("closed, the page is there again", s.Color())
	// Forbidden, a page loaded from then on opens none, by script or link.
	s.spec.Web.Browser = map[string]any{"popups": "block"}
	w.update(t, s, func(*webrule.Policy) {})
	u.noPopups(t, open, popup.Color())
}

// noPopups waits until pages open no windows any more: a script gets null, or
// an exception in Firefox.
func (u *webUse) noPopups(t *testing.T, open string, popup color.RGBA) {
	t.Helper()
	until(t, patience, "the page is one that opens no windows", func() error {
		u.drive(t, "/home")
		if got := u.run(t, "return (await fetch(location)).headers.get('Content-Security-Policy') ?? ''"); !strings.HasPrefix(got, "sandbox ") {
			return fmt.Errorf("its policy is %q", got)
		}
		return nil
	})
	u.drive(t, "/home")
	u.run(t, `window.heard = ''; const main = document.querySelector('main'); main.innerHTML = '<button id="pop">script</button><a id="link" target="_blank" href="/note">link</a>'; `+
		"document.querySelector('#pop').onclick = () => { let w = null; try { w = "+open+" } catch {} heard += '|' + w }; document.querySelector('#link').onclick = () => { heard += '|link' }; return 1")
	u.click(t, "#pop")
	u.click(t, "#link")
	until(t, patience, "both were clicked", func() error {
		if got := u.run(t, "return heard"); got != "|null|link" {
			return errors.New(got)
		}
		return nil
	})
	if got := u.run(t, "return location.pathname + ' ' + document.visibilityState"); got != "/home visible" {
		t.Errorf("the page is %s", got)
	}
	if got := harness.Share(u.Screen.Picture(), popup); got > 0.01 {
		t.Errorf("%.0f%% of the picture are the popup's", 100*got)
	}
}

// Pages see the time zone of their user; without one it is UTC.
func TestWebTimeZone(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	for _, zone := range []string{"", "Asia/Kolkata", "America/St_Johns"} {
		u := w.openIn(t, w.user, s, zone)
		u.shows(t, "the page")
		want := map[string]string{"": "UTC 12:00", "Asia/Kolkata": "Asia/Kolkata 17:30", "America/St_Johns": "America/St_Johns 08:30"}[zone]
		if zone == "Asia/Kolkata" {
			want = strings.Replace(want, "Asia/Kolkata", "Asia/Calcutta", 1) // ICU's own name of it
		}
		got := u.run(t, "const d = new Date('2026-01-15T12:00:00Z'); return Intl.DateTimeFormat().resolvedOptions().timeZone + ' ' + "+
			"String(d.getHours()).padStart(2, '0') + ':' + String(d.getMinutes()).padStart(2, '0')")
		if strings.Replace(got, "Asia/Kolkata", "Asia/Calcutta", 1) != want {
			t.Errorf("zone %q: the page's clock is %q, want %q", zone, got, want)
		}
		u.end(t)
	}
}

// Where the target does not permit it there is no sound: no device, no server
// and no socket of one. Where it does: TestWebSound.
func TestWebSilence(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	id := w.containerOf(t, u)
	inside := func(script string) string {
		t.Helper()
		out, err := w.docker.Docker(t.Context(), "exec", id, "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// What sound would come by. The X server's socket shows that the list is one.
	sockets := inside("cat /proc/net/unix")
	if !strings.Contains(sockets, ".X11-unix/X1") {
		t.Fatalf("the container's sockets: %s", sockets)
	}
	for _, name := range []string{"pulse", "pipewire", "jack", "snd", "dbus"} {
		if strings.Contains(strings.ToLower(sockets), name) {
			t.Errorf("a socket of %s: %s", name, sockets)
		}
	}
	if got := inside("ls /dev/snd /dev/dsp /run/user /run/pulse /var/run/pulse 2>/dev/null; true"); got != "" {
		t.Errorf("devices or sockets of sound: %s", got)
	}
	if got := inside("cat /proc/[0-9]*/comm 2>/dev/null; true"); strings.Contains(got, "pulse") || strings.Contains(got, "pipewire") || !strings.Contains(got, "Xvnc") {
		t.Errorf("processes: %s", got)
	}
	if got := u.run(t, "return (await navigator.mediaDevices.enumerateDevices()).filter(d => d.kind.startsWith('audio')).length"); got != "0" {
		t.Errorf("the page finds %s devices of sound", got)
	}
}

// The watermark's lines can be read on the screen and in the recording, and not
// where there is none.
func TestWebWatermark(t *testing.T) {
	w := web(t)
	read := func(s *webSite, p *image.RGBA) string {
		t.Helper()
		// Beside the page's text there is nothing but its colour and the mark.
		// The mark changes it by some thirty of 255.
		text, err := harness.Read(t.Context(), p, image.Rect(420, 0, p.Rect.Dx(), p.Rect.Dy()), func(c color.RGBA) byte {
			page := s.Color()
			off := max(page.R, c.R) - min(page.R, c.R)
			return byte(min(255, 10*int(max(off, max(page.G, c.G)-min(page.G, c.G), max(page.B, c.B)-min(page.B, c.B)))))
		})
		if err != nil {
			harness.Lacks(t, "%v", err)
		}
		return strings.ToUpper(text)
	}
	today := time.Now()
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"watermark": "SEEN BY {user}\n{date}"}})
	plain := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u, v := w.open(t, s), w.open(t, plain)
	u.shows(t, "the page")
	v.shows(t, "the page without")
	if got := read(plain, v.Screen.Picture()); strings.Contains(got, "SEEN") || strings.Contains(got, "DEMO") {
		t.Errorf("without a watermark the screen says %q", got)
	}
	marked := func(p *image.RGBA) error {
		got := read(s, p)
		date := func(at time.Time) bool { return strings.Contains(got, at.UTC().Format("2006-01-02")) }
		if !strings.Contains(got, "SEEN BY DEMO") || !date(today) && !date(time.Now()) {
			return fmt.Errorf("it says %q", got)
		}
		return nil
	}
	// The first pictures of a page need not be whole.
	if err := u.Screen.Wait(t.Context(), patience, "the mark is on the screen", marked); err != nil {
		t.Error(err)
	}
	u.end(t)
	if err := marked(w.recordedPicture(t, u.RecordingID, w.recordedLength(t, u.RecordingID))); err != nil {
		t.Errorf("the recording: %v", err)
	}
}
