package sites

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// challenged answers a request without the right header with a challenge, and
// says whether it had one.
func (s *Site) challenged(w http.ResponseWriter, r *http.Request) bool {
	header := r.Header.Get("Authorization")
	ok := false
	switch s.cfg.Kind {
	case Basic:
		user, password, sent := r.BasicAuth()
		if sent {
			ok = s.login(r, Login{Username: user, Password: password, OK: s.right(user, password)})
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="`+s.cfg.Title+`", charset="UTF-8"`)
	case Bearer:
		if token, sent := strings.CutPrefix(header, "Bearer "); sent {
			ok = s.login(r, Login{Password: token, OK: s.right(s.cfg.Username, token)})
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.cfg.Title+`"`)
	case Digest:
		if params, sent := strings.CutPrefix(header, "Digest "); sent {
			p := parameters(params)
			ok = s.login(r, Login{Username: p["username"], Password: p["response"], OK: s.digest(r.Method, r.URL.RequestURI(), p)})
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Digest realm="%s", qop="auth", algorithm=SHA-256, nonce="%s", opaque="%s"`, s.cfg.Title, s.nonce(), hex.EncodeToString([]byte(s.cfg.Title))))
	}
	if !ok {
		color := Asking
		if header != "" {
			color = Refused
		}
		s.page(w, http.StatusUnauthorized, color, "<p>Sign in, please.</p>")
		return false
	}
	w.Header().Del("WWW-Authenticate")
	return true
}

func (s *Site) nonce() string {
	n := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.nonces) >= maxSessions {
		clear(s.nonces)
	}
	s.nonces[n] = 0
	return n
}

// digest checks a response as RFC 7616 §3.4 computes it. A count that was seen
// is refused: somebody replays.
func (s *Site) digest(method, uri string, p map[string]string) bool {
	count, err := strconv.ParseUint(p["nc"], 16, 64)
	if err != nil || p["uri"] != uri || p["qop"] != "auth" || p["realm"] != s.cfg.Title || p["cnonce"] == "" {
		return false
	}
	s.mu.Lock()
	last, known := s.nonces[p["nonce"]]
	if known && count > last {
		s.nonces[p["nonce"]] = count
	}
	s.mu.Unlock()
	if !known || count <= last {
		return false
	}
	h := func(parts ...string) string {
		sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
		return hex.EncodeToString(sum[:])
	}
	want := h(h(s.cfg.Username, s.cfg.Title, s.cfg.Password), p["nonce"], p["nc"], p["cnonce"], "auth", h(method, uri))
	return p["username"] == s.cfg.Username && hmac.Equal([]byte(want), []byte(p["response"]))
}

// parameters splits a list of name=value and name="value".
func parameters(text string) map[string]string {
	found := map[string]string{}
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimLeft(text, " ,") {
		name, rest, ok := strings.Cut(text, "=")
		if !ok {
			break
		}
		var value string
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			value, text, _ = strings.Cut(quoted, `"`)
		} else if end := strings.IndexByte(rest, ','); end >= 0 {
			value, text = rest[:end], rest[end:]
		} else {
			value, text = rest, ""
		}
		found[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
	}
	return found
}
