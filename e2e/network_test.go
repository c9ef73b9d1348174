package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// The plant: a network behind a router, which the user's network reaches only
// through it.
const (
	gwAddr   = "203.0.113.120"
	plcAddr  = "10.20.0.5"
	benAddr  = "203.0.113.51" // a second client
	userPool = "203.0.113.48/28"

	plcAddr6  = "fd00:20::5"
	userAddr6 = "fd00:48::50"
	userPool6 = "fd00:48::/64"
)

// plant is a world with a router between the user and a target network.
type plant struct {
	*world
	router *harness.EdgeNode
	user   *harness.API // demo, from the user's address
	ben    *harness.API // ben, from his
}

// wirePlant makes the namespaces gw and plc.
func wirePlant(n *harness.Net) error {
	if err := n.Add("gw", "plc"); err != nil {
		return err
	}
	if err := n.Plug("gw", "wan", "core", "br0", gwAddr+"/24"); err != nil {
		return err
	}
	if err := n.IP("gw", "link add lan type bridge", "addr add 10.20.0.1/24 dev lan", "addr add fd00:20::1/64 dev lan nodad", "link set lan up"); err != nil {
		return err
	}
	if err := n.Plug("plc", "eth0", "gw", "lan", plcAddr+"/24", "10.20.0.6/24", "fd00:20::5/64"); err != nil {
		return err
	}
	if err := n.Sysctl("gw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"); err != nil {
		return err
	}
	if err := n.IP("gw", "addr add fd00:48::1/64 dev wan nodad"); err != nil {
		return err
	}
	if err := n.IP("plc", "route add default via 10.20.0.1", "route add default via fd00:20::1"); err != nil {
		return err
	}
	return n.IP("user", "addr add "+userAddr6+"/64 dev eth0 nodad", "route add fd00:20::/64 via fd00:48::1", "route add 10.20.0.0/16 via "+gwAddr, "route add 10.200.0.0/16 via "+gwAddr)
}

func newPlant(t testing.TB, o options) *plant {
	t.Helper()
	needRig(t)
	before := o.before
	o.before = func(n *harness.Net) error {
		if before != nil {
			if err := before(n); err != nil {
				return err
			}
		}
		return wirePlant(n)
	}
	o.tables += "[network]\nrelay_addresses = [\"" + harness.CoreAddr + "\"]\n"
	if o.vpcs == nil {
		o.vpcs = []string{}
	}
	w := newWorld(t, o)
	p := &plant{world: w}
	var r harness.RouterState
	p.router, r = p.addRouter(t, "gw", "gw-1")
	if r.Type != "nftables" || !r.Leased {
		t.Fatalf("the router is %+v", r)
	}
	if err := w.core.Admin.Pool(t.Context(), "gw-1", userPool, userPool6); err != nil {
		t.Fatal(err)
	}
	p.network(t, "plc", map[string]any{"destinations": []map[string]any{
		{"addrs": "10.20.0.0/24", "proto": "tcp", "ports": "502"}, {"addrs": "10.20.0.0/24", "proto": "udp", "ports": "161"}}})
	p.network(t, "plant", map[string]any{"destinations": []map[string]any{{"addrs": "10.20.0.0/16"}}})
	p.serve(t, "tcp", net.JoinHostPort(plcAddr, "502"))
	p.serve(t, "udp", net.JoinHostPort(plcAddr, "161"))
	if _, role, err := w.core.Admin.User(t.Context(), "ben", w.demo); err != nil {
		t.Fatal(err)
	} else if _, err := w.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: role, Tag: "plant", Features: []string{"network"}}); err != nil {
		t.Fatal(err)
	}
	p.user, p.ben = p.from(t, harness.UserAddr, "demo"), p.from(t, benAddr, "ben")
	return p
}

