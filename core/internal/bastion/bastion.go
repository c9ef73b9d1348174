// Package bastion is the SSH front door (port 2222) and the SOCKS5 one (port
// 1080). It proves who the user is, asks policy before every use, opens the
// audited connection, reaches the target through the fleet, logs in there
// with a credential the user never sees, copies both ways and feeds the
// recording. It owns no data.
//
// Words: a login is one authenticated SSH connection of a user. Each session
// channel in it (shell, command, sftp) is a connection of its own in the
// record, with its own recording; all of a login share one SSH connection to
// the target. Forwards through a target are one connection per direction.
//
// Invariants: nothing is said about targets before the login succeeded; every
// refusal is told to the user and audited; no recording, no session; when the
// right is lost the channel ends within a second and the user reads why; a
// target's credential lives in memory for one handshake.
package bastion

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/conn"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/recording"
	"caponier/core/internal/sshca"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
)

// Users proves who somebody is; *user.Service is the real one.
type Users interface {
	Login(ctx context.Context, c user.Credentials) (*api.Principal, error)
	AcceptsKey(ctx context.Context, name string, key ssh.PublicKey, source netip.Addr) (bool, error)
	StillValid(ctx context.Context, p *api.Principal) error
}

// Policy decides; *policy.Service is the real one.
type Policy interface {
	Decide(ctx context.Context, q policy.Query) (policy.Verdict, error)
	List(ctx context.Context, p *api.Principal, source netip.Addr, search, after string, limit int) ([]policy.Entry, error)
}

// Live is one audited connection; *conn.Live is the real one.
type Live interface {
	Context() context.Context
	Connected(r fleet.Route)
	Use(f access.Feature) bool
	In(n int)
	Out(n int)
	Channel(kind, detail string)
	Recording(id string)
	Oversight() (conn.Oversight, <-chan struct{})
	Close(r conn.EndReason, err error)
}

// Connections opens audited connections; see FromManager.
type Connections interface {
	Open(ctx context.Context, s conn.Spec) (id string, l Live, err error)
}

// Recorder takes one recording; *recording.Writer is the real one, see FromStore.
type Recorder interface {
	Output(p []byte) error
	Input(p []byte) error
	Resize(width, height int) error
	Event(kind string, fields map[string]string) error
	// File starts the copy of a transferred file; nil when none is kept.
	File(ctx context.Context, d recording.Direction, path string) (FileCopy, error)
	Close() error
}

// Recordings starts recordings; see FromStore.
type Recordings interface {
	Create(ctx context.Context, m recording.Meta) (id string, r Recorder, err error)
}

// Dialer reaches destinations; *fleet.Fleet is the real one.
type Dialer interface {
	Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error)
}

// CA makes just-in-time certificates and knows what to offer old hosts;
// *sshca.CA is the real one.
type CA interface {
	TargetSigner(ctx context.Context, r sshca.UserRequest) (ssh.Signer, *ssh.Certificate, error)
	Algorithms(ctx context.Context, site, host, targetRule string) (sshca.Algorithms, error)
}

// Secrets opens stored credentials for one use; *vault.Vault is the real one.
type Secrets interface {
	Reveal(ctx context.Context, secretID, purpose, connectionID string) ([]byte, error)
}

// HostKeys knows the host keys of targets; *target.Service is the real one.
type HostKeys interface {
	HostKeys(ctx context.Context, targetID string) ([]target.HostKey, error)
	SawHostKey(ctx context.Context, targetID string, k target.HostKey) error
}

// Auditor writes audit events; *audit.Log is the real one.
type Auditor interface {
	Write(ctx context.Context, e audit.Event) error
}

// Config is everything a Server needs. Fields without a default are mandatory.
type Config struct {
	Users       Users
	Policy      Policy
	Connections Connections
	Recordings  Recordings
	Dialer      Dialer
	CA          CA
	Vault       Secrets
	HostKeys    HostKeys
	Audit       Auditor
	// Signers are asked for at each handshake: the bastion's own host keys,
	// certificates first, plain keys after.
	Signers func() []ssh.Signer
	Log     *slog.Logger
	Now     func() time.Time
	// LoginGone tells the errors of Users.StillValid that mean the login has
	// ended from those that mean it could not be checked. Nil: user.ErrEnded
	// and db.ErrNotFound mean ended.
	LoginGone func(error) bool

	// Separator stands between user, account and target in a login name and is
	// doubled to stand for itself. Default "%". One ASCII character that is
	// neither a letter nor a digit nor one of "._-/:[]@". Asked anew for each login.
	Separator func() string
	// Address is how users reach the bastion ("core.example.net -p 2222"),
	// shown in hints. Default "BASTION".
	Address string
	Limits  Limits
}

