package main

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

func (b *bench) bulk() error {
	for _, n := range []int{1, 16} {
		for _, down := range []bool{false, true} {
			label := fmt.Sprintf("%d stream, up", n)
			if down {
				label = fmt.Sprintf("%d stream, down", n)
			}
			if !b.figures.MatchString(label) {
				continue
			}
			m, err := b.each(b.subjects, func(s *subject) ([]float64, error) { return b.rate(s, n, down, 300*time.Millisecond) })
			if err != nil {
				return err
			}
			g := goal{}
			if n == 1 {
				g = goal{min: 1.0, ratio: true, text: "≥ 1.0×"}
			}
			b.print(label, "MB/s", m, 0, g)
			b.print(label, "CPU-s/GB", m, 1, goal{max: 1.1, ratio: true, text: "≤ 1.1×"})
		}
	}
	return nil
}

func (b *bench) ping() error {
	for _, down := range []bool{false, true} {
		label := "ping p50, 8 bulk up"
		if down {
			label = "ping p50, 8 bulk down"
		}
		if !b.figures.MatchString(label) {
			continue
		}
		m, err := b.each(b.subjects, func(s *subject) ([]float64, error) {
			f, err := b.flood(s, 8, down)
			if err != nil {
				return nil, err
			}
			defer s.settle()
			defer f.stop()
			nc, err := s.dial(cmdEcho)
			if err != nil {
				return nil, err
			}
			defer nc.Close()
			if _, err := pings(nc, 300*time.Millisecond, 0); err != nil {
				return nil, err
			}
			t, err := pings(nc, b.time, 2*time.Millisecond)
			return []float64{percentile(t, 0.5), percentile(t, 0.99)}, err
		})
		if err != nil {
			return err
		}
		b.print(label, "ms", m, 0, goal{max: 0.5, text: "≤ 0.5"})
		b.print(label[:5]+"p99"+label[8:], "ms", m, 1, goal{max: 5, text: "≤ 5"})
	}
	return nil
}

