package bastion

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/fleet"
	"caponier/core/internal/policy"
	"caponier/core/internal/sshca"
	"caponier/core/internal/target"
	"caponier/shared/wire"
)

// upstream is the SSH connection of a login to its target.
type upstream struct {
	conn    ssh.Conn
	target  string // ID
	account string
	route   fleet.Route
	watch   *watched
	gone    chan struct{} // closed when the connection is
}

// run pings the target until its connection ends.
func (u *upstream) run(limits Limits) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { keepalive(ctx, u.conn, u.watch, limits) })
	_ = u.conn.Wait()
	cancel()
	close(u.gone)
	wg.Wait()
}

func (u *upstream) alive() bool {
	select {
	case <-u.gone:
		return false
	default:
		return true
	}
}

// secretAsker asks the user for a secret in the channel at hand; nil when it
// cannot be asked there.
type secretAsker func(question string) (string, error)

// certificateTTL is how long a just-in-time certificate is valid: the time
// for one handshake, with room for a slow one.
const certificateTTL = 3 * time.Minute

// connect returns the login's connection to the target of u, made now if
// there is none. Its errors are for the user (see public).
func (l *login) connect(ctx context.Context, u *use, class wire.Class, asker secretAsker) (*upstream, error) {
	select {
	case l.lock <- struct{}{}:
		defer func() { <-l.lock }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	t, a := u.verdict.Target, u.verdict.Account
	if a == nil {
		return nil, errors.New("allowed without an account")
	}
	l.mu.Lock()
	up := l.up
	l.mu.Unlock()
	if up != nil && up.alive() {
		if up.target != t.ID || up.account != a.Name {
			return nil, refused("other_target", "This login is for another target.")
		}
		u.connected(up.route)
		return up, nil
	}
	password := l.password
	if a.Auth == target.AuthAsk && password == nil {
		if asker == nil {
			return nil, refused("password_needed", "The password of %s on %s is needed; your client could not be asked for it.", a.Name, t.Name)
		}
		answer, err := asker(fmt.Sprintf("Password of %s on %s: ", a.Name, t.Name))
		if err != nil {
			return nil, err
		}
		password = []byte(answer)
	}
	up, chans, reqs, err := l.s.dialTarget(ctx, u, class, l.principal.UserName, password)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.up = up
	l.mu.Unlock()
	if l.ctx.Err() != nil {
		_ = up.conn.Close()
	}
	l.wg.Go(func() { up.run(l.s.limits) })
	l.wg.Go(func() { ssh.DiscardRequests(reqs) })
	l.wg.Go(func() {
		var wg sync.WaitGroup
		for nch := range chans {
			wg.Go(func() { l.fromTarget(nch) })
		}
		wg.Wait()
	})
	u.connected(up.route)
	return up, nil
}

// dropUpstream closes the connection to the target.
func (l *login) dropUpstream(only *upstream) {
	l.mu.Lock()
	up := l.up
	if only == nil || up == only {
		l.up = nil
	}
	l.mu.Unlock()
	if up != nil && (only == nil || up == only) {
		_ = up.conn.Close()
	}
}

// dialTarget reaches the target and logs in there.
func (s *Server) dialTarget(ctx context.Context, u *use, class wire.Class, user string, password []byte) (*upstream, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	t, a := u.verdict.Target, u.verdict.Account
	ctx, cancel := context.WithTimeout(ctx, s.limits.Dial)
	defer cancel()
	trust, err := s.trust(ctx, t)
	if err != nil {
		return nil, nil, nil, err
	}
	cfg, err := s.clientConfig(ctx, t, a.Name, trust)
	if err != nil {
		return nil, nil, nil, err
	}
	nc, route, err := s.cfg.Dialer.Dial(ctx, fleet.DialRequest{
		Site: t.Site, Address: addressOf(t), Class: class, Connection: u.id})
	if err != nil {
		return nil, nil, nil, err
	}
	// The handshake knows no context: ending it means closing the connection.
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()

	auth := &targetAuth{s: s, ctx: ctx, use: u, user: user, password: password}
	cfg.Auth = auth.methods()
	defer auth.forget()
	w := watch(nc)
	c, chans, reqs, err := ssh.NewClientConn(w, addressOf(t), cfg)
	if err != nil {
		_ = nc.Close()
		return nil, nil, nil, explain(ctx, err, t, a, trust, auth)
	}
	if !stop() {
		_ = c.Close()
		return nil, nil, nil, context.Cause(ctx)
	}
	w.established()
	up := &upstream{conn: c, target: t.ID, account: a.Name, route: route, gone: make(chan struct{})}
	up.watch = w
	return up, chans, reqs, nil
}

// explain turns a failed handshake into what the user is told.
func explain(ctx context.Context, err error, t *target.Target, a *target.Account, trust *hostTrust, auth *targetAuth) error {
	if trust.err != nil {
		return trust.err
	}
	if auth.err != nil {
		return auth.err
	}
	if alg, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		return refused("algorithms", "%s and the bastion have no common %s algorithm (it offers %s). An administrator can allow old algorithms for this target.",
			t.Name, alg.What, clip(strings.Join(alg.RequestedAlgorithms, ", "), 200))
	}
	if auth.tried || strings.Contains(err.Error(), "unable to authenticate") {
		return refused("target_login", "%s refused the login of %s (%s).", t.Name, a.Name, authText(a.Auth))
	}
	if ctx.Err() != nil {
		return refused("timeout", "%s did not finish the SSH handshake in time.", t.Name)
	}
	return refused("handshake", "The SSH handshake with %s did not succeed; it may not be an SSH server.", t.Name)
}

