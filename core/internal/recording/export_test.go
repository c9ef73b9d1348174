package recording

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/e2e/harness"
	"caponier/shared/rfb"
	"caponier/shared/wire"
)

// colours are those of the pictures that film records, one after another.
var colours = []uint32{0xc01010, 0x10c010, 0x1010c0, 0xc0c010, 0x10c0c0}

// film records w×h pictures of one colour each, at the given times, with the
// pointer in the corner, and an event at each.
func (r *rig) film(w, h int, at ...time.Duration) *Recording {
	r.t.Helper()
	x := r.createWeb()
	start := r.row(x.ID).StartedAt
	r.clock.add(at[len(at)-1] + time.Second)
	fb := rfb.NewFramebuffer(w, h)
	rec := rfb.NewRecorder(rfb.NewEncoder(), rfb.DefaultKeyframes())
	fb.SetCursor(rfb.Cursor{Hot: image.Pt(1, 1), Width: 2, Height: 2, RGBA: bytes.Repeat([]byte{255, 255, 255, 255}, 4)})
	var recs []wire.WebRecord
	for i, t := range at {
		must(r.t, fb.Fill(fb.Bounds(), colours[i%len(colours)]))
		fb.Commit()
		frame, _ := rec.Frame(fb, &image.Point{X: 3, Y: 3}, t)
		recs = append(recs, wire.WebRecord{Seq: uint64(2*i + 1), At: start.Add(t).UnixMicro(), Kind: wire.WebFrame, Payload: frame},
			webEvent(uint64(2*i+2), start.Add(t), "request", "method", "GET", "url", fmt.Sprintf("https://wiki.example/%d", i)))
	}
	must(r.t, x.Append("carrier", 0, recs), x.Close())
	return r.row(x.ID)
}

// near reports whether a colour is the wanted one, give or take an encoder.
func near(c color.Color, want uint32) bool {
	r, g, b, _ := c.RGBA()
	for i, v := range []uint32{r, g, b} {
		if d := int(v>>8) - int(want>>(16-8*i)&255); d > 30 || d < -30 {
			return false
		}
	}
	return true
}

func TestPicture(t *testing.T) {
	w := newWeb(t, dbtest.SQLite(t))
	x := w.film(320, 200, 0, time.Second, 30*time.Second, 31*time.Second)
	path := "/recordings/" + x.ID + "/picture?at="
	for at, want := range map[string]uint32{"0": colours[0], "0.999": colours[0], "1": colours[1], "29.5": colours[1], "30": colours[2], "100": colours[3]} {
		resp, body := w.call("auditor", "GET", path+at)
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "image/png" {
			t.Fatalf("at %s: %d %s", at, resp.StatusCode, body)
		}
		img, err := png.Decode(strings.NewReader(body))
		must(t, err)
		if img.Bounds() != image.Rect(0, 0, 320, 200) || !near(img.At(100, 100), want) || !near(img.At(3, 3), 0xffffff) {
			t.Errorf("at %s: %v, colour %v, pointer %v", at, img.Bounds(), img.At(100, 100), img.At(3, 3))
		}
	}
	w.status("stranger", "GET", path+"1", 404)
	w.mu.Lock()
	n := len(w.shots)
	w.mu.Unlock()
	if n != 4 {
		t.Errorf("%d pictures kept, want 4", n)
	}
	// What cannot be decoded is told, not shown.
	bad := w.createWeb()
	must(t, bad.Append("carrier", 0, []wire.WebRecord{frameRecord(1, time.Now(), 100)}), bad.Close())
	if body := w.status("auditor", "GET", "/recordings/"+bad.ID+"/picture?at=9", 409); !strings.Contains(body, "no_picture") {
		t.Errorf("a broken frame: %s", body)
	}
	if _, body := w.call("auditor", "GET", "/recordings/"+w.film(64, 64, time.Second).ID+"/picture?at=0"); !strings.HasPrefix(body, "\x89PNG") {
		t.Errorf("before the first frame: %.200s", body)
	}
	empty := w.createWeb()
	must(t, empty.Close())
	w.status("auditor", "GET", "/recordings/"+empty.ID+"/picture?at=9", 404)
}

// post sends a JSON body.
func (w *web) post(who, path, body string, want int) string {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), "POST", w.srv.URL+"/api/v1"+path, strings.NewReader(body))
	must(w.t, err)
	req.Header.Set("Authorization", "Bearer "+who)
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.srv.Client().Do(req)
	must(w.t, err)
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	must(w.t, err)
	if resp.StatusCode != want {
		w.t.Errorf("%s POST %s %s: %d, want %d: %s", who, path, body, resp.StatusCode, want, b.String())
	}
	return b.String()
}

