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
			t.Logf("the refusal took %v", time.Since(began).Round(time.Millisecond))
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
	for name, refused := range map[string]struct{ text, audit string }{
		"db.internal.example":      {},
		"rebind.internal.example":  {"(127.0.0.1:22) may not be dialled: it is a loopback address", "127.0.0.1"},
		"meta.internal.example":    {"(169.254.169.254:22) may not be dialled: it is a cloud metadata address", "169.254.169.254"},
		"nowhere.internal.example": {"nowhere.internal.example", ""},
	} {
		reachable := refused.text == ""
		short, _, _ := strings.Cut(name, ".")
		if _, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: "dns-" + short, Kind: "ssh", Site: "vpc-a", Host: name, Accounts: []harness.Account{{Name: "root"}}}); err != nil {
			t.Fatal(err)
		}
		r := w.ssh(t, "demo%root%dns-"+short, "hostname")
		if reachable && (r.code != 0 || strings.TrimSpace(r.out) != "db-a") {
			t.Errorf("%s: %v", name, r)
		}
		if !reachable && (r.code == 0 || !strings.Contains(r.err, refused.text)) {
			t.Errorf("%s: want the refusal %q: %v", name, refused.text, r)
		}
		if refused.audit != "" {
			w.audited(t, "type=edge.dial_refused", "refused dial to "+name, func(e harness.Event) bool {
				return e.Outcome == "denied" && strings.Contains(fmt.Sprint(e.Fields), refused.audit) && strings.Contains(fmt.Sprint(e), name)
			})
		}
	}
}

// What lies outside the subnets and ports an extender's own configuration
// allows is refused on the spot, told and audited; what lies inside is reached.
func TestExtenderSubnetsAndPorts(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}, env: []string{"CAPONIER_RULES_ALLOW=10.10.0.4/31,10.10.0.7/32", "CAPONIER_RULES_PORTS=22"}})
	w.mustSSH(t, dbA, "true") // 10.10.0.5
	if r := w.ssh(t, "demo%alice%pw-a", "true"); r.code == 0 || !strings.Contains(r.err, "10.10.0.6:22 may not be dialled: it is outside the allowed subnets") {
		t.Errorf("outside the subnets: %v", r)
	}
	w.audited(t, "type=edge.dial_refused", "the address outside", func(e harness.Event) bool {
		return e.Outcome == "denied" && strings.Contains(fmt.Sprint(e.Fields), "10.10.0.6")
	})
	if _, err := w.core.Admin.Open(t.Context(), w.role, harness.Target{Name: "other-port", Kind: "ssh", Site: "vpc-a", Host: harness.HostAddr, Port: 2022, Accounts: []harness.Account{{Name: "root"}}}); err != nil {
		t.Fatal(err)
	}
	if r := w.ssh(t, "demo%root%other-port", "true"); r.code == 0 || !strings.Contains(r.err, "2022") || !strings.Contains(r.err, "may not be dialled") {
		t.Errorf("another port: %v", r)
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
	_, err := w.core.Admin.Online(t.Context(), patience, "vpc-"+v, w.ext[v].Proc)
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
