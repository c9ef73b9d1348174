package sites

import (
	"crypto/rand"
	"embed"
	"fmt"
	"html/template"
	"image/color"
	"io"
	"net/http"
	"strings"
	"time"
)

//go:embed static/*.js
var static embed.FS

func (s *Site) routes() {
	s.mux.HandleFunc("GET /{$}", s.front)
	s.mux.HandleFunc("GET /home", s.home)
	s.mux.HandleFunc("GET /static/{name}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, static, "static/"+r.PathValue("name"))
	})
	s.mux.HandleFunc("GET /drive", s.drive)
	s.mux.HandleFunc("POST /drive/{id}", s.driven)
	s.mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		s.with(s.browser(w, r), func(b *session) { *b = session{token: b.token, salt: b.salt} })
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	s.loginRoutes()
	s.echoRoutes()
	s.fileRoutes()
	s.wideRoutes()
}

// view is what a page shows.
type view struct {
	Title   string
	Color   template.CSS
	Nonce   string
	Policy  string // of the meta element
	Body    template.HTML
	Scripts []string
}

var frameOfPage = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{.Title}}</title>
{{with .Policy}}<meta http-equiv="Content-Security-Policy" content="{{.}}">{{end}}
<style{{with .Nonce}} nonce="{{.}}"{{end}}>
html { height: 100%; background: {{.Color}} }
body { min-height: 100%; margin: 0; font: 18px sans-serif; color: #111 }
main { background: #fff; width: 22em; margin: 0; padding: 1em }
input, button, textarea { font: inherit; display: block; width: 100%; margin: .4em 0; box-sizing: border-box }
iframe { border: 0; width: 100%; height: 20em }
</style></head>
<body><main><h1>{{.Title}}</h1>{{.Body}}</main>
{{range .Scripts}}<script{{with $.Nonce}} nonce="{{.}}"{{end}} src="/static/{{.}}"></script>
{{end}}</body></html>
`))

func css(c color.RGBA) template.CSS {
	return template.CSS(fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B))
}

// page writes a page; body is HTML of ours.
func (s *Site) page(w http.ResponseWriter, status int, fill color.RGBA, body template.HTML, scripts ...string) {
	v := view{Title: s.cfg.Title, Color: css(fill), Body: body, Scripts: scripts}
	if s.cfg.Kind == CSRF {
		v.Nonce = rand.Text()
		policy := "default-src 'none'; script-src 'nonce-" + v.Nonce + "'; style-src 'nonce-" + v.Nonce +
			"'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; require-trusted-types-for 'script'"
		if s.cfg.MetaPolicy {
			v.Policy = policy
		} else {
			w.Header().Set("Content-Security-Policy", policy+"; frame-ancestors 'none'")
		}
	}
	if s.cfg.Driven {
		v.Scripts = append(v.Scripts, "drive.js")
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	if err := frameOfPage.Execute(w, v); err != nil {
		return // the browser has gone
	}
}

// front sends people to where they belong.
func (s *Site) front(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Kind == Basic || s.cfg.Kind == Digest || s.cfg.Kind == Bearer {
		s.home(w, r)
		return
	}
	if user, _ := s.who(w, r); user == "" {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
		return
	}
	http.Redirect(w, r, "/home", http.StatusSeeOther)
}

// signedIn answers the user, after having sent everybody else away.
func (s *Site) signedIn(w http.ResponseWriter, r *http.Request) (user, password string, ok bool) {
	switch s.cfg.Kind {
	case Basic, Digest, Bearer:
		if !s.challenged(w, r) {
			return "", "", false
		}
		if s.cfg.Kind == Digest {
			return s.cfg.Username, s.cfg.Password, true
		}
	}
	user, password = s.who(w, r)
	if user == "" {
		http.Redirect(w, r, "/login", http.StatusSeeOther)
	}
	return user, password, user != ""
}

func (s *Site) home(w http.ResponseWriter, r *http.Request) {
	user, _, ok := s.signedIn(w, r)
	if !ok {
		return
	}
	s.page(w, http.StatusOK, s.cfg.Color, template.HTML("<p>You are signed in as <b>"+template.HTMLEscapeString(user)+`</b>.</p>
<ul><li><a href="/files">Files</a><li><a href="/upload">Upload</a><li><a href="/note">Note</a><li><a href="/canvas">Moving picture</a>
<li><a href="/many">Other hosts</a><li><a href="/echo">Echoes</a><li><a href="/logout">Sign out</a></ul>`))
}

// driveWait is how long a page waits for an order before it asks again.
const driveWait = 25 * time.Second

func (s *Site) drive(w http.ResponseWriter, r *http.Request) {
	user, _ := s.who(w, r)
	if s.cfg.Kind == Digest {
		user = s.cfg.Username
	}
	timer := time.NewTimer(driveWait)
	defer timer.Stop()
	again := time.NewTicker(orderLost / 3)
	defer again.Stop()
	for {
		o, more := s.take(user)
		if o != nil {
			reply(w, o)
			return
		}
		select {
		case <-more:
		case <-again.C:
		case <-timer.C:
			w.WriteHeader(http.StatusNoContent)
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (s *Site) driven(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		http.Error(w, "the answer was cut", http.StatusBadRequest)
		return
	}
	s.answered(r.PathValue("id"), strings.TrimSpace(string(text)))
	w.WriteHeader(http.StatusNoContent)
}
