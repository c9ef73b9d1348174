package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
	"caponier/shared/wire"
)

// askOne is how many marks are asked for one by one; more are found in a list
// of all.
const askOne = 500

// tally collects counters by mark.
type tally map[uint32]*wire.RouterDestCount

func newTally(sessions []*ruleset.Session) tally {
	n := 0
	for _, s := range sessions {
		n += len(s.Grants)
	}
	t := make(tally, n)
	for _, s := range sessions {
		for _, g := range s.Grants {
			if g.Dest != nil {
				t[g.Mark] = &wire.RouterDestCount{}
			}
		}
	}
	return t
}

// add takes an element's counter if its mark is asked for.
func (t tally) add(e *element) {
	c := t[e.Mark()]
	if c == nil {
		return
	}
	switch e.Kind {
	case ruleset.Out:
		c.BytesOut, c.PacketsOut = e.Bytes, e.Packets
	case ruleset.In:
		c.BytesIn, c.PacketsIn = e.Bytes, e.Packets
	}
}

func plus(a *wire.RouterDestCount, b wire.RouterDestCount) {
	a.BytesOut += b.BytesOut
	a.BytesIn += b.BytesIn
	a.PacketsOut += b.PacketsOut
	a.PacketsIn += b.PacketsIn
}

// totals are the sessions' counters, with what they had counted before their
// elements were made again.
func (t *Table) totals(sessions []*ruleset.Session, count tally) []wire.RouterCount {
	out := make([]wire.RouterCount, 0, len(sessions))
	for _, s := range sessions {
		rc := wire.RouterCount{ID: s.ID, Destinations: make([]wire.RouterDestCount, len(s.Grants))}
		for i, g := range s.Grants {
			d := &rc.Destinations[i]
			if g.Dest != nil {
				plus(d, *count[g.Mark])
			}
			if before := t.carried[s.ID]; i < len(before) {
				plus(d, before[i])
			}
			d.Destination = s.Rules.Destinations[i].String()
			rc.BytesOut += d.BytesOut
			rc.BytesIn += d.BytesIn
			rc.PacketsOut += d.PacketsOut
			rc.PacketsIn += d.PacketsIn
		}
		out = append(out, rc)
	}
	return out
}

// Counters are the running totals of the given sessions, of all if none is
// given. Unknown ones are left out.
func (t *Table) Counters(ctx context.Context, ids []string) ([]wire.RouterCount, error) {
	if err := acquire(ctx, t.lock); err != nil {
		return nil, err
	}
	defer func() { <-t.lock }()
	if t.model == nil {
		return nil, ErrNotReconciled
	}
	if len(ids) == 0 {
		ids = t.model.IDs()
	}
	var sessions []*ruleset.Session
	for _, id := range ids {
		if s, ok := t.model.Session(id); ok {
			sessions = append(sessions, s)
		}
	}
	count := newTally(sessions)
	if err := t.count(count); err != nil {
		return nil, err
	}
	out := t.totals(sessions, count)
	for _, c := range out {
		t.last[c.ID] = c.Destinations
	}
	return out, nil
}

// carry keeps what adopted sessions had counted before their elements are made
// again: from what was read, else from what was told last.
func (t *Table) carry(k *kernel, m *ruleset.Model) {
	var sessions []*ruleset.Session
	for _, id := range m.IDs() {
		s, _ := m.Session(id)
		sessions = append(sessions, s)
	}
	count := newTally(sessions)
	for i := range k.elems {
		if e := &k.elems[i]; e.Kind == ruleset.Out || e.Kind == ruleset.In {
			count.add(e)
		}
	}
	carried := map[string][]wire.RouterDestCount{}
	for _, c := range t.totals(sessions, count) {
		carried[c.ID] = t.atLeast(c)
	}
	t.carried = carried
}

func (t *Table) count(count tally) error {
	for _, kind := range []ruleset.Kind{ruleset.Out, ruleset.In} {
		set := ruleset.Set{Kind: kind}
		if len(count) > askOne {
			// Marks that come twice in a list begun again count once.
			_, err := dumpAgain(func() (int, error) { return readElements(t.sock, t.cfg.Table, set, count.add) })
			if err != nil {
				return err
			}
			continue
		}
		if len(count) == 0 {
			continue
		}
		elems := make([]ruleset.Elem, 0, len(count))
		for mark := range count {
			elems = append(elems, ruleset.MarkElem(kind, mark))
		}
		r := t.sock.requests()
		r.elements(unix.NFT_MSG_GETSETELEM, 0, t.cfg.Table, elems)
		r.flag(unix.NLM_F_ACK)
		err := t.sock.do(r, func(m message) error {
			decodeElements(m.data, count.add)
			return nil
		})
		if errors.Is(err, syscall.ENOENT) {
			t.distrust()
			t.signal()
		}
		if err != nil {
			return fmt.Errorf("read counters: %w", err)
		}
	}
	return nil
}

// atLeast is what a session has counted by destination, not less than was told
// before.
func (t *Table) atLeast(c wire.RouterCount) []wire.RouterDestCount {
	for i, l := range t.last[c.ID] {
		if i < len(c.Destinations) {
			d := &c.Destinations[i] // totals only grow
			d.BytesOut, d.PacketsOut = max(d.BytesOut, l.BytesOut), max(d.PacketsOut, l.PacketsOut)
			d.BytesIn, d.PacketsIn = max(d.BytesIn, l.BytesIn), max(d.PacketsIn, l.PacketsIn)
		}
	}
	return c.Destinations
}

// ended are the last counters of sessions the kernel knows and the new model
// does not.
func (t *Table) ended(k *kernel, m *ruleset.Model) []wire.RouterCount {
	type at struct {
		id       string
		position int
	}
	where := map[uint32]at{}
	by := map[string]*wire.RouterCount{}
	for i := range k.elems {
		e := &k.elems[i]
		mark, id, position, ok := ruleset.GrantOf(&e.Elem)
		if !ok {
			continue
		}
		if _, stays := m.Session(id); stays {
			continue
		}
		where[mark] = at{id, position}
		if by[id] == nil {
			by[id] = &wire.RouterCount{ID: id}
			if t.model != nil {
				if s, known := t.model.Session(id); known {
					for _, d := range s.Rules.Destinations {
						by[id].Destinations = append(by[id].Destinations, wire.RouterDestCount{Destination: d.String()})
					}
				}
			}
		}
	}
	for i := range k.elems {
		e := &k.elems[i]
		if e.Kind != ruleset.Out && e.Kind != ruleset.In {
			continue
		}
		w, ok := where[e.Mark()]
		if !ok {
			continue
		}
		one := tally{e.Mark(): {}}
		one.add(e)
		c, d := by[w.id], one[e.Mark()]
		c.BytesOut += d.BytesOut
		c.BytesIn += d.BytesIn
		c.PacketsOut += d.PacketsOut
		c.PacketsIn += d.PacketsIn
		for len(c.Destinations) <= w.position {
			c.Destinations = append(c.Destinations, wire.RouterDestCount{})
		}
		plus(&c.Destinations[w.position], *d)
	}
	out := make([]wire.RouterCount, 0, len(by))
	for _, c := range by {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b wire.RouterCount) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}
