package mask

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Values are the values of one session, which grow as they are used. Safe for
// concurrent use.
type Values struct {
	a atomic.Pointer[Automaton]

	mu   sync.Mutex
	list []string // guarded by mu
}

// maxValues bounds how many values a session may have: a password that
// changes, tokens.
const maxValues = 16

// Add has a value found from now on, in streams under way too.
func (v *Values) Add(secret string) error {
	if len(secret) < MinSecret {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if slices.Contains(v.list, secret) {
		return nil
	}
	if len(v.list) == maxValues {
		return ErrTooMuch
	}
	list := append(v.list[:len(v.list):len(v.list)], secret)
	a, err := New(list)
	if err != nil {
		return err
	}
	v.list = list
	v.a.Store(a)
	return nil
}

// Forget drops all values: the session is over.
func (v *Values) Forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.list = nil
	v.a.Store(nil)
}

// String masks a short text such as a header.
func (v *Values) String(s string) (string, int) {
	a := v.a.Load()
	if a == nil {
		return s, 0
	}
	return a.String(s)
}

// Bytes masks a whole text.
func (v *Values) Bytes(b []byte) ([]byte, int) {
	a := v.a.Load()
	if a == nil {
		return b, 0
	}
	return a.Bytes(b)
}

// Stream returns a masker for one stream.
func (v *Values) Stream() *Stream { return &Stream{values: v} }

// Stream masks one stream, whatever its chunks. What could be the beginning of
// a value is held back until it is known not to be.
type Stream struct {
	values *Values
	a      *Automaton
	state  int32
	held   []byte
	Hits   int
}

// Push takes the next bytes and appends to dst what is certain.
func (s *Stream) Push(dst, src []byte) []byte {
	if now := s.values.a.Load(); now != s.a {
		held := s.held
		s.a, s.state, s.held = now, 0, nil
		if now != nil && len(held) > 0 {
			dst = s.push(dst, held)
		} else {
			dst = append(dst, held...)
		}
	}
	if s.a == nil {
		return append(dst, src...)
	}
	return s.push(dst, src)
}

func (s *Stream) push(dst, src []byte) []byte {
	a := s.a
	state, from := s.state, 0 // src before from is dealt with
	safe := 0                 // src before safe is no part of a match; 0 with held bytes: nor are these known
	next, classes := a.next, a.classes
	for i := 0; i < len(src); i++ {
		if state == 0 {
			// Most bytes begin nothing, which the next byte shows mostly.
			i = a.skip(src, i)
			if safe = i; i == len(src) {
				break
			}
			state = a.begin[src[i]]
		} else if state = next[int(state)*classes+int(a.class[src[i]])]; state == 0 {
			safe = i + 1
			continue
		}
		n := a.accepts[state]
		if n == 0 {
			continue
		}
		// A value ends here. Where does it begin?
		s.Hits++
		if safe > from {
			dst = append(append(dst, s.held...), src[from:safe]...)
			s.held, from = s.held[:0], safe
		}
		all := append(s.held, src[from:i+1]...)
		dst = append(dst, all[:a.begins(n-1, all, len(all))]...)
		dst = append(dst, Mask...)
		s.held, state, from, safe = s.held[:0], 0, i+1, i+1
	}
	if safe > from {
		dst = append(append(dst, s.held...), src[from:safe]...)
		s.held, from = s.held[:0], safe
	}
	s.state = state
	s.held = append(s.held, src[from:]...)
	if old := len(s.held) - a.longest; old > 0 {
		dst = append(dst, s.held[:old]...)
		s.held = append(s.held[:0], s.held[old:]...)
	}
	return dst
}

// skip returns the first place from i on where a value may begin, or len(b).
func (a *Automaton) skip(b []byte, i int) int {
	for ; i < len(b); i++ {
		if a.begin[b[i]] == 0 {
			continue
		}
		if i+1 == len(b) || a.pairs[b[i]][b[i+1]>>6]>>(b[i+1]&63)&1 != 0 {
			break
		}
	}
	return i
}

// Idle reports whether there is nothing to look for now, and nothing held back:
// the next bytes may pass by the stream.
func (s *Stream) Idle() bool { return s.a == nil && s.values.a.Load() == nil }

// Flush appends what was held back; the stream (or message) is over.
func (s *Stream) Flush(dst []byte) []byte {
	dst = append(dst, s.held...)
	s.held, s.state = s.held[:0], 0
	return dst
}
