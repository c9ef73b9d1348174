package recording

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Run does the room's periodic work until ctx ends: recordings left open by a
// crash are marked incomplete, finished ones indexed, expired ones removed,
// and complete ones read through from time to time.
func (s *Store) Run(ctx context.Context) error {
	var videos sync.WaitGroup
	defer videos.Wait()
	videos.Go(func() {
		if err := s.runExports(ctx); err != nil {
			s.cfg.Log.Error("remove videos", "err", err)
		}
	})
	t := time.NewTicker(s.cfg.Every)
	defer t.Stop()
	retry := time.NewTicker(2 * time.Second)
	defer retry.Stop()
	live := time.NewTicker(checkpointEvery)
	defer live.Stop()
	recovered, began := false, time.Now()
	var failing error
	for all := true; ; {
		err := s.saveEnded(ctx)
		if err == nil && !recovered {
			recovered, err = s.recover(ctx, time.Since(began) < resumeWithin)
		}
		if err == nil {
			err = s.checkpoint(ctx)
		}
		if err == nil {
			err = s.indexClosed(ctx)
		}
		if err == nil && all {
			err = errors.Join(s.indexOld(ctx), s.expire(ctx), s.verifyOld(ctx), s.dropTickets(ctx), s.dropStrays(ctx))
		}
		switch {
		case ctx.Err() != nil:
			return s.lastSave()
		case err != nil && failing == nil:
			s.cfg.Log.Error("recording jobs failed; tried again", "err", err)
		}
		failing = err
		all = false
		select {
		case <-ctx.Done():
			return s.lastSave()
		case <-s.wake:
		case <-t.C:
			all = true
		case <-live.C:
		case <-s.retry(retry.C, failing != nil):
		}
	}
}

// retry gives the retry ticker while something waits.
func (s *Store) retry(c <-chan time.Time, failing bool) <-chan time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if failing || len(s.unsaved) > 0 {
		return c
	}
	return nil
}

// lastSave writes what is finished when the jobs end.
func (s *Store) lastSave() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return s.saveEnded(ctx)
}

// ours reports whether a recording is written, or waits to be saved, here.
func (s *Store) ours(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ours := s.writers[id]
	for _, e := range s.unsaved {
		ours = ours || e.id == id
	}
	return ours
}

// recover marks recordings incomplete that an earlier run of this core left
// open. Those of web sessions may be resumed: while early, they wait. done says
// that none is left.
func (s *Store) recover(ctx context.Context, early bool) (done bool, err error) {
	left, err := s.list(ctx, s.cfg.DB, leftSQL, s.cfg.CoreID)
	if err != nil {
		return false, err
	}
	done = true
	for _, r := range left {
		if s.ours(r.ID) {
			continue
		}
		if early && r.Kind == KindWeb {
			done = false
			continue
		}
		e := ended{id: r.ID, status: Incomplete, at: s.cfg.Now(), conn: r.ConnectionID, user: r.UserName}
		state, size, sum, err := s.examine(ctx, r)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			e.status, e.problem = Damaged, "the file is missing"
		case err != nil:
			return false, fmt.Errorf("recover recording %s: %w", r.ID, err)
		default:
			e.status, e.problem = state.Status, state.Text
			e.duration, e.blocks, e.size, e.sha256 = state.Duration, int64(state.Blocks), size, sum
			switch {
			case state.Status == Complete:
				e.problem = "" // the end mark was written, only the row was not
			case state.Status == Incomplete && e.blocks < r.Blocks:
				e.status, e.problem = Damaged, fmt.Sprintf("truncated: %d of at least %d blocks", e.blocks, r.Blocks)
			}
		}
		if s.ours(r.ID) {
			continue // resumed meanwhile
		}
		if err := s.saveOne(ctx, e); err != nil {
			return false, fmt.Errorf("recover recording %s: %w", r.ID, err)
		}
		s.cfg.Log.Info("recording left open by an earlier run", "recording", r.ID, "status", string(e.status))
	}
	return done, nil
}

