// Package files moves files between a person and his browser container. It
// stands between core, which has decided that this person may move files at
// all, and the container's process 1, which is not trusted: names, sizes and
// answers of it are checked again here, limits of the policy are kept here,
// every file is hashed, scanned if the policy says so, and told as an event.
package files

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"caponier/shared/telemetry"
	"caponier/shared/wire"
)

// Direction of a file as the person sees it.
type Direction string

// The directions; also the types of their events.
const (
	Upload   Direction = "upload"   // to the browser
	Download Direction = "download" // from the browser
)

// Scanner looks at a file before it is handed over, and writes to out what may
// pass. An error with ErrInfected under it refuses the file for what is in it;
// any other error refuses it because it could not be looked at. size is -1 if
// it is not known.
type Scanner func(ctx context.Context, url string, d Direction, name string, in io.Reader, size int64, out io.Writer) error

// ErrInfected is the error of files that a scanner refuses.
var ErrInfected = errors.New("the scanner refused the file")

// Config is what a Service needs.
type Config struct {
	// Dial connects to the container's service of files.
	Dial func(ctx context.Context) (net.Conn, error)
	// Policy is asked anew for each file.
	Policy func() wire.BrowserPolicy
	// Scan is called when the policy names a scanner.
	Scan Scanner
	// Space is where files wait while they are scanned; they have no names there.
	Space *Space
	// Event is told each file.
	Event func(kind string, fields map[string]string)
	// Touched is told that somebody is there.
	Touched func()
	Log     *slog.Logger
}

// Limits.
const (
	maxList  = 8 << 20 // bytes of the container's list
	maxFiles = 10_000  // of one list or folder
	maxPath  = 4096
	maxDepth = 32
	answer   = 30 * time.Second // until the container begins to answer
)

// Service serves wire.SessionFiles of one session. Safe for concurrent use.
type Service struct {
	c      Config
	client *http.Client
}

// New makes a Service.
func New(c Config) *Service {
	return &Service{c: c, client: &http.Client{
		Transport: &http.Transport{
			DialContext:           func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx) },
			ResponseHeaderTimeout: answer, MaxIdleConns: 2, IdleConnTimeout: 5 * time.Second, DisableCompression: true,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close gives the connections to the container back.
func (s *Service) Close() { s.client.CloseIdleConnections() }

// refusal is an answer with words for people.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

// ServeHTTP implements http.Handler; see wire.SessionFiles.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/files")
	if !ok || rest != "" && rest[0] != '/' {
		http.NotFound(w, r)
		return
	}
	name := strings.Trim(rest, "/")
	// A page that shows the list reads it again and again by itself.
	if list := r.Method == http.MethodGet && name == ""; !list && s.c.Touched != nil {
		s.c.Touched()
	}
	var err error
	switch {
	case name != "" && !proper(name):
		err = refuse(http.StatusUnprocessableEntity, "This is not the name of a file here.")
	case r.Method == http.MethodGet && name == "":
		err = s.list(w, r)
	case r.Method == http.MethodGet:
		err = s.download(w, r, name)
	case r.Method == http.MethodPut && (name == "" || r.URL.Query().Has("tar")):
		err = s.uploadTar(r, name)
	case r.Method == http.MethodPut:
		err = s.upload(r.Context(), name, r.Body, r.ContentLength)
	case r.Method == http.MethodDelete && name != "":
		err = s.delete(r.Context(), name)
	default:
		err = refuse(http.StatusMethodNotAllowed, "This is not possible here.")
	}
	s.reply(w, r, err)
}

func (s *Service) reply(w http.ResponseWriter, r *http.Request, err error) {
	if err == nil {
		if r.Method != http.MethodGet {
			w.WriteHeader(http.StatusNoContent)
		}
		return
	}
	if errors.Is(err, errBroken) { // the answer has begun and must not look whole
		panic(http.ErrAbortHandler)
	}
	if re, ok := errors.AsType[*refusal](err); ok {
		http.Error(w, re.text, re.status)
		return
	}
	if r.Context().Err() == nil {
		s.c.Log.Warn("files", telemetry.KeyErr, err)
	}
	http.Error(w, "The browser does not answer about its files.", http.StatusBadGateway)
}

// errBroken is returned when an answer broke off after its beginning.
var errBroken = errors.New("the answer broke off")

// proper takes relative paths of ordinary names.
func proper(name string) bool {
	return len(name) <= maxPath && utf8.ValidString(name) && fs.ValidPath(name) && name != "." && strings.Count(name, "/") < maxDepth &&
		!strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// ask sends a request to the container. The caller closes the body.
func (s *Service) ask(ctx context.Context, method, name, query string, body io.Reader, size int64) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "browser", Path: "/files", RawQuery: query}
	if name != "" {
		u.Path += "/" + name
	} else if query != "" {
		u.Path += "/"
	}
	if body != nil {
		// The transport may read on when the answer is there already; what it
		// would read then is the next file's.
		lent := &lent{r: body}
		defer lent.back()
		body = lent
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	req.ContentLength = size
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("files: %w", err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNotFound:
		return nil, refuse(http.StatusNotFound, "There is no such file.")
	case http.StatusInsufficientStorage:
		return nil, refuse(http.StatusInsufficientStorage, "The browser's folder is full. Delete files there, or send less.")
	case http.StatusUnprocessableEntity:
		return nil, refuse(http.StatusUnprocessableEntity, "This is not the name of a file here.")
	}
	return nil, refuse(http.StatusConflict, "The browser cannot use this file.")
}

// lent is a reader that can be taken back.
type lent struct {
	mu sync.Mutex
	r  io.Reader // guarded by mu; nil when taken back
}

// Read implements io.Reader.
func (l *lent) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, io.EOF
	}
	return l.r.Read(p)
}

