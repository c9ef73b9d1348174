package harness

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is one of this machine's processes.
type Process struct {
	PID, Parent int
	Args        []string // at least one
	Started     string   // with PID it names the process: PIDs are reused
}

// Processes lists the processes of this machine that have arguments: all but
// the kernel's and those that are being reaped.
func Processes() (list []Process) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(text) == 0 {
			continue // it has ended meanwhile
		}
		parent, started := Started(pid)
		list = append(list, Process{pid, parent, strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00"), started})
	}
	return list
}

// Lives reports whether the process still runs.
func (p Process) Lives() bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID), "cmdline"))
	_, started := Started(p.PID)
	return err == nil && len(text) > 0 && started == p.Started
}

// Started is the parent of a process and when it was started, in ticks since the
// machine was; empty when it is gone: fields 4 and 22 of /proc/PID/stat (proc(5)).
func Started(pid int) (parent int, started string) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, ""
	}
	// The second field is in parentheses and may hold spaces.
	text := string(b)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0, ""
	}
	parent, _ = strconv.Atoi(fields[1])
	return parent, fields[19]
}
