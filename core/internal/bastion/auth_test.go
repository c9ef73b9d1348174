package bastion

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/target"
)

// answers replies to keyboard-interactive questions in order and notes them.
type answers struct {
	replies   []string
	questions []string
}

func (a *answers) challenge(_, _ string, questions []string, echos []bool) ([]string, error) {
	var out []string
	for i, q := range questions {
		a.questions = append(a.questions, q)
		if echos[i] {
			return nil, errors.New("a secret is asked for with echo")
		}
		if len(a.replies) == 0 {
			return nil, errors.New("no more answers")
		}
		out = append(out, a.replies[0])
		a.replies = a.replies[1:]
	}
	return out, nil
}

func (b *bench) exec(c *ssh.Client, command string) (string, error) {
	s, err := c.NewSession()
	if err != nil {
		return "", err
	}
	defer func() { _ = s.Close() }()
	out, err := s.CombinedOutput(command)
	return string(out), err
}

func TestLoginByPassword(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	// A stock client gets the password from a helper program.
	ask := filepath.Join(b.dir, "ask")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho 'correct horse'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"password", "keyboard-interactive"} {
		args := []string{"-F", "none", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
			"-o", "PreferredAuthentications=" + method, "-p", b.port, "-l", b.to("db-1"), "127.0.0.1", "echo in"}
		r := b.runEnv([]string{"SSH_ASKPASS=" + ask, "SSH_ASKPASS_REQUIRE=force", "DISPLAY=:9"}, "", "ssh", args...)
		if r.code != 0 || r.out != "in\n" {
			t.Errorf("%s: %v", method, r)
		}
	}
}

func TestLoginTable(t *testing.T) {
	b := newBench(t)
	b.users.change(func() { b.users.password["mfa"], b.users.code["mfa"] = "secret words", "123456" })
	other := newKey(t)
	tests := []struct {
		name      string
		login     string
		auth      []ssh.AuthMethod
		questions string
		ok        bool
	}{
		{name: "password", login: "demo", auth: []ssh.AuthMethod{ssh.Password("correct horse")}, ok: true},
		{name: "wrong password", login: "demo", auth: []ssh.AuthMethod{ssh.Password("wrong")}},
		{name: "unknown user", login: "nobody", auth: []ssh.AuthMethod{ssh.Password("correct horse")}},
		{name: "malformed name", login: "demo%", auth: []ssh.AuthMethod{ssh.Password("correct horse")}},
		{name: "other key", login: "demo", auth: []ssh.AuthMethod{ssh.PublicKeys(other)}},
		{name: "none", login: "demo", auth: []ssh.AuthMethod{}},
	}
	for _, tt := range tests {
		if len(tt.auth) == 0 {
			tt.auth = []ssh.AuthMethod{ssh.Password("")}
		}
		c, err := b.dial(tt.login, tt.auth...)
		if (err == nil) != tt.ok {
			t.Errorf("%s: got error %v, want success %v", tt.name, err, tt.ok)
		}
		if c != nil {
			_ = c.Close()
		}
	}
	dialogues := []struct {
		name, login string
		replies     []string
		want        string
		ok          bool
	}{
		{"password only", "demo", []string{"correct horse"}, "Password: ", true},
		{"second factor", "mfa", []string{"secret words", "123456"}, "Password: |Verification code: ", true},
		{"wrong code", "mfa", []string{"secret words", "000000"}, "Password: |Verification code: ", false},
		// Neither an unknown user nor a wrong password is asked anything else.
		{"wrong password", "mfa", []string{"wrong"}, "Password: ", false},
		{"unknown user", "nobody", []string{"wrong"}, "Password: ", false},
	}
	for _, tt := range dialogues {
		a := &answers{replies: tt.replies}
		c, err := b.dial(tt.login, ssh.KeyboardInteractive(a.challenge))
		if (err == nil) != tt.ok || strings.Join(a.questions, "|") != tt.want {
			t.Errorf("%s: got error %v after %q, want success %v after %q", tt.name, err, a.questions, tt.ok, tt.want)
		}
		if c != nil {
			_ = c.Close()
		}
	}
	// The password method goes on to the code by partial success.
	a := &answers{replies: []string{"123456"}}
	c, err := b.dial("mfa", ssh.Password("secret words"), ssh.KeyboardInteractive(a.challenge))
	if err != nil || len(a.questions) != 1 {
		t.Errorf("password then code: %v, asked %q", err, a.questions)
	} else {
		_ = c.Close()
	}
}

