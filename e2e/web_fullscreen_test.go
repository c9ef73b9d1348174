package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// Keys that browsers keep for themselves reach the session in full screen
// (W19): pressed on a real screen, since only such keys could close a tab.
func TestWebViewerKeys(t *testing.T) {
	needConsole(t)
	for _, tool := range []string{"Xvnc", "xdotool"} {
		if _, err := exec.LookPath(tool); err != nil {
			harness.Lacks(t, "%s", tool)
		}
	}
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	w.warm(t)
	t.Log(w.browse(t, "webkeys.mjs", 8*time.Minute, map[string]any{
		"control": w.reins(t, s), "site": inside(s), "display": monitor(t), "out": filepath.Join(w.dir, "keys"),
	}))
}

// monitor is an X display that nobody looks at, for as long as the test runs.
func monitor(t *testing.T) string {
	t.Helper()
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dir, err := os.MkdirTemp("", "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd := exec.Command("Xvnc", "-displayfd", "3", "-geometry", "1280x800", "-depth", "24", "-SecurityTypes", "None", "-rfbunixpath", filepath.Join(dir, "rfb"), "-nolisten", "tcp", "-ac")
	cmd.ExtraFiles = []*os.File{wr}
	p, err := harness.Start("xvnc", t.TempDir(), cmd, false)
	wr.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	number, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("the display does not start: %v: %s", err, p.Output())
	}
	return ":" + strings.TrimSpace(number)
}
