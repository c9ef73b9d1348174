package mitm

import (
	"bytes"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

const (
	// maxMethodField is the longest name or value that is looked at. Encoded
	// names of methods are shorter.
	maxMethodField = 256
	maxMethodLine  = 4 << 10 // of a part's header
	maxMethods     = 16
)

var underscores = strings.NewReplacer("-", "_", ".", "_", "[", "_", " ", "_")

// isMethodField reports whether a field's name is one that applications take a
// method from. PHP writes spaces, dots and brackets as underscores.
func isMethodField(name string) bool {
	name, _, _ = strings.Cut(strings.ToLower(strings.TrimLeft(name, " ")), "\x00")
	switch underscores.Replace(name) {
	case "_method", "x_http_method_override":
		return true
	}
	return false
}

// mayNameMethod reports whether a name, as it is written in a form or in JSON,
// is worth a closer look: it is as long as one of isMethodField, or has
// characters that stand for others. Letters outside ASCII that are written as
// one of its letters are longer.
func mayNameMethod(raw []byte) bool {
	raw = bytes.TrimLeft(raw, " ")
	if n := len(raw); n == len("_method") || n >= len("x_http_method_override") {
		return true
	}
	for _, c := range raw {
		if c == '%' || c == '+' || c == '\\' || c == 0 {
			return true
		}
	}
	return false
}

// methodScan finds methods in a body that comes in pieces. It looks for the few
// bytes that mean something, and leaves the rest to bytes.IndexByte: most of a
// body are values that name no method.
type methodScan struct {
	// methods are what was found; unclear says that there may be more.
	methods []string
	unclear bool

	step func(s *methodScan, p []byte)
	done func(s *methodScan)

	key, value []byte
	want       bool // value is of a field that names a method
	after      bool // the key is through

	// Of JSON.
	depth        int
	quoted, back bool
	named        bool // the key at hand was one of methods

	// Of multipart.
	boundary []byte
	line     []byte // the beginning of one that has no end yet
	long     bool
	header   bool
	part     []string // header lines
}

// newMethodScan returns the scan for a request's body; nil: it is of no kind
// that applications take fields from. unclear: it cannot be looked at.
func newMethodScan(h http.Header) (s *methodScan, unclear bool) {
	types := h.Values("Content-Type")
	for _, t := range types {
		kind, params, err := mime.ParseMediaType(t)
		unclear = unclear || !likeASCII(params["charset"])
		if err != nil && kind == "" {
			kind, _, _ = strings.Cut(strings.ToLower(strings.TrimSpace(t)), ";")
			kind = strings.TrimSpace(kind)
		}
		switch {
		case kind == "application/x-www-form-urlencoded":
			s = &methodScan{step: (*methodScan).form, done: (*methodScan).pair}
		case kind == "application/json" || strings.HasSuffix(kind, "+json"):
			s = &methodScan{step: (*methodScan).json, done: func(*methodScan) {}}
		case kind == "multipart/form-data":
			boundary := params["boundary"]
			if err != nil || boundary == "" || strings.Trim(boundary, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_'") != "" {
				unclear = true
			}
			s = &methodScan{boundary: []byte("--" + boundary), step: (*methodScan).byLine, done: (*methodScan).lastLine}
		}
	}
	if s == nil {
		return nil, false
	}
	encoded := strings.Join(h.Values("Content-Encoding"), ",")
	return s, unclear || len(types) > 1 || encoded != "" && !strings.EqualFold(encoded, "identity")
}

// likeASCII reports whether a charset writes ASCII as ASCII, and nothing else as
// it. Some servers read forms in whatever charset they are said to be in.
func likeASCII(charset string) bool {
	switch strings.ToLower(charset) {
	case "", "utf-8", "utf8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252":
		return true
	}
	return false
}

func (s *methodScan) write(p []byte) { s.step(s, p) }

// finish says that the body has ended.
func (s *methodScan) finish() { s.done(s) }

// add notes a field's value.
func (s *methodScan) add(value []byte, known bool) {
	m := strings.TrimSpace(string(value))
	switch {
	case m == "" || slices.Contains(s.methods, m):
	case !known || len(s.methods) >= maxMethods || strings.ContainsFunc(m, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		s.unclear = true
	default:
		s.methods = append(s.methods, m)
	}
}

// keep appends to what is looked at, and no more than that needs.
func keep(b, p []byte) []byte {
	if room := maxMethodField + 1 - len(b); room > 0 {
		b = append(b, p[:min(room, len(p))]...)
	}
	return b
}

// places are where a byte stands in p, one after the other: at most once over p,
// whatever else is looked for in between.
type places struct {
	p    []byte
	c    byte
	next int // the first that was not passed; len(p): none
}

func newPlaces(p []byte, c byte) places {
	x := places{p: p, c: c, next: -1}
	x.from(0)
	return x
}

// from is the first place at or after i.
func (x *places) from(i int) int {
	if x.next < i {
		if at := bytes.IndexByte(x.p[i:], x.c); at >= 0 {
			x.next = i + at
		} else {
			x.next = len(x.p)
		}
	}
	return x.next
}

// form is application/x-www-form-urlencoded, where some take ; for &, too.
func (s *methodScan) form(p []byte) {
	ands, semicolons := newPlaces(p, '&'), newPlaces(p, ';')
	for i := 0; i < len(p); {
		end := min(ands.from(i), semicolons.from(i))
		piece := p[i:end]
		if !s.after {
			at := bytes.IndexByte(piece, '=')
			if at < 0 {
				s.key = keep(s.key, piece)
			} else {
				s.key = keep(s.key, piece[:at])
				s.after, s.want = true, s.keyOfMethod()
				piece = piece[at+1:]
			}
		}
		if s.want {
			s.value = keep(s.value, piece)
		}
		if end < len(p) {
			s.pair()
		}
		i = end + 1
	}
}

// keyOfMethod reports whether the key of a form names a method.
func (s *methodScan) keyOfMethod() bool {
	if len(s.key) > maxMethodField || !mayNameMethod(s.key) {
		return false
	}
	name, err := url.QueryUnescape(string(s.key))
	if err != nil {
		name = string(s.key)
	}
	return isMethodField(name)
}

func (s *methodScan) pair() {
	if s.want {
		v, err := url.QueryUnescape(string(s.value))
		s.add([]byte(v), err == nil && len(s.value) <= maxMethodField)
		s.unclear = s.unclear || err != nil
	}
	s.key, s.value, s.after, s.want = s.key[:0], s.value[:0], false, false
}

// syntax are the bytes that mean something outside of JSON's strings.
var syntax = [256]bool{'"': true, '{': true, '[': true, '}': true, ']': true, ':': true, ',': true}

// json looks at the strings that stand beside the keys of the outermost object.
func (s *methodScan) json(p []byte) {
	if bytes.IndexByte(p, 0) >= 0 { // UTF-16 or UTF-32, which some servers read
		s.unclear = true
		p = bytes.ReplaceAll(p, []byte{0}, nil)
	}
	quotes, backs := newPlaces(p, '"'), newPlaces(p, '\\')
	for i := 0; i < len(p); i++ {
		switch {
		case s.back:
			s.value, s.back = keep(s.value, p[i:i+1]), false
			continue
		case s.quoted:
			end := min(quotes.from(i), backs.from(i))
			s.value = keep(s.value, p[i:end])
			if i = end; i == len(p) {
				return
			}
			if p[i] == '\\' {
				s.value, s.back = keep(s.value, p[i:i+1]), true
			} else {
				s.endString()
			}
			continue
		}
		for !syntax[p[i]] {
			if i++; i == len(p) {
				return
			}
		}
		switch p[i] {
		case '"':
			s.quoted, s.value = true, s.value[:0]
		case '{', '[':
			s.depth++
		case '}', ']':
			s.depth--
		case ':':
			if s.depth == 1 {
				s.named = s.nameOfMethod()
			}
		case ',':
			if s.depth == 1 {
				s.named = false
			}
		}
	}
}

// endString notes a string that is through, if it stands beside a method's name.
func (s *methodScan) endString() {
	s.quoted = false
	if s.depth == 1 && s.named {
		v, ok := jsonText(s.value)
		s.add([]byte(v), ok)
		s.named = false
	}
}

// nameOfMethod reports whether the string before names a method.
func (s *methodScan) nameOfMethod() bool {
	if !mayNameMethod(s.value) {
		return false
	}
	name, ok := jsonText(s.value)
	return ok && isMethodField(name)
}

// jsonText is what stands between two quotes.
func jsonText(raw []byte) (text string, ok bool) {
	if len(raw) > maxMethodField {
		return "too long", false
	}
	if json.Unmarshal(slices.Concat([]byte{'"'}, raw, []byte{'"'}), &text) != nil {
		return string(raw), false
	}
	return text, true
}

// byLine is multipart/form-data (RFC 7578).
func (s *methodScan) byLine(p []byte) {
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			s.lineGoesOn(p)
			return
		}
		if len(s.line) == 0 {
			s.long = end > maxMethodLine
			s.lineEnd(p[:min(end, maxMethodLine)])
		} else {
			s.lineGoesOn(p[:end])
			s.lineEnd(s.line)
		}
		s.line, s.long = s.line[:0], false
		p = p[end+1:]
	}
}

