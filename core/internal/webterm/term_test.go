package webterm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"caponier/core/internal/access"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
)

func socketPath(t Terminal) string { return "/terminal-sessions/" + t.ID + "/socket" }

// TestTerminal: a shell on a real sshd, typed into, resized, ended.
func TestTerminal(t *testing.T) {
	r := newRig(t)
	term := r.open()
	if term.ConnectionID == "" || !term.Recorded {
		t.Fatalf("opened as %+v", term)
	}
	y := r.dial("demo", socketPath(term))
	y.enter("echo typed-$((40+2))\n")
	y.sees("typed-42")
	y.write([]byte{msgResize, 0, 132, 0, 50})
	y.enter("stty size; tty\n")
	y.sees("50 132")
	y.told("running", func(s State) bool { return s.State == "running" && s.ConnectionID == term.ConnectionID })
	var x *conn.Record
	r.until("the recording is known", func() bool {
		var err error
		x, err = r.conns.Get(t.Context(), term.ConnectionID)
		return err == nil && x.RecordingID != ""
	})
	if x.Via != "api" || x.Kind != "ssh" || x.UserName != "demo" || !x.Lockable {
		t.Fatalf("%+v", x)
	}
	y.enter("exit 3\n")
	st := y.told("ended", func(s State) bool { return s.State == "ended" })
	if st.ExitStatus == nil || *st.ExitStatus != 3 {
		t.Errorf("ended as %+v", st)
	}
	if code := y.closed(); code != closeEnded {
		t.Errorf("closed with %d", code)
	}
	// Somebody who comes back still reads the rest and why it ended.
	again := r.dial("demo", socketPath(term)+"?output=0")
	again.sees("typed-42")
	again.told("ended", func(s State) bool { return s.State == "ended" })
}

// TestResume: the session outlives its socket, output goes on where it was,
// and input that was sent twice counts once.
func TestResume(t *testing.T) {
	r := newRig(t)
	term := r.open()
	y := r.dial("demo", socketPath(term))
	y.enter("stty -echo; PS1=; echo ready-$((1+1))\n")
	y.sees("ready-2")
	at := y.offset()
	_ = y.c.CloseNow() // a network that fails says no goodbye
	<-y.done
	z := r.dial("demo", fmt.Sprintf("%s?output=%d", socketPath(term), at))
	r.until("hello", func() bool { z.mu.Lock(); defer z.mu.Unlock(); return z.next >= at && z.taken == y.typed })
	if z.fresh {
		t.Error("told to forget its screen")
	}
	// The last line again, as a browser would that does not know it arrived.
	last := "echo once-$((2+3))\n"
	z.write(offsetMessage(msgInput, y.typed, []byte(last)))
	z.write(offsetMessage(msgInput, y.typed, []byte(last+"echo done-$((3+3))\n")))
	z.sees("done-6")
	if n := strings.Count(z.output(), "once-5"); n != 1 {
		t.Errorf("ran %d times: %q", n, z.output())
	}
	if strings.Contains(z.output(), "ready-2") || strings.Contains(z.output(), "gap") {
		t.Errorf("output did not go on: %q", z.output())
	}
	// A second tab takes the session over; the first is told.
	fresh := r.dial("demo", socketPath(term))
	if code := z.closed(); code != closeTaken {
		t.Errorf("the first tab was closed with %d", code)
	}
	fresh.sees("ready-2")
	fresh.sees("done-6")
	// Input out of its order is refused.
	fresh.write(offsetMessage(msgInput, 1<<40, []byte("x")))
	if code := fresh.closed(); code != closeProtocol {
		t.Errorf("closed with %d", code)
	}
}

