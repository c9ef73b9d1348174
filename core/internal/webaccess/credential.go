package webaccess

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/fleet"
	"caponier/core/internal/target"
	"caponier/core/internal/vault"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// login is a stored credential of a web target. A secret of kind password is
// the password of the account it is attached to; of kind json it has these
// properties, and username replaces the account's name.
type login struct {
	Username    string `json:"username"`
	Password    string `json:"password"`
	TOTP        string `json:"totp"` // seed in base32, or an otpauth:// URL
	Token       string `json:"token"`
	Certificate string `json:"certificate"` // PEM
	Key         string `json:"key"`         // PEM
}

// parseLogin reads a secret's value. Errors never quote it.
func parseLogin(kind vault.Kind, value []byte, account string) (login, error) {
	l := login{Username: account}
	switch kind {
	case vault.Password:
		l.Password = string(value)
	case vault.JSON:
		if json.Unmarshal(value, &l) != nil {
			return login{}, errors.New("the secret's properties must be texts")
		}
		if l.Username == "" {
			l.Username = account
		}
	default:
		return login{}, errors.New("a secret of this kind is no login of a web target")
	}
	return l, nil
}

// give fills in what a use needs, or says what the secret lacks.
func (l login) give(u use, now time.Time) (wire.WebCredential, error) {
	var c wire.WebCredential
	missing := func(what string) (wire.WebCredential, error) {
		return wire.WebCredential{}, fmt.Errorf("the account's secret has no %s", what)
	}
	for _, v := range u.values {
		switch v {
		case webrule.Username:
			c.Username = l.Username
		case webrule.Password:
			if l.Password == "" {
				return missing("password")
			}
			c.Password = l.Password
		case webrule.TOTP:
			if l.TOTP == "" && u.kind == loginKind {
				continue // most logins have none
			}
			code, err := totp(l.TOTP, now)
			if err != nil {
				return wire.WebCredential{}, err
			}
			c.TOTP = code
		case valueToken:
			if c.Password = l.Token; c.Password == "" {
				c.Password = l.Password
			}
			if c.Password == "" {
				return missing("token")
			}
		case valueCertificate:
			if l.Certificate == "" || l.Key == "" {
				return missing("certificate and key")
			}
			c.Certificate, c.Key = l.Certificate, l.Key
		}
	}
	return c, nil
}

// totp is the code of a seed at a time (RFC 6238): base32, or an otpauth://
// URL, which also names algorithm, digits and period.
func totp(seed string, now time.Time) (string, error) {
	bad := errors.New("the account's secret has no totp seed in base32 or as otpauth:// URL")
	algorithm, digits, period := sha1.New, 6, int64(30)
	if strings.HasPrefix(seed, "otpauth://") {
		u, err := url.Parse(seed)
		if err != nil || u.Host != "totp" {
			return "", bad
		}
		q := u.Query()
		seed = q.Get("secret")
		switch strings.ToUpper(q.Get("algorithm")) {
		case "", "SHA1":
		case "SHA256":
			algorithm = sha256.New
		case "SHA512":
			algorithm = sha512.New
		default:
			return "", bad
		}
		if t := q.Get("digits"); t != "" {
			if digits, err = strconv.Atoi(t); err != nil || digits < 6 || digits > 8 {
				return "", bad
			}
		}
		if t := q.Get("period"); t != "" {
			if period, err = strconv.ParseInt(t, 10, 32); err != nil || period < 5 || period > 300 {
				return "", bad
			}
		}
	}
	seed = strings.TrimRight(strings.ToUpper(strings.NewReplacer(" ", "", "-", "").Replace(seed)), "=")
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(seed)
	if err != nil || len(key) == 0 {
		return "", bad
	}
	return hotp(algorithm, key, uint64(now.Unix()/period), digits), nil
}

// hotp is RFC 4226 §5.3.
func hotp(algorithm func() hash.Hash, key []byte, counter uint64, digits int) string {
	h := hmac.New(algorithm, key)
	// Writing to a hash never fails.
	_ = binary.Write(h, binary.BigEndian, counter)
	sum := h.Sum(nil)
	at := sum[len(sum)-1] & 0x0f
	n := binary.BigEndian.Uint32(sum[at:]) & 0x7fffffff
	modulo := uint32(1)
	for range digits {
		modulo *= 10
	}
	return fmt.Sprintf("%0*d", digits, n%modulo)
}

