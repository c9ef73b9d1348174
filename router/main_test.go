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
	file := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil { // past the umask
			t.Fatal(err)
		}
		return p
	}
	const core = "core = \"https://core.test\"\n"
	program := file("program", "#!/bin/sh\n", 0o755)
	loose := file("loose", "#!/bin/sh\n", 0o777)
	good := file("good.toml", core+"type = \"nftables\"\nmax_lease = \"20s\"\n[nftables]\nclients = [\"wg0\"]\n", 0o600)
	exec := file("exec.toml", core+"type = \"exec\"\n[program]\npath = \""+program+"\"\nparameters = '{\"zone\": 1}'\n", 0o600)
	open := file("open.toml", core+"type = \"exec\"\n[program]\npath = \""+loose+"\"\n", 0o600)
	ssh := file("ssh.toml", core+"type = \"sshexec\"\n[ssh]\nhost = \"fw\"\n[program]\nparallel = 100\nparameters = \"[1]\"\ntimeout = \"2m\"\n", 0o600)
	bad := file("bad.toml", core+"type = \"iptables\"\nmax_lease = \"1h\"\nbogus = 1\n", 0o600)
	names := file("names.toml", core+"[nftables]\nclients = [\"\"]\ntable = \"my table\"\nrule_priority = 0\n", 0o600)
	for _, c := range []struct {
		name    string
		environ []string
		args    []string
		code    int
		want    []string
	}{
		{"version", nil, []string{"version"}, 0, []string{"caponier-router dev"}},
		{"help", nil, []string{"--help"}, 0, []string{"run", "config check", "latch", "uninstall", "version"}},
		{"no command", nil, nil, 2, []string{"hint:"}},
		{"good", nil, []string{"config", "check", "--config", good}, 0, []string{"is valid"}},
		{"exec", nil, []string{"config", "check", "--config", exec}, 0, []string{"is valid"}},
		{"loose program", nil, []string{"config", "check", "--config", open}, 3, []string{"program.path", "can be written by others"}},
		{"no program", []string{"CAPONIER_TYPE=exec"}, []string{"config", "check", "--core", "https://core.test"}, 3, []string{"program.path", "is missing"}},
		{"ssh", nil, []string{"config", "check", "--config", ssh}, 3, []string{"ssh.user", "ssh.key_file", "ssh.host_key", "ssh-keyscan", "program.parallel", "program.parameters", "program.timeout"}},
		{"unknown key", nil, []string{"config", "check", "--config", bad}, 3, []string{"bogus", "unknown key"}},
		{"values", []string{"CAPONIER_MAX_LEASE=1h", "CAPONIER_TYPE=iptables"}, []string{"config", "check", "--core", "https://core.test"}, 3, []string{"max_lease", "nftables, exec, sshexec or logger"}},
		{"names", nil, []string{"config", "check", "--config", names}, 3, []string{"nftables.clients[0]", "nftables.table", "nftables.rule_priority"}},
		{"no core", nil, []string{"config", "check"}, 3, []string{"core: is missing"}},
		{"no token", []string{"CAPONIER_TYPE=logger"}, []string{"run", "--core", "https://127.0.0.1:1", "--state", filepath.Join(dir, "state")}, 1, []string{"no enrolment token", "--kind router"}},
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

func TestSSHAddress(t *testing.T) {
	for host, want := range map[string]string{"fw": "fw:22", "fw:2200": "fw:2200", "fd00::1": "[fd00::1]:22", "[fd00::1]": "[fd00::1]:22", "[fd00::1]:2200": "[fd00::1]:2200"} {
		if got := (&SSHConfig{Host: host}).address(); got != want {
			t.Errorf("address of %s = %s, want %s", host, got, want)
		}
	}
}
