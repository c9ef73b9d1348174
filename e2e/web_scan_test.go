package e2e

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"caponier/e2e/harness"
	"caponier/e2e/sites"
)

// written are the ways a password is written: as it is, as Firefox keeps text
// in memory, and as protocols carry it.
func written(p string) map[string]string {
	wide := make([]byte, 0, 2*len(p))
	for _, u := range utf16.Encode([]rune(p)) {
		wide = append(wide, byte(u), byte(u>>8))
	}
	latin := make([]byte, 0, len(p)) // Latin-1 strings
	for _, r := range p {
		if r < 0x100 {
			latin = append(latin, byte(r))
		}
	}
	return map[string]string{
		"plain": p, "UTF-16": string(wide), "Latin-1": string(latin), "form": url.QueryEscape(p), "percent": url.PathEscape(p),
		"base64": base64.StdEncoding.EncodeToString([]byte(p)), "hex": hex.EncodeToString([]byte(p)),
	}
}

// The stored credential is in the webproxy and in nothing else: not in the
// memory of any process in the browser's container, not in its files, its
// environment, what Docker says of it, the logs, the recording, the database,
// nor in carrier or core. The same scan finds the placeholder where it has
// been, and in core's memory what core must know.
//
// The administrator's request that stored it passed core as JSON; core is
// started again after it, so that its memory shows what uses leave behind.
func TestWebCanary(t *testing.T) {
	w := web(t)
	const seed = "JBSWY3DPEHPK3PXPMZXW6YTBOIQGC3TE"
	key, err := base32.StdEncoding.DecodeString(seed)
	if err != nil {
		t.Fatal(err)
	}
	// A password by itself, and one with a seed for codes in a JSON secret.
	first := w.site(t, sites.Config{Kind: sites.Form, Password: "first&=+/ü-5a8c20e6"}, siteOptions{})
	s := w.site(t, sites.Config{Kind: sites.TOTP, Password: "canary&=+/ü-9f3b71c2", Seed: seed}, siteOptions{auth: func(s *webSite) (string, string) {
		return "json", fmt.Sprintf(`{"username":%q,"password":%q,"totp":"otpauth://totp/ann?secret=%s"}`, s.Config.Username, s.Config.Password, seed)
	}})
	w.restartCore(t)
	before := w.open(t, first)
	before.signedIn(t)
	before.end(t)
	u := w.open(t, s)
	u.signedIn(t)
	if got := first.Logins(); len(got) != 1 || got[0].Password != first.Config.Password {
		t.Fatalf("the first site received %+v", got)
	}
	if got := s.Logins(); len(got) != 2 || got[0].Password != s.Config.Password || !got[1].OK {
		t.Fatalf("the site received %+v", got)
	}
	w.nowhere(t, u, map[string]map[string]string{"the password": written(s.Config.Password), "the first password": written(first.Config.Password),
		"the seed": written(seed), "the seed's key": {"bytes": string(key)}})
	// The only holder. It may have wiped it; where it is found, it is there.
	u.end(t)
	if events, err := w.core.Admin.Audit(t.Context(), "limit=200"); err != nil || strings.Contains(fmt.Sprint(events), s.Config.Password) {
		t.Errorf("the audit log has the password (%v)", err)
	}
}

