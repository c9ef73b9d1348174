package api

import (
	"net/http"
	"net/url"
	"slices"
)

// OriginAllowed reports whether a websocket's handshake may come from where it
// says: core's own origins, or the one it was sent to. With the session cookie a
// page of another origin must not get in; a bearer token no page can send by
// itself.
func OriginAllowed(r *http.Request, own []string) bool {
	origin := r.Header.Get("Origin")
	if r.Header.Get("Authorization") != "" && origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return false
	}
	return u.Host == r.Host && (u.Scheme == "https" || r.TLS == nil) || slices.Contains(own, origin)
}
