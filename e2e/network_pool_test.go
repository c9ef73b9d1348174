package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// postgresOptions have core keep its records in a PostgreSQL of its own.
func postgresOptions(t *testing.T) options {
	t.Helper()
	needRig(t)
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	cert, key := selfSigned(t, dir, "localhost", "127.0.0.1")
	password := rand.Text()
	urlFile := filepath.Join(dir, "database-url")
	url := "postgres://postgres:" + password + "@127.0.0.1:5432/postgres?sslmode=verify-full&sslrootcert=" + cert + "\n"
	if err := os.WriteFile(urlFile, []byte(url), 0o600); err != nil {
		t.Fatal(err)
	}
	return options{tables: "[database]\nengine = \"postgres\"\nurl_file = \"" + urlFile + "\"\n", before: func(n *harness.Net) error {
		pg, err := harness.StartPostgres(t.Context(), n, "core", filepath.Join(dir, "pg"), cert, key, password)
		if err == nil {
			t.Cleanup(pg.Proc.Kill)
		}
		return err
	}}
}

// via sends the user's packets for the plant through another router.
func (p *plant) via(t *testing.T, gw string) {
	t.Helper()
	if err := p.net.IP("user", "route replace 10.20.0.0/16 via "+gw); err != nil {
		t.Fatal(err)
	}
}

func (p *plant) end(t *testing.T, a *harness.API, id string) {
	t.Helper()
	if err := a.Delete(t.Context(), "/network-sessions/"+id); err != nil {
		t.Fatal(err)
	}
}

// Two routers, core on PostgreSQL, five people: who holds what, who wins, and
// what nobody inherits.
func TestNetworkPools(t *testing.T) {
	p := newPlant(t, postgresOptions(t))
	if _, err := os.Stat(filepath.Join(p.core.Dir, "state", "core.db")); err == nil {
		t.Fatal("there is an SQLite database")
	}
	const gw2 = "203.0.113.121"
	if err := errors.Join(p.net.Add("gw2"), p.net.Plug("gw2", "wan", "core", "br0", gw2+"/24"),
		// A link of its own: bridges of other machines may filter what they pass.
		p.net.IP("gw2", "link add lan type bridge", "addr add 10.20.1.1/24 dev lan", "link set lan up"), p.net.Plug("plc", "eth1", "gw2", "lan", "10.20.1.5/24"),
		p.net.IP("gw2", "route add "+plcAddr+" via 10.20.1.5"), p.net.Sysctl("gw2", "net.ipv4.ip_forward=1"), p.net.IP("user", "addr add 203.0.113.52/24 dev eth0", "addr add 203.0.113.53/24 dev eth0", "addr add 203.0.113.54/24 dev eth0")); err != nil {
		t.Fatal(err)
	}
	p.lease(t, longLease)
	people := map[string]*harness.API{harness.UserAddr: p.user, benAddr: p.ben}
	for addr, name := range map[string]string{"203.0.113.52": "carl", "203.0.113.53": "dora", "203.0.113.54": "emil"} {
		if _, role, err := p.core.Admin.User(t.Context(), name, p.demo); err != nil {
			t.Fatal(err)
		} else if _, err := p.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: role, Tag: "plant", Features: []string{"network"}}); err != nil {
			t.Fatal(err)
		}
		people[addr] = p.from(t, addr, name)
	}
	plc := net.JoinHostPort(plcAddr, "502")

	t.Run("exclusive, both ways", func(t *testing.T) {
		p.network(t, "press", map[string]any{"exclusive": true, "destinations": []map[string]any{{"addrs": plcAddr, "proto": "tcp", "ports": "500-510"}}})
		s := p.open(t, p.user, "plc")
		if _, err := p.ben.OpenNetwork(t.Context(), "press"); refused(err) != "exclusive_busy" {
			t.Errorf("exclusive use of what is in use: %v", err)
		}
		p.end(t, p.user, s.ID)
		p.over(t, s.ID)
		s = p.open(t, p.ben, "press")
		if _, err := p.user.OpenNetwork(t.Context(), "plc"); refused(err) != "exclusive_in_use" {
			t.Errorf("use of what is in exclusive use: %v", err)
		}
		p.end(t, p.ben, s.ID)
		p.over(t, s.ID)
	})

	t.Run("fifty at once", func(t *testing.T) {
		type outcome struct {
			from, id string
			err      error
		}
		got := make(chan outcome, 50)
		begin := make(chan struct{})
		for addr, a := range people {
			for range 10 {
				go func() {
					<-begin
					s, err := a.OpenNetwork(t.Context(), "press")
					got <- outcome{addr, s.ID, err}
				}()
			}
		}
		close(begin)
		codes := map[string]int{}
		var won outcome
		for range 50 {
			o := <-got
			if o.err == nil {
				won = o
				codes["open"]++
				continue
			}
			codes[refused(o.err)]++
		}
		t.Log(codes)
		if codes["open"] != 1 || codes["open"]+codes["exclusive_in_use"]+codes["exclusive_busy"]+codes["destinations_overlap"] != 50 {
			t.Fatalf("outcomes %v, want one open and the others refused for it", codes)
		}
		var wg sync.WaitGroup
		for addr := range maps.Keys(people) {
			wg.Go(func() {
				limit := tryTime
				if addr == won.from {
					limit = patience
				}
				if err := p.gets(t, limit, addr, "tcp", plc); (err == nil) != (addr == won.from) {
					t.Errorf("%s: %v; %s won", addr, err, won.from)
				}
			})
		}
		wg.Wait()
		p.end(t, people[won.from], won.id)
		p.over(t, won.id)
	})

	t.Run("same tuple, next user", func(t *testing.T) {
		carl := p.open(t, people["203.0.113.52"], "plc")
		survivor := p.flow(t, "203.0.113.52", plc)
		p.network(t, "tcp-only", map[string]any{"destinations": []map[string]any{{"addrs": "10.20.0.0/24", "proto": "tcp", "ports": "502"}}})
		s := p.open(t, p.user, "plc")
		var c net.Conn
		err := p.net.Within("user", func() (err error) {
			c, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(harness.UserAddr), Port: 40161}, &net.UDPAddr{IP: net.ParseIP(plcAddr), Port: 161})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := talk(c, patience); err != nil {
			t.Fatal(err)
		}
		// The next user of the address, as soon as it is free.
		next := p.from(t, harness.UserAddr, "ben")
		p.end(t, p.user, s.ID)
		var nexts harness.NetworkSession
		take := func(target string) {
			t.Helper()
			until(t, patience, "the address is free", func() (err error) {
				if nexts, err = next.OpenNetwork(t.Context(), target); err != nil && refused(err) != "client_in_use" && refused(err) != "destinations_overlap" {
					t.Fatal(err)
				}
				return err
			})
		}
		take("tcp-only")
		if talk(c, tryTime) == nil {
			t.Error("the flow of the user before goes on in a session that does not open it")
		}
		if err := p.reaches(t, harness.UserAddr, "tcp", plc); err != nil {
			t.Errorf("what it does open: %v", err)
		}
		p.end(t, next, nexts.ID)
		take("plc")
		if err := talk(c, patience); err != nil {
			t.Errorf("the same addresses and ports in a session that opens them: %v", err)
		}
		if err := talk(survivor, patience); err != nil {
			t.Errorf("a session nobody ended: %v", err)
		}
		p.end(t, next, nexts.ID)
		p.end(t, people["203.0.113.52"], carl.ID)
		p.over(t, nexts.ID)
		if got := p.over(t, s.ID); got.EndReason != "user" || got.BytesOut == 0 {
			t.Errorf("on record: %+v", got)
		}
	})

	t.Run("two routers", func(t *testing.T) { p.twoRouters(t, gw2, plc) })
}

