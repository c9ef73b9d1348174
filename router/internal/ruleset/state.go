package ruleset

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"caponier/shared/netrule"
	"caponier/shared/wire"
)

const (
	// MaxSessions is the most sessions of one router.
	MaxSessions = 100_000
	// MaxGrants is the most destinations of all sessions together.
	MaxGrants = 2_000_000
	// maxID keeps a session's comment within the 255 bytes the kernel keeps.
	maxID = 120
)

// Dest is one destination as sessions share it.
type Dest struct {
	Selector netrule.Selector
	Set      Set
	ID       uint32

	refs int
	idle time.Time // since when refs is 0
}

// Grant is one destination of one session. Dest is nil where the destination is
// of the other IP version than the client.
type Grant struct {
	Dest *Dest
	Mark uint32
}

// Session is a session and what stands for it in the table.
type Session struct {
	wire.RouterSession
	Grants []Grant
	Block  Block
}

// Model is what the table holds. It is not safe for concurrent use.
type Model struct {
	sessions map[string]*Session
	clients  map[netip.Addr][]*Session
	dests    map[netrule.Selector][]*Dest // by ascending layer
	layers   [2][]*index                  // v4, v6
	depth    int                          // layers the kernel has
	nextDest uint32
	marks    marks
	spent    []Block // removed, flows may still carry their marks
	grants   int
	idle     int // destinations no session uses
}

// Change is what a model has done that the kernel has not.
type Change struct {
	Delete, Add []Elem
	// Layers is the number of layers needed now, 0 if nothing changed.
	Layers int
}

// Empty reports whether there is nothing to do.
func (c *Change) Empty() bool { return len(c.Delete) == 0 && len(c.Add) == 0 && c.Layers == 0 }

// NewModel is a model of an empty table.
func NewModel() *Model {
	m := &Model{sessions: map[string]*Session{}, clients: map[netip.Addr][]*Session{}, dests: map[netrule.Selector][]*Dest{}, depth: FirstLayers, nextDest: 1}
	return m
}

// Len is the number of sessions.
func (m *Model) Len() int { return len(m.sessions) }

// Depth is the number of layers the table has.
func (m *Model) Depth() int { return m.depth }

// Session is the session of an ID.
func (m *Model) Session(id string) (*Session, bool) {
	s, ok := m.sessions[id]
	return s, ok
}

