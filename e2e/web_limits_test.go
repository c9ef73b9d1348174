package e2e

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"net/http"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// notice reads the carrier's notice on the screen; empty when there is none.
func notice(t *testing.T, p *image.RGBA) string {
	t.Helper()
	banner := harness.Where(p, color.RGBA{0x1f, 0x29, 0x37, 0xff})
	if banner.Dx() < 100 || banner.Min.Y != 0 {
		return ""
	}
	text, err := harness.Read(t.Context(), p, banner, func(c color.RGBA) byte { return c.R })
	if err != nil {
		harness.Lacks(t, "%v", err)
	}
	return text
}

// noticed waits for a notice that says all of words, and returns when it was
// there.
func (u *webUse) noticed(t *testing.T, limit time.Duration, words ...string) time.Time {
	t.Helper()
	var at time.Time
	if err := u.Screen.Wait(t.Context(), limit, fmt.Sprintf("a notice that says %q", words), func(p *image.RGBA) error {
		seen := time.Now()
		text := notice(t, p)
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Errorf("it says %q", text)
			}
		}
		at = seen
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return at
}

// unnoticed waits until there is no notice.
func (u *webUse) unnoticed(t *testing.T, limit time.Duration) {
	t.Helper()
	if err := u.Screen.Wait(t.Context(), limit, "the notice goes", func(p *image.RGBA) error {
		if text := notice(t, p); text != "" {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// A session nobody uses says so on the screen, in time; who stirs stays; who
// does not is out when it was said.
func TestWebIdle(t *testing.T) {
	w := web(t)
	const idle, ahead = 34 * time.Second, 26 * time.Second // who sees the notice has time to stir
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: map[string]any{"idle_s": idle.Seconds(), "notice_s": ahead.Seconds()}})
	u := w.open(t, s)
	u.shows(t, "the page")
	for _, last := range []bool{false, true} {
		stirred := time.Now()
		if err := u.Screen.Click(700, 500); err != nil {
			t.Fatal(err)
		}
		u.unnoticed(t, patience)
		at := u.noticed(t, patience, "This session was not used", "ends in")
		if took := at.Sub(stirred); took < idle-ahead {
			t.Errorf("the notice came after %v, want %v", took, idle-ahead)
		}
		if !last {
			continue
		}
		why, err := u.Screen.Ended(t.Context(), patience)
		took := time.Since(stirred)
		if err != nil || why.Code != 4000 || !strings.Contains(why.Reason, "not used") {
			t.Fatalf("the user was told %+v %v", why, err)
		}
		if t.Logf("it ended after %v", took.Round(time.Millisecond)); took < idle {
			t.Errorf("it ended after %v, want %v", took, idle)
		}
	}
	if got := u.ended(t, patience); got.EndReason != "idle" {
		t.Errorf("ended: %+v", got)
	}
	w.nothingLeft(t)
}

// A session that has lasted as long as it may says so before; its user may go
// on once more where the target permits it, and is out in the end.
func TestWebMaximum(t *testing.T) {
	w := web(t)
	const most, ahead = 34 * time.Second, 26 * time.Second // who sees the notice has time to extend
	limits := func(extend bool) map[string]any {
		return map[string]any{"max_s": most.Seconds(), "notice_s": ahead.Seconds(), "extend": extend}
	}
	extend := func(u *webUse) (s harness.WebSession, err error) {
		return s, u.api.Do(t.Context(), http.MethodPost, "/web-sessions/"+u.ID+"/extend", map[string]any{}, &s)
	}
	strict := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: limits(false)})
	began := time.Now()
	u := w.open(t, strict)
	u.shows(t, "the page")
	u.noticed(t, most+patience, "maximum duration", "ends in")
	if _, err := extend(u); err == nil {
		t.Error("it was extended where the target forbids it")
	} else if s, ok := errors.AsType[*harness.Status](err); !ok || s.Code != http.StatusConflict {
		t.Errorf("extending is refused with %v", err)
	}
	if why, err := u.Screen.Ended(t.Context(), most+patience); err != nil || !strings.Contains(why.Reason, "maximum duration") {
		t.Errorf("the user was told %+v %v", why, err)
	}
	if took := time.Since(began); took < most {
		t.Errorf("it ended after %v, want %v", took, most)
	}
	if got := u.ended(t, patience); got.EndReason != "max_duration" {
		t.Errorf("ended: %+v", got)
	}

	kind := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{browser: limits(true)})
	began = time.Now()
	u = w.open(t, kind)
	u.shows(t, "the page")
	u.noticed(t, most+patience, "maximum duration")
	if _, err := extend(u); err != nil {
		t.Fatal(err)
	}
	u.unnoticed(t, patience)
	if text := u.run(t, "return 'on'"); text != "on" {
		t.Errorf("the page says %q", text)
	}
	u.noticed(t, most+patience, "maximum duration")
	if took := time.Since(began); took < 2*most-ahead {
		t.Errorf("the second notice came after %v, want %v", took, 2*most-ahead)
	}
	if _, err := u.Screen.Ended(t.Context(), most+patience); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < 2*most {
		t.Errorf("extended, it ended after %v, want %v", took, 2*most)
	}
}
