package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"caponier/shared/wire"
)

// Resolver resolves names; *net.Resolver is the real one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config is what a Dialer needs; every zero value has a default.
type Config struct {
	Rules    Rules
	Resolver Resolver // nil: the system's
	// Timeout bounds a whole dial, name resolution included; 0: 10 s.
	Timeout time.Duration
	// Own returns the machine's addresses; nil: its interfaces, read at most
	// every 2 s.
	Own func() ([]netip.Addr, error)
	// Stagger is the head start of one address over the next (RFC 8305 §5);
	// 0: 250 ms.
	Stagger time.Duration
}

// Dialer dials by rule. Safe for concurrent use.
type Dialer struct{ c Config }

// New makes a Dialer.
func New(c Config) *Dialer {
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Stagger == 0 {
		c.Stagger = 250 * time.Millisecond
	}
	if c.Own == nil {
		c.Own = (&interfaces{}).addrs
	}
	return &Dialer{c: c}
}

// maxAddrs bounds how many addresses of one name are considered.
const maxAddrs = 16

// RefusedError is a destination refused by rule. It unwraps to the
// *wire.Error told to the other side.
type RefusedError struct {
	Reason Reason
	Addr   netip.AddrPort // the resolved address that was refused
	wire   *wire.Error
}

// Error implements error.
func (e *RefusedError) Error() string { return e.wire.Error() }

// Unwrap returns the *wire.Error.
func (e *RefusedError) Unwrap() error { return e.wire }

// Public returns the *wire.Error in err, or an internal one without details.
func Public(err error) *wire.Error {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e
	}
	return wire.Errorf(wire.CodeInternal, "internal error")
}

// Dial connects to dest ("host:port") by TCP. Every address must pass the
// dialer's rules and each of narrow. Errors unwrap to *wire.Error.
func (d *Dialer) Dial(ctx context.Context, dest string, narrow ...Rules) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.c.Timeout)
	defer cancel()
	allowed, err := d.allowed(ctx, dest, narrow)
	if err != nil {
		return nil, err
	}
	return d.race(ctx, dest, allowed, narrow)
}

// DialUDP makes a socket that sends to dest and receives from it alone. By the
// same rules as Dial; as nothing is sent, nobody need be there.
func (d *Dialer) DialUDP(ctx context.Context, dest string, narrow ...Rules) (*net.UDPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.c.Timeout)
	defer cancel()
	allowed, err := d.allowed(ctx, dest, narrow)
	if err != nil {
		return nil, err
	}
	nd := net.Dialer{ControlContext: d.guard(narrow)}
	var first error
	for _, to := range allowed {
		// Fails where there is no route, or no such family.
		c, err := nd.DialUDP(ctx, "udp", netip.AddrPort{}, to)
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, connectError(ctx, dest, first)
}

// allowed resolves dest and keeps the addresses that may be dialled.
func (d *Dialer) allowed(ctx context.Context, dest string, narrow []Rules) ([]netip.AddrPort, error) {
	host, port, err := split(dest)
	if err != nil {
		return nil, err
	}
	addrs, err := d.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	return d.filter(host, addrs, port, narrow)
}

