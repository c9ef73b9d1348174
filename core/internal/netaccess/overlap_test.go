package netaccess

import (
	"fmt"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"caponier/shared/netrule"
)

// The small world of the brute-force model: a few addresses of each family
// and a few ports, so that everything can be tried.
func smallSelector(t *rapid.T, label string) netrule.Selector {
	var s netrule.Selector
	base := [16]byte{10, 0, 0, 0}
	addr := func(n int) netip.Addr {
		b := base
		b[3] = byte(n)
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	if rapid.Bool().Draw(t, label+" v6") {
		addr = func(n int) netip.Addr {
			b := [16]byte{0xfd}
			b[15] = byte(n)
			return netip.AddrFrom16(b)
		}
	}
	first := rapid.IntRange(0, 7).Draw(t, label+" first")
	s.Addrs = netrule.Range{First: addr(first), Last: addr(rapid.IntRange(first, 7).Draw(t, label+" last"))}
	s.Proto = rapid.SampledFrom([]netrule.Proto{netrule.Any, netrule.TCP, netrule.UDP}).Draw(t, label+" proto")
	if s.Proto != netrule.Any && rapid.Bool().Draw(t, label+" ports") {
		p := rapid.IntRange(1, 5).Draw(t, label+" port")
		s.Ports = netrule.Ports{First: uint16(p), Last: uint16(rapid.IntRange(p, 5).Draw(t, label+" to"))}
	}
	return s
}

func smallDestinations(t *rapid.T, label string) []netrule.Destination {
	n := rapid.IntRange(1, 5).Draw(t, label+" n")
	out := make([]netrule.Destination, n)
	for i := range out {
		out[i].Selector = smallSelector(t, fmt.Sprintf("%s %d", label, i))
	}
	return out
}

// packets are all packets of the small world that destinations match.
func packets(ds []netrule.Destination) map[string]bool {
	out := map[string]bool{}
	for _, d := range ds {
		for a := d.Addrs.First; !d.Addrs.Last.Less(a); a = a.Next() {
			for _, p := range []netrule.Proto{netrule.TCP, netrule.UDP, 47} {
				if d.Proto != netrule.Any && d.Proto != p {
					continue
				}
				for port := uint16(1); port <= 6; port++ {
					if d.Ports == (netrule.Ports{}) || d.Ports.First <= port && port <= d.Ports.Last {
						out[fmt.Sprint(a, p, port)] = true
					}
				}
			}
		}
	}
	return out
}

func common(a, b map[string]bool) bool {
	for p := range a {
		if b[p] {
			return true
		}
	}
	return false
}

func TestOverlapsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := smallDestinations(t, "a"), smallDestinations(t, "b")
		want := common(packets(a), packets(b))
		if got := arrange(a).overlaps(arrange(b)); got != want {
			t.Fatalf("overlaps = %t, want %t", got, want)
		}
		if got := arrange(b).overlaps(arrange(a)); got != want {
			t.Fatalf("the other way round = %t, want %t", got, want)
		}
	})
}

// The rules of the document, word by word, over sets of packets.
func TestJudgeModel(t *testing.T) {
	clients := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("fd00::1")}
	users := []string{"anna", "bert"}
	rapid.Check(t, func(t *rapid.T) {
		type model struct {
			held
			packets map[string]bool
		}
		draw := func(label string) model {
			ds := smallDestinations(t, label)
			return model{held{
				id: label, user: rapid.SampledFrom(users).Draw(t, label+" user"), client: rapid.SampledFrom(clients).Draw(t, label+" client"),
				exclusive: rapid.Bool().Draw(t, label+" exclusive"), matches: arrange(ds),
			}, packets(ds)}
		}
		want := draw("want")
		var all []held
		sameClient, own, exclusiveHere, busy := false, false, false, false
		for i := range rapid.IntRange(0, 4).Draw(t, "held") {
			h := draw(fmt.Sprintf("held %d", i))
			all = append(all, h.held)
			overlap := common(h.packets, want.packets)
			sameClient = sameClient || h.client == want.client && h.user != want.user
			own = own || h.client == want.client && h.user == want.user && overlap
			exclusiveHere = exclusiveHere || h.exclusive && h.user != want.user && overlap && h.client != want.client
			busy = busy || want.exclusive && overlap && h.client != want.client
		}
		expect := noClash
		switch {
		case sameClient:
			expect = clientInUse
		case own:
			expect = ownOverlap
		case exclusiveHere:
			expect = exclusiveHeld
		case busy:
			expect = exclusiveBusy
		}
		got, other := judge(want.held, all)
		if got != expect || (got == noClash) != (other == nil) {
			t.Fatalf("judge = %d, want %d", got, expect)
		}
	})
}

