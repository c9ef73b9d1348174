package recording

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
)

// callers authenticates by the name in the bearer token: "auditor" may view all.
type callers struct{}

func (callers) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	name, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, nil
	}
	p := &api.Principal{UserID: "usr_" + name, UserName: name, Source: source, Via: "api", Permissions: map[api.Permission]bool{}}
	if name == "auditor" || name == "auditor2" {
		p.Permissions[api.RecordingsView] = true
	}
	return p, nil
}

// web is the store behind the real frame.
type web struct {
	*rig
	srv *httptest.Server
}

func newWeb(t *testing.T, d *db.DB) *web {
	t.Helper()
	return serveRig(newRig(t, d))
}

// serveRig serves a store's routes.
func serveRig(r *rig) *web {
	r.t.Helper()
	f, err := api.New(api.Config{Auth: callers{}, DB: r.db, Log: slog.New(slog.DiscardHandler), Now: r.clock.now})
	must(r.t, err)
	r.Routes(f)
	w := &web{rig: r, srv: httptest.NewServer(f.Handler())}
	r.t.Cleanup(func() {
		f.Close()
		w.srv.Close()
		w.srv.Client().CloseIdleConnections()
	})
	return w
}

func (w *web) call(who, method, path string) (*http.Response, string) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.srv.URL+"/api/v1"+path, nil)
	must(w.t, err)
	if who != "" {
		req.Header.Set("Authorization", "Bearer "+who)
	}
	resp, err := w.srv.Client().Do(req)
	must(w.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		body = append(body, "|"+err.Error()...)
	}
	return resp, string(body)
}

func (w *web) status(who, method, path string, want int) string {
	w.t.Helper()
	resp, body := w.call(who, method, path)
	if resp.StatusCode != want {
		w.t.Errorf("%s %s %s: %d, want %d: %s", who, method, path, resp.StatusCode, want, body)
	}
	return body
}

// Who may see a recording: its user if the setting allows, members of roles it
// is shared with, and those with the permission. To others it does not exist.
func TestAccessMatrix(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		x := w.session("demo")
		paths := []string{"", "/asciicast", "/events", "/search?q=needle", "/files"}
		check := func(what string, want map[string]int) {
			t.Helper()
			for who, code := range want {
				for _, p := range paths {
					resp, body := w.call(who, "GET", "/recordings/"+x.ID+p)
					if resp.StatusCode != code {
						t.Errorf("%s: %q %s: %d, want %d: %s", what, who, p, resp.StatusCode, code, body)
					}
				}
				n := strings.Count(w.status(who, "GET", "/recordings", map[bool]int{true: 401, false: 200}[code == 401]), x.ID)
				if listed := n > 0; listed != (code == 200) {
					t.Errorf("%s: %q: listed %t", what, who, listed)
				}
				_, body := w.call(who, "GET", "/recordings/search?q=needle")
				if found := strings.Contains(body, x.ID); found != (code == 200) {
					t.Errorf("%s: %q: found %t", what, who, found)
				}
			}
		}
		check("own and permission", map[string]int{"demo": 200, "other": 404, "auditor": 200, "": 401})
		w.limits.OwnView = false
		check("own not allowed", map[string]int{"demo": 404, "auditor": 200})
		w.roles["usr_other"] = []string{"rol_x", "rol_team"}
		w.status("other", "PUT", "/recordings/"+x.ID+"/roles/rol_team", 403)
		w.status("auditor", "PUT", "/recordings/"+x.ID+"/roles/rol_team", 204)
		w.status("auditor", "PUT", "/recordings/"+x.ID+"/roles/rol_team", 204)
		check("shared with a role", map[string]int{"other": 200, "demo": 404})
		if body := w.status("auditor", "GET", "/recordings/"+x.ID+"/roles", 200); strings.Count(body, "rol_team") != 1 {
			t.Errorf("roles: %s", body)
		}
		w.status("auditor", "DELETE", "/recordings/"+x.ID+"/roles/rol_team", 204)
		w.status("auditor", "DELETE", "/recordings/"+x.ID+"/roles/rol_team", 404)
		check("taken back", map[string]int{"other": 404})
		events := auditTypes(t, d, x.ID)
		for _, want := range []string{"recording.played", "recording.searched", "recording.shared"} {
			if !strings.Contains(events, want) {
				t.Errorf("no %s in %q", want, events)
			}
		}
		w.status("auditor", "GET", "/recordings/rec_unknown", 404)
		w.status("auditor", "GET", "/recordings/..%2f..%2fetc%2fpasswd/asciicast", 404)
		w.status("auditor", "DELETE", "/recordings/"+x.ID, 405)
	})
}

