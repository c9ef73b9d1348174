package inject

import (
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"slices"
	"strings"

	"caponier/shared/webrule"
)

//go:embed fill.js
var fillScript string

// Reserved begins the paths that are ours on every origin; nothing below it is
// sent on.
const Reserved = "/.caponier/"

// maxScripts bounds the fill scripts of a session.
const maxScripts = 64

// Script is the script that a page gets.
type Script struct {
	Path  string // same origin
	Nonce string // for policies that ask for one
}

// Fill returns the script for the page of r, or nil. Pages whose values are
// used up get none; a button is pressed only as long as nothing was sent.
func (j *Injector) Fill(recipe *webrule.Recipe, r webrule.Request) *Script {
	type field struct {
		S string `json:"s"`
		V string `json:"v"`
	}
	type fill struct {
		Fields []field `json:"fields"`
		Submit string  `json:"submit,omitempty"`
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	var fills []fill
	for _, f := range recipe.Fills {
		if !f.Bound(r) {
			continue
		}
		one := fill{Submit: f.Submit}
		spent := false
		for _, fd := range f.Fields {
			in := find(recipe, fd.Injection)
			m := j.markLocked(in.ID)
			spent = spent || m.spent(in)
			if m.uses > 0 {
				one.Submit = ""
			}
			one.Fields = append(one.Fields, field{fd.Selector, j.placeholderLocked(in)})
		}
		if !spent {
			fills = append(fills, one)
		}
	}
	if len(fills) == 0 {
		return nil
	}
	config, err := json.Marshal(fills) // escapes what could end a script
	if err != nil {
		return nil
	}
	path := j.paths[string(config)]
	if path == "" {
		if len(j.scripts) >= maxScripts {
			j.scripts, j.paths = map[string]string{}, map[string]string{}
		}
		path = fmt.Sprintf("%sfill-%s.js", Reserved, strings.ToLower(rand.Text()))
		j.paths[string(config)] = path
		j.scripts[path] = strings.NewReplacer("/*fills*/[]", string(config), "/*mail*/", mailSuffix).Replace(fillScript)
	}
	return &Script{Path: path, Nonce: rand.Text()}
}

func find(recipe *webrule.Recipe, id string) webrule.Injection {
	for _, in := range recipe.Injections {
		if in.ID == id {
			return in
		}
	}
	return webrule.Injection{ID: id, Times: -1} // validated: does not happen
}

// outcomes are what a script tells about its page.
var outcomes = []string{"filled", "missing", "pressed", "no_button"}

// maxTold bounds what the scripts of a session may tell.
const maxTold = 500

// Told is what a page's script says about itself.
type Told struct {
	Outcome string // filled, missing, pressed or no_button
	Fields  string // selectors that were not found
}

// Serve answers a request below Reserved. If the request tells how filling
// went it is returned.
func (j *Injector) Serve(w http.ResponseWriter, r *http.Request) *Told {
	j.mu.Lock()
	text, ok := j.scripts[r.URL.Path]
	var told *Told
	if q := r.URL.Query(); ok && r.URL.RawQuery != "" {
		text = ""
		if slices.Contains(outcomes, q.Get("outcome")) && j.told < maxTold {
			j.told++
			told = &Told{Outcome: q.Get("outcome"), Fields: q.Get("fields")}
		}
	}
	j.mu.Unlock()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if !ok {
		http.Error(w, "There is nothing here.", http.StatusNotFound)
		return nil
	}
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	fmt.Fprint(w, text) // a failed write is the browser's leaving
	return told
}

// Tag is the element that loads the script.
func (s *Script) Tag() string {
	return fmt.Sprintf(`<script src="%s" nonce="%s"></script>`, html.EscapeString(s.Path), html.EscapeString(s.Nonce))
}

// Permit changes the page's content security policies just so far that the
// script runs: its exact URL, or a nonce where URLs do not count
// ('strict-dynamic'). Everything else about them stays.
func (s *Script) Permit(h http.Header, origin string) {
	values := h["Content-Security-Policy"]
	for i, v := range values {
		policies := strings.Split(v, ",")
		for k, p := range policies {
			policies[k] = s.permit(p, origin)
		}
		values[i] = strings.Join(policies, ",")
	}
}

func (s *Script) permit(policy, origin string) string {
	directives := strings.Split(policy, ";")
	for _, name := range []string{"script-src-elem", "script-src", "default-src"} {
		for i, d := range directives {
			words := strings.Fields(d)
			if len(words) == 0 || !strings.EqualFold(words[0], name) {
				continue
			}
			if name == "default-src" {
				words = append([]string{"script-src"}, words[1:]...)
				directives = append(directives, " "+s.source(words, origin))
			} else {
				directives[i] = " " + s.source(words, origin)
			}
			return strings.TrimPrefix(strings.Join(directives, ";"), " ")
		}
	}
	return policy // scripts are not limited
}

// source adds our source to a directive.
func (s *Script) source(words []string, origin string) string {
	add := origin + s.Path
	var out []string
	for _, w := range words {
		switch strings.ToLower(w) {
		case "'none'":
			continue
		case "'strict-dynamic'":
			add = "'nonce-" + s.Nonce + "'"
		}
		out = append(out, w)
	}
	return strings.Join(append(out, add), " ")
}

// maxHead is how far into a page the place for the script is looked for.
const maxHead = 64 << 10

// Page puts the script's element into a page as it streams by.
type Page struct {
	tag  []byte
	held []byte
	seen int // held before it needs no second look
	done bool
}

// Page returns the rewriter for one page.
func (s *Script) Page() *Page { return &Page{tag: []byte(s.Tag())} }

// Push takes the next bytes of the page and appends to dst what may go on.
func (p *Page) Push(dst, src []byte) []byte {
	if p.done {
		return append(dst, src...)
	}
	p.held = append(p.held, src...)
	at := -1
	at, p.seen = headAt(p.held, p.seen)
	if at < 0 && len(p.held) < maxHead {
		return dst
	}
	return p.insert(dst, max(at, 0))
}

// Flush appends what was held back; the page is over.
func (p *Page) Flush(dst []byte) []byte {
	if p.done || len(p.held) == 0 {
		return dst
	}
	// A fragment without any element: scripts belong before it all the same.
	return p.insert(dst, 0)
}

func (p *Page) insert(dst []byte, at int) []byte {
	dst = append(append(append(dst, p.held[:at]...), p.tag...), p.held[at:]...)
	p.done, p.held = true, nil
	return dst
}

// headAt is where in a page the script goes: right after <head>, or before the
// first element that implies it, so that it comes before every policy in a
// meta element. -1: not seen yet; then resume is where to go on looking.
func headAt(b []byte, from int) (at, resume int) {
	i := from
	for i < len(b) {
		if b[i] != '<' {
			i++
			continue
		}
		rest := b[i:]
		switch {
		case hasPrefix(rest, "<!--"):
			end := strings.Index(string(rest), "-->")
			if end < 0 {
				return -1, i
			}
			i += end + 3
			continue
		case len(rest) < 8 && !strings.Contains(string(rest), ">"):
			return -1, i
		}
		end := tagEnd(rest)
		if end < 0 {
			return -1, i
		}
		switch name := tagName(rest); name {
		case "head":
			return i + end, i
		case "html", "!doctype", "?xml":
			i += end
		case "":
			i++
		default:
			return i, i
		}
	}
	return -1, i
}

func hasPrefix(b []byte, p string) bool { return len(b) >= len(p) && string(b[:len(p)]) == p }

func tagName(b []byte) string {
	i := 1
	for i < len(b) && i < 20 && b[i] != '>' && b[i] != ' ' && b[i] != '\t' && b[i] != '\n' && b[i] != '\r' && b[i] != '/' && b[i] != '\f' {
		i++
	}
	return strings.ToLower(string(b[1:i]))
}

// tagEnd is the length of the tag at the start of b; -1: it is not complete.
func tagEnd(b []byte) int {
	quote := byte(0)
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			return i + 1
		}
	}
	return -1
}
