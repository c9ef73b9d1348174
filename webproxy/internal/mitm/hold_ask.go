package mitm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"caponier/shared/webrule"
	"caponier/shared/wire"
)

// digest is of all that an approval is worth for.
func (x *exchange) digest(body []byte) string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%s\n%s%s\n%s\n", x.method(), x.at.Origin(), x.in.URL.RequestURI(), strings.Join(x.in.Header["Content-Type"], ", "))
	sum.Write(body)
	return hex.EncodeToString(sum.Sum(nil))
}

// method is the request's method, with those that an application may take it to
// have by what stands outside its body: "POST as DELETE".
func (x *exchange) method() string {
	as := overrides(x.in)
	if len(as) == 0 {
		return x.in.Method
	}
	if text := x.in.Method + " as " + strings.Join(as, " or "); len(text) <= maxMethod {
		return text
	}
	return clip(x.in.Method, maxMethod-len(" as others")) + " as others"
}

// maxMethod is how much of a method is told, in bytes.
const maxMethod = 32

// askFor is what approvers are told.
func (x *exchange) askFor(name string, a *webrule.Approval) wire.WebApprovalAsk {
	return wire.WebApprovalAsk{Hold: name, Method: clip(x.in.Method, maxMethod), RuleMethod: x.ruleMethod(), URL: x.url, ContentType: clip(x.in.Header.Get("Content-Type"), 200),
		Length: x.in.ContentLength, Rule: clip(ruleText(a), 1000), Why: a.Why}
}

// ruleText is a rule in words.
func ruleText(a *webrule.Approval) string {
	methods, host, path := strings.Join(a.Methods, ", "), a.Host, a.Path
	if methods == "" {
		methods = "every method"
	}
	if host == "" {
		host = "every host"
	}
	if a.Scheme != "" {
		host = a.Scheme + "://" + host
	}
	return strings.TrimSpace(methods + " " + host + path)
}