// examine reads a recording through. A damaged file is no error.
func (s *Store) examine(ctx context.Context, r *Recording) (Integrity, int64, string, error) {
	f, err := s.openFile(r.ID, kindRec, r.StartedAt)
	if err != nil {
		return Integrity{}, 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	var size counter
	in := io.TeeReader(ctxReader{ctx, f}, io.MultiWriter(h, &size))
	x, err := newReader(in, func(hd head) ([]byte, error) {
		if hd.ID != r.ID || hd.Kind != kindRec {
			return nil, &DamageError{Why: "it belongs to another recording"}
		}
		return s.key(r.ID, r.sealedKey)
	})
	if d, ok := errors.AsType[*DamageError](err); ok {
		return Integrity{Status: Damaged, Text: d.Error()}, int64(size), "", nil
	} else if err != nil {
		return Integrity{}, 0, "", err
	}
	state, err := x.drain()
	if err != nil {
		return Integrity{}, 0, "", err
	}
	// The rest of a damaged file counts for its hash too.
	if _, err := io.Copy(io.Discard, x.r); err != nil {
		return Integrity{}, 0, "", err
	}
	return state, int64(size), hex.EncodeToString(h.Sum(nil)), nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

// ctxReader ends a long read when ctx ends.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Verify reads a recording through, compares it with its row and keeps the
// result. A recording that was complete and is not any more is damaged,
// whatever is missing, and audited.
func (s *Store) Verify(ctx context.Context, id string) (Integrity, error) {
	r, err := s.Get(ctx, s.cfg.DB, id)
	if err != nil {
		return Integrity{}, err
	}
	switch r.Status {
	case Expired:
		return Integrity{Status: Expired, Text: "removed by retention"}, nil
	case Live:
		return Integrity{Status: Live, Text: "being recorded"}, nil
	}
	state, size, sum, err := s.examine(ctx, r)
	if errors.Is(err, fs.ErrNotExist) {
		state, err = Integrity{Status: Damaged, Text: "the file is missing"}, nil
	}
	if err != nil {
		return Integrity{}, fmt.Errorf("verify recording %s: %w", id, err)
	}
	status := state.Status
	wasWhole := r.Status == Complete || r.Status == Damaged && r.SHA256 != ""
	if wasWhole && status == Incomplete {
		status = Damaged
		state.Status = Damaged
		state.Text = fmt.Sprintf("truncated: %d of %d bytes; %s", size, r.Size, state.Text)
	}
	if status == Complete && r.SHA256 != "" && r.SHA256 != sum {
		status, state.Status, state.Text = Damaged, Damaged, "the file is not the one that was recorded"
	}
	problem := state.Text
	if status == Complete {
		problem = ""
	}
	err = s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, verifiedSQL, id, s.cfg.Now().UnixMicro(), string(status), problem); err != nil {
			return err
		}
		if status != Damaged || r.Status == Damaged {
			return nil
		}
		if err := api.Notify(ctx, tx, TopicRecording, id, r.Group); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.RecordingDamaged, Outcome: audit.Failed, Actor: audit.System, Group: r.Group, Connection: r.ConnectionID,
			Object: audit.Object{Kind: "recording", ID: id}, Fields: map[string]string{"problem": problem},
		})
	})
	if err != nil {
		return Integrity{}, fmt.Errorf("verify recording %s: %w", id, err)
	}
	if status == Damaged && r.Status != Damaged {
		s.metrics.damaged.Inc()
		s.cfg.Log.Error("recording is damaged", "recording", id, "problem", problem)
	}
	return state, nil
}

// Bounds of one pass of the integrity job.
const (
	verifyEach  = 7 * 24 * time.Hour
	verifyBatch = 50
)

// verifyOld reads through recordings not looked at for a week.
func (s *Store) verifyOld(ctx context.Context) error {
	old, err := s.list(ctx, s.cfg.DB, unverifiedSQL, s.cfg.Now().Add(-verifyEach).UnixMicro(), verifyBatch)
	if err != nil {
		return err
	}
	for _, r := range old {
		if _, err := s.Verify(ctx, r.ID); err != nil {
			return err
		}
	}
	return nil
}

// indexClosed builds the index of recordings finished here.
func (s *Store) indexClosed(ctx context.Context) error {
	for {
		s.mu.Lock()
		if len(s.toIndex) == 0 {
			s.mu.Unlock()
			return nil
		}
		id := s.toIndex[0]
		s.toIndex = s.toIndex[1:]
		s.mu.Unlock()
		r, err := s.Get(ctx, s.cfg.DB, id)
		if err != nil {
			return err
		}
		if err := s.indexOne(ctx, r); err != nil {
			return err
		}
	}
}

