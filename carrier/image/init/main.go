// Command init is process 1 of a browser container. The container has no
// network but loopback: what the browser asks its proxy at 127.0.0.1:18080 is
// passed to a unix socket of the carrier. The carrier listens on all sockets,
// in a directory this container can only read: for the screen and the files
// init connects to it and waits to be used (see bridge.go).
// init starts the X server, the window manager and the browser, reaps every
// process, and ends when the browser does (one that crashes while it starts is
// started once more): a used container is not started again.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Sockets of the carrier, shared with this container alone.
const (
	shared = "/run/caponier"
	egress = shared + "/egress.sock" // what the browser asks for
	rfb    = shared + "/rfb.sock"    // the screen
	x11    = shared + "/x11.sock"    // the X server itself, for large clipboards
	files  = shared + "/files.sock"  // uploads and downloads
)

const (
	// proxy is what the browser's policy names; nothing else listens here.
	proxy = "127.0.0.1:18080"
	// screen is where Xvnc listens, inside.
	screen = "/tmp/.screen"
	// display is the X server's own socket.
	display = "/tmp/.X11-unix/X1"
	// folder is what users upload and download; a memory file system of its own.
	folder = "/files"
)

func main() {
	switch err := run(); {
	case errors.Is(err, errStopped):
		os.Exit(128 + int(syscall.SIGTERM)) // as a shell tells it; 0 is the user's doing
	case err != nil:
		fmt.Fprintln(os.Stderr, "init:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	size, err := geometry(os.Getenv("CAPONIER_SCREEN"))
	if err != nil {
		return err
	}
	const home = "/tmp/home"
	if err := os.Mkdir(home, 0o700); err != nil {
		return fmt.Errorf("make home: %w", err)
	}
	ln, err := net.Listen("tcp", proxy)
	if err != nil {
		return fmt.Errorf("listen for the browser: %w", err)
	}
	go relay(ln, egress)
	root, err := os.OpenRoot(folder)
	if err != nil {
		return fmt.Errorf("open the folder of files: %w", err)
	}
	served := newQueue()
	srv := &http.Server{Handler: fileServer{root}, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	go srv.Serve(served)
	patience, err := patience(os.Getenv("CAPONIER_ALONE"))
	if err != nil {
		return err
	}
	alone := make(chan struct{})
	knock := make(chan struct{}, 1)
	go func() {
		offer(files, patience, func(c *net.UnixConn) {
			select {
			case knock <- struct{}{}:
			default:
			}
			served.push(c)
		})
		close(alone)
	}()

	env := []string{"PATH=/usr/bin:/bin", "HOME=" + home, "DISPLAY=:1", "LANG=C.UTF-8", "MOZ_CRASHREPORTER_DISABLE=1", "MOZ_DISABLE_CONTENT_SANDBOX_WARNING=1",
		"GTK_USE_PORTAL=0", "NO_AT_BRIDGE=1", "MOZ_REMOTE_SETTINGS_DEVTOOLS=1", "PULSE_SERVER=unix:" + pulse}
	go sounds(ctx, env, knock)
	// Xvnc is reached by nobody but the carrier; it neither asks nor listens on TCP.
	xvnc, err := start(env, "Xvnc", ":1", "-geometry", size, "-depth", "24", "-rfbport", "-1", "-rfbunixpath", screen, "-rfbunixmode", "0600",
		"-SecurityTypes", "None", "-AlwaysShared", "-AcceptSetDesktopSize", "-SendPrimary=0", "-SetPrimary=0", "-nolisten", "tcp", "-MaxCutText", "67108864", "-FrameRate", "60")
	if err != nil {
		return err
	}
	if err := await(ctx, display, xvnc); err != nil {
		return err
	}
	go offer(rfb, patience, func(c *net.UnixConn) { join(c, screen) })
	go offer(x11, patience, func(c *net.UnixConn) { join(c, display) })
	if _, err := start(env, "openbox", "--sm-disable"); err != nil {
		return err
	}
	const first, second = home + "/profile", home + "/profile-2"
	began := time.Now()
	st, err := browse(ctx, env, first, alone, xvnc)
	if err != nil {
		return err
	}
	if crashed(st) && time.Since(began) < startTime {
		fmt.Fprintf(os.Stderr, "init: %v; it is started once more\n", left(st))
		_ = os.RemoveAll(first) // only memory: parts of it may still run
		if st, err = browse(ctx, env, second, alone, xvnc); err != nil {
			return err
		}
	}
	return left(st)
}

// startTime is how long after its start a browser that crashes is started once
// more, with a profile of its own: rarely one does on a busy machine, and there
// is nothing in it yet whose loss would have to be told.
const startTime = 30 * time.Second

// browse runs the browser with a new profile and returns how it ended.
func browse(ctx context.Context, env []string, dir string, alone <-chan struct{}, xvnc *exec.Cmd) (syscall.WaitStatus, error) {
	if err := profile(dir); err != nil {
		return 0, err
	}
	name, args, err := program(dir)
	if err != nil {
		return 0, err
	}
	browser, err := start(env, name, append(args, "http://park.caponier.internal/")...)
	if err != nil {
		return 0, err
	}
	return wait(ctx, alone, xvnc, browser)
}

// patience is how long a container outlives its carrier; empty is 15 minutes.
func patience(s string) (time.Duration, error) {
	if s == "" {
		return 15 * time.Minute, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("CAPONIER_ALONE %q is no time", s)
	}
	return d, nil
}

// geometry checks WIDTHxHEIGHT; empty is 1280x800.
func geometry(s string) (string, error) {
	if s == "" {
		return "1280x800", nil
	}
	w, h, ok := strings.Cut(s, "x")
	x, err1 := strconv.Atoi(w)
	y, err2 := strconv.Atoi(h)
	if !ok || err1 != nil || err2 != nil || x < 320 || y < 240 || x > 7680 || y > 4320 {
		return "", fmt.Errorf("screen %q is not WIDTHxHEIGHT between 320x240 and 7680x4320", s)
	}
	return s, nil
}

// profile copies the profile made with the image to memory: it is used once.
func profile(dir string) error {
	if err := copyProfile(dir, baked); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("copy profile: %w", err)
	}
	return os.MkdirAll(dir, 0o700)
}

// baked is the profile made with the image.
const baked = "/usr/share/caponier/profile"

// cacheDir holds large files of a profile that are only read: the image's own
// are used, whose pages all containers of a machine share.
const cacheDir = "startupCache"

func copyProfile(dir, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(to, 0o700)
		case filepath.Dir(rel) == cacheDir:
			return os.Symlink(path, to)
		case !d.Type().IsRegular():
			return nil
		}
		return copyFile(to, path)
	})
}

