package webterm

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"

	"caponier/core/internal/api"
)

// filesHandle is the SFTP session of a terminal: a connection of its own in
// the record, under the right file_transfer, opened when first needed and
// closed when unused for filesIdle.
type filesHandle struct {
	c       *sftp.Client
	names   *names
	home    string
	reading chan struct{} // held (by sending) while a directory is read

	// guarded by the session's mu
	users int
	timer *time.Timer
}

// filesIdle is how long an SFTP session stays open without use.
const filesIdle = 2 * time.Minute

// maxPath bounds a path on a target, in bytes (PATH_MAX of Linux).
const maxPath = 4096

func sortTerminals(ts []Terminal) {
	slices.SortFunc(ts, func(a, b Terminal) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
}

// files returns the session's SFTP client; release gives it back.
func (x *session) files(ctx context.Context) (h *filesHandle, release func(), err error) {
	// One opens, the others wait for it: each SFTP session is a connection.
	select {
	case x.opening <- struct{}{}:
		defer func() { <-x.opening }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	x.mu.Lock()
	if x.state.State == "ended" {
		x.mu.Unlock()
		return nil, nil, api.Conflict("ended", "The terminal session has ended.")
	}
	x.detached = time.Now() // whoever uses files is there
	h = x.sftp
	if h != nil {
		h.users++
		h.timer.Stop()
	}
	x.mu.Unlock()
	if h == nil {
		if h, err = x.openFiles(ctx); err != nil {
			return nil, nil, err
		}
	}
	return h, sync.OnceFunc(func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if h.users--; h.users == 0 {
			h.timer.Reset(filesIdle)
		}
	}), nil
}

// openFiles opens an SFTP session on the terminal's login.
func (x *session) openFiles(ctx context.Context) (*filesHandle, error) {
	x.mu.Lock()
	x.sftpText = ""
	x.mu.Unlock()
	type result struct {
		h   *filesHandle
		err error
	}
	done := make(chan result, 1)
	go func() {
		c, n, err := newClient(x.att.Client)
		if err != nil {
			done <- result{err: err}
			return
		}
		home, err := c.Getwd()
		if err != nil {
			home = "/"
		}
		done <- result{h: &filesHandle{c: c, names: n, home: home, reading: make(chan struct{}, 1)}}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		go func() {
			if r := <-done; r.h != nil {
				_ = r.h.c.Close()
			}
		}()
		return nil, ctx.Err()
	}
	if r.err != nil {
		x.mu.Lock()
		text := x.sftpText
		x.mu.Unlock()
		if text == "" {
			text = "The target offers no file transfer (SFTP)."
		}
		return nil, api.Denied("no_file_transfer", text)
	}
	h := r.h
	x.mu.Lock()
	defer x.mu.Unlock()
	h.users = 1
	h.timer = time.AfterFunc(filesIdle, func() { x.dropFiles(h, false) })
	h.timer.Stop()
	x.sftp = h
	x.svc.wg.Go(func() {
		_ = h.c.Wait()
		x.dropFiles(h, true)
	})
	return h, nil
}

// dropFiles forgets h; even one in use when its connection is gone.
func (x *session) dropFiles(h *filesHandle, gone bool) {
	x.mu.Lock()
	if x.sftp != h || h.users > 0 && !gone {
		x.mu.Unlock()
		return
	}
	x.sftp = nil
	h.timer.Stop()
	x.mu.Unlock()
	_ = h.c.Close()
}

func (x *session) closeFiles() {
	x.mu.Lock()
	h := x.sftp
	x.mu.Unlock()
	if h != nil {
		x.dropFiles(h, true)
	}
}

// clean makes a path of what a browser sent: absolute, or from the home
// directory. It is the target that decides what its account may touch.
func (h *filesHandle) clean(p string) (string, error) {
	if len(p) > maxPath || strings.ContainsRune(p, 0) {
		return "", api.Invalid(api.FieldError{Field: "path", Message: "at most 4096 bytes, without the character 0"})
	}
	switch {
	case p == "" || p == "~":
		return h.home, nil
	case strings.HasPrefix(p, "~/"):
		p = path.Join(h.home, p[2:])
	case !strings.HasPrefix(p, "/"):
		p = path.Join(h.home, p)
	}
	return path.Clean(p), nil
}

// fileError puts an SFTP error into a problem document.
func fileError(err error, p string) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*api.Problem](err); ok {
		return err
	}
	name := printable(p)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &api.Problem{Status: 404, Title: "There is no such file or directory.", Detail: name, Code: "no_such_file"}
	case errors.Is(err, fs.ErrPermission):
		return &api.Problem{Status: 403, Title: "The account may not do this on the target.", Detail: name, Code: "target_permission"}
	case errors.Is(err, fs.ErrExist):
		return &api.Problem{Status: 409, Title: "There is something by this name already.", Detail: name, Code: "exists"}
	case errors.Is(err, sftp.ErrSSHFxConnectionLost), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return api.Unavailable("connection_lost", "The connection to the target was lost.")
	}
	if st, ok := errors.AsType[*sftp.StatusError](err); ok {
		return &api.Problem{Status: 409, Title: "The target refused it.", Detail: name + ": " + printable(st.Error()), Code: "target_refused"}
	}
	return err
}

