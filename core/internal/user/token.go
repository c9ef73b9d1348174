package user

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
)

// Token is a bearer token as its owner sees it, without its secret.
type Token struct {
	ID         string
	UserID     string
	Kind       string // api or oauth
	Name       string
	CreatedAt  time.Time
	ExpiresAt  time.Time
	LastUsed   time.Time
	LastSource string
	RevokedAt  time.Time
}

// Kinds of token.
const (
	apiToken   = "api"
	oauthToken = "oauth"
)

const tokenColumns = `t.id, t.user_id, t.kind, t.name, t.created_at, t.expires_at, t.last_used, t.last_source, t.revoked_at`

const (
	sqlTokenInsert = `insert into tokens (id, user_id, kind, name, hash, created_at, expires_at, last_used, last_source, revoked_at)
values ($1, $2, $3, $4, $5, $6, $7, 0, '', 0)`
	sqlTokenByHash   = `select ` + tokenColumns + ` from tokens t where t.hash = $1`
	sqlTokenByID     = `select ` + tokenColumns + ` from tokens t where t.id = $1`
	sqlTokensOfUser  = `select ` + tokenColumns + ` from tokens t where t.user_id = $1 and t.kind = 'api' order by t.created_at desc limit 1000`
	sqlTokensLive    = `select count(*) from tokens where user_id = $1 and kind = $2 and revoked_at = 0 and expires_at > $3`
	sqlTokenTouch    = `update tokens set last_used = $2, last_source = $3 where id = $1 and last_used < $2`
	sqlTokenRevoke   = `update tokens set revoked_at = $2 where id = $1 and revoked_at = 0`
	sqlTokensRevoke  = `update tokens set revoked_at = $2 where user_id = $1 and revoked_at = 0`
	sqlTokensPurge   = `delete from tokens where kind = 'oauth' and expires_at < $1`
	sqlTokensForget  = `delete from tokens where kind = 'api' and expires_at < $1`
	sqlTokensErase   = `delete from tokens where user_id = $1`
	sqlSessionsErase = `delete from sessions where user_id = $1`
)

// maxTokens bounds the live tokens of one user; clients ask often and theirs
// live 30 minutes.
const maxTokens = 200

func scanToken(row scanner) (Token, error) {
	var t Token
	var created, expires, used, revoked int64
	err := row.Scan(&t.ID, &t.UserID, &t.Kind, &t.Name, &created, &expires, &used, &t.LastSource, &revoked)
	if err != nil {
		return Token{}, db.Classify(err)
	}
	t.CreatedAt, t.ExpiresAt = db.FromMicro(created), db.FromMicro(expires)
	t.LastUsed, t.RevokedAt = db.FromMicro(used), db.FromMicro(revoked)
	return t, nil
}

// live reports whether the token works at now.
func (t *Token) live(now time.Time) bool { return t.RevokedAt.IsZero() && now.Before(t.ExpiresAt) }

// CreateToken makes an API token of the caller p and returns its secret, which
// is shown once. A caller who himself uses a token cannot outlive it that way.
func (s *Service) CreateToken(ctx context.Context, p *api.Principal, name string, life time.Duration) (Token, string, error) {
	longest := settings.TokenMaxAge.Get(s.settings)
	bad := checkText("body.name", name, 100)
	if name == "" {
		bad = append(bad, api.FieldError{Field: "body.name", Message: "say what the token is for"})
	}
	if life < time.Minute || life > longest {
		bad = append(bad, api.FieldError{Field: "body.expires_in", Message: fmt.Sprintf("must be from 1m to %s (setting %s)", longest, settings.TokenMaxAge.Name())})
	}
	if len(bad) > 0 {
		return Token{}, "", api.Invalid(bad...)
	}
	var t Token
	var secret string
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, p.UserID)
		if err != nil {
			return err
		}
		if u.Kind != Person {
			return api.Denied("not_a_person", "API clients ask for tokens at /oauth/token.")
		}
		expires := s.now().Add(life)
		if strings.HasPrefix(p.Session, "tok_") {
			own, err := scanToken(tx.QueryRowContext(ctx, sqlTokenByID, p.Session))
			if err != nil {
				return err
			}
			if own.ExpiresAt.Before(expires) {
				expires = own.ExpiresAt
			}
		}
		if t, secret, err = s.insertToken(ctx, tx, u.ID, apiToken, name, expires); err != nil {
			return err
		}
		return s.tokenEvent(ctx, tx, audit.By(p), audit.TokenCreated, t, map[string]string{"expires": t.ExpiresAt.Format(time.RFC3339)})
	})
	if err != nil {
		return Token{}, "", fmt.Errorf("create token: %w", err)
	}
	return t, secret, nil
}

