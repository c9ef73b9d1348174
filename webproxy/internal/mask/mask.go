// Package mask keeps the values that were put into a session's requests from
// coming back to it. It finds them in streams of any chunking, written as they
// are, URL-encoded, HTML-escaped, JSON-escaped (freely mixed), in hexadecimal,
// in UTF-16 and inside base64, and puts a mask of fixed length in their place, so that
// not even their length shows.
//
// What a server hashes, encrypts, splits or reverses is not found.
package mask

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Mask stands where a value was.
const Mask = "********"

const (
	// MinSecret is the shortest value that is looked for, in bytes: shorter
	// ones are in every page.
	MinSecret = 4
	// MaxSecret is the longest.
	MaxSecret = 16 << 10
	// plainFrom is the length from which only the likely encodings are looked
	// for: tokens consist of characters that nobody escapes.
	plainFrom = 512
	maxStates = 200_000
)

// unit is one character of a value with all its spellings.
type unit [][]byte

// chain is a value, or one encoding of it as a whole, unit by unit.
type chain []unit

// Automaton finds a set of values. Immutable; safe for concurrent use.
type Automaton struct {
	class   [256]uint8
	classes int
	next    []int32        // state*classes + class
	begin   [256]int32     // next of the start, by byte
	pairs   [256][4]uint64 // bits: by two bytes, whether a value may begin with the first
	accepts []int32        // by state: 1 + the chain that ends there, or 0
	chains  []chain
	longest int // spelling of any chain, in bytes
}

// ErrTooMuch is returned when the values need more memory than is sensible.
var ErrTooMuch = errors.New("too many values to look for")

// New makes an automaton for the values; those too short or too long are
// passed over. It returns nil if none is left.
func New(secrets []string) (*Automaton, error) {
	a := &Automaton{}
	for _, s := range secrets {
		if len(s) < MinSecret || len(s) > MaxSecret {
			continue
		}
		a.chains = append(a.chains, spellings(s), hexadecimal(s))
		if utf8.ValidString(s) && len(s) < plainFrom {
			a.chains = append(a.chains, inUTF16(s, binary.LittleEndian), inUTF16(s, binary.BigEndian))
		}
		for shift := range 3 {
			if c := inBase64(s, shift); c != nil {
				a.chains = append(a.chains, c)
			}
		}
	}
	if len(a.chains) == 0 {
		return nil, nil
	}
	for _, c := range a.chains {
		n := 0
		for _, u := range c {
			m := 0
			for _, alt := range u {
				m = max(m, len(alt))
			}
			n += m
		}
		a.longest = max(a.longest, n)
	}
	if err := a.build(); err != nil {
		return nil, err
	}
	return a, nil
}

// spellings is the value character by character.
func spellings(s string) chain {
	var c chain
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		raw := s[:n]
		s = s[n:]
		u := unit{[]byte(raw)}
		add := func(format string, args ...any) {
			alt := fmt.Appendf(nil, format, args...)
			if !slices.ContainsFunc(u, func(x []byte) bool { return string(x) == string(alt) }) {
				u = append(u, alt)
			}
		}
		var up, low, up2 strings.Builder
		for i := range len(raw) {
			fmt.Fprintf(&up, "%%%02X", raw[i])
			fmt.Fprintf(&low, "%%%02x", raw[i])
			fmt.Fprintf(&up2, "%%25%02X", raw[i])
		}
		add("%s", up.String())
		add("%s", low.String())
		if len(s) < plainFrom && (r != utf8.RuneError || n > 1) {
			add("%s", up2.String())
			more(r, add)
		}
		c = append(c, u)
	}
	return c
}

// more adds the escapes of HTML, JSON, JavaScript and forms.
func more(r rune, add func(format string, args ...any)) {
	add("&#%d;", r)
	add("&#0%d;", r)
	add("&#x%x;", r)
	add("&#x%X;", r)
	if r > 0xffff {
		hi, lo := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
		add(`\u%04x\u%04x`, hi, lo)
		add(`\u%04X\u%04X`, hi, lo)
		return
	}
	add(`\u%04x`, r)
	add(`\u%04X`, r)
	if r < 0x100 {
		add(`\x%02x`, r)
		add(`\x%02X`, r)
	}
	if r >= 0x80 && r < 0x100 {
		add("%s", string([]byte{byte(r)})) // ISO 8859-1
	}
	if name := map[rune]string{'&': "amp", '<': "lt", '>': "gt", '"': "quot", '\'': "apos"}[r]; name != "" {
		add("&%s;", name)
	}
	switch r {
	case ' ':
		add("+")
	case '"', '\\', '/', '\'', '$', '`':
		add(`\%c`, r)
	case '\n':
		add(`\n`)
	case '\r':
		add(`\r`)
	case '\t':
		add(`\t`)
	}
}

func hexadecimal(s string) chain {
	var c chain
	for i := range len(s) {
		u := unit{fmt.Appendf(nil, "%02x", s[i])}
		if up := fmt.Sprintf("%02X", s[i]); up != string(u[0]) {
			u = append(u, []byte(up))
		}
		c = append(c, u)
	}
	return c
}

