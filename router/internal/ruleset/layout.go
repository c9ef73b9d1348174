// Package ruleset turns network sessions into the objects and elements of one
// nftables table. It is pure: it opens no socket and reads no clock.
//
// The table's chains and rules never change while it works; a session is
// elements of its sets and maps:
//
//	dst4_N, dst6_N   destination address . protocol . port (ranges) -> destination
//	grants4, grants6 client address . destination -> mark
//	out, in          mark, with a counter: packets to the target, packets back
//	dnat4, dnat4port, dnat6, dnat6port
//	                 mark -> where its packets are sent instead
//	hidden           mark, of sessions whose client is hidden
//	lease            IP version, with a timeout: nothing passes without
//	state            what a restarted router needs to know
//
// A flow is looked at once, in its first packet: the destination is found in
// the first layer dst_N that has it, client and destination give the mark, and
// the mark stays with the flow (ct mark). Every packet of it then needs the
// lease and its mark in out or in: deleting these two elements cuts a flow
// between one packet and the next.
//
// Invariants: elements of one layer do not overlap; a destination is shared by
// all sessions that have it; a mark belongs to one destination of one session
// and is not used again while a flow may still carry it.
package ruleset

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// Table is the name of the table, family inet.
	Table = "caponier"
	// MarkBit is set in every ct mark of ours; the other 31 bits are the mark.
	MarkBit = 0x80000000
	// FirstLayers is how many layers a fresh table has; more are added when
	// destinations of different targets overlap deeper.
	FirstLayers = 4
	// MaxLayers is the deepest overlap there may be.
	MaxLayers = 64
)

// Kind is what a set is for.
type Kind uint8

// The kinds, in the order they are filled.
const (
	Dst4 Kind = iota + 1
	Dst6
	DNAT4
	DNAT4Port
	DNAT6
	DNAT6Port
	SNAT
	In
	Out
	Grants4
	Grants6
	Lease
	State
	Interfaces
)

var kindNames = [...]string{
	Dst4: "dst4", Dst6: "dst6", DNAT4: "dnat4", DNAT4Port: "dnat4port", DNAT6: "dnat6", DNAT6Port: "dnat6port",
	SNAT: "hidden", In: "in", Out: "out", Grants4: "grants4", Grants6: "grants6", Lease: "lease", State: "state", Interfaces: "interfaces",
}

// Set names a set of the table.
type Set struct {
	Kind  Kind
	Layer uint8 // Dst4 and Dst6 only
}

// Name is the set's name in the kernel.
func (s Set) Name() string {
	if s.Kind == Dst4 || s.Kind == Dst6 {
		return kindNames[s.Kind] + "_" + strconv.Itoa(int(s.Layer))
	}
	return kindNames[s.Kind]
}

// ParseSet is the set of a name.
func ParseSet(name string) (Set, bool) {
	base, layer, layered := strings.Cut(name, "_")
	for k := Dst4; k <= Interfaces; k++ {
		if kindNames[k] != base || layered != (k == Dst4 || k == Dst6) {
			continue
		}
		n := 0
		if layered {
			var err error
			if n, err = strconv.Atoi(layer); err != nil || n < 0 || n >= MaxLayers || strconv.Itoa(n) != layer {
				return Set{}, false
			}
		}
		return Set{Kind: k, Layer: uint8(n)}, true
	}
	return Set{}, false
}

// nftables' numbers of data types, as nft(8) prints them.
const (
	typeNFProto = 2
	typeIPv4    = 7
	typeIPv6    = 8
	typeProto   = 12
	typePort    = 13
	typeMark    = 19
	typeIfname  = 41
)

// SetSpec is a set as the kernel is told of it.
type SetSpec struct {
	Set
	KeyType, KeyLen   uint32
	DataType, DataLen uint32   // maps only
	Fields            []uint32 // lengths of a concatenated key
	Interval          bool
	Timeout           bool
	Counter           bool
	HostOrder         bool // keys are numbers of this machine's byte order
	HostData          bool // values are
}

