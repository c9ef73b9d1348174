// Package webrule says what a web session may reach and where its stored
// credential goes. Core validates and stores a Policy with the target, the
// webproxy decides by it on every request; both use this package, so that what
// the console explains is what happens.
//
// Everything here is pure: no sockets, no clock, no secrets. The default is to
// refuse: a request no rule allows does not leave, a placeholder that turns up
// where no injection expects it is never replaced.
package webrule

import "slices"

// Policy is everything about a web target that the webproxy must know.
type Policy struct {
	// Allow lists what may be asked for; the target's own origin is always
	// allowed with every method and path unless Own is set.
	Allow []Rule `json:"allow,omitempty"`
	// Deny wins over Allow.
	Deny []Rule `json:"deny,omitempty"`
	// Approve lists requests that wait until a second person lets them through,
	// each once. Such a rule allows nothing: what Deny says or Allow does not is
	// refused as before.
	Approve []Approval `json:"approve,omitempty"`
	// Own limits the target's own origin to what Allow says.
	Own bool `json:"own,omitempty"`
	// Learn: what no rule allows is refused all the same, but recorded as a
	// proposal for the administrator.
	Learn bool `json:"learn,omitempty"`
	// Recipe is how the session signs in.
	Recipe Recipe `json:"recipe,omitzero"`
	// TLS is how the target and the other hosts are believed.
	TLS TLS `json:"tls,omitzero"`
	// Private lists addresses (CIDR) and names that would be refused as
	// internal (loopback, link-local, the proxy's own) but are meant.
	Private []string `json:"private,omitempty"`
}

// Rule allows or denies requests. Empty fields mean any.
type Rule struct {
	// Host is a name or address, "*.example.com" for any name below, with
	// ":port" for another port than the scheme's.
	Host string `json:"host"`
	// Scheme is https, http, or empty for both. Websockets count as theirs.
	Scheme  string   `json:"scheme,omitempty"`
	Methods []string `json:"methods,omitempty"`
	// Path is a prefix by whole segments ("/admin" covers /admin/x, not
	// /administrator); a final "$" makes it exact. Matched after RFC 3986
	// §6.2.2 normalisation of the raw path; ambiguous encodings are refused. In
	// Deny and Approve letters of either case are alike, and a path with dot
	// segments, which browsers never send, is refused or held.
	Path string `json:"path,omitempty"`
	// Site reaches these hosts through the extenders of another site than the
	// target's (P11); "-" means directly.
	Site string `json:"site,omitempty"`
}

// Approval names requests that need a second person. Its Site is empty: where
// a request goes is said by the rule that allows it.
type Approval struct {
	Rule
	// Why is told to the user who waits and to those who decide: "Deletions in
	// production are looked at by two." At most 500 bytes.
	Why string `json:"why,omitempty"`
}

// Kind is how a login is carried.
type Kind string

// The kinds of injection. Form, JSON and Multipart replace a placeholder in a
// request's body; Basic, Digest, Bearer and Header answer for the browser;
// ClientCert is used in the TLS handshake.
const (
	Form       Kind = "form"      // application/x-www-form-urlencoded
	Multipart  Kind = "multipart" // multipart/form-data
	JSON       Kind = "json"
	Basic      Kind = "basic"  // RFC 7617
	Digest     Kind = "digest" // RFC 7616
	Bearer     Kind = "bearer" // RFC 6750
	Header     Kind = "header"
	ClientCert Kind = "client_cert"
)

// Recipe is how a session signs in with its stored credential.
type Recipe struct {
	// Injections are where values go into requests.
	Injections []Injection `json:"injections,omitempty"`
	// Fills are pages whose fields a script of ours fills with placeholders.
	Fills []Fill `json:"fills,omitempty"`
	// Login, if set, is done by the proxy itself before the browser's first
	// request, for pages that hash the password in script: its cookies are
	// handed to the browser.
	Login *Login `json:"login,omitempty"`
}

// Value names what is put in.
type Value string

// The values.
const (
	Username Value = "username"
	Password Value = "password"
	TOTP     Value = "totp"
)

