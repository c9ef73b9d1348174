package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"caponier/carrier/internal/browser"
	"caponier/carrier/internal/room"
	"caponier/shared/config"
	"caponier/shared/dial"
	"caponier/shared/node"
	"caponier/shared/wire"
)

// Config is carrier.toml. Every key can be set in the environment too.
type Config struct {
	node.Config

	// Docker is the engine's socket on this machine, "unix:///run/docker.sock".
	// Default: DOCKER_HOST, or Docker's usual place.
	Docker string `toml:"docker"`
	// Image is Firefox's image. Default caponier-browser; empty: this carrier
	// has no Firefox.
	Image string `toml:"image"`
	// ChromiumImage is Chromium's image, caponier-chromium as `make images` names
	// it. Default empty: this carrier has no Chromium.
	ChromiumImage string `toml:"chromium_image"`
	// RunDir holds the sockets shared with containers, at most 70 bytes long;
	// nobody but the carrier may enter it. Default /run/caponier-carrier, or
	// what systemd gives in RUNTIME_DIRECTORY.
	RunDir string `toml:"run_dir"`
	// Warm is how many Firefoxes wait for their user, 0 to 100. Default 2. Each
	// costs some 200 MB of memory.
	Warm int `toml:"warm"`
	// ChromiumWarm is the same of Chromium, if there is an image of it. Default 1.
	ChromiumWarm int `toml:"chromium_warm"`
	// Max is how many sessions there may be, 1 to 1000. Default 50.
	Max int `toml:"max"`
	// Seccomp is a file with a seccomp profile for containers in place of
	// Docker's own. Default none; see docs/carrier.md before you set it.
	Seccomp string `toml:"seccomp"`
	// SpoolMB bounds what one session keeps while core is away, in MB, 1 to
	// 4096. Default 64. A recorded session that needs more ends.
	SpoolMB int `toml:"spool_mb"`

	// Scanners lists addresses and subnets of scanners (ICAP) that may be asked
	// although they are near: this machine's own, loopback, link-local. Others
	// need no entry. Default none.
	Scanners []string `toml:"scanners"`

	// ScanMB bounds the files of all sessions that wait in RunDir while they are
	// scanned, in MB, 1 to 1048576. Default 2048. Some of the file system is left
	// free in any case: 64 MB, of a small one a tenth.
	ScanMB int64 `toml:"scan_mb"`

	Limits    LimitsConfig    `toml:"limits"`
	Admission AdmissionConfig `toml:"admission"`
}

// LimitsConfig bounds one container.
type LimitsConfig struct {
	// MemoryMB is its memory, without swap, everything below included. At least
	// 400, default 1200.
	MemoryMB int64 `toml:"memory_mb"`
	// ShmMB is the size of /dev/shm. Default 256.
	ShmMB int64 `toml:"shm_mb"`
	// TmpMB is the size of /tmp: profile and caches. Default 512.
	TmpMB int64 `toml:"tmp_mb"`
	// FilesMB is the size of the folder of uploads and downloads; it counts as
	// memory. Default 512.
	FilesMB int64 `toml:"files_mb"`
	// Pids is how many processes and threads there may be. Default 400.
	Pids int64 `toml:"pids"`
	// Alone is how long it goes on when its carrier ends and does not come back,
	// 10s to 24h. Default 15m.
	Alone config.Duration `toml:"alone"`
	// CPUs is how many processors' worth it may use. Default 2.
	CPUs float64 `toml:"cpus"`
}

// AdmissionConfig says when there is no room.
type AdmissionConfig struct {
	// FreeMB is the memory that must stay available on this machine. Default 1024.
	FreeMB int64 `toml:"free_mb"`
	// SessionMB is what a new session is expected to need. Default 250.
	SessionMB int64 `toml:"session_mb"`
	// Pressure is the share of the last 10 s, in percent, that processes may
	// have waited for memory; above it nothing is started. Default 30; 0: not
	// judged.
	Pressure float64 `toml:"pressure"`
}

// maxRunDir keeps paths of sockets below the kernel's limit (unix(7)).
const maxRunDir = 70

