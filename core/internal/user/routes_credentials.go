package user

import (
	"context"
	"net/http"
	"strings"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
	"caponier/core/internal/settings"
	"caponier/shared/config"
)

type passwordInput struct {
	ID   string `path:"id" maxLength:"40"`
	Body struct {
		Password string `json:"password" maxLength:"256" doc:"Empty takes the password away (of others only)."`
		Current  string `json:"current,omitempty" maxLength:"256" doc:"Your present password, to change your own."`
		Code     string `json:"code,omitempty" maxLength:"32" doc:"Your second factor, if you have one, to change your own."`
	}
}

type reauthInput struct {
	ID   string `path:"id" maxLength:"40"`
	Body struct {
		Password string `json:"password" maxLength:"256" doc:"Your present password."`
		Code     string `json:"code,omitempty" maxLength:"32" doc:"Your second factor, if you have one."`
	}
}

type totpOutput struct {
	Body struct {
		Secret string `json:"secret" doc:"Base32, to type into an authenticator app."`
		URL    string `json:"url" doc:"The same as a QR code's content."`
	}
}

type codeInput struct {
	ID   string `path:"id" maxLength:"40"`
	Body struct {
		Code string `json:"code" maxLength:"32"`
	}
}

type recoveryOutput struct {
	Body struct {
		RecoveryCodes []string `json:"recovery_codes" doc:"Each replaces the second factor once. Shown only now."`
	}
}

type keysOutput struct{ Body api.Page[KeyView] }

type addKeyInput struct {
	ID   string `path:"id" maxLength:"40"`
	Body struct {
		PublicKey string `json:"public_key" maxLength:"16384" example:"ssh-ed25519 AAAAC3… jane@laptop"`
		Comment   string `json:"comment,omitempty"`
	}
}

type keyOutput struct{ Body KeyView }

type partInput struct {
	ID   string `path:"id" maxLength:"40"`
	Part string `path:"part" maxLength:"40"`
}

type tokensOutput struct{ Body api.Page[TokenView] }

type createTokenInput struct {
	Body struct {
		Name      string `json:"name" example:"backup script"`
		ExpiresIn string `json:"expires_in,omitempty" example:"90d" doc:"Default 90d, at most the setting token.max_age."`
	}
}

type createTokenOutput struct {
	Body struct {
		TokenView
		Token string `json:"token" doc:"Shown only now."`
	}
}

type sessionsOutput struct{ Body api.Page[SessionView] }

// defaultTokenLife is how long an API token lives when its maker does not say.
const defaultTokenLife = 90 * 24 * time.Hour

func (s *Service) credentialRoutes(f *api.Frame) {
	op := func(method, path, id, summary, tag string) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: tag, Who: api.Self()}
	}
	secret := func(o api.Op, status int) api.Op {
		o.Sensitive, o.Status = true, status
		return o
	}
	api.Register(f, op(http.MethodPut, "/users/{id}/password", "set-password", "Change your password, or set somebody's", "users"), s.handlePassword)
	api.Register(f, secret(op(http.MethodPost, "/users/{id}/totp", "begin-totp", "Begin to enrol a second factor for yourself", "users"), 0), s.handleBeginTOTP)
	api.Register(f, secret(op(http.MethodPost, "/users/{id}/totp/confirm", "confirm-totp", "Enrol the second factor with a first code", "users"), 0), s.handleConfirmTOTP)
	api.Register(f, op(http.MethodPost, "/users/{id}/totp/remove", "remove-own-totp", "Take your second factor away", "users"), s.handleRemoveOwnTOTP)
	api.Register(f, op(http.MethodDelete, "/users/{id}/totp", "reset-totp", "Take somebody's second factor away", "users"), s.handleResetTOTP)
	api.Register(f, secret(op(http.MethodPost, "/users/{id}/recovery-codes", "renew-recovery-codes", "Replace your recovery codes", "users"), 0), s.handleRecovery)
	api.Register(f, op(http.MethodGet, "/users/{id}/keys", "list-keys", "List the SSH keys a user logs in with", "users"), s.handleKeys)
	api.Register(f, secret(op(http.MethodPost, "/users/{id}/keys", "add-key", "Add an SSH key", "users"), http.StatusCreated), s.handleAddKey)
	api.Register(f, op(http.MethodDelete, "/users/{id}/keys/{part}", "remove-key", "Remove an SSH key and end what it opened", "users"), s.handleRemoveKey)
	api.Register(f, op(http.MethodGet, "/users/{id}/tokens", "list-user-tokens", "List the API tokens of a user", "tokens"), s.handleUserTokens)
	api.Register(f, op(http.MethodGet, "/tokens", "list-tokens", "List your API tokens", "tokens"), s.handleTokens)
	api.Register(f, secret(op(http.MethodPost, "/tokens", "create-token", "Make an API token for yourself", "tokens"), http.StatusCreated), s.handleCreateToken)
	api.Register(f, op(http.MethodDelete, "/tokens/{id}", "revoke-token", "Revoke an API token and end what it opened", "tokens"), s.handleRevokeToken)
	api.Register(f, op(http.MethodGet, "/users/{id}/sessions", "list-sessions", "List the open sessions of a user", "users"), s.handleSessions)
	api.Register(f, op(http.MethodDelete, "/users/{id}/sessions", "sign-out", "Sign a user out everywhere", "users"), s.handleSignOut)
	api.Register(f, op(http.MethodDelete, "/users/{id}/sessions/{part}", "close-session", "End one session", "users"), s.handleCloseSession)
}

