package recording

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a writer.
const (
	// chunkSize is when a block is written without waiting.
	chunkSize = 64 << 10
	// maxWaiting is how many bytes may wait for storage before a write waits.
	maxWaiting = 512 << 10
	// flushAfter is how long data may wait for more before it is written;
	// syncAfter how long written data may wait to be forced to disk. Together
	// with the time of the two they stay below one second.
	flushAfter = 250 * time.Millisecond
	syncAfter  = 400 * time.Millisecond
	// stallAfter is how long storage may take nothing before the recording fails.
	stallAfter = 5 * time.Second
	// flushFollowed is flushAfter while somebody follows.
	flushFollowed = 20 * time.Millisecond
	maxField      = 4096
	maxPiece      = 32 << 10
)

// Writer writes one recording. Safe for concurrent use; a write that cannot
// reach storage within its bound fails, and the session must then end. Data is
// on disk at most one second after it was written, but input that waits for
// its echo is written up to echoWait later (see mask.go).
type Writer struct {
	ID string

	st    *Store
	meta  Meta
	file  *os.File
	chain *chain
	sum   hash.Hash

	wake chan struct{} // holds one token
	done chan struct{} // closed when the file is closed

	// mu guards everything below.
	mu    sync.Mutex
	buf   []byte        // items of the block being filled
	last  time.Duration // time of the last item
	mask  masker
	timer *time.Timer
	armed bool
	// progress is closed and replaced when storage took something.
	progress chan struct{}
	oldest   time.Time // of data not on disk; zero = none
	err      error
	closing  bool
	lacking  string // why it is closed without an end mark
	tot      totals
	size     int64
	started  time.Time
	// followers are those who want data written out soon.
	followers int
	// kept is how many items are on disk, keptSize and keptBlocks how many
	// bytes and blocks; checked is the keptBlocks that the row has.
	kept       uint64
	keptSize   int64
	keptBlocks uint64
	checked    uint64

	// flushAfter and syncAfter are those of this kind of recording.
	flushAfter, syncAfter time.Duration
	// stored: bodies are not compressed again.
	stored bool
}

// Output records bytes the user sees (stderr is merged, as on a terminal).
func (w *Writer) Output(p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.roomLocked(); err != nil {
		return err
	}
	// The echo is in the file before the input it allows.
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxPiece)
		w.addLocked(ItemOutput, rest[:n])
		rest = rest[n:]
	}
	w.tot.Output += int64(len(p))
	w.mask.output(p, w.st.cfg.Now())
	return nil
}

// Input records bytes the user typed; they are masked while the terminal does
// not echo them.
func (w *Writer) Input(p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.roomLocked(); err != nil {
		return err
	}
	w.mask.input(p, w.st.cfg.Now())
	w.armLocked()
	return nil
}

// Resize records a new terminal size.
func (w *Writer) Resize(width, height int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.roomLocked(); err != nil {
		return err
	}
	b := binary.AppendUvarint(nil, uint64(min(max(width, 0), 1<<16)))
	w.addLocked(ItemResize, binary.AppendUvarint(b, uint64(min(max(height, 0), 1<<16))))
	return nil
}

// Event records a structured event: channel, exec, sftp, forward; shown on the
// timeline and searched. Values are cut at 4 KiB, fields at 32.
func (w *Writer) Event(kind string, fields map[string]string) error {
	e := event{Kind: cut(kind, 100), Fields: map[string]string{}}
	for k, v := range fields {
		if len(e.Fields) == 32 {
			break
		}
		e.Fields[cut(k, 100)] = cut(v, maxField)
	}
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("record event: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.roomLocked(); err != nil {
		return err
	}
	w.addLocked(ItemEvent, b)
	return nil
}

// roomLocked waits until there is room for more, and fails when storage stalls.
func (w *Writer) roomLocked() error {
	for {
		switch {
		case w.err != nil:
			return w.err
		case w.closing:
			return ErrClosed
		case len(w.buf) < maxWaiting && !w.stalledLocked():
			return nil
		}
		// A whole process that stood still is no stalled storage: one more
		// second is given after the bound.
		w.signal()
		progress := w.progress
		w.mu.Unlock()
		t := time.NewTimer(time.Second)
		select {
		case <-progress:
		case <-t.C:
		}
		t.Stop()
		w.mu.Lock()
		if w.progress == progress && w.stalledLocked() {
			return w.failLocked(ErrStalled)
		}
	}
}

