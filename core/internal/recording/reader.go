package recording

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Integrity is what a reader found out about a recording.
type Integrity struct {
	Status   Status        `json:"status"`
	Text     string        `json:"text"`
	Blocks   int           `json:"blocks"`
	Duration time.Duration `json:"-"`
	Seconds  float64       `json:"seconds"`
}

// Reader reads a recording from its first item to its last. Not safe for
// concurrent use.
type Reader struct {
	r     *bufio.Reader
	chain *chain
	head  head

	ready  []Item
	parts  assembly
	blocks uint64
	items  uint64
	last   time.Duration
	out    int64
	in     int64
	over   error
	state  Integrity
}

// newReader reads the head from r; key gives the data key for it.
func newReader(r io.Reader, key func(head) ([]byte, error)) (*Reader, error) {
	x := &Reader{r: bufio.NewReaderSize(r, 64<<10)}
	h, raw, err := readHead(x.r)
	if err != nil {
		return nil, err
	}
	k, err := key(h)
	if err != nil {
		return nil, err
	}
	defer clear(k)
	x.head = h
	if x.chain, err = newChain(k, h.Kind, raw); err != nil {
		return nil, err
	}
	return x, nil
}

// Next returns the next item. After the last authentic one it returns io.EOF;
// Integrity then tells how the recording ends. Other errors are those of the
// storage.
func (x *Reader) Next() (Item, error) {
	for len(x.ready) == 0 {
		if x.over != nil {
			return Item{}, x.over
		}
		if err := x.block(); err != nil {
			x.over = x.finish(err)
		}
	}
	it := x.ready[0]
	x.ready = x.ready[1:]
	x.last = max(x.last, it.At)
	return it, nil
}

// errEnd means the end block was read and is right.
var errEnd = errors.New("end of recording")

// block reads one block into ready.
func (x *Reader) block() error {
	typ, payload, _, err := x.chain.open(x.r)
	if err != nil {
		return err
	}
	n := int(x.chain.n)
	switch typ {
	case typeResume:
		return nil
	case typeData:
		items, err := x.decode(payload)
		if err != nil {
			return &DamageError{Block: n, Why: err.Error()}
		}
		x.ready = items
		for _, it := range items {
			switch it.Kind {
			case ItemOutput:
				x.out += int64(len(it.Data))
			case ItemInput:
				x.in += int64(len(it.Data))
			}
		}
		return nil
	case typeEnd:
		var t totals
		if json.Unmarshal(payload, &t) != nil || t.Blocks != x.blocks || t.Items != x.items || t.Output != x.out || t.Input != x.in {
			return &DamageError{Block: n, Why: "the totals of the end mark do not agree"}
		}
		if _, err := x.r.ReadByte(); err == nil {
			return &DamageError{Block: n + 1, Why: "data follows the end mark"}
		} else if !errors.Is(err, io.EOF) {
			return err
		}
		x.last = max(x.last, time.Duration(t.DurationUS)*time.Microsecond)
		return errEnd
	}
	return &DamageError{Block: n, Why: "it has an unknown type"}
}

// decode returns the items that a data block completes.
func (x *Reader) decode(payload []byte) ([]Item, error) {
	items, err := decodeItems(payload)
	if err != nil {
		return nil, err
	}
	n := uint64(len(items))
	whole, err := x.parts.items(items)
	if err != nil {
		return nil, err
	}
	x.blocks++
	x.items += n
	return whole, nil
}

// finish turns the reason why reading stopped into the verdict.
func (x *Reader) finish(err error) error {
	d, damaged := errors.AsType[*DamageError](err)
	switch {
	case errors.Is(err, errEnd):
		x.state = Integrity{Status: Complete, Text: fmt.Sprintf("complete: %d blocks, %s", x.blocks, clock(x.last))}
	case errors.Is(err, errCut):
		x.state = Integrity{Status: Incomplete, Text: fmt.Sprintf("incomplete: ends at %s without end mark", clock(x.last))}
	case damaged:
		x.state = Integrity{Status: Damaged, Text: d.Error() + fmt.Sprintf(" (authentic up to %s)", clock(x.last))}
	default:
		return fmt.Errorf("read recording %s: %w", x.head.ID, err)
	}
	x.state.Blocks, x.state.Duration, x.state.Seconds = int(x.blocks), x.last, x.last.Seconds()
	return io.EOF
}

// Integrity tells how the recording ends; valid after Next returned io.EOF.
func (x *Reader) Integrity() Integrity { return x.state }

// drain reads to the end and returns the verdict.
func (x *Reader) drain() (Integrity, error) {
	for {
		if _, err := x.Next(); errors.Is(err, io.EOF) {
			return x.state, nil
		} else if err != nil {
			return Integrity{}, err
		}
	}
}

// clock renders d as hh:mm:ss.
func clock(d time.Duration) string {
	s := int64(d / time.Second)
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}
