package recording

import (
	"encoding/binary"
	"encoding/json"
	"time"

	"caponier/shared/wire"
)

// A record of a web session is an item 'w' and as many items 'c' as it needs,
// directly after it. Its own time is in it: nodes deliver late and at
// different times, so items stand in the file as they arrived, and the time of
// the item is that of its arrival.
//
//	w   uvarint  microseconds since the start
//	    1        'f' frame, 'e' event (JSON: wire.WebEventBody)
//	    1        length of the source, then the source
//	    uvarint  sequence number of the source
//	    uvarint  length of the whole payload, at most wire.MaxWebRecord
//	    …        the payload's first piece
//	c   …        its next piece
const (
	// maxWebPiece is how much of a payload one item holds.
	maxWebPiece = 64 << 10
	maxSource   = 100
)

// webHead is the start of an item 'w' without the piece.
type webHead struct {
	at     time.Duration
	kind   wire.WebRecordKind
	source string
	seq    uint64
	size   int
}

// appendWebHead appends the encoding of h; the first piece follows it.
func appendWebHead(b []byte, h webHead) []byte {
	b = binary.AppendUvarint(b, uint64(max(h.at, 0)/time.Microsecond))
	b = append(b, byte(h.kind), byte(len(h.source)))
	b = append(b, h.source...)
	b = binary.AppendUvarint(b, h.seq)
	return binary.AppendUvarint(b, uint64(h.size))
}

// parseWebHead decodes an item 'w'; n is negative when it is malformed.
func parseWebHead(b []byte) (h webHead, piece []byte, n int) {
	us, n := binary.Uvarint(b)
	if n <= 0 || us > 1<<50 || len(b) < n+2 {
		return h, nil, -1
	}
	h.at, h.kind = time.Duration(us)*time.Microsecond, wire.WebRecordKind(b[n])
	size := int(b[n+1])
	b = b[n+2:]
	if h.kind != wire.WebFrame && h.kind != wire.WebEvent || size > maxSource || size > len(b) {
		return h, nil, -1
	}
	h.source, b = string(b[:size]), b[size:]
	if h.seq, n = binary.Uvarint(b); n <= 0 {
		return h, nil, -1
	}
	b = b[n:]
	total, n := binary.Uvarint(b)
	if n <= 0 || total > wire.MaxWebRecord || uint64(len(b)-n) > total {
		return h, nil, -1
	}
	h.size = int(total)
	return h, b[n:], n
}

// assembly puts records of web sessions together from their pieces.
type assembly struct {
	head webHead
	buf  []byte
	open bool
}

// items replaces pieces by whole records; other items stay. A record whose end
// is missing so far is kept for the next call.
func (a *assembly) items(in []Item) ([]Item, error) {
	out := in[:0]
	for _, it := range in {
		switch {
		case it.Kind == itemWeb && !a.open:
			a.head, a.open = it.web, true
			if len(it.Data) == a.head.size {
				a.buf = it.Data
			} else {
				a.buf = append(make([]byte, 0, a.head.size), it.Data...)
			}
		case it.Kind == itemMore && a.open && len(a.buf)+len(it.Data) <= a.head.size:
			a.buf = append(a.buf, it.Data...)
		case it.Kind == itemWeb || it.Kind == itemMore || a.open:
			return nil, errItem
		default:
			out = append(out, it)
			continue
		}
		if len(a.buf) < a.head.size {
			continue
		}
		whole, err := a.whole()
		if err != nil {
			return nil, err
		}
		out = append(out, whole)
	}
	return out, nil
}

// whole returns the record that is complete.
func (a *assembly) whole() (Item, error) {
	h, data := a.head, a.buf
	a.open, a.buf = false, nil
	it := Item{At: h.at, Kind: ItemFrame, Data: data, Source: h.source, Seq: h.seq}
	if h.kind == wire.WebEvent {
		var e wire.WebEventBody
		if json.Unmarshal(data, &e) != nil {
			return Item{}, errItem
		}
		it.Kind, it.Data, it.Event, it.Fields = ItemEvent, nil, e.Type, e.Fields
	}
	return it, nil
}
