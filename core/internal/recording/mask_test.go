package recording

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"caponier/e2e/harness"
)

// masked plays a script and returns the input as it would be written: ">x"
// types x, "<x" is output x, "." lets a second pass.
func masked(script ...string) string {
	var out strings.Builder
	m := &masker{emit: func(p []byte) { out.Write(p) }}
	now := time.Unix(0, 0)
	for _, s := range script {
		now = now.Add(10 * time.Millisecond)
		switch s[0] {
		case '>':
			m.input([]byte(s[1:]), now)
		case '<':
			m.output([]byte(s[1:]), now)
		case '.':
			now = now.Add(time.Second)
			m.tick(now)
		}
	}
	m.flush()
	return out.String()
}

func TestMasker(t *testing.T) {
	tests := []struct {
		name   string
		script []string
		want   string
	}{
		{"echo one by one", []string{"<$ ", ">l", "<l", ">s", "<s", ">\r", "<\r\nfile\r\n$ "}, "ls\r"},
		{"echo of a whole line at once", []string{"<$ ", ">ls -l\r", "<ls -l\r\ntotal 0\r\n$ "}, "ls -l\r"},
		{"echo in pieces", []string{">hello\r", "<he", "<ll", "<o\r\n"}, "hello\r"},
		{"no echo, then enter", []string{"<Name? ", ">hunter2", ">\r", "<\r\nok\r\n"}, "****\r"},
		{"no echo and nothing answers", []string{">hunter2\r", "."}, "****\r"},
		{"no echo, slowly", []string{">h", ".", ">u", ".", ">n", ".", ">\r", "<\r\n"}, "****\r"},
		{"the next line is decided anew", []string{">pw\r", "<\r\n$ ", ">l", "<l", ">s", "<s", ">\r", "<\r\n"}, "****\rls\r"},
		{"asterisks for an echo", []string{">p", "<*", ">w", "<*", ">\r", "<\r\n"}, "****\r"},
		{"half echoed is not echoed", []string{">secret\r", "<sec\r\n"}, "****\r"},
		{"what comes after the newline is no echo", []string{">root\r", "<\r\nroot@db:~# "}, "****\r"},
		{"a prompt for a password wins", []string{"<[sudo] password for demo: ", ">a", "<a", ">b", "<b", ">\r", "<\r\n"}, "****\r"},
		{"prompt in colours", []string{"<\x1b[1mPassword:\x1b[0m ", ">a", "<a", ">\r", "<\r\n"}, "****\r"},
		{"passphrase", []string{"<Enter passphrase for key '/home/demo/.ssh/id': ", ">x", "<x", ">\r", "<\r\n"}, "****\r"},
		{"prompt comes after the typing", []string{">pw", "<Password: ", ">\r", "<\r\n"}, "****\r"},
		{"a shell prompt in a directory named secret", []string{"<root@db:~/secret# ", ">ls", "<ls", ">\r", "<\r\n"}, "ls\r"},
		{"arrows and control keys are kept", []string{">\x1b[A", "<ls", ">\x03", "<^C\r\n$ "}, "\x1b[A\x03"},
		{"function keys", []string{">\x1bOP\x1b[15~"}, "\x1bOP\x1b[15~"},
		{"insertion in the middle", []string{">ab", "<ab", ">\x1b[D", "<\b", ">X", "<Xb\b", ">\r", "<\r\n"}, "ab\x1b[DX\r"},
		{"colours while typing", []string{">l", "<l", ">s", "<\b\x1b[32mls\x1b[39m", ">\r", "<\r\n"}, "ls\r"},
		{"suggestion after the echo", []string{">l", "<l\x1b[90ms -la\x1b[m\x1b[6D", ">\r", "<\r\n"}, "l\r"},
		{"backspace", []string{">lx", "<lx", ">\x7f", "<\b \b", ">s", "<s", ">\r", "<\r\n"}, "lx\x7fs\r"},
		{"backspaces of a password are not kept", []string{">ab\x7f\x7fc\r", "<\r\n"}, "****\r"},
		{"bracketed paste", []string{">\x1b[200~ls -l\x1b[201~", "<\x1b[7mls -l\x1b[27m", ">\r", "<\r\n"}, "\x1b[200~ls -l\x1b[201~\r"},
		{"runes, also split", []string{">gr\xc3", ">\xbc\xc3\x9f", "<gr\xc3\xbc", "<\xc3\x9f", ">\r", "<\r\n"}, "grüß\r"},
		{"background output does not unmask", []string{">s", "<job done: secrets\r\n", ">e", "<x", ".", ">\r", "<\r\n"}, "****\r"},
		{"Ctrl-U begins anew", []string{">abc\x15", ".", ">de\r", "<\r\n"}, "****\x15****\r"},
		{"unfinished sequence", []string{">\x1b]52;c;c2VjcmV0" + strings.Repeat("A", 200), "."}, "****"},
		{"nothing echoes in a pager", []string{">jjk", ".", ">q", "."}, "****"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := masked(tt.script...); got != tt.want {
				t.Errorf("wrote %q, want %q", got, tt.want)
			}
		})
	}
}