func (s *Service) insertToken(ctx context.Context, tx *db.Tx, userID, kind, name string, expires time.Time) (Token, string, error) {
	now := s.now()
	var live int
	if err := tx.QueryRowContext(ctx, sqlTokensLive, userID, kind, now.UnixMicro()).Scan(&live); err != nil {
		return Token{}, "", err
	}
	if live >= maxTokens {
		return Token{}, "", api.Conflict("too_many_tokens", fmt.Sprintf("There are %d live tokens; revoke some first.", live))
	}
	secret := tokenPrefix + strings.ToLower(rand.Text())
	id := db.NewID("tok_")
	_, err := tx.ExecContext(ctx, sqlTokenInsert, id, userID, kind, name, hashSecret(secret), now.UnixMicro(), expires.UnixMicro())
	if err != nil {
		return Token{}, "", db.Classify(err)
	}
	t, err := scanToken(tx.QueryRowContext(ctx, sqlTokenByID, id))
	return t, secret, err
}

// tokenEvent leaves the token's name out: people write what they like there,
// and the event outlives the erasure of the person.
func (s *Service) tokenEvent(ctx context.Context, tx *db.Tx, by audit.Actor, e audit.Type, t Token, fields map[string]string) error {
	if fields == nil {
		fields = map[string]string{}
	}
	fields["user"] = t.UserID
	return s.audit.Append(ctx, tx, audit.Event{Type: e, Outcome: audit.OK, Actor: by,
		Object: audit.Object{Kind: "token", ID: t.ID}, Fields: fields})
}

// Tokens lists the API tokens of a user, newest first, dead ones included.
func (s *Service) Tokens(ctx context.Context, userID string) ([]Token, error) {
	list, err := query(ctx, s.db, scanToken, sqlTokensOfUser, userID)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return list, nil
}

// Token returns a token by ID.
func (s *Service) Token(ctx context.Context, id string) (Token, error) {
	t, err := scanToken(s.db.QueryRowContext(ctx, sqlTokenByID, id))
	if err != nil {
		return Token{}, fmt.Errorf("token %.40s: %w", id, err)
	}
	return t, nil
}

// RevokeToken ends a token and every connection opened by it.
func (s *Service) RevokeToken(ctx context.Context, by audit.Actor, id string) error {
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		t, err := scanToken(tx.QueryRowContext(ctx, sqlTokenByID, id))
		if err != nil {
			return err
		}
		n, err := affected(tx.ExecContext(ctx, sqlTokenRevoke, id, s.now().UnixMicro()))
		if err != nil || n == 0 {
			return err
		}
		if err := errors.Join(tx.Notify(ctx, "user", t.UserID), tx.Notify(ctx, "token", id)); err != nil {
			return err
		}
		return s.tokenEvent(ctx, tx, by, audit.TokenRevoked, t, nil)
	})
	if err != nil {
		return fmt.Errorf("revoke token: %w", err)
	}
	return nil
}

// tokenBySecret finds a live token.
func (s *Service) tokenBySecret(ctx context.Context, secret string) (Token, error) {
	t, err := scanToken(s.db.QueryRowContext(ctx, sqlTokenByHash, hashSecret(secret)))
	if err == nil && !t.live(s.now()) {
		return Token{}, db.ErrNotFound
	}
	return t, err
}

// touchToken notes the use of a token, at most every minute.
func (s *Service) touchToken(ctx context.Context, t Token, source netip.Addr) error {
	now := s.now()
	if now.Sub(t.LastUsed) < time.Minute {
		return nil
	}
	_, err := s.db.ExecContext(ctx, sqlTokenTouch, t.ID, now.UnixMicro(), addrText(source))
	return err
}

func (s *Service) principalOfToken(ctx context.Context, secret string, source netip.Addr) (*api.Principal, error) {
	t, err := s.tokenBySecret(ctx, secret)
	if errors.Is(err, db.ErrNotFound) {
		return nil, api.Unauthenticated("The token is not known, has expired or was revoked.")
	}
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	p, err := s.principal(ctx, s.db, t.UserID, source, "api")
	if err != nil {
		return nil, err
	}
	if err := s.touchToken(ctx, t, source); err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	p.Session, p.Methods = t.ID, []string{"token"}
	return p, nil
}
