package recording

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

// parseFrames takes an answer of …/frames apart; done is up to when it is whole.
func parseFrames(t *testing.T, b []byte) (seqs []uint64, ats []time.Duration, done time.Duration) {
	t.Helper()
	for {
		if len(b) < 12 {
			t.Fatalf("frames without an end: %d bytes left", len(b))
		}
		n, at := int(binary.BigEndian.Uint32(b)), time.Duration(binary.BigEndian.Uint64(b[4:]))*time.Microsecond
		b = b[12:]
		if n == 0 {
			if len(b) > 0 {
				t.Fatalf("%d bytes after the end", len(b))
			}
			return seqs, ats, at
		}
		if !bytes.Equal(b[:n], noise(binary.BigEndian.Uint64(b[6:]), n-14)) {
			t.Fatal("a frame is not the one that was recorded")
		}
		seqs, ats, b = append(seqs, binary.BigEndian.Uint64(b[6:])), append(ats, at), b[n:]
	}
}

// webSession records 20 frames, one every second, of several sizes, and events.
func (w *web) webSession() *Recording {
	w.t.Helper()
	x := w.createWeb()
	start := w.row(x.ID).StartedAt
	w.clock.add(time.Minute)
	var frames []wire.WebRecord
	for i := range uint64(20) {
		frames = append(frames, frameRecord(i+1, start.Add(time.Duration(i)*time.Second), int(i%4)*70<<10))
	}
	must(w.t, x.Append("carrier a", 0, frames[:9]),
		x.Append("webproxy b", 0, []wire.WebRecord{
			webEvent(1, start.Add(3*time.Second), "request", "url", "https://wiki.example/secret-plan", "method", "GET", "status", "200"),
			webEvent(2, start.Add(40*time.Second), "blocked", "url", "https://evil.example/", "method", "POST"),
		}),
		x.Append("carrier a", 0, append(frames[9:], webEvent(21, start.Add(25*time.Second), "clipboard", "text", strings.Repeat("x", 5000)+"tail"))),
		x.Close())
	return w.row(x.ID)
}

func TestWebTimelineOverHTTP(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		x := w.webSession()
		path := "/recordings/" + x.ID
		var tl struct {
			Events []Moment
			Next   int
			More   bool
		}
		get := func(query string) {
			t.Helper()
			tl.Events, tl.More = nil, false
			must(t, json.Unmarshal([]byte(w.status("auditor", "GET", path+"/timeline"+query, 200)), &tl))
		}
		get("")
		if len(tl.Events) != 3 || tl.Events[0].Kind != "request" || tl.Events[1].Kind != "clipboard" || !tl.Events[1].Cut || tl.Events[2].T != 40 || tl.Next != 3 || tl.More {
			t.Errorf("timeline %.400v", fmt.Sprint(tl))
		}
		get("?limit=1")
		if len(tl.Events) != 1 || !tl.More || tl.Next != 1 {
			t.Errorf("first page %+v", tl)
		}
		get(fmt.Sprint("?limit=5&after=", tl.Next))
		if len(tl.Events) != 2 || tl.More {
			t.Errorf("second page %+v", tl)
		}
		get("?q=SECRET-plan")
		if len(tl.Events) != 1 || tl.Events[0].T != 3 {
			t.Errorf("search %+v", tl)
		}
		get("?kind=blocked,clipboard")
		if len(tl.Events) != 2 {
			t.Errorf("kinds %+v", tl)
		}
		// The events that other recordings have too: long values are whole.
		body := w.status("auditor", "GET", path+"/events", 200)
		if !strings.Contains(body, "xxtail") || strings.Index(body, "request") > strings.Index(body, "clipboard") {
			t.Errorf("events %.300s", body)
		}
		var k struct {
			Keyframes []Keyframe
			Frames    int
			Duration  float64 `json:"duration_s"`
			Live      bool
			Width     int
			Activity  []int64
			Idle      []Span
		}
		must(t, json.Unmarshal([]byte(w.status("auditor", "GET", path+"/keyframes", 200)), &k))
		if len(k.Keyframes) != 4 || k.Keyframes[1].T != 5 || k.Frames != 20 || k.Live || k.Width != 1280 || k.Duration != x.Seconds || k.Duration < 60 {
			t.Errorf("keyframes %+v", k)
		}
		if len(k.Idle) != 3 || k.Idle[0] != (Span{19, 25}) || k.Idle[1] != (Span{25, 40}) || k.Idle[2] != (Span{40, x.Seconds}) {
			t.Errorf("idle %+v", k.Idle)
		}
		end := time.Duration(x.Seconds*1e6+0.5) * time.Microsecond
		for query, want := range map[string]struct {
			first, last uint64
			done        time.Duration
		}{
			"":                 {1, 20, end},
			"?from=7.5&to=7.5": {6, 8, 7500 * time.Millisecond},
			"?from=5&to=5":     {6, 6, 5 * time.Second},
			"?after=5&to=9":    {7, 10, 9 * time.Second},
			"?after=30":        {0, 0, end},
			"?from=30":         {16, 20, end},
		} {
			seqs, ats, done := parseFrames(t, []byte(w.status("auditor", "GET", path+"/frames"+query, 200)))
			if len(seqs) == 0 {
				seqs = []uint64{0}
			}
			if seqs[0] != want.first || seqs[len(seqs)-1] != want.last || uint64(len(seqs)) != want.last-want.first+1 || done != want.done {
				t.Errorf("%s: frames %v at %v, up to %s", query, seqs, ats, done)
			}
		}
		for _, q := range []string{"?from=x", "?to=-1", "?from=NaN"} {
			w.status("auditor", "GET", path+"/frames"+q, 422)
		}
		if got := auditTypes(t, d, x.ID); strings.Count(got, "recording.played") != 4 {
			t.Errorf("audit %q", got) // timeline, events, keyframes, frames
		}
		// Who may not see it, and what has no picture.
		for _, p := range []string{"/timeline", "/keyframes", "/frames"} {
			w.status("stranger", "GET", path+p, 404)
			w.status("auditor", "GET", "/recordings/"+w.session("demo").ID+p, 409)
		}
	})
}

