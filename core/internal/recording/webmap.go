package recording

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"caponier/shared/wire"
)

// Bounds of what is kept in memory about web recordings.
const (
	maxMaps      = 6
	maxMapFrames = 4 << 20
	maxMapEvents = 500_000
	// fullText is how many bytes of events keep their long values.
	fullText  = 32 << 20
	shortText = 200
)

// webFrame is where a frame is. Its block begins at off in the file and has
// the number block; item is its place in the block.
type webFrame struct {
	at    time.Duration
	off   int64
	block uint64
	item  int32
	size  int32
	src   int16
	part  int16 // of the recording, between its resumptions
	w, h  uint16
	key   bool
}

// webMap is what is where in a web recording. It is made by reading the file
// once, and read on while the recording is live; nobody needs to read the whole
// file to see a part of it.
type webMap struct {
	// turn holds one token: who has it may use what follows.
	turn chan struct{}

	chain   *chain
	starts  []chain // as at the start of each part
	pos     int64
	parts   assembly
	begun   []webFrame // frames whose end is not there yet
	frames  []webFrame
	events  []Moment
	text    int // bytes of events
	sources []string
	last    time.Duration
	blocks  uint64
	state   Integrity // set once the end was reached
	jumbled bool      // frames are not in the order of time

	used time.Time // guarded by the store's mu
}

// webView is a web recording as it is at a moment.
type webView struct {
	frames []webFrame // in the order in which they are shown
	events []Moment
	last   time.Duration
	state  Integrity
	parts  []chain
}

// view reads what is new in a web recording and returns what is there. The
// caller must not change it.
func (s *Store) view(ctx context.Context, r *Recording, f *os.File) (*webView, error) {
	m, err := s.mapOf(r, f)
	if err != nil {
		return nil, err
	}
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-m.turn }()
	if err := m.extend(ctx, f, r.Status == Live); err != nil {
		return nil, fmt.Errorf("read recording %s: %w", r.ID, err)
	}
	v := &webView{frames: m.frames, events: m.events, last: m.last, state: m.state, parts: m.starts}
	if m.jumbled {
		v.frames = playOrder(m.frames)
		if m.state.Status != "" {
			m.frames, m.jumbled = v.frames, false
		}
	}
	if m.state.Status == "" {
		v.state = Integrity{Status: Live, Text: "still being recorded: " + clock(m.last) + " so far", Blocks: int(m.blocks), Seconds: m.last.Seconds()}
	}
	return v, nil
}

// mapOf returns the map of a recording, an empty one when it is not known.
func (s *Store) mapOf(r *Recording, f *os.File) (*webMap, error) {
	if m := s.knownMap(r); m != nil {
		return m, nil
	}
	h, raw, err := readHead(io.NewSectionReader(f, 0, maxHead+64))
	if err != nil {
		return nil, err
	}
	if h.ID != r.ID || h.Kind != kindRec || h.version != versionWeb {
		return nil, &DamageError{Why: "it belongs to another recording"}
	}
	key, err := s.key(r.ID, r.sealedKey)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	c, err := newChain(key, kindRec, raw)
	if err != nil {
		return nil, err
	}
	// Somebody else may have been as fast: the later one stays, both are right.
	m := &webMap{turn: make(chan struct{}, 1), chain: c, starts: []chain{*c}, pos: int64(len(raw)), used: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.maps) >= maxMaps {
		oldest := ""
		for id, m := range s.maps {
			if oldest == "" || m.used.Before(s.maps[oldest].used) {
				oldest = id
			}
		}
		delete(s.maps, oldest)
	}
	s.maps[r.ID] = m
	return m, nil
}

// knownMap returns the map that is there. What was resumed after its map was
// closed is read again.
func (s *Store) knownMap(r *Recording) *webMap {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.maps[r.ID]
	if m == nil || r.Status == Live && !m.grows() {
		return nil
	}
	m.used = time.Now()
	return m
}

