package webaccess

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// Files go both ways within what policy allows.
func TestFiles(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(func(t *target.Target) {
		t.Web.Browser.UploadMax, t.Web.Browser.DownloadMax = new(int64(1000)), new(int64(100))
	})
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	base := "/web-sessions/" + s.ID + "/files"
	carrier.set(func(b *box) {
		b.files["big"], b.files["sub/folder"] = strings.Repeat("x", 101), strings.Repeat("t", 500)
	})
	for _, tc := range []struct {
		who, method, path, body string
		want                    int
	}{
		{"eve", "PUT", base + "/a%20b.txt", "hello", 204},
		{"eve", "PUT", base + "/dir%2Fc.txt", "deep", 204},
		{"eve", "PUT", base + "/huge", strings.Repeat("x", 1001), 403},
		{"eve", "PUT", base + "/eicar", "virus", 403},
		{"eve", "PUT", base + "/..%2Fetc%2Fpasswd", "x", 422},
		{"eve", "PUT", base + "?tar=1", strings.Repeat("t", 5000), 204},
		{"eve", "PUT", base, "x", 422},
		{"eve", "GET", base + "/none", "", 404},
		{"mallory", "GET", base + "/dir%2Fc.txt", "", 404},
		{"auditor", "GET", base + "/dir%2Fc.txt", "", 404},
		{"eve", "GET", base + "/big", "", 403},
	} {
		var text string
		var body any
		if tc.method == "PUT" {
			body = tc.body
		}
		if got := k.do(tc.who, tc.method, tc.path, body, &text); got != tc.want {
			t.Errorf("%s %s as %s: %d, want %d: %s", tc.method, tc.path, tc.who, got, tc.want, text)
		}
	}
	// What core itself refused for its size is on the record, too.
	if got := w.tapes.of(s.ID).last("upload"); got["path"] != "huge" || got["size"] != "1001" || got["limit"] != "1000" || got["outcome"] != "too large" {
		t.Errorf("the timeline has %v", got)
	}
	if n := k.audited(audit.WebFileUploaded, s.ID, audit.Denied); n != 1 {
		t.Errorf("audited %d times", n)
	}
	if code, text := k.stream("eve", base+"/unknown%20size", strings.NewReader(strings.Repeat("x", 1500))); code != 403 {
		t.Errorf("%d %s", code, text)
	}
	if got := w.tapes.of(s.ID).last("upload"); got["path"] != "unknown size" || got["outcome"] != "too large" {
		t.Errorf("the timeline has %v", got)
	}
	if n := k.audited(audit.WebFileUploaded, s.ID, audit.Denied); n != 2 {
		t.Errorf("audited %d times", n)
	}
	var text string
	if code := k.do("eve", "GET", base+"/dir%2Fc.txt", nil, &text); code != 200 || text != "deep" {
		t.Errorf("%d %q", code, text)
	}
	if code := k.do("eve", "GET", base+"/sub%2Ffolder", nil, &text); code != 200 || len(text) != 500 {
		t.Errorf("a folder: %d, %d bytes", code, len(text))
	}
	var list wire.WebFiles
	if code := k.do("eve", "GET", base, nil, &list); code != 200 || len(list.Files) != 5 || list.Files[0].Path != "a b.txt" {
		t.Errorf("%d %+v", code, list)
	}
	// While the session is locked its user sees no names either.
	must(t, k.conns.Lock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}, "no", conn.BlockNone))
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		path := base + "/dir%2Fc.txt"
		if method == "GET" {
			path = base
		}
		if code := k.do("eve", method, path, nil, &text); code != 409 || strings.Contains(text, "a b.txt") {
			t.Errorf("%s while locked: %d %s", method, code, text)
		}
	}
	must(t, k.conns.Unlock(t.Context(), s.ID, &api.Principal{UserID: "usr_auditor"}))
	if code := k.do("eve", "DELETE", base+"/a%20b.txt", nil, nil); code != 204 {
		t.Errorf("deleted with %d", code)
	}
	if _, ok := carrier.files["a b.txt"]; ok || carrier.files["dir/c.txt"] != "deep" {
		t.Errorf("the carrier has %v", carrier.files)
	}
	// Without the feature there are no files, and losing it ends who used it.
	w.law.change(func(l *law) { l.features = access.Web })
	other := k.open("bob", "wiki", map[string]any{"account": "alice"})
	if other.Policy.UploadMax != 0 || k.do("bob", "GET", "/web-sessions/"+other.ID+"/files", nil, nil) != 403 {
		t.Error("files without the feature")
	}
	k.notify("grant", "gnt_1")
	eventually(t, "it ends", func() bool { return k.get("eve", s.ID).State == Ended })
}

// stream uploads a body of unknown length.
func (k *core) stream(who, path string, body io.Reader) (int, string) {
	k.t.Helper()
	r, err := http.NewRequestWithContext(k.t.Context(), "PUT", k.api.URL+api.Prefix+path, io.NopCloser(body))
	must(k.t, err)
	r.Header.Set("Authorization", "Bearer "+who)
	resp, err := k.api.Client().Do(r)
	must(k.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(k.t, err)
	return resp.StatusCode, string(text)
}

// within waits for a value.
func within[T any](t *testing.T, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatalf("nothing came in %s", patience)
	}
	return v
}

// A lock breaks off what is under way, however slow its user is, and says why.
func TestLockBreaksTransfersOff(t *testing.T) {
	w := newWorld(t, dbtest.SQLite(t))
	k := w.start()
	carrier := k.node(wire.Carrier, "c1")
	k.node(wire.WebProxy, "p1")
	k.wiki(nil)
	s := k.open("eve", "wiki", map[string]any{"account": "alice"})
	base := "/web-sessions/" + s.ID + "/files"
	moving, broke := make(chan string, 1), make(chan string, 2)
	carrier.set(func(b *box) {
		b.moving, b.broke = moving, broke
		b.files["endless"] = strings.Repeat("x", 200_000)
	})
	auditor := &api.Principal{UserID: "usr_auditor"}

	body, user := io.Pipe()
	type reply struct {
		code int
		text string
	}
	got := make(chan reply, 1)
	go func() {
		code, text := k.stream("eve", base+"/slow", body)
		got <- reply{code, text}
	}()
	_, err := user.Write(bytes.Repeat([]byte("a part"), 20_000))
	must(t, err)
	if name := within(t, moving); name != "slow" {
		t.Fatal(name)
	}
	must(t, k.conns.Lock(t.Context(), s.ID, auditor, "look at this", conn.BlockNone))
	if r := within(t, got); r.code != 409 || !strings.Contains(r.text, `"locked"`) || !strings.Contains(r.text, "look at this") {
		t.Errorf("%+v", r)
	}
	if name := within(t, broke); name != "slow" {
		t.Errorf("%s broke off", name)
	}
	must(t, user.Close(), k.conns.Unlock(t.Context(), s.ID, auditor))
	eventually(t, "it is unlocked", func() bool { return k.do("eve", "GET", base, nil, nil) == 200 })

	r, err := http.NewRequestWithContext(t.Context(), "GET", k.api.URL+api.Prefix+base+"/endless", nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer eve")
	resp, err := k.api.Client().Do(r)
	must(t, err)
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	must(t, k.conns.Lock(t.Context(), s.ID, auditor, "look at this", conn.BlockNone))
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("it looks complete")
	}
	if name := within(t, broke); name != "endless" {
		t.Errorf("%s broke off", name)
	}
}
