package signin

import (
	"context"
	"net/http"
	"net/url"

	"caponier/core/internal/api"
	"caponier/core/internal/audit"
	"caponier/core/internal/user"
)

// OptionView is a way to sign in by a provider, for the sign-in page.
type OptionView struct {
	Name  string `json:"name"`
	Label string `json:"label"`
}

type optionsOutput struct {
	Body struct {
		Setup       bool         `json:"setup" doc:"There is no administrator yet: use POST /setup with the code core printed."`
		Passkeys    bool         `json:"passkeys"`
		SSO         []OptionView `json:"sso"`
		Certificate string       `json:"certificate_url,omitempty" doc:"Where to sign in with a client certificate."`
	}
}

// Routes registers the room's operations.
func (s *Service) Routes(f *api.Frame) {
	op := func(method, path, id, summary string) api.Op {
		return api.Op{Method: method, Path: path, ID: id, Summary: summary, Tag: "login", Who: api.Public(), Sensitive: true, MaxBody: 4 << 10}
	}
	api.Register(f, op(http.MethodGet, "/login/options", "get-login-options", "Show which ways to sign in there are"), s.handleOptions)
	api.Register(f, op(http.MethodPost, "/setup", "set-up", "Create the first administrator with the code core printed"), s.handleSetup)
	s.passkeyRoutes(f)
	s.ssoRoutes(f)
	s.certificateRoutes(f)
}

func (s *Service) handleOptions(ctx context.Context, _ *struct{}) (*optionsOutput, error) {
	out := &optionsOutput{}
	b := &out.Body
	var err error
	if b.Setup, err = s.needed(ctx, s.db); err != nil {
		return nil, err
	}
	b.Passkeys = s.passkeys != nil
	list, err := s.Providers(ctx, s.db)
	if err != nil {
		return nil, err
	}
	b.SSO = []OptionView{}
	for _, p := range list {
		if p.Enabled {
			b.SSO = append(b.SSO, OptionView{p.Name, p.Config.Label})
		}
	}
	open, err := s.CertificatesWanted(ctx)
	if open {
		b.Certificate = s.certURL
	}
	return out, err
}

// actorOf is the caller of an operation as the audit log names him.
func actorOf(ctx context.Context) audit.Actor {
	p := api.PrincipalFrom(ctx)
	if p == nil {
		return audit.Actor{Kind: "anonymous", Source: addrText(api.SourceFrom(ctx)), Via: "api"}
	}
	return audit.By(p)
}

// endSession is the address that signs out at a provider.
func endSession(endpoint, client, back string) string {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return ""
	}
	q := u.Query()
	q.Set("client_id", client)
	q.Set("post_logout_redirect_uri", back)
	u.RawQuery = q.Encode()
	return u.String()
}

var _ user.Holder = (*Service)(nil)
