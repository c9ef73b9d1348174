package signin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
	"unicode"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/user"
)

// PasskeyView is a passkey as the API shows it.
type PasskeyView struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	LastUsed  time.Time `json:"last_used,omitzero"`
	BackedUp  bool      `json:"backed_up" doc:"It is kept in an account that copies it to other devices."`
	Verifies  bool      `json:"verifies" doc:"It can sign in by itself: it asks for a PIN or a fingerprint. Otherwise it is a second factor."`
	ClonedAt  time.Time `json:"cloned_at,omitzero" doc:"Its counter went backwards; it is blocked."`
}

func showPasskey(k Passkey) PasskeyView {
	return PasskeyView{ID: k.ID, Name: k.Name, CreatedAt: k.CreatedAt, LastUsed: k.LastUsed,
		BackedUp: k.record.Flags.BackupState, Verifies: k.record.Flags.UserVerified, ClonedAt: k.ClonedAt}
}

type passkeyBeginInput struct {
	Body struct {
		Username string `json:"username,omitempty" maxLength:"64" doc:"With the password, when the passkey is the second factor."`
		Password string `json:"password,omitempty" maxLength:"256"`
	}
}

type ceremonyOutput struct {
	Body struct {
		State   string `json:"state" doc:"Send it back with the answer; good for five minutes, once."`
		Options any    `json:"options" doc:"For navigator.credentials: the member publicKey in JSON form (WebAuthn section 5.1)."`
	}
}

type passkeyLoginInput struct {
	Agent string `header:"User-Agent"`
	Body  struct {
		State      string          `json:"state" maxLength:"8192"`
		Credential json.RawMessage `json:"credential" doc:"PublicKeyCredential as JSON (toJSON())."`
		Cookie     bool            `json:"cookie,omitempty" doc:"Answer with a session cookie instead of a bearer token."`
		Name       string          `json:"name,omitempty" maxLength:"200" doc:"What the session is listed as; default is the user agent."`
	}
}

type passkeysOutput struct{ Body api.Page[PasskeyView] }

type proofInput struct {
	ID   string `path:"id" maxLength:"40" example:"me"`
	Body struct {
		Password string `json:"password" maxLength:"256" doc:"Your present password; empty if you have none and signed in just now."`
		Code     string `json:"code,omitempty" maxLength:"32" doc:"Your second factor, if you have one."`
	}
}

type addPasskeyInput struct {
	ID   string `path:"id" maxLength:"40" example:"me"`
	Body struct {
		State      string          `json:"state" maxLength:"8192"`
		Credential json.RawMessage `json:"credential"`
		Name       string          `json:"name" maxLength:"100" example:"laptop"`
	}
}

type addPasskeyOutput struct {
	Body struct {
		PasskeyView
		RecoveryCodes []string `json:"recovery_codes,omitempty" doc:"With the first second factor: each replaces it once. Shown only now."`
	}
}

type passkeyOutput struct{ Body PasskeyView }

type idInput struct {
	ID string `path:"id" maxLength:"40"`
}

type partInput struct {
	ID   string `path:"id" maxLength:"40"`
	Part string `path:"part" maxLength:"40"`
}

type proofPartInput struct {
	ID   string `path:"id" maxLength:"40" example:"me"`
	Part string `path:"part" maxLength:"40"`
	Body struct {
		Password string `json:"password" maxLength:"256" doc:"Your present password; empty if you have none and signed in just now."`
		Code     string `json:"code,omitempty" maxLength:"32" doc:"Your second factor, if you have one."`
	}
}

type renamePasskeyInput struct {
	ID   string `path:"id" maxLength:"40"`
	Part string `path:"part" maxLength:"40"`
	Body struct {
		Name string `json:"name" maxLength:"100"`
	}
}

func (s *Service) passkeyRoutes(f *api.Frame) {
	op := func(method, path, id, summary, tag string, who api.Who) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: tag, Who: who, Sensitive: true, MaxBody: 64 << 10}
	}
	api.Register(f, op(http.MethodPost, "/login/passkey/begin", "begin-passkey-login", "Ask for a passkey to sign in, or as the second factor", "login", api.Public()), s.handleBeginPasskey)
	api.Register(f, op(http.MethodPost, "/login/passkey", "login-passkey", "Sign in with a passkey; opens a session", "login", api.Public()), s.handlePasskeyLogin)
	api.Register(f, op(http.MethodGet, "/users/{id}/passkeys", "list-passkeys", "List the passkeys of a user", "users", api.Self()), s.handlePasskeys)
	api.Register(f, op(http.MethodPost, "/users/{id}/passkeys/begin", "begin-passkey", "Begin to add a passkey for yourself", "users", api.Self()), s.handleBeginRegistration)
	create := op(http.MethodPost, "/users/{id}/passkeys", "add-passkey", "Add the passkey the authenticator made", "users", api.Self())
	create.Status = http.StatusCreated
	api.Register(f, create, s.handleAddPasskey)
	api.Register(f, op(http.MethodPatch, "/users/{id}/passkeys/{part}", "rename-passkey", "Rename a passkey", "users", api.Self()), s.handleRenamePasskey)
	api.Register(f, op(http.MethodDelete, "/users/{id}/passkeys/{part}", "remove-passkey", "Remove somebody's passkey and sign him out", "users", api.Self()), s.handleRemovePasskey)
	api.Register(f, op(http.MethodPost, "/users/{id}/passkeys/{part}/remove", "remove-own-passkey", "Remove your passkey and end your other logins", "users", api.Self()), s.handleRemoveOwnPasskey)
}

