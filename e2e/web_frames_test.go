package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image/png"
	"net/http"
	"strings"
	"testing"
	"time"

	"caponier/e2e/sites"
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

// recorded is the colour of the recording at a moment, at the right edge, where
// the page has nothing but its background.
func (w *webWorld) recorded(t *testing.T, recording string, at float64) (uint32, error) {
	var b []byte
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, fmt.Sprintf("/recordings/%s/picture?at=%.6f", recording, at), nil, &b); err != nil {
		return 0, err
	}
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		return 0, err
	}
	r, g, bl, _ := img.At(img.Bounds().Dx()-40, img.Bounds().Dy()/2).RGBA()
	return r>>8<<16 | g>>8<<8 | bl>>8, nil
}

// Who searches a recording for an event comes to the picture it belongs to. A
// page turns another colour; when that is on record it asks for an address, and
// turns again after that: so each event has one colour that it can be found
// with, however slow the machine is. The pauses are for clocks, which two nodes
// have.
func TestWebSearchFindsTheFrame(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	const marks = 6
	colour := func(i int) uint32 { return uint32(0x20+30*i)<<16 | uint32(0xe0-30*i)<<8 | 0x40 }
	for i := range marks {
		u.run(t, fmt.Sprintf(`document.documentElement.style.background = '#%06x'; return 1`, colour(i)))
		until(t, patience, "the colour is on record", func() error {
			got, err := w.recorded(t, u.RecordingID, 1e6)
			if err == nil && got != colour(i) {
				err = fmt.Errorf("the picture is %06x, not %06x", got, colour(i))
			}
			return err
		})
		u.run(t, fmt.Sprintf(`const pause = () => new Promise((go) => setTimeout(go, 1000));
			await pause(); await fetch('/collect?mark=%d', {method: 'POST'}); await pause(); return 1`, i))
	}
	u.end(t)
	w.film(t, u.RecordingID) // is complete
	for i := range marks {
		var page struct {
			Events []struct {
				T      float64
				Fields map[string]string
			}
		}
		path := fmt.Sprintf("/recordings/%s/timeline?kind=request&q=collect%%3Fmark%%3D%d", u.RecordingID, i)
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, path, nil, &page); err != nil {
			t.Fatal(err)
		}
		if len(page.Events) != 1 || !strings.Contains(page.Events[0].Fields["url"], fmt.Sprintf("mark=%d", i)) {
			t.Fatalf("mark %d is found as %+v", i, page.Events)
		}
		if got, err := w.recorded(t, u.RecordingID, page.Events[0].T); err != nil || got != colour(i) {
			t.Errorf("at mark %d, %.3f s, the picture is %06x, want %06x: %v", i, page.Events[0].T, got, colour(i), err)
		}
	}
}
