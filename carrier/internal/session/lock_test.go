package session

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/shared/wire"
)

// Keys that would open files, sources, tools, windows or bars of the browser do
// nothing: every picture is the page. The browser's search field, which is
// permitted, shows that keys arrive.
func TestForbiddenKeys(t *testing.T) { each(t, testForbiddenKeys) }

func testForbiddenKeys(t *testing.T, r *rig) {
	r.start()
	r.warm(1)
	tn := r.tunnel()
	s := r.spec("con_keys")
	s.Policy.UploadMax, s.Policy.DownloadMax = 0, 0
	l := r.open(s)
	page := colour("/con_keys")
	whole := func(min float64) func() error {
		return func() error {
			if got := share(l.screen.Snapshot(), page); got < min {
				return fmt.Errorf("share %.3f", got)
			}
			return nil
		}
	}
	r.until(patience, "the page", whole(0.99))
	// What came before it is in the recording, not among what follows a key.
	r.until(patience, "the page in the recording", func() error {
		p, err := r.replay(s.ID)
		if err == nil && share(p, page) < 0.99 {
			err = errors.New("something else")
		}
		return err
	})
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	v.click(640, 500)
	for what, keys := range map[string][]uint32{"Ctrl+O": {keyCtrl, 'o'}, "Ctrl+U": {keyCtrl, 'u'}, "Ctrl+Shift+I": {keyCtrl, keyShift, 'I'}, "Ctrl+Shift+K": {keyCtrl, keyShift, 'K'},
		"Ctrl+Shift+C": {keyCtrl, keyShift, 'C'}, "F12": {keyF12}, "Ctrl+S": {keyCtrl, 's'}, "Ctrl+P": {keyCtrl, 'p'}, "Ctrl+H": {keyCtrl, 'h'}, "Ctrl+B": {keyCtrl, 'b'},
		"Ctrl+Shift+O": {keyCtrl, keyShift, 'O'}, "Ctrl+Shift+Y": {keyCtrl, keyShift, 'Y'}, "Ctrl+Shift+J": {keyCtrl, keyShift, 'J'}, "Ctrl+Shift+A": {keyCtrl, keyShift, 'A'},
		"Ctrl+N": {keyCtrl, 'n'}, "Ctrl+W, which leaves the last tab": {keyCtrl, 'w'}, "Ctrl+Shift+N": {keyCtrl, keyShift, 'N'}, "Ctrl+Shift+P": {keyCtrl, keyShift, 'P'},
		"Ctrl+J": {keyCtrl, 'j'}, "Ctrl+D": {keyCtrl, 'd'}, "F1": {keyF12 - 11}, "F10": {keyF12 - 2}, "Alt": {keyAlt}, "F11": {keyF11}, "Ctrl+L": {keyCtrl, 'l'}} {
		before := len(r.core.frames(s.ID))
		v.press(keys...)
		err := harness.Until(t.Context(), patience, "search field", func() error {
			v.press(keyCtrl, 'f')
			return harness.Until(t.Context(), 3*time.Second, "search field", func() error {
				if got := share(l.screen.Snapshot(), page); got > 0.99 {
					return fmt.Errorf("share %.3f", got)
				}
				return nil
			})
		})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		v.press(keyEscape)
		if err := harness.Until(t.Context(), patience, "only the page again", whole(0.99)); err != nil {
			keep(t, r.what+"-keys.png", l.screen.Snapshot())
			t.Fatalf("%s: %v", what, err)
		}
		for i, p := range r.pictures(s.ID, before) {
			if got := share(p, page); got < 0.93 {
				t.Errorf("%s: picture %d after it shows something else (%.2f)", what, i, got)
				if dir := os.Getenv("CAPONIER_SCREENSHOTS"); dir != "" {
					save(t, filepath.Join(dir, "keys.png"), p)
				}
				break
			}
		}
	}
}
