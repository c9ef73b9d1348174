package signin

import (
	"context"
	"errors"
	"net/http"
	"time"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/user"
)

// ssoBucket stands for the user name in the limits of single sign-on.
const ssoBucket = "(single sign-on)"

// ProviderView is a provider as the API shows it.
type ProviderView struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Enabled   bool           `json:"enabled"`
	HasSecret bool           `json:"has_secret"`
	Callback  string         `json:"callback" doc:"The redirect URI to register at the provider."`
	LogoutURI string         `json:"logout_uri" doc:"The back-channel logout URI to register at the provider, so that a session that ends there ends here."`
	Config    ProviderConfig `json:"config"`
	CreatedAt time.Time      `json:"created_at"`
	Version   int64          `json:"version"`
}

func (s *Service) showProvider(p Provider) ProviderView {
	return ProviderView{ID: p.ID, Name: p.Name, Enabled: p.Enabled, HasSecret: p.HasSecret, Callback: s.callback(p), LogoutURI: s.logoutAddress(p),
		Config: p.Config, CreatedAt: p.CreatedAt, Version: p.Version}
}

// IdentityView is a link to a provider as the API shows it.
type IdentityView struct {
	ID        string    `json:"id"`
	Provider  string    `json:"provider" doc:"The provider's name."`
	Label     string    `json:"label"`
	Subject   string    `json:"subject"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by" doc:"self, first sign-in, a rule, or an administrator's ID."`
	LastUsed  time.Time `json:"last_used,omitzero"`
}

func showIdentity(i Identity) IdentityView {
	return IdentityView{ID: i.ID, Provider: i.ProviderName, Label: i.Label, Subject: i.Subject,
		CreatedAt: i.CreatedAt, CreatedBy: i.CreatedBy, LastUsed: i.LastUsed}
}

type nameInput struct {
	Provider string `path:"provider" maxLength:"40"`
}

type beginSSOOutput struct {
	SetCookie []http.Cookie `header:"Set-Cookie"`
	Body      struct {
		URL string `json:"url" doc:"Send the browser there."`
	}
}

type finishSSOInput struct {
	Provider string `path:"provider" maxLength:"40"`
	Agent    string `header:"User-Agent"`
	Kept     string `cookie:"__Host-caponier-sso"`
	Body     struct {
		Code        string `json:"code,omitempty" maxLength:"4096"`
		State       string `json:"state,omitempty" maxLength:"200"`
		Issuer      string `json:"iss,omitempty" maxLength:"500"`
		Error       string `json:"error,omitempty" maxLength:"200"`
		Description string `json:"error_description,omitempty" maxLength:"2000"`
	}
}

type finishSSOOutput struct {
	SetCookie []http.Cookie `header:"Set-Cookie"`
	Body      struct {
		ExpiresAt time.Time     `json:"expires_at,omitzero"`
		Session   string        `json:"session_id,omitempty"`
		User      user.UserView `json:"user"`
		Linked    bool          `json:"linked,omitempty" doc:"It was somebody signed in who linked his identity; his session goes on."`
	}
}

type providersOutput struct{ Body api.Page[ProviderView] }

type providerOutput struct {
	ETag string `header:"ETag"`
	Body ProviderView
}

// ProviderDraft is what describes a provider to create or change.
type ProviderDraft struct {
	Name    string         `json:"name" maxLength:"40" example:"corp" doc:"Part of the redirect URI."`
	Enabled bool           `json:"enabled"`
	Secret  *string        `json:"secret,omitempty" maxLength:"1000" doc:"Client secret; left out = as it is, empty = a public client."`
	Config  ProviderConfig `json:"config"`
}

type createProviderInput struct{ Body ProviderDraft }

type putProviderInput struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
	Body    ProviderDraft
}

type deleteInput struct {
	ID      string `path:"id" maxLength:"40"`
	IfMatch string `header:"If-Match"`
}

type testOutput struct {
	Body struct {
		OK    bool   `json:"ok"`
		Steps []Step `json:"steps"`
	}
}

type identitiesOutput struct{ Body api.Page[IdentityView] }

type linkInput struct {
	ID   string `path:"id" maxLength:"40"`
	Body struct {
		Provider string `json:"provider" maxLength:"40"`
		Subject  string `json:"subject" minLength:"1" maxLength:"255" doc:"The claim sub of his ID tokens."`
	}
}

type identityOutput struct{ Body IdentityView }

type beginLinkInput struct {
	ID   string `path:"id" maxLength:"40" example:"me"`
	Body struct {
		Provider string `json:"provider" maxLength:"40"`
		Password string `json:"password" maxLength:"256" doc:"Your present password; empty if you have none and signed in just now."`
		Code     string `json:"code,omitempty" maxLength:"32"`
	}
}

