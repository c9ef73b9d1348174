package tunneltest

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// PacketProxy forwards UDP between clients and a target, each packet delayed
// in each direction.
type PacketProxy struct {
	Addr string

	pc     segmented
	target *net.UDPAddr
	delay  time.Duration
	wg     sync.WaitGroup
	mu     sync.Mutex
	up     map[netip.AddrPort]segmented // by client; guarded by mu
	drop   bool                         // guarded by mu
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
	p := &PacketProxy{Addr: pc.LocalAddr().String(), pc: newSegmented(pc), target: addr, delay: delay, up: map[netip.AddrPort]segmented{}}
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
	queues := map[netip.AddrPort]chan packet{}
	defer func() {
		for _, q := range queues {
			close(q)
		}
	}()
	for {
		b := packets.Get().(*[]byte)
		n, each, from, err := p.pc.read(*b)
		if err != nil {
			return
		}
		q := queues[from]
		if q == nil {
			conn, err := net.DialUDP("udp", nil, p.target)
			if err != nil {
				return
			}
			up := newSegmented(conn)
			p.mu.Lock()
			p.up[from] = up
			p.mu.Unlock()
			q = make(chan packet, 64<<10)
			queues[from] = q
			p.wg.Go(func() { p.deliver(q, up, netip.AddrPort{}) })
			p.wg.Go(func() {
				back := make(chan packet, 64<<10)
				p.wg.Go(func() { p.deliver(back, p.pc, from) })
				defer close(back)
				for {
					b := packets.Get().(*[]byte)
					n, each, _, err := up.read(*b)
					if err != nil {
						return
					}
					back <- packet{b, n, each, time.Now().Add(p.delay)}
				}
			})
		}
		q <- packet{b, n, each, time.Now().Add(p.delay)}
	}
}

func (p *PacketProxy) deliver(q chan packet, out segmented, to netip.AddrPort) {
	for pk := range q {
		if d := time.Until(pk.due); d > 0 {
			time.Sleep(d)
		}
		if !p.dropping() {
			out.write((*pk.b)[:pk.n], pk.each, to)
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
