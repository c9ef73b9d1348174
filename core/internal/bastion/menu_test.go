package bastion

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/policy"
	"caponier/core/internal/target"
)

func entries(n int) []policy.Entry {
	var out []policy.Entry
	for i := range n {
		out = append(out, policy.Entry{
			Target:   target.Target{ID: fmt.Sprintf("tgt_%d", i), Name: fmt.Sprintf("db-%02d", i+1), Kind: target.SSH, Site: "vpc-a", Host: fmt.Sprintf("10.10.0.%d", i+1), Port: 22},
			Account:  []string{"root", "postgres"}[i%2],
			Features: access.Shell, NeedMFA: i == 2, NeedReason: i == 3,
		})
	}
	out[0].Target.Comment = "the first\x1b[31m one \u009b2J with a long comment that does not fit the width of this terminal"
	return out
}

// checkGolden compares got with a file under testdata.
func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	got = strings.ReplaceAll(strings.ReplaceAll(got, "\x1b", "<ESC>"), "\r\n", "\n") + "\n"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

func TestMenuGolden(t *testing.T) {
	m := &menu{user: "demo", cols: 80, rows: 24, entries: entries(25)}
	checkGolden(t, "menu-first.golden", m.draw())
	m.key(keyDown)
	m.key(keyDown)
	m.text = "db"
	checkGolden(t, "menu-moved.golden", m.draw())
	m.key('\t')
	checkGolden(t, "menu-second.golden", m.draw())
	m.entries, m.text, m.cursor, m.top = nil, "nothing", 0, 0
	checkGolden(t, "menu-none.golden", m.draw())
	p := &menu{user: "demo", cols: 60, rows: 10, plain: true, entries: entries(6)}
	checkGolden(t, "menu-plain.golden", p.draw())
	checkGolden(t, "menu-empty.golden", (&menu{user: "demo", cols: 80, rows: 24}).draw())
}

func TestMenuKeys(t *testing.T) {
	press := func(m *menu, keys ...any) (echo string, end menuEnd) {
		for _, k := range keys {
			switch k := k.(type) {
			case string:
				for i := range len(k) {
					var e string
					if e, end = m.key(int(k[i])); end != menuOpen {
						return echo, end
					}
					echo += e
				}
			case int:
				if _, end = m.key(k); end != menuOpen {
					return echo, end
				}
			}
		}
		return echo, end
	}
	fresh := func(plain bool) *menu {
		return &menu{user: "demo", cols: 80, rows: 12, plain: plain, entries: entries(20)}
	}
	m := fresh(false)
	if _, end := press(m, "12\r"); end != menuPick || m.picked != 11 {
		t.Errorf("number: %v, picked %d", end, m.picked)
	}
	m = fresh(false)
	if _, end := press(m, keyDown, keyDown, keyUp, "\r"); end != menuPick || m.picked != 1 {
		t.Errorf("arrows: %v, picked %d", end, m.picked)
	}
	m = fresh(false)
	if press(m, "w"); !m.stale || m.search() != "w" {
		t.Errorf("typing does not search: %+v", m)
	}
	m = fresh(false)
	if press(m, "99\r"); m.message == "" || m.text != "" {
		t.Errorf("a number that is not there: %q, %q", m.message, m.text)
	}
	m = fresh(false)
	if _, end := press(m, 4); end != menuLeave {
		t.Errorf("Ctrl-D: %v", end)
	}
	m = fresh(false)
	if press(m, "/42"); m.search() != "42" {
		t.Errorf("a slash searches for digits: %q", m.search())
	}
	m = fresh(true)
	if echo, end := press(m, "7"); echo != "7" || end != menuOpen {
		t.Errorf("plain echo: %q", echo)
	}
	if _, end := press(m, "\r"); end != menuPick || m.picked != 6 {
		t.Errorf("plain number: %v, picked %d", end, m.picked)
	}
	m = fresh(true)
	if press(m, "\r"); m.top != m.perPage() {
		t.Errorf("plain Enter does not turn the page: top %d", m.top)
	}
	if press(m, "web\r"); !m.stale || m.search() != "web" {
		t.Errorf("plain search: %+v", m)
	}
	if _, end := press(fresh(true), "q"); end != menuLeave {
		t.Errorf("plain q: %v", end)
	}
	empty := &menu{cols: 80, rows: 24}
	if _, end := press(empty, keyDown, keyPageDown, "\r"); end != menuOpen {
		t.Errorf("empty menu: %v", end)
	}
}

func TestDecodeKey(t *testing.T) {
	for in, want := range map[string]int{
		"a": 'a', "\x1b": 0x1b, "\x1b[A": keyUp, "\x1bOB": keyDown, "\x1b[5~": keyPageUp, "\x1b[6~": keyPageDown, "\x1b[1;5A": keyUp,
		"\x1b[200~": keyIgnored, "\x1bx": keyIgnored, "\x1b[": keyIgnored, "\xc3": 0xc3,
	} {
		if got, n := decodeKey([]byte(in)); got != want || n != len(in) {
			t.Errorf("decodeKey(%q) = %d, %d; want %d, %d", in, got, n, want, len(in))
		}
	}
}

