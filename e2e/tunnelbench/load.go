package main

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// target is the destination behind every subject. The first byte of a
// connection says what it does.
type target struct {
	addr     string
	l        net.Listener
	received atomic.Int64 // bytes, over all connections
	mu       sync.Mutex
	conns    map[net.Conn]bool // guarded by mu
}

const (
	cmdEcho = 'e'
	cmdSend = 's' // sends as fast as it can
	cmdTake = 't' // takes as fast as it can, and counts
	cmdHold = 'h' // takes nothing
)

func newTarget() (*target, error) {
	// Without keep-alives, whose setting costs four system calls a connection:
	// the load must not be what is measured.
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &target{addr: l.Addr().String(), l: l, conns: map[net.Conn]bool{}}
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			t.mu.Lock()
			t.conns[nc] = true
			t.mu.Unlock()
			go func() {
				t.serve(nc)
				_ = nc.Close()
				t.mu.Lock()
				delete(t.conns, nc)
				t.mu.Unlock()
			}()
		}
	}()
	return t, nil
}

func (t *target) close() {
	_ = t.l.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for nc := range t.conns {
		_ = nc.Close()
	}
}

var block = make([]byte, 256<<10)

func (t *target) serve(nc net.Conn) {
	var cmd [1]byte
	if _, err := io.ReadFull(nc, cmd[:]); err != nil {
		return
	}
	switch cmd[0] {
	case cmdEcho:
		b := make([]byte, 4<<10)
		for {
			n, err := nc.Read(b)
			if err != nil {
				return
			}
			if _, err := nc.Write(b[:n]); err != nil {
				return
			}
		}
	case cmdSend:
		for {
			if _, err := nc.Write(block); err != nil {
				return
			}
		}
	case cmdTake:
		_ = drain(nc, &t.received)
	case cmdHold:
		// Until the other end goes away, which a write notices.
		for {
			time.Sleep(100 * time.Millisecond)
			if _, err := nc.Write([]byte{0}); err != nil {
				return
			}
		}
	}
}

// drain reads until the end and counts.
func drain(nc net.Conn, count *atomic.Int64) error {
	b := make([]byte, 256<<10)
	for {
		n, err := nc.Read(b)
		count.Add(int64(n))
		if err != nil {
			return err
		}
	}
}

// flood runs n bulk streams until stop is called. count sees delivered bytes.
type flood struct {
	conns []net.Conn
	wg    sync.WaitGroup
	count *atomic.Int64
}

func (b *bench) flood(s *subject, n int, down bool) (*flood, error) {
	f := &flood{count: new(atomic.Int64)}
	if !down {
		f.count = &b.target.received
	}
	for range n {
		cmd := byte(cmdTake)
		if down {
			cmd = cmdSend
		}
		nc, err := s.dial(cmd)
		if err != nil {
			f.stop()
			return nil, err
		}
		f.conns = append(f.conns, nc)
		f.wg.Go(func() {
			if down {
				_ = drain(nc, f.count)
				return
			}
			for {
				if _, err := nc.Write(block); err != nil {
					return
				}
			}
		})
	}
	return f, nil
}

func (f *flood) stop() {
	for _, nc := range f.conns {
		if t, ok := nc.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		_ = nc.Close()
	}
	f.wg.Wait()
}

// settle waits until the subject's processes are idle, so that one
// measurement does not run into the next.
func (s *subject) settle() {
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) {
		before := s.cpu()
		time.Sleep(60 * time.Millisecond)
		if s.cpu()-before <= 10*time.Millisecond {
			return
		}
	}
}

// rate runs n bulk streams and returns MB/s and CPU seconds per GB.
func (b *bench) rate(s *subject, n int, down bool, warm time.Duration) ([]float64, error) {
	s.settle()
	f, err := b.flood(s, n, down)
	if err != nil {
		return nil, err
	}
	defer s.settle()
	defer f.stop()
	time.Sleep(warm)
	bytes, cpu, begin := f.count.Load(), s.cpu(), time.Now()
	time.Sleep(b.time)
	got, used, took := float64(f.count.Load()-bytes), s.cpu()-cpu, time.Since(begin)
	if got == 0 {
		got = 1
	}
	return []float64{got / 1e6 / took.Seconds(), used.Seconds() / (got / 1e9)}, nil
}

// pings sends 64 bytes to and fro for a while and returns the times in ms.
func pings(nc net.Conn, for_ time.Duration, pause time.Duration) ([]float64, error) {
	var times []float64
	b := make([]byte, 64)
	for end := time.Now().Add(for_); time.Now().Before(end); {
		begin := time.Now()
		if _, err := nc.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(nc, b); err != nil {
			return nil, err
		}
		times = append(times, time.Since(begin).Seconds()*1000)
		time.Sleep(pause)
	}
	return times, nil
}

// openOne opens a stream and waits for the first echoed byte.
func openOne(s *subject) (time.Duration, error) {
	begin := time.Now()
	nc, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp", s.entry)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	if _, err := nc.Write([]byte{cmdEcho, 1}); err != nil {
		return 0, err
	}
	_, err = io.ReadFull(nc, make([]byte, 1))
	return time.Since(begin), err
}
