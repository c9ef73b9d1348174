package session

import (
	"fmt"
	"image/color"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/shared/wire"
)

// again is how long one try of what is tried again may take.
const again = 20 * time.Second

// Developer tools open where the session permits them, and work; they close
// when that is over. What F12 does elsewhere is TestForbiddenKeys's.
func TestDeveloperTools(t *testing.T) { each(t, testDeveloperTools) }

func testDeveloperTools(t *testing.T, r *rig) {
	r.start()
	r.warm(1)
	tn := r.tunnel()
	s := r.spec("con_tools")
	s.Policy.DevTools = true
	l := r.open(s)
	page := colour("/con_tools")
	r.shows(l, page, patience)
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	v.click(640, 300)
	part := func(c color.RGBA) func() error {
		return func() error {
			if got := share(l.screen.Snapshot(), c); got < 0.3 || got > 0.9 {
				return fmt.Errorf("share %.2f", got)
			}
			return nil
		}
	}
	whole := func(c color.RGBA) func() error {
		return func() error {
			if got := share(l.screen.Snapshot(), c); got < 0.99 {
				return fmt.Errorf("share %.2f", got)
			}
			return nil
		}
	}
	r.until(patience, "F12 opens the tools beside the page", func() error {
		v.press(keyF12)
		return harness.Until(t.Context(), again, "the tools", part(page))
	})
	r.until(patience, "F12 closes them", func() error {
		v.press(keyF12)
		return harness.Until(t.Context(), again, "the page alone", whole(page))
	})
	console := []uint32{keyCtrl, keyShift, 'K'}
	if r.what == wire.Chromium {
		console[2] = 'J'
	}
	// What is typed in the console acts on the page.
	other := color.RGBA{0xff, 0x00, 0xff, 0xff}
	r.until(patience, "the console opens", func() error {
		v.press(console...)
		return harness.Until(t.Context(), again, "the console", part(page))
	})
	r.until(patience, "the console changes the page", func() error {
		v.text("document.body.style.background='#ff00ff'")
		v.press(keyReturn)
		return harness.Until(t.Context(), again, "the page's new colour", part(other))
	})
	keep(t, r.what+"-tools.png", l.screen.Snapshot())
	s.Revision, s.Policy.DevTools = 2, false
	r.open(s)
	r.until(patience, "the tools are gone", whole(other))
	// The search field shows that the keys before it arrived.
	v.click(640, 300)
	v.press(keyF12)
	v.press(keyCtrl, keyShift, 'I')
	r.until(patience, "the search field, and nothing else", func() error {
		v.press(keyCtrl, 'f')
		return harness.Until(t.Context(), again, "search field", func() error {
			if got := share(l.screen.Snapshot(), other); got > 0.99 || got < 0.9 {
				return fmt.Errorf("share %.2f", got)
			}
			return nil
		})
	})
	v.press(keyEscape)
	r.until(patience, "only the page again", whole(other))
}
