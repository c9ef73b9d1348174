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
	for mark := range a.marks {
		if mark&^MarkBit >= a.reserved {
			m.marks.wrapped = true // or what was reserved got lost: look twice
		}
	}
	expected := make(map[Ident]struct{}, len(kernel))
	for _, rs := range desired {
		if _, twice := m.sessions[rs.ID]; twice || m.Check(rs) != nil {
			continue
		}
		if s := a.session(m, rs); s != nil {
			m.put(s)
			for _, e := range s.elems() {
				expected[e.Ident()] = struct{}{}
			}
		}
	}
	for _, all := range m.dests {
		for _, d := range all {
			e := dstElem(d)
			expected[e.Ident()] = struct{}{}
		}
	}
	for i := range kernel {
		e := &kernel[i]
		switch e.Kind {
		case Lease, Interfaces, State:
			continue
		}
		if _, ok := expected[e.Ident()]; !ok {
			unknown = append(unknown, *e)
		}
	}
	return m, unknown
}

type grantAt struct {
	client     netip.Addr
	dest, mark uint32
}

// survey is a dump, ordered for questions.
type survey struct {
	by       map[Ident]*Elem
	grants   map[string]map[int]grantAt // session, position
	dests    map[uint32]*Elem           // nil: two elements lead to it
	marks    map[uint32]bool            // true: granted once
	maxDest  uint32
	reserved uint32
}

func newSurvey(kernel Dump) *survey {
	a := &survey{by: make(map[Ident]*Elem, len(kernel)), grants: map[string]map[int]grantAt{}, dests: map[uint32]*Elem{}, marks: map[uint32]bool{}}
	for i := range kernel {
		e := &kernel[i]
		a.by[e.Ident()] = e
		switch e.Kind {
		case State:
			if e.Comment == marksComment {
				a.reserved = max(a.reserved, e.Mark()&^MarkBit)
			}
		case Dst4, Dst6:
			id := e.value()
			a.maxDest = max(a.maxDest, id)
			if _, twice := a.dests[id]; twice {
				a.dests[id] = nil
			} else {
				a.dests[id] = e
			}
		case Grants4, Grants6:
			client, dest, mark, id, position, ok := parseGrant(e)
			_, twice := a.marks[mark]
			a.marks[mark] = !twice
			if !ok {
				continue
			}
			if a.grants[id] == nil {
				a.grants[id] = map[int]grantAt{}
			}
			if _, twice := a.grants[id][position]; twice {
				position = -1 // nothing explains two: neither is adopted
			}
			a.grants[id][position] = grantAt{client, dest, mark}
		}
	}
	return a
}

// session is the kernel's version of a desired session, nil if it is not
// exactly there. Destinations it uses become the model's.
func (a *survey) session(m *Model, rs wire.RouterSession) *Session {
	at := a.grants[rs.ID]
	if at == nil {
		return nil
	}
	s := &Session{RouterSession: rs, Grants: make([]Grant, len(rs.Rules.Destinations))}
	own := newIndex()
	size := blockSize(len(s.Grants))
	var adopt []*Dest
	fresh := map[Set]*index{} // of adopt
	n := 0
	for i, d := range rs.Rules.Destinations {
		if !rs.Rules.Reaches(d) {
			continue
		}
		g, ok := at[i]
		if !ok || g.client != rs.Rules.Client || !a.marks[g.mark] || g.mark&(size-1) != uint32(i) {
			return nil
		}
		if b := (Block{g.mark - uint32(i), size}); n == 0 {
			s.Block = b
		} else if s.Block != b {
			return nil
		}
		n++
		e := a.dests[g.dest]
		if e == nil {
			return nil
		}
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
	}
	if n != len(at) || !a.complete(s) {
		return nil
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

// complete reports whether every element of the session is there and says what
// it should, and no other translation hangs on its marks.
func (a *survey) complete(s *Session) bool {
	mine := s.elems()
	want := make(map[Ident]struct{}, len(mine))
	for i := range mine {
		e, ok := a.by[mine[i].Ident()]
		if !ok || !e.same(&mine[i]) {
			return false
		}
		want[mine[i].Ident()] = struct{}{}
	}
	for _, g := range s.Grants {
		if g.Dest == nil {
			continue
		}
		for _, k := range []Kind{DNAT4, DNAT4Port, DNAT6, DNAT6Port, SNAT} {
			e := MarkElem(k, g.Mark)
			_, there := a.by[e.Ident()]
			if _, wanted := want[e.Ident()]; there && !wanted {
				return false
			}
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
