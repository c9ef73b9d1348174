package slot

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"caponier/shared/wire"
)

// What a Chromium is told follows its session, from the moment it starts, and
// nothing of a session is permitted before there is one.
func TestPolicies(t *testing.T) {
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
	for _, bars := range []bool{false, true} {
		s, err := open(Config{Dir: dir, Root: root, Browser: wire.Chromium, Bars: bars, Log: slog.New(slog.DiscardHandler)}, "abcdefghijklmnop", true)
		if err != nil {
			t.Fatal(err)
		}
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
		if p["AllowFileSelectionDialogs"] != true || p["DownloadRestrictions"] != 0.0 || p["FullscreenAllowed"] != !bars {
			t.Errorf("parked, bars %t: %v", bars, p)
		}
		if block := p["URLBlocklist"].([]any); !slices.Contains(block, any("*")) || p["DeveloperToolsAvailability"] != 2.0 || p["IncognitoModeAvailability"] != 1.0 || p["PasswordLeakDetectionEnabled"] != false {
			t.Errorf("the lock-down: %v", p)
		}
		for _, v := range []Settings{{Uploads: true, TimeZone: "Europe/Berlin"}, {Downloads: true, TimeZone: "../../run/x"}, {}} {
			if err := s.Set(v); err != nil {
				t.Fatal(err)
			}
			p := read()
			if p["AllowFileSelectionDialogs"] != (v.Uploads || v.Downloads) || (p["DownloadRestrictions"] == 0.0) != v.Downloads {
				t.Errorf("%+v: %v", v, p)
			}
		}
		if zone, err := os.Readlink(filepath.Join(s.dir, "localtime")); err != nil || zone != "/usr/share/zoneinfo/Europe/Berlin" {
			t.Errorf("time zone: %q, %v", zone, err)
		}
		s.close()
	}
	if _, err := policies(pem.EncodeToMemory(&pem.Block{Type: "X"})[:3], Settings{}, false); err == nil {
		t.Error("policies without anybody to believe")
	}
}
