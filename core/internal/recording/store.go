package recording

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/vault"
)

// TopicRecording is the topic of notes about recordings.
const TopicRecording = "recording"

// Auditor writes audit events; *audit.Log is the real one.
type Auditor interface {
	Append(ctx context.Context, tx *db.Tx, e audit.Event) error
}

// Config is what a Store needs.
type Config struct {
	DB    *db.DB
	Audit Auditor
	// Keys wraps data keys.
	Keys Keys
	// Dir is where the files are. It must exist.
	Dir string
	// CoreID is this core's id.
	CoreID string
	// RolesOf returns the ids of the roles a user holds now, for recordings
	// shared with a role. Nil: sharing shows nothing.
	RolesOf func(ctx context.Context, userID string) ([]string, error)
	// RoleGroup is the access group of a role; db.ErrNotFound for an unknown
	// one. nil: administrators of access groups share nothing.
	RoleGroup func(ctx context.Context, q db.Querier, roleID string) (string, error)
	// Limits is asked at each use; nil means DefaultLimits.
	Limits func() Limits
	// Every is the pause between passes of the retention and integrity jobs;
	// 0 means 10 minutes.
	Every time.Duration
	// FFmpeg is the program that makes videos, a path or a name in PATH; empty
	// means ffmpeg.
	FFmpeg string
	Now    func() time.Time
	Log    *slog.Logger
	// Metrics receives the room's metrics; nil means none.
	Metrics prometheus.Registerer
}

// Store makes and opens recordings. Safe for concurrent use.
type Store struct {
	cfg     Config
	metrics *metrics
	syncs   chan struct{} // bounds files being forced to disk
	wake    chan struct{} // has Run look for work; holds one token
	// toExport has runExports look for work; drawers bounds those who draw.
	toExport chan struct{}
	drawers  chan struct{}

	// mu guards everything below.
	mu      sync.Mutex
	writers map[string]*Writer // open in this process
	unsaved []ended            // not yet in the database
	toIndex []string           // closed here, not indexed yet
	maps    map[string]*webMap // of web recordings somebody looks at
	viewed  map[string]time.Time
	drawing map[string]chan struct{} // users who draw a picture now
	shots   []shot
	exports []*Export
}

// maxUnsaved bounds finished recordings that wait for the database. Beyond,
// new recordings are refused.
const maxUnsaved = 10000

// marker is a file in the recording directory: without it the directory is an
// empty mount point, not the storage.
const marker = ".caponier-recordings"

// New makes a Store on an existing directory. Call Run for its jobs.
func New(c Config) (*Store, error) {
	if c.DB == nil || c.Audit == nil || c.Keys == nil || c.Now == nil || c.Log == nil || c.Dir == "" || c.CoreID == "" {
		return nil, errors.New("recording store: DB, Audit, Keys, Dir, CoreID, Now and Log are required")
	}
	if c.Limits == nil {
		c.Limits = DefaultLimits
	}
	if c.FFmpeg == "" {
		c.FFmpeg = "ffmpeg"
	}
	if c.Every == 0 {
		c.Every = 10 * time.Minute
	}
	s := &Store{cfg: c, syncs: make(chan struct{}, 64), wake: make(chan struct{}, 1), writers: map[string]*Writer{},
		maps: map[string]*webMap{}, viewed: map[string]time.Time{}, drawing: map[string]chan struct{}{},
		toExport: make(chan struct{}, 1), drawers: make(chan struct{}, drawers)}
	s.metrics = newMetrics(c.Metrics, s)
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("recording directory: %w", err)
	}
	defer root.Close()
	if _, err := root.Stat(marker); errors.Is(err, fs.ErrNotExist) {
		err = s.adopt(root)
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("recording directory: %w", err)
	}
	return s, nil
}

