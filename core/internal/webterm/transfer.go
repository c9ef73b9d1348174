package webterm

import (
	"archive/zip"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/pkg/sftp"

	"caponier/core/internal/api"
)

// uploadSlack is taken off the size of an interrupted upload before it goes
// on: writes are under way side by side, so its end may have holes.
const uploadSlack = 8 << 20

func resumeAt(size int64) int64 {
	return max(0, size-uploadSlack) &^ (1<<20 - 1)
}

// partName is where an upload grows until all of it is there.
func partName(p string) string {
	dir, name := path.Split(p)
	if len(name) > 200 {
		sum := sha256.Sum256([]byte(name))
		name = name[:100] + "-" + hex.EncodeToString(sum[:8])
	}
	return dir + "." + name + ".caponier-part"
}

// stalling ends a transfer that moves nothing: every read or write renews the
// connection's deadlines.
type stalling struct {
	rc    *http.ResponseController
	after time.Duration
	r     io.Reader
	w     io.Writer
}

// Read implements io.Reader.
func (s *stalling) Read(p []byte) (int, error) {
	_ = s.rc.SetReadDeadline(time.Now().Add(s.after))
	return s.r.Read(p)
}

// Write implements io.Writer.
func (s *stalling) Write(p []byte) (int, error) {
	_ = s.rc.SetWriteDeadline(time.Now().Add(s.after))
	return s.w.Write(p)
}

// transfer finds the session of a raw operation and takes a place for it.
func (s *Service) transfer(w http.ResponseWriter, r *http.Request, f func(ctx context.Context, x *session, h *filesHandle, p string) error) {
	x, _, err := s.find(r.Context(), r.PathValue("id"))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	select {
	case x.transfers <- struct{}{}:
		defer func() { <-x.transfers }()
	default:
		s.fail(w, r, api.Limited(fmt.Sprintf("%d transfers of this terminal run already.", cap(x.transfers)), 1))
		return
	}
	if !s.begin() {
		s.fail(w, r, api.Unavailable("draining", "This core is shutting down."))
		return
	}
	defer s.wg.Done()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	stop := context.AfterFunc(s.hard, cancel)
	defer stop()
	// Opening may have to wait for the target; the answer may take as long as it moves.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(2 * s.limits.Stalled))
	h, release, err := x.files(ctx)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer release()
	p, err := h.clean(r.URL.Query().Get("path"))
	if err == nil {
		err = fileError(f(ctx, x, h, p), p)
	}
	if err == nil {
		return
	}
	if began, ok := errors.AsType[*midway](err); ok {
		// The answer has begun: breaking it off is all that tells of the error.
		s.cfg.Log.Info("download broke off", "connection", x.id, "err", began.err)
		panic(http.ErrAbortHandler)
	}
	s.fail(w, r, err)
}

// midway is an error after the answer began.
type midway struct{ err error }

// Error implements error.
func (m *midway) Error() string { return m.err.Error() }

// handleDownload serves a file, or a directory as a zip archive.
func (s *Service) handleDownload(w http.ResponseWriter, r *http.Request) {
	s.transfer(w, r, func(ctx context.Context, x *session, h *filesHandle, p string) error {
		i, err := h.c.Stat(p)
		if err != nil {
			return err
		}
		switch {
		case i.IsDir():
			return s.sendFolder(ctx, w, h, p)
		case i.Mode().IsRegular():
			return s.sendFile(ctx, w, r, h, p, i)
		}
		return api.Conflict("not_a_file", "Only files and directories can be downloaded.")
	})
}

func attachment(w http.ResponseWriter, name string) {
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": strings.ToValidUTF8(name, "_")}))
}

func (s *Service) sendFile(ctx context.Context, w http.ResponseWriter, r *http.Request, h *filesHandle, p string, i os.FileInfo) error {
	f, err := h.c.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	etag := fmt.Sprintf(`"%x-%x"`, i.Size(), i.ModTime().UnixNano())
	from, size := int64(0), i.Size()
	if n, ok := rangeFrom(r.Header.Get("Range")); ok && n < size && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == etag) {
		from = n
	}
	if from > 0 {
		if _, err := f.Seek(from, io.SeekStart); err != nil {
			return err
		}
	}
	hd := w.Header()
	hd.Set("Content-Type", "application/octet-stream")
	hd.Set("ETag", etag)
	hd.Set("Accept-Ranges", "bytes")
	attachment(w, path.Base(p))
	// Files that have no size of their own (/proc) are sent as they come.
	if size > 0 {
		hd.Set("Content-Length", strconv.FormatInt(size-from, 10))
	}
	if from > 0 {
		hd.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
		w.WriteHeader(http.StatusPartialContent)
	}
	out := &stalling{rc: http.NewResponseController(w), after: s.limits.Stalled, w: w}
	n, err := f.WriteTo(out)
	s.metrics.files.WithLabelValues("download").Add(float64(n))
	if err == nil && size > 0 && n != size-from {
		err = fmt.Errorf("%d of %d bytes were there", n, size-from)
	}
	if err != nil {
		return &midway{err}
	}
	return nil
}

