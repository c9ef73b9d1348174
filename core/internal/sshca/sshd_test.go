package sshca

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db/dbtest"
	"caponier/e2e/harness"
)

// sshdInetd answers one connection by a real sshd in inetd mode.
func sshdInetd(t *testing.T, config string) net.Conn {
	t.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		if sshd = "/usr/sbin/sshd"; !exists(sshd) {
			harness.Lacks(t, "sshd is not installed (Debian: openssh-server)")
		}
	}
	if os.Geteuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // privilege separation
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := server.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	defer f.Close()
	cmd := exec.Command(sshd, "-i", "-e", "-f", config)
	var log bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		cmd.Wait()
		if t.Failed() {
			t.Logf("sshd: %s", log.String())
		}
	})
	client.SetDeadline(time.Now().Add(2 * time.Minute))
	return client
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// TestRealSSHD logs in at OpenSSH by certificate alone, is refused once the
// certificate or the time says so, and needs a rule for an old host.
func TestRealSSHD(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	x := newFixture(t, dbtest.SQLite(t))
	dir := t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	hostKey := filepath.Join(dir, "host")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", hostKey).CombinedOutput(); err != nil {
		harness.Lacks(t, "ssh-keygen: %v %s", err, out)
	}
	ca, err := x.PublicKey(t.Context(), access.DefaultGroup)
	if err != nil {
		t.Fatal(err)
	}
	krl := file("krl", "")
	writeKRL := func() {
		t.Helper()
		b, err := x.KRL(t.Context(), access.DefaultGroup)
		if err != nil {
			t.Fatal(err)
		}
		file("krl", string(b))
	}
	writeKRL()
	config := func(name, more string) string {
		return file(name, fmt.Sprintf(`HostKey %s
TrustedUserCAKeys %s
RevokedKeys %s
AuthorizedKeysFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
%s`, hostKey, file("ca", ca), krl, more))
	}
	modern, old := config("modern", ""), config("old", "KexAlgorithms diffie-hellman-group14-sha1\n")

	login := func(config string, signer ssh.Signer, a Algorithms) (string, error) {
		c := &ssh.ClientConfig{User: me.Username, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}
		a.Apply(c)
		conn, chans, reqs, err := ssh.NewClientConn(sshdInetd(t, config), "target", c)
		if err != nil {
			return "", err
		}
		client := ssh.NewClient(conn, chans, reqs)
		defer client.Close()
		s, err := client.NewSession()
		if err != nil {
			return "", err
		}
		defer s.Close()
		out, err := s.Output("id -un")
		return strings.TrimSpace(string(out)), err
	}
	signer, cert, err := x.TargetSigner(t.Context(), UserRequest{Group: access.DefaultGroup, KeyID: "ada@con_1", Principals: []string{me.Username}, TTL: MaxTargetTTL})
	if err != nil {
		t.Fatal(err)
	}
	defaults := DefaultAlgorithms()
	if got, err := login(modern, signer, defaults); err != nil || got != me.Username {
		t.Fatalf("login by certificate: %q, %v", got, err)
	}
	other, _, err := x.TargetSigner(t.Context(), UserRequest{Group: access.DefaultGroup, KeyID: "ada@con_2", Principals: []string{"somebody-else"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := login(modern, other, defaults); err == nil {
		t.Error("a certificate for another account logs in")
	}
	elsewhere, _, err := x.TargetSigner(t.Context(), UserRequest{Group: access.DefaultGroup, KeyID: "ada@con_3", Principals: []string{me.Username}, Source: "198.51.100.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := login(modern, elsewhere, defaults); err == nil {
		t.Error("a certificate for another source address logs in")
	}
	now := x.now
	x.now = now.Add(-time.Hour)
	expired, _, err := x.TargetSigner(t.Context(), UserRequest{Group: access.DefaultGroup, KeyID: "ada@con_4", Principals: []string{me.Username}})
	if err != nil {
		t.Fatal(err)
	}
	x.now = now
	if _, err := login(modern, expired, defaults); err == nil {
		t.Error("an expired certificate logs in")
	}

	if _, err := login(old, signer, defaults); err == nil || !strings.Contains(err.Error(), "no common algorithm") {
		t.Errorf("an old host without a rule: %v", err)
	}
	rules, err := ParseRules("*/old.example kex=+diffie-hellman-group14-sha1")
	if err != nil {
		t.Fatal(err)
	}
	a, err := rules.For("plant", "old.example")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := login(old, signer, a); err != nil || got != me.Username {
		t.Errorf("an old host with a rule: %q, %v", got, err)
	}

	if err := x.Revoke(t.Context(), cert.Serial, audit.System); err != nil {
		t.Fatal(err)
	}
	writeKRL()
	if _, err := login(modern, signer, defaults); err == nil {
		t.Error("a revoked certificate logs in")
	}
}
