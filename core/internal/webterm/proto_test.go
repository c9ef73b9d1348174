package webterm

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"

	"pgregory.net/rapid"

	"caponier/core/internal/api"
)

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want message
		ok   bool
	}{
		{"input", append([]byte{1, 0, 0, 0, 0, 0, 0, 1, 2}, "ls"...), message{kind: msgInput, offset: 258, data: []byte("ls")}, true},
		{"resize", []byte{2, 0, 80, 0, 24}, message{kind: msgResize, cols: 80, rows: 24}, true},
		{"ack", []byte{3, 0, 0, 0, 0, 0, 0, 0, 9}, message{kind: msgAck, offset: 9}, true},
		{"nothing", nil, message{}, false},
		{"input without bytes", []byte{1, 0, 0, 0, 0, 0, 0, 0, 0}, message{}, false},
		{"input too long", append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0}, make([]byte, maxInput+1)...), message{}, false},
		{"input from the end of time", append(bytes.Repeat([]byte{1}, 1), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 'x'), message{}, false},
		{"no columns", []byte{2, 0, 0, 0, 24}, message{}, false},
		{"too many rows", []byte{2, 0, 80, 255, 255}, message{}, false},
		{"ack cut", []byte{3, 0}, message{}, false},
		{"from core", []byte{0x81, 0, 0, 0, 0, 0, 0, 0, 9}, message{}, false},
	} {
		got, err := decode(c.in)
		if (err == nil) != c.ok || got.kind != c.want.kind || got.offset != c.want.offset || got.cols != c.want.cols || got.rows != c.want.rows || !bytes.Equal(got.data, c.want.data) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 'x'})
	f.Add([]byte{2, 0, 80, 0, 24})
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := decode(p)
		if err != nil {
			return
		}
		// What is taken means exactly the bytes it came in.
		var again []byte
		switch m.kind {
		case msgInput, msgAck, msgPing:
			again = offsetMessage(m.kind, m.offset, m.data)
		case msgResize:
			again = binary.BigEndian.AppendUint16([]byte{m.kind}, uint16(m.cols))
			again = binary.BigEndian.AppendUint16(again, uint16(m.rows))
		}
		if !bytes.Equal(again, p) {
			t.Fatalf("%x decodes to %+v, which is %x", p, m, again)
		}
		if len(m.data) > maxInput || m.cols > maxScreen || m.rows > maxScreen {
			t.Fatalf("out of bounds: %+v", m)
		}
	})
}

// TestTapeKeepsTheEnd: whatever is written, read and acknowledged, the tape
// yields the bytes of its offsets, drops none that was not seen and stays in
// its bounds.
func TestTapeKeepsTheEnd(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 64).Draw(t, "size")
		tp := newTape(size, 10, 4)
		var all []byte
		seen := uint64(0)
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a full tape does not wait here
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			p := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "p")
			before := len(all)
			err := tp.write(ctx, p)
			_, end := tp.bounds()
			all = append(all, p[:int(end)-before]...)
			if err == nil && int(end) != before+len(p) {
				t.Fatalf("%d of %d bytes written without an error", int(end)-before, len(p))
			}
			start, end := tp.bounds()
			if start > seen || end-seen > uint64(size) || int(end-start) > size+size/4+1 {
				t.Fatalf("tape of %d holds %d to %d, seen %d", size, start, end, seen)
			}
			from := rapid.Uint64Range(0, end+3).Draw(t, "from")
			got, _, ok := tp.read(from, 1000)
			if ok != (from >= start && from <= end) || ok && !bytes.Equal(got, all[from:]) {
				t.Fatalf("read from %d (%d to %d): %q, %v", from, start, end, got, ok)
			}
			to := rapid.Uint64Range(0, end+3).Draw(t, "ack")
			if tp.ack(to) != (to <= end) {
				t.Fatalf("ack of %d with the end at %d", to, end)
			}
			if to <= end {
				seen = max(seen, to)
			}
		}
	})
}

// A writer waits for the browser, and for nothing once the tape is closed.
func TestTapeWriterWaits(t *testing.T) {
	tp := newTape(8, 10, 4)
	done := make(chan error, 1)
	go func() { done <- tp.write(t.Context(), []byte("0123456789abcdef")) }()
	for {
		_, changed, ok := tp.read(8, 1)
		if ok {
			if p, _, _ := tp.read(0, 100); string(p) != "01234567" {
				t.Fatalf("holds %q", p)
			}
			break
		}
		_ = changed
		select {
		case err := <-done:
			t.Fatalf("did not wait: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	tp.ack(4)
	for _, end := tp.bounds(); end < 12; _, end = tp.bounds() {
		<-time.After(time.Millisecond)
	}
	select {
	case err := <-done:
		t.Fatalf("finished with only 4 acknowledged: %v", err)
	default:
	}
	tp.close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if start, end := tp.bounds(); end != 16 || start != 8 {
		t.Errorf("holds %d to %d", start, end)
	}
}

func TestOriginAllowed(t *testing.T) {
	for _, c := range []struct {
		origin, auth string
		want         bool
	}{
		{"https://core.test", "", true},
		{"https://pam.example", "", true}, // configured
		{"", "Bearer x", true},
		{"", "", false}, // a cookie and no origin
		{"https://evil.test", "", false},
		{"https://evil.test", "Bearer x", false},
		{"http://core.test", "", false}, // not over TLS
		{"https://core.test.evil.test", "", false},
		{"null", "", false},
		{"https://core.test:8443", "", false},
	} {
		if got := api.OriginAllowed(request(t, c.origin, c.auth), []string{"https://pam.example"}); got != c.want {
			t.Errorf("origin %q, authorization %q: %v", c.origin, c.auth, got)
		}
	}
}

func TestPartName(t *testing.T) {
	if got := partName("/a/b.txt"); got != "/a/.b.txt.caponier-part" {
		t.Error(got)
	}
	long := "/a/" + string(bytes.Repeat([]byte("x"), 255))
	if got := partName(long); len(got) > 3+255 {
		t.Errorf("%d bytes", len(got))
	}
	if resumeAt(1<<20) != 0 || resumeAt(20<<20+5) != 12<<20 {
		t.Errorf("%d %d", resumeAt(1<<20), resumeAt(20<<20+5))
	}
}
