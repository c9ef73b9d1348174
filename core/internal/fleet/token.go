package fleet

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/shared/dial"
	"caponier/shared/wire"
)

// KindHost is the kind of token that registers hosts (host deployment); the
// other kinds are those of nodes.
const KindHost = "host"

// Limits of tokens and nodes.
const (
	maxUses     = 100_000
	maxTokenTTL = 366 * 24 * time.Hour
	maxLabels   = 32
	maxComment  = 500
)

var (
	namePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)
	sitePattern  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	labelPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._/-]{0,62}$`)
)

// TokenSpec describes a new enrolment token.
type TokenSpec struct {
	Kind        string // extender, carrier, webproxy, router, or host for host deployment
	Site        string // for extenders and hosts
	Labels      map[string]string
	Comment     string
	MaxUses     int           // 0: 1
	TTL         time.Duration // 0: 24 h
	AllowRepeat bool          // the same name may register again and replaces its former identity
	Rules       wire.DialRules
}

// validate fills in defaults and reports every bad field.
func (s *TokenSpec) validate() error {
	setDefault(&s.MaxUses, 1)
	setDefault(&s.TTL, 24*time.Hour)
	var bad []api.FieldError
	add := func(field, format string, args ...any) {
		bad = append(bad, api.FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
	}
	if s.Kind != KindHost && !wire.NodeKind(s.Kind).Valid() {
		add("kind", "must be extender, carrier, webproxy, router or host")
	}
	if s.Kind == string(wire.Extender) || s.Kind == KindHost {
		if !sitePattern.MatchString(s.Site) {
			add("site", "must name a site: 1 to 63 of a-z, 0-9 and '-'")
		}
	} else if s.Site != "" && !sitePattern.MatchString(s.Site) {
		add("site", "must be 1 to 63 of a-z, 0-9 and '-'")
	}
	if s.MaxUses < 1 || s.MaxUses > maxUses {
		add("max_uses", "must be 1 to %d", maxUses)
	}
	if s.TTL < time.Second || s.TTL > maxTokenTTL {
		add("ttl_s", "must be 1 second to 366 days")
	}
	if len(s.Comment) > maxComment {
		add("comment", "must be at most %d bytes", maxComment)
	}
	bad = append(bad, checkLabels(s.Labels)...)
	bad = append(bad, checkRules(s.Rules)...)
	if len(bad) > 0 {
		return api.Invalid(bad...)
	}
	return nil
}

func checkLabels(labels map[string]string) (bad []api.FieldError) {
	if len(labels) > maxLabels {
		return []api.FieldError{{Field: "labels", Message: fmt.Sprintf("must be at most %d", maxLabels)}}
	}
	for k, v := range labels {
		if !labelPattern.MatchString(k) || len(v) > 63 {
			bad = append(bad, api.FieldError{Field: "labels", Message: "a key is 1 to 63 of letters, digits and ._/-, a value at most 63 bytes"})
		}
	}
	return bad
}

func checkRules(r wire.DialRules) (bad []api.FieldError) {
	if _, err := dial.ParseRules(r); err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			bad = append(bad, api.FieldError{Field: "rules", Message: line})
		}
	}
	return bad
}

// CreateToken makes an enrolment token and returns its text, which is not
// stored and cannot be shown again.
func (f *Fleet) CreateToken(ctx context.Context, by audit.Actor, s TokenSpec) (id, text string, err error) {
	id, text, _, err = f.createToken(ctx, by, s)
	return id, text, err
}

// createToken also tells whether the token's site was made with it.
func (f *Fleet) createToken(ctx context.Context, by audit.Actor, s TokenSpec) (id, text string, siteMade bool, err error) {
	if err := s.validate(); err != nil {
		return "", "", false, err
	}
	secret := strings.ToLower(rand.Text())
	hash := sha256.Sum256([]byte(secret))
	now := f.now()
	t := token{ID: db.NewID("tok_"), Kind: s.Kind, Site: s.Site, Labels: s.Labels, Rules: s.Rules, Comment: s.Comment,
		SecretHash: hash[:], MaxUses: s.MaxUses, AllowRepeat: s.AllowRepeat,
		ExpiresAt: now.Add(s.TTL), CreatedAt: now, CreatedBy: by.ID, Version: 1}
	err = f.c.DB.Tx(ctx, func(tx *db.Tx) (err error) {
		siteMade = false
		if f.c.Sites != nil && t.Site != "" {
			if siteMade, err = f.c.Sites.EnsureSite(ctx, tx, t.Site); err != nil {
				return err
			}
		}
		l, err := siteLink(ctx, tx, t.Site)
		if err != nil {
			return err
		}
		if p := api.PrincipalFrom(ctx); p != nil && !p.Scope(api.EdgesManage).Has(l.Group) {
			return api.Invalid(api.FieldError{Field: l.Field, Message: l.Message})
		}
		if err := guardedToken(t.ID).Administer(ctx, "", l.Group, l); err != nil {
			return err
		}
		if err := insertToken(ctx, tx, t); err != nil {
			return err
		}
		if err := api.Notify(ctx, tx, "token", t.ID, l.Group); err != nil {
			return err
		}
		return f.c.Audit.Append(ctx, tx, audit.Event{Type: audit.EnrolmentCreated, Outcome: audit.OK, Actor: by, Group: l.Group,
			Object: audit.Object{Kind: "enrolment_token", ID: t.ID},
			Fields: map[string]string{"kind": t.Kind, "site": t.Site, "max_uses": strconv.Itoa(t.MaxUses),
				"expires_at": t.ExpiresAt.UTC().Format(time.RFC3339), "allow_repeat": strconv.FormatBool(t.AllowRepeat)}})
	})
	if err != nil {
		return "", "", false, fmt.Errorf("create enrolment token: %w", err)
	}
	return t.ID, wire.Token{ID: t.ID, Secret: secret, Pin: f.ca.pin}.Text(), siteMade, nil
}

// RevokeToken makes a token useless. What enrolled with it stays.
func (f *Fleet) RevokeToken(ctx context.Context, by audit.Actor, id string) error {
	return f.c.DB.Tx(ctx, func(tx *db.Tx) error {
		t, err := getToken(ctx, tx, id)
		if errors.Is(err, db.ErrNotFound) {
			return api.Missing("enrolment token", id)
		}
		if err != nil {
			return err
		}
		group, err := siteGroup(ctx, tx, t.Site)
		if err != nil {
			return err
		}
		if err := guardedToken(id).Administer(ctx, group, ""); err != nil {
			return err
		}
		ok, err := changed(tx.ExecContext(ctx, qRevokeToken, id, micros(f.now())))
		if err != nil || !ok {
			return err // revoked before: nothing to do
		}
		if err := api.Notify(ctx, tx, "token", id, group); err != nil {
			return err
		}
		return f.c.Audit.Append(ctx, tx, audit.Event{Type: audit.EnrolmentRevoked, Outcome: audit.OK, Actor: by, Group: group,
			Object: audit.Object{Kind: "enrolment_token", ID: id}})
	})
}

// tokenRefusal is why a token was not accepted. reason is for audit; an
// unknown token and a wrong secret look the same from outside.
type tokenRefusal struct {
	reason string
	known  bool // the secret was right, or at least the token exists
	wire   *wire.Error
}

func (e *tokenRefusal) Error() string { return e.wire.Public }
func (e *tokenRefusal) Unwrap() error { return e.wire }

func refuseToken(reason string, known bool, text string) *tokenRefusal {
	return &tokenRefusal{reason, known, wire.Errorf(wire.CodeUnauthorized, "%s", text)}
}

// checkToken finds the token and checks everything but its remaining uses.
func checkToken(ctx context.Context, q db.Querier, id, secret, kind string, now time.Time) (token, error) {
	t, err := getToken(ctx, q, id)
	if errors.Is(err, db.ErrNotFound) {
		return t, refuseToken("unknown", false, "this enrolment token is not valid; ask for a new one")
	}
	if err != nil {
		return t, err
	}
	hash := sha256.Sum256([]byte(secret))
	switch {
	case subtle.ConstantTimeCompare(hash[:], t.SecretHash) != 1:
		return t, refuseToken("wrong_secret", true, "this enrolment token is not valid; ask for a new one")
	case !t.RevokedAt.IsZero():
		return t, refuseToken("revoked", true, "this enrolment token was revoked; ask for a new one")
	case !now.Before(t.ExpiresAt):
		return t, refuseToken("expired", true, "this enrolment token expired at "+t.ExpiresAt.UTC().Format(time.RFC3339)+"; ask for a new one")
	case t.Kind != kind:
		return t, refuseToken("wrong_kind", true, fmt.Sprintf("this enrolment token is for kind %s, not %s", t.Kind, kind))
	}
	return t, nil
}
