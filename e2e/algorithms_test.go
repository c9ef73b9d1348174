package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/e2e/harness"
)

// An old device that knows nothing but a key exchange long out of use is
// refused, with the reason; an administrator may allow it for this target.
func TestOldAlgorithmsByTarget(t *testing.T) {
	w := common(t)
	old, err := harness.StartSSHD(t.Context(), w.net, t.TempDir(), harness.SSHDConfig{NS: "host-a", Name: "switch-a", Address: harness.Hosts[3], CAFile: w.caFile,
		Logins: []harness.Login{{Name: "root"}}, Lines: []string{"KexAlgorithms diffie-hellman-group14-sha1"}}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Proc.Kill()
	device := harness.Target{Name: "switch-a", Kind: "ssh", Site: "vpc-a", Host: harness.Hosts[3], Accounts: []harness.Account{{Name: "root"}}}
	id, err := w.core.Admin.Open(t.Context(), w.role, device)
	if err != nil {
		t.Fatal(err)
	}
	defer w.core.Admin.Delete(t.Context(), "/targets/"+id)
	if r := w.ssh(t, "demo%root%switch-a", "hostname"); r.code == 0 || !strings.Contains(r.err, "no common key exchange algorithm (it offers diffie-hellman-group14-sha1") {
		t.Errorf("without leave: %v", r)
	}
	device.Accounts, device.SSHAlgorithms = nil, "kex=+diffie-hellman-group14-sha1"
	if err := w.core.Admin.Do(t.Context(), http.MethodPut, "/targets/"+id, device, nil, "If-Match", "*"); err != nil {
		t.Fatal(err)
	}
	if r := w.ssh(t, "demo%root%switch-a", "hostname"); r.code != 0 || strings.TrimSpace(r.out) != "switch-a" {
		t.Errorf("with leave: %v", r)
	}
}

// Bastion and tunnels agree on keys that a recording of today's traffic does
// not give away to a quantum computer (ML-KEM, FIPS 203): a client that knows
// nothing else gets in, and core chooses it when offered.
func TestPostQuantumKeyExchange(t *testing.T) {
	w := common(t)
	c, err := w.net.Dial(t.Context(), "user", "tcp", harness.CoreAddr+":2222")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var hostKey bytes.Buffer
	_, _, _, err = ssh.NewClientConn(c, harness.CoreAddr+":2222", &ssh.ClientConfig{
		Config: ssh.Config{KeyExchanges: []string{ssh.KeyExchangeMLKEM768X25519}}, User: "demo", Timeout: patience,
		HostKeyCallback: func(_ string, _ net.Addr, k ssh.PublicKey) error { hostKey.Write(k.Marshal()); return nil },
	})
	// Without a key of demo's the login fails; the key exchange is over by then.
	if err == nil || hostKey.Len() == 0 || !strings.Contains(err.Error(), "unable to authenticate") {
		t.Errorf("a client with %s only: %v", ssh.KeyExchangeMLKEM768X25519, err)
	}
	// A stock client says what it and core agreed on: the best both know.
	best := "curve25519-sha256"
	if q := w.runIn(t, "user", "", nil, "ssh", "-Q", "kex"); strings.Contains(q.out, ssh.KeyExchangeMLKEM768X25519) {
		best = ssh.KeyExchangeMLKEM768X25519
	}
	r := w.runIn(t, "user", "", nil, "ssh", append(w.sshOpts(), "-v", "-l", dbA, harness.CoreAddr, "true")...)
	if r.code != 0 || !strings.Contains(r.err, "kex: algorithm: "+best) {
		t.Errorf("ssh -v does not say %s: %v", best, r)
	}

	// What an edge dials: TLS 1.3 with X25519MLKEM768.
	pem, err := os.ReadFile(w.core.Ready.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := w.net.Dial(t.Context(), "ext-a", "tcp", harness.CoreAddr+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatalf("no certificate in %s", w.core.Ready.CAFile)
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: harness.CoreAddr})
	if err := errors.Join(conn.SetDeadline(time.Now().Add(patience)), conn.Handshake()); err != nil {
		t.Fatal(err)
	}
	if s := conn.ConnectionState(); s.CurveID != tls.X25519MLKEM768 || s.Version != tls.VersionTLS13 {
		t.Errorf("TLS %x with %v", s.Version, s.CurveID)
	}
}
