package webui

import (
	"bytes"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"caponier/e2e/harness"
)

func serve(t *testing.T, h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func sample(t *testing.T) http.Handler {
	t.Helper()
	h, err := newHandler(fstest.MapFS{
		".gitkeep":             {},
		"index.html":           {Data: []byte(`<meta property="csp-nonce" nonce="__CSP_NONCE__"><script type="module" src="/assets/index-1.js"></script>`)},
		"favicon.svg":          {Data: []byte("<svg/>")},
		"assets/index-1.js":    {Data: []byte("let a = 1")},
		"assets/index-1.js.gz": {Data: []byte("gzipped")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestPaths(t *testing.T) {
	t.Parallel()
	h := sample(t)
	for _, tc := range []struct {
		method, path  string
		status        int
		kind, caching string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", "no-store"},
		{"GET", "/terminal/db-1.example.org", 200, "text/html; charset=utf-8", "no-store"},
		{"HEAD", "/connections", 200, "text/html; charset=utf-8", "no-store"},
		{"GET", "/index.html", 200, "text/html; charset=utf-8", "no-store"},
		{"GET", "/assets/index-1.js", 200, "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"},
		{"GET", "/favicon.svg", 200, "image/svg+xml", "no-cache"},
		{"GET", "/assets/index-0.js", 404, "text/plain; charset=utf-8", "no-store"},
		{"GET", "/assets/../index.html", 404, "text/plain; charset=utf-8", "no-store"},
		{"POST", "/", 405, "text/plain; charset=utf-8", ""},
	} {
		w := serve(t, h, tc.method, tc.path)
		if w.Code != tc.status || w.Header().Get("Content-Type") != tc.kind || w.Header().Get("Cache-Control") != tc.caching {
			t.Errorf("%s %s: %d %q %q", tc.method, tc.path, w.Code, w.Header().Get("Content-Type"), w.Header().Get("Cache-Control"))
		}
	}
}

func TestCompressionAndETag(t *testing.T) {
	t.Parallel()
	h := sample(t)
	plain := serve(t, h, "GET", "/assets/index-1.js")
	gz := serve(t, h, "GET", "/assets/index-1.js", "Accept-Encoding", "br, gzip")
	if plain.Body.String() != "let a = 1" || gz.Body.String() != "gzipped" || gz.Header().Get("Content-Encoding") != "gzip" || gz.Header().Get("Vary") != "Accept-Encoding" {
		t.Errorf("plain %q, compressed %q %v", plain.Body, gz.Body, gz.Header())
	}
	if plain.Header().Get("ETag") == gz.Header().Get("ETag") {
		t.Error("both encodings have the same ETag")
	}
	if w := serve(t, h, "GET", "/assets/index-1.js", "If-None-Match", plain.Header().Get("ETag")); w.Code != 304 || w.Body.Len() != 0 {
		t.Errorf("known already: %d %q", w.Code, w.Body)
	}
}

// Only our own files run, nobody frames the page, and every answer has a nonce
// of its own, the same in the page and in its policy.
func TestPolicy(t *testing.T) {
	t.Parallel()
	h := sample(t)
	nonces := map[string]bool{}
	for range 3 {
		w := serve(t, h, "GET", "/")
		csp := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{
			"default-src 'none'", "script-src 'self' 'wasm-unsafe-eval';", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "object-src 'none'",
			"require-trusted-types-for 'script'", "trusted-types default", "form-action 'self'",
		} {
			if !strings.Contains(csp+";", want) {
				t.Errorf("the policy lacks %s: %s", want, csp)
			}
		}
		if strings.Contains(csp, "unsafe-inline") || strings.Contains(csp, "'unsafe-eval'") || strings.Contains(csp, "http") {
			t.Errorf("the policy permits too much: %s", csp)
		}
		m := regexp.MustCompile(`'nonce-([A-Z2-7]{20,})'`).FindStringSubmatch(csp)
		if m == nil || !strings.Contains(w.Body.String(), `nonce="`+m[1]+`"`) {
			t.Fatalf("no common nonce: %s\n%s", csp, w.Body)
		}
		nonces[m[1]] = true
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %q", name, got)
			}
		}
	}
	if len(nonces) != 3 {
		t.Errorf("a nonce came twice: %v", nonces)
	}
}

func TestWithoutConsole(t *testing.T) {
	t.Parallel()
	h, err := newHandler(fstest.MapFS{".gitkeep": {}})
	if err != nil {
		t.Fatal(err)
	}
	if w := serve(t, h, "GET", "/anything"); w.Code != 200 || w.Body.String() != hint || strings.Count(hint, "\n") != 1 {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

// signInBudget is what a stranger loads before he sees the sign-in page: bytes
// of script and style as they travel.
const signInBudget = 150_000

var (
	entryFile = regexp.MustCompile(`(?:src|href)="/(assets/[^"]+\.(?:js|css))"`)
	imported  = regexp.MustCompile(`(?:from|import)\s*["'` + "`" + `]\./([\w.-]+\.js)["'` + "`" + `]`)
	inlined   = regexp.MustCompile(`(?i)<script[^>]*>[^<]|<style|\son\w+=|style=`)
	elsewhere = regexp.MustCompile(`(?:src|href)="(?:https?:)?//`)
)

func TestSignInBudget(t *testing.T) {
	files := built()
	index, err := fs.ReadFile(files, "index.html")
	if err != nil {
		harness.Lacks(t, "the console is not built: make console")
	}
	if m := inlined.Find(index); m != nil {
		t.Errorf("index.html has something inline: %s", m)
	}
	if m := elsewhere.Find(index); m != nil {
		t.Errorf("index.html loads from elsewhere: %s", m)
	}
	// The first paint waits for no script: the frame is in the page, its style
	// comes before the scripts, and those are few.
	style, script := bytes.Index(index, []byte(`rel="stylesheet"`)), bytes.Index(index, []byte("<script"))
	if !bytes.Contains(index, []byte(`class="splash"`)) || style < 0 || style > script {
		t.Errorf("index.html does not paint before it runs: %s", index)
	}
	if n := bytes.Count(index, []byte("/assets/")); n > 4 {
		t.Errorf("index.html asks for %d files", n)
	}
	todo := []string{}
	for _, m := range entryFile.FindAllSubmatch(index, -1) {
		todo = append(todo, string(m[1]))
	}
	seen, total, signIn := map[string]bool{}, 0, false
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		text, err := fs.ReadFile(files, name)
		if err != nil {
			t.Fatal(err)
		}
		size := len(text)
		if gz, err := fs.ReadFile(files, name+".gz"); err == nil {
			size = len(gz)
		}
		total += size
		signIn = signIn || bytes.Contains(text, []byte("Sign in")) && bytes.Contains(text, []byte("Set-up code"))
		for _, m := range imported.FindAllSubmatch(text, -1) {
			todo = append(todo, path.Join("assets", string(m[1])))
		}
	}
	t.Logf("sign-in: %d bytes in %d files", total, len(seen))
	if !signIn {
		t.Errorf("the sign-in page is not in %v", seen)
	}
	if total > signInBudget || len(seen) < 2 {
		t.Errorf("the sign-in page takes %d bytes in %d files (%v); at most %d", total, len(seen), seen, signInBudget)
	}
}
