package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// world is a core outside and two VPCs with the same addresses, each behind a
// router that lets nothing in, with an extender and real sshds inside.
type world struct {
	net  *harness.Net
	dir  string
	bin  harness.Binaries
	core *harness.Core
	ext  map[string]*harness.EdgeNode
	sshd map[string]*harness.SSHD

	demo     string // password of user demo
	role     string // the role of demo, which may use every target below
	demoID   string
	caFile   string // TrustedUserCAKeys
	key      string // private key file of demo's own laptop, registered with core
	known    string // known_hosts trusting core's host CA
	password string // of account alice on pw-a, stored in the vault
	targets  map[string]string
}

// options say how a world differs from the usual one.
type options struct {
	core string // further lines of core.toml, before the tables
	// tables are further tables of core.toml.
	tables string
	// before makes what core needs, once its network exists.
	before func(*harness.Net) error
	edge   string // URL extenders dial; empty means core itself
	vpcs   []string
	// bare: no sshds inside.
	bare bool
	http bool     // core listens on port 80, too
	env  []string // settings of extenders, CAPONIER_…
	// nobody: extenders run as the user nobody, without capabilities.
	nobody bool
	// tampers: the test breaks the audit log on purpose.
	tampers bool
}

// coreTOML is the configuration of a core in the namespace "core".
const coreTOML = `
name = "core1"
grace = "1s"
%s
[public]
url = "https://` + harness.CoreAddr + `"
bastion = "` + harness.CoreAddr + `:2222"
[listen]
https = "` + harness.CoreAddr + `:443"
http = "off"
bastion = "` + harness.CoreAddr + `:2222"
socks = "` + harness.CoreAddr + `:1080"
metrics = "127.0.0.1:9464"
sessions = "4000-4020"
sessions_host = "` + harness.CoreAddr + `"
`

