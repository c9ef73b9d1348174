package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// bigText is text of n bytes that no two places of are alike.
func bigText(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of a long text\n", i*7919)
	}
	return b.String()[:n]
}

func sha(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// Five megabytes go into the browser's clipboard and out of it unchanged.
func TestWebClipboard(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	u.drive(t, "/note")
	noteIs(t, u, sha(""))
	in := bigText(5 << 20)
	if err := u.Screen.Paste(in); err != nil {
		t.Fatal(err)
	}
	if err := u.Screen.Press(harness.KeyControl, 'v'); err != nil {
		t.Fatal(err)
	}
	noteIs(t, u, sha(in))
	out := strings.ToUpper(in)
	u.run(t, "const n = document.getElementById('note'); n.value = n.value.toUpperCase(); n.focus(); n.select(); return 1")
	if err := u.Screen.Press(harness.KeyControl, 'c'); err != nil {
		t.Fatal(err)
	}
	if err := u.Screen.Wait(t.Context(), 20*time.Second, "the text comes out", func(*image.RGBA) error {
		for _, c := range u.Screen.Copied() {
			if sha(c) == sha(out) {
				return nil
			}
		}
		return fmt.Errorf("%d texts came", len(u.Screen.Copied()))
	}); err != nil {
		t.Fatal(err)
	}
	until(t, 10*time.Second, "both are on record", func() error {
		events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
		if err != nil {
			return err
		}
		n := 0
		for _, e := range events {
			if e.Kind == "clipboard" {
				n++
			}
		}
		if n < 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
}

// Where the policy says no, not one byte passes either way.
func TestWebClipboardForbidden(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"clipboard_in": 0, "clipboard_out": 0}})
	u := w.open(t, s)
	u.shows(t, "the page")
	u.drive(t, "/note")
	noteIs(t, u, sha(""))
	if err := errors.Join(u.Screen.Paste("forbidden"), u.Screen.Press(harness.KeyControl, 'v'), u.Screen.Type("typed")); err != nil {
		t.Fatal(err)
	}
	noteIs(t, u, sha("typed"))
	if err := errors.Join(u.Screen.Press(harness.KeyControl, 'a'), u.Screen.Press(harness.KeyControl, 'c'), u.Screen.Type("x")); err != nil {
		t.Fatal(err)
	}
	noteIs(t, u, sha("x"))
	if got := u.Screen.Copied(); len(got) != 0 {
		t.Errorf("%q came out", got)
	}
}

// noteIs waits until the page's text has a hash.
func noteIs(t *testing.T, u *webUse, hash string) {
	t.Helper()
	until(t, 20*time.Second, "the note is as it should be", func() error {
		got := u.run(t, `const n = document.getElementById('note'); if (!n) return 'no note';
			const b = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(n.value)));
			return [...b].map(x => x.toString(16).padStart(2, '0')).join('') + ' ' + n.value.length`)
		if !strings.HasPrefix(got, hash) {
			return errors.New(got)
		}
		return nil
	})
}

// files speaks to a session's files.
func (u *webUse) files(t *testing.T, method, path string, body []byte) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, u.api.URL+"/api/v1/web-sessions/"+u.ID+"/files"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.api.Token)
	if method == http.MethodPut {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := u.api.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, b
}

// A folder of a thousand files goes into the session and comes back as it was;
// a file that the site offers comes out; one that was put in is sent to the site.
func TestWebFiles(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	const n = 1000
	want := map[string]string{}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := range n {
		name, text := fmt.Sprintf("many/d%d/file-%d-ü.txt", i%10, i), bigText(100+i)
		want[name] = sha(text)
		if err := errors.Join(tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}), write(tw, text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if code, text := u.files(t, http.MethodPut, "?tar=1", b.Bytes()); code >= 300 {
		t.Fatalf("put the folder: %d %s", code, text)
	}
	code, back := u.files(t, http.MethodGet, "/many", nil)
	if code != http.StatusOK {
		t.Fatalf("get the folder: %d %s", code, back)
	}
	got := 0
	for tr := tar.NewReader(bytes.NewReader(back)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		if !strings.HasPrefix(name, "many/") {
			name = "many/" + name
		}
		if want[name] != sha(string(text)) {
			t.Errorf("%s came back as something else", h.Name)
		}
		got++
	}
	if got != n {
		t.Errorf("%d files came back, want %d", got, n)
	}
	// Out: a download of the site.
	const size = 300000
	u.run(t, fmt.Sprintf("const a = document.createElement('a'); a.href = '/files/report.bin?size=%d'; setTimeout(() => a.click(), 300); return 1", size))
	until(t, 15*time.Second, "the download can be fetched", func() error {
		if code, text := u.files(t, http.MethodGet, "/report.bin", nil); code != 200 || sha(string(text)) != sites.PatternSum(size) {
			return fmt.Errorf("%d, %d bytes", code, len(text))
		}
		return nil
	})
	// In: what was put there is sent through the browser's file dialog.
	text := bigText(70000)
	if code, said := u.files(t, http.MethodPut, "/to-the-site.txt", []byte(text)); code >= 300 {
		t.Fatalf("put a file: %d %s", code, said)
	}
	u.drive(t, "/upload")
	until(t, 10*time.Second, "the upload page is there", func() error {
		if got := u.run(t, "return (document.getElementById('said')||{}).textContent"); got != "choose" {
			return errors.New(got)
		}
		return nil
	})
	plain := u.Screen.Picture()
	u.click(t, "#file")
	if err := u.Screen.Wait(t.Context(), 10*time.Second, "the file dialog", func(p *image.RGBA) error {
		if harness.Share(p, s.Color()) > 0.7*harness.Share(plain, s.Color()) {
			return errors.New("it is not there")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Screen.Type("/files/to-the-site.txt"), u.Screen.Press(harness.KeyReturn)); err != nil {
		t.Fatal(err)
	}
	until(t, 15*time.Second, "the site has the file", func() error {
		for _, up := range s.Uploads() {
			if up.SHA256 == sha(text) {
				return nil
			}
		}
		return fmt.Errorf("it has %+v", s.Uploads())
	})
}

func write(w io.Writer, text string) error {
	_, err := io.WriteString(w, text)
	return err
}

// Where the policy forbids files, none passes.
func TestWebFilesForbidden(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"upload_max": 0, "download_max": 0}})
	u := w.open(t, s)
	u.shows(t, "the page")
	if code, _ := u.files(t, http.MethodPut, "/x.txt", []byte("x")); code < 400 {
		t.Errorf("put: %d", code)
	}
	u.run(t, "const a = document.createElement('a'); a.href = '/files/report.bin?size=5000'; setTimeout(() => a.click(), 300); return 1")
	until(t, 10*time.Second, "the browser has asked for it", func() error {
		for _, r := range s.Requests() {
			if r.Path == "/files/report.bin" {
				return nil
			}
		}
		return errors.New("it has not")
	})
	if code, text := u.files(t, http.MethodGet, "/report.bin", nil); code < 400 {
		t.Errorf("get: %d %d bytes", code, len(text))
	}
}