func TestCastOverHTTP(t *testing.T) {
	w := newWeb(t, dbtest.SQLite(t))
	x := w.session("demo")
	resp, body := w.call("demo", "GET", "/recordings/"+x.ID+"/asciicast")
	if resp.Trailer.Get(trailerStatus) != "complete" || !strings.HasPrefix(resp.Trailer.Get(trailerText), "complete: ") ||
		!strings.Contains(body, "needle.txt") || resp.Header.Get("Content-Type") != "application/x-asciicast" {
		t.Errorf("trailer %v, body %s", resp.Trailer, body)
	}
	// Cut off: what is authentic is sent, and the end says what is missing.
	raw, err := os.ReadFile(w.path(x, kindRec))
	must(t, err, os.WriteFile(w.path(x, kindRec), raw[:len(raw)-30], 0o600))
	resp, body = w.call("demo", "GET", "/recordings/"+x.ID+"/asciicast")
	if resp.StatusCode != 200 || resp.Trailer.Get(trailerStatus) != "incomplete" || !strings.Contains(body, "without end mark") {
		t.Errorf("cut: %d, trailer %v, body %s", resp.StatusCode, resp.Trailer, body)
	}
	raw[3] ^= 1
	must(t, os.WriteFile(w.path(x, kindRec), raw, 0o600))
	if body := w.status("demo", "GET", "/recordings/"+x.ID+"/asciicast", 409); !strings.Contains(body, "damaged") {
		t.Errorf("damaged head: %s", body)
	}
	if body := w.status("demo", "POST", "/recordings/"+x.ID+"/verify", 200); !strings.Contains(body, `"damaged"`) {
		t.Errorf("verify: %s", body)
	}
	// A recording that runs.
	live := w.create("demo")
	must(t, live.Output([]byte("now\r\n")))
	w.until("first block", func() bool {
		_, body := w.call("demo", "GET", "/recordings/"+live.ID+"/asciicast")
		return strings.Contains(body, "now")
	})
	if resp, _ := w.call("demo", "GET", "/recordings/"+live.ID+"/asciicast"); resp.Trailer.Get(trailerStatus) != "recording" {
		t.Errorf("running: trailer %v", resp.Trailer)
	}
	must(t, live.Close())
	// One that retention removed.
	w.clock.add(200 * 24 * time.Hour)
	must(t, w.expire(t.Context()))
	w.status("demo", "GET", "/recordings/"+x.ID+"/asciicast", 410)
}

// Who cannot be audited sees nothing.
func TestViewNeedsAudit(t *testing.T) {
	d := dbtest.SQLite(t)
	w := newWeb(t, d)
	x := w.session("demo")
	flaky := &flakyAudit{Auditor: audit.New(d, time.Now), away: true}
	w.cfg.Audit = flaky
	for _, p := range []string{"/asciicast", "/events", "/search?q=x"} {
		if body := w.status("demo", "GET", "/recordings/"+x.ID+p, 500); strings.Contains(body, "needle") {
			t.Errorf("%s: %s", p, body)
		}
	}
}

func TestListFilters(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		var ids []string
		for range 5 {
			ids = append(ids, w.session("demo").ID)
		}
		other := w.session("other")
		for query, want := range map[string]int{
			"": 6, "user=demo": 5, "user=usr_other": 1, "target=db-1": 6, "target=tgt_2": 0, "account=root": 6, "kind=ssh": 6,
			"kind=exec": 0, "status=complete": 6, "status=damaged": 0, "connection=con_1": 6, "from=2001-01-01T00:00:00Z": 6,
			"to=2001-01-01T00:00:00Z": 0, "user=other&status=complete": 1,
		} {
			var page api.Page[Recording]
			must(t, json.Unmarshal([]byte(w.status("auditor", "GET", "/recordings?"+query, 200)), &page))
			if len(page.Items) != want {
				t.Errorf("%q: %d, want %d", query, len(page.Items), want)
			}
		}
		var seen []string
		for next := ""; ; {
			var page api.Page[Recording]
			must(t, json.Unmarshal([]byte(w.status("auditor", "GET", "/recordings?limit=2&cursor="+next, 200)), &page))
			for _, x := range page.Items {
				seen = append(seen, x.ID)
			}
			if next = page.Next; next == "" {
				break
			}
		}
		if len(seen) != 6 || seen[0] != other.ID || seen[5] != ids[0] {
			t.Errorf("paged through %v", seen)
		}
		var found api.Page[Found]
		must(t, json.Unmarshal([]byte(w.status("auditor", "GET", "/recordings/search?q=Needle&limit=4", 200)), &found))
		if len(found.Items) != 4 || found.Next == "" || len(found.Items[0].Hits) != 1 {
			t.Errorf("search: %+v", found)
		}
		must(t, json.Unmarshal([]byte(w.status("auditor", "GET", "/recordings/search?q=Needle&limit=4&cursor="+found.Next, 200)), &found))
		if len(found.Items) != 2 {
			t.Errorf("search goes on: %d items", len(found.Items))
		}
		w.status("auditor", "GET", "/recordings/search", 422)
		w.status("auditor", "GET", "/recordings?cursor=zzz", 422)
	})
}

