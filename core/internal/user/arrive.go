package user

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
)

// Arrival is a login whose proof another room has checked: a passkey, single
// sign-on, a client certificate.
type Arrival struct {
	UserID  string
	Methods []string // how: passkey, password, sso, certificate
	MFA     bool     // the proof was more than one factor
	Source  netip.Addr
	Via     string
	Fields  map[string]string // facts for the audit log, besides the methods
}

// Arrive lets in who has proven to be a user elsewhere, and audits it. It
// fails with ErrBadCredentials when the account is not in use.
func (s *Service) Arrive(ctx context.Context, a Arrival) (*api.Principal, error) {
	if !a.Source.IsValid() || len(a.Methods) == 0 {
		return nil, ErrBadCredentials
	}
	var p *api.Principal
	var starts []string
	var why string
	err := s.db.Tx(ctx, func(tx *db.Tx) error {
		p, why = nil, ""
		u, err := userByID(ctx, tx, a.UserID)
		if err != nil {
			return err
		}
		method := strings.Join(a.Methods, " ")
		if why = u.usable(); why == "" && u.Kind != Person {
			why = "not_a_person"
		}
		if why != "" {
			c := Credentials{Source: a.Source, Via: a.Via}
			return s.recordFailure(ctx, tx, &u, c, proof{method: method, reason: why})
		}
		permissions, begins, err := s.permissions(ctx, tx, u.ID, a.Source)
		if err != nil {
			return err
		}
		starts = begins
		p = &api.Principal{UserID: u.ID, UserName: u.Name, Methods: a.Methods, MFA: a.MFA, Permissions: permissions.everywhere, Scoped: permissions.scoped,
			Source: a.Source.Unmap(), Via: a.Via, Session: loginID{epoch: u.epoch}.String()}
		if err := changeOne(ctx, tx, sqlUserLoggedIn, u.ID, s.now().UnixMicro(), u.failures); err != nil {
			return err
		}
		fields := map[string]string{"methods": method}
		maps.Copy(fields, a.Fields)
		return s.audit.Append(ctx, tx, audit.Event{Type: audit.LoginSucceeded, Outcome: audit.OK, Actor: audit.By(p), Object: u.object(), Fields: fields})
	})
	if err != nil {
		return nil, fmt.Errorf("login: %w", err)
	}
	if why != "" {
		return nil, ErrBadCredentials
	}
	for _, role := range starts {
		if err := s.MarkFirstUse(ctx, p.UserID, role, s.now()); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// RefuseArrival audits a proof that another room found wanting. userID may be
// "": nobody knows who it was.
func (s *Service) RefuseArrival(ctx context.Context, a Arrival, reason string) error {
	var u record
	if a.UserID != "" {
		var err error
		if u, err = userByID(ctx, s.db, a.UserID); err != nil {
			return err
		}
	}
	e := s.refusal(audit.LoginFailed, Credentials{Source: a.Source, Via: a.Via}, &u, reason, strings.Join(a.Methods, " "))
	maps.Copy(e.Fields, a.Fields)
	return s.audit.Write(ctx, e)
}

// LoginOutput is the answer to a login that opened a session.
type LoginOutput struct {
	SetCookie []http.Cookie `header:"Set-Cookie"`
	Body      struct {
		Token     string    `json:"token,omitempty" doc:"Bearer token of the session; absent when a cookie was asked for."`
		ExpiresAt time.Time `json:"expires_at"`
		Session   string    `json:"session_id"`
		User      UserView  `json:"user"`
	}
}

// Answer opens a session for a fresh login and answers with its secret, as a
// cookie or in the body. from is what he came by.
func (s *Service) Answer(ctx context.Context, p *api.Principal, kind SessionKind, agent string, from Origin) (*LoginOutput, error) {
	return s.AnswerIf(ctx, p, kind, agent, from, nil)
}

// AnswerIf is Answer for a proof that may lose its worth meanwhile: good is
// asked first in the transaction that opens the session, and its error means
// that there is none. It may be asked again, as db.Tx says.
func (s *Service) AnswerIf(ctx context.Context, p *api.Principal, kind SessionKind, agent string, from Origin, good func(*db.Tx) error) (*LoginOutput, error) {
	v, secret, err := s.openSession(ctx, p, kind, agent, from, good)
	if err != nil {
		return nil, LoginProblem(err)
	}
	u, err := s.Get(ctx, p.UserID)
	if err != nil {
		return nil, err
	}
	out := &LoginOutput{}
	out.Body.ExpiresAt, out.Body.Session, out.Body.User = v.ExpiresAt.UTC(), v.ID, showUser(u)
	if kind == CookieSession {
		out.SetCookie = []http.Cookie{sessionCookie(secret, 0)}
	} else {
		out.Body.Token = secret
	}
	return out, nil
}

// MayGive refuses to hand out permissions everywhere that the caller of the
// request does not have everywhere.
func MayGive(ctx context.Context, permissions []api.Permission) error {
	r := Role{Permissions: permissions}
	return mayGive(ctx, r.rights())
}
