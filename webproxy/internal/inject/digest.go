package inject

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strings"

	"caponier/shared/wire"
)

// digest is a server's challenge (RFC 7616 §3.3) and how often it was answered.
type digest struct {
	realm, nonce, opaque, algorithm string
	qop                             bool // auth; else RFC 2069
	userhash                        bool
	count                           uint32
}

// Retry looks at an answer: after a challenge that the recipe knows to answer
// it prepares out for being sent once more and returns true.
func (u *Use) Retry(ctx context.Context, out *http.Request, resp *http.Response) (bool, error) {
	if u.digest == nil || resp.StatusCode != http.StatusUnauthorized {
		return false, nil
	}
	d := challenge(resp.Header.Values("WWW-Authenticate"))
	if d == nil {
		return false, nil
	}
	if u.replay == nil && out.Body != nil && out.Body != http.NoBody {
		return false, nil // too long to send twice
	}
	in := *u.digest
	m, ok := u.j.reserve(in)
	if !ok {
		return false, u.j.event(in.ID, u.url, "spent")
	}
	c, err := u.j.credential(ctx, in.ID, u.url)
	if err != nil {
		return false, err
	}
	u.j.mu.Lock()
	m.digest, m.held, m.heldUntil = d, c, u.j.c.Now().Add(holdFor)
	u.j.mu.Unlock()
	u.digest = nil // one attempt
	if err := u.j.event(in.ID, u.url, "used"); err != nil {
		return false, err
	}
	u.IDs = append(u.IDs, in.ID)
	if u.replay != nil {
		setBody(out, u.replay)
	}
	out.Header.Set("Authorization", u.j.answer(m, c, out))
	return true, nil
}

// ahead answers a challenge that is known already, so that each request does
// not take two.
func (u *Use) ahead(out *http.Request) {
	if u.digest == nil {
		return
	}
	u.j.mu.Lock()
	m := u.j.markLocked(u.digest.ID)
	known := m.digest != nil && u.j.c.Now().Before(m.heldUntil)
	c := m.held
	u.j.mu.Unlock()
	if known {
		u.IDs = append(u.IDs, u.digest.ID)
		out.Header.Set("Authorization", u.j.answer(m, c, out))
	}
}

func (j *Injector) answer(m *mark, c wire.WebCredential, out *http.Request) string {
	j.mu.Lock()
	m.digest.count++
	d := *m.digest
	j.mu.Unlock()
	return d.header(c.Username, c.Password, out.Method, out.URL.RequestURI(), strings.ToLower(rand.Text()))
}

var algorithms = map[string]func() hash.Hash{
	"MD5": md5.New, "MD5-SESS": md5.New,
	"SHA-256": sha256.New, "SHA-256-SESS": sha256.New,
	"SHA-512-256": sha512.New512_256, "SHA-512-256-SESS": sha512.New512_256,
}

// strength orders the algorithms, best first.
var strength = []string{"SHA-512-256", "SHA-512-256-SESS", "SHA-256", "SHA-256-SESS", "MD5", "MD5-SESS"}

// header computes the answer (RFC 7616 §3.4).
func (d digest) header(user, password, method, uri, cnonce string) string {
	newHash := algorithms[strings.ToUpper(d.algorithm)]
	h := func(s string) string {
		x := newHash()
		x.Write([]byte(s))
		return hex.EncodeToString(x.Sum(nil))
	}
	ha1 := h(user + ":" + d.realm + ":" + password)
	if strings.HasSuffix(strings.ToUpper(d.algorithm), "-SESS") {
		ha1 = h(ha1 + ":" + d.nonce + ":" + cnonce)
	}
	ha2 := h(method + ":" + uri)
	nc := fmt.Sprintf("%08x", d.count)
	response := h(ha1 + ":" + d.nonce + ":" + ha2)
	if d.qop {
		response = h(ha1 + ":" + d.nonce + ":" + nc + ":" + cnonce + ":auth:" + ha2)
	}
	name := user
	if d.userhash {
		name = h(user + ":" + d.realm)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Digest username=%s, realm=%s, nonce=%s, uri=%s, response=%q", quote(name), quote(d.realm), quote(d.nonce), quote(uri), response)
	if d.algorithm != "" {
		fmt.Fprintf(&b, ", algorithm=%s", d.algorithm)
	}
	if d.opaque != "" {
		fmt.Fprintf(&b, ", opaque=%s", quote(d.opaque))
	}
	if d.qop {
		fmt.Fprintf(&b, ", qop=auth, nc=%s, cnonce=%q", nc, cnonce)
	}
	if d.userhash {
		b.WriteString(", userhash=true")
	}
	return b.String()
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// challenge picks the strongest Digest challenge that we can answer.
func challenge(headers []string) *digest {
	var best *digest
	rank := len(strength)
	for _, h := range headers {
		for _, d := range challenges(h) {
			if d.algorithm == "" {
				d.algorithm = "MD5"
			}
			if n := slices.Index(strength, strings.ToUpper(d.algorithm)); n >= 0 && n < rank && d.nonce != "" {
				best, rank = d, n
			}
		}
	}
	return best
}

// challenges reads the Digest challenges of one header (RFC 9110 §11.6.1).
func challenges(h string) (out []*digest) {
	var d *digest
	for i := 0; i < len(h) && i < 16<<10; {
		for i < len(h) && (h[i] == ' ' || h[i] == ',' || h[i] == '\t') {
			i++
		}
		start := i
		for i < len(h) && h[i] != ' ' && h[i] != '=' && h[i] != ',' {
			i++
		}
		name := strings.ToLower(h[start:i])
		if i >= len(h) || h[i] != '=' {
			// A scheme begins, or a token of another one.
			d = nil
			if name == "digest" {
				d = &digest{}
				out = append(out, d)
			}
			if start == i {
				i++
			}
			continue
		}
		i++
		var v string
		v, i = parameter(h, i)
		if d == nil {
			continue
		}
		switch name {
		case "realm":
			d.realm = v
		case "nonce":
			d.nonce = v
		case "opaque":
			d.opaque = v
		case "algorithm":
			d.algorithm = v
		case "userhash":
			d.userhash = strings.EqualFold(v, "true")
		case "qop":
			for q := range strings.SplitSeq(v, ",") {
				d.qop = d.qop || strings.EqualFold(strings.TrimSpace(q), "auth")
			}
		}
	}
	return out
}

// parameter reads a token or quoted string at i.
func parameter(h string, i int) (string, int) {
	if i >= len(h) || h[i] != '"' {
		start := i
		for i < len(h) && h[i] != ',' && h[i] != ' ' {
			i++
		}
		return h[start:i], i
	}
	var b strings.Builder
	for i++; i < len(h); i++ {
		switch h[i] {
		case '\\':
			if i+1 < len(h) {
				i++
				b.WriteByte(h[i])
			}
		case '"':
			return b.String(), i + 1
		default:
			b.WriteByte(h[i])
		}
	}
	return b.String(), i
}
