package recording

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/core/internal/vault"
	"caponier/e2e/harness"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		fmt.Fprintln(os.Stderr, record(text))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait")) // lingers half a second
}

// shift is a clock that tests set forward; it runs by itself unless it is held.
type shift struct {
	mu   sync.Mutex
	d    time.Duration
	held time.Time // zero: it runs
}

func (c *shift) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.held.IsZero() {
		return c.held.Add(c.d)
	}
	return time.Now().Add(c.d)
}

// hold stops the clock: what must come soon is not late because the machine is
// slow. release lets it run on.
func (c *shift) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = time.Now()
}

func (c *shift) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = time.Time{}
}

func (c *shift) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.d += d
}

type rig struct {
	*Store
	t      *testing.T
	db     *db.DB
	dir    string
	clock  *shift
	limits Limits
	roles  map[string][]string
}

func newVault(t testing.TB, d *db.DB) *vault.Vault {
	t.Helper()
	v, err := vault.New(t.Context(), vault.Config{
		DB: d, Audit: audit.New(d, time.Now), Log: slog.New(slog.DiscardHandler), KEK: vault.GenerateKEK(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newRig(t *testing.T, d *db.DB, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{t: t, db: d, dir: t.TempDir(), clock: &shift{}, limits: DefaultLimits(), roles: map[string][]string{}}
	r.limits.MinFree = 0
	c := Config{
		DB: d, Audit: audit.New(d, r.clock.now), Dir: r.dir, CoreID: "cor_test",
		RolesOf: func(_ context.Context, id string) ([]string, error) { return r.roles[id], nil },
		Limits:  func() Limits { return r.limits }, Now: r.clock.now, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&c)
	}
	if c.Keys == nil {
		c.Keys = newVault(t, d)
	}
	var err error
	if r.Store, err = New(c); err != nil {
		t.Fatal(err)
	}
	return r
}

// run starts the jobs of a store.
func (r *rig) run(s *Store) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("run: %v", err)
		}
	})
}

// patience is how long what must happen may take on a busy machine.
const patience = time.Minute

func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			r.t.Fatalf("not in %s: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func meta(user string) Meta {
	return Meta{
		ConnectionID: "con_1", Kind: "ssh", UserID: "usr_" + user, UserName: user, TargetID: "tgt_1", TargetName: "db-1",
		Account: "root", Width: 80, Height: 24, Title: "root@db-1",
	}
}

func (r *rig) create(user string) *Writer {
	r.t.Helper()
	w, err := r.Create(r.t.Context(), meta(user))
	if err != nil {
		r.t.Fatal(err)
	}
	return w
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// session writes a small complete recording and returns its row.
func (r *rig) session(user string) *Recording {
	r.t.Helper()
	r.clock.hold() // the echo comes in time
	defer r.clock.release()
	w := r.create(user)
	must(r.t, w.Output([]byte("$ ")), w.Input([]byte("ls -l /srv\r")), w.Output([]byte("ls -l /srv\r\ntotal 0\r\nneedle.txt\r\n$ ")),
		w.Resize(120, 40), w.Event("exec", map[string]string{"command": "systemctl status haystack"}), w.Close())
	return r.row(w.ID)
}

func (r *rig) row(id string) *Recording {
	r.t.Helper()
	x, err := r.Get(r.t.Context(), r.db, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return x
}

func (r *rig) path(x *Recording, kind string) string {
	return filepath.Join(r.dir, fileName(x.ID, kind, x.StartedAt))
}

func (r *rig) cast(x *Recording) (string, Integrity) {
	r.t.Helper()
	var b bytes.Buffer
	state, err := r.WriteCast(r.t.Context(), &b, x)
	if err != nil {
		r.t.Fatal(err)
	}
	return b.String(), state
}

func auditTypes(t *testing.T, d *db.DB, object string) string {
	t.Helper()
	rows, err := d.QueryContext(context.Background(), `select type from audit_events where object_id = $1 order by seq`, object)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestRecordAndPlay(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		x := r.session("demo")
		if x.Status != Complete || x.SHA256 == "" || x.Size == 0 || x.Blocks == 0 || x.UserID != "usr_demo" || x.EndedAt.IsZero() {
			t.Errorf("row: %+v", x)
		}
		text, state := r.cast(x)
		if state.Status != Complete {
			t.Errorf("state %+v", state)
		}
		lines := strings.Split(strings.TrimSpace(text), "\n")
		var h map[string]any
		if err := json.Unmarshal([]byte(lines[0]), &h); err != nil || h["version"] != 2.0 || h["width"] != 80.0 || h["height"] != 24.0 {
			t.Errorf("head %s: %v", lines[0], err)
		}
		var codes []string
		last := -1.0
		for _, l := range lines[1:] {
			var e []any
			if err := json.Unmarshal([]byte(l), &e); err != nil || len(e) != 3 {
				t.Fatalf("line %s: %v", l, err)
			}
			if at := e[0].(float64); at < last {
				t.Errorf("time goes back at %s", l)
			} else {
				last = at
			}
			codes = append(codes, e[1].(string)+":"+e[2].(string))
		}
		want := []string{
			"o:$ ", "o:ls -l /srv\r\ntotal 0\r\nneedle.txt\r\n$ ", "i:ls -l /srv\r", "r:120x40",
			`m:exec {"command":"systemctl status haystack"}`, "m:integrity: " + state.Text,
		}
		if got := strings.Join(codes, "|"); got != strings.Join(want, "|") {
			t.Errorf("events\n%s\nwant\n%s", got, strings.Join(want, "|"))
		}
		if got := auditTypes(t, d, x.ID); got != "recording.started recording.completed" {
			t.Errorf("audit events %q", got)
		}
	})
}

func TestRunesAcrossItems(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	w := r.create("demo")
	must(t, w.Output([]byte("gr\xc3")), w.Output([]byte("\xbc\xc3\x9fe \xf0\x9f")), w.Output([]byte("\x9a\x80 \xff end\xe2")), w.Close())
	text, _ := r.cast(r.row(w.ID))
	var all strings.Builder
	for _, l := range strings.Split(strings.TrimSpace(text), "\n")[1:] {
		var e []any
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatal(err)
		}
		if e[1] == "o" {
			all.WriteString(e[2].(string))
		}
	}
	if got, want := all.String(), "grüße 🚀 \ufffd end\ufffd"; got != want {
		t.Errorf("played %q, want %q", got, want)
	}
}