// made asks for a video and waits until it is made.
func (w *web) made(rec, body string) (Export, string) {
	w.t.Helper()
	var x Export
	must(w.t, json.Unmarshal([]byte(w.post("auditor", "/recordings/"+rec+"/exports", body, 202)), &x))
	path := "/recordings/" + rec + "/exports/" + x.ID
	for deadline := time.Now().Add(5 * patience); x.State != "done" && x.State != "failed"; {
		if time.Now().After(deadline) {
			w.t.Fatalf("export %+v", x)
		}
		<-time.After(20 * time.Millisecond)
		must(w.t, json.Unmarshal([]byte(w.status("auditor", "GET", path, 200)), &x))
	}
	return x, path
}

// probe is what ffprobe says about a video.
type probe struct {
	Streams []struct {
		Codec  string `json:"codec_name"`
		Width  int
		Height int
	}
	Format struct {
		Name     string `json:"format_name"`
		Duration string
	}
}

func TestExport(t *testing.T) {
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		harness.Lacks(t, "ffmpeg")
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		w.run(w.Store)
		// 90 s, nearly all of them idle; an odd size.
		film := w.film(321, 201, 0, 2*time.Second, 60*time.Second, 60500*time.Millisecond, 90*time.Second)
		for _, c := range []struct {
			body, codec, container string
			height                 int
			seconds                float64
			colours                map[float64]uint32
		}{
			{`{"format":"webm"}`, "vp9", "matroska,webm", 202, film.Seconds, map[float64]uint32{1: colours[0], 30: colours[1], 60.2: colours[2], 80: colours[3]}},
			{`{"format":"mp4","events":true}`, "h264", "mov,mp4,m4a,3gp,3g2,mj2", 202 + lineHeight, film.Seconds, map[float64]uint32{1: colours[0], 59: colours[1], 89: colours[3]}},
			{`{"format":"mp4","from":58.25,"to":61.25}`, "h264", "mov,mp4,m4a,3gp,3g2,mj2", 202, 3, map[float64]uint32{0.5: colours[1], 1.9: colours[2], 2.8: colours[3]}},
		} {
			x, path := w.made(film.ID, c.body)
			if x.State != "done" || x.Progress != 1 || x.Size == 0 {
				t.Fatalf("%s: %+v", c.body, x)
			}
			stored := fileName(x.ID, kindExport, w.exports[0].stored)
			raw, err := os.ReadFile(filepath.Join(w.dir, stored))
			must(t, err)
			resp, body := w.call("auditor", "GET", path+"/file")
			if resp.StatusCode != 200 || int64(len(body)) != x.Size {
				t.Fatalf("file: %d, %d bytes", resp.StatusCode, len(body))
			}
			for at := 0; at+16 <= len(body); at += 512 {
				if bytes.Contains(raw, []byte(body[at:at+16])) {
					t.Fatal("the stored video is readable")
				}
			}
			file := filepath.Join(t.TempDir(), "video")
			must(t, os.WriteFile(file, []byte(body), 0o600))
			out, err := exec.CommandContext(t.Context(), "ffprobe", "-v", "error", "-show_format", "-show_streams", "-of", "json", file).Output()
			must(t, err)
			var p probe
			must(t, json.Unmarshal(out, &p))
			length, err := strconv.ParseFloat(p.Format.Duration, 64)
			must(t, err)
			if len(p.Streams) != 1 || p.Streams[0].Codec != c.codec || p.Format.Name != c.container || p.Streams[0].Width != 322 || p.Streams[0].Height != c.height {
				t.Errorf("%s: %+v", c.body, p)
			}
			if length < c.seconds-0.05 || length > c.seconds+0.2 {
				t.Errorf("%s: %.3f s, want %.3f", c.body, length, c.seconds)
			}
			for at, want := range c.colours {
				shot, err := exec.CommandContext(t.Context(), "ffmpeg", "-v", "error", "-i", file,
					"-vf", fmt.Sprintf("fps=10,select=eq(n\\,%d)", int(at*10)), "-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "-").Output()
				must(t, err)
				img, err := png.Decode(bytes.NewReader(shot))
				must(t, err)
				if !near(img.At(150, 100), want) {
					t.Errorf("%s at %.1f s: %v, want %06x", c.body, at, img.At(150, 100), want)
				}
			}
			w.status("stranger", "GET", path, 404)
			w.status("auditor2", "GET", path, 404) // may see the recording, but it is not his
			w.status("auditor", "DELETE", path, 204)
			w.status("auditor", "GET", path, 404)
			if _, err := os.Stat(filepath.Join(w.dir, stored)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a deleted video: %v", err)
			}
		}
		if got := auditTypes(t, d, film.ID); strings.Count(got, "recording.exported") != 6 {
			t.Errorf("audit %q", got)
		}
		w.post("auditor", "/recordings/"+film.ID+"/exports", `{"format":"gif"}`, 422)
		w.post("auditor", "/recordings/"+film.ID+"/exports", `{"format":"mp4","from":1000}`, 422)
		w.post("stranger", "/recordings/"+film.ID+"/exports", `{"format":"mp4"}`, 404)
	})
}

