package user

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
)

// CookieName is the console's session cookie. The __Host- prefix makes the
// browser insist on TLS, path / and no domain.
const CookieName = "__Host-caponier"

// sessionPrefix starts the secret of a session.
const sessionPrefix = "cps_"

// SessionKind is how a session's secret travels.
type SessionKind string

// The kinds of session.
const (
	CookieSession SessionKind = "cookie" // the console
	BearerSession SessionKind = "bearer" // the command line
)

// Session is a login that lasts over several requests.
type Session struct {
	ID        string
	UserID    string
	Kind      SessionKind
	Methods   []string
	MFA       bool
	Source    netip.Addr // where it was opened from
	Agent     string
	CreatedAt time.Time
	SeenAt    time.Time
	ExpiresAt time.Time
	RevokedAt time.Time

	// Origin is what it came by.
	Origin Origin

	refusedSource string
}

// Origin is what a session came by that can end it.
type Origin struct {
	// Provider is the ID of the single sign-on provider, or of the authority of
	// the client certificate, or "".
	Provider string
	// Session is the provider's own name of its session (claim sid), or the
	// names of the certificates it came by, or "".
	Session string
}

const sessionColumns = `s.id, s.user_id, s.kind, s.methods, s.mfa, s.source, s.refused_source, s.agent,
s.created_at, s.seen_at, s.expires_at, s.revoked_at, s.provider, s.provider_session`

const (
	sqlSessionInsert = `insert into sessions (id, user_id, hash, kind, methods, mfa, source, refused_source, agent,
created_at, seen_at, expires_at, revoked_at, provider, provider_session) values ($1, $2, $3, $4, $5, $6, $7, '', $8, $9, $9, $10, 0, $11, $12)`
	sqlSessionByHash  = `select ` + sessionColumns + ` from sessions s where s.hash = $1`
	sqlSessionByID    = `select ` + sessionColumns + ` from sessions s where s.id = $1`
	sqlSessionsOfUser = `select ` + sessionColumns + ` from sessions s
where s.user_id = $1 and s.revoked_at = 0 and s.expires_at > $2 order by s.created_at desc limit 500`
	sqlSessionsLive   = `select count(*) from sessions where user_id = $1 and revoked_at = 0 and expires_at > $2`
	sqlSessionTouch   = `update sessions set seen_at = $2 where id = $1 and seen_at < $2`
	sqlSessionRefused = `update sessions set refused_source = $2 where id = $1 and refused_source <> $2`
	sqlSessionRevoke  = `update sessions set revoked_at = $2 where id = $1 and revoked_at = 0`
	sqlSessionsRevoke = `update sessions set revoked_at = $2 where user_id = $1 and revoked_at = 0 and id <> $3`
	sqlSessionsBy     = `select distinct user_id from sessions where provider = $1 and revoked_at = 0 and expires_at > $2`
	sqlSessionsEndBy  = `update sessions set revoked_at = $2 where provider = $1 and revoked_at = 0`
	sqlSessionsEndAt  = `update sessions set revoked_at = $2 where provider = $1 and revoked_at = 0
and expires_at > $2 and (provider_session = $3 and $3 <> '' or user_id = $4 and ($3 = '' or provider_session = '')) returning user_id`
	sqlSessionsAt = `select distinct provider_session from sessions
where provider = $1 and provider_session <> '' and revoked_at = 0 and expires_at > $2`
	sqlSessionsPurge = `delete from sessions where expires_at < $1`
)

// maxSessions bounds the live sessions of one user.
const maxSessions = 200

func scanSession(row scanner) (Session, error) {
	var v Session
	var methods, source string
	var created, seen, expires, revoked int64
	err := row.Scan(&v.ID, &v.UserID, &v.Kind, &methods, &v.MFA, &source, &v.refusedSource, &v.Agent,
		&created, &seen, &expires, &revoked, &v.Origin.Provider, &v.Origin.Session)
	if err != nil {
		return Session{}, db.Classify(err)
	}
	if err := json.Unmarshal([]byte(methods), &v.Methods); err != nil {
		return Session{}, fmt.Errorf("session %s: %w", v.ID, err)
	}
	v.Source, _ = netip.ParseAddr(source) // not valid = bound to nowhere, refused
	v.CreatedAt, v.SeenAt = db.FromMicro(created), db.FromMicro(seen)
	v.ExpiresAt, v.RevokedAt = db.FromMicro(expires), db.FromMicro(revoked)
	return v, nil
}

