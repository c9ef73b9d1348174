package webterm

import (
	"context"
	"sync"

	"caponier/core/internal/webterm/screen"
)

// tape keeps the last output of a session. Offsets count bytes since the
// session began. A writer waits while the browser is a whole tape behind, so
// that nothing it has not seen is ever dropped, and a program that prints for
// ever waits with it.
type tape struct {
	size int

	mu      sync.Mutex
	data    []byte         // guarded by mu
	start   uint64         // guarded by mu: offset of data[0]
	seen    uint64         // guarded by mu: the browser has shown everything before
	closed  bool           // guarded by mu
	changed chan struct{}  // guarded by mu: closed and replaced at every change
	screen  *screen.Screen // guarded by mu: what stands on the terminal now
}

func newTape(size, cols, rows int) *tape {
	return &tape{size: size, changed: make(chan struct{}), screen: screen.New(cols, rows)}
}

func (t *tape) changeLocked() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// write appends p, waiting for room until ctx ends.
func (t *tape) write(ctx context.Context, p []byte) error {
	for len(p) > 0 {
		t.mu.Lock()
		room := t.size - int(t.start+uint64(len(t.data))-t.seen)
		if t.closed {
			room = len(p) // the last words, bounded by their senders
		}
		if room <= 0 {
			changed := t.changed
			t.mu.Unlock()
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		n := min(room, len(p))
		t.screen.Write(p[:n])
		t.data = append(t.data, p[:n]...)
		if over := len(t.data) - t.size; over > t.size/4 || over > 0 && t.closed {
			t.data = append(t.data[:0], t.data[over:]...)
			t.start += uint64(over)
		}
		p = p[n:]
		t.changeLocked()
		t.mu.Unlock()
	}
	return nil
}

// read returns at most limit bytes from offset on; when there are none, a
// channel to wait on. An offset that is not on the tape yields ok false.
func (t *tape) read(offset uint64, limit int) (p []byte, changed <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if offset < t.start || offset > t.start+uint64(len(t.data)) {
		return nil, nil, false
	}
	rest := t.data[offset-t.start:]
	// A copy: the tape moves its bytes.
	return append([]byte(nil), rest[:min(limit, len(rest))]...), t.changed, true
}

// ack notes what the browser has shown.
func (t *tape) ack(offset uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if offset > t.start+uint64(len(t.data)) {
		return false
	}
	if offset > t.seen {
		t.seen = offset
		t.changeLocked()
	}
	return true
}

// rewind lets a browser have again what one before it has shown.
func (t *tape) rewind(offset uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if offset >= t.start && offset < t.seen {
		t.seen = offset
	}
}

// bounds returns the first and the last offset on the tape.
func (t *tape) bounds() (start, end uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.start, t.start + uint64(len(t.data))
}

// draw returns what draws the screen as it is, and the offset it is at.
func (t *tape) draw() ([]byte, uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.screen.Draw(), t.start + uint64(len(t.data))
}

func (t *tape) resize(cols, rows int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.screen.Resize(cols, rows)
}

// close lets waiting writers through.
func (t *tape) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed = true
		t.changeLocked()
	}
}
