package sites

import (
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
)

func (s *Site) wideRoutes() {
	s.mux.HandleFunc("GET /many", s.many)
	s.mux.HandleFunc("GET /part/{name}", s.part)
	s.mux.HandleFunc("GET /canvas", func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := s.signedIn(w, r); ok {
			s.page(w, http.StatusOK, s.cfg.Color, `<canvas id="canvas" width="500" height="400"></canvas>`, "canvas.js")
		}
	})
	s.mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil || code < 300 || code > 399 {
			code = http.StatusFound
		}
		w.Header().Set("Access-Control-Allow-Origin", "*")
		http.Redirect(w, r, r.URL.Query().Get("to"), code)
	})
	// Where nothing secret may ever arrive.
	s.mux.HandleFunc("/collect", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.WriteHeader(http.StatusNoContent)
	})
	// A page of one colour, for those who are not signed in too.
	s.mux.HandleFunc("GET /plain", func(w http.ResponseWriter, r *http.Request) {
		s.page(w, http.StatusOK, s.cfg.Color, "<p>A page.</p>")
	})
	s.mux.HandleFunc("GET /paper.pdf", s.paper)
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
}

// many is a page with parts of other hosts, a different kind of each.
func (s *Site) many(w http.ResponseWriter, r *http.Request) {
	var b strings.Builder
	b.WriteString(`<p id="many">parts of other hosts</p>`)
	for i, h := range s.cfg.Hosts {
		h = template.HTMLEscapeString(h)
		switch i % 3 {
		case 0:
			fmt.Fprintf(&b, `<img alt="" src="%s/part/picture.svg" width="80" height="40">`, h)
		case 1:
			fmt.Fprintf(&b, `<script src="%s/part/script.js" defer></script>`, h)
		case 2:
			fmt.Fprintf(&b, `<link rel="stylesheet" href="%s/part/style.css">`, h)
		}
	}
	s.page(w, http.StatusOK, s.cfg.Color, template.HTML(b.String()))
}

func (s *Site) part(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	switch r.PathValue("name") {
	case "picture.svg":
		w.Header().Set("Content-Type", "image/svg+xml")
		fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"><rect width="2" height="1" fill="%s"/></svg>`, css(s.cfg.Color))
	case "script.js":
		w.Header().Set("Content-Type", "text/javascript")
		fmt.Fprintln(w, `document.getElementById("many").dataset.script = "ran";`)
	case "style.css":
		w.Header().Set("Content-Type", "text/css")
		fmt.Fprintln(w, `main { border: 4px solid #333 }`)
	default:
		http.NotFound(w, r)
	}
}
