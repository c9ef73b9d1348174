package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// sendBuffer bounds one transaction, in bytes.
	sendBuffer = 64 << 20
	recvBuffer = 16 << 20
	// answerTime bounds the wait for the kernel's answer, which is there when
	// the request returns; only a lost one is waited for.
	answerTime = 10 * time.Second
	// maxDumps is how often a dump that was interrupted by a change is begun
	// again.
	maxDumps = 20
)

// socket is one netlink socket: requests and their answers, in turn. It is not
// safe for concurrent use.
type socket struct {
	fd   int
	port uint32
	seq  uint32
	buf  []byte
}

func openSocket(protocol int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	s := &socket{fd: fd, buf: make([]byte, 256<<10)}
	if err := s.prepare(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return s, nil
}

func (s *socket) prepare() error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	sa, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("name of netlink socket: %w", err)
	}
	if nl, ok := sa.(*unix.SockaddrNetlink); ok {
		s.port = nl.Pid
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer); err != nil {
		return fmt.Errorf("netlink send buffer (this needs CAP_NET_ADMIN): %w", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, recvBuffer); err != nil {
		return fmt.Errorf("netlink receive buffer (this needs CAP_NET_ADMIN): %w", err)
	}
	tv := unix.NsecToTimeval(answerTime.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("netlink time-out: %w", err)
	}
	for _, o := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, o, 1); err != nil {
			return fmt.Errorf("netlink option %d: %w", o, err)
		}
	}
	return nil
}

func (s *socket) Close() error { return unix.Close(s.fd) }

// errInterrupted says that something changed during a dump.
var errInterrupted = errors.New("dump interrupted")

// message is one received netlink message.
type message struct {
	kind  uint16
	flags uint16
	seq   uint32
	port  uint32
	data  []byte // valid until the next receive
}

func (s *socket) send(b []byte) error {
	if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send %d bytes to netlink: %w", len(b), err)
	}
	return nil
}

// receive hands each message of one datagram to f.
func (s *socket) receive(f func(message) error) error {
	var n int
	var err error
	for {
		n, _, err = unix.Recvfrom(s.fd, s.buf, 0)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("receive from netlink: %w", err)
	}
	for b := s.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		l := int(binary.NativeEndian.Uint32(b))
		if l < unix.SizeofNlMsghdr || l > len(b) {
			return fmt.Errorf("netlink message of %d bytes in %d", l, len(b))
		}
		m := message{
			kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]), data: b[unix.SizeofNlMsghdr:l],
		}
		if err := f(m); err != nil {
			return err
		}
		b = b[min(align(l), len(b)):]
	}
	return nil
}

// kernelError is what an error message says; nil for an acknowledgement.
func kernelError(m message) error {
	if len(m.data) < 4 {
		return errors.New("short netlink error")
	}
	code := int32(binary.NativeEndian.Uint32(m.data))
	if code == 0 {
		return nil
	}
	errno := syscall.Errno(-code)
	if m.flags&unix.NLM_F_ACK_TLVS != 0 && m.flags&unix.NLM_F_CAPPED != 0 && len(m.data) > 20 {
		for a := range attributes(m.data[20:]) {
			if a.kind == unix.NLMSGERR_ATTR_MSG {
				return fmt.Errorf("%w (%s)", errno, text(a.data))
			}
		}
	}
	return errno
}

