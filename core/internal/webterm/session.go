package webterm

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/bastion"
	"caponier/core/internal/db"
)

// State is what a browser is told about its session, whole, at every change.
type State struct {
	// State: connecting (the connection is open, its target is being reached,
	// or the user is asked something), running, ended.
	State        string     `json:"state" enum:"connecting,running,ended"`
	ConnectionID string     `json:"connection_id,omitempty"`
	Recorded     bool       `json:"recorded"`
	Locked       bool       `json:"locked"`
	LockText     string     `json:"lock_text,omitempty"`
	Watchers     []string   `json:"watchers,omitempty"`
	EndsAt       *time.Time `json:"ends_at,omitempty" doc:"when a limit will end it"`
	// Of an ended session.
	Reason     string `json:"reason,omitempty" doc:"as end_reason of the connection"`
	Text       string `json:"text,omitempty"`
	ExitStatus *int   `json:"exit_status,omitempty"`
}

// session is one terminal of a browser.
type session struct {
	id, userID      string
	login           string // the only one that may use it: others may lack its factors or come from elsewhere
	target, account string
	createdAt       time.Time
	svc             *Service
	att             *bastion.Attached
	tape            *tape
	ctx             context.Context
	cancel          context.CancelCauseFunc

	transfers chan struct{} // bounds uploads and downloads at once
	opening   chan struct{} // held (by sending) while the SFTP session is looked for

	mu       sync.Mutex
	ssh      *ssh.Session  // guarded by mu
	state    State         // guarded by mu
	changed  chan struct{} // guarded by mu: closed and replaced when state or accepted changes
	attached *socket       // guarded by mu
	met      bool          // guarded by mu: there was a socket
	detached time.Time     // guarded by mu: since when there is no socket; zero: nobody was told of the session yet
	queue    []byte        // guarded by mu: input on its way
	taken    uint64        // guarded by mu: offset of input that was taken
	accepted uint64        // guarded by mu: offset of input that went on
	wake     chan struct{} // one token: there is input
	over     chan struct{} // closed when the session has ended
	sftpText string        // guarded by mu: why the last file session ended
	sftp     *filesHandle  // guarded by mu
	opened   chan struct{} // closed when the connection is open or refused
	refusal  *api.Problem  // guarded by mu: when it was refused before that
	openOnce sync.Once
}

// errGone ends a session nobody came back to.
var errGone = errors.New("the browser did not come back")

// errClosed ends a session by its user's wish.
var errClosed = errors.New("closed by its user")

// open attaches a login and starts a shell in it.
func (s *Service) open(p *api.Principal, source netip.Addr, agent string, in openBody) (*session, error) {
	x := &session{
		id: db.NewID("ter_"), userID: p.UserID, login: p.Session, target: in.Target, account: in.Account, createdAt: s.cfg.Now(), svc: s,
		tape: newTape(s.limits.Tape, in.Cols, in.Rows), changed: make(chan struct{}), wake: make(chan struct{}, 1),
		over: make(chan struct{}), opened: make(chan struct{}), transfers: make(chan struct{}, s.limits.Transfers), opening: make(chan struct{}, 1),
		state: State{State: "connecting"},
	}
	x.ctx, x.cancel = context.WithCancelCause(s.hard)
	if err := s.admit(x); err != nil {
		x.cancel(nil)
		return nil, err
	}
	var err error
	x.att, err = s.cfg.Bastion.Attach(s.soft, bastion.Attach{
		Principal: p, Source: source, UserAgent: agent, Target: in.Target, Account: in.Account, Observe: x.observe,
	})
	if err == nil {
		err = x.start(in)
	}
	if err != nil {
		x.cancel(nil)
		if x.att != nil {
			_ = x.att.Close()
		}
		s.drop(x)
		return nil, err
	}
	go x.run()
	return x, nil
}

// start asks for a shell on the attached login.
func (x *session) start(in openBody) error {
	ss, err := x.att.NewSession()
	if err != nil {
		return err
	}
	x.mu.Lock()
	x.ssh = ss
	x.mu.Unlock()
	if in.Reason != "" {
		if err := ss.Setenv("CAPONIER_REASON", in.Reason); err != nil {
			return err
		}
	}
	for _, e := range [][2]string{{"COLORTERM", "truecolor"}} {
		_ = ss.Setenv(e[0], e[1]) // a target may refuse it
	}
	return ss.RequestPty("xterm-256color", in.Rows, in.Cols, ssh.TerminalModes{ssh.ECHO: 1, ssh.TTY_OP_ISPEED: 38400, ssh.TTY_OP_OSPEED: 38400})
}

// run carries the session to its end and keeps it a while for a browser that
// comes back to read the rest.
func (x *session) run() {
	defer x.svc.drop(x)
	defer x.cancel(nil)
	err := x.shell()
	x.end(err)
	_ = x.att.Close()
	x.closeFiles()
	t := time.NewTimer(x.svc.limits.Resume)
	defer t.Stop()
	select {
	case <-t.C:
	case <-x.ctx.Done():
	case <-x.svc.soft.Done():
	}
}

