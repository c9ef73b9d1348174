package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"caponier/shared/config"
	"caponier/shared/tunnel"
	"caponier/shared/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state directory: %v, %v", info.Mode(), err)
	}
	if _, err := openStore(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second opener: %v", err)
	}
	if id, err := s.load(); id != nil || err != nil {
		t.Errorf("empty: %v, %v", id, err)
	}
	id, err := newIdentity(wire.Extender)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.save(id); err != nil {
		t.Fatal(err)
	}
	got, err := s.load()
	if err != nil || !got.key.Equal(id.key) {
		t.Errorf("loaded %v, %v", got, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode().Perm() != 0o600 || strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	for name, text := range map[string]string{"cut": `{"kind":"ext`, "no key": `{"kind":"extender"}`, "other key": `{"key":"MAAA"}`} {
		if err := os.WriteFile(filepath.Join(dir, stateFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.load(); err == nil || !strings.Contains(err.Error(), "enrol again") {
			t.Errorf("%s: %v", name, err)
		}
	}
	open := t.TempDir()
	if err := os.Chmod(open, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(open); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a directory open to others: %v", err)
	}
}

// Another directory on the same machine is another place; the same one is not.
func TestPlace(t *testing.T) {
	dirs := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	var places []string
	for _, d := range append(dirs, dirs[0]) {
		s, err := openStore(d)
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.place()
		s.close()
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, p)
	}
	if places[0] == places[1] || places[0] != places[2] {
		t.Errorf("places = %q", places)
	}
}

func TestBackoff(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		cap  time.Duration
	}{
		{"nobody listens", fmt.Errorf("dial: %w", syscall.ECONNREFUSED), quickCap},
		{"load balancer says 502", &tunnel.RefusedError{Status: 502}, quickCap},
		{"time-out", context.DeadlineExceeded, slowCap},
		{"tunnel lost", net.ErrClosed, slowCap},
		{"a refusal that may be forged", &tunnel.RefusedError{Status: 403, Wire: wire.Errorf(wire.CodeUnauthorized, "no")}, refusedCap},
	} {
		var longest time.Duration
		for range 300 {
			b := backoff{}
			for i := range 20 {
				d := b.next(c.err)
				if bound := firstWait<<min(i, 12) + 10*time.Millisecond; d <= 0 || d > bound || d > c.cap+10*time.Millisecond {
					t.Fatalf("%s: wait %d is %s", c.name, i, d)
				}
				longest = max(longest, d)
			}
		}
		if longest < c.cap/2 {
			t.Errorf("%s: waits at most %s, the cap is %s", c.name, longest, c.cap)
		}
	}
	for range 300 {
		b := backoff{}
		if d := b.next(&tunnel.RefusedError{Status: 503, RetryAfter: 10 * time.Second}); d < 5*time.Second || d > 15*time.Second {
			t.Fatalf("Retry-After 10 s waits %s", d)
		}
	}
}

// A change that matters is told at once, but not more often than twice a second.
func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changed := make(News, 1)
		e := &Edge{c: Config{Changed: changed}}
		for _, c := range []struct {
			name       string
			due, after time.Duration // of the change; 0: none
			want       time.Duration
		}{
			{"when it is due", 15 * time.Second, 0, 15 * time.Second},
			{"when something changed", 15 * time.Second, 3 * time.Second, 3 * time.Second},
			{"not twice at once", 15 * time.Second, time.Millisecond, 500 * time.Millisecond},
			{"due before", 200 * time.Millisecond, 0, 200 * time.Millisecond},
		} {
			if c.after > 0 {
				time.AfterFunc(c.after, func() { changed.Tell(); changed.Tell() }) // one is enough, and no more wait
			}
			began := time.Now()
			if !e.pause(t.Context(), c.due) || time.Since(began) != c.want {
				t.Errorf("%s: after %v, want %v", c.name, time.Since(began), c.want)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if e.pause(ctx, time.Hour) {
			t.Error("due after the end")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"kind": {URL: "https://core.test", State: t.TempDir(), Kind: "toaster"},
		"url":  {URL: "core.test", State: t.TempDir(), Kind: wire.Extender},
		"ftp":  {URL: "ftp://core.test", State: t.TempDir(), Kind: wire.Extender},
	} {
		if e, err := New(c); err == nil {
			e.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTokenNeeded(t *testing.T) {
	for token, want := range map[config.Secret]error{"": ErrNoToken, "cap1.nonsense": wire.ErrToken} {
		e, err := New(Config{URL: "https://127.0.0.1:1", State: filepath.Join(t.TempDir(), "s"), Kind: wire.Extender, Token: token})
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Run(t.Context()); !errors.Is(err, want) {
			t.Errorf("token %q: %v, want %v", token.Reveal(), err, want)
		}
		e.Close()
	}
}

func TestWithPath(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"https://core.test", "https://core.test/edge/v1/enrol"},
		{"https://core.test:8443/", "https://core.test:8443/edge/v1/enrol"},
		{"https://core.test/pam/?x=1#y", "https://core.test/pam/edge/v1/enrol"},
		{"wss://core.test", ""}, {"core.test", ""}, {"", ""}, {"https://", ""}, {"http://[::1", ""},
	} {
		got, err := withPath(c.in, wire.PathEnrol)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("withPath(%q) = %q, %v", c.in, got, err)
		}
	}
}
