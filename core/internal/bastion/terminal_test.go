package bastion

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"caponier/core/internal/access"
	"caponier/core/internal/target"
)

// terminal is a program that runs on a terminal of its own.
type terminal struct {
	t      *testing.T
	master *os.File
	done   chan struct{} // closed when the program has ended and all of its output is read
	code   int           // after done

	mu   sync.Mutex
	out  string // guarded by mu: everything shown
	seen int    // guarded by mu: how much of out a match has used up
}

// openPTY opens a pair of pseudo terminals (pts(4)).
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(int(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		_ = master.Close()
		t.Fatal(err)
	}
	return master, slave
}

// onTerminal starts a program on a terminal of cols by rows.
func (b *bench) onTerminal(t *testing.T, term string, cols, rows uint16, name string, args ...string) *terminal {
	t.Helper()
	master, slave := openPTY(t)
	x := &terminal{t: t, master: master, done: make(chan struct{})}
	x.size(cols, rows)
	c := exec.Command(name, args...)
	c.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "TERM=") }), "TERM="+term, "SSH_AUTH_SOCK=")
	c.Dir = b.dir
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	err := c.Start()
	_ = slave.Close()
	if err != nil {
		_ = master.Close()
		t.Fatal(err)
	}
	// A program that hangs is ended, so that the test ends.
	kill := time.AfterFunc(60*time.Second, func() { _ = c.Process.Kill() })
	go func() {
		defer close(x.done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // EIO when the program has closed its side
			x.mu.Lock()
			x.out += string(buf[:n])
			x.mu.Unlock()
			if err != nil {
				break
			}
		}
		_ = c.Wait()
		kill.Stop()
		x.code = c.ProcessState.ExitCode()
	}()
	t.Cleanup(func() {
		_ = c.Process.Kill()
		<-x.done
		_ = master.Close()
	})
	return x
}

// size changes the size of the terminal.
func (x *terminal) size(cols, rows uint16) {
	x.t.Helper()
	if err := unix.IoctlSetWinsize(int(x.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		x.t.Fatal(err)
	}
}

// want waits until what was shown since the last match has pattern, and
// returns its match.
func (x *terminal) want(pattern string) string {
	x.t.Helper()
	re := regexp.MustCompile("(?s)" + pattern)
	var found string
	ok := func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		at := re.FindStringIndex(x.out[x.seen:])
		if at == nil {
			return false
		}
		found = x.out[x.seen:][at[0]:at[1]]
		x.seen += at[1]
		return true
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			x.t.Fatalf("nothing shown matches %q:\n%q", pattern, x.rest())
		case <-x.done:
			if ok() {
				return found
			}
			x.t.Fatalf("the program ended with %d before showing %q:\n%q", x.code, pattern, x.rest())
		case <-tick.C:
		}
	}
	return found
}

func (x *terminal) rest() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.out[x.seen:]
}

func (x *terminal) send(s string) {
	x.t.Helper()
	if _, err := x.master.WriteString(s); err != nil {
		x.t.Fatal(err)
	}
}

// end waits for the program and returns its exit status.
func (x *terminal) end() int {
	x.t.Helper()
	select {
	case <-x.done:
	case <-time.After(patience):
		x.t.Fatalf("the program does not end:\n%q", x.rest())
	}
	return x.code
}

