package files

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"caponier/shared/wire"
)

// browser is a container's service that is not ours, and not to be trusted.
type browser struct {
	mu      sync.Mutex
	handler atomic.Pointer[http.HandlerFunc]
	put     map[string]string // guarded by mu
	touched atomic.Int32      // signs of a user
}

func (b *browser) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := b.handler.Load(); h != nil && *h != nil {
		(*h)(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	b.put[r.URL.Path] = string(body)
	b.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}

func (b *browser) set(h http.HandlerFunc) { b.handler.Store(&h) }

func service(t *testing.T, b *browser, p wire.BrowserPolicy, scan Scanner) (*Service, *[]string) {
	t.Helper()
	b.put = map[string]string{}
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	var mu sync.Mutex
	var events []string
	s := New(Config{
		Dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", srv.Listener.Addr().String())
		},
		Policy: func() wire.BrowserPolicy { return p }, Scan: scan, Touched: func() { b.touched.Add(1) }, Space: NewSpace(t.TempDir(), 1<<20), Log: slog.New(slog.DiscardHandler),
		Event: func(kind string, f map[string]string) {
			mu.Lock()
			defer mu.Unlock()
			events = append(events, fmt.Sprintf("%s %s %s %s", kind, f["path"], f["size"], f["outcome"]))
		},
	})
	t.Cleanup(s.Close)
	return s, &events
}

// ask serves one request; broken reports an answer that was cut off.
func ask(s *Service, method, path, body string) (status int, text string, broken bool) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	func() {
		defer func() {
			if recover() != nil {
				broken = true
			}
		}()
		s.ServeHTTP(w, r)
	}()
	return w.Code, w.Body.String(), broken
}

