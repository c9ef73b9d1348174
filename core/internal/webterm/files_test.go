package webterm

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"caponier/core/internal/access"
	"caponier/core/internal/conn"
)

func filesPath(t Terminal, op string, q ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(q); i += 2 {
		v.Set(q[i], q[i+1])
	}
	return "/terminal-sessions/" + t.ID + "/files" + op + "?" + v.Encode()
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// TestThousandFiles: a folder of 1,000 files goes up and comes back as an
// archive, byte for byte, with names of all kinds.
func TestThousandFiles(t *testing.T) {
	r := newRig(t)
	term := r.open()
	root := path.Join(r.home, "folder")
	content := map[string][]byte{}
	for i := range 1000 {
		name := fmt.Sprintf("%d/datei-%d.bin", i%17, i)
		switch i {
		case 3:
			name = "3/naïve ファイル 📄.txt"
		case 4:
			name = "4/a\\b'c\"d;$(x).txt"
		case 5:
			name = "5/empty"
		}
		b := make([]byte, rand.IntN(20_000))
		for j := range b {
			b[j] = byte(rand.Uint32())
		}
		if i == 5 {
			b = nil
		}
		if i == 6 {
			b = bytes.Repeat([]byte("large "), 1_000_000)
		}
		content[name] = b
	}
	work := make(chan string)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for name := range work {
				code, body := r.do("demo", "PUT", filesPath(term, "/content", "path", path.Join(root, name), "parents", "true"), bytes.NewReader(content[name]))
				var up Uploaded
				if json.Unmarshal(body, &up) != nil || code != 200 || !up.Complete || up.SHA256 != sum(content[name]) || up.Size != int64(len(content[name])) {
					t.Errorf("upload of %s: %d %s", name, code, body)
				}
			}
		})
	}
	for name := range content {
		work <- name
	}
	close(work)
	wg.Wait()
	for name, want := range content {
		got, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || sum(got) != sum(want) {
			t.Fatalf("%s on the target: %v", name, err)
		}
	}
	must(t, os.Symlink("/etc/passwd", filepath.Join(root, "link")))
	code, body := r.do("demo", "GET", filesPath(term, "/content", "path", root), nil)
	if code != 200 {
		t.Fatalf("download: %d %s", code, body)
	}
	z, err := zip.NewReader(bytes.NewReader(body), int64(len(body)))
	must(t, err)
	files := 0
	for _, f := range z.File {
		if strings.HasSuffix(f.Name, "/") {
			continue
		}
		in, err := f.Open()
		must(t, err)
		got, err := io.ReadAll(in)
		must(t, err, in.Close())
		name := strings.TrimPrefix(f.Name, "folder/")
		switch {
		case name == "link":
			if f.Mode()&os.ModeSymlink == 0 || string(got) != "/etc/passwd" {
				t.Errorf("a link came as %v %q", f.Mode(), got)
			}
			continue
		case strings.Contains(f.Name, ".."), strings.HasPrefix(f.Name, "/"), strings.Contains(f.Name, "\\"):
			t.Errorf("unsafe name %q", f.Name)
		}
		want, ok := content[name]
		if !ok { // a name that is none everywhere
			want = content["4/a\\b'c\"d;$(x).txt"]
		}
		if sum(got) != sum(want) {
			t.Errorf("%s came back differently", f.Name)
		}
		files++
	}
	if files != len(content) {
		t.Errorf("%d of %d files came back", files, len(content))
	}
	// All of it is on the record, as a connection of its own.
	var list struct{ Items []conn.Record }
	r.call("demo", "GET", "/connections?kind=sftp", nil, 200, &list)
	if len(list.Items) != 1 || list.Items[0].Kind != "sftp" {
		t.Errorf("connections: %+v", list.Items)
	}
}