func TestEventsOverHTTP(t *testing.T) {
	w := newWeb(t, dbtest.SQLite(t))
	r := w.create("demo")
	for _, p := range []string{"/a", "/b", "/c"} {
		must(t, r.Event("sftp", map[string]string{"op": "open", "path": p}))
	}
	must(t, r.Close())
	var got struct {
		Items     []TimelineEvent
		More      bool
		Integrity *Integrity
	}
	must(t, json.Unmarshal([]byte(w.status("demo", "GET", "/recordings/"+r.ID+"/events", 200)), &got))
	if len(got.Items) != 3 || got.More || got.Integrity == nil || got.Integrity.Status != Complete || got.Items[2].Fields["path"] != "/c" {
		t.Errorf("%+v", got)
	}
	must(t, json.Unmarshal([]byte(w.status("demo", "GET", "/recordings/"+r.ID+"/events?limit=2", 200)), &got))
	if len(got.Items) != 2 || !got.More {
		t.Errorf("%+v", got)
	}
}

// Copies of transferred files: whole and equal, by permission, in two steps.
func TestStoredFiles(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		w := newWeb(t, d)
		w.limits.FileMax = 1 << 20
		rec := w.create("demo")
		content := bytes.Repeat([]byte("all work and no play "), 20000)[:400000]
		put := func(data []byte) File {
			t.Helper()
			f, err := rec.File(t.Context(), Upload, "/srv/data.bin")
			must(t, err)
			for p := data; len(p) > 0; {
				n := min(len(p), 32768)
				_, err := f.Write(p[:n])
				must(t, err)
				p = p[n:]
			}
			got, err := f.Close(t.Context())
			must(t, err)
			return got
		}
		f := put(content)
		sum := sha256.Sum256(content)
		if f.SHA256 != hex.EncodeToString(sum[:]) || f.Size != int64(len(content)) || f.Status != "stored" {
			t.Errorf("file %+v", f)
		}
		empty := put(nil)
		large := put(make([]byte, 1<<20+1))
		if large.Status != "too_large" || large.Size != 1<<20+1 || empty.Status != "stored" {
			t.Errorf("large %+v, empty %+v", large, empty)
		}
		w.limits.FileMax = 0
		if none := put([]byte("x")); none.Status != "not_stored" || none.SHA256 == "" {
			t.Errorf("file %+v", none)
		}
		must(t, rec.Close())
		found, err := filepath.Glob(filepath.Join(w.dir, "*", "*.cfile"))
		if err != nil || len(found) != 2 {
			t.Errorf("%d copies on disk, want 2", len(found))
		}
		if body := w.status("demo", "GET", "/recordings/"+rec.ID+"/files", 200); strings.Count(body, "data.bin") != 4 {
			t.Errorf("files: %s", body)
		}
		base := "/recordings/" + rec.ID + "/files/"
		w.status("demo", "POST", base+f.ID+"/ticket", 403)
		w.status("auditor", "POST", base+large.ID+"/ticket", 409)
		w.status("auditor", "POST", base+"rfl_unknown/ticket", 404)
		ticket := func() string {
			var t1 struct{ Path string }
			must(t, json.Unmarshal([]byte(w.status("auditor", "POST", base+f.ID+"/ticket", 201)), &t1))
			return t1.Path
		}
		path := ticket()
		w.status("auditor2", "GET", path, 404)
		if body := w.status("auditor", "GET", path, 200); body != string(content) {
			t.Errorf("downloaded %d bytes", len(body))
		}
		w.status("auditor", "GET", path, 404)
		path = ticket()
		w.clock.add(2 * time.Minute)
		w.status("auditor", "GET", path, 404)
		must(t, w.dropTickets(t.Context()))
		if got := auditTypes(t, d, rec.ID); strings.Count(got, "recording.file_kept") != 4 || strings.Count(got, "recording.file_sent") != 1 {
			t.Errorf("audit events %q", got)
		}
		// A changed copy is not handed out as if it were whole.
		name := filepath.Join(w.dir, fileName(f.ID, kindFile, f.StoredAt))
		raw, err := os.ReadFile(name)
		must(t, err)
		raw[len(raw)/2] ^= 1
		must(t, os.WriteFile(name, raw, 0o600))
		if resp, body := w.call("auditor", "GET", ticket()); resp.StatusCode == 200 && !strings.Contains(body, "EOF") {
			t.Errorf("a damaged copy came as %d with %d bytes", resp.StatusCode, len(body))
		}
	})
}
