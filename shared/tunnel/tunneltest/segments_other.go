//go:build !linux

package tunneltest

import (
	"net"
	"net/netip"
)

type segmented struct{ *net.UDPConn }

func newSegmented(pc *net.UDPConn) segmented {
	_ = pc.SetReadBuffer(8 << 20)
	return segmented{pc}
}

func (s segmented) read(p []byte) (n, each int, from netip.AddrPort, err error) {
	n, from, err = s.ReadFromUDPAddrPort(p)
	return n, 0, from, err
}

func (s segmented) write(p []byte, _ int, to netip.AddrPort) {
	if to.IsValid() {
		_, _ = s.WriteToUDPAddrPort(p, to)
		return
	}
	_, _ = s.Write(p)
}
