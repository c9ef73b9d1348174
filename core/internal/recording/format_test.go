package recording

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// testKey is a data key; recordings of the tests of the format use it.
func testKey() []byte { return bytes.Repeat([]byte{7}, keySize) }

// file is a recording in memory, block by block.
type file struct {
	head   []byte
	blocks [][]byte
}

func (f file) bytes() []byte { return append(bytes.Clone(f.head), bytes.Join(f.blocks, nil)...) }

// makeFile writes one data block per payload and the end block.
func makeFile(tb testing.TB, id string, payloads ...[]byte) file {
	tb.Helper()
	// The same bytes in every process, for the fuzzer's workers.
	raw, err := marshalHead(head{ID: id, Kind: kindRec, StartedUS: 1, Salt: []byte("salt of a test")})
	if err != nil {
		tb.Fatal(err)
	}
	c, err := newChain(testKey(), kindRec, raw)
	if err != nil {
		tb.Fatal(err)
	}
	f := file{head: raw}
	t := totals{Blocks: uint64(len(payloads))}
	for _, p := range payloads {
		f.blocks = append(f.blocks, c.seal(nil, typeData, p))
		items, err := decodeItems(p)
		if err != nil {
			tb.Fatal(err)
		}
		t.Items += uint64(len(items))
		for _, it := range items {
			t.DurationUS = it.At.Microseconds()
			switch it.Kind {
			case ItemOutput:
				t.Output += int64(len(it.Data))
			case ItemInput:
				t.Input += int64(len(it.Data))
			}
		}
	}
	end, err := json.Marshal(t)
	if err != nil {
		tb.Fatal(err)
	}
	f.blocks = append(f.blocks, c.seal(nil, typeEnd, end))
	return f
}

// payload is a block of output items, one every second from start on.
func payload(start int, lines ...string) []byte {
	p := appendUvarint(nil, uint64(start)*1e6)
	for i, l := range lines {
		d := time.Second
		if i == 0 {
			d = 0
		}
		p = appendItem(p, ItemOutput, d, []byte(l))
	}
	return p
}

func appendUvarint(b []byte, v uint64) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func read(tb testing.TB, raw []byte) (string, Integrity, error) {
	tb.Helper()
	x, err := newReader(bytes.NewReader(raw), func(head) ([]byte, error) { return testKey(), nil })
	if err != nil {
		return "", Integrity{}, err
	}
	var out []byte
	for {
		it, err := x.Next()
		if errors.Is(err, io.EOF) {
			return string(out), x.Integrity(), nil
		}
		if err != nil {
			return "", Integrity{}, err
		}
		out = append(out, it.Data...)
	}
}

func twenty(tb testing.TB, id string) file {
	var ps [][]byte
	for i := range 20 {
		ps = append(ps, payload(10*i, fmt.Sprintf("line %d\r\n", i), "more\r\n"))
	}
	return makeFile(tb, id, ps...)
}

func TestReadComplete(t *testing.T) {
	f := twenty(t, "rec_a")
	text, state, err := read(t, f.bytes())
	if err != nil || state.Status != Complete || state.Blocks != 20 || state.Duration != 191*time.Second || len(text) == 0 {
		t.Fatalf("read %q, %+v, %v", text, state, err)
	}
	if want := "complete: 20 blocks, 00:03:11"; state.Text != want {
		t.Errorf("text %q, want %q", state.Text, want)
	}
}

