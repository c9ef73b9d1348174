package webterm

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
)

// A target may answer a listing with names without end, or with names that are
// paths. The library collects what comes; what is here bounds it.

// Bounds of reading one directory.
const (
	listedEntries = 200_000
	listedBytes   = 64 << 20
)

// fxpName is the type of the packet that names files (draft-ietf-secsh-filexfer-02 §7).
const fxpName = 104

var errListing = errors.New("the target lists too much")

// names watches what a target sends over SFTP and ends the session when its
// names exceed what is left. It is read by one goroutine.
type names struct {
	r       io.Reader
	stop    func()       // ends the session
	entries atomic.Int64 // that may still come
	bytes   atomic.Int64
	over    atomic.Bool

	head []byte // of the packet that has begun
	skip uint64 // bytes of it to let pass
}

func newNames(r io.Reader, stop func()) *names {
	n := &names{r: r, stop: stop, head: make([]byte, 0, 13)}
	n.refill()
	return n
}

func (n *names) refill() {
	n.entries.Store(listedEntries)
	n.bytes.Store(listedBytes)
}

// Read implements io.Reader.
func (n *names) Read(p []byte) (int, error) {
	got, err := n.r.Read(p)
	if !n.pass(p[:got]) {
		n.over.Store(true)
		n.stop()
		return 0, errListing
	}
	return got, err
}

// pass reads the heads of packets: u32 length, u8 type, of names also u32
// request and u32 count.
func (n *names) pass(b []byte) bool {
	for len(b) > 0 {
		if n.skip > 0 {
			k := min(n.skip, uint64(len(b)))
			n.skip, b = n.skip-k, b[k:]
			continue
		}
		n.head, b = append(n.head, b[0]), b[1:]
		if len(n.head) < 5 {
			continue
		}
		length := binary.BigEndian.Uint32(n.head)
		if length == 0 {
			return false // no packet is empty
		}
		if n.head[4] != fxpName || length < 9 {
			n.skip, n.head = uint64(length)-1, n.head[:0]
			continue
		}
		if len(n.head) < 13 {
			continue
		}
		count := binary.BigEndian.Uint32(n.head[9:])
		n.skip, n.head = uint64(length)-9, n.head[:0]
		if n.entries.Add(-int64(count)) < 0 || n.bytes.Add(-int64(length)) < 0 {
			return false
		}
	}
	return true
}

// newClient opens the SFTP subsystem behind a watch on its names.
func newClient(c *ssh.Client) (*sftp.Client, *names, error) {
	s, err := c.NewSession()
	if err != nil {
		return nil, nil, err
	}
	in, err := s.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	errs, err := s.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := s.RequestSubsystem("sftp"); err != nil {
		_ = s.Close()
		return nil, nil, err
	}
	go func() { _, _ = io.Copy(io.Discard, errs) }() // ends with the session
	n := newNames(out, func() { _ = s.Close() })
	client, err := sftp.NewClientPipe(n, in, sftp.UseConcurrentWrites(true), sftp.UseConcurrentReads(true), sftp.MaxConcurrentRequestsPerFile(64))
	if err != nil {
		_ = s.Close()
		return nil, nil, err
	}
	return client, n, nil
}

// readDir reads a directory, one at a time, without names that are none. size
// is what the target sent, in bytes.
func (h *filesHandle) readDir(ctx context.Context, p string) (kept []os.FileInfo, size int64, err error) {
	select {
	case h.reading <- struct{}{}:
		defer func() { <-h.reading }()
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	h.names.refill()
	infos, err := h.c.ReadDirContext(ctx, p)
	if h.names.over.Load() {
		return nil, 0, api.Conflict("too_many", "The directory holds more than can be listed.")
	}
	if err != nil {
		return nil, 0, err
	}
	kept = infos[:0]
	for _, i := range infos {
		if fileName(i.Name()) {
			kept = append(kept, i)
		}
	}
	clear(infos[len(kept):])
	return kept, listedBytes - h.names.bytes.Load(), nil
}

// load bounds what one walk through folders holds in memory.
type load struct {
	entries int
	bytes   int64
}

func (s *Service) newLoad() *load { return &load{s.limits.ArchiveEntries, listedBytes} }

// take reports whether a directory still fits.
func (l *load) take(entries int, bytes int64) bool {
	l.entries -= entries
	l.bytes -= bytes
	return l.entries >= 0 && l.bytes >= 0
}

// maxName bounds a name in a directory (NAME_MAX of Linux).
const maxName = 255

// fileName reports whether a name of a target is one, and not a way out of its
// directory.
func fileName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}
