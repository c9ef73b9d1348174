package user

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"caponier/core/internal/api"
)

type loginInput struct {
	Agent string `header:"User-Agent"`
	Body  struct {
		Username string `json:"username" maxLength:"64"`
		Password string `json:"password" maxLength:"256"`
		Code     string `json:"code,omitempty" maxLength:"32" doc:"TOTP or recovery code."`
		Cookie   bool   `json:"cookie,omitempty" doc:"Answer with a session cookie instead of a bearer token."`
		Name     string `json:"name,omitempty" maxLength:"200" doc:"What the session is listed as; default is the user agent."`
	}
}

type meOutput struct {
	Body struct {
		User        UserView         `json:"user"`
		Permissions []api.Permission `json:"permissions" doc:"those that hold everywhere"`
		// Scoped is keyed by permission.
		Scoped        map[string][]string `json:"scoped,omitempty" doc:"access groups that further permissions hold in"`
		Methods       []string            `json:"methods"`
		MFA           bool                `json:"mfa"`
		Session       string              `json:"session"`
		Via           string              `json:"via"`
		Source        string              `json:"source"`
		RecoveryCodes int                 `json:"recovery_codes_left"`
	}
}

type cookieOutput struct {
	SetCookie []http.Cookie `header:"Set-Cookie"`
}

type tokenForm struct {
	Authorization string `header:"Authorization"`
	RawBody       []byte `contentType:"application/x-www-form-urlencoded"`
}

type tokenAnswer struct {
	Status       int
	CacheControl string `header:"Cache-Control"`
	Authenticate string `header:"WWW-Authenticate"`
	Body         struct {
		AccessToken string `json:"access_token,omitempty"`
		TokenType   string `json:"token_type,omitempty"`
		ExpiresIn   int    `json:"expires_in,omitempty" doc:"Seconds."`
		Error       string `json:"error,omitempty" doc:"RFC 6749 section 5.2."`
		Description string `json:"error_description,omitempty"`
	}
}

func (s *Service) loginRoutes(f *api.Frame) {
	api.Register(f, api.Op{Method: http.MethodPost, Path: "/login", ID: "login", Tag: "login", Sensitive: true, MaxBody: 4 << 10,
		Summary: "Log in with password and second factor; opens a session", Who: api.Public()}, s.handleLogin)
	api.Register(f, api.Op{Method: http.MethodPost, Path: "/logout", ID: "logout", Tag: "login",
		Summary: "End the session of this request", Who: api.Self()}, s.handleLogout)
	api.Register(f, api.Op{Method: http.MethodGet, Path: "/me", ID: "get-me", Tag: "login",
		Summary: "Show who this request is made by and what he may do", Who: api.Self()}, s.handleMe)
	api.Register(f, api.Op{Method: http.MethodPost, Path: "/oauth/token", ID: "oauth-token", Tag: "api-clients", Sensitive: true, MaxBody: 4 << 10,
		Also:    []int{http.StatusBadRequest, http.StatusUnauthorized}, // RFC 6749 §5.2
		Summary: "Exchange an API client's id and secret for an access token (RFC 6749 section 4.4)", Who: api.Public()}, s.handleToken)
}

func (s *Service) handleLogin(ctx context.Context, in *loginInput) (*LoginOutput, error) {
	b := in.Body
	if isBearer(b.Password) {
		return nil, api.Invalid(api.FieldError{Field: "body.password", Message: "is a token: send it as Authorization: Bearer instead"})
	}
	via := "api"
	kind := BearerSession
	if b.Cookie {
		via, kind = "console", CookieSession
	}
	p, err := s.Login(ctx, Credentials{Name: b.Username, Password: b.Password, Code: b.Code, Source: api.SourceFrom(ctx), Via: via})
	if err != nil {
		return nil, LoginProblem(err)
	}
	agent := b.Name
	if agent == "" {
		agent = in.Agent
	}
	return s.Answer(ctx, p, kind, agent, Origin{})
}

// LoginProblem is what a person is told about a refused login.
func LoginProblem(err error) error {
	if limit, ok := errors.AsType[*LimitError](err); ok {
		return limit.problem()
	}
	switch {
	case errors.Is(err, ErrNeedCode):
		return &api.Problem{Status: http.StatusUnauthorized, Title: "A code is needed.", Code: "code_needed",
			Detail: "Repeat the request with the code of your authenticator app, or a recovery code."}
	case errors.Is(err, ErrBadCredentials):
		return &api.Problem{Status: http.StatusUnauthorized, Title: "The login was refused.", Code: "bad_credentials",
			Detail: "Name, password or code are not right, or the account is not in use."}
	}
	return err
}

