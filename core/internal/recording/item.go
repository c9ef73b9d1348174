package recording

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"time"
)

// ItemKind says what an Item is; the letters are those of asciicast where it
// has one.
type ItemKind byte

// The kinds.
const (
	ItemOutput ItemKind = 'o'
	ItemInput  ItemKind = 'i'
	ItemResize ItemKind = 'r'
	ItemEvent  ItemKind = 'e'
	// ItemFrame is a picture of a web session, as shared/rfb encodes frames.
	ItemFrame ItemKind = 'f'

	// itemWeb begins a record of a web session and itemMore goes on with it; a
	// reader puts them together as ItemFrame or ItemEvent (webitem.go).
	itemWeb  ItemKind = 'w'
	itemMore ItemKind = 'c'
)

// Item is one entry of the timeline.
type Item struct {
	At   time.Duration
	Kind ItemKind
	// Data is output, input or a frame.
	Data []byte
	// Width and Height are a new terminal size.
	Width, Height int
	// Event and Fields are a structured event.
	Event  string
	Fields map[string]string
	// Source is the node of a web session that told, Seq its number there;
	// empty for what core noted by itself.
	Source string
	Seq    uint64

	web webHead // of itemWeb
}

// event is how an event is stored.
type event struct {
	Kind   string            `json:"k"`
	Fields map[string]string `json:"f,omitempty"`
}

// A data payload is the time of its first item since the start, then items:
//
//	uvarint  microseconds since the start
//	items:   1 kind, uvarint microseconds since the item before,
//	         uvarint length, bytes
//
// A resize holds two uvarints, an event JSON.
func appendItem(dst []byte, kind ItemKind, delta time.Duration, data []byte) []byte {
	dst = append(dst, byte(kind))
	dst = binary.AppendUvarint(dst, uint64(max(delta, 0)/time.Microsecond))
	dst = binary.AppendUvarint(dst, uint64(len(data)))
	return append(dst, data...)
}

var errItem = errors.New("its items are not readable")

// decodeItems splits a data payload. The items share its memory.
func decodeItems(p []byte) ([]Item, error) {
	us, n := binary.Uvarint(p)
	if n <= 0 || us > 1<<50 {
		return nil, errItem
	}
	p = p[n:]
	var items []Item
	for len(p) > 0 {
		it := Item{Kind: ItemKind(p[0])}
		p = p[1:]
		delta, n := binary.Uvarint(p)
		if n <= 0 || delta > 1<<50 || us > 1<<50 {
			return nil, errItem
		}
		p = p[n:]
		size, n := binary.Uvarint(p)
		if n <= 0 || size > uint64(len(p)-n) {
			return nil, errItem
		}
		data := p[n : n+int(size) : n+int(size)]
		p = p[n+int(size):]
		us += delta
		it.At = time.Duration(us) * time.Microsecond
		switch it.Kind {
		case ItemOutput, ItemInput:
			it.Data = data
		case ItemResize:
			w, n := binary.Uvarint(data)
			if n <= 0 {
				return nil, errItem
			}
			h, m := binary.Uvarint(data[n:])
			if m <= 0 || n+m != len(data) || w > 1<<16 || h > 1<<16 {
				return nil, errItem
			}
			it.Width, it.Height = int(w), int(h)
		case ItemEvent:
			var e event
			if json.Unmarshal(data, &e) != nil {
				return nil, errItem
			}
			it.Event, it.Fields = e.Kind, e.Fields
		case itemWeb:
			if it.web, it.Data, n = parseWebHead(data); n < 0 {
				return nil, errItem
			}
		case itemMore:
			it.Data = data
		default:
			return nil, errItem
		}
		items = append(items, it)
	}
	return items, nil
}

// totals are the content of the end block.
type totals struct {
	Blocks     uint64 `json:"blocks"` // without the end block
	Items      uint64 `json:"items"`
	DurationUS int64  `json:"duration_us"`
	Output     int64  `json:"output_bytes"`
	Input      int64  `json:"input_bytes"`
	ClosedUS   int64  `json:"closed_us"`
}