// A page that shows the list of files asks for it again and again: that is no
// sign of its user. What he does with files is.
func TestListingIsNoUse(t *testing.T) {
	b := &browser{}
	s, _ := service(t, b, wire.BrowserPolicy{DownloadMax: 100, UploadMax: 100}, nil)
	b.set(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"files":[]}`) })
	for range 3 {
		if status, text, _ := ask(s, "GET", "/files", ""); status != 200 {
			t.Fatalf("%d %s", status, text)
		}
	}
	if n := b.touched.Load(); n != 0 {
		t.Errorf("%d signs of a user from listing", n)
	}
	b.set(nil)
	for i, method := range []string{"PUT", "GET", "DELETE"} {
		ask(s, method, "/files/f", "x")
		if n := b.touched.Load(); n != int32(i+1) {
			t.Errorf("%d signs of a user after %s", n, method)
		}
	}
}

// What a container says about its files is not believed.
func TestContainerIsNotTrusted(t *testing.T) {
	b := &browser{}
	s, _ := service(t, b, wire.BrowserPolicy{DownloadMax: 100, UploadMax: 100}, nil)
	b.set(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"files":[{"path":"../../etc/passwd","size_bytes":1},{"path":"/abs"},{"path":"a/../b"},{"path":"x\u0000y"},{"path":"minus","size_bytes":-5},{"path":"good","size_bytes":7}]}`)
	})
	if status, text, _ := ask(s, "GET", "/files", ""); status != 200 || strings.TrimSpace(text) != `{"files":[{"path":"good","size_bytes":7,"modified":0}]}` {
		t.Errorf("list: %d %s", status, text)
	}
	for name, h := range map[string]http.HandlerFunc{
		"no JSON": func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>") },
		"too long": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"files":[`+strings.Repeat(" ", maxList)+"]}")
		},
		"redirects": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://core/", http.StatusFound) },
		"hangs up":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		b.set(h)
		if status, text, _ := ask(s, "GET", "/files", ""); status < 400 {
			t.Errorf("%s: %d %s", name, status, text)
		}
	}
	// It announces a little and sends much, or nothing, or without end.
	b.set(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, 101)) })
	if status, _, _ := ask(s, "GET", "/files/a", ""); status != http.StatusRequestEntityTooLarge {
		t.Errorf("101 bytes: %d", status)
	}
	b.set(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush() // length unknown
		w.Write(make([]byte, 5000))
	})
	if _, text, broken := ask(s, "GET", "/files/a", ""); !broken || len(text) > 100 {
		t.Errorf("without a length: %d bytes, cut off %v", len(text), broken)
	}
	b.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "50")
		w.Write(make([]byte, 10))
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	if _, _, broken := ask(s, "GET", "/files/a", ""); !broken {
		t.Error("a file that broke off looks whole")
	}
	// Its tar has what no tar of ours has.
	b.set(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/x-tar")
		tw := tar.NewWriter(w)
		for _, h := range []*tar.Header{{Name: "../up", Size: 1, Typeflag: tar.TypeReg}, {Name: "/abs", Size: 1, Typeflag: tar.TypeReg},
			{Name: "link", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink}, {Name: "d/big", Size: 101, Typeflag: tar.TypeReg}, {Name: "d/good", Size: 1, Typeflag: tar.TypeReg, Mode: 0o4777, Uid: 0}} {
			tw.WriteHeader(h)
			tw.Write(make([]byte, h.Size))
		}
		tw.Close()
	})
	_, text, _ := ask(s, "GET", "/files/d", "")
	var names []string
	for in := tar.NewReader(strings.NewReader(text)); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, fmt.Sprintf("%s %o", h.Name, h.Mode))
	}
	if fmt.Sprint(names) != "[d/good 644 NOT-INCLUDED.txt 644]" {
		t.Errorf("tar: %q", names)
	}
}

// Files are scanned before they are handed over; what cannot be scanned stays.
func TestScan(t *testing.T) {
	b := &browser{}
	var scanned []string
	scan := func(_ context.Context, url string, d Direction, name string, in io.Reader, size int64, out io.Writer) error {
		scanned = append(scanned, fmt.Sprint(url, " ", d, " ", name, " ", size))
		body, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		switch {
		case bytes.Contains(body, []byte("virus")):
			return fmt.Errorf("%w: Test-Signature", ErrInfected)
		case bytes.Contains(body, []byte("broken")):
			return errors.New("no scanner")
		}
		_, err = out.Write(bytes.ReplaceAll(body, []byte("macro"), []byte("-")))
		return err
	}
	s, events := service(t, b, wire.BrowserPolicy{DownloadMax: 100, UploadMax: 100, ScanURL: "icap://scan.test/x"}, scan)
	for _, c := range []struct {
		body   string
		status int
		left   string
	}{{"clean", 204, "clean"}, {"a macro b", 204, "a - b"}, {"a virus", 403, ""}, {"broken", 503, ""}, {strings.Repeat("x", 101), 413, ""}} {
		status, text, _ := ask(s, "PUT", "/files/f", c.body)
		if status != c.status || b.put["/files/f"] != c.left {
			t.Errorf("up %q: %d %s, the browser has %q", c.body, status, text, b.put["/files/f"])
		}
		delete(b.put, "/files/f")
		b.set(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, c.body) })
		status, text, _ = ask(s, "GET", "/files/f", "")
		if want := map[int]int{204: 200, 403: 403, 503: 503, 413: 413}[c.status]; status != want || status == 200 && text != c.left || strings.Contains(text, "virus\n") {
			t.Errorf("down %q: %d %q", c.body, status, text)
		}
		b.set(nil)
	}
	want := "[upload f 5 ok download f 5 ok upload f 5 ok download f 5 ok upload f 7 infected download f 7 infected " +
		"upload f 6 not scanned download f 6 not scanned upload f 101 too large download f 101 too large]"
	if fmt.Sprint(*events) != want {
		t.Errorf("events %v\nwant   %s", *events, want)
	}
	if len(scanned) != 8 || scanned[0] != "icap://scan.test/x upload f 5" {
		t.Errorf("scanned %q", scanned)
	}
	left, err := os.ReadDir(s.c.Space.dir)
	if err != nil || len(left) != 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

func FuzzNames(f *testing.F) {
	for _, name := range []string{"a", "a/b", "..", "../a", "a/../b", "/", "a//b", "a\x00b", "é", "\xff", "a/.", strings.Repeat("a/", 40) + "b"} {
		f.Add(name)
	}
	dir := f.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if !proper(name) {
			return
		}
		// A name that is taken never leads out of a folder.
		if _, err := root.Lstat(name); err != nil && strings.Contains(err.Error(), "escapes") {
			t.Errorf("%q leads out", name)
		}
	})
}