func (b *bench) open() error {
	m, err := b.each(b.subjects, func(s *subject) ([]float64, error) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		var times []float64
		var failed error
		end := time.Now().Add(b.time)
		for range 64 {
			wg.Go(func() {
				for time.Now().Before(end) {
					d, err := openOne(s)
					mu.Lock()
					if err != nil {
						failed = err
					} else {
						times = append(times, d.Seconds()*1000)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if failed != nil && len(times) == 0 {
			return nil, failed
		}
		rate := float64(len(times)) / b.time.Seconds()
		s.settle()
		// Alone, on a quiet subject.
		var alone []float64
		for range 100 {
			d, err := openOne(s)
			if err != nil {
				return nil, err
			}
			alone = append(alone, d.Seconds()*1000)
		}
		s.settle()
		return []float64{percentile(times, 0.5), rate, percentile(alone, 0.5)}, nil
	})
	if err != nil {
		return err
	}
	b.print("open to first byte p50, 64 workers", "ms", m, 0, goal{max: 0.3, ratio: true, text: "≤ 0.3×"})
	b.print("opens, 64 workers", "1/s", m, 1, goal{min: 6, ratio: true, text: "≥ 6×"})
	b.print("open to first byte p50, alone", "ms", m, 2, goal{})
	return nil
}

func (b *bench) far() error {
	subjects, err := b.pairs(b.rtt)
	if err != nil {
		return err
	}
	ms := b.rtt.Seconds() * 1000
	m, err := b.each(subjects, func(s *subject) ([]float64, error) {
		time.Sleep(2 * b.rtt) // the hop dials ahead
		one, err := openOne(s)
		if err != nil {
			return nil, err
		}
		time.Sleep(2 * b.rtt)
		var wg sync.WaitGroup
		var worst atomic.Int64
		for range 32 {
			wg.Go(func() {
				d, err := openOne(s)
				if err != nil {
					d = time.Hour
				}
				for {
					w := worst.Load()
					if int64(d) <= w || worst.CompareAndSwap(w, int64(d)) {
						return
					}
				}
			})
		}
		wg.Wait()
		return []float64{one.Seconds() * 1000, time.Duration(worst.Load()).Seconds() * 1000}, nil
	})
	if err != nil {
		return err
	}
	b.print(fmt.Sprintf("%v RTT, open alone", b.rtt), "ms", m, 0, goal{max: 1.05 * ms, text: "≤ 1.05 RTT"})
	b.print(fmt.Sprintf("%v RTT, open 32 at once, slowest", b.rtt), "ms", m, 1, goal{max: 1.05 * ms, text: "≤ 1.05 RTT"})
	for _, down := range []bool{false, true} {
		label := fmt.Sprintf("%v RTT, 1 stream, up", b.rtt)
		if down {
			label = fmt.Sprintf("%v RTT, 1 stream, down", b.rtt)
		}
		if !b.figures.MatchString(label) {
			continue
		}
		m, err := b.each(subjects, func(s *subject) ([]float64, error) { return b.rate(s, 1, down, 1500*time.Millisecond) })
		if err != nil {
			return err
		}
		b.print(label, "MB/s", m, 0, goal{min: 0.8, ratio: true, text: "≥ 0.8×"})
	}
	return nil
}

// idleStreams is how many streams the idle row holds open.
const idleStreams = 1000

func (b *bench) idle() error {
	perStream, edgeMB := map[string][]float64{}, map[string][]float64{}
	// Fresh pairs: what was busy before keeps caches.
	subjects, err := b.pairs(0)
	if err != nil {
		return err
	}
	for _, s := range subjects {
		time.Sleep(200 * time.Millisecond)
		if s.name != "hop" {
			edgeMB[s.name] = []float64{s.procs[1].rss() / 1024}
		}
		before := s.procs[0].rss() + s.procs[1].rss()
		var conns []net.Conn
		for range idleStreams {
			nc, err := s.dial(cmdEcho)
			if err != nil {
				return err
			}
			conns = append(conns, nc)
			if _, err := pings(nc, time.Microsecond, 0); err != nil {
				return err
			}
		}
		after := s.procs[0].rss() + s.procs[1].rss()
		perStream[s.name] = []float64{(after - before) / idleStreams}
		for _, nc := range conns {
			_ = nc.Close()
		}
	}
	b.print("idle stream, both ends", "KB", perStream, 0, goal{max: 25, text: "≤ 25"})
	b.print("idle edge process, anonymous memory", "MB", edgeMB, 0, goal{max: 10, text: "≤ 10"})

	core, err := b.spawn("core", b.keyFile(), b.target.addr)
	if err != nil {
		return err
	}
	before := core.rss()
	edges, err := b.spawn("edges", b.keyFile(), core.words[1])
	if err != nil {
		return err
	}
	per := (core.rss() - before) / 500
	edges.end()
	core.end()
	b.print("core, per idle edge of 500", "KB", map[string][]float64{"wss": {per}}, 0, goal{max: 80, text: "≤ 80"})
	return nil
}

func (b *bench) stall() error {
	m, err := b.each(b.subjects, func(s *subject) ([]float64, error) {
		free, err := b.rate(s, 4, true, 300*time.Millisecond)
		if err != nil {
			return nil, err
		}
		var stalled []net.Conn
		defer func() {
			for _, nc := range stalled {
				_ = nc.Close()
			}
			s.settle()
		}()
		for range 4 {
			nc, err := s.dial(cmdSend) // and nobody reads
			if err != nil {
				return nil, err
			}
			stalled = append(stalled, nc)
		}
		time.Sleep(300 * time.Millisecond) // until their windows are full
		held, err := b.rate(s, 4, true, 300*time.Millisecond)
		if err != nil {
			return nil, err
		}
		return []float64{held[0] / free[0]}, nil
	})
	if err != nil {
		return err
	}
	b.print("4 readers stalled, the others keep", "×", m, 0, goal{min: 0.9, text: "≥ 0.9"})
	return nil
}