func TestSearch(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		x := r.session("demo")
		check := func(what string) {
			t.Helper()
			for _, q := range []string{"needle", "NEEDLE.TXT", "haystack", "ls -l"} {
				hits, err := r.Search(t.Context(), x, q, 0, 10)
				if err != nil || len(hits) != 1 || !strings.Contains(strings.ToLower(hits[0].Line), strings.ToLower(q)) {
					t.Errorf("%s, %q: %v, %v", what, q, hits, err)
				}
			}
			if hits, err := r.Search(t.Context(), x, "nothing of it", 0, 10); err != nil || len(hits) != 0 {
				t.Errorf("%s: %v, %v", what, hits, err)
			}
			if hits, err := r.Search(t.Context(), x, "needle", time.Hour, 10); err != nil || len(hits) != 0 {
				t.Errorf("%s, from the end: %v, %v", what, hits, err)
			}
		}
		check("without index")
		r.run(r.Store)
		r.until("index", func() bool { return r.row(x.ID).Indexed })
		x = r.row(x.ID)
		check("with index")
		raw, err := os.ReadFile(r.path(x, kindIndex))
		must(t, err)
		if bytes.Contains(raw, []byte("needle")) {
			t.Error("the index is readable")
		}
		raw[len(raw)-40] ^= 1
		must(t, os.WriteFile(r.path(x, kindIndex), raw, 0o600))
		check("with a damaged index")
		must(t, os.Remove(r.path(x, kindIndex)))
		check("with a missing index")
	})
}

