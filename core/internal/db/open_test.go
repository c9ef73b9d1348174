package db_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/e2e/harness"
)

func TestOpenRefuses(t *testing.T) {
	const password = "canary-db-password"
	for _, c := range []struct {
		name   string
		config db.Config
		want   string
	}{
		{"no engine", db.Config{}, "unknown engine"},
		{"no path", db.Config{Engine: db.SQLite}, "path is empty"},
		{"a directory", db.Config{Engine: db.SQLite, Path: t.TempDir()}, "is a directory"},
		{"no url", db.Config{Engine: db.Postgres}, "postgres://"},
		{"another scheme", db.Config{Engine: db.Postgres, URL: "mysql://h/db"}, "postgres://"},
		{"remote in the clear", db.Config{Engine: db.Postgres, URL: "postgres://u:" + password + "@db.example/x"}, "sslmode=verify-full"},
		{"remote with require", db.Config{Engine: db.Postgres, URL: "postgres://u:" + password + "@db.example/x?sslmode=require"}, "sslmode=verify-full"},
		{"remote by parameter", db.Config{Engine: db.Postgres, URL: "postgres://u:" + password + "@/x?host=db.example"}, "sslmode=verify-full"},
		{"nobody listens", db.Config{Engine: db.Postgres, URL: "postgres://u:" + password + "@127.0.0.1:1/x?sslmode=disable&connect_timeout=2"}, "open database"},
	} {
		d, err := db.Open(t.Context(), c.config)
		if err == nil {
			d.Close()
			t.Errorf("%s: opened", c.name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: %v, want something with %q and without the password", c.name, err, c.want)
		}
	}
}

func TestSQLiteFileIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "core.db")
	d, err := db.Open(t.Context(), db.Config{Engine: db.SQLite, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		st, err := os.Stat(p)
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %04o", p, st.Mode(), err, want)
		}
	}
}

// authority is a certificate authority for one test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

func (a *authority) write(path string) string {
	a.t.Helper()
	writePEM(a.t, path, "CERTIFICATE", a.cert.Raw)
	return path
}

// serve writes a server certificate for a host name and its key.
func (a *authority) serve(host, certFile, keyFile string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, certFile, "CERTIFICATE", der)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, keyFile, "PRIVATE KEY", private)
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// program finds a program of PostgreSQL, on the path or where Debian keeps it.
func program(t *testing.T, name string) string {
	t.Helper()
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		harness.Lacks(t, "%s is not installed (Debian: postgresql)", name)
	}
	return found[len(found)-1]
}

// startPostgres starts a real server that takes TLS only and returns its port.
// PostgreSQL refuses to run as root, so root runs it as the user postgres.
func startPostgres(t *testing.T, ca *authority) int {
	t.Helper()
	initdb, postgres := program(t, "initdb"), program(t, "postgres")
	dir, err := os.MkdirTemp("", "caponier-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var as *syscall.SysProcAttr
	own := func(string) {}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			harness.Lacks(t, "no user postgres to run the server as: %v", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		own = func(path string) {
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	own(dir)
	data := filepath.Join(dir, "data")
	cmd := exec.CommandContext(t.Context(), initdb, "-D", data, "-U", "postgres", "-A", "trust", "-N", "--no-instructions")
	cmd.SysProcAttr, cmd.Dir = as, dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	certFile, keyFile, hba := filepath.Join(data, "server.crt"), filepath.Join(data, "server.key"), filepath.Join(data, "pg_hba.conf")
	ca.serve("localhost", certFile, keyFile)
	if err := os.WriteFile(hba, []byte("hostssl all all 127.0.0.1/32 trust\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	own(certFile)
	own(keyFile)
	own(hba)

	port := harness.FreePort(t)
	server := exec.Command(postgres, "-D", data, "-p", strconv.Itoa(port), "-k", dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "ssl=on", "-c", "fsync=off", "-c", "max_connections=20")
	server.SysProcAttr, server.Dir = as, dir
	logs, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ready, ended := make(chan struct{}), make(chan string, 1)
	go func() {
		var all strings.Builder
		up := false
		for s := bufio.NewScanner(logs); s.Scan(); {
			fmt.Fprintln(&all, s.Text())
			if !up && strings.Contains(s.Text(), "ready to accept connections") {
				up = true
				close(ready)
			}
		}
		ended <- all.String()
	}()
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGINT) // fast shutdown
		<-ended
		server.Wait()
	})
	select {
	case <-ready:
	case text := <-ended:
		ended <- text
		t.Fatalf("the server ended:\n%s", text)
	case <-time.After(time.Minute):
		t.Fatal("the server does not come up")
	}
	return port
}

func TestPostgresOverTLS(t *testing.T) {
	ca, other := newAuthority(t, "ours"), newAuthority(t, "another")
	port := startPostgres(t, ca)
	dir := t.TempDir()
	right, wrong := ca.write(filepath.Join(dir, "right.pem")), other.write(filepath.Join(dir, "wrong.pem"))
	url := func(host, extra string) string {
		return fmt.Sprintf("postgres://postgres@%s:%d/postgres?connect_timeout=10&%s", host, port, extra)
	}

	d, err := db.Open(t.Context(), db.Config{Engine: db.Postgres, URL: url("localhost", "sslmode=verify-full&sslrootcert="+right)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	var version string
	if err := d.QueryRowContext(t.Context(), `select version from pg_stat_ssl where pid = pg_backend_pid() and ssl`).Scan(&version); err != nil || !strings.HasPrefix(version, "TLSv1.") {
		t.Errorf("the connection's TLS: %q, %v", version, err)
	}
	waitListening(t, d) // the listener has a connection of its own
	ch := d.Subscribe(t.Context())
	notify(t, d, db.Note{Topic: "user", ID: "usr_1"})
	if n := next(t, ch); n.ID != "usr_1" {
		t.Errorf("note over TLS: %+v", n)
	}

	for name, u := range map[string]string{
		"another authority":          url("localhost", "sslmode=verify-full&sslrootcert="+wrong),
		"another host name":          url("127.0.0.1", "sslmode=verify-full&sslrootcert="+right),
		"in the clear":               url("localhost", "sslmode=disable"),
		"authority that is not here": url("localhost", "sslmode=verify-full&sslrootcert="+filepath.Join(dir, "none.pem")),
	} {
		d, err := db.Open(t.Context(), db.Config{Engine: db.Postgres, URL: u})
		if err == nil {
			d.Close()
			t.Errorf("%s: connected", name)
		}
	}
	// A server without TLS is not talked to when TLS was asked for.
	plain := dbtest.PostgresURL(t)
	d, err = db.Open(t.Context(), db.Config{Engine: db.Postgres, URL: strings.Replace(plain, "sslmode=disable", "sslmode=verify-full&sslrootcert="+right, 1)})
	if err == nil {
		d.Close()
		t.Error("verify-full connected to a server without our certificate")
	}
}
