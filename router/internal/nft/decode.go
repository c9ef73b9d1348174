package nft

import (
	"golang.org/x/sys/unix"

	"caponier/router/internal/ruleset"
)

// element is an element as the kernel shows it.
type element struct {
	ruleset.Elem
	Packets, Bytes uint64
	Expires        uint64 // milliseconds
}

// decodeElements reads the elements of one message that lists or announces them.
// What does not look like ours in size is skipped, but counted in strange.
func decodeElements(b []byte, f func(*element)) (strange int) {
	if len(b) < 4 {
		return 0
	}
	var set ruleset.Set
	var list []byte
	known := false
	for a := range attributes(b[4:]) {
		switch a.kind {
		case unix.NFTA_SET_ELEM_LIST_SET:
			set, known = ruleset.ParseSet(text(a.data))
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			list = a.data
		}
	}
	if !known {
		return 0
	}
	for item := range attributes(list) {
		if item.kind != unix.NFTA_LIST_ELEM {
			continue
		}
		e := element{Elem: ruleset.Elem{Set: set}}
		if !decodeElement(item.data, &e) {
			strange++
			continue
		}
		f(&e)
	}
	return strange
}

func decodeElement(b []byte, e *element) bool {
	fits := true
	value := func(b []byte, to *[ruleset.MaxKey]byte) (n uint8) {
		for v := range attributes(b) {
			if v.kind == unix.NFTA_DATA_VALUE {
				if len(v.data) > len(to) {
					fits = false
					return 0
				}
				n = uint8(copy(to[:], v.data))
			}
		}
		return n
	}
	for a := range attributes(b) {
		switch a.kind {
		case unix.NFTA_SET_ELEM_KEY:
			e.KeyLen = value(a.data, &e.Key)
		case elemKeyEnd:
			e.Ranged = true
			value(a.data, &e.KeyEnd)
		case unix.NFTA_SET_ELEM_DATA:
			e.DataLen = value(a.data, &e.Data)
		case unix.NFTA_SET_ELEM_TIMEOUT:
			e.TimeoutMS = be64(a.data)
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.Expires = be64(a.data)
		case unix.NFTA_SET_ELEM_USERDATA:
			if n := len(a.data); n > 2 && a.data[0] == 0 && int(a.data[1])+2 <= n {
				e.Comment = text(a.data[2 : 2+int(a.data[1])])
			}
		case unix.NFTA_SET_ELEM_EXPR:
			decodeCounter(a.data, e)
		}
	}
	return fits && e.KeyLen > 0
}

// decodeCounter reads {name, data{bytes, packets}}.
func decodeCounter(b []byte, e *element) {
	for a := range attributes(b) {
		if a.kind != unix.NFTA_EXPR_DATA {
			continue
		}
		for c := range attributes(a.data) {
			switch c.kind {
			case unix.NFTA_COUNTER_BYTES:
				e.Bytes = be64(c.data)
			case unix.NFTA_COUNTER_PACKETS:
				e.Packets = be64(c.data)
			}
		}
	}
}
