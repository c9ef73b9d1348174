package tunnel

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"caponier/shared/wire"
)

// scripted is a connection that delivers given bytes, in reads of at most
// step bytes, and keeps what is written.
type scripted struct {
	in   *bytes.Reader
	step int
	out  bytes.Buffer
}

func (s *scripted) Read(p []byte) (int, error) {
	if s.step > 0 && len(p) > s.step {
		p = p[:s.step]
	}
	return s.in.Read(p)
}
func (s *scripted) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *scripted) Close() error                     { return nil }
func (s *scripted) LocalAddr() net.Addr              { return streamAddr("") }
func (s *scripted) RemoteAddr() net.Addr             { return streamAddr("") }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }

// wsFrame encodes one frame as a client (masked) or server does.
func wsFrame(fin bool, op byte, masked bool, payload string) []byte {
	b := []byte{op, byte(len(payload))}
	if fin {
		b[0] |= 0x80
	}
	if len(payload) > 125 {
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	}
	p := []byte(payload)
	if masked {
		b[1] |= 0x80
		key := [4]byte{1, 2, 3, 4}
		b = append(b, key[:]...)
		mask(p, p, key, 0)
	}
	return append(b, p...)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// TestFragmentsAndPings reads what proxies may make of our frames.
func TestFragmentsAndPings(t *testing.T) {
	for _, masked := range []bool{false, true} {
		in := join(
			wsFrame(true, opPing, masked, "early"),
			wsFrame(false, opBinary, masked, "Hello, "),
			wsFrame(true, opPing, masked, "between"),
			wsFrame(false, opContinuation, masked, ""),
			wsFrame(true, opContinuation, masked, "fragmented "),
			wsFrame(true, opPong, masked, "unasked"),
			wsFrame(true, opBinary, masked, string(bytes.Repeat([]byte("w"), 300))),
			wsFrame(true, opClose, masked, "\x03\xe8bye"),
			wsFrame(true, opBinary, masked, "after the end"),
		)
		want := "Hello, fragmented " + string(bytes.Repeat([]byte("w"), 300))
		for _, step := range []int{0, 1, 3} {
			nc := &scripted{in: bytes.NewReader(in), step: step}
			w := newWSConn(nc, !masked, nil)
			w.bare = true
			got, err := io.ReadAll(w)
			if err != nil || string(got) != want {
				t.Errorf("masked %v, step %d: got %q, %v", masked, step, got, err)
			}
			var pongs []byte
			if masked { // we are the server and answer unmasked
				pongs = join(wsFrame(true, opPong, false, "early"), wsFrame(true, opPong, false, "between"))
			} else {
				bare := func(s string) []byte {
					return append([]byte{0x80 | opPong, 0x80 | byte(len(s)), 0, 0, 0, 0}, s...)
				}
				pongs = join(bare("early"), bare("between"))
			}
			if !bytes.Equal(nc.out.Bytes(), pongs) {
				t.Errorf("masked %v: answered %x, want %x", masked, nc.out.Bytes(), pongs)
			}
		}
	}
}

func TestWebsocketViolations(t *testing.T) {
	for name, in := range map[string][]byte{
		"masked by a server":    wsFrame(true, opBinary, true, "x"),
		"text":                  wsFrame(true, 1, false, "x"),
		"reserved bit":          {0xc2, 1, 'x'},
		"unknown opcode":        wsFrame(true, 3, false, "x"),
		"continuation of what":  wsFrame(true, opContinuation, false, "x"),
		"new message too early": join(wsFrame(false, opBinary, false, "x"), wsFrame(true, opBinary, false, "y")),
		"fragmented ping":       wsFrame(false, opPing, false, "x"),
		"long ping":             wsFrame(true, opPing, false, string(make([]byte, 126))),
		"cut in the payload":    wsFrame(true, opBinary, false, "xyz")[:4],
		"cut in the header":     {0x82, 126, 1},
	} {
		w := newWSConn(&scripted{in: bytes.NewReader(in)}, true, nil)
		if got, err := io.ReadAll(w); err == nil {
			t.Errorf("%s: read %q and an orderly end", name, got)
		}
	}
}

// TestMask compares with the definition, at every phase and length.
func TestMask(t *testing.T) {
	key := [4]byte{0xa1, 0x5c, 0x33, 0xf0}
	for n := range 1100 {
		src := make([]byte, n)
		for i := range src {
			src[i] = byte(i * 7)
		}
		for at := range 4 {
			got := make([]byte, n)
			next := mask(got, src, key, at)
			for i := range src {
				if want := src[i] ^ key[(at+i)%4]; got[i] != want {
					t.Fatalf("length %d, phase %d: byte %d is %x, want %x", n, at, i, got[i], want)
				}
			}
			if next != (at+n)%4 {
				t.Fatalf("length %d, phase %d: next %d", n, at, next)
			}
		}
	}
}

func FuzzWebsocket(f *testing.F) {
	f.Add(wsFrame(true, opBinary, false, "hello"), true)
	f.Add(join(wsFrame(true, opPing, true, "p"), wsFrame(false, opBinary, true, "a"), wsFrame(true, opContinuation, true, "b")), false)
	f.Add([]byte{0x82, 127, 0xff, 0, 0, 0, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, in []byte, client bool) {
		nc := &scripted{in: bytes.NewReader(in)}
		got, _ := io.ReadAll(newWSConn(nc, client, nil))
		if len(got) > len(in) {
			t.Fatalf("%d bytes in, %d out", len(in), len(got))
		}
		if nc.out.Len() > 4*len(in)+16 {
			t.Fatalf("%d bytes in provoked %d", len(in), nc.out.Len())
		}
	})
}

// fuzzLink is a link that delivers given bytes and takes everything.
type fuzzLink struct {
	in   *bytes.Reader
	sent int
}

func (l *fuzzLink) Read(p []byte) (int, error) { return l.in.Read(p) }
func (l *fuzzLink) Close() error               { return nil }
func (l *fuzzLink) writePieces(ps []piece) error {
	for _, p := range ps {
		l.sent += p.end - p.off
	}
	return nil
}

// FuzzSession feeds a session arbitrary frames: it ends without a panic and
// keeps its bounds.
func FuzzSession(f *testing.F) {
	preface, _ := wire.AppendPreface(nil, wire.Preface{Kind: wire.StreamDial, Network: "tcp", Dest: "a:1"})
	open := wire.AppendFrame(nil, wire.FrameOpen, 1, preface)
	f.Add(join(open, wire.AppendFrame(nil, wire.FrameData, 1, []byte("hello")), wire.AppendFrame(nil, wire.FrameFin, 1, nil)))
	f.Add(join(open, wire.AppendFrame(nil, wire.FrameWindow, 1, []byte{0x7f, 0, 0, 0}), wire.AppendFrame(nil, wire.FrameWindow, 1, []byte{0x7f, 0, 0, 0})))
	f.Add(join(open, open))
	f.Add(wire.AppendFrame(nil, wire.FrameGoAway, 0, wire.AppendError(nil, wire.Errorf(wire.CodeDraining, "bye"))))
	f.Add(join(open, wire.AppendFrame(nil, wire.FrameFin, 1, nil), wire.AppendFrame(nil, wire.FrameData, 1, []byte("late"))))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newMuxSession(&fuzzLink{in: bytes.NewReader(in)}, false, Info{}, Limits{MaxStreams: 4, Backlog: 2})
		<-s.Done()
		s.workers.Wait()
		if n := s.buffered.Load(); n < 0 || n > int64(len(in)) {
			t.Fatalf("%d bytes in, %d buffered", len(in), n)
		}
		if len(s.backlog) > 2 || s.theirs < 0 || s.theirs > 4 {
			t.Fatalf("%d streams, %d in the backlog", s.theirs, len(s.backlog))
		}
		if s.Err() == nil {
			t.Fatal("no reason")
		}
	})
}

func BenchmarkMask(b *testing.B) {
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		mask(p, p, [4]byte{1, 2, 3, 4}, 0)
	}
}
