package mitm

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// maxURL is how much of a URL is recorded, in bytes.
const maxURL = 2 << 10

// logURL is the URL as it is recorded, and shown to who decides on it: values
// of the query that look secret are masked, and so is everything that was
// injected. It is ASCII, and says when something is missing.
func (x *exchange) logURL() string {
	path := x.what.Path
	if path == "" {
		path = "/"
	}
	s := x.at.Origin() + path
	if q := x.in.URL.RawQuery; q != "" {
		s += "?" + printable(maskQuery(q))
	}
	s, _ = x.ses.Values.String(s)
	if missing := len(s) + max(0, len(x.in.URL.RawQuery)-maxQuery) - maxURL; missing > 0 {
		// Whoever approves must not take a beginning for the whole.
		mark := fmt.Sprintf("[and %d bytes more]", missing+maxMark)
		s = clip(s, maxURL-maxMark) + mark
	}
	return s
}

// maxMark is the longest mark of a URL that was cut, maxQuery how much of a
// query is looked at, in bytes.
const (
	maxMark  = 32
	maxQuery = 8 << 10
)

// printable writes what is no printable ASCII as RFC 3986 §2.1 wants it: bytes
// that steer terminals or turn lines around are text to who reads.
func printable(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// maskQuery hides the values of a query that look secret.
func maskQuery(raw string) string {
	raw = raw[:min(len(raw), maxQuery)]
	parts := strings.Split(raw, "&")
	for i, p := range parts {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			if looksSecret(p) {
				parts[i] = "***"
			}
			continue
		}
		if name, err := url.QueryUnescape(k); err != nil || secretName(name) || looksSecret(v) {
			parts[i] = k + "=***"
		}
	}
	return strings.Join(parts, "&")
}

var secretWords = []string{"token", "passw", "pwd", "secret", "apikey", "api_key", "auth", "session", "signature", "jwt", "assertion", "credential", "ticket", "otp", "saml", "nonce"}

func secretName(name string) bool {
	name = strings.ToLower(name)
	switch name {
	case "code", "sig", "sid", "key", "state", "pass", "pw", "hmac":
		return true
	}
	return slices.ContainsFunc(secretWords, func(w string) bool { return strings.Contains(name, w) })
}

// looksSecret: long and of mixed characters, as keys and tokens are.
func looksSecret(v string) bool {
	if len(v) < 20 || strings.ContainsAny(v, "+/ ") && !strings.HasSuffix(v, "=") {
		return false
	}
	var digit, lower, upper bool
	for _, c := range v {
		digit = digit || '0' <= c && c <= '9'
		lower = lower || 'a' <= c && c <= 'z'
		upper = upper || 'A' <= c && c <= 'Z'
	}
	return digit && (lower || upper) && !strings.ContainsAny(v, ".%") || strings.HasPrefix(v, "eyJ")
}