// addRouter enrols a router and waits until core and it agree.
func (p *plant) addRouter(t testing.TB, ns, name string) (*harness.EdgeNode, harness.RouterState) {
	t.Helper()
	_, token, err := p.core.Admin.EnrolmentToken(t.Context(), map[string]any{"kind": "router"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := harness.StartEdge(context.Background(), p.net, p.bin.Router, filepath.Join(p.dir, name),
		harness.EdgeConfig{NS: ns, Name: name, URL: p.core.Ready.URL, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Proc.Kill() })
	state, err := p.core.Admin.RouterReady(t.Context(), patience, name, r.Proc)
	if err != nil {
		t.Fatal(err)
	}
	return r, state
}

// network makes a network target that demo and ben may open.
func (p *plant) network(t testing.TB, name string, network map[string]any, more ...string) string {
	t.Helper()
	body := map[string]any{"name": name, "kind": "network", "network": network, "tags": []string{"plant"}}
	for i := 0; i+1 < len(more); i += 2 {
		body[more[i]] = more[i+1]
	}
	id, err := p.core.Admin.Create(t.Context(), "/targets", body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: p.role, Target: id, Features: []string{"network"}}); err != nil {
		t.Fatal(err)
	}
	return id
}

// from logs a user in from an address of the user's network.
func (p *plant) from(t testing.TB, addr, name string) *harness.API {
	t.Helper()
	a, err := harness.NewAPI(p.core.Ready.URL, p.core.Ready.CAFile, func(ctx context.Context, network, to string) (net.Conn, error) {
		return p.dial(ctx, addr, network, to)
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := a.Login(t.Context(), name, p.demo)
	if err != nil {
		t.Fatal(err)
	}
	return a.As(token)
}

// cutTime is after how long without a byte a flow counts as cut: long enough
// that a busy machine is not taken for one.
const cutTime = 5 * time.Second

// tryTime is how long something may take that must not happen. What must
// happen may take patience: a busy machine is not taken for a closed router.
const tryTime = 2 * time.Second

// dial connects from an address of the user's network.
func (p *plant) dial(ctx context.Context, from, network, to string) (c net.Conn, err error) {
	return p.dialFor(ctx, patience, from, network, to)
}

func (p *plant) dialFor(ctx context.Context, limit time.Duration, from, network, to string) (c net.Conn, err error) {
	var local net.Addr = &net.TCPAddr{IP: net.ParseIP(from)}
	if network == "udp" {
		local = &net.UDPAddr{IP: net.ParseIP(from)}
	}
	err = p.net.Within("user", func() error {
		c, err = (&net.Dialer{Timeout: limit, LocalAddr: local}).DialContext(ctx, network, to)
		return err
	})
	return c, err
}

// serve echoes in the target network until the test ends.
func (p *plant) serve(t testing.TB, network, addr string) { p.serveIn(t, "plc", network, addr) }

func (p *plant) serveIn(t testing.TB, ns, network, addr string) {
	t.Helper()
	if network == "udp" {
		var pc net.PacketConn
		err := p.net.Within(ns, func() (err error) {
			pc, err = net.ListenPacket("udp", addr)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, from, err := pc.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					pc.WriteTo(buf[:n], from)
				}
			}
		}()
		return
	}
	l, err := p.net.Listen(ns, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			go io.Copy(c, c)
		}
	}()
}

// talk sends a few bytes and wants them back, within limit.
func talk(c net.Conn, limit time.Duration) error {
	c.SetDeadline(time.Now().Add(limit))
	defer c.SetDeadline(time.Time{})
	want := []byte("ping " + time.Now().String())
	if _, err := c.Write(want); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got %q back for %q", got, want)
	}
	return nil
}

// passes reports whether an address gets through to a destination and back, for
// what is tried again or must not: see reaches.
func (p *plant) passes(t *testing.T, from, network, to string) error {
	t.Helper()
	return p.gets(t, tryTime, from, network, to)
}

// reaches is passes of what must get through.
func (p *plant) reaches(t *testing.T, from, network, to string) error {
	t.Helper()
	return p.gets(t, patience, from, network, to)
}

func (p *plant) gets(t *testing.T, limit time.Duration, from, network, to string) error {
	t.Helper()
	c, err := p.dialFor(t.Context(), limit, from, network, to)
	if err != nil {
		return err
	}
	defer c.Close()
	return talk(c, limit)
}

