package mitm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"caponier/shared/webrule"
)

// Applications take a request's method from a field of its body, too. What a
// body of at most maxMethodBody says counts before the request leaves. Of a
// longer one the rest is looked at as it passes, and its end is kept back until
// it was: a method that may not be breaks the request off, and no application
// gets a whole one.
const (
	// maxMethodBody is how much of a body is read ahead, in bytes.
	maxMethodBody = 64 << 10
	// maxMethodField is the longest name or value that is looked at. Encoded
	// names of methods are shorter.
	maxMethodField = 256
	maxMethodLine  = 4 << 10 // of a part's header
	maxMethods     = 16
)

// isMethodField reports whether a field's name is one that applications take a
// method from. PHP writes spaces, dots and brackets as underscores.
func isMethodField(name string) bool {
	name, _, _ = strings.Cut(strings.ToLower(strings.TrimLeft(name, " ")), "\x00")
	switch strings.NewReplacer("-", "_", ".", "_", "[", "_", " ", "_").Replace(name) {
	case "_method", "x_http_method_override":
		return true
	}
	return false
}

// methodScan finds methods in a body that comes in pieces.
type methodScan struct {
	// methods are what was found; unclear says that there may be more.
	methods []string
	unclear bool

	step func(s *methodScan, c byte)
	done func(s *methodScan)

	key, value []byte
	want       bool // value is of a field that names a method
	after      bool // the key is through

	// Of JSON.
	depth        int
	quoted, back bool
	named        bool // the key at hand was one of methods

	// Of multipart.
	boundary string
	line     []byte
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
			s = &methodScan{boundary: "--" + boundary, step: (*methodScan).byLine, done: (*methodScan).lastLine}
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

func (s *methodScan) write(p []byte) {
	for _, c := range p {
		s.step(s, c)
	}
}

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
func keep(b []byte, c byte) []byte {
	if len(b) <= maxMethodField {
		b = append(b, c)
	}
	return b
}

// form is application/x-www-form-urlencoded, where some take ; for &, too.
func (s *methodScan) form(c byte) {
	switch {
	case c == '&' || c == ';':
		s.pair()
	case c == '=' && !s.after:
		name, err := url.QueryUnescape(string(s.key))
		if err != nil {
			name = string(s.key)
		}
		s.after, s.want = true, len(s.key) <= maxMethodField && isMethodField(name)
	case !s.after:
		s.key = keep(s.key, c)
	case s.want:
		s.value = keep(s.value, c)
	}
}

func (s *methodScan) pair() {
	if s.want {
		v, err := url.QueryUnescape(string(s.value))
		s.add([]byte(v), err == nil && len(s.value) <= maxMethodField)
		s.unclear = s.unclear || err != nil
	}
	s.key, s.value, s.after, s.want = s.key[:0], s.value[:0], false, false
}

// json looks at the strings that stand beside the keys of the outermost object.
func (s *methodScan) json(c byte) {
	switch {
	case c == 0: // UTF-16 or UTF-32, which some servers read
		s.unclear = true
	case s.quoted && s.back:
		s.value, s.back = keep(s.value, c), false
	case s.quoted && c == '"':
		s.quoted = false
		if s.depth == 1 && s.named {
			v, ok := jsonText(s.value)
			s.add([]byte(v), ok)
			s.named = false
		}
	case s.quoted:
		s.value, s.back = keep(s.value, c), c == '\\'
	case c == '"':
		s.quoted, s.value = true, s.value[:0]
	case c == '{' || c == '[':
		s.depth++
	case c == '}' || c == ']':
		s.depth--
	case c == ':' && s.depth == 1:
		name, ok := jsonText(s.value)
		s.named = ok && isMethodField(name)
	case c == ',' && s.depth == 1:
		s.named = false
	}
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
func (s *methodScan) byLine(c byte) {
	switch {
	case c == '\n':
		s.lineEnd()
		s.line, s.long = s.line[:0], false
	case len(s.line) < maxMethodLine:
		s.line = append(s.line, c)
	default:
		s.long = true
	}
}

func (s *methodScan) lastLine() {
	s.lineEnd()
	s.endPart()
}

func (s *methodScan) lineEnd() {
	line := bytes.TrimSuffix(s.line, []byte("\r"))
	switch {
	case bytes.HasPrefix(line, []byte(s.boundary)):
		s.endPart()
		s.header, s.part = true, nil
	case !s.header:
		if s.want {
			for _, c := range line {
				s.value = keep(s.value, c)
			}
			s.value = keep(s.value, '\n')
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

// errLateMethod is the error of a body that names a method at its end that may
// not be.
var errLateMethod = errors.New("the body names a method that may not be")

// readMethods finds out which methods the body names, as far as it is read ahead.
func (x *exchange) readMethods() error {
	if x.in.Body == nil || x.in.Body == http.NoBody || x.in.ContentLength == 0 {
		return nil
	}
	scan, unclear := newMethodScan(x.in.Header)
	if scan == nil || unclear {
		x.unclear = unclear
		return nil
	}
	head, err := io.ReadAll(io.LimitReader(x.in.Body, maxMethodBody+1))
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	scan.write(head)
	if len(head) <= maxMethodBody {
		scan.finish()
		x.in.Body = &rest{bytes.NewReader(head), x.in.Body}
	} else {
		late := &lateMethods{src: x.in.Body, scan: scan, known: len(scan.methods), unclear: scan.unclear, back: head, may: x.mayLate}
		x.in.Body = &rest{late, x.in.Body}
	}
	x.bodyMethods, x.unclear = slices.Clone(scan.methods), scan.unclear
	return nil
}

// lateMethods is a body that is looked at while it passes.
type lateMethods struct {
	src     io.Reader
	scan    *methodScan
	known   int  // methods that were decided on
	unclear bool // and whether it was
	may     func(method string, unclear bool) bool

	ready, back []byte // back follows when it is known what comes after it
	err         error
}

// Read implements io.Reader.
func (l *lateMethods) Read(p []byte) (int, error) {
	for len(l.ready) == 0 {
		if l.err != nil {
			return 0, l.err
		}
		next := make([]byte, 32<<10)
		n, err := l.src.Read(next)
		l.scan.write(next[:n])
		if err == io.EOF {
			l.scan.finish()
		}
		fine := !l.scan.unclear || l.unclear || l.may("", true)
		for _, m := range l.scan.methods[l.known:] {
			fine = fine && l.may(m, false)
		}
		l.known, l.unclear = len(l.scan.methods), l.scan.unclear
		switch {
		case !fine:
			l.err = errLateMethod
			return 0, l.err
		case err == io.EOF:
			l.ready, l.back, l.err = append(l.back, next[:n]...), nil, err
		case err != nil:
			l.err = err // the end stays here
			return 0, l.err
		case n > 0:
			l.ready, l.back = l.back, next[:n]
		}
	}
	n := copy(p, l.ready)
	l.ready = l.ready[n:]
	return n, nil
}

// mayLate decides on a method that was found when the request was under way, or
// while it is read to be held. Nobody can be asked about it any more then.
func (x *exchange) mayLate(method string, unclear bool) bool {
	late := webrule.Meant{Request: x.what, Any: unclear}
	if !unclear {
		late.Method = method
		x.live.Also([]string{method}, false)
	} else {
		x.live.Also(nil, true)
	}
	v := x.ses.Revision().Policy.DecideMeant(late)
	if v.Allowed() {
		return true
	}
	if v.Held() && x.keeping { // who decides is told of it
		x.unclear = x.unclear || unclear
		if !unclear {
			x.bodyMethods = append(x.bodyMethods, method)
		}
		return true
	}
	x.late.Store(&v)
	return false
}

// asWhat are the methods that an application may take the request to have
// besides its own, sorted.
func (x *exchange) asWhat() []string {
	methods := append(overrides(x.in), x.bodyMethods...)
	slices.Sort(methods)
	return slices.Compact(methods)
}

// ruleMethod is asWhat for those who decide; nothing if there is none.
func (x *exchange) ruleMethod() string {
	text := strings.Join(x.asWhat(), " or ")
	if x.unclear {
		text = "any method"
	}
	if len(text) > maxMethod {
		text = "others"
	}
	return text
}
