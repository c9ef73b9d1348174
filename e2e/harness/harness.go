// Package harness brings up real parts of the product and of the world around
// it for black-box tests and for the demo: network namespaces with NAT routers
// that drop everything inbound, real sshd servers, core and extender binaries.
// It knows the binaries only by their command line, configuration files and
// REST interface. Everything it makes carries the maker's process ID in its
// name, so that runs do not collide and Sweep finds what a killed run left.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ErrGone is in errors of conditions that can no longer come true.
var ErrGone = errors.New("it has ended")

// Until calls f every 20 ms until it returns nil, and fails with f's last
// error when that takes longer than limit, at once when it is an ErrGone.
func Until(ctx context.Context, limit time.Duration, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrGone) {
			return fmt.Errorf("%s: %w", what, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
		case <-tick.C:
		}
	}
}

// Usable says why namespaces cannot be made here, or nil.
func Usable() error {
	if os.Geteuid() != 0 {
		return errors.New("not root, not even in a user namespace")
	}
	for _, tool := range []string{"ip", "nft", "sshd", "ssh", "nc"} {
		if _, err := lookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: run make setup", tool)
		}
	}
	name := fmt.Sprintf("capx-%d-probe", os.Getpid())
	if out, err := run("ip", "netns", "add", name); err != nil {
		return fmt.Errorf("network namespaces: %w: %s", err, out)
	}
	_, err := run("ip", "netns", "del", name)
	return err
}

// lookPath finds a tool also in the system directories that a user's PATH
// often lacks.
func lookPath(tool string) (string, error) {
	if p, err := exec.LookPath(tool); err == nil {
		return p, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		p := filepath.Join(dir, tool)
		if st, err := os.Stat(p); err == nil && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("no %s on this machine", tool)
}

// run runs a short command and returns its output with the error.
func run(tool string, args ...string) (string, error) {
	path, err := lookPath(tool)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", tool, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), err
}

// runIn feeds stdin to a short command.
func runIn(stdin, tool string, args ...string) error {
	path, err := lookPath(tool)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", tool, strings.Join(args, " "), err, out)
	}
	return nil
}

// Binaries are the paths of the built programs.
type Binaries struct{ Core, Extender, Router, Carrier, WebProxy, CLI string }

// Built names the programs that lie in dir.
func Built(dir string) Binaries {
	return Binaries{
		Core:     filepath.Join(dir, "caponier-core"),
		Extender: filepath.Join(dir, "caponier-extender"),
		Router:   filepath.Join(dir, "caponier-router"),
		Carrier:  filepath.Join(dir, "caponier-carrier"),
		WebProxy: filepath.Join(dir, "caponier-webproxy"),
		CLI:      filepath.Join(dir, "caponier"),
	}
}

// Build compiles the programs into dir.
func Build(ctx context.Context, root, dir string) (Binaries, error) {
	b := Built(dir)
	for out, pkg := range map[string]string{b.Core: "./core", b.Extender: "./extender", b.Router: "./router", b.Carrier: "./carrier", b.WebProxy: "./webproxy", b.CLI: "./core/cmd/caponier"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-o", out, pkg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("build %s: %w\n%s", pkg, err, text)
		}
	}
	return b, nil
}