// hashSecret is how high-entropy secrets (tokens, cookies, client secrets,
// recovery codes) are stored and looked up.
func hashSecret(secret string) string {
	h := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(h[:])
}

// OpenSession makes a session of a fresh login and returns its secret.
func (s *Service) OpenSession(ctx context.Context, p *api.Principal, kind SessionKind, agent string) (Session, string, error) {
	return s.openSession(ctx, p, kind, agent, Origin{}, nil)
}

// openSession is OpenSession for a login that came by from. good, if not nil,
// is asked first in the transaction that opens the session.
func (s *Service) openSession(ctx context.Context, p *api.Principal, kind SessionKind, agent string, from Origin, good func(*db.Tx) error) (Session, string, error) {
	now := s.now()
	v := Session{ID: db.NewID("ses_"), UserID: p.UserID, Kind: kind, Methods: p.Methods, MFA: p.MFA, Source: p.Source.Unmap(),
		Origin: from, Agent: cutText(agent, 200), CreatedAt: now, SeenAt: now, ExpiresAt: now.Add(settings.SessionAbsolute.Get(s.settings))}
	secret := sessionPrefix + strings.ToLower(rand.Text())
	methods, err := json.Marshal(v.Methods)
	if err != nil {
		return Session{}, "", fmt.Errorf("open session: %w", err)
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		if good != nil {
			if err := good(tx); err != nil {
				return err
			}
		}
		// Between the login and now he may have been disabled or signed out.
		u, err := userByID(ctx, tx, v.UserID)
		if err != nil {
			return err
		}
		if l, ok := parseLoginID(p.Session); ok && l.epoch != u.epoch || u.usable() != "" {
			return ErrBadCredentials
		}
		var live int
		if err := tx.QueryRowContext(ctx, sqlSessionsLive, v.UserID, now.UnixMicro()).Scan(&live); err != nil {
			return err
		}
		if live >= maxSessions {
			return api.Conflict("too_many_sessions", "Sign out of older sessions first.")
		}
		_, err = tx.ExecContext(ctx, sqlSessionInsert, v.ID, v.UserID, hashSecret(secret), string(kind), string(methods), v.MFA,
			addrText(v.Source), v.Agent, now.UnixMicro(), v.ExpiresAt.UnixMicro(), from.Provider, from.Session)
		if err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.LoginSession, Outcome: audit.OK, Actor: audit.By(p),
			Object: audit.Object{Kind: "session", ID: v.ID}, Fields: map[string]string{"kind": string(kind)}})
	})
	if err != nil {
		return Session{}, "", fmt.Errorf("open session: %w", err)
	}
	p.Session = v.ID
	return v, secret, nil
}

// touchEvery bounds how often a session's last use is written.
const touchEvery = 15 * time.Second

// liveSession finds the session of a secret sent from source. refusal says, for
// people, why it is not good.
func (s *Service) liveSession(ctx context.Context, secret string, kind SessionKind, source netip.Addr, via string) (v Session, refusal string, err error) {
	v, err = scanSession(s.db.QueryRowContext(ctx, sqlSessionByHash, hashSecret(secret)))
	if errors.Is(err, db.ErrNotFound) {
		return Session{}, "The session is not known. Log in again.", nil
	}
	if err != nil {
		return Session{}, "", fmt.Errorf("find session: %w", err)
	}
	now := s.now()
	switch {
	case !v.RevokedAt.IsZero() || !now.Before(v.ExpiresAt):
		return v, "The session has ended. Log in again.", nil
	case v.Kind == CookieSession && now.Sub(v.SeenAt) >= settings.SessionIdle.Get(s.settings):
		return v, "The session was not used for too long. Log in again.", nil
	case v.Kind != kind:
		return v, "The session is of another kind.", nil
	case !s.boundTo(v.Source, source):
		return v, "The session was opened from another address. Log in again.", s.refuseSource(ctx, v, source, via)
	}
	return v, "", nil
}