func (s *Service) handlePassword(ctx context.Context, in *passwordInput) (*struct{}, error) {
	id, own, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	if !own {
		return nil, missing("user", in.ID, s.SetPassword(ctx, actorOf(ctx), id, in.Body.Password))
	}
	p := api.PrincipalFrom(ctx)
	if in.Body.Password == "" {
		return nil, api.Invalid(api.FieldError{Field: "body.password", Message: "must not be empty"})
	}
	if err := s.Reauthenticate(ctx, p, in.Body.Current, in.Body.Code); err != nil {
		return nil, err
	}
	return nil, s.changePassword(ctx, p, in.Body.Password)
}

// changePassword sets the caller's own password and ends every login of his
// but the session of this request.
func (s *Service) changePassword(ctx context.Context, p *api.Principal, password string) error {
	if wrong := checkPassword(p.UserName, password, settings.PasswordMinLength.Get(s.settings)); wrong != "" {
		return api.Invalid(api.FieldError{Field: "body.password", Message: wrong})
	}
	hash, err := s.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	return s.db.Tx(ctx, func(tx *db.Tx) error {
		u, err := userByID(ctx, tx, p.UserID)
		if err != nil {
			return err
		}
		return s.storePassword(ctx, tx, actorOf(ctx), &u.User, hash, p.Session)
	})
}

// onlyOwn resolves the {id} of an operation that nobody may do for another.
func (s *Service) onlyOwn(ctx context.Context, id string) (*api.Principal, error) {
	p := api.PrincipalFrom(ctx)
	if id != "me" && id != p.UserID {
		return nil, api.Denied("own_only", "Only the user himself can do this.")
	}
	return p, nil
}

func (s *Service) handleBeginTOTP(ctx context.Context, in *reauthInput) (*totpOutput, error) {
	p, err := s.onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.Reauthenticate(ctx, p, in.Body.Password, in.Body.Code); err != nil {
		return nil, err
	}
	out := &totpOutput{}
	out.Body.Secret, out.Body.URL, err = s.BeginTOTP(ctx, p.UserID)
	return out, err
}

func (s *Service) handleConfirmTOTP(ctx context.Context, in *codeInput) (*recoveryOutput, error) {
	p, err := s.onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := &recoveryOutput{}
	out.Body.RecoveryCodes, err = s.ConfirmTOTP(ctx, actorOf(ctx), p.UserID, in.Body.Code)
	return out, err
}

func (s *Service) handleRemoveOwnTOTP(ctx context.Context, in *reauthInput) (*struct{}, error) {
	p, err := s.onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.Reauthenticate(ctx, p, in.Body.Password, in.Body.Code); err != nil {
		return nil, err
	}
	return nil, s.RemoveTOTP(ctx, actorOf(ctx), p.UserID)
}

func (s *Service) handleResetTOTP(ctx context.Context, in *idInput) (*struct{}, error) {
	id, own, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	if own {
		return nil, api.Conflict("needs_proof", "Take your own second factor away at /users/me/totp/remove, with password and code.")
	}
	return nil, missing("user", in.ID, s.RemoveTOTP(ctx, actorOf(ctx), id))
}

