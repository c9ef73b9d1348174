package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"image/draw"
	"image/png"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"image"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// The main path: somebody clicks, sees the application inside vpc-a signed in
// with a credential he never sees, works, and closes it; what is kept is the
// picture, every request and the use of the credential, and nothing else is.
func TestWebSession(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Form}, siteOptions{})
	w.nothingLeft(t) // of others
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, w.carrier, harness.HasRoom(webWarm)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	u := w.open(t, s)
	u.signedIn(t)
	t.Logf("from click to the page after signing in: %v (warm: %v)", time.Since(began).Round(time.Millisecond), u.Warm)
	if !u.Warm || !u.Recorded || u.RecordingID == "" {
		t.Errorf("session %+v", u.WebSession)
	}
	if got := s.Logins(); len(got) != 1 || !got[0].OK || got[0].Password != s.Config.Password {
		t.Errorf("the site received %+v", got)
	}
	if got := u.run(t, "return document.querySelector('b').textContent + ' ' + location.pathname"); got != "ann /home" {
		t.Errorf("the page says %q", got)
	}
	// A person's hands: a click on a link and keys.
	u.click(t, `a[href="/note"]`)
	u.atNote(t)
	if err := u.Screen.Type("Typed By Hand 123"); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "what was typed arrives", func() error {
		if got := u.run(t, "return document.getElementById('note').value"); got != "Typed By Hand 123" {
			return errors.New(got)
		}
		return nil
	})
	u.paper(t)
	u.end(t)
	if why, err := u.Screen.Ended(t.Context(), patience); err != nil || why.Code != 4000 || why.Reason == "" {
		t.Errorf("the viewer was told %+v, %v", why, err)
	}
	w.nothingLeft(t)

	// What is on record.
	until(t, patience, "the recording is complete", func() error {
		var rec recordingItem
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+u.RecordingID, nil, &rec); err != nil {
			return err
		}
		if rec.Status != "complete" {
			return errors.New(rec.Status)
		}
		return nil
	})
	events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	injected := 0
	for _, e := range events {
		switch e.Kind {
		case "request":
			asked[e.Fields["method"]+" "+strings.TrimPrefix(strings.Split(e.Fields["url"], "?")[0], s.origin)] = true
		case "injection":
			injected++
		}
		for k, v := range e.Fields {
			if strings.Contains(v, s.Config.Password) {
				t.Errorf("the password is in field %s of %s", k, e.Kind)
			}
		}
	}
	for _, want := range []string{"GET /login", "POST /login", "GET /home", "GET /note"} {
		if !asked[want] {
			t.Errorf("%s is not on record; there are %v", want, asked)
		}
	}
	// What the site was asked is on record, and what is on record as answered it
	// was asked; what the browser gave up meanwhile may be the one or the other.
	onRecord, answered, received := map[string]int{}, map[string]int{}, map[string]int{}
	for _, e := range events {
		if e.Kind != "request" {
			continue
		}
		what := e.Fields["method"] + " " + strings.TrimPrefix(strings.Split(e.Fields["url"], "?")[0], s.origin)
		onRecord[what]++
		if e.Fields["status"] != "502" {
			answered[what]++
		}
	}
	for _, r := range s.Requests() {
		received[r.Method+" "+r.Path]++
	}
	for what, n := range received {
		if n > onRecord[what] {
			t.Errorf("the site was asked %s %d times, on record are %d", what, n, onRecord[what])
		}
	}
	for what, n := range answered {
		if n > received[what] && !strings.Contains(what, " /drive") { // sites do not list what tests ask them
			t.Errorf("%s is on record as answered %d times, the site was asked %d times", what, n, received[what])
		}
	}
	if injected == 0 {
		t.Error("no use of the credential on record")
	}
	// The page after signing in was on the screen when the link on it was used.
	next := slices.IndexFunc(events, func(e harness.TimelineEvent) bool {
		return e.Kind == "request" && strings.HasSuffix(e.Fields["url"], "/note")
	})
	if got := w.recordedPicture(t, u.RecordingID, events[next].T-0.05); harness.Share(got, s.Color()) < 0.33 {
		t.Error("the recording's picture after signing in is not the page")
	}
	w.audited(t, "limit=200", "the credential's use", func(e harness.Event) bool {
		return e.Connection == u.ID && strings.Contains(e.Type, "credential")
	})
}

