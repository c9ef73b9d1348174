package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the bytes on the wire changed:\n got %s\nwant %s", name, got, want)
	}
}

func prefaces() []Preface {
	return []Preface{
		{Kind: StreamDial, Class: Bulk, Connection: "con_abc", Network: "tcp", Dest: "10.10.0.5:22"},
		{Kind: StreamDial, Class: Interactive, Network: "udp", Dest: "[fd00::1]:53"},
		{Kind: StreamHTTP},
		{Kind: StreamRelay, Connection: "con_x", Network: "tcp", Dest: "edg_1!db.internal:5432"},
	}
}

// TestGolden pins the bytes of every encoding: peers of other versions read them.
func TestGolden(t *testing.T) {
	var out bytes.Buffer
	for _, p := range prefaces() {
		b, err := AppendPreface(nil, p)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "preface %+v\n%s\n", p, hex.EncodeToString(b))
	}
	e := Errorf(CodeConnRefused, "%s refused the connection", "10.10.0.5:22")
	fmt.Fprintf(&out, "error %+v\n%s\n", *e, hex.EncodeToString(AppendError(nil, e)))
	fmt.Fprintf(&out, "verdict accepted\n%s\n", hex.EncodeToString(AppendVerdict(nil, nil)))
	fmt.Fprintf(&out, "verdict refused\n%s\n", hex.EncodeToString(AppendVerdict(nil, e)))
	for _, f := range []struct {
		t       FrameType
		stream  uint32
		payload []byte
	}{
		{FrameData, 1, []byte("hello")},
		{FrameFin, 3, nil},
		{FrameAccept, 5, nil},
		{FrameReset, 7, AppendError(nil, Errorf(CodeTerminated, "ended"))},
		{FrameStop, 9, nil},
		{FrameWindow, 2, []byte{0, 16, 0, 0}},
		{FramePing, 0, []byte("12345678")},
		{FramePong, 0, []byte("12345678")},
		{FrameGoAway, 0, AppendError(nil, Errorf(CodeReplaced, "newer"))},
		{FrameSeen, 0, []byte{0, 0, 0, 0, 0, 1, 0, 0}},
	} {
		fmt.Fprintf(&out, "frame type %d\n%s\n", f.t, hex.EncodeToString(AppendFrame(nil, f.t, f.stream, f.payload)))
	}
	golden(t, "bytes.golden", out.Bytes())
}

func TestPrefaceRoundTrip(t *testing.T) {
	text := rapid.StringMatching(`[ -~]{1,60}`)
	rapid.Check(t, func(t *rapid.T) {
		p := Preface{
			Kind:       StreamKind(rapid.IntRange(1, 3).Draw(t, "kind")),
			Class:      Class(rapid.IntRange(0, 1).Draw(t, "class")),
			Connection: text.Draw(t, "connection"),
			Network:    rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "network"),
			Dest:       text.Draw(t, "dest"),
		}
		b, err := AppendPreface(nil, p)
		if err != nil {
			t.Fatalf("encode %+v: %v", p, err)
		}
		got, err := ParsePreface(b)
		if err != nil || got != p {
			t.Fatalf("got %+v, %v; want %+v", got, err, p)
		}
		for i := range b {
			if _, err := ParsePreface(b[:i]); !errors.Is(err, ErrPreface) {
				t.Fatalf("a preface cut at %d of %d: got %v", i, len(b), err)
			}
		}
		if got, err := ParsePreface(append(bytes.Clone(b), 1, 2, 'x', 'y')); err != nil || got != p {
			t.Fatalf("unknown optional extension: got %+v, %v", got, err)
		}
		if _, err := ParsePreface(append(bytes.Clone(b), 0x81, 0)); !errors.Is(err, ErrPreface) {
			t.Fatalf("unknown critical extension: got %v", err)
		}
	})
}

