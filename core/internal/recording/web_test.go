package recording

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

func webMeta(user string) Meta {
	m := meta(user)
	m.Kind, m.Account, m.TargetName, m.Width, m.Height, m.Title = "", "demo", "wiki", 1280, 800, "wiki"
	return m
}

func (r *rig) createWeb() *WebWriter {
	r.t.Helper()
	w, err := r.CreateWeb(r.t.Context(), webMeta("demo"))
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

func webEvent(seq uint64, at time.Time, kind string, fields ...string) wire.WebRecord {
	e := wire.WebEventBody{Type: kind, Fields: map[string]string{}}
	for i := 0; i+1 < len(fields); i += 2 {
		e.Fields[fields[i]] = fields[i+1]
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return wire.WebRecord{Seq: seq, At: at.UnixMicro(), Kind: wire.WebEvent, Payload: b}
}

// noise is a payload that does not compress and begins like a frame; every
// fifth is a keyframe.
func noise(seq uint64, size int) []byte {
	r := rand.New(rand.NewPCG(seq, 1))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	head := []byte{1, 0, 1280 >> 8, 1280 & 255, 800 >> 8, 800 & 255}
	if seq%5 == 1 {
		head[1] = 1
	}
	return append(binary.BigEndian.AppendUint64(head, seq), b...)
}

func frameRecord(seq uint64, at time.Time, size int) wire.WebRecord {
	return wire.WebRecord{Seq: seq, At: at.UnixMicro(), Kind: wire.WebFrame, Payload: noise(seq, size)}
}

// items reads a recording through.
func (r *rig) items(x *Recording) ([]Item, Integrity) {
	r.t.Helper()
	in, f, err := r.reader(x)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	var out []Item
	for {
		it, err := in.Next()
		if errors.Is(err, io.EOF) {
			return out, in.Integrity()
		}
		if err != nil {
			r.t.Fatal(err)
		}
		it.Data = bytes.Clone(it.Data)
		out = append(out, it)
	}
}

func TestWebRecords(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		w := r.createWeb()
		now := r.clock.now()
		sizes := []int{10, maxWebPiece - 14, maxWebPiece, 3 << 20, 0, 40 << 10}
		var frames []wire.WebRecord
		for i, n := range sizes {
			frames = append(frames, frameRecord(uint64(i+1), now.Add(time.Duration(i)*time.Microsecond), n))
		}
		must(t, w.Append("carrier nod_a", 0, frames[:4]))
		if n := w.Next("carrier nod_a"); n != 5 {
			t.Errorf("next is %d, want 5", n)
		}
		// What it has is dropped, what is new is kept.
		must(t, w.Append("carrier nod_a", 0, frames[2:]))
		big := strings.Repeat("pasted ", 300<<10)
		must(t, w.Append("webproxy nod_b", 0, []wire.WebRecord{
			webEvent(1, now, "request", "url", "https://wiki.example/a", "method", "GET"), webEvent(2, now, "clipboard", "text", big),
		}))
		must(t, w.Event("locked", map[string]string{"by": "admin"}), w.Append("carrier nod_a", 0, nil))
		if n := w.Next("webproxy nod_b"); n != 3 {
			t.Errorf("next is %d, want 3", n)
		}
		if n := w.Next("somebody"); n != 1 {
			t.Errorf("next of a stranger is %d, want 1", n)
		}
		gap, _ := errors.AsType[*GapError](w.Append("webproxy nod_b", 0, []wire.WebRecord{webEvent(5, now, "request")}))
		if gap == nil || gap.Want != 3 || gap.Got != 5 {
			t.Errorf("gap: %v", gap)
		}
		for name, rec := range map[string]wire.WebRecord{
			"kind":  {Seq: 3, Kind: 'z', Payload: []byte("{}")},
			"json":  {Seq: 3, Kind: wire.WebEvent, Payload: []byte("{")},
			"size":  {Seq: 3, Kind: wire.WebFrame, Payload: make([]byte, wire.MaxWebRecord+1)},
			"empty": {Seq: 3, Kind: wire.WebEvent},
		} {
			if err := w.Append("webproxy nod_b", 0, []wire.WebRecord{rec}); !errors.Is(err, ErrRecords) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := w.Append("", 0, nil); !errors.Is(err, ErrRecords) {
			t.Errorf("no source: %v", err)
		}
		must(t, w.Close(), w.Close())
		if err := w.Append("carrier nod_a", 0, []wire.WebRecord{frameRecord(7, now, 1)}); !errors.Is(err, ErrClosed) {
			t.Errorf("append after close: %v", err)
		}
		x := r.row(w.ID)
		if x.Status != Complete || x.Kind != KindWeb || x.Width != 1280 || x.SHA256 == "" {
			t.Errorf("row %+v", x)
		}
		items, state := r.items(x)
		if state.Status != Complete {
			t.Errorf("state %+v", state)
		}
		seen := 0
		for _, it := range items {
			switch {
			case it.Kind == ItemFrame:
				if !bytes.Equal(it.Data, frames[seen].Payload) || it.Seq != uint64(seen+1) || it.Source != "carrier nod_a" {
					t.Errorf("frame %d of %s has %d bytes", it.Seq, it.Source, len(it.Data))
				}
				seen++
			case it.Event == "clipboard" && it.Fields["text"] != big:
				t.Errorf("clipboard text of %d bytes", len(it.Fields["text"]))
			}
		}
		if seen != len(frames) || len(items) != len(frames)+3 {
			t.Errorf("%d frames, %d items", seen, len(items))
		}
		if v, err := r.Verify(t.Context(), w.ID); err != nil || v.Status != Complete {
			t.Errorf("verify: %+v, %v", v, err)
		}
	})
}

// Times are core's, never step back within a source, and lie within the
// recording.
func TestWebTimes(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	r.clock.hold()
	w := r.createWeb()
	start := r.row(w.ID).StartedAt
	r.clock.add(time.Minute)
	ahead := start.Add(time.Hour) // the node's clock is an hour ahead
	must(t, w.Append("a", -time.Hour, []wire.WebRecord{
		webEvent(1, ahead.Add(-time.Second), "before"), webEvent(2, ahead.Add(2*time.Second), "two"),
		webEvent(3, ahead.Add(time.Second), "back"), webEvent(4, ahead.Add(time.Hour), "future"), webEvent(5, ahead, "after"),
	}), w.Append("b", 0, []wire.WebRecord{webEvent(1, start.Add(time.Second), "late")}), w.Close())
	items, _ := r.items(r.row(w.ID))
	at := map[string]time.Duration{}
	for _, it := range items {
		at[it.Event] = it.At.Round(time.Second)
	}
	want := map[string]time.Duration{"before": 0, "two": 2 * time.Second, "back": 2 * time.Second, "future": time.Minute, "after": time.Minute, "late": time.Second}
	for k, v := range want {
		if at[k] != v {
			t.Errorf("%s at %s, want %s", k, at[k], v)
		}
	}
}

// A second store takes over the files of one that died.
func (r *rig) second() *rig {
	r.t.Helper()
	c := r.cfg
	c.Metrics = nil
	s, err := New(c)
	if err != nil {
		r.t.Fatal(err)
	}
	x := *r
	x.Store = s
	return &x
}

// drop ends a writer as the death of its process would: nothing is written any
// more, the lock is gone.
func (r *rig) drop(w *WebWriter) {
	r.t.Helper()
	w.w.mu.Lock()
	w.w.failLocked(errors.New("died"))
	w.w.mu.Unlock()
	w.w.signal()
	<-w.w.done
	r.mu.Lock()
	delete(r.writers, w.ID)
	r.mu.Unlock()
}

func TestWebResume(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.clock.hold()
		w := r.createWeb()
		now := r.clock.now()
		must(t, w.Append("carrier", 0, []wire.WebRecord{frameRecord(1, now, 200<<10), webEvent(2, now, "request", "url", "https://one.example/")}))
		if _, err := r.ResumeWeb(t.Context(), w.ID); !errors.Is(err, ErrInUse) {
			t.Errorf("resume of one's own: %v", err)
		}
		if _, err := r.second().ResumeWeb(t.Context(), w.ID); !errors.Is(err, ErrInUse) {
			t.Errorf("resume of another's: %v", err)
		}
		must(t, r.checkpoint(t.Context()))
		if x := r.row(w.ID); x.Blocks == 0 || x.Size == 0 {
			t.Errorf("checkpoint: %+v", x)
		}
		r.drop(w)
		// A torn block, and before it a record of which only the start is there.
		f, err := os.OpenFile(r.path(r.row(w.ID), kindRec), os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.Write([]byte{0, 0, 1})
		must(t, err, f.Close())

		r.clock.add(3 * time.Second)
		s := r.second()
		w2, err := s.ResumeWeb(t.Context(), w.ID)
		must(t, err)
		if n := w2.Next("carrier"); n != 3 {
			t.Errorf("next is %d, want 3", n)
		}
		now = r.clock.now()
		must(t, w2.Append("carrier", 0, []wire.WebRecord{webEvent(2, now, "twice"), frameRecord(3, now, 100), webEvent(4, now, "request", "url", "https://two.example/")}))
		must(t, w2.Close())
		x := r.row(w.ID)
		if x.Status != Complete {
			t.Fatalf("row %+v", x)
		}
		items, state := s.items(x)
		var kinds []string
		for _, it := range items {
			if it.Kind == ItemFrame {
				kinds = append(kinds, fmt.Sprint("frame ", it.Seq))
				continue
			}
			kinds = append(kinds, it.Event+" "+it.Fields["url"])
			if it.Event == EventResumed {
				var ms int
				if fmt.Sscan(it.Fields["gap_ms"], &ms); ms != 3000 {
					t.Errorf("gap %q", it.Fields["gap_ms"])
				}
			}
		}
		want := "frame 1,request https://one.example/,core restarted ,frame 3,request https://two.example/"
		if got := strings.Join(kinds, ","); got != want || state.Status != Complete {
			t.Errorf("items %s, %+v", got, state)
		}
		if v, err := s.Verify(t.Context(), w.ID); err != nil || v.Status != Complete {
			t.Errorf("verify: %+v, %v", v, err)
		}
		if got := auditTypes(t, d, w.ID); got != "recording.started recording.resumed recording.completed" {
			t.Errorf("audit %q", got)
		}
		if _, err := s.ResumeWeb(t.Context(), w.ID); !errors.Is(err, ErrNotResumable) {
			t.Errorf("resume of a complete one: %v", err)
		}
	})
}

