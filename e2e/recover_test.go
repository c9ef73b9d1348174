package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"caponier/e2e/harness"
)

// With UDP blocked the extender uses websockets, and nobody notices.
func TestUDPBlockedFallsBack(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}, env: []string{"CAPONIER_TRANSPORT=auto"}})
	restart := func() harness.Edge {
		t.Helper()
		w.ext["a"].Proc.Kill()
		began := time.Now()
		if err := w.ext["a"].Start(); err != nil {
			t.Fatal(err)
		}
		var edge harness.Edge
		until(t, patience, "the new tunnel", func() error {
			list, err := w.core.Admin.Edges(t.Context(), "vpc-a")
			if err != nil {
				return err
			}
			if len(list) == 1 && list[0].Tunnel != nil && list[0].Tunnel.ConnectedAt.After(began) {
				edge = list[0]
				return nil
			}
			return fmt.Errorf("%+v", list)
		})
		return edge
	}
	if err := w.net.Outgoing("a", "meta l4proto udp drop"); err != nil {
		t.Fatal(err)
	}
	if e := restart(); e.Tunnel.Transport != "wss" {
		t.Errorf("with UDP blocked the transport is %s", e.Tunnel.Transport)
	}
	w.mustSSH(t, dbA, "true")
	// And the other way: with TCP 443 blocked QUIC alone suffices.
	if err := w.net.Outgoing("a", "tcp dport 443 drop"); err != nil {
		t.Fatal(err)
	}
	if e := restart(); e.Tunnel.Transport != "quic" {
		t.Errorf("with TCP blocked the transport is %s", e.Tunnel.Transport)
	}
	w.mustSSH(t, dbA, "true")
}

// Core killed: the extender is back within 5 seconds of its return.
func TestCoreKilled(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	w.mustSSH(t, dbA, "true")
	w.core.Proc.Kill()
	if err := w.core.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := w.core.LoginAdmin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.core.Admin.Online(t.Context(), 5*time.Second, "vpc-a", w.ext["a"].Proc); err != nil {
		t.Fatal(err)
	}
	t.Logf("the extender was back %v after core was ready", time.Since(began).Round(time.Millisecond))
	w.mustSSH(t, dbA, "true")
}

// A hung core is noticed by the extender, and a hung extender by core, within
// 5 seconds.
func TestHungPeersAreNoticed(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	ext := w.ext["a"].Proc
	// Who was stopped believes in the old tunnel until it has looked.
	back := func(what string) {
		t.Helper()
		until(t, patience, what, func() error {
			if r := w.ssh(t, dbA, "true"); r.code != 0 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}
	before := len(ext.Output())
	began := time.Now()
	if err := w.core.Proc.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "the extender notices the hung core", func() error {
		for line := range strings.Lines(ext.Output()[before:]) {
			if strings.Contains(line, "tunnel ended") && strings.Contains(line, "silent") {
				return nil
			}
		}
		return fmt.Errorf("its log says: %s", ext.Output()[before:])
	})
	t.Logf("the hung core was noticed after %v", time.Since(began).Round(time.Millisecond))
	if err := w.core.Proc.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back("the site is back")

	began = time.Now()
	if err := ext.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "core notices the hung extender", func() error {
		list, err := w.core.Admin.Edges(t.Context(), "vpc-a")
		if err != nil {
			return err
		}
		if list[0].Health == "online" {
			return fmt.Errorf("it is still online")
		}
		return nil
	})
	t.Logf("the hung extender was noticed after %v", time.Since(began).Round(time.Millisecond))
	if err := ext.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	back("the site is back again")
}

// shell is an interactive session of a stock client that stays open.
type shell struct {
	proc *harness.Proc
	in   io.WriteCloser
}

