package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// canvas brings a session to a page that moves and remembers that it is itself.
func (u *webUse) canvas(t *testing.T) {
	t.Helper()
	u.drive(t, "/canvas")
	until(t, patience, "the moving picture", func() error {
		if got := u.run(t, "window.kept = 'kept'; return location.pathname"); got != "/canvas" {
			return errors.New(got)
		}
		return nil
	})
	pictureMoves(t, u, patience)
}

// same says that the page is still the one of canvas, and moves.
func (u *webUse) same(t *testing.T) {
	t.Helper()
	if got := u.run(t, "return window.kept"); got != "kept" {
		t.Errorf("the page is another: %q", got)
	}
	pictureMoves(t, u, patience)
}

// The Docker daemon stops and takes its containers along: whoever had a session
// is told, opening says what is wrong, and when it is back so are sessions.
func TestWebDockerStopped(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	if err := w.docker.Stop(); err != nil {
		t.Fatal(err)
	}
	if why, err := u.Screen.Ended(t.Context(), patience); err != nil || why.Code != 4000 || why.Reason == "" {
		t.Errorf("the viewer was told %+v %v", why, err)
	}
	until(t, patience, "opening says that Docker does not answer", func() error {
		_, err := w.user.OpenWeb(t.Context(), s.target)
		if st, ok := errors.AsType[*harness.Status](err); !ok || st.Code != http.StatusServiceUnavailable || !strings.Contains(st.Body, "Docker does not answer") {
			return fmt.Errorf("it says %w", err)
		}
		return nil
	})
	if err := w.docker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// At the first moment that a session can be had, it is a whole one.
	var again harness.WebSession
	until(t, patience, "a session can be opened", func() (err error) {
		again, err = w.user.OpenWeb(t.Context(), s.target)
		return err
	})
	v := &webUse{WebSession: again, w: w, site: s, api: w.user}
	t.Cleanup(func() { v.close(t) })
	v.look(t)
	v.shows(t, "the page, after Docker is back")
	v.end(t)
	if got := u.ended(t, patience); got.EndReason != "error" || got.EndText == "" {
		t.Errorf("the session that was open: %+v", got)
	}
	w.nothingLeft(t)
}

// With --live-restore containers outlive the daemon: a session goes on as if
// nothing had happened, is ended like any other, and new ones are possible.
func TestWebDockerRestarted(t *testing.T) {
	w := web(t)
	restart := func(more ...string) {
		t.Helper()
		if err := errors.Join(w.docker.Stop(), w.docker.Start(context.Background(), more...)); err != nil {
			t.Fatal(err)
		}
	}
	restart("--live-restore")
	t.Cleanup(func() { restart() })
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	u.canvas(t)
	id := w.containerOf(t, u)
	if err := w.docker.Stop(); err != nil {
		t.Fatal(err)
	}
	u.same(t) // without a daemon
	if err := w.docker.Start(t.Context(), "--live-restore"); err != nil {
		t.Fatal(err)
	}
	u.same(t)
	if got := w.containerOf(t, u); got != id {
		t.Errorf("the session is in container %s, it was in %s", got, id)
	}
	v := w.open(t, s)
	v.shows(t, "the page of a new session")
	v.end(t)
	u.same(t)
	u.end(t)
	w.nothingLeft(t)
}

// The carrier is killed: whose browser runs goes on in the next process, whose
// browser does not is told, what it had parked is removed, and containers of
// others are as they were.
func TestWebCarrierKilled(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	on, lost := w.open(t, s), w.open(t, s)
	on.shows(t, "the page")
	lost.shows(t, "the page that will be lost")
	// Others: one that runs and one that has ended, without our labels, with
	// those of another carrier, and with a name like ours.
	other := func(args ...string) string {
		t.Helper()
		id, err := w.docker.Docker(t.Context(), append([]string{"create", "--network", "none", "--entrypoint", "/usr/bin/perl"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	sleep := []string{"caponier-browser", "-e", "sleep 600"}
	foreign := []string{
		other(append([]string{"--name", "caponier-aaaabbbbccccdddd"}, sleep...)...),
		other(append([]string{"--label", "caponier.carrier=nod_another", "--label", "caponier.slot=aaaabbbbccccdddd"}, sleep...)...),
		other(append([]string{"--label", "caponier.slot=aaaabbbbccccdddd"}, sleep...)...),
		other("caponier-browser", "-e", "exit 0"),
	}
	remove := sync.OnceFunc(func() {
		if _, err := w.docker.Docker(context.Background(), append([]string{"rm", "-f"}, foreign...)...); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(remove)
	if _, err := w.docker.Docker(t.Context(), append([]string{"start"}, foreign...)...); err != nil {
		t.Fatal(err)
	}
	states := func() string {
		t.Helper()
		out, err := w.docker.Docker(t.Context(), append([]string{"inspect"}, foreign...)...)
		if err != nil {
			t.Fatal(err)
		}
		var list []struct {
			ID      string `json:"Id"`
			Name    string
			Restart int `json:"RestartCount"`
			State   struct {
				Status              string
				Pid, ExitCode       int
				StartedAt, Finished string
			}
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(list)
	}
	until(t, patience, "the one that ends has ended", func() error {
		if got := states(); !strings.Contains(got, "exited") {
			return errors.New(got)
		}
		return nil
	})
	before := states()
	mine, gone := w.containerOf(t, on), w.containerOf(t, lost)
	all, err := w.docker.Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.carrier.Proc.Kill()
	if _, err := w.docker.Docker(t.Context(), "rm", "-f", gone); err != nil {
		t.Fatal(err)
	}
	// What a process that was killed may leave besides: a slot nobody has.
	stray := filepath.Join(w.runDir, "aaaabbbbccccdddd")
	if err := os.Mkdir(stray, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := w.carrier.Start(); err != nil {
		t.Fatal(err)
	}
	on.look(t)
	on.run(t, "document.title = 'goes on'; return 1")
	on.drive(t, "/canvas")
	pictureMoves(t, on, patience)
	if got := w.containerOf(t, on); got != mine {
		t.Errorf("the session is in container %s, it was in %s", got, mine)
	}
	if got := lost.ended(t, patience); got.EndReason != "error" || !strings.Contains(got.EndText, "was lost") {
		t.Errorf("the lost session: %+v", got)
	}
	until(t, refillTime, "what was parked is removed, and others are parked", func() error {
		now, err := w.docker.Containers(t.Context())
		if err != nil {
			return err
		}
		if n := len(now) - len(foreign); n != 1+webWarm {
			return fmt.Errorf("%d containers of the carrier's", n)
		}
		left := 0
		for _, id := range now {
			if strings.Contains(strings.Join(all, " "), id) {
				left++
			}
		}
		if left != len(foreign)+1 {
			return fmt.Errorf("%d containers of before the kill, want the session's and %d of others", left, len(foreign))
		}
		if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the stray slot: %w", err)
		}
		return nil
	})
	if after := states(); after != before {
		t.Errorf("containers of others were\n%s\nand are\n%s", before, after)
	}
	on.end(t)
	remove()
	w.nothingLeft(t)
}
