package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"syscall"

	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
)

// kernel is what the kernel has of the table.
type kernel struct {
	there   bool
	depth   int    // layers
	sum     string // of the constant part, as the kernel shows it
	stored  string // what the constant part was when it was made
	elems   []element
	strange int // elements that are not of our making by their form
}

// dumpTable lists one kind of object of the table.
func (s *socket) dumpTable(kind uint16, flags uint16, table string, more func(*requests), f func(message) error) error {
	r := s.requests()
	r.begin(subsys|kind, flags, header(inet)...)
	r.text(1, table) // the table's name is attribute 1 of every object
	if more != nil {
		more(r)
	}
	r.end()
	return s.dump(r, f)
}

// readLayout reads the constant part: it sums what the kernel shows of table,
// sets, chains and rules, leaving out what changes by itself (handles, counts).
func readLayout(s *socket, table string) (k kernel, sets []ruleset.Set, err error) {
	h := sha256.New()
	r := s.requests()
	r.begin(subsys|unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, header(inet)...)
	r.text(unix.NFTA_TABLE_NAME, table)
	r.end()
	err = s.do(r, func(m message) error { return sumAttributes(h, m, nil, unix.NFTA_TABLE_NAME, unix.NFTA_TABLE_FLAGS) })
	if errors.Is(err, syscall.ENOENT) {
		return k, nil, nil
	}
	if err != nil {
		return k, nil, fmt.Errorf("read table %s: %w", table, err)
	}
	k.there = true
	err = s.dumpTable(unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, table, nil, func(m message) error {
		return sumAttributes(h, m, func(a attribute) {
			if a.kind != unix.NFTA_SET_NAME {
				return
			}
			if set, ok := ruleset.ParseSet(text(a.data)); ok {
				sets = append(sets, set)
				if set.Kind == ruleset.Dst4 {
					k.depth = max(k.depth, int(set.Layer)+1)
				}
			}
		}, unix.NFTA_SET_NAME, unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE, unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_DATA_TYPE, unix.NFTA_SET_DATA_LEN, setExpr)
	})
	if err != nil {
		return k, nil, fmt.Errorf("list sets: %w", err)
	}
	// The kernel ignores the table's name for chains.
	err = s.dumpTable(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, table, nil, func(m message) error {
		if len(m.data) < 4 || m.data[0] != inet {
			return nil
		}
		for a := range attributes(m.data[4:]) {
			if a.kind == unix.NFTA_CHAIN_TABLE && text(a.data) != table {
				return nil
			}
		}
		return sumAttributes(h, m, nil, unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_HOOK, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_TYPE, chainFlags)
	})
	if err != nil {
		return k, nil, fmt.Errorf("list chains: %w", err)
	}
	err = s.dumpTable(unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, table, nil, func(m message) error {
		return sumAttributes(h, m, nil, unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_EXPRESSIONS)
	})
	if err != nil {
		return k, nil, fmt.Errorf("list rules: %w", err)
	}
	k.sum = hex.EncodeToString(h.Sum(nil)[:16])
	return k, sets, nil
}

func sumAttributes(h hash.Hash, m message, also func(attribute), kinds ...uint16) error {
	if len(m.data) < 4 {
		return nil
	}
	for a := range attributes(m.data[4:]) {
		for _, k := range kinds {
			if a.kind == k {
				_, _ = h.Write([]byte{byte(k), byte(len(a.data)), byte(len(a.data) >> 8)})
				_, _ = h.Write(a.data)
			}
		}
		if also != nil {
			also(a)
		}
	}
	return nil
}

// readElements lists the elements of a set.
func readElements(s *socket, table string, set ruleset.Set, f func(*element)) (strange int, err error) {
	err = s.dumpTable(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, table, func(r *requests) {
		r.text(unix.NFTA_SET_ELEM_LIST_SET, set.Name())
	}, func(m message) error {
		strange += decodeElements(m.data, f)
		return nil
	})
	if err != nil {
		return strange, fmt.Errorf("list elements of %s: %w", set.Name(), err)
	}
	return strange, nil
}

// readTable reads everything.
func readTable(s *socket, table string) (kernel, error) {
	return dumpAgain(func() (kernel, error) {
		k, sets, err := readLayout(s, table)
		if err != nil || !k.there {
			return k, err
		}
		for _, set := range sets {
			strange, err := readElements(s, table, set, func(e *element) {
				if sum := ruleset.LayoutSum(&e.Elem); sum != "" {
					k.stored = sum
				}
				k.elems = append(k.elems, *e)
			})
			if err != nil {
				return k, err
			}
			k.strange += strange
		}
		return k, nil
	})
}
