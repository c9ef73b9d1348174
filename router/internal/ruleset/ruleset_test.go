package ruleset

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"caponier/shared/netrule"
	"caponier/shared/wire"
)

var update = flag.Bool("update", false, "write golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run with -update and look at the difference):\n%s", path, got)
	}
}

// The constant part, byte for byte.
func TestLayoutGolden(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"layout.txt":            {Mark: 0x10000000, Layers: 2},
		"layout_interfaces.txt": {Mark: 0x20000000, Layers: 1, Interfaces: true},
	} {
		text, err := NewLayout(o).Text()
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, text)
	}
}

func dests(t testing.TB, texts ...string) (out []netrule.Destination) {
	t.Helper()
	for _, s := range texts {
		d, err := netrule.ParseDestination(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, d)
	}
	return out
}

func session(t testing.TB, id, client string, texts ...string) wire.RouterSession {
	t.Helper()
	return wire.RouterSession{ID: id, Target: "target of " + id, Rules: netrule.Rules{Client: netip.MustParseAddr(client), Destinations: dests(t, texts...)}}
}

func text(elems []Elem) string {
	lines := make([]string, len(elems))
	for i := range elems {
		lines[i] = elems[i].String() + "\n"
	}
	return strings.Join(lines, "")
}

// What sessions become, in the kernel's terms.
func TestElementsGolden(t *testing.T) {
	t.Parallel()
	m := NewModel()
	var b strings.Builder
	step := func(what string, do func(c *Change)) {
		var c Change
		do(&c)
		fmt.Fprintf(&b, "# %s\n-- removed\n%s-- added\n%s", what, text(c.Delete), text(c.Add))
	}
	add := func(rs wire.RouterSession) func(*Change) {
		return func(c *Change) {
			if err := m.Add(rs, c); err != nil {
				t.Fatal(err)
			}
		}
	}
	plc := session(t, "plc", "192.0.2.10", "10.20.0.0/24 tcp 502", "10.20.0.0/24 udp 161", "fd00:20::/64 tcp 502")
	step("a target with two destinations the client reaches, one it does not", add(plc))
	same := plc
	same.ID, same.Rules.Client = "same", netip.MustParseAddr("192.0.2.11")
	step("the same target for another client shares the destinations", add(same))
	nat := session(t, "nat", "192.0.2.12", "198.51.100.1 tcp 80 -> 10.20.0.5:8080", "198.51.100.2 -> 10.20.0.6")
	nat.Rules.SNAT = true
	step("translated both ways", add(nat))
	step("one host of the first target, any protocol: a layer of its own", add(session(t, "host", "192.0.2.13", "10.20.0.5")))
	step("IPv6, to the end of the numbers", add(session(t, "six", "2001:db8::1", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff udp 65535 -> [fd00::1]:1")))
	step("first match decides inside a target", add(session(t, "first", "192.0.2.14", "10.20.0.0/24 tcp 502", "10.0.0.0/8 tcp")))
	step("removed: destinations stay", func(c *Change) { m.Remove("plc", time.Unix(1, 0), c) })
	step("removed: so does what nobody else uses, until collected", func(c *Change) { m.Remove("host", time.Unix(1, 0), c) })
	step("collected", func(c *Change) { m.Collect(time.Unix(2, 0), 10, c) })
	golden(t, "elements.txt", b.String())
}

func TestLeaseAndStateElements(t *testing.T) {
	t.Parallel()
	elems := append(LeaseElems(1500), InterfaceElem("vpn0"), LayoutElem("abc"), marksElem(65536))
	want := "lease { 2 timeout 1500ms }\nlease { 10 timeout 1500ms }\ninterfaces { vpn0 }\nstate { 0x0 # layout abc }\nstate { 0x80010000 # marks }\n"
	if got := text(elems); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := LayoutSum(&elems[3]); got != "abc" {
		t.Errorf("layout sum: got %q", got)
	}
}

func TestSetNames(t *testing.T) {
	t.Parallel()
	for k := Dst4; k <= Interfaces; k++ {
		s := Set{Kind: k}
		if k == Dst4 || k == Dst6 {
			s.Layer = 63
		}
		if got, ok := ParseSet(s.Name()); !ok || got != s {
			t.Errorf("%s: got %v, %v", s.Name(), got, ok)
		}
	}
	for _, no := range []string{"", "dst4", "dst4_64", "dst4_01", "dst4_-1", "in_0", "other"} {
		if got, ok := ParseSet(no); ok {
			t.Errorf("%q is %v", no, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	m := NewModel()
	var c Change
	if err := m.Add(session(t, "a", "192.0.2.10", "10.20.0.0/24 tcp 502"), &c); err != nil {
		t.Fatal(err)
	}
	noClient := session(t, "b", "192.0.2.10", "10.30.0.1")
	noClient.Rules.Client = netip.Addr{}
	for _, bad := range []struct {
		rs   wire.RouterSession
		want string
	}{
		{session(t, "", "192.0.2.11", "10.30.0.1"), "ID is not valid"},
		{session(t, strings.Repeat("x", 200), "192.0.2.11", "10.30.0.1"), "ID is not valid"},
		{session(t, "a b", "192.0.2.11", "10.30.0.1"), "ID is not valid"},
		{noClient, "address is missing"},
		{session(t, "b", "192.0.2.10", "10.30.0.1", "10.20.0.9"), "10.20.0.9 overlaps with 10.20.0.0/24 tcp 502"},
		{session(t, "b", "192.0.2.10", "fd00::1"), "reaches none"},
	} {
		before := c
		err := m.Add(bad.rs, &c)
		if err == nil || !strings.Contains(err.Public, bad.want) {
			t.Errorf("got %v, want %q", err, bad.want)
		}
		if len(c.Add) != len(before.Add) {
			t.Errorf("%q left elements behind", bad.want)
		}
	}
	// Deeper than layers go, by destinations that all overlap and differ.
	var deep []string
	for i := range MaxLayers + 1 {
		deep = append(deep, fmt.Sprintf("10.0.0.0-10.0.0.%d", i+1))
	}
	if err := m.Add(session(t, "deep", "192.0.2.20", deep...), &c); err == nil || err.Code != wire.CodeLimit {
		t.Errorf("%d overlapping destinations: got %v", len(deep), err)
	}
	if err := m.Add(session(t, "deep", "192.0.2.20", deep[:MaxLayers]...), &c); err != nil || m.Depth() != MaxLayers {
		t.Errorf("%d overlapping destinations: got %v, %d layers", MaxLayers, err, m.Depth())
	}
}

// find is what the chains of the table do with the first packet of a flow.
func find(elems map[Ident]*Elem, depth int, src, dst netip.Addr, p netrule.Proto, port uint16) (mark uint32) {
	for layer := range depth {
		for _, e := range elems {
			if e.Kind != family(dst, Dst4, Dst6) || int(e.Layer) != layer {
				continue
			}
			sel, _ := parseDst(e)
			if !sel.Matches(dst, p, port) {
				continue
			}
			g := grantElem(src, e.value(), 0, "", 0)
			if hit, ok := elems[g.Ident()]; ok {
				return hit.value()
			}
		}
	}
	return 0
}

func smallDest(t *rapid.T) netrule.Destination {
	n := rapid.SampledFrom([]byte{0, 1, 2, 3, 254, 255})
	a, b := n.Draw(t, "a"), n.Draw(t, "b")
	s := netrule.Selector{Addrs: netrule.Range{First: netip.AddrFrom4([4]byte{10, 0, 0, min(a, b)}), Last: netip.AddrFrom4([4]byte{10, 0, 0, max(a, b)})}}
	s.Proto = rapid.SampledFrom([]netrule.Proto{netrule.Any, netrule.TCP, netrule.UDP}).Draw(t, "proto")
	if s.Proto != netrule.Any && rapid.Bool().Draw(t, "ports") {
		p := rapid.SampledFrom([]uint16{1, 2, 65535})
		x, y := p.Draw(t, "x"), p.Draw(t, "y")
		s.Ports = netrule.Ports{First: min(x, y), Last: max(x, y)}
	}
	return netrule.Destination{Selector: s.Normal()}
}

// Whatever is added and removed: elements of a layer never overlap, a packet
// finds exactly the first destination of a session that selects it, the sum of
// all changes is what the model says, and a restarted router adopts it all.
func TestModelProperties(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := NewModel()
		kernel := map[Ident]*Elem{}
		var sessions []wire.RouterSession
		now := time.Unix(0, 0)
		apply := func(c *Change) {
			for i := range c.Delete {
				id := c.Delete[i].Ident()
				if _, ok := kernel[id]; !ok {
					t.Fatalf("removed what is not there: %s", &c.Delete[i])
				}
				delete(kernel, id)
			}
			for i := range c.Add {
				id := c.Add[i].Ident()
				if old, ok := kernel[id]; ok {
					t.Fatalf("%s is already there as %s", &c.Add[i], old)
				}
				kernel[id] = &c.Add[i]
			}
		}
		for i := range rapid.IntRange(1, 12).Draw(t, "steps") {
			now = now.Add(time.Second)
			var c Change
			switch {
			case len(sessions) > 0 && rapid.IntRange(0, 3).Draw(t, "remove") == 0:
				at := rapid.IntRange(0, len(sessions)-1).Draw(t, "which")
				m.Remove(sessions[at].ID, now, &c)
				sessions = slices.Delete(sessions, at, at+1)
			case rapid.IntRange(0, 3).Draw(t, "collect") == 0:
				m.Collect(now, 2, &c)
			default:
				rs := wire.RouterSession{ID: fmt.Sprint("s", i)}
				rs.Rules.Client = netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(1, 4).Draw(t, "client"))})
				rs.Rules.SNAT = rapid.Bool().Draw(t, "snat")
				rs.Rules.Destinations = rapid.SliceOfNDistinct(rapid.Custom(smallDest), 1, 5, func(d netrule.Destination) netrule.Selector { return d.Selector }).Draw(t, "dests")
				if m.Add(rs, &c) == nil {
					sessions = append(sessions, rs)
				}
			}
			apply(&c)
		}
		for a, x := range kernel {
			for b, y := range kernel {
				if a.Set == b.Set && a != b && (a.Kind == Dst4) {
					p, _ := parseDst(x)
					q, _ := parseDst(y)
					if p.Overlaps(q) {
						t.Fatalf("layer %d: %s and %s overlap", a.Layer, p, q)
					}
				}
			}
		}
		dump := Dump{}
		for _, e := range kernel {
			dump = append(dump, *e)
		}
		if !m.Explains(dump) {
			t.Fatalf("the changes do not add up to the model:\n%s", text(dump))
		}
		for _, last := range []byte{0, 1, 2, 3, 100, 254, 255} {
			dst := netip.AddrFrom4([4]byte{10, 0, 0, last})
			for _, p := range []netrule.Proto{netrule.TCP, netrule.UDP, 1} {
				for _, port := range []uint16{1, 2, 77, 65535} {
					if p == 1 {
						port = 0
					}
					for c := byte(1); c <= 4; c++ {
						src := netip.AddrFrom4([4]byte{192, 0, 2, c})
						want := uint32(0)
						for _, rs := range sessions {
							if rs.Rules.Client != src {
								continue
							}
							s, _ := m.Session(rs.ID)
							for i, d := range rs.Rules.Destinations {
								if d.Matches(dst, p, port) {
									want = s.Grants[i].Mark
									break
								}
							}
						}
						if got := find(kernel, m.Depth(), src, dst, p, port); got != want {
							t.Fatalf("%s to %s %s %d: mark %#x, want %#x", src, dst, p, port, got, want)
						}
					}
				}
			}
		}
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(dump), func(i, j int) { dump[i], dump[j] = dump[j], dump[i] })
		again, unknown := Adopt(dump, m.Depth(), sessions)
		if again.Len() != len(sessions) {
			t.Fatalf("adopted %d of %d sessions", again.Len(), len(sessions))
		}
		for _, e := range unknown {
			if e.Kind != Dst4 {
				t.Fatalf("%s is unknown after a restart", &e)
			}
		}
		for _, rs := range sessions {
			a, _ := m.Session(rs.ID)
			b, _ := again.Session(rs.ID)
			if a.Block != b.Block {
				t.Fatalf("%s: marks %v became %v", rs.ID, a.Block, b.Block)
			}
		}
	})
}

