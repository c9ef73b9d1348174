package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tool runs a binary outside of any rig and returns output and exit code.
func tool(t *testing.T, env []string, bin string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir()}, env...)
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// A wrong configuration: every problem at once with its key path and a hint,
// exit code 3, from config check and from the command that would start.
func TestBadConfiguration(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binaries")
	}
	bin := binaries(t)
	file := filepath.Join(t.TempDir(), "core.toml")
	text := "colour = \"red\"\ngrace = \"soon\"\n[listen]\nhttps = \"nowhere\"\nhtpp = \":80\"\n[vault]\nkek_file = \"/does/not/exist\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--config", file, "config", "check"}, {"--config", file, "serve"}} {
		out, code := tool(t, nil, bin.Core, args...)
		if code != 3 {
			t.Errorf("%v: exit code %d, want 3", args[2:], code)
		}
		for _, want := range []string{"colour", "unknown key", "grace", `"soon"`, "listen.https", "listen.htpp", "hint:"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v does not mention %s:\n%s", args[2:], want, out)
			}
		}
	}
	for name, c := range map[string]struct {
		bin  string
		env  []string
		args []string
		code int
		want string
	}{
		"missing file":         {bin.Core, nil, []string{"--config", "/no/such/core.toml", "config", "check"}, 3, "does not exist"},
		"unknown environment":  {bin.Core, []string{"CAPONIER_LISTEN_HTPPS=:1"}, []string{"config", "check"}, 3, "CAPONIER_LISTEN_HTPPS"},
		"bad environment":      {bin.Core, []string{"CAPONIER_GRACE=soon"}, []string{"config", "check"}, 3, "CAPONIER_GRACE"},
		"wrong command":        {bin.Core, nil, []string{"fly"}, 2, "fly"},
		"extender, no file":    {bin.Extender, nil, []string{"config", "check", "--config", "/no/such/extender.toml"}, 3, "does not exist"},
		"extender, no core":    {bin.Extender, nil, []string{"run", "--state", "x"}, 3, "core"},
		"extender, wrong flag": {bin.Extender, nil, []string{"run", "--fly"}, 2, "fly"},
	} {
		out, code := tool(t, c.env, c.bin, c.args...)
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit code %d, want %d; output should mention %q:\n%s", name, code, c.code, c.want, out)
		}
	}
}
