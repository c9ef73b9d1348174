package user

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
)

// Credentials of one login attempt. Exactly one of Password and Key is set.
type Credentials struct {
	Name     string
	Password string
	Code     string // TOTP or recovery code, when asked for
	Key      ssh.PublicKey
	Source   netip.Addr
	Via      string // front door, for the audit log
}

// ErrBadCredentials is every refusal that would tell an attacker which part
// was wrong: unknown user, wrong password, wrong code, disabled account.
var ErrBadCredentials = errors.New("name or credentials are not right")

// ErrNeedCode asks for the second factor: the rest was right.
var ErrNeedCode = errors.New("a second factor is needed")

// LimitError refuses an attempt because too many have failed before.
type LimitError struct {
	RetryAfter time.Duration
	// first is set once a minute and bucket, so that a flood of refusals is
	// audited without becoming a flood itself.
	first bool
}

// Error implements error.
func (e *LimitError) Error() string { return "too many failed logins" }

func (e *LimitError) problem() *api.Problem {
	seconds := max(1, int(math.Ceil(e.RetryAfter.Seconds())))
	return api.Limited("Too many failed logins. Wait and try again.", seconds)
}

// tokenPrefix starts every API token and OAuth access token.
const tokenPrefix = "cap_"

// isBearer reports whether text given as a password is a token or the secret of
// a session: good for what Login admits, never as proof that the person is here.
func isBearer(password string) bool {
	return strings.HasPrefix(password, tokenPrefix) || strings.HasPrefix(password, sessionPrefix)
}

// maxLoginName bounds what is looked up and remembered of a name.
const maxLoginName = 64

func loginName(name string) string {
	name = strings.ToLower(name)
	if len(name) > maxLoginName || !nameForm.MatchString(name) {
		return ""
	}
	return name
}

// proof is what a check of credentials found. reason is "" when they are good.
type proof struct {
	method string // password, token, session, publickey, certificate
	reason string
	// wrongPassword counts towards the pause after many failures in a row.
	wrongPassword bool
	rehash        string // new hash to store, when the parameters are old
	key           string // ID of the registered key
	token         Token
	session       Session
	detail        string // fingerprint
}

