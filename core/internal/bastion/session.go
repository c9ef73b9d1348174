package bastion

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/conn"
	"caponier/core/internal/target"
)

// Limits of what a client may say about one session channel.
const (
	maxEnv     = 64       // variables
	maxEnvSize = 4 << 10  // bytes of one name and value
	maxCommand = 64 << 10 // bytes of a command
	maxTerm    = 64       // bytes of a terminal's name
	maxModes   = 1 << 10  // bytes of terminal modes
	maxScreen  = 4096     // columns or rows
)

// reasonVariable carries the reason for a connection: ssh -o SetEnv=CAPONIER_REASON=…
const reasonVariable = "CAPONIER_REASON"

// passedEnv says which environment variables reach the target.
func passedEnv(name string) bool {
	if strings.HasPrefix(name, "LC_") {
		return true
	}
	return slices.Contains([]string{"LANG", "LANGUAGE", "TZ", "COLORTERM", "NO_COLOR", "TERM_PROGRAM", "GIT_PROTOCOL"}, name)
}

// request payloads of RFC 4254 §6.
type (
	ptyRequest struct {
		Term                         string
		Cols, Rows, WidthPx, HightPx uint32
		Modes                        string
	}
	envRequest  struct{ Name, Value string }
	windowSize  struct{ Cols, Rows, WidthPx, HeightPx uint32 }
	exitStatus  struct{ Status uint32 }
	stringField struct{ Value string }
)

// Exit statuses of the bastion itself; ssh uses 255 for its own failures.
const (
	exitRefused = 254
	exitUsage   = 253
)

// session is one session channel of a login.
type session struct {
	l      *login
	ch     ssh.Channel
	reqs   <-chan *ssh.Request
	ctx    context.Context
	cancel context.CancelCauseFunc

	pty    *ptyRequest
	env    []envRequest
	x11    []byte // payload of x11-req; nil = not wanted
	agent  bool
	reason string
	keys   keys

	mu      sync.Mutex
	up      ssh.Channel   // guarded by mu: the target's side, once there
	tap     tap           // guarded by mu
	live    Live          // guarded by mu: the connection, with up
	resized chan struct{} // one pending note that the size changed
}

func (l *login) session(nch ssh.NewChannel) {
	ch, reqs, err := nch.Accept()
	if err != nil {
		return
	}
	l.mu.Lock()
	l.sessions++
	l.mu.Unlock()
	ctx, cancel := context.WithCancelCause(l.ctx)
	defer cancel(nil)
	s := &session{l: l, ch: ch, reqs: reqs, ctx: ctx, cancel: cancel, resized: make(chan struct{}, 1)}
	st, ok := s.prepare()
	if !ok {
		_ = ch.Close()
		l.sessionOver()
		// Requests that are on their way would else hold up the connection's
		// reader, and with it the end of the login. The channel counts until
		// the client closes it, too.
		ssh.DiscardRequests(reqs)
		return
	}
	var pump sync.WaitGroup
	pump.Go(s.pump)
	s.run(st)
	l.sessionOver()
	// The channel is closed on our side; a client that does not close its
	// own, or reads nothing, loses the whole connection.
	t := time.AfterFunc(farewell, func() { _ = l.conn.Close() })
	defer t.Stop()
	pump.Wait()
}

func (l *login) sessionOver() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions--
}

// prepare collects requests until the one that starts something.
func (s *session) prepare() (start, bool) {
	grace := time.NewTimer(s.l.s.limits.MenuIdle)
	defer grace.Stop()
	for {
		var r *ssh.Request
		var ok bool
		select {
		case r, ok = <-s.reqs:
		case <-s.ctx.Done():
		case <-grace.C:
		}
		if !ok {
			return start{}, false
		}
		switch r.Type {
		case "shell":
			_ = r.Reply(true, nil)
			return start{kind: "shell"}, true
		case "exec", "subsystem":
			var f stringField
			if ssh.Unmarshal(r.Payload, &f) != nil || len(f.Value) > maxCommand {
				_ = r.Reply(false, nil)
				return start{}, false
			}
			_ = r.Reply(true, nil)
			return start{kind: r.Type, command: f.Value}, true
		default:
			_ = r.Reply(s.prelude(r), nil)
		}
	}
}

func (s *session) prelude(r *ssh.Request) bool {
	switch r.Type {
	case "pty-req":
		var p ptyRequest
		if s.pty != nil || ssh.Unmarshal(r.Payload, &p) != nil || len(p.Term) > maxTerm || len(p.Modes) > maxModes {
			return false
		}
		p.Cols, p.Rows = min(p.Cols, maxScreen), min(p.Rows, maxScreen)
		s.pty = &p
		return true
	case "env":
		var e envRequest
		if ssh.Unmarshal(r.Payload, &e) != nil || len(e.Name)+len(e.Value) > maxEnvSize {
			return false
		}
		if e.Name == reasonVariable {
			s.reason = clip(printable(e.Value), 500)
			return true
		}
		if !passedEnv(e.Name) || len(s.env) >= maxEnv {
			return false
		}
		s.env = append(s.env, e)
		return true
	case "x11-req":
		if len(r.Payload) > maxEnvSize {
			return false
		}
		s.x11 = r.Payload
		return true
	case "auth-agent-req@openssh.com":
		s.agent = true
		return true
	}
	return false
}