// newWorld makes a world of its own for one test.
func newWorld(t testing.TB, o options) *world {
	t.Helper()
	needRig(t)
	w, err := makeWorld(context.Background(), t, o)
	t.Cleanup(func() {
		if err == nil && !o.tampers {
			// Whatever the test did, what is on record holds together.
			if out, err := w.core.Tool(context.Background(), "", "--config", w.core.File, "audit", "verify"); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
		w.showLogs(t)
		w.close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

var (
	commonOnce  sync.Once
	commonWorld *world
	commonErr   error
)

// common is the world tests share that leave it as they found it.
func common(t testing.TB) *world {
	t.Helper()
	needRig(t)
	commonOnce.Do(func() { commonWorld, commonErr = makeWorld(context.Background(), t, options{}) })
	if commonErr != nil {
		t.Fatal(commonErr)
	}
	t.Cleanup(func() { commonWorld.showLogs(t) })
	return commonWorld
}

func makeWorld(ctx context.Context, t testing.TB, o options) (*world, error) {
	w := &world{net: harness.NewNet(""), bin: binaries(t), ext: map[string]*harness.EdgeNode{}, sshd: map[string]*harness.SSHD{}, targets: map[string]string{}, demo: "a-password-of-the-tests"}
	var err error
	if w.dir, err = os.MkdirTemp("", "caponier-e2e-"); err != nil {
		return w, err
	}
	if err := os.Chmod(w.dir, 0o755); err != nil {
		return w, err
	}
	if err := w.net.Outside(); err != nil {
		return w, err
	}
	if o.vpcs == nil {
		o.vpcs = []string{"a", "b"}
	}
	for i, v := range o.vpcs {
		if err := w.net.VPC(v, 101+i); err != nil {
			return w, err
		}
	}
	if o.before != nil {
		if err := o.before(w.net); err != nil {
			return w, err
		}
	}
	toml := fmt.Sprintf(coreTOML, o.core) + o.tables
	if o.http {
		toml = strings.Replace(toml, `http = "off"`, `http = "`+harness.CoreAddr+`:80"`, 1)
	}
	w.core, err = harness.StartCore(ctx, w.net, w.bin.Core, filepath.Join(w.dir, "core"), harness.CoreConfig{NS: "core", TOML: toml})
	if err != nil {
		return w, err
	}
	if err := w.people(ctx); err != nil {
		return w, err
	}
	if o.edge == "" {
		o.edge = w.core.Ready.URL
	}
	for _, v := range o.vpcs {
		if err := w.extender(ctx, v, o); err != nil {
			return w, err
		}
		if o.bare {
			continue
		}
		if err := w.hosts(ctx, v); err != nil {
			return w, err
		}
	}
	for _, v := range o.vpcs {
		if _, err := w.core.Admin.Online(ctx, patience, "vpc-"+v, w.ext[v].Proc); err != nil {
			return w, err
		}
	}
	return w, nil
}

// people makes user demo with a laptop key, and the files SSH clients need.
func (w *world) people(ctx context.Context) error {
	var ca struct {
		UserCA string `json:"user_ca"`
		HostCA string `json:"host_ca"`
	}
	if err := w.core.Admin.Do(ctx, http.MethodGet, "/ssh-ca", nil, &ca); err != nil {
		return err
	}
	w.caFile, w.known, w.key = filepath.Join(w.dir, "user_ca.pub"), filepath.Join(w.dir, "known_hosts"), filepath.Join(w.dir, "id_demo")
	var known strings.Builder
	for line := range strings.Lines(ca.HostCA) {
		known.WriteString("@cert-authority * " + strings.TrimSpace(line) + "\n")
	}
	if err := errors.Join(os.WriteFile(w.caFile, []byte(ca.UserCA), 0o644), os.WriteFile(w.known, []byte(known.String()), 0o644)); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", w.key).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var err error
	if w.demoID, w.role, err = w.core.Admin.User(ctx, "demo", w.demo); err != nil {
		return err
	}
	pub, err := os.ReadFile(w.key + ".pub")
	if err != nil {
		return err
	}
	demo, err := w.as(ctx, "demo", w.demo)
	if err != nil {
		return err
	}
	_, err = demo.Create(ctx, "/users/me/keys", map[string]string{"public_key": strings.TrimSpace(string(pub))})
	return err
}

// as logs a user in.
func (w *world) as(ctx context.Context, name, password string) (*harness.API, error) {
	token, err := w.core.Admin.Login(ctx, name, password)
	if err != nil {
		return nil, err
	}
	return w.core.Admin.As(token), nil
}

// extender enrols an extender for site vpc-<v>.
func (w *world) extender(ctx context.Context, v string, o options) error {
	site := "vpc-" + v
	if err := w.core.Admin.Site(ctx, site); err != nil {
		return err
	}
	_, token, err := w.core.Admin.EnrolmentToken(ctx, map[string]any{"site": site})
	if err != nil {
		return err
	}
	w.ext[v], err = harness.StartEdge(ctx, w.net, w.bin.Extender, filepath.Join(w.dir, "ext-"+v),
		harness.EdgeConfig{NS: "ext-" + v, URL: o.edge, Token: token, Env: o.env, Nobody: o.nobody})
	return err
}

// hosts starts the sshds of a VPC and makes targets of them, open to demo:
// db-<v> trusts only our CA, pw-<v> a stored password, key-<v> a stored key.
func (w *world) hosts(ctx context.Context, v string) error {
	w.password = "stored password äö & =+/"
	keyFile := filepath.Join(w.dir, "stored_key_"+v)
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keyFile).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	private, err1 := os.ReadFile(keyFile)
	public, err2 := os.ReadFile(keyFile + ".pub")
	laptop, err3 := os.ReadFile(w.key + ".pub")
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	admin := w.core.Admin
	password, err := admin.Secret(ctx, "password of alice on pw-"+v, "password", w.password)
	if err != nil {
		return err
	}
	key, err := admin.Secret(ctx, "key of bob on key-"+v, "key", string(private))
	if err != nil {
		return err
	}
	for _, h := range []struct {
		name, addr string
		ca         string
		logins     []harness.Login
		accounts   []harness.Account
	}{
		{"db-" + v, harness.Hosts[0], w.caFile, []harness.Login{{Name: "root"}, {Name: "carol", Keys: []string{strings.TrimSpace(string(laptop))}}},
			[]harness.Account{{Name: "root"}, {Name: "carol"}}},
		{"pw-" + v, harness.Hosts[1], "", []harness.Login{{Name: "alice", Password: w.password}},
			[]harness.Account{{Name: "alice", Auth: "password", Secret: password}}},
		{"key-" + v, harness.Hosts[2], "", []harness.Login{{Name: "bob", Keys: []string{strings.TrimSpace(string(public))}}},
			[]harness.Account{{Name: "bob", Auth: "key", Secret: key}}},
	} {
		s, err := harness.StartSSHD(ctx, w.net, filepath.Join(w.dir, h.name), harness.SSHDConfig{NS: "host-" + v, Name: h.name, Address: h.addr, CAFile: h.ca, Logins: h.logins}, false)
		if err != nil {
			return err
		}
		w.sshd[h.name] = s
		id, err := admin.Open(ctx, w.role, harness.Target{Name: h.name, Kind: "ssh", Site: "vpc-" + v, Host: h.addr, Accounts: h.accounts})
		if err != nil {
			return err
		}
		w.targets[h.name] = id
	}
	return nil
}

func (w *world) close() {
	if w == nil {
		return
	}
	for _, x := range w.ext {
		if x.Proc != nil {
			x.Proc.Kill()
		}
	}
	if w.core != nil && w.core.Proc != nil {
		w.core.Proc.Kill()
	}
	for _, s := range w.sshd {
		s.Proc.Kill()
	}
	w.net.Close()
	os.RemoveAll(w.dir)
}

// showLogs prints the ends of all logs when the test failed.
func (w *world) showLogs(t testing.TB) {
	if w == nil || !t.Failed() {
		return
	}
	files, _ := filepath.Glob(filepath.Join(w.dir, "*", "*.log"))
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		lines = lines[max(0, len(lines)-40):]
		t.Logf("%s ends with:\n%s", filepath.Base(f), strings.Join(lines, "\n"))
	}
}

// result is what a program did.
type result struct {
	out, err string
	code     int
}

func (r result) String() string {
	return fmt.Sprintf("exit code %d\nstdout: %s\nstderr: %s", r.code, r.out, r.err)
}

// runIn runs a program in a namespace to its end, at most a minute.
func (w *world) runIn(t testing.TB, ns, stdin string, env []string, prog string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := w.net.Command(ctx, ns, prog, args...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + w.dir, "LANG=C.UTF-8"}, env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	r := result{out: out.String(), err: errs.String()}
	if cmd.ProcessState != nil {
		r.code = cmd.ProcessState.ExitCode()
	}
	if ctx.Err() != nil {
		t.Fatalf("%s %s: %v\n%v", prog, strings.Join(args, " "), ctx.Err(), r)
	}
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("%s: %v", prog, err)
	}
	return r
}

// sshOpts are the options of demo's laptop for ssh, scp, sftp.
func (w *world) sshOpts() []string {
	return []string{"-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityFile=" + w.key,
		"-o", "UserKnownHostsFile=" + w.known, "-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes", "-o", "Port=2222"}
}

// ssh runs a stock client from the user's network: who is "demo%root%db-a".
func (w *world) ssh(t testing.TB, who string, command ...string) result {
	t.Helper()
	args := append(w.sshOpts(), "-l", who, harness.CoreAddr)
	return w.runIn(t, "user", "", nil, "ssh", append(args, command...)...)
}

// mustSSH is ssh that has to succeed; it returns what it printed.
func (w *world) mustSSH(t testing.TB, who string, command ...string) string {
	t.Helper()
	r := w.ssh(t, who, command...)
	if r.code != 0 {
		t.Fatalf("ssh %s %v: %v", who, command, r)
	}
	return r.out
}

// until waits for a condition.
func until(t testing.TB, limit time.Duration, what string, f func() error) {
	t.Helper()
	if err := harness.Until(t.Context(), limit, what, f); err != nil {
		t.Fatal(err)
	}
}

// audited waits for an audit event that want accepts.
func (w *world) audited(t testing.TB, query, what string, want func(harness.Event) bool) harness.Event {
	t.Helper()
	var found harness.Event
	until(t, patience, "audit event: "+what, func() error {
		events, err := w.core.Admin.Audit(t.Context(), query)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(events, want); i >= 0 {
			found = events[i]
			return nil
		}
		return fmt.Errorf("not among %d events", len(events))
	})
	return found
}
