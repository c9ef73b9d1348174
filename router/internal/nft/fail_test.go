package nft

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"caponier/shared/wire"
)

// keepsSpeaking is a flow that must survive something.
func (r *rig) keepsSpeaking(c net.Conn, what string) {
	r.t.Helper()
	if err := pingPong(c, patience); err != nil {
		r.t.Fatalf("%s: the flow is cut: %v", what, err)
	}
}

func TestSecondRouterIsLockedOut(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.open(Config{})
	err := r.Within("router", func() error {
		tab, err := Open(t.Context(), Config{})
		if err == nil {
			err = errors.Join(errors.New("opened twice"), tab.Close())
		}
		return err
	})
	if !errors.Is(err, ErrLocked) {
		t.Errorf("got %v, want ErrLocked", err)
	}
}

// Without a lease nothing passes, without a word, so that flows live through a
// short loss of core.
func TestLease(t *testing.T) {
	t.Parallel()
	r := world(t)
	tab := r.open(Config{})
	r.replace(tab, session(t, "s", clientAddr, "10.20.0.5"))
	r.blocked(clientAddr, "tcp", targetAddr+":502")
	r.must(tab.Renew(t.Context(), longLease))
	c := r.passes(clientAddr, "tcp", targetAddr+":502")
	udp := r.passes(clientAddr, "udp", targetAddr+":161")
	const lease = time.Second
	r.must(tab.Renew(t.Context(), lease))
	began := time.Now()
	// The last question that was answered was asked while the lease held;
	// between the last two the machine may have paused.
	var last, pause time.Duration
	for at, n := time.Duration(0), 0; at < lease+200*time.Millisecond; n++ {
		if r.answers(udp, n) {
			last = at
		}
		now := time.Since(began)
		if at < lease-100*time.Millisecond {
			pause = max(pause, now-at)
		}
		at = now
	}
	t.Logf("lease of %v: last question answered was asked after %v, longest pause %v", lease, last, pause)
	if last > lease || last < lease-100*time.Millisecond-pause {
		t.Errorf("a lease of %v held for %v", lease, last)
	}
	r.must(tab.Renew(t.Context(), longLease))
	r.keepsSpeaking(c, "after a gap in the lease")
}

// answers asks a question of its own and reports whether that is answered soon:
// the answer to an earlier one may still come.
func (r *rig) answers(c net.Conn, n int) bool {
	r.t.Helper()
	question := fmt.Sprintf("question %d", n)
	r.must(c.SetDeadline(time.Now().Add(200 * time.Millisecond)))
	if _, err := io.WriteString(c, question); err != nil {
		return false
	}
	for buf := make([]byte, 100); ; {
		n, err := c.Read(buf)
		if err != nil || string(buf[:n]) == question {
			return err == nil
		}
	}
}

// A restarted router adopts what is there: flows do not notice, what should
// have ended ends, what is missing comes.
func TestRestartKeepsValidFlows(t *testing.T) {
	t.Parallel()
	r := world(t)
	stays := session(t, "stays", clientAddr, "10.20.0.5 tcp 502", "10.20.0.5 udp 161", "198.51.100.9 tcp 502 -> 10.20.0.6")
	stays.Rules.SNAT = true
	goes := session(t, "goes", otherAddr, "10.20.0.5 tcp 502")
	tab, stop := r.openFor(Config{})
	r.replace(tab, stays, goes)
	r.must(tab.Renew(t.Context(), longLease))
	a, b := r.passes(clientAddr, "tcp", targetAddr+":502"), r.passes(clientAddr, "tcp", "198.51.100.9:502")
	dead := r.passes(otherAddr, "tcp", targetAddr+":502")
	stop() // as SIGKILL would: nothing is cleaned up
	r.keepsSpeaking(a, "without a router")

	tab = r.open(Config{})
	r.keepsSpeaking(a, "opened again")
	before := r.elements()
	res := r.replace(tab, stays, session(t, "new", otherAddr, "10.20.0.6 tcp 502"))
	if len(res.Ended) != 1 || res.Ended[0].ID != "goes" || res.Ended[0].PacketsOut == 0 {
		t.Errorf("ended: got %+v, want goes with its counters", res.Ended)
	}
	r.keepsSpeaking(a, "reconciled")
	r.keepsSpeaking(b, "reconciled")
	if err := pingPong(dead, denyWait); err == nil {
		t.Error("the session that ended meanwhile goes on")
	}
	r.passes(otherAddr, "tcp", target2+":502")
	if marks := r.elements(); !strings.Contains(marks, markOf(before, "stays/0")) {
		t.Error("the session that stayed got another mark")
	}
	counts, err := tab.Counters(t.Context(), []string{"stays"})
	r.must(err)
	if counts[0].Destinations[0].PacketsOut < 6 {
		t.Errorf("counters began again: %+v", counts[0])
	}
	// Opened with the same ID but other rules while the router was away: cut.
	stop2 := session(t, "stays", clientAddr, "10.20.0.6 tcp 502")
	r.replace(tab, stop2)
	if err := pingPong(a, denyWait); err == nil {
		t.Error("the flow goes on under other rules")
	}
}

