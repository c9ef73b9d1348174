package tunneltest

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// ErrCut is what a cut connection returns.
var ErrCut = errors.New("connection cut by the test")

// Faulty is a connection with faults after a number of bytes. The zero
// thresholds never come.
type Faulty struct {
	net.Conn
	CutAfter     int64 // bytes read until the connection is cut
	CorruptAfter int64 // bytes read until one bit is flipped
	StallAfter   int64 // bytes written until writes vanish and reads wait

	mu      sync.Mutex
	read    int64
	written int64
}

// Read implements net.Conn.
func (f *Faulty) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	f.mu.Lock()
	before := f.read
	f.read += int64(n)
	stalled := f.StallAfter > 0 && f.written >= f.StallAfter
	f.mu.Unlock()
	if stalled {
		// Swallow what comes until somebody closes.
		for {
			if _, err := f.Conn.Read(p); err != nil {
				return 0, err
			}
		}
	}
	if f.CutAfter > 0 && f.read >= f.CutAfter {
		_ = f.Conn.Close()
		return 0, ErrCut
	}
	if at := f.CorruptAfter - before - 1; f.CorruptAfter > 0 && at >= 0 && at < int64(n) {
		p[at] ^= 1
	}
	return n, err
}

// Write implements net.Conn.
func (f *Faulty) Write(p []byte) (int, error) {
	f.mu.Lock()
	f.written += int64(len(p))
	stalled := f.StallAfter > 0 && f.written >= f.StallAfter
	f.mu.Unlock()
	if stalled {
		return len(p), nil
	}
	return f.Conn.Write(p)
}

// Proxy forwards TCP connections to a target, each byte delayed in each
// direction. Its buffers hold whatever the path holds.
type Proxy struct {
	Addr string

	l      net.Listener
	target string
	delay  time.Duration
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]bool // guarded by mu; nil when closed
	tap    func(b []byte)
}

// NewProxy listens on loopback. tap, if not nil, sees all bytes that pass,
// possibly at the same time from several goroutines.
func NewProxy(target string, delay time.Duration, tap func([]byte)) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{Addr: l.Addr().String(), l: l, target: target, delay: delay, conns: map[net.Conn]bool{}, tap: tap}
	p.wg.Go(p.accept)
	return p, nil
}

func (p *Proxy) accept() {
	for {
		a, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() {
			defer a.Close()
			b, err := net.Dial("tcp", p.target)
			if err != nil {
				return
			}
			defer b.Close()
			if !p.add(a, b) {
				return
			}
			defer p.remove(a, b)
			var wg sync.WaitGroup
			wg.Go(func() { p.pump(a, b) })
			p.pump(b, a)
			wg.Wait()
		})
	}
}

func (p *Proxy) add(cs ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return false
	}
	for _, c := range cs {
		p.conns[c] = true
	}
	return true
}

func (p *Proxy) remove(cs ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range cs {
		delete(p.conns, c)
	}
}

// Cut closes all connections that pass through, not the listener.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// Close ends the proxy and what passes through it.
func (p *Proxy) Close() error {
	err := p.l.Close()
	p.Cut()
	p.mu.Lock()
	p.conns = nil
	p.mu.Unlock()
	p.wg.Wait()
	return err
}

type packet struct {
	b    *[]byte
	n    int
	each int // length of each datagram in it but the last; 0 if it is one
	due  time.Time
}

var packets = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// pump copies src to dst, delayed.
func (p *Proxy) pump(dst, src net.Conn) {
	queue := make(chan packet, 64<<10) // 64 MiB at 1 KiB a packet, gigabytes at most
	var wg sync.WaitGroup
	wg.Go(func() {
		broken := false
		for pk := range queue {
			if p.delay > 0 {
				if d := time.Until(pk.due); d > 0 {
					time.Sleep(d)
				}
			}
			if !broken {
				if _, err := dst.Write((*pk.b)[:pk.n]); err != nil {
					broken = true
					_ = src.Close()
				}
			}
			packets.Put(pk.b)
		}
		if h, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
	})
	for {
		b := packets.Get().(*[]byte)
		n, err := src.Read(*b)
		if n > 0 {
			if p.tap != nil {
				p.tap((*b)[:n])
			}
			queue <- packet{b, n, 0, time.Now().Add(p.delay)}
		}
		if err != nil {
			if err != io.EOF {
				_ = dst.Close()
			}
			break
		}
	}
	close(queue)
	wg.Wait()
}