// Whoever edits or cuts the file while no core writes it is found out.
func TestWebResumeTampered(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		for name, tamper := range map[string]func(raw []byte) []byte{
			"flipped":   func(raw []byte) []byte { raw[len(raw)/2] ^= 1; return raw },
			"truncated": func(raw []byte) []byte { return raw[:len(raw)/2] },
			"empty":     func([]byte) []byte { return nil },
		} {
			for _, late := range []bool{false, true} {
				w := r.createWeb()
				now := r.clock.now()
				for i := range uint64(4) {
					must(t, w.Append("carrier", 0, []wire.WebRecord{frameRecord(i+1, now, 1000)}))
				}
				must(t, r.checkpoint(t.Context()))
				r.drop(w)
				path := r.path(r.row(w.ID), kindRec)
				raw, err := os.ReadFile(path)
				must(t, err, os.WriteFile(path, tamper(raw), 0o600))
				s := r.second()
				if late { // the jobs come first
					_, err := s.recover(t.Context(), false)
					must(t, err)
				}
				_, err = s.ResumeWeb(t.Context(), w.ID)
				damage, _ := errors.AsType[*DamageError](err)
				if !late && damage == nil || err == nil {
					t.Errorf("%s, late %t: resumed: %v", name, late, err)
				}
				if x := r.row(w.ID); x.Status != Damaged || x.Problem == "" {
					t.Errorf("%s, late %t: status %s, %q", name, late, x.Status, x.Problem)
				}
			}
		}
	})
}

