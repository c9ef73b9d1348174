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

// Developer tools open beside the page where the session permits them, and close
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
	r.until(patience, "F12 opens them again", func() error {
		v.press(keyF12)
		return harness.Until(t.Context(), again, "the tools", part(page))
	})
	keep(t, r.what+"-tools.png", l.screen.Snapshot())
	s.Revision, s.Policy.DevTools = 2, false
	r.open(s)
	r.until(patience, "the tools are gone", whole(page))
	// The search field shows that the keys before it arrived.
	v.click(640, 300)
	v.press(keyF12)
	v.press(keyCtrl, keyShift, 'I')
	r.until(patience, "the search field, and nothing else", func() error {
		v.press(keyCtrl, 'f')
		return harness.Until(t.Context(), again, "search field", func() error {
			if got := share(l.screen.Snapshot(), page); got > 0.99 || got < 0.9 {
				return fmt.Errorf("share %.2f", got)
			}
			return nil
		})
	})
	v.press(keyEscape)
	r.until(patience, "only the page again", whole(page))
}
