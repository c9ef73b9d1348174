package e2e

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"caponier/e2e/sites"
)

// The main path in the other browser: signed in with a credential that is
// nowhere in the container, used, recorded, gone.
func TestWebChromium(t *testing.T) {
	w := web(t)
	s := w.site(t, sites.Config{Kind: sites.Form}, siteOptions{browser: map[string]any{"engine": "chromium"}})
	u := w.open(t, s)
	u.signedIn(t)
	if got := s.Logins(); len(got) != 1 || !got[0].OK || got[0].Password != s.Config.Password {
		t.Errorf("the site received %+v", got)
	}
	agent := u.run(t, "return navigator.userAgent")
	if !strings.Contains(agent, "Chrome/") {
		t.Errorf("the browser calls itself %q", agent)
	}
	u.click(t, `a[href="/note"]`)
	until(t, 10*time.Second, "the note is there", func() error {
		if got := u.run(t, "return location.pathname + ' ' + (document.activeElement||{}).id"); got != "/note note" {
			return errors.New(got)
		}
		return nil
	})
	if err := u.Screen.Type("Typed In Chromium"); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "what was typed arrives", func() error {
		if got := u.run(t, "return document.getElementById('note').value"); got != "Typed In Chromium" {
			return errors.New(got)
		}
		return nil
	})
	u.end(t)
	w.nothingLeft(t)
	events, err := w.core.Admin.Timeline(t.Context(), u.RecordingID)
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, e := range events {
		if e.Kind == "injection" && e.Fields["outcome"] == "used" {
			used++
		}
		if e.Kind == "blocked" && !strings.Contains(e.Fields["url"], s.Config.Username) {
			t.Errorf("the browser asked for %s by itself", e.Fields["url"])
		}
	}
	if used != 1 {
		t.Errorf("%d injections on record", used)
	}
	var rec recordingItem
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/recordings/"+u.RecordingID, nil, &rec); err != nil || rec.Status == "damaged" {
		t.Errorf("the recording: %+v, %v", rec, err)
	}
}
