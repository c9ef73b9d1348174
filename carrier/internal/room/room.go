// Package room judges whether this machine has room for another browser: by
// the memory that is available, by the limit of the control group everything
// here runs in, and by how long processes have waited for memory of late
// (pressure stall information). It only reads /proc and /sys.
package room

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
)

// Limits say when there is no room.
type Limits struct {
	// Free is how many bytes must stay available when another browser runs.
	Free int64
	// Session is how many bytes a browser needs.
	Session int64
	// Pressure is the share of the last ten seconds, in percent, that some
	// process waited for memory, above which nothing is started; 0: not judged.
	Pressure float64
}

// State is what is known of memory now.
type State struct {
	Available int64 // bytes
	// Pressure is "some avg10" of /proc/pressure/memory in percent; 0 where
	// the kernel does not tell.
	Pressure float64
}

// Read reads the state; root is the file system from / on.
func Read(root fs.FS) (State, error) {
	b, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return State{}, fmt.Errorf("memory: %w", err)
	}
	kb, ok := field(b, "MemAvailable:")
	if !ok {
		return State{}, fmt.Errorf("memory: no MemAvailable in /proc/meminfo")
	}
	s := State{Available: kb << 10}
	if left, ok := group(root); ok && left < s.Available {
		s.Available = left
	}
	if b, err := fs.ReadFile(root, "proc/pressure/memory"); err == nil {
		s.Pressure = pressure(b)
	}
	return s, nil
}

// group is what the control group at the root of this machine or container
// leaves, version 2 or 1; ok is false without a limit.
func group(root fs.FS) (left int64, ok bool) {
	for _, v := range []struct{ limit, used, stat, cache string }{
		{"sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "inactive_file"},
		{"sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes", "sys/fs/cgroup/memory/memory.stat", "total_inactive_file"},
	} {
		limit, ok1 := number(root, v.limit)
		used, ok2 := number(root, v.used)
		if !ok1 || !ok2 || limit > math.MaxInt64/2 { // version 1 says "none" by a huge number
			continue
		}
		if b, err := fs.ReadFile(root, v.stat); err == nil { // what can be given back
			if n, ok := field(b, v.cache); ok {
				used -= n
			}
		}
		return max(0, limit-used), true
	}
	return 0, false
}

func number(root fs.FS, name string) (int64, bool) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	return n, err == nil // "max" is none
}

// field finds "name value" among lines.
func field(b []byte, name string) (int64, bool) {
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) >= 2 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil && n >= 0
		}
	}
	return 0, false
}

func pressure(b []byte) float64 {
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "some avg10=")
		if !ok {
			continue
		}
		text, _, _ := strings.Cut(rest, " ")
		if v, err := strconv.ParseFloat(text, 64); err == nil {
			return v
		}
	}
	return 0
}

// Fit is how many more browsers fit, and why no more do.
func (l Limits) Fit(s State) (n int, why string) {
	if l.Pressure > 0 && s.Pressure > l.Pressure {
		return 0, fmt.Sprintf("processes wait for memory (%.0f %% of the last 10 s, %.0f %% is the limit)", s.Pressure, l.Pressure)
	}
	spare := s.Available - l.Free
	if spare < l.Session {
		return 0, fmt.Sprintf("memory is short: %d MB are available, %d MB must stay free and a session needs %d MB",
			s.Available>>20, l.Free>>20, l.Session>>20)
	}
	return int(min(spare/max(l.Session, 1), math.MaxInt32)), ""
}
