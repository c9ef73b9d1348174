package bastion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/shared/wire"
)

// payloads of RFC 4254 §7.
type (
	directTCPIP struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}
	tcpipForward struct {
		Addr string
		Port uint32
	}
)

// maxForwardPayload bounds what is passed on unread.
const maxForwardPayload = 4 << 10

// duplex is one end of a relay.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// directTCP serves -L, -W and -J. In a login to a target it goes through the
// target's SSH connection; in a plain login straight to a target, raw.
func (l *login) directTCP(nch ssh.NewChannel) {
	var d directTCPIP
	if ssh.Unmarshal(nch.ExtraData(), &d) != nil || d.Port == 0 || d.Port > 65535 || len(d.Host) == 0 || len(d.Host) > 255 {
		_ = nch.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	if l.name.Target != "" {
		l.through(nch, "forward", net.JoinHostPort(d.Host, strconv.Itoa(int(d.Port))))
		return
	}
	q, v, err := l.s.rawTarget(l.ctx, l.principal, l.source, ask{want: access.Forward, kind: "tcp"}, d.Host, int(d.Port))
	if err == nil {
		err = l.valid()
	}
	if err != nil {
		l.reject(nch, err)
		return
	}
	u, err := l.s.open(l.ctx, l.principal, l.source, l.agent(), q, v)
	if err != nil {
		l.reject(nch, err)
		return
	}
	far, err := l.s.dialRaw(l.ctx, u)
	if err != nil {
		u.end(endReason(err), err)
		l.reject(nch, err)
		return
	}
	ch, reqs, err := nch.Accept()
	if err != nil {
		_ = far.Close()
		u.end(conn.EndedByUser, nil)
		return
	}
	err = l.s.join(l.ctx, &l.wg, u, ch, reqs, far)
	u.end(endReason(err), hardError(err))
}

// rawTarget decides on a raw connection to host:port, as a target's name (the
// port must be the target's) or as an address.
func (s *Server) rawTarget(ctx context.Context, p *api.Principal, source netip.Addr, q ask, host string, port int) (ask, policy.Verdict, error) {
	name, address := destination(host, port)
	var byName policy.Verdict
	if name != "" {
		q.target = name
		v, err := s.decide(ctx, p, source, q)
		if err != nil {
			return q, v, err
		}
		if v.OK() && v.Target.Port == port {
			return q, v, nil
		}
		byName = v
	}
	q.target = address
	v, err := s.decide(ctx, p, source, q)
	if err != nil || v.OK() {
		return q, v, err
	}
	// A refusal of a target the user has a role for says more.
	if byName.Reason > access.NoRole {
		v = byName
	}
	s.auditRefusal(ctx, p, q, v.Reason.String())
	return q, v, verdictError(v, nil)
}

// dialRaw connects u to its target without any protocol.
func (s *Server) dialRaw(ctx context.Context, u *use) (fleet.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.Dial)
	defer cancel()
	stop := context.AfterFunc(u.live.Context(), cancel)
	defer stop()
	t := u.verdict.Target
	if t.Port == 0 {
		return nil, refused("no_port", "%s cannot be reached this way.", t.Name)
	}
	far, route, err := s.cfg.Dialer.Dial(ctx, fleet.DialRequest{
		Site: t.Site, Address: addressOf(t), Class: wire.Interactive, Connection: u.id})
	if err != nil {
		return nil, err
	}
	u.connected(route)
	u.live.Channel("tcp", "not recorded")
	return far, nil
}

// through opens the same kind of channel on the target and joins the two.
func (l *login) through(nch ssh.NewChannel, kind, detail string) {
	if len(nch.ExtraData()) > maxForwardPayload {
		_ = nch.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	u, up, err := l.forwardUse(access.Forward)
	if err != nil {
		l.reject(nch, err)
		return
	}
	far, farReqs, err := up.conn.OpenChannel(nch.ChannelType(), nch.ExtraData())
	if err != nil {
		text := "the connection to the target was lost"
		reason := ssh.ConnectionFailed
		if oce, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			reason, text = oce.Reason, clip(printable(oce.Message), 200)
		}
		u.live.Channel(kind, detail+" failed")
		_ = nch.Reject(reason, text)
		return
	}
	l.wg.Go(func() { ssh.DiscardRequests(farReqs) })
	ch, reqs, err := nch.Accept()
	if err != nil {
		_ = far.Close()
		return
	}
	u.live.Channel(kind, detail)
	_ = l.s.join(l.ctx, &l.wg, u, ch, reqs, far)
}

