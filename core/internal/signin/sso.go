package signin

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"caponier/core/internal/api"
	"caponier/core/internal/db"
)

// Bounds of what a provider may make core wait for, read and remember.
const (
	providerTimeout = 10 * time.Second
	providerAnswer  = 1 << 20
	providerFresh   = time.Hour
	// clockSkew is how far a provider's clock may be off.
	clockSkew = time.Minute
)

// flowLife is how long a person may take at his provider.
const flowLife = 10 * time.Minute

const flowKind = "sso-flow"

// FlowCookie binds a single sign-on to the browser that began it. It is
// SameSite=Strict: the provider sends the browser back to a page of the
// console, which sends code and state on by itself, so that cookie and session
// are never needed on a request that another site caused.
const FlowCookie = "__Host-caponier-sso"

// flow is what a browser brings back, sealed, with the provider's answer.
type flow struct {
	Provider string `json:"p"` // ID
	State    string `json:"s"`
	Nonce    string `json:"n"`
	Verifier string `json:"v"` // PKCE, RFC 7636
	// LinkUser is set when somebody signed in links himself; LinkSession is the
	// session he must still have.
	LinkUser    string `json:"u,omitempty"`
	LinkSession string `json:"l,omitempty"`
}

// providerCache keeps discovery documents and keys of providers for a while.
type providerCache struct {
	transport *http.Transport

	mu   sync.Mutex
	byID map[string]discovered // guarded by mu; at most maxProviders
}

type discovered struct {
	version  int64
	at       time.Time
	provider *oidc.Provider
	client   *http.Client
}

func newProviderCache(t *http.Transport) *providerCache {
	if t == nil {
		t = http.DefaultTransport.(*http.Transport)
	}
	return &providerCache{transport: t, byID: map[string]discovered{}}
}

// client makes the HTTP client for one provider. Redirects are not followed: a
// provider's addresses are what its discovery document says.
func (c *providerCache) client(p Provider) *http.Client {
	t := c.transport.Clone()
	t.MaxResponseHeaderBytes = 64 << 10
	if p.Config.CA != "" {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(p.Config.CA))
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{
		Timeout: providerTimeout, Transport: bounded{t},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// bounded limits how much of an answer is read, and speaks TLS only.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" {
		return nil, fmt.Errorf("%s is not an https address", r.URL.Redacted())
	}
	res, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(res.Body, providerAnswer), res.Body}
	return res, nil
}

// get returns a provider's discovery document, fetched at most an hour ago.
func (c *providerCache) get(ctx context.Context, p Provider, now time.Time) (discovered, error) {
	c.mu.Lock()
	d, ok := c.byID[p.ID]
	c.mu.Unlock()
	if ok && d.version == p.Version && now.Sub(d.at) < providerFresh {
		return d, nil
	}
	client := c.client(p)
	// The library keeps the context to fetch keys with; it must outlive the request.
	provider, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), client), p.Config.Issuer)
	if err != nil {
		return discovered{}, err
	}
	d = discovered{version: p.Version, at: now, provider: provider, client: client}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byID) >= maxProviders {
		clear(c.byID)
	}
	c.byID[p.ID] = d
	return d, nil
}

// metadata is what else core reads of a discovery document.
type metadata struct {
	EndSession   string   `json:"end_session_endpoint"`
	Challenges   []string `json:"code_challenge_methods_supported"`
	IssParameter bool     `json:"authorization_response_iss_parameter_supported"` // RFC 9207
	JWKS         string   `json:"jwks_uri"`
	Algorithms   []string `json:"id_token_signing_alg_values_supported"`
	TellsLogout  bool     `json:"backchannel_logout_supported"`
	TellsSession bool     `json:"backchannel_logout_session_supported"`
}

// callback is where a provider sends people back to; each has its own, so that
// the answer of one cannot be taken for another's.
func (s *Service) callback(p Provider) string {
	return s.url.JoinPath("sign-in", "sso", p.Name).String()
}

func (s *Service) oauth(p Provider, o *oidc.Provider, secret string) oauth2.Config {
	return oauth2.Config{ClientID: p.Config.ClientID, ClientSecret: secret, Endpoint: endpoint(o, secret),
		RedirectURL: s.callback(p), Scopes: p.Config.Scopes}
}

