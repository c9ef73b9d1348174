package fleet

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
)

// tlsTerminator stands for a load balancer that ends TLS and opens a
// connection of its own to core. It keeps what it sees in the clear.
type tlsTerminator struct {
	url string
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

// Write implements io.Writer.
func (l *tlsTerminator) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *tlsTerminator) seen() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func terminator(t *testing.T, core string) *tlsTerminator {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{outerCert(t)}, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	lb := &tlsTerminator{url: "https://" + l.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	keep := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		open = append(open, c)
	}
	wg.Go(func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			keep(front)
			wg.Go(func() {
				defer front.Close()
				back, err := tls.Dial("tcp", core, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
				if err != nil {
					return
				}
				keep(back)
				defer back.Close()
				var both sync.WaitGroup
				both.Go(func() { io.Copy(io.MultiWriter(back, lb), front); back.CloseWrite() })
				io.Copy(io.MultiWriter(front, lb), back)
				front.Close()
				both.Wait()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return lb
}
