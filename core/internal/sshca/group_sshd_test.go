package sshca

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/db/dbtest"
	"caponier/e2e/harness"
)

// host is a real sshd that trusts what it was last told of one access group.
type host struct {
	t            *testing.T
	x            *fixture
	group        string
	user         string
	config       string
	trusted, krl string
}

func newHost(t *testing.T, x *fixture, group string) *host {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "host")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		harness.Lacks(t, "ssh-keygen: %v %s", err, out)
	}
	h := &host{t: t, x: x, group: group, user: me.Username,
		config: filepath.Join(dir, "config"), trusted: filepath.Join(dir, "ca"), krl: filepath.Join(dir, "krl")}
	h.write(h.config, fmt.Appendf(nil, `HostKey %s
TrustedUserCAKeys %s
RevokedKeys %s
AuthorizedKeysFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
`, key, h.trusted, h.krl))
	h.deploy()
	h.revocations()
	return h
}

func (h *host) write(path string, b []byte) {
	h.t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
}

// deploy tells it the keys of its group that are published now.
func (h *host) deploy() {
	h.t.Helper()
	keys, err := h.x.PublicKey(h.t.Context(), h.group)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(h.trusted, []byte(keys))
}

// revocations fetches the revocation list of its group.
func (h *host) revocations() {
	h.t.Helper()
	b, err := h.x.KRL(h.t.Context(), h.group)
	if err != nil {
		h.t.Fatal(err)
	}
	h.write(h.krl, b)
}

// login logs in with a certificate.
func (h *host) login(signer ssh.Signer) error {
	h.t.Helper()
	c := &ssh.ClientConfig{User: h.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}
	conn, chans, reqs, err := ssh.NewClientConn(sshdInetd(h.t, h.config), "target", c)
	if err != nil {
		return err
	}
	client := ssh.NewClient(conn, chans, reqs)
	defer client.Close()
	s, err := client.NewSession()
	if err != nil {
		return err
	}
	defer s.Close()
	out, err := s.Output("id -un")
	if err == nil && strings.TrimSpace(string(out)) != h.user {
		err = fmt.Errorf("logged in as %q", out)
	}
	return err
}

func (h *host) lets(signer ssh.Signer, what string) {
	h.t.Helper()
	if err := h.login(signer); err != nil {
		h.t.Errorf("%s does not log in: %v", what, err)
	}
}

func (h *host) refuses(signer ssh.Signer, what string) {
	h.t.Helper()
	if h.login(signer) == nil {
		h.t.Errorf("%s logs in", what)
	}
}

// TestGroupsOfRealSSHDs: what a group's authority signs logs in at the group's
// hosts and nowhere else; through a renewal there is no moment at which a host
// that was told in time refuses, and after the revocation nothing is left.
func TestGroupsOfRealSSHDs(t *testing.T) {
	x := newFixture(t, dbtest.SQLite(t))
	ctx := t.Context()
	for _, g := range []string{"grp_a", "grp_b"} {
		err := x.db.Tx(ctx, func(tx *db.Tx) error { return x.Found(ctx, tx, g, audit.System) })
		if err != nil {
			t.Fatal(err)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(group string) ssh.Signer {
		t.Helper()
		s, _, err := x.TargetSigner(ctx, UserRequest{Group: group, KeyID: "ada@con_1", Principals: []string{me.Username}, TTL: MaxTargetTTL})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b, rest := newHost(t, x, "grp_a"), newHost(t, x, "grp_b"), newHost(t, x, access.DefaultGroup)
	old := sign("grp_a")
	a.lets(old, "the group's own")
	b.refuses(old, "another group's")
	rest.refuses(old, "another group's, at a host of the default group,")
	rest.lets(sign(access.DefaultGroup), "the default group's")
	a.refuses(sign(access.DefaultGroup), "the default group's, at a host of another,")

	next, err := x.Renew(ctx, ForTargets, "grp_a", audit.System)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := x.PublicKey(ctx, "grp_a")
	if err != nil || strings.Count(lines, "\n") != 2 {
		t.Errorf("published while it is renewed: %q, %v", lines, err)
	}
	a.lets(sign("grp_a"), "what is signed before the host knows of the next key")
	a.deploy()
	a.lets(sign("grp_a"), "what is signed before the next key signs")
	if _, err := x.Activate(ctx, "grp_a", next.ID, audit.System); err != nil {
		t.Fatal(err)
	}
	fresh := sign("grp_a")
	a.lets(fresh, "what the new key signs")
	a.lets(old, "what the former key signed")
	b.refuses(fresh, "another group's new key")

	keys, err := x.Keys(ctx, "grp_a")
	if err != nil || len(keys) != 2 || keys[1].State != Retired {
		t.Fatalf("keys: %+v, %v", keys, err)
	}
	if _, err := x.RevokeKey(ctx, "grp_b", keys[1].ID, audit.System); err == nil {
		t.Error("a key was revoked by way of another group")
	}
	if _, err := x.RevokeKey(ctx, "grp_a", keys[1].ID, audit.System); err != nil {
		t.Fatal(err)
	}
	lines, err = x.PublicKey(ctx, "grp_a")
	if err != nil || strings.Count(lines, "\n") != 1 || !strings.Contains(lines, strings.Fields(next.PublicKey)[1]) {
		t.Errorf("published after the revocation: %q, %v", lines, err)
	}
	a.revocations()
	a.refuses(old, "the revoked key's, at a host that only has the list,")
	a.deploy()
	a.write(a.krl, nil)
	a.refuses(old, "the revoked key's, at a host that only has the keys,")
	a.lets(fresh, "the new key's, after the revocation,")
	if cert := sign("grp_a").PublicKey().(*ssh.Certificate); ssh.FingerprintSHA256(cert.SignatureKey) != next.Fingerprint {
		t.Error("a revoked key signs")
	}
	list, err := x.KRL(ctx, "grp_b")
	if err != nil || strings.Contains(string(list), string(keys[1].public.Marshal())) {
		t.Errorf("the list of one group has another's keys (%v)", err)
	}

	if err := x.db.Tx(ctx, func(tx *db.Tx) error { return x.Abolish(ctx, tx, "grp_b", audit.System) }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := x.TargetSigner(context.WithoutCancel(ctx), UserRequest{Group: "grp_b", KeyID: "a", Principals: []string{"a"}}); err == nil {
		t.Error("an abolished authority signs")
	}
	if lines, err := x.PublicKey(ctx, "grp_b"); err != nil || lines != "" {
		t.Errorf("an abolished authority is published: %q, %v", lines, err)
	}
}