// A recording that lacks its end plays and says what is the matter with it.
func TestWebCloseIncomplete(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		w := r.createWeb()
		must(t, w.Append("carrier", 0, []wire.WebRecord{webEvent(1, r.clock.now(), "request")}))
		must(t, w.CloseIncomplete("the carrier did not deliver the end of the session"))
		if x := r.row(w.ID); x.Status != Incomplete || !strings.Contains(x.Problem, "did not deliver") {
			t.Errorf("row %+v", x)
		}
		if state, err := r.Verify(t.Context(), w.ID); err != nil || state.Status != Incomplete {
			t.Errorf("the file: %+v, %v", state, err)
		}
		must(t, w.Close())
		if x := r.row(w.ID); x.Status != Incomplete {
			t.Errorf("closed again it is %s", x.Status)
		}
	})
}

// Recordings that nobody resumes become incomplete, and can still be resumed.
func TestWebResumeLate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		w := r.createWeb()
		must(t, w.Append("carrier", 0, []wire.WebRecord{webEvent(1, r.clock.now(), "request")}))
		r.drop(w)
		s := r.second()
		if done, err := s.recover(t.Context(), true); done || err != nil || r.row(w.ID).Status != Live {
			t.Errorf("early: done %t, %v, %s", done, err, r.row(w.ID).Status)
		}
		if done, err := s.recover(t.Context(), false); !done || err != nil || r.row(w.ID).Status != Incomplete {
			t.Errorf("late: done %t, %v, %s", done, err, r.row(w.ID).Status)
		}
		w2, err := s.ResumeWeb(t.Context(), w.ID)
		must(t, err)
		if x := r.row(w.ID); x.Status != Live || !x.EndedAt.IsZero() {
			t.Errorf("resumed: %+v", x)
		}
		must(t, w2.Close())
		if x := r.row(w.ID); x.Status != Complete {
			t.Errorf("closed: %+v", x)
		}
	})
}
