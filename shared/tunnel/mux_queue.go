package tunnel

import (
	"time"

	"caponier/shared/wire"
)

const (
	// shortPath is the round trip below which the kernel need not queue much.
	shortPath = 3 * time.Millisecond
	// mixedPath is the round trip from which queues matter little beside it.
	// It is more than shortPath because the one sample of the accepting end may
	// have been taken while the machine was busy.
	mixedPath = 20 * time.Millisecond
	// mixedFor is how long after a short interactive frame, and after a long
	// one, both kinds count as present.
	mixedFor = time.Second
	// batchBytes is about how much one write carries while only bulk runs.
	batchBytes = 128 << 10
	// eagerBatch is the same for who sends without waiting. With one whole
	// chunk on top it is still less than wireBuffer.
	eagerBatch = 48 << 10
	// eagerControl is how many bytes of control frames may be part of it.
	eagerControl = 4 << 10
	// mixedBatch is the same while somebody waits for short answers: what is
	// urgent waits for at most one batch.
	mixedBatch = 16 << 10
	// yieldAfter is how many bytes of bulk the reader may have taken in before
	// it lets the reader of a short frame run at once.
	yieldAfter = 32 << 10
)

// queueMode says what the kernel's queues under a session are set for.
type queueMode int32

const (
	queueShort queueMode = 1 << iota // the path is a short one
	queueMixed                       // interactive and bulk streams are busy
)

// queuedLink is a link whose kernel queues can be bounded.
type queuedLink interface{ boundQueues(queueMode) }

// talk is what one direction of a stream looks like.
type talk struct {
	longAt int64 // when it last had a long frame, ns since the session started
	short  int   // short frames since
}

// saw takes a data frame of n bytes into account, sent or received. Somebody
// waits on a stream that goes on in short frames; a single one is a request
// for bulk or the remainder of it.
func (s *muxSession) saw(class wire.Class, n int, now int64, t *talk) {
	if n > copyBelow {
		t.longAt, t.short = now, 0
		s.bulkAt.Store(now)
	} else {
		if t.short++; class != wire.Interactive || t.short < 3 || t.longAt != 0 && now-t.longAt < int64(mixedFor) {
			return
		}
		s.smallAt.Store(now)
	}
	s.tuneQueues(now)
}

// mixed reports whether interactive and bulk streams are both busy, on a path
// short enough for queues to matter.
func (s *muxSession) mixed(now int64) bool {
	if low := s.minRTT.Load(); low == 0 || low >= int64(mixedPath) {
		return false
	}
	small, bulk := s.smallAt.Load(), s.bulkAt.Load()
	return small != 0 && bulk != 0 && now-small < int64(mixedFor) && now-bulk < int64(mixedFor)
}

// tuneQueues bounds what the kernel queues: bytes that lie there are what an
// urgent frame waits behind.
func (s *muxSession) tuneQueues(now int64) {
	var mode queueMode
	if low := s.minRTT.Load(); low != 0 && low < int64(shortPath) {
		mode |= queueShort
	}
	if s.mixed(now) {
		mode |= queueMixed
	}
	if s.queueing.Swap(int32(mode)) == int32(mode) {
		return
	}
	if l, ok := s.link.(queuedLink); ok {
		l.boundQueues(mode)
	}
}
