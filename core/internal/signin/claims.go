package signin

import (
	"fmt"
	"slices"
	"strings"

	"caponier/core/internal/user"
)

// person is what the claims of an ID token say about somebody.
type person struct {
	Subject       string
	Session       string // the provider's name of its own session (sid), or ""
	Name          string // a valid login name, or "" with NameWrong set
	NameWrong     string // why the claim is no login name
	DisplayName   string
	Email         string
	EmailVerified bool
	Groups        []string
	MFA           bool
	Roles         []string // IDs, by the rules
}

// maxGroups bounds the values of the groups claim that are looked at.
const maxGroups = 5000

// readClaims applies a provider's rules to the claims of a verified ID token.
func readClaims(c ProviderConfig, claims map[string]any) person {
	p := person{Subject: text(claims, "sub"), DisplayName: cutText(text(claims, c.DisplayClaim), 200), Email: text(claims, c.EmailClaim)}
	if sid := text(claims, "sid"); len(sid) <= maxClaim {
		p.Session = sid
	}
	if len(p.Email) > 254 || !strings.Contains(p.Email, "@") {
		p.Email = ""
	}
	// Only true counts: some providers leave the claim out for addresses people
	// typed in themselves.
	p.EmailVerified, _ = claims["email_verified"].(bool)
	if s, ok := claims["email_verified"].(string); ok && s == "true" {
		p.EmailVerified = true
	}
	p.EmailVerified = p.EmailVerified && p.Email != "" && c.EmailClaim == "email"
	p.Name, p.NameWrong = loginName(c, text(claims, c.NameClaim))
	p.Groups = list(claims, c.GroupsClaim)
	for _, v := range append(list(claims, "amr"), list(claims, "acr")...) {
		p.MFA = p.MFA || slices.Contains(c.MFAValues, v)
	}
	for _, r := range c.Roles {
		if slices.Contains(p.Groups, r.Value) && !slices.Contains(p.Roles, r.Role) {
			p.Roles = append(p.Roles, r.Role)
		}
	}
	return p
}

// loginName makes a login name of a claim: lower case, without a domain that is
// one of the provider's.
func loginName(c ProviderConfig, claim string) (name, wrong string) {
	if claim == "" {
		return "", fmt.Sprintf("the claim %s is missing", c.NameClaim)
	}
	name = lowerASCII(claim)
	if local, domain, ok := strings.Cut(name, "@"); ok {
		if !slices.Contains(c.Domains, domain) {
			return "", fmt.Sprintf("the claim %s is an address of a domain that is not listed in domains", c.NameClaim)
		}
		name = local
	}
	if !user.ValidName(name) {
		return "", fmt.Sprintf("the claim %s is no user name: 1 to 64 of a-z, 0-9, dot, dash, underscore", c.NameClaim)
	}
	return name, ""
}

// lowerASCII makes only A to Z small: in Unicode, other letters become ASCII
// ones (İ, the Kelvin sign), and a name would become that of somebody else.
func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

// admits reports why the provider's rules do not let p in, or "".
func (c ProviderConfig) admits(p person) string {
	if p.Subject == "" || len(p.Subject) > maxClaim {
		return "the provider does not say who it is (claim sub)"
	}
	if len(c.Domains) == 0 {
		return ""
	}
	_, domain, _ := strings.Cut(lowerASCII(p.Email), "@")
	switch {
	case !slices.Contains(c.Domains, domain):
		return "the mail address is not in a domain that may come in"
	case !p.EmailVerified:
		return "the provider has not verified the mail address"
	}
	return ""
}

// find returns a claim by its name, or by a path of names with dots between.
func find(claims map[string]any, name string) any {
	if v, ok := claims[name]; ok || name == "" {
		return v
	}
	var at any = claims
	for part := range strings.SplitSeq(name, ".") {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[part]
	}
	return at
}

func text(claims map[string]any, name string) string {
	s, _ := find(claims, name).(string)
	return s
}

// list reads a claim that is one text or a list of texts.
func list(claims map[string]any, name string) []string {
	switch v := find(claims, name).(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, e := range v[:min(len(v), maxGroups)] {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

func cutText(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}
