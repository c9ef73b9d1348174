package recording

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

// split encodes a record as the items that hold it.
func split(h webHead, payload []byte, piece int) []Item {
	h.size = len(payload)
	n := min(len(payload), piece)
	b := appendItem(appendUvarint(nil, 0), itemWeb, 0, append(appendWebHead(nil, h), payload[:n]...))
	for rest := payload[n:]; len(rest) > 0; rest = rest[n:] {
		n = min(len(rest), piece)
		b = appendItem(b, itemMore, 0, rest[:n])
	}
	items, err := decodeItems(b)
	if err != nil {
		panic(err)
	}
	return items
}

// Whatever records hold and however they are cut, what comes out is what went
// in, in any grouping of the items.
func TestAssemblyProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var items []Item
		var want []string
		for i := range rapid.IntRange(1, 6).Draw(t, "records") {
			h := webHead{at: time.Duration(rapid.IntRange(0, 1e9).Draw(t, "us")) * time.Microsecond, kind: wire.WebFrame,
				source: rapid.StringN(1, 25, maxSource).Draw(t, "source"), seq: uint64(i + 1)}
			p := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "payload")
			items = append(items, split(h, p, rapid.IntRange(1, 9).Draw(t, "piece"))...)
			want = append(want, fmt.Sprint(h.at, h.source, h.seq, p))
		}
		var a assembly
		var got []string
		for len(items) > 0 {
			n := rapid.IntRange(1, len(items)).Draw(t, "block")
			whole, err := a.items(append([]Item(nil), items[:n]...))
			if err != nil {
				t.Fatal(err)
			}
			items = items[n:]
			for _, it := range whole {
				got = append(got, fmt.Sprint(it.At, it.Source, it.Seq, it.Data))
			}
		}
		if a.open || strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// Pieces that do not belong together are refused.
func TestAssemblyRefuses(t *testing.T) {
	rec := func(n int) []Item {
		return split(webHead{kind: wire.WebFrame, source: "a", seq: 1}, make([]byte, n), 4)
	}
	event := Item{Kind: ItemEvent, Event: "x"}
	for name, items := range map[string][]Item{
		"a piece without a start":     rec(8)[1:],
		"a start within a record":     append(rec(8)[:1], rec(8)...),
		"an event within a record":    {rec(8)[0], event},
		"more than it said":           append(rec(8), rec(8)[1]),
		"an event that is not JSON":   split(webHead{kind: wire.WebEvent, source: "a", seq: 1}, []byte("no"), 4),
		"a longer piece than is left": {rec(6)[0], rec(8)[1], rec(8)[1]},
	} {
		var a assembly
		if got, err := a.items(items); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzWebItems: authenticated content of any kind is decoded within bounds, and
// the map and the reader see the same frames.
func FuzzWebItems(f *testing.F) {
	h := webHead{at: time.Second, kind: wire.WebFrame, source: "carrier a", seq: 1, size: 8}
	b := appendItem(appendUvarint(nil, 0), itemWeb, 0, append(appendWebHead(nil, h), 1, 1, 5, 0))
	f.Add(appendItem(b, itemMore, time.Second, []byte{3, 32, 0, 0}))
	h.kind, h.size = wire.WebEvent, 20
	f.Add(appendItem(appendUvarint(nil, 9), itemWeb, 0, append(appendWebHead(nil, h), `{"type":"x","fields"`...)))
	f.Fuzz(func(t *testing.T, p []byte) {
		items, err := decodeItems(p)
		if err != nil {
			return
		}
		var a assembly
		whole, aerr := a.items(append([]Item(nil), items...))
		m := &webMap{chain: &chain{n: 1}}
		if merr := m.block(typeData, bytes.Clone(p), 0); (merr == nil) != (aerr == nil) {
			t.Fatalf("map says %v, reader %v", merr, aerr)
		}
		frames := 0
		for _, it := range whole {
			if it.Kind == ItemFrame {
				frames++
			}
		}
		if aerr == nil && len(m.frames) != frames {
			t.Fatalf("%d frames in the map, %d read", len(m.frames), frames)
		}
	})
}

// Text of megabytes that was pasted is found, wherever it is, and does not
// break the index.
func TestWebSearch(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	w := r.createWeb()
	now := r.clock.now()
	text := strings.Repeat("ä lorem ipsum ", 100<<10)
	at := maxEventLine - 8 // across the border of two lines
	text = text[:at] + "the needle in it" + text[at:]
	must(t, w.Append("carrier a", 0, []wire.WebRecord{webEvent(1, now, "clipboard", "text", text)}),
		w.Append("webproxy b", 0, []wire.WebRecord{webEvent(1, now, "request", "url", "https://wiki.example/Needle")}),
		w.Event("file", map[string]string{"path": "needle.pdf"}), w.Close())
	check := func(what string) {
		t.Helper()
		hits, err := r.Search(t.Context(), r.row(w.ID), "NEEDLE", 0, 10)
		must(t, err)
		var found []string
		for _, h := range hits {
			kind, _, _ := strings.Cut(h.Line, ":")
			found = append(found, kind)
			if len(h.Line) > 2*maxHit || !strings.Contains(strings.ToLower(h.Line), "needle") {
				t.Errorf("%s: a hit of %d bytes", what, len(h.Line))
			}
		}
		if len(found) < 3 {
			t.Errorf("%s: hits %q", what, found)
		}
		if hits, err := r.Search(t.Context(), r.row(w.ID), "the needle in it", 0, 10); err != nil || len(hits) != 1 {
			t.Errorf("%s: across lines: %v, %v", what, hits, err)
		}
	}
	check("without index")
	r.run(r.Store)
	r.until("index", func() bool { return r.row(w.ID).Indexed })
	must(t, r.indexLines(t.Context(), r.row(w.ID), func(Line) bool { return true }))
	check("with index")
}
