package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"

	"caponier/shared/wire"
)

// streams returns the two ends of one stream.
func streams(t *testing.T) (opener, acceptor Stream) {
	t.Helper()
	a, b := Pipe(Info{}, Info{})
	t.Cleanup(func() { a.Close(nil); b.Close(nil) })
	opener, err := a.Open(t.Context(), wire.Preface{Kind: wire.StreamDial, Network: "udp", Dest: "10.0.0.1:53"})
	if err != nil {
		t.Fatal(err)
	}
	acceptor, err = b.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := acceptor.Confirm(); err != nil {
		t.Fatal(err)
	}
	return opener, acceptor
}

// TestDatagrams: bounds are kept, whatever fits is whole, the rest is cut off.
func TestDatagrams(t *testing.T) {
	a, b := streams(t)
	from, to := NewDatagrams(a), NewDatagrams(b)
	rapid.Check(t, func(t *rapid.T) {
		var sent [][]byte
		for range rapid.IntRange(1, 6).Draw(t, "datagrams") {
			p := bytes.Repeat([]byte{rapid.Byte().Draw(t, "byte")}, rapid.SampledFrom([]int{0, 1, 2, 512, 1472, 9000, MaxDatagram}).Draw(t, "length"))
			if n, err := from.Write(p); n != len(p) || err != nil {
				t.Fatalf("Write(%d bytes) = %d, %v", len(p), n, err)
			}
			sent = append(sent, p)
		}
		for _, want := range sent {
			buf := make([]byte, rapid.SampledFrom([]int{0, 1, 700, 2000, MaxDatagram}).Draw(t, "buffer"))
			if rapid.Bool().Draw(t, "ask first") {
				for range 2 {
					if n, err := to.Next(); n != len(want) || err != nil {
						t.Fatalf("Next = %d, %v; want %d", n, err, len(want))
					}
				}
			}
			n, err := to.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], want[:min(len(want), len(buf))]) {
				t.Fatalf("a datagram of %d into %d bytes: got %d, %v", len(want), len(buf), n, err)
			}
		}
	})
	if _, err := from.Write(make([]byte, MaxDatagram+1)); err == nil {
		t.Error("a datagram that is too long was sent")
	}
}

// How a stream ends decides whether a datagram is missing.
func TestDatagramsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"between two":        {[]byte{0, 1, 'x'}, io.EOF},
		"within a length":    {[]byte{0, 1, 'x', 0}, io.ErrUnexpectedEOF},
		"before the content": {[]byte{0, 1, 'x', 0, 3}, io.ErrUnexpectedEOF},
		"within the content": {[]byte{0, 1, 'x', 0, 3, 'y'}, io.ErrUnexpectedEOF},
	} {
		a, b := streams(t)
		a.Write(c.raw)
		a.CloseWrite()
		d := NewDatagrams(b)
		buf := make([]byte, 10)
		if n, err := d.Read(buf); n != 1 || err != nil {
			t.Errorf("%s: the first is %d, %v", name, n, err)
		}
		if _, err := d.Read(buf); !errors.Is(err, c.want) || errors.Is(c.want, io.ErrUnexpectedEOF) != errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		// Cut off by a short buffer, then by the end.
		a, b = streams(t)
		a.Write([]byte{0, 9, 'l', 'o', 'n', 'g'})
		a.CloseWrite()
		d = NewDatagrams(b)
		if n, err := d.Read(buf[:2]); n != 2 || err != nil {
			t.Errorf("short buffer: %d, %v", n, err)
		}
		if _, err := d.Read(buf); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("short buffer: %v", err)
		}
	}
	a, b := streams(t)
	a.Write(binary.BigEndian.AppendUint16(nil, MaxDatagram+1))
	if _, err := NewDatagrams(b).Next(); err == nil {
		t.Error("a length beyond the limit was accepted")
	}
}
