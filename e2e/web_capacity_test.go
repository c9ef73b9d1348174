package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
	"caponier/shared/webrule"
)

// anotherCarrier runs a second carrier for as long as the test does; more are
// lines of its configuration. Nothing of it is left.
func (w *webWorld) anotherCarrier(t *testing.T, name string, warm int, more string) *harness.EdgeNode {
	t.Helper()
	c, _ := w.carrierWith(t, name, "caponier-browser", warm, more)
	return c
}

// carrierWith is anotherCarrier with an image of Firefox, or without Firefox;
// it tells the directory of its sockets too.
func (w *webWorld) carrierWith(t *testing.T, name, image string, warm int, more string) (c *harness.EdgeNode, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "capw-")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(w.carrierTOML(dir, image, warm), carrierDebug, "off")
	text, _, _ = strings.Cut(text, "[admission]")
	if c, err = w.edge(t.Context(), "carrier", name, w.bin.Carrier, text+more); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Told to stop it takes what it had parked along.
		if err := c.Proc.Stop(2 * patience); err != nil {
			t.Error(err)
		}
		if is, err := w.core.Admin.WebEdge(context.Background(), name); err != nil {
			t.Error(err)
		} else if err := w.core.Admin.Delete(context.Background(), "/edges/"+is.ID); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("sockets are left: %v %v", left, err)
		}
		os.RemoveAll(dir)
	})
	return c, dir
}

