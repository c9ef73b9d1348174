package recording

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Errors of ResumeWeb.
var (
	// ErrNotResumable: the recording is complete, expired or of another kind.
	ErrNotResumable = errors.New("recording cannot be resumed")
	// ErrInUse: a core writes this recording now.
	ErrInUse = errors.New("recording is being written")
)

// EventResumed is the mark on the timeline where another run of core went on.
// Its field gap_ms is how long no core was writing; nodes kept their records
// meanwhile and deliver them with the times at which they happened.
const EventResumed = "core restarted"

const (
	resumeSQL = `update recordings set status = 'recording', core_id = $2, ended_at = 0, duration = 0, sha256 = '', problem = '', indexed = $3
where id = $1 and kind = 'web' and status in ('recording', 'incomplete')`

	refusedSQL = `update recordings set status = 'damaged', ended_at = $2, problem = $3
where id = $1 and status in ('recording', 'incomplete')`

	// checkpointSQL keeps how much a live recording has on disk: a file that is
	// shorter when it is resumed was cut by somebody.
	checkpointSQL = `update recordings set size = $2, blocks = $3 where id = $1 and status = 'recording' and core_id = $4`
)

const (
	// checkpointEvery is how often the row of a live web recording follows its file.
	checkpointEvery = 2 * time.Second
	// resumeWithin is how long after a start the recordings of web sessions
	// wait to be resumed before they are called incomplete. Later they still can.
	resumeWithin = 2 * time.Minute
)

// left is what is found in the file of a web recording that was not closed.
type left struct {
	// safe is where the file may go on: the end of the last block after which
	// no record is in pieces. The chain is that of safe.
	safe    int64
	chain   chain
	tot     totals
	last    time.Duration // arrival of the last item
	sources map[string]*source
	blocks  uint64 // authentic blocks, also those after safe
}

// survey reads the file of an unfinished web recording to its end.
func survey(ctx context.Context, f *os.File, c *chain, from int64) (*left, error) {
	in := bufio.NewReaderSize(ctxReader{ctx, io.NewSectionReader(f, from, 1<<62-from)}, 256<<10)
	l := &left{safe: from, chain: *c, sources: map[string]*source{}}
	var parts assembly
	tot, pos, last := l.tot, from, l.last
	next := map[string]source{}
	for {
		typ, payload, n, err := c.open(in)
		if errors.Is(err, errCut) {
			return l, nil
		}
		if err != nil {
			return nil, err
		}
		if typ == typeEnd {
			return nil, fmt.Errorf("%w: it has its end mark", ErrNotResumable)
		}
		if typ == typeResume && !parts.open {
			pos += int64(n)
			l.safe, l.chain = pos, *c
			continue
		}
		items, err := decodeItems(payload)
		if typ != typeData || err != nil {
			return nil, &DamageError{Block: int(c.n), Why: "its items are not readable"}
		}
		l.blocks++
		tot.Blocks++
		tot.Items += uint64(len(items))
		pos += int64(n)
		if len(items) > 0 {
			last = max(last, items[len(items)-1].At)
		}
		whole, err := parts.items(items)
		if err != nil {
			return nil, &DamageError{Block: int(c.n), Why: err.Error()}
		}
		for _, it := range whole {
			if it.Source != "" {
				next[it.Source] = source{next: it.Seq + 1, kept: it.Seq + 1, last: it.At}
			}
		}
		if parts.open {
			continue
		}
		l.safe, l.chain, l.tot, l.last = pos, *c, tot, last
		for name, s := range next {
			l.sources[name] = &s
		}
		clear(next)
	}
}

// ResumeWeb goes on with a recording that a core left open when it died: what
// is authentic stays, a torn end is cut off, a mark is set, and the next block
// follows under a key of its own. A file that was edited or is shorter than it was
// is refused and the recording marked damaged.
func (s *Store) ResumeWeb(ctx context.Context, id string) (*WebWriter, error) {
	x, err := s.resumeWeb(ctx, id)
	if err != nil {
		s.metrics.refused.Inc()
		return nil, fmt.Errorf("resume recording %s: %w", id, err)
	}
	return x, nil
}

