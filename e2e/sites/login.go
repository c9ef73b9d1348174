package sites

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"html/template"
	"net/http"
	"net/url"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"
)

func (s *Site) loginRoutes() {
	s.mux.HandleFunc("GET /login", s.ask)
	s.mux.HandleFunc("POST /login", s.answer)
	s.mux.HandleFunc("GET /login/form", s.form) // inside frames
	s.mux.HandleFunc("GET /login/password", s.askPassword)
	s.mux.HandleFunc("POST /login/user", s.answerUser)
	s.mux.HandleFunc("GET /login/code", s.askCode)
	s.mux.HandleFunc("POST /login/code", s.answerCode)
	s.mux.HandleFunc("POST /api/login", s.answerJSON)
	s.mux.HandleFunc("GET /login/back", s.back)
}

const fields = `<label>User name <input name="username" autocomplete="username"></label>
<label>Password <input name="password" type="password" autocomplete="current-password"></label>
`

// ask shows the page that a login begins with.
func (s *Site) ask(w http.ResponseWriter, r *http.Request) {
	b := s.with(s.browser(w, r), nil)
	show := func(body string, scripts ...string) {
		if trap := r.FormValue("trap"); trap != "" {
			body += `<p id="trap" data-trap="` + template.HTMLEscapeString(trap) + `" data-other="` + template.HTMLEscapeString(s.cfg.Other) + `">…</p>`
			scripts = append(scripts, "trap.js")
		}
		s.page(w, http.StatusOK, Asking, template.HTML(body), scripts...)
	}
	switch s.cfg.Kind {
	case JSON:
		show(`<div id="app"></div>`, "spa.js")
	case Pages:
		show(`<form method="post" action="/login/user"><label>User name <input name="username"></label><button>Next</button></form>`)
	case CSRF:
		show(`<form method="post" action="/login"><input type="hidden" name="csrf_token" value="` + b.token + `">` + fields + `<button>Sign in</button></form>`)
	case Frame:
		show(`<iframe src="/login/form"></iframe>`)
	case Foreign:
		show(`<iframe src="` + template.HTMLEscapeString(s.cfg.Other) + `/login/form?back=` + url.QueryEscape(origin(r)+"/login/back") + `"></iframe>`)
	case Hashed:
		show(`<form id="hashed" method="post" action="/login" data-salt="`+b.salt+`"><input type="hidden" name="response">
<label>User name <input name="username"></label><label>Password <input id="password" type="password"></label><button>Sign in</button></form>`, "hashed.js")
	case Multi:
		show(`<form method="post" action="/login" enctype="multipart/form-data">` + fields + `<button>Sign in</button></form>`)
	case Form, TOTP:
		show(`<form method="post" action="/login">` + fields + `<label>Note <input name="note"></label><button>Sign in</button></form>`)
	default:
		http.Redirect(w, r, "/home", http.StatusSeeOther)
	}
}

// form is a login form of its own, for frames.
func (s *Site) form(w http.ResponseWriter, r *http.Request) {
	s.page(w, http.StatusOK, Asking, template.HTML(`<form method="post" action="/login" target="_top"><input type="hidden" name="back" value="`+
		template.HTMLEscapeString(r.FormValue("back"))+`">`+fields+`<button>Sign in</button></form>`))
}

// answer takes a form.
func (s *Site) answer(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseMultipartForm(maxBody); err != nil && err != http.ErrNotMultipart {
		http.Error(w, "a form, please", http.StatusBadRequest)
		return
	}
	b := s.browser(w, r)
	user, password := r.PostFormValue("username"), r.PostFormValue("password")
	ok := s.right(user, password)
	now := s.with(b, nil)
	switch s.cfg.Kind {
	case Pages:
		user = now.half
		ok = s.right(user, password)
	case CSRF:
		ok = ok && subtle.ConstantTimeCompare([]byte(r.PostFormValue("csrf_token")), []byte(now.token)) == 1
	case Hashed:
		password = r.PostFormValue("response")
		sum := sha256.Sum256([]byte(now.salt + s.cfg.Password))
		ok = user == s.cfg.Username && hmac.Equal([]byte(password), []byte(hex.EncodeToString(sum[:])))
	}
	if !s.login(r, Login{Username: user, Password: password, OK: ok}) {
		s.refuse(w)
		return
	}
	if s.cfg.Kind == TOTP {
		s.with(b, func(b *session) { b.half, b.password = user, password })
		http.Redirect(w, r, "/login/code", http.StatusSeeOther)
		return
	}
	if back := r.PostFormValue("back"); back != "" && len(s.cfg.Key) > 0 {
		http.Redirect(w, r, back+"?user="+url.QueryEscape(user)+"&proof="+s.sign(user), http.StatusSeeOther)
		return
	}
	s.with(b, func(b *session) { b.user, b.password = user, password })
	http.Redirect(w, r, "/home", http.StatusSeeOther)
}

