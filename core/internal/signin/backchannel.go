package signin

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

const (
	sqlLogoutInsert = `insert into sso_logouts (provider_id, token, session, subject, at) values ($1, $2, $3, $4, $5)`
	sqlLoggedOut    = `select count(*) from sso_logouts where provider_id = $1 and at >= $2
and (session = $3 and $3 <> '' or subject = $4 and (session = '' or $3 = ''))`
	sqlLogoutsPurge = `delete from sso_logouts where at < $1`
)

const (
	// logoutFresh is how old a logout token may be.
	logoutFresh = 5 * time.Minute
	// logoutsKept is longer than a logout token could be used, and than any
	// sign-in is on its way.
	logoutsKept = time.Hour
)

// logoutBucket stands for the user name in the limits of back-channel logouts.
const logoutBucket = "(single sign-on logout)"

// logoutEvent is the event a logout token is about (OpenID Connect Back-Channel
// Logout 1.0 §2.4).
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// logout is what a verified logout token says has ended: a session, or every
// session of a subject when Session is empty.
type logout struct {
	Token   string // its ID, claim jti
	Session string // sid
	Subject string // sub, may be empty when Session is not
}

// logoutAddress is where a provider says that a session ended there.
func (s *Service) logoutAddress(p Provider) string {
	return s.url.JoinPath(api.Prefix, "login", "sso", p.Name, "logout").String()
}

type logoutForm struct {
	Provider string `path:"provider" maxLength:"40"`
	RawBody  []byte `contentType:"application/x-www-form-urlencoded"`
}

// LogoutAnswer is what a provider is told; it looks at the status alone.
type LogoutAnswer struct {
	Ended int `json:"ended" doc:"Sessions that ended here."`
}

type logoutOutput struct {
	Body LogoutAnswer
}

func (s *Service) handleLogout(ctx context.Context, in *logoutForm) (*logoutOutput, error) {
	source := api.SourceFrom(ctx)
	done, err := s.users.Attempt(ctx, logoutBucket, source, "api")
	if err != nil {
		return nil, user.LoginProblem(err)
	}
	failed := false
	defer func() { done(failed) }()
	form, err := url.ParseQuery(string(in.RawBody))
	if err != nil || form.Get("logout_token") == "" {
		failed = true
		return nil, refusedLogout("Send logout_token as a form.")
	}
	p, d, err := s.reach(ctx, in.Provider)
	if err != nil {
		failed = !p.Enabled
		return nil, err
	}
	l, err := s.readLogout(ctx, p, d, form.Get("logout_token"))
	ended := 0
	if err == nil {
		ended, err = s.endByProvider(ctx, p, l, source)
	}
	if bad, ok := errors.AsType[*badLogout](err); ok {
		failed = true
		s.log.Warn("logout of a single sign-on provider refused", "provider", p.Name, "err", bad)
		e := logoutEventOf(audit.SSOLogoutRefused, audit.Denied, p, source)
		e.Fields["reason"] = bad.reason
		if err := s.audit.Write(ctx, e); err != nil {
			return nil, err
		}
		return nil, refusedLogout("The logout token is not good: " + bad.reason + ".")
	}
	if err != nil {
		return nil, fmt.Errorf("logout by %s: %w", p.Name, err)
	}
	return &logoutOutput{LogoutAnswer{Ended: ended}}, nil
}

// refusedLogout has the status that Back-Channel Logout 1.0 §2.8 wants.
func refusedLogout(detail string) error {
	return ssoProblem(http.StatusBadRequest, "sso_logout", "Nobody was signed out.", detail)
}

// badLogout is why a logout token counts for nothing; reason is plain text of
// ours, cause is for the log.
type badLogout struct {
	reason string
	cause  error
}

func (e *badLogout) Error() string {
	if e.cause != nil {
		return e.reason + ": " + plain(e.cause.Error())
	}
	return e.reason
}

func (e *badLogout) Unwrap() error { return e.cause }