func concat(types ...uint32) (all uint32) {
	for _, t := range types {
		all = all<<6 | t
	}
	return all
}

func spec(s Set) SetSpec {
	c := SetSpec{Set: s}
	mark := func() { c.KeyType, c.KeyLen, c.HostOrder = typeMark, 4, true }
	switch s.Kind {
	case Dst4:
		c.KeyType, c.Fields, c.Interval = concat(typeIPv4, typeProto, typePort), []uint32{4, 1, 2}, true
		c.KeyLen, c.DataType, c.DataLen = 12, typeMark, 4
	case Dst6:
		c.KeyType, c.Fields, c.Interval = concat(typeIPv6, typeProto, typePort), []uint32{16, 1, 2}, true
		c.KeyLen, c.DataType, c.DataLen = 24, typeMark, 4
	case Grants4:
		c.KeyType, c.KeyLen, c.Fields, c.DataType, c.DataLen = concat(typeIPv4, typeMark), 8, []uint32{4, 4}, typeMark, 4
	case Grants6:
		c.KeyType, c.KeyLen, c.Fields, c.DataType, c.DataLen = concat(typeIPv6, typeMark), 20, []uint32{16, 4}, typeMark, 4
	case DNAT4:
		mark()
		c.DataType, c.DataLen = typeIPv4, 4
	case DNAT4Port:
		mark()
		c.DataType, c.DataLen = concat(typeIPv4, typePort), 8
	case DNAT6:
		mark()
		c.DataType, c.DataLen = typeIPv6, 16
	case DNAT6Port:
		mark()
		c.DataType, c.DataLen = concat(typeIPv6, typePort), 20
	case In, Out:
		mark()
		c.Counter = true
	case SNAT, State:
		mark()
	case Lease:
		c.KeyType, c.KeyLen, c.Timeout = typeNFProto, 1, true
	case Interfaces:
		c.KeyType, c.KeyLen = typeIfname, 16
	}
	c.HostData = c.DataType == typeMark
	return c
}

// Rule is one rule; Text says in nft's language what Exprs do.
type Rule struct {
	Text  string
	Exprs []expr.Any
}

// Chain is one chain with its rules. Type is empty where nothing hooks it.
type Chain struct {
	Name     string
	Type     string
	Hook     uint32
	Priority int32
	Drop     bool
	Rules    []Rule
}

// Layout is the constant part of the table.
type Layout struct {
	Sets   []SetSpec
	Chains []Chain
}

// Options are what the constant part depends on.
type Options struct {
	// Mark is the bit of the packet mark that permitted packets carry.
	Mark uint32
	// Interfaces limits clients to those seen on these; none means any.
	Interfaces bool
	// Layers is the number of layers.
	Layers int
}

// Registers: 4 bytes each. The first four of 16 bytes share their place.
const reg0 = unix.NFT_REG32_00

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func ctMark(to uint32) expr.Any { return &expr.Ct{Key: expr.CtKeyMARK, Register: to} }
func meta(k expr.MetaKey, to uint32) expr.Any {
	return &expr.Meta{Key: k, Register: to}
}

func is(reg uint32, v ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: v}
}

func isNot(reg uint32, v ...byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: v}
}

func and(reg, mask uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: native(mask), Xor: native(0)}
}

func in(reg uint32, s Set) expr.Any { return &expr.Lookup{SourceRegister: reg, SetName: s.Name()} }

func mapTo(reg uint32, s Set, to uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: s.Name(), DestRegister: to, IsDestRegSet: true}
}

func load(base expr.PayloadBase, offset, n, to uint32) expr.Any {
	return &expr.Payload{DestRegister: to, Base: base, Offset: offset, Len: n}
}

func verdict(k expr.VerdictKind, chain string) expr.Any { return &expr.Verdict{Kind: k, Chain: chain} }

var (
	accept = verdict(expr.VerdictAccept, "")
	drop   = verdict(expr.VerdictDrop, "")
	back   = verdict(expr.VerdictReturn, "")
)

