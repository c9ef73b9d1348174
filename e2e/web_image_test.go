package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// A carrier without the image says what to run, in its log, at core and to who
// wants to open something.
func TestWebImageMissing(t *testing.T) {
	w := web(t)
	dir, err := os.MkdirTemp("/run", "capw-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	text := strings.ReplaceAll(w.carrierTOML(dir, "caponier-nothing", 1), carrierDebug, "127.0.0.1:9472")
	c, err := w.edge(t.Context(), "carrier", "carrier-without", w.bin.Carrier, text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Proc.Kill)
	if _, err := w.core.Admin.WebReady(t.Context(), patience, c, func(e harness.WebEdge) error {
		if !strings.Contains(e.Web.Problem, "make images") || e.Web.Room != 0 {
			return fmt.Errorf("it says %+v", *e.Web)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if n := strings.Count(c.Proc.Output(), "image caponier-nothing is missing: run make images"); n != 1 {
		t.Errorf("its log says %d times what to run, want once", n)
	}
	// The other carrier serves on.
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page, from the carrier that has the image")
}