// back waits for a read that is under way and ends all later ones.
func (l *lent) back() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r = nil
}

func (s *Service) list(w http.ResponseWriter, r *http.Request) error {
	resp, err := s.ask(r.Context(), http.MethodGet, "", "", nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var found wire.WebFiles
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxList)).Decode(&found); err != nil {
		return fmt.Errorf("list of files: %w", err)
	}
	out := wire.WebFiles{Files: []wire.WebFile{}}
	for _, f := range found.Files {
		if proper(f.Path) && f.Size >= 0 && len(out.Files) < maxFiles {
			out.Files = append(out.Files, f)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		return errBroken
	}
	return nil
}

func (s *Service) delete(ctx context.Context, name string) error {
	if p := s.c.Policy(); p.UploadMax <= 0 && p.DownloadMax <= 0 {
		return refuse(http.StatusForbidden, "Files are not permitted in this session.")
	}
	resp, err := s.ask(ctx, http.MethodDelete, name, "", nil, 0)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// told makes the event of one file.
func (s *Service) told(d Direction, name string, size int64, sum []byte, outcome string) {
	f := map[string]string{"path": name, "size": strconv.FormatInt(size, 10), "outcome": outcome}
	if sum != nil {
		f["sha256"] = hex.EncodeToString(sum)
	}
	s.c.Event(string(d), f)
}

// limit is how large one file may be; an error says why none may pass.
func (s *Service) limit(d Direction, name string) (int64, error) {
	p := s.c.Policy()
	n := p.UploadMax
	if d == Download {
		n = p.DownloadMax
	}
	if n > 0 {
		return n, nil
	}
	s.told(d, name, 0, nil, "forbidden")
	if d == Download {
		return 0, refuse(http.StatusForbidden, "Downloads are not permitted in this session.")
	}
	return 0, refuse(http.StatusForbidden, "Uploads are not permitted in this session.")
}

// pass reads a file of at most limit bytes from src, has it scanned and gives
// it to take, all of it in one call. size is what is announced, -1 unknown.
func (s *Service) pass(ctx context.Context, d Direction, name string, src io.Reader, size, limit int64, take func(r io.Reader, size int64) error) error {
	if size > limit {
		s.told(d, name, size, nil, "too large")
		return tooLarge(limit)
	}
	hash := sha256.New()
	count := &counter{r: src, left: limit}
	scan := s.c.Policy().ScanURL
	if scan == "" {
		err := take(io.TeeReader(count, hash), size)
		return s.passed(d, name, count, hash.Sum(nil), limit, err)
	}
	tmp, err := s.c.Space.open(size)
	if errors.Is(err, errFull) {
		return s.noRoom(d, name, max(size, 0))
	}
	if err != nil {
		return err
	}
	defer tmp.Close()
	err = s.c.Scan(ctx, scan, d, name, count, size, io.MultiWriter(tmp, hash))
	switch {
	case count.over:
		return s.passed(d, name, count, nil, limit, err)
	case tmp.full:
		return s.noRoom(d, name, count.n)
	case errors.Is(err, ErrInfected):
		s.told(d, name, count.n, nil, "infected")
		return refuse(http.StatusForbidden, "The file was refused by the virus scanner.")
	case err != nil:
		s.c.Log.Error("scan", telemetry.KeyErr, err)
		s.told(d, name, count.n, nil, "not scanned")
		return refuse(http.StatusServiceUnavailable, "The file could not be scanned and was not passed on. Try again, or tell your administrator.")
	}
	passes, err := tmp.rewind()
	if err != nil {
		return err
	}
	count.n = passes
	return s.passed(d, name, count, hash.Sum(nil), limit, take(tmp, passes))
}

// passed tells how it went.
func (s *Service) passed(d Direction, name string, c *counter, sum []byte, limit int64, err error) error {
	switch {
	case err == nil:
		s.told(d, name, c.n, sum, "ok")
	case c.over:
		s.told(d, name, c.n, nil, "too large")
		if !errors.Is(err, errBroken) {
			err = tooLarge(limit)
		}
	default:
		s.told(d, name, c.n, nil, "broken off")
	}
	return err
}

func tooLarge(limit int64) error {
	return refuse(http.StatusRequestEntityTooLarge, "The file is too large: the limit is %d MB.", max(1, limit>>20))
}

// noRoom refuses a file that cannot wait for the scanner now, or ever.
func (s *Service) noRoom(d Direction, name string, size int64) error {
	s.told(d, name, size, nil, "no room to scan")
	s.c.Log.Warn("no room for a file that waits for the scanner", "size", size, "used", s.c.Space.Used())
	if size > s.c.Space.limit {
		return refuse(http.StatusInsufficientStorage, "The file is too large to be scanned here: the carrier has %d MB for it.", s.c.Space.limit>>20)
	}
	return refuse(http.StatusInsufficientStorage, "Too much is being scanned at present. Try again in a moment, or tell your administrator.")
}

// counter reads no more than left bytes and fails when there are more.
type counter struct {
	r    io.Reader
	n    int64
	left int64
	over bool
}

// Read implements io.Reader.
func (c *counter) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.left -= int64(n); c.left < 0 {
		c.over = true
		return 0, errors.New("the file is larger than the limit")
	}
	return n, err
}