func (r *rig) elements() string { return r.run("router", "nft", "list", "table", "inet", "caponier") }

// markOf is the mark a listing shows for a grant.
func markOf(listing, comment string) string {
	_, rest, _ := strings.Cut(listing, `comment "`+comment+`" : `)
	if len(rest) < 10 {
		return "no such grant"
	}
	return rest[:10]
}

// Somebody empties the kernel by hand: nothing passes, it is noticed, and after
// the repair flows go on where they were.
func TestFlushByHand(t *testing.T) {
	t.Parallel()
	for _, c := range []string{"flush ruleset", "delete table inet caponier", "flush set inet caponier out", "delete rule", "flush chain inet caponier forward", "add table inet caponier { flags dormant; }"} {
		t.Run(c, func(t *testing.T) {
			t.Parallel()
			r := world(t)
			s := session(t, "s", clientAddr, "10.20.0.5 tcp 502", "10.20.0.5 udp 161")
			tab := r.start(s, session(t, "s6", client6, "fd00:20::/64 tcp"))
			flow, flow6 := r.passes(clientAddr, "tcp", targetAddr+":502"), r.passes(client6, "tcp", "["+target6+"]:502")
			if _, err := tab.Counters(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if c == "delete rule" {
				out := r.run("router", "nft", "-a", "list", "chain", "inet", "caponier", "judge")
				_, handle, _ := strings.Cut(out, "drop # handle ")
				r.run("router", "nft", "delete", "rule", "inet", "caponier", "judge", "handle", strings.Fields(handle)[0])
			} else {
				r.run("router", "nft", c)
			}
			select {
			case <-tab.Changed():
			case <-time.After(patience):
				t.Fatal("not noticed")
			}
			if err := tab.Renew(t.Context(), longLease); !errors.Is(err, ErrNotReconciled) {
				t.Errorf("renewed although the rules are not known: %v", err)
			}
			if c == "flush ruleset" || c == "delete table inet caponier" {
				// The latch alone holds, for new packets of known flows, too.
				r.blocked(clientAddr, "tcp", targetAddr+":502")
				r.blocked(clientAddr, "tcp", targetAddr+":503")
				r.blocked(client6, "tcp", "["+target6+"]:503")
				if err := pingPong(flow, denyWait); err == nil {
					t.Fatal("an established flow passes without rules")
				}
			}
			r.replace(tab, s, session(t, "s6", client6, "fd00:20::/64 tcp"))
			r.must(tab.Renew(t.Context(), longLease))
			r.passes(clientAddr, "tcp", targetAddr+":502")
			// Flows were dropped, not refused, and go on; but where their marks
			// alone went away they may have been refused.
			if c != "flush set inet caponier out" {
				r.keepsSpeaking(flow6, c)
			}
			counts, err := tab.Counters(t.Context(), []string{"s"})
			r.must(err)
			if counts[0].PacketsOut < 8 {
				t.Errorf("counters began again: %+v", counts[0])
			}
			r.blocked(otherAddr, "tcp", targetAddr+":502")
		})
	}
}

// Elements planted by hand are found and leave; a changed one counts as both.
func TestUnknownElements(t *testing.T) {
	t.Parallel()
	r := world(t)
	s := session(t, "s", clientAddr, "10.20.0.5 tcp 502")
	tab := r.start(s)
	flow := r.passes(clientAddr, "tcp", targetAddr+":502")
	mark := markOf(r.elements(), "s/0")
	for _, plant := range []string{
		"add element inet caponier grants4 { " + otherAddr + " . 1 comment \"s/7\" : " + mark + " }",
		"add element inet caponier grants4 { " + otherAddr + " . 1 : 0x8000aaaa }; add element inet caponier out { 0x8000aaaa }; add element inet caponier in { 0x8000aaaa }",
		"add element inet caponier dst4_0 { 10.20.0.6 . tcp . 503 : 1 }",
		"add element inet caponier dst4_1 { 10.0.0.0/8 . 0-255 . 0-65535 : 77 }",
		"add element inet caponier hidden { " + mark + " }",
		"add element inet caponier dnat4 { " + mark + " : 10.20.0.6 }",
		"flush set inet caponier lease; add element inet caponier lease { ipv4 }",
	} {
		r.run("router", "nft", plant)
		select {
		case <-tab.Changed():
		case <-time.After(patience):
			t.Fatalf("not noticed: %s", plant)
		}
		r.replace(tab, s)
		r.must(tab.Renew(t.Context(), longLease))
		if now := r.elements(); strings.Contains(now, "0x8000aaaa") || strings.Contains(now, otherAddr) || strings.Contains(now, "10.20.0.6") || strings.Contains(now, "10.0.0.0/8") {
			t.Fatalf("%s: still there:\n%s", plant, now)
		}
		r.blocked(otherAddr, "tcp", targetAddr+":502")
		c := r.passes(clientAddr, "tcp", targetAddr+":502")
		mark = markOf(r.elements(), "s/0")
		if !strings.Contains(plant, mark) && !strings.Contains(plant, "hidden") && !strings.Contains(plant, "dnat") && !strings.Contains(plant, "s/7") && !strings.Contains(plant, ": 1 }") {
			r.keepsSpeaking(flow, plant)
		}
		flow = c
	}
	// Another table's changes are nobody's business.
	r.run("router", "nft", "add table inet other; add chain inet other c")
	w := watcher{t: tab}
	until(t, "the other table is looked at and accepted", func() bool {
		r.must(w.look(t.Context()))
		select {
		case <-tab.Changed():
			t.Fatal("a change elsewhere counts as ours")
		default:
		}
		tab.leaseLock <- struct{}{}
		defer func() { <-tab.leaseLock }()
		gen, err := generation(tab.flows)
		r.must(err)
		return gen == tab.commits.Load()
	})
}

// The latch returns when somebody takes it away, and without it the table still
// keeps the router shut.
func TestLatch(t *testing.T) {
	t.Parallel()
	r := world(t)
	tab := r.start(session(t, "s", clientAddr, "10.20.0.5 tcp 502"))
	for _, family := range []string{"-4", "-6"} {
		for i := range 4 {
			r.run("router", "ip", family, "rule", "del", "priority", fmt.Sprint(defaultPriority+i))
		}
	}
	r.blocked(clientAddr, "tcp", targetAddr+":503")
	until(t, "the latch is back", func() bool {
		return strings.Count(r.run("router", "ip", "-4", "rule")+r.run("router", "ip", "-6", "rule"), "blackhole") == 2
	})
	r.passes(clientAddr, "tcp", targetAddr+":502")
	r.must(tab.Renew(t.Context(), longLease))
}

// Uninstalling opens the router again, the boot unit's call closes it.
func TestRemoveAndLatch(t *testing.T) {
	t.Parallel()
	r := world(t)
	r.must(r.Within("router", func() error { return Latch(t.Context(), Config{}) }))
	r.blocked(clientAddr, "tcp", targetAddr+":502")
	r.must(r.Within("router", func() error { return Remove(t.Context(), Config{}) }))
	r.passes(clientAddr, "tcp", targetAddr+":502")
	if left := r.run("router", "nft", "list", "ruleset"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// Only interfaces of clients may bring clients.
func TestClientInterfaces(t *testing.T) {
	t.Parallel()
	r := world(t)
	tab := r.open(Config{ClientInterfaces: []string{"t0"}})
	r.replace(tab, session(t, "s", clientAddr, "10.20.0.5 tcp 502"))
	r.must(tab.Renew(t.Context(), longLease))
	r.blocked(clientAddr, "tcp", targetAddr+":502")
}

// A session appears whole: 5,000 destinations are one transaction.
func TestManyDestinations(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	tab := r.start(session(t, "o", otherAddr, "10.20.0.5 udp 5000"))
	r.udpEcho("target", targetAddr+":5000")
	other := r.passes(otherAddr, "udp", targetAddr+":5000")
	s := wire.RouterSession{ID: "many", Target: "many", Rules: session(t, "x", clientAddr, "10.20.0.5 udp 5000").Rules}
	for i := range 4999 {
		s.Rules.Destinations = append(s.Rules.Destinations, session(t, "x", clientAddr, fmt.Sprintf("10.21.%d.%d tcp %d", i/250, i%250+1, i+1)).Rules.Destinations...)
	}
	began := time.Now()
	r.apply(tab, []wire.RouterSession{s})
	applied := time.Since(began)
	r.passes(clientAddr, "udp", targetAddr+":5000")
	r.keepsSpeaking(other, "beside 5,000 destinations")
	began = time.Now()
	counts, err := tab.Counters(t.Context(), []string{"many"})
	r.must(err)
	if len(counts[0].Destinations) != 5000 || counts[0].PacketsIn == 0 {
		t.Errorf("got %d destinations, %d packets", len(counts[0].Destinations), counts[0].PacketsIn)
	}
	counted := time.Since(began)
	began = time.Now()
	r.replace(tab, s, session(t, "o", otherAddr, "10.20.0.5 udp 5000"))
	reconciled := time.Since(began)
	began = time.Now()
	res := r.apply(tab, nil, "many")
	t.Logf("5,000 destinations: applied in %v, counted in %v, reconciled in %v, removed in %v", applied, counted, reconciled, time.Since(began))
	if len(res.Ended) != 1 || res.Ended[0].PacketsIn == 0 {
		t.Errorf("ended: %+v", res.Ended)
	}
	r.blocked(clientAddr, "udp", targetAddr+":5000")
	r.keepsSpeaking(other, "after 5,000 destinations went")
}
