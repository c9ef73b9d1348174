package signin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// idp is a small OpenID Connect provider with real discovery, keys, PKCE and
// single-use codes, and knobs to misbehave with.
type idp struct {
	t      testing.TB
	srv    *httptest.Server
	signer jose.Signer
	other  jose.Signer // a key it does not publish
	keys   jose.JSONWebKeySet
	secret string

	mu       sync.Mutex
	claims   obj                   // of the person who signs in; guarded by mu
	info     obj                   // more, from the user info endpoint; guarded by mu
	codes    map[string]url.Values // by code; guarded by mu
	token    func(claims obj)      // changes an ID token before it is signed; guarded by mu
	forge    bool                  // sign with the other key; guarded by mu
	now      func() time.Time
	document func(obj) // changes the discovery document; guarded by mu
}

func newIDP(t testing.TB, now func() time.Time, alg jose.SignatureAlgorithm) *idp {
	t.Helper()
	p := &idp{t: t, secret: "s3cret & more", codes: map[string]url.Values{}, now: now}
	makeKey := func(id string) (jose.Signer, jose.JSONWebKey) {
		var private, public any
		if alg == jose.RS256 {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			private, public = k, k.Public()
		} else {
			k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			private, public = k, k.Public()
		}
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: private, KeyID: id}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s, jose.JSONWebKey{Key: public, KeyID: id, Algorithm: string(alg), Use: "sig"}
	}
	var key jose.JSONWebKey
	p.signer, key = makeKey("one")
	p.keys.Keys = []jose.JSONWebKey{key}
	p.other, _ = makeKey("one")
	mux := http.NewServeMux()
	p.srv = httptest.NewTLSServer(mux)
	t.Cleanup(p.srv.Close)
	answer := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		doc := obj{"issuer": p.srv.URL, "authorization_endpoint": p.srv.URL + "/authorize", "token_endpoint": p.srv.URL + "/token",
			"jwks_uri": p.srv.URL + "/keys", "userinfo_endpoint": p.srv.URL + "/userinfo", "end_session_endpoint": p.srv.URL + "/logout",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
			"id_token_signing_alg_values_supported": []string{string(alg)}, "code_challenge_methods_supported": []string{"S256"}}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.document != nil {
			p.document(doc)
		}
		answer(w, 200, doc)
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, p.keys) })
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		id, secret, ok := r.BasicAuth()
		if id, _ = url.QueryUnescape(id); ok {
			secret, _ = url.QueryUnescape(secret)
		}
		if !ok || id != "caponier" || secret != p.secret {
			answer(w, 401, obj{"error": "invalid_client"})
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		asked, ok := p.codes[r.PostFormValue("code")]
		delete(p.codes, r.PostFormValue("code"))
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if !ok || asked.Get("code_challenge_method") != "S256" || base64.RawURLEncoding.EncodeToString(sum[:]) != asked.Get("code_challenge") ||
			r.PostFormValue("redirect_uri") != asked.Get("redirect_uri") {
			answer(w, 400, obj{"error": "invalid_grant"})
			return
		}
		claims := obj{"iss": p.srv.URL, "aud": "caponier", "iat": p.now().Unix(), "exp": p.now().Add(5 * time.Minute).Unix(), "nonce": asked.Get("nonce")}
		maps.Copy(claims, p.claims)
		if p.token != nil {
			p.token(claims)
		}
		signer := p.signer
		if p.forge {
			signer = p.other
		}
		raw, err := jwt.Signed(signer).Claims(claims).Serialize()
		if err != nil {
			p.t.Error(err)
		}
		answer(w, 200, obj{"access_token": "at", "token_type": "Bearer", "expires_in": 300, "id_token": raw})
	})
	mux.HandleFunc("GET /userinfo", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer at" {
			answer(w, 401, obj{})
			return
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		answer(w, 200, p.info)
	})
	return p
}

// logoutToken says that a session ended there (Back-Channel Logout 1.0 §2.4).
func (p *idp) logoutToken(change func(obj)) string {
	p.t.Helper()
	claims := obj{"iss": p.srv.URL, "aud": "caponier", "iat": p.now().Unix(), "exp": p.now().Add(2 * time.Minute).Unix(), "jti": rand.Text(),
		"events": obj{logoutEvent: obj{}}}
	if change != nil {
		change(claims)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	signer := p.signer
	if p.forge {
		signer = p.other
	}
	raw, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		p.t.Fatal(err)
	}
	return raw
}

// authorize is what the provider does with a person who has signed in there:
// the parameters it sends the browser back with.
func (p *idp) authorize(address string) url.Values {
	p.t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		p.t.Fatal(err)
	}
	q := u.Query()
	if !strings.HasPrefix(address, p.srv.URL+"/authorize?") || q.Get("response_type") != "code" || q.Get("client_id") != "caponier" || q.Get("nonce") == "" || q.Get("code_challenge") == "" {
		p.t.Fatalf("authorization request %s", address)
	}
	code := rand.Text()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.codes[code] = q
	return url.Values{"code": {code}, "state": {q.Get("state")}}
}

// is sets who signs in at the provider next.
func (p *idp) is(claims obj) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claims, p.info, p.token, p.forge = claims, nil, nil, false
}

func (p *idp) ca() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.srv.Certificate().Raw}))
}

// provider makes p a provider of the rig.
func (r *rig) provider(p *idp, change func(*ProviderConfig)) Provider {
	r.t.Helper()
	c := ProviderConfig{Label: "Corp", Issuer: p.srv.URL, ClientID: "caponier", CA: p.ca()}
	if change != nil {
		change(&c)
	}
	made, err := r.putProvider(r.t.Context(), tester, "", nil, "corp", true, &p.secret, c)
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

// sso signs in at the provider and comes back.
func (b *browser) sso(p *idp) got {
	b.t.Helper()
	var begun struct{ URL string }
	b.call("POST", "/login/sso/corp", nil).want(200, "").into(&begun)
	return b.back(p.authorize(begun.URL))
}

// back is the console's page sending on what the provider sent.
func (b *browser) back(v url.Values) got {
	b.t.Helper()
	body := obj{}
	for name := range v {
		body[name] = v.Get(name)
	}
	return b.call("POST", "/login/sso/corp/callback", body)
}
