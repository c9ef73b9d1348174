package slot

import (
	"context"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"caponier/shared/wire"
)

// chromiumPolicies is what every Chromium is told: the way out, and everything
// that is switched off. The names are those of its enterprise policies.
//
//go:embed chromium.json
var chromiumPolicies []byte

// The directory of policies and the one file in it, which process 1 of the
// image waits for.
const (
	policiesDir  = "policies"
	policiesFile = policiesDir + "/caponier.json"
)

// makePolicies locks a Chromium down before it starts: nothing of a session is
// permitted before there is one.
func (s *Slot) makePolicies() error {
	dir := filepath.Join(s.dir, policiesDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return err
	}
	b, err := s.policies(Settings{DevTools: s.c.Tools}) // else it never has any
	if err != nil {
		return err
	}
	return s.write(policiesFile, b)
}

// heedTime is how long Chromium may take to read new policies before it is told
// of them in the slow way. One that is up needs a millisecond.
const heedTime = 500 * time.Millisecond

// retell tells a Chromium other policies and waits until it has read them, at
// most for limit. One that is still starting finds them by their time.
func (s *Slot) retell(v Settings, limit time.Duration) error {
	read, err := s.offer(v, limit)
	if err != nil || read {
		return err
	}
	b, err := s.policies(v)
	if err != nil {
		return err
	}
	return s.write(policiesFile, b)
}

// Heeds waits until a browser that is parked heeds what it is told: Chromium
// watches its policies some seconds after it has shown its first page.
func (s *Slot) Heeds(ctx context.Context) error {
	for read := s.c.Browser != wire.Chromium; !read; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if read, err = s.offer(Settings{}, heedTime); err != nil {
			return fmt.Errorf("slot: %w", err)
		}
	}
	return nil
}

// offer replaces a Chromium's policies and reports whether it has read them
// within limit. It takes a file whose time is another for half written, and lets
// it rest for five seconds; ours is replaced as a whole, and with the time of
// the one before it is read at once, or not at all.
func (s *Slot) offer(v Settings, limit time.Duration) (read bool, err error) {
	if err := s.locate(v.TimeZone); err != nil {
		return false, err
	}
	b, err := s.policies(v)
	if err != nil {
		return false, err
	}
	before, err := os.Stat(filepath.Join(s.dir, policiesFile))
	if err != nil {
		return false, err
	}
	tmp, err := s.prepare(policiesFile, b)
	if err != nil {
		return false, err
	}
	if err := os.Chtimes(tmp, before.ModTime(), before.ModTime()); err != nil {
		return false, err
	}
	w, err := watch(tmp)
	if err != nil {
		return false, err
	}
	defer w.Close()
	if err := os.Rename(tmp, filepath.Join(s.dir, policiesFile)); err != nil {
		return false, err
	}
	if err := waitRead(w, limit); !errors.Is(err, os.ErrDeadlineExceeded) {
		return err == nil, err
	}
	return false, nil
}

// policies are those of this slot's browser.
func (s *Slot) policies(v Settings) ([]byte, error) {
	ca, err := os.ReadFile(filepath.Join(s.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	return policies(ca, v, s.c.Bars)
}

// policies are those of Chromium for a session.
func policies(ca []byte, v Settings, bars bool) ([]byte, error) {
	block, _ := pem.Decode(ca)
	if block == nil {
		return nil, errors.New("ca.pem holds no certificate")
	}
	p := map[string]any{}
	if err := json.Unmarshal(chromiumPolicies, &p); err != nil {
		return nil, fmt.Errorf("chromium.json: %w", err)
	}
	downloads := 3 // none
	if v.Downloads {
		downloads = 0
	}
	if v.DevTools {
		allowed, _ := p["URLAllowlist"].([]any)
		// What runs in their console counts as a javascript: address.
		p["URLAllowlist"] = append(allowed, "devtools://*", "javascript://*")
		p["DeveloperToolsAvailability"] = 1
		p["DeveloperToolsAvailabilityAllowlist"] = []string{"http://*", "https://*"}
	}
	maps.Copy(p, map[string]any{
		"CACertificates": []string{base64.StdEncoding.EncodeToString(block.Bytes)},
		// One dialog serves both ways: it is there when one of them is.
		"AllowFileSelectionDialogs": v.Uploads || v.Downloads,
		"DownloadRestrictions":      downloads,
		// A window that may not be all of the screen shows its bars.
		"FullscreenAllowed": !bars,
	})
	return json.Marshal(p)
}

// zones is where a container has the files of time zones.
const zones = "/usr/share/zoneinfo/"

// locate sets the time zone: the image's /etc/localtime leads here, and
// Chromium watches that.
func (s *Slot) locate(zone string) error {
	if zone == "" || strings.Contains(zone, "..") || strings.Trim(zone, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-/") != "" {
		return nil
	}
	tmp := filepath.Join(s.dir, ".localtime")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(zones+strings.TrimPrefix(zone, "/"), tmp); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.dir, "localtime"))
}