// TestNobodyComesBack: a session without a socket ends after its time, which
// begins when somebody knows of the session: opening it may take longer.
func TestNobodyComesBack(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Resume = 300 * time.Millisecond })
	r.change(func() { r.slow = time.Second })
	term := r.open()
	// Its target may not have been reached by then: it has failed, and is over.
	r.until("the connection ends", func() bool {
		x, err := r.conns.Get(t.Context(), term.ConnectionID)
		return err == nil && x.State.Over() && x.EndReason == conn.EndedByUser
	})
	r.until("the session is forgotten", func() bool { n, _ := r.svc.count(); return n == 0 })
}

// TestFlowControl: a program that prints for ever waits for the browser and
// neither eats memory nor floods; meanwhile input gets through.
func TestFlowControl(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Tape = 256 << 10 })
	term := r.open()
	c, _, err := r.handshake("demo", socketPath(term))
	must(t, err)
	y := r.tty(c, false)
	y.enter("yes abcdefghij\n")
	r.until("the window is full", func() bool { return y.offset() >= window })
	x := r.svc.sessions[term.ID]
	held := func() uint64 { _, end := x.tape.bounds(); return end }
	r.until("the program waits", func() bool {
		before := held()
		<-time.After(300 * time.Millisecond)
		return held() == before
	})
	if n := y.offset(); n > window+outputPiece {
		t.Errorf("%d bytes were sent without an acknowledgement", n)
	}
	if n := held(); n > 256<<10 {
		t.Errorf("%d bytes wait on a tape of %d", n, 256<<10)
	}
	// Ctrl-C arrives though the screen is far behind.
	y.enter("\x03")
	y.mu.Lock()
	y.ack = true
	y.mu.Unlock()
	y.write(offsetMessage(msgAck, y.offset(), nil))
	y.enter("echo after-$((4+4))\n")
	y.sees("after-8")
}

// TestLock: keys are ignored, the message is shown, output goes on, unlocking
// resumes; and the block on new connections holds until then.
func TestLock(t *testing.T) {
	r := newRig(t)
	term := r.open()
	y := r.dial("demo", socketPath(term))
	y.enter("PS1=; (while sleep 0.05; do echo tick; done) & echo go-$((1+1))\n")
	y.sees("go-2")
	path := "/connections/" + term.ConnectionID
	r.call("demo", "POST", path+"/lock", map[string]any{}, 403, nil)
	var x conn.Record
	r.call("auditor", "POST", path+"/lock", map[string]any{"reason": "Checking.", "block_new": "target"}, 200, &x)
	if x.LockedAt.IsZero() || x.LockedBy != "auditor" || x.LockText != "Checking." {
		t.Errorf("locked: %+v", x)
	}
	y.told("locked", func(s State) bool { return s.Locked && s.LockText == "Checking." })
	y.sees("This session is locked: Checking.")
	r.call("auditor", "POST", path+"/lock", map[string]any{}, 409, nil)
	y.enter("echo frozen-$((5+5))\n")
	before := strings.Count(y.output(), "tick")
	r.until("output goes on", func() bool { return strings.Count(y.output(), "tick") > before+10 })
	if strings.Contains(y.output(), "frozen") {
		t.Fatalf("input passed a lock: %q", y.output())
	}
	code, body := r.do("demo", "POST", "/terminal-sessions", strings.NewReader(`{"target":"db-1","account":"`+r.account+`"}`))
	if code != 403 || !strings.Contains(string(body), "was locked: Checking.") {
		t.Errorf("a new connection: %d %s", code, body)
	}
	r.call("auditor", "POST", path+"/unlock", nil, 200, nil)
	y.sees("The session is unlocked.")
	y.enter("echo thawed-$((6+6))\n")
	y.sees("thawed-12")
	if strings.Contains(y.output(), "frozen-10") {
		t.Error("what was typed while locked ran afterwards")
	}
	r.call("auditor", "POST", path+"/unlock", nil, 409, nil)
	if r.audited(audit.ConnectionLocked, term.ConnectionID) != 1 || r.audited(audit.ConnectionUnlocked, term.ConnectionID) != 1 {
		t.Error("lock and unlock are not audited")
	}
	r.open()
	// A locked session can still be ended, and the user reads why.
	r.call("auditor", "POST", path+"/lock", map[string]any{"block_new": "user"}, 200, nil)
	r.call("auditor", "DELETE", path+"?reason=Maintenance", nil, 204, nil)
	st := y.told("ended", func(s State) bool { return s.State == "ended" })
	if st.Reason != "terminated" || st.Text != "Maintenance" {
		t.Errorf("ended: %+v", st)
	}
	// Ending it does not lift the block.
	r.call("demo", "POST", "/terminal-sessions", map[string]any{"target": "db-1", "account": r.account}, 403, nil)
	r.call("auditor", "POST", path+"/unlock", nil, 200, nil)
	r.open()
}