func authText(a target.Auth) string {
	switch a {
	case target.AuthCertificate:
		return "certificate: does it trust the certificate authority, and is the account a principal there?"
	case target.AuthPassword:
		return "stored password"
	case target.AuthKey:
		return "stored key"
	}
	return "the password you gave"
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// hostTrust checks the host key of one target.
type hostTrust struct {
	s    *Server
	ctx  context.Context
	t    *target.Target
	keys []target.HostKey
	err  error // why the key was not taken, for the user
}

func (s *Server) trust(ctx context.Context, t *target.Target) (*hostTrust, error) {
	h := &hostTrust{s: s, ctx: ctx, t: t}
	if t.HostKeyPolicy == target.HostKeyCA {
		return h, nil
	}
	keys, err := s.cfg.HostKeys.HostKeys(ctx, t.ID)
	if err != nil {
		return nil, fmt.Errorf("host keys of %s: %w", t.ID, err)
	}
	h.keys = keys
	return h, nil
}

// order puts the algorithms of keys on file first, so that a host with
// several keys presents the one we know; with a CA it asks for certificates only.
func (h *hostTrust) order(algs []string) []string {
	if h.t.HostKeyPolicy == target.HostKeyCA {
		return slices.DeleteFunc(slices.Clone(algs), func(a string) bool { return !strings.Contains(a, "-cert-") })
	}
	algs = slices.DeleteFunc(slices.Clone(algs), func(a string) bool { return strings.Contains(a, "-cert-") })
	known := func(alg string) bool {
		return slices.ContainsFunc(h.keys, func(k target.HostKey) bool {
			return k.Algorithm == alg || k.Algorithm == ssh.KeyAlgoRSA && strings.HasPrefix(alg, "rsa-sha2-")
		})
	}
	slices.SortStableFunc(algs, func(a, b string) int {
		switch ka, kb := known(a), known(b); {
		case ka == kb:
			return 0
		case ka:
			return -1
		}
		return 1
	})
	return algs
}

// callback is the ssh.HostKeyCallback.
func (h *hostTrust) callback(_ string, _ net.Addr, key ssh.PublicKey) error {
	err := h.verdict(key)
	if err != nil {
		h.err = err
	}
	return err
}

func (h *hostTrust) verdict(key ssh.PublicKey) error {
	if h.t.HostKeyPolicy == target.HostKeyCA {
		return h.certificate(key)
	}
	raw := key.Marshal()
	for _, k := range h.keys {
		have, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k.Key))
		if err == nil && bytes.Equal(have.Marshal(), raw) {
			return nil
		}
	}
	fp := ssh.FingerprintSHA256(key)
	err := h.s.cfg.HostKeys.SawHostKey(h.ctx, h.t.ID, target.HostKey{
		TargetID: h.t.ID, Algorithm: key.Type(), Key: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))),
		Fingerprint: fp, SeenAt: h.s.cfg.Now()})
	if err == nil {
		return nil
	}
	h.s.cfg.Log.Warn("host key not accepted", "target", h.t.ID, "fingerprint", fp, "err", err)
	if len(h.keys) == 0 {
		return refused("host_key", "The host key of %s (%s) has not been accepted yet. An administrator must accept it first.", h.t.Name, fp)
	}
	return refused("host_key_changed", "The host key of %s has CHANGED to %s. Somebody may be listening in, or the host was reinstalled. You cannot connect until an administrator accepts the new key.", h.t.Name, fp)
}

