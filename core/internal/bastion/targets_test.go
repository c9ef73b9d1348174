package bastion

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/target"
	"caponier/e2e/harness"
	"caponier/shared/wire"
)

// goTarget is a small SSH server that answers every command with "ran …".
func goTarget(t *testing.T, cfg *ssh.ServerConfig) string {
	t.Helper()
	cfg.AddHostKey(newKey(t))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serveGoTarget(nc, cfg) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func serveGoTarget(nc net.Conn, cfg *ssh.ServerConfig) {
	defer func() { _ = nc.Close() }()
	_, chans, reqs, err := ssh.NewServerConn(nc, cfg)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { ssh.DiscardRequests(reqs) })
	for nch := range chans {
		ch, reqs, err := nch.Accept()
		if err != nil {
			return
		}
		wg.Go(func() {
			for r := range reqs {
				_ = r.Reply(r.Type == "exec", nil)
				if r.Type == "signal" {
					sig := struct {
						Name       string
						Core       bool
						Text, Lang string
					}{}
					var f stringField
					_ = ssh.Unmarshal(r.Payload, &f)
					sig.Name = f.Value
					_, _ = ch.SendRequest("exit-signal", false, ssh.Marshal(sig))
					_ = ch.Close()
				}
				if r.Type != "exec" {
					continue
				}
				var f stringField
				_ = ssh.Unmarshal(r.Payload, &f)
				_, _ = fmt.Fprintf(ch, "ran %s\n", f.Value)
				if f.Value == "wait" {
					continue // until a signal
				}
				_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(exitStatus{0}))
				_ = ch.Close()
			}
		})
	}
}

// passwordTarget takes one password, by keyboard-interactive only; seen
// counts how many it was given.
func passwordTarget(t *testing.T, user, password string) (addr string, seen func() int) {
	var mu sync.Mutex
	n := 0
	cfg := &ssh.ServerConfig{KeyboardInteractiveCallback: func(m ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		a, err := ask("", "", []string{"Password: "}, []bool{false})
		if err != nil {
			return nil, err
		}
		mu.Lock()
		n++
		mu.Unlock()
		if m.User() != user || a[0] != password {
			return nil, errRefused
		}
		return nil, nil
	}}
	return goTarget(t, cfg), func() int { mu.Lock(); defer mu.Unlock(); return n }
}

func TestCertificateLogin(t *testing.T) {
	b := newBench(t)
	d := b.startSSHD()
	b.add("db-1", d)
	if r := b.ssh(b.to("db-1"), "true"); r.code != 0 {
		t.Fatal(r)
	}
	text, err := os.ReadFile(d.log)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "ID demo@con_0 (serial 7001)") {
		t.Errorf("the target's log does not name the certificate:\n%s", text)
	}
	var cert *ssh.Certificate
	b.ca.change(func() { cert = b.ca.last })
	if life := cert.ValidBefore - cert.ValidAfter; life > 600 || len(cert.ValidPrincipals) != 1 || cert.ValidPrincipals[0] != b.me {
		t.Errorf("certificate valid %d s for %q", life, cert.ValidPrincipals)
	}
}

func TestStoredKeyOnRealSSHD(t *testing.T) {
	b := newBench(t)
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sp, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(b.dir, "authorized")
	if err := os.WriteFile(keys, ssh.MarshalAuthorizedKey(sp), 0o600); err != nil {
		t.Fatal(err)
	}
	b.vault.put("sec_1", pemBytes(t, priv))
	d := b.startSSHD("TrustedUserCAKeys none", "AuthorizedKeysFile "+keys)
	b.add("db-1", d, func(r *right) { r.account.Auth, r.account.SecretID = target.AuthKey, "sec_1" })
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != 0 || r.out != "in\n" {
		t.Errorf("stored key: %v", r)
	}
	b.vault.put("sec_1", "not a key: CANARY")
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != exitRefused || !strings.Contains(r.err, "stored for "+b.me+" cannot be used") {
		t.Errorf("bad key: %v", r)
	}
	if strings.Contains(b.log.String(), "CANARY") {
		t.Error("the secret is in the log")
	}
}

