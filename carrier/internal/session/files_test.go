package session

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"caponier/e2e/harness"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

// ask sends one request to a session's files over a tunnel, as core does.
func (r *rig) ask(t tunnel.Session, session, method, path string, body []byte) (int, []byte) {
	r.t.Helper()
	s, err := t.Open(r.t.Context(), wire.Preface{Kind: wire.StreamDial, Connection: session, Network: "tcp", Dest: wire.SessionFiles})
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://files"+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Close = true
	go req.Write(s)
	resp, err := http.ReadResponse(bufio.NewReader(s), req)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, b
}

func (r *rig) list(t tunnel.Session, session string) map[string]int64 {
	r.t.Helper()
	status, b := r.ask(t, session, http.MethodGet, "/files", nil)
	var found wire.WebFiles
	if err := json.Unmarshal(b, &found); err != nil || status != http.StatusOK {
		r.t.Fatalf("list: %d, %s, %v", status, b, err)
	}
	out := map[string]int64{}
	for _, f := range found.Files {
		name := f.Path
		if f.Dir {
			name += "/"
		}
		out[name] = f.Size
	}
	return out
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Files and folders go in and come out unchanged, each is an event, and what
// the policy forbids does not pass.
func TestFiles(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	s := r.spec("con_files")
	s.Policy.UploadMax, s.Policy.DownloadMax = 1<<20, 2<<20
	r.open(s)
	tn := r.tunnel()
	data := bytes.Repeat([]byte("0123456789abcdef"), 50_000)
	if status, b := r.ask(tn, s.ID, http.MethodPut, "/files/a%20b/ü+&%25.bin", data); status != http.StatusNoContent {
		t.Fatalf("put: %d %s", status, b)
	}
	if got := r.list(tn, s.ID); fmt.Sprint(got) != "map[a b/:0 a b/ü+&%.bin:800000]" {
		t.Errorf("list %v", got)
	}
	if status, b := r.ask(tn, s.ID, http.MethodGet, "/files/a%20b/ü+&%25.bin", nil); status != http.StatusOK || !bytes.Equal(b, data) {
		t.Errorf("get: %d, %d bytes", status, len(b))
	}
	want := map[string]string{"path": "a b/ü+&%.bin", "size": "800000", "sha256": hash(data), "outcome": "ok"}
	for _, kind := range []string{"upload", "download"} {
		r.until(patience, kind, func() error {
			if e := r.core.events(s.ID, kind); len(e) != 1 || fmt.Sprint(e[0]) != fmt.Sprint(want) {
				return fmt.Errorf("%v", e)
			}
			return nil
		})
	}

	// A folder of many files, with what must not be made: links, devices, paths
	// that lead elsewhere.
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range 1000 {
		text := strings.Repeat(fmt.Sprint(i), 10)
		h := &tar.Header{Name: fmt.Sprintf("many/%d/file %d", i%10, i), Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(text))}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, text)
	}
	w.WriteHeader(&tar.Header{Name: "many/empty/", Typeflag: tar.TypeDir, Mode: 0o700})
	w.WriteHeader(&tar.Header{Name: "many/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"})
	w.WriteHeader(&tar.Header{Name: "many/hard", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"})
	w.WriteHeader(&tar.Header{Name: "many/dev", Typeflag: tar.TypeBlock})
	w.Close()
	if status, b := r.ask(tn, s.ID, http.MethodPut, "/files/?tar=1", buf.Bytes()); status != http.StatusNoContent {
		t.Fatalf("put tar: %d %s", status, b)
	}
	got := r.list(tn, s.ID)
	if len(got) != 2+1+10+1+1000 {
		t.Errorf("%d entries", len(got))
	}
	status, b := r.ask(tn, s.ID, http.MethodGet, "/files/many", nil)
	files := 0
	in := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("tar (%d): %v", status, err)
		}
		text, _ := io.ReadAll(in)
		if h.Typeflag == tar.TypeReg {
			files++
			var n int
			if fmt.Sscanf(h.Name[strings.LastIndex(h.Name, "/")+1:], "file %d", &n); string(text) != strings.Repeat(fmt.Sprint(n), 10) {
				t.Fatalf("%s holds %q", h.Name, text)
			}
		}
	}
	if files != 1000 {
		t.Errorf("%d files came out", files)
	}

	for path, want := range map[string]int{"/files/..%2f..%2fetc%2fpasswd": 422, "/files/a/../../etc/passwd": 422, "/files/%2e%2e/x": 422,
		"/files/none": 404, "/files/a%00b": 422, "/elsewhere": 404, "/filesx": 404, "/files/" + strings.Repeat("d/", 40) + "x": 422} {
		if status, _ := r.ask(tn, s.ID, http.MethodGet, path, nil); status != want {
			t.Errorf("GET %s: %d, want %d", path, status, want)
		}
	}
	if status, b := r.ask(tn, s.ID, http.MethodPut, "/files/big", make([]byte, 1<<20+1)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("over the limit: %d %s", status, b)
	}
	if _, there := r.list(tn, s.ID)["big"]; there {
		t.Error("a file over the limit is there")
	}
	l := r.m.find(s.ID)
	r.inside(l, "ln -s /etc/passwd /files/link; mkfifo /files/pipe; head -c 3000000 /dev/zero >/files/huge; ln -s / /files/root")
	for path, want := range map[string]int{"/files/link": 409, "/files/pipe": 409, "/files/root/etc/passwd": 409, "/files/huge": 413} {
		if status, b := r.ask(tn, s.ID, http.MethodGet, path, nil); status != want {
			t.Errorf("GET %s: %d %s, want %d", path, status, b, want)
		}
	}
	if status, _ := r.ask(tn, s.ID, http.MethodDelete, "/files/many", nil); status != http.StatusNoContent {
		t.Errorf("delete: %d", status)
	}
	if got := r.list(tn, s.ID); len(got) != 3 {
		t.Errorf("after deletion: %v", got)
	}

	s.Revision, s.Policy.UploadMax, s.Policy.DownloadMax = 2, 0, 0
	r.m.put(t.Context(), s)
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
		if status, _ := r.ask(tn, s.ID, m, "/files/a%20b/x", []byte("x")); status != http.StatusForbidden {
			t.Errorf("%s though it is forbidden: %d", m, status)
		}
	}
	r.until(patience, "uploads are told", func() error {
		if e := r.core.events(s.ID, "upload"); len(e) < 1001 {
			return fmt.Errorf("%d of them", len(e))
		}
		return nil
	})
}

