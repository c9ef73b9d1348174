package tunnel

import (
	"bytes"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caponier/shared/wire"
)

// What a full socket did not take comes before what arrives later, also when
// the socket has room again before the relay has run.
func TestSinkKeepsOrder(t *testing.T) {
	near, far := socketPair(t)
	if err := near.SetWriteBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	all := make([]byte, 50<<10)
	for i := range all {
		all[i] = byte(i ^ i>>8)
	}
	first, second := all[:40<<10], all[40<<10:]
	s := &muxSession{lim: Limits{MaxBuffered: 1 << 20}, info: Info{Started: time.Now()}}
	st := newStream(s, 2, wire.Preface{}, false)
	k := &sink{raw: rawOf(near), count: func(int) {}}
	st.sink = k

	if _, err := st.received(first, nil); err != nil {
		t.Fatal(err)
	}
	if k.n == 0 || k.n >= int64(len(first)) {
		t.Fatalf("the socket took %d of %d bytes", k.n, len(first))
	}
	got := make([]byte, len(all))
	if _, err := io.ReadFull(far, got[:k.n]); err != nil {
		t.Fatal(err)
	}
	if _, err := st.received(second, nil); err != nil {
		t.Fatal(err)
	}
	if err := near.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	took := k.n
	for rest := got[took:]; st.inq.bytes > 0; {
		n := st.inq.read(rest)
		took, rest = took+int64(n), rest[n:]
	}
	late, err := io.ReadAll(far)
	if err != nil || len(late) > 0 {
		t.Errorf("%d bytes overtook those that were queued, %v", len(late), err)
	}
	if int(took) != len(all) || !bytes.Equal(got, all) {
		t.Errorf("%d of %d bytes, or in another order", took, len(all))
	}
}

func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		nc, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = nc.Close() })
		ends[i] = nc.(*net.UnixConn)
	}
	return ends[0], ends[1]
}
