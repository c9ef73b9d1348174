package sshprogram

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"caponier/e2e/harness"
	"caponier/router/internal/program"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key makes an Ed25519 key file and returns its public line.
func key(t *testing.T, path string) string {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(line)))
}

// server is a real sshd with one login that runs one forced command.
type server struct {
	t       *testing.T
	dir     string
	addr    string
	hostKey string
	keyFile string
	stop    func()
}

// forced reads SSH_ORIGINAL_COMMAND as a vendor's script would.
const forced = `#!/bin/sh
D=@DIR@
set -- $SSH_ORIGINAL_COMMAND
echo "$SSH_ORIGINAL_COMMAND" >> "$D/commands"
in=$(cat)
case $1 in
add) printf '%s' "$in" > "$D/stdin"; echo '{"message":"fine"}'; echo note >&2 ;;
del) exit 20 ;;
list) sleep 1000 & echo $! > "$D/child"; wait ;;
sync) kill -9 $$ ;;
counters) head -c 20000000 /dev/zero ;;
*) exit 11 ;;
esac
`

func newServer(t *testing.T) *server {
	t.Helper()
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		harness.Lacks(t, "sshd is missing (%v): run make setup", err)
	}
	if os.Geteuid() != 0 {
		harness.Lacks(t, "sshd needs root to log people in")
	}
	s := &server{t: t, dir: t.TempDir()}
	s.hostKey = key(t, filepath.Join(s.dir, "host_key"))
	s.keyFile = filepath.Join(s.dir, "router_key")
	login := key(t, s.keyFile)
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(s.dir, name)
		if err := errors.Join(os.WriteFile(p, []byte(text), mode), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	script := write("forced", strings.ReplaceAll(forced, "@DIR@", s.dir), 0o755)
	write("authorized_keys", fmt.Sprintf("restrict,command=%q %s\n", script, login), 0o600)
	port := strconv.Itoa(harness.FreePort(t))
	s.addr = net.JoinHostPort("127.0.0.1", port)
	// Root's shell reads nothing of this machine's.
	config := write("sshd_config", fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s/host_key\nAuthorizedKeysFile %s/authorized_keys\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nLogLevel ERROR\nSetEnv HOME=%s\n", port, s.dir, s.dir, s.dir), 0o600)
	// A file, not a pipe: the sessions of sshd would keep that open.
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(sshd, "-D", "-e", "-f", config)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.stop = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(s.stop)
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.DialTimeout("tcp", s.addr, time.Second)
		if err == nil {
			c.Close()
			return s
		}
		if time.Now().After(deadline) {
			s.stop()
			said, _ := os.ReadFile(log.Name())
			t.Fatalf("sshd does not listen: %v: %s", err, said)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (s *server) runner(change func(*Config)) *Runner {
	s.t.Helper()
	c := Config{Address: s.addr, User: "root", KeyFile: s.keyFile, HostKey: s.hostKey}
	if change != nil {
		change(&c)
	}
	r, err := New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { r.Close() })
	return r
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, errors.New("not finished"))
	t.Cleanup(cancel)
	return ctx
}

func TestForcedCommand(t *testing.T) {
	s := newServer(t)
	r := s.runner(nil)
	got, err := r.Run(within(t, time.Minute), program.Call{Verb: "add", Stdin: []byte(`{"v":1}`)})
	if err != nil || got.Exit != 0 || string(got.Stdout) != "{\"message\":\"fine\"}\n" || string(got.Stderr) != "note\n" {
		t.Fatalf("add = %+v, %v", got, err)
	}
	if in, err := os.ReadFile(filepath.Join(s.dir, "stdin")); string(in) != `{"v":1}` {
		t.Errorf("standard input was %q, %v", in, err)
	}
	first := r.conn
	for verb, exit := range map[string]int{"del": 20, "renew": 11} {
		if got, err := r.Run(within(t, time.Minute), program.Call{Verb: verb}); err != nil || got.Exit != exit {
			t.Errorf("%s = %+v, %v; want exit %d", verb, got, err, exit)
		}
	}
	if got, err := r.Run(within(t, time.Minute), program.Call{Verb: "counters"}); err != nil || !got.Cut || len(got.Stdout) != program.MaxStdout {
		t.Errorf("a flood: %d bytes, cut %v, %v", len(got.Stdout), got.Cut, err)
	}
	if _, err := r.Run(within(t, time.Minute), program.Call{Verb: "sync"}); err == nil {
		t.Error("a killed program was taken for one that ended")
	}
	if r.conn != first {
		t.Error("the connection was not kept")
	}
	// A command of ours reaches the forced one as its original command, and
	// arguments are single words.
	own := s.runner(func(c *Config) { c.Command = "/opt/vendor/nqx" })
	if _, err := own.Run(within(t, time.Minute), program.Call{Verb: "add", Args: []string{`{"a":"it's; rm -rf /"}`, "$HOME `id`"}}); err != nil {
		t.Error(err)
	}
	commands, err := os.ReadFile(filepath.Join(s.dir, "commands"))
	if want := `/opt/vendor/nqx add '{"a":"it'\''s; rm -rf /"}' '$HOME ` + "`id`'\n"; !strings.HasSuffix(string(commands), want) {
		t.Errorf("commands\n%s%v\nwant at the end %s", commands, err, want)
	}
}

func TestHangs(t *testing.T) {
	s := newServer(t)
	r := s.runner(nil)
	if _, err := r.Run(within(t, time.Minute), program.Call{Verb: "add"}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err := r.Run(within(t, 2*time.Second), program.Call{Verb: "list"})
	if took := time.Since(start); err == nil || !strings.Contains(err.Error(), "not finished") || took > 30*time.Second {
		t.Errorf("list = %v after %s", err, took)
	}
	if got, err := r.Run(within(t, time.Minute), program.Call{Verb: "add"}); err != nil || got.Exit != 0 {
		t.Errorf("afterwards: %+v, %v", got, err)
	}
	if pid, err := os.ReadFile(filepath.Join(s.dir, "child")); err == nil {
		exec.Command("kill", strings.TrimSpace(string(pid))).Run()
	}
}

func TestServerAway(t *testing.T) {
	s := newServer(t)
	r := s.runner(nil)
	if _, err := r.Run(within(t, time.Minute), program.Call{Verb: "add"}); err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	r.conn.Close() // as a network that breaks would
	r.mu.Unlock()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := r.Run(within(t, time.Minute), program.Call{Verb: "add"}); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("not connected again: %v", err)
		}
	}
	s.stop()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Run(within(t, time.Minute), program.Call{Verb: "add"}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	away := s.runner(nil)
	if _, err := away.Run(within(t, time.Minute), program.Call{Verb: "add"}); err == nil || !strings.Contains(err.Error(), "connect") {
		t.Errorf("no server: %v", err)
	}
}

func TestTrust(t *testing.T) {
	s := newServer(t)
	other := filepath.Join(s.dir, "other_key")
	otherHost := key(t, other)
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"another host key": {func(c *Config) { c.HostKey = otherHost }, "host key mismatch"},
		"a key of no use":  {func(c *Config) { c.KeyFile = other }, "unable to authenticate"},
	} {
		r := s.runner(c.change)
		if _, err := r.Run(within(t, time.Minute), program.Call{Verb: "add"}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(s.dir, "commands")); err == nil {
		t.Error("something was run")
	}
	good := Config{Address: s.addr, User: "root", KeyFile: s.keyFile, HostKey: s.hostKey}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no host key":    {func(c *Config) { c.HostKey = "" }, "must be one line"},
		"two host keys":  {func(c *Config) { c.HostKey = s.hostKey + "\n" + otherHost }, "must be one line"},
		"a readable key": {func(c *Config) { os.Chmod(other, 0o640); c.KeyFile = other }, "chmod 600"},
		"a missing key":  {func(c *Config) { c.KeyFile = "/no/such/key" }, "no such file"},
		"something else": {func(c *Config) { c.KeyFile = filepath.Join(s.dir, "authorized_keys") }, "not an unencrypted private key"},
	} {
		in := good
		c.change(&in)
		if _, err := New(in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
