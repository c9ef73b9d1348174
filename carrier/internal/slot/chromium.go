package slot

import (
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

// parked is what a Chromium without a session may do. It heeds a change of its
// policies only after some seconds, and a user's first click must not find files
// forbidden that his target permits: what may pass is the carrier's to say at its
// door, and a parked browser shows the carrier's own page alone.
var parked = Settings{Uploads: true, Downloads: true}

// makePolicies locks a Chromium down before it starts.
func (s *Slot) makePolicies() error {
	dir := filepath.Join(s.dir, policiesDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // whatever the umask
		return err
	}
	return s.restrict(parked)
}

// restrict tells Chromium its policies; it looks at the directory.
func (s *Slot) restrict(v Settings) error {
	ca, err := os.ReadFile(filepath.Join(s.dir, "ca.pem"))
	if err != nil {
		return err
	}
	b, err := policies(ca, v, s.c.Bars)
	if err != nil {
		return err
	}
	if err := s.write(policiesFile, b); err != nil {
		return err
	}
	return s.locate(v.TimeZone)
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
