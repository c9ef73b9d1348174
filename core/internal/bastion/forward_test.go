package bastion

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/conn"
	"caponier/core/internal/target"
	"caponier/e2e/harness"
)

// greeter answers every line with "hello LINE" and closes when it has been
// sent EOF.
func greeter(t *testing.T) (host string, port int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all, _ := io.ReadAll(io.LimitReader(c, 1<<10))
			_, _ = fmt.Fprintf(c, "hello %s", all)
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	a := ln.Addr().(*net.TCPAddr)
	return "127.0.0.1", a.Port
}

// start runs ssh in the background until the test ends.
func (b *bench) start(args ...string) *lockedBuffer {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, "ssh", args...)
	out := &lockedBuffer{}
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { cancel(); _ = c.Wait() })
	return out
}

// greet sends a line through a local port, half-closes, and returns the answer.
func greet(port int) (string, error) {
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	if _, err := c.Write([]byte("you")); err != nil {
		return "", err
	}
	_ = c.(*net.TCPConn).CloseWrite()
	all, err := io.ReadAll(c)
	return string(all), err
}

func TestForwardsThroughTarget(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	host, port := greeter(t)
	to := net.JoinHostPort(host, strconv.Itoa(port))
	local, remote, dynamic := harness.FreePort(t), harness.FreePort(t), harness.FreePort(t)
	out := b.start(b.sshArgs(b.to("db-1"), "-N", "-L", fmt.Sprintf("%d:%s", local, to), "-R", fmt.Sprintf("127.0.0.1:%d:%s", remote, to),
		"-D", strconv.Itoa(dynamic), "-o", "ExitOnForwardFailure=yes", "--")...)
	for name, p := range map[string]int{"-L": local, "-R": remote} {
		var got string
		eventually(t, name+" answers", func() bool { got, _ = greet(p); return got != "" })
		if got != "hello you" {
			t.Errorf("%s: got %q; ssh says %q", name, got, out.String())
		}
	}
	r := b.run("you", "nc", "-N", "-X", "5", "-x", "127.0.0.1:"+strconv.Itoa(dynamic), host, strconv.Itoa(port))
	if r.out != "hello you" {
		t.Errorf("-D: %v", r)
	}
	var kinds []string
	for _, l := range b.conns.list() {
		kinds = append(kinds, l.spec.Kind+" "+l.spec.Want.String())
		if l.connected != 1 {
			t.Errorf("%s was connected %d times", l.spec.Want, l.connected)
		}
	}
	var dials int
	b.dialer.change(func() { dials = len(b.dialer.asked) })
	if len(kinds) != 2 || dials != 1 {
		t.Errorf("got connections %q over %d dials, want one for each direction over one dial", kinds, dials)
	}
	for _, l := range b.conns.list() {
		if !l.saw("forward") {
			t.Errorf("events of %s: %q", l.spec.Want, l.events)
		}
	}
}

func TestJumpHost(t *testing.T) {
	b := newBench(t)
	d := b.startSSHD()
	// To a target whose name must be known to policy, not to the resolver.
	b.add("db-1", d)
	ca := b.ca.signer
	key, pub := writeKey(t, b.dir, "own_key")
	cert := &ssh.Certificate{Key: pub, CertType: ssh.UserCert, KeyId: "own", ValidPrincipals: []string{b.me}, ValidBefore: ssh.CertTimeInfinity,
		Permissions: ssh.Permissions{Extensions: map[string]string{"permit-pty": ""}}}
	if err := cert.SignCert(zeroReader{}, ca); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key+"-cert.pub", ssh.MarshalAuthorizedKey(cert), 0o600); err != nil {
		t.Fatal(err)
	}
	jump := "ssh -o LogLevel=INFO " + strings.Join(b.sshArgs("demo", "-W", "%h:%p", "--"), " ")
	own := append(b.options(), "-o", "BatchMode=yes", "-i", key, "-o", "CertificateFile="+key+"-cert.pub", "-o", "ProxyCommand="+jump)
	r := b.run("", "ssh", append(own, b.me+"@db-1", "echo in")...)
	if r.code != 0 || r.out != "in\n" {
		t.Fatalf("by name: %v", r)
	}
	l := b.last()
	if l.spec.Kind != "tcp" || l.spec.Want != access.Forward || l.recording != "" || l.in == 0 || l.out == 0 || !l.saw("not recorded") {
		t.Errorf("got %+v, events %q, %d in, %d out", l.spec, l.events, l.in, l.out)
	}
	r = b.run("", "ssh", append(own, b.me+"@10.10.0.5.vpc-a.caponier", "echo in")...)
	if r.code != 0 || r.out != "in\n" {
		t.Errorf("by address in a site: %v", r)
	}
	for _, refused := range []string{"none", "127.0.0.1"} {
		r = b.run("", "ssh", append(own, b.me+"@"+refused, "echo in")...)
		if r.code != 255 || !strings.Contains(r.err, "administratively prohibited: "+denied) {
			t.Errorf("%s: %v", refused, r)
		}
	}
	r = b.run("", "ssh", append(own, "-p", "23", b.me+"@db-1", "echo in")...)
	if r.code != 255 {
		t.Errorf("wrong port: %v", r)
	}
	if n := len(b.audit.list()); n == 0 {
		t.Error("refusals are not audited")
	}
}