// Ten people come at once to a carrier with two browsers parked: all get their
// page, a browser each, and the carrier says what it has and has room for.
func TestWebManyAtOnce(t *testing.T) {
	w := web(t)
	const n = 10
	w.nothingLeft(t) // of others
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, w.carrier, harness.HasRoom(webWarm)); err != nil {
		t.Fatal(err)
	}
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{still: true})
	all := make([]*webUse, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range all {
		wg.Go(func() {
			session, err := w.user.OpenWeb(t.Context(), s.target)
			if err != nil {
				errs[i] = fmt.Errorf("open %d: %w", i, err)
				return
			}
			all[i] = &webUse{WebSession: session, w: w, site: s, api: w.user}
		})
	}
	wg.Wait()
	for _, u := range all {
		if u != nil {
			t.Cleanup(func() { u.close(t) })
		}
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sessions opened in %v", n, time.Since(began).Round(time.Millisecond))
	warm := 0
	for _, u := range all {
		if u.Warm {
			warm++
		}
		u.look(t)
	}
	for i, u := range all {
		if err := u.Screen.Shows(t.Context(), 2*time.Minute, fmt.Sprintf("page %d", i), s.Color()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d pages shown after %v, %d of parked browsers", n, time.Since(began).Round(time.Millisecond), warm)
	if warm < webWarm {
		t.Errorf("%d sessions had a parked browser, want %d at least", warm, webWarm)
	}
	seen := map[string]bool{}
	for _, u := range all {
		seen[w.containerOf(t, u)] = true
	}
	if len(seen) != n {
		t.Errorf("%d sessions are in %d containers", n, len(seen))
	}
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, w.carrier, func(e harness.WebEdge) error {
		if e.Web.Live != n || e.Web.Warm != webWarm || e.Web.Room < 1 || e.Web.Live+e.Web.Room > e.Web.Max {
			return fmt.Errorf("it has %+v", *e.Web)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	for _, u := range all {
		u.end(t)
	}
	w.nothingLeft(t)
}

// Of two carriers the one with fewer sessions is taken; one that drains keeps
// what it has and gets no more.
func TestWebTwoCarriers(t *testing.T) {
	w := web(t)
	second := w.anotherCarrier(t, "carrier-two", webWarm, "[admission]\npressure = 0.0\n")
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{})
	live := map[string]int{} // by carrier
	// known waits until core knows how both are.
	known := func() {
		t.Helper()
		for _, c := range []*harness.EdgeNode{w.carrier, second} {
			if _, err := w.core.Admin.WebReady(t.Context(), refillTime, c, func(e harness.WebEdge) error {
				if err := harness.HasRoom(webWarm)(e); err != nil || e.Web.Live != live[c.Name] {
					return fmt.Errorf("it has %+v, want %d sessions", *e.Web, live[c.Name])
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var uses []*webUse
	open := func() *webUse {
		t.Helper()
		known()
		u := w.openAs(t, w.user, s)
		live[u.Carrier]++
		uses = append(uses, u)
		return u
	}
	for i := range 4 {
		open()
		if a, b := live[w.carrier.Name], live[second.Name]; max(a, b)-min(a, b) > 1 || a+b != i+1 {
			t.Fatalf("after %d sessions the carriers have %v", i+1, live)
		}
	}
	is, err := w.core.Admin.WebEdge(t.Context(), w.carrier.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/edges/"+is.ID+"/drain", map[string]any{}, nil); err != nil {
		t.Fatal(err)
	}
	undrain := sync.OnceFunc(func() {
		if err := w.core.Admin.Do(context.Background(), http.MethodPatch, "/edges/"+is.ID, map[string]any{"cordoned": false}, nil, "If-Match", "*"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(undrain)
	for range 2 {
		session, err := w.user.OpenWeb(t.Context(), s.target)
		if err != nil {
			t.Fatal(err)
		}
		u := &webUse{WebSession: session, w: w, site: s, api: w.user}
		t.Cleanup(func() { u.close(t) })
		if u.Carrier != second.Name {
			t.Errorf("a new session is on %s, which drains", u.Carrier)
		}
		u.look(t)
		u.shows(t, "the page of a new session")
		uses = append(uses, u)
	}
	for _, u := range uses {
		if got, err := u.api.WebSession(t.Context(), u.ID); err != nil || got.State != "open" {
			t.Errorf("a session on %s: %+v %v", u.Carrier, got, err)
		}
		u.shows(t, "the page of a session on "+u.Carrier)
	}
	undrain()
	for _, u := range uses {
		u.end(t)
	}
	clear(live)
	known()
}

// ballast takes memory of this machine until no more than most bytes are
// available.
func ballast(t *testing.T, most int64) (release func()) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=95%"); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 64<<20); available(t) > most; {
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	return release
}

// available is the memory of this machine that can be had, in bytes.
func available(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var kb int64
	_, rest, _ := bytes.Cut(b, []byte("MemAvailable:"))
	if _, err := fmt.Sscan(string(rest), &kb); err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// A machine that is full: new sessions are refused and told why, those that run
// go on, and when there is memory again so are new ones.
func TestWebHostFull(t *testing.T) {
	w := web(t)
	const session = 250 // MB
	spare := min(3<<30, available(t)/3)
	free := (available(t) - spare) >> 20 // MB that must stay free
	full := w.anotherCarrier(t, "carrier-full", 1, fmt.Sprintf("[admission]\nfree_mb = %d\nsession_mb = %d\npressure = 0.0\n", free, session))
	is, err := w.core.Admin.WebReady(t.Context(), refillTime, full, harness.HasRoom(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodPatch, "/edges/"+is.ID, map[string]any{"labels": map[string]string{"rig": "full"}}, nil, "If-Match", "*"); err != nil {
		t.Fatal(err)
	}
	s := w.site(t, sites.Config{Kind: sites.Open}, siteOptions{change: tagged("carrier/rig=full")})
	u := w.openAs(t, w.user, s)
	u.shows(t, "the page")
	if u.Carrier != full.Name {
		t.Fatalf("it is on %s", u.Carrier)
	}
	release := ballast(t, (free-session)<<20) // others may give some back
	_, err = w.user.OpenWeb(t.Context(), s.target)
	if st, ok := errors.AsType[*harness.Status](err); !ok || st.Code != http.StatusServiceUnavailable || !strings.Contains(st.Body, "memory is short") {
		t.Errorf("a new session on a full machine: %v", err)
	}
	if _, err := w.core.Admin.WebReady(t.Context(), patience, full, func(e harness.WebEdge) error {
		if e.Web.Room != 0 || e.Web.Live != 1 || !strings.Contains(e.Web.Problem, "memory is short") {
			return fmt.Errorf("it says %+v", *e.Web)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if got := u.run(t, "return 'alive'"); got != "alive" {
		t.Errorf("the session that runs says %q", got)
	}
	release()
	if _, err := w.core.Admin.WebReady(t.Context(), refillTime, full, harness.HasRoom(1)); err != nil {
		t.Fatal(err)
	}
	again := w.openAs(t, w.user, s)
	again.shows(t, "the page, with memory again")
	again.end(t)
	u.end(t)
}

// tagged gives a target a tag.
func tagged(tag string) func(*harness.WebTarget, *webrule.Policy) {
	return func(x *harness.WebTarget, _ *webrule.Policy) { x.Tags = append(x.Tags, tag) }
}
