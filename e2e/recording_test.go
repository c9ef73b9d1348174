package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
)

type recordingItem struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Target string `json:"target_name"`
}

// recordings lists them, newest first.
func (w *world) recordings(t *testing.T) []recordingItem {
	t.Helper()
	var out struct {
		Items []recordingItem `json:"items"`
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings", nil, &out); err != nil {
		t.Fatal(err)
	}
	return out.Items
}

func (w *world) cast(t *testing.T, id string) string {
	t.Helper()
	var b []byte
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+id+"/asciicast", nil, &b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A shell is recorded, plays back, is found by search; its file says nothing
// in clear, and one flipped byte or a cut is reported.
func TestRecordingPlaysAndShowsTampering(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	word := "needle-in-the-recording"
	for range 2 {
		s := w.shell(t, dbA)
		s.say(t, "echo "+word+"; exit")
		s.ended(t, patience)
	}
	var list []recordingItem
	until(t, patience, "two complete recordings", func() error {
		list = slices.DeleteFunc(w.recordings(t), func(r recordingItem) bool { return r.Status != "complete" })
		if len(list) != 2 {
			return fmt.Errorf("%+v", w.recordings(t))
		}
		return nil
	})
	for _, r := range list {
		if text := w.cast(t, r.ID); !strings.HasPrefix(text, `{"version": 2`) && !strings.HasPrefix(text, `{"version":2`) || !strings.Contains(text, word) {
			t.Errorf("%s does not play: %.300s", r.ID, text)
		}
	}
	var hits struct {
		Items []struct {
			Recording recordingItem    `json:"recording"`
			Hits      []map[string]any `json:"hits"`
		} `json:"items"`
	}
	until(t, patience, "the search finds it", func() error {
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/search?q="+word, nil, &hits); err != nil {
			return err
		}
		if len(hits.Items) != 2 || len(hits.Items[0].Hits) == 0 {
			return fmt.Errorf("%+v", hits)
		}
		return nil
	})
	// What lies on disk is sealed: flip one byte in one, cut the other.
	for i, damage := range []struct {
		name string
		do   func(b []byte) []byte
		text string // of the report
	}{
		{"a flipped byte", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, "damaged: it does not authenticate"},
		{"cut", func(b []byte) []byte { return b[:len(b)*2/3] }, "truncated: "},
	} {
		file := w.recordingFile(t, list[i].ID)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), word) {
			t.Errorf("%s is stored in clear", list[i].ID)
		}
		if err := os.WriteFile(file, damage.do(b), 0o600); err != nil {
			t.Fatal(err)
		}
		var report map[string]any
		if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/recordings/"+list[i].ID+"/verify", nil, &report); err != nil {
			t.Fatal(err)
		}
		if report["status"] != "damaged" || !strings.Contains(fmt.Sprint(report["text"]), damage.text) {
			t.Errorf("%s is not reported: %v", damage.name, report)
		}
	}
}

// recordingFile finds the biggest file of a recording.
func (w *world) recordingFile(t *testing.T, id string) string {
	t.Helper()
	var found string
	var size int64
	root := filepath.Join(w.core.Dir, "state", "recordings")
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.Contains(path, id) {
			return err
		}
		if st, err := d.Info(); err == nil && st.Size() > size {
			found, size = path, st.Size()
		}
		return nil
	})
	if err != nil || found == "" {
		t.Fatalf("no file of %s below %s: %v", id, root, err)
	}
	return found
}

// Core dies in the middle of a session: what was shown is there, playable, and
// marked incomplete; the connection's record says why it ended.
func TestCoreKilledLeavesPlayableRecording(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	s := w.shell(t, dbA)
	word := "shown-before-the-crash"
	s.say(t, "echo "+word)
	if err := s.proc.WaitOutput(t.Context(), patience, word); err != nil {
		t.Fatal(err)
	}
	// What was written is on disk within a second (recording.Writer).
	grown := time.Now().Add(1200 * time.Millisecond)
	until(t, 3*time.Second, "the recording is on disk", func() error {
		if time.Now().Before(grown) {
			return errors.New("not yet")
		}
		return nil
	})
	w.core.Proc.Kill()
	s.ended(t, patience)
	if err := w.core.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.core.LoginAdmin(t.Context()); err != nil {
		t.Fatal(err)
	}
	var r recordingItem
	until(t, patience, "the recording is marked incomplete", func() error {
		list := w.recordings(t)
		if len(list) != 1 || list[0].Status != "incomplete" {
			return fmt.Errorf("%+v", list)
		}
		r = list[0]
		return nil
	})
	if text := w.cast(t, r.ID); !strings.Contains(text, word) {
		t.Errorf("what was shown before the crash is missing: %.500s", text)
	}
	var conns struct {
		Items []struct {
			State     string `json:"state"`
			EndReason string `json:"end_reason"`
		} `json:"items"`
	}
	until(t, patience, "the connection's record is closed", func() error {
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/connections", nil, &conns); err != nil {
			return err
		}
		if len(conns.Items) != 1 || conns.Items[0].EndReason != "core_lost" {
			return fmt.Errorf("%+v", conns.Items)
		}
		return nil
	})
	if _, err := w.core.Admin.Online(t.Context(), patience, "vpc-a", w.ext["a"].Proc); err != nil {
		t.Fatal(err)
	}
	w.mustSSH(t, dbA, "true")
}

// The audit log tells the story and verifies; an edited row is found.
func TestAuditTellsAndVerifies(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}, tampers: true})
	w.mustSSH(t, dbA, "true")
	for _, want := range []string{"connection.requested", "connection.closed", "edge.enrolled", "edge.connected"} {
		w.audited(t, "type="+want, want, func(e harness.Event) bool { return e.Type == want && e.Outcome == "ok" })
	}
	if out, err := w.core.Tool(t.Context(), "", "--config", w.core.File, "audit", "verify"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.core.Proc.Stop(10 * time.Second)
	db := filepath.Join(w.core.Dir, "state", "core.db")
	r := w.runIn(t, "core", "", nil, "sqlite3", db, "select name from sqlite_master where type = 'table' and name like 'audit%'")
	if r.code != 0 || !strings.Contains(r.out, "audit_events") {
		t.Fatal(r)
	}
	if r := w.runIn(t, "core", "", nil, "sqlite3", db, "delete from audit_events where seq = (select max(seq) / 2 from audit_events)"); r.code != 0 {
		t.Fatal(r)
	}
	if out, err := w.core.Tool(t.Context(), "", "--config", w.core.File, "audit", "verify"); err == nil {
		t.Errorf("a deleted row is not found: %s", out)
	}
}