func copyFile(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

func start(env []string, name string, args ...string) (*exec.Cmd, error) {
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return cmd, nil
}

// await waits for a socket to appear, at most a minute.
func await(ctx context.Context, path string, of *exec.Cmd) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		if _, err := os.Stat(path); err == nil {
			tick.Stop()
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s did not start: no %s", of.Path, path)
		}
	}
}

// errStopped is returned when the container was told to stop.
var errStopped = errors.New("stopped")

// left is how the browser left: nil when its user closed it. One that crashed
// or was killed ended by a signal.
func left(st syscall.WaitStatus) error {
	if st.Signaled() {
		return fmt.Errorf("the browser was ended by signal %d (%s)", st.Signal(), st.Signal())
	}
	return nil
}

// crashed reports whether the browser ended by a fault of its own: not by its
// user, nor by the kernel for want of memory, nor by somebody who ended it.
func crashed(st syscall.WaitStatus) bool {
	if !st.Signaled() {
		return false
	}
	switch st.Signal() {
	case syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGABRT, syscall.SIGILL, syscall.SIGTRAP, syscall.SIGFPE:
		return true
	default:
		return false
	}
}

// wait reaps whatever ends until the browser is among it, and returns how. It
// fails when the X server ends, the container is stopped, or there has been no
// carrier for too long.
func wait(ctx context.Context, alone <-chan struct{}, xvnc, browser *exec.Cmd) (syscall.WaitStatus, error) {
	child := make(chan os.Signal, 16)
	signal.Notify(child, syscall.SIGCHLD)
	defer signal.Stop(child)
	for {
		for {
			var st syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &st, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
			switch pid {
			case browser.Process.Pid:
				return st, nil
			case xvnc.Process.Pid:
				return 0, fmt.Errorf("the X server ended with status %d", st.ExitStatus())
			}
		}
		select {
		case <-child:
		case <-alone:
			return 0, errors.New("there is no carrier any more")
		case <-ctx.Done():
			return 0, errStopped
		}
	}
}
