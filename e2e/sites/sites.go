// Package sites are the web applications that tests and the demo sign in to:
// each kind of login that people meet, behind real TLS, with pages that try to
// get at a credential. A site keeps what it received, word for word, so that a
// test can say which credential arrived where, and where none did.
//
// Pages are coloured so that a picture of them tells which one it is: grey
// before signing in, red when it failed, the site's own colour afterwards.
package sites

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"image/color"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind is how a site asks for a login.
type Kind string

// The kinds.
const (
	Form    Kind = "form"    // a form, application/x-www-form-urlencoded
	Multi   Kind = "multi"   // a form, multipart/form-data
	JSON    Kind = "json"    // a script page that posts JSON
	Pages   Kind = "pages"   // user name on one page, password on the next
	Basic   Kind = "basic"   // RFC 7617
	Digest  Kind = "digest"  // RFC 7616
	Bearer  Kind = "bearer"  // RFC 6750
	CSRF    Kind = "csrf"    // a form with a token, under a strict content policy
	Frame   Kind = "frame"   // a form in a frame of the same origin
	Foreign Kind = "foreign" // a form in a frame of another origin, Config.Other
	Hashed  Kind = "hashed"  // script sends only a salted hash of the password
	TOTP    Kind = "totp"    // a form, then a code (RFC 6238)
	Open    Kind = "open"    // no login
)

// Kinds are all of them.
var Kinds = []Kind{Form, Multi, JSON, Pages, Basic, Digest, Bearer, CSRF, Frame, Foreign, Hashed, TOTP, Open}

// The colours of pages.
var (
	Asking  = color.RGBA{0xd0, 0xd0, 0xe0, 0xff} // before signing in
	Refused = color.RGBA{0xc0, 0x20, 0x20, 0xff} // wrong credential, or a leak
)

// Demo are the colours of the demo's sites, in their order.
var Demo = []color.RGBA{{0x1b, 0x8a, 0x5a, 0xff}, {0x2a, 0x6f, 0xb8, 0xff}, {0xb0, 0x6a, 0x10, 0xff}, {0x7a, 0x4f, 0xb0, 0xff}}

// Config describes a site.
type Config struct {
	Kind  Kind
	Title string
	// Color fills the pages of people who signed in.
	Color color.RGBA
	// Username and Password are the only login; a Bearer token is the Password.
	Username, Password string
	// Seed is the base32 secret of TOTP.
	Seed string
	// Other is the origin of a second site: Foreign's login frame, and where
	// pages try to carry a placeholder.
	Other string
	// Hosts are origins that the page /many loads parts from.
	Hosts []string
	// Key lets sites of one rig believe each other (Foreign).
	Key []byte
	// MetaPolicy puts CSRF's content policy in a meta element, not a header.
	MetaPolicy bool
	// Driven: pages wait for Drive and Run.
	Driven bool
	// Heard is told of each login; nil for none.
	Heard func(Login)
	Now   func() time.Time // nil: time.Now
}

// Login is one attempt to sign in, as the site received it.
type Login struct {
	Kind     Kind
	Username string
	Password string // or what stands for it: hash, digest response, token
	Code     string
	OK       bool
	Remote   string
}

// Request is what a site was asked, as far as a credential could be in it.
type Request struct {
	Method, Host, Path, Query string
	Header                    http.Header
	Body                      string // at most 1 MiB of it
}

// Contains says whether text is anywhere in the request.
func (r Request) Contains(text string) bool {
	if strings.Contains(r.Path, text) || strings.Contains(r.Query, text) || strings.Contains(r.Body, text) {
		return true
	}
	for _, values := range r.Header {
		if slices.ContainsFunc(values, func(v string) bool { return strings.Contains(v, text) }) {
			return true
		}
	}
	return false
}

// limits of what a site keeps.
const (
	maxBody     = 1 << 20
	maxRequests = 5000
	maxSessions = 1000
)

// Site is one web application.
type Site struct {
	cfg Config
	mux *http.ServeMux
	now func() time.Time

	mu       sync.Mutex // guards all below
	logins   []Login
	requests []Request
	uploads  []Upload
	sessions map[string]*session
	nonces   map[string]uint64 // Digest: nonce → last count
	codes    map[string]bool   // TOTP codes that were used
	leaks    map[string]bool   // Leaks
	orders   []*order
	ordered  chan struct{} // closed and replaced when there are more
	sockets  int           // websockets open
}

// session is one browser's state.
type session struct {
	user     string // signed in
	password string // as received
	half     string // user name given, password or code still to come
	token    string // against forged requests
	salt     string
}

// New makes a site.
func New(cfg Config) (*Site, error) {
	if !slices.Contains(Kinds, cfg.Kind) {
		return nil, fmt.Errorf("no kind of site %q", cfg.Kind)
	}
	if cfg.Kind == Foreign && (cfg.Other == "" || len(cfg.Key) == 0) {
		return nil, fmt.Errorf("a site of kind %s needs another origin and a key", cfg.Kind)
	}
	if cfg.Color == (color.RGBA{}) {
		cfg.Color = color.RGBA{0x10, 0x90, 0x50, 0xff}
	}
	cfg.Title = cmp.Or(cfg.Title, string(cfg.Kind))
	s := &Site{
		cfg: cfg, now: cfg.Now, sessions: map[string]*session{}, nonces: map[string]uint64{}, codes: map[string]bool{},
		leaks: map[string]bool{}, ordered: make(chan struct{}),
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.mux = http.NewServeMux()
	s.routes()
	return s, nil
}

// Color is the site's colour.
func (s *Site) Color() color.RGBA { return s.cfg.Color }

// Logins are the attempts to sign in so far.
func (s *Site) Logins() []Login {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.logins)
}

