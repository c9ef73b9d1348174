package nft

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
)

const (
	inet   = unix.NFPROTO_INET
	subsys = unix.NFNL_SUBSYS_NFTABLES << 8
	// perMessage is how many elements one message carries: a list of them must
	// stay under 64 KiB.
	perMessage = 200
)

// What golang.org/x/sys/unix has no names for.
const (
	setExpr    = 17
	setConcat  = 0x80
	descConcat = 2
	fieldLen   = 1
	elemKeyEnd = 10
	chainFlags = 10
	// For nft(8) to print marks right.
	udataKeyOrder, udataDataOrder = 0, 1
)

func header(family byte) []byte { return []byte{family, unix.NFNETLINK_V0, 0, 0} }

// beginBatch and endBatch wrap a transaction.
func (r *requests) beginBatch() {
	r.begin(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES)
	r.end()
}

func (r *requests) endBatch() {
	// The last message before acknowledges for all; the end itself does not on
	// every kernel.
	r.flag(unix.NLM_F_ACK)
	last := r.last
	r.begin(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES)
	r.end()
	r.last = last
}

func (r *requests) table(kind uint16, flags uint16, name string) {
	r.begin(subsys|kind, flags, header(inet)...)
	r.text(unix.NFTA_TABLE_NAME, name)
	r.end()
}

func (r *requests) set(table string, id uint32, s ruleset.SetSpec) {
	r.begin(subsys|unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, header(inet)...)
	r.text(unix.NFTA_SET_TABLE, table)
	r.text(unix.NFTA_SET_NAME, s.Name())
	var flags uint32
	for _, f := range []struct {
		on   bool
		flag uint32
	}{{s.Interval, unix.NFT_SET_INTERVAL}, {s.DataLen > 0, unix.NFT_SET_MAP}, {s.Timeout, unix.NFT_SET_TIMEOUT}, {len(s.Fields) > 0, setConcat}} {
		if f.on {
			flags |= f.flag
		}
	}
	r.be32(unix.NFTA_SET_FLAGS, flags)
	r.be32(unix.NFTA_SET_KEY_TYPE, s.KeyType)
	r.be32(unix.NFTA_SET_KEY_LEN, s.KeyLen)
	r.be32(unix.NFTA_SET_ID, id)
	if s.DataLen > 0 {
		r.be32(unix.NFTA_SET_DATA_TYPE, s.DataType)
		r.be32(unix.NFTA_SET_DATA_LEN, s.DataLen)
	}
	if len(s.Fields) > 0 {
		desc := r.nest(unix.NFTA_SET_DESC)
		fields := r.nest(descConcat)
		for _, n := range s.Fields {
			f := r.nest(unix.NFTA_LIST_ELEM)
			r.be32(fieldLen, n)
			r.unnest(f)
		}
		r.unnest(fields)
		r.unnest(desc)
	}
	var hints []byte
	if s.HostOrder {
		hints = append(hints, udataKeyOrder, 4, 1, 0, 0, 0)
	}
	if s.HostData {
		hints = append(hints, udataDataOrder, 4, 1, 0, 0, 0)
	}
	if hints != nil {
		r.attr(unix.NFTA_SET_USERDATA, hints)
	}
	if s.Counter {
		c := r.nest(setExpr)
		r.text(unix.NFTA_EXPR_NAME, "counter")
		r.unnest(c)
	}
	r.end()
}

func (r *requests) chain(table string, c ruleset.Chain) {
	r.begin(subsys|unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL, header(inet)...)
	r.text(unix.NFTA_CHAIN_TABLE, table)
	r.text(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Type != "" {
		h := r.nest(unix.NFTA_CHAIN_HOOK)
		r.be32(unix.NFTA_HOOK_HOOKNUM, c.Hook)
		r.be32(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))
		r.unnest(h)
		policy := uint32(1) // NF_ACCEPT
		if c.Drop {
			policy = 0
		}
		r.be32(unix.NFTA_CHAIN_POLICY, policy)
		r.text(unix.NFTA_CHAIN_TYPE, c.Type)
	}
	r.end()
}

func (r *requests) rule(table, chain string, rule ruleset.Rule) error {
	r.begin(subsys|unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, header(inet)...)
	r.text(unix.NFTA_RULE_TABLE, table)
	r.text(unix.NFTA_RULE_CHAIN, chain)
	list := r.nest(unix.NFTA_RULE_EXPRESSIONS)
	for _, e := range rule.Exprs {
		raw, err := expr.Marshal(inet, e)
		if err != nil {
			return fmt.Errorf("encode rule %q: %w", rule.Text, err)
		}
		r.attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, raw)
	}
	r.unnest(list)
	r.end()
	return nil
}

// layout writes sets, chains and rules.
func (r *requests) layout(table string, l ruleset.Layout) error {
	for i, s := range l.Sets {
		r.set(table, uint32(i+1), s)
	}
	for _, c := range l.Chains {
		r.chain(table, c)
	}
	for _, c := range l.Chains {
		for _, rule := range c.Rules {
			if err := r.rule(table, c.Name, rule); err != nil {
				return err
			}
		}
	}
	return nil
}

// elements writes elements, many to a message, in their order.
func (r *requests) elements(kind, flags uint16, table string, elems []ruleset.Elem) {
	for len(elems) > 0 {
		n := 1
		for n < len(elems) && n < perMessage && elems[n].Set == elems[0].Set {
			n++
		}
		r.begin(subsys|kind, flags, header(inet)...)
		r.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
		r.text(unix.NFTA_SET_ELEM_LIST_SET, elems[0].Name())
		list := r.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		for i := range elems[:n] {
			r.element(&elems[i], kind == unix.NFT_MSG_NEWSETELEM)
		}
		r.unnest(list)
		r.end()
		elems = elems[n:]
	}
}

func (r *requests) element(e *ruleset.Elem, whole bool) {
	at := r.nest(unix.NFTA_LIST_ELEM)
	key := r.nest(unix.NFTA_SET_ELEM_KEY)
	r.attr(unix.NFTA_DATA_VALUE, e.Key[:e.KeyLen])
	r.unnest(key)
	if e.Ranged {
		end := r.nest(elemKeyEnd)
		r.attr(unix.NFTA_DATA_VALUE, e.KeyEnd[:e.KeyLen])
		r.unnest(end)
	}
	if whole {
		if e.DataLen > 0 {
			data := r.nest(unix.NFTA_SET_ELEM_DATA)
			r.attr(unix.NFTA_DATA_VALUE, e.Data[:e.DataLen])
			r.unnest(data)
		}
		if e.TimeoutMS > 0 {
			r.be64(unix.NFTA_SET_ELEM_TIMEOUT, e.TimeoutMS)
		}
		if e.Comment != "" {
			// Type 0 (comment), length, text with its zero.
			r.attr(unix.NFTA_SET_ELEM_USERDATA, append([]byte{0, byte(len(e.Comment) + 1)}, e.Comment+"\x00"...))
		}
	}
	r.unnest(at)
}

// flushSet empties a set, whatever is in it.
func (r *requests) flushSet(table string, s ruleset.Set) {
	r.begin(subsys|unix.NFT_MSG_DELSETELEM, 0, header(inet)...)
	r.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	r.text(unix.NFTA_SET_ELEM_LIST_SET, s.Name())
	r.end()
}
