package bastion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"caponier/core/internal/api"
	"caponier/core/internal/conn"
	"caponier/core/internal/policy"
)

// Attach is a login from inside core: for somebody the console has
// authenticated already. Everything behind it (policy, recording, masking,
// transfers, limits, locks) is what a login through the SSH port gets, because
// it is the same code: the caller is an SSH client of this server.
type Attach struct {
	Principal *api.Principal
	// Source is the user's network address, UserAgent his program.
	Source    netip.Addr
	UserAgent string
	// Target is a target reference, Account an account of it; an empty account
	// means the only one that fits.
	Target, Account string
	// Observe is told what becomes of the login's sessions, from their own
	// goroutines; it must not block. May be nil.
	Observe func(Happening)
}

// Happening is something the caller of an attached login is told beside the
// SSH protocol.
type Happening struct {
	// What is HappenedOpen, HappenedRoute, HappenedOversight or HappenedEnd.
	What What
	// Kind is that of the connection: ssh, exec, sftp.
	Kind string
	// Connection is its ID; empty when none was opened.
	Connection string
	Recorded   bool
	// EndsAt is when a limit of the grant will end it; zero = none.
	EndsAt    time.Time
	Oversight conn.Oversight
	// Reason and Text say why it ended; Text is for the user, empty when the
	// program simply ended.
	Reason conn.EndReason
	Text   string
	// Code is the refusal's stable name, empty when it was none.
	Code string
}

// What is the sort of a Happening.
type What uint8

// What happens.
const (
	HappenedOpen      What = iota + 1 // the connection is in the record; its target is being reached
	HappenedStart                     // the program runs
	HappenedOversight                 // locked, unlocked, watched
	HappenedEnd                       // over
)

// Attached is the client's end of an attached login.
type Attached struct {
	*ssh.Client
	done chan struct{}
	once sync.Once
	end  context.CancelCauseFunc
}

// Close ends the login and waits until nothing of it runs any more.
func (a *Attached) Close() error {
	a.once.Do(func() { _ = a.Client.Close() })
	t := time.AfterFunc(2*farewell, func() { a.end(errStopped) })
	defer t.Stop()
	<-a.done
	return nil
}

// Attach logs in. When soft ends, sessions are told that the server stops;
// the caller closes what it attached.
func (s *Server) Attach(soft context.Context, a Attach) (*Attached, error) {
	if a.Principal == nil || a.Target == "" {
		return nil, errors.New("attach: no principal or no target")
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	hard, cancel := context.WithCancelCause(context.WithoutCancel(soft))
	done := make(chan struct{})
	// The name is only for the log: the login carries its own.
	proven := &proven{principal: a.Principal, name: loginName{User: a.Principal.UserName, Account: a.Account, Target: a.Target}}
	go func() {
		defer close(done)
		defer cancel(nil)
		defer func() { _ = far.Close() }()
		s.serveLogin(soft, hard, far, attachConfig(s, proven), origin{source: a.Source, agent: a.UserAgent, observe: a.Observe})
	}()
	cc, chans, reqs, err := ssh.NewClientConn(near, "core", &ssh.ClientConfig{
		User: "console", ClientVersion: "SSH-2.0-CaponierConsole",
		// The other end of a socket pair can be nobody else.
		HostKeyCallback: ssh.InsecureIgnoreHostKey(),
		Timeout:         s.limits.LoginGrace,
	})
	if err != nil {
		_ = near.Close()
		<-done
		return nil, fmt.Errorf("attach: %w", err)
	}
	return &Attached{Client: ssh.NewClient(cc, chans, reqs), done: done, end: cancel}, nil
}

// attachConfig lets in whoever holds the other end, as somebody known.
func attachConfig(s *Server, p *proven) *ssh.ServerConfig {
	c := &ssh.ServerConfig{
		NoClientAuth: true,
		NoClientAuthCallback: func(ssh.ConnMetadata) (*ssh.Permissions, error) {
			return permit(p.principal, p.name, nil), nil
		},
		ServerVersion: "SSH-2.0-Caponier",
	}
	for _, k := range s.cfg.Signers() {
		c.AddHostKey(k)
	}
	return c
}

// socketPair is two ends of one local stream: it never leaves the kernel, has
// deadlines and bounded buffers.
func socketPair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	open := func(fd int) (net.Conn, error) {
		f := os.NewFile(uintptr(fd), "attach")
		defer f.Close()
		return net.FileConn(f)
	}
	if a, err = open(fds[0]); err != nil {
		_ = unix.Close(fds[1])
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	if b, err = open(fds[1]); err != nil {
		_ = a.Close()
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return a, b, nil
}

// origin is where a login comes from.
type origin struct {
	source  netip.Addr
	agent   string // empty: as the client's SSH version says
	socks   bool
	observe func(Happening)
}

// tell passes a happening on to whoever attached the login.
func (l *login) tell(h Happening) {
	if l.origin.observe != nil {
		l.origin.observe(h)
	}
}

// agent names the user's program for the record.
func (l *login) agent() string {
	if l.origin.agent != "" {
		return l.origin.agent
	}
	return string(l.conn.ClientVersion())
}

// endsAt is when the grant's longest time is over.
func (s *Server) endsAt(v policy.Verdict) time.Time {
	if v.MaxDuration <= 0 {
		return time.Time{}
	}
	return s.cfg.Now().Add(v.MaxDuration)
}