// twoRouters opens sessions on two routers of one pool, of which one dies
// while they end, then on disjoint pools.
func (p *plant) twoRouters(t *testing.T, gw2, plc string) {
	p.lease(t, shortLease) // from the second router's first one on
	second, state := p.addRouter(t, "gw2", "gw-2")
	if state.Type != "nftables" || !state.Leased {
		t.Fatalf("the second router is %+v", state)
	}
	if err := p.core.Admin.Pool(t.Context(), "gw-2", userPool); err != nil {
		t.Fatal(err)
	}
	// Answers go back through the router that a packet came through.
	p.network(t, "both", map[string]any{"snat": true, "destinations": []map[string]any{{"addrs": plcAddr, "proto": "tcp", "ports": "502"}}})
	holders := func(s harness.NetworkSession) []string {
		names := []string{}
		for _, r := range s.Routers {
			names = append(names, r.Name+" "+r.State)
		}
		slices.Sort(names)
		return names
	}
	both := func() harness.NetworkSession {
		t.Helper()
		s := p.open(t, p.user, "both")
		if got := holders(s); !slices.Equal(got, []string{"gw-1 holds", "gw-2 holds"}) {
			t.Fatalf("held by %v", got)
		}
		for _, gw := range []string{gwAddr, gw2} {
			p.via(t, gw)
			if err := p.reaches(t, harness.UserAddr, "tcp", plc); err != nil {
				t.Errorf("through %s: %v", gw, err)
			}
		}
		return s
	}
	notEnded := func(s harness.NetworkSession) {
		t.Helper()
		p.end(t, p.user, s.ID)
		now, err := p.core.Admin.NetworkSession(t.Context(), s.ID)
		if err != nil || now.State != "ending" {
			t.Errorf("a router that may hold the rules is away, and the session is %+v, %v", now, err)
		}
	}

	s := both()
	flow := p.flow(t, harness.UserAddr, plc) // through gw-2
	dead := p.signal(t, second.Proc, syscall.SIGKILL)
	notEnded(s)
	p.via(t, gwAddr)
	if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
		t.Error("the router that lives lets it through after the end")
	}
	p.via(t, gw2)
	last := make(chan time.Time, 1)
	go func() { last <- lastByte(flow, dead.Add(3*shortLease)) }()
	p.over(t, s.ID)
	over := time.Now()
	at := <-last
	t.Logf("killed; last byte after %s, ended after %s", at.Sub(dead).Round(time.Millisecond), over.Sub(dead).Round(time.Millisecond))
	if at.After(over) {
		t.Errorf("told as ended while packets passed: %s too early", at.Sub(over))
	}
	if at.Sub(dead) > shortLease+late {
		t.Errorf("packets passed %s after the router's death", at.Sub(dead))
	}
	p.startRouter(t, second)

	s = both()
	p.signal(t, second.Proc, syscall.SIGKILL)
	notEnded(s)
	p.startRouter(t, second)
	p.over(t, s.ID)
	if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
		t.Error("the router that came back lets an ended session through")
	}

	// Disjoint pools: only the one that has the client is told.
	if err := p.core.Admin.Pool(t.Context(), "gw-2", "198.51.100.0/24"); err != nil {
		t.Fatal(err)
	}
	s = p.open(t, p.user, "both")
	if got := holders(s); !slices.Equal(got, []string{"gw-1 holds"}) {
		t.Errorf("held by %v with disjoint pools", got)
	}
	if p.passes(t, harness.UserAddr, "tcp", plc) == nil {
		t.Error("the router of another pool lets it through")
	}
	p.via(t, gwAddr)
	if err := p.reaches(t, harness.UserAddr, "tcp", plc); err != nil {
		t.Errorf("the router of the pool: %v", err)
	}
	p.end(t, p.user, s.ID)
	p.over(t, s.ID)
}

