package webrule

import "strings"

// maxPath bounds a path in bytes, as it travels.
const maxPath = 8 << 10

// paths are the readings of one raw path: as RFC 3986 says, and as servers say
// that also merge empty segments. bare is the latter for servers that drop
// path parameters (RFC 3986 §3.3: "/admin;v=1" is /admin to them).
type paths struct {
	plain, merged, bare string
	// clear is false when servers disagree about what the path means.
	clear bool
	// dots: it has dot segments, which not all servers resolve, or not all of
	// them. Browsers send none.
	dots bool
}

// normalPath reads a raw (percent-encoded) path: unreserved characters are
// decoded, the digits of the other encodings are upper case, dot segments are
// removed (RFC 3986 §6.2.2). Not clear are encoded slashes, backslashes, dots
// and NULs behind a second encoding, overlong UTF-8, path parameters on dot
// segments, dot segments beside empty ones, broken encodings and bytes that do
// not belong into a path.
func normalPath(raw string) paths {
	p := paths{clear: len(raw) <= maxPath}
	if raw == "" {
		raw = "/"
	}
	if raw[0] != '/' {
		return paths{plain: raw, merged: raw, bare: raw}
	}
	if simplePath(raw) {
		p.plain, p.merged, p.bare = raw, raw, raw
		return p
	}
	var b strings.Builder
	b.Grow(len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '\\' || c <= ' ' || c >= 0x7f {
			p.clear = false
		}
		if c != '%' {
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
			p.clear = false
			b.WriteByte(c)
			continue
		}
		d := unhex(raw[i+1])<<4 | unhex(raw[i+2])
		switch {
		case unreserved(d):
			b.WriteByte(d)
		default:
			// 0xc0 and 0xc1 only begin overlong forms (RFC 3629 §3), of a slash or dot.
			if d == '/' || d == '\\' || d < ' ' || d == 0x7f || d == ';' || d == 0xc0 || d == 0xc1 || d == '%' && encodesAgain(raw[i+3:]) {
				p.clear = false
			}
			b.WriteByte('%')
			b.WriteByte(upperHex[d>>4])
			b.WriteByte(upperHex[d&15])
		}
		i += 2
	}
	segments := strings.Split(b.String()[1:], "/")
	var empty, parameters bool
	for i, s := range segments {
		name, params, has := strings.Cut(s, ";")
		if name == "." || name == ".." {
			p.dots = true
			if has || params != "" {
				p.clear = false
			}
		}
		empty = empty || s == "" && i < len(segments)-1
		parameters = parameters || has
	}
	if p.dots && empty {
		p.clear = false
	}
	p.plain = removeDots(segments)
	p.merged = p.plain
	if empty {
		p.merged = merge(p.plain)
	}
	p.bare = p.merged
	if parameters {
		for i, s := range segments {
			segments[i], _, _ = strings.Cut(s, ";")
		}
		p.bare = merge(removeDots(segments))
	}
	return p
}

// simplePath reports whether normalisation would change nothing.
func simplePath(raw string) bool {
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '%', c == '\\', c <= ' ', c >= 0x7f, c == ';':
			return false
		case c == '/' && i+1 < len(raw) && (raw[i+1] == '/' || raw[i+1] == '.'):
			return false
		}
	}
	return true
}

// removeDots is RFC 3986 §5.2.4 for an absolute path.
func removeDots(segments []string) string {
	var out []string
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case ".":
			if last {
				out = append(out, "")
			}
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return "/" + strings.Join(out, "/")
}

func merge(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// encodesAgain reports whether what follows a %25 would, decoded twice, be a
// dot, a slash, a backslash or a percent sign.
func encodesAgain(s string) bool {
	if len(s) < 2 || !isHex(s[0]) || !isHex(s[1]) {
		return false
	}
	switch unhex(s[0])<<4 | unhex(s[1]) {
	case '.', '/', '\\', '%', 0:
		return true
	}
	return false
}

// under reports whether any reading of a path is covered by pattern, letters of
// either case alike, as many servers take them: for rules that refuse or hold.
func (p paths) under(pattern string) bool {
	return underFold(p.plain, pattern) || underFold(p.merged, pattern) || underFold(p.bare, pattern)
}

// under reports whether path is covered by pattern: a prefix by whole
// segments, or with a final "$" the path itself. pattern is normal.
func under(path, pattern string) bool {
	if exact, ok := strings.CutSuffix(pattern, "$"); ok {
		return path == exact
	}
	rest, ok := strings.CutPrefix(path, pattern)
	return pattern == "" || pattern == "/" || ok && whole(pattern, rest)
}

// underFold is under without regard to the case of letters.
func underFold(path, pattern string) bool {
	if exact, ok := strings.CutSuffix(pattern, "$"); ok {
		return strings.EqualFold(path, exact)
	}
	n := len(pattern)
	return pattern == "" || pattern == "/" || n <= len(path) && strings.EqualFold(path[:n], pattern) && whole(pattern, path[n:])
}

// whole reports whether a path of pattern and rest has a segment's end between them.
func whole(pattern, rest string) bool {
	return rest == "" || rest[0] == '/' || pattern[len(pattern)-1] == '/'
}

const upperHex = "0123456789ABCDEF"

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}

// unreserved is RFC 3986 §2.3.
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}
