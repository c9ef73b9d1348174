package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// The example configurations are valid as they are.
func TestExampleConfigurations(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binaries")
	}
	bin := binaries(t)
	for _, c := range []struct{ bin, file string }{{bin.Core, "core.toml"}, {bin.Extender, "extender.toml"}, {bin.Router, "router.toml"}, {bin.Carrier, "carrier.toml"}} {
		out, code := tool(t, nil, c.bin, "config", "check", "--config", filepath.Join("..", "deploy", "config", c.file))
		if code != 0 {
			t.Errorf("%s: exit code %d: %s", c.file, code, out)
		}
	}
}

// The units verify, and systemd itself finds little exposure.
func TestSystemdUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		harness.Lacks(t, "systemd-analyze is missing")
	}
	for unit, most := range map[string]string{"caponier-core.service": "2.0", "caponier-extender.service": "1.5",
		"caponier-router.service": "2.0", "caponier-router-latch.service": "2.5", "caponier-carrier.service": "2.0"} {
		src, err := os.ReadFile(filepath.Join("..", "deploy", "systemd", unit))
		if err != nil {
			t.Fatal(err)
		}
		// The binaries are not installed here.
		text := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/\S+`).ReplaceAll(src, []byte("ExecStart=/bin/true"))
		file := filepath.Join(t.TempDir(), unit)
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", file).CombinedOutput(); err != nil || strings.Contains(string(out), unit) {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit, err, out)
		}
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--no-pager", file).CombinedOutput()
		if err != nil {
			t.Errorf("systemd-analyze security %s: %v", unit, err)
		}
		m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
		if m == nil || string(m[1]) > most {
			t.Errorf("%s: exposure %s, want at most %s", unit, m, most)
		}
	}
}

// selfSigned writes a certificate for names and its key.
func selfSigned(t *testing.T, dir string, names ...string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: names, IsCA: true, BasicConstraintsValid: true}
	tmpl.IPAddresses = ipsOf(names)
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(certFile, cert, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

// example reads an example of deploy/ with its addresses and files replaced by
// those of the test.
func example(t *testing.T, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(replace...).Replace(string(b))
}
