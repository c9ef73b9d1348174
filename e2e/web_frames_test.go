package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"caponier/e2e/sites"
	"caponier/shared/rfb"
)

// shot is one frame of a recording.
type shot struct {
	at    time.Duration // since the recording's start
	frame []byte
}

// film reads the frames of a recording, and when it began.
func (w *webWorld) film(t *testing.T, recording string) (began time.Time, shots []shot) {
	t.Helper()
	var row struct {
		Status    string
		StartedAt time.Time `json:"started_at"`
	}
	until(t, patience, "the recording is complete", func() error {
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+recording, nil, &row); err != nil {
			return err
		}
		if row.Status != "complete" {
			return errors.New(row.Status)
		}
		return nil
	})
	for from := "from=0"; ; {
		var b []byte
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+recording+"/frames?"+from, nil, &b); err != nil {
			t.Fatal(err)
		}
		n := 0
		for len(b) >= 12 {
			size, at := int(binary.BigEndian.Uint32(b)), time.Duration(binary.BigEndian.Uint64(b[4:]))*time.Microsecond
			if b = b[12:]; size == 0 {
				return row.StartedAt, shots // all are here
			}
			if len(b) < size {
				break
			}
			shots, b, n = append(shots, shot{at, b[:size]}), b[size:], n+1
		}
		if n == 0 {
			t.Fatalf("the frames end after %d without their end", len(shots))
		}
		from = fmt.Sprintf("after=%.6f", shots[len(shots)-1].at.Seconds())
	}
}

// widest is the longest time without a frame between two moments.
func widest(shots []shot, from, to time.Duration) time.Duration {
	gap, last := time.Duration(0), from
	for _, s := range shots {
		if s.at > from && s.at < to {
			gap, last = max(gap, s.at-last), s.at
		}
	}
	return max(gap, to-last)
}

func TestWidest(t *testing.T) {
	shots := []shot{{at: 1}, {at: 2}, {at: 6}, {at: 7}}
	for _, c := range [][3]time.Duration{{0, 8, 4}, {1, 3, 1}, {2, 6, 4}, {3, 5, 2}, {7, 20, 13}, {0, 2, 1}} {
		if got := widest(shots, c[0], c[1]); got != c[2] {
			t.Errorf("between %d and %d: %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

// Who searches a recording for an event comes to the picture it belongs to: a
// page turns another colour and, once that is on its screen, asks for an
// address; the event of that is within 200 ms of the frame with the colour.
func TestWebSearchFindsTheFrame(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	const marks = 9
	colour := func(i int) uint32 { return uint32(0x20+20*i)<<16 | uint32(0xe0-20*i)<<8 | 0x40 }
	for i := range marks {
		u.run(t, fmt.Sprintf(`document.documentElement.style.background = '#%06x';
			for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
			await fetch('/collect?mark=%d', {method: 'POST'});
			await new Promise((go) => setTimeout(go, 500)); return 1`, colour(i), i))
	}
	u.end(t)
	_, shots := w.film(t, u.RecordingID)
	// When each colour came to the right edge, where the page has nothing else.
	seen := make([]time.Duration, marks)
	var replay rfb.Replay
	for _, f := range shots {
		if err := replay.Apply(f.frame); err != nil {
			t.Fatal(err)
		}
		width, height := replay.Picture.Size()
		at := replay.Picture.Row(height/2, width-40, width-39)[0] & 0xffffff
		for i := range marks {
			if seen[i] == 0 && at == colour(i) {
				seen[i] = f.at
			}
		}
	}
	var offsets []time.Duration
	for i := range marks {
		var page struct {
			Events []struct {
				T      float64
				Fields map[string]string
			}
		}
		path := fmt.Sprintf("/recordings/%s/timeline?kind=request&q=%s", u.RecordingID, fmt.Sprintf("collect%%3Fmark%%3D%d", i))
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, path, nil, &page); err != nil {
			t.Fatal(err)
		}
		if len(page.Events) != 1 || !strings.Contains(page.Events[0].Fields["url"], fmt.Sprintf("mark=%d", i)) {
			t.Fatalf("mark %d is found as %+v", i, page.Events)
		}
		if seen[i] == 0 {
			t.Fatalf("the recording never shows colour %d", i)
		}
		// It is noted when it was answered.
		var ms int
		if _, err := fmt.Sscan(page.Events[0].Fields["ms"], &ms); err != nil {
			t.Fatalf("mark %d: %v", i, err)
		}
		event := time.Duration(page.Events[0].T*float64(time.Second)) - time.Duration(ms)*time.Millisecond
		offsets = append(offsets, (event - seen[i]).Abs())
	}
	slices.Sort(offsets)
	t.Logf("between event and frame: %v", offsets)
	// A busy machine draws some of them late; clocks that disagree, or a search
	// that misses, show in all.
	if got := offsets[marks/3]; got >= 200*time.Millisecond {
		t.Errorf("frames are %v from their events, want less than 200 ms", got)
	}
}