// Videos are bounded in number, go after an hour, with their recording, and
// with the core that made them.
func TestExportLife(t *testing.T) {
	if _, err := exec.LookPath("ffmpeg"); err != nil {
		harness.Lacks(t, "ffmpeg")
	}
	w := newWeb(t, dbtest.SQLite(t))
	film := w.film(64, 64, 300*time.Millisecond, time.Second) // the picture comes late
	// Nobody makes them yet.
	for range maxOwnExports {
		w.post("auditor", "/recordings/"+film.ID+"/exports", `{"format":"webm"}`, 202)
	}
	w.post("auditor", "/recordings/"+film.ID+"/exports", `{"format":"webm"}`, 429)
	var all struct{ Items []Export }
	list := func() []Export {
		t.Helper()
		all.Items = nil
		must(t, json.Unmarshal([]byte(w.status("auditor", "GET", "/recordings/"+film.ID+"/exports", 200)), &all))
		return all.Items
	}
	for _, x := range list()[1:] {
		if x.State != "waiting" {
			t.Errorf("state %s", x.State)
		}
		w.status("auditor", "GET", "/recordings/"+film.ID+"/exports/"+x.ID+"/file", 409)
		w.status("auditor", "DELETE", "/recordings/"+film.ID+"/exports/"+x.ID, 204)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	videos := func() int {
		found, err := filepath.Glob(filepath.Join(w.dir, "*", "*.cvideo"))
		must(t, err)
		return len(found)
	}
	w.until("the video is made", func() bool { x := list(); return len(x) == 1 && x[0].State == "done" })
	w.clock.add(exportFor + time.Minute)
	must(t, w.dropExports(false))
	if n := videos(); n != 0 || len(list()) != 0 {
		t.Errorf("%d videos an hour later, %d listed", n, len(list()))
	}
	w.made(film.ID, `{"format":"webm"}`)
	must(t, w.forget(film.ID))
	if n := videos(); n != 0 || len(list()) != 0 {
		t.Errorf("%d videos of a recording that is gone, %d listed", n, len(list()))
	}
	w.made(film.ID, `{"format":"webm"}`)
	cancel()
	must(t, <-done)
	if n := videos(); n != 0 {
		t.Errorf("%d videos after the end", n)
	}
}

// A restart of core forgets the videos that were asked for; who asks after one
// is told to ask again, and can.
func TestExportAfterRestart(t *testing.T) {
	w := newWeb(t, dbtest.SQLite(t))
	film := w.film(64, 64, 0, time.Second)
	var x Export
	must(t, json.Unmarshal([]byte(w.post("auditor", "/recordings/"+film.ID+"/exports", `{"format":"webm"}`, 202)), &x))
	path := "/recordings/" + film.ID + "/exports"
	w.status("auditor", "GET", path+"/"+x.ID, 200)
	again := serveRig(w.second())
	for _, part := range []string{"", "/file"} {
		if body := again.status("auditor", "GET", path+"/"+x.ID+part, 404); !strings.Contains(body, "restart of core. Ask for it again.") {
			t.Errorf("%s: %s", part, body)
		}
	}
	if body := again.status("auditor", "GET", path, 200); !strings.Contains(body, `"items":[]`) {
		t.Errorf("listed: %s", body)
	}
	again.post("auditor", path, `{"format":"webm"}`, 202)
}

// Without ffmpeg the answer says what to do.
func TestExportWithoutFFmpeg(t *testing.T) {
	w := newWeb(t, dbtest.SQLite(t))
	film := w.film(64, 64, 0, time.Second)
	w.cfg.FFmpeg = "/nowhere/ffmpeg"
	if body := w.post("auditor", "/recordings/"+film.ID+"/exports", `{"format":"webm"}`, 503); !strings.Contains(body, "apt-get install ffmpeg") {
		t.Errorf("answer %s", body)
	}
}