// do sends requests of which the last asks for an acknowledgement and waits for
// it. What else arrives (echoes of deleted elements) goes to f, if not nil.
func (s *socket) do(r *requests, f func(message) error) error {
	first, last := r.first, r.last
	if err := s.send(r.buf); err != nil {
		return err
	}
	var failed error
	for done := false; !done; {
		err := s.receive(func(m message) error {
			// Echoes carry no number on some kernels.
			if m.seq != 0 && m.seq-first > last-first {
				return nil // of a request before, given up
			}
			if m.kind != unix.NLMSG_ERROR {
				if f != nil {
					return f(m)
				}
				return nil
			}
			err := kernelError(m)
			if err != nil && failed == nil {
				failed = err
			}
			// A refused batch is refused as a whole; the begin message stands
			// for what is wrong with the commit.
			if m.seq == last || err != nil {
				done = true
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return failed
}

// dump asks for a list and hands its messages to f.
func (s *socket) dump(r *requests, f func(message) error) error {
	if err := s.send(r.buf); err != nil {
		return err
	}
	var result error
	for done := false; !done; {
		err := s.receive(func(m message) error {
			if m.seq != r.last {
				return nil
			}
			if m.flags&unix.NLM_F_DUMP_INTR != 0 && result == nil {
				result = errInterrupted
			}
			switch m.kind {
			case unix.NLMSG_ERROR:
				done = true
				if err := kernelError(m); err != nil && result == nil {
					result = err
				}
			case unix.NLMSG_DONE:
				done = true
				if len(m.data) >= 4 {
					if code := int32(binary.NativeEndian.Uint32(m.data)); code < 0 && result == nil {
						result = syscall.Errno(-code)
					}
				}
			default:
				if result == nil {
					result = f(m)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if errors.Is(result, syscall.EINTR) {
		return errInterrupted
	}
	return result
}

// requests are netlink messages to send at once.
type requests struct {
	buf         []byte
	first, last uint32
	start       int // of the message being written
	sock        *socket
}

func (s *socket) requests() *requests { return &requests{sock: s, first: s.seq + 1} }

func align(n int) int { return (n + 3) &^ 3 }

// begin starts a message with the given fixed header.
func (r *requests) begin(kind, flags uint16, header ...byte) {
	r.sock.seq++
	r.last = r.sock.seq
	r.start = len(r.buf)
	r.buf = binary.NativeEndian.AppendUint32(r.buf, 0)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, flags|unix.NLM_F_REQUEST)
	r.buf = binary.NativeEndian.AppendUint32(r.buf, r.last)
	r.buf = binary.NativeEndian.AppendUint32(r.buf, 0)
	r.buf = append(r.buf, header...)
}

// end closes the message.
func (r *requests) end() {
	binary.NativeEndian.PutUint32(r.buf[r.start:], uint32(len(r.buf)-r.start))
}

// flag sets flags of the message begun last.
func (r *requests) flag(flags uint16) {
	at := r.start + 6
	binary.NativeEndian.PutUint16(r.buf[at:], binary.NativeEndian.Uint16(r.buf[at:])|flags)
}

func (r *requests) pad() {
	for len(r.buf)%4 != 0 {
		r.buf = append(r.buf, 0)
	}
}

func (r *requests) attr(kind uint16, data []byte) {
	r.buf = binary.NativeEndian.AppendUint16(r.buf, uint16(4+len(data)))
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind)
	r.buf = append(r.buf, data...)
	r.pad()
}

func (r *requests) text(kind uint16, s string) {
	r.buf = binary.NativeEndian.AppendUint16(r.buf, uint16(5+len(s)))
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind)
	r.buf = append(r.buf, s...)
	r.buf = append(r.buf, 0)
	r.pad()
}

func (r *requests) be32(kind uint16, v uint32) {
	r.buf = binary.NativeEndian.AppendUint16(r.buf, 8)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind)
	r.buf = binary.BigEndian.AppendUint32(r.buf, v)
}

func (r *requests) be64(kind uint16, v uint64) {
	r.buf = binary.NativeEndian.AppendUint16(r.buf, 12)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind)
	r.buf = binary.BigEndian.AppendUint64(r.buf, v)
}

// nest opens a nested attribute; close it with unnest(position).
func (r *requests) nest(kind uint16) int {
	at := len(r.buf)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, 0)
	r.buf = binary.NativeEndian.AppendUint16(r.buf, kind|unix.NLA_F_NESTED)
	return at
}

func (r *requests) unnest(at int) {
	binary.NativeEndian.PutUint16(r.buf[at:], uint16(len(r.buf)-at))
}

// attribute is one decoded attribute.
type attribute struct {
	kind uint16
	data []byte
}

// attributes lists attributes and stops at the first that does not fit.
func attributes(b []byte) func(yield func(attribute) bool) {
	return func(yield func(attribute) bool) {
		for len(b) >= 4 {
			l := int(binary.NativeEndian.Uint16(b))
			if l < 4 || l > len(b) {
				return
			}
			if !yield(attribute{binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), b[4:l]}) {
				return
			}
			b = b[min(align(l), len(b)):]
		}
	}
}

// text is a zero-terminated string.
func text(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func be64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
