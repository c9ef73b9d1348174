package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"
)

// Limits of the folder. Its size is that of the file system under it.
const (
	maxEntries = 10_000
	maxDepth   = 32
	maxName    = 255 // bytes of one name
	maxPath    = 4096
)

// entry is one file or folder of the list, as wire.WebFile.
type entry struct {
	Path     string `json:"path"`
	Dir      bool   `json:"dir,omitempty"`
	Size     int64  `json:"size_bytes"`
	Modified int64  `json:"modified"`
}

// fileServer serves the folder to the carrier:
//
//	GET    /files           the list
//	GET    /files/{path}    a file; of a folder a tar
//	PUT    /files/{path}    a file
//	PUT    /files/?tar=1    a tar of files and folders
//	DELETE /files/{path}    a file, or a folder with what is in it
//
// Names come from web pages and from the person: nothing outside the folder is
// reached by any of them, and no link is followed out of it.
type fileServer struct{ root *os.Root }

// errKind is the error of what is neither a file nor a folder.
var errKind = errors.New("this is no ordinary file")

// errUnfinished is the error of what is not whole yet.
var errUnfinished = errors.New("the download is not complete yet")

// errName is the error of names that are not taken.
var errName = errors.New("this is not the name of a file here")

// ServeHTTP implements http.Handler.
func (s fileServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/files")
	if !ok || rest != "" && rest[0] != '/' {
		http.NotFound(w, r)
		return
	}
	name := strings.Trim(rest, "/")
	var err error
	if name != "" {
		err = checkName(name)
	}
	switch {
	case err != nil:
	case r.Method == http.MethodGet && name == "":
		err = s.list(w)
	case r.Method == http.MethodGet:
		err = s.get(w, name)
	case r.Method == http.MethodPut && name == "":
		err = s.unpack(http.MaxBytesReader(w, r.Body, 64<<30))
	case r.Method == http.MethodPut:
		err = s.put(name, r.Body)
	case r.Method == http.MethodDelete && name != "":
		err = s.root.RemoveAll(name)
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	switch {
	case err == nil && r.Method != http.MethodGet:
		w.WriteHeader(http.StatusNoContent)
	case err == nil:
	case errors.Is(err, errStarted): // the answer cannot be taken back: cut it
		panic(http.ErrAbortHandler)
	case errors.Is(err, errUnfinished):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.Is(err, errName):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, "there is no such file", http.StatusNotFound)
	case errors.Is(err, syscall.ENOSPC):
		http.Error(w, "the folder is full", http.StatusInsufficientStorage)
	default:
		http.Error(w, "the file cannot be used", http.StatusConflict)
	}
}

// checkName takes relative paths of proper names only.
func checkName(name string) error {
	if len(name) > maxPath || !utf8.ValidString(name) || strings.Count(name, "/") >= maxDepth || !fs.ValidPath(name) || name == "." {
		return errName
	}
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxName || strings.ContainsFunc(part, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return errName
		}
	}
	return nil
}

// unfinished reports names that browsers and put use for what is not whole:
// Chromium downloads to a name of its own while it does not know the file's.
func unfinished(name string) bool {
	return strings.HasSuffix(name, ".part") || strings.HasSuffix(name, ".crdownload") || strings.HasPrefix(path.Base(name), ".org.chromium.Chromium.")
}

// downloads reports whether something in a folder is not whole yet. The browser
// then holds the name it will have by an empty file.
func (s fileServer) downloads(dir string) bool {
	d, err := s.root.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	names, err := d.Readdirnames(maxEntries)
	return err == nil && slices.ContainsFunc(names, unfinished)
}

