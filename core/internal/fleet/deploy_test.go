package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/e2e/harness"
	"caponier/shared/control"
	"caponier/shared/edge"
	"caponier/shared/wire"
)

// hosts remembers who registered.
type hosts struct {
	mu   sync.Mutex
	seen map[string]Host // guarded by mu
}

func (h *hosts) RegisterHost(ctx context.Context, tx *db.Tx, host Host) (string, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old, ok := h.seen[host.MachineID]
	h.seen[host.MachineID] = host
	return "tgt_" + host.MachineID[:8], !ok || old.digest() != host.digest(), nil
}

func (h *hosts) all() map[string]Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.seen)
}

func (h *hosts) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen)
}

// userCA has the keys of the default group, and of another while one is set.
type userCA struct{ keys, group, theirs string }

func (k userCA) PublicKey(_ context.Context, group string) (string, error) {
	if k.group != "" && group == k.group {
		return k.theirs, nil
	}
	return k.keys, nil
}

func sshKey(t *testing.T) string {
	t.Helper()
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))
}

// door is an extender's deployment listener as far as core's part needs one.
func door(t *testing.T) (start func(e func() *edge.Edge) string, pin string) {
	t.Helper()
	cert := outerCert(t)
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	pin = "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
	return func(e func() *edge.Edge) string {
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			out, err := http.NewRequest(r.Method, "http://core"+r.URL.Path, r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			out.ContentLength = r.ContentLength
			out.Header.Set(headerBase, "https://"+r.Host)
			out.Header.Set(headerHost, "10.10.0.5")
			resp, err := control.RoundTrip(r.Context(), e().Session(), out)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			w.WriteHeader(resp.StatusCode)
			io.Copy(w, resp.Body)
		}))
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
		srv.StartTLS()
		t.Cleanup(srv.Close)
		return srv.URL
	}, pin
}

