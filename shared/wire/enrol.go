package wire

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Paths of the control plane that core serves. The first group is reached
// from outside (an LB may pass them), the second only inside a tunnel.
const (
	PathEnrol = "/edge/v1/enrol" // carries inner TLS pinned by the token; never plain HTTP
	PathCRL   = "/edge/v1/crl"   // revocation list, RFC 5280 DER
	PathCA    = "/edge/v1/ca"    // CA certificates, PEM

	PathHello  = "/v1/hello"  // POST Hello → Welcome, the first request on every tunnel
	PathRenew  = "/v1/renew"  // POST RenewRequest → RenewResponse
	PathStatus = "/v1/status" // POST Status → StatusReply
)

// Paths of the control plane that an edge serves inside a tunnel.
const (
	PathEdgeRules = "/v1/rules" // PUT DialRules: what core narrows
	PathEdgeProbe = "/v1/probe" // POST ProbeRequest → ProbeResponse
	PathEdgeDrain = "/v1/drain" // POST: take no new streams
)

// Paths of host deployment, proxied by an extender's listener to core.
const (
	PathDeployCA       = "/deploy/v1/ca.pub"
	PathDeployScript   = "/deploy/v1/script"
	PathDeployRegister = "/deploy/v1/register"
)

// MaxControlBody is the limit of one control message in bytes.
const MaxControlBody = 256 << 10

// Token is the text of an enrolment token taken apart:
// "cap1.<id>.<secret>.<pin>". Pin is the SHA-256 of the edge CA's
// SubjectPublicKeyInfo, so that the token is given to no other core.
type Token struct {
	ID     string
	Secret string
	Pin    [sha256.Size]byte
}

// tokenPrefix is the version of the token text.
const tokenPrefix = "cap1"

// MaxToken is the length limit of a token's text in bytes.
const MaxToken = 256

var tokenPart = regexp.MustCompile(`^[a-z0-9_]{4,64}$`)

// ErrToken is returned for a text that is not an enrolment token. It does not
// repeat the text.
var ErrToken = errors.New("this is not an enrolment token: it must look like cap1.tok_….….…")

// ParseToken reads the text of an enrolment token.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if len(s) > MaxToken {
		return Token{}, ErrToken
	}
	parts := strings.Split(s, ".")
	if len(parts) != 4 || parts[0] != tokenPrefix || !tokenPart.MatchString(parts[1]) || !tokenPart.MatchString(parts[2]) {
		return Token{}, ErrToken
	}
	pin, err := base64.RawURLEncoding.Strict().DecodeString(parts[3])
	if err != nil || len(pin) != sha256.Size {
		return Token{}, ErrToken
	}
	return Token{ID: parts[1], Secret: parts[2], Pin: [sha256.Size]byte(pin)}, nil
}

// Text renders the token as it is shown to the operator, once.
func (t Token) Text() string {
	return fmt.Sprintf("%s.%s.%s.%s", tokenPrefix, t.ID, t.Secret, base64.RawURLEncoding.EncodeToString(t.Pin[:]))
}

// String hides the secret.
func (t Token) String() string { return tokenPrefix + "." + t.ID + ".***" }

// GoString hides the secret.
func (t Token) GoString() string { return t.String() }

// EnrolRequest asks for an identity. It travels inside TLS that is checked
// against the token's pin, so nothing between edge and core reads it.
type EnrolRequest struct {
	Version int      `json:"version"`
	TokenID string   `json:"token_id"`
	Secret  string   `json:"secret"`
	Kind    NodeKind `json:"kind"`
	// Name is what the node would like to be called (its host name). Core
	// makes it unique.
	Name string `json:"name"`
	// CSR is a PKCS#10 request (RFC 2986, DER) signed by the node's Ed25519
	// key. Only its key is used.
	CSR []byte `json:"csr"`
	// Host is the fingerprint of the place the identity lives in; see Hello.
	Host string `json:"host"`
	// Build is the binary's version.
	Build string `json:"build"`
}

// EnrolResponse is the identity, or Error.
type EnrolResponse struct {
	Error       *Error   `json:"error,omitempty"`
	NodeID      string   `json:"node_id,omitempty"`
	Name        string   `json:"name,omitempty"`
	Site        string   `json:"site,omitempty"`
	Certificate []byte   `json:"certificate,omitempty"` // DER
	Roots       [][]byte `json:"roots,omitempty"`       // DER
	Cores       []Member `json:"cores,omitempty"`
}

// RenewRequest asks for a new certificate over the tunnel, for the same key
// or a new one.
type RenewRequest struct {
	CSR []byte `json:"csr"`
}

// RenewResponse is the new certificate and the CA certificates to trust from now on.
type RenewResponse struct {
	Certificate []byte   `json:"certificate"`
	Roots       [][]byte `json:"roots"`
}
