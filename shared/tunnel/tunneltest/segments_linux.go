package tunneltest

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// segmented is a UDP socket that takes and gives packets of one sender in
// rows, which the kernel joins and cuts (UDP_GRO, UDP_SEGMENT): a proxy that
// handled each alone would be the narrow place of what is measured.
type segmented struct{ *net.UDPConn }

func newSegmented(pc *net.UDPConn) segmented {
	_ = pc.SetReadBuffer(8 << 20)
	_ = pc.SetWriteBuffer(8 << 20)
	if raw, err := pc.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1) })
	}
	return segmented{pc}
}

// read returns the bytes of a row of packets and the length of each but the
// last; 0 if it is only one.
func (s segmented) read(p []byte) (n, each int, from netip.AddrPort, err error) {
	var oob [64]byte
	n, m, _, from, err := s.ReadMsgUDPAddrPort(p, oob[:])
	if err != nil {
		return 0, 0, from, err
	}
	all, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil {
		return n, 0, from, nil
	}
	for _, c := range all {
		if c.Header.Level == unix.SOL_UDP && c.Header.Type == unix.UDP_GRO && len(c.Data) >= 4 {
			each = int(binary.NativeEndian.Uint32(c.Data))
		}
	}
	return n, each, from, nil
}

// write sends a row of packets; to is the zero value for a connected socket.
func (s segmented) write(p []byte, each int, to netip.AddrPort) {
	var oob []byte
	if each > 0 && each < len(p) {
		oob = make([]byte, unix.CmsgSpace(2))
		// A header of the native layout: length, level, type.
		binary.NativeEndian.PutUint64(oob, uint64(unix.CmsgLen(2)))
		binary.NativeEndian.PutUint32(oob[8:], unix.SOL_UDP)
		binary.NativeEndian.PutUint32(oob[12:], unix.UDP_SEGMENT)
		binary.NativeEndian.PutUint16(oob[16:], uint16(each))
	}
	_, _, _ = s.WriteMsgUDPAddrPort(p, oob, to) // packets may get lost
}
