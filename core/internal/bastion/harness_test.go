package bastion

import (
	"bytes"
	"context"
	"encoding/pem"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/target"
	"caponier/e2e/harness"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// everything is every use of a target.
const everything = access.Shell | access.Exec | access.FileTransfer | access.Forward | access.RemoteForward | access.X11 | access.AgentForward

// bench is a bastion with everything around it.
type bench struct {
	t       testing.TB
	dir     string
	users   *people
	rules   *rules
	conns   *records
	tapes   *tapes
	dialer  *direct
	ca      *authority
	vault   *safe
	book    *book
	audit   *journal
	log     *lockedBuffer
	addr    string // SSH
	port    string
	socks   string
	key     string // private key file of the user demo
	keyPub  ssh.PublicKey
	hostKey ssh.Signer
	me      string // the account on the sshd, the user running the test
	stop    func()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newBench(t testing.TB, tweak ...func(*Config)) *bench {
	t.Helper()
	who, err := osuser.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := &bench{
		t: t, dir: dir, me: who.Username,
		users: &people{password: map[string]string{"demo": "correct horse"}, code: map[string]string{}, stepUp: map[string]string{},
			keys: map[string][]ssh.PublicKey{}, gone: map[string]bool{}},
		rules: &rules{}, conns: &records{}, tapes: &tapes{}, dialer: &direct{to: map[string]string{}, fail: map[string]error{}},
		ca: newAuthority(t), vault: &safe{secrets: map[string]string{}}, book: &book{keys: map[string][]target.HostKey{}}, audit: &journal{}, log: &lockedBuffer{},
		hostKey: newKey(t),
	}
	b.key, b.keyPub = writeKey(t, dir, "demo_key")
	b.users.keys["demo"] = []ssh.PublicKey{b.keyPub}
	cfg := Config{
		Users: b.users, Policy: b.rules, Connections: b.conns, Recordings: b.tapes, Dialer: b.dialer, CA: b.ca,
		Vault: b.vault, HostKeys: b.book, Audit: b.audit, Signers: func() []ssh.Signer { return []ssh.Signer{b.hostKey} },
		Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})), Now: time.Now,
		Address: "core.example",
	}
	for _, f := range tweak {
		f(&cfg)
	}
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	listen := func(serve func(context.Context, net.Listener) error) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := serve(ctx, ln); err != nil {
				t.Errorf("serve: %v", err)
			}
		})
		return ln.Addr().String()
	}
	b.addr = listen(srv.Serve)
	b.socks = listen(srv.ServeSOCKS)
	_, b.port, _ = net.SplitHostPort(b.addr)
	b.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(func() {
		b.stop()
		if t.Failed() {
			t.Logf("bastion log:\n%s", b.log.String())
		}
	})
	return b
}

// writeKey makes a key pair in files, the way ssh-keygen does.
func writeKey(t testing.TB, dir, name string) (string, ssh.PublicKey) {
	t.Helper()
	file := filepath.Join(dir, name)
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	line, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	pub, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		t.Fatal(err)
	}
	return file, pub
}

// sshd is a real OpenSSH server.
type sshd struct {
	addr string
	port int
	log  string
	cmd  *exec.Cmd
}

// startSSHD starts sshd on loopback with extra configuration lines. The
// account of the test's own user logs in by certificate of b.ca.
func (b *bench) startSSHD(extra ...string) *sshd { return b.startSSHDWith(nil, extra...) }