// rangeFrom reads "bytes=N-", the one form of RFC 9110 §14.2 that resumes.
func rangeFrom(v string) (int64, bool) {
	v, ok := strings.CutPrefix(v, "bytes=")
	if !ok {
		return 0, false
	}
	v, ok = strings.CutSuffix(v, "-")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil && n >= 0
}

// errorsFile lists in an archive what is missing in it.
const errorsFile = "NOT-INCLUDED.txt"

// sendFolder streams a directory as a zip archive. Links are stored as links,
// devices and sockets are left out, and what could not be read is named in the
// archive.
func (s *Service) sendFolder(ctx context.Context, w http.ResponseWriter, h *filesHandle, root string) error {
	first, size, err := h.readDir(ctx, root)
	if err != nil {
		return err
	}
	left := s.newLoad()
	if !left.take(len(first), size) {
		return api.Conflict("too_many", "The folder holds too many files to download at once.")
	}
	name := path.Base(root)
	if name == "/" {
		name = "root"
	}
	w.Header().Set("Content-Type", "application/zip")
	attachment(w, name+".zip")
	out := &stalling{rc: http.NewResponseController(w), after: s.limits.Stalled, w: w}
	z := zip.NewWriter(out)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestSpeed) })
	a := &archive{ctx: ctx, s: s, h: h, z: z, left: left}
	if err := a.folder(root, strings.ToValidUTF8(name, "_")+"/", first, 0); err != nil {
		return &midway{err}
	}
	if len(a.missing) > 0 {
		f, err := z.Create(errorsFile)
		if err == nil {
			_, err = io.WriteString(f, strings.Join(a.missing, "\n")+"\n")
		}
		if err != nil {
			return &midway{err}
		}
	}
	if err := z.Close(); err != nil {
		return &midway{err}
	}
	return nil
}

type archive struct {
	ctx     context.Context
	s       *Service
	h       *filesHandle
	z       *zip.Writer
	left    *load
	missing []string
}

func (a *archive) skip(name string, why error) {
	if len(a.missing) < 1000 {
		a.missing = append(a.missing, printable(name)+": "+printable(why.Error()))
	}
}

func (a *archive) folder(p, name string, infos []os.FileInfo, depth int) error {
	if depth > maxDepth {
		a.skip(p, errors.New("too deep"))
		return nil
	}
	if _, err := a.z.CreateHeader(&zip.FileHeader{Name: name, Modified: time.Now()}); err != nil {
		return err
	}
	for _, i := range infos {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		from, to := path.Join(p, i.Name()), name+strings.ToValidUTF8(strings.ReplaceAll(i.Name(), "\\", "_"), "_")
		switch m := i.Mode(); {
		case m.IsDir():
			inner, size, err := a.h.readDir(a.ctx, from)
			if lost(err) {
				return err
			}
			if err != nil {
				a.skip(from, err)
				continue
			}
			if !a.left.take(len(inner), size) {
				a.skip(from, errors.New("the archive is full"))
				continue
			}
			if err := a.folder(from, to+"/", inner, depth+1); err != nil {
				return err
			}
		case m.IsRegular() || m&fs.ModeSymlink != 0:
			if err := a.file(from, to, i); err != nil {
				return err
			}
		default:
			a.skip(from, errors.New("neither file nor directory"))
		}
	}
	return nil
}

// lost reports whether the SFTP session is over.
func lost(err error) bool {
	return errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, context.Canceled) || errors.Is(err, io.ErrUnexpectedEOF)
}

func (a *archive) file(from, to string, i os.FileInfo) error {
	head := &zip.FileHeader{Name: to, Modified: i.ModTime(), Method: zip.Deflate}
	head.SetMode(i.Mode())
	if i.Mode()&fs.ModeSymlink != 0 {
		goal, err := a.h.c.ReadLink(from)
		if err != nil {
			a.skip(from, err)
			return nil
		}
		f, err := a.z.CreateHeader(head)
		if err == nil {
			_, err = io.WriteString(f, goal)
		}
		return err
	}
	src, err := a.h.c.Open(from)
	if err != nil {
		if lost(err) {
			return err
		}
		a.skip(from, err)
		return nil
	}
	defer src.Close()
	f, err := a.z.CreateHeader(head)
	if err != nil {
		return err
	}
	n, err := src.WriteTo(f)
	a.s.metrics.files.WithLabelValues("download").Add(float64(n))
	if err != nil && !lost(err) {
		a.skip(from, fmt.Errorf("cut after %d bytes: %w", n, err))
		return nil
	}
	return err
}

// Uploaded is what an upload answers.
type Uploaded struct {
	Path string `json:"path"`
	// Size is how much of the file is there; Complete that it is all of it.
	Size     int64 `json:"size"`
	Complete bool  `json:"complete"`
	// SHA256 is that of the bytes of this request.
	SHA256 string `json:"sha256"`
}