// endpoint says how the client secret travels: as the provider wants it, by
// default in the Authorization header (OpenID Connect Discovery §3). The
// library would try both, and show a code twice.
func endpoint(o *oidc.Provider, secret string) oauth2.Endpoint {
	e := o.Endpoint()
	e.AuthStyle = oauth2.AuthStyleInHeader
	var m struct {
		Methods []string `json:"token_endpoint_auth_methods_supported"`
	}
	if err := o.Claims(&m); secret == "" || err == nil && slices.Contains(m.Methods, "client_secret_post") && !slices.Contains(m.Methods, "client_secret_basic") {
		e.AuthStyle = oauth2.AuthStyleInParams
	}
	return e
}

// beginSSO sends a browser to a provider: the address, and what the browser
// keeps meanwhile.
func (s *Service) beginSSO(ctx context.Context, name string, link *api.Principal) (address, kept string, err error) {
	p, d, err := s.reach(ctx, name)
	if err != nil {
		return "", "", err
	}
	f := flow{Provider: p.ID, State: rand.Text(), Nonce: rand.Text(), Verifier: oauth2.GenerateVerifier()}
	if link != nil {
		f.LinkUser, f.LinkSession = link.UserID, link.Session
	}
	if kept, err = s.sealState(flowKind, f, flowLife); err != nil {
		return "", "", err
	}
	o := s.oauth(p, d.provider, "")
	return o.AuthCodeURL(f.State, oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier)), kept, nil
}

// reach finds an enabled provider and its discovery document.
func (s *Service) reach(ctx context.Context, name string) (Provider, discovered, error) {
	p, err := s.Provider(ctx, s.db, name)
	if errors.Is(err, db.ErrNotFound) || err == nil && !p.Enabled {
		return p, discovered{}, ssoProblem(404, "sso_unknown", "There is no such way to sign in.", "Choose another on the sign-in page.")
	}
	if err != nil {
		return p, discovered{}, err
	}
	d, err := s.providers.get(ctx, p, s.now())
	if err != nil {
		s.log.Warn("single sign-on provider does not answer as it should", "provider", p.Name, "err", err)
		return p, d, ssoProblem(502, "sso_unreachable", p.Config.Label+" does not answer.", "Try again in a minute, or sign in another way. An administrator can test the provider.")
	}
	return p, d, nil
}

func ssoProblem(status int, code, title, detail string) *api.Problem {
	return &api.Problem{Status: status, Title: title, Code: code, Detail: detail}
}

// answer is what a provider sent back by way of the browser.
type answer struct {
	Code, State, Issuer string
	Error, Description  string
}

// finishSSO checks a provider's answer and says who it is about.
func (s *Service) finishSSO(ctx context.Context, name, kept string, a answer) (Provider, flow, person, error) {
	var f flow
	fail := func(err error) (Provider, flow, person, error) { return Provider{}, f, person{}, err }
	if err := s.openState(flowKind, kept, &f); err != nil {
		return fail(err)
	}
	if subtle.ConstantTimeCompare([]byte(f.State), []byte(a.State)) != 1 {
		return fail(errStale)
	}
	p, d, err := s.reach(ctx, name)
	if err != nil {
		return fail(err)
	}
	if p.ID != f.Provider {
		return fail(errStale)
	}
	if err := s.spend(ctx, s.db, kept, flowLife); err != nil {
		return fail(err)
	}
	if a.Error != "" {
		return fail(refusedThere(p, a))
	}
	var m metadata
	if err := d.provider.Claims(&m); err != nil {
		return fail(fmt.Errorf("read discovery document: %w", err))
	}
	if a.Issuer != "" && a.Issuer != p.Config.Issuer || a.Issuer == "" && m.IssParameter {
		return fail(ssoProblem(403, "sso_wrong_issuer", "The answer is not from "+p.Config.Label+".", "Begin again at the sign-in page."))
	}
	claims, err := s.exchange(ctx, p, d, f, a.Code)
	if err != nil {
		return fail(err)
	}
	return p, f, readClaims(p.Config, claims), nil
}

func refusedThere(p Provider, a answer) error {
	detail := "It said: " + plain(a.Error+" "+a.Description)
	if a.Error == "access_denied" {
		detail = "You cancelled, or you may not use Caponier there."
	}
	return ssoProblem(403, "sso_refused", p.Config.Label+" did not sign you in.", detail)
}

// plain bounds text of others before people read it.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return strings.TrimSpace(cutText(s, 200))
}