func (s *methodScan) lineGoesOn(p []byte) {
	n := min(len(p), maxMethodLine-len(s.line))
	s.line, s.long = append(s.line, p[:n]...), s.long || n < len(p)
}

func (s *methodScan) lastLine() {
	s.lineEnd(s.line)
	s.endPart()
}

func (s *methodScan) lineEnd(line []byte) {
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case bytes.HasPrefix(line, s.boundary):
		s.endPart()
		s.header, s.part = true, nil
	case !s.header:
		if s.want {
			s.value = keep(keep(s.value, line), []byte{'\n'})
		}
	case s.long || len(s.part) > 32:
		s.unclear = true
	case len(line) == 0:
		s.header = false
		s.want = slices.ContainsFunc(s.part, s.ofMethod)
	case (line[0] == ' ' || line[0] == '\t') && len(s.part) > 0: // folded
		s.part[len(s.part)-1] += string(line)
	default:
		s.part = append(s.part, string(line))
	}
}

// ofMethod reports whether a part's header line names a field of methods.
func (s *methodScan) ofMethod(line string) bool {
	name, v, _ := strings.Cut(line, ":")
	if !strings.EqualFold(strings.TrimSpace(name), "Content-Disposition") {
		return false
	}
	_, params, err := mime.ParseMediaType(v)
	if err != nil {
		if plain := strings.ToLower(v); strings.Contains(plain, "method") {
			s.unclear = true // somebody else may understand it
		}
		return false
	}
	return isMethodField(params["name"])
}

func (s *methodScan) endPart() {
	if s.want {
		s.add(s.value, len(s.value) <= maxMethodField)
	}
	s.want, s.value = false, s.value[:0]
}