// adopt marks an empty directory as recording storage. A directory without
// the marker while recordings exist is the wrong one.
func (s *Store) adopt(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("recording directory: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("recording directory: %w", err)
	}
	for _, n := range names {
		if n != "lost+found" {
			return fmt.Errorf("recording directory %s is not empty and has no file %s: name an empty directory, or create that file if it is the right one", s.cfg.Dir, marker)
		}
	}
	f, err := root.OpenFile(marker, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("recording directory: %w", err)
	}
	return f.Close()
}

// open returns the recording directory, or ErrStorage when it is not there.
func (s *Store) open() (*os.Root, error) {
	root, err := os.OpenRoot(s.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	if _, err := root.Stat(marker); err != nil {
		root.Close()
		return nil, fmt.Errorf("%w: %s has no file %s (not mounted?)", ErrStorage, s.cfg.Dir, marker)
	}
	return root, nil
}

// Check reports whether a recording could be started now; for readiness.
func (s *Store) Check(ctx context.Context) error {
	root, err := s.open()
	if err != nil {
		return err
	}
	defer root.Close()
	return s.checkSpace()
}

// Space is what is free for recordings and what there is at all, in bytes.
func (s *Store) Space() (free, total uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.cfg.Dir, &st); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	return uint64(st.Bavail) * uint64(st.Bsize), uint64(st.Blocks) * uint64(st.Bsize), nil
}

func (s *Store) checkSpace() error {
	free, _, err := s.Space()
	if err != nil {
		return err
	}
	if least := s.cfg.Limits().MinFree; int64(free) < least {
		return fmt.Errorf("%w: %d MiB free, %d MiB needed", ErrFull, free>>20, least>>20)
	}
	return nil
}

// place binds a recording's data key to its row.
func place(id string) vault.Place {
	if strings.HasPrefix(id, "rfl_") {
		return vault.Place{Table: "recording_files", Column: "sealed_key", Row: id}
	}
	return vault.Place{Table: "recordings", Column: "sealed_key", Row: id}
}

// Create starts a recording. It fails closed: no recording, no session.
func (s *Store) Create(ctx context.Context, m Meta) (*Writer, error) {
	w, err := s.create(ctx, m)
	if err != nil {
		s.metrics.refused.Inc()
		return nil, fmt.Errorf("start recording of %s: %w", m.ConnectionID, err)
	}
	return w, nil
}

func (s *Store) create(ctx context.Context, m Meta) (*Writer, error) {
	s.mu.Lock()
	full := len(s.unsaved) >= maxUnsaved
	s.mu.Unlock()
	if full {
		return nil, fmt.Errorf("%w: %d finished recordings wait for the database", ErrFull, maxUnsaved)
	}
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := s.checkSpace(); err != nil {
		return nil, err
	}
	ver := uint16(version)
	if m.Kind == KindWeb {
		ver = versionWeb
		m.Width, m.Height = min(max(m.Width, 1), maxPixels), min(max(m.Height, 1), maxPixels)
	} else {
		m.Width, m.Height = clampSize(m.Width, 80), clampSize(m.Height, 24)
	}
	m.Title = cut(m.Title, 200)
	id := db.NewID("rec_")
	now := s.cfg.Now()
	f, c, raw, sealed, err := s.begin(root, id, kindRec, ver, now)
	if err != nil {
		return nil, err
	}
	if m.Kind == KindWeb {
		err = lockFile(f)
	}
	if err == nil {
		err = s.insert(ctx, id, m, sealed, now)
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(err, root.Remove(fileName(id, kindRec, now)))
	}
	started := s.cfg.Now()
	if m.Kind == KindWeb {
		started = now.Truncate(time.Microsecond) // what a core that resumes it reads in the row
	}
	w := newWriter(s, id, m, f, c, started)
	w.size = int64(len(raw))
	w.sum.Write(raw)
	s.start(w)
	s.metrics.started.Inc()
	return w, nil
}

// start runs a writer.
func (s *Store) start(w *Writer) {
	s.mu.Lock()
	s.writers[w.ID] = w
	s.mu.Unlock()
	go w.run()
}

