package portaccess

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"caponier/core/internal/conn"
	"caponier/core/internal/fleet"
	"caponier/shared/tunnel"
)

// named bounds the TCP connections of a session that are noted one by one;
// later ones are counted.
const named = 50

// strangers bounds the other addresses of a session that are noted.
const strangers = 20

// session is one open port.
type session struct {
	s    *Service
	live *conn.Live
	ln   *net.TCPListener
	req  Request
	dial fleet.DialRequest
	info Session
	// slots bounds the TCP connections at a time.
	slots chan struct{}

	once sync.Once
	end  conn.EndReason // set once, before ln is closed

	// mu guards everything below.
	mu       sync.Mutex
	accepted int
	refused  int
	failed   int
	seen     map[netip.Addr]bool // strangers noted
}

// stop closes the port; serve does the rest. The reason of a connection that
// was ended by decision is kept by conn.
func (x *session) stop(r conn.EndReason) {
	x.once.Do(func() {
		x.end = r
		x.ln.Close()
	})
}

// serve accepts until the connection ends, its time is over or stop is called,
// then ends all TCP connections and closes the record.
func (x *session) serve() {
	ctx, cancel := context.WithCancel(x.live.Context())
	defer cancel()
	over := time.AfterFunc(x.req.Duration, func() { x.stop(conn.EndedByDuration) })
	defer over.Stop()
	unhook := context.AfterFunc(x.live.Context(), func() { x.stop(conn.EndedByAdmin) })
	defer unhook()

	var wg sync.WaitGroup
	var err error
	for {
		var c *net.TCPConn
		if c, err = x.ln.AcceptTCP(); err != nil {
			break
		}
		if !x.admit(c) {
			continue
		}
		wg.Go(func() {
			defer func() { <-x.slots }()
			x.carry(ctx, c)
		})
	}
	if !errors.Is(err, net.ErrClosed) {
		// Out of descriptors or worse: the port closes rather than half work.
		x.s.cfg.Log.Error("session port failed", "session", x.live.ID, "err", err)
		x.stop(conn.EndedByError)
	}
	cancel()
	wg.Wait()

	x.mu.Lock()
	text := fmt.Sprintf("%s: %d connections, %d refused, %d failed", x.info.Address, x.accepted, x.refused, x.failed)
	x.mu.Unlock()
	x.live.Channel("port-closed", text)
	x.live.Close(x.end, nil)
	x.s.remove(x)
}

// admit checks who connects. Anybody but the one client is reset.
func (x *session) admit(c *net.TCPConn) bool {
	from, err := netip.ParseAddrPort(c.RemoteAddr().String())
	addr := from.Addr().Unmap().WithZone("")
	if err == nil && addr == x.req.Client {
		select {
		case x.slots <- struct{}{}:
			x.mu.Lock()
			x.accepted++
			n := x.accepted
			x.mu.Unlock()
			if n <= named {
				x.live.Channel("forward", fmt.Sprintf("%s to %s", from, x.dial.Address))
			}
			return true
		default:
		}
	}
	c.SetLinger(0)
	c.Close()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refused++
	if addr != x.req.Client && !x.seen[addr] && len(x.seen) < strangers {
		if x.seen == nil {
			x.seen = map[netip.Addr]bool{}
		}
		x.seen[addr] = true
		x.live.Channel("port-denied", addr.String()+" is not the client of "+x.info.Address)
	}
	return false
}

// carry takes one TCP connection to the target.
func (x *session) carry(ctx context.Context, c *net.TCPConn) {
	dctx, cancel := context.WithTimeout(ctx, dialTimeout)
	far, route, err := x.s.cfg.Dialer.Dial(dctx, x.dial)
	cancel()
	if err != nil {
		c.SetLinger(0)
		c.Close()
		x.fail(err)
		return
	}
	x.live.Connected(route)
	_, _, err = tunnel.Relay(ctx, c, far, tunnel.Counters{AB: x.live.In, BA: x.live.Out})
	if err != nil && ctx.Err() == nil {
		x.fail(err)
	}
}

// fail notes a TCP connection that did not work; the first ones with why.
func (x *session) fail(err error) {
	x.mu.Lock()
	x.failed++
	n := x.failed
	x.mu.Unlock()
	if n <= named {
		x.live.Channel("forward-failed", conn.PublicText(err))
	}
}

// remove forgets a closed session.
func (s *Service) remove(x *session) {
	s.mu.Lock()
	delete(s.sessions, x.live.ID)
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.markClosed(ctx, x.live.ID); err != nil {
		s.cfg.Log.Error("row of a closed session port not written; tried again", "session", x.live.ID, "err", err)
	}
}
