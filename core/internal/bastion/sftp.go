package bastion

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"strconv"
	"sync"

	"caponier/core/internal/recording"
)

// SFTP packet types (draft-ietf-secsh-filexfer-02 §3; OpenSSH speaks version 3).
const (
	fxpInit     = 1
	fxpVersion  = 2
	fxpOpen     = 3
	fxpClose    = 4
	fxpRead     = 5
	fxpWrite    = 6
	fxpSetstat  = 9
	fxpFsetstat = 10
	fxpOpendir  = 11
	fxpRemove   = 13
	fxpMkdir    = 14
	fxpRmdir    = 15
	fxpRename   = 18
	fxpSymlink  = 20
	fxpStatus   = 101
	fxpHandle   = 102
	fxpData     = 103
	fxpExtended = 200
)

// Bounds of the passive SFTP reader.
const (
	maxSFTPPacket  = 1 << 20  // bytes of a packet; more ends the session
	maxSFTPHead    = 10 << 10 // bytes kept of a packet that is looked into
	maxSFTPPending = 4096     // requests without an answer
	maxSFTPHandles = 4096     // open files
)

var errSFTP = &refusal{public: "The file transfer protocol could not be followed, so the session has ended.", code: "sftp"}

// sftpTap follows an SFTP session passively in both directions: it changes
// nothing, holds no file data, and ends the session when it loses the thread,
// so that nothing passes unseen.
type sftpTap struct {
	events
	copies *copies

	mu      sync.Mutex
	client  packetReader            // guarded by mu
	server  packetReader            // guarded by mu
	pending map[uint32]*sftpRequest // guarded by mu
	handles map[string]*sftpFile    // guarded by mu
}

// sftpRequest waits for its answer.
type sftpRequest struct {
	kind   string // open, opendir, read, write, close, remove, …
	path   string
	to     string // second path of rename and symlink
	flags  uint32
	file   *sftpFile
	offset uint64
	size   uint32
}

// sftpFile is an open handle.
type sftpFile struct {
	path          string
	dir           bool
	read, written uint64
	failed        bool
	up, down      *fileCopy // what was written to it and read from it
	begun         [2]bool   // of up and down
}

func newSFTPTap(ctx context.Context, e events, log *slog.Logger) *sftpTap {
	t := &sftpTap{events: e, copies: newCopies(ctx, e.rec, log),
		pending: map[uint32]*sftpRequest{}, handles: map[string]*sftpFile{}}
	t.client.body = t.fromClient
	t.server.body = t.fromServer
	return t
}

func (t *sftpTap) resize(int, int) error { return nil }

func (t *sftpTap) input(p []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.client.feed(p)
}