// forwardUse returns the connection that stands for all forwards of a login
// in one direction, and the target's connection.
func (l *login) forwardUse(want access.Feature) (*use, *upstream, error) {
	select {
	case l.useLock <- struct{}{}:
		defer func() { <-l.useLock }()
	case <-l.ctx.Done():
		return nil, nil, context.Cause(l.ctx)
	}
	l.mu.Lock()
	u := l.uses[want]
	l.mu.Unlock()
	if u == nil || u.live.Context().Err() != nil {
		name, err := l.s.resolve(l.ctx, l.principal, l.name, l.source)
		if err != nil {
			return nil, nil, err
		}
		u, err = l.open(l.ctx, ask{target: name.Target, account: name.Account, want: want, kind: "ssh"})
		if err != nil {
			return nil, nil, err
		}
		if err := sshTarget(u.verdict); err != nil {
			u.end(conn.EndedByError, err)
			return nil, nil, err
		}
		l.mu.Lock()
		l.uses[want] = u
		l.mu.Unlock()
		stop := context.AfterFunc(u.live.Context(), func() { u.end(endReason(context.Cause(u.live.Context())), nil) })
		_ = stop // runs at most once, at the latest when the record is closed
	}
	up, err := l.connect(u.live.Context(), u, wire.Interactive, nil)
	if err != nil {
		u.end(endReason(err), err)
		l.mu.Lock()
		delete(l.uses, want)
		l.mu.Unlock()
		return nil, nil, err
	}
	return u, up, nil
}

// closeUses ends the records of forwards when the login is over.
func (l *login) closeUses() {
	l.mu.Lock()
	uses := l.uses
	l.uses = map[access.Feature]*use{}
	l.mu.Unlock()
	for _, u := range uses {
		u.end(endReason(context.Cause(l.ctx)), nil)
	}
}

func (l *login) reject(nch ssh.NewChannel, err error) {
	reason := ssh.ConnectionFailed
	if _, ok := errors.AsType[*refusal](err); ok {
		reason = ssh.Prohibited
	}
	_ = nch.Reject(reason, l.s.public(err))
}

// directUnix serves -L to a socket path on the target.
func (l *login) directUnix(nch ssh.NewChannel) {
	if l.name.Target == "" {
		_ = nch.Reject(ssh.Prohibited, "log in to a target to forward to a socket on it")
		return
	}
	var d struct {
		Path string
		Rest []byte `ssh:"rest"`
	}
	if ssh.Unmarshal(nch.ExtraData(), &d) != nil {
		_ = nch.Reject(ssh.ConnectionFailed, "malformed request")
		return
	}
	l.through(nch, "forward", clip(printable(d.Path), 200))
}

// listen serves -R.
func (l *login) listen(r *ssh.Request) {
	ok, reply, err := l.startListen(r)
	if err != nil {
		l.note("remote forwarding is not possible: " + l.s.public(err))
	}
	_ = r.Reply(ok, reply)
}

func (l *login) startListen(r *ssh.Request) (bool, []byte, error) {
	if l.name.Target == "" {
		return false, nil, refused("plain", "log in to a target for that.")
	}
	l.mu.Lock()
	n := len(l.listens)
	l.mu.Unlock()
	if len(r.Payload) > maxForwardPayload || n >= l.s.limits.MaxForwards {
		return false, nil, refused("limit", "too many forwards in one login.")
	}
	u, up, err := l.forwardUse(access.RemoteForward)
	if err != nil {
		return false, nil, err
	}
	ok, reply, err := up.conn.SendRequest(r.Type, true, r.Payload)
	if err != nil {
		return false, nil, errRouteLost
	}
	detail := listenText(r)
	if !ok {
		u.live.Channel("remote_forward", detail+" refused by the target")
		return false, nil, refused("target", "the target refused to listen on %s.", detail)
	}
	u.live.Channel("remote_forward", detail)
	l.mu.Lock()
	l.listens[r.Type+string(r.Payload)] = true
	l.mu.Unlock()
	return true, reply, nil
}

