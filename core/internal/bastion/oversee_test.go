package bastion

import (
	"bytes"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/conn"
)

// shown collects what a client is shown.
type shown struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shown) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shown) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.b.String(), text)
}

func (s *shown) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

// TestLockHoldsDataBack: what a program without a terminal is sent waits for
// the unlocking and then arrives whole; signals are not passed on either.
func TestLockHoldsDataBack(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	c := b.mustDial(b.to("db-1"))
	s, err := c.NewSession()
	must(t, err)
	defer s.Close()
	in, err := s.StdinPipe()
	must(t, err)
	out := &shown{}
	s.Stdout = out
	must(t, s.Start("cat"))
	write := func(text string) {
		t.Helper()
		if _, err := in.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write("one\n")
	eventually(t, "one", func() bool { return out.has("one") })
	live := b.conns.list()[0]
	live.oversee(conn.Oversight{Locked: true, Text: "Wait"})
	write("two\n")
	must(t, s.Signal(ssh.SIGTERM))
	// Requests are handled in turn: once this one is answered, the signal was seen.
	if _, err := s.SendRequest("after-the-signal@test", true, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lock is in the record", func() bool { return live.saw("locked Wait") })
	write("three\n")
	if out.has("two") || out.has("three") {
		t.Error("data passed a lock")
	}
	live.oversee(conn.Oversight{})
	eventually(t, "the rest", func() bool { return out.has("one\ntwo\nthree\n") })
	must(t, in.Close())
	if err := s.Wait(); err != nil {
		t.Errorf("ended with %v: the signal passed the lock?", err)
	}
}

// TestLockDropsKeys: what is typed at a terminal while it is locked is gone,
// and the user of a stock client reads why.
func TestLockDropsKeys(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	c := b.mustDial(b.to("db-1"))
	s, err := c.NewSession()
	must(t, err)
	defer s.Close()
	in, err := s.StdinPipe()
	must(t, err)
	out := &shown{}
	s.Stdout, s.Stderr = out, out
	must(t, s.RequestPty("xterm", 24, 80, ssh.TerminalModes{}), s.Shell())
	write := func(text string) {
		t.Helper()
		if _, err := in.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write("(while sleep 0.05; do echo tick; done) & echo go-$((1+1))\n")
	eventually(t, "go", func() bool { return out.has("go-2") })
	live := b.conns.list()[0]
	live.oversee(conn.Oversight{Locked: true, Text: "Checking"})
	eventually(t, "the message", func() bool { return out.has("This session is locked: Checking. What you type is ignored") })
	write("touch " + b.dir + "/typed-ahead\n")
	live.oversee(conn.Oversight{Locked: true, Text: "Checking", Watchers: []string{"auditor"}})
	eventually(t, "the watcher", func() bool { return out.has("being watched by auditor") })
	// Output goes on meanwhile; what was typed has long arrived then.
	before := out.count("tick")
	eventually(t, "output while locked", func() bool { return out.count("tick") > before+10 })
	live.oversee(conn.Oversight{})
	eventually(t, "the unlocking", func() bool { return out.has("The session is unlocked") })
	write("ls " + b.dir + "; echo end-$((2+2))\n")
	eventually(t, "end", func() bool { return out.has("end-4") })
	if out.has("typed-ahead\r\n") {
		t.Error("what was typed while locked ran")
	}
}