// A block changed after the recording was looked at is not shown.
func TestWebFramesTampered(t *testing.T) {
	w := newWeb(t, dbtest.SQLite(t))
	x := w.webSession()
	path := "/recordings/" + x.ID
	w.status("auditor", "GET", path+"/keyframes", 200)
	raw, err := os.ReadFile(w.path(x, kindRec))
	must(t, err)
	raw[len(raw)*3/4] ^= 1
	must(t, os.WriteFile(w.path(x, kindRec), raw, 0o600))
	_, body := w.call("auditor", "GET", path+"/frames")
	if len(body) >= 12 && binary.BigEndian.Uint32([]byte(body[len(body)-12:])) == 0 {
		t.Error("frames of a damaged file come with an end")
	}
	if v, err := w.Verify(t.Context(), x.ID); err != nil || v.Status != Damaged || !strings.Contains(v.Text, "block") {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

// A live recording is looked at while it grows; a request can wait for more.
func TestWebLive(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		x := w.createWeb()
		path := "/recordings/" + x.ID
		start := w.row(x.ID).StartedAt
		must(t, x.Append("carrier", 0, []wire.WebRecord{frameRecord(1, start, 10)}))
		seqs, _, done := parseFrames(t, []byte(w.status("auditor", "GET", path+"/frames", 200)))
		if len(seqs) != 1 {
			t.Fatalf("frames %v", seqs)
		}
		got := make(chan string, 1)
		go func() {
			_, body := w.call("auditor", "GET", fmt.Sprintf("%s/frames?wait=20&after=%f", path, done.Seconds()))
			got <- body
		}()
		w.until("somebody waits", func() bool {
			x.w.mu.Lock()
			defer x.w.mu.Unlock()
			return x.w.followers > 0
		})
		must(t, x.Append("carrier", 0, []wire.WebRecord{frameRecord(2, time.Now(), 10)}))
		if seqs, _, _ := parseFrames(t, []byte(<-got)); len(seqs) != 1 || seqs[0] != 2 {
			t.Errorf("frames %v", seqs)
		}
		if body := w.status("auditor", "GET", path+"/keyframes", 200); !strings.Contains(body, `"live":true`) {
			t.Errorf("keyframes %s", body)
		}
		must(t, x.Close())
		if body := w.status("auditor", "GET", path+"/keyframes", 200); !strings.Contains(body, `"live":false`) || !strings.Contains(body, `"complete"`) {
			t.Errorf("keyframes after the end %s", body)
		}
	})
}

// Frames of two nodes: one's differences are not shown upon the other's picture.
func TestPlayOrder(t *testing.T) {
	f := func(at int, src int16, key bool) webFrame {
		return webFrame{at: time.Duration(at), src: src, key: key}
	}
	got := playOrder([]webFrame{f(0, 0, false), f(1, 0, true), f(2, 0, false), f(5, 1, true), f(6, 1, false), f(3, 0, false), f(7, 0, false), f(8, 1, false), f(9, 0, true)})
	var at []int
	for _, x := range got {
		at = append(at, int(x.at))
	}
	if fmt.Sprint(at) != "[1 2 3 5 6 8 9]" {
		t.Errorf("order %v", at)
	}
}
