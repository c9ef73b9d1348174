package webui

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

// noncePlace stands in index.html where each answer carries a nonce of its own.
const noncePlace = "__CSP_NONCE__"

// hint is shown when this binary was built without the console.
const hint = "This core was built without its web console. Build it with Node present (make build), or use ssh and the caponier command; the interface is at /api/v1.\n"

// asset is one file of the console, held in memory: together a few megabytes.
type asset struct {
	kind string // media type
	tag  string
	raw  []byte
	gz   []byte // nil: not worth compressing
	long bool   // its name changes with its content
}

type handler struct {
	assets map[string]asset // by path with a leading slash
	index  [][]byte         // index.html cut at every nonce; nil: no console
}

// Handler serves the console. Files below /assets/ have their hash in their
// name and are cached for a year; every other path that is no file is a page
// of the console, which index.html opens.
func Handler() (http.Handler, error) { return newHandler(built()) }

func newHandler(files fs.FS) (*handler, error) {
	h := &handler{assets: map[string]asset{}}
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(name, ".gz") || strings.HasPrefix(path.Base(name), ".") {
			return err
		}
		raw, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}
		if name == "index.html" {
			h.index = bytes.Split(raw, []byte(noncePlace))
			return nil
		}
		gz, err := fs.ReadFile(files, name+".gz")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		sum := sha256.Sum256(raw)
		h.assets["/"+name] = asset{
			kind: mediaType(name), tag: `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`,
			raw: raw, gz: gz, long: strings.HasPrefix(name, "assets/"),
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the console's files: %w", err)
	}
	return h, nil
}

// mediaType does not ask the machine's own tables: they differ.
func mediaType(name string) string {
	switch ext := path.Ext(name); ext {
	case ".js", ".mjs":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	case ".woff2":
		return "font/woff2"
	case ".wasm":
		return "application/wasm"
	case ".txt":
		return "text/plain; charset=utf-8"
	default:
		if t := mime.TypeByExtension(ext); t != "" {
			return t
		}
		return "application/octet-stream"
	}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this path can only be read", http.StatusMethodNotAllowed)
		return
	}
	common(w.Header())
	switch a, ok := h.assets[r.URL.Path]; {
	case ok:
		a.serve(w, r)
	case strings.HasPrefix(r.URL.Path, "/assets/"):
		// A page of an older version asks for a file that is gone: it reloads.
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, "no such file", http.StatusNotFound)
	case h.index == nil:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		fmt.Fprint(w, hint)
	default:
		h.page(w)
	}
}

func common(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

func (a asset) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", a.kind)
	h.Set("Vary", "Accept-Encoding")
	if a.long {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "no-cache")
	}
	// A worker is governed by the policy it is served with; an image opened by
	// itself must not run anything.
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	body := a.raw
	tag := a.tag
	if a.gz != nil && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body, tag = a.gz, strings.TrimSuffix(a.tag, `"`)+`-gz"`
	}
	h.Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		h.Del("Content-Encoding")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Length", fmt.Sprint(len(body)))
	if r.Method == http.MethodGet {
		w.Write(body)
	}
}

// page answers with index.html and a policy that lets only our own files run:
// the nonce is for the style elements that libraries make at run time.
func (h *handler) page(w http.ResponseWriter) {
	nonce := rand.Text()
	hd := w.Header()
	hd.Set("Content-Type", "text/html; charset=utf-8")
	hd.Set("Cache-Control", "no-store")
	hd.Set("Content-Security-Policy", policy(nonce))
	hd.Set("Permissions-Policy", "camera=(), display-capture=(), geolocation=(), microphone=(), midi=(), payment=(), usb=(), serial=(), hid=()")
	w.Write(bytes.Join(h.index, []byte(nonce)))
}

func policy(nonce string) string {
	return strings.Join([]string{
		"default-src 'none'",
		"script-src 'self' 'wasm-unsafe-eval'", // the recording player is WebAssembly
		"style-src 'self' 'nonce-" + nonce + "'",
		"img-src 'self' data: blob:",
		"font-src 'self'",
		"connect-src 'self'",
		"worker-src 'self' blob:",
		"form-action 'self'",
		"frame-ancestors 'none'",
		"base-uri 'none'",
		"object-src 'none'",
		"require-trusted-types-for 'script'",
		"trusted-types default",
	}, "; ")
}