// exchange turns the code into the claims of a verified ID token (OpenID
// Connect Core §3.1.3), completed by those of the user info endpoint.
func (s *Service) exchange(ctx context.Context, p Provider, d discovered, f flow, code string) (map[string]any, error) {
	secret, err := s.secret(p)
	if err != nil {
		return nil, err
	}
	ctx = oidc.ClientContext(ctx, d.client)
	o := s.oauth(p, d.provider, secret)
	tok, err := o.Exchange(ctx, code, oauth2.VerifierOption(f.Verifier))
	if err != nil {
		return nil, s.exchangeProblem(p, err)
	}
	raw, _ := tok.Extra("id_token").(string)
	if raw == "" || len(raw) > 256<<10 {
		return nil, ssoProblem(502, "sso_no_token", p.Config.Label+" sent no ID token.", "An administrator must look at the provider's client settings.")
	}
	v := d.provider.Verifier(&oidc.Config{ClientID: p.Config.ClientID, Now: func() time.Time { return s.now().Add(-clockSkew) }})
	id, err := v.Verify(ctx, raw)
	if err != nil {
		return nil, s.tokenProblem(p, err)
	}
	var claims map[string]any
	if err := id.Claims(&claims); err != nil {
		return nil, s.tokenProblem(p, err)
	}
	if why := s.checkToken(p, f, id, tok, claims); why != nil {
		return nil, s.tokenProblem(p, why)
	}
	return claims, s.complete(ctx, p, d, tok, id.Subject, claims)
}

// checkToken is what the library leaves to its caller.
func (s *Service) checkToken(p Provider, f flow, id *oidc.IDToken, tok *oauth2.Token, claims map[string]any) error {
	azp, _ := claims["azp"].(string)
	switch {
	case subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(f.Nonce)) != 1:
		return errors.New("the nonce is not ours")
	case azp != "" && azp != p.Config.ClientID || azp == "" && len(id.Audience) > 1:
		return errors.New("it is for another client (azp)")
	case id.IssuedAt.After(s.now().Add(clockSkew)):
		return errClock
	case id.AccessTokenHash != "":
		return id.VerifyAccessToken(tok.AccessToken)
	}
	return nil
}

var errClock = errors.New("it was issued in the future")

// complete adds claims of the user info endpoint where the ID token lacks some
// that the rules want.
func (s *Service) complete(ctx context.Context, p Provider, d discovered, tok *oauth2.Token, subject string, claims map[string]any) error {
	c := p.Config
	lacks := find(claims, c.NameClaim) == nil || find(claims, c.EmailClaim) == nil || len(c.Roles) > 0 && find(claims, c.GroupsClaim) == nil
	if !lacks || d.provider.UserInfoEndpoint() == "" {
		return nil
	}
	info, err := d.provider.UserInfo(ctx, oauth2.StaticTokenSource(tok))
	if err != nil {
		return s.tokenProblem(p, fmt.Errorf("user info: %w", err))
	}
	if info.Subject != subject {
		return s.tokenProblem(p, errors.New("the user info is about somebody else"))
	}
	var more map[string]any
	if err := info.Claims(&more); err != nil {
		return s.tokenProblem(p, err)
	}
	for name, v := range more {
		// What says how somebody signed in counts only if signed.
		if _, have := claims[name]; !have && name != "amr" && name != "acr" {
			claims[name] = v
		}
	}
	return nil
}

func (s *Service) exchangeProblem(p Provider, err error) error {
	if r, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		s.log.Warn("single sign-on provider refused the code", "provider", p.Name, "status", r.Response.StatusCode, "code", plain(r.ErrorCode))
		if r.ErrorCode == "invalid_client" || r.ErrorCode == "unauthorized_client" {
			return ssoProblem(502, "sso_client", p.Config.Label+" does not accept Caponier's client secret.", "An administrator must correct it under single sign-on.")
		}
		return ssoProblem(403, "sso_code", p.Config.Label+" did not accept the sign-in.", "It took too long, or was used before. Begin again.")
	}
	s.log.Warn("single sign-on provider does not answer as it should", "provider", p.Name, "err", err)
	return ssoProblem(502, "sso_unreachable", p.Config.Label+" does not answer.", "Try again in a minute, or sign in another way.")
}

func (s *Service) tokenProblem(p Provider, err error) error {
	s.log.Warn("single sign-on refused: the ID token is not good", "provider", p.Name, "err", err)
	if _, expired := errors.AsType[*oidc.TokenExpiredError](err); expired || errors.Is(err, errClock) {
		return ssoProblem(403, "sso_clock", "The clocks of "+p.Config.Label+" and this server differ.", "Tell an administrator: both need the right time.")
	}
	return ssoProblem(403, "sso_token", p.Config.Label+"'s answer could not be verified.", "Begin again; if it stays so, an administrator can test the provider.")
}