func (s *Service) ssoRoutes(f *api.Frame) {
	op := func(method, path, id, summary, tag string, who api.Who) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: tag, Who: who, Sensitive: true, MaxBody: 256 << 10}
	}
	const tag = "single-sign-on"
	api.Register(f, op(http.MethodPost, "/login/sso/{provider}", "begin-sso", "Begin a single sign-on", "login", api.Public()), s.handleBeginSSO)
	api.Register(f, op(http.MethodPost, "/login/sso/{provider}/callback", "finish-sso", "Finish a single sign-on with what the provider sent back; opens a console session", "login", api.Public()), s.handleFinishSSO)
	logout := op(http.MethodPost, "/login/sso/{provider}/logout", "sso-backchannel-logout", "A single sign-on provider says that a session ended there (OpenID Connect Back-Channel Logout 1.0)", "login", api.Public())
	logout.MaxBody, logout.Status = 64<<10, http.StatusOK
	api.Register(f, logout, s.handleLogout)
	api.Register(f, op(http.MethodGet, "/login/logout-url", "get-logout-url", "Where to go on after signing out, to sign out at the single sign-on provider, too", "login", api.Self()), s.handleLogoutURL)
	api.Register(f, op(http.MethodGet, "/sso-providers", "list-sso-providers", "List single sign-on providers", tag, api.Needs(api.SettingsView)), s.handleProviders)
	create := op(http.MethodPost, "/sso-providers", "create-sso-provider", "Add a single sign-on provider; needs every permission", tag, api.Needs(api.SettingsManage))
	create.Status = http.StatusCreated
	api.Register(f, create, s.handleCreateProvider)
	api.Register(f, op(http.MethodGet, "/sso-providers/{id}", "get-sso-provider", "Show a single sign-on provider", tag, api.Needs(api.SettingsView)), s.handleProvider)
	api.Register(f, op(http.MethodPut, "/sso-providers/{id}", "put-sso-provider", "Change a single sign-on provider; needs every permission", tag, api.Needs(api.SettingsManage)), s.handlePutProvider)
	api.Register(f, op(http.MethodDelete, "/sso-providers/{id}", "delete-sso-provider", "Remove a provider and every link to it", tag, api.Needs(api.SettingsManage)), s.handleDeleteProvider)
	api.Register(f, op(http.MethodPost, "/sso-providers/{id}/test", "test-sso-provider", "Test a provider step by step, without signing in", tag, api.Needs(api.SettingsManage)), s.handleTestProvider)
	api.Register(f, op(http.MethodGet, "/users/{id}/identities", "list-identities", "List who a user is at single sign-on providers", "users", api.Self()), s.handleIdentities)
	link := op(http.MethodPost, "/users/{id}/identities", "link-identity", "Say who a user is at a provider; needs every permission", "users", api.Needs(api.UsersManage))
	link.Status = http.StatusCreated
	api.Register(f, link, s.handleLink)
	api.Register(f, op(http.MethodPost, "/users/{id}/identities/begin", "begin-own-identity", "Begin to link your own identity at a provider", "users", api.Self()), s.handleBeginLink)
	api.Register(f, op(http.MethodDelete, "/users/{id}/identities/{part}", "unlink-identity", "Unlink an identity and end other logins", "users", api.Self()), s.handleUnlink)
}

func flowCookie(kept string, maxAge int) http.Cookie {
	return http.Cookie{Name: FlowCookie, Value: kept, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: maxAge}
}

func (s *Service) handleBeginSSO(ctx context.Context, in *nameInput) (*beginSSOOutput, error) {
	return s.begin(ctx, in.Provider, nil)
}

func (s *Service) begin(ctx context.Context, provider string, link *api.Principal) (*beginSSOOutput, error) {
	address, kept, err := s.beginSSO(ctx, provider, link)
	if err != nil {
		return nil, err
	}
	out := &beginSSOOutput{SetCookie: []http.Cookie{flowCookie(kept, int(flowLife.Seconds()))}}
	out.Body.URL = address
	return out, nil
}

