package webaccess

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/recording"
	"caponier/shared/wire"
)

const (
	// maxArchive bounds a tar of several files; each is bounded by policy.
	maxArchive = 64 << 30
	// stallTime ends a transfer that moves nothing.
	stallTime = time.Minute
	// maxPath bounds a path, in bytes.
	maxPath = 4096
)

func (s *Service) fileRoutes(f *api.Frame) {
	const tag = "web-sessions"
	const base = "/web-sessions/{id}/files"
	api.Register(f, api.Op{Method: "GET", Path: base, ID: "list-web-files", Tag: tag, Who: api.Self(),
		Summary: "List the files of a web session of yours"}, s.handleListFiles)
	api.RegisterRaw(f, api.Op{Method: "PUT", Path: base, ID: "upload-web-archive", Tag: tag, Who: api.Self(), MaxBody: -1, Status: 204,
		Summary: "Upload ?tar=1 a tar of files and folders (POSIX.1-2001)"}, s.raw(s.putArchive))
	api.RegisterRaw(f, api.Op{Method: "GET", Path: base + "/{path}", ID: "download-web-file", Tag: tag, Who: api.Self(), Type: "application/octet-stream",
		Summary: "Download a file; of a folder a tar. Slashes in the path are written %2F"}, s.raw(s.getFile))
	api.RegisterRaw(f, api.Op{Method: "PUT", Path: base + "/{path}", ID: "upload-web-file", Tag: tag, Who: api.Self(), MaxBody: -1, Status: 204,
		Summary: "Upload a file into the folder that the browser's file dialog opens in"}, s.raw(s.putFile))
	api.RegisterRaw(f, api.Op{Method: "DELETE", Path: base + "/{path}", ID: "delete-web-file", Tag: tag, Who: api.Self(), Status: 204,
		Summary: "Delete a file or folder of a web session of yours"}, s.raw(s.deleteFile))
}