func defaults(c *Config) {
	c.ChromiumWarm = 1
	c.Image, c.RunDir, c.Warm, c.Max, c.SpoolMB, c.ScanMB = "caponier-browser", "/run/caponier-carrier", 2, 50, 64, 2048
	if dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":"); dir != "" {
		c.RunDir = dir
	}
	c.Limits = LimitsConfig{MemoryMB: 1200, ShmMB: 256, TmpMB: 512, FilesMB: 512, Pids: 400, CPUs: 2, Alone: config.Duration(15 * time.Minute)}
	c.Admission = AdmissionConfig{FreeMB: 1024, SessionMB: 250, Pressure: 30}
}

// Validate implements config.Validator.
func (c *Config) Validate() []config.Problem {
	ps := c.Config.Validate()
	add := func(key, text, hint string) { ps = append(ps, config.Problem{Key: key, Text: text, Hint: hint}) }
	if c.Docker != "" && !strings.HasPrefix(c.Docker, "unix://") {
		add("docker", "must be a socket of this machine, like unix:///run/docker.sock", "containers share this machine's files with the carrier")
	}
	if c.Image == "" && c.ChromiumImage == "" {
		add("image", "is missing", "the usual one is caponier-browser; of Chromium chromium_image is caponier-chromium")
	}
	if !filepath.IsAbs(c.RunDir) || len(c.RunDir) > maxRunDir {
		add("run_dir", fmt.Sprintf("must be an absolute path of at most %d bytes", maxRunDir), "sockets have short names")
	}
	for _, r := range []struct {
		key      string
		v        int64
		min, max int64
	}{
		{"warm", int64(c.Warm), 0, 100}, {"chromium_warm", int64(c.ChromiumWarm), 0, 100}, {"max", int64(c.Max), 1, 1000}, {"spool_mb", int64(c.SpoolMB), 1, 4096}, {"scan_mb", c.ScanMB, 1, 1 << 20},
		{"limits.memory_mb", c.Limits.MemoryMB, 400, 1 << 20}, {"limits.shm_mb", c.Limits.ShmMB, 16, 1 << 16},
		{"limits.tmp_mb", c.Limits.TmpMB, 64, 1 << 16}, {"limits.files_mb", c.Limits.FilesMB, 1, 1 << 20}, {"limits.pids", c.Limits.Pids, 100, 10_000},
		{"admission.free_mb", c.Admission.FreeMB, 0, 1 << 30}, {"admission.session_mb", c.Admission.SessionMB, 1, 1 << 20},
	} {
		if r.v < r.min || r.v > r.max {
			add(r.key, fmt.Sprintf("must be %d to %d", r.min, r.max), "")
		}
	}
	if v := c.Limits.Alone.Std(); v < 10*time.Second || v > 24*time.Hour {
		add("limits.alone", "must be 10s to 24h", "")
	}
	if v := c.Limits.CPUs; !(v >= 0.1 && v <= 256) {
		add("limits.cpus", "must be 0.1 to 256", "")
	}
	if v := c.Admission.Pressure; !(v >= 0 && v <= 100) {
		add("admission.pressure", "must be 0 to 100", "")
	}
	if _, err := dial.ParsePrefixes("scanners", c.Scanners); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			key, text, _ := strings.Cut(line, ": ")
			add(key, text, "")
		}
	}
	if _, err := c.profile(); err != nil {
		add("seccomp", err.Error(), "")
	}
	return ps
}

// profile reads the seccomp profile; empty: Docker's own.
func (c *Config) profile() (string, error) {
	if c.Seccomp == "" {
		return "", nil
	}
	b, err := os.ReadFile(c.Seccomp)
	return string(b), err
}

// browsers are the images there are and how many of each wait, by browser.
func (c *Config) browsers() (images map[string]string, warm map[string]int) {
	images, warm = map[string]string{}, map[string]int{}
	if c.Image != "" {
		images[wire.Firefox], warm[wire.Firefox] = c.Image, c.Warm
	}
	if c.ChromiumImage != "" {
		images[wire.Chromium], warm[wire.Chromium] = c.ChromiumImage, c.ChromiumWarm
	}
	return images, warm
}

func (c *Config) limits() browser.Limits {
	l := c.Limits
	return browser.Limits{Memory: l.MemoryMB << 20, Shm: l.ShmMB << 20, Tmp: l.TmpMB << 20, Files: l.FilesMB << 20, Pids: l.Pids, CPUs: l.CPUs, Alone: l.Alone.Std()}
}

func (c *Config) room() room.Limits {
	return room.Limits{Free: c.Admission.FreeMB << 20, Session: c.Admission.SessionMB << 20, Pressure: c.Admission.Pressure}
}
