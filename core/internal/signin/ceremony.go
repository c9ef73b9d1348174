package signin

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

// ceremonyLife is how long a person may take with his authenticator. A page
// that offers passkeys in the name field asks anew in time.
const ceremonyLife = 5 * time.Minute

// Kinds of sealed state.
const (
	registering = "passkey-registration"
	asserting   = "passkey-assertion"
)

// passkeyBucket stands for the user name in the limits of logins by passkey
// alone, whose user is known only afterwards; no user can have it.
const passkeyBucket = "(passkey)"

// ceremony is what core remembers, in the browser, while a person is at his
// authenticator.
type ceremony struct {
	Session webauthn.SessionData `json:"s"`
	// UserID is set when it is known whose passkey is asked for.
	UserID string `json:"u,omitempty"`
	// Password says that the user's password was right: the passkey is the
	// second factor then, and need not verify the person.
	Password bool `json:"p,omitempty"`
}

// holder is a user as the library wants him. His handle is his ID.
type holder struct {
	user user.User
	keys []Passkey
}

func (h holder) WebAuthnID() []byte   { return []byte(h.user.ID) }
func (h holder) WebAuthnName() string { return h.user.Name }
func (h holder) WebAuthnDisplayName() string {
	if h.user.DisplayName != "" {
		return h.user.DisplayName
	}
	return h.user.Name
}

// WebAuthnCredentials leaves out what is known to have a copy.
func (h holder) WebAuthnCredentials() []webauthn.Credential {
	var list []webauthn.Credential
	for _, k := range h.keys {
		if k.ClonedAt.IsZero() {
			list = append(list, k.record)
		}
	}
	return list
}

func (h holder) key(id []byte) (Passkey, bool) {
	for _, k := range h.keys {
		if k.Credential == encodeID(id) {
			return k, true
		}
	}
	return Passkey{}, false
}

func (s *Service) holder(ctx context.Context, userID string) (holder, error) {
	u, err := s.users.Get(ctx, userID)
	if err != nil {
		return holder{}, err
	}
	keys, err := s.Passkeys(ctx, s.db, userID)
	return holder{u, keys}, err
}

var errNoPasskeys = api.Conflict("passkeys_unavailable", "Passkeys need a console with a host name, not an IP address.")

// beginRegistration asks a user's authenticator for a new passkey.
func (s *Service) beginRegistration(ctx context.Context, userID string) (state string, options any, err error) {
	if s.passkeys == nil {
		return "", nil, errNoPasskeys
	}
	h, err := s.holder(ctx, userID)
	if err != nil {
		return "", nil, err
	}
	if h.user.Kind != user.Person {
		return "", nil, api.Conflict("not_a_person", "An API client has no passkeys.")
	}
	var known []protocol.CredentialDescriptor
	for _, k := range h.keys {
		known = append(known, k.record.Descriptor())
	}
	creation, session, err := s.passkeys.BeginRegistration(h, webauthn.WithExclusions(known))
	if err != nil {
		return "", nil, fmt.Errorf("begin passkey registration: %w", err)
	}
	state, err = s.sealState(registering, ceremony{Session: *session, UserID: userID}, ceremonyLife)
	return state, creation, err
}

// finishRegistration keeps the passkey an authenticator made.
func (s *Service) finishRegistration(ctx context.Context, p *api.Principal, state, name string, response []byte) (Passkey, []string, error) {
	if s.passkeys == nil {
		return Passkey{}, nil, errNoPasskeys
	}
	var c ceremony
	if err := s.openState(registering, state, &c); err != nil {
		return Passkey{}, nil, err
	}
	if c.UserID != p.UserID {
		return Passkey{}, nil, errStale
	}
	h, err := s.holder(ctx, p.UserID)
	if err != nil {
		return Passkey{}, nil, err
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return Passkey{}, nil, badPasskey(err)
	}
	made, err := s.passkeys.CreateCredential(h, c.Session, parsed)
	if err != nil {
		return Passkey{}, nil, badPasskey(err)
	}
	if err := s.spend(ctx, s.db, state, ceremonyLife); err != nil {
		return Passkey{}, nil, err
	}
	return s.addPasskey(ctx, audit.By(p), p.UserID, name, *made)
}

// badPasskey tells that the browser's answer is not good; the library's reason
// is for the log of whoever asks, not a secret.
func badPasskey(err error) error {
	p := &api.Problem{Status: 422, Title: "The passkey could not be checked.", Code: "passkey_refused", Detail: "Try again, or another passkey."}
	if e, ok := errors.AsType[*protocol.Error](err); ok && e.Details != "" {
		p.Detail = e.Details + ". Try again, or another passkey."
	}
	return p
}

// beginAssertion asks for a passkey: any that the authenticator has for this
// console, or one of a user whose password was right.
func (s *Service) beginAssertion(ctx context.Context, userID string) (state string, options any, err error) {
	if s.passkeys == nil {
		return "", nil, errNoPasskeys
	}
	c := ceremony{UserID: userID, Password: userID != ""}
	var session *webauthn.SessionData
	if userID == "" {
		options, session, err = s.passkeys.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	} else {
		h, herr := s.holder(ctx, userID)
		if herr != nil {
			return "", nil, herr
		}
		if len(h.WebAuthnCredentials()) == 0 {
			return "", nil, api.Conflict("no_passkey", "There is no passkey for this account. Use a code.")
		}
		options, session, err = s.passkeys.BeginLogin(h, webauthn.WithUserVerification(protocol.VerificationPreferred))
	}
	if err != nil {
		return "", nil, fmt.Errorf("begin passkey login: %w", err)
	}
	c.Session = *session
	state, err = s.sealState(asserting, c, ceremonyLife)
	return state, options, err
}

