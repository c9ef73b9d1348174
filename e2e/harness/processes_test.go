package harness

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// What looks after the containers of a killed daemon ends with what it looks
// after; that of another daemon stays.
func TestEndContainers(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	// A shim's child is the first process of its container.
	start := func(run string) (shim, child Process) {
		t.Helper()
		c := &exec.Cmd{Path: shell, Args: []string{"containerd-shim-runc-v2", "-c", "sleep 1000 & wait", "-address", filepath.Join(run, "exec/containerd/containerd.sock")}}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.Wait() // killed
		}()
		t.Cleanup(func() {
			c.Process.Kill()
			<-done
		})
		err := Until(t.Context(), time.Minute, "the child is there", func() error {
			for _, p := range Processes() {
				switch {
				case p.PID == c.Process.Pid:
					shim = p
				case p.Parent == c.Process.Pid && p.Args[0] == "sleep":
					child = p
				}
			}
			if shim.PID == 0 || child.PID == 0 {
				return exec.ErrNotFound
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return shim, child
	}
	run := t.TempDir()
	shim, child := start(run)
	otherShim, otherChild := start(t.TempDir())
	if err := endContainers(run); err != nil {
		t.Fatal(err)
	}
	if shim.Lives() || child.Lives() {
		t.Errorf("shim %v and container %v live on", shim.Lives(), child.Lives())
	}
	if !otherShim.Lives() || !otherChild.Lives() {
		t.Error("another daemon's container was killed")
	}
	if err := endContainers(filepath.Dir(otherShim.Args[4][:len(otherShim.Args[4])-len("/containerd/containerd.sock")])); err != nil || otherChild.Lives() {
		t.Errorf("the other's: %v", err)
	}
}
