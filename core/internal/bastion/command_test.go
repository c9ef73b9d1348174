package bastion

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"caponier/core/internal/access"
)

func TestClassify(t *testing.T) {
	tests := []struct {
		s       start
		want    access.Feature
		name    string
		content bool
	}{
		{start{"shell", ""}, access.Shell, "", false},
		{start{"subsystem", "sftp"}, access.FileTransfer, "sftp", false},
		{start{"subsystem", "netconf"}, access.Exec, "", false},
		{start{"exec", "id"}, access.Exec, "", false},
		{start{"exec", ""}, access.Exec, "", false},
		{start{"exec", "scp -t /tmp"}, access.FileTransfer, "scp", true},
		{start{"exec", "scp -v -r -p -d -f -- 'a b' c"}, access.FileTransfer, "scp", true},
		{start{"exec", "scp -rpt ."}, access.FileTransfer, "scp", true},
		{start{"exec", "scp -t /tmp; rm -rf /"}, access.Exec, "", false},
		{start{"exec", "scp -t $(reboot)"}, access.Exec, "", false},
		{start{"exec", "scp -t `reboot`"}, access.Exec, "", false},
		{start{"exec", "scp -t \"$(reboot)\""}, access.Exec, "", false},
		{start{"exec", "scp -t '$(harmless)'"}, access.FileTransfer, "scp", true},
		{start{"exec", "scp -S /tmp/evil -t x"}, access.Exec, "", false},
		{start{"exec", "scp -oProxyCommand=x -t x"}, access.Exec, "", false},
		{start{"exec", "scp a b:c"}, access.Exec, "", false},
		{start{"exec", "scp -t"}, access.Exec, "", false},
		{start{"exec", "A=b scp -t x"}, access.Exec, "", false},
		{start{"exec", "rsync --server -vlogDtpre.iLsfxCIvu . /tmp/x"}, access.FileTransfer, "rsync", true},
		{start{"exec", "rsync --server --sender -e.LsfxCIvu . /tmp/x"}, access.FileTransfer, "rsync", true},
		{start{"exec", "rsync --server --daemon --config=/tmp/c ."}, access.Exec, "", false},
		{start{"exec", "rsync --server --dae ."}, access.Exec, "", false},
		{start{"exec", "rsync -e sh a b:c"}, access.Exec, "", false},
		{start{"exec", "git-upload-pack '/srv/x.git'"}, access.Exec, "git", true},
		{start{"exec", "git receive-pack '/srv/x.git'"}, access.Exec, "git", true},
		{start{"exec", "git-upload-pack '/srv/x.git' | tee x"}, access.Exec, "", false},
		{start{"exec", "git-upload-pack '/srv/x.git'\nreboot"}, access.Exec, "", false},
		{start{"exec", "git log x"}, access.Exec, "", false},
		{start{"exec", "/usr/lib/openssh/sftp-server"}, access.FileTransfer, "sftp", false},
		{start{"exec", "/tmp/sftp-server"}, access.Exec, "", false},
		{start{"exec", "sftp-server"}, access.FileTransfer, "sftp", false},
		{start{"exec", "./sftp-server"}, access.Exec, "", false},
		{start{"exec", "/tmp/l/../../usr/lib/sftp-server"}, access.Exec, "", false},
	}
	for _, tt := range tests {
		got := classify(tt.s)
		if got.want != tt.want || got.name != tt.name || got.content != tt.content {
			t.Errorf("classify(%+v) = %+v; want %s %q %v", tt.s, got, tt.want, tt.name, tt.content)
		}
	}
}

// FuzzShellWords holds our reading of a plain command against sh itself.
func FuzzShellWords(f *testing.F) {
	for _, s := range []string{"scp -t 'a b'", `scp -t a\ b "c d"`, "a 'b'\"c\"d", "x ; y", "a\\", "'", "rsync --server . ~x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, plain := shellWords(s)
		if !plain || len(words) == 0 || strings.ContainsAny(s, "*?[~\x00") || len(s) > 200 || !isASCII(s) {
			return // globs and home directories stay arguments; sh needs no more than that
		}
		out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf '%s\\0' "+s).Output()
		if err != nil {
			t.Fatalf("sh refuses what we read as plain: %q: %v", s, err)
		}
		got := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
		if !slices.Equal(got, words) {
			t.Fatalf("%q: sh reads %q, we read %q", s, got, words)
		}
	})
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