// grows reports whether m can still grow. It waits for nobody: a map in use is
// one that grows.
func (m *webMap) grows() bool {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
		return m.state.Status == ""
	default:
		return true
	}
}

// extend reads the file on to its present end.
func (m *webMap) extend(ctx context.Context, f *os.File, live bool) error {
	for m.state.Status == "" {
		if err := ctx.Err(); err != nil {
			return err
		}
		off := m.pos
		typ, payload, n, err := peekBlock(m.chain, f, off)
		if errors.Is(err, errCut) && live {
			return nil
		}
		if err == nil {
			m.pos += int64(n)
			err = m.block(typ, payload, off)
		}
		if err == nil {
			continue
		}
		// The verdict is the reader's: the same words for the same file.
		x := &Reader{chain: m.chain, blocks: m.blocks, last: m.last}
		if m.state, err = x.finishState(err); err != nil {
			return err
		}
		slices.SortStableFunc(m.events, func(a, b Moment) int { return cmp.Compare(a.T, b.T) })
	}
	return nil
}

// block takes the block that begins at off.
func (m *webMap) block(typ byte, payload []byte, off int64) error {
	n := int(m.chain.n)
	switch typ {
	case typeResume:
		if m.parts.open || len(m.starts) == math.MaxInt16 {
			return &DamageError{Block: n, Why: errItem.Error()}
		}
		m.starts = append(m.starts, *m.chain)
		return nil
	case typeEnd:
		var t totals
		if json.Unmarshal(payload, &t) != nil {
			return &DamageError{Block: n, Why: "the totals of the end mark do not agree"}
		}
		m.last = max(m.last, time.Duration(t.DurationUS)*time.Microsecond)
		return errEnd
	case typeData:
	default:
		return &DamageError{Block: n, Why: "it has an unknown type"}
	}
	items, err := decodeItems(payload)
	if err != nil {
		return &DamageError{Block: n, Why: err.Error()}
	}
	m.blocks++
	for i, it := range items {
		if it.Kind == itemWeb && it.web.kind == wire.WebFrame {
			m.begun = append(m.begun, m.frame(it, off, i))
		}
	}
	whole, err := m.parts.items(items)
	if err != nil {
		return &DamageError{Block: n, Why: err.Error()}
	}
	for _, it := range whole {
		m.last = max(m.last, it.At)
		switch it.Kind {
		case ItemFrame:
			fr := m.begun[0]
			m.begun = m.begun[1:]
			if len(m.frames) < maxMapFrames {
				m.add(fr)
			}
		case ItemEvent:
			m.event(it)
		}
	}
	return nil
}

func (m *webMap) frame(it Item, off int64, item int) webFrame {
	src := slices.Index(m.sources, it.web.source)
	if src < 0 && len(m.sources) < maxSources {
		src, m.sources = len(m.sources), append(m.sources, it.web.source)
	}
	fr := webFrame{at: it.web.at, off: off, block: m.chain.n, item: int32(item), size: int32(it.web.size), src: int16(src), part: int16(len(m.starts) - 1)}
	// shared/rfb has the layout: version, flags, width, height.
	if b := it.Data; len(b) >= 6 {
		fr.key = b[1]&1 != 0
		fr.w, fr.h = uint16(b[2])<<8|uint16(b[3]), uint16(b[4])<<8|uint16(b[5])
	}
	return fr
}

func (m *webMap) add(fr webFrame) {
	if n := len(m.frames); n == 0 {
		m.jumbled = !fr.key
	} else if p := m.frames[n-1]; fr.at < p.at || fr.src != p.src && !fr.key {
		m.jumbled = true
	}
	m.frames = append(m.frames, fr)
}

func (m *webMap) event(it Item) {
	if len(m.events) >= maxMapEvents {
		return
	}
	e := Moment{T: it.At.Seconds(), Kind: cut(it.Event, 100), Source: it.Source, Fields: map[string]string{}}
	most := maxField
	if m.text > fullText {
		most = shortText
	}
	for _, k := range sortedKeys(it.Fields) {
		if len(e.Fields) == 32 {
			e.Cut = true
			break
		}
		v := it.Fields[k]
		if len(v) > most {
			v, e.Cut = cut(v, most), true
		}
		e.Fields[cut(k, 100)] = v
		m.text += len(k) + len(v)
	}
	m.events = append(m.events, e)
}

