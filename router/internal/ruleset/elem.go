package ruleset

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"caponier/shared/netrule"
)

// MaxKey is the longest key or value, in bytes.
const MaxKey = 24

// Elem is one element of a set or map. Values are as the kernel has them: in
// words of 4 bytes.
type Elem struct {
	Set
	Key, KeyEnd, Data [MaxKey]byte
	KeyLen, DataLen   uint8
	Ranged            bool // KeyEnd counts
	// Comment is kept by the kernel; restarts live on it.
	Comment string
	// Timeout in milliseconds, Lease only; 0 means none.
	TimeoutMS uint64
}

// Ident is what makes an element that one.
type Ident struct {
	Set
	Key, KeyEnd [MaxKey]byte
}

// Ident is the element's identity.
func (e *Elem) Ident() Ident { return Ident{e.Set, e.Key, e.KeyEnd} }

// same reports whether two elements of one identity say the same.
func (e *Elem) same(o *Elem) bool {
	return e.Data == o.Data && e.Comment == o.Comment
}

func addr(buf *[MaxKey]byte, n *uint8, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		*n += uint8(copy(buf[*n:], b[:]))
		return
	}
	b := a.As16()
	*n += uint8(copy(buf[*n:], b[:]))
}

func word(buf *[MaxKey]byte, n *uint8, v uint32) {
	binary.NativeEndian.PutUint32(buf[*n:], v)
	*n += 4
}

func portWord(buf *[MaxKey]byte, n *uint8, v uint16) {
	binary.BigEndian.PutUint16(buf[*n:], v)
	*n += 4
}

// family picks the set of an address's IP version.
func family(a netip.Addr, v4, v6 Kind) Kind {
	if a.Is4() {
		return v4
	}
	return v6
}

// MarkElem is the element of a set whose keys are marks.
func MarkElem(k Kind, mark uint32) Elem {
	e := Elem{Set: Set{Kind: k}}
	word(&e.Key, &e.KeyLen, mark)
	return e
}

// Mark is the mark of an element whose key is one.
func (e *Elem) Mark() uint32 { return binary.NativeEndian.Uint32(e.Key[:]) }

// value is the number a map element leads to.
func (e *Elem) value() uint32 { return binary.NativeEndian.Uint32(e.Data[:]) }

func dstElem(d *Dest) Elem {
	s := d.Selector
	e := Elem{Set: d.Set, Ranged: true}
	first, last := s.Ports.Bounds()
	lo, hi := byte(s.Proto), byte(s.Proto)
	if s.Proto == netrule.Any {
		lo, hi = 0, 255
	}
	var n uint8
	addr(&e.Key, &e.KeyLen, s.Addrs.First)
	e.Key[e.KeyLen] = lo
	e.KeyLen += 4
	portWord(&e.Key, &e.KeyLen, first)
	addr(&e.KeyEnd, &n, s.Addrs.Last)
	e.KeyEnd[n] = hi
	n += 4
	portWord(&e.KeyEnd, &n, last)
	word(&e.Data, &e.DataLen, d.ID)
	return e
}

// parseDst is the selector of an element of a layer; false if none of ours
// looks so.
func parseDst(e *Elem) (netrule.Selector, bool) {
	n := 4
	if e.Kind == Dst6 {
		n = 16
	}
	first, _ := netip.AddrFromSlice(e.Key[:n])
	last, _ := netip.AddrFromSlice(e.KeyEnd[:n])
	s := netrule.Selector{Addrs: netrule.Range{First: first, Last: last}}
	switch lo, hi := e.Key[n], e.KeyEnd[n]; {
	case lo == 0 && hi == 255:
	case lo == hi && lo != 0:
		s.Proto = netrule.Proto(lo)
	default:
		return s, false
	}
	s.Ports.First = binary.BigEndian.Uint16(e.Key[n+4:])
	s.Ports.Last = binary.BigEndian.Uint16(e.KeyEnd[n+4:])
	if s.Ports.First == 0 && s.Ports.Last == 65535 {
		s.Ports = netrule.Ports{}
	}
	// Only what dstElem would write again comes from us.
	again := dstElem(&Dest{Selector: s, Set: e.Set})
	return s, s.Validate() == nil && again.Key == e.Key && again.KeyEnd == e.KeyEnd
}