func (s *Service) handleRecovery(ctx context.Context, in *reauthInput) (*recoveryOutput, error) {
	p, err := s.onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.Reauthenticate(ctx, p, in.Body.Password, in.Body.Code); err != nil {
		return nil, err
	}
	out := &recoveryOutput{}
	out.Body.RecoveryCodes, err = s.RenewRecovery(ctx, actorOf(ctx), p.UserID)
	return out, err
}

func (s *Service) handleKeys(ctx context.Context, in *idInput) (*keysOutput, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersView)
	if err != nil {
		return nil, err
	}
	list, err := s.Keys(ctx, id)
	if err != nil {
		return nil, err
	}
	return &keysOutput{whole(list, showKey)}, nil
}

// handleAddKey takes no key for the owner of the token that asks: it would
// outlive the token.
func (s *Service) handleAddKey(ctx context.Context, in *addKeyInput) (*keyOutput, error) {
	id, own, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	if own && strings.HasPrefix(api.PrincipalFrom(ctx).Session, "tok_") {
		return nil, api.Denied("needs_session", "A token cannot give its owner another way in. Log in to add a key.")
	}
	k, err := found(s.AddKey(ctx, actorOf(ctx), id, in.Body.PublicKey, in.Body.Comment))("user", in.ID)
	if err != nil {
		return nil, err
	}
	return &keyOutput{showKey(k)}, nil
}

func (s *Service) handleRemoveKey(ctx context.Context, in *partInput) (*struct{}, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	return nil, missing("key", in.Part, s.RemoveKey(ctx, actorOf(ctx), id, in.Part))
}

func (s *Service) handleUserTokens(ctx context.Context, in *idInput) (*tokensOutput, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersView)
	if err != nil {
		return nil, err
	}
	list, err := s.Tokens(ctx, id)
	if err != nil {
		return nil, err
	}
	return &tokensOutput{whole(list, showToken)}, nil
}

func (s *Service) handleTokens(ctx context.Context, _ *struct{}) (*tokensOutput, error) {
	return s.handleUserTokens(ctx, &idInput{ID: "me"})
}

func (s *Service) handleCreateToken(ctx context.Context, in *createTokenInput) (*createTokenOutput, error) {
	life := config.Duration(defaultTokenLife)
	if in.Body.ExpiresIn != "" {
		if err := life.UnmarshalText([]byte(in.Body.ExpiresIn)); err != nil {
			return nil, api.Invalid(api.FieldError{Field: "body.expires_in", Message: err.Error()})
		}
	}
	t, secret, err := s.CreateToken(ctx, api.PrincipalFrom(ctx), in.Body.Name, life.Std())
	if err != nil {
		return nil, err
	}
	out := &createTokenOutput{}
	out.Body.TokenView, out.Body.Token = showToken(t), secret
	return out, nil
}

// handleRevokeToken hides tokens of others from who may not manage users.
func (s *Service) handleRevokeToken(ctx context.Context, in *idInput) (*struct{}, error) {
	t, err := found(s.Token(ctx, in.ID))("token", in.ID)
	if err != nil {
		return nil, err
	}
	if _, _, err := s.whose(ctx, t.UserID, api.UsersManage); err != nil {
		if !api.PrincipalFrom(ctx).Can(api.UsersManage) {
			return nil, api.Missing("token", in.ID)
		}
		return nil, err
	}
	return nil, s.RevokeToken(ctx, actorOf(ctx), in.ID)
}

func (s *Service) handleSessions(ctx context.Context, in *idInput) (*sessionsOutput, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersView)
	if err != nil {
		return nil, err
	}
	list, err := s.Sessions(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &sessionsOutput{whole(list, showSession)}
	for i := range out.Body.Items {
		out.Body.Items[i].Current = out.Body.Items[i].ID == api.PrincipalFrom(ctx).Session
	}
	return out, nil
}

func (s *Service) handleSignOut(ctx context.Context, in *idInput) (*struct{}, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	return nil, missing("user", in.ID, s.SignOut(ctx, actorOf(ctx), id))
}

func (s *Service) handleCloseSession(ctx context.Context, in *partInput) (*struct{}, error) {
	id, _, err := s.whose(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	return nil, missing("session", in.Part, s.CloseSession(ctx, actorOf(ctx), id, in.Part))
}

// whole is a short list as one page.
func whole[T, V any](list []T, show func(T) V) api.Page[V] {
	p := api.Page[V]{Items: make([]V, 0, len(list))}
	for _, v := range list {
		p.Items = append(p.Items, show(v))
	}
	return p
}