// One thing wrong with a session and all of it is unknown; nothing else is.
func TestAdoptRefusesWhatIsWrong(t *testing.T) {
	t.Parallel()
	nat := session(t, "nat", "192.0.2.12", "198.51.100.1 tcp 80 -> 10.20.0.5:8080", "198.51.100.2 udp")
	nat.Rules.SNAT = true
	plain := session(t, "plain", "192.0.2.13", "10.20.0.5 tcp", "10.20.0.0/24")
	m := NewModel()
	var c Change
	for _, rs := range []wire.RouterSession{nat, plain} {
		if err := m.Add(rs, &c); err != nil {
			t.Fatal(err)
		}
	}
	good := m.Elements()
	slices.SortFunc(good, func(a, b Elem) int { return strings.Compare(a.String(), b.String()) })
	for i := range good {
		e := good[i]
		if e.Kind == State {
			continue
		}
		dump := slices.Delete(slices.Clone(good), i, i+1)
		got, unknown := Adopt(dump, FirstLayers, []wire.RouterSession{nat, plain})
		if got.Len() != 1 {
			t.Errorf("without %s: %d sessions adopted", &e, got.Len())
		}
		for _, u := range unknown {
			if kept := got.IDs()[0]; strings.HasPrefix(u.Comment, kept+"/") {
				t.Errorf("without %s: %s of %s is unknown", &e, &u, kept)
			}
		}
	}
	s, _ := m.Session("plain")
	mark := s.Grants[0].Mark
	for name, plant := range map[string]Elem{
		"another translation": dnatElem(mark, netrule.NAT{Addr: netip.MustParseAddr("10.9.9.9")}),
		"a hidden source":     MarkElem(SNAT, mark),
		"the mark again":      grantElem(netip.MustParseAddr("192.0.2.99"), 1, mark, "other", 0),
		"the session again":   grantElem(netip.MustParseAddr("192.0.2.99"), 1, 0x8000aaaa, "plain", 0),
	} {
		got, unknown := Adopt(append(slices.Clone(good), plant), FirstLayers, []wire.RouterSession{nat, plain})
		if got.Len() != 1 || got.IDs()[0] != "nat" {
			t.Errorf("%s: adopted %v", name, got.IDs())
		}
		if !slices.ContainsFunc(unknown, func(e Elem) bool { return e.Ident() == plant.Ident() }) {
			t.Errorf("%s: it may stay", name)
		}
	}
	other := plain
	other.Rules.Destinations = dests(t, "10.20.0.5 tcp", "10.20.0.0/25")
	if got, _ := Adopt(good, FirstLayers, []wire.RouterSession{nat, other}); got.Len() != 1 {
		t.Errorf("other rules under the same ID: adopted %v", got.IDs())
	}
}