func TestMenuOnTerminal(t *testing.T) {
	for _, term := range []string{"xterm", "dumb"} {
		t.Run(term, func(t *testing.T) {
			b := newBench(t)
			d := b.startSSHD()
			b.add("db-1", d)
			b.add("db-2", d)
			b.add("web-1", d)
			b.add("pg-1", nil, func(r *right) { r.target.Kind = target.TCP; r.account = nil; r.features = access.Forward })
			x := b.onTerminal(t, term, 80, 24, "ssh", b.sshArgs("demo", "-tt", "--")...)
			x.want(`targets of demo, 1-3 of 3.*db-1.*db-2.*web-1.*> `)
			if term == "dumb" {
				x.send("db-2\r")
				x.want(`targets of demo, 1-1 of 1.*db-2.*> `)
				x.send("1\r")
			} else {
				x.send("db-")
				x.want(`targets of demo, 1-2 of 2.*db-1.*db-2.*> db-`)
				x.send("\x1b[B\r") // down
			}
			x.want(`Connecting to db-2 as ` + b.me)
			x.send("id -un; stty size; exit 6\r")
			x.want(`[\r\n]` + b.me + `\r+\n24 80\r+\n`)
			if code := x.end(); code != 6 {
				t.Errorf("exit %d, want 6", code)
			}
			l := b.last()
			if l.spec.TargetName != "db-2" || l.spec.Want != access.Shell {
				t.Errorf("connected to %s for %s", l.spec.TargetName, l.spec.Want)
			}
			tp := b.tapes.list()[0]
			if !strings.Contains(tp.output(), b.me) || tp.in.String() != "id -un; stty size; exit 6\r" {
				t.Errorf("recording: in %q, out %q", tp.in.String(), tp.output())
			}
		})
	}
}

// A menu follows the size of the terminal, and leaves it usable.
func TestMenuResizedAndLeft(t *testing.T) {
	b := newBench(t)
	for i := range 30 {
		b.add(fmt.Sprintf("db-%02d", i+1), nil)
	}
	x := b.onTerminal(t, "xterm", 80, 24, "ssh", b.sshArgs("demo", "-tt", "--")...)
	x.want(`1-18 of 30.*> `)
	x.size(40, 10)
	screen := x.want(`1-4 of 30.*> `)
	for line := range strings.SplitSeq(screen, "\r\n") {
		if n := len(strings.TrimPrefix(line, "\x1b[H\x1b[2J")); n >= 40 {
			t.Errorf("line of %d columns: %q", n, line)
		}
	}
	x.send("\x1b[6~") // page down
	x.want(`5-8 of 30.*> `)
	x.send("\x04")
	if code := x.end(); code != 0 {
		t.Errorf("exit %d after Ctrl-D, want 0", code)
	}
	if n := len(b.conns.list()); n != 0 {
		t.Errorf("%d connections were opened", n)
	}
}

func TestReasonAskedOnTerminal(t *testing.T) {
	b := newBench(t)
	b.add("db-1", b.startSSHD(), func(r *right) { r.needReason = true })
	r := b.ssh(b.to("db-1"), "true")
	if r.code != exitRefused || !strings.Contains(r.err, "A reason is needed.") {
		t.Errorf("without a reason: %v", r)
	}
	if r := b.ssh(b.to("db-1"), "-o", "SetEnv=CAPONIER_REASON=\"ticket 17\"", "--", "echo", "$CAPONIER_REASON."); r.code != 0 || r.out != ".\n" {
		t.Errorf("reason by environment: %v", r)
	}
	if got := b.last().spec.Reason; got != "ticket 17" {
		t.Errorf("got reason %q", got)
	}
	for _, term := range []string{"xterm", "dumb"} {
		x := b.onTerminal(t, term, 80, 24, "ssh", b.sshArgs(b.to("db-1"), "-tt", "--")...)
		x.want(`Reason for this connection: `)
		x.send("ticket 19\x7f8\r")
		x.send("exit 5\r") // typed ahead: it is for the shell
		if code := x.end(); code != 5 || b.last().spec.Reason != "ticket 18" {
			t.Errorf("%s: exit %d, reason %q", term, code, b.last().spec.Reason)
		}
	}
	x := b.onTerminal(t, "xterm", 80, 24, "ssh", b.sshArgs(b.to("db-1"), "-tt", "--")...)
	x.want(`Reason for this connection: `)
	n := len(b.conns.list())
	x.send("\x03")
	if code := x.end(); code != exitUsage || len(b.conns.list()) != n {
		t.Errorf("cancelled: exit %d, %d more connections", code, len(b.conns.list())-n)
	}
}