// While a session runs, what it wrote is on disk within a second, and can be
// followed from another process.
func TestFollow(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	w := r.create("demo")
	var mu sync.Mutex
	var got strings.Builder
	seen := func(s string) bool {
		mu.Lock()
		defer mu.Unlock()
		return strings.Contains(got.String(), s)
	}
	done := make(chan Integrity, 1)
	go func() {
		state, err := r.Follow(context.Background(), r.row(w.ID), func(it Item) error {
			mu.Lock()
			defer mu.Unlock()
			got.Write(it.Data)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		done <- state
	}()
	for i := range 3 {
		text := fmt.Sprintf("line %d\r\n", i)
		start := time.Now()
		must(t, w.Output([]byte(text)))
		r.until(text, func() bool { return seen(text) })
		t.Logf("%q followed after %s", text, time.Since(start))
	}
	must(t, w.Close())
	if state := <-done; state.Status != Complete {
		t.Errorf("state %+v", state)
	}
}

// Its owner dies: what was written plays, and says that the end is missing.
func TestCrashLeavesPlayable(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		w := r.create("demo")
		must(t, w.Output([]byte("before the crash\r\n")))
		x := r.row(w.ID)
		r.until("block on disk", func() bool {
			state, _, _, err := r.examine(t.Context(), x)
			return err == nil && state.Blocks == 1
		})
		// The process is gone: only file and row are left. Half a block too.
		f, err := os.OpenFile(r.path(x, kindRec), os.O_APPEND|os.O_WRONLY, 0)
		must(t, err)
		_, err = f.Write([]byte{0, 0, 1})
		must(t, err, f.Close())
		again, err := New(r.cfg)
		must(t, err)
		r.run(again)
		r.until("incomplete", func() bool { return r.row(x.ID).Status == Incomplete })
		x = r.row(x.ID)
		if !strings.Contains(x.Problem, "without end mark") || x.Blocks != 1 || x.SHA256 == "" {
			t.Errorf("row %+v", x)
		}
		text, state := r.cast(x)
		if state.Status != Incomplete || !strings.Contains(text, "before the crash") || !strings.Contains(text, "integrity: incomplete: ends at 00:00:00 without end mark") {
			t.Errorf("%+v, %s", state, text)
		}
		if got := auditTypes(t, d, x.ID); got != "recording.started recording.failed" {
			t.Errorf("audit events %q", got)
		}
		if state, err := again.Verify(t.Context(), x.ID); err != nil || state.Status != Incomplete {
			t.Errorf("verify %+v, %v", state, err)
		}
		w.Close()
	})
}

func TestVerifyFindsTampering(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		tests := []struct {
			name   string
			change func(raw []byte) []byte
			text   string
		}{
			{"a flipped bit", func(b []byte) []byte { b[len(b)-100] ^= 1; return b }, "damaged"},
			{"truncated", func(b []byte) []byte { return b[:len(b)-60] }, "truncated"},
			{"another head", func(b []byte) []byte { b[20] ^= 1; return b }, "damaged"},
			{"empty", func(b []byte) []byte { return nil }, "head damaged"},
			{"gone", nil, "missing"},
		}
		r := newRig(t, d)
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				x := r.session("demo")
				if state, err := r.Verify(t.Context(), x.ID); err != nil || state.Status != Complete {
					t.Fatalf("before: %+v, %v", state, err)
				}
				if tt.change == nil {
					must(t, os.Remove(r.path(x, kindRec)))
				} else {
					raw, err := os.ReadFile(r.path(x, kindRec))
					must(t, err, os.WriteFile(r.path(x, kindRec), tt.change(raw), 0o600))
				}
				state, err := r.Verify(t.Context(), x.ID)
				if err != nil || state.Status != Damaged || !strings.Contains(state.Text, tt.text) {
					t.Errorf("after: %+v, %v; want %q", state, err, tt.text)
				}
				y := r.row(x.ID)
				if y.Status != Damaged || y.Problem == "" || y.VerifiedAt.IsZero() {
					t.Errorf("row %+v", y)
				}
				if got := auditTypes(t, d, x.ID); got != "recording.started recording.completed recording.damaged" {
					t.Errorf("audit events %q", got)
				}
				if _, err := r.Verify(t.Context(), x.ID); err != nil {
					t.Error(err)
				}
			})
		}
		// The files of two recordings exchanged.
		a, b := r.session("demo"), r.session("demo")
		raw, err := os.ReadFile(r.path(b, kindRec))
		must(t, err, os.WriteFile(r.path(a, kindRec), raw, 0o600))
		if state, err := r.Verify(t.Context(), a.ID); err != nil || state.Status != Damaged || !strings.Contains(state.Text, "another recording") {
			t.Errorf("exchanged: %+v, %v", state, err)
		}
	})
}

// The periodic job finds damage without being asked.
func TestIntegrityJob(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	x := r.session("demo")
	raw, err := os.ReadFile(r.path(x, kindRec))
	must(t, err)
	raw[len(raw)-100] ^= 1
	must(t, os.WriteFile(r.path(x, kindRec), raw, 0o600))
	r.run(r.Store)
	r.until("found", func() bool { return r.row(x.ID).Status == Damaged })
}

