package e2e

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"caponier/e2e/harness"
)

// Planted secrets (a stored password, a stored key, a user's password, an API
// token) are used, typed wrongly, asked for; afterwards they are nowhere: not
// in logs, recordings, the database, nor in the arguments or environment of
// any process of ours.
func TestCanaries(t *testing.T) {
	w := newWorld(t, options{core: "log.level = \"debug\"", vpcs: []string{"a"}})
	w.mustSSH(t, "demo%alice%pw-a", "true")
	w.mustSSH(t, "demo%bob%key-a", "true")
	s := w.shell(t, "demo%alice%pw-a")
	// read -s does not echo; what is typed there must not be recorded.
	typed := "typed-where-nobody-looks"
	s.say(t, "printf 'pass''word: '; read -s x; echo; echo len=${#x}")
	if err := s.proc.WaitOutput(t.Context(), patience, "password: "); err != nil {
		t.Fatal(err)
	}
	s.say(t, typed)
	if err := s.proc.WaitOutput(t.Context(), patience, "len="+strconv.Itoa(len(typed))); err != nil {
		t.Fatal(err)
	}
	// Scan while everything runs, sshd's side included.
	private, err := os.ReadFile(filepath.Join(w.dir, "stored_key_a"))
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Split(string(private), "\n")[2] // a line only this key has
	token := w.core.Admin.Token
	canaries := map[string]string{"stored password": w.password, "stored key": body, "user's password": w.demo, "admin's password": w.core.Password, "bearer token": token, "typed without echo": typed}
	shown := w.ssh(t, "demo%alice%pw-x", "true") // an error text, too
	// The people's command line at work: it knows a login, and no more.
	c := w.cli(t, "demo", w.demo)
	cmd := w.net.Command(t.Context(), "user", w.bin.CLI, "forward", "alice@pw-a:22", "17022")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + w.dir, "CAPONIER_CONFIG_DIR=" + c.dir}
	forward, err := harness.Start("forward", t.TempDir(), cmd, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(forward.Kill)
	if err := forward.WaitOutput(t.Context(), patience, "forwards to"); err != nil {
		t.Fatal(err)
	}
	// And what the scan of processes must find.
	bait := exec.CommandContext(t.Context(), "sleep", "60")
	bait.Env = []string{"BAIT=" + w.password}
	if err := bait.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		bait.Process.Kill()
		bait.Wait()
	}()
	until(t, patience, "the scan of processes finds its control", func() error {
		if len(inProcess(t, bait.Process.Pid, w.password)) == 0 {
			return errors.New("it does not")
		}
		return nil
	})
	s.say(t, "exit")
	s.ended(t, patience)

	for name, secret := range canaries {
		if strings.Contains(shown.err+shown.out, secret) {
			t.Errorf("%s is in an error text", name)
		}
		for _, p := range []*harness.Proc{w.core.Proc, w.ext["a"].Proc, forward} {
			for _, file := range inProcess(t, p.PID(), secret) {
				t.Errorf("%s is in %s of %s", name, file, p.Name)
			}
		}
		if strings.Contains(forward.Output(), secret) {
			t.Errorf("%s is in what the command line prints", name)
		}
	}
	// The positive control: the scan finds what is there.
	control := filepath.Join(w.dir, "core", "state", "control")
	if err := os.WriteFile(control, []byte("…"+w.password+"…"), 0o600); err != nil {
		t.Fatal(err)
	}
	found := scan(t, canaries, filepath.Join(w.dir, "core"), filepath.Join(w.dir, "ext-a"))
	if len(found[control]) == 0 {
		t.Error("the scan does not find its own control")
	}
	delete(found, control)
	for file, names := range scan(t, canaries, c.dir) {
		t.Errorf("the profile's %s holds: %s", filepath.Base(file), strings.Join(names, ", "))
	}
	for file, names := range found {
		t.Errorf("%s holds: %s", strings.TrimPrefix(file, w.dir), strings.Join(names, ", "))
	}
}

// inProcess tells which of a process's files in /proc show a secret.
func inProcess(t *testing.T, pid int, secret string) (found []string) {
	t.Helper()
	for _, file := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte(secret)) {
			found = append(found, file)
		}
	}
	return found
}

// scan searches every file below the directories for secrets, as they are and
// in the usual encodings.
func scan(t *testing.T, secrets map[string]string, dirs ...string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for name, s := range secrets {
				quoted := strconv.Quote(s)
				for _, form := range []string{s, base64.StdEncoding.EncodeToString([]byte(s)), url.QueryEscape(s), quoted[1 : len(quoted)-1]} {
					if bytes.Contains(b, []byte(form)) {
						found[path] = append(found[path], name)
						break
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}