// A real sshd that takes passwords only. Its shadow file is its own, bound
// over the system's in a mount namespace of its process alone.
func TestStoredPasswordOnRealSSHD(t *testing.T) {
	if os.Getuid() != 0 {
		harness.Lacks(t, "needs root for a mount namespace with a shadow file of its own")
	}
	b := newBench(t)
	const password = "CANARY stored password"
	hash, err := exec.Command("openssl", "passwd", "-6", password).Output()
	if err != nil {
		t.Fatalf("openssl passwd: %v", err)
	}
	shadow := filepath.Join(b.dir, "shadow")
	if err := os.WriteFile(shadow, []byte("root:"+strings.TrimSpace(string(hash))+":19000:0:99999:7:::\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrap := []string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/shadow && exec "$@"`, shadow}
	d := b.startSSHDWith(wrap, "PasswordAuthentication yes", "KbdInteractiveAuthentication no", "PubkeyAuthentication no")
	b.add("db-1", d, func(r *right) { r.account.Auth, r.account.SecretID = target.AuthPassword, "sec_1" })
	b.vault.put("sec_1", password)
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != 0 || r.out != "in\n" {
		t.Errorf("stored password: %v", r)
	}
	b.vault.put("sec_1", "CANARY wrong")
	r := b.ssh(b.to("db-1"), "echo in")
	if r.code != exitRefused || !strings.Contains(r.err, "db-1 refused the login of root (stored password)") {
		t.Errorf("wrong password: %v", r)
	}
	if strings.Contains(b.log.String()+r.err+r.out, "CANARY") {
		t.Error("the password is in the log or was shown")
	}
}

func TestHostKeyChangedBlocks(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	if r := b.ssh(b.to("db-1"), "true"); r.code != 0 {
		t.Fatalf("first use: %v", r)
	}
	swapped := b.startSSHD()
	b.dialer.change(func() { b.dialer.to["vpc-a/10.10.0.5:22"] = swapped.addr })
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != exitRefused || r.out != "" || !strings.Contains(r.err, "The host key of db-1 has CHANGED to SHA256:") {
		t.Errorf("changed key: %v", r)
	}
	b.book.change(func() {
		if len(b.book.filed) != 1 {
			t.Fatalf("%d changed keys filed", len(b.book.filed))
		}
		// An administrator accepts it.
		b.book.keys["tgt_db-1"] = append(b.book.keys["tgt_db-1"], b.book.filed[0])
	})
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != 0 {
		t.Errorf("accepted key: %v", r)
	}
}

func TestHostKeyPinnedAndCA(t *testing.T) {
	b := newBench(t)
	b.book.change(func() { b.book.strict = true })
	d := b.startSSHD()
	b.add("pinned", d, func(r *right) { r.target.HostKeyPolicy = target.HostKeyPinned })
	if r := b.ssh(b.to("pinned"), "true"); r.code != exitRefused || !strings.Contains(r.err, "has not been accepted yet") {
		t.Errorf("unknown key: %v", r)
	}
	ca := newKey(t)
	host := newKey(t)
	cert := &ssh.Certificate{Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"certified"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	cs, err := ssh.NewCertSigner(cert, host)
	if err != nil {
		t.Fatal(err)
	}
	cfg := &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil }}
	cfg.AddHostKey(cs)
	addr := goTarget(t, cfg)
	b.vault.put("sec_1", "x")
	with := func(name string, key ssh.PublicKey) {
		b.add(name, &sshd{addr: addr}, func(r *right) {
			r.target.HostKeyPolicy, r.target.HostKeyCA = target.HostKeyCA, string(ssh.MarshalAuthorizedKey(key))
			r.account.Auth, r.account.SecretID = target.AuthPassword, "sec_1"
		})
	}
	with("certified", ca.PublicKey())
	if r := b.ssh(b.to("certified"), "x"); r.code != 0 || r.out != "ran x\n" {
		t.Errorf("host certificate: %v", r)
	}
	with("other-name", ca.PublicKey())
	if r := b.ssh(b.to("other-name"), "x"); r.code != exitRefused || !strings.Contains(r.err, "The host certificate of other-name is not valid") {
		t.Errorf("host certificate for another name: %v", r)
	}
	with("other-ca", newKey(t).PublicKey())
	if r := b.ssh(b.to("other-ca"), "x"); r.code != exitRefused || !strings.Contains(r.err, "did not present a host certificate of the authority") {
		t.Errorf("host certificate of another authority: %v", r)
	}
}

func TestOldAlgorithmsOnlyByRule(t *testing.T) {
	b := newBench(t)
	d := b.startSSHD("KexAlgorithms diffie-hellman-group14-sha1")
	b.add("switch-1", d)
	r := b.ssh(b.to("switch-1"), "echo in")
	if r.code != exitRefused || !strings.Contains(r.err, "no common key exchange algorithm (it offers diffie-hellman-group14-sha1") {
		t.Errorf("without a rule: %v", r)
	}
	b.add("switch-2", d, func(r *right) { r.target.SSHAlgorithms = "kex=+diffie-hellman-group14-sha1" })
	if r := b.ssh(b.to("switch-2"), "echo in"); r.code != 0 || r.out != "in\n" {
		t.Errorf("with a rule: %v", r)
	}
}

func TestPostQuantumToTarget(t *testing.T) {
	b := newBench(t)
	addr := goTarget(t, &ssh.ServerConfig{
		Config:           ssh.Config{KeyExchanges: []string{ssh.KeyExchangeMLKEM768X25519}},
		PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) { return nil, nil },
	})
	b.vault.put("sec_1", "x")
	b.add("new", &sshd{addr: addr}, func(r *right) { r.account.Auth, r.account.SecretID = target.AuthPassword, "sec_1" })
	if r := b.ssh(b.to("new"), "x"); r.code != 0 || r.out != "ran x\n" {
		t.Error(r)
	}
}

func TestUnreachableTarget(t *testing.T) {
	b := newBench(t)
	b.add("db-1", nil)
	b.dialer.change(func() {
		b.dialer.fail["vpc-a/10.10.0.5:22"] = wire.Errorf(wire.CodeUnreachable, "No extender of site vpc-a is connected.")
	})
	if r := b.ssh(b.to("db-1"), "true"); r.code != exitRefused || !strings.Contains(r.err, "caponier: No extender of site vpc-a is connected.") {
		t.Errorf("no extender: %v", r)
	}
	if _, reason := b.last().ended(); reason != "error" {
		t.Errorf("ended by %s", reason)
	}
	// Something that listens and is no SSH server.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = c.Close()
		}
	}()
	b.add("web-1", &sshd{addr: ln.Addr().String()})
	if r := b.ssh(b.to("web-1"), "true"); r.code != exitRefused || !strings.Contains(r.err, "it may not be an SSH server") {
		t.Errorf("not ssh: %v", r)
	}
	b.add("pg-1", nil, func(r *right) { r.target.Kind = target.TCP })
	if r := b.ssh(b.to("pg-1"), "true"); r.code != exitRefused || !strings.Contains(r.err, "pg-1 is not an SSH target") {
		t.Errorf("tcp target: %v", r)
	}
}
