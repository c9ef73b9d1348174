package webaccess

import (
	"net/url"
	"strings"

	"caponier/core/internal/access"
	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// view is what of a session decides about what its nodes ask for.
type view struct {
	// Live: it is open, and no decision has ended it.
	Live   bool
	Locked bool
	// Proxy and Carrier are the session's nodes.
	Proxy, Carrier string
	// Account is the login on the target; empty: its user has none.
	Account string
	// Site is the target's.
	Site  string
	Rules *rules
	// Uses counts how often each injection was given its value.
	Uses map[string]int
}

// view is the session as it is now.
func (x *session) view() view {
	o, _ := x.live.Oversight()
	d := x.live.Decision()
	x.mu.Lock()
	defer x.mu.Unlock()
	v := view{
		// The browser may be quicker than the note that it is open.
		Live: (x.state == Open || x.state == Opening) && x.live.Context().Err() == nil && d.OK() && d.Features&access.Web != 0, Locked: o.Locked,
		Proxy: x.proxy.ID, Carrier: x.carrier.ID, Account: x.row.Account, Rules: x.rules, Uses: x.uses,
	}
	if x.spec != nil {
		v.Site = x.spec.Site
	}
	return v
}

// Bounds of uses of an injection per session, where the recipe says nothing.
const (
	// bodyUses is for values put into bodies: once, and twice more when the
	// target says that it failed.
	bodyUses = 3
	// manyUses is for values that go along with requests. The webproxy keeps
	// one for a minute.
	manyUses = 10_000
)

// use is one permitted use of a credential.
type use struct {
	injection string
	kind      webrule.Kind
	values    []webrule.Value
}

// loginKind is the kind of the injections that are Recipe.Login's.
const loginKind webrule.Kind = "login"

// mayUse decides whether a webproxy gets the session's credential for one
// injection into a request to a URL. Everything that is not plainly right is
// refused, and what is given is no more than the injection needs.
func mayUse(v view, asker string, ask wire.WebCredentialAsk) (use, *wire.Error) {
	refuse := func(text string) (use, *wire.Error) { return use{}, wire.Errorf(wire.CodeRefused, "%s", text) }
	switch {
	case asker == "" || asker != v.Proxy:
		return refuse("the session is not this webproxy's")
	case !v.Live:
		return refuse("the session is over")
	case v.Locked:
		return refuse("the session is locked")
	case v.Rules == nil:
		return refuse("the session has no rules")
	case v.Account == "":
		return refuse("the session has no account")
	}
	u, err := url.Parse(ask.URL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(ask.URL) > 4096 {
		return refuse("the URL is not an origin and a path")
	}
	recipe := &v.Rules.target.Web.Policy.Recipe
	if ask.Injection == webrule.LoginInjection {
		return mayLogin(v, recipe, u)
	}
	for i := range recipe.Injections {
		in := &recipe.Injections[i]
		if in.ID != ask.Injection {
			continue
		}
		if u.Scheme != "https" && !in.Insecure {
			return refuse("the credential is sent over https only")
		}
		if v.Rules.target.Web.Policy.TLS.Unchecked && !in.Insecure && v.own(u) {
			return refuse("the target's certificate is not checked")
		}
		if !covers(in, u) {
			return refuse("the injection is bound to another origin or path")
		}
		if v.Uses[in.ID] >= uses(in) {
			return refuse("the credential was used as often as it may be in one session")
		}
		return use{injection: in.ID, kind: in.Kind, values: valuesOf(in)}, nil
	}
	return refuse("the target's recipe has no such injection")
}

// mayLogin decides about the login that the webproxy makes by itself.
func mayLogin(v view, recipe *webrule.Recipe, u *url.URL) (use, *wire.Error) {
	refuse := func(text string) (use, *wire.Error) { return use{}, wire.Errorf(wire.CodeRefused, "%s", text) }
	if recipe.Login == nil || len(recipe.Login.Steps) == 0 {
		return refuse("the target's recipe has no login")
	}
	if v.Uses[webrule.LoginInjection] >= bodyUses {
		return refuse("the login was made as often as it may be in one session")
	}
	if u.Scheme != "https" && !v.Rules.target.Web.Insecure {
		return refuse("the credential is sent over https only")
	}
	for _, s := range recipe.Login.Steps {
		to := s.URL
		if !strings.Contains(to, "://") {
			to = v.Rules.all.Origin + "/" + strings.TrimPrefix(to, "/")
		}
		if webrule.SameOrigin(to, u.Scheme+"://"+u.Host) {
			return use{injection: webrule.LoginInjection, kind: loginKind, values: []webrule.Value{webrule.Username, webrule.Password, webrule.TOTP}}, nil
		}
	}
	return refuse("the login goes to another origin")
}

// own reports whether u is of the target's own origin.
func (v view) own(u *url.URL) bool {
	return webrule.SameOrigin(v.Rules.all.Origin, u.Scheme+"://"+u.Host)
}

// covers reports whether u is where an injection is bound to. The method is
// the webproxy's to compare: it is no part of what it tells.
func covers(in *webrule.Injection, u *url.URL) bool {
	path := in.Path
	if in.Kind == webrule.ClientCert {
		path = "" // used in the handshake, before there is a path
	}
	return webrule.Bound(webrule.Request{Scheme: u.Scheme, Host: u.Host, Path: u.EscapedPath()}, in.Origin, "", path)
}

func uses(in *webrule.Injection) int {
	switch {
	case in.Times > 0:
		return in.Times
	case in.Kind == webrule.Form || in.Kind == webrule.JSON || in.Kind == webrule.Multipart:
		return bodyUses
	}
	return manyUses
}

// valuesOf are the values an injection needs.
func valuesOf(in *webrule.Injection) []webrule.Value {
	switch in.Kind {
	case webrule.Basic, webrule.Digest:
		return []webrule.Value{webrule.Username, webrule.Password}
	case webrule.Bearer:
		return []webrule.Value{valueToken}
	case webrule.ClientCert:
		return []webrule.Value{valueCertificate}
	}
	if in.Value == "" {
		return []webrule.Value{webrule.Password}
	}
	return []webrule.Value{in.Value}
}

// Values of a stored secret that no recipe names.
const (
	valueToken       webrule.Value = "token"
	valueCertificate webrule.Value = "certificate"
)

// mayDial decides whether a webproxy reaches a destination through core, and
// through which site. "site/host:port" is that of a rule which names a site.
func mayDial(v view, asker, dest string) (site, address string, err *wire.Error) {
	refuse := func(text string) (string, string, *wire.Error) {
		return "", "", wire.Errorf(wire.CodeRefused, "%s", text)
	}
	switch {
	case asker == "" || asker != v.Proxy:
		return refuse("the session is not this webproxy's")
	case !v.Live:
		return refuse("the session is over")
	case v.Rules == nil:
		return refuse("the session has no rules")
	}
	site, address, found := strings.Cut(dest, "/")
	allowed := v.Rules.bySite[site]
	if !found && v.Rules.target.Web.Policy.TLS.Responder(dest) && v.Site != "" && !reaches(v.Rules.never, dest) {
		// Asked whether a server's certificate was revoked.
		return v.Site, dest, nil
	}
	if !found {
		site, address = v.Site, dest
		allowed = v.Rules.bySite[""]
		if reaches(v.Rules.all, address) && v.ownAddress(address) {
			allowed = v.Rules.all
		}
	}
	switch {
	case site == "" || site == "-":
		return refuse("the target has no site: the webproxy dials by itself")
	case reaches(v.Rules.never, address):
		return refuse("the target's rules deny " + clip(address, 100))
	case !reaches(allowed, address):
		return refuse("the target's rules do not allow " + clip(address, 100))
	}
	return site, address, nil
}

// ownAddress reports whether an address is that of the target's own origin.
func (v view) ownAddress(address string) bool {
	for _, scheme := range []string{"https", "http"} {
		if webrule.SameOrigin(v.Rules.all.Origin, scheme+"://"+address) {
			return true
		}
	}
	return false
}

func reaches(c *webrule.Compiled, address string) bool {
	return c != nil && (c.Reaches("https", address) || c.Reaches("http", address))
}
