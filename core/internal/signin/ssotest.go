package signin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// Step is one thing a test of a provider looked at.
type Step struct {
	Name string  `json:"name"`
	OK   bool    `json:"ok"`
	MS   float64 `json:"ms"`
	Text string  `json:"text"`
	Fix  string  `json:"fix,omitempty"`
}

// test goes through what a sign-in needs of a provider, and stops at the first
// thing that makes the rest pointless.
func (s *Service) test(ctx context.Context, p Provider) (bool, []Step, error) {
	secret, err := s.secret(p)
	if err != nil {
		return false, nil, err
	}
	t := &trial{s: s, p: p, secret: secret, client: s.providers.client(p), ok: true}
	for _, step := range []struct {
		name string
		run  func(context.Context) (text, fix string, ok bool)
		must bool
	}{
		{"discovery", t.discovery, true},
		{"clock", t.clock, false},
		{"keys", t.keys, false},
		{"capabilities", t.capabilities, false},
		{"client", t.clientSecret, false},
		{"redirect", t.redirect, false},
		{"logout", t.logout, false},
	} {
		began := time.Now()
		text, fix, ok := step.run(ctx)
		t.steps = append(t.steps, Step{Name: step.name, OK: ok, MS: float64(time.Since(began).Microseconds()) / 1000, Text: text, Fix: fix})
		t.ok = t.ok && ok
		if !ok && step.must {
			break
		}
	}
	return t.ok, t.steps, nil
}

type trial struct {
	s      *Service
	p      Provider
	secret string
	client *http.Client
	ok     bool
	steps  []Step

	date     string // Date header of the discovery document
	meta     metadata
	provider *oidc.Provider
}

func (t *trial) fetch(ctx context.Context, url string, into any) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := t.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", url, res.Status)
	}
	return res, json.NewDecoder(res.Body).Decode(into)
}

func (t *trial) discovery(ctx context.Context) (text, fix string, ok bool) {
	url := strings.TrimSuffix(t.p.Config.Issuer, "/") + "/.well-known/openid-configuration"
	res, err := t.fetch(ctx, url, &t.meta)
	if err != nil {
		fix = "Check the issuer's address, that this server can reach it, and the CA certificate."
		if strings.Contains(err.Error(), "certificate") {
			fix = "Put the CA of the provider's certificate into ca_pem."
		}
		return plain(err.Error()), fix, false
	}
	t.date = res.Header.Get("Date")
	if t.provider, err = oidc.NewProvider(oidc.ClientContext(ctx, t.client), t.p.Config.Issuer); err != nil {
		return plain(err.Error()), "Write the issuer exactly as the provider does, with or without a slash at the end.", false
	}
	return "The provider describes itself at " + url + ".", "", true
}

func (t *trial) clock(context.Context) (text, fix string, ok bool) {
	there, err := http.ParseTime(t.date)
	if err != nil {
		return "The provider sends no Date; its clock cannot be compared.", "", true
	}
	off := t.s.now().Sub(there).Abs()
	if off > clockSkew {
		return fmt.Sprintf("The clocks differ by %s.", off.Round(time.Second)), "Set both clocks by NTP: sign-ins fail beyond one minute.", false
	}
	return fmt.Sprintf("The clocks agree to %s.", max(off.Round(time.Second), time.Second)), "", true
}

func (t *trial) keys(ctx context.Context) (text, fix string, ok bool) {
	var set struct {
		Keys []struct {
			Alg string `json:"alg"`
			Kty string `json:"kty"`
		} `json:"keys"`
	}
	if _, err := t.fetch(ctx, t.meta.JWKS, &set); err != nil {
		return plain(err.Error()), "The provider's jwks_uri must be reachable from this server.", false
	}
	if len(set.Keys) == 0 {
		return "The provider publishes no keys.", "Its ID tokens cannot be verified; look at its signing settings.", false
	}
	return fmt.Sprintf("%d keys to verify ID tokens with.", len(set.Keys)), "", true
}

func (t *trial) capabilities(context.Context) (text, fix string, ok bool) {
	signs := slices.ContainsFunc(t.meta.Algorithms, func(a string) bool {
		return strings.HasPrefix(a, "RS") || strings.HasPrefix(a, "ES") || strings.HasPrefix(a, "PS") || a == "EdDSA"
	})
	e := t.provider.Endpoint()
	switch {
	case len(t.meta.Algorithms) > 0 && !signs:
		return "It signs ID tokens only with " + plain(strings.Join(t.meta.Algorithms, ", ")) + ".", "Use an asymmetric algorithm such as RS256 or ES256.", false
	case !strings.HasPrefix(e.AuthURL, "https://") || !strings.HasPrefix(e.TokenURL, "https://"):
		return "Its addresses are not all https.", "Look at the provider's public address setting.", false
	case len(t.meta.Challenges) > 0 && !slices.Contains(t.meta.Challenges, "S256"):
		return "It does not list PKCE with S256.", "Sign-ins send it all the same; a provider that refuses it cannot be used.", false
	case t.p.Config.Logout && t.meta.EndSession == "":
		return "It has no address to sign out at.", "Switch logout off.", false
	}
	return "Signature algorithms, addresses and PKCE are as needed.", "", true
}

// clientSecret shows a code that cannot be right: what the provider complains
// about tells whether it knows the client.
func (t *trial) clientSecret(ctx context.Context) (text, fix string, ok bool) {
	o := t.s.oauth(t.p, t.provider, t.secret)
	_, err := o.Exchange(oidc.ClientContext(ctx, t.client), "caponier-test", oauth2.VerifierOption(oauth2.GenerateVerifier()))
	r, refused := errors.AsType[*oauth2.RetrieveError](err)
	switch {
	case err == nil:
		return "The provider accepted a made-up code.", "Do not use this provider.", false
	case !refused:
		return plain(err.Error()), "The token endpoint must be reachable from this server.", false
	case r.ErrorCode == "invalid_grant":
		return "The provider knows the client and its secret.", "", true
	case r.ErrorCode == "invalid_client" || r.ErrorCode == "unauthorized_client" || r.Response.StatusCode == http.StatusUnauthorized:
		return "The provider does not accept client id and secret.", "Copy both again from the provider's client settings.", false
	}
	return "The provider answered " + plain(r.ErrorCode+" "+r.ErrorDescription) + ".", "Look at the client's settings there: authorization code must be allowed.", false
}

func (t *trial) redirect(context.Context) (text, fix string, ok bool) {
	return "Register this redirect URI at the provider: " + t.s.callback(t.p), "", true
}

// logout is no fault when it is missing: sessions have limits of their own.
func (t *trial) logout(context.Context) (text, fix string, ok bool) {
	if !t.meta.TellsLogout {
		return "The provider does not say that it tells when somebody signs out there (backchannel_logout_supported): sessions here live on to their own limits then.", "", true
	}
	text = "Register this back-channel logout URI at the provider, so that a session that ends there ends here: " + t.s.logoutAddress(t.p)
	if !t.meta.TellsSession {
		text += ". It names the person only: all sessions of his end at once."
	}
	return text, "", true
}
