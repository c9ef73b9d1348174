package policy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/sshca"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// SSHProberConfig is what a login is tried with. All fields are mandatory.
type SSHProberConfig struct {
	DB      *db.DB
	Dialer  Dialer // *fleet.Fleet
	Targets *target.Service
	CA      CA       // *sshca.CA
	Secrets Revealer // *vault.Vault
}

// Dialer opens connections to targets.
type Dialer interface {
	Dial(ctx context.Context, r fleet.DialRequest) (fleet.Conn, fleet.Route, error)
}

// CA makes just-in-time certificates and knows what to offer old hosts.
type CA interface {
	TargetSigner(ctx context.Context, r sshca.UserRequest) (ssh.Signer, *ssh.Certificate, error)
	Algorithms(ctx context.Context, site, host, targetRule string) (sshca.Algorithms, error)
}

// Revealer opens a stored secret for one use.
type Revealer interface {
	Reveal(ctx context.Context, secretID, purpose, connectionID string) ([]byte, error)
}

// SSHProber tries SSH logins for explain: a real handshake and a real
// authentication, then it hangs up.
type SSHProber struct{ c SSHProberConfig }

// NewSSHProber makes a prober.
func NewSSHProber(c SSHProberConfig) (*SSHProber, error) {
	if c.DB == nil || c.Dialer == nil || c.Targets == nil || c.CA == nil || c.Secrets == nil {
		return nil, errors.New("ssh prober: every field is needed")
	}
	return &SSHProber{c: c}, nil
}

// probeTimeout bounds one tried login, bannerTimeout the wait for the server
// to say that it speaks SSH (it may say other lines before, RFC 4253 §4.2).
const (
	probeTimeout  = 15 * time.Second
	bannerTimeout = 5 * time.Second
)

// errStop ends a handshake once what was asked for is known.
var errStop = errors.New("enough seen")

// ProbeLogin does the steps banner, host_key and login.
func (p *SSHProber) ProbeLogin(ctx context.Context, t *target.Target, a *target.Account) []fleet.DialStage {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	start := time.Now()
	raw, _, err := p.c.Dialer.Dial(ctx, fleet.DialRequest{Site: t.Site, Address: t.Address(), Class: wire.Interactive})
	if err != nil {
		return []fleet.DialStage{{Name: "banner", MS: since(start), Text: publicError(err), Fix: "try again: it could be reached a moment ago"}}
	}
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	if d, ok := ctx.Deadline(); ok {
		_ = raw.SetDeadline(d) // closing by ctx is the one that counts
	}
	tr := &try{p: p, t: t, a: a, conn: &bannerConn{Conn: raw}, start: start}
	return tr.run(ctx)
}

// try is one login on its way.
type try struct {
	p    *SSHProber
	t    *target.Target
	a    *target.Account
	conn *bannerConn

	start   time.Time
	keyAt   time.Time // when the host key was judged; zero = not reached
	keyErr  error
	key     ssh.PublicKey
	keyText string
	authErr error // credentials could not be had
}

func (tr *try) run(ctx context.Context) []fleet.DialStage {
	auth, done := tr.methods(ctx)
	defer done()
	user := "caponier"
	if tr.a != nil {
		user = tr.a.Name
	}
	cfg := &ssh.ClientConfig{
		User: user, Auth: auth, ClientVersion: "SSH-2.0-Caponier", Timeout: probeTimeout,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error { return tr.judge(ctx, key) },
	}
	algorithms, err := tr.p.c.CA.Algorithms(ctx, tr.t.Site, tr.t.Host, tr.t.SSHAlgorithms)
	if err != nil {
		return []fleet.DialStage{{Name: "banner", MS: since(tr.start), Text: "the algorithm rules of this target cannot be used",
			Fix: "correct ssh_algorithms of the target or the algorithm rules"}}
	}
	algorithms.Apply(cfg)
	if known := tr.knownAlgorithms(ctx, cfg.HostKeyAlgorithms); len(known) > 0 {
		cfg.HostKeyAlgorithms = known
	}
	// What core itself took to prepare is not the server's.
	late := time.AfterFunc(bannerTimeout, func() {
		if tr.conn.version() == "" {
			tr.conn.Close()
		}
	})
	defer late.Stop()
	c, chans, reqs, err := ssh.NewClientConn(tr.conn, tr.t.Address(), cfg)
	if err == nil {
		var wg sync.WaitGroup
		wg.Go(func() { ssh.DiscardRequests(reqs) })
		wg.Go(func() {
			for ch := range chans {
				_ = ch.Reject(ssh.Prohibited, "this was only a test")
			}
		})
		_ = c.Close()
		wg.Wait()
	}
	return tr.stages(err)
}

