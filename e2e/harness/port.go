package harness

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// FreePort returns a port of 127.0.0.1 that is free, for a program that cannot
// be given an open socket. It is none of those the kernel hands out (32768 to
// 60999, ip_local_port_range): such a one is now and then given to somebody's
// connection before the program has opened it.
func FreePort(tb testing.TB) int {
	tb.Helper()
	const low, high = 20000, 30000
	for range 100 {
		port := low + rand.IntN(high-low)
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			tb.Fatal(err)
		}
		return port
	}
	tb.Fatalf("no free port in %d-%d", low, high)
	return 0
}
