package program

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"caponier/e2e/harness"
)

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTrusted(t *testing.T) {
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o755), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	const sh = "#!/bin/sh\n"
	good := write(t, filepath.Join(dir, "good"), sh, 0o755)
	inOpen := write(t, filepath.Join(open, "p"), sh, 0o755)
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Symlink(good, link), os.Symlink(inOpen, filepath.Join(dir, "outlink"))); err != nil {
		t.Fatal(err)
	}
	foreign := write(t, filepath.Join(dir, "foreign"), sh, 0o755)
	for _, c := range []struct{ name, path, want string }{
		{"good", good, ""},
		{"link to good", link, ""},
		{"relative", "good", "must be absolute"},
		{"missing", filepath.Join(dir, "none"), "no such file"},
		{"directory", dir, "not an executable file"},
		{"not executable", write(t, filepath.Join(dir, "text"), sh, 0o644), "not an executable file"},
		{"group may write", write(t, filepath.Join(dir, "g"), sh, 0o775), "can be written by others"},
		{"all may write", write(t, filepath.Join(dir, "o"), sh, 0o757), "can be written by others"},
		{"in a directory of all", inOpen, "can be written by others"},
		{"link into it", filepath.Join(dir, "outlink"), "can be written by others"},
	} {
		err := Trusted(c.path)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	if os.Geteuid() != 0 {
		harness.Lacks(t, "only root can give files away")
	}
	if err := os.Chown(foreign, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := Trusted(foreign); err == nil || !strings.Contains(err.Error(), "another user") {
		t.Errorf("of another user: %v", err)
	}
}

func TestLocalRun(t *testing.T) {
	t.Setenv("CAPONIER_TOKEN", "canary")
	dir := t.TempDir()
	at := func(script string) *Local {
		t.Helper()
		l, err := NewLocal(write(t, filepath.Join(dir, "p"), "#!/bin/sh\n"+script, 0o755))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	r, err := at("env; cat; echo \"$@\"; pwd; echo oops >&2; exit 7").Run(t.Context(), Call{Verb: "add", Args: []string{"a b", "c"}, Stdin: []byte("input\n")})
	if err != nil || r.Exit != 7 || string(r.Stderr) != "oops\n" || r.Cut {
		t.Fatalf("reply = %+v, %v", r, err)
	}
	if out := string(r.Stdout); strings.Contains(out, "canary") || !strings.Contains(out, "input\nadd a b c\n/\n") || !strings.Contains(out, "PATH=") {
		t.Errorf("output\n%s", out)
	}
	// More than is kept, and a program that does not read.
	r, err = at("head -c 20000000 /dev/zero; head -c 20000 /dev/zero >&2").Run(t.Context(), Call{Verb: "x", Stdin: make([]byte, 1<<20)})
	if err != nil || len(r.Stdout) != MaxStdout || len(r.Stderr) != MaxStderr || !r.Cut {
		t.Errorf("flood: %d and %d bytes, cut %v, %v", len(r.Stdout), len(r.Stderr), r.Cut, err)
	}
	// A child that keeps the pipes does not keep us.
	start := time.Now()
	r, err = at("sleep 60 & echo $! > "+dir+"/child; exit 0").Run(t.Context(), Call{Verb: "x"})
	if took := time.Since(start); err != nil || r.Exit != 0 || took > 20*time.Second {
		t.Errorf("with a child: %+v, %v after %s", r, err, took)
	}
	if pid, err := os.ReadFile(filepath.Join(dir, "child")); err == nil {
		p, err := os.FindProcess(atoi(t, string(pid)))
		if err == nil {
			p.Kill()
		}
	}
	if _, err = at("kill -9 $$").Run(t.Context(), Call{Verb: "x"}); err == nil {
		t.Error("a killed program was taken for one that ended")
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 200*time.Millisecond, errors.New("not finished"))
	defer cancel()
	start = time.Now()
	_, err = at("trap '' TERM; while :; do sleep 1; done").Run(ctx, Call{Verb: "x"})
	if took := time.Since(start); err == nil || !strings.Contains(err.Error(), "not finished") || took > 20*time.Second {
		t.Errorf("deaf: %v after %s", err, took)
	}
	// Made writable by others after the start.
	l := at("exit 0")
	if err := os.Chmod(filepath.Join(dir, "p"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Run(t.Context(), Call{Verb: "x"}); err == nil {
		t.Error("a program that others can change was run")
	}
}

func atoi(t *testing.T, s string) (n int) {
	t.Helper()
	for _, c := range strings.TrimSpace(s) {
		n = n*10 + int(c-'0')
	}
	return n
}