// NewLayout is the constant part of the table for the given options.
func NewLayout(o Options) Layout {
	var l Layout
	for k := DNAT4; k <= Interfaces; k++ {
		if k != Interfaces || o.Interfaces {
			l.Sets = append(l.Sets, spec(Set{Kind: k}))
		}
	}
	for i := range o.Layers {
		l.Sets = append(l.Sets, spec(Set{Dst4, uint8(i)}), spec(Set{Dst6, uint8(i)}))
	}
	for _, c := range layered {
		chain := Chain{Name: c}
		for i := range o.Layers {
			chain.Rules = append(chain.Rules, classify(c, uint8(i))...)
		}
		l.Chains = append(l.Chains, chain)
	}
	l.Chains = append(l.Chains, judge(o), answer(), newFlows(o), permit(), forward(o), output(), masquerade())
	return l
}

var layered = []string{"ports4", "other4", "ports6", "other6"}

// LayerRules is how many rules a layered chain has per layer.
const LayerRules = 2

// Layered reports whether a chain has rules per layer.
func Layered(chain string) bool { return slices.Contains(layered, chain) }

// classify finds the mark of a new flow in one layer: first the destination,
// for which the flow's own mark is the place to keep it, then the grant.
// Protocols without ports match with any 2 bytes in their place, for only
// destinations of any protocol and port have them.
func classify(chain string, layer uint8) []Rule {
	ports, v6 := strings.HasPrefix(chain, "ports"), strings.HasSuffix(chain, "6")
	dst, grants := Set{Dst4, layer}, Set{Kind: Grants4}
	ip, size, saddr, daddr, length := "ip", uint32(4), uint32(12), uint32(16), uint32(2)
	if v6 {
		dst, grants = Set{Dst6, layer}, Set{Kind: Grants6}
		ip, size, saddr, daddr, length = "ip6", 16, 8, 24, 4
	}
	words := size / 4
	port, load16 := "th dport", load(expr.PayloadBaseTransportHeader, 2, 2, reg0+words+1)
	if !ports {
		port, load16 = ip+" length", load(expr.PayloadBaseNetworkHeader, length, 2, reg0+words+1)
	}
	set := &expr.Ct{Key: expr.CtKeyMARK, Register: reg0, SourceRegister: true}
	return []Rule{
		{fmt.Sprintf("ct mark set %s daddr . meta l4proto . %s map @%s", ip, port, dst.Name()), []expr.Any{
			load(expr.PayloadBaseNetworkHeader, daddr, size, reg0),
			meta(expr.MetaKeyL4PROTO, reg0+words), load16,
			mapTo(reg0, dst, reg0), set,
		}},
		{fmt.Sprintf("ct mark set %s saddr . ct mark map @%s return", ip, grants.Name()), []expr.Any{
			load(expr.PayloadBaseNetworkHeader, saddr, size, reg0),
			ctMark(reg0 + words),
			mapTo(reg0, grants, reg0), set, back,
		}},
	}
}