func TestRetention(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		r.limits.FileMax = 1 << 20
		w := r.create("demo")
		f, err := w.File(t.Context(), Upload, "/tmp/x")
		must(t, err)
		_, err = f.Write([]byte("content"))
		must(t, err)
		kept, err := f.Close(t.Context())
		must(t, err, w.Close())
		x := r.row(w.ID)
		must(t, r.buildIndex(t.Context(), x))
		live := r.create("demo")
		r.clock.add(180*24*time.Hour - time.Minute)
		young := r.session("demo")
		must(t, r.expire(t.Context()))
		if got := r.row(x.ID); got.Status != Complete {
			t.Fatalf("expired too early: %+v", got)
		}
		r.clock.add(2 * time.Minute)
		must(t, r.expire(t.Context()), r.expire(t.Context()))
		if got := r.row(x.ID); got.Status != Expired || got.SHA256 == "" {
			t.Errorf("row %+v", got)
		}
		for _, p := range []string{r.path(x, kindRec), r.path(x, kindIndex), filepath.Join(r.dir, fileName(kept.ID, kindFile, kept.StoredAt))} {
			if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", p, err)
			}
		}
		if r.row(young.ID).Status != Complete || r.row(live.ID).Status != Live {
			t.Error("others expired too")
		}
		must(t, live.Close())
		if got := auditTypes(t, d, x.ID); !strings.HasSuffix(got, "recording.expired") {
			t.Errorf("audit events %q", got)
		}
	})
}

func TestCreateFailsClosed(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	r.limits.MinFree = 1 << 60
	if _, err := r.Create(t.Context(), meta("demo")); !errors.Is(err, ErrFull) {
		t.Errorf("full: %v", err)
	}
	if err := r.Check(t.Context()); !errors.Is(err, ErrFull) {
		t.Errorf("check: %v", err)
	}
	r.limits.MinFree = 0
	must(t, r.Check(t.Context()))
	must(t, os.Rename(filepath.Join(r.dir, marker), filepath.Join(r.dir, "away")))
	if _, err := r.Create(t.Context(), meta("demo")); !errors.Is(err, ErrStorage) {
		t.Errorf("not mounted: %v", err)
	}
	if _, err := New(r.cfg); err == nil {
		t.Error("a directory with other files is taken")
	}
	must(t, os.RemoveAll(r.dir))
	if _, err := r.Create(t.Context(), meta("demo")); !errors.Is(err, ErrStorage) {
		t.Errorf("missing: %v", err)
	}
	if _, err := New(r.cfg); err == nil {
		t.Error("a missing directory is taken")
	}
}

// The database refuses the row: no file stays behind.
func TestCreateWithoutRow(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t), func(c *Config) { c.Audit = refusing{} })
	if _, err := r.Create(t.Context(), meta("demo")); err == nil {
		t.Error("created without audit")
	}
	found, err := filepath.Glob(filepath.Join(r.dir, "*", "*"))
	if err != nil || len(found) != 0 {
		t.Errorf("left behind: %v, %v", found, err)
	}
}

type refusing struct{}

func (refusing) Append(context.Context, *db.Tx, audit.Event) error {
	return errors.New("audit is full")
}

// A full disk fails the writer, so that the session ends; what is there plays.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=512k"); err != nil {
		harness.Lacks(t, "needs root for a small file system: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	r := newRig(t, dbtest.SQLite(t), func(c *Config) { c.Dir = dir })
	r.dir = dir
	w := r.create("demo")
	must(t, w.Output([]byte("the beginning\r\n")))
	noise := make([]byte, 8<<10)
	r.until("failure", func() bool {
		for i := range noise {
			noise[i] = byte(time.Now().UnixNano() >> (i % 7))
		}
		return w.Output(noise) != nil
	})
	if err := w.Output(nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("later write: %v", err)
	}
	if err := w.Close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("close: %v", err)
	}
	x := r.row(w.ID)
	text, state := r.cast(x)
	if x.Status != Incomplete || state.Status != Incomplete || !strings.Contains(text, "the beginning") {
		t.Errorf("%s, %+v", x.Status, state)
	}
}

// Names from outside never become paths.
func TestPathTraversal(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	outside := filepath.Join(filepath.Dir(r.dir), "outside.crec")
	must(t, os.WriteFile(outside, []byte("secret"), 0o600))
	for _, id := range []string{"../outside", "..", "", "/etc/passwd", "rec_../../outside", "rec_" + strings.Repeat("A", 26), "rec_a\x00b"} {
		if f, err := r.openFile(id, kindRec, time.Now()); !errors.Is(err, db.ErrNotFound) {
			f.Close()
			t.Errorf("%q: %v, want not found", id, err)
		}
	}
	m := meta("demo")
	m.ConnectionID, m.TargetName, m.Title, m.UserName = "../../x", "../../../etc", "../t", "a/../../b"
	w, err := r.Create(t.Context(), m)
	must(t, err)
	r.limits.FileMax = 1 << 20
	f, err := w.File(t.Context(), Upload, "../../../../etc/cron.d/evil")
	must(t, err)
	_, err = f.Close(t.Context())
	must(t, err, w.Close())
	// A link in the directory does not lead out of it.
	x := r.row(w.ID)
	must(t, os.Remove(r.path(x, kindRec)), os.Symlink(outside, r.path(x, kindRec)))
	if _, _, err := r.reader(x); err == nil {
		t.Error("followed a link out of the directory")
	}
	err = filepath.WalkDir(r.dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasPrefix(p, r.dir) {
			t.Errorf("written outside: %s", p)
		}
		return err
	})
	must(t, err)
}