// knownAlgorithms narrows the offer to the keys on file, so that a host with
// several keys shows the one that was accepted.
func (tr *try) knownAlgorithms(ctx context.Context, offered []string) []string {
	if tr.t.HostKeyPolicy == target.HostKeyCA {
		return nil
	}
	keys, err := tr.p.c.Targets.HostKeys(ctx, tr.t.ID)
	if err != nil || len(keys) == 0 {
		return nil
	}
	var known []string
	for _, o := range offered {
		plain := strings.TrimPrefix(strings.TrimPrefix(o, "rsa-sha2-256"), "rsa-sha2-512")
		for _, k := range keys {
			if o == k.Algorithm || plain == "" && k.Algorithm == ssh.KeyAlgoRSA {
				known = append(known, o)
				break
			}
		}
	}
	return known
}

func (tr *try) judge(ctx context.Context, key ssh.PublicKey) error {
	tr.keyAt, tr.key = time.Now(), key
	k := target.NewHostKey(tr.t.ID, key)
	tr.keyText = k.Algorithm + " " + k.Fingerprint
	if tr.keyErr = tr.p.c.Targets.CheckHostKey(ctx, tr.t, k); tr.keyErr != nil {
		return tr.keyErr
	}
	if tr.authErr != nil || tr.a == nil || tr.a.Auth == target.AuthAsk {
		return errStop
	}
	return nil
}

// methods prepares what the account logs in with; done wipes it.
func (tr *try) methods(ctx context.Context) (auth []ssh.AuthMethod, done func()) {
	done = func() {}
	if tr.a == nil {
		return nil, done
	}
	switch tr.a.Auth {
	case target.AuthCertificate:
		signer, _, err := tr.p.c.CA.TargetSigner(ctx, sshca.UserRequest{KeyID: "explain", Group: tr.t.Group, Principals: []string{tr.a.Name}, TTL: time.Minute})
		if err != nil {
			tr.authErr = fmt.Errorf("make a certificate: %w", err)
			return nil, done
		}
		return []ssh.AuthMethod{ssh.PublicKeys(signer)}, done
	case target.AuthPassword, target.AuthKey:
		secret, err := tr.p.c.Secrets.Reveal(ctx, tr.a.SecretID, "explain", "")
		if err != nil {
			tr.authErr = fmt.Errorf("open the stored secret: %w", err)
			return nil, done
		}
		done = func() { clear(secret) }
		if tr.a.Auth == target.AuthKey {
			signer, err := ssh.ParsePrivateKey(secret)
			if err != nil {
				tr.authErr = errors.New("the stored secret is not a private key")
				return nil, done
			}
			return []ssh.AuthMethod{ssh.PublicKeys(signer)}, done
		}
		password := func() (string, error) { return string(secret), nil }
		return []ssh.AuthMethod{ssh.PasswordCallback(password), ssh.KeyboardInteractive(func(_, _ string, questions []string, _ []bool) ([]string, error) {
			answers := make([]string, len(questions))
			for i := range answers {
				answers[i], _ = password()
			}
			return answers, nil
		})}, done
	}
	return nil, done
}

