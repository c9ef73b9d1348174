package bastion

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/conn"
)

// running starts a command that lasts, on a terminal, and waits until it runs.
func (b *bench) running(c *ssh.Client) (*ssh.Session, *lockedBuffer) {
	b.t.Helper()
	s, err := c.NewSession()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := s.RequestPty("vt100", 24, 80, nil); err != nil {
		b.t.Fatal(err)
	}
	out := &lockedBuffer{}
	s.Stdout, s.Stderr = out, out
	if err := s.Start("echo ready; exec cat"); err != nil {
		b.t.Fatal(err)
	}
	eventually(b.t, "the command runs", func() bool { return strings.Contains(out.String(), "ready") })
	return s, out
}

// The order ends the session by itself: no timer is near.
func TestTerminationIsTold(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.Keepalive, c.Limits.Dead, c.Limits.Recheck = time.Hour, time.Hour, time.Hour })
	b.add("db-1", b.startSSHD())
	s, out := b.running(b.mustDial(b.to("db-1")))
	b.conns.list()[0].cancel(&conn.Terminated{Reason: conn.EndedByAccess, Public: "Session ended: your access was removed."})
	err := s.Wait()
	if e, ok := err.(*ssh.ExitError); !ok || e.ExitStatus() != exitRefused {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(out.String(), "\r\ncaponier: Session ended: your access was removed.\r\n") {
		t.Errorf("the user read %q", out.String())
	}
	if _, reason := b.last().ended(); reason != conn.EndedByAccess {
		t.Errorf("ended by %s", reason)
	}
	if tp := b.tapes.list()[0]; !tp.closed {
		t.Error("the recording is not complete")
	}
}

func TestTerminationEndsForwards(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	host, port := greeter(t)
	c := b.mustDial(b.to("db-1"))
	n, err := c.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	b.conns.list()[0].cancel(&conn.Terminated{Reason: conn.EndedByAdmin, Public: "Ended."})
	if _, err := io.ReadAll(n); err != nil && !errors.Is(err, io.EOF) {
		t.Errorf("got %v", err)
	}
	if _, reason := b.last().ended(); reason != conn.EndedByAdmin {
		t.Errorf("ended by %s", reason)
	}
}

// A client that reads nothing cannot keep its session.
func TestTerminationOfStalledClient(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.Drain = 100 * time.Millisecond })
	b.add("db-1", b.startSSHD())
	c := b.mustDial(b.to("db-1"))
	ch, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	if _, err := ch.SendRequest("exec", true, ssh.Marshal(stringField{"cat /dev/zero"})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the window is full", func() bool {
		l := b.conns.list()
		if len(l) == 0 {
			return false
		}
		l[0].mu.Lock()
		defer l[0].mu.Unlock()
		return l[0].out >= 2<<20
	})
	b.conns.list()[0].cancel(&conn.Terminated{Reason: conn.EndedByAdmin, Public: "Ended."})
	b.last()
	b.stop() // returns only when every goroutine has
}

func TestRecordingThatFailsEndsTheSession(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	s, out := b.running(b.mustDial(b.to("db-1")))
	in := b.tapes.list()[0]
	in.change(func() { in.fail = errors.New("disk full") })
	if err := s.WindowChange(30, 100); err != nil { // a resize is recorded
		t.Fatal(err)
	}
	if err := s.Wait(); err == nil {
		t.Error("the session ended well")
	}
	if !strings.Contains(out.String(), "The recording of this session could not be written") {
		t.Errorf("the user read %q", out.String())
	}
	b.tapes.change(func() { b.tapes.fail = errors.New("disk full") })
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != exitRefused || r.out != "" || !strings.Contains(r.err, "must be recorded") {
		t.Errorf("no recording, no session: %v", r)
	}
}

func TestUnrecordedWhenAllowed(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD(), func(r *right) { r.record = false })
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != 0 || len(b.tapes.list()) != 0 {
		t.Errorf("got %v, %d recordings", r, len(b.tapes.list()))
	}
}