// Neither content nor typed secrets are readable on disk or in the database.
func TestNothingReadable(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	r.limits.FileMax = 1 << 20
	w := r.create("demo")
	must(t, w.Output([]byte("[sudo] password for demo: ")), w.Input([]byte("canary-typed-91\r")), w.Output([]byte("\r\ncanary-shown-92\r\n")))
	f, err := w.File(t.Context(), Download, "/srv/canary-name")
	must(t, err)
	_, err = f.Write([]byte("canary-file-93"))
	must(t, err)
	_, err = f.Close(t.Context())
	must(t, err, w.Close(), r.buildIndex(t.Context(), r.row(w.ID)))
	text, _ := r.cast(r.row(w.ID))
	if strings.Contains(text, "canary-typed") || !strings.Contains(text, "canary-shown-92") || !strings.Contains(text, maskText) {
		t.Errorf("played: %s", text)
	}
	n := 0
	err = filepath.WalkDir(r.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		raw, err := os.ReadFile(p)
		if bytes.Contains(raw, []byte("canary")) {
			t.Errorf("%s holds plain text", p)
		}
		if st, serr := d.Info(); serr == nil && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", p, st.Mode())
		}
		return err
	})
	if err != nil || n < 4 {
		t.Errorf("looked at %d files, %v", n, err)
	}
}

func TestWriterConcurrency(t *testing.T) {
	r := newRig(t, dbtest.SQLite(t))
	w := r.create("demo")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				switch i % 4 {
				case 0:
					must(t, w.Output(bytes.Repeat([]byte("x"), 3000)))
				case 1:
					must(t, w.Input([]byte("y")))
				case 2:
					must(t, w.Event("sftp", map[string]string{"path": "/x"}))
				case 3:
					must(t, w.Resize(80, 24))
				}
			}
		})
	}
	wg.Wait()
	must(t, w.Close(), w.Close())
	if err := w.Output([]byte("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	state, err := r.Verify(t.Context(), w.ID)
	if err != nil || state.Status != Complete {
		t.Errorf("%+v, %v", state, err)
	}
}

// A row that could not be written when the recording ended is written later.
func TestEndSurvivesDatabase(t *testing.T) {
	d := dbtest.SQLite(t)
	flaky := &flakyAudit{Auditor: audit.New(d, time.Now)}
	r := newRig(t, d, func(c *Config) { c.Audit = flaky })
	w := r.create("demo")
	must(t, w.Output([]byte("x")))
	flaky.set(true)
	must(t, w.Close())
	if r.row(w.ID).Status != Live {
		t.Fatal("the row was written although the database refused")
	}
	r.run(r.Store)
	flaky.set(false)
	r.until("complete", func() bool { return r.row(w.ID).Status == Complete })
}

type flakyAudit struct {
	Auditor
	mu   sync.Mutex
	away bool
}

func (f *flakyAudit) set(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

func (f *flakyAudit) Append(ctx context.Context, tx *db.Tx, e audit.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		return errors.New("database away")
	}
	return f.Auditor.Append(ctx, tx, e)
}

func BenchmarkWriter(b *testing.B) {
	d := dbtest.SQLite(b)
	s, err := New(Config{
		DB: d, Audit: audit.New(d, time.Now), Keys: newVault(b, d), Dir: b.TempDir(), CoreID: "c",
		Limits: func() Limits { return Limits{Retention: time.Hour} }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
	})
	must(b, err)
	w, err := s.Create(b.Context(), meta("demo"))
	must(b, err)
	p := bytes.Repeat([]byte("-rw-r--r-- 1 root root 4096 Nov 22 07:00 file.txt\r\n"), 600)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		must(b, w.Output(p))
	}
	must(b, w.Close())
}

func TestErase(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		r := newRig(t, d)
		x := r.session("demo")
		got, err := r.Export(t.Context(), d, "usr_demo")
		if err != nil || len(got.([]*Recording)) != 1 {
			t.Fatalf("export %v, %v", got, err)
		}
		must(t, d.Tx(t.Context(), func(tx *db.Tx) error { return r.Erase(t.Context(), tx, "usr_demo", "erased-1") }))
		if y := r.row(x.ID); y.UserName != "erased-1" || y.Title != "" || y.Status != Complete {
			t.Errorf("after erasing: %+v", y)
		}
	})
}
