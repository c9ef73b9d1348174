package bastion

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/access"
	"caponier/core/internal/api"
	"caponier/core/internal/policy"
	"caponier/core/internal/target"
	"caponier/core/internal/user"
)

// attempt is the authentication of one incoming SSH connection. Its callbacks
// run one after the other on the handshake's goroutine.
type attempt struct {
	s      *Server
	ctx    context.Context
	source netip.Addr
	// preset is the target reference a SOCKS client asked for; it is joined
	// with the login name only after the login succeeded.
	preset string
}

// proven is what a finished authentication yields.
type proven struct {
	principal *api.Principal
	name      loginName
	// password for the target, when its account is set to ask the user.
	password []byte
}

type provenKey struct{}

func provenFrom(p *ssh.Permissions) *proven {
	if p == nil {
		return nil
	}
	v, _ := p.ExtraData[provenKey{}].(*proven)
	return v
}

// errRefused is what every failed attempt returns: it tells nothing apart.
var errRefused = errors.New("permission denied")

// via names the front door in the login audit.
func (a *attempt) via() string {
	if a.preset != "" {
		return "socks"
	}
	return "bastion"
}

func (a *attempt) config() *ssh.ServerConfig {
	algs := ssh.SupportedAlgorithms()
	c := &ssh.ServerConfig{
		Config: ssh.Config{
			KeyExchanges: algs.KeyExchanges, // mlkem768x25519-sha256 first (FEATURES C33)
			Ciphers:      algs.Ciphers,
			MACs:         slices.DeleteFunc(algs.MACs, func(m string) bool { return m == ssh.HMACSHA1 }),
		},
		MaxAuthTries:  a.s.limits.MaxAuthTries,
		ServerVersion: "SSH-2.0-Caponier",
		PasswordCallback: func(m ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			return a.password(m, string(password), nil)
		},
		PublicKeyCallback:           a.acceptKey,
		VerifiedPublicKeyCallback:   a.publicKey,
		KeyboardInteractiveCallback: a.interactive,
	}
	for _, k := range a.s.cfg.Signers() {
		c.AddHostKey(k)
	}
	return c
}

// name reads the login name and, for a connection that came through SOCKS,
// puts its destination in: then "user%account" names the account.
func (a *attempt) name(m ssh.ConnMetadata) (loginName, error) {
	n, err := parseName(m.User(), a.s.cfg.Separator())
	if err != nil || a.preset == "" {
		return n, err
	}
	if n.Account != "" {
		return loginName{}, errName
	}
	n.Account, n.Target = n.Target, a.preset
	return n, nil
}

func (a *attempt) login(c user.Credentials) (*api.Principal, error) {
	c.Source, c.Via = a.source, a.via()
	return a.s.cfg.Users.Login(a.ctx, c)
}

// refuse turns a login error into what the peer gets: the same refusal for
// all, plus a banner when a limit says to wait.
func (a *attempt) refuse(err error) error {
	if lim, ok := errors.AsType[*user.LimitError](err); ok {
		return &ssh.BannerError{Err: errRefused, Message: fmt.Sprintf(
			"Too many login attempts. Try again in %s.\r\n", max(lim.RetryAfter.Round(time.Second), time.Second))}
	}
	if !errors.Is(err, user.ErrBadCredentials) && !errors.Is(err, user.ErrNeedCode) && !errors.Is(err, errRefused) {
		a.s.cfg.Log.Error("login", "remote", a.source, "err", err)
	}
	return errRefused
}

// acceptKey answers "would this key do?" before the client signs with it.
func (a *attempt) acceptKey(m ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	n, err := a.name(m)
	if err != nil {
		return nil, errRefused
	}
	ok, err := a.s.cfg.Users.AcceptsKey(a.ctx, n.User, key, a.source)
	if err != nil {
		return nil, a.refuse(err)
	}
	if !ok {
		return nil, errRefused
	}
	return &ssh.Permissions{}, nil
}

// publicKey finishes a login with a key whose possession was just proven.
func (a *attempt) publicKey(m ssh.ConnMetadata, key ssh.PublicKey, _ *ssh.Permissions, _ string) (*ssh.Permissions, error) {
	n, err := a.name(m)
	if err != nil {
		return nil, errRefused
	}
	c := user.Credentials{Name: n.User, Key: key}
	p, err := a.login(c)
	if errors.Is(err, user.ErrNeedCode) {
		return nil, a.partial(a.code(n, c))
	}
	if err != nil {
		return nil, a.refuse(err)
	}
	return a.proceed(n, p, c, nil)
}

