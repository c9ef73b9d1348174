package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// addTone gives a page a button that plays 440 Hz.
const addTone = `const b = document.createElement('button'); b.id = 'tone'; b.textContent = 'play a tone';
b.onclick = () => { const c = new AudioContext(), o = c.createOscillator(); o.frequency.value = 440; o.connect(c.destination); o.start(); b.onclick = null; b.dataset.done = '1' };
document.querySelector('main').append(b); return 1`

// What a page plays comes to its user by the websocket, where the target has
// sound and to nobody else, and is over when that is.
func TestWebSound(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"sound": true}})
	u := w.open(t, s)
	u.shows(t, "the page")
	u.run(t, addTone)
	var mu sync.Mutex
	tone := 0
	over := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		over <- u.api.Listen(ctx, u.ID, "", func(pcm []byte) {
			if harness.ToneShare(pcm, 440) > 0.9 {
				mu.Lock()
				tone++
				mu.Unlock()
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-over
	})
	u.click(t, "#tone")
	until(t, patience, "a second of the tone", func() error {
		mu.Lock()
		defer mu.Unlock()
		if tone < 50 {
			return fmt.Errorf("%d pieces of it", tone)
		}
		return nil
	})
	refused := func(who *harness.API, what string, code websocket.StatusCode, says string) {
		t.Helper()
		err := who.Listen(t.Context(), u.ID, "", func([]byte) { t.Errorf("%s: something is heard", what) })
		if e, ok := errors.AsType[websocket.CloseError](err); !ok || e.Code != code || !strings.Contains(e.Reason, says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused(w.core.Admin, "somebody else", 4003, "no such session of yours")

	s.spec.Web.Browser["sound"] = false
	w.update(t, s, func(*webrule.Policy) {})
	err := <-over
	over <- err
	if e, ok := errors.AsType[websocket.CloseError](err); !ok || e.Code != 4001 || e.Reason != "This session has no sound." {
		t.Errorf("switched off: %v", err)
	}
	refused(u.api, "its user, after it was switched off", 4001, "has no sound")
	id := w.containerOf(t, u)
	until(t, patience, "no sound server is left", func() error {
		out, err := w.docker.Docker(t.Context(), "exec", id, "sh", "-c", "cat /proc/[0-9]*/comm; ls -d /tmp/.sound /run/caponier/sound.sock 2>&1; true")
		if err != nil || strings.Contains(out, "pulse") || strings.Count(out, "No such file") != 2 || !strings.Contains(out, "Xvnc") {
			return fmt.Errorf("%s %v", out, err)
		}
		return nil
	})
}

// In the console a button lets the session be heard.
func TestWebViewerSound(t *testing.T) {
	needConsole(t)
	w := web(t)
	loud := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"sound": true}})
	plain := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	cfg := map[string]any{"control": w.reins(t, loud, plain), "loud": inside(loud), "plain": inside(plain), "tone": addTone, "out": filepath.Join(w.dir, "sound")}
	if out := os.Getenv("CAPONIER_SCREENSHOTS"); out != "" {
		cfg["out"] = out
	}
	w.warm(t)
	t.Log(w.browse(t, "websound.mjs", 5*time.Minute, cfg))
}
