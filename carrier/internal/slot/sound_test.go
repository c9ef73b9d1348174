package slot

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// The socket is there exactly as long as there is sound, whoever made it.
func TestSetSound(t *testing.T) {
	s, _ := chromium(t, false)
	path := filepath.Join(s.dir, "sound.sock")
	there := func(want bool) {
		t.Helper()
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Fatalf("socket: %v, want it there: %t", err, want)
		}
	}
	set := func(on bool) {
		t.Helper()
		if err := s.setSound(on); err != nil {
			t.Fatal(err)
		}
	}
	there(false)
	if _, err := s.DialSound(t.Context()); !errors.Is(err, errSilent) {
		t.Errorf("a session without sound: %v", err)
	}
	if err := s.Sounds(t.Context()); !errors.Is(err, errSilent) {
		t.Errorf("waiting for sound that is not to be: %v", err)
	}

	set(true)
	there(true)
	set(true) // as it is
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Sounds(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("before the sound server is up: %v", err)
	}
	server, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := s.Sounds(t.Context()); err != nil {
		t.Errorf("with the sound server up: %v", err)
	}
	c, err := s.DialSound(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := server.Write([]byte("tone")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Errorf("what the server plays: %v", err)
	}

	set(false)
	there(false)
	if _, err := s.DialSound(t.Context()); !errors.Is(err, errSilent) {
		t.Errorf("switched off: %v", err)
	}
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket answers although sound is off")
	}
}

// What a carrier that was killed left is used again, or removed.
func TestSoundOfFormerCarrier(t *testing.T) {
	s, _ := chromium(t, false)
	path := filepath.Join(s.dir, "sound.sock")
	for _, on := range []bool{true, false} {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		ln.Close()
		if err := s.setSound(on); err != nil {
			t.Fatalf("sound %t over a dead socket: %v", on, err)
		}
		c, err := net.Dial("unix", path)
		if (err == nil) != on {
			t.Errorf("sound %t: the socket answers: %v", on, err)
		}
		if err == nil {
			c.Close()
		}
		if err := s.setSound(false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead socket is still there: %v", err)
	}
}

// A change that comes while the slot is given back does no harm: it opens
// nothing, and what was switched off is not there for the next process.
func TestSoundOfSlotGivenBack(t *testing.T) {
	s, _ := chromium(t, false)
	path := filepath.Join(s.dir, "sound.sock")
	if err := s.setSound(true); err != nil {
		t.Fatal(err)
	}
	s.Leave()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the next process's sound is gone: %v", err)
	}
	if _, err := s.DialSound(t.Context()); err == nil {
		t.Error("a slot that was given back is heard")
	}
	if err := s.setSound(true); !errors.Is(err, net.ErrClosed) {
		t.Errorf("switched on: %v", err)
	}
	if err := s.setSound(false); err != nil {
		t.Errorf("switched off: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// Process 1 of a container looks for the socket of its sound when its service
// of files is used: that happens once there is one, whichever came first.
func TestSoundKnocks(t *testing.T) {
	s, _ := chromium(t, false)
	dial := func() net.Conn {
		c, err := net.Dial("unix", filepath.Join(s.dir, "files.sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	used := func(c net.Conn) {
		t.Helper()
		if got, err := io.ReadAll(c); err != nil || len(got) != 1 {
			t.Errorf("the service of files was told %q, %v", got, err)
		}
	}
	dial().Close() // a process 1 that is gone
	first := dial()
	for range 2 {
		if err := s.setSound(true); err != nil {
			t.Fatal(err)
		}
	}
	used(first)
	if err := s.setSound(false); err != nil {
		t.Fatal(err)
	}
	if err := s.setSound(true); err != nil {
		t.Fatal(err)
	}
	used(dial())
}
