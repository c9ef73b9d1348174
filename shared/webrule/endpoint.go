package webrule

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Endpoint is where a request goes: one origin.
type Endpoint struct {
	scheme, host string
	port         uint16
}

func (e Endpoint) String() string {
	host := e.host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if e.port != defaultPort(e.scheme) {
		host += ":" + strconv.Itoa(int(e.port))
	}
	return host
}

// Origin is the endpoint as an origin, "https://host[:port]".
func (e Endpoint) Origin() string { return e.scheme + "://" + e.String() }

// Address is host:port, as one dials it.
func (e Endpoint) Address() string { return net.JoinHostPort(e.host, strconv.Itoa(int(e.port))) }

// Host is the name or address alone, lower case.
func (e Endpoint) Host() string { return e.host }

// Scheme is https or http.
func (e Endpoint) Scheme() string { return e.scheme }

// Endpoint returns where r goes.
func (r Request) Endpoint() (Endpoint, error) { return parseEndpoint(r.Scheme, r.Host) }

// ParseOrigin reads "https://host[:port]"; a path after it is ignored.
func ParseOrigin(s string) (Endpoint, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return Endpoint{}, errors.New("must look like https://host or https://host:port")
	}
	return parseEndpoint(u.Scheme, u.Host)
}

// SameOrigin reports whether two URLs have the same origin.
func SameOrigin(a, b string) bool {
	x, err1 := ParseOrigin(a)
	y, err2 := ParseOrigin(b)
	return err1 == nil && err2 == nil && x == y
}

func parseEndpoint(scheme, hostport string) (Endpoint, error) {
	e := Endpoint{scheme: webScheme(scheme)}
	if e.scheme == "" {
		return e, errors.New("the scheme must be https or http")
	}
	host, port, err := splitHost(hostport)
	if err != nil {
		return e, err
	}
	if host == "" {
		return e, errors.New("the host is missing")
	}
	if e.host, e.port = host, port; port == 0 {
		e.port = defaultPort(e.scheme)
	}
	return e, nil
}

// splitHost takes "host", "host:port", "[v6]" or "[v6]:port" apart; port 0
// means none. Names become lower case and lose a final dot.
func splitHost(s string) (host string, port uint16, err error) {
	if len(s) > 262 {
		return "", 0, errors.New("the host is too long")
	}
	host, ps := s, ""
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", 0, errors.New("the address lacks its closing bracket")
		}
		host, ps = s[1:end], s[end+1:]
		a, err := netip.ParseAddr(host)
		if err != nil || !a.Is6() || a.Zone() != "" {
			return "", 0, errors.New("the address in brackets is not IPv6")
		}
		host = a.String()
	} else {
		if i := strings.IndexByte(s, ':'); i >= 0 {
			host, ps = s[:i], s[i:]
		}
		if host, err = normalName(host); err != nil {
			return "", 0, err
		}
	}
	if ps != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(ps, ":"), 10, 16)
		if ps[0] != ':' || err != nil || n == 0 || len(ps) > 6 {
			return "", 0, errors.New("the port must be 1 to 65535")
		}
		port = uint16(n)
	}
	return host, port, nil
}

// normalName checks a DNS name or IPv4 address.
func normalName(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	lower := true
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case c == '.':
			if i == 0 || s[i-1] == '.' {
				return "", errors.New("the host has an empty label")
			}
		case 'A' <= c && c <= 'Z':
			lower = false
		case c >= 0x80:
			return "", errors.New("the host must be written in ASCII: an international name as xn--…")
		default:
			return "", fmt.Errorf("the host has a character that is not allowed: %q", c)
		}
	}
	if !lower {
		s = strings.ToLower(s)
	}
	// A last label of digits makes it an address; the forms that only some
	// take for one (RFC 3986 §7.4) are refused.
	last := s[strings.LastIndexByte(s, '.')+1:]
	if last != "" && (strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x")) {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return "", errors.New("the host looks like an address but is none")
		}
	}
	return s, nil
}

func webScheme(s string) string {
	switch s {
	case "https", "http":
		return s
	}
	switch strings.ToLower(s) {
	case "https", "wss":
		return "https"
	case "http", "ws":
		return "http"
	}
	return ""
}

func defaultPort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}