// stalledLocked reports whether data has waited for storage beyond its bound.
func (w *Writer) stalledLocked() bool {
	return !w.oldest.IsZero() && time.Since(w.oldest) > stallAfter
}

// progressLocked tells those who wait that storage took something.
func (w *Writer) progressLocked() {
	close(w.progress)
	w.progress = make(chan struct{})
}

func (w *Writer) failLocked(err error) error {
	if w.err == nil {
		w.err = fmt.Errorf("recording %s: %w", w.ID, err)
		w.st.metrics.failed.Inc()
	}
	return w.err
}

// addLocked appends an item at the present time.
func (w *Writer) addLocked(kind ItemKind, data []byte) {
	at := max(w.st.cfg.Now().Sub(w.started), w.last).Truncate(time.Microsecond)
	if len(w.buf) == 0 {
		w.buf = binary.AppendUvarint(w.buf, uint64(at/time.Microsecond))
		w.last = at
		if w.oldest.IsZero() {
			w.oldest = time.Now()
		}
	}
	w.buf = appendItem(w.buf, kind, at-w.last, data)
	w.last = at
	w.tot.Items++
	if len(w.buf) >= chunkSize {
		w.signal()
	} else {
		w.armLocked()
	}
}

// armLocked has the writer's goroutine look in flushAfter.
func (w *Writer) armLocked() {
	if w.armed {
		return
	}
	w.armed = true
	after := w.flushAfter
	if w.followers > 0 {
		after = flushFollowed
	}
	w.timer.Reset(after)
}

// hasten has data written out soon until the returned function is called.
func (w *Writer) hasten() (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.followers++
	w.signal()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.followers--
	}
}

// taken is closed when storage takes something; nil for no writer.
func (w *Writer) taken() <-chan struct{} {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.progress
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run writes blocks until the recording is closed or fails.
func (w *Writer) run() {
	defer close(w.done)
	defer w.timer.Stop()
	var block, spare []byte
	var synced time.Time
	for range w.wake {
		w.mu.Lock()
		w.armed = false
		w.mask.tick(w.st.cfg.Now())
		closing, lacking := w.closing, w.lacking != ""
		if closing {
			w.mask.flush()
		}
		payload, mark := w.buf, w.tot.Items
		w.buf, spare = spare, nil
		failed := w.err != nil
		w.mu.Unlock()
		// A busy session has two buffers that take turns; a quiet one none.
		if len(payload) >= chunkSize/2 {
			spare = payload[:0]
		}

		if failed {
			w.finish(true)
			return
		}
		for len(payload) > 0 {
			// A block holds whole items; what waited longer is split.
			part, rest := splitItems(payload)
			payload = rest
			if w.stored && len(part) >= chunkSize/2 {
				block = w.chain.sealBody(block[:0], typeData, packAs(bodyStored, part))
			} else {
				block = w.chain.seal(block[:0], typeData, part)
			}
			if !w.write(block) {
				w.finish(true)
				return
			}
			w.mu.Lock()
			w.tot.Blocks++
			w.mu.Unlock()
		}
		if closing {
			w.finish(lacking)
			return
		}
		w.mu.Lock()
		w.progressLocked()
		dirty := !w.oldest.IsZero()
		w.mu.Unlock()

		if dirty && time.Since(synced) >= w.syncAfter {
			at := time.Now()
			err := w.st.sync(w.file)
			synced = time.Now()
			w.mu.Lock()
			if err != nil {
				w.failLocked(err)
			} else {
				w.kept, w.keptSize, w.keptBlocks, w.oldest = mark, w.size, w.tot.Blocks, at
				if len(w.buf) == 0 {
					w.oldest = time.Time{}
				}
			}
			w.progressLocked()
			w.mu.Unlock()
		}
		w.mu.Lock()
		if w.mask.waiting() || !w.oldest.IsZero() {
			w.armLocked()
		}
		w.mu.Unlock()
	}
}

// write appends b to the file.
func (w *Writer) write(b []byte) bool {
	n, err := w.file.Write(b)
	w.sum.Write(b[:n])
	w.mu.Lock()
	defer w.mu.Unlock()
	w.size += int64(n)
	if err != nil {
		w.failLocked(err)
		return false
	}
	return w.err == nil
}

// finish ends the file, with the end mark unless the recording failed or lacks
// its end.
func (w *Writer) finish(without bool) {
	if !without {
		w.mu.Lock()
		t := w.tot
		t.DurationUS = w.last.Microseconds()
		t.ClosedUS = w.st.cfg.Now().UnixMicro()
		w.mu.Unlock()
		end, err := json.Marshal(t)
		if err == nil && w.write(w.chain.seal(nil, typeEnd, end)) {
			err = w.st.sync(w.file)
		}
		if err != nil {
			w.mu.Lock()
			w.failLocked(err)
			w.mu.Unlock()
		}
	}
	err := w.file.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.failLocked(err)
	}
	if w.err == nil {
		w.kept = w.tot.Items
	}
	w.progressLocked()
}

