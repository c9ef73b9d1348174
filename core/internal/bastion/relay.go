package bastion

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/conn"
)

// errRouteLost ends sessions whose way to the target broke.
var errRouteLost = &refusal{public: "The connection to the target was lost: its extender or the host itself went away.", code: "route_lost"}

// bufSize is one copy buffer; the SSH layer splits it into packets.
const bufSize = 64 << 10

// buffers are shared by all copies of a server.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[bufSize]byte {
	if p, ok := b.pool.Get().(*[bufSize]byte); ok {
		return p
	}
	return new([bufSize]byte)
}

func (b *buffers) put(p *[bufSize]byte) { b.pool.Put(p) }

// copy moves bytes from src to dst until EOF or an error; see runs before
// each write and may end it.
func (s *Server) copy(dst io.Writer, src io.Reader, see func(p []byte) error) error {
	buf := s.buffers.get()
	defer s.buffers.put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if err := see(buf[:n]); err != nil {
				return err
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// relay starts the program on the target's channel and joins it with the
// user's until one side ends or the session must.
func (s *session) relay(u *use, st start, p program, up *upstream, ch ssh.Channel, reqs <-chan *ssh.Request) (conn.EndReason, error) {
	t, err := s.newTap(u, st, p)
	if err != nil {
		s.discard(ch, reqs)
		return s.why(err), s.cause(err)
	}
	end, err := s.relayTapped(u, st, up, ch, reqs, t)
	s.mu.Lock()
	s.up, s.tap, s.live = nil, nil, nil
	s.mu.Unlock()
	s.unlend(u)
	if cerr := t.close(err != nil || end.failed()); cerr != nil && err == nil {
		s.l.s.cfg.Log.Error("complete recording", "connection", u.id, "err", cerr)
		err = errRecording
		end = exitMessage{}
	}
	if err != nil {
		return endReason(err), err
	}
	s.exit(end.kind, end.payload)
	return conn.EndedByTarget, nil
}

// discard closes a target channel that is not used after all.
func (s *session) discard(ch ssh.Channel, reqs <-chan *ssh.Request) {
	_ = ch.Close()
	s.l.wg.Go(func() { ssh.DiscardRequests(reqs) })
}

// exitMessage is how the target said its program ended.
type exitMessage struct {
	kind    string // exit-status, exit-signal, or empty when it said nothing
	payload []byte
}

func (m exitMessage) failed() bool {
	if m.kind != "exit-status" {
		return true
	}
	var st exitStatus
	return ssh.Unmarshal(m.payload, &st) != nil || st.Status != 0
}

// detail renders m for the record.
func (m exitMessage) detail() string {
	switch m.kind {
	case "exit-status":
		var st exitStatus
		if ssh.Unmarshal(m.payload, &st) == nil {
			return strconv.FormatUint(uint64(st.Status), 10)
		}
	case "exit-signal":
		var sig struct {
			Signal string
			Rest   []byte `ssh:"rest"`
		}
		if ssh.Unmarshal(m.payload, &sig) == nil {
			return "signal " + clip(printable(sig.Signal), 20)
		}
	}
	return "unknown"
}

func (s *session) relayTapped(u *use, st start, up *upstream, ch ssh.Channel, reqs <-chan *ssh.Request, t tap) (exitMessage, error) {
	if s.ctx.Err() != nil {
		s.discard(ch, reqs)
		return exitMessage{}, context.Cause(s.ctx)
	}
	defer func() { _ = ch.Close() }()

	// The target's requests: the exit message is kept until all output is out.
	var end exitMessage
	reqsDone := make(chan struct{})
	s.l.wg.Go(func() {
		defer close(reqsDone)
		for r := range reqs {
			switch r.Type {
			case "exit-status", "exit-signal":
				if end.kind == "" && len(r.Payload) <= maxEnvSize {
					end = exitMessage{r.Type, r.Payload}
				}
			case "eow@openssh.com", "xon-xoff":
				_, _ = s.ch.SendRequest(r.Type, false, r.Payload)
			}
			_ = r.Reply(false, nil)
		}
	})

	if err := s.begin(u, st, ch); err != nil {
		return exitMessage{}, s.cause(err)
	}
	s.l.tell(Happening{What: HappenedStart, Kind: kindOf(st), Connection: u.id})
	s.mu.Lock()
	s.up, s.tap, s.live = ch, t, u.live
	s.mu.Unlock()

	srv := s.l.s
	// What the tap cannot keep must not pass: the session ends.
	fail := func(err error) error {
		if err != nil {
			srv.cfg.Log.Error("session ends", "connection", u.id, "err", err)
			s.cancel(err)
		}
		return err
	}
	// User to target. It ends with the user's channel, at the latest with the
	// login, and after the session has ended it touches nothing that matters.
	s.l.wg.Go(func() {
		in := func(p []byte) error {
			if s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			u.live.In(len(p))
			return fail(t.input(p))
		}
		// What was typed ahead of the menu goes first. An error is the end of
		// either channel, which is seen there.
		_ = srv.copy(ch, &gate{io.MultiReader(bytes.NewReader(s.keys.pending), s.ch), u.live, s.pty != nil, s.ctx}, in)
		_ = ch.CloseWrite()
	})
	// Target to user.
	outputs := make(chan struct{})
	var out sync.WaitGroup
	pipe := func(dst io.Writer, src io.Reader, stderr bool) {
		out.Go(func() {
			// An error is the end of either channel, which is seen there.
			_ = srv.copy(dst, src, func(p []byte) error {
				u.live.Out(len(p))
				return fail(t.output(p, stderr))
			})
		})
	}
	pipe(s.ch, ch, false)
	pipe(s.ch.Stderr(), ch.Stderr(), true)
	s.l.wg.Go(func() {
		out.Wait()
		close(outputs)
	})

	soft := s.l.soft.Done()
	eof := outputs
	// The end of output goes on a moment later: after it nothing more could
	// be told, and when the connection broke, the next event says so.
	var settled <-chan time.Time
	var seen conn.Oversight
	for {
		now, overseen := u.live.Oversight()
		if lines, kind := oversightLines(seen, now); len(lines) > 0 {
			if kind != "" {
				if err := t.event(kind, now.Text, map[string]string{"text": now.Text}); err != nil {
					return exitMessage{}, err
				}
			}
			if s.pty != nil {
				for _, l := range lines {
					s.say(l)
				}
			}
			s.l.tell(Happening{What: HappenedOversight, Kind: kindOf(st), Connection: u.id, Oversight: now})
		}
		seen = now
		select {
		case <-overseen:
		case <-eof:
			eof = nil
			settled = time.After(settle)
		case <-settled:
			settled = nil
			s.bounded(func() { _ = s.ch.CloseWrite() })
		case <-reqsDone:
			// Closed by the target; its last output is still on the way out.
			select {
			case <-outputs:
			case <-s.ctx.Done():
				return exitMessage{}, context.Cause(s.ctx)
			}
			if end.kind == "" && s.lost(up) {
				return exitMessage{}, errRouteLost
			}
			if err := t.exited(end.detail()); err != nil {
				return exitMessage{}, err
			}
			return end, nil
		case <-s.ctx.Done():
			return exitMessage{}, context.Cause(s.ctx)
		case <-soft:
			soft = nil
			if s.pty != nil {
				s.say("The bastion is shutting down; this session ends in a few seconds.")
			}
		}
	}
}

// settle is how long events of one cause may take to arrive one after the other.
const settle = 100 * time.Millisecond

// lost reports whether the connection to the target is gone; the notice of it
// may come a moment after the channel's end.
func (s *session) lost(up *upstream) bool {
	t := time.NewTimer(settle)
	defer t.Stop()
	select {
	case <-up.gone:
		return true
	case <-t.C:
		return false
	}
}

// begin prepares the target's channel and starts the program.
func (s *session) begin(u *use, st start, ch ssh.Channel) error {
	for _, e := range s.env {
		if _, err := ch.SendRequest("env", false, ssh.Marshal(e)); err != nil {
			return errRouteLost
		}
	}
	if s.pty != nil {
		s.mu.Lock()
		p := ssh.Marshal(*s.pty)
		s.mu.Unlock()
		if ok, err := ch.SendRequest("pty-req", true, p); err != nil {
			return errRouteLost
		} else if !ok {
			s.say(u.verdict.Target.Name + " gave no terminal.")
		}
	}
	s.offer(u, ch)
	for _, n := range s.l.takeNotes() {
		s.say(n)
	}
	var payload []byte
	if st.kind != "shell" {
		payload = ssh.Marshal(stringField{st.command})
	}
	ok, err := ch.SendRequest(st.kind, true, payload)
	if err != nil {
		return errRouteLost
	}
	if !ok {
		return refused("target_start", "%s refused to start %s.", u.verdict.Target.Name, what(st))
	}
	return nil
}

func kindOf(st start) string { return classify(st).kind }

func what(st start) string {
	switch st.kind {
	case "shell":
		return "a shell"
	case "subsystem":
		return clip(printable(st.command), 40)
	}
	return "the command"
}