func TestLoginLimit(t *testing.T) {
	b := newBench(t)
	b.users.change(func() { b.users.limit = 2 })
	var banner string
	try := func() error {
		c, err := ssh.Dial("tcp", b.addr, &ssh.ClientConfig{
			User: "demo", Auth: []ssh.AuthMethod{ssh.Password("wrong")}, HostKeyCallback: ssh.FixedHostKey(b.hostKey.PublicKey()),
			BannerCallback: func(m string) error { banner = m; return nil }})
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	for range 3 {
		if try() == nil {
			t.Fatal("a wrong password was taken")
		}
	}
	if !strings.Contains(banner, "Try again in 1m0s") {
		t.Errorf("got banner %q", banner)
	}
}

func TestKeyWithoutSignatureSpendsNoLimit(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	var keys []string
	for _, n := range []string{"k1", "k2", "k3", "k4"} {
		f, _ := writeKey(t, b.dir, n)
		keys = append(keys, "-i", f)
	}
	r := b.run("", "ssh", append(append(keys, b.sshArgs(b.to("db-1"), "--")...), "echo in")...)
	var failures, attempts int
	b.users.change(func() { failures, attempts = b.users.failures, len(b.users.attempts) })
	if r.code != 0 || failures != 0 || attempts != 1 {
		t.Errorf("got %v with %d failures in %d attempts", r, failures, attempts)
	}
}

func TestTargetThatNeedsSecondFactor(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD(), func(r *right) { r.needMFA = true })
	b.users.change(func() { b.users.stepUp["demo"] = "654321" })
	text, err := os.ReadFile(b.key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	a := &answers{replies: []string{"654321"}}
	c := b.mustDial(b.to("db-1"), ssh.PublicKeys(key), ssh.KeyboardInteractive(a.challenge))
	if out, err := b.exec(c, "echo in"); err != nil || out != "in\n" || len(a.questions) != 1 {
		t.Errorf("with code: %q, %v, asked %q", out, err, a.questions)
	}
	a = &answers{replies: []string{""}}
	c = b.mustDial(b.to("db-1"), ssh.PublicKeys(key), ssh.KeyboardInteractive(a.challenge))
	if out, err := b.exec(c, "echo in"); err == nil || !strings.Contains(out, "A second factor is needed.") {
		t.Errorf("without code: %q, %v", out, err)
	}
}

func TestTargetAsksUserForPassword(t *testing.T) {
	b := newBench(t)
	addr, got := passwordTarget(t, "root", "target secret")
	b.add("old", &sshd{addr: addr}, func(r *right) { r.account.Name, r.account.Auth = "root", target.AuthAsk })
	text, err := os.ReadFile(b.key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	// Commands: asked while logging in.
	a := &answers{replies: []string{"target secret"}}
	c := b.mustDial("demo%root%old", ssh.PublicKeys(key), ssh.KeyboardInteractive(a.challenge))
	if out, err := b.exec(c, "anything"); err != nil || out != "ran anything\n" {
		t.Errorf("got %q, %v", out, err)
	}
	if len(a.questions) != 1 || a.questions[0] != "Password of root on old: " {
		t.Errorf("asked %q", a.questions)
	}
	a = &answers{replies: []string{"wrong"}}
	c = b.mustDial("demo%root%old", ssh.PublicKeys(key), ssh.KeyboardInteractive(a.challenge))
	if out, err := b.exec(c, "anything"); err == nil || !strings.Contains(out, "old refused the login of root (the password you gave)") {
		t.Errorf("got %q, %v", out, err)
	}
	if n := got(); n != 2 {
		t.Errorf("the target saw %d passwords, want 2", n)
	}
	if strings.Contains(b.log.String(), "target secret") {
		t.Error("the password is in the log")
	}
}

func TestNothingAboutTargetsBeforeLogin(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	for _, name := range []string{"demo", b.to("db-1"), "demo%root%none", "nobody%root%db-1"} {
		_, err := b.dial(name, ssh.Password("wrong"))
		if err == nil || !strings.Contains(err.Error(), "unable to authenticate, attempted methods [none password], no supported methods remain") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n := len(b.conns.list()); n != 0 {
		t.Errorf("%d connections were opened", n)
	}
}

func TestHostCertificateAndPostQuantum(t *testing.T) {
	ca := newKey(t)
	b := newBench(t, func(c *Config) {
		plain := c.Signers()[0]
		cert := &ssh.Certificate{Key: plain.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"127.0.0.1"}, ValidBefore: ssh.CertTimeInfinity}
		if err := cert.SignCert(zeroReader{}, ca); err != nil {
			t.Fatal(err)
		}
		cs, err := ssh.NewCertSigner(cert, plain)
		if err != nil {
			t.Fatal(err)
		}
		c.Signers = func() []ssh.Signer { return []ssh.Signer{cs, plain} }
	})
	b.add("db-1", b.startSSHD())
	known := filepath.Join(b.dir, "known")
	line := "@cert-authority [127.0.0.1]:" + b.port + " " + string(ssh.MarshalAuthorizedKey(ca.PublicKey()))
	if err := os.WriteFile(known, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	r := b.run("", "ssh", append([]string{"-o", "UserKnownHostsFile=" + known, "-o", "StrictHostKeyChecking=yes"}, b.sshArgs(b.to("db-1"), "--", "echo", "in")...)...)
	if r.code != 0 || r.out != "in\n" {
		t.Errorf("host certificate: %v", r)
	}
	c, err := ssh.Dial("tcp", b.addr, &ssh.ClientConfig{
		Config: ssh.Config{KeyExchanges: []string{ssh.KeyExchangeMLKEM768X25519}},
		User:   "demo", Auth: []ssh.AuthMethod{ssh.Password("correct horse")}, HostKeyCallback: ssh.FixedHostKey(b.hostKey.PublicKey()),
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519}})
	if err != nil {
		t.Fatalf("post-quantum only: %v", err)
	}
	_ = c.Close()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestOneAccountFits(t *testing.T) {
	b := newBench(t)
	d := b.startSSHD()
	b.add("db-1", d)
	if r := b.ssh("demo%db-1", "id -un"); r.code != 0 || strings.TrimSpace(r.out) != b.me {
		t.Errorf("one account: %v", r)
	}
	if r := b.ssh("demo%vpc-a/10.10.0.5", "id -un"); r.code != 0 {
		t.Errorf("by address: %v", r)
	}
	if r := b.ssh("demo%"+b.me+"%db-1%22", "id -un"); r.code != 0 {
		t.Errorf("with port: %v", r)
	}
	if r := b.ssh("demo%"+b.me+"%db-1%23", "id -un"); r.code == 0 {
		t.Errorf("with a port that is not the target's: %v", r)
	}
	b.rules.change(func() {
		first := b.rules.rights[0]
		second := *first.account
		second.Name = "app"
		b.rules.rights = append(b.rules.rights, right{user: "demo", target: first.target, account: &second, features: access.Shell})
	})
	if r := b.ssh("demo%db-1", "id -un"); r.code != exitRefused || !strings.Contains(r.err, "Several accounts fit. Log in as one of: demo%app%db-1, demo%"+b.me+"%db-1") {
		t.Errorf("two accounts: %v", r)
	}
	if r := b.ssh("demo%none", "id"); r.code != exitRefused || !strings.Contains(r.err, denied) {
		t.Errorf("unknown target: %v", r)
	}
}
