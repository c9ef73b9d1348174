package webterm

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pkg/sftp"

	"caponier/core/internal/api"
)

func packet(kind byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(body)))
	return append(append(b, kind), body...)
}

func sshText(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// hostile answers SFTP requests: READDIR with the names of list, again and
// again until endless is false and it was sent once.
func hostile(c net.Conn, list []string, endless bool) {
	sent := false
	for {
		head := make([]byte, 9)
		if _, err := io.ReadFull(c, head[:4]); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint32(head[:4]))
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		var answer []byte
		switch id := body[1:5]; {
		case body[0] == 1: // INIT
			answer = packet(2, []byte{0, 0, 0, 3})
		case body[0] == 11: // OPENDIR
			answer = packet(102, sshText(append([]byte(nil), id...), "h"))
		case body[0] == 12 && (endless || !sent): // READDIR
			sent = true
			b := binary.BigEndian.AppendUint32(append([]byte(nil), id...), uint32(len(list)))
			for _, n := range list {
				b = sshText(sshText(b, n), "")
				b = append(b, 0, 0, 0, 0)
			}
			answer = packet(fxpName, b)
		default: // STATUS: the end
			answer = packet(101, sshText(sshText(append(append([]byte(nil), id...), 0, 0, 0, 1), ""), ""))
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

func hostileHandle(t *testing.T, list []string, endless bool) *filesHandle {
	t.Helper()
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); hostile(far, list, endless) }()
	n := newNames(near, func() { near.Close() })
	c, err := sftp.NewClientPipe(n, near)
	must(t, err)
	t.Cleanup(func() { _ = c.Close(); near.Close(); far.Close(); <-done })
	return &filesHandle{c: c, names: n, reading: make(chan struct{}, 1)}
}

// TestEndlessDirectory: a target that never stops listing is stopped.
func TestEndlessDirectory(t *testing.T) {
	many := make([]string, 1000)
	for i := range many {
		many[i] = "x"
	}
	for name, list := range map[string][]string{"many": many, "long": {strings.Repeat("y", 200<<10)}} {
		h := hostileHandle(t, list, true)
		_, _, err := h.readDir(t.Context(), "/")
		if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != "too_many" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestNamesThatArePaths: what leads out of a directory is no file of it.
func TestNamesThatArePaths(t *testing.T) {
	h := hostileHandle(t, []string{"a", "b/..", "..", ".", "", "/", "x/.", "a\x00b", "dir/c", strings.Repeat("n", 256)}, false)
	infos, _, err := h.readDir(context.Background(), "/")
	must(t, err)
	var got []string
	for _, i := range infos {
		got = append(got, i.Name())
	}
	if strings.Join(got, " ") != "a c" {
		t.Errorf("%q", got)
	}
}

// TestNamesInPieces: packets are told apart however they arrive.
func TestNamesInPieces(t *testing.T) {
	stream := packet(103, make([]byte, 40)) // data
	for range 3 {
		stream = append(stream, packet(fxpName, append([]byte{0, 0, 0, 1, 0, 0, 0, 7}, make([]byte, 30)...))...)
	}
	for _, r := range []io.Reader{strings.NewReader(string(stream)), iotest.OneByteReader(strings.NewReader(string(stream)))} {
		n := newNames(r, func() {})
		if _, err := io.Copy(io.Discard, n); err != nil {
			t.Fatal(err)
		}
		if used := listedEntries - n.entries.Load(); used != 21 {
			t.Errorf("%d names counted", used)
		}
	}
}
