package recording

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"caponier/core/internal/db"
)

// Videos are made on demand, one after another. The list of them is in memory
// of the core that was asked; a finished one lies beside the recordings,
// encrypted under a key that is nowhere else, and is removed after an hour. A
// core that stops forgets the keys: what it leaves cannot be read any more and
// is removed as a stray.
const (
	kindExport = "export"
	// exportFor is how long a finished video can be fetched.
	exportFor = time.Hour
	// maxExports and maxOwnExports bound those that wait, run or can be fetched.
	maxExports    = 50
	maxOwnExports = 5
)

// Export is a video that is being made or can be fetched.
type Export struct {
	ID        string    `json:"id"`
	Recording string    `json:"recording_id"`
	Format    Format    `json:"format" enum:"webm,mp4"`
	From      float64   `json:"from"`
	To        float64   `json:"to"`
	Events    bool      `json:"events"`
	State     string    `json:"state" enum:"waiting,running,done,failed"`
	Progress  float64   `json:"progress" doc:"0 to 1"`
	Error     string    `json:"error,omitempty"`
	Size      int64     `json:"size_bytes,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero" doc:"when a finished video is removed"`

	user   string
	clip   clip
	key    []byte
	stored time.Time
	cancel context.CancelFunc
}

// errTooMany: the bounds on exports.
var errTooMany = errors.New("too many videos are being made or kept")

// export puts a video on the list.
func (s *Store) export(user string, r *Recording, c clip) (Export, error) {
	s.mu.Lock()
	own := 0
	for _, x := range s.exports {
		if x.user == user {
			own++
		}
	}
	if own >= maxOwnExports || len(s.exports) >= maxExports {
		s.mu.Unlock()
		return Export{}, errTooMany
	}
	x := &Export{
		ID: db.NewID("rfl_"), Recording: r.ID, Format: c.format, From: c.from.Seconds(), To: c.to.Seconds(), Events: c.events,
		State: "waiting", user: user, clip: c,
	}
	s.exports = append(s.exports, x)
	out := *x
	s.mu.Unlock()
	select {
	case s.toExport <- struct{}{}:
	default:
	}
	return out, nil
}

// exportOf returns a user's export of a recording.
func (s *Store) exportOf(user, recordingID, id string) (Export, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.exports {
		if x.ID == id && x.user == user && x.Recording == recordingID {
			return *x, true
		}
	}
	return Export{}, false
}

// dropExport ends and forgets an export.
func (s *Store) dropExport(id string) error {
	s.mu.Lock()
	var gone *Export
	for i, x := range s.exports {
		if x.ID == id {
			gone = x
			s.exports = append(s.exports[:i:i], s.exports[i+1:]...)
			break
		}
	}
	stored := gone != nil && gone.State == "done"
	if gone != nil && gone.cancel != nil {
		gone.cancel()
	}
	s.mu.Unlock()
	if !stored {
		return nil
	}
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	return ignoreMissing(root.Remove(fileName(gone.ID, kindExport, gone.stored)))
}

// runExports makes the videos that wait, one at a time, until ctx ends. It
// removes what is too old, and at its end everything.
func (s *Store) runExports(ctx context.Context) error {
	t := time.NewTicker(time.Minute)
	defer t.Stop()
	for {
		for x := s.nextExport(); x != nil && ctx.Err() == nil; x = s.nextExport() {
			s.runExport(ctx, x)
		}
		if err := s.dropExports(ctx.Err() != nil); err != nil {
			s.cfg.Log.Error("remove videos", "err", err)
		}
		select {
		case <-ctx.Done():
			return s.dropExports(true)
		case <-s.toExport:
		case <-t.C:
		}
	}
}

// nextExport takes the first that waits.
func (s *Store) nextExport() *Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.exports {
		if x.State == "waiting" {
			x.State = "running"
			return x
		}
	}
	return nil
}

// dropExports removes finished ones that are too old, or all.
func (s *Store) dropExports(all bool) error {
	s.mu.Lock()
	var due []string
	for _, x := range s.exports {
		if all || !x.ExpiresAt.IsZero() && s.cfg.Now().After(x.ExpiresAt) {
			due = append(due, x.ID)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, id := range due {
		errs = append(errs, s.dropExport(id))
	}
	return errors.Join(errs...)
}

func (s *Store) runExport(ctx context.Context, x *Export) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	x.cancel = cancel
	s.mu.Unlock()
	size, key, stored, err := s.tryExport(ctx, x)
	s.mu.Lock()
	x.ExpiresAt = s.cfg.Now().Add(exportFor)
	listed := false
	for _, y := range s.exports {
		listed = listed || y == x
	}
	if err != nil {
		x.State, x.Error = "failed", videoProblem(err)
	} else {
		s.metrics.videos.Inc()
		x.State, x.Progress, x.Size, x.key, x.stored = "done", 1, size, key, stored
	}
	s.mu.Unlock()
	switch {
	case err != nil && ctx.Err() == nil:
		s.metrics.lostVideos.Inc()
		s.cfg.Log.Warn("video not made", "recording", x.Recording, "err", err)
	case err == nil && !listed: // cancelled in the last moment
		root, err := s.open()
		if err == nil {
			err = errors.Join(ignoreMissing(root.Remove(fileName(x.ID, kindExport, stored))), root.Close())
		}
		if err != nil {
			s.cfg.Log.Error("remove video", "err", err)
		}
	}
}

// tryExport is makeExport for a goroutine of its own: what it decodes was sent
// by somebody's browser, and nothing in it may end core.
func (s *Store) tryExport(ctx context.Context, x *Export) (size int64, key []byte, stored time.Time, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.cfg.Log.Error("video not made", "recording", x.Recording, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("the recording cannot be shown")
		}
	}()
	return s.makeExport(ctx, x)
}

