package bastion

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// maxName is the longest login name taken, in bytes.
const maxName = 512

// loginName is what a user asks for by the name he logs in with.
type loginName struct {
	User    string
	Account string // empty: the only one that fits
	Target  string // a target reference for policy; empty: the menu
}

// errName is told to nobody before the login: a bad name fails like a bad password.
var errName = errors.New("the login name is malformed")

func checkSeparator(sep string) error {
	if len(sep) != 1 || sep[0] <= ' ' || sep[0] >= 0x7f || isWord(sep[0]) || strings.Contains("._-/:[]@", sep) {
		return fmt.Errorf("bastion: separator %q: want one ASCII character that is no letter, no digit and none of ._-/:[]@", sep)
	}
	return nil
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// parseName reads a login name (FEATURES C4):
//
//	user
//	user%target                       the only account that fits
//	user%account%target[:port]
//	user%account%site/host[:port]
//	user%account%host%port            port as a part of its own
//
// with sep in the place of %. A doubled sep stands for itself.
func parseName(s, sep string) (loginName, error) {
	if s == "" || len(s) > maxName {
		return loginName{}, errName
	}
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return loginName{}, errName
		}
	}
	parts := splitName(s, sep[0])
	if slices.Contains(parts, "") {
		return loginName{}, errName
	}
	n := loginName{User: parts[0]}
	switch len(parts) {
	case 1:
	case 2:
		n.Target = parts[1]
	case 3:
		n.Account, n.Target = parts[1], parts[2]
	case 4:
		port, err := strconv.ParseUint(parts[3], 10, 16)
		if err != nil || port == 0 {
			return loginName{}, errName
		}
		n.Account, n.Target = parts[1], withPort(parts[2], int(port))
	default:
		return loginName{}, errName
	}
	return n, nil
}

// splitName cuts s at single separators; a pair is one literal separator.
func splitName(s string, sep byte) []string {
	var parts []string
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != sep {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == sep {
			b.WriteByte(sep)
			i++
			continue
		}
		parts = append(parts, b.String())
		b.Reset()
	}
	return append(parts, b.String())
}

// String is the inverse of parseName.
func (n loginName) format(sep string) string {
	esc := func(s string) string { return strings.ReplaceAll(s, sep, sep+sep) }
	switch {
	case n.Target == "":
		return esc(n.User)
	case n.Account == "":
		return esc(n.User) + sep + esc(n.Target)
	}
	return esc(n.User) + sep + esc(n.Account) + sep + esc(n.Target)
}

// withPort adds a port to a target reference, bracketing a bare IPv6 address.
func withPort(ref string, port int) string {
	site, host := splitSite(ref)
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	ref = net.JoinHostPort(host, strconv.Itoa(port))
	if site != "" {
		ref = site + "/" + ref
	}
	return ref
}

// splitSite separates "site/host[:port]".
func splitSite(ref string) (site, host string) {
	if before, after, ok := strings.Cut(ref, "/"); ok {
		return before, after
	}
	return "", ref
}

// siteSuffix carries a site in a plain host name, for protocols whose names
// cannot hold a slash: host.site.caponier is site/host.
const siteSuffix = ".caponier"

// destination turns the host and port a forward or SOCKS request asks for
// into the target references to try, best first: a name with its port must
// match that port, so the caller checks it.
func destination(host string, port int) (name, address string) {
	if rest, ok := strings.CutSuffix(strings.ToLower(host), siteSuffix); ok {
		if i := strings.LastIndexByte(rest, '.'); i > 0 && i < len(rest)-1 {
			return "", withPort(rest[i+1:]+"/"+rest[:i], port)
		}
	}
	if strings.ContainsAny(host, "/:") {
		return "", withPort(host, port)
	}
	return host, withPort(host, port)
}
