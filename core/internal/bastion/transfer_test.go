package bastion

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"caponier/core/internal/access"
	"caponier/shared/wire"
)

// bigFile writes n random bytes and returns the file and its hash.
func (b *bench) bigFile(name string, n int) (string, [32]byte) {
	b.t.Helper()
	data := make([]byte, n)
	_, _ = rand.Read(data)
	f := filepath.Join(b.dir, name)
	if err := os.WriteFile(f, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return f, sha256.Sum256(data)
}

func (b *bench) same(file string, want [32]byte) {
	b.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		b.t.Fatal(err)
	}
	if sha256.Sum256(data) != want {
		b.t.Errorf("%s differs from what was sent (%d bytes)", file, len(data))
	}
}

func TestSCP(t *testing.T) {
	for _, mode := range []string{"-O", "-s"} {
		t.Run(mode, func(t *testing.T) {
			b := newBench(t)
			b.add("db-1", b.startSSHD())
			src, sum := b.bigFile("src", 3<<20)
			up, down := filepath.Join(b.dir, "up"), filepath.Join(b.dir, "down")
			scp := func(from, to string) {
				t.Helper()
				args := append([]string{mode, "-q", "-P", b.port, "-o", "BatchMode=yes", "-o", "User=" + b.to("db-1")}, b.options()...)
				if r := b.run("", "scp", append(args, from, to)...); r.code != 0 {
					t.Fatalf("scp %s %s: %v", from, to, r)
				}
			}
			scp(src, "127.0.0.1:"+up)
			b.same(up, sum)
			l := b.last()
			scp("127.0.0.1:"+src, down)
			b.same(down, sum)
			b.dialer.change(func() {
				if b.dialer.asked[0].Class != wire.Bulk {
					t.Errorf("a file transfer was dialled as interactive")
				}
			})
			tp := b.tapes.list()[0]
			if mode == "-O" {
				if !l.saw("transfer scp: ") || !tp.saw("program=scp result=ok") {
					t.Errorf("events %q, recording %q", l.events, tp.events)
				}
				if tp.out.Len() > 1000 {
					t.Errorf("%d bytes of file data went to the recording", tp.out.Len())
				}
				return
			}
			if !l.saw("sftp open "+up) || !l.saw(fmt.Sprintf("sftp write %s %d bytes ok", up, 3<<20)) {
				t.Errorf("events %q", l.events)
			}
			if !b.tapes.list()[1].saw(fmt.Sprintf("sftp bytes=%d op=read path=%s result=ok", 3<<20, src)) {
				t.Errorf("recording %q", b.tapes.list()[1].events)
			}
		})
	}
}

func TestSFTP(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	src, sum := b.bigFile("src", 1<<20)
	down := filepath.Join(b.dir, "down")
	batch := strings.Join([]string{
		"put " + src + " " + b.dir + "/a", "rename " + b.dir + "/a " + b.dir + "/b", "get " + b.dir + "/b " + down,
		"mkdir " + b.dir + "/d", "rmdir " + b.dir + "/d", "ln -s " + b.dir + "/b " + b.dir + "/l", "ls " + b.dir, "rm " + b.dir + "/b",
		"-rm " + b.dir + "/none", "-get " + b.dir + "/none x"}, "\n")
	args := append([]string{"-q", "-P", b.port, "-b", "-", "-o", "User=" + b.to("db-1")}, b.options()...)
	r := b.run(batch, "sftp", append(args, "127.0.0.1")...)
	if r.code != 0 {
		t.Fatalf("sftp: %v", r)
	}
	b.same(down, sum)
	l := b.last()
	if l.spec.Kind != "sftp" || b.tapes.list()[0].meta.Kind != "sftp" {
		t.Errorf("got kinds %q, %q", l.spec.Kind, b.tapes.list()[0].meta.Kind)
	}
	for _, want := range []string{
		fmt.Sprintf("sftp write %s/a %d bytes ok", b.dir, 1<<20), fmt.Sprintf("sftp rename %s/a → %s/b ok", b.dir, b.dir),
		fmt.Sprintf("sftp read %s/b %d bytes ok", b.dir, 1<<20), "sftp mkdir " + b.dir + "/d ok", "sftp rmdir " + b.dir + "/d ok",
		"sftp symlink " + b.dir, "sftp remove " + b.dir + "/b ok", "sftp remove " + b.dir + "/none failed",
	} {
		if !l.saw(want) {
			t.Errorf("no event %q in %q", want, l.events)
		}
	}
}

func TestRsync(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	src := filepath.Join(b.dir, "tree")
	if err := os.MkdirAll(filepath.Join(src, "deep"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, sum := b.bigFile("tree/deep/file with space", 2<<20)
	rsh := "ssh " + strings.Join(b.sshArgs(b.to("db-1"), "--"), " ")
	rsh = strings.TrimSuffix(rsh, " 127.0.0.1")
	up, down := filepath.Join(b.dir, "up"), filepath.Join(b.dir, "down")
	if r := b.run("", "rsync", "-a", "-e", rsh, src+"/", "127.0.0.1:"+up+"/"); r.code != 0 {
		t.Fatalf("rsync up: %v", r)
	}
	if r := b.run("", "rsync", "-a", "-e", rsh, "127.0.0.1:"+up+"/", down+"/"); r.code != 0 {
		t.Fatalf("rsync down: %v", r)
	}
	b.same(filepath.Join(down, "deep", filepath.Base(f)), sum)
	if l := b.last(); l.spec.Want != access.FileTransfer || !l.saw("transfer rsync: ") {
		t.Errorf("got %s, events %q", l.spec.Want, l.events)
	}
}

func TestGit(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	repo := filepath.Join(b.dir, "repo.git")
	env := []string{"GIT_SSH_COMMAND=ssh " + strings.TrimSuffix(strings.Join(b.sshArgs(b.to("db-1"), "--"), " "), " 127.0.0.1"),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example"}
	git := func(args ...string) {
		t.Helper()
		if r := b.runEnv(env, "", "git", args...); r.code != 0 {
			t.Fatalf("git %q: %v", args, r)
		}
	}
	git("init", "-q", "--bare", repo)
	work := filepath.Join(b.dir, "work")
	git("clone", "-q", "127.0.0.1:"+repo, work)
	b.bigFile("work/file", 100<<10)
	git("-C", work, "add", ".")
	git("-C", work, "commit", "-qm", "one")
	git("-C", work, "push", "-q", "origin", "HEAD:main")
	git("clone", "-q", "-b", "main", "127.0.0.1:"+repo, filepath.Join(b.dir, "again"))
	if l := b.last(); l.spec.Want != access.Exec || !l.saw("transfer git: ") {
		t.Errorf("got %s, events %q", l.spec.Want, l.events)
	}
}

// A peer that speaks nonsense on the sftp channel, or more than its reader
// can follow, loses the session; what it sent before is on record.
func TestSFTPNonsenseEndsTheSession(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	r := b.run("\xff\xff\xff\xff\x03nonsense", "ssh", b.sshArgs(b.to("db-1"), "-s", "--", "sftp")...)
	if r.code != exitRefused || !strings.Contains(r.err, "could not be followed") {
		t.Errorf("got %v", r)
	}
}