func (h *hostTrust) certificate(key ssh.PublicKey) error {
	ca, _, _, _, err := ssh.ParseAuthorizedKey([]byte(h.t.HostKeyCA))
	if err != nil {
		return fmt.Errorf("host key CA of %s: %w", h.t.ID, err)
	}
	checker := &ssh.CertChecker{
		IsHostAuthority: func(k ssh.PublicKey, _ string) bool { return bytes.Equal(k.Marshal(), ca.Marshal()) },
		Clock:           h.s.cfg.Now,
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.HostCert || !checker.IsHostAuthority(cert.SignatureKey, "") {
		return refused("host_key", "%s did not present a host certificate of the authority set for it.", h.t.Name)
	}
	for _, name := range []string{h.t.Host, h.t.Name} {
		if err = checker.CheckCert(name, cert); err == nil {
			return nil
		}
	}
	return refused("host_key", "The host certificate of %s is not valid: %v.", h.t.Name, err)
}

// targetAuth logs in to the target; secrets are opened when the handshake
// gets that far and forgotten with it.
type targetAuth struct {
	s        *Server
	ctx      context.Context
	use      *use
	user     string
	password []byte
	opened   [][]byte
	tried    bool
	err      error // for the user
}

func (a *targetAuth) methods() []ssh.AuthMethod {
	switch a.use.verdict.Account.Auth {
	case target.AuthCertificate:
		return []ssh.AuthMethod{ssh.PublicKeysCallback(a.signers(a.certificate))}
	case target.AuthKey:
		return []ssh.AuthMethod{ssh.PublicKeysCallback(a.signers(a.key))}
	case target.AuthPassword, target.AuthAsk:
		return []ssh.AuthMethod{ssh.PasswordCallback(a.secret), ssh.KeyboardInteractive(a.answer)}
	}
	return nil
}

func (a *targetAuth) signers(get func() (ssh.Signer, error)) func() ([]ssh.Signer, error) {
	return func() ([]ssh.Signer, error) {
		sg, err := get()
		if err != nil {
			a.err = err
			return nil, err
		}
		a.tried = true
		return []ssh.Signer{sg}, nil
	}
}

func (a *targetAuth) certificate() (ssh.Signer, error) {
	sg, cert, err := a.s.cfg.CA.TargetSigner(a.ctx, sshca.UserRequest{
		Group: a.use.verdict.Target.Group,
		KeyID: a.user + "@" + a.use.id, Principals: []string{a.use.verdict.Account.Name}, TTL: certificateTTL})
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	a.use.live.Channel("certificate", fmt.Sprintf("serial %d", cert.Serial))
	return sg, nil
}

func (a *targetAuth) reveal() ([]byte, error) {
	acct := a.use.verdict.Account
	b, err := a.s.cfg.Vault.Reveal(a.ctx, acct.SecretID, "login of "+acct.Name, a.use.id)
	if err != nil {
		return nil, fmt.Errorf("open the credential of account %s: %w", acct.ID, err)
	}
	a.opened = append(a.opened, b)
	return b, nil
}

func (a *targetAuth) key() (ssh.Signer, error) {
	b, err := a.reveal()
	if err != nil {
		return nil, err
	}
	sg, err := ssh.ParsePrivateKey(b)
	if err != nil {
		// The parser's words could quote the key; they are dropped.
		return nil, refused("bad_key", "The key stored for %s cannot be used; an administrator must replace it.", a.use.verdict.Account.Name)
	}
	return sg, nil
}

func (a *targetAuth) secret() (string, error) {
	a.tried = true
	if a.use.verdict.Account.Auth == target.AuthAsk {
		return string(a.password), nil
	}
	b, err := a.reveal()
	if err != nil {
		a.err = err
		return "", err
	}
	return string(b), nil
}

// answer gives the password to the one hidden question of a
// keyboard-interactive login and nothing to any other.
func (a *targetAuth) answer(_, _ string, questions []string, echo []bool) ([]string, error) {
	if len(questions) == 0 {
		return nil, nil
	}
	if len(questions) != 1 || echo[0] {
		return nil, errors.New("the target asks for more than a password")
	}
	pw, err := a.secret()
	return []string{pw}, err
}

func (a *targetAuth) forget() {
	for _, b := range a.opened {
		clear(b)
	}
}

// sshTarget refuses what cannot be logged in to by SSH.
func sshTarget(v policy.Verdict) error {
	if v.Target.Kind != target.SSH {
		return refused("not_ssh", "%s is not an SSH target. Forward a local port to it instead: ssh -L or ssh -W.", v.Target.Name)
	}
	return nil
}
