package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"caponier/e2e/harness"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		rootless()
	}
	harness.Sweep()
	code := m.Run()
	commonWorld.close()
	webWhole.close()
	proxyWhole.close()
	if binDir != "" {
		os.RemoveAll(binDir)
	}
	os.Exit(code)
}

// rootless starts this program again in a user namespace, where it may make
// network namespaces without root. Where that is not possible it returns, and
// tests that need namespaces skip with the reason.
func rootless() {
	if os.Getenv("CAPONIER_TEST_ROOTLESS") != "" {
		return
	}
	args := []string{"--user", "--map-root-user", "--map-auto", "--mount", "--net", "--"}
	if exec.Command("unshare", append(args, "true")...).Run() != nil {
		return
	}
	self, err := os.Executable()
	if err != nil {
		return
	}
	path, err := exec.LookPath("unshare")
	if err != nil {
		return
	}
	// ip netns keeps its names below /run, which is not ours to write.
	args = append([]string{"unshare"}, append(args, "sh", "-c", `mount -t tmpfs tmpfs /run && ip link set lo up && exec "$0" "$@"`, self)...)
	syscall.Exec(path, append(args, os.Args[1:]...), append(os.Environ(), "CAPONIER_TEST_ROOTLESS=1"))
}

var (
	buildOnce sync.Once
	built     harness.Binaries
	buildErr  error
	binDir    string
)

// binaries builds the programs once per run, or takes those of the directory
// CAPONIER_TEST_BIN.
func binaries(t testing.TB) harness.Binaries {
	t.Helper()
	buildOnce.Do(func() {
		if dir := os.Getenv("CAPONIER_TEST_BIN"); dir != "" {
			built = harness.Built(dir)
			return
		}
		if binDir, buildErr = os.MkdirTemp("", "caponier-e2e-bin-"); buildErr != nil {
			return
		}
		var root string
		if root, buildErr = filepath.Abs(".."); buildErr != nil {
			return
		}
		// Programs run as other users in sshd's sessions do not, but namespaces need to get in.
		if buildErr = os.Chmod(binDir, 0o755); buildErr == nil {
			built, buildErr = harness.Build(context.Background(), root, binDir)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return built
}

// needRig skips where no namespaces can be made.
func needRig(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("end-to-end tests take minutes; run without -short")
	}
	rigOnce.Do(func() { rigErr = harness.Usable() })
	if rigErr != nil {
		harness.Lacks(t, "no rig: %v", rigErr)
	}
}

var (
	rigOnce sync.Once
	rigErr  error
)