// password checks a password; ask is nil when the method has no dialogue.
func (a *attempt) password(m ssh.ConnMetadata, password string, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	n, err := a.name(m)
	if err != nil {
		// Spend the same time and the same limits as any wrong login.
		n = loginName{User: "?"}
	}
	c := user.Credentials{Name: n.User, Password: password}
	p, err := a.login(c)
	if errors.Is(err, user.ErrNeedCode) {
		then := a.code(n, c)
		if ask == nil {
			return nil, a.partial(then)
		}
		return then(m, ask)
	}
	if err != nil {
		return nil, a.refuse(err)
	}
	return a.proceed(n, p, c, ask)
}

// interactive is keyboard-interactive: password, then the code when needed.
func (a *attempt) interactive(m ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	password, err := prompt(ask, "", "Password: ")
	if err != nil {
		return nil, errRefused
	}
	return a.password(m, password, ask)
}

type dialogue = func(ssh.ConnMetadata, ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error)

func (a *attempt) partial(next dialogue) error {
	return &ssh.PartialSuccessError{Next: ssh.ServerAuthCallbacks{KeyboardInteractiveCallback: next}}
}

// code asks for the second factor and repeats the login with it.
func (a *attempt) code(n loginName, c user.Credentials) dialogue {
	return func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		code, err := prompt(ask, "", "Verification code: ")
		if err != nil {
			return nil, errRefused
		}
		c.Code = code
		p, err := a.login(c)
		if err != nil {
			return nil, a.refuse(err)
		}
		return a.proceed(n, p, c, ask)
	}
}

// proceed runs after the user is known. When the target named in the login
// wants a second factor or its password from the user, it asks now: commands
// and sftp have no other moment for it.
func (a *attempt) proceed(n loginName, p *api.Principal, c user.Credentials, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
	if n.Target == "" {
		return permit(p, n, nil), nil
	}
	v, account := a.look(n, p)
	var next dialogue
	switch {
	case v.Reason == access.NeedMFA && !p.MFA && c.Code == "":
		next = a.stepUp(n, p, c)
	case account != nil && account.Auth == target.AuthAsk:
		next = func(_ ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			pw, err := prompt(ask, "", fmt.Sprintf("Password of %s on %s: ", account.Name, v.Target.Name))
			if err != nil {
				return nil, errRefused
			}
			return permit(p, n, []byte(pw)), nil
		}
	default:
		return permit(p, n, nil), nil
	}
	if ask == nil {
		return nil, a.partial(next)
	}
	return next(nil, ask)
}

// stepUp offers the second factor for a target that requires one. A user who
// has none gets in without it and is refused at the target, with the reason.
func (a *attempt) stepUp(n loginName, p *api.Principal, c user.Credentials) dialogue {
	return func(m ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
		code, err := prompt(ask, "This target requires a second factor.", "Verification code (empty if you have none): ")
		if err != nil {
			return nil, errRefused
		}
		if code == "" {
			return permit(p, n, nil), nil
		}
		c.Code = code
		with, err := a.login(c)
		if err != nil {
			return nil, a.refuse(err)
		}
		return a.proceed(n, with, c, ask)
	}
}

// look asks policy what the login name leads to, by any use of it.
func (a *attempt) look(n loginName, p *api.Principal) (policy.Verdict, *target.Account) {
	var best policy.Verdict
	n, err := a.s.resolve(a.ctx, p, n, a.source)
	if err != nil {
		return best, nil
	}
	for _, want := range []access.Feature{access.Shell, access.Exec, access.FileTransfer, access.Forward} {
		v, err := a.s.cfg.Policy.Decide(a.ctx, policy.Query{
			Principal: p, Target: n.Target, Account: n.Account, Want: want, Reason: "login", Source: a.source})
		if err != nil {
			return policy.Verdict{}, nil
		}
		if v.OK() {
			return v, v.Account
		}
		if v.Reason == access.NeedMFA {
			best = v
		}
	}
	return best, nil
}

func permit(p *api.Principal, n loginName, password []byte) *ssh.Permissions {
	return &ssh.Permissions{ExtraData: map[any]any{provenKey{}: &proven{principal: p, name: n, password: password}}}
}

// maxAnswer is the longest answer taken from a prompt, in bytes.
const maxAnswer = 1024

func prompt(ask ssh.KeyboardInteractiveChallenge, instruction, question string) (string, error) {
	answers, err := ask("", instruction, []string{question}, []bool{false})
	if err != nil {
		return "", err
	}
	if len(answers) != 1 || len(answers[0]) > maxAnswer {
		return "", errRefused
	}
	return answers[0], nil
}

func addrOf(a net.Addr) netip.Addr {
	ip, err := netip.ParseAddr(hostOf(a))
	if err != nil {
		return netip.Addr{}
	}
	return ip.Unmap().WithZone("")
}