func TestAgentForwarding(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	sock := filepath.Join(b.dir, "agent")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	agent := exec.CommandContext(ctx, "ssh-agent", "-D", "-a", sock)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = agent.Wait() }()
	eventually(t, "the agent listens", func() bool { // its socket is there a moment before
		c, err := net.Dial("unix", sock)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	key, _ := writeKey(t, b.dir, "in_agent")
	env := []string{"SSH_AUTH_SOCK=" + sock}
	if r := b.runEnv(env, "", "ssh-add", "-q", key); r.code != 0 {
		t.Fatal(r)
	}
	want := b.runEnv(env, "", "ssh-add", "-l").out
	r := b.runEnv(env, "", "ssh", b.sshArgs(b.to("db-1"), "-A", "--", "ssh-add -l")...)
	if r.code != 0 || r.out != want {
		t.Errorf("got %v, want %q", r, want)
	}
	if l := b.last(); !l.saw("agent_forward requested") || !l.saw("auth-agent@openssh.com opened by the target") {
		t.Errorf("events %q", l.events)
	}
	// Without -A the target has none.
	if r := b.runEnv(env, "", "ssh", b.sshArgs(b.to("db-1"), "--", "ssh-add -l")...); r.code == 0 {
		t.Errorf("without -A: %v", r)
	}
}

func TestFeatureSwitches(t *testing.T) {
	b := newBench(t)
	d := b.startSSHD()
	host, port := greeter(t)
	tests := []struct {
		name   string
		lacks  access.Feature
		run    func(name string) result
		passes func(r result) bool
		says   string
	}{
		{"shell", access.Shell, func(n string) result { return b.run("echo in\n", "ssh", b.sshArgs(n, "-T", "--")...) },
			func(r result) bool { return r.code == 0 && strings.Contains(r.out, "in") }, "Your role does not allow shell on"},
		{"exec", access.Exec, func(n string) result { return b.ssh(n, "echo in") },
			func(r result) bool { return r.out == "in\n" }, "Your role does not allow exec on"},
		{"sftp", access.FileTransfer, func(n string) result {
			args := append([]string{"-q", "-P", b.port, "-b", "-", "-o", "User=" + n}, b.options()...)
			return b.run("pwd", "sftp", append(args, "127.0.0.1")...)
		}, func(r result) bool { return r.code == 0 }, "Your role does not allow file_transfer on"},
		{"scp", access.FileTransfer, func(n string) result {
			args := append([]string{"-O", "-q", "-P", b.port, "-o", "User=" + n}, b.options()...)
			return b.run("", "scp", append(args, b.key+".pub", "127.0.0.1:"+b.dir+"/up")...)
		}, func(r result) bool { return r.code == 0 }, "Your role does not allow file_transfer on"},
		{"forward", access.Forward, func(n string) result {
			return b.run("you", "ssh", append([]string{"-o", "LogLevel=INFO"}, b.sshArgs(n, "-W", net.JoinHostPort(host, strconv.Itoa(port)), "--")...)...)
		}, func(r result) bool { return r.out == "hello you" }, "Your role does not allow forward on"},
		{"remote forward", access.RemoteForward, func(n string) result {
			return b.ssh(n, "-R", fmt.Sprintf("127.0.0.1:%d:x:1", harness.FreePort(t)), "--", "echo in")
		}, func(r result) bool { return r.err == "" }, "Your role does not allow remote_forward on"},
		{"agent", access.AgentForward, func(n string) result {
			s, err := b.mustDial(n).NewSession()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); err != nil {
				t.Fatal(err)
			}
			out, err := s.CombinedOutput("echo $SSH_AUTH_SOCK")
			return result{out: string(out), err: string(out), code: b2i(err != nil)}
		}, func(r result) bool { return strings.HasPrefix(r.out, "/") }, "agent forwarding is not permitted: your role does not allow it"},
		{"x11", access.X11, func(n string) result {
			s, err := b.mustDial(n).NewSession()
			if err != nil {
				t.Fatal(err)
			}
			x := struct {
				Single        bool
				Proto, Cookie string
				Screen        uint32
			}{false, "MIT-MAGIC-COOKIE-1", "00112233445566778899aabbccddeeff", 0}
			if _, err := s.SendRequest("x11-req", true, ssh.Marshal(x)); err != nil {
				t.Fatal(err)
			}
			out, err := s.CombinedOutput("echo $DISPLAY.")
			return result{out: string(out), err: string(out), code: b2i(err != nil)}
		}, func(r result) bool { return r.code == 0 && !strings.Contains(r.out, "not permitted") }, "X11 forwarding is not permitted: your role does not allow it"},
	}
	for i, tt := range tests {
		with, without := fmt.Sprintf("with-%d", i), fmt.Sprintf("without-%d", i)
		b.add(with, d)
		b.add(without, d, func(r *right) { r.features = everything &^ tt.lacks })
		if r := tt.run(b.to(with)); !tt.passes(r) {
			t.Errorf("%s allowed: %v", tt.name, r)
		}
		before := len(b.audit.list())
		r := tt.run(b.to(without))
		if !strings.Contains(r.err, tt.says) {
			t.Errorf("%s refused: %v, want %q", tt.name, r, tt.says)
		}
		denied := len(b.audit.list()) > before
		for _, l := range b.conns.list() {
			denied = denied || l.spec.TargetName == without && l.saw("refused "+tt.lacks.String())
		}
		if !denied {
			t.Errorf("%s: the refusal is not audited", tt.name)
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// One login, many channels, one connection to the target, one record each.
func TestMultiplexing(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	ctl := filepath.Join(b.dir, "ctl")
	b.start(b.sshArgs(b.to("db-1"), "-M", "-N", "-S", ctl, "--")...)
	eventually(t, "the control socket is there", func() bool { _, err := os.Stat(ctl); return err == nil })
	for i := range 5 {
		if r := b.run("", "ssh", "-F", "none", "-S", ctl, "x", "echo", strconv.Itoa(i)); r.code != 0 || r.out != strconv.Itoa(i)+"\n" {
			t.Fatalf("channel %d: %v", i, r)
		}
	}
	if len(b.dialer.asked) != 1 || len(b.conns.list()) != 5 || len(b.tapes.list()) != 5 || len(b.users.attempts) != 1 {
		t.Errorf("%d dials, %d connections, %d recordings, %d logins; want 1, 5, 5, 1",
			len(b.dialer.asked), len(b.conns.list()), len(b.tapes.list()), len(b.users.attempts))
	}
	// The target goes away: the next channel connects again.
	b.dialer.change(func() { _ = b.dialer.conns[0].Close() })
	if r := b.run("", "ssh", "-F", "none", "-S", ctl, "x", "echo again"); r.code != 0 || r.out != "again\n" {
		t.Errorf("after the target's connection broke: %v", r)
	}
}

func TestForwardToTCPTarget(t *testing.T) {
	b := newBench(t)
	host, port := greeter(t)
	b.add("pg-1", &sshd{addr: net.JoinHostPort(host, strconv.Itoa(port))}, func(r *right) {
		r.target.Kind, r.target.Port, r.account, r.features = target.TCP, 5432, nil, access.Forward
	})
	r := b.run("you", "ssh", b.sshArgs("demo", "-W", "pg-1:5432", "--")...)
	if r.out != "hello you" {
		t.Errorf("got %v", r)
	}
	if _, reason := b.last().ended(); reason != conn.EndedByTarget && reason != conn.EndedByUser {
		t.Errorf("ended by %s", reason)
	}
}