func (b *bench) startSSHDWith(wrap []string, extra ...string) *sshd {
	t := b.t
	t.Helper()
	dir, err := os.MkdirTemp(b.dir, "sshd")
	if err != nil {
		t.Fatal(err)
	}
	hostKey, _ := writeKey(t, dir, "host")
	write := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	ca := write("ca.pub", string(ssh.MarshalAuthorizedKey(b.ca.signer.PublicKey())))
	port := harness.FreePort(t)
	d := &sshd{addr: "127.0.0.1:" + strconv.Itoa(port), port: port, log: filepath.Join(dir, "log")}
	lines := append(extra, // the first value of a key counts
		"ListenAddress 127.0.0.1", "Port "+strconv.Itoa(port), "HostKey "+hostKey, "PidFile none", "StrictModes no",
		"UsePAM no", "PermitRootLogin yes", "PasswordAuthentication no", "TrustedUserCAKeys "+ca, "AuthorizedKeysFile none",
		"Subsystem sftp internal-sftp", "AcceptEnv LANG LC_*", "LogLevel VERBOSE", "MaxStartups 1000", "MaxSessions 500", "X11Forwarding yes",
		"AllowTcpForwarding yes", "AllowAgentForwarding yes", "PrintMotd no", "PrintLastLog no")
	conf := write("conf", strings.Join(lines, "\n")+"\n")
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := append(wrap, "/usr/sbin/sshd", "-D", "-f", conf, "-E", d.log)
	d.cmd = exec.Command(args[0], args[1:]...)
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("start sshd: %v", err)
	}
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		_ = d.cmd.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(d.log)
			t.Logf("sshd log:\n%s", text)
		}
	})
	eventually(t, "sshd listens", func() bool {
		c, err := net.DialTimeout("tcp", d.addr, time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return d
}

// add makes a target of an sshd, reached by its own name only, and lets demo
// use the test user's account with everything, recorded.
func (b *bench) add(name string, d *sshd, tweak ...func(*right)) *right {
	r := right{
		user: "demo",
		target: &target.Target{ID: "tgt_" + name, Name: name, Group: access.DefaultGroup, Kind: target.SSH, Site: "vpc-a", Host: "10.10.0." + strconv.Itoa(len(b.rules.rights)+5), Port: 22,
			HostKeyPolicy: target.HostKeyTOFU},
		account:  &target.Account{ID: "acc_" + name, TargetID: "tgt_" + name, Name: b.me, Auth: target.AuthCertificate},
		features: everything, record: true,
	}
	for _, f := range tweak {
		f(&r)
	}
	if d != nil {
		b.dialer.change(func() { b.dialer.to[r.target.Site+"/"+addressOf(r.target)] = d.addr })
	}
	b.rules.mu.Lock()
	defer b.rules.mu.Unlock()
	b.rules.rights = append(b.rules.rights, r)
	return &b.rules.rights[len(b.rules.rights)-1]
}

// options are those of every OpenSSH client a test runs.
func (b *bench) options() []string {
	return []string{"-F", "none", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
		"-o", "IdentitiesOnly=yes", "-o", "IdentityFile=" + b.key, "-o", "ConnectTimeout=20"}
}

// result is what a client did.
type result struct {
	out, err string
	code     int
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %q\nstderr: %q", r.code, r.out, r.err)
}

// run runs a client program to its end.
func (b *bench) run(stdin, name string, args ...string) result {
	b.t.Helper()
	return b.runEnv(nil, stdin, name, args...)
}

func (b *bench) runEnv(env []string, stdin, name string, args ...string) result {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), env...)
	c.Env = append(c.Env, "SSH_AUTH_SOCK=")
	c.Env = append(c.Env, env...)
	c.Dir = b.dir
	c.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	c.WaitDelay = 5 * time.Second
	err := c.Run()
	if ctx.Err() != nil {
		b.t.Fatalf("%s %q hung\nstdout: %q\nstderr: %q", name, args, out.String(), errs.String())
	}
	if err != nil && c.ProcessState == nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	return result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

// ssh runs ssh as login name with further arguments.
func (b *bench) ssh(name string, args ...string) result {
	b.t.Helper()
	return b.run("", "ssh", b.sshArgs(name, args...)...)
}

// sshArgs puts options before the destination and the command after it; args
// before "--" are options.
func (b *bench) sshArgs(name string, args ...string) []string {
	all := append(b.options(), "-o", "BatchMode=yes", "-p", b.port, "-l", name)
	for i, a := range args {
		if a == "--" {
			return append(append(append(all, args[:i]...), "127.0.0.1"), args[i+1:]...)
		}
	}
	return append(append(all, "127.0.0.1"), args...)
}

// to is the login name for the test user's account on a target.
func (b *bench) to(name string) string { return "demo%" + b.me + "%" + name }

// dial logs in with a Go client.
func (b *bench) dial(name string, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	if len(auth) == 0 {
		text, err := os.ReadFile(b.key)
		if err != nil {
			b.t.Fatal(err)
		}
		sg, err := ssh.ParsePrivateKey(text)
		if err != nil {
			b.t.Fatal(err)
		}
		auth = []ssh.AuthMethod{ssh.PublicKeys(sg)}
	}
	return ssh.Dial("tcp", b.addr, &ssh.ClientConfig{
		User: name, Auth: auth, HostKeyCallback: ssh.FixedHostKey(b.hostKey.PublicKey()), Timeout: patience})
}

func (b *bench) mustDial(name string, auth ...ssh.AuthMethod) *ssh.Client {
	b.t.Helper()
	c, err := b.dial(name, auth...)
	if err != nil {
		b.t.Fatalf("log in as %s: %v", name, err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// last returns the newest connection, once it has ended.
func (b *bench) last() *record {
	b.t.Helper()
	all := b.conns.list()
	if len(all) == 0 {
		b.t.Fatal("no connection was recorded")
	}
	l := all[len(all)-1]
	eventually(b.t, "the connection ends", func() bool { done, _ := l.ended(); return done })
	return l
}

// patience is how long what must happen may take on a busy machine.
const patience = time.Minute

// eventually waits for a condition that other goroutines or processes bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("did not happen in %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

func pemBytes(t testing.TB, key any) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}
