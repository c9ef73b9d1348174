package e2e

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// Keys that would open tools, windows, files or the browser's own pages do
// nothing that the page does not see.
func TestWebForbiddenKeys(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	whole := harness.Share(u.Screen.Picture(), s.Color())
	for name, keys := range map[string][]uint32{
		"F12": {harness.KeyF1 + 11}, "Ctrl+Shift+I": {harness.KeyControl, harness.KeyShift, 'I'}, "Ctrl+Shift+K": {harness.KeyControl, harness.KeyShift, 'K'},
		"Ctrl+U": {harness.KeyControl, 'u'}, "Ctrl+O": {harness.KeyControl, 'o'}, "Ctrl+Shift+P": {harness.KeyControl, harness.KeyShift, 'P'},
		"Ctrl+Shift+Q": {harness.KeyControl, harness.KeyShift, 'Q'}, "Alt+F4": {harness.KeyAlt, harness.KeyF1 + 3}, "Shift+F7": {harness.KeyShift, harness.KeyF1 + 6},
		"Ctrl+Alt+F1": {harness.KeyControl, harness.KeyAlt, harness.KeyF1}, "Ctrl+J": {harness.KeyControl, 'j'}, "Ctrl+Shift+A": {harness.KeyControl, harness.KeyShift, 'A'},
	} {
		if err := u.Screen.Press(keys...); err != nil {
			t.Fatal(err)
		}
		if got := u.run(t, "await new Promise(f => setTimeout(f, 400)); return document.title + ' ' + location.pathname"); got != "open /home" {
			t.Errorf("%s: the page is %q", name, got)
		}
		if share := harness.Share(u.Screen.Picture(), s.Color()); share < 0.9*whole {
			t.Errorf("%s: %.0f%% of the screen is the page, before %.0f%%", name, 100*share, 100*whole)
			u.Screen.Save(fmt.Sprintf("%s/%s.png", os.TempDir(), name))
			if err := u.Screen.Press(harness.KeyEscape); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The control: a key of the page does what the page says.
	u.run(t, "addEventListener('keydown', e => { document.title = e.key }); return 1")
	if err := u.Screen.Type("k"); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the page sees keys", func() error {
		if got := u.run(t, "return document.title"); got != "k" {
			return errors.New(got)
		}
		return nil
	})
}