// TestWatch: a watcher sees the picture as it is and then every byte; the user
// is told; masked input stays masked; the watcher cannot type.
func TestWatch(t *testing.T) {
	r := newRig(t)
	term := r.open()
	y := r.dial("demo", socketPath(term))
	y.enter("PS1='> '; printf '\\033[2J\\033[3;5Hpicture-%d' $((7+7))\n")
	y.sees("picture-14")
	path := "/connections/" + term.ConnectionID + "/watch"
	if code, body := r.do("demo", "GET", path, nil); code != 403 {
		t.Errorf("without the permission: %d %s", code, body)
	}
	r.until("the recording is known", func() bool {
		x, err := r.conns.Get(t.Context(), term.ConnectionID)
		return err == nil && x.RecordingID != ""
	})
	w := r.dial("auditor", path)
	w.sees("picture-14")
	w.mu.Lock()
	size := w.size
	w.mu.Unlock()
	if size != "80x24" {
		t.Errorf("size %q", size)
	}
	y.told("watched", func(s State) bool { return len(s.Watchers) == 1 && s.Watchers[0] == "auditor" })
	y.sees("being watched by auditor")
	y.write([]byte{msgResize, 0, 100, 0, 30})
	y.enter("read -s -p 'Password: ' x; echo; echo got-${#x}\n")
	y.sees("Password: ")
	y.enter("hunter2secret\n")
	y.sees("got-13")
	w.sees("got-13")
	r.until("the resize arrives", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.size == "100x30" })
	w.mu.Lock()
	states := bytes.Clone(w.states)
	w.mu.Unlock()
	if strings.Contains(w.output(), "hunter2secret") || bytes.Contains(states, []byte("hunter2secret")) {
		t.Error("the watcher saw a password that was not shown")
	}
	start := time.Now()
	y.enter("echo quick-$((8+8))\n")
	w.sees("quick-16")
	t.Logf("a watcher saw it after %v", time.Since(start).Round(time.Millisecond))
	var list struct{ Items []conn.Watcher }
	r.call("auditor", "GET", "/connections/"+term.ConnectionID+"/watchers", nil, 200, &list)
	if len(list.Items) != 1 || list.Items[0].UserName != "auditor" {
		t.Errorf("watchers: %+v", list.Items)
	}
	// Another one comes later and sees the same picture.
	r.change(func() { r.perms["second"] = r.perms["auditor"] })
	late := r.dial("second", path)
	late.sees("quick-16")
	// Who loses the permission sees nothing more, at once.
	r.change(func() { delete(r.perms, "second") })
	r.notify("role", "rol_1")
	if code := late.closed(); code != closeForbidden {
		t.Errorf("closed with %d", code)
	}
	// Watchers only look.
	w.write(offsetMessage(msgInput, 0, []byte("rm -rf /\n")))
	if code := w.closed(); code != closeProtocol {
		t.Errorf("closed with %d", code)
	}
	y.sees("Nobody is watching")
	if r.audited(audit.ConnectionWatched, term.ConnectionID) != 2 || r.audited(audit.ConnectionUnwatched, term.ConnectionID) != 2 {
		t.Error("watching is not audited")
	}
	// The end of the connection is the end of watching.
	w = r.dial("auditor", path)
	w.sees("quick-16")
	y.enter("exit\n")
	if code := w.closed(); code != closeEnded {
		t.Errorf("closed with %d", code)
	}
	r.until("watching what has ended is refused", func() bool {
		code, _ := r.do("auditor", "GET", path, nil)
		return code == 409
	})
}