// playOrder sorts frames by time. A frame shows only what changed since the one
// before it of the same node: after another node's, it needs a keyframe first.
func playOrder(in []webFrame) []webFrame {
	sorted := slices.Clone(in)
	slices.SortStableFunc(sorted, func(a, b webFrame) int { return cmp.Compare(a.at, b.at) })
	out := sorted[:0]
	for _, fr := range sorted {
		if fr.key || len(out) > 0 && out[len(out)-1].src == fr.src {
			out = append(out, fr)
		}
	}
	return out
}

// since returns the frames needed to show the picture at from, beginning with
// the last keyframe at or before it, and what follows up to to. Before the first
// frame there is nothing better to show than that one.
func (v *webView) since(from, to time.Duration) []webFrame {
	start, end := v.past(from), v.past(max(from, to))
	if end == 0 && len(v.frames) > 0 {
		end = 1
	}
	for i := start - 1; i >= 0; i-- {
		if v.frames[i].key {
			return v.frames[i:end]
		}
	}
	return v.frames[start:end]
}

// after returns the frames later than from, up to to.
func (v *webView) after(from, to time.Duration) []webFrame {
	start := v.past(from)
	return v.frames[start:max(start, v.past(to))]
}

// past is the index of the first frame later than t.
func (v *webView) past(t time.Duration) int {
	i, _ := slices.BinarySearchFunc(v.frames, t+1, func(f webFrame, t time.Duration) int { return cmp.Compare(f.at, t) })
	return i
}

// frameReader reads frames where the map says they are; every block is
// authenticated again.
type frameReader struct {
	f     *os.File
	parts []chain
	block uint64
	off   int64
	next  int64 // offset of the block after
	items []Item
}

// load opens a block.
func (x *frameReader) load(off int64, block uint64, part int16) error {
	if x.block == block && x.items != nil {
		return nil
	}
	c := x.parts[part]
	c.prev = [tagSize]byte{}
	if block > 1 {
		if _, err := x.f.ReadAt(c.prev[:], off-tagSize); err != nil {
			return fmt.Errorf("read the block before %d: %w", block, err)
		}
	}
	c.n = block - 1
	typ, payload, n, err := c.open(io.NewSectionReader(x.f, off, maxSealed+blockHead))
	if errors.Is(err, errCut) {
		return &DamageError{Block: int(block), Why: "it is not there any more"}
	}
	if err != nil {
		return err
	}
	items, err := decodeItems(payload)
	if typ != typeData || err != nil {
		return &DamageError{Block: int(block), Why: "its items are not readable"}
	}
	x.block, x.off, x.next, x.items = block, off, off+int64(n), items
	return nil
}

// read returns a frame; it may share memory with the next.
func (x *frameReader) read(fr webFrame) ([]byte, error) {
	if err := x.load(fr.off, fr.block, fr.part); err != nil {
		return nil, err
	}
	i := int(fr.item)
	if i >= len(x.items) || x.items[i].Kind != itemWeb || x.items[i].web.size != int(fr.size) {
		return nil, &DamageError{Block: int(fr.block), Why: "it is not the block that was read before"}
	}
	data := x.items[i].Data
	if len(data) == int(fr.size) {
		return data, nil
	}
	data = append(make([]byte, 0, fr.size), data...)
	for i++; len(data) < int(fr.size); i++ {
		if i == len(x.items) {
			if err := x.load(x.next, x.block+1, fr.part); err != nil {
				return nil, err
			}
			i = 0
		}
		if x.items[i].Kind != itemMore || len(data)+len(x.items[i].Data) > int(fr.size) {
			return nil, &DamageError{Block: int(x.block), Why: errItem.Error()}
		}
		data = append(data, x.items[i].Data...)
	}
	return data, nil
}
