package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/slot"
	"caponier/e2e/harness"
	"caponier/shared/wire"
)

// A session that is not used ends on time, with a notice before; one that is
// used goes on, and reaches its maximum.
func TestIdleAndMaximum(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	s := r.spec("con_idle")
	s.Policy.IdleS, s.Policy.NoticeS = 8, 7 // a machine that pauses gives its notice late, and gives it
	began := time.Now()
	l := r.open(s)
	r.until(patience, "end", func() error {
		if _, ok := r.core.end(s.ID); !ok {
			return errors.New("core was not told")
		}
		return nil
	})
	if d := time.Since(began); d < 7900*time.Millisecond {
		t.Errorf("it ended after %v", d)
	}
	if e, _ := r.core.end(s.ID); e.Reason != "idle" || !strings.Contains(e.Text, "not used for 8 seconds") {
		t.Errorf("end %+v", e)
	}
	if n := r.core.events(s.ID, "notice"); len(n) == 0 || !strings.Contains(n[0]["text"], "not used and ends in") {
		t.Errorf("notices %v", n)
	}
	<-l.done

	s = r.spec("con_max")
	s.Policy.MaxS, s.Policy.NoticeS = 30, 28
	l = r.open(s)
	r.until(patience, "notice", func() error {
		if len(r.core.events(s.ID, "notice")) == 0 {
			return errors.New("none")
		}
		return nil
	})
	s.Revision, s.Policy.MaxS = 2, 3600 // core extends it
	if ack := r.m.put(t.Context(), s); ack.Error != nil || ack.Revision != 2 {
		t.Fatalf("extend: %+v", ack)
	}
	r.until(patience, "the notice goes", func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.notice != "" {
			return errors.New(l.notice)
		}
		return nil
	})
	s.Revision, s.Policy.MaxS = 3, 1
	r.m.put(t.Context(), s)
	r.until(patience, "end", func() error {
		if e, ok := r.core.end(s.ID); !ok || e.Reason != "max_duration" {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
}

// An older revision changes nothing; a lock drops input and says so.
func TestRevisions(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	s := r.spec("con_rev")
	s.Revision = 5
	l := r.open(s)
	old := s
	old.Revision, old.Policy.DownloadMax = 4, 0
	if ack := r.m.put(t.Context(), old); ack.Revision != 5 || l.policy().DownloadMax == 0 {
		t.Errorf("an older revision was taken: %+v, %+v", ack, l.policy())
	}
	s.Revision, s.Locked, s.LockText, s.Policy.Mode = 6, true, "Please wait.", "bar"
	if ack := r.m.put(t.Context(), s); ack.Revision != 6 {
		t.Errorf("ack %+v", ack)
	}
	b, err := os.ReadFile(filepath.Join(r.dir, "run", l.slot.Name, "session.json"))
	if err != nil || !strings.Contains(string(b), `"mode":"bar"`) {
		t.Errorf("session.json: %s, %v", b, err)
	}
}

// Core goes away for a while: the session goes on, its records come in order
// and once; without core for longer than the lease it ends.
func TestCoreAway(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	s := r.spec("con_away")
	l := r.open(s)
	r.shows(l, colour("/con_away"), patience)
	r.core.set(func() { r.core.down = true })
	for i := range 20 {
		l.event("browser", map[string]string{"what": "test", "n": fmt.Sprint(i)})
	}
	r.core.set(func() { r.core.down, r.core.lost = false, 1 }) // the first answer gets lost, too
	r.until(patience, "records", func() error {
		n := 0
		for _, e := range r.core.events(s.ID, "browser") {
			if e["what"] == "test" {
				if e["n"] != fmt.Sprint(n) {
					t.Fatalf("event %d is %v", n, e)
				}
				n++
			}
		}
		if n != 20 {
			return fmt.Errorf("%d of 20", n)
		}
		return nil
	})
	s.Revision, s.LeaseS = 2, 2
	r.m.put(t.Context(), s)
	r.core.set(func() { r.core.down = true })
	began := time.Now()
	<-l.ctx.Done()
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("the lease of 2 s lasted %v", d)
	}
	<-l.done
	r.core.set(func() { r.core.down = false })
	r.until(patience, "end", func() error {
		if e, ok := r.core.end(s.ID); !ok || e.Reason != "error" {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
}

// Core is slow to take the last records: that a session is over is answered
// when core has them all.
func TestEndDelivers(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	s := r.spec("con_end")
	l := r.open(s)
	r.shows(l, colour("/con_end"), patience)
	r.core.set(func() { r.core.down = true })
	l.event("browser", map[string]string{"what": "last words"})
	ended := make(chan error, 1)
	go func() { ended <- r.m.delete(t.Context(), s.ID) }()
	<-l.done // the time that an end waits for core is over
	select {
	case err := <-ended:
		t.Fatalf("over with records that core does not have: %v", err)
	default:
	}
	r.core.set(func() { r.core.down = false })
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(r.core.events(s.ID, "browser"), func(e map[string]string) bool { return e["what"] == "last words" }) {
		t.Error("core lacks the last words")
	}
}

// What cannot be delivered is bounded, and ends a session that must be recorded.
func TestSpoolFull(t *testing.T) {
	r := newRig(t)
	r.conf = func(c *Config) { c.Spool = 256 << 10 }
	r.start()
	r.warm(1)
	l := r.open(r.spec("con_full"))
	r.core.set(func() { r.core.down = true })
	for i := 0; l.ctx.Err() == nil && i < 10_000; i++ {
		l.event("browser", map[string]string{"what": strings.Repeat("x", 4<<10)})
	}
	<-l.done
	if st := l.spool.Stats(); st.Bytes > 256<<10 {
		t.Errorf("%d bytes were kept", st.Bytes)
	}
	r.core.set(func() { r.core.down = false })
	r.until(patience, "end", func() error {
		if e, ok := r.core.end("con_full"); !ok || e.Text != textFull {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
}

// The process is replaced: sessions go on in the next one with their pictures
// and records, what belongs to nobody is removed, and containers of others stay.
func TestTakeover(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	s := r.spec("con_stay")
	l := r.open(s)
	r.shows(l, colour("/con_stay"), patience)
	lost := r.open(r.spec("con_lost"))
	r.stop()
	if err := r.engine.Remove(t.Context(), lost.slot.ID); err != nil {
		t.Fatal(err)
	}
	// What a killed process may leave: a parked container, half a file, a slot.
	dir := filepath.Join(r.dir, "run", "aaaabbbbccccdddd")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	orphan, err := r.engine.Start(t.Context(), browser.Spec{Slot: "aaaabbbbccccdddd", Dir: dir, Screen: slot.Screen, Engine: r.what})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{".new-1": "{", "con_bad.json": "{}", "con_cut.json": `{"spec":`} {
		if err := os.WriteFile(filepath.Join(r.dir, "state", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	foreign := r.foreign()
	before := len(r.core.frames(s.ID))

	began := time.Now()
	r.start()
	r.until(patience, "session", func() error {
		if r.m.find(s.ID) == nil {
			return errors.New("not there")
		}
		return nil
	})
	l = r.m.find(s.ID)
	r.shows(l, colour("/con_stay"), patience)
	t.Logf("picture back after %v", time.Since(began)) // what that may be e2e's TestWebRestarts and make bench say
	r.until(patience, "more frames", func() error {
		if n := len(r.core.frames(s.ID)); n <= before {
			return fmt.Errorf("%d frames, %d before", n, before)
		}
		return nil
	})
	r.until(patience, "core hears of the lost session", func() error {
		if e, ok := r.core.end("con_lost"); !ok || e.Reason != "error" {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
	if ack := r.m.put(t.Context(), s); ack.Error != nil || ack.Revision != 1 {
		t.Errorf("ack %+v", ack)
	}
	for _, c := range r.containers() {
		if c.ID == orphan {
			t.Errorf("the orphan is still there")
		}
	}
	entries, _ := os.ReadDir(filepath.Join(r.dir, "state"))
	for _, e := range entries {
		if e.Name() != "con_stay.json" {
			t.Errorf("%s is left", e.Name())
		}
	}
	if _, ok, err := r.engine.Inspect(t.Context(), foreign); err != nil || !ok {
		t.Errorf("the foreign container: %v, %v", ok, err)
	}
	if err := r.m.delete(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
}

// A browser whose carrier does not come back ends by itself; the next carrier
// tells core that it is lost.
func TestAlone(t *testing.T) {
	r := newRig(t)
	limit := r.limit
	limit.Alone = 5 * time.Second
	e, err := browser.New(browser.Config{Host: docker.host, Images: images, Node: r.node, Limits: limit, Log: slogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	r.conf = func(c *Config) { c.Engine = e }
	r.start()
	r.warm(1)
	l := r.open(r.spec("con_alone"))
	r.shows(l, colour("/con_alone"), patience)
	left := time.Now()
	r.stop()
	var c browser.Container
	r.until(patience, "the container ends", func() error {
		var ok bool
		if c, ok, err = e.Inspect(t.Context(), l.slot.ID); err != nil || !ok || c.Running {
			return fmt.Errorf("%+v, %v, %w", c, ok, err)
		}
		return nil
	})
	if d := time.Since(left); d < limit.Alone {
		t.Errorf("it ended %v after its carrier, want %v at least", d, limit.Alone)
	}
	if c.ExitCode != 1 || c.OOM {
		t.Errorf("it ended as %+v", c)
	}
	if logs := e.Logs(t.Context(), l.slot.ID); !strings.Contains(logs, "there is no carrier any more") {
		t.Errorf("it says %q", logs)
	}
	r.start()
	r.until(patience, "core is told", func() error {
		if end, ok := r.core.end("con_alone"); !ok || end.Reason != "error" || !strings.Contains(end.Text, "was lost") {
			return fmt.Errorf("%+v", end)
		}
		return nil
	})
}

// foreign makes a container of somebody else.
func (r *rig) foreign() string {
	r.t.Helper()
	api, err := client.New(client.WithHost(docker.host))
	if err != nil {
		r.t.Fatal(err)
	}
	made, err := api.ContainerCreate(r.t.Context(), client.ContainerCreateOptions{
		Config: &container.Config{Image: images[wire.Firefox], Labels: map[string]string{browser.LabelCarrier: r.node + "x"}}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		_, err := api.ContainerRemove(context.Background(), made.ID, client.ContainerRemoveOptions{Force: true})
		if err = errors.Join(err, api.Close()); err != nil {
			r.t.Error(err)
		}
	})
	return made.ID
}

// A browser whose parts are killed ends its session as an error, and others do
// not notice.
func TestBrowserEnds(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	a, b := r.open(r.spec("con_a")), r.open(r.spec("con_b"))
	r.shows(b, colour("/con_b"), patience)
	r.inside(b, "kill -9 $(pidof Xvnc)")
	r.until(patience, "end", func() error {
		if e, ok := r.core.end("con_b"); !ok || e.Reason != "error" {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
	if a.ctx.Err() != nil {
		t.Error("the other one ended with it")
	}
	r.inside(a, "kill $(pidof firefox-esr)")
	r.until(patience, "end", func() error {
		if e, ok := r.core.end("con_a"); !ok || e.Reason != "error" {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
}

// A browser that crashes while it starts is started once more, and leads to the
// session's page; one that crashes again ends the session.
func TestBrowserCrashes(t *testing.T) { each(t, testBrowserCrashes) }

func testBrowserCrashes(t *testing.T, r *rig) {
	r.conf = func(c *Config) { c.Warm[r.what] = 0 }
	r.start()
	l := r.open(r.spec("con_a"))
	crash := func() {
		t.Helper()
		r.until(patience, "the browser's first process is there", func() error {
			out := r.inside(l, `for p in $(pidof firefox-esr chromium); do grep -q "^PPid:[[:space:]]1$" /proc/$p/status && kill -SEGV $p && echo done; done`)
			if strings.TrimSpace(out) != "done" {
				return errors.New(out)
			}
			return nil
		})
	}
	crash()
	r.shows(l, colour("/con_a"), patience)
	crash()
	r.until(patience, "end", func() error {
		if e, ok := r.core.end("con_a"); !ok || e.Reason != "error" {
			return fmt.Errorf("%+v", e)
		}
		return nil
	})
}

func TestLeft(t *testing.T) {
	for _, c := range []struct {
		c    browser.Container
		want reason
		text string
	}{
		{browser.Container{ID: "x"}, byUser, "closed"},
		{browser.Container{ID: "x", ExitCode: 1}, byError, "unexpectedly"},
		{browser.Container{ID: "x", ExitCode: 137}, byError, "stopped on its host"},
		{browser.Container{ID: "x", ExitCode: 143}, byError, "stopped on its host"},
		{browser.Container{ID: "x", ExitCode: 137, OOM: true}, byError, "memory"},
		{browser.Container{}, byError, "removed on its host"},
	} {
		if why, text := left(c.c); why != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%+v: %s, %q", c.c, why, text)
		}
	}
}

// The machine's memory decides, and says so in words.
func TestAdmission(t *testing.T) {
	r := newRig(t)
	r.conf = func(c *Config) { c.Room.Free = 1 << 50 }
	r.start()
	r.until(patience, "problem", func() error {
		if c := r.m.Capacity(); c.Room != 0 || !strings.Contains(c.Problem, "memory is short") {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	ack := r.m.put(t.Context(), r.spec("con_no"))
	if ack.Error == nil || ack.Error.Code != wire.CodeLimit || !strings.Contains(ack.Error.Public, "memory is short") {
		t.Errorf("ack %+v", ack.Error)
	}
	r.stop()
	r.conf = func(c *Config) { c.Max, c.Warm[r.what] = 1, 0 }
	r.start()
	r.until(patience, "authority", func() error {
		if c := r.m.Capacity(); c.Problem != "" {
			return errors.New(c.Problem)
		}
		return nil
	})
	r.open(r.spec("con_one")) // cold
	ack = r.m.put(t.Context(), r.spec("con_two"))
	if ack.Error == nil || ack.Error.Code != wire.CodeLimit || !strings.Contains(ack.Error.Public, "all the sessions it takes (1)") {
		t.Errorf("ack %+v", ack.Error)
	}
}

func TestImageMissing(t *testing.T) {
	r := newRig(t)
	e, err := browser.New(browser.Config{Host: docker.host, Images: map[string]string{wire.Firefox: "caponier-no-such-image"}, Node: r.node, Limits: r.limit})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	tried := &attempts{Engine: e}
	var log logged
	r.conf = func(c *Config) {
		c.Engine = tried
		c.Log = slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), &log), nil))
	}
	r.start()
	const want = "image caponier-no-such-image is missing: run make images"
	r.until(patience, "problem", func() error {
		if c := r.m.Capacity(); c.Problem != want || c.Room != 0 {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if ack := r.m.put(t.Context(), r.spec("con_no")); ack.Error == nil || ack.Error.Code != wire.CodeLimit || !strings.Contains(ack.Error.Public, want) {
		t.Errorf("ack %+v", ack.Error)
	}
	// It tries again and again, and says so once.
	r.until(patience, "it has tried four times", func() error {
		if n := tried.n.Load(); n < 4 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	if n := strings.Count(log.String(), "level=WARN msg=\"browsers cannot be started\""); n != 1 {
		t.Errorf("%d lines say that browsers cannot be started, want one:\n%s", n, log.String())
	}
}

// attempts counts how often a container was to be started by the pool.
type attempts struct {
	Engine
	n atomic.Int32
}

func (a *attempts) Start(ctx context.Context, s browser.Spec) (string, error) {
	a.n.Add(1)
	return a.Engine.Start(ctx, s)
}

// logged keeps what was logged.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

// Write implements io.Writer.
func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Another root: the pool is made anew, a browser never meets two.
func TestAnotherRoot(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	old := r.m.pool.parked[0].Name
	other := newRoot(t)
	r.core.set(func() { r.core.root = other })
	if !r.m.pool.ask() {
		t.Fatal("core was not asked")
	}
	r.m.pool.refill()
	r.warm(1)
	s := r.m.pool.parked[0]
	if s.Name == old {
		t.Error("the old browser is still parked")
	}
	if _, err := os.Stat(filepath.Join(r.dir, "run", old)); !os.IsNotExist(err) {
		t.Errorf("the old slot: %v", err)
	}
}

// A webproxy that is not the one core named gets nothing.
func TestOtherWebProxy(t *testing.T) {
	r := newRig(t)
	r.start()
	r.warm(1)
	s := r.spec("con_other")
	s.Proxy.NodeID = "nod_somebody"
	l := r.open(s)
	r.until(patience, "failed connections", func() error {
		if l.slot.Door.Failed.Load() == 0 {
			return errors.New("none")
		}
		return nil
	})
	if lines, _ := r.web.seen(); len(lines) != 0 {
		t.Errorf("it was told %q", lines)
	}
}

// Sessions come and go, and nothing of them stays.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t)
	cycles := 20
	if testing.Short() {
		cycles = 3
	}
	r.start()
	r.warm(1)
	count := func() (goroutines, handles int) {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(fds)
	}
	cycle := func(i int) {
		s := r.spec(fmt.Sprintf("con_%d", i))
		r.open(s)
		r.until(patience, "picture", func() error {
			if len(r.core.frames(s.ID)) == 0 {
				return errors.New("none")
			}
			return nil
		})
		if err := r.m.delete(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
	}
	cycle(0)
	r.warm(1)
	g0, f0 := count()
	for i := 1; i <= cycles; i++ {
		cycle(i) // with a parked browser or a new one, as it comes
	}
	r.warm(1)
	r.until(patience, "nothing left", func() error {
		if g, f := count(); g > g0+3 || f > f0+3 {
			return fmt.Errorf("%d goroutines and %d handles, %d and %d before", g, f, g0, f0)
		}
		return nil
	})
	if n := len(r.containers()); n != 1 {
		t.Errorf("%d containers", n)
	}
	for dir, want := range map[string]int{"run": 1, "state": 0} {
		if e, err := os.ReadDir(filepath.Join(r.dir, dir)); err != nil || len(e) != want {
			t.Errorf("%s: %v, %v", dir, e, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), filepath.Join(r.dir, "run")) {
		t.Errorf("mounts of sockets are left: %v", err)
	}
}

// The Docker daemon goes away and comes back: the carrier says so, a session
// whose container outlived it goes on, one whose container did not is told to
// core, and new ones are possible again.
func TestDaemonAway(t *testing.T) {
	r := newRig(t)
	if docker.own == nil {
		harness.Lacks(t, "this stops the Docker daemon and needs one of its own: unset DOCKER_HOST")
	}
	r.start()
	r.warm(1)
	l := r.open(r.spec("con_on"))
	r.shows(l, colour("/con_on"), patience)
	r.warm(1)
	if err := docker.own.Stop(); err != nil {
		t.Fatal(err)
	}
	r.until(patience, "problem", func() error {
		if c := r.m.Capacity(); !strings.Contains(c.Problem, "Docker does not answer") {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if err := docker.own.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.until(patience, "no problem", func() error {
		if c := r.m.Capacity(); c.Problem != "" {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	if c, _, err := r.engine.Inspect(t.Context(), l.slot.ID); err == nil && c.Running {
		r.shows(l, colour("/con_on"), patience)
	} else {
		r.until(patience, "end", func() error {
			if e, ok := r.core.end("con_on"); !ok || e.Reason != "error" || e.Text != "The browser was stopped on its host." {
				return fmt.Errorf("%+v", e)
			}
			return nil
		})
	}
	r.shows(r.open(r.spec("con_after")), colour("/con_after"), patience)
	for _, id := range []string{"con_on", "con_after"} {
		if err := r.m.delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	r.until(patience, "one container, parked", func() error {
		if list := r.containers(); len(list) != 1 {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
}
