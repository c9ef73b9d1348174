package tunnel

import (
	"io"
	"sync"
)

// Pipe returns two connected sessions in memory, for tests of other packages.
// The given infos are what each end's Info returns.
func Pipe(client, server Info) (Session, Session) {
	up, down := newMemory(), newMemory()
	a := newMuxSession(&memoryLink{r: down, w: up}, true, client, Limits{})
	b := newMuxSession(&memoryLink{r: up, w: down}, false, server, Limits{})
	return a, b
}

// memoryLink is one end of a link in memory.
type memoryLink struct{ r, w *memory }

func (l *memoryLink) Read(p []byte) (int, error) { return l.r.read(p) }

func (l *memoryLink) writePieces(ps []piece) error {
	for _, p := range ps {
		if err := l.w.write(p.buf[p.off:p.end]); err != nil {
			return err
		}
	}
	return nil
}

func (l *memoryLink) Close() error {
	l.w.close()
	l.r.close()
	return nil
}

// memory is a bounded buffer between one writer and one reader.
type memory struct {
	mu     sync.Mutex
	cond   sync.Cond
	b      []byte
	closed bool
}

func newMemory() *memory {
	m := new(memory)
	m.cond.L = &m.mu
	return m
}

func (m *memory) read(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.b) == 0 {
		if m.closed {
			return 0, io.EOF
		}
		m.cond.Wait()
	}
	n := copy(p, m.b)
	m.b = m.b[:copy(m.b, m.b[n:])]
	m.cond.Broadcast()
	return n, nil
}

func (m *memory) write(p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.b) > 256<<10 {
		if m.closed {
			return io.ErrClosedPipe
		}
		m.cond.Wait()
	}
	if m.closed {
		return io.ErrClosedPipe
	}
	m.b = append(m.b, p...)
	m.cond.Broadcast()
	return nil
}

func (m *memory) close() {
	m.mu.Lock()
	m.closed = true
	m.cond.Broadcast()
	m.mu.Unlock()
}
