package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/wire"
)

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
	u.comesOut(t)
	u.goesIn(t)
}

// goesIn: what was put into the session is sent to the site through the
// browser's file dialog.
func (u *webUse) goesIn(t *testing.T) {
	t.Helper()
	s := u.site
	text := bigText(70000)
	if code, said := u.files(t, http.MethodPut, "/to-the-site.txt", []byte(text)); code >= 300 {
		t.Fatalf("put a file: %d %s", code, said)
	}
	u.atUpload(t)
	plain := u.Screen.Picture()
	u.click(t, "#file")
	if err := u.Screen.Wait(t.Context(), patience, "the file dialog", func(p *image.RGBA) error {
		if harness.Share(p, s.Color()) > 0.7*harness.Share(plain, s.Color()) {
			return errors.New("it is not there")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	open := []uint32{harness.KeyReturn}
	if s.spec.Web.Browser["engine"] == wire.Chromium { // there Return cancels
		open = []uint32{harness.KeyAlt, 'o'}
	}
	if err := errors.Join(u.Screen.Type("/files/to-the-site.txt"), u.Screen.Press(open...)); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the site has the file", func() error {
		for _, up := range s.Uploads() {
			if up.SHA256 == sha(text) {
				return nil
			}
		}
		return fmt.Errorf("it has %+v", s.Uploads())
	})
}

// atUpload leads to the site's page for files.
func (u *webUse) atUpload(t *testing.T) {
	t.Helper()
	u.drive(t, "/upload")
	until(t, patience, "the upload page is there", func() error {
		if got := u.run(t, "return (document.getElementById('said')||{}).textContent"); got != "choose" {
			return errors.New(got)
		}
		return nil
	})
}

// noDialog: the page's wish for a file is refused at once, and nothing comes up.
func (u *webUse) noDialog(t *testing.T) {
	t.Helper()
	u.atUpload(t)
	plain := harness.Share(u.Screen.Picture(), u.site.Color())
	u.run(t, "window.refused = 0; document.getElementById('file').addEventListener('cancel', () => refused++); return 1")
	u.click(t, "#file")
	until(t, patience, "the page is refused a file", func() error {
		if got := u.run(t, "return refused"); got != "1" {
			return errors.New(got)
		}
		return nil
	})
	if got := harness.Share(u.Screen.Picture(), u.site.Color()); got < 0.9*plain {
		t.Errorf("%.0f %% of the screen is the page, before %.0f %%", 100*got, 100*plain)
	}
}

// comesOut: a download that the page begins can be fetched from the session.
func (u *webUse) comesOut(t *testing.T) {
	t.Helper()
	const size = 300000
	u.run(t, fmt.Sprintf("const a = document.createElement('a'); a.href = '/files/report.bin?size=%d'; setTimeout(() => a.click(), 300); return 1", size))
	until(t, patience, "the download can be fetched", func() error {
		if code, text := u.files(t, http.MethodGet, "/report.bin", nil); code != 200 || sha(string(text)) != sites.PatternSum(size) {
			return fmt.Errorf("%d, %d bytes", code, len(text))
		}
		return nil
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
	u.passNoFiles(t)
	u.noDialog(t)
}

// passNoFiles: nothing can be put into a session, and nothing that its browser
// downloads, if it does, fetched.
func (u *webUse) passNoFiles(t *testing.T) {
	t.Helper()
	if code, _ := u.files(t, http.MethodPut, "/x.txt", []byte("x")); code < 400 {
		t.Errorf("put: %d", code)
	}
	u.run(t, "const a = document.createElement('a'); a.href = '/files/report.bin?size=5000'; setTimeout(() => a.click(), 300); return 1")
	until(t, patience, "the browser has asked for it", func() error {
		for _, r := range u.site.Requests() {
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

// download has the page begin a download of the site.
func (u *webUse) download(t *testing.T, name string, size int) {
	t.Helper()
	u.run(t, fmt.Sprintf("const a = document.createElement('a'); a.href = '/files/%s?size=%d'; setTimeout(() => a.click(), 300); return 1", name, size))
}

// Files pass for those alone whose role has file_transfer, and up to the
// target's size.
func TestWebFilesLimits(t *testing.T) {
	w := web(t)
	const most = 100_000
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"upload_max": most, "download_max": most}})
	// Somebody whose role opens the target, without file_transfer.
	name := "no-files"
	id, role, err := w.core.Admin.User(t.Context(), name, "a-password-of-the-tests")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(w.core.Admin.Delete(context.Background(), "/users/"+id), w.core.Admin.Delete(context.Background(), "/roles/"+role)); err != nil {
			t.Error(err)
		}
	})
	if _, err := w.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: role, Target: s.target, Accounts: []string{"*"}, Features: []string{"web"}}); err != nil {
		t.Fatal(err)
	}
	api, err := w.as(t.Context(), name, "a-password-of-the-tests")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, w.carrier, harness.HasRoom(1)); err != nil {
		t.Fatal(err)
	}
	denied := w.openAs(t, api, s)
	denied.shows(t, "the page, for who may not transfer files")
	if code, text := denied.files(t, http.MethodPut, "/x.txt", []byte("x")); code != http.StatusForbidden {
		t.Errorf("put without file_transfer: %d %s", code, text)
	}
	denied.download(t, "report.bin", 5000)
	until(t, patience, "the browser has asked for it", func() error {
		if !slices.ContainsFunc(s.Requests(), func(r sites.Request) bool { return r.Path == "/files/report.bin" }) {
			return errors.New("it has not")
		}
		return nil
	})
	if code, text := denied.files(t, http.MethodGet, "/report.bin", nil); code != http.StatusForbidden {
		t.Errorf("get without file_transfer: %d, %d bytes", code, len(text))
	}
	denied.end(t)

	u := w.open(t, s)
	u.shows(t, "the page")
	if code, text := u.files(t, http.MethodPut, "/fits.bin", make([]byte, most)); code >= 300 {
		t.Errorf("put as much as may be: %d %s", code, text)
	}
	if code, _ := u.files(t, http.MethodPut, "/large.bin", make([]byte, most+1)); code < 400 {
		t.Errorf("put a byte more than may be: %d", code)
	}
	if code, _ := u.files(t, http.MethodGet, "/large.bin", nil); code != http.StatusNotFound {
		t.Errorf("what was too large is there: %d", code)
	}
	u.download(t, "fits.bin", most)
	until(t, patience, "what fits can be fetched", func() error {
		// The name is taken: Firefox gives it a number.
		for _, path := range []string{"/fits(1).bin", "/fits.bin"} {
			if code, text := u.files(t, http.MethodGet, path, nil); code == 200 && sha(string(text)) == sites.PatternSum(most) {
				return nil
			}
		}
		return errors.New("it cannot")
	})
	u.download(t, "large.bin", most+1)
	until(t, patience, "what is too large is refused, on record", func() error {
		code, text := u.files(t, http.MethodGet, "/large.bin", nil)
		if code == http.StatusOK {
			return fmt.Errorf("%w: %d bytes came", harness.ErrGone, len(text))
		}
		if code != http.StatusForbidden {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	})
	u.end(t)
	events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
	if err != nil {
		t.Fatal(err)
	}
	outcomes := map[string][]string{}
	for _, e := range events {
		if e.Kind == "upload" || e.Kind == "download" {
			outcomes[e.Kind+" "+strings.TrimPrefix(e.Fields["path"], "/")] = append(outcomes[e.Kind+" "+strings.TrimPrefix(e.Fields["path"], "/")], e.Fields["outcome"])
		}
	}
	for _, want := range []string{"upload fits.bin", "download large.bin"} {
		if len(outcomes[want]) == 0 {
			t.Errorf("%s is not on record: %v", want, outcomes)
		}
	}
	if slices.Contains(outcomes["upload large.bin"], "ok") || slices.Contains(outcomes["download large.bin"], "ok") {
		t.Errorf("what was too large passed: %v", outcomes)
	}
}

