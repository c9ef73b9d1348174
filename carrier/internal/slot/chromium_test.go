package slot

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"caponier/shared/wire"
)

// chromium is a slot that no container runs in, and whom its browser believes.
func chromium(t *testing.T, bars bool) (*Slot, []byte) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	root, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "capsl") // sockets have short paths
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s, err := open(Config{Dir: dir, Root: root, Browser: wire.Chromium, Needs: Needs{Bars: bars}, Log: slog.New(slog.DiscardHandler)}, "abcdefghijklmnop", true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s, root
}

// Chromium waits five seconds when the time of its policies changes, and does
// not notice what changes without it before it watches them: who reads new ones
// at once finds the time of the former, who does not a new one.
func TestRetell(t *testing.T) {
	s, _ := chromium(t, false)
	name := filepath.Join(s.dir, policiesFile)
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(name, old, old); err != nil {
		t.Fatal(err)
	}
	stat := func() os.FileInfo {
		fi, err := os.Stat(name)
		if err != nil {
			t.Error(err)
			runtime.Goexit()
		}
		return fi
	}
	before := stat()
	var wg sync.WaitGroup
	reader := func() { // reads what comes next
		before := stat()
		wg.Go(func() {
			for os.SameFile(before, stat()) && t.Context().Err() == nil {
				runtime.Gosched()
			}
			if _, err := os.ReadFile(name); err != nil {
				t.Error(err)
			}
		})
	}
	reader()
	if err := s.retell(Settings{Uploads: true}, time.Minute); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if fi := stat(); !fi.ModTime().Equal(old) || os.SameFile(before, fi) {
		t.Errorf("read at once, it says it is of %v, want %v", fi.ModTime(), old)
	}
	if err := s.retell(Settings{}, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if fi := stat(); fi.ModTime().Equal(old) {
		t.Error("read by nobody, it has the old time")
	}

	// A browser heeds what it is told when it reads it.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Heeds(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("heeds though nobody reads: %v", err)
	}
	over := make(chan struct{})
	last := stat()
	wg.Go(func() { // reads whatever comes: of one that it reads too late there is another
		for {
			if now := stat(); !os.SameFile(last, now) {
				last = now
				if _, err := os.ReadFile(name); err != nil {
					t.Error(err)
				}
			}
			select {
			case <-over:
				return
			default:
				runtime.Gosched()
			}
		}
	})
	if err := s.Heeds(t.Context()); err != nil {
		t.Error(err)
	}
	close(over)
	wg.Wait()
}

// What a Chromium is told follows its session, from the moment it starts, and
// nothing of a session is permitted before there is one.
func TestPolicies(t *testing.T) {
	for _, bars := range []bool{false, true} {
		s, root := chromium(t, bars)
		read := func() map[string]any {
			b, err := os.ReadFile(filepath.Join(s.dir, "policies", "caponier.json"))
			if err != nil {
				t.Fatal(err)
			}
			var p map[string]any
			if err := json.Unmarshal(b, &p); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(filepath.Join(s.dir, "policies"))
			if err != nil || len(entries) != 1 { // it reads whatever there is
				t.Errorf("policies: %v, %v", entries, err)
			}
			return p
		}
		p := read()
		if ca := p["CACertificates"].([]any); len(ca) != 1 || ca[0] != base64.StdEncoding.EncodeToString(root) {
			t.Errorf("it believes %v", ca)
		}
		if p["AllowFileSelectionDialogs"] != false || p["DownloadRestrictions"] != 3.0 || p["FullscreenAllowed"] != !bars {
			t.Errorf("parked, bars %t: %v", bars, p)
		}
		if block := p["URLBlocklist"].([]any); !slices.Contains(block, any("*")) || p["DeveloperToolsAvailability"] != 2.0 || p["IncognitoModeAvailability"] != 1.0 || p["PasswordLeakDetectionEnabled"] != false {
			t.Errorf("the lock-down: %v", p)
		}
		for _, v := range []Settings{{Uploads: true, TimeZone: "Europe/Berlin"}, {Downloads: true, TimeZone: "../../run/x"}, {DevTools: true}, {}} {
			if err := s.Set(v); err != nil {
				t.Fatal(err)
			}
			p := read()
			if p["AllowFileSelectionDialogs"] != (v.Uploads || v.Downloads) || (p["DownloadRestrictions"] == 0.0) != v.Downloads {
				t.Errorf("%+v: %v", v, p)
			}
			if (p["DeveloperToolsAvailability"] == 1.0) != v.DevTools || slices.ContainsFunc(p["URLAllowlist"].([]any), func(u any) bool { return strings.HasPrefix(u.(string), "devtools:") }) != v.DevTools {
				t.Errorf("%+v: developer tools in %v", v, p)
			}
		}
		if zone, err := os.Readlink(filepath.Join(s.dir, "localtime")); err != nil || zone != "/usr/share/zoneinfo/Europe/Berlin" {
			t.Errorf("time zone: %q, %v", zone, err)
		}
	}
	if _, err := policies(pem.EncodeToMemory(&pem.Block{Type: "X"})[:3], Settings{}, false); err == nil {
		t.Error("policies without anybody to believe")
	}
}