// FileEntry is one thing in a directory of a target.
type FileEntry struct {
	Name       string    `json:"name"`
	Type       string    `json:"type" enum:"file,dir,link,other"`
	Size       int64     `json:"size"`
	Mode       string    `json:"mode" doc:"as ls shows it"`
	ModifiedAt time.Time `json:"modified_at"`
	// LinkType is what a link leads to.
	LinkType string `json:"link_type,omitempty" enum:"file,dir,other,missing"`
}

func entry(i os.FileInfo) FileEntry {
	return FileEntry{Name: strings.ToValidUTF8(i.Name(), "\ufffd"), Type: typeOf(i.Mode()), Size: i.Size(), Mode: i.Mode().String(), ModifiedAt: i.ModTime().UTC()}
}

func typeOf(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "dir"
	case m&fs.ModeSymlink != 0:
		return "link"
	}
	return "other"
}

// Directory is a listing.
type Directory struct {
	Path      string      `json:"path"`
	Home      string      `json:"home"`
	Entries   []FileEntry `json:"entries"`
	Truncated bool        `json:"truncated" doc:"there are more entries than are listed"`
}

// maxLinks bounds the links of a listing that are looked behind.
const maxLinks = 200

// list reads a directory: directories first, then by name.
func (x *session) list(ctx context.Context, h *filesHandle, p string) (*Directory, error) {
	infos, _, err := h.readDir(ctx, p)
	if err != nil {
		return nil, fileError(err, p)
	}
	d := &Directory{Path: p, Home: h.home, Entries: []FileEntry{}}
	links := 0
	for _, i := range infos {
		e := entry(i)
		if e.Type == "link" && links < maxLinks {
			links++
			e.LinkType = "missing"
			if to, err := h.c.Stat(path.Join(p, i.Name())); err == nil {
				if e.LinkType = typeOf(to.Mode()); e.LinkType == "link" {
					e.LinkType = "other"
				}
			}
		}
		d.Entries = append(d.Entries, e)
	}
	dir := func(e FileEntry) int {
		if e.Type == "dir" || e.LinkType == "dir" {
			return 0
		}
		return 1
	}
	slices.SortFunc(d.Entries, func(a, b FileEntry) int {
		return cmp.Or(cmp.Compare(dir(a), dir(b)), cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	if limit := x.svc.limits.ListEntries; len(d.Entries) > limit {
		d.Entries, d.Truncated = d.Entries[:limit], true
	}
	return d, nil
}

// makeDirs makes a directory and those above it.
func makeDirs(c *sftp.Client, p string) error {
	if i, err := c.Stat(p); err == nil {
		if i.IsDir() {
			return nil
		}
		return fs.ErrExist
	}
	if up := path.Dir(p); up != p {
		if err := makeDirs(c, up); err != nil {
			return err
		}
	}
	err := c.Mkdir(p)
	if err != nil {
		// Another upload of the same folder may have been first.
		if i, serr := c.Stat(p); serr == nil && i.IsDir() {
			return nil
		}
	}
	return err
}

// remove deletes a file, or a directory with everything in it. Links are
// removed, not followed.
func (x *session) remove(ctx context.Context, h *filesHandle, p string, recursive bool) error {
	i, err := h.c.Lstat(p)
	if err != nil {
		return err
	}
	if !i.IsDir() {
		return h.c.Remove(p)
	}
	if recursive {
		return x.removeTree(ctx, h, p, x.svc.newLoad(), 0)
	}
	return h.c.RemoveDirectory(p)
}

// maxDepth bounds how deep folders are walked.
const maxDepth = 256

func (x *session) removeTree(ctx context.Context, h *filesHandle, p string, left *load, depth int) error {
	if depth > maxDepth {
		return api.Conflict("too_deep", "The folder is too deep.")
	}
	infos, size, err := h.readDir(ctx, p)
	if err != nil {
		return err
	}
	if !left.take(len(infos), size) {
		return api.Conflict("too_many", "The folder holds too many files to delete at once.")
	}
	for _, i := range infos {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(p, i.Name())
		if i.IsDir() {
			err = x.removeTree(ctx, h, name, left, depth+1)
		} else {
			err = h.c.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	return h.c.RemoveDirectory(p)
}
