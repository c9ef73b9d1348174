package main

import (
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestGeometry(t *testing.T) {
	for in, want := range map[string]string{"": "1280x800", "320x240": "320x240", "7680x4320": "7680x4320"} {
		if got, err := geometry(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"x", "1280", "1280x", "319x240", "7681x100", "1280x800x24", "-1x800", "1280x800; reboot"} {
		if got, err := geometry(in); err == nil {
			t.Errorf("%q was taken as %q", in, got)
		}
	}
}

// What the browser says reaches the carrier's socket unread, the answer comes
// back, and the end of one direction does not end the other.
func TestRelayKeepsHalfClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "egress.sock")
	carrier, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer carrier.Close()
	browser, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer browser.Close()
	go relay(browser, path)
	got := make(chan string, 1)
	go func() {
		c, err := carrier.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c) // until the browser has said all
		io.WriteString(c, "answer")
		got <- string(b)
	}()
	c, err := net.Dial("tcp", browser.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(c, "question")
	c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "answer" {
		t.Errorf("answer %q, %v", b, err)
	}
	if q := <-got; q != "question" {
		t.Errorf("the carrier saw %q", q)
	}
}

// A browser that crashes or is killed was not closed by its user.
func TestLeft(t *testing.T) {
	for script, closed := range map[string]bool{"exit 0": true, "exit 1": true, "kill -SEGV $$": false, "kill -KILL $$": false} {
		cmd := exec.Command("sh", "-c", script)
		_ = cmd.Run() // how it ended is what is asked
		if err := left(cmd.ProcessState.Sys().(syscall.WaitStatus)); (err == nil) != closed {
			t.Errorf("%s: %v", script, err)
		}
	}
}

// What ended by somebody's will, or for want of memory, is not begun again.
func TestCrashed(t *testing.T) {
	for script, want := range map[string]bool{"exit 0": false, "exit 1": false, "kill -SEGV $$": true, "kill -ABRT $$": true, "kill -TRAP $$": true, "kill -KILL $$": false, "kill -TERM $$": false} {
		cmd := exec.Command("sh", "-c", script)
		_ = cmd.Run() // how it ended is what is asked
		if got := crashed(cmd.ProcessState.Sys().(syscall.WaitStatus)); got != want {
			t.Errorf("%s: crashed %t, want %t", script, got, want)
		}
	}
}