// Whatever the output does, a printable character is only written if the
// output showed it before.
func TestMaskerProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var shown, wrote strings.Builder
		m := &masker{emit: func(p []byte) { wrote.Write(p) }}
		now := time.Unix(0, 0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 800).Draw(t, "ms")) * time.Millisecond)
			if rapid.Bool().Draw(t, "typed") {
				m.input([]byte(rapid.StringMatching(`[abc\r\x7f]{1,5}`).Draw(t, "input")), now)
			} else {
				s := rapid.StringMatching(`[abc\r\n\x08]{1,6}`).Draw(t, "output")
				shown.WriteString(s)
				m.output([]byte(s), now)
			}
			m.tick(now)
			for _, c := range []string{"a", "b", "c"} {
				if strings.Count(wrote.String(), c) > strings.Count(shown.String(), c) {
					t.Fatalf("wrote %q, shown was %q", wrote.String(), shown.String())
				}
			}
		}
		m.flush()
		if m.waiting() {
			t.Fatal("something waits after the end")
		}
	})
}

func FuzzMasker(f *testing.F) {
	f.Add([]byte("ls\r"), []byte("ls\r\n"))
	f.Add([]byte("\x1b[200~pw"), []byte("Password: "))
	f.Fuzz(func(t *testing.T, in, out []byte) {
		m := &masker{emit: func([]byte) {}}
		now := time.Unix(0, 0)
		for len(in)+len(out) > 0 {
			n, k := min(3, len(in)), min(5, len(out))
			m.input(in[:n], now)
			m.output(out[:k], now)
			in, out = in[n:], out[k:]
			now = now.Add(100 * time.Millisecond)
		}
		m.flush()
		if m.waiting() {
			t.Fatal("something waits after the end")
		}
	})
}

// terminal is a program on a pseudo-terminal whose two directions go through a
// masker, as in a session. For the masker no time passes: an echo that takes
// too long is no echo, and how long it takes is the machine's.
type terminal struct {
	t    *testing.T
	ptm  *os.File
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	mask  masker
	shown bytes.Buffer
	wrote bytes.Buffer
}

var noTime = time.Unix(0, 0)

func startTerminal(t *testing.T, name string, args ...string) *terminal {
	t.Helper()
	ptm, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		harness.Lacks(t, "no pseudo-terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(ptm.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ptm.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, ptm: ptm, done: make(chan struct{})}
	x.mask.emit = func(p []byte) { x.wrote.Write(p) }
	x.cmd = exec.Command(name, args...)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = pts, pts, pts
	x.cmd.Env = []string{"PS1=ready> ", "TERM=xterm-256color", "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C.UTF-8"}
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pts.Close()
	go func() {
		defer close(x.done)
		buf := make([]byte, 4096)
		for {
			n, err := ptm.Read(buf)
			x.mu.Lock()
			x.shown.Write(buf[:n])
			x.mask.output(buf[:n], noTime)
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		x.cmd.Process.Kill()
		x.cmd.Wait()
		ptm.Close()
		<-x.done
	})
	return x
}

// expect waits until the program has shown text since mark and returns the new mark.
func (x *terminal) expect(mark int, text string) int {
	x.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		x.mu.Lock()
		s := x.shown.String()
		x.mask.tick(noTime)
		x.mu.Unlock()
		if i := strings.Index(s[mark:], text); i >= 0 {
			return mark + i + len(text)
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("no %q in %q", text, s[mark:])
		}
		<-time.After(2 * time.Millisecond)
	}
}

// echoOff waits until the terminal reads lines without echo; what is typed
// earlier is shown, and is then no secret any more.
func (x *terminal) echoOff() {
	x.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		m, err := unix.IoctlGetTermios(int(x.ptm.Fd()), unix.TCGETS)
		if err != nil {
			x.t.Fatal(err)
		}
		if m.Lflag&unix.ICANON != 0 && m.Lflag&unix.ECHO == 0 {
			return
		}
		if time.Now().After(deadline) {
			x.t.Fatal("the echo stays on")
		}
		<-time.After(time.Millisecond)
	}
}