// tree reads every file below a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		info, ierr := d.Info()
		if err == nil && ierr == nil {
			out[path[len(dir):]] = fmt.Sprintf("%s %d|%s", info.Mode(), info.ModTime().UnixNano(), data)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(a, b map[string]string) string {
	for k, v := range a {
		if b[k] != v {
			return fmt.Sprintf("%s: %q became %q", k, v, b[k])
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			return k + " is new"
		}
	}
	return ""
}

func TestHostDeployment(t *testing.T) {
	for _, tool := range []string{"curl", "sh", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			harness.Lacks(t, "%s is not installed", tool)
		}
	}
	reg := &hosts{seen: map[string]Host{}}
	ca, theirs := sshKey(t), sshKey(t)+"\n"+sshKey(t)
	k := newCore(t, func(c *Config) { c.Hosts, c.UserCA = reg, userCA{ca, "grp_a", theirs} })
	startDoor, pin := door(t)
	var x *extender
	base := startDoor(func() *edge.Edge { return x.Edge })
	x = testEdge(t, k.url, k.token(nil), state(t), func(c *edge.Config) { c.Deploy = &wire.DeployListener{Address: ":8443", Pin: pin} })
	k.up(1)

	script := filepath.Join(t.TempDir(), "deploy")
	curl := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-ksS", "--pinnedpubkey", pin}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	eventually(t, "the tunnel serves", func() bool { return x.Session() != nil })
	if got := strings.TrimSpace(curl(base + wire.PathDeployCA)); got != ca {
		t.Errorf("ca.pub = %q, want %q", got, ca)
	}
	// While the site is in another access group, hosts are told to trust that
	// group's keys, the next one included.
	if _, err := k.c.DB.ExecContext(t.Context(), `insert into sites (id, name, comment, created_at, version, group_id) values ('site_g', $1, '', 0, 1, 'grp_a')`, "vpc-a"); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(curl(base + wire.PathDeployCA)); got != theirs {
		t.Errorf("ca.pub in another group = %q, want %q", got, theirs)
	}
	if text := curl(base + wire.PathDeployScript); !strings.Contains(text, theirs) || strings.Contains(text, ca) {
		t.Error("the script does not have both keys of the site's group, or has others")
	}
	if _, err := k.c.DB.ExecContext(t.Context(), `delete from sites where id = 'site_g'`); err != nil {
		t.Fatal(err)
	}
	curl("-o", script, base+wire.PathDeployScript)

	// A host's file system.
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	write("etc/ssh/ssh_host_ed25519_key.pub", sshKey(t)+" root@db-1\n")
	write("etc/ssh/sshd_config", "PermitRootLogin prohibit-password\n")
	pristine := tree(t, root)
	sh := func(token string, args ...string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "sh", append([]string{script}, args...)...)
		cmd.Env = append(os.Environ(), "CAPONIER_ROOT="+root, "CAPONIER_TOKEN="+token)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	token := k.token(func(s *TokenSpec) { s.Kind, s.MaxUses = KindHost, 1 })
	out, err := sh(token, "--accounts", "root,deploy")
	if err != nil || !strings.Contains(out, "caponier: registered\n") {
		t.Fatalf("first run: %v\n%s", err, out)
	}
	first := tree(t, root)
	for name, want := range map[string]string{
		"/etc/ssh/caponier/ca.pub":                ca,
		"/etc/ssh/caponier/principals/root":       "root",
		"/etc/ssh/caponier/principals/deploy":     "deploy",
		"/etc/ssh/sshd_config.d/50-caponier.conf": "TrustedUserCAKeys /etc/ssh/caponier/ca.pub",
		"/etc/ssh/sshd_config":                    "Include /etc/ssh/sshd_config.d/*.conf # added by caponier\nPermitRootLogin",
	} {
		if !strings.Contains(first[name], want) {
			t.Errorf("%s = %q, want %q in it", name, first[name], want)
		}
	}
	k.audited(audit.TargetHostJoin)
	if reg.count() != 1 {
		t.Fatalf("%d hosts registered", reg.count())
	}
	for _, h := range reg.all() {
		if h.Site != "vpc-a" || h.Address != "10.10.0.5" || h.Port != 22 || len(h.HostKeys) != 1 || strings.Join(h.Accounts, ",") != "deploy,root" {
			t.Errorf("registered %+v", h)
		}
	}
	// The second run changes nothing, and needs no use of the token.
	out, err = sh(token, "--accounts", "root,deploy")
	if err != nil || !strings.Contains(out, "nothing changed") {
		t.Fatalf("second run: %v\n%s", err, out)
	}
	if d := same(first, tree(t, root)); d != "" {
		t.Errorf("second run: %s", d)
	}
	// An account less: its file goes.
	if out, err = sh(token, "--accounts", "root"); err != nil {
		t.Fatalf("third run: %v\n%s", err, out)
	}
	if _, ok := tree(t, root)["/etc/ssh/caponier/principals/deploy"]; ok {
		t.Error("the principals of a removed account stayed")
	}
	// Another host cannot use the spent token; a node's token is no use here.
	write("etc/machine-id", "ffffffffffffffffffffffffffffffff\n")
	for name, tok := range map[string]string{"spent": token, "wrong kind": k.token(nil),
		"wrong site": k.token(func(s *TokenSpec) { s.Kind, s.Site = KindHost, "vpc-b" })} {
		if out, err := sh(tok); err == nil || !strings.Contains(out, "registration refused: this ") {
			t.Errorf("%s token: %v\n%s", name, err, out)
		}
	}
	if reg.count() != 1 {
		t.Error("a refused host was registered")
	}
	k.audited(audit.EdgeHostRefused)
	if out, err := sh("", "--help"); err != nil || !strings.Contains(out, "--token-file") || !strings.Contains(out, "--undo") {
		t.Errorf("--help: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"--accounts", "root;reboot"}, {"--port", "x"}, {"--what"}, {"--address", "$(id)"}} {
		if out, err := sh(token, args...); err == nil {
			t.Errorf("%v was accepted:\n%s", args, out)
		}
	}
	write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	if out, err = sh("", "--undo"); err != nil {
		t.Fatalf("undo: %v\n%s", err, out)
	}
	after := tree(t, root)
	for name, v := range pristine {
		if strings.HasPrefix(name, "/etc/machine-id") {
			continue
		}
		if got, ok := after[name]; !ok || !sameText(got, v) {
			t.Errorf("undo left %s = %q, was %q", name, got, v)
		}
		delete(after, name)
	}
	delete(after, "/etc/machine-id")
	if len(after) != 0 {
		t.Errorf("undo left %v", after)
	}
}

// sameText compares content without mode and time.
func sameText(a, b string) bool {
	cut := func(s string) string {
		_, s, _ = strings.Cut(s, "|")
		return s
	}
	return cut(a) == cut(b)
}

func TestRegistrationIsChecked(t *testing.T) {
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGZ6b3BkZm9wc2Rmb3Bzb3Bkc29wZHNvcGRzb3BkZnNv"
	if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(key)); err != nil {
		t.Fatal(err)
	}
	good := registration{MachineID: strings.Repeat("a", 64), Name: "Web 1", Address: "10.0.0.9", HostKeys: []string{key}, Accounts: []string{"root", "root"}}
	h, err := good.host("vpc-a", "10.10.0.5")
	if err != nil || h.Name != "web-1" || h.Address != "10.0.0.9" || len(h.Accounts) != 1 || h.Port != 22 {
		t.Errorf("host = %+v, %v", h, err)
	}
	for name, change := range map[string]func(*registration){
		"machine":  func(r *registration) { r.MachineID = "../../etc" },
		"address":  func(r *registration) { r.Address = "host.example" },
		"zone":     func(r *registration) { r.Address = "fe80::1%eth0" },
		"port":     func(r *registration) { r.Port = 70000 },
		"no keys":  func(r *registration) { r.HostKeys = nil },
		"bad key":  func(r *registration) { r.HostKeys = []string{"ssh-ed25519 x"} },
		"accounts": func(r *registration) { r.Accounts = []string{"root; id"} },
		"none":     func(r *registration) { r.Accounts = nil },
	} {
		r := good
		change(&r)
		if _, err := r.host("vpc-a", "10.10.0.5"); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
