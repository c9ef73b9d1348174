package netaccess

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"caponier/core/internal/fleet"
	"caponier/shared/netrule"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// A target behind a site is reached through core (FEATURES N18): the router
// sends its packets to a port of core that belongs to one destination of one
// session, and core goes on through the site's extenders. Only packets of the
// session arrive there: the client's own address, or with SNAT the addresses
// of its routers; everything else is turned away.

// Relay says where sessions to targets behind a site arrive.
type Relay struct {
	Dialer Dialer
	// Addresses are core's own addresses, as routers reach them: one of each
	// family that is used. None: targets behind a site cannot be opened.
	Addresses []netip.Addr
	// TCPFirst to TCPLast and UDPFirst to UDPLast are the ports.
	TCPFirst, TCPLast, UDPFirst, UDPLast int
	// Idle ends a UDP flow without packets; 0 = 2 min.
	Idle time.Duration
}

// Dialer reaches destinations behind a site; *fleet.Fleet is the real one.
// What DialUDP returns moves one datagram with each call.
type Dialer interface {
	Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error)
	DialUDP(ctx context.Context, r fleet.DialRequest) (net.Conn, fleet.Route, error)
}

func (r *Relay) validate() error {
	if len(r.Addresses) == 0 {
		return nil
	}
	if r.Dialer == nil || r.TCPFirst < 1 || r.TCPLast < r.TCPFirst || r.TCPLast > 65535 || r.UDPFirst < 1 || r.UDPLast < r.UDPFirst || r.UDPLast > 65535 {
		return errors.New("network access: relays need a dialer and ranges of ports")
	}
	for _, a := range r.Addresses {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("network access: %s is not an address of core", a)
		}
	}
	if r.Idle == 0 {
		r.Idle = 2 * time.Minute
	}
	return nil
}

// address is core's address of a family.
func (r *Relay) address(v4 bool) (netip.Addr, bool) {
	for _, a := range r.Addresses {
		if a.Unmap().Is4() == v4 {
			return a.Unmap(), true
		}
	}
	return netip.Addr{}, false
}

// relayPort is one port of core that leads to one place in a site.
type relayPort struct {
	Proto string `json:"proto"` // tcp or udp
	Addr  string `json:"addr"`  // of core
	Port  uint16 `json:"port"`
	Dest  string `json:"dest"` // host:port in the site
}

func (p relayPort) proto() netrule.Proto {
	if p.Proto == "udp" {
		return netrule.UDP
	}
	return netrule.TCP
}

func (p relayPort) host() string {
	h, _, _ := net.SplitHostPort(p.Dest)
	return h
}

func (p relayPort) port() uint16 {
	_, port, _ := net.SplitHostPort(p.Dest)
	n, _ := strconv.ParseUint(port, 10, 16)
	return uint16(n)
}

// Bounds of one port.
const (
	relayConns = 256 // TCP connections at a time
	relayFlows = 256 // UDP flows at a time
	relayQueue = 64  // datagrams of a flow that wait for its tunnel
	relayDial  = 20 * time.Second
)

// relay is the open ports of one session.
type relay struct {
	dialer  Dialer
	idle    time.Duration
	site    string
	session string
	allowed func(netip.Addr) bool
	log     *slog.Logger
	ctx     context.Context
	cancel  context.CancelFunc
	refused atomic.Int64
	ready   atomic.Bool // the session is on record: packets may enter

	mu      sync.Mutex
	closers []interface{ Close() error } // guarded by mu
	wg      sync.WaitGroup
}

func (s *Service) newRelay(site string, allowed func(netip.Addr) bool) *relay {
	ctx, cancel := context.WithCancel(context.Background())
	return &relay{dialer: s.cfg.Relay.Dialer, idle: s.cfg.Relay.Idle, site: site, allowed: allowed, log: s.cfg.Log, ctx: ctx, cancel: cancel}
}

// errRelayFull: no port is free.
var errRelayFull = errors.New("all relay ports are in use")

