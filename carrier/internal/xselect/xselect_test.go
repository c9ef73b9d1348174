package xselect

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// said is a connection on which a server said something beforehand.
type said struct {
	net.Conn
	io.Reader
}

func (s said) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s said) Write(p []byte) (int, error) { return len(p), nil }

func words(v ...uint32) (b []byte) {
	for _, w := range v {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// setup is a server's welcome with one screen; atoms are numbered 1 to 4.
func setup() []byte {
	body := append(words(0, 0x200000, 0x1fffff, 0, 0, 0, 0, 0), words(0x51a)...)
	body[16], body[17], body[21] = 0, 0, 0
	b := append([]byte{1, 0, 11, 0, 0, 0, 0, 0}, body...)
	binary.LittleEndian.PutUint16(b[6:], uint16(len(body)/4))
	for atom := range uint32(4) {
		b = append(b, reply(0, words(atom+1), nil)...)
	}
	return b
}

func reply(format byte, rest, body []byte) []byte {
	b := make([]byte, 32)
	b[0], b[1] = 1, format
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	binary.LittleEndian.PutUint32(b[4:], uint32(len(body)/4))
	copy(b[8:], rest)
	return append(b, body...)
}

func property(kind, after uint32, data string) []byte {
	return reply(8, words(kind, after, uint32(len(data))), []byte(data))
}

func event(kind byte, rest ...uint32) []byte {
	b := make([]byte, 32)
	b[0] = kind
	copy(b[4:], words(rest...))
	return b
}

const window = 0x200000

var (
	notify  = event(eventSelection, 0, window, 1, 2, 3)
	none    = event(eventSelection, 0, window, 1, 2, 0)
	arrives = event(eventProperty, window, 3, 0, newValue)
)

func TestText(t *testing.T) {
	for name, tc := range map[string]struct {
		said  [][]byte
		limit int
		want  Result
		err   error
	}{
		"one piece":      {said: [][]byte{notify, property(2, 0, "hello")}, limit: 5, want: Result{Text: "hello", Size: 5}},
		"two reads":      {said: [][]byte{notify, property(2, 4, "hell"), property(2, 0, "o")}, limit: 5, want: Result{Text: "hello", Size: 5}},
		"too long":       {said: [][]byte{notify, property(2, 0, "hello")}, limit: 4, want: Result{Size: 5, TooLong: true}},
		"no owner":       {said: [][]byte{none}, limit: 5, err: ErrNone},
		"not text":       {said: [][]byte{notify, property(9, 0, "hello")}, limit: 5, err: ErrNone},
		"in pieces":      {said: [][]byte{arrives, notify, property(4, 0, "\xff\xff\xff\xff"), arrives, property(2, 0, "hel"), arrives, property(2, 0, "lo"), arrives, property(2, 0, "")}, limit: 5, want: Result{Text: "hello", Size: 5}},
		"long in pieces": {said: [][]byte{notify, property(4, 0, "\xff\xff\xff\xff"), arrives, property(2, 0, "hel"), arrives, property(2, 0, "lo")}, limit: 4, want: Result{Size: 5, TooLong: true}},
		"not UTF-8":      {said: [][]byte{notify, property(2, 0, "h\xffi")}, limit: 5, want: Result{Text: "h\ufffdi", Size: 3}},
		"error":          {said: [][]byte{make([]byte, 32)}, limit: 5, err: ErrX},
		"ends":           {said: [][]byte{notify}, limit: 5, err: ErrX},
		"lies":           {said: [][]byte{notify, reply(8, words(2, 0, 4000), []byte("abcd"))}, limit: 5, err: ErrX},
		"endless reply":  {said: [][]byte{notify, append([]byte{1, 8, 0, 0, 0xff, 0xff, 0xff, 0x7f}, make([]byte, 24)...)}, limit: 5, err: ErrX},
		"noise":          {said: [][]byte{bytes.Repeat(event(2), maxIgnored+1)}, limit: 5, err: ErrX},
	} {
		b := setup()
		for _, s := range tc.said {
			b = append(b, s...)
		}
		got, err := Text(said{Reader: bytes.NewReader(b)}, tc.limit)
		if got != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, got, err, tc.want, tc.err)
		}
	}
	refusal := append([]byte{0, 4, 11, 0, 0, 0, 1, 0}, "no!!"...)
	if _, err := Text(said{Reader: bytes.NewReader(refusal)}, 1); !errors.Is(err, ErrX) || !strings.Contains(err.Error(), "no!!") {
		t.Errorf("refused: %v", err)
	}
}

// A server that says nothing is left at the connection's deadline.
func TestDeadline(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go func() { _, _ = io.Copy(io.Discard, b) }()
	if err := a.SetDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := Text(a, 1); !errors.Is(err, ErrX) {
		t.Errorf("%v", err)
	}
}

func FuzzText(f *testing.F) {
	f.Add(append(append(setup(), notify...), property(2, 0, "hello")...))
	f.Add(append(append(append(setup(), notify...), property(4, 0, "size")...), append(arrives, property(2, 0, "x")...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Text(said{Reader: bytes.NewReader(b)}, 64)
		if err == nil && len(got.Text) > 3*64 {
			t.Fatalf("%d bytes", len(got.Text))
		}
	})
}