func TestFailClosed(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	b.conns.change(func() { b.conns.fail = errors.New("database away") })
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != exitRefused || r.out != "" || !strings.Contains(r.err, "Internal error. Tell your administrator this reference: ") {
		t.Errorf("no record: %v", r)
	}
	b.conns.change(func() { b.conns.fail = nil })
	b.rules.change(func() { b.rules.err = errors.New("database away") })
	if r := b.ssh(b.to("db-1"), "echo in"); r.code != exitRefused || r.out != "" || strings.Contains(r.err, "database") {
		t.Errorf("no decision: %v", r)
	}
}

func TestShutdownTellsAndEnds(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.Drain = 3 * time.Second })
	b.add("db-1", b.startSSHD())
	s, out := b.running(b.mustDial(b.to("db-1")))
	done := make(chan error, 1)
	go func() { done <- s.Wait() }()
	b.stop()
	<-done
	if !strings.Contains(out.String(), "The bastion is shutting down; this session ends") {
		t.Errorf("the user read %q", out.String())
	}
	if _, reason := b.last().ended(); reason != conn.EndedByShutdown {
		t.Errorf("ended by %s", reason)
	}
}

func TestTargetLost(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	s, out := b.running(b.mustDial(b.to("db-1")))
	b.dialer.change(func() { _ = b.dialer.conns[0].Close() })
	if err := s.Wait(); err == nil || !strings.Contains(out.String(), "The connection to the target was lost") {
		t.Errorf("got %v, the user read %q", err, out.String())
	}
	if _, reason := b.last().ended(); reason != conn.EndedByRoute {
		t.Errorf("ended by %s", reason)
	}
}

func TestUserGone(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	c := b.mustDial(b.to("db-1"))
	b.running(c)
	_ = c.Close()
	if _, reason := b.last().ended(); reason != conn.EndedByUser {
		t.Errorf("ended by %s", reason)
	}
}

// A peer that stops answering without closing is noticed.
func TestDeadClientIsNoticed(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.Keepalive, c.Limits.Dead = 100*time.Millisecond, 2*time.Second })
	b.add("db-1", b.startSSHD())
	cmd := exec.Command("ssh", b.sshArgs(b.to("db-1"), "-tt", "--", "echo ready; exec cat")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("kill", "-STOP", strconv.Itoa(cmd.Process.Pid)).Run(); err != nil {
		t.Fatal(err)
	}
	if _, reason := b.last().ended(); reason != conn.EndedByUser {
		t.Errorf("ended by %s", reason)
	}
}

// A process that stood still does not take its peers for dead before it has had
// the time to hear them.
func TestSilence(t *testing.T) {
	l := Limits{Keepalive: 5 * time.Second, Dead: 12 * time.Second}
	at := time.Now()
	w := silence{last: at}
	for i, x := range []struct {
		after, quiet time.Duration // since the one before; since the peer's last byte
		want         bool
	}{
		{5 * time.Second, 5 * time.Second, false},
		{5 * time.Second, 10 * time.Second, false},
		{5 * time.Second, 15 * time.Second, true},
		{30 * time.Second, 30 * time.Second, false}, // nothing ran here
		{time.Second, 31 * time.Second, false},
		{5 * time.Second, 36 * time.Second, true},
	} {
		at = at.Add(x.after)
		if got := w.over(at, x.quiet, l); got != x.want {
			t.Errorf("%d: quiet for %s: over %v", i, x.quiet, got)
		}
	}
}

func TestRevokedLoginEnds(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.Recheck = 20 * time.Millisecond })
	b.add("db-1", b.startSSHD())
	c := b.mustDial(b.to("db-1"))
	s, out := b.running(c)
	b.users.change(func() { b.users.gone["demo"] = true })
	if err := s.Wait(); err == nil || !strings.Contains(out.String(), "Your login is no longer valid.") {
		t.Errorf("got %v, the user read %q", err, out.String())
	}
	_ = c.Wait()
}