// newFlows is a chain of type nat: the kernel asks it only about the first
// packet of a flow.
func newFlows(o Options) Chain {
	c := Chain{Name: "new_flows", Type: "nat", Hook: unix.NF_INET_PRE_ROUTING, Priority: -110}
	add := func(text string, e ...expr.Any) { c.Rules = append(c.Rules, Rule{text, e}) }
	add("ct mark != 0 accept", ctMark(reg0), isNot(reg0, native(0)...), accept)
	if o.Interfaces {
		add("iifname != @interfaces accept", meta(expr.MetaKeyIIFNAME, 1),
			&expr.Lookup{SourceRegister: 1, SetName: Set{Kind: Interfaces}.Name(), Invert: true}, accept)
	}
	for _, f := range []struct {
		family byte
		digit  string
	}{{unix.NFPROTO_IPV4, "4"}, {unix.NFPROTO_IPV6, "6"}} {
		for _, p := range []struct {
			number byte
			name   string
		}{{unix.IPPROTO_TCP, "tcp"}, {unix.IPPROTO_UDP, "udp"}} {
			add(fmt.Sprintf("meta nfproto ipv%s meta l4proto %s jump ports%s", f.digit, p.name, f.digit),
				meta(expr.MetaKeyNFPROTO, reg0), is(reg0, f.family), meta(expr.MetaKeyL4PROTO, reg0), is(reg0, p.number),
				verdict(expr.VerdictJump, "ports"+f.digit))
		}
		add(fmt.Sprintf("meta nfproto ipv%s ct mark 0 meta l4proto != tcp meta l4proto != udp jump other%s", f.digit, f.digit),
			meta(expr.MetaKeyNFPROTO, reg0), is(reg0, f.family), ctMark(reg0), is(reg0, native(0)...),
			meta(expr.MetaKeyL4PROTO, reg0), isNot(reg0, unix.IPPROTO_TCP), meta(expr.MetaKeyL4PROTO, reg0), isNot(reg0, unix.IPPROTO_UDP),
			verdict(expr.VerdictJump, "other"+f.digit))
	}
	// A destination that was found, but not for this client.
	add(fmt.Sprintf("ct mark & %#x == 0 ct mark set 0 accept", uint32(MarkBit)),
		ctMark(reg0), and(reg0, MarkBit), is(reg0, native(0)...),
		&expr.Immediate{Register: reg0, Data: native(0)}, &expr.Ct{Key: expr.CtKeyMARK, Register: reg0, SourceRegister: true}, accept)
	for _, f := range []struct {
		family      byte
		name        string
		addr, ports Kind
		words       uint32
	}{{unix.NFPROTO_IPV4, "ip", DNAT4, DNAT4Port, 1}, {unix.NFPROTO_IPV6, "ip6", DNAT6, DNAT6Port, 4}} {
		nat := func(e *expr.NAT) expr.Any {
			e.Type, e.Family, e.RegAddrMin = expr.NATTypeDestNAT, uint32(f.family), reg0
			return e
		}
		add(fmt.Sprintf("dnat %s to ct mark map @%s", f.name, kindNames[f.addr]),
			meta(expr.MetaKeyNFPROTO, reg0), is(reg0, f.family), ctMark(reg0), mapTo(reg0, Set{Kind: f.addr}, reg0), nat(&expr.NAT{}))
		add(fmt.Sprintf("dnat %s to ct mark map @%s", f.name, kindNames[f.ports]),
			meta(expr.MetaKeyNFPROTO, reg0), is(reg0, f.family), ctMark(reg0), mapTo(reg0, Set{Kind: f.ports}, reg0),
			nat(&expr.NAT{RegProtoMin: reg0 + f.words}))
	}
	return c
}

// ours tells packets of flows of ours from all others, which are left alone; so
// are packets without a flow.
func ours(chain string) Rule {
	return Rule{fmt.Sprintf("ct mark & %#x != 0 goto %s", uint32(MarkBit), chain), []expr.Any{
		ctMark(reg0), and(reg0, MarkBit), isNot(reg0, native(0)...), verdict(expr.VerdictGoto, chain),
	}}
}

func leased() Rule {
	return Rule{"meta nfproto != @lease drop", []expr.Any{
		meta(expr.MetaKeyNFPROTO, reg0), &expr.Lookup{SourceRegister: reg0, SetName: Set{Kind: Lease}.Name(), Invert: true}, drop,
	}}
}

const (
	original = 0
	reply    = 1
)

// permit judges every packet of our flows: with the lease and a live mark it
// gets the packet mark, one with a dead mark is refused so that its sender
// learns of it.
func permit() Chain {
	return Chain{Name: "permit", Type: "filter", Hook: unix.NF_INET_PRE_ROUTING, Priority: -90, Rules: []Rule{ours("judge")}}
}

