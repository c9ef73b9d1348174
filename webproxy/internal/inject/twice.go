package inject

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/url"
	"strings"
)

// Of a field that stands twice one application takes the first value, another
// the last, a third both as a list: nobody can tell whether the one that is put
// in arrives where it belongs, and nowhere else. Names are compared as they are.

// twiceForm reports whether a field stands more than once in a form. Some take ;
// for &, too.
func twiceForm(body []byte, field string) bool {
	n := 0
	for pair := range strings.FieldsFuncSeq(string(body), func(c rune) bool { return c == '&' || c == ';' }) {
		k, _, _ := strings.Cut(pair, "=")
		if name, err := url.QueryUnescape(k); err == nil && name == field {
			n++
		}
	}
	return n > 1
}

// twiceJSON reports whether a path leads to more than one place: its key, or
// one of an object around it, stands more than once.
func twiceJSON(body []byte, path string) bool {
	seen := map[string]int{path: 0}
	for i := range len(path) {
		if path[i] == '.' { // one that belongs to a key (\.) makes no path of another
			seen[path[:i]] = 0
		}
	}
	twice := false
	walkJSON(body, func(at string) {
		if n, ok := seen[at]; ok {
			seen[at] = n + 1
			twice = twice || n > 0
		}
	}, func(string, string, int, int) {})
	return twice
}

// twiceMultipart reports whether a field that is no file stands more than once.
func twiceMultipart(body []byte, boundary, field string) bool {
	n := 0
	for r := multipart.NewReader(bytes.NewReader(body), boundary); ; {
		p, err := r.NextRawPart()
		if err != nil {
			return n > 1
		}
		if p.FormName() == field && p.FileName() == "" {
			n++
		}
		if _, err := io.Copy(io.Discard, p); err != nil {
			return n > 1
		}
	}
}
