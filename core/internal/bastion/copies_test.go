package bastion

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"caponier/core/internal/recording"
)

// Whatever order pieces come in within the window, the copy is the file; with
// a hole, a repeat or too much out of order it is given up, and counted.
func TestCopyInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tp := &tape{}
		c := newCopies(t.Context(), tp, quiet)
		content := rapid.SliceOfN(rapid.Byte(), 1, 5000).Draw(t, "content")
		from := rapid.Int64Range(0, 1<<40).Draw(t, "from") // a resumed transfer
		type part struct{ at, end int }
		var parts []part
		for at := 0; at < len(content); {
			n := rapid.IntRange(1, 700).Draw(t, "size")
			end := min(len(content), at+n)
			parts = append(parts, part{at, end})
			at = end
		}
		parts = rapid.Permutation(parts).Draw(t, "order")
		hole := rapid.IntRange(0, 3).Draw(t, "hole") == 0 && len(parts) > 2
		if hole {
			// Without the first or last piece it is a shorter transfer.
			for i, p := range parts {
				if p.at > 0 && p.end < len(content) {
					parts = append(parts[:i:i], parts[i+1:]...)
					break
				}
			}
		}
		f := c.start(recording.Upload, "/x")
		total := 0
		for _, p := range parts {
			f.put(content[p.at:p.end], from+int64(p.at))
			total += p.end - p.at
		}
		f.finish()
		c.wait()
		got := tp.file("upload /x")
		if got.got.Len() != total || !got.closed || c.held != 0 || c.open != 0 {
			t.Fatalf("%d of %d bytes, closed %v, %d held, %d open", got.got.Len(), total, got.closed, c.held, c.open)
		}
		if got.lost != hole || !hole && !bytes.Equal(got.got.Bytes(), content) {
			t.Fatalf("hole %v, lost %v", hole, got.lost)
		}
	})
}

func TestCopyBounds(t *testing.T) {
	tp := &tape{}
	c := newCopies(t.Context(), tp, quiet)
	// A resumed transfer longer than the window.
	f := c.start(recording.Download, "/resumed")
	block := bytes.Repeat([]byte("r"), 32<<10)
	for i := range int64(100) {
		f.put(block, 1<<30+i*int64(len(block)))
		if c.held > maxHeld {
			t.Fatalf("%d bytes are held", c.held)
		}
	}
	f.finish()
	// Read from the end to the beginning.
	back := c.start(recording.Download, "/backwards")
	back.put([]byte("x"), 0)
	for i := int64(100); i > 1; i-- {
		back.put(block, i*int64(len(block)))
	}
	back.finish()
	again := c.start(recording.Download, "/again")
	again.put([]byte("abc"), 0)
	again.put([]byte("b"), 1)
	again.finish()
	// Tiny pieces count more than their bytes.
	tiny := c.start(recording.Download, "/tiny")
	for i := range int64(100_000) {
		tiny.put([]byte("t"), 10+2*i)
	}
	if len(tiny.held)*heldExtra > maxHeld {
		t.Errorf("%d pieces are held", len(tiny.held))
	}
	tiny.finish()
	var many []*fileCopy
	for range maxCopies + 1 {
		f := c.start(recording.Upload, "/many")
		f.put([]byte("m"), 0)
		many = append(many, f)
	}
	if many[maxCopies-1].lost || !many[maxCopies].lost {
		t.Error("the bound on open copies does not hold")
	}
	for _, f := range many {
		f.finish()
	}
	c.wait()
	if f := tp.file("download /resumed"); f.lost || f.got.Len() != 100*len(block) {
		t.Errorf("resumed: lost %v, %d bytes", f.lost, f.got.Len())
	}
	for _, name := range []string{"/backwards", "/again", "/tiny"} {
		if f := tp.file("download " + name); !f.lost || !f.closed {
			t.Errorf("%s: lost %v, closed %v", name, f.lost, f.closed)
		}
	}
	if c.open != 0 || c.held != 0 {
		t.Errorf("%d open, %d held", c.open, c.held)
	}
	// Where nothing is recorded, nothing is copied.
	none := newCopies(t.Context(), noRecorder{}, quiet).start(recording.Upload, "/x")
	none.put([]byte("x"), 0)
	none.finish()
}