// What the browser downloads lies in the folder, without a question of the
// browser's own: over plain HTTP, and a kind of file that it calls dangerous. A
// download that is forbidden leaves nothing there.
func TestBrowserDownload(t *testing.T) { each(t, testBrowserDownload) }

func testBrowserDownload(t *testing.T, r *rig) {
	r.web.handler = func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Disposition", `attachment; filename="invoice.deb"`)
		w.Write(bytes.Repeat([]byte("invoic"), 1000))
	}
	r.conf = func(c *Config) { c.Warm[r.what] = 2 }
	r.start()
	r.warm(2)
	tn := r.tunnel()
	may, not := r.spec("con_may"), r.spec("con_not")
	not.Policy.DownloadMax = 0
	r.open(not)
	r.open(may)
	r.until(patience, "the download", func() error {
		if got := r.list(tn, may.ID); got["invoice.deb"] != 6000 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if status, b := r.ask(tn, may.ID, http.MethodGet, "/files/invoice.deb", nil); status != http.StatusOK || len(b) != 6000 {
		t.Errorf("get: %d, %d bytes", status, len(b))
	}
	r.until(patience, "the other browser asks", func() error {
		_, requests := r.web.seen()
		if !slices.ContainsFunc(requests, func(q string) bool { return strings.Contains(q, "/con_not") }) {
			return fmt.Errorf("asked for are %q", requests)
		}
		return nil
	})
	r.until(patience, "no file", func() error {
		if got := strings.TrimSpace(r.inside(r.m.find(not.ID), "find /files /tmp/home -name '*invoice*' -o -name '*.part' -o -name '*.crdownload'")); got != "" {
			return errors.New(got)
		}
		return nil
	})
}

// A person picks an uploaded file in the browser's own dialog, which opens in
// the folder. With files forbidden there is no dialog.
func TestBrowserUpload(t *testing.T) { each(t, testBrowserUpload) }

func testBrowserUpload(t *testing.T, r *rig) {
	var mu sync.Mutex
	heard := map[string]bool{} // by session and word; guarded by mu
	r.web.handler = func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		if word := q.URL.Query().Get("word"); word != "" {
			mu.Lock()
			defer mu.Unlock()
			heard[q.URL.Path+" "+word] = true
			return
		}
		io.WriteString(w, `<!doctype html><body style="margin:0;background:rgb(9,160,9)">
			<input type=file style="position:absolute;left:0;top:0;width:600px;height:200px"
			onchange="fetch('?word='+this.files[0].name+this.files[0].size)" oncancel="fetch('?word=cancelled')">`)
	}
	said := func(what string) error {
		mu.Lock()
		defer mu.Unlock()
		if !heard[what] {
			return fmt.Errorf("the page said %v", heard)
		}
		return nil
	}
	r.conf = func(c *Config) { c.Warm[r.what] = 2 }
	r.start()
	r.warm(2)
	tn := r.tunnel()
	green := colourOf(9, 160, 9)
	s := r.spec("con_up")
	l := r.open(s)
	if status, b := r.ask(tn, s.ID, http.MethodPut, "/files/letter.txt", []byte("dear all")); status != http.StatusNoContent {
		t.Fatalf("put: %d %s", status, b)
	}
	r.shows(l, green, patience)
	v := r.viewer(tn, s.ID, wire.ScreenControl)
	r.until(patience, "dialog", func() error {
		v.click(40, 12)
		return harness.Until(t.Context(), again, "dialog", func() error {
			if p := l.screen.Snapshot(); share(p, green) > 0.5 {
				return errors.New("only the page")
			}
			return nil
		})
	})
	keep(t, r.what+"-dialog.png", r.rest(l))
	v.text("/files/letter.txt")
	if r.what == wire.Chromium {
		v.press(keyAlt, 'o') // Open: its Return cancels
	} else {
		v.press(keyReturn)
	}
	r.until(patience, "the page is given the file", func() error { return said("/con_up letter.txt8") })

	s = r.spec("con_no")
	s.Policy.UploadMax, s.Policy.DownloadMax = 0, 0
	l = r.open(s)
	r.shows(l, green, patience)
	v = r.viewer(tn, s.ID, wire.ScreenControl)
	r.until(patience, "the page is refused a file", func() error {
		v.click(40, 12)
		return harness.Until(t.Context(), again, "the refusal", func() error { return said("/con_no cancelled") })
	})
	if got := share(r.rest(l), green); got < 0.9 {
		t.Errorf("something lies over the page (%.2f)", got)
	}
}

// Streams for what is not there are refused with words.
func TestStreamsRefused(t *testing.T) {
	r := newRig(t)
	r.start()
	tn := r.tunnel()
	for _, dest := range []string{wire.ScreenControl, wire.ScreenWatch, wire.SessionFiles, "10.0.0.1:22"} {
		s, err := tn.Open(t.Context(), wire.Preface{Kind: wire.StreamDial, Connection: "con_none", Network: "tcp", Dest: dest})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Read(make([]byte, 1))
		if we, ok := errors.AsType[*wire.Error](err); !ok || we.Code != wire.CodeRefused {
			t.Errorf("%s: %v", dest, err)
		}
		s.Close()
	}
}