// Limits bound what peers can use up. Zero fields take the defaults.
type Limits struct {
	LoginGrace   time.Duration // from accept to authenticated; default 90 s
	MaxStartups  int           // connections not yet authenticated; default 512, half of it per source address
	MaxLogins    int           // authenticated connections; default 5,000
	MaxPerUser   int           // authenticated connections of one user; default 500
	MaxAuthTries int           // refused attempts per connection; default 10
	MaxChannels  int           // open channels per login; default 256
	MaxForwards  int           // listening ports (-R) per login; default 16
	Keepalive    time.Duration // between pings of the user's client and of the target; default 5 s
	Dead         time.Duration // silence after which a peer is gone; default 12 s
	Dial         time.Duration // reaching a target and logging in there; default 30 s
	MenuIdle     time.Duration // an untouched menu or prompt; default 3 min
	Drain        time.Duration // time live sessions get when the server stops; default 5 s
	Recheck      time.Duration // between checks that the login is still valid; default 15 s
	SOCKSTimeout time.Duration // SOCKS handshake; default 20 s
}

func (l Limits) withDefaults() Limits {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	def(&l.LoginGrace, 90*time.Second)
	num(&l.MaxStartups, 512)
	num(&l.MaxLogins, 5000)
	num(&l.MaxPerUser, 500)
	num(&l.MaxAuthTries, 10)
	num(&l.MaxChannels, 256)
	num(&l.MaxForwards, 16)
	def(&l.Keepalive, 5*time.Second)
	def(&l.Dead, 12*time.Second)
	def(&l.Dial, 30*time.Second)
	def(&l.MenuIdle, 3*time.Minute)
	def(&l.Drain, 5*time.Second)
	def(&l.Recheck, 15*time.Second)
	def(&l.SOCKSTimeout, 20*time.Second)
	return l
}

// New makes a server. It listens on nothing yet: see Serve and ServeSOCKS.
func New(cfg Config) (*Server, error) {
	missing := []struct {
		name string
		nil  bool
	}{
		{"Users", cfg.Users == nil}, {"Policy", cfg.Policy == nil}, {"Connections", cfg.Connections == nil},
		{"Recordings", cfg.Recordings == nil}, {"Dialer", cfg.Dialer == nil}, {"CA", cfg.CA == nil},
		{"Vault", cfg.Vault == nil}, {"HostKeys", cfg.HostKeys == nil}, {"Audit", cfg.Audit == nil},
		{"Signers", cfg.Signers == nil}, {"Log", cfg.Log == nil}, {"Now", cfg.Now == nil},
	}
	for _, m := range missing {
		if m.nil {
			return nil, fmt.Errorf("bastion: Config.%s is missing", m.name)
		}
	}
	if cfg.Separator == nil {
		cfg.Separator = func() string { return "%" }
	}
	if err := checkSeparator(cfg.Separator()); err != nil {
		return nil, err
	}
	if cfg.Address == "" {
		cfg.Address = "BASTION"
	}
	if cfg.LoginGone == nil {
		cfg.LoginGone = func(err error) bool {
			return errors.Is(err, user.ErrEnded) || errors.Is(err, db.ErrNotFound)
		}
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return newServer(cfg), nil
}

// Serve accepts SSH connections on ln until ctx ends, tells live sessions,
// gives them Limits.Drain, ends them and returns when the last goroutine has.
// It closes ln. The error is nil when ctx ended.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	return s.serve(ctx, ln, s.serveSSH)
}

// ServeSOCKS does for the SOCKS5 door what Serve does for SSH. Both may run at once.
func (s *Server) ServeSOCKS(ctx context.Context, ln net.Listener) error {
	return s.serve(ctx, ln, s.serveSOCKS)
}
