package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// Space is where files of all sessions wait while they are scanned: bounded in
// all, and never to the last byte of its file system. Safe for concurrent use.
type Space struct {
	dir   string
	limit int64
	// free tells the bytes that are left in dir, and how many there are in all.
	free func(dir string) (left, all int64, err error)

	mu      sync.Mutex
	used    int64  // guarded by mu
	written int64  // guarded by mu; of used, what is on disk
	refused uint64 // guarded by mu
}

// spare is what is left to others of a file system, in bytes; of a small one a
// tenth.
const spare = 64 << 20

// errFull is the error of a file for which there is no room now.
var errFull = errors.New("no room for files that wait for the scanner")

// NewSpace makes a Space of limit bytes in dir.
func NewSpace(dir string, limit int64) *Space { return &Space{dir: dir, limit: limit, free: freeIn} }

func freeIn(dir string) (left, all int64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// Used is how many bytes are taken.
func (s *Space) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Refused is how many files found no room.
func (s *Space) Refused() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// fitsLocked reports whether n bytes more find room.
func (s *Space) fitsLocked(n int64) error {
	left, all, err := s.free(s.dir)
	if err != nil {
		return err
	}
	// What others have taken and not written yet is not free either.
	if n > s.limit-s.used || n > 0 && n+s.used-s.written > left-min(spare, all/10) {
		s.refused++
		return errFull
	}
	return nil
}

// room is a file without a name that takes its bytes from a Space.
type room struct {
	f    *os.File
	s    *Space
	size int64 // written, and taken of s
	full bool  // it was refused more
}

// open makes a file for which there is room now if it will have size bytes (-1:
// not known). Bytes are taken as they come: who announces much and sends little
// takes little.
func (s *Space) open(size int64) (*room, error) {
	s.mu.Lock()
	err := s.fitsLocked(max(size, 0))
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.dir, ".scan-*")
	if err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("files: %w", err), f.Close())
	}
	return &room{f: f, s: s}, nil
}

// Write implements io.Writer.
func (r *room) Write(p []byte) (int, error) {
	more := int64(len(p))
	r.s.mu.Lock()
	err := r.s.fitsLocked(more)
	if err == nil {
		r.s.used += more
		r.size += more
	}
	r.s.mu.Unlock()
	if err != nil {
		r.full = errors.Is(err, errFull)
		return 0, err
	}
	n, err := r.f.Write(p)
	r.s.mu.Lock()
	r.s.written += more // or it failed, and everything is given back soon
	r.s.mu.Unlock()
	return n, err
}

// Read implements io.Reader.
func (r *room) Read(p []byte) (int, error) { return r.f.Read(p) }

// rewind makes what was written readable from its beginning, and says how much
// it is.
func (r *room) rewind() (int64, error) {
	if _, err := r.f.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("files: %w", err)
	}
	return r.size, nil
}

// Close gives the file and its bytes back.
func (r *room) Close() error {
	err := r.f.Close()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.used -= r.size
	r.s.written -= r.size
	r.size = 0
	return err
}
