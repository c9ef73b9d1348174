package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func command(t *testing.T, environ []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	code = binary().Main(args, environ, &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := file("good.toml", "core = \"https://core.test\"\nresolver = \"10.0.0.2:53\"\n[rules]\nallow = [\"10.0.0.0/8\"]\nports = [\"22\"]\n[deploy]\nlisten = \":8443\"\n")
	bad := file("bad.toml", "core = \"ftp://x\"\ntransport = \"carrier-pigeon\"\nresolver = \"dns.local:53\"\ngrace = \"soon\"\nbogus = 1\n")
	rules := file("rules.toml", "core = \"https://core.test\"\n[rules]\nallow = [\"10.0.0.0/40\"]\nports = [\"0\"]\nexempt = [\"host\"]\n")
	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		want    []string
	}{
		{"version", nil, []string{"version"}, 0, []string{"caponier-extender dev"}},
		{"help", nil, []string{"--help"}, 0, []string{"run", "config check", "version"}},
		{"no command", nil, nil, 2, []string{"hint:"}},
		{"unknown flag", nil, []string{"run", "--core-url", "x"}, 2, []string{"--core-url"}},
		{"good", nil, []string{"config", "check", "--config", good}, 0, []string{"is valid"}},
		{"bad", nil, []string{"config", "check", "--config", bad}, 3, []string{"bogus", "grace", "unknown key"}},
		{"bad rules", nil, []string{"config", "check", "--config", rules}, 3, []string{"rules.allow[0]", "rules.ports[0]"}},
		{"missing file", nil, []string{"config", "check", "--config", filepath.Join(dir, "none.toml")}, 3, []string{"does not exist"}},
		{"no core", nil, []string{"config", "check"}, 3, []string{"core: is missing", "--core"}},
		{"environment", []string{"CAPONIER_CORE=https://core.test"}, []string{"config", "check"}, 0, []string{"is valid"}},
		{"flag", nil, []string{"config", "check", "--core", "https://core.test"}, 0, []string{"is valid"}},
		{"bad transport", []string{"CAPONIER_TRANSPORT=x"}, []string{"config", "check", "--core", "https://core.test"}, 3, []string{"wss, quic or auto"}},
		{"no token", nil, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state")}, 1, []string{"no enrolment token", "caponier tokens create"}},
		{"not a token", []string{"CAPONIER_TOKEN=cap1.x"}, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state")}, 1, []string{"not an enrolment token"}},
		{"missing token file", nil, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state"), "--token-file", filepath.Join(dir, "none")}, 1, []string{"read token"}},
	} {
		code, stdout, stderr := command(t, c.environ, c.args...)
		if code != c.code {
			t.Errorf("%s: exit %d, want %d\n%s%s", c.name, code, c.code, stdout, stderr)
		}
		for _, w := range c.want {
			if !strings.Contains(stdout+stderr, w) {
				t.Errorf("%s: %q is missing in\n%s%s", c.name, w, stdout, stderr)
			}
		}
	}
}