// The session ends the moment its user has seen a change: the recording's last
// picture is what he saw last, pixel by pixel, but for the pointer, which his own
// browser draws.
func TestWebLastPicture(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	u := w.open(t, s)
	u.shows(t, "the page")
	pointer := image.Rect(680, 480, 740, 540)
	if err := u.Screen.Click(700, 500); err != nil {
		t.Fatal(err)
	}
	whole := harness.Share(u.Screen.Picture(), s.Color())
	other := color.RGBA{0xf0, 0x80, 0x10, 0xff}
	u.run(t, "document.documentElement.style.background = '#f08010'; return 1")
	if err := u.Screen.Wait(t.Context(), patience, "the change is seen", func(p *image.RGBA) error {
		if got := harness.Share(p, other); got < whole {
			return fmt.Errorf("%.3f of the picture, want %.3f", got, whole)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	u.end(t)
	if _, err := u.Screen.Ended(t.Context(), patience); err != nil {
		t.Fatal(err)
	}
	seen, kept := u.Screen.Picture(), w.recordedPicture(t, u.RecordingID, w.recordedLength(t, u.RecordingID))
	if seen.Rect != kept.Rect {
		t.Fatalf("a picture of %v was recorded as %v", seen.Rect, kept.Rect)
	}
	for y := range seen.Rect.Dy() {
		for x := range seen.Rect.Dx() {
			if a, b := seen.RGBAAt(x, y), kept.RGBAAt(x, y); a != b && !image.Pt(x, y).In(pointer) {
				t.Fatalf("at %d,%d %v was seen and %v is on record", x, y, a, b)
			}
		}
	}
}

// recordedLength is how long a recording is, in seconds.
func (w *webWorld) recordedLength(t *testing.T, recording string) float64 {
	t.Helper()
	var is struct {
		Seconds float64 `json:"duration_s"`
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+recording+"/keyframes", nil, &is); err != nil {
		t.Fatal(err)
	}
	return is.Seconds
}

// recordedPicture is the picture of a recording at a moment, in seconds.
func (w *webWorld) recordedPicture(t *testing.T, recording string, at float64) *image.RGBA {
	t.Helper()
	var b []byte
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, fmt.Sprintf("/recordings/%s/picture?at=%.3f", recording, at), nil, &b); err != nil {
		t.Fatal(err)
	}
	p, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	to := image.NewRGBA(p.Bounds())
	draw.Draw(to, to.Bounds(), p, image.Point{}, draw.Src)
	return to
}

// Two sessions of the same person at the same target see nothing of each
// other, and the second one begins with a fresh profile.
func TestWebSideBySide(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	a := w.open(t, s)
	a.shows(t, "the first")
	mark := "document.cookie = 'mark=a; path=/'; localStorage.mark = 'a'; sessionStorage.mark = 'a'; return document.cookie"
	if got := a.run(t, mark); !strings.Contains(got, "mark=a") {
		t.Fatalf("the first says %q", got)
	}
	look := "return document.cookie + '|' + localStorage.mark + '|' + history.length"
	// Both pages wait for orders of the same user: end the first's wait.
	a.drive(t, "about:blank")
	if err := a.Screen.Wait(t.Context(), patience, "the first is blank", func(p *image.RGBA) error {
		if harness.Share(p, s.Color()) > 0.01 {
			return errors.New("it is not")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	b := w.open(t, s)
	b.shows(t, "the second")
	if got := b.run(t, look); strings.Contains(got, "mark") || !strings.Contains(got, "|undefined|") {
		t.Errorf("the second sees %q of the first", got)
	}
	used := map[string]bool{w.containerOf(t, a): true, w.containerOf(t, b): true}
	if len(used) != 2 {
		t.Errorf("two sessions are in %d containers", len(used))
	}
	// Nor does the next one, in a container that was never used.
	a.end(t)
	b.end(t)
	w.nothingLeft(t)
	c := w.open(t, s)
	c.shows(t, "the third")
	if id := w.containerOf(t, c); used[id] {
		t.Errorf("the third is in container %s, which was used", id)
	}
	if got := c.run(t, look); strings.Contains(got, "mark") {
		t.Errorf("the third sees %q of the others", got)
	}
	// Not even somebody else's session is one's own.
	other := harness.WebSession{}
	stranger := w.stranger(t)
	if err := stranger.Do(t.Context(), http.MethodGet, "/web-sessions/"+c.ID, nil, &other); err == nil {
		t.Errorf("a stranger reads the session: %+v", other)
	}
	if sc, err := stranger.Screen(t.Context(), c.ID, false); err == nil {
		sc.Close()
		t.Error("a stranger sees the screen")
	}
	if sc, err := stranger.Screen(t.Context(), c.ID, true); err == nil {
		sc.Close()
		t.Error("a stranger watches the screen")
	}
}

// stranger is a user without any right.
func (w *webWorld) stranger(t *testing.T) *harness.API {
	t.Helper()
	name := "stranger-" + strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))
	id, err := w.core.Admin.Create(t.Context(), "/users", map[string]any{"name": name, "password": "a-password-of-the-tests"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.core.Admin.Delete(t.Context(), "/users/"+id); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	api, err := w.as(t.Context(), name, "a-password-of-the-tests")
	if err != nil {
		t.Fatal(err)
	}
	return api
}

// Two targets have the same address in two VPCs.
func TestWebSameAddress(t *testing.T) {
	w := web(t)
	addr := harness.HostAddr + ":8999"
	a := w.site(t, sites.Config{Kind: sites.Form, Title: "in vpc-a", Color: color.RGBA{0x90, 0x30, 0x90, 0xff}}, siteOptions{vpc: "a", addr: addr})
	b := w.site(t, sites.Config{Kind: sites.Form, Title: "in vpc-b", Color: color.RGBA{0x20, 0x70, 0x20, 0xff}}, siteOptions{vpc: "b", addr: addr})
	ua, ub := w.open(t, a), w.open(t, b)
	ua.signedIn(t)
	ub.signedIn(t)
	for _, s := range []*webSite{a, b} {
		if got := s.Logins(); len(got) != 1 || !got[0].OK || got[0].Password != s.Config.Password {
			t.Errorf("%s received %+v", s.Config.Title, got)
		}
	}
}
