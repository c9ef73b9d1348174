package tunnel

import (
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

const canReadRaw = true

// readRaw reads from a non-blocking descriptor; again means nothing is there.
func readRaw(fd uintptr, p []byte) (n int, again bool, err error) {
	for {
		n, err = unix.Read(int(fd), p)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return 0, true, nil
		}
		return max(n, 0), false, err
	}
}

// writeRaw writes what a non-blocking descriptor takes at once, which may be
// nothing.
func writeRaw(fd uintptr, p []byte) (int, error) {
	for {
		n, err := unix.Write(int(fd), p)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			err = nil
		}
		return max(n, 0), err
	}
}

// readError merges the result of readRaw with that of the RawConn around it.
func readError(n int, err, cerr error) error {
	switch {
	case cerr != nil:
		return cerr
	case err != nil:
		return err
	case n == 0:
		return io.EOF
	}
	return nil
}

// awaitReadable waits until a socket has bytes, an end or an error to read.
func awaitReadable(raw syscall.RawConn) error {
	var b [1]byte
	return raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		return err != unix.EAGAIN && err != unix.EINTR
	})
}

// unreadOf reports whether a socket holds received bytes.
func unreadOf(raw syscall.RawConn) bool {
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n > 0
}

// limitQueue sets a fixed receive queue; 0 gives it back to the kernel.
func limitQueue(fd uintptr, n int) {
	if n == 0 {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BUF_LOCK, 0)
		return
	}
	_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, n)
}

func limitUnsent(fd uintptr, n int) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n)
}