// handleUpload takes a file, or the rest of one.
func (s *Service) handleUpload(w http.ResponseWriter, r *http.Request) {
	s.transfer(w, r, func(ctx context.Context, x *session, h *filesHandle, p string) error {
		q := r.URL.Query()
		offset, err := offsetParam(q, "offset")
		if err != nil {
			return err
		}
		size, err := offsetParam(q, "size")
		if err != nil {
			return err
		}
		offset = max(offset, 0)
		if size < 0 && r.ContentLength >= 0 {
			size = offset + r.ContentLength
		}
		if limit := s.limits.Upload; size > limit || offset > limit {
			return &api.Problem{Status: http.StatusRequestEntityTooLarge, Title: "The file is too large.", Detail: fmt.Sprintf("At most %d bytes.", limit), Code: "file_too_large"}
		}
		if strings.HasSuffix(q.Get("path"), "/") || p == "/" {
			return api.Invalid(api.FieldError{Field: "path", Message: "the path of the file, with its name"})
		}
		up, err := s.receive(ctx, w, r, h, p, upload{offset: offset, size: size, replace: q.Get("replace") == "true", parents: q.Get("parents") == "true"})
		if err != nil {
			return err
		}
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(up)
	})
}

type upload struct {
	offset, size     int64 // size -1: not known, the body is the whole rest
	replace, parents bool
}

func (s *Service) receive(ctx context.Context, w http.ResponseWriter, r *http.Request, h *filesHandle, p string, u upload) (*Uploaded, error) {
	i, err := h.c.Stat(p)
	switch {
	case err == nil && i.IsDir():
		return nil, api.Conflict("is_directory", "There is a directory by this name.")
	case err == nil && !u.replace:
		return nil, api.Conflict("exists", "There is a file by this name already.")
	}
	if u.parents {
		if err := makeDirs(h.c, path.Dir(p)); err != nil {
			return nil, err
		}
	}
	part := partName(p)
	flags := os.O_WRONLY | os.O_CREATE
	if u.offset == 0 {
		flags |= os.O_TRUNC
	}
	// A link by the name of the part would lead elsewhere.
	if l, err := h.c.Lstat(part); err == nil && !l.Mode().IsRegular() {
		return nil, api.Conflict("exists", "Something else stands where the upload would grow: "+printable(part))
	} else if u.offset > 0 && (err != nil || l.Size() < u.offset) {
		return nil, api.Conflict("no_partial", "There is no part of this upload to go on from. Begin anew.")
	}
	f, err := h.c.OpenFile(part, flags)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer stop()
	if u.offset > 0 {
		if _, err := f.Seek(u.offset, io.SeekStart); err != nil {
			return nil, err
		}
	}
	rc := http.NewResponseController(w)
	limit := s.limits.Upload - u.offset
	if u.size >= 0 {
		limit = u.size - u.offset
	}
	body := io.LimitReader(&stalling{rc: rc, after: s.limits.Stalled, r: r.Body}, limit+1)
	sum := sha256.New()
	counted := &counter{r: io.TeeReader(body, sum)}
	n, err := f.ReadFromWithConcurrency(counted, 64)
	_ = rc.SetReadDeadline(time.Time{})
	_ = rc.SetWriteDeadline(time.Now().Add(s.limits.Stalled))
	s.metrics.files.WithLabelValues("upload").Add(float64(n))
	switch {
	case counted.err != nil:
		return nil, &api.Problem{Status: http.StatusBadRequest, Title: "The upload broke off.", Code: "upload_broken", Detail: "What has arrived is kept; the upload can go on from there."}
	case err != nil:
		return nil, err
	case n > limit:
		_ = h.c.Remove(part)
		return nil, api.Invalid(api.FieldError{Field: "size", Message: "the body is longer than the file"})
	}
	up := &Uploaded{Path: p, Size: u.offset + n, SHA256: hex.EncodeToString(sum.Sum(nil))}
	if u.size >= 0 && up.Size < u.size {
		return up, nil
	}
	if u.offset > 0 { // an earlier attempt may have left more
		if err := f.Truncate(up.Size); err != nil {
			return nil, err
		}
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if err := finish(h.c, part, p, i, u.replace); err != nil {
		return nil, err
	}
	up.Complete = true
	return up, nil
}

// counter remembers an error of the body, to tell it from one of the target.
type counter struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// finish puts the part in the place of the file, with the mode of the one it
// replaces.
func finish(c *sftp.Client, part, p string, old os.FileInfo, replace bool) error {
	if old != nil {
		_ = c.Chmod(part, old.Mode().Perm())
	}
	if !replace {
		return c.Rename(part, p)
	}
	if err := c.PosixRename(part, p); err == nil {
		return nil
	}
	// A server without the extension cannot replace in one step.
	if err := c.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return c.Rename(part, p)
}