// inUTF16 is the value as Windows' programs write files, and some their pages.
func inUTF16(s string, order binary.AppendByteOrder) chain {
	var c chain
	for _, u := range utf16.Encode([]rune(s)) {
		c = append(c, unit{order.AppendUint16(nil, u)})
	}
	return c
}

// inBase64 is what of the base64 form of a text with s in it, shift bytes
// after a multiple of three, depends on s alone.
func inBase64(s string, shift int) chain {
	text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", shift) + s + "\x00\x00"))
	first, last := (shift*8+5)/6, (shift+len(s))*8/6
	text = text[first:last]
	if len(text) < 5 {
		return nil
	}
	var c chain
	for i := range len(text) {
		u := unit{[]byte(text[i : i+1])}
		switch text[i] {
		case '+':
			u = append(u, []byte("-"), []byte("%2B"), []byte("%2b"), []byte(`\u002b`), []byte(`\u002B`), []byte(" "))
		case '/':
			u = append(u, []byte("_"), []byte("%2F"), []byte("%2f"), []byte(`\/`))
		}
		c = append(c, u)
	}
	return c
}

// build makes a deterministic automaton of all chains by subset construction.
// Node 0 is the start; it is in every state, so that a match may begin anywhere.
func (a *Automaton) build() error {
	type edge struct {
		b  byte
		to int32
	}
	edges := [][]edge{nil}
	ends := []int32{0} // by node: 1 + chain
	node := func() int32 {
		edges = append(edges, nil)
		ends = append(ends, 0)
		return int32(len(edges) - 1)
	}
	for n, c := range a.chains {
		at := int32(0)
		for _, u := range c {
			to := node()
			for _, alt := range u {
				from := at
				for i, b := range alt {
					next := to
					if i < len(alt)-1 {
						next = node()
					}
					edges[from] = append(edges[from], edge{b, next})
					from = next
				}
			}
			at = to
		}
		ends[at] = int32(n + 1)
		if len(edges) > maxStates {
			return ErrTooMuch
		}
	}
	// Bytes that no edge names behave alike.
	a.classes = 1
	for _, es := range edges {
		for _, e := range es {
			if a.class[e.b] == 0 {
				if a.classes == 256 {
					return ErrTooMuch // every byte value has a meaning: binary noise
				}
				a.class[e.b] = uint8(a.classes)
				a.classes++
			}
		}
	}
	numbers := map[string]int32{}
	var sets [][]int32
	key := func(set []int32) string {
		b := make([]byte, 4*len(set))
		for i, n := range set {
			binary.LittleEndian.PutUint32(b[4*i:], uint32(n))
		}
		return string(b)
	}
	number := func(set []int32) int32 {
		k := key(set)
		if n, ok := numbers[k]; ok {
			return n
		}
		n := int32(len(sets))
		numbers[k] = n
		sets = append(sets, set)
		accept := int32(0)
		for _, node := range set {
			if ends[node] != 0 && (accept == 0 || ends[node] < accept) {
				accept = ends[node]
			}
		}
		a.accepts = append(a.accepts, accept)
		return n
	}
	number([]int32{0})
	for s := 0; s < len(sets); s++ {
		if len(sets) > maxStates {
			return ErrTooMuch
		}
		a.next = append(a.next, make([]int32, a.classes)...)
		row := a.next[s*a.classes : (s+1)*a.classes]
		by := make([][]int32, a.classes)
		for _, n := range sets[s] {
			for _, e := range edges[n] {
				c := a.class[e.b]
				by[c] = append(by[c], e.to)
			}
		}
		for c := range row {
			if len(by[c]) == 0 {
				continue // the start
			}
			set := append(by[c], 0)
			slices.Sort(set)
			row[c] = number(slices.Compact(set))
		}
	}
	for b := range a.begin {
		a.begin[b] = a.next[a.class[b]]
	}
	for b, state := range a.begin {
		for next := range 256 {
			// Else the second byte is where nothing has begun before.
			if state != 0 && a.next[int(state)*a.classes+int(a.class[next])] != a.begin[next] {
				a.pairs[b][next>>6] |= 1 << (next & 63)
			}
		}
	}
	return nil
}

// begins returns where the match of chain n that ends at end of b begins.
func (a *Automaton) begins(n int32, b []byte, end int) int {
	at := map[int]bool{end: true}
	c := a.chains[n]
	for i := len(c) - 1; i >= 0; i-- {
		before := map[int]bool{}
		for p := range at {
			for _, alt := range c[i] {
				if q := p - len(alt); q >= 0 && string(b[q:p]) == string(alt) {
					before[q] = true
				}
			}
		}
		at = before
	}
	first := end
	for p := range at {
		first = min(first, p)
	}
	return first
}

// Bytes masks a whole text.
func (a *Automaton) Bytes(b []byte) (out []byte, hits int) {
	s := Stream{a: a}
	out = s.push(make([]byte, 0, len(b)), b)
	return s.Flush(out), s.Hits
}

// String masks a whole text; without a hit it returns s itself.
func (a *Automaton) String(s string) (string, int) {
	state := int32(0)
	for i := range len(s) {
		if state = a.next[int(state)*a.classes+int(a.class[s[i]])]; a.accepts[state] != 0 {
			out, hits := a.Bytes([]byte(s))
			return string(out), hits
		}
	}
	return s, 0
}