// Probe tries dest step by step and leaves nothing open.
func (d *Dialer) Probe(ctx context.Context, dest string, narrow ...Rules) []wire.ProbeStage {
	ctx, cancel := context.WithTimeout(ctx, d.c.Timeout)
	defer cancel()
	var stages []wire.ProbeStage
	step := func(name, fix string, f func() (string, error)) bool {
		start := time.Now()
		text, err := f()
		s := wire.ProbeStage{Name: name, OK: err == nil, MS: float64(time.Since(start).Microseconds()) / 1000, Text: text}
		if err != nil {
			s.Text, s.Fix = Public(err).Public, fix
		}
		stages = append(stages, s)
		return s.OK
	}
	var host string
	var port uint16
	var addrs []netip.Addr
	var to []netip.AddrPort
	ok := step("dns", "check the name, and the resolver of the machine that dials", func() (string, error) {
		var err error
		if host, port, err = split(dest); err != nil {
			return "", err
		}
		if addrs, err = d.resolve(ctx, host); err != nil {
			return "", err
		}
		return fmt.Sprintf("%s is %s", host, joinAddrs(addrs)), nil
	})
	ok = ok && step("policy", "change the target's address, or the rules of the extender that refuse it", func() (string, error) {
		var err error
		to, err = d.filter(host, addrs, port, narrow)
		return "the address may be dialled", err
	})
	if ok {
		step("tcp", "check that the service listens, and firewalls between the dialling machine and it", func() (string, error) {
			c, err := d.race(ctx, dest, to, narrow)
			if err != nil {
				return "", err
			}
			defer c.Close()
			return "connected to " + c.RemoteAddr().String(), nil
		})
	}
	return stages
}

// split takes a destination apart. Names are letters, digits, '-', '_' and '.'.
func split(dest string) (string, uint16, error) {
	bad := wire.Errorf(wire.CodeBadRequest, "the destination must be host:port")
	if len(dest) > wire.MaxDest {
		return "", 0, bad
	}
	host, ps, err := net.SplitHostPort(dest)
	if err != nil || host == "" || len(host) > 253 {
		return "", 0, bad
	}
	port, err := strconv.ParseUint(ps, 10, 16)
	if err != nil || port == 0 {
		return "", 0, wire.Errorf(wire.CodeBadRequest, "the destination's port must be 1 to 65535")
	}
	if _, err := netip.ParseAddr(host); err != nil {
		for _, c := range host {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
				return "", 0, wire.Errorf(wire.CodeBadRequest, "the destination's host name has a character that is not allowed")
			}
		}
	}
	return host, uint16(port), nil
}

func (d *Dialer) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	addrs, err := d.c.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(addrs) == 0 {
		return nil, dnsError(ctx, host, err)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs[:min(len(addrs), maxAddrs)], nil
}

func dnsError(ctx context.Context, host string, err error) error {
	de, ok := errors.AsType[*net.DNSError](err)
	switch {
	case err == nil, ok && de.IsNotFound:
		return wire.Errorf(wire.CodeDNS, "the name %s does not resolve on the dialling side", host)
	case ok && de.IsTimeout, ctx.Err() != nil:
		return wire.Errorf(wire.CodeDNS, "the resolver on the dialling side did not answer for %s in time", host)
	}
	return wire.Errorf(wire.CodeDNS, "the resolver on the dialling side failed for %s", host)
}

// filter keeps the addresses that pass every rule, families interleaved
// (RFC 8305 §4); none left is a *RefusedError.
func (d *Dialer) filter(host string, addrs []netip.Addr, port uint16, narrow []Rules) ([]netip.AddrPort, error) {
	own, err := d.c.Own()
	if err != nil {
		// Without our own addresses the rules cannot be kept: refuse.
		return nil, wire.Errorf(wire.CodeInternal, "the dialling machine cannot list its own addresses")
	}
	var v6, v4 []netip.AddrPort
	var refused *RefusedError
	for _, a := range addrs {
		to := netip.AddrPortFrom(a, port)
		if why := d.check(to, own, narrow); why != Allowed {
			if refused == nil {
				refused = refusal(host, to, why)
			}
			continue
		}
		if a.Is4() {
			v4 = append(v4, to)
		} else {
			v6 = append(v6, to)
		}
	}
	var out []netip.AddrPort
	for i := range max(len(v4), len(v6)) {
		if i < len(v6) {
			out = append(out, v6[i])
		}
		if i < len(v4) {
			out = append(out, v4[i])
		}
	}
	if len(out) == 0 {
		return nil, refused
	}
	return out, nil
}

