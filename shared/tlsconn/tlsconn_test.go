package tlsconn

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counting counts the calls that reach the network.
type counting struct {
	net.Conn
	reads, writes atomic.Int64
	fail          atomic.Bool
}

var errLine = errors.New("the line is cut")

// Read implements net.Conn.
func (c *counting) Read(b []byte) (int, error) {
	c.reads.Add(1)
	return c.Conn.Read(b)
}

// Write implements net.Conn.
func (c *counting) Write(b []byte) (int, error) {
	c.writes.Add(1)
	if c.fail.Load() {
		return 0, errLine
	}
	return c.Conn.Write(b)
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"a.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// pair is a connection with its ends counted, and a deadline for the test.
func pair(t *testing.T) (client, server *counting) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		s.Close()
	})
	for _, x := range []net.Conn{c, s} {
		if err := x.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	return &counting{Conn: c}, &counting{Conn: s}
}

// secure makes both ends TLS and shakes hands.
func secure(t *testing.T, c, s net.Conn, cert tls.Certificate, version uint16) (*Conn, *Conn) {
	t.Helper()
	client := Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
	server := Server(s, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: version, MaxVersion: version, DynamicRecordSizingDisabled: true})
	errs := make(chan error, 1)
	go func() { errs <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-errs); err != nil {
		t.Fatal(err)
	}
	return client, server
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// TestBytes sends bytes both ways at once, written and read in pieces of any
// size, under each version, and inside another TLS.
func TestBytes(t *testing.T) {
	cert := certificate(t)
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		for _, nested := range []bool{false, true} {
			t.Run(map[bool]string{false: name, true: name + " inside 1.3"}[nested], func(t *testing.T) {
				t.Parallel()
				var a, b net.Conn
				a, b = pair(t)
				if nested {
					a, b = secure(t, a, b, cert, tls.VersionTLS13)
				}
				client, server := secure(t, a, b, cert, version)
				const size = 3<<20 + 77
				var wg sync.WaitGroup
				for _, way := range [][2]*Conn{{client, server}, {server, client}} {
					sent := noise(size)
					wg.Go(func() {
						random := mrand.New(mrand.NewPCG(1, 2))
						for rest := sent; len(rest) > 0; {
							n := min(len(rest), 1+random.IntN(300<<10))
							if m, err := way[0].Write(rest[:n]); m != n || err != nil {
								t.Errorf("write of %d: %d, %v", n, m, err)
								return
							}
							rest = rest[n:]
						}
						if err := way[0].CloseWrite(); err != nil {
							t.Error(err)
						}
					})
					wg.Go(func() {
						random := mrand.New(mrand.NewPCG(3, 4))
						got, buf := []byte{}, make([]byte, 200<<10)
						for {
							n, err := way[1].Read(buf[:1+random.IntN(len(buf))])
							got = append(got, buf[:n]...)
							if err == io.EOF {
								break
							}
							if err != nil {
								t.Error(err)
								return
							}
						}
						if !bytes.Equal(got, sent) {
							t.Errorf("%d bytes arrived of %d, or others", len(got), len(sent))
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// arrived waits until so many bytes are there to be read.
func arrived(t *testing.T, c *counting, n int) {
	t.Helper()
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		queued := 0
		if err := errors.Join(raw.Control(func(fd uintptr) { queued, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }), err); err != nil {
			t.Fatal(err)
		}
		if queued >= n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes have arrived, want %d", queued, n)
		}
	}
}

// TestOneCall: what is written at once leaves at once, and what is there is
// read at once.
func TestOneCall(t *testing.T) {
	c, s := pair(t)
	client, server := secure(t, c, s, certificate(t), tls.VersionTLS13)
	before := s.writes.Load()
	sent := noise(7 * plain)
	if n, err := server.Write(sent); n != len(sent) || err != nil {
		t.Fatal(n, err)
	}
	if n := s.writes.Load() - before; n != 1 {
		t.Errorf("%d writes, want 1", n)
	}
	arrived(t, c, 3*record)
	got := make([]byte, 0, len(sent))
	buf := make([]byte, len(sent))
	most := 0
	for len(got) < len(sent) {
		n, err := client.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got, most = append(got, buf[:n]...), max(most, n)
	}
	if !bytes.Equal(got, sent) {
		t.Error("other bytes arrived")
	}
	if most <= plain {
		t.Errorf("no read took more than a record: %d bytes", most)
	}
}

// TestReadWaitsForTheFirstBytesOnly: with less than what was asked for, Read
// returns what there is, and a record that has not arrived is not waited for.
func TestReadWaitsForTheFirstBytesOnly(t *testing.T) {
	c, s := pair(t)
	client, server := secure(t, c, s, certificate(t), tls.VersionTLS13)
	buf := make([]byte, 64<<10)
	for range 50 {
		if _, err := server.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		n, err := client.Read(buf)
		if string(buf[:n]) != "ping" || err != nil {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if _, err := client.Write(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, buf[:4]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNothingIsNoEnd: TLS goes on after it was told that nothing is there.
func TestNothingIsNoEnd(t *testing.T) {
	c, s := pair(t)
	client, server := secure(t, c, s, certificate(t), tls.VersionTLS12) // no tickets under way
	if n, err := client.readNow(make([]byte, plain)); n != 0 || !errors.Is(err, errNothing) {
		t.Fatalf("%d, %v, want that nothing is there", n, err)
	}
	if _, err := server.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := client.Read(buf); string(buf[:n]) != "still here" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// TestEnd: what came before the end is read, and then the end.
func TestEnd(t *testing.T) {
	c, s := pair(t)
	client, server := secure(t, c, s, certificate(t), tls.VersionTLS13)
	sent := noise(plain)
	if _, err := server.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(client)
	if !bytes.Equal(got, sent) || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestCutLine: an end that TLS did not announce is no end of the data.
func TestCutLine(t *testing.T) {
	c, s := pair(t)
	client, server := secure(t, c, s, certificate(t), tls.VersionTLS13)
	if _, err := server.Write(noise(100)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Conn.Write([]byte{23, 3, 3, 0x40, 0, 1, 2, 3}); err != nil { // part of a record
		t.Fatal(err)
	}
	s.Conn.Close()
	got, err := io.ReadAll(client)
	if len(got) != 100 || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v, want 100 and an unexpected end", len(got), err)
	}
}

// TestForged: a record that was tampered with is refused.
func TestForged(t *testing.T) {
	c, s := pair(t)
	client, server := secure(t, c, s, certificate(t), tls.VersionTLS13)
	if _, err := server.Write(noise(plain)); err != nil {
		t.Fatal(err)
	}
	forged := append([]byte{23, 3, 3, 0, 40}, noise(40)...)
	if _, err := s.Conn.Write(forged); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(client)
	if alert, ok := errors.AsType[tls.AlertError](err); err == nil || ok && alert == 0 || len(got) != plain {
		t.Errorf("%d bytes, %v, want %d and a refusal", len(got), err, plain)
	}
}

// TestFailedWrite: after records were lost nothing more is written, since TLS
// has counted them.
func TestFailedWrite(t *testing.T) {
	c, s := pair(t)
	_, server := secure(t, c, s, certificate(t), tls.VersionTLS13)
	s.fail.Store(true)
	if n, err := server.Write(noise(3 * plain)); n != 0 || !errors.Is(err, errLine) {
		t.Fatalf("%d, %v, want the line's error", n, err)
	}
	s.fail.Store(false)
	before := s.writes.Load()
	if _, err := server.Write([]byte("after")); !errors.Is(err, errLine) {
		t.Errorf("%v, want the line's error again", err)
	}
	if s.writes.Load() != before {
		t.Error("something was written after what was lost")
	}
}

// TestWriteShakesHands: a first Write that is large does not hold the handshake.
func TestWriteShakesHands(t *testing.T) {
	c, s := pair(t)
	client := Client(c, &tls.Config{InsecureSkipVerify: true})
	server := Server(s, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
	errs := make(chan error, 1)
	sent := noise(5 * plain)
	go func() {
		_, err := client.Write(sent)
		errs <- err
	}()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(server, got); err != nil {
		t.Fatal(err)
	}
	if err := <-errs; err != nil || !bytes.Equal(got, sent) {
		t.Error("other bytes arrived:", err)
	}
	if client.NetConn() != net.Conn(c) || client.Conn.NetConn().(interface{ NetConn() net.Conn }).NetConn() != net.Conn(c) {
		t.Error("the connection below is not found")
	}
}