// principalOfSession checks a session's secret as sent from source. active
// tells whether the request counts as use of the session.
func (s *Service) principalOfSession(ctx context.Context, secret string, kind SessionKind, source netip.Addr, active bool) (*api.Principal, error) {
	via := "api"
	if kind == CookieSession {
		via = "console"
	}
	v, refusal, err := s.liveSession(ctx, secret, kind, source, via)
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	if refusal != "" {
		return nil, api.Unauthenticated(refusal)
	}
	p, err := s.principal(ctx, s.db, v.UserID, source, via)
	if err != nil {
		return nil, err
	}
	p.Session, p.Methods, p.MFA = v.ID, v.Methods, v.MFA
	if now := s.now(); active && now.Sub(v.SeenAt) >= touchEvery {
		if _, err := s.db.ExecContext(ctx, sqlSessionTouch, v.ID, now.UnixMicro()); err != nil {
			return nil, fmt.Errorf("authenticate: %w", err)
		}
	}
	return p, nil
}

// boundTo applies the setting session.source_binding.
func (s *Service) boundTo(opened, now netip.Addr) bool {
	opened, now = opened.Unmap(), now.Unmap()
	switch settings.SessionBinding.Get(s.settings) {
	case "off":
		return true
	case "subnet":
		return opened.IsValid() && now.IsValid() && subnetOf(opened) == subnetOf(now)
	default:
		return opened.IsValid() && opened == now
	}
}

// refuseSource audits that a session's secret came from a foreign address:
// once per address, so that a replayed cookie cannot flood the log. The
// session lives on where it belongs.
func (s *Service) refuseSource(ctx context.Context, v Session, source netip.Addr, via string) error {
	if v.refusedSource == addrText(source) {
		return nil
	}
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		n, err := affected(tx.ExecContext(ctx, sqlSessionRefused, v.ID, addrText(source)))
		if err != nil || n == 0 {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.LoginReplayed, Outcome: audit.Denied,
			Actor:  audit.Actor{Kind: "anonymous", Source: addrText(source), Via: via},
			Object: audit.Object{Kind: "user", ID: v.UserID},
			Fields: map[string]string{"reason": "source_changed", "opened_from": addrText(v.Source), "session": v.ID}})
	})
	if err != nil {
		return fmt.Errorf("authenticate: %w", err)
	}
	return nil
}

// Sessions lists a user's live sessions, newest first.
func (s *Service) Sessions(ctx context.Context, userID string) ([]Session, error) {
	list, err := query(ctx, s.db, scanSession, sqlSessionsOfUser, userID, s.now().UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return list, nil
}

// CloseSession ends one session of a user.
func (s *Service) CloseSession(ctx context.Context, by audit.Actor, userID, id string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		v, err := scanSession(tx.QueryRowContext(ctx, sqlSessionByID, id))
		if err != nil {
			return err
		}
		if v.UserID != userID {
			return db.ErrNotFound
		}
		n, err := affected(tx.ExecContext(ctx, sqlSessionRevoke, id, s.now().UnixMicro()))
		if err != nil || n == 0 {
			return err
		}
		if err := tx.Notify(ctx, "user", userID); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.LoginLogout, Outcome: audit.OK, Actor: by,
			Object: audit.Object{Kind: "session", ID: id}, Fields: map[string]string{"user": userID}})
	})
	if err != nil {
		return fmt.Errorf("close session: %w", err)
	}
	return nil
}

// SignOut ends every session of the user and every SSH login, on all cores.
// API tokens stay; they are revoked one by one.
func (s *Service) SignOut(ctx context.Context, by audit.Actor, userID string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, userID)
		if err != nil {
			return err
		}
		if err := s.signOut(ctx, tx, userID, ""); err != nil {
			return err
		}
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.UserSessionsRevoked, Outcome: audit.OK, Actor: by, Object: u.object()})
	})
	if err != nil {
		return fmt.Errorf("sign out: %w", err)
	}
	return nil
}