// credential answers one request for the session's credential: it decides,
// opens the secret and audits the use in one transaction.
func (s *Service) credential(ctx context.Context, p fleet.Peer, ask wire.WebCredentialAsk) wire.WebCredential {
	x := s.find(ask.Session)
	if x == nil {
		return wire.WebCredential{Error: wire.Errorf(wire.CodeRefused, "there is no such session here")}
	}
	// One at a time: what is counted is what was decided on.
	x.using.Lock()
	what, why := mayUse(x.view(), p.ID, ask)
	if why == nil {
		x.count(what.injection)
	}
	x.using.Unlock()
	if why != nil {
		s.metrics.credentials.WithLabelValues("refused").Inc()
		s.refusedUse(ctx, x, p, ask, why)
		return wire.WebCredential{Error: why}
	}
	c, err := s.reveal(ctx, x, p, ask, what)
	if err != nil {
		s.metrics.credentials.WithLabelValues("failed").Inc()
		s.cfg.Log.Error("credential of a web session", "session", x.row.ID, "injection", what.injection, "err", err)
		if text, ok := errors.AsType[*lackError](err); ok {
			return wire.WebCredential{Error: wire.Errorf(wire.CodeRefused, "%s", text.Error())}
		}
		return wire.WebCredential{Error: wire.Errorf(wire.CodeInternal, "the credential cannot be read now")}
	}
	s.metrics.credentials.WithLabelValues("given").Inc()
	return c
}

// count notes a use before it happens: what fails counts too.
func (x *session) count(injection string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	// Views have the map as it was.
	next := make(map[string]int, len(x.uses)+1)
	for k, n := range x.uses {
		next[k] = n
	}
	next[injection]++
	x.uses = next
}

// lackError says what an account or its secret lacks; its text is public.
type lackError struct{ text string }

// Error implements error.
func (e *lackError) Error() string { return e.text }

func (s *Service) reveal(ctx context.Context, x *session, p fleet.Peer, ask wire.WebCredentialAsk, what use) (wire.WebCredential, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var out wire.WebCredential
	err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error {
		a, err := s.cfg.Targets.Account(ctx, tx, x.row.TargetID, x.row.Account)
		if errors.Is(err, db.ErrNotFound) {
			return &lackError{"the account is gone"}
		}
		if err != nil {
			return err
		}
		if a.Disabled || a.Auth != target.AuthPassword || a.SecretID == "" {
			return &lackError{"the account has no stored secret"}
		}
		secret, err := s.cfg.Vault.Get(ctx, tx, a.SecretID)
		if err != nil {
			return err
		}
		value, err := s.cfg.Vault.RevealIn(ctx, tx, a.SecretID, "web session: "+what.injection, x.row.ID)
		if err != nil {
			return err
		}
		defer clear(value)
		l, err := parseLogin(secret.Kind, value, a.Name)
		if err != nil {
			return &lackError{err.Error()}
		}
		if out, err = l.give(what, s.cfg.Now()); err != nil {
			return &lackError{err.Error()}
		}
		names := make([]string, len(what.values))
		for i, v := range what.values {
			names[i] = string(v)
		}
		slices.Sort(names)
		return s.cfg.Audit.Append(ctx, tx, audit.Event{
			Type: audit.WebCredentialUsed, Outcome: audit.OK, Actor: edgeActor(p), Connection: x.row.ID,
			Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName},
			Fields: map[string]string{"user": x.row.UserName, "account": x.row.Account, "injection": what.injection,
				"kind": string(what.kind), "values": strings.Join(names, ","), "url": clip(ask.URL, 500)},
		})
	})
	if err != nil {
		return wire.WebCredential{}, fmt.Errorf("open credential: %w", err)
	}
	return out, nil
}

// refusedUse audits a refusal, once per session and reason.
func (s *Service) refusedUse(ctx context.Context, x *session, p fleet.Peer, ask wire.WebCredentialAsk, why *wire.Error) {
	if !x.first("refused " + ask.Injection + " " + why.Public) {
		return
	}
	s.append(ctx, audit.Event{
		Type: audit.WebCredentialUsed, Outcome: audit.Denied, Actor: edgeActor(p), Connection: x.row.ID,
		Object: audit.Object{Kind: "target", ID: x.row.TargetID, Name: x.row.TargetName},
		Fields: map[string]string{"user": x.row.UserName, "injection": clip(ask.Injection, 64), "url": clip(withoutQuery(ask.URL), 500), "reason": why.Public},
	})
}

// withoutQuery drops what may hold secrets from a URL of a node.
func withoutQuery(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	u.RawQuery, u.Fragment, u.RawFragment, u.User, u.ForceQuery = "", "", "", nil, false
	return u.String()
}

// edgeActor is a node as the audit log names it.
func edgeActor(p fleet.Peer) audit.Actor {
	return audit.Actor{Kind: "edge", ID: p.ID, Name: p.Name, Via: "tunnel"}
}

// append writes an audit event on its own.
func (s *Service) append(ctx context.Context, e audit.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
	defer cancel()
	if err := s.cfg.DB.Tx(ctx, func(tx *db.Tx) error { return s.cfg.Audit.Append(ctx, tx, e) }); err != nil {
		s.cfg.Log.Error("web session's event not written", "type", string(e.Type), "session", e.Connection, "err", err)
	}
}

// first reports whether something is noted for the first time in the session,
// as far as is remembered.
func (x *session) first(what string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.hosts[what] || len(x.hosts) >= maxHosts {
		return false
	}
	x.hosts[what] = true
	return true
}
