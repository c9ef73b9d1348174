package harness

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// EnvDockerRoot names the directory of the tests' own Docker daemon, which
// keeps the browser's image from run to run.
const EnvDockerRoot = "CAPONIER_TEST_DOCKER_ROOT"

// DockerRoot is where the tests' daemon keeps its images.
func DockerRoot() string { return cmp.Or(os.Getenv(EnvDockerRoot), "/var/tmp/caponier-test-docker") }

// Docker is a Docker daemon of one's own: no bridge, no firewall rules, and
// nothing in common with a daemon that runs on this machine.
type Docker struct {
	Host string // DOCKER_HOST

	root, run string
	keep      bool
	lock      *os.File
	proc      *Proc
}

// StartDocker runs a daemon whose images lie in root, or beside it when
// somebody uses that (the demo while tests run). Containers that an earlier one
// left are removed.
func StartDocker(ctx context.Context, root string, keep bool) (*Docker, error) {
	for _, tool := range []string{"dockerd", "docker", "nsenter"} {
		if _, err := lookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: run make setup", err)
		}
	}
	lock, err := lockDir(root)
	if errors.Is(err, unix.EWOULDBLOCK) {
		root += "-2"
		lock, err = lockDir(root)
	}
	if err != nil {
		return nil, fmt.Errorf("a directory for Docker's images (set %s for another): %w", EnvDockerRoot, err)
	}
	d := &Docker{root: root, run: dockerRun(root), keep: keep, lock: lock}
	d.Host = "unix://" + filepath.Join(d.run, "s")
	if err := errors.Join(os.MkdirAll(d.run, 0o711), d.Start(ctx)); err != nil {
		lock.Close()
		return nil, err
	}
	return d, d.RemoveAll(ctx)
}

// dockerRun is where a daemon keeps its sockets, which need a short path. It is
// the same every time, so that what a killed daemon left is found again.
func dockerRun(root string) string {
	sum := sha256.Sum256([]byte(root))
	return "/run/capdock-" + hex.EncodeToString(sum[:4])
}

// ForgetDocker removes what an ended daemon left outside its directory, and its
// containers: those of a killed one live on. A daemon that runs is left alone.
func ForgetDocker(root string) error {
	lock, err := lockDir(root)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := endContainers(dockerRun(root)); err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && (strings.HasPrefix(f[1], dockerRun(root)+"/") || strings.HasPrefix(f[1], root+"/")) {
			unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	return os.RemoveAll(dockerRun(root))
}

// endContainers kills the containers of a daemon that is gone, with the
// processes that look after them, and waits until they are.
func endContainers(run string) error {
	shims := map[int]bool{}
	for _, p := range Processes() {
		if strings.HasPrefix(filepath.Base(p.Args[0]), "containerd-shim") && slices.Contains(p.Args, filepath.Join(run, "exec/containerd/containerd.sock")) {
			shims[p.PID] = true
		}
	}
	var all []Process
	for _, p := range Processes() {
		if shims[p.PID] || shims[p.Parent] {
			all = append(all, p)
			unix.Kill(p.PID, unix.SIGKILL) // a container's first process takes the others along
		}
	}
	return Until(context.Background(), time.Minute, "left containers end", func() error {
		for _, p := range all {
			if p.Lives() {
				return fmt.Errorf("process %d lives", p.PID)
			}
		}
		return nil
	})
}

// lockDir makes a directory and locks it. The daemon holds the lock too, so
// that it lasts as long as the longer living of both.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return lock, nil
}

// Start runs the daemon, for the first time or again, until it answers; more
// are further options of dockerd.
func (d *Docker) Start(ctx context.Context, more ...string) error {
	// A killed one leaves it behind, and the next refuses to start.
	if err := os.Remove(filepath.Join(d.run, "pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	path, err := lookPath("dockerd")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), path, append([]string{"--data-root", filepath.Join(d.root, "data"), "--exec-root", filepath.Join(d.run, "exec"),
		"--pidfile", filepath.Join(d.run, "pid"), "--host", d.Host, "--bridge", "none", "--iptables=false"}, more...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.ExtraFiles = []*os.File{d.lock}
	if d.proc, err = Start("dockerd", d.root, cmd, d.keep); err != nil {
		return err
	}
	return Until(ctx, 2*time.Minute, "dockerd answers", func() error {
		select {
		case <-d.proc.Exited():
			return fmt.Errorf("%w: %s", ErrGone, tail(d.proc.Output(), 2000))
		default:
		}
		_, err := d.Docker(ctx, "version", "--format", "{{.Server.Version}}")
		return err
	})
}

// Proc is the daemon's process.
func (d *Docker) Proc() *Proc { return d.proc }

// Root is the directory of its images.
func (d *Docker) Root() string { return d.root }

// Stop ends the daemon and with it the containers.
func (d *Docker) Stop() error { return d.proc.Stop(90 * time.Second) }

// Docker runs a command of docker(1) and returns what it prints.
func (d *Docker) Docker(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	path, err := lookPath("docker")
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + d.root, "DOCKER_HOST=" + d.Host}
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, said.String())
	}
	return strings.TrimSpace(string(out)), err
}

// Containers lists the IDs of all containers, running or not.
func (d *Docker) Containers(ctx context.Context) ([]string, error) {
	out, err := d.Docker(ctx, "ps", "-aq", "--no-trunc")
	return strings.Fields(out), err
}

// RemoveAll removes every container; one that somebody else is removing takes
// its time.
func (d *Docker) RemoveAll(ctx context.Context) error {
	return Until(ctx, time.Minute, "every container is removed", func() error {
		ids, err := d.Containers(ctx)
		if err != nil || len(ids) == 0 {
			return err
		}
		_, err = d.Docker(ctx, append([]string{"rm", "-f"}, ids...)...)
		return err
	})
}

// Image builds browsers' images (firefox, chromium; none named: as
// CAPONIER_IMAGES says) that are not those of the checkout at root; say is told
// what happens, line by line.
func (d *Docker) Image(ctx context.Context, root string, say func(string), browsers ...string) error {
	cmd := exec.CommandContext(ctx, "sh", append([]string{filepath.Join(root, "carrier", "image", "build.sh")}, browsers...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.Host)
	cmd.Stdout = lines{say}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build the browser's image: %w: %s", err, tail(said.String(), 3000))
	}
	return nil
}

// lines gives what is written to it away, a line per write at least.
type lines struct{ say func(string) }

// Write implements io.Writer.
func (l lines) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		l.say(strings.TrimSpace(line))
	}
	return len(b), nil
}

// Close removes the containers and ends the daemon. Its images stay.
func (d *Docker) Close(ctx context.Context) error {
	err := d.RemoveAll(ctx)
	return errors.Join(err, d.Stop(), os.RemoveAll(d.run), d.lock.Close())
}
