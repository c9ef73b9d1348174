package ruleset

import (
	"net/netip"

	"caponier/shared/wire"
)

// Dump is the kernel's elements.
type Dump []Elem

// Adopt makes a model of what the kernel has, as far as the desired sessions
// explain it. A session is adopted whole, with its marks, so that its flows go
// on; where anything of it is missing or different, all of it is unknown and
// the session has to be added again. Unknown is what must leave the kernel.
func Adopt(kernel Dump, depth int, desired []wire.RouterSession) (m *Model, unknown []Elem) {
	m = NewModel()
	m.depth = depth
	a := newSurvey(kernel)
	m.nextDest = a.maxDest + 1
	m.marks.next, m.marks.reserved = a.reserved, a.reserved
	for mark := range a.granted {
		if mark&^MarkBit >= a.reserved {
			m.marks.wrapped = true // or what was reserved got lost: look twice
		}
	}
	for _, rs := range desired {
		if _, twice := m.sessions[rs.ID]; twice || m.Check(rs) != nil {
			continue
		}
		if s := a.session(m, rs); s != nil {
			m.put(s)
		}
	}
	for _, all := range m.dests {
		for _, d := range all {
			a.used[a.dests[d.ID]] = true
		}
	}
	for i := range kernel {
		switch kernel[i].Kind {
		case Lease, Interfaces, State:
		default:
			if !a.used[i] {
				unknown = append(unknown, kernel[i])
			}
		}
	}
	return m, unknown
}

// grantAt is a grant and where the dump has it.
type grantAt struct {
	client     netip.Addr
	dest, mark uint32
	position   int
	at         int
}

// markAt is an element whose key is a mark.
type markAt struct {
	kind Kind
	mark uint32
}

// survey is a dump, ordered for questions. Its numbers are places in the dump.
type survey struct {
	kernel   Dump
	used     []bool // explained by an adopted session
	marks    map[markAt]int
	grants   map[string][]grantAt // by session
	granted  map[uint32]int       // how often a mark is granted
	dests    map[uint32]int       // -1: two elements lead to it
	maxDest  uint32
	reserved uint32
}

func newSurvey(kernel Dump) *survey {
	n := len(kernel)
	a := &survey{
		kernel: kernel, used: make([]bool, n), marks: make(map[markAt]int, n), grants: make(map[string][]grantAt, n/8),
		granted: make(map[uint32]int, n/4), dests: map[uint32]int{},
	}
	for i := range kernel {
		e := &kernel[i]
		switch e.Kind {
		case State:
			if e.Comment == marksComment {
				a.reserved = max(a.reserved, e.Mark()&^MarkBit)
			}
		case Dst4, Dst6:
			id := e.value()
			a.maxDest = max(a.maxDest, id)
			if _, twice := a.dests[id]; twice {
				a.dests[id] = -1
			} else {
				a.dests[id] = i
			}
		case Grants4, Grants6:
			client, dest, mark, id, position, ok := parseGrant(e)
			a.granted[mark]++
			if ok {
				a.grants[id] = append(a.grants[id], grantAt{client, dest, mark, position, i})
			}
		default:
			a.marks[markAt{e.Kind, e.Mark()}] = i
		}
	}
	return a
}