func TestPrefaceRefused(t *testing.T) {
	for name, p := range map[string]Preface{
		"zero":            {},
		"no destination":  {Kind: StreamDial, Network: "tcp"},
		"no network":      {Kind: StreamDial, Dest: "a:1"},
		"network":         {Kind: StreamDial, Network: "sctp", Dest: "a:1"},
		"kind":            {Kind: 4, Network: "tcp", Dest: "a:1"},
		"class":           {Kind: StreamDial, Class: 2, Network: "tcp", Dest: "a:1"},
		"long connection": {Kind: StreamHTTP, Connection: strings.Repeat("c", MaxConnection+1)},
		"long dest":       {Kind: StreamDial, Network: "tcp", Dest: strings.Repeat("d", MaxDest+1)},
		"newline":         {Kind: StreamDial, Network: "tcp", Dest: "a:1\nb"},
		"not utf-8":       {Kind: StreamDial, Network: "tcp", Dest: "\xff:1"},
	} {
		if b, err := AppendPreface(nil, p); !errors.Is(err, ErrPreface) {
			t.Errorf("%s: got %x, %v; want it refused", name, b, err)
		}
	}
}

func TestErrorClipped(t *testing.T) {
	e := &Error{Code: 999, Public: strings.Repeat("é", MaxPublic) + "\x00"}
	got, err := ParseError(AppendError(nil, e))
	if err != nil {
		t.Fatal(err)
	}
	if got.Code != CodeInternal || len(got.Public) > MaxPublic || !utf8.ValidString(got.Public) {
		t.Errorf("got code %d and %d bytes, valid %v", got.Code, len(got.Public), utf8.ValidString(got.Public))
	}
	if got, err := ParseError(AppendError(nil, &Error{Code: CodeDNS, Public: ""})); err != nil || got.Public != CodeDNS.Text() {
		t.Errorf("no text: got %v, %v", got, err)
	}
}

func TestHeaderLimits(t *testing.T) {
	for _, h := range []Header{
		{Type: 0}, {Type: 12}, {Type: 127, Stream: 1},
		{Type: FrameOpen, Stream: 1, Length: MaxPreface + 1},
		{Type: FrameOpen, Stream: 0, Length: 7},
		{Type: FrameData, Stream: 1, Length: MaxFrameData + 1},
		{Type: FrameData, Stream: 1, Length: 0},
		{Type: FrameData, Stream: 0, Length: 1},
		{Type: FrameFin, Stream: 1, Length: 1},
		{Type: FrameReset, Stream: 1, Length: 3},
		{Type: FrameWindow, Stream: 1, Length: 5},
		{Type: FramePing, Stream: 1, Length: 8},
		{Type: FrameGoAway, Stream: 0, Length: MaxError + 1},
		{Type: 200, Stream: 1, Length: MaxFrameData + 1},
	} {
		var b [FrameHeader]byte
		PutHeader(b[:], h)
		if got, err := ParseHeader(b[:]); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: got %+v, %v; want it refused", h, got, err)
		}
	}
	var b [FrameHeader]byte
	PutHeader(b[:], Header{Type: 200, Stream: 9, Length: 10})
	if got, err := ParseHeader(b[:]); err != nil || got.Length != 10 {
		t.Errorf("optional frame of a later version: got %+v, %v", got, err)
	}
}

func FuzzPreface(f *testing.F) {
	for _, p := range prefaces() {
		b, _ := AppendPreface(nil, p)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParsePreface(b)
		if err != nil {
			return
		}
		again, err := AppendPreface(nil, p)
		if err != nil {
			t.Fatalf("%x decodes to %+v, which does not encode: %v", b, p, err)
		}
		if q, err := ParsePreface(again); err != nil || q != p {
			t.Fatalf("got %+v, %v; want %+v", q, err, p)
		}
	})
}

func FuzzError(f *testing.F) {
	f.Add(AppendError(nil, Errorf(CodeDNS, "no such name")))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseError(b)
		if err != nil {
			return
		}
		if len(e.Public) > MaxPublic || !printable(e.Public) || !e.Code.Known() {
			t.Fatalf("%x: unsafe error %+v", b, e)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(AppendFrame(nil, FrameData, 1, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < FrameHeader {
			return
		}
		h, err := ParseHeader(b)
		if err != nil {
			return
		}
		if h.Length > MaxFrameData {
			t.Fatalf("%x: length %d accepted", b, h.Length)
		}
		var again [FrameHeader]byte
		PutHeader(again[:], h)
		if !bytes.Equal(again[:], b[:FrameHeader]) {
			t.Fatalf("%x encodes to %x", b[:FrameHeader], again)
		}
	})
}