func (s *Service) handleFinishSSO(ctx context.Context, in *finishSSOInput) (*finishSSOOutput, error) {
	source := api.SourceFrom(ctx)
	done, err := s.users.Attempt(ctx, ssoBucket, source, "console")
	if err != nil {
		return nil, user.LoginProblem(err)
	}
	failed := false
	defer func() { done(failed) }()
	b, began := in.Body, s.now()
	arrival := user.Arrival{Methods: []string{"sso"}, Source: source, Via: "console"}
	p, f, who, err := s.finishSSO(ctx, in.Provider, in.Kept, answer{b.Code, b.State, b.Issuer, b.Error, b.Description})
	if err == nil {
		if why := p.Config.admits(who); why != "" {
			err = ssoProblem(403, "sso_not_admitted", p.Config.Label+" knows you, but you may not come in.", "Because "+why+".")
		}
	}
	if err == nil && f.LinkUser != "" {
		err = s.checkLinker(ctx, f)
	}
	var userID string
	if err == nil {
		userID, err = s.resolve(ctx, p, f, who, source)
	}
	if err != nil {
		if problem, ok := errors.AsType[*api.Problem](err); ok {
			failed = problem.Status == http.StatusForbidden
			arrival.Fields = map[string]string{"provider": in.Provider}
			if err := s.users.RefuseArrival(ctx, arrival, problem.Code); err != nil {
				return nil, err
			}
		}
		return nil, err
	}
	out := &finishSSOOutput{SetCookie: []http.Cookie{flowCookie("", -1)}}
	if f.LinkUser != "" {
		u, err := s.users.Get(ctx, userID)
		out.Body.User, out.Body.Linked = user.Show(u), true
		return out, err
	}
	arrival.UserID, arrival.MFA, arrival.Fields = userID, who.MFA, map[string]string{"provider": p.ID}
	principal, err := s.users.Arrive(ctx, arrival)
	if err != nil {
		return nil, user.LoginProblem(err)
	}
	opened, err := s.users.Answer(ctx, principal, user.CookieSession, in.Agent, user.Origin{Provider: p.ID, Session: who.Session})
	if err != nil {
		return nil, err
	}
	if gone, err := s.loggedOutSince(ctx, p, who, began); err != nil || gone {
		if err := s.users.CloseSession(ctx, audit.By(principal), principal.UserID, opened.Body.Session); err != nil {
			return nil, err
		}
		if err != nil {
			return nil, err
		}
		return nil, ssoProblem(403, "sso_logged_out", "You were signed out at "+p.Config.Label+" meanwhile.", "Begin again.")
	}
	out.SetCookie = append(out.SetCookie, opened.SetCookie...)
	out.Body.ExpiresAt, out.Body.Session, out.Body.User = opened.Body.ExpiresAt, opened.Body.Session, opened.Body.User
	return out, nil
}

// checkLinker makes sure that who began to link himself is who is here.
func (s *Service) checkLinker(ctx context.Context, f flow) error {
	p := api.PrincipalFrom(ctx)
	if p == nil || p.UserID != f.LinkUser || p.Session != f.LinkSession {
		return ssoProblem(409, "sign_in_stale", "You signed out meanwhile.", "Sign in and link again.")
	}
	return nil
}

type logoutURLOutput struct {
	Body struct {
		URL string `json:"url" doc:"Empty: nowhere."`
	}
}

// handleLogoutURL is asked before POST /logout.
func (s *Service) handleLogoutURL(ctx context.Context, _ *struct{}) (*logoutURLOutput, error) {
	provider, err := s.users.SessionProvider(ctx, api.PrincipalFrom(ctx).Session)
	if err != nil {
		return nil, err
	}
	out := &logoutURLOutput{}
	if provider != "" {
		out.Body.URL = s.LogoutURL(ctx, provider)
	}
	return out, nil
}

// LogoutURL is where to send a browser to sign out at the provider its session
// came by, or "" (OpenID Connect RP-Initiated Logout 1.0 §2).
func (s *Service) LogoutURL(ctx context.Context, providerID string) string {
	p, err := s.Provider(ctx, s.db, providerID)
	if err != nil || !p.Enabled || !p.Config.Logout {
		return ""
	}
	d, err := s.providers.get(ctx, p, s.now())
	if err != nil {
		s.log.Warn("cannot sign out at the single sign-on provider", "provider", p.Name, "err", err)
		return ""
	}
	var m metadata
	if d.provider.Claims(&m) != nil {
		return ""
	}
	return endSession(m.EndSession, p.Config.ClientID, s.url.JoinPath("sign-in").String())
}

func (s *Service) handleProviders(ctx context.Context, _ *struct{}) (*providersOutput, error) {
	list, err := s.Providers(ctx, s.db)
	if err != nil {
		return nil, err
	}
	return &providersOutput{api.Page[ProviderView]{Items: shown(list, s.showProvider)}}, nil
}