// makeExport makes the video and stores it sealed.
func (s *Store) makeExport(ctx context.Context, x *Export) (size int64, key []byte, stored time.Time, err error) {
	fail := func(err error) (int64, []byte, time.Time, error) { return 0, nil, time.Time{}, err }
	r, err := s.Get(ctx, s.cfg.DB, x.Recording)
	if err != nil {
		return fail(err)
	}
	f, err := s.openFile(r.ID, kindRec, r.StartedAt)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	v, err := s.view(ctx, r, f)
	if err != nil {
		return fail(err)
	}
	video, err := memory("caponier-export")
	if err != nil {
		return fail(err)
	}
	defer video.Close()
	err = s.makeVideo(ctx, v, f, video, x.clip, func(part float64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		x.Progress = min(part, 0.99)
	})
	if err != nil {
		return fail(err)
	}
	if _, err := video.Seek(0, io.SeekStart); err != nil {
		return fail(err)
	}
	key = make([]byte, keySize)
	rand.Read(key)
	stored = s.cfg.Now()
	size, err = s.storeSealed(ctx, x.ID, kindExport, stored, key, video)
	return size, key, stored, err
}

// storeSealed writes a file of our format with the content of in.
func (s *Store) storeSealed(ctx context.Context, id, kind string, at time.Time, key []byte, in io.Reader) (size int64, err error) {
	root, err := s.open()
	if err != nil {
		return 0, err
	}
	defer root.Close()
	if err := s.checkSpace(); err != nil {
		return 0, err
	}
	out, c, _, err := s.beginWith(root, id, kind, version, at, key, nil)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(out, 4*chunkSize)
	buf, blocks := make([]byte, chunkSize), uint64(0)
	for {
		n, rerr := io.ReadFull(ctxReader{ctx, in}, buf)
		if n > 0 {
			w.Write(c.sealBody(nil, typeFile, packAs(bodyStored, buf[:n]))) // errors come with Flush
			size, blocks = size+int64(n), blocks+1
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break
		}
		if rerr != nil {
			err = rerr
			break
		}
	}
	if err == nil {
		var end []byte
		if end, err = json.Marshal(totals{Blocks: blocks, Output: size}); err == nil {
			w.Write(c.seal(nil, typeEnd, end))
			err = w.Flush()
		}
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return 0, errors.Join(fmt.Errorf("store video: %w", err), ignoreMissing(root.Remove(fileName(id, kind, at))))
	}
	return size, nil
}

// copyExport writes a finished video to w.
func (s *Store) copyExport(ctx context.Context, w io.Writer, x Export) error {
	in, err := s.openFile(x.ID, kindExport, x.stored)
	if err != nil {
		return err
	}
	defer in.Close()
	return copySealed(ctx, w, in, x.ID, kindExport, x.Size, func() ([]byte, error) { return append([]byte(nil), x.key...), nil })
}

// copySealed writes the content of a file of our format to w. What it has
// written when it fails is authentic but not whole.
func copySealed(ctx context.Context, w io.Writer, in *os.File, id, kind string, want int64, keyOf func() ([]byte, error)) error {
	r := bufio.NewReaderSize(ctxReader{ctx, in}, 128<<10)
	h, raw, err := readHead(r)
	if err != nil {
		return err
	}
	if h.ID != id || h.Kind != kind {
		return &DamageError{Why: "it belongs to another file"}
	}
	key, err := keyOf()
	if err != nil {
		return err
	}
	defer clear(key)
	c, err := newChain(key, kind, raw)
	if err != nil {
		return err
	}
	var size int64
	for {
		typ, payload, _, err := c.open(r)
		if err != nil {
			return fmt.Errorf("read file %s: %w", id, err)
		}
		if typ == typeEnd {
			if size != want {
				return &DamageError{Block: int(c.n), Why: "the file is not whole"}
			}
			return nil
		}
		if typ != typeFile {
			return &DamageError{Block: int(c.n), Why: "it has an unknown type"}
		}
		n, err := w.Write(payload)
		size += int64(n)
		if err != nil {
			return err
		}
	}
}
