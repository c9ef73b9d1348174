package ruleset

import (
	"net/netip"
	"slices"

	"caponier/shared/netrule"
)

// index finds what overlaps a selector among the destinations of one layer (or
// of one session). Each is kept under the shortest of a few prefix lengths that
// holds its whole range, so that hosts and networks far apart never meet. A few
// are simply looked through.
type index struct {
	few   []*Dest // while at is nil
	at    map[netip.Prefix][]*Dest
	below map[netip.Prefix]int // destinations under longer prefixes
}

const fewDests = 16

func newIndex() *index { return &index{} }

// place is the prefix a range is kept under.
func place(r netrule.Range) netip.Prefix {
	step := 8
	if r.First.Is6() {
		step = 16
	}
	a, b := r.First.AsSlice(), r.Last.AsSlice()
	same := 0
	for i := range a {
		if a[i] != b[i] {
			break
		}
		same += 8
	}
	p, _ := r.First.Prefix(same - same%step)
	return p
}

// above calls f for every shorter prefix a destination may be kept under.
func above(p netip.Prefix, f func(netip.Prefix) bool) {
	step := 8
	if p.Addr().Is6() {
		step = 16
	}
	for bits := p.Bits() - step; bits >= 0; bits -= step {
		q, _ := p.Addr().Prefix(bits)
		if !f(q) {
			return
		}
	}
}

func (x *index) add(d *Dest) {
	if x.at == nil {
		if x.few = append(x.few, d); len(x.few) <= fewDests {
			return
		}
		all := x.few
		*x = index{at: map[netip.Prefix][]*Dest{}, below: map[netip.Prefix]int{}}
		for _, d := range all {
			x.add(d)
		}
		return
	}
	p := place(d.Selector.Addrs)
	x.at[p] = append(x.at[p], d)
	above(p, func(q netip.Prefix) bool { x.below[q]++; return true })
}

func (x *index) remove(d *Dest) {
	if x.at == nil {
		x.few = slices.DeleteFunc(x.few, func(o *Dest) bool { return o == d })
		return
	}
	p := place(d.Selector.Addrs)
	all := x.at[p]
	for i := range all {
		if all[i] != d {
			continue
		}
		last := len(all) - 1
		all[i] = all[last]
		all[last] = nil
		if x.at[p] = all[:last]; last == 0 {
			delete(x.at, p)
		}
		above(p, func(q netip.Prefix) bool {
			if x.below[q]--; x.below[q] == 0 {
				delete(x.below, q)
			}
			return true
		})
		return
	}
}

// each calls f with what overlaps s until f returns false.
func (x *index) each(s netrule.Selector, f func(*Dest) bool) {
	more := true
	look := func(ds []*Dest) bool {
		for _, d := range ds {
			if d.Selector.Overlaps(s) && !f(d) {
				more = false
				return false
			}
		}
		return true
	}
	if x.at == nil {
		look(x.few)
		return
	}
	p := place(s.Addrs)
	if !look(x.at[p]) {
		return
	}
	above(p, func(q netip.Prefix) bool { return look(x.at[q]) })
	if !more || x.below[p] == 0 {
		return
	}
	for q, ds := range x.at {
		if q.Bits() > p.Bits() && p.Contains(q.Addr()) && !look(ds) {
			return
		}
	}
}

func (x *index) overlaps(s netrule.Selector) (found bool) {
	x.each(s, func(*Dest) bool { found = true; return false })
	return found
}