// IDs are the sessions' IDs, sorted.
func (m *Model) IDs() []string {
	ids := make([]string, 0, len(m.sessions))
	for id := range m.sessions {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Live reports whether a mark is one of a session's.
func (m *Model) Live() func(mark uint32) bool {
	all := make(map[uint32]struct{}, m.grants)
	for _, s := range m.sessions {
		for _, g := range s.Grants {
			if g.Dest != nil {
				all[g.Mark] = struct{}{}
			}
		}
	}
	return func(mark uint32) bool { _, ok := all[mark]; return ok }
}

// Check says why a session cannot be added; nil if it can.
func (m *Model) Check(rs wire.RouterSession) *wire.Error {
	if rs.ID == "" || len(rs.ID) > maxID || strings.ContainsFunc(rs.ID, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return wire.Errorf(wire.CodeBadRequest, "The session's ID is not valid.")
	}
	if err := rs.Rules.Validate(); err != nil {
		return wire.Errorf(wire.CodeBadRequest, "%s", err)
	}
	if m.nextDest >= MarkBit-netrule.MaxDestinations || len(m.sessions) >= MaxSessions || m.grants+len(rs.Rules.Destinations) > MaxGrants {
		return wire.Errorf(wire.CodeLimit, "The router has no room for more sessions.")
	}
	var mine *index // what the session would reach
	for _, o := range m.clients[rs.Rules.Client] {
		if o.ID == rs.ID {
			continue
		}
		if mine == nil {
			mine = newIndex()
			for _, d := range rs.Rules.Destinations {
				if rs.Rules.Reaches(d) {
					mine.add(&Dest{Selector: d.Selector})
				}
			}
		}
		for _, d := range o.Rules.Destinations {
			var hit *Dest
			mine.each(d.Selector, func(m *Dest) bool { hit = m; return false })
			if hit != nil {
				return wire.Errorf(wire.CodeRefused, "%s overlaps with %s, which %s already has open to %s.",
					hit.Selector, d.Selector, rs.Rules.Client, o.Target)
			}
		}
	}
	return nil
}

// Add adds a session that Check allows and that is not there yet.
func (m *Model) Add(rs wire.RouterSession, c *Change) *wire.Error {
	if err := m.Check(rs); err != nil {
		return err
	}
	places, err := m.places(rs.Rules)
	if err != nil {
		return err
	}
	before := m.marks.reserved
	b := m.marks.take(len(rs.Rules.Destinations), m.taken)
	if after := m.marks.reserved; after != before {
		if before > 0 {
			c.Delete = append(c.Delete, marksElem(before))
		}
		c.Add = append(c.Add, marksElem(after))
	}
	s := &Session{RouterSession: rs, Block: b, Grants: make([]Grant, len(rs.Rules.Destinations))}
	for i, p := range places {
		if p.layer < 0 {
			continue
		}
		d := p.dest
		if d == nil {
			d = &Dest{Selector: rs.Rules.Destinations[i].Selector, Set: Set{family(rs.Rules.Client, Dst4, Dst6), uint8(p.layer)}, ID: m.nextDest}
			m.nextDest++
			m.putDest(d)
			c.Add = append(c.Add, dstElem(d))
		}
		s.Grants[i] = Grant{Dest: d, Mark: b.Base + uint32(i)}
	}
	if deep := max(len(m.layers[0]), len(m.layers[1])); deep > m.depth {
		m.depth, c.Layers = deep, deep
	}
	m.put(s)
	c.Add = append(c.Add, s.elems()...)
	return nil
}

// spot is where a destination of a new session goes: into a layer (-1: of the
// other IP version), as dest if that is there already.
type spot struct {
	layer int
	dest  *Dest
}

// places finds a layer for each destination: none of the layer overlaps it, and
// it lies above the session's own earlier destinations that overlap it, for the
// first of them decides.
func (m *Model) places(r netrule.Rules) ([]spot, *wire.Error) {
	out := make([]spot, len(r.Destinations))
	own := newIndex()
	fresh := map[int]*index{} // what this session adds to a layer
	f := 0
	if r.Client.Is6() {
		f = 1
	}
	for i, d := range r.Destinations {
		if !r.Reaches(d) {
			out[i].layer = -1
			continue
		}
		lowest := 0
		own.each(d.Selector, func(o *Dest) bool { lowest = max(lowest, int(o.Set.Layer)+1); return true })
		out[i] = m.place(f, d.Selector, lowest, fresh)
		if out[i].layer >= MaxLayers {
			return nil, wire.Errorf(wire.CodeLimit, "%s overlaps with more than %d different destinations.", d.Selector, MaxLayers-1)
		}
		here := &Dest{Selector: d.Selector, Set: Set{Layer: uint8(out[i].layer)}}
		own.add(here)
		if out[i].dest == nil {
			if fresh[out[i].layer] == nil {
				fresh[out[i].layer] = newIndex()
			}
			fresh[out[i].layer].add(here)
		}
	}
	return out, nil
}

func (m *Model) place(f int, s netrule.Selector, lowest int, fresh map[int]*index) spot {
	for _, d := range m.dests[s] {
		if int(d.Set.Layer) >= lowest {
			return spot{int(d.Set.Layer), d}
		}
	}
	for l := lowest; ; l++ {
		if l < len(m.layers[f]) && m.layers[f][l].overlaps(s) {
			continue
		}
		if x := fresh[l]; x != nil && x.overlaps(s) {
			continue
		}
		return spot{layer: l}
	}
}

func (m *Model) putDest(d *Dest) {
	all := append(m.dests[d.Selector], d)
	slices.SortFunc(all, func(a, b *Dest) int { return int(a.Set.Layer) - int(b.Set.Layer) })
	m.dests[d.Selector] = all
	l := m.layer(d.Set)
	l.add(d)
	m.idle++ // until a session takes it
}

func (m *Model) layer(s Set) *index {
	f := int(s.Kind - Dst4)
	for len(m.layers[f]) <= int(s.Layer) {
		m.layers[f] = append(m.layers[f], newIndex())
	}
	return m.layers[f][s.Layer]
}

func (m *Model) put(s *Session) {
	m.sessions[s.ID] = s
	m.clients[s.Rules.Client] = append(m.clients[s.Rules.Client], s)
	m.grants += len(s.Grants)
	for _, g := range s.Grants {
		if g.Dest == nil {
			continue
		}
		if g.Dest.refs == 0 {
			m.idle--
		}
		g.Dest.refs++
	}
}

// taken reports whether a block meets one that flows may still carry.
func (m *Model) taken(b Block) bool {
	for _, s := range m.spent {
		if s.meets(b) {
			return true
		}
	}
	for _, s := range m.sessions {
		if s.Block.meets(b) {
			return true
		}
	}
	return false
}

// elems are the session's own elements, without destinations.
func (s *Session) elems() []Elem {
	out := make([]Elem, 0, 4*len(s.Grants))
	for i, g := range s.Grants {
		if g.Dest == nil {
			continue
		}
		if n := s.Rules.Destinations[i].DNAT; n != nil {
			out = append(out, dnatElem(g.Mark, *n))
		}
		if s.Rules.SNAT {
			out = append(out, MarkElem(SNAT, g.Mark))
		}
		out = append(out, MarkElem(In, g.Mark), MarkElem(Out, g.Mark), grantElem(s.Rules.Client, g.Dest.ID, g.Mark, s.ID, i))
	}
	return out
}

// Remove takes a session away. Its destinations stay until Collect. Its marks
// are not used again before Forget.
func (m *Model) Remove(id string, now time.Time, c *Change) (*Session, bool) {
	s, ok := m.sessions[id]
	if !ok {
		return nil, false
	}
	delete(m.sessions, id)
	same := m.clients[s.Rules.Client]
	if same = slices.DeleteFunc(same, func(o *Session) bool { return o == s }); len(same) == 0 {
		delete(m.clients, s.Rules.Client)
	} else {
		m.clients[s.Rules.Client] = same
	}
	m.grants -= len(s.Grants)
	for _, g := range s.Grants {
		if g.Dest == nil {
			continue
		}
		if g.Dest.refs--; g.Dest.refs == 0 {
			g.Dest.idle = now
			m.idle++
		}
	}
	m.spent = append(m.spent, s.Block)
	c.Delete = append(c.Delete, s.elems()...)
	return s, true
}

// Spent are the blocks of removed sessions whose flows may still be known.
func (m *Model) Spent() []Block { return slices.Clone(m.spent) }

// Spend says that flows may carry marks of a block no session has.
func (m *Model) Spend(b Block) {
	if !slices.Contains(m.spent, b) {
		m.spent = append(m.spent, b)
	}
}

// Fresh reports whether no mark was ever given out that anybody knows of.
func (m *Model) Fresh() bool { return m.marks.reserved == 0 && len(m.sessions) == 0 }

// Forget says that no flow carries marks of these blocks any more.
func (m *Model) Forget(done []Block) {
	m.spent = slices.DeleteFunc(m.spent, func(b Block) bool { return slices.Contains(done, b) })
}

// Collect removes up to n destinations no session has used since before.
func (m *Model) Collect(before time.Time, n int, c *Change) {
	if m.idle == 0 {
		return
	}
	for sel, all := range m.dests {
		kept := all[:0]
		for _, d := range all {
			if d.refs > 0 || n == 0 || !d.idle.Before(before) {
				kept = append(kept, d)
				continue
			}
			n--
			m.idle--
			m.layer(d.Set).remove(d)
			c.Delete = append(c.Delete, dstElem(d))
		}
		clear(all[len(kept):])
		if m.dests[sel] = kept; len(kept) == 0 {
			delete(m.dests, sel)
		}
		if n == 0 {
			return
		}
	}
}

// Elements is everything the model expects in the kernel but the lease, the
// interfaces and the layout's mark.
func (m *Model) Elements() []Elem {
	var out []Elem
	for _, all := range m.dests {
		for _, d := range all {
			out = append(out, dstElem(d))
		}
	}
	for _, s := range m.sessions {
		out = append(out, s.elems()...)
	}
	if m.marks.reserved > 0 {
		out = append(out, marksElem(m.marks.reserved))
	}
	return out
}