func grantElem(client netip.Addr, dest, mark uint32, session string, position int) Elem {
	e := Elem{Set: Set{Kind: family(client, Grants4, Grants6)}, Comment: session + "/" + strconv.Itoa(position)}
	addr(&e.Key, &e.KeyLen, client)
	word(&e.Key, &e.KeyLen, dest)
	word(&e.Data, &e.DataLen, mark)
	return e
}

// parseGrant takes a grant apart.
func parseGrant(e *Elem) (client netip.Addr, dest, mark uint32, session string, position int, ok bool) {
	n := 4
	if e.Kind == Grants6 {
		n = 16
	}
	client, _ = netip.AddrFromSlice(e.Key[:n])
	dest, mark = binary.NativeEndian.Uint32(e.Key[n:]), e.value()
	i := strings.LastIndexByte(e.Comment, '/')
	if i <= 0 || mark&MarkBit == 0 {
		return client, dest, mark, "", 0, false
	}
	position, err := strconv.Atoi(e.Comment[i+1:])
	return client, dest, mark, e.Comment[:i], position, err == nil && position >= 0 && position < netrule.MaxDestinations
}

func dnatElem(mark uint32, to netrule.NAT) Elem {
	k := family(to.Addr, DNAT4, DNAT6)
	if to.Port != 0 {
		k = family(to.Addr, DNAT4Port, DNAT6Port)
	}
	e := MarkElem(k, mark)
	addr(&e.Data, &e.DataLen, to.Addr)
	if to.Port != 0 {
		portWord(&e.Data, &e.DataLen, to.Port)
	}
	return e
}

// LeaseElems are the lease: one element per IP version.
func LeaseElems(ms uint64) []Elem {
	out := make([]Elem, 2)
	for i, f := range []byte{2, 10} { // NFPROTO_IPV4, NFPROTO_IPV6
		out[i] = Elem{Set: Set{Kind: Lease}, KeyLen: 1, TimeoutMS: ms}
		out[i].Key[0] = f
	}
	return out
}

// InterfaceElem is one interface clients may come from.
func InterfaceElem(name string) Elem {
	e := Elem{Set: Set{Kind: Interfaces}, KeyLen: 16}
	copy(e.Key[:15], name)
	return e
}

// The two elements of the set state are told apart by their comments.
const (
	marksComment  = "marks"
	layoutComment = "layout "
)

func marksElem(reserved uint32) Elem {
	e := MarkElem(State, reserved|MarkBit)
	e.Comment = marksComment
	return e
}

// LayoutElem remembers what the constant part looked like when it was made.
func LayoutElem(sum string) Elem {
	e := MarkElem(State, 0)
	e.Comment = layoutComment + sum
	return e
}

// LayoutSum is what LayoutElem remembered; empty if e is not such an element.
func LayoutSum(e *Elem) string {
	sum, ok := strings.CutPrefix(e.Comment, layoutComment)
	if !ok || e.Kind != State {
		return ""
	}
	return sum
}

// String is the element in nft's language, for golden files.
func (e *Elem) String() string {
	var key, data string
	switch e.Kind {
	case Dst4, Dst6:
		s, _ := parseDst(e)
		key, data = s.String(), strconv.FormatUint(uint64(e.value()), 10)
	case Grants4, Grants6:
		client, dest, mark, _, _, _ := parseGrant(e)
		key, data = fmt.Sprintf("%s . %d", client, dest), fmt.Sprintf("%#x", mark)
	case Lease:
		key = fmt.Sprintf("%d timeout %dms", e.Key[0], e.TimeoutMS)
	case Interfaces:
		key = strings.TrimRight(string(e.Key[:]), "\x00")
	default:
		key = fmt.Sprintf("%#x", e.Mark())
		if n := e.DataLen; n == 4 || n == 8 {
			data = netip.AddrFrom4([4]byte(e.Data[:4])).String()
		} else if n > 8 {
			data = netip.AddrFrom16([16]byte(e.Data[:16])).String()
		}
		if e.Kind == DNAT4Port || e.Kind == DNAT6Port {
			data += fmt.Sprintf(" . %d", binary.BigEndian.Uint16(e.Data[e.DataLen-4:]))
		}
	}
	out := e.Name() + " { " + key
	if data != "" {
		out += " : " + data
	}
	if e.Comment != "" {
		out += " # " + e.Comment
	}
	return out + " }"
}