// raw wraps a handler that returns its error.
func (s *Service) raw(h func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// filesOf finds a session of the caller's that may move files in a direction;
// limit is the most bytes of one file.
func (s *Service) filesOf(ctx context.Context, id string, d recording.Direction) (x *session, limit int64, err error) {
	if x, err = s.own(ctx, id); err != nil {
		return nil, 0, err
	}
	if err := x.usable(); err != nil {
		return nil, 0, err
	}
	p := x.policy(x.wantedOrNone())
	limit = p.DownloadMax
	if d == recording.Upload {
		limit = p.UploadMax
	}
	// Losing the right later ends the session that made use of it.
	if limit == 0 || !x.live.Use(access.FileTransfer) {
		return nil, 0, api.Denied("no_files", fmt.Sprintf("You may not %s files in this session.", d))
	}
	return x, limit, nil
}

// usable refuses for a session that has ended or is locked.
func (x *session) usable() error {
	if x.live.Context().Err() != nil {
		return api.Conflict("ended", "The session has ended.")
	}
	if o, _ := x.live.Oversight(); o.Locked {
		return lockedError(o.Text)
	}
	return nil
}

// filePath checks a path of a session's folder and returns it clean.
func filePath(text string) (string, error) {
	p := path.Clean(text)
	if text == "" || len(text) > maxPath || p == "." || path.IsAbs(p) || p == ".." || strings.HasPrefix(p, "../") || strings.ContainsAny(text, "\x00\\") {
		return "", api.Invalid(api.FieldError{Field: "path", Message: "must be a path below the session's folder, without .. and without / at its beginning"})
	}
	return p, nil
}

// escaped is a path as it stands in a request.
func escaped(p string) string {
	parts := strings.Split(p, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

type filesOut struct{ Body wire.WebFiles }

func (s *Service) handleListFiles(ctx context.Context, in *api.ConnectionIDIn) (*filesOut, error) {
	x, err := s.own(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := x.usable(); err != nil {
		return nil, err
	}
	p := x.policy(x.wantedOrNone())
	if p.UploadMax == 0 && p.DownloadMax == 0 || !x.live.Use(access.FileTransfer) {
		return nil, api.Denied("no_files", "You may not move files in this session.")
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := x.exchange(ctx, "GET", "/files", nil, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out := &filesOut{Body: wire.WebFiles{Files: []wire.WebFile{}}}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 8<<20)).Decode(&out.Body); err != nil {
		return nil, fmt.Errorf("list files of %s: %w", x.row.ID, err)
	}
	if out.Body.Files == nil {
		out.Body.Files = []wire.WebFile{}
	}
	return out, nil
}

// getFile streams one file, or a folder's tar.
func (s *Service) getFile(w http.ResponseWriter, r *http.Request) error {
	x, limit, err := s.filesOf(r.Context(), r.PathValue("id"), recording.Download)
	if err != nil {
		return err
	}
	name, err := filePath(r.PathValue("path"))
	if err != nil {
		return err
	}
	rc := http.NewResponseController(w)
	ctx, done := x.whileUsable(r.Context(), rc)
	defer done()
	resp, err := x.exchange(ctx, "GET", "/files/"+escaped(name), nil, 0)
	if err != nil {
		return broken(ctx, err)
	}
	defer resp.Body.Close()
	folder := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-tar")
	if folder {
		limit = maxArchive
	}
	if resp.ContentLength > limit {
		return api.Denied("too_large", fmt.Sprintf("Files of more than %d bytes may not be downloaded in this session.", limit))
	}
	file := path.Base(name)
	if folder {
		file += ".tar"
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	if folder {
		h.Set("Content-Type", "application/x-tar")
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": file}))
	if resp.ContentLength >= 0 {
		h.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
	keep := x.copyOf(ctx, recording.Download, name, folder)
	defer func() { keep.close(x, err == nil) }()
	err = pump(w, &bounded{r: resp.Body, left: limit}, keep, func(n int) error {
		x.live.Out(n)
		return rc.SetWriteDeadline(time.Now().Add(stallTime))
	})
	if err != nil {
		s.cfg.Log.Info("download from a web session cut", "session", x.row.ID, "err", broken(ctx, err))
		panic(http.ErrAbortHandler) // the answer has begun: its end must not look whole
	}
	return nil
}

func (s *Service) putFile(w http.ResponseWriter, r *http.Request) error {
	x, limit, err := s.filesOf(r.Context(), r.PathValue("id"), recording.Upload)
	if err != nil {
		return err
	}
	name, err := filePath(r.PathValue("path"))
	if err != nil {
		return err
	}
	return x.put(w, r, "/files/"+escaped(name), name, limit, false)
}

func (s *Service) putArchive(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Query().Get("tar") == "" {
		return api.Invalid(api.FieldError{Field: "tar", Message: "say tar=1 and send a tar, or name a file in the path"})
	}
	x, _, err := s.filesOf(r.Context(), r.PathValue("id"), recording.Upload)
	if err != nil {
		return err
	}
	return x.put(w, r, "/files/?tar", "archive.tar", maxArchive, true)
}

// put streams an upload to the carrier, which writes, scans and tells of it.
func (x *session) put(w http.ResponseWriter, r *http.Request, to, name string, limit int64, archive bool) (err error) {
	tooLarge := api.Denied("too_large", fmt.Sprintf("Files of more than %d bytes may not be uploaded in this session.", limit))
	if r.ContentLength > limit {
		x.refusedUpload(r.Context(), name, r.ContentLength, limit)
		return tooLarge
	}
	rc := http.NewResponseController(w)
	ctx, done := x.whileUsable(r.Context(), rc)
	defer done()
	keep := x.copyOf(ctx, recording.Upload, name, archive)
	defer func() { keep.close(x, err == nil) }()
	body := &bounded{r: r.Body, left: limit, moved: func(p []byte) error {
		x.live.In(len(p))
		if _, err := keep.Write(p); err != nil {
			return err
		}
		until := time.Now().Add(stallTime)
		err := errors.Join(rc.SetReadDeadline(until), rc.SetWriteDeadline(until))
		if ctx.Err() != nil { // after which that is the last word
			return context.Cause(ctx)
		}
		return err
	}}
	resp, err := x.exchange(ctx, "PUT", to, body, r.ContentLength)
	if errors.Is(body.failed, errTooMuch) {
		x.refusedUpload(r.Context(), name, limit-body.left, limit)
		return tooLarge
	}
	if err != nil {
		return broken(ctx, err)
	}
	resp.Body.Close()
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// whileUsable is a context of a transfer: it ends when its session does or is
// locked, and takes the reading and writing of the user's connection along.
// done must be called; it waits for what it started.
func (x *session) whileUsable(ctx context.Context, rc *http.ResponseController) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var g sync.WaitGroup
	g.Go(func() {
		for {
			o, overseen := x.live.Oversight()
			if o.Locked {
				cancel(lockedError(o.Text))
			}
			select {
			case <-overseen:
			case <-x.live.Context().Done():
				cancel(api.Conflict("ended", "The session has ended."))
			case <-ctx.Done():
				if _, ok := errors.AsType[*api.Problem](context.Cause(ctx)); ok {
					// A user who sends nothing must not keep it waiting. The answer
					// is still written.
					_ = rc.SetReadDeadline(time.Unix(1, 0)) // else its own deadline ends it
				}
				return
			}
		}
	})
	return ctx, func() {
		cancel(context.Canceled)
		g.Wait()
	}
}

// broken is err, or why the transfer was broken off.
func broken(ctx context.Context, err error) error {
	if why, ok := errors.AsType[*api.Problem](context.Cause(ctx)); ok {
		return why
	}
	return err
}

func lockedError(text string) error {
	return api.Conflict("locked", "The session is locked: "+sentence(text))
}

// refusedUpload notes a file that was not even passed to the carrier, which
// notes all others.
func (x *session) refusedUpload(ctx context.Context, name string, size, limit int64) {
	fields := map[string]string{"path": clip(name, 500), "size": strconv.FormatInt(size, 10), "limit": strconv.FormatInt(limit, 10), "outcome": "too large"}
	if !x.files.AllowN(x.s.cfg.Now(), 1) {
		x.unlist()
		return
	}
	if rec := x.recording(); rec != nil {
		if err := rec.Event("upload", maps.Clone(fields)); err != nil {
			x.s.cfg.Log.Error("refused upload not in the recording", "session", x.row.ID, "err", err)
		}
	}
	fields["user"] = x.row.UserName
	x.s.append(ctx, audit.Event{Type: audit.WebFileUploaded, Outcome: audit.Denied, Actor: actor(ctx), Connection: x.row.ID,
		Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName}, Fields: fields})
}

func (s *Service) deleteFile(w http.ResponseWriter, r *http.Request) error {
	x, _, err := s.filesOf(r.Context(), r.PathValue("id"), recording.Upload)
	if err != nil {
		return err
	}
	name, err := filePath(r.PathValue("path"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	resp, err := x.exchange(ctx, "DELETE", "/files/"+escaped(name), nil, 0)
	if err != nil {
		return err
	}
	resp.Body.Close()
	s.append(ctx, audit.Event{
		Type: audit.WebFileDeleted, Outcome: audit.OK, Actor: actor(r.Context()), Connection: x.row.ID,
		Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName}, Fields: map[string]string{"path": clip(name, 500)},
	})
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// exchange sends one request over a stream of its own and returns a good
// answer; what the carrier refuses becomes a problem. Closing the body ends
// the stream, as does ctx.
func (x *session) exchange(ctx context.Context, method, to string, body io.Reader, size int64) (*http.Response, error) {
	away := api.Unavailable("carrier_away", "The session's carrier is not connected at present. Try again in a moment.")
	if x.forClients() {
		return nil, api.Conflict("not_browser", "This session has no browser, and so no files.")
	}
	carrier, _ := x.pair()
	st, err := x.s.cfg.Fleet.OpenStream(ctx, carrier, wire.Preface{Kind: wire.StreamDial, Class: wire.Bulk, Network: "tcp", Connection: x.row.ID, Dest: wire.SessionFiles})
	if err != nil {
		return nil, away
	}
	stop := context.AfterFunc(ctx, func() { st.SetDeadline(time.Unix(1, 0)) })
	end := func() {
		stop()
		_ = st.Close()
	}
	if body != nil {
		// A carrier that got the half of a request does not answer by itself.
		body = &sender{r: body, broke: func() { st.SetDeadline(time.Unix(1, 0)) }}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://session"+to, body)
	if err != nil {
		end()
		return nil, fmt.Errorf("%s %s: %w", method, to, err)
	}
	if body != nil {
		req.ContentLength = size // -1: chunked
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	req.Close = true
	// An answer may come before the body is through: a refusal.
	sent := make(chan error, 1)
	go func() { sent <- req.Write(st) }()
	resp, err := http.ReadResponse(bufio.NewReader(st), req)
	if err != nil {
		end()
		werr := <-sent
		if we, ok := errors.AsType[*wire.Error](errors.Join(err, werr)); ok && we.Code == wire.CodeRefused {
			return nil, api.Denied("refused", sentence(we.Public))
		}
		x.s.cfg.Log.Warn("files of a web session", "session", x.row.ID, "err", errors.Join(err, werr))
		return nil, away
	}
	if resp.StatusCode/100 != 2 {
		text, rerr := io.ReadAll(io.LimitReader(resp.Body, 500))
		end()
		<-sent
		return nil, fileProblem(resp.StatusCode, strings.TrimSpace(string(text)), rerr)
	}
	resp.Body = &answer{ReadCloser: resp.Body, end: func() {
		end()
		<-sent
	}}
	return resp, nil
}

// sender is a body that says when it breaks off.
type sender struct {
	r     io.Reader
	broke func()
}

// Read implements io.Reader.
func (s *sender) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.broke()
	}
	return n, err
}

// answer ends its stream with its body.
type answer struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (a *answer) Close() error {
	if a.end != nil {
		a.end()
		a.end = nil
	}
	return nil
}

// fileProblem words what a carrier answers.
func fileProblem(status int, text string, err error) error {
	if err != nil || text == "" {
		text = http.StatusText(status)
	}
	text = sentence(clip(strings.ToValidUTF8(text, ""), 300))
	switch status {
	case http.StatusNotFound:
		return &api.Problem{Status: 404, Title: "There is no such file.", Detail: text, Code: "no_such_file"}
	case http.StatusForbidden, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return api.Denied("file_refused", text)
	case http.StatusBadRequest:
		return api.Invalid(api.FieldError{Field: "path", Message: text})
	case http.StatusConflict:
		return api.Conflict("file_conflict", text)
	case http.StatusInsufficientStorage:
		return api.Unavailable("no_space", text)
	}
	return api.Unavailable("carrier_failed", "The session's carrier could not do it: "+text)
}

// errTooMuch: more bytes came than may.
var errTooMuch = errors.New("more bytes than permitted")

// bounded reads at most left bytes and fails where more come.
type bounded struct {
	r      io.Reader
	left   int64
	moved  func(p []byte) error // may be nil
	failed error
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		b.failed = errTooMuch
		return 0, errTooMuch
	}
	if n > 0 && b.moved != nil {
		if merr := b.moved(p[:n]); merr != nil {
			return n, merr
		}
	}
	return n, err
}

// pump copies and counts.
func pump(w io.Writer, r io.Reader, also io.Writer, moved func(n int) error) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return werr
			}
			if _, werr := also.Write(buf[:n]); werr != nil {
				return werr
			}
			if merr := moved(n); merr != nil {
				return merr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// kept is the copy of a transferred file that belongs to the recording, where
// copies are kept (FEATURES R8).
type kept struct{ f *recording.FileWriter }

// copyOf starts a copy; of archives and without a recording there is none.
func (x *session) copyOf(ctx context.Context, d recording.Direction, name string, archive bool) *kept {
	rec := x.recording()
	if rec == nil || archive {
		return &kept{}
	}
	f, err := rec.File(ctx, d, name)
	if err != nil {
		x.s.cfg.Log.Warn("copy of a transferred file not kept", "session", x.row.ID, "err", err)
		return &kept{}
	}
	return &kept{f}
}

// Write implements io.Writer.
func (k *kept) Write(p []byte) (int, error) {
	if k.f == nil {
		return len(p), nil
	}
	return k.f.Write(p)
}

func (k *kept) close(x *session, whole bool) {
	if k.f == nil {
		return
	}
	if !whole {
		k.f.Abandon()
	}
	ctx, cancel := context.WithTimeout(x.s.hard, askTimeout)
	defer cancel()
	if _, err := k.f.Close(ctx); err != nil {
		x.s.cfg.Log.Warn("copy of a transferred file not kept", "session", x.row.ID, "err", err)
	}
}