// indexOld builds indexes that a stopped core left out, of the last 30 days.
func (s *Store) indexOld(ctx context.Context) error {
	rs, err := s.list(ctx, s.cfg.DB, unindexedSQL, false, s.cfg.Now().Add(-30*24*time.Hour).UnixMicro())
	if err != nil {
		return err
	}
	for _, r := range rs {
		if err := s.indexOne(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// indexOne builds one index. A recording that cannot be read stays without: it
// is searched by reading what can be read, and found by the integrity job.
func (s *Store) indexOne(ctx context.Context, r *Recording) error {
	if r.Status != Complete && r.Status != Incomplete {
		return nil
	}
	err := s.buildIndex(ctx, r)
	if _, damaged := errors.AsType[*DamageError](err); damaged || errors.Is(err, fs.ErrNotExist) {
		s.cfg.Log.Warn("recording not indexed", "recording", r.ID, "err", err)
		return nil
	}
	return err
}

// expire removes recordings whose retention is over: files first, then the
// row says so; a removed file is no error when the row was not written.
func (s *Store) expire(ctx context.Context) error {
	due, err := s.list(ctx, s.cfg.DB, dueSQL, s.cfg.Now().UnixMicro())
	if err != nil {
		return err
	}
	for _, r := range due {
		if err := s.expireOne(ctx, r); err != nil {
			return fmt.Errorf("expire recording %s: %w", r.ID, err)
		}
	}
	return nil
}

func (s *Store) expireOne(ctx context.Context, r *Recording) error {
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	files, err := s.files(ctx, s.cfg.DB, r.ID)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := ignoreMissing(root.Remove(fileName(f.ID, kindFile, f.StoredAt))); err != nil {
			return err
		}
	}
	for _, kind := range []string{kindIndex, kindRec} {
		if err := ignoreMissing(root.Remove(fileName(r.ID, kind, r.StartedAt))); err != nil {
			return err
		}
	}
	err = s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, expireSQL, r.ID, false); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, expireFilesSQL, r.ID); err != nil {
			return err
		}
		if err := api.Notify(ctx, tx, TopicRecording, r.ID, r.Group); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.RecordingExpired, Outcome: audit.OK, Actor: audit.System, Group: r.Group, Connection: r.ConnectionID,
			Object: audit.Object{Kind: "recording", ID: r.ID}, Fields: map[string]string{"sha256": r.SHA256},
		})
	})
	if err != nil {
		return err
	}
	s.metrics.expired.Inc()
	return s.forget(r.ID)
}

// forget drops what memory holds of a recording that is gone.
func (s *Store) forget(id string) error {
	s.mu.Lock()
	delete(s.maps, id)
	s.shots = slices.DeleteFunc(s.shots, func(x shot) bool { return strings.HasPrefix(x.key, id+" ") })
	var videos []string
	for _, x := range s.exports {
		if x.Recording == id {
			videos = append(videos, x.ID)
		}
	}
	s.mu.Unlock()
	var errs []error
	for _, v := range videos {
		errs = append(errs, s.dropExport(v))
	}
	return errors.Join(errs...)
}

// strayAge is how long a copy may lie without a row: a core that still writes
// it touches it far more often, one that died does not.
const strayAge = 24 * time.Hour

// dropStrays removes copies of transferred files that a core died over: their
// content is sealed under a key that only it had, and no row names them. It
// looks at this month and the last.
func (s *Store) dropStrays(ctx context.Context) error {
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	now := s.cfg.Now().UTC()
	first := time.Date(now.Year(), now.Month()-1, 1, 0, 0, 0, 0, time.UTC)
	known, err := s.fileIDs(ctx, first.Add(-strayAge))
	if err != nil {
		return err
	}
	for _, dir := range []string{monthDir(first), monthDir(now)} {
		entries, err := fs.ReadDir(root.FS(), dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look for stray copies: %w", err)
		}
		for _, e := range entries {
			id, isCopy := strings.CutSuffix(e.Name(), ".cfile")
			_, isVideo := strings.CutSuffix(e.Name(), ".cvideo")
			if !isVideo && (!isCopy || known[id]) {
				continue
			}
			st, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) || err == nil && now.Sub(st.ModTime()) < strayAge {
				continue
			}
			if err != nil {
				return fmt.Errorf("look for stray copies: %w", err)
			}
			if err := ignoreMissing(root.Remove(dir + "/" + e.Name())); err != nil {
				return fmt.Errorf("remove stray copy: %w", err)
			}
			s.cfg.Log.Warn("removed a copy of a transferred file or a video that a core died over", "file", e.Name())
		}
	}
	return nil
}

// fileIDs are the copies with a row since t.
func (s *Store) fileIDs(ctx context.Context, t time.Time) (map[string]bool, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, filesSinceSQL, t.UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("list copies: %w", err)
	}
	defer rows.Close()
	ids := map[string]bool{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("list copies: %w", err)
		}
		ids[id] = true
	}
	return ids, rows.Err()
}