func TestJudgeMatrix(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	parse := func(lines ...string) *selectors {
		var ds []netrule.Destination
		for _, l := range lines {
			d, err := netrule.ParseDestination(l)
			if err != nil {
				t.Fatal(err)
			}
			ds = append(ds, d)
		}
		return arrange(ds)
	}
	plant, line3, other := parse("10.20.0.0/16"), parse("10.20.3.0/24 tcp 502", "fd00:20::/64"), parse("10.30.0.0/16")
	for _, c := range []struct {
		name string
		held held
		want held
		clash
	}{
		{"same client, other user, disjoint", held{user: "u", client: a, matches: plant}, held{user: "v", client: a, matches: other}, clientInUse},
		{"own, overlapping", held{user: "u", client: a, matches: plant}, held{user: "u", client: a, matches: line3}, ownOverlap},
		{"own, disjoint", held{user: "u", client: a, matches: plant}, held{user: "u", client: a, matches: other}, noClash},
		{"other client, overlapping", held{user: "u", client: a, matches: plant}, held{user: "v", client: b, matches: line3}, noClash},
		{"held exclusive", held{user: "u", client: a, exclusive: true, matches: plant}, held{user: "v", client: b, matches: line3}, exclusiveHeld},
		{"held exclusive, disjoint", held{user: "u", client: a, exclusive: true, matches: plant}, held{user: "v", client: b, matches: other}, noClash},
		{"held exclusive by oneself elsewhere", held{user: "u", client: a, exclusive: true, matches: plant}, held{user: "u", client: b, matches: line3}, noClash},
		{"wants exclusive, busy", held{user: "u", client: a, matches: line3}, held{user: "v", client: b, exclusive: true, matches: plant}, exclusiveBusy},
		{"wants exclusive, busy by oneself elsewhere", held{user: "u", client: a, matches: line3}, held{user: "u", client: b, exclusive: true, matches: plant}, exclusiveBusy},
		{"wants exclusive, free", held{user: "u", client: a, matches: other}, held{user: "v", client: b, exclusive: true, matches: plant}, noClash},
	} {
		c.held.id = "x"
		if got, _ := judge(c.want, []held{c.held}); got != c.clash {
			t.Errorf("%s: %d, want %d", c.name, got, c.clash)
		}
	}
}

// An open is decided in a lock: comparing the largest targets must be quick.
func BenchmarkOverlaps(b *testing.B) {
	make5000 := func(second byte) []netrule.Destination {
		ds := make([]netrule.Destination, netrule.MaxDestinations)
		for i := range ds {
			a := netip.AddrFrom4([4]byte{10, second, byte(i >> 8), byte(i)})
			ds[i].Selector = netrule.Selector{Addrs: netrule.Range{First: a, Last: a}, Proto: netrule.TCP}
		}
		return ds
	}
	x, y := arrange(make5000(1)), arrange(make5000(2))
	b.ReportAllocs()
	for b.Loop() {
		if x.overlaps(y) {
			b.Fatal("they overlap")
		}
	}
}
