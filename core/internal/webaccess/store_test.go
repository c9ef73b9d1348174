package webaccess

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/recording"
	"caponier/shared/wire"
)

// With the real store: what nodes deliver is on the timeline, a transferred
// file is kept with it, and the end completes it.
func TestRealRecording(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	limits := recording.DefaultLimits()
	limits.MinFree, limits.FileMax = 0, 1<<20
	store, err := recording.New(recording.Config{DB: w.db, Audit: w.audit, Keys: w.vault, Dir: t.TempDir(), CoreID: "core_t",
		Limits: func() recording.Limits { return limits }, Now: time.Now, Log: quiet(t)})
	must(t, err)
	k := w.start(func(_ *core, c *Config) { c.Recordings = FromStore(store) })
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	payload, err := json.Marshal(wire.WebEventBody{Type: "request", Fields: map[string]string{"url": "https://wiki.example/"}})
	must(t, err)
	ack, err := sendRecords(t, carrier, s.ID, wire.WebRecord{Seq: 1, At: time.Now().UnixMicro(), Kind: wire.WebEvent, Payload: payload})
	if err != nil || ack.Next != 2 {
		t.Fatalf("%+v, %v", ack, err)
	}
	if code := k.do("eve", "PUT", "/web-sessions/"+s.ID+"/files/note.txt", "kept", nil); code != 204 {
		t.Fatalf("uploaded with %d", code)
	}
	if code := k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil); code != 204 {
		t.Fatalf("closed with %d", code)
	}
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
	r, err := store.Recording(t.Context(), s.RecordingID)
	must(t, err)
	if r.Status != recording.Complete || r.Kind != recording.KindWeb || r.UserName != "eve" || r.Width != 1280 || r.ConnectionID != s.ID {
		t.Errorf("recording %+v", r)
	}
	var n int
	must(t, w.db.QueryRowContext(t.Context(), `select count(*) from recording_files where recording_id = $1 and path = 'note.txt' and status = 'stored'`, r.ID).Scan(&n))
	if n != 1 {
		t.Errorf("%d copies are kept", n)
	}
	integrity, err := store.Verify(t.Context(), r.ID)
	if err != nil || integrity.Status != recording.Complete {
		t.Errorf("verified %+v, %v", integrity, err)
	}
}

// What is kept about a person is exported and can lose his name.
func TestExportAndErase(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		k := w.start()
		k.node(wire.Carrier, "c1")
		k.node(wire.WebProxy, "p1")
		k.wiki(nil)
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		k.open("bob", "wiki", map[string]any{"account": "alice"})
		out, err := k.svc.Export(t.Context(), w.db, "usr_eve")
		must(t, err)
		all, ok := out.(map[string]any)
		list, _ := all["sessions"].([]*Session)
		if !ok || len(list) != 1 || list[0].ID != s.ID || list[0].UserName != "eve" {
			t.Errorf("exported %+v", out)
		}
		k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil)
		eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
		must(t, w.db.Tx(t.Context(), func(tx *db.Tx) error { return k.svc.Erase(t.Context(), tx, "usr_eve", "erased-1") }))
		if got := k.get("auditor", s.ID).UserName; got != "erased-1" {
			t.Errorf("the name is %s", got)
		}
	})
}

// BenchmarkOpen is core's share of a click: decision, record, recording, both
// nodes told over real tunnels; and of the end.
func BenchmarkOpen(b *testing.B) {
	w := newWorld(b, dbtest.SQLite(b))
	k := w.start()
	k.node(wire.Carrier, "c1", func(x *box) { x.capacity.Max, x.capacity.Room = 1<<20, 1<<20 })
	k.node(wire.WebProxy, "p1", func(x *box) { x.capacity.Max, x.capacity.Room = 1<<20, 1<<20 })
	k.wiki(nil)
	var opens, closes []time.Duration
	for b.Loop() {
		began := time.Now()
		s := k.open("eve", "wiki", map[string]any{"account": "alice"})
		opens = append(opens, time.Since(began))
		x := k.svc.find(s.ID)
		began = time.Now()
		k.do("eve", "DELETE", "/web-sessions/"+s.ID, nil, nil)
		select {
		case <-x.ended:
		case <-time.After(20 * time.Second):
			b.Fatal("it does not end")
		}
		closes = append(closes, time.Since(began))
	}
	for name, list := range map[string][]time.Duration{"open": opens, "end": closes} {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(list[len(list)*95/100].Microseconds())/1000, name+"-p95-ms")
	}
}