func (s *Service) handleBeginPasskey(ctx context.Context, in *passkeyBeginInput) (*ceremonyOutput, error) {
	var userID string
	if in.Body.Username != "" || in.Body.Password != "" {
		var err error
		if userID, err = s.secondFactor(ctx, in.Body.Username, in.Body.Password, api.SourceFrom(ctx), "console"); err != nil {
			return nil, err
		}
	}
	out := &ceremonyOutput{}
	var err error
	out.Body.State, out.Body.Options, err = s.beginAssertion(ctx, userID)
	return out, err
}

func (s *Service) handlePasskeyLogin(ctx context.Context, in *passkeyLoginInput) (*user.LoginOutput, error) {
	via, kind := front(in.Body.Cookie)
	p, err := s.finishAssertion(ctx, in.Body.State, in.Body.Credential, api.SourceFrom(ctx), via)
	if err != nil {
		return nil, err
	}
	agent := in.Body.Name
	if agent == "" {
		agent = in.Agent
	}
	return s.users.Answer(ctx, p, kind, agent, user.Origin{})
}

func (s *Service) handlePasskeys(ctx context.Context, in *idInput) (*passkeysOutput, error) {
	id, _, err := s.users.SelfOrPermitted(ctx, in.ID, api.UsersView)
	if err != nil {
		return nil, err
	}
	list, err := s.Passkeys(ctx, s.db, id)
	if err != nil {
		return nil, err
	}
	return &passkeysOutput{api.Page[PasskeyView]{Items: shown(list, showPasskey)}}, nil
}

// onlyOwn resolves the {id} of what nobody may do for another.
func onlyOwn(ctx context.Context, id string) (*api.Principal, error) {
	p := api.PrincipalFrom(ctx)
	if id != "me" && id != p.UserID {
		return nil, api.Denied("own_only", "Only the user himself can do this.")
	}
	return p, nil
}

func (s *Service) handleBeginRegistration(ctx context.Context, in *proofInput) (*ceremonyOutput, error) {
	p, err := onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.users.Reauthenticate(ctx, p, in.Body.Password, in.Body.Code); err != nil {
		return nil, err
	}
	out := &ceremonyOutput{}
	out.Body.State, out.Body.Options, err = s.beginRegistration(ctx, p.UserID)
	return out, err
}

func (s *Service) handleAddPasskey(ctx context.Context, in *addPasskeyInput) (*addPasskeyOutput, error) {
	p, err := onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := checkLabel("body.name", in.Body.Name); err != nil {
		return nil, err
	}
	k, codes, err := s.finishRegistration(ctx, p, in.Body.State, in.Body.Name, in.Body.Credential)
	if err != nil {
		return nil, err
	}
	out := &addPasskeyOutput{}
	out.Body.PasskeyView, out.Body.RecoveryCodes = showPasskey(k), codes
	return out, nil
}

func (s *Service) handleRenamePasskey(ctx context.Context, in *renamePasskeyInput) (*passkeyOutput, error) {
	p, err := onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := checkLabel("body.name", in.Body.Name); err != nil {
		return nil, err
	}
	k, err := s.RenamePasskey(ctx, actorOf(ctx), p.UserID, in.Part, in.Body.Name)
	if err != nil {
		return nil, missing("passkey", in.Part, err)
	}
	return &passkeyOutput{showPasskey(k)}, nil
}

func (s *Service) handleRemoveOwnPasskey(ctx context.Context, in *proofPartInput) (*struct{}, error) {
	p, err := onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.users.Reauthenticate(ctx, p, in.Body.Password, in.Body.Code); err != nil {
		return nil, err
	}
	return nil, missing("passkey", in.Part, s.RemovePasskey(ctx, actorOf(ctx), p.UserID, in.Part, p.Session))
}

func (s *Service) handleRemovePasskey(ctx context.Context, in *partInput) (*struct{}, error) {
	id, own, err := s.users.SelfOrPermitted(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	if own {
		return nil, api.Conflict("needs_proof", "Remove your own passkey with POST to …/remove, with password and code.")
	}
	return nil, missing("passkey", in.Part, s.RemovePasskey(ctx, actorOf(ctx), id, in.Part, ""))
}

func missing(kind, id string, err error) error {
	if errors.Is(err, db.ErrNotFound) {
		return api.Missing(kind, id)
	}
	return err
}

// checkLabel is for names people give to their things.
func checkLabel(field, text string) error {
	if text == "" || len(text) > 100 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return api.Invalid(api.FieldError{Field: field, Message: "must be printable text of 1 to 100 bytes"})
	}
	return nil
}

func lowerName(name string) string { return strings.ToLower(name) }
