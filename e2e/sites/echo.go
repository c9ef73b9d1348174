package sites

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// EchoModes are the ways /echo/{mode} gives back the password it was sent.
var EchoModes = []string{"raw", "url", "path", "base64", "base64url", "html", "entities", "json", "gzip", "deflate", "chunks", "header", "sse", "socket", "fragments"}

func (s *Site) echoRoutes() {
	s.mux.HandleFunc("GET /echo", func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := s.signedIn(w, r); ok {
			s.page(w, http.StatusOK, s.cfg.Color, template.HTML(`<p id="echo" data-modes="`+strings.Join(EchoModes, " ")+`">asking…</p>`), "echo.js")
		}
	})
	s.mux.HandleFunc("GET /echo/hash", func(w http.ResponseWriter, r *http.Request) {
		if _, password, ok := s.echoed(w, r); ok {
			sum := sha256.Sum256([]byte(password))
			// The page is to recognise the password without having it.
			reply(w, map[string]any{"length": len([]rune(password)), "sha256": hex.EncodeToString(sum[:])})
		}
	})
	s.mux.HandleFunc("GET /echo/{mode}", s.echo)
	s.mux.HandleFunc("POST /echo/report", func(w http.ResponseWriter, r *http.Request) {
		var found map[string]bool
		if err := json.NewDecoder(r.Body).Decode(&found); err != nil {
			http.Error(w, "JSON, please", http.StatusBadRequest)
			return
		}
		s.mu.Lock()
		if len(s.leaks) < maxSessions {
			maps.Copy(s.leaks, found)
		}
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
}

// Leaks says for each mode whether the page /echo found the password in the
// answer; empty until the page has tried them all.
func (s *Site) Leaks() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.leaks)
}

// echoed is whose password is given back. "?say=" gives back that text instead:
// the control that shows that the page finds what is there.
func (s *Site) echoed(w http.ResponseWriter, r *http.Request) (user, password string, ok bool) {
	user, password, ok = s.signedIn(w, r)
	if say := r.FormValue("say"); say != "" {
		password = say
	}
	return user, password, ok
}

func (s *Site) echo(w http.ResponseWriter, r *http.Request) {
	_, p, ok := s.echoed(w, r)
	if !ok {
		return
	}
	mode := r.PathValue("mode")
	text := func(kind, body string) {
		w.Header().Set("Content-Type", kind)
		fmt.Fprint(w, body)
	}
	around := func(body string) string { return "before " + body + " after" }
	switch mode {
	case "raw":
		text("text/plain; charset=utf-8", around(p))
	case "url":
		text("text/plain", around(url.QueryEscape(p)))
	case "path":
		text("text/plain", around(url.PathEscape(p)))
	case "base64":
		// At each offset base64 looks different.
		text("text/plain", base64.StdEncoding.EncodeToString([]byte(p))+" "+base64.StdEncoding.EncodeToString([]byte("x"+p))+" "+base64.StdEncoding.EncodeToString([]byte("user:"+p)))
	case "base64url":
		text("text/plain", base64.RawURLEncoding.EncodeToString([]byte("xy"+p)))
	case "html":
		text("text/html; charset=utf-8", "<!doctype html><p>"+around(html.EscapeString(p))+"</p>")
	case "entities":
		var b strings.Builder
		for _, r := range p {
			fmt.Fprintf(&b, "&#x%x;", r)
		}
		text("text/html; charset=utf-8", "<!doctype html><p>"+around(b.String())+"</p>")
	case "json":
		var b strings.Builder
		for _, r := range p {
			if r > 0xffff {
				b.WriteRune(r)
				continue
			}
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		text("application/json", `{"you_sent":"`+around(b.String())+`"}`)
	case "gzip":
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		fmt.Fprint(z, around(p))
		z.Close()
		w.Header().Set("Content-Encoding", "gzip")
		text("text/plain; charset=utf-8", b.String())
	case "deflate":
		var b bytes.Buffer
		z := zlib.NewWriter(&b)
		fmt.Fprint(z, around(p))
		z.Close()
		w.Header().Set("Content-Encoding", "deflate")
		text("text/plain; charset=utf-8", b.String())
	case "chunks":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		s.inPieces(w, r, "before ", p, " after")
	case "header":
		w.Header().Set("X-Echo", url.QueryEscape(p))
		w.Header().Set("X-Echo-Base64", base64.StdEncoding.EncodeToString([]byte(p)))
		w.Header().Set("X-Echo-Raw", p)
		text("text/plain", "see the headers")
	case "sse":
		w.Header().Set("Content-Type", "text/event-stream")
		s.inPieces(w, r, "data: ", p, "\n\n")
	case "socket", "fragments":
		s.echoSocket(w, r, mode, p)
	default:
		http.NotFound(w, r)
	}
}

// inPieces sends the text cut in the middle, with a pause, so that no reader
// sees it whole.
func (s *Site) inPieces(w http.ResponseWriter, r *http.Request, before, p, after string) {
	runes := []rune(p)
	half := len(runes) / 2
	for _, piece := range []string{before + string(runes[:half]), string(runes[half:]), after} {
		fmt.Fprint(w, piece)
		if http.NewResponseController(w).Flush() != nil || !pause(r, 30*time.Millisecond) {
			return
		}
	}
}

// pause waits, and says whether the browser is still there.
func pause(r *http.Request, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

func (s *Site) echoSocket(w http.ResponseWriter, r *http.Request, mode, p string) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // answered
	}
	defer c.CloseNow()
	s.mu.Lock()
	s.sockets++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.sockets--
		s.mu.Unlock()
	}()
	ctx := r.Context()
	if mode == "fragments" {
		to, err := c.Writer(ctx, websocket.MessageText)
		if err != nil {
			return
		}
		// More than one frame: the library sends what its buffer cannot hold.
		half := len(p) / 2
		if _, err := to.Write([]byte(strings.Repeat("~", 4090-half) + p + strings.Repeat("~", 5000))); err != nil || to.Close() != nil {
			return
		}
	} else if c.Write(ctx, websocket.MessageText, []byte("before "+p+" after")) != nil {
		return
	}
	for { // what the page says comes back
		kind, text, err := c.Read(ctx)
		if err != nil || c.Write(ctx, kind, text) != nil {
			return
		}
	}
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if json.NewEncoder(w).Encode(v) != nil {
		return // the browser has gone
	}
}