func listenText(r *ssh.Request) string {
	var f tcpipForward
	if r.Type == "tcpip-forward" && ssh.Unmarshal(r.Payload, &f) == nil {
		return net.JoinHostPort(clip(printable(f.Addr), 200), strconv.Itoa(int(f.Port)))
	}
	var s stringField
	_ = ssh.Unmarshal(r.Payload, &s)
	return clip(printable(s.Value), 200)
}

func (l *login) unlisten(r *ssh.Request) {
	l.mu.Lock()
	up := l.up
	l.mu.Unlock()
	if up == nil || len(r.Payload) > maxForwardPayload {
		_ = r.Reply(false, nil)
		return
	}
	ok, reply, _ := up.conn.SendRequest(r.Type, true, r.Payload)
	l.mu.Lock()
	delete(l.listens, r.Type[len("cancel-"):]+string(r.Payload))
	l.mu.Unlock()
	_ = r.Reply(ok, reply)
}

// fromTarget passes a channel the target opens on to the user, when the login
// has asked for its kind and may still use it.
func (l *login) fromTarget(nch ssh.NewChannel) {
	var u *use
	l.mu.Lock()
	switch nch.ChannelType() {
	case "forwarded-tcpip", "forwarded-streamlocal@openssh.com":
		if len(l.listens) > 0 {
			u = l.uses[access.RemoteForward]
		}
	case "auth-agent@openssh.com":
		if live := l.lent[access.AgentForward]; live != nil {
			u = &use{live: live}
		}
	case "x11":
		if live := l.lent[access.X11]; live != nil {
			u = &use{live: live}
		}
	}
	l.mu.Unlock()
	if u == nil || u.live.Context().Err() != nil || len(nch.ExtraData()) > maxForwardPayload || !l.takeChannel() {
		_ = nch.Reject(ssh.Prohibited, "not permitted")
		return
	}
	defer l.giveChannel()
	ch, reqs, err := l.conn.OpenChannel(nch.ChannelType(), nch.ExtraData())
	if err != nil {
		_ = nch.Reject(ssh.ConnectionFailed, "the user's client refused")
		return
	}
	far, farReqs, err := nch.Accept()
	if err != nil {
		_ = ch.Close()
		l.wg.Go(func() { ssh.DiscardRequests(reqs) })
		return
	}
	l.wg.Go(func() { ssh.DiscardRequests(farReqs) })
	u.live.Channel(nch.ChannelType(), "opened by the target")
	_ = l.s.join(l.ctx, &l.wg, u, ch, reqs, far)
}

// note keeps a line for the next session to show; global requests have no
// text of their own.
func (l *login) note(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.notes) < 8 {
		l.notes = append(l.notes, text)
	}
}

func (l *login) takeNotes() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.notes
	l.notes = nil
	return n
}

// join copies between the user's end and the far end until both directions
// are done, the user's channel closes (reqs ends), or the connection must
// end. It returns why: nil when the far end finished. The copies may outlive
// it until the peers close; wg waits for them.
func (s *Server) join(ctx context.Context, wg *sync.WaitGroup, u *use, near duplex, reqs <-chan *ssh.Request, far duplex) error {
	up, down := make(chan struct{}), make(chan struct{})
	closed := make(chan struct{})
	wg.Go(func() {
		defer close(up)
		_ = s.copy(far, &gate{near, u.live, false, ctx}, func(p []byte) error { u.live.In(len(p)); return u.live.Context().Err() })
		_ = far.CloseWrite()
	})
	var failed error
	wg.Go(func() {
		defer close(down)
		failed = s.copy(near, far, func(p []byte) error { u.live.Out(len(p)); return u.live.Context().Err() })
		_ = near.CloseWrite()
	})
	if reqs != nil {
		wg.Go(func() {
			defer close(closed)
			ssh.DiscardRequests(reqs)
		})
	}
	defer func() {
		_ = near.Close()
		_ = far.Close()
	}()
	for range 2 {
		select {
		case <-up:
			up = nil
		case <-down:
			down = nil
			if failed != nil {
				return nil // one side reset: nothing more will flow
			}
		case <-closed:
			return errUserGone
		case <-u.live.Context().Done():
			return context.Cause(u.live.Context())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// hardError keeps only errors that are malfunctions, for the record.
func hardError(err error) error {
	if err == nil || endReason(err) != conn.EndedByError {
		return nil
	}
	return fmt.Errorf("relay: %w", err)
}