// Every way of tampering is found, and named.
func TestTampering(t *testing.T) {
	f, other := twenty(t, "rec_a"), twenty(t, "rec_b")
	flip := func(block, at int) []byte {
		g := file{f.head, append([][]byte(nil), f.blocks...)}
		b := bytes.Clone(g.blocks[block-1])
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 1
		g.blocks[block-1] = b
		return g.bytes()
	}
	join := func(blocks ...[]byte) []byte { return append(bytes.Clone(f.head), bytes.Join(blocks, nil)...) }
	whole := f.bytes()
	cut := func(block int) []byte { return join(f.blocks[:block]...) }
	tests := []struct {
		name string
		raw  []byte
		want Status
		text string
	}{
		{"a bit of block 17", flip(17, 40), Damaged, "block 17 damaged: it does not authenticate (authentic up to 00:02:31)"},
		{"a bit of the tag of block 17", flip(17, -1), Damaged, "block 17 damaged: it does not authenticate (authentic up to 00:02:31)"},
		{"a bit of the length of block 17", flip(17, 3), Damaged, "block 17 damaged: its head is not intact (authentic up to 00:02:31)"},
		{"the type of block 17", flip(17, 4), Damaged, "block 17 damaged: its head is not intact (authentic up to 00:02:31)"},
		{"a bit of the end mark", flip(21, 30), Damaged, "block 21 damaged: it does not authenticate (authentic up to 00:03:11)"},
		{"cut off after block 19", cut(19), Incomplete, "incomplete: ends at 00:03:01 without end mark"},
		{"cut off within the end mark", whole[:len(whole)-5], Incomplete, "incomplete: ends at 00:03:11 without end mark"},
		{"cut off within the head of a block", append(cut(3), f.blocks[3][:7]...), Incomplete, "incomplete: ends at 00:00:21 without end mark"},
		{"cut off before the first block", f.head, Incomplete, "incomplete: ends at 00:00:00 without end mark"},
		{"blocks 3 and 4 swapped", join(f.blocks[0], f.blocks[1], f.blocks[3], f.blocks[2]), Damaged, "block 3 damaged: it does not authenticate (authentic up to 00:00:11)"},
		{"block 3 left out", join(f.blocks[0], f.blocks[1], f.blocks[3]), Damaged, "block 3 damaged: it does not authenticate (authentic up to 00:00:11)"},
		{"block 2 twice", join(f.blocks[0], f.blocks[1], f.blocks[1]), Damaged, "block 3 damaged: it does not authenticate (authentic up to 00:00:11)"},
		{"block 2 of another recording", join(f.blocks[0], other.blocks[1]), Damaged, "block 2 damaged: it does not authenticate (authentic up to 00:00:01)"},
		{"the end of another recording", join(f.blocks[0], other.blocks[20]), Damaged, "block 2 damaged: it does not authenticate (authentic up to 00:00:01)"},
		{"data after the end", append(bytes.Clone(whole), 0), Damaged, "block 22 damaged: data follows the end mark (authentic up to 00:03:11)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text, state, err := read(t, tt.raw)
			if err != nil {
				t.Fatal(err)
			}
			if state.Status != tt.want || state.Text != tt.text {
				t.Errorf("%s %q, want %s %q", state.Status, state.Text, tt.want, tt.text)
			}
			// What is given out is a true beginning, never anything else.
			want, _, _ := read(t, whole)
			if len(text) > len(want) || text != want[:len(text)] {
				t.Errorf("gave out what was not recorded")
			}
		})
	}
}

func TestHeadTampering(t *testing.T) {
	f := twenty(t, "rec_a")
	for i := range f.head {
		raw := f.bytes()
		raw[i] ^= 1
		_, state, err := read(t, raw)
		if _, damaged := errors.AsType[*DamageError](err); !damaged && state.Status == Complete {
			t.Errorf("a flipped bit in byte %d of the head is not noticed", i)
		}
	}
}

// Any single flipped bit anywhere is noticed.
func TestFlipProperty(t *testing.T) {
	f := twenty(t, "rec_a").bytes()
	rapid.Check(t, func(rt *rapid.T) {
		raw := bytes.Clone(f)
		raw[rapid.IntRange(0, len(raw)-1).Draw(rt, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(rt, "bit")
		if _, state, err := read(t, raw); err == nil && state.Status == Complete {
			rt.Fatal("not noticed")
		}
	})
}

func TestTotalsChecked(t *testing.T) {
	raw, err := encodeHead(head{ID: "rec_a", Kind: kindRec})
	if err != nil {
		t.Fatal(err)
	}
	c, err := newChain(testKey(), kindRec, raw)
	if err != nil {
		t.Fatal(err)
	}
	raw = c.seal(raw, typeData, payload(0, "x"))
	raw = c.seal(raw, typeEnd, []byte(`{"blocks":1,"items":2,"output_bytes":1}`))
	if _, state, err := read(t, raw); err != nil || state.Status != Damaged {
		t.Errorf("wrong totals: %+v, %v", state, err)
	}
}

// Sizes of blocks tell neither single keystrokes nor short answers apart.
func TestPadding(t *testing.T) {
	sizes := map[int]bool{}
	for n := range 30 {
		sizes[len(pack(bytes.Repeat([]byte{'x'}, n)))] = true
	}
	if len(sizes) != 1 {
		t.Errorf("%d sizes for 0 to 29 bytes, want 1", len(sizes))
	}
}

func TestPackProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SliceOfN(rapid.Byte(), 0, 4096).Draw(t, "payload")
		if rapid.Bool().Draw(t, "repeat") {
			p = bytes.Repeat(p, 20)
		}
		got, err := unpack(pack(p))
		if err != nil || !bytes.Equal(got, p) {
			t.Fatalf("unpack(pack(p)): %v", err)
		}
	})
}

// A body that inflates beyond the limit is refused before it fills memory.
func TestInflateBound(t *testing.T) {
	body := pack(make([]byte, 4*maxPayload))
	if body[0] != bodyDeflate {
		t.Fatal("zeros were not compressed")
	}
	if _, err := unpack(body); err == nil {
		t.Error("inflated beyond the limit")
	}
}

func TestItemsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 30).Draw(t, "items")
		p := appendUvarint(nil, 5_000_000)
		at := 5 * time.Second
		var want []Item
		for i := range n {
			d := time.Duration(rapid.IntRange(0, 1_000_000).Draw(t, "delta")) * time.Microsecond
			if i == 0 {
				d = 0
			}
			at += d
			data := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "data")
			p = appendItem(p, ItemOutput, d, data)
			want = append(want, Item{At: at, Kind: ItemOutput, Data: data})
		}
		got, err := decodeItems(p)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d items, %v", len(got), err)
		}
		for i := range got {
			if got[i].At != want[i].At || !bytes.Equal(got[i].Data, want[i].Data) {
				t.Fatalf("item %d: %+v, want %+v", i, got[i], want[i])
			}
		}
		// Cut anywhere, the decoder refuses or gives a shorter list.
		cut := rapid.IntRange(0, len(p)).Draw(t, "cut")
		if got, err := decodeItems(p[:cut]); err == nil && len(got) > len(want) {
			t.Fatal("more items than there were")
		}
	})
}

func TestSplitItems(t *testing.T) {
	p := appendUvarint(nil, 1_000_000)
	for i := range 40 {
		data := bytes.Repeat([]byte{byte('a' + i%26)}, 10<<10)
		p = appendItem(p, ItemOutput, time.Duration(i)*time.Millisecond, data)
	}
	all, err := decodeItems(p)
	if err != nil {
		t.Fatal(err)
	}
	var got []Item
	parts := 0
	for rest := p; len(rest) > 0; parts++ {
		var part []byte
		part, rest = splitItems(rest)
		if len(part) > 3*chunkSize {
			t.Errorf("a part has %d bytes", len(part))
		}
		items, err := decodeItems(part)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, items...)
	}
	if parts < 3 || len(got) != len(all) {
		t.Fatalf("%d parts, %d items, want %d", parts, len(got), len(all))
	}
	for i := range got {
		if got[i].At != all[i].At || !bytes.Equal(got[i].Data, all[i].Data) {
			t.Fatalf("item %d at %s, want %s", i, got[i].At, all[i].At)
		}
	}
}

// FuzzReader: whatever a file holds, the reader ends, and never panics or
// calls something complete that was not written.
func FuzzReader(f *testing.F) {
	whole := twenty(f, "rec_a").bytes()
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, state, err := read(t, raw)
		if err == nil && state.Status == Complete && !bytes.Equal(raw, whole) {
			t.Fatal("forged")
		}
	})
}

// FuzzItems: the decoder of authenticated content holds for any content, since
// it also is what stands between a bug and a crash.
func FuzzItems(f *testing.F) {
	f.Add(payload(3, "a", "b"))
	b := appendItem(appendUvarint(nil, 0), ItemResize, 0, []byte{80, 24})
	f.Add(appendItem(b, ItemEvent, 0, []byte(`{"k":"exec","f":{"command":"ls"}}`)))
	f.Fuzz(func(t *testing.T, p []byte) {
		items, err := decodeItems(p)
		if err != nil {
			return
		}
		for i := 1; i < len(items); i++ {
			if items[i].At < items[i-1].At {
				t.Fatal("time goes back")
			}
		}
	})
}

// FuzzUnpack: the body decoder.
func FuzzUnpack(f *testing.F) {
	f.Add(pack([]byte("hello")))
	f.Add(pack(bytes.Repeat([]byte("hello"), 1000)))
	f.Fuzz(func(t *testing.T, body []byte) {
		if p, err := unpack(body); err == nil && len(p) > maxPayload {
			t.Fatal("too long")
		}
	})
}

// FuzzTranscript: terminal output of any kind yields lines and ends.
func FuzzTranscript(f *testing.F) {
	f.Add([]byte("\x1b[31mred\x1b[0m\r\nnext\x1b[3D\x1b[K\x1b]0;title\x07é\b"))
	f.Fuzz(func(t *testing.T, p []byte) {
		x := &transcript{emit: func(l Line) error {
			if len([]rune(l.Text)) > 2*maxLine {
				t.Fatalf("line of %d", len(l.Text))
			}
			return nil
		}}
		if err := x.item(Item{Kind: ItemOutput, Data: p}); err != nil {
			t.Fatal(err)
		}
		x.flush()
	})
}

func BenchmarkSeal(b *testing.B) {
	raw, err := encodeHead(head{ID: "rec_a", Kind: kindRec})
	if err != nil {
		b.Fatal(err)
	}
	c, err := newChain(testKey(), kindRec, raw)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, chunkSize)
	rand.Read(p[:chunkSize/2])
	b.SetBytes(chunkSize)
	b.ReportAllocs()
	var dst []byte
	for b.Loop() {
		dst = c.seal(dst[:0], typeData, p)
	}
}