func (p *plant) open(t testing.TB, a *harness.API, target string) harness.NetworkSession {
	t.Helper()
	s, err := a.OpenNetwork(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// flow is an open TCP connection through the router that was used.
func (p *plant) flow(t *testing.T, from, to string) net.Conn {
	t.Helper()
	c, err := p.dial(t.Context(), from, "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := talk(c, patience); err != nil {
		t.Fatal(err)
	}
	return c
}

// cut waits until a flow carries nothing any more and returns when it did last:
// the moment the last byte that came back was sent, for nobody knows how long
// this program waited for a processor after that.
func cut(t *testing.T, c net.Conn) time.Time {
	t.Helper()
	last := time.Now()
	for deadline := last.Add(patience); time.Now().Before(deadline); {
		sent := time.Now()
		c.SetDeadline(sent.Add(cutTime))
		buf := []byte{1}
		if _, err := c.Write(buf); err != nil {
			return last
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return last
		}
		last = sent
	}
	t.Errorf("the flow is not cut within %v", patience)
	return last
}

func (p *plant) over(t testing.TB, id string) harness.NetworkSession {
	t.Helper()
	var s harness.NetworkSession
	err := harness.Until(t.Context(), 2*patience, "session "+id+" has ended", func() (err error) {
		if s, err = p.core.Admin.NetworkSession(t.Context(), id); err == nil && s.State != "ended" {
			err = fmt.Errorf("it is %s", s.State)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// refused is the code of a refusal.
func refused(err error) string {
	s, ok := errors.AsType[*harness.Status](err)
	if !ok {
		return fmt.Sprint(err)
	}
	var p struct {
		Code string `json:"code"`
	}
	if json.Unmarshal([]byte(s.Body), &p) != nil {
		return s.Body
	}
	return p.Code
}

// One client address reaches exactly what its session opens, as long as it
// lasts; four ways to end it, each cutting the flow that is open.
func TestNetworkSession(t *testing.T) {
	p := newPlant(t, options{})
	plc, snmp := net.JoinHostPort(plcAddr, "502"), net.JoinHostPort(plcAddr, "161")
	if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
		t.Fatal("the target is reached without a session")
	}
	s := p.open(t, p.user, "plc")
	for _, x := range []struct{ from, network, to string }{{harness.UserAddr, "tcp", plc}, {harness.UserAddr, "udp", snmp}} {
		if err := p.reaches(t, x.from, x.network, x.to); err != nil {
			t.Errorf("%v with a session: %v", x, err)
		}
	}
	if p.passes(t, benAddr, "tcp", plc) == nil {
		t.Error("another address gets through")
	}
	p.serve(t, "tcp", net.JoinHostPort(plcAddr, "80"))
	if p.passes(t, harness.UserAddr, "tcp", net.JoinHostPort(plcAddr, "80")) == nil {
		t.Error("another port gets through")
	}
	for code, err := range map[string]error{
		"no_such_target":       func() error { _, err := p.user.OpenNetwork(t.Context(), "nothing"); return err }(),
		"destinations_overlap": func() error { _, err := p.user.OpenNetwork(t.Context(), "plant"); return err }(),
		"client_not_in_pool":   func() error { _, err := p.core.Admin.OpenNetwork(t.Context(), "plc"); return err }(),
		"client_in_use": func() error {
			_, err := p.from(t, harness.UserAddr, "ben").OpenNetwork(t.Context(), "plc")
			return err
		}(),
	} {
		if refused(err) != code {
			t.Errorf("got %v, want %s", err, code)
		}
	}

	t.Run("counters", func(t *testing.T) {
		c := p.flow(t, harness.UserAddr, plc)
		const size = 200_000
		go c.Write(make([]byte, size))
		if _, err := io.ReadFull(c, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		err := harness.Until(t.Context(), patience, "the bytes are counted", func() error {
			now, err := p.user.NetworkSession(t.Context(), s.ID)
			if err == nil && (now.BytesOut < size || now.BytesIn < size || now.BytesOut > 2*size) {
				err = fmt.Errorf("%+v", now)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		var flows struct {
			Items []struct {
				Destination string
				BytesOut    int64 `json:"bytes_out"`
			}
		}
		if err := p.user.Do(t.Context(), http.MethodGet, "/network-sessions/"+s.ID+"/flows", nil, &flows); err != nil {
			t.Fatal(err)
		}
		if len(flows.Items) != 2 || flows.Items[0].Destination != "10.20.0.0/24 tcp 502" || flows.Items[0].BytesOut < size {
			t.Errorf("flow log %+v", flows.Items)
		}
	})

	ben := p.open(t, p.ben, "plc")
	other := p.flow(t, benAddr, plc)
	for _, x := range []struct {
		reason string
		end    func() error
	}{
		{"user", func() error {
			return p.user.Do(t.Context(), http.MethodDelete, "/network-sessions/"+s.ID, nil, nil)
		}},
		{"terminated", func() error {
			return p.core.Admin.Do(t.Context(), http.MethodDelete, "/connections/"+s.ID, nil, nil)
		}},
		{"access_lost", func() error {
			return p.core.Admin.Do(t.Context(), http.MethodDelete, "/roles/"+p.role+"/members/"+p.demoID, nil, nil, "If-Match", "*")
		}},
	} {
		t.Run(x.reason, func(t *testing.T) {
			if now, err := p.user.NetworkSession(t.Context(), s.ID); err != nil {
				t.Fatal(err)
			} else if now.State != "open" {
				s = p.open(t, p.user, "plc")
			}
			c := p.flow(t, harness.UserAddr, plc)
			done := make(chan time.Time, 1)
			go func() { done <- cut(t, c) }()
			if err := x.end(); err != nil {
				t.Fatal(err)
			}
			at := time.Now()
			last := <-done
			t.Logf("last byte %s after the call", last.Sub(at).Round(time.Millisecond))
			// Of whose end the router is not told a flow goes on for the lease, 15 s.
			if last.Sub(at) > 2*time.Second {
				t.Errorf("the flow went on for %s", last.Sub(at))
			}
			if got := p.over(t, s.ID); got.EndReason != x.reason || got.EndText == "" {
				t.Errorf("ended by %q (%q)", got.EndReason, got.EndText)
			}
			if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
				t.Error("the target is reached after the end")
			}
		})
	}
	if err := talk(other, patience); err != nil {
		t.Errorf("the session of somebody else did not go on: %v", err)
	}
	if err := p.ben.Do(t.Context(), http.MethodDelete, "/network-sessions/"+ben.ID, nil, nil); err != nil {
		t.Error(err)
	}
	p.over(t, ben.ID)
}

// caponier network open holds the session; stopped dead, it loses it.
func TestNetworkCommandLine(t *testing.T) {
	p := newPlant(t, options{})
	plc := net.JoinHostPort(plcAddr, "502")
	values := map[string]any{"values": map[string]any{"network.presence": "20s", "network.lease": "10s"}}
	if err := p.core.Admin.Do(t.Context(), http.MethodPut, "/settings", values, nil, "If-Match", "*"); err != nil {
		t.Fatal(err)
	}
	c := p.cli(t, "demo", p.demo)
	if out := c.must(t, "targets"); !strings.Contains(out, "10.20.0.0/24 tcp 502 and 1 more") {
		t.Errorf("targets: %s", out)
	}
	hold := func() *harness.Proc {
		t.Helper()
		cmd := p.net.Command(context.Background(), "user", p.bin.CLI, "network", "open", "plc")
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + p.dir, "CAPONIER_CONFIG_DIR=" + c.dir}
		proc, err := harness.Start("network-open", t.TempDir(), cmd, false) // with a log of its own
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(proc.Kill)
		if err := proc.WaitOutput(t.Context(), patience, "close it with Ctrl-C"); err != nil {
			t.Fatal(err)
		}
		return proc
	}
	proc := hold()
	if err := p.reaches(t, harness.UserAddr, "tcp", plc); err != nil {
		t.Error(err)
	}
	if out := c.must(t, "network", "list"); !strings.Contains(out, "plc") || !strings.Contains(out, "open") {
		t.Errorf("list: %s", out)
	}
	if err := proc.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := proc.WaitExit(patience); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(proc.Output(), "closed") {
		t.Errorf("it said %s", proc.Output())
	}
	if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
		t.Error("the target is reached after Ctrl-C")
	}

	proc = hold()
	flow := p.flow(t, harness.UserAddr, plc)
	if err := proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	cut(t, flow)
	sessionOver := func() error {
		var open []struct{}
		if err := json.Unmarshal([]byte(c.must(t, "--output", "json", "network", "list")), &open); err != nil || len(open) > 0 {
			return fmt.Errorf("%d open, %v", len(open), err)
		}
		return nil
	}
	if err := harness.Until(t.Context(), patience, "the session is over", sessionOver); err != nil {
		t.Fatal(err)
	}
	var list []struct {
		EndReason string `json:"end_reason"`
	}
	r := c.must(t, "--output", "json", "connections", "--limit", "1")
	if err := json.Unmarshal([]byte(r), &list); err != nil || len(list) != 1 || list[0].EndReason != "connectivity_lost" {
		t.Errorf("%v: %s", err, r)
	}
	if err := proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := proc.WaitExit(patience); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(proc.Output(), "nothing was heard of you") {
		t.Errorf("it said %s", proc.Output())
	}

	if out := c.must(t, "network", "open", "--detach", "plc"); !strings.Contains(out, "held in the background") {
		t.Errorf("detached: %s", out)
	}
	if err := p.reaches(t, harness.UserAddr, "tcp", plc); err != nil {
		t.Error(err)
	}
	if out := c.must(t, "network", "close", "plc"); !strings.Contains(out, "closed") {
		t.Errorf("close: %s", out)
	}
	if r := c.run(t, "network", "close", "plc"); r.code != 6 || !strings.Contains(r.err, "no open session to plc") {
		t.Errorf("close again: %v", r)
	}
	if r := c.run(t, "network", "open", "nothing"); r.code != 6 {
		t.Errorf("open what is not there: %v", r)
	}
}

// A restart of core, orderly or by force, cuts no flow of a session whose
// user is there.
func TestNetworkSurvivesRestart(t *testing.T) {
	p := newPlant(t, options{})
	plc := net.JoinHostPort(plcAddr, "502")
	s := p.open(t, p.user, "plc")
	flow := p.flow(t, harness.UserAddr, plc)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			if err := p.core.Proc.Signal(signal); err != nil {
				t.Fatal(err)
			}
			<-p.core.Proc.Exited()
			if err := talk(flow, patience); err != nil {
				t.Errorf("without core: %v", err)
			}
			if err := p.core.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := p.core.Admin.RouterReady(t.Context(), patience, "gw-1", p.router.Proc); err != nil {
				t.Fatal(err)
			}
			if now, err := p.user.NetworkSession(t.Context(), s.ID); err != nil || now.State != "open" {
				t.Errorf("after the restart: %+v, %v", now, err)
			}
			if err := talk(flow, patience); err != nil {
				t.Errorf("after the restart: %v", err)
			}
			if err := p.user.Do(t.Context(), http.MethodPost, "/network-sessions/"+s.ID+"/presence", nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	if err := p.user.Do(t.Context(), http.MethodDelete, "/network-sessions/"+s.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	cut(t, flow)
	p.over(t, s.ID)
}

// A target behind a site is reached through core and the site's extender, TCP
// and UDP, by the session's packets only.
func TestNetworkThroughExtender(t *testing.T) {
	p := newPlant(t, options{vpcs: []string{"a"}})
	p.serveIn(t, "host-a", "tcp", "10.10.0.8:502")
	p.serveIn(t, "host-a", "udp", "10.10.0.8:161")
	p.network(t, "remote", map[string]any{"snat": true, "destinations": []map[string]any{
		{"addrs": "10.200.0.8", "proto": "tcp", "ports": "502", "dnat_addr": "10.10.0.8"},
		{"addrs": "10.200.0.8", "proto": "udp", "ports": "161", "dnat_addr": "10.10.0.8"}}}, "site", "vpc-a")
	s := p.open(t, p.user, "remote")
	for network, to := range map[string]string{"tcp": "10.200.0.8:502", "udp": "10.200.0.8:161"} {
		if err := p.reaches(t, harness.UserAddr, network, to); err != nil {
			t.Errorf("%s through the extender: %v", network, err)
		}
	}
	ports, err := p.net.Listening("core")
	if err != nil {
		t.Fatal(err)
	}
	relay := ""
	for _, l := range ports {
		if strings.HasPrefix(l, harness.CoreAddr+":11") {
			relay = l
		}
	}
	if relay == "" {
		t.Fatalf("no relay port among %v", ports)
	}
	if err := p.passes(t, harness.UserAddr, "tcp", relay); err == nil {
		t.Error("the relay port serves somebody who does not come from the router")
	}
	flow := p.flow(t, harness.UserAddr, "10.200.0.8:502")
	if err := p.user.Do(t.Context(), http.MethodDelete, "/network-sessions/"+s.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	cut(t, flow)
	p.over(t, s.ID)
	if ports, err = p.net.Listening("core"); err != nil || strings.Contains(strings.Join(ports, " "), relay) {
		t.Errorf("the relay port is still open: %v, %v", ports, err)
	}
	var flows struct {
		Items []struct{ Destination string }
	}
	if err := p.user.Do(t.Context(), http.MethodGet, "/network-sessions/"+s.ID+"/flows", nil, &flows); err != nil || len(flows.Items) != 2 ||
		flows.Items[0].Destination != "10.200.0.8 tcp 502 -> 10.10.0.8:502" {
		t.Errorf("flow log %+v, %v", flows, err)
	}
}
