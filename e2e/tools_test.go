package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// blob writes a file with random content and returns its path and content.
func blob(t *testing.T, size int) (string, []byte) {
	t.Helper()
	data := make([]byte, size)
	rand.Read(data)
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path, data
}

func sameFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s differs from what was sent (%d and %d bytes)", path, len(got), len(want))
	}
}

const dbA = "demo%root%db-a"

func TestSCP(t *testing.T) {
	w := common(t)
	src, data := blob(t, 3<<20)
	for name, flag := range map[string]string{"sftp protocol": "-s", "old protocol": "-O"} {
		far := filepath.Join(w.sshd["db-a"].Dir, "scp"+flag)
		near := filepath.Join(t.TempDir(), "back")
		remote := dbA + "@" + harness.CoreAddr + ":" + far
		if r := w.runIn(t, "user", "", nil, "scp", append(w.sshOpts(), flag, src, remote)...); r.code != 0 {
			t.Fatalf("%s: %v", name, r)
		}
		sameFile(t, far, data)
		if r := w.runIn(t, "user", "", nil, "scp", append(w.sshOpts(), flag, remote, near)...); r.code != 0 {
			t.Fatalf("%s: %v", name, r)
		}
		sameFile(t, near, data)
	}
}

func TestSFTP(t *testing.T) {
	w := common(t)
	src, data := blob(t, 1<<20)
	far := filepath.Join(w.sshd["db-a"].Dir, "sftp")
	near := filepath.Join(t.TempDir(), "back")
	batch := fmt.Sprintf("put %s %s\nrename %s %s.2\nget %s.2 %s\nls -l %s.2\n", src, far, far, far, far, near, far)
	r := w.runIn(t, "user", batch, nil, "sftp", append(w.sshOpts(), "-b", "-", dbA+"@"+harness.CoreAddr)...)
	if r.code != 0 {
		t.Fatal(r)
	}
	sameFile(t, near, data)
}

func TestRsync(t *testing.T) {
	w := common(t)
	dir := t.TempDir()
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), bytes.Repeat([]byte{byte(i)}, i*1000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	far := filepath.Join(w.sshd["db-a"].Dir, "rsync")
	rsh := "ssh " + strings.Join(w.sshOpts(), " ")
	for range 2 { // the second time there is nothing to send
		if r := w.runIn(t, "user", "", nil, "rsync", "-a", "--delete", "-e", rsh, dir+"/", dbA+"@"+harness.CoreAddr+":"+far); r.code != 0 {
			t.Fatal(r)
		}
	}
	for i := range 50 {
		sameFile(t, filepath.Join(far, fmt.Sprintf("f%d", i)), bytes.Repeat([]byte{byte(i)}, i*1000))
	}
}

func TestGit(t *testing.T) {
	w := common(t)
	far := filepath.Join(w.sshd["db-a"].Dir, "repo.git")
	w.mustSSH(t, dbA, "git init -q --bare -b main "+far)
	dir := t.TempDir()
	env := []string{"GIT_SSH_COMMAND=ssh " + strings.Join(w.sshOpts(), " "), "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=demo", "GIT_AUTHOR_EMAIL=demo@example.org", "GIT_COMMITTER_NAME=demo", "GIT_COMMITTER_EMAIL=demo@example.org"}
	// The part before @ holds the separator, so the address is written as a URL with %25.
	url := "ssh://demo%25root%25db-a@" + harness.CoreAddr + far
	script := `set -e; cd "$1"; git init -q -b main one; cd one; echo hello >file; git add file; git commit -qm one; git push -q "$2" main; cd ..; git clone -q "$2" two; cat two/file`
	r := w.runIn(t, "user", "", env, "sh", "-c", script, "sh", dir, url)
	if r.code != 0 || strings.TrimSpace(r.out) != "hello" {
		t.Fatal(r)
	}
}

