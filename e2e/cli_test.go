package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/e2e/harness"
)

// cli runs the people's command line from the user's network.
type cli struct {
	w   *world
	dir string
	env []string
}

func (c *cli) run(t *testing.T, args ...string) result {
	t.Helper()
	return c.w.runIn(t, "user", "", append([]string{"CAPONIER_CONFIG_DIR=" + c.dir}, c.env...), c.w.bin.CLI, args...)
}

// must is run that has to succeed.
func (c *cli) must(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.code != 0 {
		t.Fatalf("caponier %s: %v", strings.Join(args, " "), r)
	}
	return r.out
}

func (w *world) cli(t *testing.T, user, password string) *cli {
	t.Helper()
	c := &cli{w: w, dir: t.TempDir()}
	c.env = []string{"CAPONIER_PASSWORD=" + password}
	c.must(t, "login", w.core.Ready.URL, "--user", user, "--ca", w.core.Ready.CAFile)
	c.env = nil
	return c
}

func TestCommandLine(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	c := w.cli(t, "demo", w.demo)

	for _, f := range []string{"token", "id_ed25519", "profile.toml"} {
		st, err := os.Stat(filepath.Join(c.dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", f, st, err)
		}
	}
	if out := c.must(t, "whoami"); !strings.Contains(out, "demo on "+w.core.Ready.URL) {
		t.Errorf("whoami: %s", out)
	}
	if out := c.must(t, "targets"); !strings.Contains(out, "db-a") || !strings.Contains(out, "vpc-a/10.10.0.5:22") {
		t.Errorf("targets: %s", out)
	}
	var targets []map[string]any
	if err := json.Unmarshal([]byte(c.must(t, "targets", "--output", "json")), &targets); err != nil || len(targets) != 4 {
		t.Errorf("targets as JSON: %d, %v", len(targets), err)
	}
	if out := c.must(t, "ssh", "carol@db-a", "--", "id -un; hostname"); out != "carol\ndb-a\n" {
		t.Errorf("ssh: %q", out)
	}
	if out := c.must(t, "ssh", "pw-a", "id", "-un"); out != "alice\n" { // the only account
		t.Errorf("ssh: %q", out)
	}
	if r := c.run(t, "ssh", "db-a"); r.code != 2 || !strings.Contains(r.err, "carol, root") {
		t.Errorf("ssh without choosing an account: %v", r)
	}
	if r := c.run(t, "ssh", "root@db-a", "exit 7"); r.code != 7 {
		t.Errorf("the exit code of the command is not passed on: %v", r)
	}
	if r := c.run(t, "ssh", "nowhere"); r.code != 5 || !strings.Contains(r.err, "hint: ") {
		t.Errorf("ssh to nowhere: %v", r)
	}

	src, data := blob(t, 200_000)
	far, near := filepath.Join(w.sshd["db-a"].Dir, "cli"), filepath.Join(t.TempDir(), "back")
	c.must(t, "scp", src, "root@db-a:"+far)
	c.must(t, "scp", "root@db-a:"+far, near)
	sameFile(t, near, data)

	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, []byte(c.must(t, "ssh-config", "root@db-a")), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := w.runIn(t, "user", "", nil, "ssh", "-F", config, "-o", "BatchMode=yes", "db-a", "hostname"); r.code != 0 || r.out != "db-a\n" {
		t.Errorf("plain ssh with ssh-config: %v", r)
	}

	var blocks []struct{ Host, HostName, User string }
	if err := json.Unmarshal([]byte(c.must(t, "ssh-config", "root@db-a", "--output", "json")), &blocks); err != nil || len(blocks) != 1 || blocks[0].Host != "db-a" || blocks[0].HostName != harness.CoreAddr {
		t.Errorf("ssh-config as JSON: %+v, %v", blocks, err)
	}
	if r := c.run(t, "recordings", "play", "rec_x", "--from=-5s"); r.code != 2 || !strings.Contains(r.err, "must not be negative") {
		t.Errorf("a recording from before its beginning: %v", r)
	}

	if out := c.must(t, "explain", "root@db-a"); !strings.Contains(out, "login") || strings.Contains(out, "FAIL") {
		t.Errorf("explain: %s", out)
	}
	if out := c.must(t, "connections"); !strings.Contains(out, "carol") {
		t.Errorf("connections: %s", out)
	}
	// Administrators' commands are refused to demo.
	if r := c.run(t, "edges"); r.code != 5 {
		t.Errorf("edges as demo: %v", r)
	}
	admin := w.cli(t, "admin", w.core.Password)
	// pw-a has one account: nobody has to name it.
	if out := admin.must(t, "explain", "pw-a", "--user", "demo"); !strings.Contains(out, "login") || strings.Contains(out, "FAIL") {
		t.Errorf("explain for another user: %s", out)
	}
	if out := admin.must(t, "edges"); !strings.Contains(out, "vpc-a") || !strings.Contains(out, "online") {
		t.Errorf("edges: %s", out)
	}
	if out := admin.must(t, "tokens", "create", "--site", "vpc-a"); !strings.Contains(out, "caponier-extender run --core "+w.core.Ready.URL) {
		t.Errorf("tokens create: %s", out)
	}
	if r := admin.run(t, "connections", "show", "con_nothing"); r.code != 6 {
		t.Errorf("a connection that is not there: %v", r)
	}

	c.must(t, "logout")
	for _, f := range []string{"token", "id_ed25519", "id_ed25519-cert.pub"} {
		if _, err := os.Stat(filepath.Join(c.dir, f)); err == nil {
			t.Errorf("%s is still there after logout", f)
		}
	}
	if r := c.run(t, "targets"); r.code != 4 {
		t.Errorf("targets after logout: %v", r)
	}
	if r := (&cli{w: w, dir: t.TempDir(), env: []string{"CAPONIER_PASSWORD=wrong"}}).run(t, "login", w.core.Ready.URL, "--user", "demo", "--ca", w.core.Ready.CAFile); r.code != 4 {
		t.Errorf("login with a wrong password: %v", r)
	}
	if r := (&cli{w: w, dir: t.TempDir(), env: []string{"CAPONIER_PASSWORD=x"}}).run(t, "login", w.core.Ready.URL, "--user", "demo"); r.code != 7 || !strings.Contains(r.err, "--ca") {
		t.Errorf("login without the CA: %v", r)
	}
}

// Where copies of transferred files are kept, they are listed and fetched, and
// are what was transferred.
func TestCommandLineFetchesTransferredFiles(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	if err := w.core.Admin.Do(t.Context(), http.MethodPut, "/settings", map[string]any{"values": map[string]any{"recording.file_max_mib": 4}}, nil, "If-Match", "*"); err != nil {
		t.Fatal(err)
	}
	src, data := blob(t, 300_000)
	demo := w.cli(t, "demo", w.demo)
	demo.must(t, "scp", src, "root@db-a:"+filepath.Join(w.sshd["db-a"].Dir, "kept"))
	admin := w.cli(t, "admin", w.core.Password)
	var files []struct {
		ID, Direction, Path, Status string
		Size                        int64 `json:"size_bytes"`
	}
	var recording string
	until(t, patience, "the copy is listed", func() error {
		var list []struct{ ID string }
		if err := json.Unmarshal([]byte(admin.must(t, "recordings", "--output", "json")), &list); err != nil || len(list) != 1 {
			return fmt.Errorf("%v, %v", list, err)
		}
		recording = list[0].ID
		if err := json.Unmarshal([]byte(admin.must(t, "recordings", "files", recording, "--output", "json")), &files); err != nil || len(files) != 1 || files[0].Status != "stored" {
			return fmt.Errorf("%+v, %v", files, err)
		}
		return nil
	})
	if f := files[0]; f.Direction != "upload" || f.Size != 300_000 || !strings.HasSuffix(f.Path, "/kept") {
		t.Errorf("listed as %+v", f)
	}
	got := filepath.Join(t.TempDir(), "fetched")
	admin.must(t, "recordings", "fetch", recording, files[0].ID, got)
	sameFile(t, got, data)
	if r := admin.run(t, "recordings", "fetch", recording, "rfl_nothing", got); r.code != 6 || !strings.Contains(r.err, "recordings files "+recording) {
		t.Errorf("a file that is not there: %v", r)
	}
	if r := demo.run(t, "recordings", "fetch", recording, files[0].ID, got); r.code != 5 {
		t.Errorf("a copy as demo, who may not see recordings: %v", r)
	}
}

// forward: to a port of an SSH target through its sshd, and to a tcp target.
func TestCommandLineForward(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	inside, err := w.net.Listen("host-a", "tcp", "127.0.0.1:7700")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go serveEcho(inside)
	service, err := w.net.Listen("host-a", "tcp", harness.Hosts[3]+":7701")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	go serveEcho(service)
	if _, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: "echo", Kind: "tcp", Site: "vpc-a", Host: harness.Hosts[3], Port: 7701}); err != nil {
		t.Fatal(err)
	}
	c := w.cli(t, "demo", w.demo)
	for target, local := range map[string]string{"root@db-a:7700": "17700", "echo": "17701"} {
		cmd := w.net.Command(t.Context(), "user", w.bin.CLI, "forward", target, local)
		cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + w.dir, "CAPONIER_CONFIG_DIR=" + c.dir}
		p, err := harness.Start("forward", t.TempDir(), cmd, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WaitOutput(t.Context(), patience, "127.0.0.1:"+local+" forwards to "); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := askEcho(t.Context(), w.net, "user", "127.0.0.1:"+local); err != nil {
				t.Errorf("through the forward to %s: %v", target, err)
			}
		}
		if err := p.Stop(patience); err != nil {
			t.Error(err)
		}
	}
}
