package session

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"caponier/shared/wire"
)

// A session from the click to the end: a parked browser shows the target, the
// webproxy is told which session it is, the recording shows what is seen, and
// afterwards nothing is left.
func TestSession(t *testing.T) { each(t, testSession) }

func testSession(t *testing.T, r *rig) {
	r.start()
	r.warm(1)
	began := time.Now()
	s := r.spec("con_first")
	s.Width, s.Height = 1111, 777
	ack := r.m.put(t.Context(), s)
	if ack.Error != nil || !ack.Warm || ack.Revision != 1 {
		t.Fatalf("ack %+v", ack)
	}
	l := r.m.find(s.ID)
	r.shows(l, colour("/con_first"), patience)
	t.Logf("click to picture: %v", time.Since(began))

	lines, requests := r.web.seen()
	for _, line := range lines {
		if line != "CAPONIER/1 con_first "+s.Proxy.Key {
			t.Errorf("a connection began with %q", line)
		}
	}
	if len(requests) == 0 || requests[0] != "GET http://target.test/con_first" {
		t.Errorf("requests %q", requests)
	}
	for _, q := range requests {
		if !strings.Contains(q, "target.test/") {
			t.Errorf("the browser asked for %q", q)
		}
	}
	if ack := r.m.put(t.Context(), s); ack.Error != nil || ack.Warm || ack.Revision != 1 {
		t.Errorf("asked again: %+v", ack)
	}
	info, err := os.Stat(filepath.Join(r.dir, "state", "con_first.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the session's file: %v, %v", info, err)
	}

	// What is recorded becomes what is seen.
	r.until(patience, "the recording has the picture", func() error {
		replay, err := r.replay(s.ID)
		if err != nil {
			return err
		}
		if n := differ(replay, l.screen.Snapshot()); n != 0 {
			return fmt.Errorf("%d pixels differ", n)
		}
		return nil
	})
	id := l.slot.ID
	began = time.Now()
	if err := r.m.delete(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	t.Logf("ending took %v", time.Since(began))
	for _, c := range r.containers() {
		if c.ID == id {
			t.Errorf("the container is still there: %+v", c)
		}
	}
	if _, err := os.Stat(filepath.Join(r.dir, "state", "con_first.json")); !os.IsNotExist(err) {
		t.Errorf("the session's file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "run", l.slot.Name)); !os.IsNotExist(err) {
		t.Errorf("the slot's directory: %v", err)
	}
	if _, told := r.core.end(s.ID); told {
		t.Error("core was told of the end it asked for")
	}

	// The last frame on record is the last picture there was.
	if replay, err := r.replay(s.ID); err != nil {
		t.Errorf("the whole recording: %v", err)
	} else if n := differ(replay, l.screen.Snapshot()); n != 0 {
		t.Errorf("the recording's last frame differs from the last picture in %d pixels", n)
	}
	r.warm(1) // the pool is filled again, with a screen as large as was asked for
	r.m.pool.mu.Lock()
	defer r.m.pool.mu.Unlock()
	for name, screen := range r.m.pool.screens {
		if w, h := screen.Size(); w != s.Width || h != s.Height {
			t.Errorf("%s is parked with %dx%d, want %dx%d", name, w, h, s.Width, s.Height)
		}
	}
	if len(r.m.pool.screens) != 1 {
		t.Errorf("the pictures of %d browsers were taken ahead, want 1", len(r.m.pool.screens))
	}
}

// Two sessions at one time have a container each and see nothing of each other.
func TestTwoSessions(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	a, b := r.open(r.spec("con_a")), r.open(r.spec("con_b"))
	r.shows(a, colour("/con_a"), patience)
	r.shows(b, colour("/con_b"), patience)
	if a.slot.ID == b.slot.ID {
		t.Error("both are in one container")
	}
	running := map[string]bool{}
	for _, c := range r.containers() {
		running[c.ID] = c.Running
	}
	if !running[a.slot.ID] || !running[b.slot.ID] {
		t.Errorf("running: %v", running)
	}
	lines, _ := r.web.seen()
	keys := map[string]int{}
	for _, l := range lines {
		keys[l]++
	}
	if len(keys) != 2 {
		t.Errorf("connections of %v", keys)
	}
	want := []wire.WebState{{ID: "con_a", Revision: 1}, {ID: "con_b", Revision: 1}}
	if d := cmp.Diff(want, r.m.states().Sessions); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	for _, id := range []string{"con_a", "con_b"} {
		if err := r.m.delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}