// TestUploadGoesOn: an upload that broke off goes on where it was; the file
// appears only when all of it is there.
func TestUploadGoesOn(t *testing.T) {
	r := newRig(t)
	term := r.open()
	b := make([]byte, 24<<20)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	file := filepath.Join(r.home, "big.iso")
	size := fmt.Sprint(len(b))
	broken := io.MultiReader(bytes.NewReader(b[:15<<20]), failing{})
	req, err := http.NewRequestWithContext(t.Context(), "PUT", r.web.URL+"/api/v1"+filesPath(term, "/content", "path", file, "size", size), broken)
	must(t, err)
	req.Header.Set("Authorization", "Bearer demo")
	if resp, err := r.web.Client().Do(req); err == nil {
		resp.Body.Close()
		t.Fatalf("a broken upload: %s", resp.Status)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("half a file is there: %v", err)
	}
	var at struct{ Offset int64 }
	r.until("the part is there", func() bool {
		r.call("demo", "GET", filesPath(term, "/partial", "path", file), nil, 200, &at)
		return at.Offset > 0
	})
	if at.Offset > 15<<20 {
		t.Fatalf("goes on at %d", at.Offset)
	}
	code, body := r.do("demo", "PUT", filesPath(term, "/content", "path", file, "size", size, "offset", fmt.Sprint(at.Offset)), bytes.NewReader(b[at.Offset:]))
	if code != 200 || !strings.Contains(string(body), `"complete":true`) {
		t.Fatalf("the rest: %d %s", code, body)
	}
	got, err := os.ReadFile(file)
	if err != nil || sum(got) != sum(b) {
		t.Fatalf("%d bytes of %d: %v", len(got), len(b), err)
	}
	// A download goes on, too.
	req, err = http.NewRequestWithContext(t.Context(), "GET", r.web.URL+"/api/v1"+filesPath(term, "/content", "path", file), nil)
	must(t, err)
	req.Header.Set("Authorization", "Bearer demo")
	req.Header.Set("Range", "bytes=20000000-")
	resp, err := r.web.Client().Do(req)
	must(t, err)
	rest, err := io.ReadAll(resp.Body)
	must(t, err, resp.Body.Close())
	if resp.StatusCode != 206 || sum(rest) != sum(b[20_000_000:]) {
		t.Errorf("%s with %d bytes", resp.Status, len(rest))
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrNoProgress }

// TestFileOperations: listing, folders, renaming, deleting, and what is refused.
func TestFileOperations(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Upload = 1000 })
	term := r.open()
	dir := filepath.Join(r.home, "d")
	post := func(op string, body map[string]any, status int) {
		t.Helper()
		r.call("demo", "POST", "/terminal-sessions/"+term.ID+"/files"+op, body, status, nil)
	}
	put := func(file, q string, body string) int {
		t.Helper()
		code, _ := r.do("demo", "PUT", filesPath(term, "/content", "path", file)+q, strings.NewReader(body))
		return code
	}
	post("/mkdir", map[string]any{"path": dir + "/a/b"}, 204)
	post("/mkdir", map[string]any{"path": dir + "/a/b"}, 204)
	if c := put(dir+"/a/x.txt", "", "one"); c != 200 {
		t.Errorf("upload: %d", c)
	}
	must(t, os.Chmod(dir+"/a/x.txt", 0o640))
	if c := put(dir+"/a/x.txt", "", "two"); c != 409 {
		t.Errorf("replacing without being told to: %d", c)
	}
	if c := put(dir+"/a/x.txt", "&replace=true", "three"); c != 200 {
		t.Errorf("replacing: %d", c)
	}
	if i, err := os.Stat(dir + "/a/x.txt"); err != nil || i.Mode().Perm() != 0o640 || i.Size() != 5 {
		t.Errorf("replaced: %v %v", i.Mode(), err)
	}
	if c := put(dir+"/a", "", "x"); c != 409 {
		t.Errorf("a file over a directory: %d", c)
	}
	if c := put(dir+"/large", "", strings.Repeat("x", 1001)); c != 413 {
		t.Errorf("a file that is too large: %d", c)
	}
	if c := put(dir+"/lies", "&size=3", "longer"); c != 422 {
		t.Errorf("a body longer than its file: %d", c)
	}
	if c := put(dir+"/gap", "&offset=10&size=20", "0123456789"); c != 409 {
		t.Errorf("going on from nothing: %d", c)
	}
	if c := put(dir+"/nul\x00", "", "x"); c != 422 {
		t.Errorf("a name with a zero: %d", c)
	}
	must(t, os.Symlink("/etc/hostname", dir+"/.trap.caponier-part"))
	if c := put(dir+"/trap", "", "x"); c != 409 {
		t.Errorf("an upload through a link: %d", c)
	}
	must(t, os.Symlink(dir+"/a", dir+"/to-a"))
	var d Directory
	r.call("demo", "GET", filesPath(term, "", "path", dir), nil, 200, &d)
	got := ""
	for _, e := range d.Entries {
		got += e.Name + ":" + e.Type + ":" + e.LinkType + " "
	}
	if got != "a:dir: to-a:link:dir .trap.caponier-part:link:file " {
		t.Errorf("listed %s", got)
	}
	r.call("demo", "GET", filesPath(term, "", "path", dir+"/missing"), nil, 404, nil)
	r.call("other", "GET", filesPath(term, "", "path", dir), nil, 404, nil)
	post("/rename", map[string]any{"from": dir + "/a/x.txt", "to": dir + "/y.txt"}, 204)
	post("/rename", map[string]any{"from": dir + "/y.txt", "to": dir + "/a"}, 409)
	post("/delete", map[string]any{"path": "/"}, 409)
	post("/delete", map[string]any{"path": dir + "/a/b/../../a", "recursive": true}, 204)
	post("/delete", map[string]any{"path": dir + "/to-a"}, 204)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left: %v %v", left, err)
	}
	// Without the right there are no files, and the terminal goes on.
	r.change(func() { r.features = access.Shell })
	other := r.open()
	code, body := r.do("demo", "GET", filesPath(other, "", "path", "/"), nil)
	if code != 403 || !strings.Contains(string(body), "file_transfer") {
		t.Errorf("files without the right: %d %s", code, body)
	}
	y := r.dial("demo", socketPath(other))
	y.enter("echo alive-$((9+9))\n")
	y.sees("alive-18")
}