func (s *Service) upload(ctx context.Context, name string, body io.Reader, size int64) error {
	limit, err := s.limit(Upload, name)
	if err != nil {
		return err
	}
	return s.pass(ctx, Upload, name, body, size, limit, func(r io.Reader, size int64) error {
		resp, err := s.ask(ctx, http.MethodPut, name, "", r, size)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// uploadTar takes files and folders, below the folder name if it has one. The
// first file that is refused ends it.
func (s *Service) uploadTar(r *http.Request, under string) error {
	if _, err := s.limit(Upload, path.Join(under, "*")); err != nil {
		return err
	}
	t := tar.NewReader(r.Body)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return refuse(http.StatusUnprocessableEntity, "The archive cannot be read: it is no tar, or it broke off.")
		}
		if n >= maxFiles {
			return refuse(http.StatusUnprocessableEntity, "There are more than %d files.", maxFiles)
		}
		name := path.Join(under, strings.Trim(strings.TrimPrefix(h.Name, "./"), "/"))
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir || name == "." || name == under {
			continue // links, devices and what else there is
		}
		if !proper(name) {
			return refuse(http.StatusUnprocessableEntity, "The archive has a file whose name cannot be used.")
		}
		if h.Typeflag == tar.TypeDir {
			err = s.mkdir(r.Context(), name)
		} else {
			err = s.upload(r.Context(), name, t, h.Size)
		}
		if err != nil {
			return err
		}
	}
}

// mkdir makes a folder in the container, which may stay empty.
func (s *Service) mkdir(ctx context.Context, name string) error {
	var b strings.Builder
	t := tar.NewWriter(&b)
	if err := errors.Join(t.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}), t.Close()); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	resp, err := s.ask(ctx, http.MethodPut, "", "tar=1", strings.NewReader(b.String()), int64(b.Len()))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (s *Service) download(w http.ResponseWriter, r *http.Request, name string) error {
	limit, err := s.limit(Download, name)
	if err != nil {
		return err
	}
	resp, err := s.ask(r.Context(), http.MethodGet, name, "", nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "application/x-tar" {
		return s.downloadTar(w, r, resp.Body, name, limit)
	}
	return s.pass(r.Context(), Download, name, resp.Body, resp.ContentLength, limit, func(body io.Reader, size int64) error {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(name)}))
		if size >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		}
		if n, err := io.Copy(w, body); err != nil || size >= 0 && n != size {
			return errBroken
		}
		return nil
	})
}