// TestRefusals: what may not be opened says why, and nothing stays behind.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name, who string
		change    func()
		code      string
	}{
		{"no role", "stranger", func() {}, `"no_role"`},
		{"no shell", "demo", func() { r.features = access.FileTransfer }, `"no_feature"`},
		{"a reason is missing", "demo", func() { r.features, r.reason = access.Shell, true }, `"reason_needed"`},
	} {
		r.change(c.change)
		code, body := r.do(c.who, "POST", "/terminal-sessions", strings.NewReader(`{"target":"db-1","account":"`+r.account+`"}`))
		if code != 403 || !strings.Contains(string(body), c.code) {
			t.Errorf("%s: %d %s", c.name, code, body)
		}
	}
	var term Terminal
	r.call("demo", "POST", "/terminal-sessions", map[string]any{"target": "db-1", "account": r.account, "reason": "ticket 17"}, 201, &term)
	if x, err := r.conns.Get(t.Context(), term.ConnectionID); err != nil || x.Reason != "ticket 17" {
		t.Errorf("%+v, %v", x, err)
	}
	// Somebody else's session does not exist, a foreign page gets nowhere.
	r.call("other", "GET", "/terminal-sessions/"+term.ID, nil, 404, nil)
	if _, resp, err := r.handshake("other", socketPath(term)); err == nil || resp.StatusCode != 404 {
		t.Error("the socket of somebody else opened")
	}
	// Nor does it for another login of the same user, such as an API token.
	r.call("demo/token", "GET", "/terminal-sessions/"+term.ID, nil, 404, nil)
	r.call("demo/token", "DELETE", "/terminal-sessions/"+term.ID, nil, 404, nil)
	if code, body := r.do("demo/token", "GET", filesPath(term, "", "path", "/"), nil); code != 404 {
		t.Errorf("files by another login: %d %s", code, body)
	}
	if _, resp, err := r.handshake("demo/token", socketPath(term)); err == nil || resp.StatusCode != 404 {
		t.Error("the socket opened for another login")
	}
	var listed struct{ Items []Terminal }
	if r.call("demo/token", "GET", "/terminal-sessions", nil, 200, &listed); len(listed.Items) != 0 {
		t.Errorf("listed to another login: %+v", listed.Items)
	}
	_, resp, err := websocket.Dial(t.Context(), "wss"+strings.TrimPrefix(r.web.URL, "https")+"/api/v1"+socketPath(term), &websocket.DialOptions{
		HTTPClient: r.web.Client(), HTTPHeader: map[string][]string{"Cookie": {"session=demo"}, "Origin": {"https://evil.test"}}})
	if err == nil || resp.StatusCode != 403 {
		t.Errorf("a page of another origin: %v", resp)
	}
	own, _, err := websocket.Dial(t.Context(), "wss"+strings.TrimPrefix(r.web.URL, "https")+"/api/v1"+socketPath(term), &websocket.DialOptions{
		HTTPClient: r.web.Client(), HTTPHeader: map[string][]string{"Cookie": {"session=demo"}, "Origin": {r.web.URL}}})
	must(t, err)
	y := r.tty(own, true)
	// A login that ends takes the terminal with it.
	r.change(func() { r.gone["demo"] = true })
	r.notify("session", "ses_demo")
	st := y.told("ended", func(s State) bool { return s.State == "ended" })
	if st.Reason != "login_ended" {
		t.Errorf("ended: %+v", st)
	}
}
