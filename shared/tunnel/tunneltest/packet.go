package tunneltest

import (
	"net"
	"sync"
	"time"
)

// PacketProxy forwards UDP between clients and a target, each packet delayed
// in each direction.
type PacketProxy struct {
	Addr string

	pc     *net.UDPConn
	target *net.UDPAddr
	delay  time.Duration
	wg     sync.WaitGroup
	mu     sync.Mutex
	up     map[string]*net.UDPConn // by client; guarded by mu
	drop   bool                    // guarded by mu
}

// NewPacketProxy listens on loopback.
func NewPacketProxy(target string, delay time.Duration) (*PacketProxy, error) {
	addr, err := net.ResolveUDPAddr("udp", target)
	if err != nil {
		return nil, err
	}
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	_ = pc.SetReadBuffer(8 << 20)
	p := &PacketProxy{Addr: pc.LocalAddr().String(), pc: pc, target: addr, delay: delay, up: map[string]*net.UDPConn{}}
	p.wg.Go(p.run)
	return p, nil
}

// Drop makes all packets vanish from now on, or not any more.
func (p *PacketProxy) Drop(on bool) {
	p.mu.Lock()
	p.drop = on
	p.mu.Unlock()
}

func (p *PacketProxy) dropping() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.drop
}

func (p *PacketProxy) run() {
	queues := map[string]chan packet{}
	defer func() {
		for _, q := range queues {
			close(q)
		}
	}()
	for {
		b := packets.Get().(*[]byte)
		n, from, err := p.pc.ReadFromUDP(*b)
		if err != nil {
			return
		}
		q := queues[from.String()]
		if q == nil {
			up, err := net.DialUDP("udp", nil, p.target)
			if err != nil {
				return
			}
			_ = up.SetReadBuffer(8 << 20)
			p.mu.Lock()
			p.up[from.String()] = up
			p.mu.Unlock()
			q = make(chan packet, 64<<10)
			queues[from.String()] = q
			p.wg.Go(func() { p.deliver(q, func(b []byte) { _, _ = up.Write(b) }) })
			p.wg.Go(func() {
				back := make(chan packet, 64<<10)
				p.wg.Go(func() { p.deliver(back, func(b []byte) { _, _ = p.pc.WriteToUDP(b, from) }) })
				defer close(back)
				for {
					b := packets.Get().(*[]byte)
					n, err := up.Read(*b)
					if err != nil {
						return
					}
					back <- packet{b, n, time.Now().Add(p.delay)}
				}
			})
		}
		q <- packet{b, n, time.Now().Add(p.delay)}
	}
}

func (p *PacketProxy) deliver(q chan packet, send func([]byte)) {
	for pk := range q {
		if d := time.Until(pk.due); d > 0 {
			time.Sleep(d)
		}
		if !p.dropping() {
			send((*pk.b)[:pk.n])
		}
		packets.Put(pk.b)
	}
}

// Close ends the proxy.
func (p *PacketProxy) Close() error {
	err := p.pc.Close()
	p.mu.Lock()
	for _, up := range p.up {
		_ = up.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
	return err
}