// refusedList is the file in a folder's tar that says what is not in it.
const refusedList = "NOT-INCLUDED.txt"

// downloadTar passes a folder on, file by file. What is refused is left out
// and listed at the end.
func (s *Service) downloadTar(w http.ResponseWriter, r *http.Request, body io.Reader, name string, limit int64) error {
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(name) + ".tar"}))
	in, out := tar.NewReader(body), tar.NewWriter(w)
	var refused strings.Builder
	for n := 0; n <= maxFiles; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errBroken
		}
		entry := strings.TrimSuffix(h.Name, "/")
		if !proper(entry) || h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
			continue
		}
		h = &tar.Header{Name: h.Name, Typeflag: h.Typeflag, Size: h.Size, Mode: 0o644, ModTime: h.ModTime, Format: tar.FormatPAX}
		if h.Typeflag == tar.TypeDir {
			h.Mode, h.Size = 0o755, 0
			if out.WriteHeader(h) != nil {
				return errBroken
			}
			continue
		}
		err = s.pass(r.Context(), Download, path.Join(path.Dir(name), entry), in, h.Size, limit, func(body io.Reader, size int64) error {
			h.Size = size
			if out.WriteHeader(h) != nil {
				return errBroken
			}
			if _, err := io.Copy(out, body); err != nil {
				return errBroken
			}
			return nil
		})
		if re, ok := errors.AsType[*refusal](err); ok {
			fmt.Fprintf(&refused, "%s: %s\n", entry, re.text)
		} else if err != nil {
			return errBroken
		}
	}
	if text := refused.String(); text != "" {
		h := &tar.Header{Name: refusedList, Typeflag: tar.TypeReg, Size: int64(len(text)), Mode: 0o644, ModTime: time.Now()}
		if out.WriteHeader(h) != nil {
			return errBroken
		}
		if _, err := io.WriteString(out, text); err != nil {
			return errBroken
		}
	}
	if out.Close() != nil {
		return errBroken
	}
	return nil
}