// secondFactor checks name and password and, if they are right, asks for one
// of the user's passkeys.
func (s *Service) secondFactor(ctx context.Context, name, password string, source netip.Addr, via string) (userID string, err error) {
	_, err = s.users.Login(ctx, user.Credentials{Name: name, Password: password, Source: source, Via: via})
	switch {
	case err == nil:
		return "", api.Conflict("no_second_factor", "This account needs no second factor: log in with the password.")
	case !errors.Is(err, user.ErrNeedCode):
		return "", user.LoginProblem(err)
	}
	u, err := s.users.ByName(ctx, lowerName(name))
	return u.ID, err
}

// finishAssertion checks an authenticator's answer and lets its user in.
func (s *Service) finishAssertion(ctx context.Context, state string, response []byte, source netip.Addr, via string) (*api.Principal, error) {
	if s.passkeys == nil {
		return nil, errNoPasskeys
	}
	var c ceremony
	if err := s.openState(asserting, state, &c); err != nil {
		return nil, err
	}
	bucket := passkeyBucket
	if c.UserID != "" {
		u, err := s.users.Get(ctx, c.UserID)
		if err != nil {
			return nil, err
		}
		bucket = u.Name
	}
	done, err := s.users.Attempt(ctx, bucket, source, via)
	if err != nil {
		return nil, user.LoginProblem(err)
	}
	p, err := s.assert(ctx, c, state, response, source, via)
	_, refused := errors.AsType[*api.Problem](err)
	done(refused)
	return p, err
}

func (s *Service) assert(ctx context.Context, c ceremony, state string, response []byte, source netip.Addr, via string) (*api.Principal, error) {
	a := user.Arrival{UserID: c.UserID, Methods: []string{"passkey"}, MFA: true, Source: source, Via: via}
	if c.Password {
		a.Methods = []string{"password", "passkey"}
	}
	refuse := func(reason string, problem error) (*api.Principal, error) {
		if err := s.users.RefuseArrival(ctx, a, reason); err != nil {
			return nil, err
		}
		return nil, problem
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(response)
	if err != nil {
		return refuse("bad_passkey", badPasskey(err))
	}
	// Used up before it is looked at: a replay must not even move a counter.
	if err := s.spend(ctx, s.db, state, ceremonyLife); err != nil {
		return nil, err
	}
	h, made, err := s.validate(ctx, c, parsed)
	if h.user.ID != "" {
		a.UserID = h.user.ID
	}
	if err != nil {
		if _, ok := errors.AsType[*protocol.Error](err); !ok {
			return nil, err
		}
		return refuse("bad_passkey", &api.Problem{Status: 401, Title: "The passkey was refused.", Code: "passkey_refused",
			Detail: "It is not known here, or could not be checked. Try another way to sign in."})
	}
	k, _ := h.key(made.ID)
	a.Fields = map[string]string{"passkey": k.ID}
	if made.Authenticator.CloneWarning {
		by := audit.Actor{Kind: "user", ID: h.user.ID, Name: h.user.Name, Source: addrText(source), Via: via}
		if err := s.passkeyCloned(ctx, k, by); err != nil {
			return nil, err
		}
		return refuse("cloned_passkey", &api.Problem{Status: 401, Title: "The passkey was refused.", Code: "passkey_cloned",
			Detail: "Its counter went backwards: there may be a copy of it. It is blocked; sign in another way and remove it."})
	}
	err = s.db.Tx(ctx, func(tx *db.Tx) error { return s.passkeyUsed(ctx, tx, k, *made) })
	if err != nil {
		return nil, fmt.Errorf("passkey login: %w", err)
	}
	p, err := s.users.Arrive(ctx, a)
	if err != nil {
		return nil, user.LoginProblem(err)
	}
	return p, nil
}

// validate runs WebAuthn §7.2. The holder has a user as soon as one is known.
func (s *Service) validate(ctx context.Context, c ceremony, parsed *protocol.ParsedCredentialAssertionData) (h holder, made *webauthn.Credential, err error) {
	if c.UserID != "" {
		if h, err = s.holder(ctx, c.UserID); err != nil {
			return h, nil, err
		}
		made, err = s.passkeys.ValidateLogin(h, c.Session, parsed)
		return h, made, err
	}
	var lookup error
	find := func(_, handle []byte) (webauthn.User, error) {
		found, err := s.holder(ctx, string(handle))
		if err != nil {
			if !errors.Is(err, db.ErrNotFound) {
				lookup = err
			}
			return nil, err
		}
		h = found
		return found, nil
	}
	made, err = s.passkeys.ValidateDiscoverableLogin(find, c.Session, parsed)
	if lookup != nil {
		return h, nil, lookup
	}
	return h, made, err
}
