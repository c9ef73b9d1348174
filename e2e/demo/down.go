package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"caponier/e2e/harness"
)

// state is what down has to remove; it is written before things are made.
type state struct {
	// Scratch holds what accounts of the private hosts need to read.
	Scratch   string            `json:"scratch"`
	Processes map[string]string `json:"processes"` // PID → start time
	// Docker is the directory of the demo's Docker daemon; its images stay there.
	Docker string `json:"docker"`
}

func (d *demo) stateFile() string { return filepath.Join(d.dir, "state.json") }

// note remembers a process; PIDs are reused, so its start time goes along.
func (d *demo) note(p *harness.Proc) error {
	pid := fmt.Sprint(p.PID())
	d.state.Processes[pid] = startTime(pid)
	return d.saveState()
}

func (d *demo) saveState() error {
	b, err := json.Marshal(d.state)
	if err != nil {
		return err
	}
	return os.WriteFile(d.stateFile(), b, 0o600)
}

// startTime is when a process was started; empty when it is gone.
func startTime(pid string) string {
	n, err := strconv.Atoi(pid)
	if err != nil {
		return ""
	}
	_, started := harness.Started(n)
	return started
}

// byHand adds what somebody started with the demo's files himself: a program
// that he had killed.
func (d *demo) byHand(s *state) {
	for _, p := range harness.Processes() {
		name := filepath.Base(p.Args[0])
		ours := slices.ContainsFunc(p.Args, func(a string) bool { return strings.HasPrefix(a, d.dir+"/") })
		if strings.HasPrefix(name, "caponier") && ours || name == "dockerd" && s.Docker != "" && slices.Contains(p.Args, filepath.Join(s.Docker, "data")) {
			s.Processes[strconv.Itoa(p.PID)] = p.Started
		}
	}
}

// ownerFile names the checkout whose demo is up: the namespaces are the same
// for every checkout on a machine, so two demos would tear each other down.
const ownerFile = "/run/caponier-demo"

// claim refuses while the demo of another checkout runs.
func (d *demo) claim() error {
	b, err := os.ReadFile(ownerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	other := &demo{dir: filepath.Join(strings.TrimSpace(string(b)), "var", "demo")}
	if other.dir == d.dir {
		return nil
	}
	var s state
	if b, err = os.ReadFile(other.stateFile()); err != nil || json.Unmarshal(b, &s) != nil || !s.running() {
		return nil // it is gone, what it left may go too
	}
	root := filepath.Dir(filepath.Dir(other.dir))
	return fmt.Errorf("the demo of %s runs; one at a time: stop it with make -C %s stop", root, root)
}

// down removes whatever an earlier up made; nothing there is fine.
func (d *demo) down() error {
	var s state
	b, err := os.ReadFile(d.stateFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(b, &s); err != nil {
			return fmt.Errorf("read %s: %w", d.stateFile(), err)
		}
	}
	if s.Processes == nil {
		s.Processes = map[string]string{}
	}
	d.byHand(&s)
	if len(s.Processes) > 0 {
		d.say("stopping %d processes", len(s.Processes))
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		alive := 0
		for pid, started := range s.Processes {
			var n int
			if _, err := fmt.Sscan(pid, &n); err == nil && started != "" && startTime(pid) == started {
				alive++
				syscall.Kill(n, sig)
			}
		}
		if alive == 0 {
			break
		}
		deadline := time.Now().Add(15 * time.Second)
		for time.Now().Before(deadline) && s.running() {
			time.Sleep(50 * time.Millisecond)
		}
	}
	harness.Forget(prefix, link, plantLink)
	if s.Docker != "" {
		if err := errors.Join(harness.ForgetDocker(s.Docker), os.RemoveAll(runDir)); err != nil {
			return err
		}
	}
	// Fails where the table is not there.
	harness.HostNFT("table ip " + table + "\ndelete table ip " + table + "\n")
	if s.Scratch != "" {
		if err := os.RemoveAll(s.Scratch); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(d.dir); err != nil {
		return err
	}
	if err := os.Remove(ownerFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// var/ was made by us as well, unless something else lives there.
	os.Remove(filepath.Dir(d.dir))
	return nil
}

func (s *state) running() bool {
	for pid, started := range s.Processes {
		if started != "" && startTime(pid) == started {
			return true
		}
	}
	return false
}
