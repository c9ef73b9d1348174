package e2e

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// An auditor looks for an address in a recording and sees the moment (FEATURES
// Z5), plays it, and takes a video away that is as long as the session (Z9).
func TestWebPlayer(t *testing.T) {
	needConsole(t)
	w := web(t)
	if _, err := exec.LookPath("ffprobe"); err != nil {
		harness.Lacks(t, "ffprobe")
	}
	s := w.site(t, sites.Config{Kind: sites.Form}, siteOptions{})
	u := w.open(t, s)
	u.signedIn(t)
	u.note(t)
	if err := u.Screen.Type("for the auditor"); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "what was typed arrives", func() error {
		if got := u.run(t, "return document.getElementById('note').value"); got != "for the auditor" {
			return errors.New(got)
		}
		return nil
	})
	u.end(t)
	var rec struct {
		Status  string
		Seconds float64 `json:"duration_s"`
	}
	until(t, patience, "the recording is complete", func() error {
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+u.RecordingID, nil, &rec); err != nil {
			return err
		}
		if rec.Status != "complete" {
			return errors.New(rec.Status)
		}
		return nil
	})
	video := filepath.Join(t.TempDir(), "session.mp4")
	t.Log(w.browse(t, "webplayer.mjs", 8*time.Minute, map[string]any{
		"recording": u.RecordingID, "path": "/note", "video": video, "out": filepath.Join(w.dir, "player"),
	}))
	out, err := exec.CommandContext(t.Context(), "ffprobe", "-v", "error", "-show_entries", "format=duration:stream=codec_name", "-of", "default=nk=1:nw=1", video).CombinedOutput()
	if err != nil {
		t.Fatalf("ffprobe: %v: %s", err, out)
	}
	said := strings.Fields(string(out))
	if len(said) != 2 || said[0] != "h264" {
		t.Fatalf("the video: %q", said)
	}
	if length, err := strconv.ParseFloat(said[1], 64); err != nil || math.Abs(length-rec.Seconds) > 0.25 {
		t.Error(fmt.Errorf("the video has %s s, the recording %.3f s: %w", said[1], rec.Seconds, err))
	}
}