// shell opens a session and waits for its prompt.
func (w *world) shell(t *testing.T, who string) *shell {
	t.Helper()
	cmd := w.net.Command(t.Context(), "user", "ssh", append(w.sshOpts(), "-tt", "-l", who, harness.CoreAddr)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := harness.Start("shell", t.TempDir(), cmd, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	s := &shell{p, in}
	s.say(t, "echo re''ady")
	if err := p.WaitOutput(t.Context(), patience, "ready"); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shell) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(s.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// ended waits for the end of the session and returns what was shown.
func (s *shell) ended(t *testing.T, limit time.Duration) string {
	t.Helper()
	if _, err := s.proc.WaitExit(limit); err != nil {
		t.Fatalf("%v; shown: %s", err, s.proc.Output())
	}
	return s.proc.Output()
}

// The extender dies under a session: the user is told so.
func TestExtenderKilledTellsTheUser(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	s := w.shell(t, dbA)
	w.ext["a"].Proc.Kill()
	shown := s.ended(t, 8*time.Second)
	if !strings.Contains(shown, "The connection to the target was lost: its extender or the host itself went away.") {
		t.Errorf("the user is not told what happened: %q", shown)
	}
	if r := w.ssh(t, dbA, "true"); r.code == 0 || !strings.Contains(r.err, "no extender of site vpc-a is connected") {
		t.Errorf("a new session without an extender: %v", r)
	}
}

// A network that swallows packets without a word: core tells the users of the
// site within 5 seconds, and the extender is back soon after the network is.
func TestNetworkThatSwallowsPackets(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	s := w.shell(t, dbA)
	if err := w.net.Outgoing("a", "drop"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if shown := s.ended(t, 6*time.Second); !strings.Contains(shown, "The connection to the target was lost: its extender or the host itself went away.") {
		t.Errorf("the user is not told what happened: %q", shown)
	}
	t.Logf("the session ended %v after the last packet", time.Since(began).Round(time.Millisecond))
	if r := w.ssh(t, dbA, "true"); r.code == 0 {
		t.Error("a session began over a network that swallows everything")
	}
	if err := w.net.Outgoing("a"); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	until(t, patience, "new sessions work again", func() error {
		if r := w.ssh(t, dbA, "true"); r.code != 0 {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	t.Logf("the site was back %v after the network", time.Since(began).Round(time.Millisecond))
}

// The name that extenders dial comes to mean another address: they follow it.
func TestBalancerMoves(t *testing.T) {
	const moved = "203.0.113.2"
	var hosts string
	name := func(addr string) error {
		// Rewritten in place: the namespace sees this very file.
		return os.WriteFile(hosts, []byte(addr+" pam.example.org\n"), 0o644)
	}
	w := newWorld(t, options{vpcs: []string{"a"}, edge: "https://pam.example.org", before: func(n *harness.Net) error {
		dir := filepath.Join("/etc/netns", n.NS("ext-a"))
		t.Cleanup(func() { os.RemoveAll(dir) })
		hosts = filepath.Join(dir, "hosts")
		return errors.Join(os.MkdirAll(dir, 0o755), name(harness.CoreAddr))
	}})
	w.mustSSH(t, dbA, "true")
	// The other address of the load balancer passes everything to core.
	if err := w.net.IP("middle", "addr add "+moved+"/24 dev eth0"); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\nlisten all\n bind " + moved + ":443\n server core " + harness.CoreAddr + ":443\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := harness.Start("haproxy", t.TempDir(), w.net.Command(t.Context(), "middle", "haproxy", "-db", "-f", conf), false)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if err := errors.Join(name(moved), w.net.Outgoing("a", "ip daddr "+harness.CoreAddr+" drop")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	until(t, patience, "the extender comes by the new address", func() error {
		list, err := w.core.Admin.Edges(t.Context(), "vpc-a")
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].Tunnel == nil || !strings.HasPrefix(list[0].Tunnel.Remote, harness.MiddleAddr) {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	t.Logf("the extender was there %v after the move", time.Since(began).Round(time.Millisecond))
	w.mustSSH(t, dbA, "true")
}

// Losing the role ends the live session within a second, with a reason. The
// second is core's: how long a client takes to leave on a busy machine is not.
func TestRoleRevokedEndsSession(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	s := w.shell(t, dbA)
	began := time.Now()
	if err := w.core.Admin.Delete(t.Context(), "/roles/"+w.role+"/members/"+w.demoID); err != nil {
		t.Fatal(err)
	}
	shown := s.ended(t, patience)
	t.Logf("the client left %v after the role was taken", time.Since(began).Round(time.Millisecond))
	taken := w.audited(t, "type=role.member_removed", "the role was taken", func(harness.Event) bool { return true }).Time
	until(t, patience, "the connection is over", func() error {
		var list struct {
			Items []struct {
				EndedAt   time.Time `json:"ended_at"`
				EndReason string    `json:"end_reason"`
			}
		}
		if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/connections?limit=10", nil, &list); err != nil {
			return err
		}
		if len(list.Items) != 1 || list.Items[0].EndedAt.IsZero() {
			return fmt.Errorf("connections %+v", list.Items)
		}
		c := list.Items[0]
		if took := c.EndedAt.Sub(taken); c.EndReason != "access_lost" || took > time.Second {
			return fmt.Errorf("%w: it ended by %s, %s after the role was taken", harness.ErrGone, c.EndReason, took)
		}
		return nil
	})
	if !strings.Contains(shown, "your access to db-a was withdrawn") {
		t.Errorf("the user is not told why: %q", shown)
	}
	if r := w.ssh(t, dbA, "true"); r.code == 0 || !strings.Contains(r.err, `There is no target "db-a" that you may use`) {
		t.Errorf("a new session without the role: %v", r)
	}
}

// A terminated connection ends at once, and a revoked edge node with it.
func TestTerminateAndRevokeEdge(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	s := w.shell(t, dbA)
	var list struct {
		Items []struct{ ID string } `json:"items"`
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/connections?live=true", nil, &list); err != nil || len(list.Items) == 0 {
		t.Fatalf("live connections: %v, %v", list, err)
	}
	began := time.Now()
	if err := w.core.Admin.Delete(t.Context(), "/connections/"+list.Items[0].ID); err != nil {
		t.Fatal(err)
	}
	s.ended(t, patience)
	t.Logf("ended %v after the order", time.Since(began).Round(time.Millisecond))

	// By target: everybody on it, with words for them; others stay.
	one, two, other := w.shell(t, dbA), w.shell(t, "demo%carol%db-a"), w.shell(t, "demo%alice%pw-a")
	var many struct{ Terminated int }
	order := map[string]string{"target_id": w.targets["db-a"], "reason": "maintenance at noon"}
	began = time.Now()
	if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/connections/terminate", order, &many); err != nil || many.Terminated != 2 {
		t.Errorf("ended %d connections of db-a, %v; want 2", many.Terminated, err)
	}
	for _, s := range []*shell{one, two} {
		if shown := s.ended(t, patience); !strings.Contains(shown, "maintenance at noon") {
			t.Errorf("the user is not told why: %q", shown)
		}
	}
	t.Logf("both ended %v after the order", time.Since(began).Round(time.Millisecond))
	other.say(t, "echo still''-here")
	if err := other.proc.WaitOutput(t.Context(), patience, "still-here"); err != nil {
		t.Errorf("the session on another target: %v", err)
	}

	edges, err := w.core.Admin.Edges(t.Context(), "vpc-a")
	if err != nil || len(edges) != 1 {
		t.Fatal(edges, err)
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodPost, "/edges/"+edges[0].ID+"/revoke", nil, nil); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the revoked node is gone", func() error {
		now, err := w.core.Admin.Edges(t.Context(), "vpc-a")
		if err != nil {
			return err
		}
		if now[0].Health != "revoked" || now[0].Tunnel != nil {
			return fmt.Errorf("%+v", now[0])
		}
		return nil
	})
	if r := w.ssh(t, dbA, "true"); r.code == 0 {
		t.Error("the revoked node still relays")
	}
}

// Many sessions at once through one bastion and one extender.
func TestManySessions(t *testing.T) {
	w := newWorld(t, options{vpcs: []string{"a"}})
	const sessions = 200
	// One process per session, all open at the same time: each waits for the
	// word that is sent when all have arrived.
	type one struct {
		in io.WriteCloser
		p  *harness.Proc
	}
	all := make([]one, sessions)
	dir := t.TempDir()
	for i := range all {
		cmd := w.net.Command(t.Context(), "user", "ssh", append(w.sshOpts(), "-o", "ConnectTimeout=60", "-l", dbA, harness.CoreAddr, "echo in; read word; echo got $word")...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		p, err := harness.Start(fmt.Sprintf("s%d", i), dir, cmd, false)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = one{in: in, p: p}
		if i%20 == 19 { // a crowd, not one burst beyond sshd's own limit for unfinished logins
			if err := p.WaitOutput(t.Context(), 2*patience, "in"); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range all {
		if err := s.p.WaitOutput(t.Context(), 2*patience, "in"); err != nil {
			t.Fatal(err)
		}
	}
	var live struct {
		Items []struct{ ID string } `json:"items"`
	}
	if err := w.core.Admin.Do(t.Context(), http.MethodGet, "/connections?live=true&limit=200", nil, &live); err != nil {
		t.Fatal(err)
	}
	if len(live.Items) != sessions {
		t.Errorf("%d live connections are listed, want %d", len(live.Items), sessions)
	}
	for i, s := range all {
		if _, err := io.WriteString(s.in, fmt.Sprintf("word%d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range all {
		code, err := s.p.WaitExit(60 * time.Second)
		if out := s.p.Output(); err != nil || code != 0 || !bytes.Contains([]byte(out), fmt.Appendf(nil, "got word%d", i)) {
			t.Errorf("session %d: code %d, %v: %s", i, code, err, out)
		}
	}
}