// lastByte is when what a flow carried last was sent (see cut), looked at until
// it fails or until limit.
func lastByte(c net.Conn, limit time.Time) time.Time {
	last := time.Now()
	for time.Now().Before(limit) {
		at := time.Now()
		c.SetDeadline(at.Add(cutTime))
		sent, got := []byte{1}, []byte{0}
		if _, err := c.Write(sent); err != nil {
			return last
		}
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(sent, got) {
			return last
		}
		last = at
	}
	return last
}

// BenchmarkNetworkSession opens and ends a session: how long from the request
// to open until the first packet arrives, and from the request to end until the
// last packet arrives.
func BenchmarkNetworkSession(b *testing.B) {
	p := newPlant(b, options{})
	var sink net.PacketConn
	if err := p.net.Within("plc", func() (err error) {
		sink, err = net.ListenPacket("udp", net.JoinHostPort(plcAddr, "1161"))
		return err
	}); err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	var mu sync.Mutex
	var first, last time.Time // packet of the session
	news := make(chan struct{}, 1)
	go func() {
		buf := make([]byte, 100)
		for {
			if _, _, err := sink.ReadFrom(buf); err != nil {
				return
			}
			mu.Lock()
			if last = time.Now(); first.IsZero() {
				first = last
			}
			mu.Unlock()
			select {
			case news <- struct{}{}:
			default:
			}
		}
	}()
	p.network(b, "sink", map[string]any{"destinations": []map[string]any{{"addrs": plcAddr, "proto": "udp", "ports": "1161"}}})
	c, err := p.dial(b.Context(), harness.UserAddr, "udp", net.JoinHostPort(plcAddr, "1161"))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	// The user's program sends all the time.
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(500 * time.Microsecond)
		defer t.Stop()
		for {
			select {
			case <-stop:
				return
			case <-t.C:
				c.Write([]byte("on and on")) // refused while there is no session
			}
		}
	}()
	passes := func() {
		b.Helper()
		select {
		case <-news:
		case <-time.After(5 * time.Second):
			b.Fatal("nothing passes within 5 s in an open session")
		}
	}
	var opens, ends []time.Duration
	for b.Loop() {
		at := time.Now()
		s := p.open(b, p.user, "sink")
		passes()
		mu.Lock()
		opens = append(opens, first.Sub(at))
		mu.Unlock()
		passes()
		at = time.Now()
		if err := p.user.Delete(b.Context(), "/network-sessions/"+s.ID); err != nil {
			b.Fatal(err)
		}
		p.over(b, s.ID)
		mu.Lock()
		ends, first = append(ends, max(0, last.Sub(at))), time.Time{}
		mu.Unlock()
		select {
		case <-news:
		default:
		}
	}
	close(stop)
	<-stopped
	for name, ds := range map[string][]time.Duration{"open": opens, "revoke": ends} {
		slices.Sort(ds)
		for _, q := range []int{50, 99} {
			b.ReportMetric(float64(ds[(len(ds)*q-1)/100].Microseconds())/1000, fmt.Sprintf("ms-%s-p%d", name, q))
		}
	}
	b.ReportMetric(0, "ns/op")
}
