package tunnel

import (
	"sync"
	"time"

	"caponier/shared/wire"
)

const (
	// copyBelow is the length up to which data is copied next to control
	// frames instead of getting a websocket frame of its own.
	copyBelow = 2 << 10
	// quantum is how much a stream may send at once before it counts as bulky,
	// and quantumPer how long it takes to earn that again (1.6 MB/s).
	quantum    = 32 << 10
	quantumPer = 20 * time.Millisecond
)

// batch is what one write sends. Pieces are sent in order; each lies in a
// chunk of a stream or in one of the shared small buffers.
type batch struct {
	pieces []piece
	bytes  int
	chunks []*chunk // to be freed once written
	small  *chunk   // gathers short frames; its open piece is the last one
	open   bool
}

func (b *batch) reset() {
	for i, c := range b.chunks {
		c.free()
		b.chunks[i] = nil
	}
	clear(b.pieces)
	b.chunks, b.pieces = b.chunks[:0], b.pieces[:0]
	b.bytes, b.small, b.open = 0, nil, false
}

// add copies head and body, which travel together, into a small buffer.
func (b *batch) add(head, body []byte) {
	n := len(head) + len(body)
	if b.small == nil || len(b.small.room()) < n+headroom {
		b.small = newChunk(max(n+headroom, mediumChunk-headroom))
		b.chunks = append(b.chunks, b.small)
		b.open = false
	}
	if !b.open {
		at := b.small.end
		if at > headroom {
			at += headroom // the previous piece ends where our headers go
		}
		b.small.end = at
		b.pieces = append(b.pieces, piece{b.small.buf, at, at})
		b.open = true
	}
	b.small.end += copy(b.small.buf[b.small.end:], head)
	b.small.end += copy(b.small.buf[b.small.end:], body)
	b.pieces[len(b.pieces)-1].end = b.small.end
	b.bytes += n
}

// addChunk sends all of c with a frame header in its headroom, and takes it over.
func (b *batch) addChunk(id uint32, c *chunk) {
	n := c.len()
	wire.PutHeader(c.buf[c.off-wire.FrameHeader:], wire.Header{Type: wire.FrameData, Length: n, Stream: id})
	b.pieces = append(b.pieces, piece{c.buf, c.off - wire.FrameHeader, c.end})
	b.chunks = append(b.chunks, c)
	b.bytes += n + wire.FrameHeader
	b.open = false
}

// addControl copies control frames, which may be cut anywhere.
func (b *batch) addControl(p []byte) {
	for len(p) > 0 {
		n := min(len(p), copyBelow)
		b.add(p[:n], nil)
		p = p[n:]
	}
}

var batchPool = sync.Pool{New: func() any { return new(batch) }}

// writeLoop sends batches until the session ends or has said goodbye.
func (s *muxSession) writeLoop() {
	defer close(s.flushed)
	for {
		select {
		case <-s.wake:
		case <-s.done:
			return
		}
		last, err := s.writeBatches()
		if err != nil {
			s.workers.Go(func() { s.failUnlessTold(err) })
			return
		}
		if last {
			return
		}
	}
}

// writeBatches sends all there is, unless somebody else is sending: who wakes
// the writer when through. last means that nothing more will be sent.
func (s *muxSession) writeBatches() (last bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing {
		return false, nil
	}
	b := batchPool.Get().(*batch)
	defer batchPool.Put(b)
	for {
		if s.broken != nil {
			return false, s.broken
		}
		s.writing = true
		if s.pending {
			s.mu.Unlock()
			err = s.eager.flush()
			s.mu.Lock()
			s.pending = false
		}
		if err == nil {
			if last = s.pickLocked(b, batchBytes); len(b.pieces) == 0 {
				s.writing = false
				return last, nil
			}
			s.mu.Unlock()
			s.out.Add(uint64(b.bytes))
			err = s.link.writePieces(b.pieces)
			b.reset()
			s.mu.Lock()
		}
		if err != nil {
			return false, err // and nobody else writes any more
		}
		s.writing = false
	}
}

// sendLocking is called with mu held and returns without. It sends what is
// queued if that needs no waiting, else it leaves it to the writer.
//
// Of several bulky streams, or beside interactive ones, none sends itself: a
// goroutine that reads and writes without ever waiting keeps its processor
// from asking the network who else is ready, for up to 10 ms.
func (s *muxSession) sendLocking() {
	if s.eager == nil || s.bulk.head != nil && s.hot.head == nil && (s.bulk.head != s.bulk.tail || s.mixed(s.now())) || s.writing || s.pending || s.broken != nil || s.goaway || len(s.control) > eagerControl {
		s.wakeLocked()
		s.mu.Unlock()
		return
	}
	b := batchPool.Get().(*batch)
	s.pickLocked(b, eagerBatch)
	if len(b.pieces) == 0 {
		s.mu.Unlock()
		batchPool.Put(b)
		return
	}
	s.writing = true
	s.mu.Unlock()
	s.out.Add(uint64(b.bytes))
	pending, err := s.eager.tryPieces(b.pieces)
	b.reset()
	batchPool.Put(b)
	s.mu.Lock()
	s.writing, s.pending, s.broken = false, pending, err
	if pending || err != nil || s.goaway || len(s.control) > 0 || s.hot.head != nil || s.bulk.head != nil {
		signal(s.wake)
	}
	s.mu.Unlock()
}

