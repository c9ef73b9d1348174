package webaccess

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
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

// login is a stored credential of a web target, its properties as JSON texts.
// A secret of kind password is the password of the account it is attached to;
// one of kind json has username (else the account's name), password, totp (a
// seed in base32, or an otpauth:// URL), token, certificate and key (PEM).
//
// Values stay in byte slices that are cleared: strings would stay in memory.
type login map[string]json.RawMessage

// parseLogin reads a secret's value. Errors never quote it.
func parseLogin(kind vault.Kind, value []byte, account string) (login, error) {
	l := login{}
	switch kind {
	case vault.Password:
		l["password"] = appendQuoted(nil, value)
	case vault.JSON:
		if json.Unmarshal(value, &l) != nil {
			l.clear()
			return nil, errors.New("the secret is no JSON object")
		}
		for k, v := range l {
			if len(v) == 0 || v[0] != '"' {
				l.clear()
				return nil, fmt.Errorf("the secret's property %s is no text", clip(k, 32))
			}
		}
	default:
		return nil, errors.New("a secret of this kind is no login of a web target")
	}
	if !l.has("username") {
		l["username"] = appendQuoted(nil, []byte(account))
	}
	return l, nil
}

func (l login) has(key string) bool { return len(l[key]) > len(`""`) }

func (l login) clear() {
	for _, v := range l {
		clear(v)
	}
}

// appendQuoted appends p as a JSON string (RFC 8259 §7).
func appendQuoted(b, p []byte) []byte {
	const digits = "0123456789abcdef"
	b = slices.Grow(b, 6*len(p)+2) // never moved: what is left behind would stay
	b = append(b, '"')
	for _, c := range p {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// give is a wire.WebCredential as JSON with what a use needs; the caller clears
// it. An error says what the secret lacks.
func (l login) give(u use, now time.Time) ([]byte, error) {
	size := 64
	for _, v := range l {
		size += len(v) + 32
	}
	b := append(make([]byte, 0, size), '{')
	put := func(name string, value []byte) {
		if len(b) > 1 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), '"', ':')
		b = append(b, value...)
	}
	missing := func(what string) ([]byte, error) {
		clear(b)
		return nil, errors.New("the account's secret has no " + what)
	}
	for _, v := range u.values {
		switch v {
		case webrule.Username, webrule.Password:
			if !l.has(string(v)) {
				return missing(string(v))
			}
			put(string(v), l[string(v)])
		case webrule.TOTP:
			if !l.has("totp") && u.kind == loginKind {
				continue // most logins have none
			}
			code, err := l.code(now)
			if err != nil {
				clear(b)
				return nil, err
			}
			put("totp", appendQuoted(nil, code))
		case valueToken:
			name := "token"
			if !l.has(name) {
				name = "password"
			}
			if !l.has(name) {
				return missing("token")
			}
			put("password", l[name])
		case valueCertificate:
			if !l.has("certificate") || !l.has("key") {
				return missing("certificate and key")
			}
			put("certificate", l["certificate"])
			put("key", l["key"])
		}
	}
	return append(b, '}'), nil
}

// credential answers one request for the session's credential: it decides,
// opens the secret and audits the use in one transaction.
func (s *Service) credential(ctx context.Context, p fleet.Peer, ask wire.WebCredentialAsk) wire.WebCredentialSealed {
	x := s.awaited(ctx, ask.Session)
	if x == nil {
		return wire.WebCredentialSealed{Error: wire.Errorf(wire.CodeRefused, "there is no such session here")}
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
		return wire.WebCredentialSealed{Error: why}
	}
	sealed, err := s.reveal(ctx, x, p, ask, what)
	if err != nil {
		s.metrics.credentials.WithLabelValues("failed").Inc()
		s.cfg.Log.Error("credential of a web session", "session", x.row.ID, "injection", what.injection, "err", err)
		if text, ok := errors.AsType[*lackError](err); ok {
			return wire.WebCredentialSealed{Error: wire.Errorf(wire.CodeRefused, "%s", text.Error())}
		}
		return wire.WebCredentialSealed{Error: wire.Errorf(wire.CodeInternal, "the credential cannot be read now")}
	}
	s.metrics.credentials.WithLabelValues("given").Inc()
	return wire.WebCredentialSealed{Sealed: sealed}
}

// count notes a use before it happens: what fails counts too.
func (x *session) count(injection string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	// Views have the map as it was.
	next := make(map[string]int, len(x.uses)+1)
	maps.Copy(next, x.uses)
	next[injection]++
	x.uses = next
}

// lackError says what an account or its secret lacks; its text is public.
type lackError struct{ text string }

// Error implements error.
func (e *lackError) Error() string { return e.text }

func (s *Service) reveal(ctx context.Context, x *session, p fleet.Peer, ask wire.WebCredentialAsk, what use) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var out []byte
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
		defer l.clear()
		plain, err := l.give(what, s.cfg.Now())
		if err != nil {
			return &lackError{err.Error()}
		}
		defer clear(plain)
		if out, err = wire.SealWebCredential(ask, plain); err != nil {
			return &lackError{"the ask has no key to seal for"}
		}
		if _, err := tx.ExecContext(ctx, useSQL, x.row.ID, what.injection); err != nil {
			return err
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
		return nil, fmt.Errorf("open credential: %w", err)
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
	limit := maxHosts + maxDoubts
	if strings.HasPrefix(what, "blocked ") {
		limit = maxHosts
	}
	if x.hosts[what] || len(x.hosts) >= limit {
		return false
	}
	x.hosts[what] = true
	return true
}