// nowhere scans every place but the webproxy while a session is open: none of
// the secrets is in any, in none of the forms given; what the page itself keeps
// is found, and what core must know.
func (w *webWorld) nowhere(t *testing.T, u *webUse, secrets map[string]map[string]string) {
	t.Helper()
	control := "control-" + hex.EncodeToString([]byte(u.ID))[:24]
	u.run(t, fmt.Sprintf("window.kept = %q; document.title = window.kept; localStorage.kept = window.kept; return 1", control))
	id := w.containerOf(t, u)
	needles := maps.Clone(secrets)
	needles["the control"], needles["the target"] = written(control), map[string]string{"plain": u.site.name}
	places := w.places(t, id)
	found := map[string][]string{}
	for _, p := range places {
		err := p.scan(func(r io.Reader) error {
			hits, err := search(r, needles)
			for what := range hits {
				found[what] = append(found[what], p.name)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	t.Logf("scanned %d places; the control is in %d of them", len(places), len(found["the control"]))
	if !slices.ContainsFunc(found["the control"], func(name string) bool { return strings.HasPrefix(name, "memory of process ") }) {
		t.Error("the scan of the browser's memory does not find what is there")
	}
	if !slices.Contains(found["the target"], coreMemory) {
		t.Error("the scan of core's memory does not find the name of a target that is in use")
	}
	for _, must := range []string{"/core.db", "/core.db-wal", "/core.log"} {
		if !slices.ContainsFunc(places, func(p place) bool { return strings.HasSuffix(p.name, must) }) {
			t.Errorf("%s was not scanned", must)
		}
	}
	for what := range secrets {
		for _, place := range found[what] {
			t.Errorf("%s is in %s", what, place)
		}
	}
}

// restartCore stops core and starts it again, and waits for its edges.
func (w *webWorld) restartCore(t *testing.T) {
	t.Helper()
	w.core.Proc.Kill()
	if err := w.core.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for e, warm := range map[*harness.EdgeNode]int{w.proxy: 0, w.carrier: 1} {
		if _, err := w.core.Admin.WebReady(t.Context(), patience, e, harness.HasRoom(warm)); err != nil {
			t.Fatal(err)
		}
	}
}

// slotOf is the slot that a session runs in: the carrier logs it.
func (w *webWorld) slotOf(t *testing.T, u *webUse) string {
	t.Helper()
	for line := range strings.Lines(w.carrier.Proc.Output()) {
		if !strings.Contains(line, "msg=session session="+u.ID+" ") {
			continue
		}
		if _, slot, ok := strings.Cut(strings.TrimSpace(line), " slot="); ok {
			return slot
		}
	}
	t.Fatalf("the carrier's log does not tell where %s runs", u.ID)
	return ""
}

// containerOf is the container that a session runs in.
func (w *webWorld) containerOf(t *testing.T, u *webUse) string {
	t.Helper()
	slot := w.slotOf(t, u)
	id, err := w.docker.Docker(t.Context(), "ps", "-q", "--no-trunc", "--filter", "label=caponier.slot="+slot)
	if err != nil || id == "" {
		t.Fatalf("container of slot %s: %q %v", slot, id, err)
	}
	return id
}

// pidsOf are the processes of a container, as this machine sees them.
func (w *webWorld) pidsOf(t testing.TB, container string) []int {
	t.Helper()
	out, err := w.docker.Docker(t.Context(), "top", container, "-eo", "pid")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for f := range strings.FieldsSeq(out) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// place is somewhere a secret could be.
type place struct {
	name string
	scan func(func(io.Reader) error) error
}

// places are all but the webproxy.
func (w *webWorld) places(t *testing.T, container string) []place {
	t.Helper()
	text := func(name, s string) place {
		return place{name, func(f func(io.Reader) error) error { return f(strings.NewReader(s)) }}
	}
	file := func(name, path string) place {
		return place{name, func(f func(io.Reader) error) error {
			r, err := os.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			defer r.Close()
			return f(r)
		}}
	}
	var all []place
	pids := w.pidsOf(t, container)
	for _, pid := range pids {
		all = append(all, place{fmt.Sprintf("memory of process %d of the container", pid), func(f func(io.Reader) error) error { return memory(pid, f) }},
			file("environment of a process of the container", fmt.Sprintf("/proc/%d/environ", pid)),
			file("command line of a process of the container", fmt.Sprintf("/proc/%d/cmdline", pid)))
	}
	// Its file systems in memory: home, profile, caches, /files, /dev/shm.
	for _, dir := range []string{"tmp", "files", "dev/shm", "run/caponier"} {
		root := fmt.Sprintf("/proc/%d/root/%s", pids[0], dir)
		filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				all = append(all, file("/"+dir+strings.TrimPrefix(path, root), path))
			}
			return nil
		})
	}
	for what, args := range map[string][]string{"docker inspect": {"inspect", container}, "docker logs": {"logs", container}, "docker diff": {"diff", container}} {
		out, err := w.docker.Docker(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text(what, out))
	}
	for name, pid := range map[string]int{"memory of the carrier": w.carrier.Proc.PID(), coreMemory: w.core.Proc.PID()} {
		all = append(all, place{name, func(f func(io.Reader) error) error { return memory(pid, f) }})
	}
	// Logs, recordings, the database, state: of core, carrier and extenders.
	filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(path, filepath.Join(w.dir, "proxy-1", "state")) {
			all = append(all, file(strings.TrimPrefix(path, w.dir), path))
		}
		return nil
	})
	return all
}

// coreMemory is the place's name. The process that ip netns exec became is core
// itself.
const coreMemory = "memory of core"

// memory gives all readable memory of a process to f, region by region.
func memory(pid int, f func(io.Reader) error) error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has ended
	}
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || strings.Contains(line, "[v") {
			continue
		}
		// Regions that cannot be read (devices, gone) end early.
		if err := f(&tolerant{io.NewSectionReader(mem, int64(from), int64(to-from))}); err != nil {
			return err
		}
	}
	return nil
}

// tolerant ends where memory cannot be read.
type tolerant struct{ r io.Reader }

// Read implements io.Reader.
func (t *tolerant) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, io.EOF
	}
	return n, err
}

// search finds which needles are in a stream, in any of their forms.
func search(r io.Reader, needles map[string]map[string]string) (map[string]bool, error) {
	longest := 0
	for _, forms := range needles {
		for _, f := range forms {
			longest = max(longest, len(f))
		}
	}
	found := map[string]bool{}
	buf := make([]byte, 1<<20)
	kept := 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		window := buf[:kept+n]
		for what, forms := range needles {
			for _, f := range forms {
				if !found[what] && bytes.Contains(window, []byte(f)) {
					found[what] = true
				}
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		kept = copy(buf, window[len(window)-min(longest, len(window)):])
	}
}

// The scan itself finds each form, also across the edges of what it reads.
func TestSearch(t *testing.T) {
	for form, text := range written("wörd&=") {
		for _, at := range []int{0, 100, 1<<20 - 3, 1<<20 + 1} {
			data := append(bytes.Repeat([]byte{'.'}, at), text...)
			got, err := search(bytes.NewReader(append(data, '.')), map[string]map[string]string{"x": written("wörd&="), "y": {"plain": "not there"}})
			if err != nil || !got["x"] || got["y"] {
				t.Errorf("%s at %d: %v %v", form, at, got, err)
			}
		}
	}
	// And in the memory of a process: this one.
	here := []byte("here-I-" + strconv.Itoa(os.Getpid()))
	seen := false
	if err := memory(os.Getpid(), func(r io.Reader) error {
		got, err := search(r, map[string]map[string]string{"x": {"plain": string(here)}})
		seen = seen || got["x"]
		return err
	}); err != nil || !seen {
		t.Errorf("own memory: %v %v", seen, err)
	}
}