// readLogout verifies a logout token (Back-Channel Logout 1.0 §2.6): signature,
// issuer and audience, then everything that tells it from an ID token.
func (s *Service) readLogout(ctx context.Context, p Provider, d discovered, raw string) (logout, error) {
	if typ := headerType(raw); typ != "" && typ != "jwt" && typ != "logout+jwt" && typ != "application/logout+jwt" {
		return logout{}, &badLogout{reason: "it is a token of another type"}
	}
	v := d.provider.Verifier(&oidc.Config{ClientID: p.Config.ClientID, SkipExpiryCheck: true})
	token, err := v.Verify(oidc.ClientContext(ctx, d.client), raw)
	if err != nil {
		return logout{}, &badLogout{"signature, issuer or audience are not right", err}
	}
	var c struct {
		Events  map[string]json.RawMessage `json:"events"`
		Nonce   json.RawMessage            `json:"nonce"`
		ID      string                     `json:"jti"`
		Subject string                     `json:"sub"`
		Session string                     `json:"sid"`
	}
	if err := token.Claims(&c); err != nil {
		return logout{}, &badLogout{"its claims cannot be read", err}
	}
	now := s.now()
	var event map[string]any
	switch {
	case c.Nonce != nil:
		return logout{}, &badLogout{reason: "it has a nonce, as ID tokens do"}
	case c.Events[logoutEvent] == nil || json.Unmarshal(c.Events[logoutEvent], &event) != nil || event == nil:
		return logout{}, &badLogout{reason: "it is not about a logout (events)"}
	case token.IssuedAt.IsZero() || token.IssuedAt.After(now.Add(clockSkew)):
		return logout{}, &badLogout{reason: "it was issued in the future (iat)"}
	case now.Sub(token.IssuedAt) > logoutFresh+clockSkew:
		return logout{}, &badLogout{reason: "it is too old (iat)"}
	// Providers that follow a draft leave exp out; iat bounds them.
	case !token.Expiry.IsZero() && !now.Before(token.Expiry.Add(clockSkew)):
		return logout{}, &badLogout{reason: "it has expired (exp)"}
	case c.ID == "" || len(c.ID) > maxClaim:
		return logout{}, &badLogout{reason: "it has no ID (jti)"}
	case c.Subject == "" && c.Session == "":
		return logout{}, &badLogout{reason: "it says neither whose nor which session (sub, sid)"}
	case len(c.Subject) > maxClaim || len(c.Session) > maxClaim:
		return logout{}, &badLogout{reason: "its sub or sid is too long"}
	}
	return logout{Token: c.ID, Session: c.Session, Subject: c.Subject}, nil
}

// maxClaim bounds jti, sub and sid, in bytes (OpenID Connect Core §2 for sub).
const maxClaim = 255

// headerType is the type a JWT says it has, in small letters, or "".
func headerType(raw string) string {
	head, _, _ := strings.Cut(raw, ".")
	b, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return ""
	}
	var h struct {
		Type string `json:"typ"`
	}
	if json.Unmarshal(b, &h) != nil {
		return ""
	}
	return lowerASCII(h.Type)
}

// endByProvider ends what a logout token is about. A session nobody has here
// has ended already: that is no fault (§2.7).
func (s *Service) endByProvider(ctx context.Context, p Provider, l logout, source netip.Addr) (sessions int, err error) {
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		_, err := tx.ExecContext(ctx, sqlLogoutInsert, p.ID, l.Token, l.Session, l.Subject, s.now().UnixMicro())
		if errors.Is(db.Classify(err), db.ErrConflict) {
			return &badLogout{reason: "it was used before (jti)"}
		}
		if err != nil {
			return err
		}
		ended, err := s.endSessionsOf(ctx, tx, p, l)
		if err != nil {
			return err
		}
		sessions = len(ended)
		e := logoutEventOf(audit.SSOLogout, audit.OK, p, source)
		e.Fields["sessions"] = fmt.Sprint(sessions)
		e.Fields["of"] = "session"
		if l.Session == "" {
			e.Fields["of"] = "subject"
		}
		if sessions > 0 {
			e.Fields["user"] = ended[0]
		}
		return s.audit.Append(ctx, tx, e)
	})
	if err != nil {
		return 0, err
	}
	// A sign-in that was being finished either is seen by this, or sees the
	// logout (loggedOutSince).
	err = s.db.Tx(ctx, func(tx *db.Tx) error {
		late, err := s.endSessionsOf(ctx, tx, p, l)
		sessions += len(late)
		return err
	})
	return sessions, err
}

func (s *Service) endSessionsOf(ctx context.Context, tx *db.Tx, p Provider, l logout) ([]string, error) {
	userID := ""
	if l.Subject != "" {
		i, err := scanIdentity(tx.QueryRowContext(ctx, sqlIdentity, p.ID, l.Subject))
		if err != nil && !errors.Is(err, db.ErrNotFound) {
			return nil, fmt.Errorf("whose session ended: %w", err)
		}
		userID = i.UserID
	}
	return s.users.EndSessionsAt(ctx, tx, user.Origin{Provider: p.ID, Session: l.Session}, userID)
}

// loggedOutSince reports whether the provider has ended who's session there
// since, which was before the provider said who he is.
func (s *Service) loggedOutSince(ctx context.Context, p Provider, who person, since time.Time) (bool, error) {
	var n int
	err := s.db.QueryRowContext(ctx, sqlLoggedOut, p.ID, since.UnixMicro(), who.Session, who.Subject).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for logouts at %s: %w", p.Name, err)
	}
	return n > 0, nil
}

func logoutEventOf(t audit.Type, outcome audit.Outcome, p Provider, source netip.Addr) audit.Event {
	return audit.Event{Type: t, Outcome: outcome,
		Actor:  audit.Actor{Kind: "sso_provider", ID: p.ID, Name: p.Name, Source: addrText(source), Via: "api"},
		Object: audit.Object{Kind: "sso_provider", ID: p.ID, Name: p.Name}, Fields: map[string]string{}}
}
