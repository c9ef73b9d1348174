package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func folderOf(t *testing.T) (fileServer, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return fileServer{root}, dir
}

func request(s fileServer, method, path string, body []byte) (int, string) {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, "http://x/", bytes.NewReader(body))
	r.URL.Path = path
	s.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

// The folder is all there is, whatever names and links say.
func TestFolder(t *testing.T) {
	s, dir := folderOf(t)
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("outside"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": outside, "dirlink": filepath.Dir(outside), "up": ".."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if code, body := request(s, http.MethodPut, "/files/a/b.txt", []byte("hello")); code != http.StatusNoContent {
		t.Fatalf("put: %d %s", code, body)
	}
	if code, body := request(s, http.MethodGet, "/files/a/b.txt", nil); code != http.StatusOK || body != "hello" {
		t.Errorf("get: %d %q", code, body)
	}
	for _, path := range []string{"/files/link", "/files/dirlink/secret", "/files/up/x", "/files/../x", "/files/a/../../x", "/files//x/../..", "/files/a\x00", "/files/\xff",
		"/files/" + strings.Repeat("d/", maxDepth) + "x", "/files/" + strings.Repeat("n", maxName+1), "/other"} {
		for _, method := range []string{http.MethodGet, http.MethodPut} {
			if code, body := request(s, method, path, []byte("changed")); code < 400 && !(method == http.MethodPut && path == "/files/link") {
				t.Errorf("%s %q: %d %q", method, path, code, body)
			}
		}
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "outside" {
		t.Errorf("the file outside: %q, %v", b, err)
	}
	if _, body := request(s, http.MethodGet, "/files", nil); strings.Contains(body, "up") || strings.Contains(body, "dirlink") || !strings.Contains(body, `"a/b.txt"`) {
		t.Errorf("list %s", body)
	}
	if code, _ := request(s, http.MethodDelete, "/files/dirlink", nil); code != http.StatusNoContent {
		t.Errorf("delete a link: %d", code)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("deleting a link: %v", err)
	}
}

func FuzzUnpack(f *testing.F) {
	for _, names := range [][]string{{"a", "b/c"}, {"../x"}, {"/etc/passwd"}, {"a/../../b"}} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			w.WriteHeader(&tar.Header{Name: name, Size: 1, Mode: 0o600, Typeflag: tar.TypeReg})
			w.Write([]byte("x"))
		}
		w.Close()
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = fileServer{root}.unpack(io.LimitReader(bytes.NewReader(b), 1<<20))
		entries, err := os.ReadDir(parent)
		if err != nil || len(entries) != 1 {
			t.Errorf("something was made outside: %v, %v", entries, err)
		}
	})
}

// What is put is whole or not there.
func TestPutBreaksOff(t *testing.T) {
	s, dir := folderOf(t)
	err := s.put("a/b", io.MultiReader(strings.NewReader("half"), &broken{}))
	if !errors.Is(err, errBroken) {
		t.Errorf("put: %v", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, "a"))
	if err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

var errBroken = fmt.Errorf("broken")

type broken struct{}

func (*broken) Read([]byte) (int, error) { return 0, errBroken }

// A download under way is neither listed nor given away: neither what there is
// of it, nor the empty file by which the browser holds its name.
func TestDownloadUnderWay(t *testing.T) {
	for _, part := range []string{"report.Xy1.bin.part", "report.bin.crdownload", "Unconfirmed 7.crdownload", ".org.chromium.Chromium.Xy1"} {
		t.Run(part, func(t *testing.T) { testDownloadUnderWay(t, part) })
	}
}

func testDownloadUnderWay(t *testing.T, part string) {
	s, dir := folderOf(t)
	for name, text := range map[string]string{"whole.txt": "whole", "report.bin": "", part: "half"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]int{"/files/whole.txt": http.StatusOK, "/files/report.bin": http.StatusConflict, "/files/" + part: http.StatusConflict} {
		if code, body := request(s, http.MethodGet, path, nil); code != want {
			t.Errorf("%s: %d %q, want %d", path, code, body, want)
		}
	}
	if _, body := request(s, http.MethodGet, "/files", nil); !strings.Contains(body, "whole.txt") || strings.Contains(body, "report") || strings.Contains(body, "hromium") || strings.Contains(body, "Unconf") {
		t.Errorf("the list: %s", body)
	}
	// Done: it has its name.
	if err := os.Rename(filepath.Join(dir, part), filepath.Join(dir, "report.bin")); err != nil {
		t.Fatal(err)
	}
	if code, body := request(s, http.MethodGet, "/files/report.bin", nil); code != http.StatusOK || body != "half" {
		t.Errorf("when it is whole: %d %q", code, body)
	}
	// Without a download an empty file is one.
	if err := os.WriteFile(filepath.Join(dir, "empty.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _ := request(s, http.MethodGet, "/files/empty.txt", nil); code != http.StatusOK {
		t.Errorf("an empty file: %d", code)
	}
}