// pump answers requests while something runs; it ends with the channel.
func (s *session) pump() {
	for r := range s.reqs {
		s.mu.Lock()
		up := s.up
		s.mu.Unlock()
		switch r.Type {
		case "window-change":
			var w windowSize
			if ssh.Unmarshal(r.Payload, &w) == nil {
				s.resize(int(min(w.Cols, maxScreen)), int(min(w.Rows, maxScreen)))
			}
			if up != nil {
				_, _ = up.SendRequest(r.Type, false, r.Payload)
			}
		case "signal", "break", "eow@openssh.com":
			ok := false
			if up != nil && !s.locked() && len(r.Payload) <= maxEnvSize {
				ok, _ = up.SendRequest(r.Type, r.WantReply, r.Payload)
			}
			_ = r.Reply(ok, nil)
		default:
			_ = r.Reply(false, nil)
		}
	}
	s.cancel(errUserGone)
}

// locked reports whether the connection's input is frozen.
func (s *session) locked() bool {
	s.mu.Lock()
	live := s.live
	s.mu.Unlock()
	if live == nil {
		return false
	}
	o, _ := live.Oversight()
	return o.Locked
}

func (s *session) resize(cols, rows int) {
	s.mu.Lock()
	if s.pty != nil {
		s.pty.Cols, s.pty.Rows = uint32(cols), uint32(rows)
	}
	t := s.tap
	s.mu.Unlock()
	if t != nil {
		if err := t.resize(cols, rows); err != nil {
			s.cancel(err)
		}
	}
	select {
	case s.resized <- struct{}{}:
	default:
	}
}

func (s *session) size() (cols, rows int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pty == nil {
		return 80, 24
	}
	return int(s.pty.Cols), int(s.pty.Rows)
}

// run does what the channel was opened for and closes it.
func (s *session) run(st start) {
	kind, id := classify(st).kind, ""
	err := s.serve(st, &id)
	text := ""
	if err != nil && !errors.Is(err, errUserGone) && !errors.Is(err, errListed) {
		text = s.l.s.public(err)
	}
	if s.l.origin.observe != nil {
		h := Happening{Text: text, What: HappenedEnd, Kind: kind, Connection: id, Reason: endReason(err)}
		if r, ok := errors.AsType[*refusal](err); ok {
			h.Code = r.code
			if r.reason != 0 {
				h.Code = r.reason.String()
			}
		}
		s.l.tell(h)
	}
	code := uint32(0)
	switch {
	case err == nil:
		return // the relay passed the target's status on and closed
	case errors.Is(err, errUserGone):
	case errors.Is(err, errListed):
		// a menu that only listed, or was left
	default:
		code = exitRefused
		if r, ok := errors.AsType[*refusal](err); ok && r.code == "usage" {
			code = exitUsage
		}
		s.say(text)
	}
	s.exit("exit-status", ssh.Marshal(exitStatus{code}))
}

// errListed ends a session that connects to nothing.
var errListed = errors.New("nothing to connect")

// serve runs st; id becomes the connection's, once there is one.
func (s *session) serve(st start, id *string) error {
	l := s.l
	name := l.name
	if name.Target == "" {
		var err error
		if name, err = s.choose(st); err != nil {
			return err
		}
	}
	name, err := l.s.resolve(s.ctx, l.principal, name, l.source)
	if err != nil {
		return err
	}
	p := classify(st)
	q := ask{target: name.Target, account: name.Account, want: p.want, kind: p.kind, reason: s.reason}
	v, err := l.decide(s.ctx, q)
	if r, ok := errors.AsType[*refusal](err); ok && r.reason == access.NeedReason && s.pty != nil && st.kind == "shell" {
		if q.reason, err = s.question("Reason for this connection: ", true); err != nil {
			return err
		}
		v, err = l.decide(s.ctx, q)
	}
	if err != nil {
		return err
	}
	if err := sshTarget(v); err != nil {
		l.s.auditRefusal(s.ctx, l.principal, q, "not_ssh")
		return err
	}
	u, err := l.s.open(s.ctx, l.principal, l.source, l.agent(), q, v)
	if err != nil {
		return err
	}
	*id = u.id
	l.tell(Happening{What: HappenedOpen, Kind: p.kind, Connection: u.id, Recorded: v.Record, EndsAt: l.s.endsAt(v)})
	reason, err := s.attach(u, st, p)
	u.end(reason, err)
	return err
}