// sessionCookie is the console's cookie. It has no expiry of its own: the
// session's end is decided by core.
func sessionCookie(secret string, maxAge int) http.Cookie {
	return http.Cookie{Name: CookieName, Value: secret, Path: "/", Secure: true, HttpOnly: true,
		SameSite: http.SameSiteStrictMode, MaxAge: maxAge}
}

func (s *Service) handleLogout(ctx context.Context, _ *struct{}) (*cookieOutput, error) {
	p := api.PrincipalFrom(ctx)
	if !strings.HasPrefix(p.Session, "ses_") {
		return nil, api.Conflict("no_session", "This request was made with a token; revoke it at /tokens.")
	}
	if err := s.CloseSession(ctx, actorOf(ctx), p.UserID, p.Session); err != nil {
		return nil, err
	}
	return &cookieOutput{SetCookie: []http.Cookie{sessionCookie("", -1)}}, nil
}

func (s *Service) handleMe(ctx context.Context, _ *struct{}) (*meOutput, error) {
	p := api.PrincipalFrom(ctx)
	u, err := s.Get(ctx, p.UserID)
	if err != nil {
		return nil, err
	}
	out := &meOutput{}
	b := &out.Body
	b.User, b.Methods, b.MFA, b.Session, b.Via, b.Source = showUser(u), p.Methods, p.MFA, p.Session, p.Via, addrText(p.Source)
	b.Permissions = []api.Permission{}
	for have, yes := range p.Permissions {
		if yes {
			b.Permissions = append(b.Permissions, have)
		}
	}
	slices.Sort(b.Permissions)
	for have, groups := range p.Scoped {
		if b.Scoped == nil {
			b.Scoped = map[string][]string{}
		}
		b.Scoped[string(have)] = slices.Compact(slices.Sorted(slices.Values(groups)))
	}
	b.RecoveryCodes, err = s.RecoveryLeft(ctx, u.ID)
	return out, err
}

func (s *Service) handleToken(ctx context.Context, in *tokenForm) (*tokenAnswer, error) {
	id, secret, problem := clientCredentials(in)
	out := &tokenAnswer{Status: http.StatusOK, CacheControl: "no-store"}
	refuse := func(status int, code, text string) (*tokenAnswer, error) {
		out.Status, out.Body.Error, out.Body.Description = status, code, text
		if status == http.StatusUnauthorized {
			out.Authenticate = `Basic realm="caponier"`
		}
		return out, nil
	}
	if problem != "" {
		return refuse(http.StatusBadRequest, problem, "Send grant_type=client_credentials with client_id and client_secret.")
	}
	token, life, err := s.ClientToken(ctx, id, secret, api.SourceFrom(ctx))
	if limit, ok := errors.AsType[*LimitError](err); ok {
		return nil, limit.problem()
	}
	if errors.Is(err, errBadClient) {
		return refuse(http.StatusUnauthorized, "invalid_client", "The client id or secret is not right, or the client is not in use.")
	}
	if err != nil {
		return nil, err
	}
	out.Body.AccessToken, out.Body.TokenType, out.Body.ExpiresIn = token, "Bearer", int(life.Seconds())
	return out, nil
}

// clientCredentials reads a token request: client ID and secret from HTTP
// Basic (RFC 6749 §2.3.1) or from the form, never from both.
func clientCredentials(in *tokenForm) (id, secret, problem string) {
	form, err := url.ParseQuery(string(in.RawBody))
	if err != nil {
		return "", "", "invalid_request"
	}
	if form.Get("grant_type") != "client_credentials" {
		return "", "", "unsupported_grant_type"
	}
	id, secret = form.Get("client_id"), form.Get("client_secret")
	if scheme, value, _ := strings.Cut(in.Authorization, " "); strings.EqualFold(scheme, "Basic") {
		raw, err := base64.StdEncoding.DecodeString(value)
		user, password, found := strings.Cut(string(raw), ":")
		if err != nil || !found || secret != "" {
			return "", "", "invalid_request"
		}
		user, err1 := url.QueryUnescape(user)
		password, err2 := url.QueryUnescape(password)
		if err1 != nil || err2 != nil || id != "" && id != user {
			return "", "", "invalid_request"
		}
		id, secret = user, password
	}
	if id == "" || secret == "" {
		return "", "", "invalid_request"
	}
	return id, secret, ""
}