// EndSessionsBy ends, in the transaction that stops trusting it, every session
// that came by a single sign-on provider or a certificate authority, and
// returns whose they were.
func (s *Service) EndSessionsBy(ctx context.Context, tx *db.Tx, provider string) (users []string, err error) {
	if provider == "" {
		return nil, errors.New("end sessions: by no provider")
	}
	now := s.now().UnixMicro()
	users, err = query(ctx, tx, scanID, sqlSessionsBy, provider, now)
	if err != nil {
		return nil, fmt.Errorf("sessions by %.40s: %w", provider, err)
	}
	if _, err := tx.ExecContext(ctx, sqlSessionsEndBy, provider, now); err != nil {
		return nil, fmt.Errorf("end sessions by %.40s: %w", provider, err)
	}
	for _, id := range users {
		if err := tx.Notify(ctx, "user", id); err != nil {
			return nil, err
		}
	}
	return users, nil
}

// EndSessionsAt ends, as part of tx, the live sessions that a single sign-on
// provider says have ended there, or whose certificates are not good any more:
// those of from.Session, or, without that, all that it brought of the user. A
// session whose name at the provider is not known ends with any of its user's.
// userID may be "": nobody known here. It returns whose they were, once for
// each session.
func (s *Service) EndSessionsAt(ctx context.Context, tx *db.Tx, from Origin, userID string) (users []string, err error) {
	if from.Provider == "" || from.Session == "" && userID == "" {
		return nil, nil
	}
	users, err = query(ctx, tx, scanID, sqlSessionsEndAt, from.Provider, s.now().UnixMicro(), from.Session, userID)
	if err != nil {
		return nil, fmt.Errorf("end sessions of %.40s: %w", from.Provider, err)
	}
	for _, id := range slices.Compact(slices.Sorted(slices.Values(users))) {
		if err := tx.Notify(ctx, "user", id); err != nil {
			return nil, err
		}
	}
	return users, nil
}

// SessionsAt lists, as part of tx, what live sessions that came by provider
// have as Origin.Session, each once.
func (s *Service) SessionsAt(ctx context.Context, tx *db.Tx, provider string) ([]string, error) {
	list, err := query(ctx, tx, scanID, sqlSessionsAt, provider, s.now().UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("sessions by %.40s: %w", provider, err)
	}
	return list, nil
}

func scanID(row scanner) (id string, err error) {
	err = row.Scan(&id)
	return id, err
}

// signOut ends every login of the user but the session keep.
func (s *Service) signOut(ctx context.Context, tx *db.Tx, userID, keep string) error {
	if _, err := tx.ExecContext(ctx, sqlSessionsRevoke, userID, s.now().UnixMicro(), keep); err != nil {
		return err
	}
	if err := changeOne(ctx, tx, sqlUserEpoch, userID); err != nil {
		return err
	}
	return tx.Notify(ctx, "user", userID)
}

// loginID names a login that has no row: one over SSH by password, key or
// certificate. It carries the user's epoch, so that "sign out everywhere" ends
// it, and the registered key, so that removing the key does.
type loginID struct {
	epoch int64
	key   string // "" when no registered key was used
}

const loginPrefix = "lgn_"

func (l loginID) String() string {
	key := strings.TrimPrefix(l.key, "key_")
	if key == "" {
		key = "0"
	}
	return loginPrefix + strconv.FormatInt(l.epoch, 36) + "_" + key + "_" + strings.ToLower(rand.Text()[:16])
}

func parseLoginID(s string) (loginID, bool) {
	rest, ok := strings.CutPrefix(s, loginPrefix)
	parts := strings.Split(rest, "_")
	if !ok || len(parts) != 3 || parts[1] == "" {
		return loginID{}, false
	}
	epoch, err := strconv.ParseInt(parts[0], 36, 64)
	if err != nil {
		return loginID{}, false
	}
	if parts[1] == "0" {
		return loginID{epoch: epoch}, true
	}
	return loginID{epoch: epoch, key: "key_" + parts[1]}, true
}

func cutText(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}