func (s *Store) resumeWeb(ctx context.Context, id string) (*WebWriter, error) {
	r, err := s.Get(ctx, s.cfg.DB, id)
	if err != nil {
		return nil, err
	}
	if r.Kind != KindWeb || r.Status != Live && r.Status != Incomplete {
		return nil, fmt.Errorf("%w: kind %s, status %s", ErrNotResumable, r.Kind, r.Status)
	}
	s.mu.Lock()
	_, busy := s.writers[id]
	s.mu.Unlock()
	if busy {
		return nil, ErrInUse
	}
	if err := s.checkSpace(); err != nil {
		return nil, err
	}
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(fileName(id, kindRec, r.StartedAt), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	w, l, err := s.reopen(ctx, r, f)
	if damage, ok := errors.AsType[*DamageError](err); ok {
		err = errors.Join(err, s.resumeRefused(ctx, r, damage))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	gap := max(s.cfg.Now().Sub(w.started.Add(l.last)), 0)
	if err := s.resumed(ctx, r, gap); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	s.start(w)
	s.metrics.resumed.Inc()
	x := &WebWriter{ID: id, w: w, sources: l.sources}
	s.cfg.Log.Info("recording goes on after a restart", "recording", id, "gap_ms", gap.Milliseconds())
	return x, x.Event(EventResumed, map[string]string{"gap_ms": strconv.FormatInt(gap.Milliseconds(), 10), "core": s.cfg.CoreID})
}

// reopen makes a writer that goes on where the file is whole.
func (s *Store) reopen(ctx context.Context, r *Recording, f *os.File) (*Writer, *left, error) {
	if err := lockFile(f); err != nil {
		return nil, nil, err
	}
	h, raw, err := readHead(io.NewSectionReader(f, 0, maxHead+64))
	if err != nil {
		return nil, nil, err
	}
	if h.ID != r.ID || h.Kind != kindRec || h.version != versionWeb {
		return nil, nil, &DamageError{Why: "it belongs to another recording"}
	}
	key, err := s.key(r.ID, r.sealedKey)
	if err != nil {
		return nil, nil, err
	}
	defer clear(key)
	c, err := newChain(key, kindRec, raw)
	if err != nil {
		return nil, nil, err
	}
	l, err := survey(ctx, f, c, int64(len(raw)))
	if err != nil {
		return nil, nil, err
	}
	if l.blocks < uint64(r.Blocks) {
		return nil, nil, &DamageError{Block: int(l.blocks) + 1, Why: fmt.Sprintf("truncated: %d of at least %d blocks", l.blocks, r.Blocks)}
	}
	if err := f.Truncate(l.safe); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	begin, err := l.chain.sealResume()
	if err != nil {
		return nil, nil, err
	}
	if _, err := f.Write(begin); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	l.safe += int64(len(begin))
	if err := s.sync(f); err != nil {
		return nil, nil, err
	}
	m := Meta{
		ConnectionID: r.ConnectionID, Kind: r.Kind, UserID: r.UserID, UserName: r.UserName, TargetID: r.TargetID,
		TargetName: r.TargetName, Account: r.Account, Width: r.Width, Height: r.Height, Title: r.Title,
	}
	w := newWriter(s, r.ID, m, f, &l.chain, r.StartedAt)
	if _, err := io.Copy(w.sum, ctxReader{ctx, io.NewSectionReader(f, 0, l.safe)}); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	w.size, w.tot, w.last, w.kept = l.safe, l.tot, l.last, l.tot.Items
	return w, l, nil
}

// lockFile keeps a second core, or an old one that wakes up, from writing the
// same file. The lock ends with the process.
func lockFile(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return ErrInUse
	} else if err != nil {
		return fmt.Errorf("%w: lock: %w", ErrStorage, err)
	}
	return nil
}

// resumed takes the row over.
func (s *Store) resumed(ctx context.Context, r *Recording, gap time.Duration) error {
	return s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		res, err := tx.ExecContext(ctx, resumeSQL, r.ID, s.cfg.CoreID, false)
		if err != nil {
			return db.Classify(err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, ErrNotResumable)
		}
		if err := tx.Notify(ctx, TopicRecording, r.ID); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.RecordingResumed, Outcome: audit.OK, Actor: audit.System, Connection: r.ConnectionID,
			Object: audit.Object{Kind: "recording", ID: r.ID},
			Fields: map[string]string{"gap_ms": strconv.FormatInt(gap.Milliseconds(), 10)},
		})
	})
}

// resumeRefused notes that the file is not the one that was written.
func (s *Store) resumeRefused(ctx context.Context, r *Recording, d *DamageError) error {
	s.metrics.damaged.Inc()
	s.cfg.Log.Error("recording is damaged", "recording", r.ID, "problem", d.Error())
	return s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		if _, err := tx.ExecContext(ctx, refusedSQL, r.ID, s.cfg.Now().UnixMicro(), d.Error()); err != nil {
			return db.Classify(err)
		}
		if err := tx.Notify(ctx, TopicRecording, r.ID); err != nil {
			return err
		}
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.RecordingDamaged, Outcome: audit.Failed, Actor: audit.System, Connection: r.ConnectionID,
			Object: audit.Object{Kind: "recording", ID: r.ID}, Fields: map[string]string{"problem": d.Error()},
		})
	})
}

// checkpoint has the rows of live web recordings follow their files.
func (s *Store) checkpoint(ctx context.Context) error {
	s.mu.Lock()
	var live []*Writer
	for _, w := range s.writers {
		if w.meta.Kind == KindWeb {
			live = append(live, w)
		}
	}
	s.mu.Unlock()
	for _, w := range live {
		w.mu.Lock()
		size, blocks, same := w.keptSize, w.keptBlocks, w.keptBlocks == w.checked
		w.mu.Unlock()
		if same {
			continue
		}
		if _, err := s.cfg.DB.ExecContext(ctx, checkpointSQL, w.ID, size, int64(blocks), s.cfg.CoreID); err != nil {
			return fmt.Errorf("keep the length of recording %s: %w", w.ID, err)
		}
		w.mu.Lock()
		w.checked = blocks
		w.mu.Unlock()
	}
	return nil
}