func judge(o Options) Chain {
	live := func(dir byte, name string, s Kind) Rule {
		return Rule{fmt.Sprintf("ct direction %s ct mark @%s meta mark set %#x accept", name, kindNames[s], o.Mark), []expr.Any{
			&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg0}, is(reg0, dir),
			ctMark(reg0), in(reg0, Set{Kind: s}),
			&expr.Immediate{Register: reg0, Data: native(o.Mark)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg0},
			accept,
		}}
	}
	return Chain{Name: "judge", Rules: []Rule{
		leased(),
		live(original, "original", Out), live(reply, "reply", In),
		{"meta l4proto tcp reject with tcp reset", []expr.Any{
			meta(expr.MetaKeyL4PROTO, reg0), is(reg0, unix.IPPROTO_TCP), &expr.Reject{Type: unix.NFT_REJECT_TCP_RST},
		}},
		{"reject with icmpx admin-prohibited", []expr.Any{
			&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED},
		}},
	}}
}

// forward lets nothing through but what permit has marked.
func forward(o Options) Chain {
	return Chain{Name: "forward", Type: "filter", Hook: unix.NF_INET_FORWARD, Drop: true, Rules: []Rule{
		{fmt.Sprintf("meta mark & %#x != 0 accept", o.Mark), []expr.Any{
			meta(expr.MetaKeyMARK, reg0), and(reg0, o.Mark), isNot(reg0, native(0)...), accept,
		}},
	}}
}

// output is for destinations on the router itself (a translation to one of its
// own addresses): their answers are packets of a flow of ours, too. Refusals
// and ICMP errors the router makes about such flows may leave.
func output() Chain {
	return Chain{Name: "output", Type: "filter", Hook: unix.NF_INET_LOCAL_OUT, Priority: -90, Rules: []Rule{ours("answer")}}
}

func answer() Chain {
	return Chain{Name: "answer", Rules: []Rule{
		{"ct state related accept", []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: reg0}, and(reg0, expr.CtStateBitRELATED), isNot(reg0, native(0)...), accept,
		}},
		{"meta l4proto tcp tcp flags & rst == rst accept", []expr.Any{
			meta(expr.MetaKeyL4PROTO, reg0), is(reg0, unix.IPPROTO_TCP),
			load(expr.PayloadBaseTransportHeader, 13, 1, reg0),
			&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 1, Mask: []byte{4}, Xor: []byte{0}}, is(reg0, 4), accept,
		}},
		leased(),
		{"ct direction reply ct mark @in accept", []expr.Any{
			&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg0}, is(reg0, reply), ctMark(reg0), in(reg0, Set{Kind: In}), accept,
		}},
		{"drop", []expr.Any{drop}},
	}}
}

func masquerade() Chain {
	return Chain{Name: "masquerade", Type: "nat", Hook: unix.NF_INET_POST_ROUTING, Priority: 100, Rules: []Rule{
		{"ct mark @hidden masquerade", []expr.Any{ctMark(reg0), in(reg0, Set{Kind: SNAT}), &expr.Masq{}}},
	}}
}

// Text is the layout for people and golden files: what each rule says and the
// bytes the kernel gets for it.
func (l Layout) Text() (string, error) {
	var b strings.Builder
	for _, s := range l.Sets {
		fmt.Fprintf(&b, "set %s key %d/%d", s.Name(), s.KeyType, s.KeyLen)
		if s.DataLen > 0 {
			fmt.Fprintf(&b, " data %d/%d", s.DataType, s.DataLen)
		}
		fmt.Fprintf(&b, " fields %v interval %v timeout %v counter %v\n", s.Fields, s.Interval, s.Timeout, s.Counter)
	}
	for _, c := range l.Chains {
		fmt.Fprintf(&b, "chain %s", c.Name)
		if c.Type != "" {
			fmt.Fprintf(&b, " type %s hook %d priority %d drop %v", c.Type, c.Hook, c.Priority, c.Drop)
		}
		b.WriteByte('\n')
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t%s\n", r.Text)
			for _, e := range r.Exprs {
				raw, err := expr.Marshal(unix.NFPROTO_INET, e)
				if err != nil {
					return "", fmt.Errorf("encode %q: %w", r.Text, err)
				}
				fmt.Fprintf(&b, "\t\t%s\n", hex.EncodeToString(raw))
			}
		}
	}
	return b.String(), nil
}
