package bastion

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"caponier/core/internal/recording"
)

// FileCopy takes what is transferred of one file, in the order of the file;
// *recording.FileWriter is the real one.
type FileCopy interface {
	Write(p []byte) (int, error)
	// Abandon gives the content up: what follows is only counted.
	Abandon()
	Close(ctx context.Context) (recording.File, error)
}

// Bounds of the copies of one session.
const (
	maxCopies  = 32      // files whose content is copied at once; of more only the size is kept
	maxHeld    = 1 << 20 // bytes that wait for earlier ones of their file
	heldExtra  = 64      // what a waiting piece counts beside its bytes
	maxClosing = 4       // copies being completed; one more waits
	closeLimit = 10 * time.Second
)

// copies hands transferred files to the recording of their session. Keeping a
// copy never changes or stops a transfer: what cannot be kept is listed as not
// stored. It is used under the lock of its tap.
type copies struct {
	rec Recorder
	ctx context.Context // outlives the session: what was transferred is filed
	log *slog.Logger

	open, held int
	closing    chan struct{}
	wg         sync.WaitGroup
}

func newCopies(ctx context.Context, rec Recorder, log *slog.Logger) *copies {
	return &copies{rec: rec, ctx: context.WithoutCancel(ctx), log: log, closing: make(chan struct{}, maxClosing)}
}

// fileCopy puts the pieces of one file in order. A nil one does nothing.
type fileCopy struct {
	c     *copies
	to    FileCopy
	next  int64   // offset of the byte to write next
	began bool    // something was written
	lost  bool    // the order could not be restored, or there are too many
	held  []piece // behind next, sorted
}

type piece struct {
	off  int64
	data []byte
}

// start begins the copy of one file.
func (c *copies) start(d recording.Direction, path string) *fileCopy {
	to, err := c.rec.File(c.ctx, d, path)
	if err != nil {
		c.log.Error("copy a transferred file", "err", err)
		return nil
	}
	if to == nil {
		return nil
	}
	f := &fileCopy{c: c, to: to}
	if c.open++; c.open > maxCopies {
		f.lose()
	}
	return f
}

// put takes a piece at off.
func (f *fileCopy) put(p []byte, off int64) {
	switch {
	case f == nil || len(p) == 0:
	case f.lost:
		f.write(p)
	case off == f.next:
		f.write(p)
		f.drain()
	case off < f.next:
		f.lose()
		f.write(p)
	case f.c.held+len(p)+heldExtra <= maxHeld:
		f.hold(p, off)
	case !f.began && len(f.held) > 0 && f.held[0].off <= off:
		f.resume()
		f.put(p, off)
	default:
		f.lose()
		f.write(p)
	}
}

func (f *fileCopy) write(p []byte) {
	f.began = true
	f.next += int64(len(p))
	if _, err := f.to.Write(p); err != nil {
		f.c.log.Error("copy a transferred file", "err", err)
	}
}

func (f *fileCopy) hold(p []byte, off int64) {
	at, _ := slices.BinarySearchFunc(f.held, off, func(h piece, off int64) int {
		switch {
		case h.off < off:
			return -1
		case h.off > off:
			return 1
		}
		return 0
	})
	f.c.held += len(p)
	if at > 0 && f.held[at-1].off+int64(len(f.held[at-1].data)) == off {
		f.held[at-1].data = append(f.held[at-1].data, p...)
		return
	}
	f.c.held += heldExtra
	f.held = slices.Insert(f.held, at, piece{off, slices.Clone(p)})
}

// drain writes what waited and is next now.
func (f *fileCopy) drain() {
	for len(f.held) > 0 && f.held[0].off <= f.next {
		h := f.held[0]
		if h.off < f.next {
			f.lose()
			return
		}
		f.held = f.held[1:]
		f.c.held -= len(h.data) + heldExtra
		f.write(h.data)
	}
}

// resume takes the first piece seen for the beginning: the transfer goes on
// where an earlier one was cut.
func (f *fileCopy) resume() {
	f.next = f.held[0].off
	f.drain()
}

// lose gives the content up; bytes are still counted.
func (f *fileCopy) lose() {
	f.lost = true
	f.to.Abandon()
	for _, h := range f.held {
		f.c.held -= len(h.data) + heldExtra
		f.write(h.data)
	}
	f.held = nil
}

// finish completes the copy in the background.
func (f *fileCopy) finish() {
	if f == nil {
		return
	}
	if !f.began && len(f.held) > 0 {
		f.resume()
	}
	if len(f.held) > 0 {
		f.lose() // a hole
	}
	c := f.c
	c.open--
	c.closing <- struct{}{}
	c.wg.Go(func() {
		defer func() { <-c.closing }()
		ctx, cancel := context.WithTimeout(c.ctx, closeLimit)
		defer cancel()
		if _, err := f.to.Close(ctx); err != nil {
			c.log.Error("file a transferred file", "err", err)
		}
	})
}

// wait returns when all copies are completed.
func (c *copies) wait() { c.wg.Wait() }