// ssh -J: the jump is raw, the user proves himself to the target.
func TestProxyJump(t *testing.T) {
	w := common(t)
	known := filepath.Join(t.TempDir(), "known")
	text, err := os.ReadFile(w.known)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(known, append(text, []byte("db-a "+w.sshd["db-a"].HostKey+"\n")...), 0o644); err != nil {
		t.Fatal(err)
	}
	// -F none is not passed to the jump by ssh, so the jump is spelled out.
	config := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(config, fmt.Appendf(nil, "Host *\n BatchMode yes\n IdentitiesOnly yes\n IdentityFile %s\n UserKnownHostsFile %s\n StrictHostKeyChecking yes\n", w.key, known), 0o644); err != nil {
		t.Fatal(err)
	}
	r := w.runIn(t, "user", "", nil, "ssh", "-F", config, "-J", "demo@"+harness.CoreAddr+":2222", "carol@db-a", "id -un; hostname")
	if r.code != 0 || r.out != "carol\ndb-a\n" {
		t.Fatal(r)
	}
}

// ssh -L through the target's sshd to a service only it can see.
func TestLocalForward(t *testing.T) {
	w := common(t)
	l, err := w.net.Listen("host-a", "tcp", "127.0.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveEcho(l)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	args := append(w.sshOpts(), "-o", "ExitOnForwardFailure=yes", "-N", "-L", "127.0.0.1:17777:127.0.0.1:7777", "-l", dbA, harness.CoreAddr)
	cmd := w.net.Command(ctx, "user", "ssh", args...)
	p, err := harness.Start("ssh-L", t.TempDir(), cmd, false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	until(t, patience, "an answer through -L", func() error {
		return askEcho(t.Context(), w.net, "user", "127.0.0.1:17777")
	})
}

// serveEcho answers each connection with what it sends, until the end.
func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

// askEcho sends a word and half-closes; the answer must be the word and the end.
func askEcho(ctx context.Context, n *harness.Net, ns, addr string) error {
	c, err := n.Dial(ctx, ns, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "word"); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != "word" {
		return fmt.Errorf("the answer was %q", got)
	}
	return nil
}

// SOCKS on 1080: nc as ssh's ProxyCommand, and curl with user and password.
func TestSOCKS(t *testing.T) {
	w := common(t)
	t.Run("ssh over nc -X 5", func(t *testing.T) {
		// nc knows no login, so the login is the SSH one inside, to core.
		args := append([]string{"-o", "Port=22", "-o", "HostKeyAlias=caponier-bastion"}, w.sshOpts()...)
		r := w.runIn(t, "user", "", nil, "ssh", append(args, "-o", "ProxyCommand=nc -X 5 -x "+harness.CoreAddr+":1080 %h %p", "demo%root@db-a", "hostname")...)
		if r.code != 0 || r.out != "db-a\n" {
			t.Fatal(r)
		}
	})
	t.Run("curl with a login", func(t *testing.T) {
		l, err := w.net.Listen("host-a", "tcp", harness.Hosts[3]+":8080")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go serveHello(l)
		if _, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: "web-a", Kind: "tcp", Site: "vpc-a", Host: harness.Hosts[3], Port: 8080}); err != nil {
			t.Fatal(err)
		}
		curl := func(password, url string) result {
			return w.runIn(t, "user", "", nil, "curl", "-sS", "-m", "50", "--socks5-hostname", harness.CoreAddr+":1080",
				"--proxy-user", "demo:"+password, url)
		}
		if r := curl(w.demo, "http://web-a:8080/"); r.code != 0 || r.out != "hello from inside" {
			t.Error(r)
		}
		if r := curl("wrong", "http://web-a:8080/"); r.code == 0 {
			t.Errorf("a wrong password was accepted: %v", r)
		}
		if r := curl(w.demo, "http://nowhere:8080/"); r.code == 0 {
			t.Errorf("an unknown target was reached: %v", r)
		}
	})
}

// serveHello is the smallest web server.
func serveHello(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			c.Read(make([]byte, 4096))
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 17\r\nConnection: close\r\n\r\nhello from inside")
		}()
	}
}