// Login checks credentials, applies login limits, and audits the attempt. A
// password may also be an API token of the same user, which counts as one
// factor, or the secret of his command-line session. Key must belong to the user (a registered key, or
// a certificate of our authority for people that names him); the caller has
// verified possession.
//
// The errors are ErrBadCredentials, ErrNeedCode, a *LimitError, or an internal
// one, upon which nobody gets in.
func (s *Service) Login(ctx context.Context, c Credentials) (*api.Principal, error) {
	if (c.Password == "") == (c.Key == nil) || !c.Source.IsValid() {
		return nil, ErrBadCredentials
	}
	name := loginName(c.Name)
	done, err := s.attempt(ctx, name, c, "")
	if err != nil {
		return nil, err
	}
	failed := true
	defer func() { done(failed) }()
	p, starts, err := s.login(ctx, name, c)
	failed = errors.Is(err, ErrBadCredentials)
	if err != nil {
		return nil, err
	}
	for _, role := range starts {
		if err := s.MarkFirstUse(ctx, p.UserID, role, s.now()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// login is Login within the limits.
func (s *Service) login(ctx context.Context, name string, c Credentials) (*api.Principal, []string, error) {
	u, err := userByName(ctx, s.db, name)
	known := !errors.Is(err, db.ErrNotFound)
	if known && err != nil {
		return nil, nil, fmt.Errorf("login: %w", err)
	}
	pr, err := s.prove(ctx, &u, c)
	if err != nil {
		return nil, nil, fmt.Errorf("login: %w", err)
	}
	// What is wrong with the account is looked at after the credentials, so
	// that it shows neither in the answer nor in the time it takes.
	switch why := u.usable(); {
	case !known:
		pr.reason, pr.wrongPassword = "unknown_user", false
	case u.Kind != Person:
		pr.reason = "not_a_person"
	case pr.method == "password" && s.now().Before(u.PasswordLockedUntil):
		pr.reason, pr.wrongPassword = "paused", false
	case pr.reason == "" && why != "":
		pr.reason = why
	}
	if pr.reason != "" {
		return nil, nil, s.fail(ctx, &u, c, pr)
	}
	if s.wantsCode(&u, pr.method, c.Code) && c.Code == "" {
		if err := s.audit.Write(ctx, s.refusal(audit.LoginCodeNeeded, c, &u, "code_needed", pr.method)); err != nil {
			return nil, nil, fmt.Errorf("login: %w", err)
		}
		return nil, nil, ErrNeedCode
	}
	return s.admit(ctx, &u, c, pr)
}

// wantsCode reports whether a second factor belongs to this login.
func (s *Service) wantsCode(u *record, method, code string) bool {
	switch {
	case !u.MFA() || method == "token" || method == "session":
		return false
	case method == "password":
		return true
	}
	// A passkey cannot be asked for over SSH.
	return code != "" || u.TOTP && settings.LoginKeyNeedsCode.Get(s.settings)
}

// prove checks the credentials alone. u is the zero record for an unknown
// user: the work is the same.
func (s *Service) prove(ctx context.Context, u *record, c Credentials) (proof, error) {
	switch {
	case c.Key != nil:
		return s.checkKey(ctx, u, c.Key, c.Source)
	case strings.HasPrefix(c.Password, tokenPrefix):
		t, err := s.tokenBySecret(ctx, c.Password)
		if errors.Is(err, db.ErrNotFound) || err == nil && (t.UserID != u.ID || t.Kind != apiToken) {
			return proof{method: "token", reason: "bad_token"}, nil
		}
		return proof{method: "token", token: t}, err
	case strings.HasPrefix(c.Password, sessionPrefix):
		v, refusal, err := s.liveSession(ctx, c.Password, BearerSession, c.Source, c.Via)
		if err == nil && (refusal != "" || v.UserID != u.ID) {
			return proof{method: "session", reason: "bad_session"}, nil
		}
		return proof{method: "session", session: v}, err
	}
	pr := proof{method: "password"}
	ok, renew, err := s.hasher.verify(ctx, u.passwordHash, c.Password)
	if err != nil {
		return pr, err
	}
	if !ok {
		pr.reason, pr.wrongPassword = "bad_password", true
	}
	if renew {
		pr.rehash, err = s.hasher.hash(ctx, c.Password)
	}
	return pr, err
}

// admit consumes the second factor and writes the success, or the failure of
// the code, in one transaction.
func (s *Service) admit(ctx context.Context, u *record, c Credentials, pr proof) (*api.Principal, []string, error) {
	var p *api.Principal
	var starts []string
	var refused string
	err := s.db.Tx(ctx, func(tx *db.Tx) (err error) {
		p, starts, refused = nil, nil, ""
		// Checking took its time; the account may have changed meanwhile.
		now, err := userByID(ctx, tx, u.ID)
		if err != nil {
			return err
		}
		if now.usable() != "" || now.epoch != u.epoch {
			refused = "changed"
			return s.recordFailure(ctx, tx, u, c, proof{method: pr.method, reason: refused})
		}
		methods := []string{pr.method}
		if s.wantsCode(u, pr.method, c.Code) {
			method, reason, err := s.useCode(ctx, tx, u, c.Code)
			if err != nil {
				return err
			}
			if refused = reason; reason != "" {
				return s.recordFailure(ctx, tx, u, c, proof{method: pr.method, reason: reason, wrongPassword: true})
			}
			methods = append(methods, method)
		}
		permissions, begins, err := s.permissions(ctx, tx, u.ID, c.Source)
		if err != nil {
			return err
		}
		starts = begins
		p = &api.Principal{UserID: u.ID, UserName: u.Name, Methods: methods, MFA: len(methods) > 1,
			Permissions: permissions.everywhere, Scoped: permissions.scoped, Source: c.Source.Unmap(), Via: c.Via,
			Session: loginID{epoch: u.epoch, key: pr.key}.String()}
		switch pr.method {
		case "token":
			p.Session = pr.token.ID
		case "session":
			p.Session, p.Methods, p.MFA = pr.session.ID, pr.session.Methods, pr.session.MFA
		}
		return s.recordSuccess(ctx, tx, u, pr, p)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("login: %w", err)
	}
	if refused != "" {
		return nil, nil, ErrBadCredentials
	}
	return p, starts, nil
}

func (s *Service) recordSuccess(ctx context.Context, tx *db.Tx, u *record, pr proof, p *api.Principal) error {
	failures := u.failures
	if pr.method == "password" {
		failures = 0
	}
	now := s.now().UnixMicro()
	if err := changeOne(ctx, tx, sqlUserLoggedIn, u.ID, now, failures); err != nil {
		return err
	}
	if pr.rehash != "" {
		if _, err := tx.ExecContext(ctx, sqlUserRehash, u.ID, pr.rehash, u.passwordHash); err != nil {
			return err
		}
	}
	if pr.key != "" {
		if err := changeOne(ctx, tx, sqlKeyUsed, pr.key, now); err != nil {
			return err
		}
	}
	if pr.method == "token" {
		if _, err := tx.ExecContext(ctx, sqlTokenTouch, pr.token.ID, now, addrText(p.Source)); err != nil {
			return err
		}
	}
	fields := map[string]string{"methods": strings.Join(p.Methods, " ")}
	if pr.detail != "" {
		fields["fingerprint"] = pr.detail
	}
	if pr.method == "token" {
		fields["token"] = pr.token.ID
	}
	err := s.audit.Append(ctx, tx, audit.Event{Type: audit.LoginSucceeded, Outcome: audit.OK, Actor: audit.By(p), Object: u.object(), Fields: fields})
	if err == nil && pr.method != "session" && slices.Contains(p.Methods, "recovery") {
		err = s.audit.Append(ctx, tx, audit.Event{Type: audit.LoginRecovery, Outcome: audit.OK, Actor: audit.By(p), Object: u.object()})
	}
	return err
}

// fail audits a refused login and returns ErrBadCredentials.
func (s *Service) fail(ctx context.Context, u *record, c Credentials, pr proof) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error { return s.recordFailure(ctx, tx, u, c, pr) })
	if err != nil {
		return fmt.Errorf("login: %w", err)
	}
	return ErrBadCredentials
}

// recordFailure audits a failed login and counts it; too many in a row pause
// password logins of the user.
func (s *Service) recordFailure(ctx context.Context, tx *db.Tx, u *record, c Credentials, pr proof) error {
	if err := s.audit.Append(ctx, tx, s.refusal(audit.LoginFailed, c, u, pr.reason, pr.method)); err != nil {
		return err
	}
	most := settings.LoginLockAfter.Get(s.settings)
	if !pr.wrongPassword || most == 0 {
		return nil
	}
	var failures int
	if err := tx.QueryRowContext(ctx, sqlUserFailed, u.ID).Scan(&failures); err != nil {
		return err
	}
	if failures < most {
		return nil
	}
	until := s.now().Add(settings.LoginLockFor.Get(s.settings))
	if err := changeOne(ctx, tx, sqlUserPause, u.ID, until.UnixMicro()); err != nil {
		return err
	}
	e := s.refusal(audit.LoginPaused, c, u, "failures", pr.method)
	e.Fields["until"] = until.UTC().Format(time.RFC3339)
	return s.audit.Append(ctx, tx, e)
}

// refusal is the event of a refused login. The name of an unknown user is left
// out: people type passwords into that field.
func (s *Service) refusal(t audit.Type, c Credentials, u *record, reason, method string) audit.Event {
	e := audit.Event{Type: t, Outcome: audit.Denied, Object: audit.Object{Kind: "user"},
		Actor:  audit.Actor{Kind: "anonymous", Source: addrText(c.Source), Via: c.Via},
		Fields: map[string]string{"reason": reason}}
	if method != "" {
		e.Fields["method"] = method
	}
	if u != nil && u.ID != "" {
		e.Object = u.object()
	}
	return e
}

// principal makes the principal of a user who authenticated some way.
func (s *Service) principal(ctx context.Context, q db.Querier, userID string, source netip.Addr, via string) (*api.Principal, error) {
	u, err := userByID(ctx, q, userID)
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	if u.usable() != "" {
		return nil, api.Unauthenticated("The account is not in use.")
	}
	permissions, starts, err := s.permissions(ctx, q, userID, source)
	if err != nil {
		return nil, err
	}
	for _, role := range starts {
		if err := s.MarkFirstUse(ctx, userID, role, s.now()); err != nil {
			return nil, err
		}
	}
	return &api.Principal{UserID: u.ID, UserName: u.Name, Permissions: permissions.everywhere, Scoped: permissions.scoped, Source: source.Unmap(), Via: via}, nil
}

// Authenticate implements api.Authenticator: a bearer token or the session
// cookie. A request with neither yields nil and no error.
func (s *Service) Authenticate(r *http.Request, source netip.Addr) (*api.Principal, error) {
	ctx := r.Context()
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, secret, _ := strings.Cut(h, " ")
		secret = strings.TrimSpace(secret)
		switch {
		case !strings.EqualFold(scheme, "Bearer"):
			return nil, api.Unauthenticated("Send Authorization: Bearer with a token.")
		case len(secret) > 128:
			return nil, api.Unauthenticated("The token is not known, has expired or was revoked.")
		case strings.HasPrefix(secret, sessionPrefix):
			return s.principalOfSession(ctx, secret, BearerSession, source, active(r))
		}
		return s.principalOfToken(ctx, secret, source)
	}
	c, err := r.Cookie(CookieName)
	if err != nil || c.Value == "" {
		return nil, nil
	}
	return s.principalOfSession(ctx, cutText(c.Value, 128), CookieSession, source, active(r))
}

// BackgroundHeader marks requests a page makes by itself: they are served but
// do not keep a session from becoming idle.
const BackgroundHeader = "Caponier-Background"

func active(r *http.Request) bool {
	return r.Header.Get(BackgroundHeader) == "" && r.URL.Path != api.Prefix+"/events"
}

// ErrEnded is a login that is not good any more.
var ErrEnded = errors.New("the login has ended")

// StillValid reports whether the login behind p is still good: the user is
// enabled, and the session, token or key he came by is not revoked or expired.
// A session that only became idle stays good for the connections opened by it:
// they have idle limits of their own.
func (s *Service) StillValid(ctx context.Context, p *api.Principal) error {
	u, err := userByID(ctx, s.db, p.UserID)
	if err != nil {
		return err
	}
	if why := u.usable(); why != "" {
		return fmt.Errorf("%w: account %s", ErrEnded, why)
	}
	if l, ok := parseLoginID(p.Session); ok {
		return s.loginStillValid(ctx, &u, l)
	}
	var owner string
	var good bool
	switch now := s.now(); {
	case strings.HasPrefix(p.Session, "ses_"):
		var v Session
		v, err = scanSession(s.db.QueryRowContext(ctx, sqlSessionByID, p.Session))
		owner, good = v.UserID, v.RevokedAt.IsZero() && now.Before(v.ExpiresAt)
	case strings.HasPrefix(p.Session, "tok_"):
		var t Token
		t, err = scanToken(s.db.QueryRowContext(ctx, sqlTokenByID, p.Session))
		owner, good = t.UserID, t.live(now)
	}
	if err != nil && !errors.Is(err, db.ErrNotFound) {
		return fmt.Errorf("check login: %w", err)
	}
	if err != nil || !good || owner != u.ID {
		return fmt.Errorf("%w: session or token", ErrEnded)
	}
	return nil
}

func (s *Service) loginStillValid(ctx context.Context, u *record, l loginID) error {
	if l.epoch != u.epoch {
		return fmt.Errorf("%w: signed out", ErrEnded)
	}
	if l.key == "" {
		return nil
	}
	k, err := scanKey(s.db.QueryRowContext(ctx, sqlKeyByID, l.key))
	if errors.Is(err, db.ErrNotFound) || err == nil && k.UserID != u.ID {
		return fmt.Errorf("%w: key removed", ErrEnded)
	}
	if err != nil {
		return fmt.Errorf("check login: %w", err)
	}
	return nil
}