// session is the kernel's version of a desired session, nil if it is not
// exactly there. Destinations it uses become the model's.
func (a *survey) session(m *Model, rs wire.RouterSession) *Session {
	all := a.grants[rs.ID]
	if len(all) == 0 {
		return nil
	}
	at := make([]*grantAt, len(rs.Rules.Destinations))
	for i := range all {
		g := &all[i]
		if g.position >= len(at) || at[g.position] != nil {
			return nil
		}
		at[g.position] = g
	}
	s := &Session{RouterSession: rs, Grants: make([]Grant, len(at))}
	size := blockSize(len(at))
	var (
		own   = newIndex()
		adopt []*Dest
		fresh = map[Set]*index{} // of adopt
		used  []int
		n     int
	)
	for i, d := range rs.Rules.Destinations {
		if !rs.Rules.Reaches(d) {
			continue
		}
		g := at[i]
		if g == nil || g.client != rs.Rules.Client || a.granted[g.mark] != 1 || g.mark&(size-1) != uint32(i) {
			return nil
		}
		if b := (Block{g.mark - uint32(i), size}); n == 0 {
			s.Block = b
		} else if s.Block != b {
			return nil
		}
		n++
		place, there := a.dests[g.dest]
		if !there || place < 0 {
			return nil
		}
		e := &a.kernel[place]
		if sel, ok := parseDst(e); !ok || sel != d.Selector {
			return nil
		}
		dest := m.known(e)
		if dest == nil {
			dest = &Dest{Selector: d.Selector, Set: e.Set, ID: g.dest}
			if int(e.Layer) >= m.depth || m.layer(e.Set).overlaps(d.Selector) {
				return nil
			}
			if x := fresh[e.Set]; x == nil {
				fresh[e.Set] = newIndex()
			} else if x.overlaps(d.Selector) {
				return nil
			}
			fresh[e.Set].add(dest)
			adopt = append(adopt, dest)
		}
		ordered := true
		own.each(d.Selector, func(o *Dest) bool { ordered = o.Set.Layer < dest.Set.Layer; return ordered })
		if !ordered {
			return nil
		}
		own.add(dest)
		s.Grants[i] = Grant{Dest: dest, Mark: g.mark}
		used = append(used, g.at)
	}
	if n != len(all) || !a.complete(s, &used) {
		return nil
	}
	for _, i := range used {
		a.used[i] = true
	}
	for _, d := range adopt {
		m.putDest(d)
	}
	return s
}

// known is the model's destination of an element, nil if it has none yet.
func (m *Model) known(e *Elem) *Dest {
	sel, _ := parseDst(e)
	for _, d := range m.dests[sel] {
		if d.Set == e.Set && d.ID == e.value() {
			return d
		}
	}
	return nil
}

// markKinds are the sets whose elements belong to a mark.
var markKinds = []Kind{In, Out, SNAT, DNAT4, DNAT4Port, DNAT6, DNAT6Port}

// complete reports whether every element of the session's marks is there and
// says what it should, and no other hangs on them. It adds their places to used.
func (a *survey) complete(s *Session, used *[]int) bool {
	for i, g := range s.Grants {
		if g.Dest == nil {
			continue
		}
		var dnat Elem
		if n := s.Rules.Destinations[i].DNAT; n != nil {
			dnat = dnatElem(g.Mark, *n)
		}
		for _, k := range markKinds {
			want := k == In || k == Out || k == SNAT && s.Rules.SNAT || k == dnat.Kind
			place, there := a.marks[markAt{k, g.Mark}]
			if there != want {
				return false
			}
			if !there {
				continue
			}
			if k == dnat.Kind && !dnat.same(&a.kernel[place]) {
				return false
			}
			*used = append(*used, place)
		}
	}
	return true
}

// Explains reports whether a dump is exactly what the model says.
func (m *Model) Explains(kernel Dump) bool {
	want := m.Elements()
	left := make(map[Ident]*Elem, len(want))
	for i := range want {
		left[want[i].Ident()] = &want[i]
	}
	for i := range kernel {
		e := &kernel[i]
		if e.Kind == Lease || e.Kind == Interfaces || LayoutSum(e) != "" {
			continue
		}
		w, ok := left[e.Ident()]
		if !ok || !w.same(e) {
			return false
		}
		delete(left, e.Ident())
	}
	return len(left) == 0
}

// GrantOf is the mark, session and position of a grant.
func GrantOf(e *Elem) (mark uint32, session string, position int, ok bool) {
	if e.Kind != Grants4 && e.Kind != Grants6 {
		return 0, "", 0, false
	}
	_, _, mark, session, position, ok = parseGrant(e)
	return mark, session, position, ok
}
