package recording

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// followPause is how often a recording being written is looked at again, when
// its writer is in another process.
const followPause = 150 * time.Millisecond

// Follower takes a recording as it is being written.
type Follower struct {
	// Item takes the next item of the timeline.
	Item func(Item) error
	// Caught is called each time everything there is so far was taken. May be nil.
	Caught func() error
}

// Follow calls each for every item of a recording, from its start, and goes on
// while it is being written, on whatever core, until it is closed or ctx ends.
// What is written reaches the follower within about a second.
func (s *Store) Follow(ctx context.Context, r *Recording, each func(Item) error) (Integrity, error) {
	return s.FollowLive(ctx, r, Follower{Item: each})
}

// FollowLive is Follow with more to be told. A recording written by this
// process is written out at once while it is followed: what happens reaches the
// follower within some 50 ms.
func (s *Store) FollowLive(ctx context.Context, r *Recording, to Follower) (Integrity, error) {
	f, err := s.openFile(r.ID, kindRec, r.StartedAt)
	if err != nil {
		return Integrity{}, err
	}
	defer f.Close()
	tail := &tailReader{f: f}
	in := bufio.NewReaderSize(tail, 64<<10)
	x, err := newReader(in, func(h head) ([]byte, error) {
		if h.ID != r.ID || h.Kind != kindRec {
			return nil, &DamageError{Why: "it belongs to another recording"}
		}
		return s.key(r.ID, r.sealedKey)
	})
	if err != nil {
		return Integrity{}, err
	}
	x.r = in
	t := time.NewTicker(followPause)
	defer t.Stop()
	s.mu.Lock()
	writer := s.writers[r.ID]
	s.mu.Unlock()
	if writer != nil {
		defer writer.hasten()()
	}
	live, pos := true, tail.pos-int64(in.Buffered())
	for {
		progress := writer.taken()
		typ, payload, n, err := peekBlock(x.chain, f, pos)
		switch {
		case errors.Is(err, errCut) && live:
			// Nothing whole yet. Once the row says it is over, one more look.
			if to.Caught != nil {
				if err := to.Caught(); err != nil {
					return Integrity{}, fmt.Errorf("follow recording %s: %w", r.ID, err)
				}
			}
			select {
			case <-ctx.Done():
				return Integrity{}, ctx.Err()
			case <-progress:
				continue
			case <-t.C:
			}
			if now, err := s.Get(ctx, s.cfg.DB, r.ID); err == nil && now.Status != Live {
				live = false
			}
			continue
		case err != nil:
			return x.finishState(err)
		}
		pos += int64(n)
		if typ == typeResume {
			continue
		}
		if typ == typeEnd {
			x.blocks++
			return Integrity{Status: Complete, Text: "complete", Blocks: int(x.blocks) - 1, Duration: x.last, Seconds: x.last.Seconds()}, nil
		}
		items, derr := x.decode(payload)
		if typ != typeData || derr != nil {
			return x.finishState(&DamageError{Block: int(x.chain.n), Why: "its items are not readable"})
		}
		for _, it := range items {
			x.last = max(x.last, it.At)
			if err := to.Item(it); err != nil {
				return Integrity{}, fmt.Errorf("follow recording %s: %w", r.ID, err)
			}
		}
	}
}

func (x *Reader) finishState(err error) (Integrity, error) {
	if err := x.finish(err); !errors.Is(err, io.EOF) {
		return Integrity{}, err
	}
	return x.state, nil
}

// peekBlock opens the block at pos; when it is not whole yet, the chain stays
// where it is, so that it can be tried again.
func peekBlock(c *chain, f *os.File, pos int64) (typ byte, payload []byte, n int, err error) {
	before := *c
	typ, payload, n, err = c.open(io.NewSectionReader(f, pos, maxSealed+blockHead))
	if errors.Is(err, errCut) {
		*c = before
	}
	return typ, payload, n, err
}

// tailReader counts what was read from the start of a file.
type tailReader struct {
	f   *os.File
	pos int64
}

func (t *tailReader) Read(p []byte) (int, error) {
	n, err := t.f.ReadAt(p, t.pos)
	t.pos += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}
