package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"caponier/e2e/sites"
)

// Somebody watches a session live, locks it, lets it go on, and ends it.
func TestWebWatchLockTerminate(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	watcher, err := w.core.Admin.Screen(t.Context(), u.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	// Nothing moves: both see the same, but for the pointer, which is drawn for
	// those who watch.
	const pointer = 32 * 32
	if err := watcher.Wait(t.Context(), patience, "the watcher sees what the user sees", func(p *image.RGBA) error {
		if n := differing(p, u.Screen.Picture()); n > pointer {
			return fmt.Errorf("%d pixels differ", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	u.note(t)
	typed := func(want string) func() error {
		return func() error {
			if got := u.run(t, "return (document.getElementById('note')||{value:'?'}).value"); got != want {
				return fmt.Errorf("the field holds %q", got)
			}
			return nil
		}
	}
	until(t, patience, "the field is there", typed(""))
	// Who watches cannot type.
	if err := errors.Join(watcher.Type("watcher"), u.Screen.Type("owner")); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "only the owner types", typed("owner"))
	if got, err := u.api.WebSession(t.Context(), u.ID); err != nil {
		t.Fatal(err)
	} else if got.Locked {
		t.Error("it is locked already")
	}
	before := u.Screen.Picture()
	conn := "/connections/" + u.ID
	if err := w.core.Admin.Do(t.Context(), http.MethodPost, conn+"/lock", map[string]string{"reason": "look at this", "block_new": "none"}, nil); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the session is locked", func() error {
		if got, err := u.api.WebSession(t.Context(), u.ID); err != nil || !got.Locked {
			return fmt.Errorf("%+v %w", got, err)
		}
		return nil
	})
	// The lock shows; from then on nothing gets through.
	if err := u.Screen.Wait(t.Context(), patience, "the owner is told", func(p *image.RGBA) error {
		// More than the blinking of the field's caret.
		if n := differing(p, before); n <= pointer {
			return fmt.Errorf("%d pixels are not as before", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := u.Screen.Type("locked"); err != nil {
		t.Fatal(err)
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodPost, conn+"/unlock", map[string]string{}, nil); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the session is unlocked", func() error {
		if got, err := u.api.WebSession(t.Context(), u.ID); err != nil || got.Locked {
			return fmt.Errorf("%+v %w", got, err)
		}
		return nil
	})
	until(t, patience, "what is typed arrives again, and what was typed while locked is gone", func() error {
		if err := u.Screen.Type("free"); err != nil {
			return err
		}
		got := u.run(t, "return document.getElementById('note').value")
		if rest, ok := strings.CutPrefix(got, "owner"); !ok || rest == "" || strings.Trim(rest, "fre") != "" {
			return errors.New(got)
		}
		return nil
	})
	if err := w.core.Admin.Do(t.Context(), http.MethodDelete, conn+"?reason=enough", nil, nil); err != nil {
		t.Fatal(err)
	}
	if why, err := u.Screen.Ended(t.Context(), patience); err != nil || why.Code != 4000 || !strings.Contains(why.Reason, "enough") {
		t.Errorf("the owner was told %+v %v", why, err)
	}
	if why, err := watcher.Ended(t.Context(), patience); err != nil || why.Code != 4000 {
		t.Errorf("the watcher was told %+v %v", why, err)
	}
	u.ended(t, patience)
}

// differing is how many pixels of two pictures differ.
func differing(a, b *image.RGBA) int {
	if a.Rect != b.Rect {
		return a.Rect.Dx() * a.Rect.Dy()
	}
	n := 0
	for i := 0; i < len(a.Pix); i += 4 {
		if !bytes.Equal(a.Pix[i:i+3], b.Pix[i:i+3]) {
			n++
		}
	}
	return n
}

// A grant that is taken away ends the session within seconds.
func TestWebRoleRevoked(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	var grants struct {
		Items []struct {
			ID       string `json:"id"`
			Target   string `json:"target"`
			TargetID string `json:"target_id"`
		} `json:"items"`
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/grants?limit=500", nil, &grants); err != nil {
		t.Fatal(err)
	}
	for _, g := range grants.Items {
		if g.Target == s.target || g.TargetID == s.target {
			if err := w.core.Admin.Delete(t.Context(), "/grants/"+g.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	began := time.Now()
	if why, err := u.Screen.Ended(t.Context(), patience); err != nil || why.Code != 4000 {
		t.Errorf("the owner was told %+v %v", why, err)
	}
	t.Logf("ended %v after the grant was taken away", time.Since(began).Round(time.Millisecond))
	u.ended(t, patience)
	if _, err := w.user.OpenWeb(t.Context(), s.target); err == nil {
		t.Error("it opens again")
	}
}

// A recording that was changed on disk is reported.
func TestWebRecordingTampered(t *testing.T) {
	w := web(t)
	for _, damage := range []struct {
		name string
		do   func(b []byte) []byte
	}{
		{"a flipped byte", func(b []byte) []byte { b[len(b)/2] ^= 1; return b }},
		{"cut", func(b []byte) []byte { return b[:len(b)*2/3] }},
	} {
		s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
		u := w.open(t, s)
		u.shows(t, "the page")
		u.end(t)
		verify := func() string {
			var report struct {
				Status string `json:"status"`
			}
			if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/recordings/"+u.RecordingID+"/verify", nil, &report); err != nil {
				return err.Error()
			}
			return report.Status
		}
		until(t, patience, "the recording holds together", func() error {
			if got := verify(); got != "complete" && got != "ok" {
				return errors.New(got)
			}
			return nil
		})
		file := w.recordingFile(t, u.RecordingID)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), s.origin) {
			t.Error("the recording is stored in clear")
		}
		if err := os.WriteFile(file, damage.do(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := verify(); got != "damaged" {
			t.Errorf("%s: %q", damage.name, got)
		}
	}
}
