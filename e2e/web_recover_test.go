package e2e

import (
	"context"
	"errors"
	"fmt"
	"image"
	"net/http"
	"slices"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// pictureMoves waits until a picture changes: the session lives, and so does
// the way to it.
func pictureMoves(t *testing.T, u *webUse, limit time.Duration) {
	t.Helper()
	before := u.Screen.Picture()
	if err := u.Screen.Wait(t.Context(), limit, "the picture moves", func(p *image.RGBA) error {
		if string(p.Pix) == string(before.Pix) {
			return errors.New("it stands still")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Core, carrier and webproxy are killed and started again, one at a time: the
// session goes on where it was, its picture is back within three seconds of the
// process's return, and the recording has no gap of more than a second.
func TestWebRestarts(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	w.nothingLeft(t)
	before := w.held(t)
	u := w.open(t, s)
	u.shows(t, "the page")
	u.canvas(t)
	restart := func(name string, kill func() error, start func() error) {
		t.Helper()
		if err := kill(); err != nil {
			t.Fatal(err)
		}
		if err := start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		until(t, patience, "the picture is back after "+name, func() error {
			if err := w.user.Do(t.Context(), http.MethodGet, "/web-sessions/"+u.ID, nil, &u.WebSession); err != nil {
				return err
			}
			if u.State != "open" {
				return fmt.Errorf("%w: the session is %+v", harness.ErrGone, u.WebSession)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			sc, err := u.api.Screen(ctx, u.ID, false)
			if err != nil {
				return err
			}
			u.Screen.Close()
			u.Screen = sc
			first := sc.Picture()
			return sc.Wait(ctx, 2*time.Second, "moves", func(p *image.RGBA) error {
				if string(p.Pix) == string(first.Pix) {
					return errors.New("it stands still")
				}
				return nil
			})
		})
		took := time.Since(began)
		t.Logf("%s killed: picture back %v after it runs again", name, took.Round(time.Millisecond))
		if took > 3*time.Second {
			t.Errorf("%s: the picture came back after %v, want 3 s", name, took)
		}
		if got := u.run(t, "return window.kept"); got != "kept" {
			t.Errorf("%s: the page is another: %q", name, got)
		}
	}
	killed := func(p *harness.Proc) func() error {
		return func() error { p.Kill(); return nil }
	}
	restart("the carrier", killed(w.carrier.Proc), w.carrier.Start)
	quiet := time.Now() // for the picture, which needs no webproxy to move
	restart("the webproxy", killed(w.proxy.Proc), w.proxy.Start)
	died := time.Now()
	restart("core", killed(w.core.Proc), func() error { return w.core.Start(t.Context()) })
	back := time.Now()
	u.end(t)
	w.nothingLeft(t)
	w.holdsNoMore(t, before)
	// The picture was moving all the time. A busy machine may draw it seldom, so
	// what is a gap shows in the time before.
	began, shots := w.film(t, u.RecordingID)
	usual := widest(shots, quiet.Sub(began), died.Sub(began))
	across := widest(shots, died.Sub(began), back.Sub(began))
	t.Logf("core was away for %v; the longest time without a frame was %v, before it %v", back.Sub(died), across, usual)
	if across > max(time.Second, 2*usual) {
		t.Errorf("the recording has a gap of %v across the death of core", across)
	}
	events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(events, func(e harness.TimelineEvent) bool { return e.Kind == "core restarted" }) {
		t.Error("the timeline does not tell that core was away")
	}
}