func TestMenuWithoutTerminal(t *testing.T) {
	b := newBench(t)
	b.add("db-1", nil)
	b.add("pg-1", nil, func(r *right) { r.target.Kind = target.TCP; r.account = nil; r.target.Port = 5432 })
	r := b.ssh("demo", "-T", "--")
	want := "db-1\t" + b.me + "\tssh\tvpc-a/10.10.0.5:22\npg-1\t-\ttcp\tvpc-a/10.10.0.6:5432\n"
	if r.code != 0 || r.out != want {
		t.Errorf("got %v, want %q", r, want)
	}
	r = b.ssh("demo", "id")
	if r.code != exitUsage || !strings.Contains(r.err, "Say which target: ssh 'demo%ACCOUNT%TARGET'@core.example") {
		t.Errorf("command without target: %v", r)
	}
}

// Every target shows up once, however the pages of the listing fall.
func TestListingPages(t *testing.T) {
	b := newBench(t)
	want := 0
	for i := range 3 * pageRows / 2 {
		for _, a := range []string{"app", "root", "web"}[:1+i%3] {
			x := right{user: "demo", features: access.Shell,
				target:  &target.Target{ID: fmt.Sprint("tgt_", i), Group: access.DefaultGroup, Name: fmt.Sprintf("t-%04d", i), Kind: target.SSH, Host: "h", Port: 22},
				account: &target.Account{Name: a}}
			b.rules.change(func() { b.rules.rights = append(b.rules.rights, x) })
			want++
		}
	}
	r := b.ssh("demo", "-T", "--")
	seen := map[string]bool{}
	for l := range strings.SplitSeq(strings.TrimSpace(r.out), "\n") {
		if seen[l] {
			t.Fatalf("%q is listed twice", l)
		}
		seen[l] = true
	}
	if r.code != 0 || len(seen) != want {
		t.Errorf("listed %d of %d, exit %d", len(seen), want, r.code)
	}
}

func TestEnvironmentAndTerminal(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD("AcceptEnv *"))
	r := b.runEnv([]string{"LC_TEST=yes", "LD_PRELOAD_X=no"}, "", "ssh", b.sshArgs(b.to("db-1"), "-o", "SendEnv=LC_TEST LD_PRELOAD_X", "--", "env")...)
	if r.code != 0 || !strings.Contains(r.out, "LC_TEST=yes") || strings.Contains(r.out, "LD_PRELOAD_X") {
		t.Errorf("environment: %v", r)
	}
	c := b.mustDial(b.to("db-1"))
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RequestPty("vt100", 40, 120, ssh.TerminalModes{ssh.ECHO: 1}); err != nil {
		t.Fatal(err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out lockedBuffer
	s.Stdout = &out
	if err := s.Start("sh"); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Write([]byte("stty size; echo $TERM\n"))
	eventually(t, "first size", func() bool { return strings.Contains(out.String(), "40 120\r\nvt100") })
	if err := s.WindowChange(50, 132); err != nil {
		t.Fatal(err)
	}
	_, _ = in.Write([]byte("stty size\n"))
	eventually(t, "second size", func() bool { return strings.Contains(out.String(), "50 132") })
	_, _ = in.Write([]byte("exit\n"))
	if err := s.Wait(); err != nil {
		t.Fatal(err)
	}
	tp := b.tapes.list()[1]
	var got string
	tp.change(func() { got = strings.Join(tp.sizes, " ") })
	if got != "132x50" || tp.meta.Width != 120 || tp.meta.Height != 40 {
		t.Errorf("recorded sizes %q after %dx%d", got, tp.meta.Width, tp.meta.Height)
	}
}

// A signal reaches the program, and its end comes back as one.
func TestSignal(t *testing.T) {
	b := newBench(t)
	// A real sshd delivers signals to unprivileged accounts only.
	addr, _ := passwordTarget(t, "app", "x")
	b.vault.put("sec_1", "x")
	b.add("db-1", &sshd{addr: addr}, func(r *right) {
		r.account.Name, r.account.Auth, r.account.SecretID = "app", target.AuthPassword, "sec_1"
	})
	s, err := b.mustDial("demo%app%db-1").NewSession()
	if err != nil {
		t.Fatal(err)
	}
	var out lockedBuffer
	s.Stdout = &out
	if err := s.Start("wait"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program runs", func() bool { return out.String() == "ran wait\n" })
	if err := s.Signal(ssh.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err = s.Wait()
	if e, ok := err.(*ssh.ExitError); !ok || e.Signal() != "TERM" {
		t.Errorf("got %v, want an end by TERM", err)
	}
	if tp := b.tapes.list()[0]; !tp.saw("exit status=signal TERM") {
		t.Errorf("events %q", tp.events)
	}
}

func TestStdinAndEOF(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD())
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	r := b.run(string(in), "ssh", b.sshArgs(b.to("db-1"), "--", "sha256sum; echo after")...)
	if r.code != 0 || !strings.HasSuffix(r.out, "after\n") || len(r.out) < 64 {
		t.Errorf("got %v", r)
	}
	r = b.run(string(in), "ssh", b.sshArgs(b.to("db-1"), "--", "cat")...)
	if r.code != 0 || r.out != string(in) {
		t.Errorf("cat gave %d bytes back, exit %d, want %d", len(r.out), r.code, len(in))
	}
	l := b.last()
	if l.in != int64(len(in)) || l.out != int64(len(in)) {
		t.Errorf("counted %d in, %d out, want %d", l.in, l.out, len(in))
	}
}
