package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// The extender refuses what it must never dial, after resolving names on its
// side; the user is told, the audit log knows.
func TestExtenderRefusals(t *testing.T) {
	w := common(t)
	for name, c := range map[string]struct{ host, reason string }{
		"loopback":         {"127.0.0.1", "loopback"},
		"loopback-v6":      {"::1", "loopback"},
		"loopback-mapped":  {"::ffff:127.0.0.1", "loopback"},
		"link-local":       {"169.254.10.10", "link-local"},
		"metadata-service": {"169.254.169.254", "metadata"},
		"its-own-address":  {harness.ExtAddr, "dialling machine itself"},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: name, Kind: "ssh", Site: "vpc-a", Host: c.host, Accounts: []harness.Account{{Name: "root"}}})
			if err != nil {
				t.Fatal(err)
			}
			defer w.core.Admin.Delete(t.Context(), "/targets/"+id)
			began := time.Now()
			r := w.ssh(t, "demo%root%"+name, "true")
			if r.code == 0 {
				t.Fatal("reached")
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("the refusal took %v", took)
			}
			if !strings.Contains(r.err, "may not be dialled") || !strings.Contains(r.err, c.reason) {
				t.Errorf("the user is not told why: %v", r)
			}
			w.audited(t, "type=edge.dial_refused", "refused dial to "+c.host, func(e harness.Event) bool {
				return e.Outcome == "denied" && strings.Contains(fmt.Sprint(e), strings.TrimPrefix(c.host, "::ffff:"))
			})
		})
	}
}

// A name that resolves to a refused address is refused, whatever it is called;
// one that only the VPC's name server knows works.
func TestNamesResolveInsideTheVPC(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	// dnsmasq is the VPC's resolver; only the extender's namespace knows it.
	conf := filepath.Join(t.TempDir(), "dnsmasq.conf")
	text := "no-resolv\nno-hosts\nbind-interfaces\nlisten-address=" + harness.Hosts[4] + "\n" +
		"host-record=db.internal.example," + harness.HostAddr + "\nhost-record=rebind.internal.example,127.0.0.1\nhost-record=meta.internal.example,169.254.169.254\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	dns, err := harness.Start("dnsmasq", t.TempDir(), w.net.Command(t.Context(), "host-a", "dnsmasq", "-k", "-C", conf, "--user=root", "--pid-file="), false)
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Kill()
	if err := w.restartWithResolver(t, "a", harness.Hosts[4]); err != nil {
		t.Fatal(err)
	}
	for name, reachable := range map[string]bool{"db.internal.example": true, "rebind.internal.example": false, "meta.internal.example": false, "nowhere.internal.example": false} {
		short, _, _ := strings.Cut(name, ".")
		if _, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: "dns-" + short, Kind: "ssh", Site: "vpc-a", Host: name, Accounts: []harness.Account{{Name: "root"}}}); err != nil {
			t.Fatal(err)
		}
		r := w.ssh(t, "demo%root%dns-"+short, "hostname")
		if reachable && (r.code != 0 || strings.TrimSpace(r.out) != "db-a") {
			t.Errorf("%s: %v", name, r)
		}
		if !reachable && r.code == 0 {
			t.Errorf("%s was reached", name)
		}
	}
}

// restartWithResolver starts a VPC's extender anew with a name server.
func (w *world) restartWithResolver(t *testing.T, v, server string) error {
	t.Helper()
	// ip netns exec puts files of /etc/netns/NAME over those of /etc.
	dir := filepath.Join("/etc/netns", w.net.NS("ext-"+v))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+server+"\noptions timeout:1 attempts:2\n"), 0o644); err != nil {
		return err
	}
	w.ext[v].Proc.Kill()
	if err := w.ext[v].Start(); err != nil {
		return err
	}
	_, err := w.core.Admin.Online(t.Context(), 20*time.Second, "vpc-"+v, w.ext[v].Proc)
	return err
}

// What a grant does not allow is refused, use by use.
func TestFeatureSwitches(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	_, role, err := w.core.Admin.User(t.Context(), "narrow", "a-password-for-few-things")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.core.Admin.Create(t.Context(), "/grants", harness.Grant{Role: role, Target: w.targets["db-a"], Accounts: []string{"root"}, Features: []string{"exec"}}); err != nil {
		t.Fatal(err)
	}
	narrow, err := w.as(t.Context(), "narrow", "a-password-for-few-things")
	if err != nil {
		t.Fatal(err)
	}
	key := *w
	key.key = filepath.Join(w.dir, "id_narrow")
	if r := w.runIn(t, "user", "", nil, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key.key); r.code != 0 {
		t.Fatal(r)
	}
	pub, err := os.ReadFile(key.key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := narrow.Create(t.Context(), "/users/me/keys", map[string]string{"public_key": strings.TrimSpace(string(pub))}); err != nil {
		t.Fatal(err)
	}
	who := "narrow%root%db-a"
	if r := key.ssh(t, who, "hostname"); r.code != 0 {
		t.Errorf("exec is granted: %v", r)
	}
	if r := key.runIn(t, "user", "exit\n", nil, "ssh", append(key.sshOpts(), "-tt", "-l", who, harness.CoreAddr)...); r.code == 0 {
		t.Errorf("a shell is not granted: %v", r)
	}
	if r := key.runIn(t, "user", "ls\n", nil, "sftp", append(key.sshOpts(), "-b", "-", who+"@"+harness.CoreAddr)...); r.code == 0 {
		t.Errorf("sftp is not granted: %v", r)
	}
	if r := key.ssh(t, "narrow%carol%db-a", "true"); r.code == 0 {
		t.Errorf("account carol is not granted: %v", r)
	}
	if r := key.ssh(t, "narrow%root%pw-a", "true"); r.code == 0 {
		t.Errorf("target pw-a is not granted: %v", r)
	}
	// Unknown and forbidden targets must look the same.
	a, b := key.ssh(t, "narrow%root%pw-a", "true"), key.ssh(t, "narrow%root%pw-x", "true")
	if strings.ReplaceAll(a.err, "pw-a", "") != strings.ReplaceAll(b.err, "pw-x", "") {
		t.Errorf("names can be probed:\n%v\n%v", a, b)
	}
	if r := key.runIn(t, "user", "", nil, "ssh", append(key.sshOpts(), "-o", "ExitOnForwardFailure=yes", "-W", "127.0.0.1:22", "-l", who, harness.CoreAddr)...); r.code == 0 {
		t.Errorf("forwarding is not granted: %v", r)
	}
}
