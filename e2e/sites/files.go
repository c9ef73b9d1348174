package sites

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"html/template"
	"io"
	"mime"
	"net/http"
	"path"
	"slices"
	"strconv"
)

// Upload is a file that a site received.
type Upload struct {
	Name   string // with the folder, where the browser tells it
	Size   int64
	SHA256 string
}

// Uploads are the files received so far.
func (s *Site) Uploads() []Upload {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.uploads)
}

// EICAR is the file that every virus scanner takes for a virus (EICAR test
// file, 68 bytes). It is put together here, so that scanners leave this program alone.
func EICAR() []byte {
	return []byte(`X5O!P%@AP[4\PZX54(P^)` + `7CC)7}$EICAR-STANDARD-` + `ANTIVIRUS-TEST-FILE!$H+H*`)
}

// maxPattern bounds downloads, in bytes.
const maxPattern = 4 << 30

// Pattern writes size bytes that are the same every time and do not compress.
func Pattern(w io.Writer, size int64) error {
	buf := make([]byte, 64<<10)
	x := uint64(size) | 1
	for size > 0 {
		n := min(int64(len(buf)), size)
		for i := range buf[:n] {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			buf[i] = byte(x)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

// PatternSum is the SHA-256 of Pattern, in hex.
func PatternSum(size int64) string {
	h := sha256.New()
	if err := Pattern(h, size); err != nil {
		panic(err) // a hash takes everything
	}
	return sum(h)
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

func (s *Site) fileRoutes() {
	s.mux.HandleFunc("GET /files", func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := s.signedIn(w, r); ok {
			s.page(w, http.StatusOK, s.cfg.Color, `<ul><li><a href="/files/report.bin?size=100000">report.bin</a><li><a href="/files/eicar.com">eicar.com</a></ul>`)
		}
	})
	s.mux.HandleFunc("GET /files/{name}", s.download)
	s.mux.HandleFunc("GET /upload", func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := s.signedIn(w, r); ok {
			folder := ""
			if r.FormValue("folder") != "" {
				folder = " webkitdirectory"
			}
			s.page(w, http.StatusOK, s.cfg.Color, template.HTML(`<form id="up"><input id="file" type="file" name="file" multiple`+folder+`><p id="said">choose</p></form>`), "upload.js")
		}
	})
	s.mux.HandleFunc("POST /upload", s.upload)
	s.mux.HandleFunc("GET /note", func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := s.signedIn(w, r); ok {
			s.page(w, http.StatusOK, s.cfg.Color, `<textarea id="note" rows="8" autofocus></textarea>`, "note.js")
		}
	})
}

func (s *Site) download(w http.ResponseWriter, r *http.Request) {
	if _, _, ok := s.signedIn(w, r); !ok {
		return
	}
	name := path.Base(r.PathValue("name"))
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	if name == "eicar.com" {
		w.Write(EICAR())
		return
	}
	size, err := strconv.ParseInt(r.FormValue("size"), 10, 64)
	if err != nil || size < 0 || size > maxPattern {
		size = 1000
	}
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	if Pattern(w, size) != nil {
		return // the browser has gone
	}
}

func (s *Site) upload(w http.ResponseWriter, r *http.Request) {
	if _, _, ok := s.signedIn(w, r); !ok {
		return
	}
	parts, err := r.MultipartReader()
	if err != nil {
		http.Error(w, "files, please", http.StatusBadRequest)
		return
	}
	n := 0
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			http.Error(w, "the upload was cut", http.StatusBadRequest)
			return
		}
		_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
		if err != nil || params["filename"] == "" {
			continue
		}
		h := sha256.New()
		size, err := io.Copy(h, part)
		if err != nil {
			http.Error(w, "the upload was cut", http.StatusBadRequest)
			return
		}
		n++
		s.mu.Lock()
		if len(s.uploads) < maxRequests {
			s.uploads = append(s.uploads, Upload{Name: params["filename"], Size: size, SHA256: sum(h)})
		}
		s.mu.Unlock()
	}
	fmt.Fprintf(w, "%d files", n)
}