func TestStartupLimit(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.MaxStartups = 4; c.Limits.LoginGrace = 30 * time.Second })
	var open []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", b.addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
			t.Fatalf("a connection within the limit: %v", err)
		}
	}
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("one address took more than half of the startups")
	}
	_ = c.Close()
	for _, c := range open {
		_ = c.Close()
	}
	eventually(t, "closed connections free their place", func() bool {
		c, err := b.dial("demo")
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

func TestStartupSource(t *testing.T) {
	of := func(host string) string { return startupSource(&net.TCPAddr{IP: net.ParseIP(host), Port: 40000}) }
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.1", true}, {"192.0.2.1", "192.0.2.2", false}, {"::ffff:192.0.2.1", "192.0.2.1", true},
		{"2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true}, {"2001:db8:1:2::1", "2001:db8:1:3::1", false},
	} {
		if got := of(c.a) == of(c.b); got != c.same {
			t.Errorf("%s and %s share an allowance: %v, want %v", c.a, c.b, got, c.same)
		}
	}
}

func TestPerUserAndChannelLimits(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.MaxPerUser, c.Limits.MaxChannels = 2, 3 })
	first := b.mustDial("demo")
	b.mustDial("demo")
	c, err := b.dial("demo")
	if err == nil {
		if err = c.Wait(); err == nil {
			t.Error("a third login was taken")
		}
	}
	for i := range 4 {
		_, _, err := first.OpenChannel("session", nil)
		if (err == nil) != (i < 3) {
			t.Errorf("channel %d: %v", i, err)
		}
	}
}

func TestLoginGrace(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Limits.LoginGrace = 50 * time.Millisecond })
	c, err := net.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := io.ReadAll(c); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %v", err)
	}
}

func TestManySessionsAtOnce(t *testing.T) {
	// 400 handshakes at once take as long as they take; nobody is dead meanwhile.
	b := newBench(t, func(c *Config) {
		c.Limits.LoginGrace, c.Limits.Dial, c.Limits.Dead = 5*time.Minute, 5*time.Minute, 5*time.Minute
	})
	addr := goTarget(t, &ssh.ServerConfig{NoClientAuth: true})
	b.vault.put("sec_1", "x")
	b.add("many", &sshd{addr: addr}, func(r *right) { r.account.Auth, r.account.SecretID = "password", "sec_1" })
	const n = 200
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed := 0
	open := make(chan struct{})
	var ready sync.WaitGroup
	ready.Add(n)
	for range n {
		wg.Go(func() {
			c, err := b.dial(b.to("many"), ssh.Password("correct horse"))
			ready.Done()
			if err == nil {
				defer func() { _ = c.Close() }()
				<-open // all logins are there at the same time
				var out string
				if out, err = b.exec(c, "x"); err == nil && out != "ran x\n" {
					err = errors.New(out)
				}
			}
			if err != nil {
				mu.Lock()
				failed++
				mu.Unlock()
				t.Log(err)
			}
		})
	}
	ready.Wait()
	close(open)
	wg.Wait()
	if failed > 0 || len(b.conns.list()) != n {
		t.Errorf("%d of %d failed, %d connections", failed, n, len(b.conns.list()))
	}
}

func TestNewRefusesIncompleteConfig(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Config.Users is missing") {
		t.Errorf("got %v", err)
	}
}

// A client that goes on sending requests to a channel the bastion has closed
// must not hold its login, nor the bastion's stop.
func TestRequestsAfterRefusedStart(t *testing.T) {
	b := newBench(t)
	c := b.mustDial("demo")
	ch, reqs, err := c.OpenChannel("session", nil)
	if err != nil {
		t.Fatal(err)
	}
	go ssh.DiscardRequests(reqs)
	// All on its way before the bastion's close can arrive.
	_, err = ch.SendRequest("exec", false, []byte{1}) // malformed
	for range 200 {
		if err == nil {
			_, err = ch.SendRequest("env", false, nil)
		}
	}
	_ = c.Close()
	stopped := make(chan struct{})
	go func() { b.stop(); close(stopped) }()
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Fatal("the bastion does not stop")
	}
}