// keys types text; one key at a time waits a little between keys, as people do.
func (x *terminal) keys(text string, oneByOne bool) {
	x.t.Helper()
	parts := []string{text}
	if oneByOne {
		parts = strings.Split(text, "")
	}
	for _, p := range parts {
		x.mu.Lock()
		x.mask.input([]byte(p), noTime)
		x.mu.Unlock()
		if _, err := io.WriteString(x.ptm, p); err != nil {
			x.t.Fatal(err)
		}
		if oneByOne {
			<-time.After(8 * time.Millisecond)
		}
	}
}

func (x *terminal) written() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.mask.flush()
	return x.wrote.String()
}

func TestMaskRealBash(t *testing.T) {
	for _, oneByOne := range []bool{true, false} {
		t.Run(fmt.Sprintf("one by one %t", oneByOne), func(t *testing.T) {
			x := startTerminal(t, "bash", "--norc", "--noprofile", "-i")
			at := x.expect(0, "ready> ")
			x.keys("echo first-$((40+2))", oneByOne)
			x.keys("\r", false)
			at = x.expect(at, "first-42")
			at = x.expect(at, "ready> ")
			x.keys("read -s secret; echo; echo got-${#secret}\r", oneByOne)
			at = x.expect(at, "got-${#secret}\r\n")
			x.echoOff()
			x.keys("Tr0ub4dor&3\r", oneByOne)
			at = x.expect(at, "got-11")
			at = x.expect(at, "ready> ")
			x.keys("read -s -p 'Password: ' secret; echo; echo got-${#secret}\r", oneByOne)
			at = x.expect(at, "\rPassword: ")
			x.echoOff()
			x.keys("correct horse battery\r", oneByOne)
			at = x.expect(at, "got-21")
			at = x.expect(at, "ready> ")
			// Line editing: insert in the middle, take back, recall.
			x.keys("echo abd", true)
			x.keys("\x1b[D", false)
			x.keys("c", true)
			x.keys("\r", false)
			at = x.expect(at, "\rabcd")
			at = x.expect(at, "ready> ")
			x.keys("stty -echo; head -n1 | wc -c; stty echo\r", oneByOne)
			at = x.expect(at, "stty echo\r\n")
			x.echoOff()
			x.keys("xyzzy-plugh\r", oneByOne)
			x.expect(at, "12")
			got := x.written()
			for _, secret := range []string{"Tr0ub4dor", "dor&3", "correct", "horse", "battery", "xyzzy", "plugh"} {
				if strings.Contains(got, secret) {
					t.Errorf("%q is written: %q", secret, got)
				}
			}
			for _, typed := range []string{"echo first-$((40+2))\r", "read -s secret; echo; echo got-${#secret}\r", "echo abd\x1b[Dc\r", "stty -echo; head"} {
				if !strings.Contains(got, typed) {
					t.Errorf("%q is not written: %q", typed, got)
				}
			}
			if n := strings.Count(got, maskText+"\r"); n != 3 {
				t.Errorf("%d masked lines, want 3: %q", n, got)
			}
		})
	}
}

func TestMaskRealSudo(t *testing.T) {
	if _, err := exec.LookPath("sudo"); err != nil {
		harness.Lacks(t, "no sudo here")
	}
	if os.Getuid() != 0 {
		harness.Lacks(t, "needs root to ask for the password of another user")
	}
	// As nobody, sudo asks for a password; a wrong one is as good as any.
	x := startTerminal(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sudo", "-k", "-S", "-p", "[sudo] password for %u: ", "true")
	at := x.expect(0, "[sudo] password for nobody: ")
	x.echoOff()
	x.keys("open-sesame-77\r", true)
	x.expect(at, "\n")
	if got := x.written(); strings.Contains(got, "sesame") || !strings.Contains(got, maskText) {
		t.Errorf("written: %q", got)
	}
}

// A password that also appears in the output as something else stays masked.
func TestMaskRealEchoLater(t *testing.T) {
	x := startTerminal(t, "bash", "--norc", "--noprofile", "-i")
	at := x.expect(0, "ready> ")
	x.keys("read -s p; echo \"you typed $p\"\r", true)
	at = x.expect(at, "$p\"\r\n")
	x.echoOff()
	x.keys("swordfish\r", true)
	x.expect(at, "you typed swordfish")
	if got := x.written(); strings.Contains(got, "swordfish") {
		t.Errorf("written: %q", got)
	}
}

func BenchmarkMaskOutput(b *testing.B) {
	m := &masker{emit: func([]byte) {}}
	p := bytes.Repeat([]byte("-rw-r--r-- 1 root root 4096 file.txt\r\n"), 800)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		m.output(p, time.Unix(0, 0))
	}
}
