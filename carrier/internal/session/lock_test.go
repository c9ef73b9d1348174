package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/shared/wire"
)

// Addresses that show the browser's insides or the container's files, typed
// where the person has an address bar, lead nowhere; nor do the keys that would
// open such things. The page stays as it is, pixel by pixel.
func TestForbiddenPlaces(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	tn := r.tunnel()
	s := r.spec("con_bar")
	s.Policy.Mode = "bar"
	s.Policy.UploadMax, s.Policy.DownloadMax = 0, 0
	l := r.open(s)
	r.shows(l, colour("/con_bar"), 20*time.Second)
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	shots := os.Getenv("CAPONIER_SCREENSHOTS")
	visit := func(url string) {
		v.click(640, 500)
		v.press(keyEscape)
		before := l.screen.Snapshot()
		v.press(keyCtrl, 'l')
		// What is typed before the address bar has the focus goes to the page.
		r.until(10*time.Second, "address bar", func() error {
			if differ(before, l.screen.Snapshot()) < 100 {
				return errors.New("it is not open")
			}
			return nil
		})
		v.text(url)
		v.press(keyReturn)
	}
	n := 0
	// control goes to a page of a colour of its own: what was typed before has
	// been dealt with when it is there.
	control := func(what string) {
		t.Helper()
		n++
		path := fmt.Sprintf("/control%d", n)
		visit("http://target.test" + path)
		err := harness.Until(t.Context(), 15*time.Second, "picture", func() error {
			if got := share(l.screen.Snapshot(), colour(path)); got < 0.5 {
				return fmt.Errorf("share %.2f", got)
			}
			return nil
		})
		if err != nil {
			if shots != "" {
				save(t, filepath.Join(shots, fmt.Sprintf("lock%d.png", n)), l.screen.Snapshot())
			}
			t.Fatalf("the control after %s does not show: %v", what, err)
		}
	}
	control("nothing")
	places := []string{"about:config", "about:policies", "about:memory", "about:support", "about:preferences", "about:addons", "about:processes", "about:logins",
		"about:profiles", "about:debugging", "about:crashes", "about:downloads", "file:///etc/passwd", "file:///run/caponier/", "view-source:http://target.test/x",
		"view-source:about:config", "resource://gre/", "resource:///", "chrome://browser/content/browser.xhtml", "jar:file:///usr/lib/firefox-esr/omni.ja!/",
		"moz-extension://x/", "data:text/html,<body bgcolor=red>", "ftp://target.test/", "about:about", "about:cache"}
	for _, url := range places {
		before := len(r.core.frames(s.ID))
		page := colour(fmt.Sprintf("/control%d", n))
		visit(url)
		control(url)
		// Every picture in between was the old page or the new one, but for the
		// address bar.
		for i, share := range r.shares(s.ID, before, page, colour(fmt.Sprintf("/control%d", n))) {
			if share < 0.5 {
				t.Errorf("%s: picture %d after it shows something else (%.2f)", url, i, share)
				break
			}
		}
	}
	for what, keys := range map[string][]uint32{"Ctrl+O": {keyCtrl, 'o'}, "Ctrl+U": {keyCtrl, 'u'}, "Ctrl+Shift+I": {keyCtrl, keyShift, 'i'}, "Ctrl+Shift+K": {keyCtrl, keyShift, 'k'},
		"Ctrl+Shift+C": {keyCtrl, keyShift, 'c'}, "F12": {keyF12}, "Ctrl+S": {keyCtrl, 's'}, "Ctrl+P": {keyCtrl, 'p'}, "Ctrl+Shift+P": {keyCtrl, keyShift, 'p'},
		"Ctrl+H": {keyCtrl, 'h'}, "Ctrl+B": {keyCtrl, 'b'}, "Ctrl+Shift+O": {keyCtrl, keyShift, 'o'}, "Ctrl+Shift+Y": {keyCtrl, keyShift, 'y'}, "Shift+Escape": {keyShift, keyEscape},
		"Ctrl+Shift+J": {keyCtrl, keyShift, 'j'}, "Ctrl+Shift+A": {keyCtrl, keyShift, 'a'}, "Ctrl+Shift+Delete": {keyCtrl, keyShift, 0xffff}, "Alt": {keyAlt}, "F11": {keyF11}} {
		before := len(r.core.frames(s.ID))
		page := colour(fmt.Sprintf("/control%d", n))
		v.click(640, 500)
		v.press(keys...)
		control(what)
		for i, share := range r.shares(s.ID, before, page, colour(fmt.Sprintf("/control%d", n))) {
			if share < 0.5 {
				t.Errorf("%s: picture %d after it shows something else (%.2f)", what, i, share)
				break
			}
		}
	}
	_, requests := r.web.seen()
	for _, q := range requests {
		if !strings.Contains(q, "target.test") {
			t.Errorf("it asked for %q", q)
		}
	}
}