// Close completes the recording (end mark; the index follows in the
// background). Without it the recording is playable and reported as
// incomplete. Idempotent; it returns the error the recording failed with.
func (w *Writer) Close() error {
	w.mu.Lock()
	first := !w.closing
	w.closing = true
	w.mu.Unlock()
	w.signal()
	// Storage that hangs must not hang the session that closes.
	t := time.NewTimer(2 * stallAfter)
	defer t.Stop()
	select {
	case <-w.done:
	case <-t.C:
		w.mu.Lock()
		defer w.mu.Unlock()
		err := w.failLocked(ErrStalled)
		if first {
			w.st.closed(context.Background(), w, w.recordLocked())
		}
		return err
	}
	w.mu.Lock()
	rec, err := w.recordLocked(), w.err
	w.mu.Unlock()
	if first {
		w.st.closed(context.Background(), w, rec)
	}
	return err
}

// ended is what the row is told about a finished file.
type ended struct {
	id       string
	status   Status
	at       time.Time
	duration time.Duration
	size     int64
	blocks   int64
	sha256   string
	problem  string
	conn     string
	user     string
}

func (w *Writer) recordLocked() ended {
	e := ended{
		id: w.ID, status: Complete, at: w.st.cfg.Now(), duration: w.last, size: w.size, blocks: int64(w.tot.Blocks),
		conn: w.meta.ConnectionID, user: w.meta.UserName,
	}
	switch {
	case w.err != nil:
		e.status, e.problem = Incomplete, "the recording could not be written to its end"
	case w.lacking != "":
		e.status, e.problem = Incomplete, w.lacking
	default:
		e.sha256 = hex.EncodeToString(w.sum.Sum(nil))
	}
	return e
}

// sync forces f to disk, a bounded number of files at a time.
func (s *Store) sync(f *os.File) error {
	s.syncs <- struct{}{}
	defer func() { <-s.syncs }()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync recording: %w", err)
	}
	return nil
}

// newWriter makes a writer that goes on at the end of f; run starts it.
func newWriter(s *Store, id string, m Meta, f *os.File, c *chain, started time.Time) *Writer {
	w := &Writer{
		ID: id, st: s, meta: m, file: f, chain: c, sum: sha256.New(), started: started,
		wake: make(chan struct{}, 1), done: make(chan struct{}), progress: make(chan struct{}),
		flushAfter: flushAfter, syncAfter: syncAfter,
	}
	if m.Kind == KindWeb {
		w.flushAfter, w.syncAfter, w.stored = webFlushAfter, webSyncAfter, true
	}
	w.timer = time.AfterFunc(time.Hour, w.signal)
	w.timer.Stop()
	w.mask.emit = func(p []byte) {
		w.tot.Input += int64(len(p))
		w.addLocked(ItemInput, p)
	}
	return w
}

// splitItems cuts a payload that grew beyond a block at an item's start; the
// rest begins with its own time.
func splitItems(p []byte) (part, rest []byte) {
	if len(p) <= 2*chunkSize {
		return p, nil
	}
	us, n := binary.Uvarint(p)
	i := n
	for i < len(p) {
		delta, a := binary.Uvarint(p[i+1:])
		size, b := binary.Uvarint(p[i+1+a:])
		end := i + 1 + a + b + int(size)
		if end > 2*chunkSize && i > n {
			break
		}
		us += delta
		i = end
	}
	if i >= len(p) {
		return p, nil
	}
	return p[:i], append(binary.AppendUvarint(nil, us), p[i:]...)
}

// cut shortens s to at most n bytes without splitting a rune.
func cut(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}