func (s *Service) providerAnswer(p Provider, err error) (*providerOutput, error) {
	if err != nil {
		return nil, err
	}
	return &providerOutput{api.ETag(p.Version), s.showProvider(p)}, nil
}

// mayDecideWhoComesIn refuses whoever lacks a permission: a provider or an
// authority can bring in anybody, administrators too.
func mayDecideWhoComesIn(ctx context.Context) error { return user.MayGive(ctx, user.AllPermissions) }

func (s *Service) handleCreateProvider(ctx context.Context, in *createProviderInput) (*providerOutput, error) {
	if err := mayDecideWhoComesIn(ctx); err != nil {
		return nil, err
	}
	b := in.Body
	return s.providerAnswer(s.putProvider(ctx, actorOf(ctx), "", nil, b.Name, b.Enabled, b.Secret, b.Config))
}

func (s *Service) handleProvider(ctx context.Context, in *idInput) (*providerOutput, error) {
	p, err := s.Provider(ctx, s.db, in.ID)
	return s.providerAnswer(p, missing("provider", in.ID, err))
}

func (s *Service) handlePutProvider(ctx context.Context, in *putProviderInput) (*providerOutput, error) {
	if err := mayDecideWhoComesIn(ctx); err != nil {
		return nil, err
	}
	b := in.Body
	p, err := s.putProvider(ctx, actorOf(ctx), in.ID, matchVersion(in.IfMatch), b.Name, b.Enabled, b.Secret, b.Config)
	return s.providerAnswer(p, missing("provider", in.ID, err))
}

func (s *Service) handleDeleteProvider(ctx context.Context, in *deleteInput) (*struct{}, error) {
	if err := mayDecideWhoComesIn(ctx); err != nil {
		return nil, err
	}
	return nil, missing("provider", in.ID, s.deleteProvider(ctx, actorOf(ctx), in.ID, matchVersion(in.IfMatch)))
}

func (s *Service) handleTestProvider(ctx context.Context, in *idInput) (*testOutput, error) {
	p, err := s.Provider(ctx, s.db, in.ID)
	if err != nil {
		return nil, missing("provider", in.ID, err)
	}
	out := &testOutput{}
	out.Body.OK, out.Body.Steps, err = s.test(ctx, p)
	if err != nil {
		return nil, err
	}
	outcome := audit.OK
	if !out.Body.OK {
		outcome = audit.Failed
	}
	return out, s.audit.Write(ctx, audit.Event{Type: audit.SSOTested, Outcome: outcome, Actor: actorOf(ctx),
		Object: audit.Object{Kind: "sso_provider", ID: p.ID, Name: p.Name}})
}

func (s *Service) handleIdentities(ctx context.Context, in *idInput) (*identitiesOutput, error) {
	id, _, err := s.users.SelfOrPermitted(ctx, in.ID, api.UsersView)
	if err != nil {
		return nil, err
	}
	list, err := identities(ctx, s.db, sqlIdentitiesOfUser, id)
	if err != nil {
		return nil, err
	}
	return &identitiesOutput{api.Page[IdentityView]{Items: shown(list, showIdentity)}}, nil
}

func (s *Service) handleLink(ctx context.Context, in *linkInput) (*identityOutput, error) {
	if err := mayDecideWhoComesIn(ctx); err != nil {
		return nil, err
	}
	id, _, err := s.users.SelfOrPermitted(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	if _, err := s.users.Get(ctx, id); err != nil {
		return nil, missing("user", in.ID, err)
	}
	i, err := s.LinkIdentity(ctx, actorOf(ctx), id, in.Body.Provider, in.Body.Subject)
	if err != nil {
		return nil, err
	}
	return &identityOutput{showIdentity(i)}, nil
}

func (s *Service) handleBeginLink(ctx context.Context, in *beginLinkInput) (*beginSSOOutput, error) {
	p, err := onlyOwn(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	if err := s.users.Reauthenticate(ctx, p, in.Body.Password, in.Body.Code); err != nil {
		return nil, err
	}
	return s.begin(ctx, in.Body.Provider, p)
}

func (s *Service) handleUnlink(ctx context.Context, in *partInput) (*struct{}, error) {
	id, own, err := s.users.SelfOrPermitted(ctx, in.ID, api.UsersManage)
	if err != nil {
		return nil, err
	}
	keep := ""
	if own {
		keep = api.PrincipalFrom(ctx).Session
	}
	return nil, missing("identity", in.Part, s.Unlink(ctx, actorOf(ctx), id, in.Part, keep))
}

func matchVersion(ifMatch string) func(int64) error {
	return func(version int64) error { return api.CheckMatch(ifMatch, version) }
}