// Injection is one place a value goes to, bound to origin, method and path.
type Injection struct {
	ID   string `json:"id"` // [a-z0-9-]{1,32}, unique in the recipe
	Kind Kind   `json:"kind"`
	// Origin is https://host[:port]; plain http needs Insecure.
	Origin string `json:"origin"`
	Method string `json:"method,omitempty"` // empty: POST for bodies, any for the others
	Path   string `json:"path,omitempty"`   // as Rule.Path; empty: any
	// Field is the form field, the JSON path ("user.password", "items.0.pw"; a
	// dot inside a key is written \.) or the header's name.
	Field string `json:"field,omitempty"`
	Value Value  `json:"value,omitempty"`
	// Prefix stands before the value in a header ("Token ").
	Prefix string `json:"prefix,omitempty"`
	// Insecure permits plain http, or a target whose certificate is not checked.
	Insecure bool `json:"insecure,omitempty"`
	// Times is how often it may happen in a session; 0: once for bodies
	// (three times when the target answers that it failed), any for the others.
	Times int `json:"times,omitempty"`
}

// Fill fills fields of a page with placeholders and may press the button.
type Fill struct {
	Origin string      `json:"origin"` // of the document that holds the fields, a frame's its own
	Path   string      `json:"path,omitempty"`
	Fields []FillField `json:"fields"`
	// Submit is the selector of the button to press; empty: the user does.
	Submit string `json:"submit,omitempty"`
}

// FillField is one field: Selector is CSS, or just the field's name.
type FillField struct {
	Selector  string `json:"selector"`
	Value     Value  `json:"value"`
	Injection string `json:"injection"` // whose placeholder is filled in
}

// Login is a list of requests that the proxy sends by itself.
type Login struct {
	Steps []Step `json:"steps"`
	// Success: the last answer must have this status (0: any 2xx or 3xx) and,
	// if set, this cookie.
	Status int    `json:"status,omitempty"`
	Cookie string `json:"cookie,omitempty"`
}

// Step is one request of a Login. In URL-encoded and JSON bodies and headers
// {{username}}, {{password}}, {{totp}} and {{name}} of an Extract stand for
// values, {{salt password}} for two joined, {{sha256 salt password}} for a
// hash: md5, sha1, sha256, sha512 (hexadecimal), base64, upper, lower.
type Step struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"` // absolute, or a path of the target
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
	// Extract takes values out of the answer: name → regular expression with
	// one group (CSRF tokens, salts).
	Extract map[string]string `json:"extract,omitempty"`
}

// TLS says how servers are believed.
type TLS struct {
	// Anchors are PEM certificates believed besides the system's; Only: instead.
	Anchors string `json:"anchors,omitempty"`
	Only    bool   `json:"only,omitempty"`
	// Unchecked takes any certificate of the target's own origin. Nothing is
	// injected then, unless the injection says Insecure.
	Unchecked bool `json:"unchecked,omitempty"`
	// Min and Max are 1.0 to 1.3; empty: 1.2 and 1.3. Legacy permits old ciphers.
	Min    string `json:"min,omitempty"`
	Max    string `json:"max,omitempty"`
	Legacy bool   `json:"legacy,omitempty"`
	// ServerName overrides the name the certificate must carry.
	ServerName string `json:"server_name,omitempty"`
	// Revocation says how it is found out that a certificate was revoked. off,
	// also when empty: only from an answer that the server brings along (OCSP
	// stapling, RFC 6066 §8). soft: its authority is asked by OCSP (RFC 6960),
	// then by revocation list (RFC 5280 §5); without an answer the server is
	// believed, and the request log says so. hard: without an answer it is not.
	Revocation string `json:"revocation,omitempty"`
	// Responders are hosts (":port" for another than 80) of such authorities
	// that are asked through the target's site, or at internal addresses. Any
	// other is asked by the webproxy itself, at public addresses alone.
	Responders []string `json:"responders,omitempty"`
}

// The values of TLS.Revocation.
const (
	RevocationOff  = "off"
	RevocationSoft = "soft"
	RevocationHard = "hard"
)

// Responder reports whether a host:port is one of the named responders.
func (t *TLS) Responder(hostport string) bool {
	if len(t.Responders) == 0 {
		return false
	}
	e, err := parseEndpoint("http", hostport)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(t.Responders, func(r string) bool {
		named, err := parseEndpoint("http", r)
		return err == nil && named == e
	})
}

// MaxPolicy bounds a policy as JSON, in bytes.
const MaxPolicy = 512 << 10