// stages says what the handshake's end tells about each step.
func (tr *try) stages(err error) []fleet.DialStage {
	end := time.Now()
	banner := fleet.DialStage{Name: "banner", MS: span(tr.start, firstOf(tr.conn.first(), end))}
	version := tr.conn.version()
	switch {
	case version == "" && err != nil:
		banner.Text = "the port is open, but no SSH server answered"
		banner.Fix = "check that an SSH server listens on this port, and that it accepts new connections (MaxStartups)"
		if got := tr.conn.seen(); got != "" {
			banner.Text = "the port does not speak SSH; it said " + quoted(got)
			banner.Fix = "check port and kind of the target"
		}
		return []fleet.DialStage{banner}
	case tr.keyAt.IsZero() && err != nil:
		banner.Text = fmt.Sprintf("%s answered, but the handshake failed: %s", quoted(version), handshakeError(err))
		banner.Fix = "for an old host, permit its algorithms (ssh_algorithms of the target)"
		return []fleet.DialStage{banner}
	}
	banner.OK, banner.Text = true, quoted(version)
	key := fleet.DialStage{Name: "host_key", OK: true, MS: span(tr.conn.first(), tr.keyAt), Text: tr.keyText}
	if tr.keyErr != nil {
		key.OK, key.Text = false, "the host key could not be checked"
		key.Fix = "see core's log"
		if e, ok := errors.AsType[*target.HostKeyError](tr.keyErr); ok {
			key.Text = e.Public
			key.Fix = "compare the fingerprint with the host's own (ssh-keygen -lf), then accept the key"
		}
		return []fleet.DialStage{banner, key}
	}
	if tr.a == nil {
		return []fleet.DialStage{banner, key}
	}
	return []fleet.DialStage{banner, key, tr.login(err, span(tr.keyAt, end))}
}

func (tr *try) login(err error, ms float64) fleet.DialStage {
	st := fleet.DialStage{Name: "login", MS: ms}
	switch {
	case tr.authErr != nil:
		st.Text = fmt.Sprintf("account %s has nothing to log in with: the stored secret or the CA cannot be used", tr.a.Name)
		st.Fix = "check the secret of the account, and that the vault is open"
	case err == nil:
		st.OK, st.Text = true, fmt.Sprintf("account %s can log in (%s)", tr.a.Name, tr.a.Auth)
	case errors.Is(err, errStop):
		st.OK, st.Text = true, "not tried: the user gives the password"
	case strings.Contains(err.Error(), "unable to authenticate"):
		st.Text = fmt.Sprintf("the host refuses the login of %s (%s)", tr.a.Name, tr.a.Auth)
		switch tr.a.Auth {
		case target.AuthCertificate:
			st.Fix = fmt.Sprintf("check TrustedUserCAKeys and AuthorizedPrincipals for %s on the host, and that the account exists and the host's clock is right", tr.a.Name)
		case target.AuthPassword:
			st.Fix = "check the stored password, and that the host permits passwords for this account (PermitRootLogin, PasswordAuthentication)"
		default:
			st.Fix = "check that the stored key is in the account's authorized_keys"
		}
	default:
		st.Text = "the host ended the connection during login: " + handshakeError(err)
		st.Fix = "look at the host's SSH log"
	}
	return st
}

func span(from, to time.Time) float64 {
	if from.IsZero() || to.Before(from) {
		return 0
	}
	return float64(to.Sub(from).Microseconds()) / 1000
}

func firstOf(a, b time.Time) time.Time {
	if a.IsZero() {
		return b
	}
	return a
}

// handshakeError shows what the SSH library says: names of algorithms and
// messages, never credentials.
func handshakeError(err error) string {
	text := err.Error()
	if errors.Is(err, net.ErrClosed) || strings.Contains(text, "EOF") {
		return "the host hung up"
	}
	text = strings.TrimPrefix(text, "ssh: handshake failed: ")
	return text[:min(len(text), 300)]
}

func publicError(err error) string {
	if e, ok := errors.AsType[*wire.Error](err); ok {
		return e.Public
	}
	return "the target could not be reached"
}

// bannerConn notes the first line the server sends, and when.
type bannerConn struct {
	net.Conn
	mu  sync.Mutex
	at  time.Time // guarded by mu
	got []byte    // guarded by mu
}

const maxBanner = 512

func (c *bannerConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 && c.at.IsZero() {
		c.at = time.Now()
	}
	if room := maxBanner - len(c.got); room > 0 {
		c.got = append(c.got, p[:min(n, room)]...)
	}
	return n, err
}

// first is when the server said something; zero = never.
func (c *bannerConn) first() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// version is the SSH identification line (RFC 4253 §4.2), or empty.
func (c *bannerConn) version() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range strings.SplitSeq(string(c.got), "\n") {
		if strings.HasPrefix(line, "SSH-") {
			return strings.TrimRight(line, "\r")
		}
	}
	return ""
}

func (c *bannerConn) seen() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	line, _, _ := strings.Cut(string(c.got), "\n")
	return strings.TrimRight(line, "\r")
}