// begin creates a file with a fresh data key and its head, forced to disk.
func (s *Store) begin(root *os.Root, id, kind string, ver uint16, now time.Time) (*os.File, *chain, []byte, []byte, error) {
	key := make([]byte, keySize)
	rand.Read(key)
	defer clear(key)
	sealed, err := s.cfg.Keys.Seal(place(id), key)
	if err != nil {
		return nil, nil, nil, nil, fmt.Errorf("wrap data key: %w", err)
	}
	f, c, raw, err := s.beginWith(root, id, kind, ver, now, key, sealed)
	return f, c, raw, sealed, err
}

func (s *Store) beginWith(root *os.Root, id, kind string, ver uint16, now time.Time, key, sealed []byte) (*os.File, *chain, []byte, error) {
	raw, err := encodeHead(head{ID: id, Kind: kind, StartedUS: now.UnixMicro(), SealedKey: sealed, version: ver})
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := newChain(key, kind, raw)
	if err != nil {
		return nil, nil, nil, err
	}
	name := fileName(id, kind, now)
	dir := monthDir(now)
	if err := root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: %w", ErrStorage, err)
	}
	if _, err = f.Write(raw); err == nil {
		if err = f.Sync(); err == nil {
			err = syncDir(root, dir)
		}
	}
	if err != nil {
		f.Close()
		return nil, nil, nil, errors.Join(fmt.Errorf("%w: %w", ErrStorage, err), root.Remove(name))
	}
	return f, c, raw, nil
}

// syncDir forces a directory entry to disk.
func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func monthDir(t time.Time) string { return t.UTC().Format("2006-01") }

// fileName is where the file of an id is; id is one of ours (validID).
func fileName(id, kind string, started time.Time) string {
	ext := map[string]string{kindRec: ".crec", kindIndex: ".cidx", kindFile: ".cfile", kindExport: ".cvideo"}[kind]
	return monthDir(started) + "/" + id + ext
}

// openFile opens a stored file for reading.
func (s *Store) openFile(id, kind string, started time.Time) (*os.File, error) {
	if !validID(id) {
		return nil, fmt.Errorf("open recording: %w", db.ErrNotFound)
	}
	root, err := s.open()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(fileName(id, kind, started))
	if err != nil {
		return nil, fmt.Errorf("open recording %s: %w", id, err)
	}
	return f, nil
}

// key opens the data key of a stored file: the one in its row, which follows
// rotations of the KEK. The one in the head is for a lost database.
func (s *Store) key(id, sealed string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(sealed)
	if err != nil {
		return nil, fmt.Errorf("open key of %s: not base64", id)
	}
	k, err := s.cfg.Keys.Open(place(id), b)
	if err != nil {
		return nil, fmt.Errorf("open key of %s: %w", id, err)
	}
	return k, nil
}

// Reader opens a recording. The caller closes what close returns.
func (s *Store) reader(r *Recording) (*Reader, *os.File, error) {
	f, err := s.openFile(r.ID, kindRec, r.StartedAt)
	if err != nil {
		return nil, nil, err
	}
	x, err := newReader(f, func(h head) ([]byte, error) {
		if h.ID != r.ID || h.Kind != kindRec {
			return nil, &DamageError{Why: "it belongs to another recording"}
		}
		return s.key(r.ID, r.sealedKey)
	})
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return x, f, nil
}

// closed notes that a writer's file is finished.
func (s *Store) closed(ctx context.Context, w *Writer, e ended) {
	s.mu.Lock()
	delete(s.writers, w.ID)
	s.unsaved = append(s.unsaved, e)
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := s.saveEnded(ctx); err != nil {
		s.cfg.Log.Error("finished recording not in the database yet; tried again", "recording", w.ID, "err", err)
	}
	s.poke()
}

func (s *Store) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func clampSize(n, def int) int {
	if n <= 0 {
		return def
	}
	return min(n, 1000)
}

// Recording returns the row of a recording; db.ErrNotFound when there is none.
// Who may see it is the caller's to decide.
func (s *Store) Recording(ctx context.Context, id string) (*Recording, error) {
	return s.Get(ctx, s.cfg.DB, id)
}