// Marks come back only after all were used, and never while they are taken.
func TestMarks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := marks{next: MarkBit - 200, reserved: MarkBit - 100}
		var held []Block
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			n := rapid.IntRange(1, 20).Draw(t, "n")
			b := m.take(n, func(b Block) bool { return slices.ContainsFunc(held, b.meets) })
			if int(b.Size) < n || b.Base&MarkBit == 0 || b.Base&(b.Size-1) != 0 {
				t.Fatalf("%d marks: got %+v", n, b)
			}
			for _, h := range held {
				if h.Holds(b.Base) || b.Holds(h.Base) {
					t.Fatalf("%+v meets %+v", b, h)
				}
			}
			if m.reserved >= MarkBit || m.next > m.reserved {
				t.Fatalf("next %d is not reserved (%d)", m.next, m.reserved)
			}
			if held = append(held, b); rapid.Bool().Draw(t, "free") {
				held = slices.Delete(held, 0, 1)
			}
		}
	})
}

// The index finds what looking at each one finds.
func TestIndex(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		draw := func() netrule.Selector {
			if rapid.Bool().Draw(t, "v6") {
				a, b := rapid.Byte().Draw(t, "a"), rapid.Byte().Draw(t, "b")
				return netrule.Selector{Addrs: netrule.Range{First: netip.AddrFrom16([16]byte{0: min(a, b), 15: 1}), Last: netip.AddrFrom16([16]byte{0: max(a, b), 15: 9})}}
			}
			x, y := rapid.Uint32().Draw(t, "x"), rapid.Uint32().Draw(t, "y")
			if rapid.Bool().Draw(t, "near") {
				y = x ^ y>>rapid.IntRange(8, 31).Draw(t, "shift")
			}
			at := func(v uint32) netip.Addr {
				return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
			}
			return netrule.Selector{Addrs: netrule.Range{First: at(min(x, y)), Last: at(max(x, y))}}
		}
		x := newIndex()
		var all []*Dest
		for range rapid.IntRange(0, 60).Draw(t, "n") {
			d := &Dest{Selector: draw()}
			all = append(all, d)
			x.add(d)
		}
		for range rapid.IntRange(0, len(all)).Draw(t, "gone") {
			x.remove(all[0])
			all = all[1:]
		}
		s := draw()
		found := map[*Dest]bool{}
		x.each(s, func(d *Dest) bool { found[d] = true; return true })
		for _, d := range all {
			if d.Selector.Overlaps(s) != found[d] {
				t.Fatalf("%s and %s: found %v", s, d.Selector, found[d])
			}
			delete(found, d)
		}
		if len(found) > 0 {
			t.Fatal("found what was removed")
		}
	})
}