func (s *Site) refuse(w http.ResponseWriter) {
	s.page(w, http.StatusUnauthorized, Refused, `<p>Wrong user name or password.</p><a href="/login">Again</a>`)
}

// back takes somebody whom the site in the frame has signed in.
func (s *Site) back(w http.ResponseWriter, r *http.Request) {
	user := r.FormValue("user")
	if len(s.cfg.Key) == 0 || !hmac.Equal([]byte(r.FormValue("proof")), []byte(s.sign(user))) {
		s.refuse(w)
		return
	}
	s.with(s.browser(w, r), func(b *session) { b.user = user })
	http.Redirect(w, r, "/home", http.StatusSeeOther)
}

func (s *Site) answerUser(w http.ResponseWriter, r *http.Request) {
	user := r.PostFormValue("username")
	s.with(s.browser(w, r), func(b *session) { b.half = user })
	http.Redirect(w, r, "/login/password", http.StatusSeeOther)
}

func (s *Site) askPassword(w http.ResponseWriter, r *http.Request) {
	if s.with(s.browser(w, r), nil).half == "" {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return
	}
	s.page(w, http.StatusOK, Asking, `<form method="post" action="/login"><label>Password <input name="password" type="password"></label><button>Sign in</button></form>`)
}

func (s *Site) askCode(w http.ResponseWriter, r *http.Request) {
	if s.with(s.browser(w, r), nil).half == "" {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return
	}
	s.page(w, http.StatusOK, Asking, `<form method="post" action="/login/code"><label>Code <input name="code" inputmode="numeric"></label><button>Sign in</button></form>`)
}

func (s *Site) answerCode(w http.ResponseWriter, r *http.Request) {
	code := r.PostFormValue("code")
	b := s.browser(w, r)
	half := s.with(b, nil).half
	right, err := totp.ValidateCustom(code, s.cfg.Seed, s.now().UTC(), totp.ValidateOpts{Period: 30, Skew: 1, Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1})
	s.mu.Lock()
	used := s.codes[code]
	if right && len(s.codes) < maxRequests {
		s.codes[code] = true
	}
	s.mu.Unlock()
	if !s.login(r, Login{Username: half, Code: code, OK: err == nil && right && !used && half != ""}) {
		s.refuse(w)
		return
	}
	s.with(b, func(b *session) { b.user, b.half = b.half, "" })
	http.Redirect(w, r, "/home", http.StatusSeeOther)
}

// answerJSON takes the login of the script page.
func (s *Site) answerJSON(w http.ResponseWriter, r *http.Request) {
	var in struct {
		User struct {
			Name     string `json:"name"`
			Password string `json:"password"`
		} `json:"user"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		http.Error(w, "JSON, please", http.StatusBadRequest)
		return
	}
	if !s.login(r, Login{Username: in.User.Name, Password: in.User.Password, OK: s.right(in.User.Name, in.User.Password)}) {
		http.Error(w, "wrong user name or password", http.StatusUnauthorized)
		return
	}
	s.with(s.browser(w, r), func(b *session) { b.user, b.password = in.User.Name, in.User.Password })
	w.Header().Set("Content-Type", "application/json")
	if json.NewEncoder(w).Encode(map[string]string{"user": in.User.Name, "color": string(css(s.cfg.Color))}) != nil {
		return
	}
}

// origin is the site's own, as the browser sees it.
func origin(r *http.Request) string {
	if r.TLS != nil {
		return "https://" + r.Host
	}
	return "http://" + r.Host
}
