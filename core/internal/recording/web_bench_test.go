package recording

import (
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

func benchRig(b *testing.B) *rig {
	d := dbtest.SQLite(b)
	r := &rig{dir: b.TempDir(), clock: &shift{}, limits: DefaultLimits(), db: d}
	r.limits.MinFree = 0
	var err error
	r.Store, err = New(Config{
		DB: d, Audit: audit.New(d, time.Now), Keys: newVault(b, d), Dir: r.dir, CoreID: "cor_test",
		Limits: func() Limits { return r.limits }, Now: r.clock.now, Log: slog.New(slog.DiscardHandler),
	})
	must(b, err)
	return r
}

// BenchmarkWebAppend is a busy session: 5 MB in batches of 32 frames, on disk
// when Append returns.
func BenchmarkWebAppend(b *testing.B) {
	r := benchRig(b)
	w, err := r.CreateWeb(b.Context(), webMeta("demo"))
	must(b, err)
	const frames, size = 32, 160 << 10
	b.SetBytes(frames * size)
	payload, seq := noise(1, size), uint64(1)
	for b.Loop() {
		recs := make([]wire.WebRecord, frames)
		for i := range recs {
			recs[i] = wire.WebRecord{Seq: seq, At: time.Now().UnixMicro(), Kind: wire.WebFrame, Payload: payload}
			seq++
		}
		must(b, w.Append("carrier", 0, recs))
	}
	must(b, w.Close())
}

// hour is a recording of one hour: ten frames a second of 8 KB, a keyframe of
// 100 KB every ten seconds, a request a second: 320 MB.
func (r *rig) hour(b *testing.B) *Recording {
	w, err := r.CreateWeb(b.Context(), webMeta("demo"))
	must(b, err)
	rec, err := r.Recording(b.Context(), w.ID)
	must(b, err)
	r.clock.add(time.Hour)
	small, big := noise(2, 8<<10), noise(1, 100<<10)
	seq := uint64(1)
	for s := range 3600 {
		at := rec.StartedAt.Add(time.Duration(s) * time.Second)
		recs := []wire.WebRecord{webEvent(seq, at, "request", "method", "GET", "url", "https://wiki.example/page")}
		for i := range 10 {
			seq++
			p := small
			if s%10 == 0 && i == 0 {
				p = big
			}
			recs = append(recs, wire.WebRecord{Seq: seq, At: at.Add(time.Duration(i) * 100 * time.Millisecond).UnixMicro(), Kind: wire.WebFrame, Payload: p})
		}
		seq++
		// Not Append: an hour need not wait for the disk 3600 times.
		_, _, err := w.take("carrier", 0, recs)
		must(b, err)
	}
	must(b, w.Close())
	rec, err = r.Recording(b.Context(), w.ID)
	must(b, err)
	return rec
}

// BenchmarkWebOpen reads an hour once to know what is where in it.
func BenchmarkWebOpen(b *testing.B) {
	r := benchRig(b)
	x := r.hour(b)
	f, err := r.openFile(x.ID, kindRec, x.StartedAt)
	must(b, err)
	defer f.Close()
	b.SetBytes(x.Size)
	for b.Loop() {
		must(b, r.forget(x.ID))
		v, err := r.view(b.Context(), x, f)
		must(b, err)
		if len(v.frames) != 36000 || len(v.events) != 3600 {
			b.Fatalf("%d frames, %d events", len(v.frames), len(v.events))
		}
	}
}

// BenchmarkWebSeek goes to random moments of an hour: all frames from the
// keyframe on, authenticated and ready to be sent.
func BenchmarkWebSeek(b *testing.B) {
	r := benchRig(b)
	x := r.hour(b)
	f, err := r.openFile(x.ID, kindRec, x.StartedAt)
	must(b, err)
	defer f.Close()
	_, err = r.view(b.Context(), x, f)
	must(b, err)
	var bytes, frames int
	var worst time.Duration
	for b.Loop() {
		began := time.Now()
		v, err := r.view(b.Context(), x, f)
		must(b, err)
		at := time.Duration(rand.Int64N(int64(time.Hour)))
		in := &frameReader{f: f, parts: v.parts}
		for _, fr := range v.since(at, at) {
			data, err := in.read(fr)
			must(b, err)
			bytes += len(data)
			frames++
		}
		worst = max(worst, time.Since(began))
	}
	b.ReportMetric(float64(bytes)/float64(b.N)/1e3, "kB/seek")
	b.ReportMetric(float64(frames)/float64(b.N), "frames/seek")
	b.ReportMetric(float64(worst.Microseconds())/1e3, "worst-ms")
}

// BenchmarkWebResume goes on with an hour that a core left open.
func BenchmarkWebResume(b *testing.B) {
	r := benchRig(b)
	x := r.hour(b)
	f, err := r.openFile(x.ID, kindRec, x.StartedAt)
	must(b, err)
	defer f.Close()
	st, err := f.Stat()
	must(b, err)
	b.SetBytes(st.Size())
	key, err := r.key(x.ID, x.sealedKey)
	must(b, err)
	h, raw, err := readHead(f)
	must(b, err)
	must(b, os.Truncate(r.path(x, kindRec), st.Size()-1)) // no end mark
	for b.Loop() {
		c, err := newChain(key, h.Kind, raw)
		must(b, err)
		l, err := survey(b.Context(), f, c, int64(len(raw)))
		must(b, err)
		if l.sources["carrier"].next != 3600*11+1 {
			b.Fatalf("next is %d", l.sources["carrier"].next)
		}
	}
}
