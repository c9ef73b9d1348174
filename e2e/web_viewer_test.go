package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// The page people have a web session on, in a real browser against real
// browsers: picture, input, clipboard, files, limits, oversight, the network's
// moods, and what it says at the end.
func TestWebViewer(t *testing.T) {
	needConsole(t)
	w := web(t)
	const size = 123_457
	full := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"watermark": "{user} on {target}", "max_s": 7200}})
	plain := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"clipboard_in": 0, "clipboard_out": 0, "upload_max": 0, "download_max": 0}})
	// The notice about the longest time stands from the beginning; it ends for idleness.
	brief := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"max_s": 600, "notice_s": 600, "idle_s": 70, "extend": true}})
	files := t.TempDir()
	folder := map[string]string{"plan.txt": "the plan", "deep/er/note-ü.txt": "a note", "deep/other.txt": "another"}
	for name, text := range folder {
		path := filepath.Join(files, "folder", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	one := filepath.Join(files, "one.txt")
	if err := os.WriteFile(one, []byte(bigText(70_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	cfg := map[string]any{
		"control": w.reins(t, full, plain, brief), "full": inside(full), "plain": inside(plain), "brief": inside(brief),
		"one": one, "oneSum": sha(bigText(70_000)), "folder": filepath.Join(files, "folder"), "folderFiles": folder,
		"size": size, "sizeSum": sites.PatternSum(size), "out": filepath.Join(w.dir, "viewer"),
	}
	if out := os.Getenv("CAPONIER_SCREENSHOTS"); out != "" {
		cfg["out"] = out
	}
	w.warm(t)
	t.Log(w.browse(t, "webviewer.mjs", 12*time.Minute, cfg))
}

// warm waits until a parked browser is there.
func (w *webWorld) warm(t testing.TB) {
	t.Helper()
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, w.carrier, harness.HasRoom(1)); err != nil {
		t.Fatal(err)
	}
}

// inside is what a script of the browser knows of a site.
func inside(s *webSite) map[string]any {
	c := s.Color()
	return map[string]any{"name": s.name, "target": s.target, "color": []int{int(c.R), int(c.G), int(c.B)}}
}

// reins are an address at which scripts of the user's browser act inside the
// sessions and on the network between: what they post to /run/<site> runs in
// the page of the session's browser, /drive/<site> sends it elsewhere, and
// /network cuts the user off ("down") or lets them back.
func (w *webWorld) reins(t testing.TB, all ...*webSite) string {
	t.Helper()
	l, err := w.net.Listen("user", "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	act := func(pattern string, do func(ctx context.Context, s *webSite, body string) (string, error)) {
		mux.HandleFunc(pattern, func(rw http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
			var s *webSite
			for _, x := range all {
				if x.name == r.PathValue("site") {
					s = x
				}
			}
			ctx, cancel := context.WithTimeout(r.Context(), 30*time.Second)
			defer cancel()
			var text string
			if err == nil {
				text, err = do(ctx, s, string(body))
			}
			rw.Header().Set("Content-Type", "application/json")
			if err != nil {
				rw.WriteHeader(http.StatusBadGateway)
				text = err.Error()
			}
			json.NewEncoder(rw).Encode(text)
		})
	}
	act("POST /run/{site}", func(ctx context.Context, s *webSite, body string) (string, error) { return s.Run(ctx, "guest", body) })
	act("POST /drive/{site}", func(ctx context.Context, s *webSite, body string) (string, error) {
		return "", s.Drive(ctx, "guest", body)
	})
	const cut = "table inet cut"
	act("POST /network", func(_ context.Context, _ *webSite, body string) (string, error) {
		if body != "down" {
			return "", w.net.NFT("user", "delete "+cut)
		}
		return "", w.net.NFT("user", fmt.Sprintf("%s { chain out { type filter hook output priority 0; oifname != \"lo\" drop; }; chain in { type filter hook input priority 0; iifname != \"lo\" drop; }; }", cut))
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
		w.net.NFT("user", "add "+cut+"\ndelete "+cut)
	})
	return "http://" + l.Addr().String()
}