// walk visits files and folders, no links and no devices.
func (s fileServer) walk(from string, visit func(name string, info fs.FileInfo) error) error {
	n := 0
	held := map[string]bool{} // folders in which empty files are names of what is to come
	return fs.WalkDir(s.root.FS(), from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
				return nil
			}
			return err
		}
		if name == from || unfinished(name) || !d.IsDir() && !d.Type().IsRegular() {
			return nil
		}
		if n++; n > maxEntries {
			return fs.SkipAll
		}
		if d.IsDir() && strings.Count(name, "/") >= maxDepth || checkName(name) != nil {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if !d.IsDir() && info.Size() == 0 {
			dir := path.Dir(name)
			if _, known := held[dir]; !known {
				held[dir] = s.downloads(dir)
			}
			if held[dir] {
				return nil
			}
		}
		return visit(name, info)
	})
}

func (s fileServer) list(w http.ResponseWriter) error {
	found := []entry{}
	err := s.walk(".", func(name string, info fs.FileInfo) error {
		e := entry{Path: name, Dir: info.IsDir(), Modified: info.ModTime().Unix()}
		if !e.Dir {
			e.Size = info.Size()
		}
		found = append(found, e)
		return nil
	})
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(map[string]any{"files": found}); err != nil {
		return errStarted
	}
	return nil
}

// errStarted is returned when an answer broke off after its beginning.
var errStarted = errors.New("the answer broke off")

func (s fileServer) get(w http.ResponseWriter, name string) error {
	info, err := s.root.Lstat(name)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return s.pack(w, name)
	}
	if unfinished(name) || info.Size() == 0 && s.downloads(path.Dir(name)) {
		return errUnfinished
	}
	f, err := s.open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err = f.Stat()
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(info.Size(), 10))
	w.Header().Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
	if _, err := io.CopyN(w, f, info.Size()); err != nil {
		return errStarted
	}
	return nil
}

// open opens a regular file that is no link.
func (s fileServer) open(name string) (*os.File, error) {
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errKind
	}
	return f, nil
}

// pack answers with a folder as a tar.
func (s fileServer) pack(w http.ResponseWriter, dir string) error {
	w.Header().Set("Content-Type", "application/x-tar")
	t := tar.NewWriter(w)
	base := path.Dir(dir)
	err := s.walk(dir, func(name string, info fs.FileInfo) error {
		in := name
		if base != "." {
			in = strings.TrimPrefix(name, base+"/")
		}
		h := &tar.Header{Name: in, Mode: 0o644, ModTime: info.ModTime(), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		if info.IsDir() {
			h.Typeflag, h.Mode, h.Name = tar.TypeDir, 0o755, in+"/"
			return t.WriteHeader(h)
		}
		f, err := s.open(name)
		if err != nil {
			return nil // gone or not a file any more
		}
		defer f.Close()
		if info, err = f.Stat(); err != nil {
			return err
		}
		h.Size = info.Size()
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		_, err = io.CopyN(t, f, h.Size)
		return err
	})
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		return errStarted
	}
	return nil
}

// put writes a file; it appears under its name when it is whole.
func (s fileServer) put(name string, body io.Reader) error {
	if dir := path.Dir(name); dir != "." {
		if err := s.root.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	part := path.Join(path.Dir(name), fmt.Sprintf(".%x.part", time.Now().UnixNano()))
	f, err := s.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = s.root.Rename(part, name)
	}
	if err != nil {
		return errors.Join(err, s.root.Remove(part))
	}
	return nil
}

// unpack writes what is in a tar. It may be left half done when an entry is
// refused.
func (s fileServer) unpack(body io.Reader) error {
	t := tar.NewReader(body)
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !slices.Contains([]byte{tar.TypeReg, tar.TypeDir}, h.Typeflag) {
			continue // links, devices and what else there is
		}
		name := strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")
		if name == "" || name == "." {
			continue
		}
		if err := checkName(name); err != nil {
			return err
		}
		if n >= maxEntries {
			return errName
		}
		if h.Typeflag == tar.TypeDir {
			err = s.root.MkdirAll(name, 0o700)
		} else {
			err = s.put(name, t)
		}
		if err != nil {
			return err
		}
	}
}