// shell runs the SSH session.
func (x *session) shell() error {
	in, err := x.ssh.StdinPipe()
	if err != nil {
		return err
	}
	out, err := x.ssh.StdoutPipe()
	if err != nil {
		return err
	}
	errs, err := x.ssh.StderrPipe()
	if err != nil {
		return err
	}
	if err := x.ssh.Shell(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	inner, stop := context.WithCancel(x.ctx)
	for _, r := range []io.Reader{out, errs} {
		wg.Go(func() { x.record(r) })
	}
	wg.Go(func() { x.feed(inner, in) })
	wg.Go(func() { x.mind(inner) })
	// The end of the login is the end of everything here.
	unblock := context.AfterFunc(x.ctx, func() {
		x.tape.close()
		_ = x.att.Client.Close()
	})
	defer unblock()
	err = x.ssh.Wait()
	stop()
	wg.Wait()
	return err
}

// record puts what the user sees on the tape.
func (x *session) record(r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && x.tape.write(x.ctx, buf[:n]) != nil {
			// Over by decision: the last words still come, without waiting.
			_ = x.tape.write(context.Background(), buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// feed sends queued input on.
func (x *session) feed(ctx context.Context, to io.WriteCloser) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.wake:
		}
		for {
			x.mu.Lock()
			p := x.queue
			x.queue = nil
			x.mu.Unlock()
			if len(p) == 0 {
				break
			}
			if _, err := to.Write(p); err != nil {
				return
			}
			x.mu.Lock()
			x.accepted += uint64(len(p))
			x.changeLocked()
			x.mu.Unlock()
		}
	}
}

var errWindow = errors.New("input outside of its window")

// input takes bytes the user typed, offset being the first one's. What was
// taken before is skipped.
func (x *session) input(offset uint64, p []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if offset > x.taken || offset+uint64(len(p)) > x.accepted+2*inputWindow {
		return errWindow
	}
	if skip := x.taken - offset; skip >= uint64(len(p)) {
		return nil
	} else {
		p = p[skip:]
	}
	x.queue = append(x.queue, p...)
	x.taken += uint64(len(p))
	select {
	case x.wake <- struct{}{}:
	default:
	}
	return nil
}

// resize passes a new size on.
func (x *session) resize(cols, rows int) {
	x.tape.resize(cols, rows)
	_ = x.ssh.WindowChange(rows, cols) // an error is the end, seen elsewhere
}

// told begins the time in which a browser may come: it knows the session now.
func (x *session) told() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.detached = time.Now()
}

// mind ends a session nobody comes back to.
func (x *session) mind(ctx context.Context) {
	t := time.NewTicker(min(time.Second, x.svc.limits.Resume/4))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		x.mu.Lock()
		if len(x.transfers) > 0 { // a long upload is presence enough
			x.detached = time.Now()
		}
		gone := x.attached == nil && !x.detached.IsZero() && time.Since(x.detached) >= x.svc.limits.Resume
		x.mu.Unlock()
		if gone {
			x.cancel(errGone)
			return
		}
	}
}

// observe hears from the bastion what becomes of the login's connections.
func (x *session) observe(h bastion.Happening) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h.Kind != "ssh" {
		if h.What == bastion.HappenedEnd {
			x.sftpText = h.Text
		}
		return
	}
	st := &x.state
	switch h.What {
	case bastion.HappenedOpen:
		st.ConnectionID, st.Recorded = h.Connection, h.Recorded
		if !h.EndsAt.IsZero() {
			st.EndsAt = &h.EndsAt
		}
		x.openOnce.Do(func() { close(x.opened) })
	case bastion.HappenedStart:
		if st.State == "connecting" {
			st.State = "running"
		}
	case bastion.HappenedOversight:
		st.Locked, st.LockText, st.Watchers = h.Oversight.Locked, h.Oversight.Text, h.Oversight.Watchers
	case bastion.HappenedEnd:
		st.Reason, st.Text = string(h.Reason), h.Text
		x.openOnce.Do(func() {
			code := h.Code
			if code == "" {
				code = "not_connected"
			}
			x.refusal = api.Denied(code, h.Text)
			close(x.opened)
		})
	}
	x.changeLocked()
}

// end notes why the session is over.
func (x *session) end(err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := &x.state
	st.State, st.Locked, st.LockText, st.Watchers = "ended", false, "", nil
	if e, ok := errors.AsType[*ssh.ExitError](err); ok && st.Text == "" && e.Signal() == "" {
		st.ExitStatus = new(e.ExitStatus())
	} else if err == nil {
		st.ExitStatus = new(0)
	}
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, errGone):
		st.Text = "The session was closed because the browser was away for too long."
	case errors.Is(cause, errClosed):
		st.Text = "You closed the session."
	}
	if st.Reason == "" {
		st.Reason = "target"
	}
	x.openOnce.Do(func() {
		x.refusal = api.Unavailable("not_connected", "The terminal could not be started.")
		close(x.opened)
	})
	x.tape.close()
	x.changeLocked()
	close(x.over)
}

func (x *session) changeLocked() {
	close(x.changed)
	x.changed = make(chan struct{})
}

// view returns what a socket must tell its browser, and when to look again.
func (x *session) view() (State, uint64, <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.state, x.accepted, x.changed
}

// close ends the session by its user's wish and waits for it.
func (x *session) close(ctx context.Context) {
	x.cancel(errClosed)
	select {
	case <-x.over:
	case <-ctx.Done():
	}
}
