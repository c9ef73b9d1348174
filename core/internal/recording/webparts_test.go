package recording

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"caponier/core/internal/db/dbtest"
	"caponier/shared/wire"
)

// A recording that was resumed twice is one: its frames are found and shown in
// each part, it is whole, and a change of the mark between parts is found.
func TestWebParts(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	w := r.createWeb()
	seq := uint64(1)
	more := func() {
		must(t, w.Append("carrier", 0, []wire.WebRecord{frameRecord(seq, r.clock.now(), 150<<10), frameRecord(seq+1, r.clock.now(), 100)}))
		seq += 2
	}
	var ends []int64
	for range 2 {
		more()
		r.drop(w)
		st, err := os.Stat(r.path(r.row(w.ID), kindRec))
		must(t, err)
		ends = append(ends, st.Size())
		s := r.second()
		w, err = s.ResumeWeb(t.Context(), w.ID)
		must(t, err)
		r = s
	}
	more()
	must(t, w.Close())
	x := r.row(w.ID)
	f, err := r.openFile(x.ID, kindRec, x.StartedAt)
	must(t, err)
	defer f.Close()
	v, err := r.view(t.Context(), x, f)
	must(t, err)
	if len(v.frames) != 6 || len(v.parts) != 3 || v.state.Status != Complete {
		t.Fatalf("%d frames in %d parts, %+v", len(v.frames), len(v.parts), v.state)
	}
	for i := range v.frames { // in no order: each finds its part's key
		i = (i*5 + 3) % len(v.frames)
		data, err := (&frameReader{f: f, parts: v.parts}).read(v.frames[i])
		if err != nil || !bytes.Equal(data, noise(uint64(i+1), len(data)-14)) {
			t.Errorf("frame %d: %v", i+1, err)
		}
	}
	raw, err := os.ReadFile(r.path(x, kindRec))
	must(t, err)
	for _, end := range ends {
		for off := end; off < end+blockHead+saltSize+tagSize; off += 3 {
			bad := bytes.Clone(raw)
			bad[off] ^= 4
			must(t, os.WriteFile(r.path(x, kindRec), bad, 0o600))
			if _, state := r.items(x); state.Status != Damaged {
				t.Errorf("byte %d of the mark changed: %+v", off-end, state)
			}
		}
	}
	// Without its first mark, the parts do not fit together.
	must(t, os.WriteFile(r.path(x, kindRec), append(bytes.Clone(raw[:ends[0]]), raw[ends[0]+blockHead+saltSize+tagSize:]...), 0o600))
	if _, state := r.items(x); state.Status != Damaged {
		t.Errorf("without a mark: %+v", state)
	}
}

// Blocks that were cut off leave their numbers to others: under another key,
// else two texts under one number would give the key of the tags away.
func TestResumeKeys(t *testing.T) {
	raw, err := encodeHead(head{ID: "rec_a", Kind: kindRec, version: versionWeb})
	must(t, err)
	c, err := newChain(testKey(), kindRec, raw)
	must(t, err)
	first := c.seal(nil, typeData, payload(0, "one"))
	var seals [][]byte
	for range 2 {
		fork := *c
		mark, err := fork.sealResume()
		must(t, err)
		block := fork.seal(nil, typeData, payload(1, "two"))
		seals = append(seals, block)

		read, err := newChain(testKey(), kindRec, raw)
		must(t, err)
		in := bytes.NewReader(append(append(bytes.Clone(first), mark...), block...))
		for _, want := range []byte{typeData, typeResume, typeData} {
			if typ, _, _, err := read.open(in); err != nil || typ != want {
				t.Fatalf("block %q: %v", typ, err)
			}
		}
		if _, _, _, err := read.open(in); !errors.Is(err, errCut) {
			t.Errorf("at the end: %v", err)
		}
	}
	plain := c.seal(nil, typeData, payload(1, "two"))
	a, b := seals[0][blockHead:], seals[1][blockHead:]
	if bytes.Equal(a, b) || bytes.Equal(a[:16], plain[blockHead:blockHead+16]) {
		t.Error("two continuations have one key")
	}
	if len(a) != len(b) {
		t.Error("the same text has two lengths")
	}
}
