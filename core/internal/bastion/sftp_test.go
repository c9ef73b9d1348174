package bastion

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"caponier/core/internal/conn"
)

// packet builds an SFTP packet of numbers and strings.
func packet(kind byte, parts ...any) []byte {
	body := []byte{kind}
	for _, p := range parts {
		switch v := p.(type) {
		case uint32:
			body = binary.BigEndian.AppendUint32(body, v)
		case uint64:
			body = binary.BigEndian.AppendUint64(body, v)
		case string:
			body = binary.BigEndian.AppendUint32(body, uint32(len(v)))
			body = append(body, v...)
		}
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

// feed gives a stream to f in pieces of n bytes.
func feed(t *testing.T, f func([]byte) error, stream []byte, n int) {
	t.Helper()
	for p := range slices.Chunk(stream, n) {
		if err := f(p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSFTPTap(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 4096)
	for _, n := range []int{1, 7, 300, 1 << 20} {
		live, tp := &record{}, &tape{}
		tap := newSFTPTap(t.Context(), events{rec: tp, live: live}, quiet)
		out := func(p []byte) error { return tap.output(p, false) }
		feed(t, tap.input, packet(fxpInit, uint32(3)), n)
		feed(t, out, packet(fxpVersion, uint32(3), "posix-rename@openssh.com", "1"), n)
		// Two uploads interleaved, the pieces of the first out of order.
		feed(t, tap.input, slices.Concat(packet(fxpOpen, uint32(1), "/a", uint32(2|8|16), uint32(0)), packet(fxpOpen, uint32(2), "/b", uint32(2|8), uint32(0))), n)
		feed(t, out, slices.Concat(packet(fxpHandle, uint32(2), "hb"), packet(fxpHandle, uint32(1), "ha")), n)
		feed(t, tap.input, slices.Concat(
			packet(fxpWrite, uint32(3), "ha", uint64(5), big), packet(fxpWrite, uint32(4), "hb", uint64(0), "tiny"),
			packet(fxpWrite, uint32(5), "ha", uint64(0), "start")), n)
		feed(t, out, slices.Concat(packet(fxpStatus, uint32(3), uint32(0), "", ""), packet(fxpStatus, uint32(4), uint32(4), "disk full", ""),
			packet(fxpStatus, uint32(5), uint32(0), "", "")), n)
		feed(t, tap.input, slices.Concat(packet(fxpClose, uint32(6), "ha"), packet(fxpClose, uint32(7), "hb")), n)
		feed(t, out, slices.Concat(packet(fxpStatus, uint32(6), uint32(0), "", ""), packet(fxpStatus, uint32(7), uint32(0), "", "")), n)
		// A download that is cut off.
		feed(t, tap.input, packet(fxpOpen, uint32(8), "/c", uint32(1), uint32(0)), n)
		feed(t, out, packet(fxpHandle, uint32(8), "hc"), n)
		feed(t, tap.input, packet(fxpRead, uint32(9), "hc", uint64(0), uint32(100)), n)
		feed(t, out, packet(fxpData, uint32(9), "contents"), n)
		feed(t, tap.input, packet(fxpExtended, uint32(10), "posix-rename@openssh.com", "/x", "/y"), n)
		feed(t, out, packet(fxpStatus, uint32(10), uint32(0), "", ""), n)
		if err := tap.close(false); err != nil {
			t.Fatal(err)
		}
		want := []string{
			"sftp open /b wc ok", "sftp open /a wct ok", "sftp write /a 65541 bytes ok", "sftp open /c r ok",
			"sftp rename /x → /y ok", "sftp read /c 8 bytes failed",
		}
		if !slices.Equal(live.events, want) {
			t.Errorf("pieces of %d: got %q, want %q", n, live.events, want)
		}
		for name, want := range map[string]string{"upload /a": "start" + big, "upload /b": "tiny", "download /c": "contents"} {
			if f := tp.file(name); f == nil || f.got.String() != want || !f.closed || f.lost {
				t.Errorf("pieces of %d: copy of %s is wrong: %+v", n, name, f)
			}
		}
	}
}

func TestSFTPTapBounds(t *testing.T) {
	fresh := func() *sftpTap {
		return newSFTPTap(t.Context(), events{rec: &tape{}, live: &record{}}, quiet)
	}
	tests := []struct {
		name   string
		stream func(yield func([]byte) bool)
	}{
		{"huge packet", func(y func([]byte) bool) { y([]byte{0x7f, 0, 0, 0, 3}) }},
		{"empty packet", func(y func([]byte) bool) { y([]byte{0, 0, 0, 0, 3}) }},
		{"short open", func(y func([]byte) bool) { y(packet(fxpOpen, uint32(1))) }},
		{"string longer than packet", func(y func([]byte) bool) { y(packet(fxpRemove, uint32(1), uint32(1<<30))) }},
		{"endless requests", func(y func([]byte) bool) {
			for i := range uint32(maxSFTPPending + 1) {
				if !y(packet(fxpRemove, i, "/x")) {
					return
				}
			}
		}},
	}
	for _, tt := range tests {
		tap := fresh()
		var err error
		tt.stream(func(p []byte) bool { err = tap.input(p); return err == nil })
		if !errors.Is(err, errSFTP) {
			t.Errorf("%s: got %v, want the session to end", tt.name, err)
		}
	}
}

func TestSFTPTapRecordingFails(t *testing.T) {
	tap := newSFTPTap(t.Context(), events{rec: &tape{fail: errors.New("disk")}, live: &record{}}, quiet)
	if err := tap.input(packet(fxpRemove, uint32(1), "/x")); err != nil {
		t.Fatal(err)
	}
	if err := tap.output(packet(fxpStatus, uint32(1), uint32(0), "", ""), false); !errors.Is(err, errRecording) {
		t.Errorf("got %v, want %v", err, errRecording)
	}
	if endReason(errRecording) != conn.EndedByError {
		t.Error("a failed recording is an error")
	}
}

func FuzzSFTP(f *testing.F) {
	f.Add(packet(fxpOpen, uint32(1), "/a", uint32(2), uint32(0)), packet(fxpHandle, uint32(1), "h"))
	f.Add(slices.Concat(packet(fxpWrite, uint32(3), "ha", uint64(5), "data"), packet(fxpClose, uint32(1), "ha")), packet(fxpStatus, uint32(3), uint32(0)))
	f.Add(packet(fxpExtended, uint32(1), "copy-data", "a", uint64(0), uint64(0), "b", uint64(0)), packet(fxpData, uint32(1), "x"))
	f.Fuzz(func(t *testing.T, in, out []byte) {
		whole := newSFTPTap(t.Context(), events{rec: &tape{}, live: &record{}}, quiet)
		pieces := newSFTPTap(t.Context(), events{rec: &tape{}, live: &record{}}, quiet)
		errWhole := whole.input(in)
		if errWhole == nil {
			errWhole = whole.output(out, false)
		}
		var errPieces error
		for p := range slices.Chunk(in, 3) {
			if errPieces = pieces.input(p); errPieces != nil {
				break
			}
		}
		if errPieces == nil {
			for p := range slices.Chunk(out, 3) {
				if errPieces = pieces.output(p, false); errPieces != nil {
					break
				}
			}
		}
		if (errWhole == nil) != (errPieces == nil) {
			t.Fatalf("whole: %v, in pieces: %v", errWhole, errPieces)
		}
		if len(whole.client.head) > maxSFTPHead+5 || len(whole.server.head) > maxSFTPHead+5 {
			t.Fatal("holds more than its bound")
		}
	})
}