// rewrite opens a port of core for every single port of the destinations, and
// returns them leading there. On error nothing is left open.
func (s *Service) rewrite(ctx context.Context, r *relay, ds []netrule.Destination, client netip.Addr) (out []netrule.Destination, ports []relayPort, err error) {
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	for _, d := range ds {
		if d.Addrs.First.Is4() != client.Is4() {
			continue // this client cannot send there
		}
		core, ok := s.cfg.Relay.address(client.Is4())
		if !ok {
			return nil, nil, &Refused{Status: 503, Code: "relay_off",
				Public: "This target is reached through core, which has no address for that: an administrator sets network.relay_addresses."}
		}
		for port := int(d.Ports.First); port <= int(d.Ports.Last); port++ {
			host, to := d.Addrs.First, uint16(port)
			if d.DNAT != nil {
				host = d.DNAT.Addr
				if d.DNAT.Port != 0 {
					to = d.DNAT.Port
				}
			}
			p := relayPort{Proto: d.Proto.String(), Addr: core.String(), Dest: netip.AddrPortFrom(host, to).String()}
			if err := s.listen(ctx, r, &p); err != nil {
				return nil, nil, err
			}
			ports = append(ports, p)
			out = append(out, netrule.Destination{
				Selector: netrule.Selector{Addrs: d.Addrs, Proto: d.Proto, Ports: netrule.Ports{First: uint16(port), Last: uint16(port)}},
				DNAT:     &netrule.NAT{Addr: core, Port: p.Port},
			})
		}
	}
	return out, ports, nil
}

// listen opens the port p names, or any free one.
func (s *Service) listen(ctx context.Context, r *relay, p *relayPort) error {
	first, last := s.cfg.Relay.TCPFirst, s.cfg.Relay.TCPLast
	if p.Proto == "udp" {
		first, last = s.cfg.Relay.UDPFirst, s.cfg.Relay.UDPLast
	}
	if p.Port != 0 {
		first, last = int(p.Port), int(p.Port)
	}
	n := last - first + 1
	start := rand.IntN(n)
	var lc net.ListenConfig
	for i := range n {
		port := first + (start+i)%n
		addr := net.JoinHostPort(p.Addr, strconv.Itoa(port))
		var err error
		if p.Proto == "udp" {
			var pc net.PacketConn
			if pc, err = lc.ListenPacket(ctx, "udp", addr); err == nil {
				p.Port = uint16(port)
				r.udp(pc.(*net.UDPConn), *p)
				return nil
			}
		} else {
			var ln net.Listener
			if ln, err = lc.Listen(ctx, "tcp", addr); err == nil {
				p.Port = uint16(port)
				r.tcp(ln.(*net.TCPListener), *p)
				return nil
			}
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("open relay port %s: %w", addr, err)
		}
	}
	return errRelayFull
}

// relayAgain opens the ports of a session taken over from an earlier run.
func (x *session) relayAgain(ctx context.Context) error {
	if len(x.row.Relays) == 0 {
		return nil
	}
	r := x.s.newRelay(x.row.Site, x.mayEnter)
	r.begin(x.row.ID)
	for i := range x.row.Relays {
		if err := x.s.listen(ctx, r, &x.row.Relays[i]); err != nil {
			r.close()
			return err
		}
	}
	x.relay = r
	return nil
}

// mayEnter reports whether a packet from there belongs to the session.
func (x *session) mayEnter(from netip.Addr) bool {
	if !x.row.Rules.SNAT {
		return from == x.row.Client
	}
	x.mu.Lock()
	holders := make([]string, 0, len(x.holders))
	for id := range x.holders {
		holders = append(holders, id)
	}
	x.mu.Unlock()
	for _, id := range holders {
		p := x.s.peer(id)
		if p == nil {
			continue
		}
		p.mu.Lock()
		ok := contains(p.row.Sources, from)
		said := len(p.row.Sources) > 0
		p.mu.Unlock()
		if ok {
			return true
		}
		// Nobody said what the router's addresses are: the one its tunnel
		// comes from.
		if o, up := p.online(); !said && up && o.Remote.Addr().Unmap() == from {
			return true
		}
	}
	return false
}

func (s *Service) closeRelays() {
	for _, x := range s.snapshot() {
		x.mu.Lock()
		r := x.relay
		x.relay = nil
		x.mu.Unlock()
		if r != nil {
			r.close()
		}
	}
}

// keep remembers what close must close; false when it is closed already.
func (r *relay) keep(c interface{ Close() error }) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ctx.Err() != nil {
		c.Close()
		return false
	}
	r.closers = append(r.closers, c)
	return true
}

// close closes every port and everything on it, and waits.
func (r *relay) close() {
	r.mu.Lock()
	r.cancel()
	for _, c := range r.closers {
		c.Close()
	}
	r.closers = nil
	r.mu.Unlock()
	r.wg.Wait()
}

// begin lets packets of the session in. Until then its ports are only taken:
// it may still be refused.
func (r *relay) begin(session string) {
	r.session = session
	r.ready.Store(true)
}

func (r *relay) enter(from netip.AddrPort, p relayPort) bool {
	a := from.Addr().Unmap().WithZone("")
	if !r.ready.Load() {
		return false
	}
	if r.allowed(a) {
		return true
	}
	// The first ones are worth a line; a flood is not.
	if n := r.refused.Add(1); n <= 20 {
		r.log.Warn("packet to a relay port is not of its session", "session", r.session, "remote", a.String(), "port", int(p.Port))
	}
	return false
}