func (d *Dialer) check(to netip.AddrPort, own []netip.Addr, narrow []Rules) Reason {
	if why := d.c.Rules.Check(to, own); why != Allowed {
		return why
	}
	for _, n := range narrow {
		// What our own rules exempt is not special to the narrowing ones.
		n.Exempt = append(slices.Clip(n.Exempt), d.c.Rules.Exempt...)
		if len(n.Allow) > 0 && !contains(n.Allow, to.Addr().Unmap()) {
			return OutsideSubnet
		}
		if why := n.Check(to, own); why != Allowed {
			return why
		}
	}
	return Allowed
}

func refusal(host string, to netip.AddrPort, why Reason) *RefusedError {
	what := to.String()
	if host != to.Addr().String() {
		what = fmt.Sprintf("%s (%s)", host, to)
	}
	return &RefusedError{Reason: why, Addr: to, wire: wire.Errorf(wire.CodeRefused, "%s may not be dialled: %s", what, why.Text())}
}

// race connects to the addresses with staggered starts; the first wins.
func (d *Dialer) race(ctx context.Context, dest string, to []netip.AddrPort, narrow []Rules) (*net.TCPConn, error) {
	type result struct {
		conn *net.TCPConn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result, len(to))
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
		close(results)
		for r := range results {
			if r.conn != nil {
				r.conn.Close()
			}
		}
	}()
	start := func(a netip.AddrPort) {
		wg.Go(func() {
			c, err := d.connect(ctx, a, narrow)
			results <- result{c, err}
		})
	}
	var first error
	next, running := 0, 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			if next < len(to) {
				start(to[next])
				next, running = next+1, running+1
				timer.Reset(d.c.Stagger)
			}
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			running--
			if first == nil {
				first = r.err
			}
			if running == 0 && next == len(to) {
				return nil, connectError(ctx, dest, first)
			}
			timer.Reset(0)
		case <-ctx.Done():
			return nil, connectError(ctx, dest, ctx.Err())
		}
	}
}

// guard checks the address that the kernel is given, whatever happened before.
func (d *Dialer) guard(narrow []Rules) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return wire.Errorf(wire.CodeRefused, "the address could not be checked")
		}
		own, err := d.c.Own()
		if err != nil {
			return wire.Errorf(wire.CodeInternal, "the dialling machine cannot list its own addresses")
		}
		if why := d.check(at, own, narrow); why != Allowed {
			return refusal(at.Addr().String(), at, why)
		}
		return nil
	}
}

// connect dials one address.
func (d *Dialer) connect(ctx context.Context, to netip.AddrPort, narrow []Rules) (*net.TCPConn, error) {
	nd := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4},
		ControlContext:  d.guard(narrow),
	}
	c, err := nd.DialTCP(ctx, "tcp", netip.AddrPort{}, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func connectError(ctx context.Context, dest string, err error) error {
	if we, ok := errors.AsType[*wire.Error](err); ok {
		return we
	}
	ne, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return wire.Errorf(wire.CodeConnRefused, "%s refused the connection: nothing listens there", dest)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return wire.Errorf(wire.CodeUnreachable, "%s is unreachable from the dialling side", dest)
	case ctx.Err() != nil, isNet && ne.Timeout():
		return wire.Errorf(wire.CodeTimeout, "%s did not answer in time", dest)
	}
	return wire.Errorf(wire.CodeUnreachable, "%s cannot be reached from the dialling side", dest)
}

func joinAddrs(as []netip.Addr) string {
	var s []string
	for _, a := range as {
		s = append(s, a.String())
	}
	return strings.Join(s, ", ")
}

// interfaces reads the machine's addresses, at most every ownFor.
type interfaces struct {
	mu   sync.Mutex
	at   time.Time
	list []netip.Addr
}

const ownFor = 2 * time.Second

func (i *interfaces) addrs() ([]netip.Addr, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.at.IsZero() && time.Since(i.at) < ownFor {
		return i.list, nil
	}
	as, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	list := make([]netip.Addr, 0, len(as))
	for _, a := range as {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			list = append(list, p.Addr().Unmap())
		}
	}
	i.at, i.list = time.Now(), list
	return list, nil
}