// failUnlessTold ends the session for a broken write, unless the reader finds
// the peer's reason: a peer that said goodbye and closed breaks writes too.
func (s *muxSession) failUnlessTold(err error) {
	t := time.NewTimer(goodbye)
	defer t.Stop()
	select {
	case <-s.done:
	case <-t.C:
		s.fail(err)
	}
}

// pickLocked fills b, up to about limit bytes, with the most urgent frames:
// control, then hot streams, then bulky ones in turn. It reports whether the
// session ends after b.
func (s *muxSession) pickLocked(b *batch, limit int) (last bool) {
	if len(s.control) > 0 {
		b.addControl(s.control)
		if s.control = s.control[:0]; cap(s.control) > 4<<10 {
			s.control = nil
		}
	}
	if s.goaway {
		return true
	}
	if s.mixed(s.now()) {
		limit = min(limit, mixedBatch)
	}
	for b.bytes < limit {
		st := s.hot.pop()
		if st == nil {
			if st = s.bulk.pop(); st == nil {
				break
			}
		}
		s.sendLocked(b, st)
	}
	return false
}

// sendLocked moves some of st's bytes into b and queues st again if there is more.
func (s *muxSession) sendLocked(b *batch, st *stream) {
	st.listed = false
	if c := st.outq.head; c != nil && st.credit > 0 {
		n := int(min(int64(c.len()), st.credit))
		switch {
		case n <= copyBelow || n < c.len():
			if n > copyBelow {
				// A part of a chunk goes out as a copy: the rest still lies
				// where its trailer would be masked.
				part := newChunk(n)
				part.end += copy(part.room(), c.bytes()[:n])
				b.addChunk(st.id, part)
			} else {
				var h [wire.FrameHeader]byte
				wire.PutHeader(h[:], wire.Header{Type: wire.FrameData, Length: n, Stream: st.id})
				b.add(h[:], c.bytes()[:n])
			}
			c.off += n
			st.outq.bytes -= n
			if c.len() == 0 {
				st.outq.pop().free()
			}
		default:
			b.addChunk(st.id, st.outq.pop())
		}
		s.saw(st.preface.Class, n, s.now(), &st.outTalk)
		st.credit -= int64(n)
		st.allowance -= n
		if st.outq.bytes <= sendLimit/2 {
			signal(st.wready)
		}
	}
	if st.finQueued && !st.finSent && st.outq.bytes == 0 {
		st.finSent = true
		var h [wire.FrameHeader]byte
		wire.PutHeader(h[:], wire.Header{Type: wire.FrameFin, Stream: st.id})
		b.add(h[:], nil)
		if st.finRead {
			s.forgetLocked(st)
		}
		return
	}
	if !st.sendableLocked() {
		return
	}
	if st.allowance > 0 {
		st.listed = true
		s.hot.push(st)
		return
	}
	st.listed = true
	s.bulk.push(st)
}

// scheduleLocked queues st if it has something to send that it may send; the
// caller then wakes the writer or sends. A stream that was idle begins among
// the hot ones, unless it said it is bulky.
func (s *muxSession) scheduleLocked(st *stream) {
	if st.listed || s.err != nil || !st.sendableLocked() {
		return
	}
	st.listed = true
	if st.preface.Class == wire.Bulk {
		st.allowance = 0
		s.bulk.push(st)
	} else {
		s.earnLocked(st)
		if st.allowance > 0 {
			s.hot.push(st)
		} else {
			s.bulk.push(st)
		}
	}
}

// earnLocked gives st what it earned since it was last scheduled.
func (s *muxSession) earnLocked(st *stream) {
	now := s.now()
	if earned := (now - st.earnedAt) / (int64(quantumPer) / quantum); earned > 0 {
		st.allowance = int(min(quantum, int64(max(st.allowance, 0))+earned))
		st.earnedAt = now
	}
}

// streamQueue is a FIFO linked through the streams in it.
type streamQueue struct{ head, tail *stream }

func (q *streamQueue) push(st *stream) {
	if q.tail == nil {
		q.head = st
	} else {
		q.tail.nextListed = st
	}
	q.tail = st
}

func (q *streamQueue) pop() *stream {
	st := q.head
	if st == nil {
		return nil
	}
	if q.head = st.nextListed; q.head == nil {
		q.tail = nil
	}
	st.nextListed = nil
	return st
}
