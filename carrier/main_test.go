package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommand(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", "")
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("core = \"https://core.test\"\ndocker = \"tcp://10.0.0.1:2375\"\nimage = \"\"\nrun_dir = \"run\"\nwarm = -1\nmax = 0\nscanners = [\"10.0.0.0/40\"]\n"+
		"seccomp = \"/nowhere\"\n[limits]\nmemory_mb = 10\ncpus = 0.0\nalone = \"1s\"\n[admission]\npressure = 101.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	unknown := filepath.Join(dir, "unknown.toml")
	if err := os.WriteFile(unknown, []byte("core = \"https://core.test\"\nimages = \"caponier-browser\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		want    []string
	}{
		{"version", nil, []string{"version"}, 0, []string{"caponier-carrier dev"}},
		{"example", nil, []string{"config", "check", "--config", "../deploy/config/carrier.toml"}, 0, []string{"is valid"}},
		{"environment", []string{"CAPONIER_WARM=0", "CAPONIER_IMAGE=", "CAPONIER_CHROMIUM_IMAGE=caponier-chromium"}, []string{"config", "check", "--core", "https://core.test"}, 0, []string{"is valid"}},
		{"values", nil, []string{"config", "check", "--config", bad}, 3, []string{"docker: must be a socket", "image: is missing", "run_dir: must be an absolute path", "warm: must be 0 to 100",
			"max: must be 1 to 1000", "scanners[0]", "seccomp", "limits.memory_mb", "limits.cpus", "limits.alone", "admission.pressure"}},
		{"unknown key", nil, []string{"config", "check", "--config", unknown}, 3, []string{"images"}},
		{"no core", nil, []string{"config", "check"}, 3, []string{"core: is missing"}},
		{"no token", nil, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state")}, 1, []string{"no enrolment token", "--kind carrier"}},
	} {
		var out, errs strings.Builder
		if code := binary().Main(c.args, c.environ, &out, &errs); code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", c.name, code, c.code, out.String(), errs.String())
		}
		for _, w := range c.want {
			if !strings.Contains(out.String()+errs.String(), w) {
				t.Errorf("%s: %q is missing in\n%s%s", c.name, w, out.String(), errs.String())
			}
		}
	}
}