func (t *sftpTap) output(p []byte, stderr bool) error {
	if stderr {
		return recordError(t.rec.Output(p))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.server.feed(p)
}

func (t *sftpTap) close(bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for h, f := range t.handles {
		f.failed = true // never closed: the transfer was cut
		errs = append(errs, t.finish(f))
		delete(t.handles, h)
	}
	t.copies.wait()
	return errors.Join(errors.Join(errs...), recordError(t.rec.Close()))
}

// packetReader cuts a stream into packets and keeps only the head of each.
type packetReader struct {
	head []byte                                                           // length, type and up to maxSFTPHead bytes
	want int                                                              // bytes of head to gather; 0 = the length and type first
	skip int                                                              // bytes of the packet's rest to let pass
	data func(p []byte) error                                             // takes the skipped bytes; may be nil
	body func(kind byte, p []byte) (data func(p []byte) error, err error) // looks at a packet's head
}

// feed takes the next bytes of the stream.
func (r *packetReader) feed(p []byte) error {
	for len(p) > 0 {
		if r.skip > 0 {
			n := min(r.skip, len(p))
			if r.data != nil {
				if err := r.data(p[:n]); err != nil {
					return err
				}
			}
			r.skip -= n
			p = p[n:]
			continue
		}
		if r.want == 0 {
			r.want = 5
		}
		n := min(r.want-len(r.head), len(p))
		r.head = append(r.head, p[:n]...)
		p = p[n:]
		if len(r.head) < r.want {
			return nil
		}
		size := binary.BigEndian.Uint32(r.head)
		if size < 1 || size > maxSFTPPacket {
			return errSFTP
		}
		rest := int(size) - 1
		keep := headSize(r.head[4], rest)
		if len(r.head) < 5+keep {
			r.want = 5 + keep
			continue
		}
		data, err := r.body(r.head[4], r.head[5:])
		if err != nil {
			return err
		}
		r.head, r.want = r.head[:0], 0
		r.skip, r.data = rest-keep, data
	}
	return nil
}

// headSize is how much of a packet's body is looked at.
func headSize(kind byte, rest int) int {
	limit := maxSFTPHead
	switch kind {
	case fxpWrite:
		// id, handle (≤ 256 bytes), offset, length; data follows.
		limit = 4 + 4 + 256 + 8 + 4
	case fxpData:
		limit = 4 + 4
	case fxpInit, fxpVersion, 104, 105: // names and attributes are not looked at
		limit = 4
	}
	return min(limit, rest)
}

// fields reads the parts of a packet body.
type fields struct {
	p   []byte
	bad bool
}

func (f *fields) u32() uint32 {
	if len(f.p) < 4 {
		f.bad = true
		return 0
	}
	v := binary.BigEndian.Uint32(f.p)
	f.p = f.p[4:]
	return v
}

func (f *fields) u64() uint64 {
	hi := f.u32()
	return uint64(hi)<<32 | uint64(f.u32())
}

func (f *fields) str() string {
	n := f.u32()
	if f.bad || uint64(n) > uint64(len(f.p)) {
		f.bad = true
		return ""
	}
	s := string(f.p[:n])
	f.p = f.p[n:]
	return s
}

// fromClient follows a request.
func (t *sftpTap) fromClient(kind byte, p []byte) (func([]byte) error, error) {
	f := &fields{p: p}
	id := f.u32()
	if kind == fxpInit {
		return nil, nil
	}
	r := &sftpRequest{}
	switch kind {
	case fxpOpen:
		r.kind, r.path = "open", f.str()
		r.flags = f.u32()
	case fxpOpendir:
		r.kind, r.path = "opendir", f.str()
	case fxpClose, fxpRead, fxpWrite, fxpFsetstat:
		r.kind = map[byte]string{fxpClose: "close", fxpRead: "read", fxpWrite: "write", fxpFsetstat: "setstat"}[kind]
		h := f.str()
		r.file = t.handles[h]
		if r.file != nil {
			r.path = r.file.path
		}
		if kind == fxpRead || kind == fxpWrite {
			r.offset, r.size = f.u64(), f.u32()
		}
		if kind == fxpClose {
			delete(t.handles, h)
		}
	case fxpSetstat, fxpRemove, fxpMkdir, fxpRmdir:
		r.kind = map[byte]string{fxpSetstat: "setstat", fxpRemove: "remove", fxpMkdir: "mkdir", fxpRmdir: "rmdir"}[kind]
		r.path = f.str()
	case fxpRename, fxpSymlink:
		r.kind = map[byte]string{fxpRename: "rename", fxpSymlink: "symlink"}[kind]
		r.path, r.to = f.str(), f.str()
	case fxpExtended:
		t.extended(r, f)
	}
	if f.bad {
		return nil, errSFTP
	}
	if r.kind == "" {
		return nil, nil // stat and the like change and carry nothing
	}
	if len(t.pending) >= maxSFTPPending {
		return nil, errSFTP
	}
	t.pending[id] = r
	if kind != fxpWrite {
		return nil, nil
	}
	// The rest of the head that was gathered is data already.
	piece := f.p[:min(len(f.p), int(r.size))]
	put := t.piece(r, recording.Upload)
	if put == nil {
		return nil, nil
	}
	return put, put(piece)
}

// extended follows OpenSSH's extensions that change or move files.
func (t *sftpTap) extended(r *sftpRequest, f *fields) {
	switch f.str() {
	case "posix-rename@openssh.com":
		r.kind, r.path, r.to = "rename", f.str(), f.str()
	case "hardlink@openssh.com":
		r.kind, r.path, r.to = "hardlink", f.str(), f.str()
	case "lsetstat@openssh.com":
		r.kind, r.path = "setstat", f.str()
	case "copy-data":
		from := t.handles[f.str()]
		_, _ = f.u64(), f.u64()
		to := t.handles[f.str()]
		if from != nil && to != nil {
			r.kind, r.path, r.to = "copy", from.path, to.path
		}
	}
	// An unknown extension may be cut short by the head limit: not an error.
	if r.kind == "" {
		f.bad = false
	}
}

// piece returns what takes the file data of a packet; nil when nobody does.
func (t *sftpTap) piece(r *sftpRequest, d recording.Direction) func([]byte) error {
	f := r.file
	if f == nil || f.dir {
		return nil
	}
	to, begun := &f.down, &f.begun[0]
	if d == recording.Upload {
		to, begun = &f.up, &f.begun[1]
	}
	if !*begun {
		*begun, *to = true, t.copies.start(d, f.path)
	}
	if *to == nil {
		return nil
	}
	off := int64(r.offset)
	return func(p []byte) error {
		(*to).put(p, off)
		off += int64(len(p))
		return nil
	}
}

// fromServer follows an answer.
func (t *sftpTap) fromServer(kind byte, p []byte) (func([]byte) error, error) {
	if kind == fxpVersion {
		return nil, nil
	}
	f := &fields{p: p}
	id := f.u32()
	if f.bad {
		return nil, errSFTP
	}
	r := t.pending[id]
	if r == nil {
		return nil, nil
	}
	delete(t.pending, id)
	switch kind {
	case fxpHandle:
		h := f.str()
		if f.bad || len(h) > 256 {
			return nil, errSFTP
		}
		return nil, t.opened(r, h)
	case fxpData:
		n := uint64(f.u32())
		if f.bad || r.file == nil {
			return nil, nil
		}
		r.file.read += n
		return t.piece(r, recording.Download), nil
	case fxpStatus:
		code := f.u32()
		if f.bad {
			return nil, errSFTP
		}
		return nil, t.status(r, code)
	}
	return nil, nil
}

func (t *sftpTap) opened(r *sftpRequest, handle string) error {
	if r.kind != "open" && r.kind != "opendir" {
		return nil
	}
	if len(t.handles) >= maxSFTPHandles {
		return errSFTP
	}
	t.handles[handle] = &sftpFile{path: r.path, dir: r.kind == "opendir"}
	if r.kind == "opendir" {
		return nil
	}
	return t.sftpEvent("open", r.path, "", "ok", map[string]string{"mode": openMode(r.flags)})
}

// openMode names the flags of SSH_FXP_OPEN in version 3.
func openMode(flags uint32) string {
	m := ""
	for i, n := range []string{"r", "w", "a", "c", "t", "x"} {
		if flags&(1<<i) != 0 {
			m += n
		}
	}
	return m
}

const statusOK, statusEOF = 0, 1

func (t *sftpTap) status(r *sftpRequest, code uint32) error {
	result := "ok"
	if code != statusOK {
		result = "failed"
	}
	switch r.kind {
	case "read":
		if code > statusEOF && r.file != nil {
			r.file.failed = true
		}
		return nil
	case "write":
		if r.file != nil {
			if code == statusOK {
				r.file.written += uint64(r.size)
			} else {
				r.file.failed = true
			}
		}
		return nil
	case "close":
		if r.file == nil {
			return nil
		}
		r.file.failed = r.file.failed || code != statusOK
		return t.finish(r.file)
	case "opendir", "setstat":
		if code == statusOK || r.kind == "opendir" {
			return nil
		}
	}
	return t.sftpEvent(r.kind, r.path, r.to, result, nil)
}

// finish reports what went through a handle.
func (t *sftpTap) finish(f *sftpFile) error {
	var errs []error
	f.up.finish()
	f.down.finish()
	result := "ok"
	if f.failed {
		result = "failed"
	}
	if f.written > 0 {
		errs = append(errs, t.sftpEvent("write", f.path, "", result, map[string]string{"bytes": strconv.FormatUint(f.written, 10)}))
	}
	if f.read > 0 {
		errs = append(errs, t.sftpEvent("read", f.path, "", result, map[string]string{"bytes": strconv.FormatUint(f.read, 10)}))
	}
	return errors.Join(errs...)
}

func (t *sftpTap) sftpEvent(op, path, to, result string, more map[string]string) error {
	fields := map[string]string{"op": op, "path": path, "result": result}
	detail := op + " " + path
	if to != "" {
		fields["to"] = to
		detail += " → " + to
	}
	for k, v := range more {
		fields[k] = v
		detail += " " + v
		if k == "bytes" {
			detail += " bytes"
		}
	}
	return t.event("sftp", clip(printable(detail), 1000)+" "+result, fields)
}
