package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/e2e/sites"
)

// goroutines is how many a program of the rig has.
func (w *webWorld) goroutines(t *testing.T, ns, addr string) int {
	t.Helper()
	n, err := w.metric(t.Context(), ns, addr, "go_goroutines")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// held counts what the programs of web sessions hold.
func (w *webWorld) held(t *testing.T) map[string]int {
	t.Helper()
	held := map[string]int{
		"goroutines of core": w.goroutines(t, "core", "127.0.0.1:9464"), "goroutines of the carrier": w.goroutines(t, "carrier", carrierDebug),
		"goroutines of the webproxy": w.goroutines(t, "webproxy", webproxyDebug),
	}
	for name, pid := range map[string]int{"core": w.core.Proc.PID(), "the carrier": w.carrier.Proc.PID(), "the webproxy": w.proxy.Proc.PID(), "dockerd": w.docker.Proc().PID()} {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		held["descriptors of "+name] = len(fds)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", w.docker.Proc().PID()))
	if err != nil {
		t.Fatal(err)
	}
	held["mounts"] = strings.Count(string(mounts), w.docker.Root()) + strings.Count(string(mounts), w.runDir)
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	held["sockets"] = strings.Count(string(sockets), w.runDir)
	for name, dir := range map[string]string{"the carrier's sockets": w.runDir, "the carrier": filepath.Join(w.carrier.Dir, "state"), "the webproxy": filepath.Join(w.proxy.Dir, "state")} {
		n := 0
		if err := filepath.WalkDir(dir, func(_ string, _ fs.DirEntry, err error) error { n++; return err }); err != nil {
			t.Fatal(err)
		}
		held["files of "+name] = n
	}
	volumes, err := w.docker.Docker(t.Context(), "volume", "ls", "-q")
	if err != nil {
		t.Fatal(err)
	}
	held["volumes"] = len(strings.Fields(volumes))
	return held
}

// Twenty sessions opened, used and closed leave nothing: no container, volume,
// mount, socket, file, descriptor or goroutine more than there were.
func TestWebCycles(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{still: true})
	cycle := func(t *testing.T) {
		u := w.openAs(t, w.user, s) // with a parked browser or a new one, as it comes
		u.shows(t, "the page")
		if code, text := u.files(t, http.MethodPut, "/x.txt", []byte("x")); code >= 300 {
			t.Errorf("put a file: %d %s", code, text)
		}
		u.end(t)
		u.Screen.Close()
	}
	t.Run("first", cycle) // what is made once
	w.nothingLeft(t)
	before := w.held(t)
	for i := range 10 {
		t.Run(fmt.Sprintf("round %d", i), func(t *testing.T) {
			for _, name := range []string{"a", "b"} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					cycle(t)
				})
			}
		})
	}
	w.nothingLeft(t)
	w.holdsNoMore(t, before)
}

// holdsNoMore waits until no more is held than before. Idle connections and
// timers go in their own time; pools of connections breathe, by less than one
// for each session of a test.
func (w *webWorld) holdsNoMore(t *testing.T, before map[string]int) {
	t.Helper()
	until(t, 2*time.Minute, "as much is held as before", func() error {
		var more []string
		for what, n := range w.held(t) {
			slack := 0
			if strings.HasPrefix(what, "goroutines") || strings.HasPrefix(what, "descriptors") || what == "sockets" {
				slack = 6
			}
			if n > before[what]+slack {
				more = append(more, fmt.Sprintf("%s: %d, before %d", what, n, before[what]))
			}
		}
		slices.Sort(more)
		if more != nil {
			return errors.New(strings.Join(more, "; "))
		}
		return nil
	})
}