// attach connects the channel with the target and relays until an end.
func (s *session) attach(u *use, st start, p program) (conn.EndReason, error) {
	l := s.l
	// The session ends when the connection must, whoever decides that.
	stop := context.AfterFunc(u.live.Context(), func() { s.cancel(context.Cause(u.live.Context())) })
	defer stop()

	var asker secretAsker
	if s.pty != nil && u.verdict.Account != nil && u.verdict.Account.Auth == target.AuthAsk {
		asker = func(q string) (string, error) { return s.question(q, false) }
	}
	for again := true; ; again = false {
		up, err := l.connect(s.ctx, u, p.class, asker)
		if err != nil {
			return s.why(err), s.cause(err)
		}
		ch, reqs, err := up.conn.OpenChannel("session", nil)
		if err != nil {
			if _, ok := errors.AsType[*ssh.OpenChannelError](err); !ok && again {
				// The shared connection died unnoticed: one fresh try.
				l.dropUpstream(up)
				continue
			}
			return conn.EndedByTarget, refused("target_channel", "%s refused to open a session.", u.verdict.Target.Name)
		}
		return s.relay(u, st, p, up, ch, reqs)
	}
}

// cause prefers the reason the session was ended over the error that followed.
func (s *session) cause(err error) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	return err
}

// why turns the end of a session into its recorded reason.
func (s *session) why(err error) conn.EndReason { return endReason(s.cause(err)) }

func endReason(err error) conn.EndReason {
	if t, ok := errors.AsType[*conn.Terminated](err); ok {
		return t.Reason
	}
	switch {
	case err == nil:
		return conn.EndedByTarget
	case errors.Is(err, errUserGone):
		return conn.EndedByUser
	case errors.Is(err, errStopped):
		return conn.EndedByShutdown
	case errors.Is(err, errLoginOver):
		return conn.EndedByLogin
	case errors.Is(err, errRouteLost):
		return conn.EndedByRoute
	}
	return conn.EndedByError
}

// say writes a line for the user beside the session's own output.
func (s *session) say(text string) {
	eol := "\n"
	if s.pty != nil {
		eol = "\r\n"
	}
	line := eol + "caponier: " + strings.ReplaceAll(printable(text), "\n", eol) + eol
	if s.pty == nil {
		line = strings.TrimPrefix(line, eol)
	}
	s.bounded(func() { _, _ = s.ch.Stderr().Write([]byte(line)) })
}

// bounded runs f, which may block on a client that reads nothing, and goes on
// without it after a second; f ends with the channel's connection.
func (s *session) bounded(f func()) {
	done := make(chan struct{})
	s.l.wg.Go(func() { defer close(done); f() })
	t := time.NewTimer(time.Second)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// exit passes a status on and closes the channel.
func (s *session) exit(kind string, payload []byte) {
	s.bounded(func() {
		if kind != "" {
			_, _ = s.ch.SendRequest(kind, false, payload)
		}
		_ = s.ch.CloseWrite()
		_ = s.ch.Close()
	})
}

// printable drops control characters except line breaks.
func printable(t string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return -1
		}
		return r
	}, t)
}

// question asks the user for a line in the channel; echo shows what is typed.
func (s *session) question(text string, echo bool) (string, error) {
	if _, err := s.ch.Write([]byte("\r\n" + printable(text))); err != nil {
		return "", errUserGone
	}
	var line []byte
	for {
		k, err := s.keys.next(s, s.l.s.limits.MenuIdle)
		if err != nil {
			return "", err
		}
		switch {
		case k == '\r' || k == '\n':
			_, _ = s.ch.Write([]byte("\r\n"))
			return string(line), nil
		case k == 3 || k == 4: // Ctrl-C, Ctrl-D
			return "", refused("usage", "Cancelled.")
		case k == 0x7f || k == 8:
			if len(line) > 0 {
				line = line[:len(line)-1]
				if echo {
					_, _ = s.ch.Write([]byte("\b \b"))
				}
			}
		case k >= ' ' && k < 0x100 && len(line) < maxAnswer:
			line = append(line, byte(k))
			if echo {
				_, _ = s.ch.Write([]byte{byte(k)})
			}
		}
	}
}

// offer passes agent and X11 requests on when policy allows them.
func (s *session) offer(u *use, up ssh.Channel) {
	if s.agent {
		s.lend(u, access.AgentForward, func() (bool, error) {
			return up.SendRequest("auth-agent-req@openssh.com", true, nil)
		})
	}
	if s.x11 != nil {
		s.lend(u, access.X11, func() (bool, error) { return up.SendRequest("x11-req", true, s.x11) })
	}
}

func (s *session) lend(u *use, f access.Feature, request func() (bool, error)) {
	if err := u.also(f); err != nil {
		s.say(fmt.Sprintf("%s is not permitted: %s", featureText(f), s.l.s.public(err)))
		return
	}
	s.l.mu.Lock()
	s.l.lent[f] = u.live
	s.l.mu.Unlock()
	if ok, err := request(); err != nil || !ok {
		s.say(fmt.Sprintf("%s refused %s.", u.verdict.Target.Name, featureText(f)))
		s.unlend(u)
		return
	}
	u.live.Channel(f.String(), "requested")
}

// unlend takes back what was lent for the session.
func (s *session) unlend(u *use) {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	for f, live := range s.l.lent {
		if live == u.live {
			delete(s.l.lent, f)
		}
	}
}
