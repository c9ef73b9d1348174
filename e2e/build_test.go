package e2e

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Every program is one file that needs nothing of the machine it runs on, and
// says which version it is; edge nodes are built for arm64 as well.
func TestBinariesAreStaticAndStamped(t *testing.T) {
	dir := filepath.Dir(binaries(t).Core)
	files, err := filepath.Glob(filepath.Join(dir, "caponier*"))
	if err != nil || len(files) < 3 {
		t.Fatalf("programs in %s: %v, %v", dir, files, err)
	}
	arm := filepath.Join(t.TempDir(), "caponier-extender")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w -X caponier/shared/daemon.Version=v7.8.9", "-o", arm, "./extender")
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, file := range append(slices.Clone(files), arm) {
		f, err := elf.Open(file)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		libs, err := f.ImportedLibraries()
		if err != nil || len(libs) > 0 {
			t.Errorf("%s needs %v, %v", file, libs, err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s needs a loader", file)
			}
		}
		if want := map[bool]elf.Machine{true: elf.EM_AARCH64}[file == arm]; want != 0 && f.Machine != want {
			t.Errorf("%s is for %v", file, f.Machine)
		}
		f.Close()
	}
	if text, err := os.ReadFile(arm); err != nil || !strings.Contains(string(text), "v7.8.9") {
		t.Errorf("the version is not in the program (%v)", err)
	}
	if os.Getenv("CAPONIER_TEST_BIN") == "" {
		return // built by the test itself, without a version
	}
	want, err := exec.CommandContext(t.Context(), "git", "describe", "--tags", "--always", "--dirty").Output()
	if err != nil { // not a git checkout: then make says dev
		want = []byte("dev")
	}
	for _, file := range files {
		arg := []string{"version"}
		out, err := exec.CommandContext(t.Context(), file, arg...).CombinedOutput()
		if err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), strings.TrimSpace(string(want))) {
			t.Errorf("%s version: %q, %v; want %s", filepath.Base(file), out, err, want)
		}
	}
}