func (r *relay) request(p relayPort) fleet.DialRequest {
	return fleet.DialRequest{Site: r.site, Address: p.Dest, Class: wire.Bulk, Connection: r.session}
}

// tcp serves a TCP port until close.
func (r *relay) tcp(ln *net.TCPListener, p relayPort) {
	if !r.keep(ln) {
		return
	}
	slots := make(chan struct{}, relayConns)
	r.wg.Go(func() {
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
			if !r.enter(from, p) {
				c.SetLinger(0)
				c.Close()
				continue
			}
			select {
			case slots <- struct{}{}:
			default:
				c.SetLinger(0)
				c.Close()
				continue
			}
			r.wg.Go(func() {
				defer func() { <-slots }()
				r.carry(c, p)
			})
		}
	})
}

// carry takes one TCP connection to its destination.
func (r *relay) carry(c *net.TCPConn, p relayPort) {
	ctx, cancel := context.WithTimeout(r.ctx, relayDial)
	far, _, err := r.dialer.Dial(ctx, r.request(p))
	cancel()
	if err != nil {
		r.log.Info("relay not connected", "session", r.session, "target", p.Dest, "err", err)
		c.SetLinger(0)
		c.Close()
		return
	}
	if _, _, err := tunnel.Relay(r.ctx, c, far, tunnel.Counters{}); err != nil && r.ctx.Err() == nil {
		r.log.Debug("relay ended", "session", r.session, "target", p.Dest, "err", err)
	}
}

// udp serves a UDP port until close: one flow per source.
func (r *relay) udp(pc *net.UDPConn, p relayPort) {
	if !r.keep(pc) {
		return
	}
	u := &udpPort{r: r, pc: pc, p: p, flows: map[netip.AddrPort]*udpFlow{}}
	r.wg.Go(u.serve)
}

// udpPort is one UDP port and the flows through it.
type udpPort struct {
	r  *relay
	pc *net.UDPConn
	p  relayPort

	mu    sync.Mutex
	flows map[netip.AddrPort]*udpFlow // guarded by mu
}

// udpFlow is one source's way to the destination.
type udpFlow struct {
	queue chan []byte
	last  atomic.Int64 // unix nano of the last packet either way
}

// maxDatagram is the longest UDP payload.
const maxDatagram = 65507

func (u *udpPort) serve() {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := u.pc.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of a former answer
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !u.r.enter(from, u.p) {
			continue
		}
		f := u.flow(from)
		if f == nil {
			continue
		}
		f.last.Store(time.Now().UnixNano())
		select {
		case f.queue <- append([]byte(nil), buf[:n]...):
		default: // full: UDP loses packets
		}
	}
}

// flow finds or starts the flow of a source; nil when there are too many.
func (u *udpPort) flow(from netip.AddrPort) *udpFlow {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flows[from]; f != nil {
		return f
	}
	if len(u.flows) >= relayFlows {
		return nil
	}
	f := &udpFlow{queue: make(chan []byte, relayQueue)}
	f.last.Store(time.Now().UnixNano())
	u.flows[from] = f
	u.r.wg.Go(func() {
		u.carry(from, f)
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.flows, from)
	})
	return f
}

// carry moves a flow's datagrams both ways until it is idle or ends.
func (u *udpPort) carry(from netip.AddrPort, f *udpFlow) {
	dctx, stop := context.WithTimeout(u.r.ctx, relayDial)
	far, _, err := u.r.dialer.DialUDP(dctx, u.r.request(u.p))
	stop()
	if err != nil {
		u.r.log.Info("relay not connected", "session", u.r.session, "target", u.p.Dest, "err", err)
		return
	}
	ctx, cancel := context.WithCancel(u.r.ctx)
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { far.Close() })
	defer unhook()
	var back sync.WaitGroup
	back.Go(func() {
		defer cancel()
		buf := make([]byte, maxDatagram)
		for {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			f.last.Store(time.Now().UnixNano())
			if _, err := u.pc.WriteToUDPAddrPort(buf[:n], from); errors.Is(err, net.ErrClosed) {
				return
			}
		}
	})
	look := time.NewTicker(u.r.idle / 4)
	defer look.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case b := <-f.queue:
			far.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := far.Write(b); err != nil {
				cancel()
			}
		case <-look.C:
			if time.Since(time.Unix(0, f.last.Load())) >= u.r.idle {
				cancel()
			}
		}
	}
	far.Close()
	back.Wait()
}