// Copies of transferred files are kept where that is set: an auditor fetches
// them in two steps, a ticket that is good once and for himself, then the file,
// which is what was transferred, byte by byte. On disk it is not in clear.
func TestWebFileCopies(t *testing.T) {
	w := web(t)
	set := func(mib int) {
		if err := w.core.Admin.Do(context.Background(), http.MethodPut, "/settings", map[string]any{"values": map[string]any{"recording.file_max_mib": mib}}, nil, "If-Match", "*"); err != nil {
			t.Fatal(err)
		}
	}
	set(1)
	t.Cleanup(func() { set(0) })
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	const size = 200_000
	u.download(t, "report.bin", size)
	until(t, patience, "the download can be fetched", func() error {
		if code, text := u.files(t, http.MethodGet, "/report.bin", nil); code != 200 || sha(string(text)) != sites.PatternSum(size) {
			return fmt.Errorf("%d, %d bytes", code, len(text))
		}
		return nil
	})
	up := bigText(70_000)
	if code, said := u.files(t, http.MethodPut, "/letter.txt", []byte(up)); code >= 300 {
		t.Fatalf("put a file: %d %s", code, said)
	}
	large := make([]byte, 3<<20)
	if code, said := u.files(t, http.MethodPut, "/large.bin", large); code >= 300 {
		t.Fatalf("put a large file: %d %s", code, said)
	}
	u.end(t)
	type file struct {
		ID, Direction, Path, SHA256, Status string
		Size                                int64 `json:"size_bytes"`
	}
	var list struct{ Items []file }
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+u.RecordingID+"/files", nil, &list); err != nil {
		t.Fatal(err)
	}
	find := func(direction, path string) file {
		t.Helper()
		for _, f := range list.Items {
			if f.Direction == direction && strings.TrimPrefix(f.Path, "/") == path {
				return f
			}
		}
		t.Fatalf("no %s of %s is listed: %+v", direction, path, list.Items)
		return file{}
	}
	fetch := func(api *harness.API, ticket string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, api.URL+"/api/v1/recording-files/"+ticket, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+api.Token)
		res, err := api.HTTP().Do(req)
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
	for _, x := range []struct {
		direction, path, sum string
		size                 int64
	}{{"download", "report.bin", sites.PatternSum(size), size}, {"upload", "letter.txt", sha(up), 70_000}} {
		f := find(x.direction, x.path)
		if f.SHA256 != x.sum || f.Size != x.size || f.Status != "stored" {
			t.Errorf("%s: %+v", x.path, f)
		}
		tickets := "/recordings/" + u.RecordingID + "/files/" + f.ID + "/ticket"
		var ticket struct{ Ticket string }
		if err := u.api.Do(t.Context(), http.MethodPost, tickets, map[string]any{}, &ticket); err == nil {
			t.Error("the user himself gets a ticket")
		}
		if err := w.core.Admin.Do(t.Context(), http.MethodPost, tickets, map[string]any{}, &ticket); err != nil {
			t.Fatal(err)
		}
		if code, _ := fetch(u.api, ticket.Ticket); code < 400 {
			t.Errorf("somebody else's ticket: %d", code)
		}
		code, got := fetch(w.core.Admin, ticket.Ticket)
		if code != http.StatusOK || sha(string(got)) != x.sum {
			t.Errorf("%s: %d, %d bytes of another hash", x.path, code, len(got))
		}
		if code, _ := fetch(w.core.Admin, ticket.Ticket); code < 400 {
			t.Errorf("the ticket a second time: %d", code)
		}
		w.audited(t, "limit=100", "who fetched "+x.path, func(e harness.Event) bool {
			return e.Type == "recording.file_sent" && e.Fields["sha256"] == x.sum
		})
	}
	if f := find("upload", "large.bin"); f.Status != "too_large" || f.SHA256 != sha(string(large)) || f.Size != int64(len(large)) {
		t.Errorf("what is larger than is kept: %+v", f)
	}
	w.notInClear(t, up[1000:1040])
}

// notInClear looks for a text in everything core keeps.
func (w *webWorld) notInClear(t *testing.T, text string) {
	t.Helper()
	files := 0
	if err := filepath.WalkDir(w.core.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if files++; bytes.Contains(b, []byte(text)) {
			t.Errorf("%s has it in clear", path)
		}
		return err
	}); err != nil || files < 5 {
		t.Errorf("%d files of core: %v", files, err)
	}
}