// Requests are what the site was asked so far, oldest first.
func (s *Site) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Sockets is how many websockets are open.
func (s *Site) Sockets() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sockets
}

// Forget drops what was kept; who is signed in stays so.
func (s *Site) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins, s.requests, s.uploads = nil, nil, nil
	clear(s.leaks)
}

// ServeHTTP answers, after having kept the request.
func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kept := Request{Method: r.Method, Host: r.Host, Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header.Clone()}
	if r.ContentLength >= 0 && r.ContentLength <= maxBody && !strings.HasPrefix(r.URL.Path, "/upload") {
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
		if err != nil {
			http.Error(w, "the body was cut", http.StatusBadRequest)
			return
		}
		kept.Body = string(body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	s.mu.Lock()
	if len(s.requests) < maxRequests && r.URL.Path != "/drive" {
		s.requests = append(s.requests, kept)
	}
	s.mu.Unlock()
	w.Header().Set("Cache-Control", "no-store")
	s.mux.ServeHTTP(w, r)
}

// login keeps an attempt and answers whether it was right.
func (s *Site) login(r *http.Request, l Login) bool {
	l.Kind, l.Remote = s.cfg.Kind, r.RemoteAddr
	s.mu.Lock()
	if len(s.logins) < maxRequests {
		s.logins = append(s.logins, l)
	}
	s.mu.Unlock()
	if s.cfg.Heard != nil {
		s.cfg.Heard(l)
	}
	return l.OK
}

// right says whether a name and password are the site's.
func (s *Site) right(user, password string) bool {
	u := subtle.ConstantTimeCompare([]byte(user), []byte(s.cfg.Username))
	p := subtle.ConstantTimeCompare([]byte(password), []byte(s.cfg.Password))
	return u&p == 1
}

const cookieName = "sid"

// browser returns the session of the request's cookie, a new one if it has none.
func (s *Site) browser(w http.ResponseWriter, r *http.Request) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, err := r.Cookie(cookieName); err == nil {
		if b, ok := s.sessions[c.Value]; ok {
			return b
		}
	}
	if len(s.sessions) >= maxSessions {
		clear(s.sessions)
	}
	id, b := rand.Text(), &session{token: rand.Text(), salt: strings.ToLower(rand.Text())}
	s.sessions[id] = b
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: id, Path: "/", HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode})
	return b
}

// with runs f on a session's fields.
func (s *Site) with(b *session, f func(*session)) session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f != nil {
		f(b)
	}
	return *b
}

// who is signed in, and the password he did it with; empty for nobody.
func (s *Site) who(w http.ResponseWriter, r *http.Request) (user, password string) {
	switch s.cfg.Kind {
	case Basic:
		u, p, ok := r.BasicAuth()
		if ok && s.right(u, p) {
			return u, p
		}
		return "", ""
	case Bearer:
		if t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && s.right(s.cfg.Username, t) {
			return s.cfg.Username, t
		}
		return "", ""
	case Open:
		return "guest", s.cfg.Password
	}
	b := s.with(s.browser(w, r), nil)
	return b.user, b.password
}

// sign makes a word that another site with the same key believes.
func (s *Site) sign(user string) string {
	m := hmac.New(sha256.New, s.cfg.Key)
	m.Write([]byte(user))
	return hex.EncodeToString(m.Sum(nil))
}

// order is what a page is told to do.
type order struct {
	ID  string `json:"id"`
	Go  string `json:"go,omitempty"`
	Run string `json:"run,omitempty"`

	user   string
	taken  time.Time // when a page took it last
	answer chan string
}

// orderLost is how long after a page took an order, without an answer, the next
// page may have it: the one that took it was being left.
const orderLost = 1500 * time.Millisecond

// Drive sends the page that a user (empty: somebody not signed in) has open to
// another address.
func (s *Site) Drive(ctx context.Context, user, to string) error {
	_, err := s.order(ctx, &order{Go: to, user: user})
	return err
}

// Run runs the body of an asynchronous script function in the page that a user
// has open and returns its result as text; "error: …" is what it threw.
func (s *Site) Run(ctx context.Context, user, script string) (string, error) {
	return s.order(ctx, &order{Run: script, user: user})
}

func (s *Site) order(ctx context.Context, o *order) (string, error) {
	o.ID, o.answer = rand.Text(), make(chan string, 1)
	s.mu.Lock()
	s.orders = append(s.orders, o)
	close(s.ordered)
	s.ordered = make(chan struct{})
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.orders = slices.DeleteFunc(s.orders, func(x *order) bool { return x == o })
		s.mu.Unlock()
	}()
	select {
	case text := <-o.answer:
		return text, nil
	case <-ctx.Done():
		return "", fmt.Errorf("no page of %q at %s answered: %w", o.user, s.cfg.Title, ctx.Err())
	}
}

// take gives a page of a user its next order, or nil and what to wait for.
func (s *Site) take(user string) (*order, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.orders {
		if o.user == user && time.Since(o.taken) > orderLost {
			o.taken = time.Now()
			return o, nil
		}
	}
	return nil, s.ordered
}

// answered hands in what a page says to an order.
func (s *Site) answered(id, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.orders {
		if o.ID == id {
			select {
			case o.answer <- text:
			default: // it was answered already
			}
		}
	}
}
